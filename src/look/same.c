#define _GNU_SOURCE
#include "same.h"

#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>

#include "../record.h"
#include "../sys.h"
#include "tree.h"

#define SAME_BYTES ((size_t)128 << 10)

int bough_same_start(struct bough_same *s, struct bough_err *err)
{
    for (int i = 0; i < 2; i++)
        if (!(s->buf[i] = malloc(SAME_BYTES)))
            return bough_err_sys(err, ENOMEM, "compare");
    return 0;
}

void bough_same_free(struct bough_same *s)
{
    for (int i = 0; i < 2; i++) {
        bough_xattrs_free(&s->xattrs[i]);
        free(s->buf[i]);
        s->buf[i] = NULL;
    }
}

static bool times_same(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

/* overlayfs shows a changed copy under its original's number. The ctime, which nobody can set, tells them
 * apart, unless both were made in one tick of the clock and are alike in all the rest. */
static bool inode_same(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_mode == b->st_mode && a->st_uid == b->st_uid &&
           a->st_gid == b->st_gid && a->st_size == b->st_size && a->st_rdev == b->st_rdev &&
           a->st_blocks == b->st_blocks && times_same(a->st_mtim, b->st_mtim) &&
           times_same(a->st_ctim, b->st_ctim);
}

/* ---- xattrs ---- */

static bool xattr_counts(const char *name)
{
    return strncmp(name, "trusted.overlay.", 16) != 0 && strncmp(name, "user.overlay.", 13) != 0 &&
           strcmp(name, "security.selinux") != 0;
}

static const char *xattr_next(const struct bough_xattrs *x, size_t *i)
{
    while (*i < x->count && !xattr_counts(x->names[*i]))
        ++*i;
    return *i < x->count ? x->names[(*i)++] : NULL;
}

/* One that cannot be read is as good as any other that fails in the same way. */
static bool value_same(struct bough_same *s, const char *name, int a, int b)
{
    errno = 0;
    ssize_t n = bough_xattrs_get(&s->xattrs[0], a, name);
    int sys = n < 0 ? errno : 0;
    ssize_t m = bough_xattrs_get(&s->xattrs[1], b, name);
    if (n < 0 || m < 0)
        return n < 0 && m < 0 && sys == errno;
    return n == m && !memcmp(s->xattrs[0].value, s->xattrs[1].value, (size_t)n);
}

static int xattrs_compare(struct bough_same *s, int a, int b, uint32_t *what, struct bough_err *err)
{
    size_t i = 0, j = 0;
    if (bough_xattrs_list(&s->xattrs[0], a, err) || bough_xattrs_list(&s->xattrs[1], b, err))
        return -1;
    for (;;) {
        const char *x = xattr_next(&s->xattrs[0], &i), *y = xattr_next(&s->xattrs[1], &j);
        if (!x && !y)
            return 0;
        if (!x || !y || strcmp(x, y) != 0 || !value_same(s, x, a, b)) {
            *what |= BOUGH_DIFF_XATTRS;
            return 0;
        }
    }
}

/* ---- content ---- */

/* Where the next byte is that may not be zero; `end` when none is. */
static off_t data_next(int fd, off_t at, off_t end)
{
    off_t data = lseek(fd, at, SEEK_DATA);
    if (data < 0)
        return errno == ENXIO ? end : at;
    return data < end ? data : end;
}

static int block_read(int fd, char *buf, size_t want, off_t at, struct bough_err *err)
{
    for (size_t have = 0; have < want;) {
        ssize_t n = BOUGH_RETRY(pread(fd, buf + have, want - have, at + (off_t)have));
        if (n < 0)
            return bough_err_sys(err, errno, "read");
        if (n == 0)
            return bough_err_set(err, BOUGH_ERR_io, "has shrunk while it was read");
        have += (size_t)n;
    }
    return 0;
}

/* Both are `size` bytes long. */
static int content_compare(struct bough_same *s, int a, int b, off_t size, bool holes,
                           uint32_t *what, struct bough_err *err)
{
    for (off_t at = 0; at < size;) {
        if (holes) {
            off_t x = data_next(a, at, size), y = x > at ? data_next(b, at, size) : at;
            at = x < y ? x : y;
            if (at == size)
                break;
        }
        size_t want = size - at < (off_t)SAME_BYTES ? (size_t)(size - at) : SAME_BYTES;
        if (block_read(a, s->buf[0], want, at, err) || block_read(b, s->buf[1], want, at, err))
            return -1;
        if (memcmp(s->buf[0], s->buf[1], want) != 0) {
            *what |= BOUGH_DIFF_CONTENT;
            break;
        }
        at += (off_t)want;
        if (s->tick && s->tick(s->arg, err))
            return -1;
    }
    return 0;
}

static bool has_holes(const struct stat *st)
{
    return (int64_t)st->st_blocks * 512 < st->st_size;
}

/* ---- objects ---- */

/* -1 with err when it is not what it was a moment ago. */
static int entry_open(const struct bough_tree_entry *e, const struct stat *st,
                      struct bough_err *err)
{
    struct stat now;
    BOUGH_CLEANUP_FD int fd = bough_tree_open(e);
    if (fd < 0 || fstat(fd, &now))
        return bough_err_sys(err, errno, "open");
    if ((now.st_mode & S_IFMT) != (st->st_mode & S_IFMT))
        return bough_err_set(err, BOUGH_ERR_io, "has changed while it was read");
    return bough_steal_fd(&fd);
}

static int opened_compare(struct bough_same *s, const struct bough_tree_entry *a,
                          const struct stat *sa, const struct bough_tree_entry *b,
                          const struct stat *sb, uint32_t *what, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int x = entry_open(a, sa, err);
    if (x < 0)
        return -1;
    BOUGH_CLEANUP_FD int y = entry_open(b, sb, err);
    if (y < 0 || xattrs_compare(s, x, y, what, err))
        return -1;
    if (!S_ISREG(sa->st_mode))
        return 0;
    if (sa->st_size == sb->st_size)
        return content_compare(s, x, y, sa->st_size, has_holes(sa) && has_holes(sb), what, err);
    *what |= BOUGH_DIFF_CONTENT;
    return 0;
}

static int links_compare(const struct bough_tree_entry *a, const struct bough_tree_entry *b,
                         uint32_t *what, struct bough_err *err)
{
    char x[PATH_MAX], y[PATH_MAX];
    ssize_t n = readlinkat(a->dir, a->name, x, sizeof x);
    ssize_t m = n < 0 ? -1 : readlinkat(b->dir, b->name, y, sizeof y);
    if (m < 0)
        return bough_err_sys(err, errno, "read symbolic link");
    if (n != m || memcmp(x, y, (size_t)n) != 0)
        *what |= BOUGH_DIFF_CONTENT | BOUGH_DIFF_TARGET;
    return 0;
}

static uint32_t owner_compare(const struct stat *a, const struct stat *b)
{
    return a->st_uid != b->st_uid || a->st_gid != b->st_gid ? BOUGH_DIFF_OWNER : 0;
}

static uint32_t mode_compare(const struct stat *a, const struct stat *b)
{
    return (a->st_mode ^ b->st_mode) & 07777 ? BOUGH_DIFF_MODE : 0;
}

int bough_same_entries(struct bough_same *s, const struct bough_tree_entry *a,
                       const struct stat *sa, const struct bough_tree_entry *b,
                       const struct stat *sb, uint32_t *what, struct bough_err *err)
{
    *what = 0;
    if (inode_same(sa, sb))
        return 0;
    *what = owner_compare(sa, sb);
    if ((sa->st_mode ^ sb->st_mode) & S_IFMT) {
        *what |= BOUGH_DIFF_TYPE;
        if (!S_ISLNK(sa->st_mode) && !S_ISLNK(sb->st_mode)) /* a link's mode is nobody's choice */
            *what |= mode_compare(sa, sb);
        return 0;
    }
    if (S_ISLNK(sa->st_mode))
        return links_compare(a, b, what, err);
    *what |= mode_compare(sa, sb);
    if (S_ISREG(sa->st_mode) || S_ISDIR(sa->st_mode))
        return opened_compare(s, a, sa, b, sb, what, err);
    if ((S_ISCHR(sa->st_mode) || S_ISBLK(sa->st_mode)) && sa->st_rdev != sb->st_rdev)
        *what |= BOUGH_DIFF_DEVICE;
    return 0;
}

int bough_same_dirs(struct bough_same *s, int a, int b, uint32_t *what, struct bough_err *err)
{
    struct stat sa, sb;
    *what = 0;
    if (fstat(a, &sa) || fstat(b, &sb))
        return bough_err_sys(err, errno, "stat");
    if (inode_same(&sa, &sb))
        return 0;
    *what = owner_compare(&sa, &sb) | mode_compare(&sa, &sb);
    return xattrs_compare(s, a, b, what, err);
}
