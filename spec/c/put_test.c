/* put_test.c - files put in place, as TAP: what a layer gets for a list of objects and an image.
 *
 * The tree part only (keeper/put.h), on plain directories: as root, or as root of a user namespace. */
#define _GNU_SOURCE
#include "../../src/keeper/put.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "../../src/keeper/walk.h"
#include "../../src/sys.h"
#include "put_place.h"

static void test_files(int at)
{
    struct place p = place_make(at, "files");
    struct stat a, b;
    close(dir_make(p.view, "etc"));
    MUST(fchmodat(p.view, "etc", 01750, 0));
    int etc = dir_open(p.view, "etc");
    MUST(fsetxattr(etc, "user.colour", "green", 5, 0));
    MUST(fsetxattr(etc, "user.overlay.opaque", "y", 1, 0));
    file_make(etc, "old", "old");
    close(etc);
    MUST(fchmod(p.view, 0711));

    staged_make(&p, "b1", "one");
    staged_make(&p, "b2", "two");
    struct bough_put_item items[] = {
        file_item("/etc/a", "b1", "ab/one"), file_item("/etc/again", "b1", "ab/one"),
        file_item("/etc/old", "b2", ""),     file_item("/new/deep/x", "", "ab/one"),
        link_item("/new/link", "../etc/a"),
    };
    items[0].mode = items[1].mode = items[3].mode = 04755;
    check(!PUT(&p, items), "put: works");
    check(has_text(p.out, "etc/a", "one") && has_text(p.out, "etc/again", "one") &&
              has_text(p.out, "etc/old", "two") && has_text(p.out, "new/deep/x", "one"),
          "put: contents");
    check(has_mode(p.out, "etc/a", S_IFREG | 04755) && has_mode(p.out, "etc/old", S_IFREG | 0640) &&
              has_day(p.out, "etc/a") && has_day(p.out, "etc/old") && has_day(p.out, "new/link"),
          "put: modes with setuid, times");
    check(!fstatat(p.blobs, "ab/one", &a, 0) && !fstatat(p.out, "etc/again", &b, 0) &&
              a.st_ino == b.st_ino && a.st_nlink == 4 && !exists(p.staging, "b1") &&
              !exists(p.staging, "b2"),
          "put: staged contents go to the pool, and are linked from there");
    char value[8] = "";
    etc = dir_open(p.out, "etc");
    check(has_mode(p.out, "etc", S_IFDIR | 01750) &&
              fgetxattr(etc, "user.colour", value, sizeof value) == 5 &&
              fgetxattr(etc, "user.overlay.opaque", value, sizeof value) < 0,
          "put: directories on the way are the image's, and not opaque");
    close(etc);
    check(!fstat(p.out, &a) && (a.st_mode & 07777) == 0711, "put: so is the root");
    check(has_mode(p.out, "new", S_IFDIR | 0755) && has_mode(p.out, "new/deep", S_IFDIR | 0755),
          "put: new ones are 0755");
    check(count_of(&p) == 8, "put: nothing else");

    layer_new(&p);
    staged_make(&p, "b3", "one");
    struct bough_put_item quicker[] = {file_item("/q", "b3", "ab/one")};
    check(!PUT(&p, quicker) && !exists(p.staging, "b3") && !fstatat(p.out, "q", &b, 0) &&
              !fstatat(p.blobs, "ab/one", &a, 0) && a.st_ino == b.st_ino,
          "put: what somebody else has pooled meanwhile is used");
    struct bough_put_item gone[] = {file_item("/r", "", "ab/gone")};
    check(PUT(&p, gone) == -1 && err.kind == BOUGH_ERR_not_found && strstr(err.msg, "blob gone"),
          "put: a pooled file that is gone");
    struct bough_put_item lost[] = {file_item("/r", "b9", "")};
    check(PUT(&p, lost) == -1 && err.kind == BOUGH_ERR_not_found, "put: staged content gone");
    layer_new(&p);
    struct bough_put_item blobless = file_item("/r", "", "ab/one");
    struct bough_put nothing = {.view = p.view,
                                .out = p.out,
                                .blobs = -1,
                                .staging = p.staging,
                                .items = &blobless,
                                .count = 1,
                                .skip = SKIP_OWN,
                                .uid_count = -1};
    check(bough_put_tree(&nothing, &err) == -1 && err.kind == BOUGH_ERR_not_found,
          "put: a store without a pool");
    place_remove(&p, at, "files");
}

static void test_links(int at)
{
    struct place p = place_make(at, "links");
    close(dir_make(p.view, "usr"));
    int usr = dir_open(p.view, "usr");
    close(dir_make(usr, "bin"));
    close(dir_make(usr, "share"));
    MUST(symlinkat("usr/bin", p.view, "bin"));
    MUST(symlinkat("/usr/share/../../bin/.", usr, "there"));
    MUST(symlinkat("../../../..", usr, "up"));
    MUST(symlinkat("loop", p.view, "loop"));
    MUST(symlinkat("/run", p.view, "var"));
    MUST(symlinkat("file", p.view, "tofile"));
    file_make(p.view, "file", "f");
    file_make(at, "outside", "untouched");
    MUST(symlinkat("../../outside", usr, "out"));

    staged_make(&p, "s", "x");
    struct bough_put_item items[] = {
        file_item("/bin/x", "s", "ab/x"),          file_item("/usr/out", "", "ab/x"),
        file_item("/usr/share/s", "", "ab/x"),     file_item("/usr/there/y", "", "ab/x"),
        file_item("/usr/up/usr/up/z", "", "ab/x"), file_item("/var/lock/v", "", "ab/x"),
    };
    check(!PUT(&p, items), "links: are followed inside the image");
    check(has_text(p.out, "usr/bin/x", "x") && has_text(p.out, "usr/bin/y", "x") &&
              has_text(p.out, "z", "x") && has_text(p.out, "run/lock/v", "x") &&
              has_text(p.out, "usr/share/s", "x"),
          "links: lead to real directories");
    check(!exists(p.out, "bin") && !exists(p.out, "var") && !exists(p.out, "usr/there"),
          "links: are not copied");
    check(has_text(at, "outside", "untouched") && has_text(p.out, "usr/out", "x"),
          "links: at the end are replaced");

    layer_new(&p);
    struct bough_put_item loop[] = {file_item("/loop/x", "", "ab/x")};
    check(PUT(&p, loop) == -1 && err.kind == BOUGH_ERR_invalid && strstr(err.msg, "too many"),
          "links: a loop ends");
    struct bough_put_item file[] = {file_item("/usr/../file/x", "", "ab/x")};
    file[0].path = "/file/deep/x";
    check(PUT(&p, file) == -1 && err.kind == BOUGH_ERR_invalid &&
              !strcmp(err.msg, "/file/deep/x: /file is not a directory in the image"),
          "links: a file on the way");
    struct bough_put_item tofile[] = {file_item("/tofile/x", "", "ab/x")};
    check(PUT(&p, tofile) == -1 && err.kind == BOUGH_ERR_invalid &&
              !strcmp(err.msg, "/tofile/x: /tofile is not a directory in the image"),
          "links: a link to a file on the way");

    layer_new(&p);
    struct bough_put_item own[] = {
        link_item("/a", "b/c"),           file_item("/a/1", "", "ab/x"),
        file_item("/a/2/3", "", "ab/x"),  file_item("/b/c/1", "", "ab/x"),
        link_item("/bin/sh", "busybox"),  link_item("/usr/bin/sh", "dash"),
        link_item("/usr/there", "share"), file_item("/usr/there/t", "", "ab/x"),
    };
    check(!PUT(&p, own) && has_text(p.out, "b/c/1", "x") && has_text(p.out, "b/c/2/3", "x") &&
              has_text(p.out, "usr/share/t", "x") && !exists(p.out, "usr/bin/t"),
          "links: those that were just made count too");
    char target[16] = "";
    check(readlinkat(p.out, "usr/bin/sh", target, sizeof target - 1) == 4 &&
              !strcmp(target, "dash"),
          "links: of two ways to one place the later one wins");
    place_remove(&p, at, "links");
    unlinkat(at, "outside", 0);
}

static void test_dirs(int at)
{
    struct place p = place_make(at, "dirs");
    close(dir_make(p.view, "here"));
    MUST(fchmodat(p.view, "here", 0700, 0));
    MUST(symlinkat("here", p.view, "link"));
    MUST(symlinkat("nowhere", p.view, "dangling"));
    file_make(p.view, "file", "f");
    MUST(mknodat(p.view, "fifo", S_IFIFO | 0600, 0));
    staged_make(&p, "s", "x");
    struct bough_put_item items[] = {
        dir_item("/here", 0755),    dir_item("/link", 0755),   dir_item("/new", 0500),
        dir_item("/new-er", 02775), dir_item("/new/a", 01777), file_item("/new/a/b", "s", "ab/x"),
    };
    check(!PUT(&p, items), "dirs: work");
    check(!exists(p.out, "here") && !exists(p.out, "link"),
          "dirs: what is there already is not made again");
    check(has_mode(p.out, "new", S_IFDIR | 0500) && has_mode(p.out, "new-er", S_IFDIR | 02775) &&
              has_mode(p.out, "new/a", S_IFDIR | 01777),
          "dirs: modes");
    check(has_day(p.out, "new") && has_day(p.out, "new-er") && has_day(p.out, "new/a"),
          "dirs: times outlast what is put into them");

    layer_new(&p);
    struct bough_put_item kept[] = {dir_item("/here", 0755), file_item("/here/f", "", "ab/x")};
    check(!PUT(&p, kept) && has_mode(p.out, "here", S_IFDIR | 0700),
          "dirs: one that is there keeps its mode");
    layer_new(&p);
    struct bough_put_item onfile[] = {dir_item("/file", 0755)};
    check(PUT(&p, onfile) == -1 && err.kind == BOUGH_ERR_exists, "dirs: a file is in the way");
    struct bough_put_item below[] = {dir_item("/file/d", 0755)};
    check(PUT(&p, below) == -1 && err.kind == BOUGH_ERR_invalid &&
              !strcmp(err.msg, "/file/d: /file is not a directory in the image"),
          "dirs: below a file");
    struct bough_put_item ondir[] = {file_item("/here", "", "ab/x")};
    check(PUT(&p, ondir) == -1 && err.kind == BOUGH_ERR_exists &&
              !strcmp(err.msg, "/here is a directory in the image"),
          "dirs: no file takes the place of one");
    struct bough_put_item linkdir[] = {link_item("/here", "x")};
    check(PUT(&p, linkdir) == -1 && err.kind == BOUGH_ERR_exists, "dirs: nor does a link");
    layer_new(&p);
    struct bough_put_item fresh[] = {dir_item("/d/e", 0755), file_item("/d", "", "ab/x")};
    check(PUT(&p, fresh) == -1 && err.kind == BOUGH_ERR_exists, "dirs: nor of a new one");
    layer_new(&p);
    struct bough_put_item special[] = {file_item("/fifo", "", "ab/x"), link_item("/file", "x"),
                                       file_item("/link", "", "ab/x")};
    check(!PUT(&p, special) && has_text(p.out, "fifo", "x") && has_text(p.out, "link", "x"),
          "dirs: anything else is replaced");
    layer_new(&p);
    struct bough_put_item dangling[] = {file_item("/dangling/x", "", "ab/x")};
    check(!PUT(&p, dangling) && has_text(p.out, "nowhere/x", "x"),
          "dirs: what a link promises is made");
    place_remove(&p, at, "dirs");
}

static void test_names(int at)
{
    struct place p = place_make(at, "names");
    staged_make(&p, "s", "x");
    char longest[300] = "/", deep[4090] = "";
    memset(longest + 1, 'n', 255);
    struct bough_put_item items[] = {file_item("/\xff\n x", "s", "ab/x"),
                                     file_item("/...", "", "ab/x"), file_item(longest, "", "ab/x"),
                                     file_item(deep, "", "ab/x")};
    for (int i = 0; i < 2000; i++)
        strcat(deep, "/d");
    check(!PUT(&p, items) && exists(p.out, "\xff\n x") && exists(p.out, "...") &&
              exists(p.out, longest + 1) && exists(p.out, deep + 1),
          "names: any bytes, 255 of them, 2000 levels");
    layer_new(&p);
    memset(longest + 1, 'n', 256);
    check(PUT(&p, items) == -1 && err.kind == BOUGH_ERR_invalid, "names: 256 bytes are too many");
    struct bough_put_item under[] = {file_item("/", "", "ab/x")};
    strcat(longest, "/x");
    under[0].path = longest;
    check(PUT(&p, under) == -1 && err.kind == BOUGH_ERR_invalid, "names: nor on the way");
    place_remove(&p, at, "names");
}

static void test_owners(int at)
{
    struct place p = place_make(at, "owners");
    struct stat st;
    staged_make(&p, "s", "x");
    struct bough_put_item items[] = {dir_item("/d", 0750), file_item("/f", "s", "ab/x"),
                                     link_item("/l", "f")};
    for (int i = 0; i < 3; i++) {
        items[i].uid = 1000;
        items[i].gid = 1001;
    }
    items[1].mode = 06755;
    if (privileged()) {
        bool owned = !PUT(&p, items);
        const char *const names[] = {"d", "f", "l"};
        for (int i = 0; i < 3; i++)
            owned = owned && !fstatat(p.out, names[i], &st, AT_SYMLINK_NOFOLLOW) &&
                    st.st_uid == 1000 && st.st_gid == 1001;
        check(owned && has_mode(p.out, "f", S_IFREG | 06755), "owners: are given");
    }
    layer_new(&p);
    p.uid_count = 1000;
    check(PUT(&p, items) == -1 && err.kind == BOUGH_ERR_invalid &&
              !strcmp(err.msg, "/d: uid 1000 cannot be given by this engine (only 0-999)"),
          "owners: of an engine that has not got so many");
    p.uid_count = 1001;
    check(PUT(&p, items) == -1 && strstr(err.msg, "gid 1001"), "owners: nor as many groups");
    p.uid_count = -1;
    items[0].uid = UINT32_MAX;
    check(PUT(&p, items) == -1 && err.kind == BOUGH_ERR_invalid, "owners: -1 is none");
    place_remove(&p, at, "owners");
}

/* More names than the file system allows an inode: ext4 stops at 65000. */
static void test_many_links(int at)
{
    struct place p = place_make(at, "many");
    struct stat st;
    BOUGH_CLEANUP_FD int spare = dir_make(p.at, "spare");
    staged_make(&p, "s", "x");
    struct bough_put_item items[] = {file_item("/a", "s", "ab/x"), file_item("/b", "", "ab/x")};
    check(!PUT(&p, items), "many links: put");
    int made = 0;
    for (; made < 70000; made++) {
        char name[16];
        snprintf(name, sizeof name, "%d", made);
        if (linkat(p.blobs, "ab/x", spare, name, 0))
            break;
    }
    if (made == 70000) {
        skip("many links: a copy", "no link limit here");
    } else {
        layer_new(&p);
        check(!PUT(&p, items) && !fstatat(p.out, "b", &st, 0) && st.st_nlink == 1 &&
                  has_text(p.out, "b", "x") && has_day(p.out, "b") &&
                  has_mode(p.out, "b", S_IFREG | 0640),
              "many links: a copy takes over");
    }
    place_remove(&p, at, "many");
}

static void count_progress(void *arg, int64_t done, int64_t total)
{
    int64_t *seen = arg;
    seen[0]++;
    seen[1] = done;
    seen[2] = total;
}

static void test_speed(int at)
{
    enum { COUNT = 10000 };
    struct place p = place_make(at, "speed");
    struct bough_put_item *items = calloc(COUNT, sizeof *items);
    char(*text)[3][40] = calloc(COUNT, sizeof *text);
    int usr = dir_make(p.view, "usr");
    close(dir_make(usr, "lib"));
    close(usr);
    MUST(symlinkat("usr/lib", p.view, "lib"));
    for (int i = 0; i < COUNT; i++) {
        snprintf(text[i][0], sizeof text[i][0], "/lib/d%02d/e%d/f%05d", i / 1000, i / 100 % 10, i);
        snprintf(text[i][1], sizeof text[i][1], "b%d", i);
        snprintf(text[i][2], sizeof text[i][2], "ab/%d", i);
        staged_make(&p, text[i][1], "content");
        items[i] = file_item(text[i][0], text[i][1], text[i][2]);
    }
    int64_t seen[3] = {0};
    struct bough_put order = {.view = p.view,
                              .out = p.out,
                              .blobs = p.blobs,
                              .staging = p.staging,
                              .items = items,
                              .count = COUNT,
                              .skip = SKIP_OWN,
                              .uid_count = -1,
                              .progress = count_progress,
                              .arg = seen};
    int64_t start = bough_now_ns();
    bool done = !bough_put_tree(&order, &err);
    printf("# %d new files: %.1f ms\n", COUNT, (double)(bough_now_ns() - start) / 1e6);
    check(done && count_of(&p) == COUNT + 2 + 10 + 100, "many files: are all there");
    check(seen[0] == COUNT && seen[1] == COUNT && seen[2] == COUNT, "many files: progress");
    layer_new(&p);
    order.out = p.out;
    start = bough_now_ns();
    done = !bough_put_tree(&order, &err);
    printf("# %d pooled files: %.1f ms\n", COUNT, (double)(bough_now_ns() - start) / 1e6);
    check(done && count_of(&p) == COUNT + 2 + 10 + 100, "many files: a second time");
    free(items);
    free(text);
    place_remove(&p, at, "speed");
}

/* Copying for a directory of the caller's, which is how a tree leaves an image. */
static bool never_linked(void *arg, const struct stat *st)
{
    (void)arg;
    return st->st_size == 4;
}

static void test_plain(int at)
{
    struct stat a, b;
    BOUGH_CLEANUP_FD int from = dir_make(at, "from");
    BOUGH_CLEANUP_FD int to = dir_make(at, "to");
    BOUGH_CLEANUP_FD int sub = dir_make(from, "sub");
    file_make(from, "same", "four");
    MUST(linkat(from, "same", sub, "same", 0));
    file_make(from, "linked", "linked");
    MUST(linkat(from, "linked", sub, "linked", 0));
    file_make(from, "none", "n");
    MUST(symlinkat("../../x", sub, "link"));
    MUST(mknodat(from, "fifo", S_IFIFO | 0600, 0));
    int fd = MUST(openat(from, "none", O_RDWR | O_CLOEXEC));
    MUST(fsetxattr(fd, "user.kept", "k", 1, 0));
    if (privileged()) {
        char cap[20] = {1, 0, 0, 2, 0, 4, 0, 0};
        MUST(fsetxattr(sub, "trusted.left", "t", 1, 0));
        MUST(fchown(fd, 1000, 1000));
        MUST(fchown(sub, 1000, 1000));
        MUST(fsetxattr(fd, "security.capability", cap, sizeof cap, 0));
        MUST(mknodat(from, "null", S_IFCHR | 0666, makedev(1, 3)));
    }
    MUST(fchmod(fd, 0));
    close(fd);
    file_make(sub, "s", "setuid");
    MUST(fchmodat(sub, "s", 06755, 0));
    MUST(fchmod(sub, 03750));
    MUST(fchmod(from, 0711));
    MUST(fchmod(to, 0700));
    struct bough_tree_copy how = {.plain = true, .apart = never_linked};
    check(!bough_tree_copy(from, to, &how, NULL, &err), "plain copy: works");
    check(how.skipped == privileged(), "plain copy: no devices");
    check(has_mode(to, "sub", S_IFDIR | 01750) && has_mode(to, "sub/s", S_IFREG | 0755) &&
              has_mode(to, "none", S_IFREG | 0) && has_mode(to, "fifo", S_IFIFO | 0600),
          "plain copy: modes without setuid and setgid");
    check(!fstat(to, &a) && (a.st_mode & 07777) == 0700, "plain copy: the root keeps its mode");
    check(!fstatat(to, "none", &a, 0) && a.st_uid == geteuid() && !fstatat(to, "sub", &b, 0) &&
              b.st_uid == geteuid(),
          "plain copy: everything is ours");
    char path[4096], list[256] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d/none", to);
    ssize_t n = llistxattr(path, list, sizeof list);
    check(n == 10 && !strcmp(list, "user.kept"), "plain copy: user xattrs alone");
    check(!fstatat(to, "linked", &a, 0) && !fstatat(to, "sub/linked", &b, 0) &&
              a.st_ino == b.st_ino && a.st_nlink == 2,
          "plain copy: hard links");
    check(!fstatat(to, "same", &a, 0) && !fstatat(to, "sub/same", &b, 0) && a.st_ino != b.st_ino,
          "plain copy: but not where they stand for one content");
    bough_tree_remove(at, "from", NULL);
    bough_tree_remove(at, "to", NULL);
}

/* An ordinary user is root of a namespace of his own, with one id. */
static void test_user(int at)
{
    if (!privileged()) {
        skip("an ordinary user", "not root");
        return;
    }
    BOUGH_CLEANUP_FD int ours = dir_make(at, "nobody");
    BOUGH_CLEANUP_FD int said = MUST(memfd_create("said", MFD_CLOEXEC));
    MUST(fchmod(ours, 0777));
    fflush(stdout);
    pid_t child = MUST(fork());
    if (!child) {
        if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534) ||
            prctl(PR_SET_DUMPABLE, 1) || unshare(CLONE_NEWUSER))
            _exit(77);
        BOUGH_CLEANUP_FD int groups = open("/proc/self/setgroups", O_WRONLY | O_CLOEXEC);
        BOUGH_CLEANUP_FD int uids = open("/proc/self/uid_map", O_WRONLY | O_CLOEXEC);
        BOUGH_CLEANUP_FD int gids = open("/proc/self/gid_map", O_WRONLY | O_CLOEXEC);
        if (write(groups, "deny", 4) < 0 || write(uids, "0 65534 1\n", 10) < 0 ||
            write(gids, "0 65534 1\n", 10) < 0)
            _exit(77);
        int before = failures;
        MUST(dup2(said, 1)); /* its own count */
        test_files(ours);
        test_links(ours);
        test_dirs(ours);
        test_owners(ours);
        test_plain(ours);
        fflush(stdout);
        _exit(failures != before);
    }
    int status = 0;
    waitpid(child, &status, 0);
    lseek(said, 0, SEEK_SET);
    FILE *lines = fdopen(dup(said), "r");
    char line[512];
    while (lines && fgets(line, sizeof line, lines))
        if (strncmp(line, "ok ", 3) != 0)
            printf("# %s", line);
    if (lines)
        fclose(lines);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        skip("an ordinary user", "no user namespaces here");
    else
        check(status == 0, "an ordinary user: the same (status %x)", (unsigned)status);
    bough_tree_remove(at, "nobody", NULL);
}

int main(void)
{
    const char *tmp = getenv("TMPDIR");
    setvbuf(stdout, NULL, _IOLBF, 0);
    snprintf(scratch, sizeof scratch, "%s/bough-put-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(scratch))
        return printf("Bail out! %s: %s\n", scratch, strerror(errno)), 1;
    MUST(chmod(scratch, 0755));
    umask(022);
    if (geteuid() != 0) {
        printf("1..0 # SKIP needs root, or root of a user namespace\n");
        rmdir(scratch);
        return 0;
    }
    int at = dir_open(AT_FDCWD, scratch);
    test_files(at);
    test_links(at);
    test_dirs(at);
    test_names(at);
    test_owners(at);
    test_many_links(at);
    test_plain(at);
    test_speed(at);
    test_user(at);
    close(at);
    bough_tree_remove(AT_FDCWD, scratch, NULL);
    printf("1..%d\n", tests);
    return failures != 0;
}
