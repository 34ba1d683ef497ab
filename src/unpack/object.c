#define _GNU_SOURCE
#include "object.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "../sys.h"
#include "attr.h"

static int data_put(struct bough_extraction *x, int fd, const char *data, size_t size, int64_t at)
{
    struct bough_extract *how = x->how;
    if (how->max_bytes && (int64_t)size > how->max_bytes - how->bytes)
        return bough_err_set(x->err, BOUGH_ERR_resource,
                             "the archive holds more than %lld bytes of file data",
                             (long long)how->max_bytes);
    how->bytes += (int64_t)size;
    while (size) {
        ssize_t n = BOUGH_RETRY(pwrite(fd, data, size, at));
        if (n < 0)
            return bough_err_sys(x->err, errno, "write");
        data += n;
        at += n;
        size -= (size_t)n;
    }
    return 0;
}

static int data_copy(struct bough_extraction *x, int fd)
{
    int64_t end = 0;
    for (;;) {
        const void *data;
        size_t size;
        la_int64_t at;
        int r = archive_read_data_block(x->reader, &data, &size, &at);
        if (r == ARCHIVE_EOF)
            break;
        if (r != ARCHIVE_OK && r != ARCHIVE_WARN)
            return bough_reader_fail(x);
        if (size && data_put(x, fd, data, size, at) < 0)
            return -1;
        if (size && at + (int64_t)size > end)
            end = at + (int64_t)size;
    }
    int64_t size = archive_entry_size(x->entry);
    if (end < size && ftruncate(fd, size) < 0)
        return bough_err_sys(x->err, errno, "set size");
    return 0;
}

static bool is_plain(const struct bough_extraction *x)
{
    return x->how->mode == BOUGH_EXTRACT_PLAIN;
}

/* Removes what is in the way. */
static int room_make(struct bough_extraction *x, int dir)
{
    return bough_place_clear(&x->place, dir, bough_path_name(&x->path), x->real, x->err);
}

static int file_open(int dir, const char *name, mode_t mode)
{
    return openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
}

static int file_make(struct bough_extraction *x, int dir)
{
    const char *name = bough_path_name(&x->path);
    struct bough_subject s = {.dir = dir, .name = name, .mode = archive_entry_perm(x->entry)};
    bool has_xattrs = bough_xattrs_wanted(x);
    if (is_plain(x))
        s.mode = (s.mode & 0777) | 0600;
    /* an ordinary user may set attributes only where he may write */
    mode_t first = has_xattrs ? 0600 : s.mode & 0777;
    BOUGH_CLEANUP_FD int fd = file_open(dir, name, first);
    if (fd < 0 && errno == EEXIST) {
        if (room_make(x, dir) < 0)
            return -1;
        fd = file_open(dir, name, first);
    }
    if (fd < 0)
        return bough_err_sys(x->err, errno, "create");
    s.fd = fd;
    /* a change of owner clears setuid bits and capabilities, and so does writing */
    if (data_copy(x, fd) < 0 || bough_owner_set(x, &s) < 0 ||
        (has_xattrs && bough_xattrs_set(x, fd) < 0))
        return -1;
    if (s.mode != first && fchmod(fd, s.mode) < 0)
        return bough_err_sys(x->err, errno, "set mode");
    return bough_time_set(x, &s);
}

static int symlink_make(struct bough_extraction *x, int dir)
{
    const char *name = bough_path_name(&x->path), *to = archive_entry_symlink(x->entry);
    struct bough_subject s = {.fd = -1, .dir = dir, .name = name};
    if (!to || !*to)
        return bough_err_set(x->err, BOUGH_ERR_invalid, "is a symbolic link to nothing");
    int r = symlinkat(to, dir, name);
    if (r < 0 && errno == EEXIST) {
        if (room_make(x, dir) < 0)
            return -1;
        r = symlinkat(to, dir, name);
    }
    if (r < 0)
        return bough_err_sys(x->err, errno, "create symbolic link");
    return bough_owner_set(x, &s) < 0 ? -1 : bough_time_set(x, &s);
}

static int fifo_make(struct bough_extraction *x, int dir)
{
    const char *name = bough_path_name(&x->path);
    struct bough_subject s = {.fd = -1, .dir = dir, .name = name};
    mode_t mode = S_IFIFO | (archive_entry_perm(x->entry) & 0777);
    int r = mknodat(dir, name, mode, 0);
    if (r < 0 && errno == EEXIST) {
        if (room_make(x, dir) < 0)
            return -1;
        r = mknodat(dir, name, mode, 0);
    }
    if (r < 0)
        return bough_err_sys(x->err, errno, "create fifo");
    return bough_owner_set(x, &s) < 0 ? -1 : bough_time_set(x, &s);
}

/* There is something of the directory's name: another directory becomes this one, and what else the
 * layers below have gives way. */
static int dir_meet(struct bough_extraction *x, int dir, struct bough_subject *s)
{
    struct stat st;
    if (fstatat(dir, s->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return bough_err_sys(x->err, errno, "stat");
    s->foreign = S_ISDIR(st.st_mode);
    if (s->foreign)
        return 0;
    if (!bough_place_is_lower(&x->place, x->real))
        return bough_err_set(x->err, BOUGH_ERR_invalid,
                             "is a directory, but an earlier entry "
                             "of this name is not");
    if (room_make(x, dir) < 0)
        return -1;
    return mkdirat(dir, s->name, 0700) < 0 ? bough_err_sys(x->err, errno, "create directory") : 0;
}

static int dir_xattrs(struct bough_extraction *x, const struct bough_subject *s)
{
    bool stale = s->foreign && bough_place_is_lower(&x->place, x->real);
    if (!stale && !bough_xattrs_wanted(x))
        return 0;
    BOUGH_CLEANUP_FD int fd =
        openat(s->dir, s->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return bough_err_sys(x->err, errno, "open directory");
    if (stale && bough_xattrs_clear(x, fd) < 0)
        return -1;
    return bough_xattrs_wanted(x) ? bough_xattrs_set(x, fd) : 0;
}

static int dir_make(struct bough_extraction *x, int dir)
{
    bool is_root = bough_path_is_root(&x->path);
    const char *name = is_root ? "." : bough_path_name(&x->path);
    struct bough_subject s = {
        .fd = -1,
        .dir = dir,
        .name = name,
        .mode = archive_entry_perm(x->entry),
        .foreign = is_root,
    };
    if (is_plain(x)) {
        if (is_root)
            return 0;
        s.mode = (s.mode & 0777) | 0700;
    }
    if (!is_root && mkdirat(dir, name, 0700) < 0) {
        if (errno != EEXIST)
            return bough_err_sys(x->err, errno, "create directory");
        if (dir_meet(x, dir, &s) < 0)
            return -1;
    }
    if (bough_owner_set(x, &s) < 0 || dir_xattrs(x, &s) < 0)
        return -1;
    return bough_place_later(&x->place, x->real, s.mode, bough_time_of(x->entry), x->err);
}

static int link_fail(struct bough_extraction *x, const char *to, int sys)
{
    char quoted[BOUGH_QUOTE_MAX];
    bough_path_quote(quoted, to);
    if (sys == ENOENT)
        return bough_err_set(x->err, BOUGH_ERR_invalid,
                             x->place.made
                                 ? "is a hard link to %s, which is not there"
                                 : "is a hard link to %s, which is not in the archive before it",
                             quoted);
    return bough_err_sys(x->err, sys, "hard link to %s", quoted);
}

int bough_object_link(struct bough_extraction *x, int dir, const char *to)
{
    char quoted[BOUGH_QUOTE_MAX];
    const char *name = bough_path_name(&x->path);
    struct stat old, new;
    int from = -1;
    if (bough_path_set(&x->target, to, x->place.made != NULL, x->err) == 0)
        from = bough_place_parent(&x->place, &x->place.target, &x->target, false, x->err);
    if (from < 0) {
        if (x->err->sys == ENOENT)
            return link_fail(x, to, ENOENT);
        return bough_err_wrap(x->err, "hard link to %s", bough_path_quote(quoted, to));
    }
    const char *source = bough_path_name(&x->target);
    if (linkat(from, source, dir, name, 0) == 0)
        return 0;
    int sys = errno;
    if (bough_path_is_root(&x->target) || fstatat(from, source, &new, AT_SYMLINK_NOFOLLOW) < 0)
        return link_fail(x, to, bough_path_is_root(&x->target) ? EISDIR : errno);
    if (S_ISDIR(new.st_mode))
        return link_fail(x, to, EISDIR);
    if (sys != EEXIST)
        return link_fail(x, to, sys);
    /* a link to itself, or one that is there already */
    if (fstatat(dir, name, &old, AT_SYMLINK_NOFOLLOW) == 0 && old.st_ino == new.st_ino &&
        old.st_dev == new.st_dev)
        return 0;
    if (room_make(x, dir) < 0)
        return -1;
    return linkat(from, source, dir, name, 0) < 0 ? link_fail(x, to, errno) : 0;
}

int bough_object_make(struct bough_extraction *x, int dir)
{
    switch (archive_entry_filetype(x->entry)) {
    case AE_IFREG:
        return file_make(x, dir);
    case AE_IFDIR:
        return dir_make(x, dir);
    case AE_IFLNK:
        return symlink_make(x, dir);
    case AE_IFIFO:
        return fifo_make(x, dir);
    default:
        return bough_err_set(x->err, BOUGH_ERR_invalid, "is of an unknown type");
    }
}
