/* tree_test.c - the tree operations of the keeper, as TAP.
 *
 * BOUGH_TEST_SEED and BOUGH_TEST_ROUNDS repeat or lengthen the random part, which
 * (in tree_random.h) compares merged layers with what overlayfs itself shows. */
#define _GNU_SOURCE
#include "../../src/keeper/tree.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "../../src/keeper/list.h"
#include "../../src/sys.h"
#include "tree_random.h"
#include "tree_support.h"

/* A chain of `depth` directories called "d", with a file at its end. */
static void deep_make(int at, const char *name, int depth)
{
    BOUGH_CLEANUP_FD int fd = dir_make(at, name);
    for (int i = 0; i < depth; i++) {
        int below = dir_make(fd, "d");
        close(fd);
        fd = below;
    }
    file_make(fd, "bottom", "here");
}

static int deep_measure(int at, const char *name)
{
    int depth = 0;
    BOUGH_CLEANUP_FD int fd = dir_open(at, name);
    int below;
    while ((below = openat(fd, "d", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) >= 0) {
        close(fd);
        fd = below;
        depth++;
    }
    return exists(fd, "bottom") ? depth : -1;
}

static void test_remove(int at)
{
    check(!bough_tree_remove(at, "missing", &err), "remove: a missing name is success");

    BOUGH_CLEANUP_FD int out = dir_make(at, "outside");
    file_make(out, "kept", "x");
    BOUGH_CLEANUP_FD int r = dir_make(at, "r");
    char longest[256];
    memset(longest, 'n', 255);
    longest[255] = '\0';
    file_make(r, longest, "");
    file_make(r, "new\nline", "");
    file_make(r, "\xff\xfe", "");
    MUST(symlinkat("../outside", r, "link"));
    MUST(mknodat(r, "fifo", S_IFIFO | 0600, 0));
    for (int i = 0; i < 3000; i++) {
        char name[32];
        snprintf(name, sizeof name, "%d", i);
        if (i % 10)
            file_make(r, name, "");
        else
            close(dir_make(r, name));
    }
    check(!bough_tree_remove(at, "r", &err) && !exists(at, "r"), "remove: any name, any type");
    check(exists(out, "kept"), "remove: does not follow symbolic links");
    MUST(symlinkat("outside", at, "l"));
    check(!bough_tree_remove(at, "l", &err) && exists(out, "kept"), "remove: a link itself");

    deep_make(at, "deep", 3000);
    struct rlimit old, few = {64, 64};
    getrlimit(RLIMIT_NOFILE, &old);
    few.rlim_max = old.rlim_max;
    setrlimit(RLIMIT_NOFILE, &few);
    check(!bough_tree_remove(at, "deep", &err) && !exists(at, "deep"),
          "remove: 3000 levels with 64 descriptors");
    setrlimit(RLIMIT_NOFILE, &old);
    check(!bough_tree_remove(at, "outside", NULL), "remove: err may be NULL");
}

static void test_measure(int at)
{
    struct bough_tree_size size;
    struct stat st;
    BOUGH_CLEANUP_FD int m = dir_make(at, "m");
    file_make(m, "a", "content");
    fstatat(m, "a", &st, 0);
    MUST(linkat(m, "a", m, "b", 0));
    MUST(symlinkat("x", m, "c"));
    check(!bough_tree_measure(at, "m", &size, &err) && size.files == 3 &&
              size.bytes == st.st_blocks * 512,
          "measure: counts a hard link once");
    check(bough_tree_measure(at, "none", &size, &err) == -1 && err.kind == BOUGH_ERR_not_found,
          "measure: a missing tree is not_found");
    deep_make(at, "md", 3000);
    check(!bough_tree_measure(at, "md", &size, &err) && size.files == 3001, "measure: 3000 levels");
    bough_tree_remove(at, "m", NULL);
    bough_tree_remove(at, "md", NULL);
}

static void hole_make(int at, const char *name)
{
    int fd = MUST(openat(at, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    MUST(pwrite(fd, "begin", 5, 0));
    MUST(pwrite(fd, "middle", 6, 4 << 20));
    MUST(ftruncate(fd, 64 << 20));
    close(fd);
}

static void big_make(int at, const char *name, size_t size)
{
    int fd = MUST(openat(at, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    char block[65536];
    for (size_t done = 0; done < size; done += sizeof block) {
        memset(block, (int)(done >> 16) + 1, sizeof block);
        MUST(write(fd, block, sizeof block));
    }
    close(fd);
}

static void test_copy(int at)
{
    struct bough_tree_size size;
    struct bough_tree_copy how = {.devices = true};
    BOUGH_CLEANUP_FD int from = dir_make(at, "from");
    BOUGH_CLEANUP_FD int to = dir_make(at, "to");
    BOUGH_CLEANUP_FD int sub = dir_make(from, "sub");
    file_make(from, "plain", "content");
    MUST(linkat(from, "plain", sub, "linked", 0));
    MUST(linkat(from, "plain", sub, "linked again", 0));
    MUST(symlinkat("/etc/passwd", from, "link"));
    MUST(symlinkat("..", sub, "up"));
    MUST(mknodat(from, "fifo", S_IFIFO | 0620, 0));
    MUST(mknodat(from, "white", S_IFCHR, makedev(0, 0)));
    hole_make(from, "sparse");
    big_make(sub, "big", 3 << 20);
    file_make(sub, "new\nline\xff", "odd");
    file_make(sub, "s", "setuid");
    MUST(fchmodat(sub, "s", 06755, 0));
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    snprintf(sun.sun_path, sizeof sun.sun_path, "/proc/self/fd/%d/sock", from);
    MUST(bind(s, (struct sockaddr *)&sun, sizeof sun));
    close(s);
    if (privileged()) {
        char cap[20] = {1, 0, 0, 2, 0, 4, 0, 0};
        MUST(mknodat(sub, "null", S_IFCHR | 0666, makedev(1, 3)));
        MUST(fchownat(sub, "s", 1000, 1001, 0));
        MUST(fchmodat(sub, "s", 06755, 0));
        MUST(fchownat(from, "link", 7, 8, AT_SYMLINK_NOFOLLOW));
        file_make(sub, "capable", "c");
        int fd = MUST(openat(sub, "capable", O_RDONLY | O_CLOEXEC));
        MUST(fsetxattr(fd, "security.capability", cap, sizeof cap, 0));
        MUST(fsetxattr(sub, "trusted.bough", "t", 1, 0));
        close(fd);
    }
    MUST(fsetxattr(from, "user.colour", "green", 5, 0));
    MUST(fsetxattr(sub, "user.empty", "", 0, 0));
    MUST(fchmod(sub, 01570));
    struct timespec times[2] = {{1000, 7}, {123456789, 987654321}};
    utimensat(from, "link", times, AT_SYMLINK_NOFOLLOW);
    utimensat(from, "fifo", times, AT_SYMLINK_NOFOLLOW);
    futimens(sub, times);
    futimens(from, times);

    int fds = open_fds();
    check(!bough_tree_copy(from, to, &how, &size, &err), "copy: works");
    check(open_fds() == fds, "copy: leaves no descriptor open");
    bool same = tree_same(from, to, DUMP_LINKS, "sock");
    check(same, "copy: content, owner, mode, times, xattrs, links are those of the source");
    check(how.skipped == 1, "copy: counts the socket it leaves out");
    struct bough_tree_size measured;
    check(!bough_tree_measure(at, "to", &measured, &err) && measured.files == size.files &&
              measured.bytes == size.bytes,
          "copy: the size is what measuring gives");
    struct stat st;
    check(!fstatat(to, "sparse", &st, 0) && st.st_blocks * 512 < 1 << 20, "copy: keeps holes");
    if (privileged()) {
        char cap[20];
        int fd = openat(to, "sub/capable", O_RDONLY | O_CLOEXEC);
        check(fgetxattr(fd, "security.capability", cap, sizeof cap) == 20, "copy: capabilities");
        close(fd);
    }

    BOUGH_CLEANUP_FD int less = dir_make(at, "less");
    struct bough_tree_copy small = {.max_bytes = 1 << 20};
    check(bough_tree_copy(from, less, &small, NULL, &err) == -1 && err.kind == BOUGH_ERR_resource,
          "copy: stops at max_bytes");
    struct bough_tree_copy plain = {.devices = false};
    bough_tree_remove(at, "less", NULL);
    BOUGH_CLEANUP_FD int less2 = dir_make(at, "less");
    check(!bough_tree_copy(from, less2, &plain, NULL, &err) && !exists(less2, "white") &&
              plain.skipped >= 2,
          "copy: leaves devices out where they are not allowed");
    BOUGH_CLEANUP_FD int inner = dir_make(less2, "inner");
    check(!bough_tree_copy(less2, inner, &plain, NULL, &err) && exists(inner, "plain") &&
              !exists(inner, "inner"),
          "copy: into itself ends");
    bough_tree_remove(at, "less", NULL);
    bough_tree_remove(at, "from", NULL);
    bough_tree_remove(at, "to", NULL);

    deep_make(at, "cd", 3000);
    BOUGH_CLEANUP_FD int deep = dir_open(at, "cd");
    BOUGH_CLEANUP_FD int deep_to = dir_make(at, "ce");
    bool copied = !bough_tree_copy(deep, deep_to, &how, &size, &err);
    check(copied && deep_measure(at, "ce") == 3000, "copy: 3000 levels");
    bough_tree_remove(at, "cd", NULL);
    bough_tree_remove(at, "ce", NULL);
}

static void test_copy_full(int at)
{
    struct bough_tree_copy how = {0};
    MUST(mkdirat(at, "full", 0755));
    BOUGH_CLEANUP_FD int from = dir_make(at, "source");
    big_make(from, "big", 4 << 20);
    char path[4000];
    snprintf(path, sizeof path, "%s/full", scratch);
    if (mount("tmpfs", path, "tmpfs", 0, "size=1m")) {
        skip("copy: no space", "cannot mount tmpfs");
        return;
    }
    int to = dir_open(at, "full");
    check(bough_tree_copy(from, to, &how, NULL, &err) == -1 && err.sys == ENOSPC &&
              err.kind == BOUGH_ERR_resource,
          "copy: no space is a resource error");
    check(bough_tree_remove(at, "full", &err) == -1, "remove: does not empty a mount");
    int low = dir_make(to, "x");
    close(low);
    close(to);
    MUST(umount(path));
    bough_tree_remove(at, "full", NULL);
    bough_tree_remove(at, "source", NULL);
}

static void test_merge(int at)
{
    struct bough_tree_size size;
    struct stat a, b;
    BOUGH_CLEANUP_FD int top = dir_make(at, "top");
    BOUGH_CLEANUP_FD int low = dir_make(at, "low");
    BOUGH_CLEANUP_FD int out = dir_make(at, "out");
    BOUGH_CLEANUP_FD int sub = dir_make(low, "sub");
    file_make(sub, "one", "1");
    MUST(linkat(sub, "one", sub, "two", 0));
    file_make(low, "hidden", "no");
    MUST(mknodat(top, "hidden", S_IFCHR, makedev(0, 0)));
    MUST(symlinkat("/nowhere", top, "sub link"));
    const int layers[] = {top, low};
    int fds = open_fds();
    check(!bough_tree_merge(layers, 2, out, "user.overlay.opaque", &size, &err), "merge: works");
    check(open_fds() == fds, "merge: leaves no descriptor open");
    check(!fstatat(out, "sub/one", &a, 0) && !fstatat(out, "sub/two", &b, 0) &&
              a.st_ino == b.st_ino && a.st_nlink == 4,
          "merge: links, and keeps hard links");
    check(!fstatat(out, "hidden", &a, 0) && S_ISCHR(a.st_mode), "merge: keeps whiteouts");
    struct bough_tree_size measured;
    bough_tree_measure(at, "out", &measured, NULL);
    check(size.files == 5 && size.files == measured.files && size.bytes == measured.bytes,
          "merge: the size is what measuring gives");

    MUST(fsetxattr(sub, "user.overlay.redirect", "/x", 2, 0));
    BOUGH_CLEANUP_FD int out2 = dir_make(at, "out2");
    check(bough_tree_merge(layers, 2, out2, "user.overlay.opaque", NULL, &err) == -1 &&
              err.kind == BOUGH_ERR_unsupported,
          "merge: refuses redirects");
    bough_tree_remove(at, "out2", NULL);
    bough_tree_remove(at, "out", NULL);

    deep_make(low, "deep", 3000);
    deep_make(top, "deep", 1500);
    MUST(fremovexattr(sub, "user.overlay.redirect"));
    BOUGH_CLEANUP_FD int out3 = dir_make(at, "out");
    bool merged = !bough_tree_merge(layers, 2, out3, "user.overlay.opaque", &size, &err);
    check(merged && deep_measure(out3, "deep") == 3000, "merge: 3000 levels");
    bough_tree_remove(at, "out", NULL);

    enum { MANY = 200 };
    int many[MANY];
    for (int i = 0; i < MANY; i++) {
        char name[32];
        snprintf(name, sizeof name, "many%d", i);
        int layer = dir_make(at, name);
        many[i] = layer;
        for (int j = 0; j < 60; j++) {
            int below = dir_make(layer, "d");
            if (layer != many[i])
                close(layer);
            layer = below;
            file_make(layer, name, name);
        }
        close(layer);
    }
    BOUGH_CLEANUP_FD int wide = dir_make(at, "out");
    merged = !bough_tree_merge(many, MANY, wide, "user.overlay.opaque", &size, &err);
    check(merged && size.files == 60 + 60 * MANY, "merge: 200 layers, 60 levels");
    for (int i = 0; i < MANY; i++) {
        char name[32];
        snprintf(name, sizeof name, "many%d", i);
        close(many[i]);
        bough_tree_remove(at, name, NULL);
    }
    bough_tree_remove(at, "out", NULL);
    bough_tree_remove(at, "top", NULL);
    bough_tree_remove(at, "low", NULL);
}

/* More names than the file system allows an inode: ext4 stops at 65000. */
static void test_merge_many_links(int at)
{
    struct stat st;
    BOUGH_CLEANUP_FD int top = dir_make(at, "ltop");
    BOUGH_CLEANUP_FD int pool = dir_make(at, "lpool");
    BOUGH_CLEANUP_FD int out = dir_make(at, "lout");
    file_make(top, "file", "much linked");
    MUST(mknodat(top, "white", S_IFCHR, makedev(0, 0)));
    int made = 1;
    for (; made < 70000; made++) {
        char name[16];
        snprintf(name, sizeof name, "%d", made);
        if (linkat(top, "file", pool, name, 0))
            break;
    }
    if (made == 70000) {
        skip("merge: too many links", "no link limit here");
    } else {
        check(!bough_tree_merge(&top, 1, out, "user.overlay.opaque", NULL, &err) &&
                  !fstatat(out, "file", &st, 0) && st.st_nlink == 1,
              "merge: a file with all links used (%d) is copied", made);
    }
    bough_tree_remove(at, "ltop", NULL);
    bough_tree_remove(at, "lpool", NULL);
    bough_tree_remove(at, "lout", NULL);
}

static void test_list(int at)
{
    BOUGH_CLEANUP_FD int l = dir_make(at, "l");
    file_make(l, "b", "12345");
    file_make(l, "B\n", "");
    close(dir_make(l, "\xff"));
    MUST(symlinkat("the target", l, "a"));
    int mem = MUST(memfd_create("list", MFD_CLOEXEC));
    check(!bough_list_dir(l, mem, &err), "list: works");
    char bytes[4096];
    ssize_t len = pread(mem, bytes, sizeof bytes, 0);
    const char *p = bytes, *end = bytes + len;
    struct bough_entry e[5];
    int n = 0;
    while (n < 5 && bough_list_next(&p, end, &e[n]) == 1)
        n++;
    check(n == 4 && p == end && !strcmp(e[0].name, "B\n") && !strcmp(e[1].name, "a") &&
              !strcmp(e[2].name, "b") && !strcmp(e[3].name, "\xff"),
          "list: sorted bytewise");
    check(!strcmp(e[1].target, "the target") && !strcmp(bough_entry_kind(&e[1]), "symlink") &&
              e[2].size == 5 && !strcmp(bough_entry_kind(&e[3]), "dir") &&
              e[2].mode == (S_IFREG | 0644) && e[2].target_len == 0,
          "list: fields");
    bool held = true;
    for (ssize_t cut = 0; cut < len; cut++) {
        char *exact = malloc((size_t)cut + 1); /* the sanitizer sees one byte too far */
        memcpy(exact, bytes, (size_t)cut);
        const char *q = exact;
        int rc;
        while ((rc = bough_list_next(&q, exact + cut, &e[4])) == 1)
            ;
        held = held && (rc == -1 || q == exact + cut);
        free(exact);
    }
    for (int round = 0; round < 20000; round++) {
        char bad[256];
        ssize_t size = len < 256 ? len : 256;
        memcpy(bad, bytes, (size_t)size);
        for (int i = 0; i < 3; i++)
            bad[rnd((unsigned)size)] = (char)rnd(256);
        const char *q = bad;
        while (bough_list_next(&q, bad + size, &e[4]) == 1)
            held = held && strlen(e[4].name) == e[4].name_len && e[4].target < bad + size;
    }
    check(held, "list: cut or damaged bytes are refused");
    int one = openat(l, "a", O_PATH | O_NOFOLLOW | O_CLOEXEC);
    MUST(ftruncate(mem, 0));
    lseek(mem, 0, SEEK_SET);
    check(!bough_list_entry(one, mem, "renamed", &err), "list: one entry");
    len = pread(mem, bytes, sizeof bytes, 0);
    p = bytes;
    check(bough_list_next(&p, bytes + len, &e[0]) == 1 && !strcmp(e[0].name, "renamed") &&
              !strcmp(e[0].target, "the target"),
          "list: a link by its O_PATH descriptor");
    close(one);
    close(mem);
    bough_tree_remove(at, "l", NULL);
}

/* Runs as nobody: directories that are closed even to their owner. */
static int unprivileged(int at)
{
    struct bough_tree_size size;
    struct stat st;
    if (geteuid() == 0 && (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534)))
        return 1;
    int top = dir_make(at, "top"), low = dir_make(at, "low"), out = dir_make(at, "out");
    int a = dir_make(top, "a"), b = dir_make(low, "a");
    file_make(a, "x", "x");
    file_make(b, "y", "y");
    MUST(fsetxattr(b, "user.b", "b", 1, 0));
    MUST(fsetxattr(a, "user.a", "a", 1, 0));
    int deep = dir_make(b, "d"), first = deep;
    for (int i = 0; i < 200; i++) { /* parked while closed */
        int below = dir_make(deep, "d");
        if (deep != first)
            MUST(fchmod(deep, 0));
        deep = below;
    }
    MUST(fchmod(first, 0100));
    MUST(fchmod(a, 0));
    MUST(fchmod(b, 0400));
    MUST(fchmod(low, 0555));
    const int layers[] = {top, low};
    if (bough_tree_measure(at, "low", &size, &err) || size.files != 203)
        return printf("# measure: %s\n", err.msg), 2;
    if (bough_tree_merge(layers, 2, out, "user.overlay.opaque", NULL, &err))
        return printf("# merge: %s\n", err.msg), 3;
    if (fstatat(out, "a", &st, 0) || (st.st_mode & 07777) != 0 || fstat(b, &st) ||
        (st.st_mode & 07777) != 0400 || fstat(first, &st) || (st.st_mode & 07777) != 0100)
        return printf("# modes after merge\n"), 4;
    if (bough_tree_remove(at, "out", &err) || bough_tree_remove(at, "low", &err) ||
        bough_tree_remove(at, "top", &err) || exists(at, "out") || exists(at, "low"))
        return printf("# remove: %s\n", err.msg), 5;
    int from = dir_make(at, "from"), to = dir_make(at, "to");
    int shut = dir_make(from, "shut");
    file_make(from, "readonly", "r");
    int file = MUST(openat(from, "readonly", O_RDWR | O_CLOEXEC));
    MUST(fsetxattr(file, "user.x", "x", 1, 0));
    MUST(fchmod(file, 0444));
    MUST(linkat(from, "readonly", shut, "again", 0));
    MUST(fchmod(shut, 0500));
    struct bough_tree_copy how = {.squash = true};
    if (bough_tree_copy(from, to, &how, NULL, &err) || !tree_same(from, to, DUMP_LINKS, NULL))
        return printf("# copy: %s\n", err.msg), 6;
    if (bough_tree_remove(at, "from", &err) || bough_tree_remove(at, "to", &err))
        return printf("# remove: %s\n", err.msg), 7;
    return 0;
}

static void test_unprivileged(int at)
{
    if (geteuid() == 0 && !privileged()) {
        skip("an ordinary user's closed directories", "root of a user namespace");
        return;
    }
    BOUGH_CLEANUP_FD int ours = dir_make(at, "nobody");
    MUST(fchmod(ours, 0777));
    fflush(stdout);
    pid_t child = MUST(fork());
    if (!child) {
        int code = unprivileged(ours);
        fflush(stdout);
        _exit(code);
    }
    int status = 0;
    waitpid(child, &status, 0);
    check(status == 0, "an ordinary user's closed directories (status %x)", (unsigned)status);
    bough_tree_remove(at, "nobody", NULL);
}

int main(void)
{
    const char *tmp = getenv("TMPDIR");
    setvbuf(stdout, NULL, _IOLBF, 0);
    snprintf(scratch, sizeof scratch, "%s/bough-tree-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(scratch))
        return printf("Bail out! %s: %s\n", scratch, strerror(errno)), 1;
    MUST(chmod(scratch, 0755));
    umask(022);
    bool own_mounts = geteuid() == 0 && !unshare(CLONE_NEWNS) &&
                      !mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL);
    int at = dir_open(AT_FDCWD, scratch);
    random_seed();
    test_remove(at);
    test_measure(at);
    test_copy(at);
    int memory = own_mounts ? memory_mount(at) : -1;
    test_merge(memory >= 0 ? memory : at);
    test_merge_many_links(at);
    test_list(at);
    test_unprivileged(at);
    if (own_mounts) {
        test_copy_full(at);
        test_random_all(at, memory);
    } else {
        skip("copy: no space", "needs root");
        skip("merge: random layers", "needs root");
    }
    memory_unmount(at, memory);
    close(at);
    check(!bough_tree_remove(AT_FDCWD, scratch, &err), "the scratch directory goes");
    printf("1..%d\n", tests);
    return failures ? 1 : 0;
}
