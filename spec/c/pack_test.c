/* pack_test.c - bough-look pack and diff, as TAP. What pack writes is read back by GNU tar and by
 * bough-unpack; diff is compared with a slow comparison (diff_check.h).
 *
 * Runs the programs that BOUGH_LOOK and BOUGH_UNPACK name. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>

#include "diff_check.h"
#include "pack_run.h"

static bool root; /* may give files away and make devices */

/* ---- a tree with everything ---- */

static void stamp(int at, const char *name, int64_t seconds, long nanoseconds)
{
    struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = seconds, .tv_nsec = nanoseconds}};
    MUST(utimensat(at, name, times, AT_SYMLINK_NOFOLLOW));
}

static void size_make(int at, const char *name, size_t size)
{
    int fd = MUST(openat(at, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    for (size_t done = 0; done < size; done++)
        MUST(write(fd, &(char){(char)(done * 7 + (done >> 8))}, 1));
    close(fd);
}

static void xattr_make(int at, const char *name, const char *key, const void *value, size_t size)
{
    int fd = MUST(openat(at, name, O_RDONLY | O_CLOEXEC));
    MUST(fsetxattr(fd, key, value, size, 0));
    close(fd);
}

static void names_make(int at)
{
    char name[256];
    file_make(at, "plain", "content");
    file_make(at, "caf\xc3\xa9", "utf-8");
    file_make(at, "\xff\xfe not utf-8", "bytes");
    file_make(at, "new\nline", "newline");
    file_make(at, "back\\slash \"quoted\" *", "");
    file_make(at, "-rf", "");
    int dir = dup(at);
    for (int i = 0; i < 5; i++) { /* around each limit of ustar's fields */
        memset(name, 'n', sizeof name);
        name[i == 4 ? 255 : 90] = '\0';
        name[0] = i % 2 ? '\xe9' : 'a';
        int below = dir_make(dir, name);
        close(dir);
        dir = below;
        for (int len = 1; len < 60; len++) {
            name[len] = '\0';
            file_make(dir, name, "x");
            name[len] = 'n';
        }
    }
    memset(name, 'l', 255);
    name[255] = '\0';
    file_make(dir, name, "longest");
    close(dir);
}

static void links_make(int at)
{
    char target[3000];
    memset(target, 't', sizeof target);
    target[2999] = '\0';
    file_make(at, "two names", "linked");
    MUST(mkdirat(at, "far", 0755));
    MUST(linkat(at, "two names", at, "far/three names", 0));
    MUST(linkat(at, "two names", at, "zz \xff\xff", 0));
    MUST(symlinkat(target, at, "long link"));
    MUST(symlinkat("../\xfe\xfe\nwhere", at, "link to bytes"));
    MUST(symlinkat("plain", at, "link"));
    MUST(linkat(at, "link", at, "second link", 0));
    MUST(mkfifoat(at, "fifo", 0640));
    MUST(linkat(at, "fifo", at, "second fifo", 0));
    stamp(at, "link", 1234567890, 123456789);
    stamp(at, "fifo", 1234567890, 1);
    stamp(at, "two names", 1234567890, 999999999);
}

static void attributes_make(int at)
{
    static const unsigned char capability[] = {1, 0, 0, 2, 0, 32, 0, 0, 0, 0,
                                               0, 0, 0, 0, 0, 0,  0, 0, 0, 0};
    static const int modes[] = {04755, 02755, 01777, 06711, 0600, 0444, 0};
    file_make(at, "attributes", "x");
    xattr_make(at, "attributes", "user.text", "value", 5);
    xattr_make(at, "attributes", "user.binary", "a\0b\nc=d\xff", 8);
    xattr_make(at, "attributes", "user.empty", "", 0);
    xattr_make(at, "attributes", "user.\xc3\xa9 name", "1", 1);
    MUST(linkat(at, "attributes", at, "attributes too", 0));
    MUST(mkdirat(at, "attributed", 0755));
    xattr_make(at, "attributed", "user.of", "directory", 9);
    file_make(at, "owned", "x");
    if (root) {
        MUST(fchownat(at, "owned", 3000000, 4000000, 0));
        MUST(fchownat(at, "attributed", 1, 2, 0));
        MUST(fchownat(at, "link", 3, 4, AT_SYMLINK_NOFOLLOW));
        xattr_make(at, "attributes", "security.capability", capability, sizeof capability);
    }
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        char name[32];
        snprintf(name, sizeof name, "mode %04o", modes[i]);
        file_make(at, name, "x");
        MUST(fchmodat(at, name, (mode_t)modes[i], 0));
        snprintf(name, sizeof name, "dir %04o", modes[i]);
        MUST(mkdirat(at, name, 0755));
        MUST(fchmodat(at, name, (mode_t)modes[i] | (root ? 0 : 0700), 0));
        if (!root && !(modes[i] & 0400))
            MUST(fchmodat(at, name, 0700, 0));
    }
    if (!root) /* cannot be read */
        MUST(unlinkat(at, "mode 0000", 0));
    file_make(at, "old", "");
    stamp(at, "old", -86400, 0);
    file_make(at, "future", "");
    stamp(at, "future", INT64_C(1) << 33, 5);
    stamp(at, "attributed", 1, 10);
}

static void holes_make(int at)
{
    struct stat st;
    int fd = MUST(openat(at, "holes", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    MUST(pwrite(fd, "begin", 5, 0));
    MUST(pwrite(fd, "middle", 6, (8 << 20) + 777));
    MUST(pwrite(fd, "end", 3, (16 << 20) + 1));
    close(fd);
    fd = MUST(openat(at, "only hole", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    MUST(ftruncate(fd, 1000001));
    close(fd);
    fd = MUST(openat(at, "hole at the end", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    MUST(pwrite(fd, "data", 4, 40960));
    MUST(ftruncate(fd, 20000123));
    close(fd);
    MUST(fstatat(at, "only hole", &st, 0));
    printf("# holes: %s here\n", st.st_blocks ? "not" : "kept");
}

static void tree_make(int at)
{
    static const size_t sizes[] = {0, 1, 511, 512, 513, 262143, 262144, 300000};
    int d = dir_make(at, "names");
    names_make(d);
    close(d);
    links_make(at);
    attributes_make(at);
    holes_make(at);
    file_make(at, "plain", "x");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char name[32];
        snprintf(name, sizeof name, "size %zu", sizes[i]);
        size_make(at, name, sizes[i]);
    }
    stamp(at, "names", 1700000000, 987654321);
    stamp(at, ".", 1700000001, 1);
}

/* ---- reading it back ---- */

static int64_t blocks_of(int at, const char *name)
{
    struct stat st;
    return fstatat(at, name, &st, 0) ? -1 : (int64_t)st.st_blocks;
}

static void compare(int at, int from, const char *dir, const char *reader)
{
    BOUGH_CLEANUP_FD int to = dir_open(at, dir);
    check(tree_same(from, to, DUMP_LINKS, "socket"), "%s: reads back the same tree", reader);
    check(blocks_of(to, "holes") <= blocks_of(from, "holes") + 64 &&
              blocks_of(to, "only hole") <= blocks_of(from, "only hole") + 8,
          "%s: holes stay holes", reader);
    struct stat a, b, c;
    check(!fstatat(to, "two names", &a, 0) && !fstatat(to, "far/three names", &b, 0) &&
              !fstatat(to, "zz \xff\xff", &c, 0) && a.st_ino == b.st_ino && a.st_ino == c.st_ino,
          "%s: hard links are of one file", reader);
}

static bool unpack(int at, const char *tar, const char *dir)
{
    const char *options[] = {"--in-fd", "--out-fd"};
    BOUGH_CLEANUP_FD int in = MUST(openat(at, tar, O_RDONLY | O_CLOEXEC));
    BOUGH_CLEANUP_FD int to = dir_make(at, dir);
    int fds[] = {in, to};
    return program_run(unpack_program, NULL, options, fds, 2, root ? NULL : ARGS("--squash"));
}

static void test_round_trip(int at, int from)
{
    struct stat st;
    bool good = pack(from, at, "tree.tar", ARGS("--sparse"));
    check(good, "pack: a tree with everything");
    check(!fstatat(at, "tree.tar", &st, 0) && st.st_size == numbers[0] &&
              numbers[0] == numbers[2] && st.st_size < 4 << 20,
          "pack: says how much it wrote (%lld), and that is without the holes", numbers[0]);
    char *count = shell("tar tf tree.tar --quoting-style=escape | wc -l");
    check(atoll(count) == numbers[1], "pack: counts entries (%lld)", numbers[1]);
    free(count);
    count = shell("sha256sum < tree.tar");
    check(!strncmp(count, sums[0], 64) && !strcmp(sums[0], sums[1]), "pack: digests are right");
    free(count);
    check(shell_says("", "mkdir gnu && tar -C gnu --warning=no-timestamp -xpf tree.tar --xattrs "
                         "--xattrs-include='*' 2>&1"),
          "GNU tar: has nothing to complain about");
    compare(at, from, "gnu", "GNU tar");
    check(unpack(at, "tree.tar", "ours"), "bough-unpack: takes it");
    compare(at, from, "ours", "bough-unpack");
}

static void test_large_hole(int at)
{
    struct stat st;
    BOUGH_CLEANUP_FD int d = dir_make(at, "large");
    int fd = MUST(openat(d, "f", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    MUST(pwrite(fd, "data", 4, (INT64_C(9) << 30) - 4));
    close(fd);
    check(pack(d, at, "large.tar", ARGS("--sparse")) && numbers[0] < 16384 &&
              unpack(at, "large.tar", "lours") && !fstatat(at, "lours/f", &st, 0) &&
              st.st_size == INT64_C(9) << 30 && blocks_of(at, "lours/f") < 64,
          "a file of 9 GiB that is a hole");
    check(shell_says("9663676416\ndata",
                     "mkdir lgnu && tar -C lgnu -xf large.tar && stat -c %s lgnu/f && "
                     "tail -c 4 lgnu/f"),
          "GNU tar: reads it back");
}

/* Fragmented beyond what a reader takes for a map. */
static void test_many_holes(int at)
{
    BOUGH_CLEANUP_FD int d = dir_make(at, "fragments");
    int fd = MUST(openat(d, "f", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    for (int64_t i = 0; i < 40000; i++) /* the holes between the hundreds stay */
        MUST(pwrite(fd, "data", 4, i * 8192 + i / 100 * (4 << 20)));
    close(fd);
    bool good = pack(d, at, "fragments.tar", ARGS("--sparse"));
    check(good && numbers[0] < 400 << 20, "pack: 40000 holes (%lld bytes)", numbers[0]);
    check(shell_says("",
                     "mkdir fgnu && tar -C fgnu -xf fragments.tar 2>&1 && cmp fragments/f fgnu/f"),
          "GNU tar: reads them back");
    check(unpack(at, "fragments.tar", "fours") && shell_says("", "cmp fragments/f fours/f"),
          "bough-unpack: reads them back");
    bough_tree_remove(at, "fragments", NULL);
    bough_tree_remove(at, "fgnu", NULL);
    bough_tree_remove(at, "fours", NULL);
    bough_tree_remove(at, "fragments.tar", NULL);
}

static void test_odd(int at)
{
    BOUGH_CLEANUP_FD int d = dir_make(at, "odd");
    file_make(d, "equals", "x");
    xattr_make(d, "equals", "user.a=b", "1", 1);
    xattr_make(d, "equals", "user.100%25", "2", 1);
    stamp(d, "equals", -3, 250000000);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/socket", d);
    int fd = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    MUST(bind(fd, (struct sockaddr *)&address, sizeof address));
    close(fd);
    stamp(d, ".", 5, 6);
    check(pack(d, at, "odd.tar", NULL) && shell_says("./\nequals\n", "tar tf odd.tar"),
          "pack: leaves sockets out");
    MUST(unlinkat(d, "socket", 0));
    stamp(d, ".", 5, 6);
    check(
        shell_says(
            "", "mkdir oddgnu && tar -C oddgnu --warning=no-timestamp -xpf odd.tar --xattrs 2>&1"),
        "GNU tar: takes odd attributes");
    BOUGH_CLEANUP_FD int to = dir_open(at, "oddgnu");
    check(tree_same(d, to, DUMP_LINKS, NULL), "GNU tar: \"=\" in a name, a time before 1970");

    int deep = dir_make(at, "deep");
    char part[201];
    memset(part, 'd', 200);
    part[200] = '\0';
    for (int i = 0; i < 30; i++) {
        int below = dir_make(deep, part);
        close(deep);
        deep = below;
    }
    file_make(deep, "bottom", "here");
    close(deep);
    deep = dir_open(at, "deep");
    check(pack(deep, at, "deep.tar", NULL) &&
              shell_says("6037\n", "tar tf deep.tar | tail -n 1 | wc -c"),
          "pack: paths beyond PATH_MAX");
    close(deep);
    if (root) {
        BOUGH_CLEANUP_FD int nodes = dir_make(at, "nodes");
        MUST(mknodat(nodes, "b", S_IFBLK | 0600, makedev(259, 1048575)));
        MUST(mknodat(nodes, "c", S_IFCHR | 0600, makedev(1, 3)));
        check(pack(nodes, at, "nodes.tar", NULL) &&
                  shell_says("brw------- 259,1048575\ncrw------- 1,3\n",
                             "tar tvf nodes.tar | awk '/^[bc]/ {print $1, $3}'"),
              "pack: device nodes");
    } else {
        skip("pack: device nodes", "needs root");
    }
}

static void test_compressed(int at, int from)
{
    static const char *const names[][3] = {{"gzip", "zcat"}, {"zstd", "zstdcat"}};
    char plain[80], text[600];
    pack(from, at, "plain.tar", NULL);
    strcpy(plain, sums[0]);
    for (int i = 0; i < 2; i++) {
        const char *kind = names[i][0];
        struct stat st;
        bool good = pack(from, at, "packed", ARGS("--compress", kind));
        check(good && !strcmp(sums[0], plain), "%s: the digest of the tar is the same", kind);
        MUST(fstatat(at, "packed", &st, 0));
        check(st.st_size == numbers[0] && numbers[0] < numbers[2], "%s: counts its bytes", kind);
        snprintf(text, sizeof text, "%s  -\n%s  -\n", sums[0], sums[1]);
        char *got = have(names[i][1])
                        ? shell("%s < packed | sha256sum; sha256sum < packed", names[i][1])
                        : strdup(text);
        check(texts_same(text, got), "%s: digests are right", kind);
        free(got);
    }
    check(!pack(from, at, "packed", ARGS("--compress", "lzma")) && strstr(report, "err invalid "),
          "an unknown compression is refused");
    check(!pack(from, at, "packed", ARGS("--shiny")) && strstr(report, "--shiny"),
          "an unknown option is refused by name");
}

static void test_same_bytes(int at, int from)
{
    struct bough_tree_copy how = {.devices = true};
    char first[2][80];
    BOUGH_CLEANUP_FD int copy = dir_make(at, "copy");
    pack(from, at, "1", ARGS("--compress", "gzip"));
    memcpy(first, sums, sizeof first);
    pack(from, at, "2", ARGS("--compress", "gzip"));
    check(!memcmp(first, sums, sizeof first), "the same tree gives the same bytes");
    bool good = !bough_tree_copy(from, copy, &how, NULL, &err);
    check(good && pack(copy, at, "2", ARGS("--compress", "gzip")) &&
              !memcmp(first, sums, sizeof first),
          "and so does a copy of it");
}

/* ---- layers and plain archives ---- */

static void opaque_make(int at, const char *name, const char *key, const char *value)
{
    xattr_make(at, name, key, value, 1);
}

static void test_layer(int at, const char *key)
{
    static const char want[] =
        "./\n.wh..wh..opq\na/\na/.wh.x\na/z\nb/\nb/.wh..wh..opq\nb/in\n.wh.c\n"
        "d/\ndevice\n";
    char dir[32], command[400];
    snprintf(dir, sizeof dir, "layer-%.4s", key);
    BOUGH_CLEANUP_FD int l = dir_make(at, dir);
    MUST(mkdirat(l, "a", 0755));
    MUST(mkdirat(l, "b", 0750));
    MUST(mkdirat(l, "d", 0755));
    MUST(mknodat(l, "a/x", S_IFCHR, makedev(0, 0)));
    MUST(linkat(l, "a/x", l, "c", 0)); /* overlayfs links whiteouts too */
    MUST(mknodat(l, "device", S_IFCHR | 0600, makedev(1, 3)));
    file_make(l, "a/z", "content");
    file_make(l, "b/in", "content");
    opaque_make(l, "b", key, "y");
    opaque_make(l, "d", key, "n");
    opaque_make(l, ".", key, "y");
    check(pack(l, at, "layer.tar", ARGS("--layer", "--opaque", key)) &&
              shell_says(want, "tar tf layer.tar"),
          "--layer, %s: whiteouts and opaque directories", key);
    check(shell_says("-rw------- 0/0 0\n-rw------- 0/0 0\n-rw------- 0/0 0\n-rw------- 0/0 0\n",
                     "tar tvf layer.tar | awk '/[.]wh[.]/ {print $1, $2, $3}'"),
          "--layer, %s: are empty files of root's", key);
    snprintf(command, sizeof command, "grep -c overlay layer.tar; true");
    check(shell_says("0\n", command), "--layer, %s: overlay's own xattrs stay out", key);
    file_make(l, "b/.wh.d", "");
    check(!pack(l, at, "layer.tar", ARGS("--layer", "--opaque", key)) &&
              strstr(report, "err unsupported ") && strstr(report, "b/.wh.d"),
          "--layer, %s: a file that would read as a whiteout is refused", key);
}

static void test_layers(int at, int from)
{
    check(!pack(from, at, "layer.tar", ARGS("--layer")) && strstr(report, "--opaque"),
          "--layer without --opaque is refused");
    if (root) {
        test_layer(at, "user.overlay.opaque");
        test_layer(at, "trusted.overlay.opaque");
    } else {
        skip("--layer", "needs root");
    }
}

static void test_plain(int at)
{
    BOUGH_CLEANUP_FD int d = dir_make(at, "docker");
    MUST(mkdirat(d, "sub", 0700));
    file_make(d, "manifest.json", "[]");
    file_make(d, "sub/layer.tar", "content");
    MUST(linkat(d, "manifest.json", d, "sub/again", 0));
    MUST(symlinkat("x", d, "link"));
    stamp(d, "manifest.json", 1700000000, 123);
    check(pack(d, at, "docker.tar", ARGS("--plain")) &&
              shell_says("-rw-r--r-- 0/0 2 1970-01-01 00:00 manifest.json\n"
                         "drwxr-xr-x 0/0 0 1970-01-01 00:00 sub/\n"
                         "-rw-r--r-- 0/0 2 1970-01-01 00:00 sub/again\n"
                         "-rw-r--r-- 0/0 7 1970-01-01 00:00 sub/layer.tar\n",
                         "TZ=UTC tar tvf docker.tar | tr -s ' '"),
          "--plain: files and directories, and nothing about them");
    check(numbers[0] == 3 * 1024 + 512 + 1024, "--plain: no pax records");
}

/* What the store shares is no hard link to anybody else; what an image links is. */
static void test_pooled(int at)
{
    BOUGH_CLEANUP_FD int pool = dir_make(at, "pool");
    MUST(mkdirat(pool, "ab", 0700));
    BOUGH_CLEANUP_FD int d = dir_make(at, "shared");
    file_make(pool, "ab/abcd", "pooled");
    MUST(linkat(pool, "ab/abcd", d, "a", 0));
    MUST(linkat(pool, "ab/abcd", d, "b", 0));
    file_make(d, "c", "linked");
    MUST(linkat(d, "c", d, "d", 0));
    const char *options[] = {"--root-fd", "--out-fd", "--pool-fd"};
    int out = MUST(openat(at, "shared.tar", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    check(program_run(look_program, "pack", options, (int[]){d, out, pool}, 3, NULL) &&
              shell_says("./\na\nb\nc\nd link to c\n",
                         "tar tvf shared.tar | sed 's/.* [0-9]*:[0-9]* //'"),
          "--pool-fd: files that the store shares come out as files of their own");
    close(out);
}

/* Whether what is at `path` has these names in an archive of its own. */
static void check_path(int d, int at, const char *path, const char *want)
{
    bool good = pack(d, at, "path.tar", ARGS("--path", path));
    char *got = good ? shell("%s", "tar tf path.tar") : strdup(err.msg);
    check(good && texts_same(want, got), "--path %s: its names in the archive", path);
    free(got);
}

static void test_path(int at)
{
    BOUGH_CLEANUP_FD int d = dir_make(at, "below");
    MUST(mkdirat(d, "srv", 0755));
    MUST(mkdirat(d, "srv/.wh.app", 0755));
    file_make(d, "srv/.wh.app/main", "text");
    MUST(linkat(d, "srv/.wh.app/main", d, "srv/also", 0));
    MUST(symlinkat("/srv", d, "way"));
    MUST(symlinkat("/etc", d, "out"));
    MUST(mkfifoat(d, "pipe", 0644));
    static const char all[] = "srv/\nsrv/.wh.app/\nsrv/.wh.app/main\nsrv/also\n";
    check_path(d, at, "/srv", all);
    check_path(d, at, "srv//.//", all);
    check_path(d, at, "/srv/also", "srv/also\n");
    check_path(d, at, "/way", "way/\nway/.wh.app/\nway/.wh.app/main\nway/also\n");
    check_path(d, at, "/", "out\npipe\nsrv/\nsrv/.wh.app/\nsrv/.wh.app/main\nsrv/also\nway\n");
    check(shell_says("srv/also link to srv/.wh.app/main\n",
                     "tar tvf path.tar | grep ' link ' | sed 's/.* [0-9]*:[0-9]* //'"),
          "--path: names of hard links are those in the archive");
    static const struct {
        const char *path, *want;
    } wrong[] = {{"/none", "err not_found"},
                 {"/out", "err not_found"}, /* there is no /etc below the root */
                 {"/srv/also/x", "err not_found"},
                 {"/pipe", "err invalid"},
                 {"/srv/../srv", "err invalid"},
                 {"..", "err invalid"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        check(!pack(d, at, "path.tar", ARGS("--path", wrong[i].path)) &&
                  strstr(report, wrong[i].want),
              "--path %s is refused: %.100s", wrong[i].path, report);
    check(!pack(d, at, "path.tar", ARGS("--path", "/", "--plain")) && strstr(report, "err invalid"),
          "--path goes with no --plain");
}

static void test_reader_gone(int from)
{
    int ends[2];
    const char *options[] = {"--root-fd", "--out-fd"};
    MUST(pipe2(ends, O_CLOEXEC));
    close(ends[0]);
    check(program_run(look_program, "pack", options, (int[]){from, ends[1]}, 2, NULL) && !*sums[0],
          "a reader that went away is no failure, and gets no digests");
    close(ends[1]);
}

int main(void)
{
    const char *tmp = getenv("TMPDIR");
    setvbuf(stdout, NULL, _IOLBF, 0);
    snprintf(scratch, sizeof scratch, "%s/bough-pack-XXXXXX", tmp ? tmp : "/tmp");
    if (!programs_find() || !mkdtemp(scratch))
        return printf("Bail out! no program or no place to work: %s\n", strerror(errno)), 1;
    umask(022);
    root = privileged();
    bool own_mounts = geteuid() == 0 && !unshare(CLONE_NEWNS) &&
                      !mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL);
    int at = dir_open(AT_FDCWD, scratch), from = dir_make(at, "from");
    tree_make(from);
    test_round_trip(at, from);
    test_large_hole(at);
    test_pooled(at);
    test_many_holes(at);
    test_odd(at);
    test_compressed(at, from);
    test_same_bytes(at, from);
    test_layers(at, from);
    test_plain(at);
    test_path(at);
    test_reader_gone(from);
    close(from);
    test_diff_kinds(at);
    test_diff_holes(at);
    if (own_mounts)
        test_diff_random_all(at);
    else
        skip("diff: random stacks", "needs root");
    close(at);
    check(!bough_tree_remove(AT_FDCWD, scratch, &err), "the scratch directory goes");
    printf("1..%d\n", tests);
    return failures ? 1 : 0;
}
