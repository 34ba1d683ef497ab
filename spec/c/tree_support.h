/* tree_support.h - TAP, scratch files and trees as text for tree_test.c. */
#ifndef TREE_SUPPORT_H
#define TREE_SUPPORT_H

#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "../../src/keeper/tree.h"
#include "../../src/sys.h"

static int tests, failures;
static struct bough_err err; /* of the last failure: told when a check fails */
static char scratch[3000];   /* absolute */

static bool check(bool passed, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static bool check(bool passed, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    printf("%sok %d - ", passed ? "" : "not ", ++tests);
    vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
    if (!passed && err.msg[0])
        printf("# last error: %s\n", err.msg);
    err = (struct bough_err){0};
    failures += !passed;
    return passed;
}

static void skip(const char *what, const char *why)
{
    bool must = getenv("BOUGH_MUST_RUN") != NULL;
    printf("%sok %d - %s # SKIP %s\n", must ? "not " : "", ++tests, what, why);
    failures += must;
}

/* For the steps that set a test up: they must work. */
#define MUST(call)                                                                   \
    __extension__({                                                                  \
        long must_ = (long)(call);                                                   \
        if (must_ < 0) {                                                             \
            printf("Bail out! line %d: %s: %s\n", __LINE__, #call, strerror(errno)); \
            exit(1);                                                                 \
        }                                                                            \
        (int)must_;                                                                  \
    })

/* Root, and not merely of a user namespace: may make devices and trusted xattrs. */
static bool privileged(void)
{
    char map[64] = "";
    BOUGH_CLEANUP_FD int fd = open("/proc/self/uid_map", O_RDONLY | O_CLOEXEC);
    unsigned inside = 1, outside = 1, count = 0;
    if (geteuid() != 0 || fd < 0 || read(fd, map, sizeof map - 1) <= 0 ||
        sscanf(map, "%u %u %u", &inside, &outside, &count) != 3)
        return false;
    return inside == 0 && outside == 0 && count == UINT32_MAX;
}

static int dir_open(int at, const char *name)
{
    return MUST(openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

static int dir_make(int at, const char *name)
{
    MUST(mkdirat(at, name, 0755));
    return dir_open(at, name);
}

static void file_make(int at, const char *name, const char *content)
{
    int fd = MUST(openat(at, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    MUST(write(fd, content, strlen(content)));
    close(fd);
}

static bool exists(int at, const char *name)
{
    struct stat st;
    return !fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW);
}

static int open_fds(void)
{
    int n = 0, dir = dir_open(AT_FDCWD, "/proc/self/fd");
    DIR *d = fdopendir(dir);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

/* A tmpfs in the scratch directory, where many small trees take a tenth of the time; -1 when
 * there is none that takes user xattrs (Linux 6.6). */
static int memory_mount(int at)
{
    char path[4000];
    MUST(mkdirat(at, "memory", 0755));
    snprintf(path, sizeof path, "%s/memory", scratch);
    if (mount("tmpfs", path, "tmpfs", 0, "mode=755"))
        return -1;
    if (!lsetxattr(path, "user.bough", "", 0, 0))
        return dir_open(at, "memory");
    MUST(umount(path));
    return -1;
}

static void memory_unmount(int at, int memory)
{
    char path[4000];
    if (memory < 0)
        return;
    close(memory);
    MUST(fchdir(at));
    snprintf(path, sizeof path, "%s/memory", scratch);
    MUST(umount2(path, MNT_DETACH));
}

/* ---- a tree as text ---- */

enum { DUMP_LINKS = 1 };

static void dump_xattrs(FILE *out, const char *path)
{
    char list[4096], value[4096], *key[64];
    int n = 0;
    ssize_t len = llistxattr(path, list, sizeof list);
    for (char *k = list; len > 0 && k < list + len && n < 64; k += strlen(k) + 1)
        key[n++] = k;
    for (int i = 0; i < n; i++)
        for (int j = i + 1; j < n; j++)
            if (strcmp(key[i], key[j]) > 0) {
                char *swap = key[i];
                key[i] = key[j];
                key[j] = swap;
            }
    for (int i = 0; i < n; i++) {
        ssize_t size = lgetxattr(path, key[i], value, sizeof value);
        fprintf(out, " %s=%.*s", key[i], (int)(size > 0 ? size : 0), value);
    }
}

static uint64_t dump_sum(int dir, const char *name)
{
    BOUGH_CLEANUP_FD int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    uint64_t sum = fd < 0 ? 1 : 0xcbf29ce484222325;
    unsigned char buf[65536];
    ssize_t n;
    while (fd >= 0 && (n = read(fd, buf, sizeof buf)) > 0)
        for (ssize_t i = 0; i < n; i++)
            sum = (sum ^ buf[i]) * 0x100000001b3;
    return sum;
}

static int dump_order(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void dump(FILE *out, int dir, const char *path, int flags, const char *except)
{
    struct dirent **list;
    int n = scandirat(dir, ".", &list, NULL, dump_order);
    for (int i = 0; i < n; i++) {
        const char *name = list[i]->d_name;
        char below[1024], proc[400], target[256];
        struct stat st;
        bool self = !strcmp(name, ".");
        snprintf(below, sizeof below, "%s/%s", path, name);
        snprintf(proc, sizeof proc, "/proc/self/fd/%d/%s", dir, name);
        if (!strcmp(name, "..") || (except && !strcmp(name, except))) {
        } else if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW)) {
            fprintf(out, "%s: listed, but %s\n", below, strerror(errno));
        } else {
            fprintf(out, "%s: %o %u:%u %ld.%09ld", below, st.st_mode, st.st_uid, st.st_gid,
                    (long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
            if (!S_ISDIR(st.st_mode)) /* a directory's size is the file system's own */
                fprintf(out, " %jd bytes rdev %jx", (intmax_t)st.st_size, (uintmax_t)st.st_rdev);
            if (flags & DUMP_LINKS && !S_ISDIR(st.st_mode))
                fprintf(out, " %ju names", (uintmax_t)st.st_nlink);
            if (S_ISREG(st.st_mode))
                fprintf(out, " sum %jx", (uintmax_t)dump_sum(dir, name));
            ssize_t len = S_ISLNK(st.st_mode) ? readlinkat(dir, name, target, 256) : 0;
            fprintf(out, " ->%.*s", (int)len, target);
            dump_xattrs(out, proc);
            fprintf(out, "\n");
            int sub = S_ISDIR(st.st_mode) && !self ? openat(dir, name, O_RDONLY | O_CLOEXEC) : -1;
            if (sub >= 0) {
                dump(out, sub, below, flags, except);
                close(sub);
            }
        }
        free(list[i]);
    }
    if (n >= 0)
        free(list);
}

static char *dump_text(int dir, int flags, const char *except)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    dump(out, dir, "", flags, except);
    fclose(out);
    return text;
}

/* Prints the first line in which they differ. */
static bool texts_same(const char *a, const char *b)
{
    if (!strcmp(a, b))
        return true;
    const char *line_a = a, *line_b = b;
    while (*a && *a == *b) {
        if (*a == '\n') {
            line_a = a + 1;
            line_b = b + 1;
        }
        a++;
        b++;
    }
    printf("# - %.*s\n# + %.*s\n", (int)strcspn(line_a, "\n"), line_a, (int)strcspn(line_b, "\n"),
           line_b);
    return false;
}

static bool tree_same(int a, int b, int flags, const char *except)
{
    char *ta = dump_text(a, flags, except), *tb = dump_text(b, flags, except);
    bool same = texts_same(ta, tb);
    free(ta);
    free(tb);
    return same;
}

#endif
