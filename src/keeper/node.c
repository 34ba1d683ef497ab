#define _GNU_SOURCE
#include "node.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>

#include "../sys.h"
#include "walk.h"

#define CHUNK_BYTES (INT64_C(64) << 20) /* per copy_file_range, so that a limit is met early */

/* ---- xattrs ----
 *
 * There are no xattr calls relative to a directory before Linux 6.13, so what
 * cannot be opened is named by its directory's /proc/self/fd entry. */

struct node_xattrs {
    int fd; /* -1: use path */
    char path[32 + 256];
};

static void xattrs_at(struct node_xattrs *x, int dirfd, const char *name)
{
    x->fd = -1;
    snprintf(x->path, sizeof x->path, "/proc/self/fd/%d/%s", dirfd, name);
}

static ssize_t xattrs_list(const struct node_xattrs *x, char *buf, size_t size)
{
    return x->fd >= 0 ? flistxattr(x->fd, buf, size) : llistxattr(x->path, buf, size);
}

static ssize_t xattrs_get(const struct node_xattrs *x, const char *key, char *buf, size_t size)
{
    return x->fd >= 0 ? fgetxattr(x->fd, key, buf, size) : lgetxattr(x->path, key, buf, size);
}

static int xattrs_set(const struct node_xattrs *x, const char *key, const char *val, size_t size)
{
    return x->fd >= 0 ? fsetxattr(x->fd, key, val, size, 0) : lsetxattr(x->path, key, val, size, 0);
}

/* What may not be read or set, or does not exist over there, is no failure. */
static bool xattr_refusal(int sys)
{
    return sys == EPERM || sys == EACCES || sys == EOPNOTSUPP || sys == ENODATA || sys == EINVAL;
}

/* `skip` PLAIN: all but the users' own. */
static const char PLAIN[] = "";

static bool xattr_skipped(const char *key, const char *skip)
{
    if (!skip)
        return false;
    if (skip == PLAIN)
        return strncmp(key, "user.", 5) != 0;
    size_t n = strlen(skip);
    return !strncmp(key, skip, n) && strncmp(key + n, "overlay.", 8) != 0 &&
           strcmp(key + n, "protattr") != 0;
}

static int xattr_copy(const struct node_xattrs *from, const struct node_xattrs *to, const char *key,
                      struct bough_err *err)
{
    char small[1024];
    BOUGH_CLEANUP_FREE char *big = NULL;
    char *val = small;
    ssize_t n = xattrs_get(from, key, val, sizeof small);
    if (n < 0 && errno == ERANGE) {
        if (!(val = big = malloc(XATTR_SIZE_MAX)))
            return bough_err_sys(err, ENOMEM, "read xattr %s", BOUGH_QUOTE(key));
        n = xattrs_get(from, key, val, XATTR_SIZE_MAX);
    }
    if (n < 0) {
        if (xattr_refusal(errno))
            return 0;
        return bough_err_sys(err, errno, "read xattr %s", BOUGH_QUOTE(key));
    }
    if (xattrs_set(to, key, val, (size_t)n) && !xattr_refusal(errno))
        return bough_err_sys(err, errno, "set xattr %s", BOUGH_QUOTE(key));
    return 0;
}

static int xattrs_copy(const struct node_xattrs *from, const struct node_xattrs *to,
                       const char *skip, struct bough_err *err)
{
    char small[1024];
    BOUGH_CLEANUP_FREE char *big = NULL;
    char *list = small;
    ssize_t n = xattrs_list(from, list, sizeof small);
    if (n < 0 && errno == ERANGE) {
        if (!(list = big = malloc(XATTR_LIST_MAX)))
            return bough_err_sys(err, ENOMEM, "list xattrs");
        n = xattrs_list(from, list, XATTR_LIST_MAX);
    }
    if (n < 0) {
        if (xattr_refusal(errno) || errno == ENOENT) /* no /proc: go without */
            return 0;
        return bough_err_sys(err, errno, "list xattrs");
    }
    for (char *key = list; key < list + n; key += strlen(key) + 1)
        if (!xattr_skipped(key, skip) && xattr_copy(from, to, key, err))
            return -1;
    return 0;
}

/* ---- owner, mode, times ---- */

static int node_own(int dirfd, const char *name, const struct stat *st, bool squash)
{
    int flags = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH;
    if (!fchownat(dirfd, name, st->st_uid, st->st_gid, flags))
        return 0;
    if (!squash || (errno != EINVAL && errno != EPERM))
        return -1;
    /* Not even 0:0 without a user namespace: then it stays its maker's. */
    if (!fchownat(dirfd, name, 0, 0, flags) || errno == EPERM || errno == EINVAL)
        return 0;
    return -1;
}

int bough_node_like(int from, const struct stat *st, int to, const char *skip, bool squash,
                    struct bough_err *err)
{
    /* In this order: chown drops setuid and security.capability; a file that is not
     * writable takes no user xattr; xattrs and chmod leave the times alone. */
    struct node_xattrs source = {.fd = from}, target = {.fd = to};
    if (node_own(to, "", st, squash))
        return bough_err_sys(err, errno, "chown to %u:%u", st->st_uid, st->st_gid);
    if (xattrs_copy(&source, &target, skip, err))
        return -1;
    if (fchmod(to, st->st_mode & 07777))
        return bough_err_sys(err, errno, "chmod");
    struct timespec times[2] = {st->st_atim, st->st_mtim};
    if (futimens(to, times))
        return bough_err_sys(err, errno, "set times");
    return 0;
}

int bough_node_like_plain(int from, const struct stat *st, int to, struct bough_err *err)
{
    struct node_xattrs source = {.fd = from}, target = {.fd = to};
    if (xattrs_copy(&source, &target, PLAIN, err))
        return -1;
    if (fchmod(to, st->st_mode & 01777))
        return bough_err_sys(err, errno, "chmod");
    struct timespec times[2] = {st->st_atim, st->st_mtim};
    if (futimens(to, times))
        return bough_err_sys(err, errno, "set times");
    return 0;
}

int bough_node_blank(int dir, struct bough_err *err)
{
    (void)!fremovexattr(dir, "system.posix_acl_default");
    (void)!fremovexattr(dir, "system.posix_acl_access");
    if (fchmod(dir, 0700))
        return bough_err_sys(err, errno, "chmod");
    return 0;
}

/* ---- content ---- */

static int content_count(struct bough_node_copy *how, int64_t bytes, struct bough_err *err)
{
    how->copied += bytes;
    if (how->progress)
        how->progress(how->arg, how->copied);
    if (!how->limited)
        return 0;
    how->room -= bytes;
    if (how->room < 0)
        return bough_err_set(err, BOUGH_ERR_resource, "copy: the tree is larger than allowed");
    return 0;
}

static int content_write(struct bough_node_copy *how, int in, int out, off_t at, off_t end,
                         struct bough_err *err)
{
    while (at < end) {
        size_t want = end - at < BOUGH_NODE_BUF ? (size_t)(end - at) : BOUGH_NODE_BUF;
        ssize_t n = BOUGH_RETRY(pread(in, how->buf, want, at));
        if (n < 0)
            return bough_err_sys(err, errno, "read");
        if (n == 0)
            return 0; /* has shrunk meanwhile */
        if (content_count(how, n, err))
            return -1;
        for (ssize_t done = 0; done < n;) {
            ssize_t w = BOUGH_RETRY(pwrite(out, how->buf + done, (size_t)(n - done), at + done));
            if (w < 0)
                return bough_err_sys(err, errno, "write");
            done += w;
        }
        at += n;
    }
    return 0;
}

/* Copies [at, end), which holds data. */
static int content_range(struct bough_node_copy *how, int in, int out, off_t at, off_t end,
                         struct bough_err *err)
{
    while (end - at > BOUGH_NODE_BUF) {
        size_t want = end - at < CHUNK_BYTES ? (size_t)(end - at) : (size_t)CHUNK_BYTES;
        off_t from = at, to = at;
        if (how->limited && (int64_t)want > how->room)
            want = how->room > 0 ? (size_t)how->room + 1 : 1;
        ssize_t n = BOUGH_RETRY(copy_file_range(in, &from, out, &to, want, 0));
        if (n < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EIO || errno == EFBIG))
            return bough_err_sys(err, errno, "write");
        if (n <= 0)
            break; /* not between these two: read and write */
        if (content_count(how, n, err))
            return -1;
        at += n;
    }
    return content_write(how, in, out, at, end, err);
}

static int content_holes(struct bough_node_copy *how, int in, int out, off_t size,
                         struct bough_err *err)
{
    off_t at = 0;
    while (at < size) {
        off_t data = lseek(in, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        if (data < 0)
            return content_range(how, in, out, at, size, err);
        off_t hole = lseek(in, data, SEEK_HOLE);
        if (hole < 0 || hole > size)
            hole = size;
        if (data >= hole)
            break;
        if (content_range(how, in, out, data, hole, err))
            return -1;
        at = hole;
    }
    if (ftruncate(out, size))
        return bough_err_sys(err, errno, "set length");
    return 0;
}

static int content_copy(struct bough_node_copy *how, int in, const struct stat *st, int out,
                        struct bough_err *err)
{
    int64_t stored = (int64_t)st->st_blocks * 512;
    if (stored > st->st_size)
        stored = st->st_size;
    if (how->limited && stored > how->room)
        return content_count(how, stored, err);
    if (!how->no_reflink) {
        if (!ioctl(out, FICLONE, in))
            return content_count(how, stored, err);
        how->no_reflink = errno == EOPNOTSUPP || errno == ENOTTY || errno == EXDEV ||
                          errno == ENOSYS || errno == EINVAL;
    }
    if (stored < st->st_size)
        return content_holes(how, in, out, st->st_size, err);
    return content_range(how, in, out, 0, st->st_size, err);
}

int bough_node_copy_file(struct bough_node_copy *how, int in, const struct stat *st, int to,
                         const char *name, struct stat *made, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int out =
        openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (out < 0)
        return bough_err_sys(err, errno, "create %s", BOUGH_QUOTE(name));
    if ((st->st_size > 0 && content_copy(how, in, st, out, err)) ||
        (how->plain ? bough_node_like_plain(in, st, out, err)
                    : bough_node_like(in, st, out, NULL, how->squash, err)))
        return bough_err_wrap(err, "copy %s", BOUGH_QUOTE(name));
    if (fstat(out, made))
        return bough_err_sys(err, errno, "stat %s", BOUGH_QUOTE(name));
    return 1;
}

/* ---- what has no content ---- */

static int special_make(int from, const char *name, const struct stat *st, int to)
{
    if (S_ISLNK(st->st_mode)) {
        char target[4096];
        ssize_t n = readlinkat(from, name, target, sizeof target - 1);
        if (n < 0)
            return -1;
        target[n] = '\0';
        return symlinkat(target, to, name);
    }
    return mknodat(to, name, (st->st_mode & S_IFMT) | 0600, st->st_rdev);
}

static int special_copy(struct bough_node_copy *how, int from, const char *name,
                        const struct stat *st, int to, struct stat *made, struct bough_err *err)
{
    bool device = S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode);
    if (S_ISSOCK(st->st_mode) || (device && !how->devices))
        return 0;
    struct node_xattrs source, target;
    struct timespec times[2] = {st->st_atim, st->st_mtim};
    xattrs_at(&source, from, name);
    xattrs_at(&target, to, name);
    if (special_make(from, name, st, to) || (!how->plain && node_own(to, name, st, how->squash)))
        return bough_err_sys(err, errno, "create %s", BOUGH_QUOTE(name));
    if (!how->plain && xattrs_copy(&source, &target, NULL, err)) /* user.* has no place here */
        return bough_err_wrap(err, "copy %s", BOUGH_QUOTE(name));
    mode_t mode = st->st_mode & (how->plain ? 01777 : 07777);
    if ((!S_ISLNK(st->st_mode) && fchmodat(to, name, mode, 0)) ||
        utimensat(to, name, times, AT_SYMLINK_NOFOLLOW) ||
        fstatat(to, name, made, AT_SYMLINK_NOFOLLOW))
        return bough_err_sys(err, errno, "create %s", BOUGH_QUOTE(name));
    return 1;
}

int bough_node_copy(struct bough_node_copy *how, int from, const char *name, int to,
                    struct stat *made, struct bough_err *err)
{
    struct stat st;
    if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW))
        return bough_err_sys(err, errno, "stat %s", BOUGH_QUOTE(name));
    if (!S_ISREG(st.st_mode))
        return special_copy(how, from, name, &st, to, made, err);
    BOUGH_CLEANUP_FD int in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (in < 0 || fstat(in, &st))
        return bough_err_sys(err, errno, "open %s", BOUGH_QUOTE(name));
    if (!S_ISREG(st.st_mode))
        return bough_err_set(err, BOUGH_ERR_io, "copy %s: changed while it was read",
                             BOUGH_QUOTE(name));
    return bough_node_copy_file(how, in, &st, to, name, made, err);
}
