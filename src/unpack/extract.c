#define _GNU_SOURCE
#include "extract.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "../sys.h"
#include "place.h"

#define NOT_TAR "not a tar archive (plain, gzip, bzip2, xz, zstd, lz4)"

/* libarchive keeps the name of this one to itself. */
enum { READER_ERRNO_MISC = -1 };

struct extraction {
    struct bough_extract *how;
    struct bough_source *source;
    struct bough_err *err;
    struct archive *reader;
    struct archive_entry *entry; /* owned by `reader` */
    struct bough_place place;
    struct bough_path path, target;
    struct bough_err source_err; /* why the source stopped; outranks what libarchive says */
    bool source_failed;
    bool primed;
    char primer[512];
    bool chown_always; /* new files do not get our own group by themselves */
    uid_t uid;
    gid_t gid;
};

/* A file in the making: by descriptor, or where it has none by its directory and name. */
struct subject {
    int fd;
    int dir;
    const char *name;
    mode_t mode;
    bool foreign; /* was there before: may belong to anybody */
};

/* A symbolic link for libarchive alone, in front of the archive. Until libarchive (3.6) has met a
 * link name in a header, it loses one that a pax record brings along with an empty field there, as
 * Go's writer does for names without any ASCII. */
static void primer_make(char header[512])
{
    unsigned sum = 0;
    memset(header, 0, 512);
    memcpy(header, "primer", 6);
    memcpy(header + 100, "0000644\0000000000\0000000000\00000000000000\00000000000000", 48);
    memcpy(header + 148, "        2primer", 15);
    memcpy(header + 257, "ustar\00000", 8);
    for (int i = 0; i < 512; i++)
        sum += (unsigned char)header[i];
    snprintf(header + 148, 8, "%06o", sum);
}

static la_ssize_t source_input(struct archive *a, void *arg, const void **data)
{
    struct extraction *x = arg;
    (void)a;
    if (!x->primed) {
        x->primed = true;
        primer_make(x->primer);
        *data = x->primer;
        return sizeof x->primer;
    }
    if (x->source_failed)
        return ARCHIVE_FATAL;
    if (x->how->progress)
        x->how->progress(x->how->progress_arg, x->how->files + x->how->skipped);
    ssize_t n = bough_source_read(x->source, data, &x->source_err);
    x->source_failed = n < 0;
    return n < 0 ? ARCHIVE_FATAL : n;
}

/* Why libarchive could not go on. */
static int reader_fail(struct extraction *x)
{
    const char *why = archive_error_string(x->reader);
    if (x->source_failed) {
        *x->err = x->source_err;
        return -1;
    }
    if (archive_errno(x->reader) == ENOMEM)
        return bough_err_set(x->err, BOUGH_ERR_resource, "out of memory");
    /* some decompressors hand out a block before they have looked at its checksum */
    if (bough_source_finish(x->source, &x->source_err) < 0) {
        x->source_failed = true;
        *x->err = x->source_err;
        return -1;
    }
    return bough_err_set(x->err, BOUGH_ERR_corrupt, "%s", why ? why : "damaged");
}

static bool owner_wanted(const struct extraction *x, const struct subject *s, int64_t uid,
                         int64_t gid)
{
    return x->chown_always || s->foreign || uid != (int64_t)x->uid || gid != (int64_t)x->gid;
}

static int owner_try(const struct subject *s, int64_t uid, int64_t gid)
{
    /* -1 would mean "as it is" to the kernel, and numbers beyond are cut off */
    if (uid < 0 || gid < 0 || uid >= UINT32_MAX || gid >= UINT32_MAX) {
        errno = EINVAL;
        return -1;
    }
    return s->fd >= 0 ? fchown(s->fd, (uid_t)uid, (gid_t)gid)
                      : fchownat(s->dir, s->name, (uid_t)uid, (gid_t)gid, AT_SYMLINK_NOFOLLOW);
}

static int owner_set(struct extraction *x, struct subject *s)
{
    int64_t uid = archive_entry_uid(x->entry), gid = archive_entry_gid(x->entry);
    bool squash = x->how->squash;
    if (!owner_wanted(x, s, uid, gid))
        return 0;
    if (!(squash && !x->how->may_chown)) {
        if (owner_try(s, uid, gid) == 0)
            return 0;
        if (errno != EINVAL && errno != EPERM)
            return bough_err_sys(x->err, errno, "set owner %lld:%lld", (long long)uid,
                                 (long long)gid);
        if (!squash)
            return bough_err_sys(x->err, errno, "owner %lld:%lld cannot be mapped here",
                                 (long long)uid, (long long)gid);
        if (owner_wanted(x, s, 0, 0))
            (void)owner_try(s, 0, 0);
    }
    /* a program that was to run as somebody else shall not run as root instead */
    if (uid != 0)
        s->mode &= ~(mode_t)S_ISUID;
    if (gid != 0)
        s->mode &= ~(mode_t)S_ISGID;
    return 0;
}

/* Looked at for every entry, also for those that take no attributes. */
static int xattrs_check(struct extraction *x)
{
    static const char *const forged[] = {"trusted.", "user.overlay."};
    const char *name;
    const void *value;
    size_t size;
    archive_entry_xattr_reset(x->entry);
    while (archive_entry_xattr_next(x->entry, &name, &value, &size) == ARCHIVE_OK)
        for (size_t i = 0; name && i < sizeof forged / sizeof forged[0]; i++)
            if (!strncmp(name, forged[i], strlen(forged[i]))) {
                char quoted[BOUGH_QUOTE_MAX];
                return bough_err_set(x->err, BOUGH_ERR_invalid,
                                     "carries the attribute %s, which belongs to the overlay",
                                     bough_path_quote(quoted, name));
            }
    return 0;
}

static int xattrs_set(struct extraction *x, int fd)
{
    const char *name;
    const void *value;
    size_t size;
    archive_entry_xattr_reset(x->entry);
    while (archive_entry_xattr_next(x->entry, &name, &value, &size) == ARCHIVE_OK) {
        if (!name || (strncmp(name, "user.", 5) && strcmp(name, "security.capability")))
            continue;
        if (fsetxattr(fd, name, value, size, 0) == 0 || errno == ENOTSUP ||
            (errno == EPERM && x->how->squash))
            continue;
        char quoted[BOUGH_QUOTE_MAX];
        return bough_err_sys(x->err, errno, "set attribute %s", bough_path_quote(quoted, name));
    }
    return 0;
}

static struct timespec time_of(struct archive_entry *entry)
{
    if (!archive_entry_mtime_is_set(entry))
        return (struct timespec){.tv_nsec = UTIME_OMIT};
    long nsec = archive_entry_mtime_nsec(entry);
    if (nsec < 0 || nsec > 999999999)
        nsec = 0;
    return (struct timespec){.tv_sec = archive_entry_mtime(entry), .tv_nsec = nsec};
}

static int time_set(struct extraction *x, const struct subject *s)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, time_of(x->entry)};
    if (times[1].tv_nsec == UTIME_OMIT)
        return 0;
    int r = s->fd >= 0 ? futimens(s->fd, times)
                       : utimensat(s->dir, s->name, times, AT_SYMLINK_NOFOLLOW);
    return r < 0 ? bough_err_sys(x->err, errno, "set time") : 0;
}

static int data_put(struct extraction *x, int fd, const char *data, size_t size, int64_t at)
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

static int data_copy(struct extraction *x, int fd)
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
            return reader_fail(x);
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

static int file_open(int dir, const char *name, mode_t mode)
{
    return openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
}

static int file_make(struct extraction *x, int dir)
{
    const char *name = bough_path_name(&x->path);
    struct subject s = {.dir = dir, .name = name, .mode = archive_entry_perm(x->entry)};
    bool has_xattrs = archive_entry_xattr_count(x->entry) > 0;
    /* an ordinary user may set attributes only where he may write */
    mode_t first = has_xattrs ? 0600 : s.mode & 0777;
    BOUGH_CLEANUP_FD int fd = file_open(dir, name, first);
    if (fd < 0 && errno == EEXIST) {
        if (bough_place_clear(&x->place, dir, name, x->err) < 0)
            return -1;
        fd = file_open(dir, name, first);
    }
    if (fd < 0)
        return bough_err_sys(x->err, errno, "create");
    s.fd = fd;
    /* a change of owner clears setuid bits and capabilities, and so does writing */
    if (data_copy(x, fd) < 0 || owner_set(x, &s) < 0 || (has_xattrs && xattrs_set(x, fd) < 0))
        return -1;
    if (s.mode != first && fchmod(fd, s.mode) < 0)
        return bough_err_sys(x->err, errno, "set mode");
    return time_set(x, &s);
}

static int symlink_make(struct extraction *x, int dir)
{
    const char *name = bough_path_name(&x->path), *to = archive_entry_symlink(x->entry);
    struct subject s = {.fd = -1, .dir = dir, .name = name};
    if (!to || !*to)
        return bough_err_set(x->err, BOUGH_ERR_invalid, "is a symbolic link to nothing");
    int r = symlinkat(to, dir, name);
    if (r < 0 && errno == EEXIST) {
        if (bough_place_clear(&x->place, dir, name, x->err) < 0)
            return -1;
        r = symlinkat(to, dir, name);
    }
    if (r < 0)
        return bough_err_sys(x->err, errno, "create symbolic link");
    return owner_set(x, &s) < 0 ? -1 : time_set(x, &s);
}

static int fifo_make(struct extraction *x, int dir)
{
    const char *name = bough_path_name(&x->path);
    struct subject s = {.fd = -1, .dir = dir, .name = name};
    mode_t mode = S_IFIFO | (archive_entry_perm(x->entry) & 0777);
    int r = mknodat(dir, name, mode, 0);
    if (r < 0 && errno == EEXIST) {
        if (bough_place_clear(&x->place, dir, name, x->err) < 0)
            return -1;
        r = mknodat(dir, name, mode, 0);
    }
    if (r < 0)
        return bough_err_sys(x->err, errno, "create fifo");
    return owner_set(x, &s) < 0 ? -1 : time_set(x, &s);
}

static int dir_make(struct extraction *x, int dir)
{
    bool is_root = bough_path_is_root(&x->path);
    const char *name = is_root ? "." : bough_path_name(&x->path);
    struct subject s = {
        .fd = -1,
        .dir = dir,
        .name = name,
        .mode = archive_entry_perm(x->entry),
        .foreign = is_root,
    };
    BOUGH_CLEANUP_FD int fd = -1;
    if (!is_root && mkdirat(dir, name, 0700) < 0) {
        struct stat st;
        if (errno != EEXIST)
            return bough_err_sys(x->err, errno, "create directory");
        if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            return bough_err_sys(x->err, errno, "stat");
        if (!S_ISDIR(st.st_mode))
            return bough_err_set(x->err, BOUGH_ERR_invalid,
                                 "is a directory, but an earlier entry "
                                 "of this name is not");
        s.foreign = true;
    }
    if (owner_set(x, &s) < 0)
        return -1;
    if (archive_entry_xattr_count(x->entry) > 0) {
        fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            return bough_err_sys(x->err, errno, "open directory");
        if (xattrs_set(x, fd) < 0)
            return -1;
    }
    return bough_place_later(&x->place, x->path.text, s.mode, time_of(x->entry), x->err);
}

static int link_fail(struct extraction *x, const char *to, int sys)
{
    char quoted[BOUGH_QUOTE_MAX];
    bough_path_quote(quoted, to);
    if (sys == ENOENT)
        return bough_err_set(x->err, BOUGH_ERR_invalid,
                             "is a hard link to %s, which is not in the archive before it", quoted);
    return bough_err_sys(x->err, sys, "hard link to %s", quoted);
}

static int link_make(struct extraction *x, int dir, const char *to)
{
    char quoted[BOUGH_QUOTE_MAX];
    const char *name = bough_path_name(&x->path);
    struct stat old, new;
    int from = -1;
    if (bough_path_set(&x->target, to, x->err) == 0)
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
    if (bough_place_clear(&x->place, dir, name, x->err) < 0)
        return -1;
    return linkat(from, source, dir, name, 0) < 0 ? link_fail(x, to, errno) : 0;
}

static int files_count(struct extraction *x)
{
    struct bough_extract *how = x->how;
    if (how->max_files && how->files + how->skipped + x->place.implied > how->max_files)
        return bough_err_set(x->err, BOUGH_ERR_resource, "the archive holds more than %lld files",
                             (long long)how->max_files);
    return 0;
}

static int entry_make(struct extraction *x)
{
    const char *to = archive_entry_hardlink(x->entry);
    mode_t type = archive_entry_filetype(x->entry);
    if (bough_path_set(&x->path, archive_entry_pathname(x->entry), x->err) < 0 ||
        xattrs_check(x) < 0)
        return -1;
    bool is_root = bough_path_is_root(&x->path);
    if (is_root && (to || type != AE_IFDIR))
        return bough_err_set(x->err, BOUGH_ERR_invalid, "is the root, but no directory");
    if (!to && (type == AE_IFCHR || type == AE_IFBLK || type == AE_IFSOCK)) {
        x->how->skipped++;
        return files_count(x);
    }
    x->how->files += !is_root;
    if (files_count(x) < 0)
        return -1;
    int dir = bough_place_parent(&x->place, &x->place.entry, &x->path, true, x->err);
    if (dir < 0)
        return -1;
    if (to)
        return link_make(x, dir, to);
    switch (type) {
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

static int entries_read(struct extraction *x)
{
    char last[BOUGH_QUOTE_MAX] = "", quoted[BOUGH_QUOTE_MAX];
    for (;;) {
        int r = archive_read_next_header(x->reader, &x->entry);
        if (r == ARCHIVE_EOF && x->source->out_bytes > 0)
            return bough_source_finish(x->source, x->err);
        /* There are two warnings: a name that is not of this locale, and then we get its bytes,
         * which is what we want; or a pax record that makes no sense. */
        if (r != ARCHIVE_OK &&
            (r != ARCHIVE_WARN || archive_errno(x->reader) == READER_ERRNO_MISC)) {
            reader_fail(x);
            if (!x->source_failed && !*last && r != ARCHIVE_WARN &&
                x->err->kind == BOUGH_ERR_corrupt)
                return bough_err_set(x->err, BOUGH_ERR_invalid, NOT_TAR);
            return *last ? bough_err_wrap(x->err, "archive after entry %s", last) : -1;
        }
        const char *name = archive_entry_pathname(x->entry);
        if (entry_make(x) < 0)
            return bough_err_wrap(x->err, "archive entry %s", bough_path_quote(quoted, name));
        bough_path_quote(last, name);
    }
}

/* Plain tar only. Filters are not enabled: the source has taken the compression off. */
static int reader_open(struct extraction *x)
{
    x->reader = archive_read_new();
    if (!x->reader)
        return bough_err_set(x->err, BOUGH_ERR_resource, "out of memory");
    int r = archive_read_support_format_tar(x->reader);
    if (r == ARCHIVE_OK)
        r = archive_read_open(x->reader, x, NULL, source_input, NULL);
    if (r == ARCHIVE_OK)
        r = archive_read_next_header(x->reader, &x->entry); /* the primer */
    return r == ARCHIVE_OK ? 0 : reader_fail(x);
}

static int root_examine(struct extraction *x)
{
    struct stat st;
    if (fstat(x->how->root, &st) < 0)
        return bough_err_sys(x->err, errno, "output directory");
    x->uid = geteuid();
    x->gid = getegid();
    x->chown_always = st.st_mode & S_ISGID;
    return 0;
}

int bough_extract_tar(struct bough_extract *how, struct bough_source *source, struct bough_err *err)
{
    BOUGH_CLEANUP_FREE struct extraction *x = calloc(1, sizeof *x);
    if (!x)
        return bough_err_set(err, BOUGH_ERR_resource, "out of memory");
    x->how = how;
    x->source = source;
    x->err = err;
    how->bytes = how->files = how->skipped = 0;
    bough_place_init(&x->place, how->root);
    int r = root_examine(x);
    if (r == 0)
        r = reader_open(x);
    if (r == 0)
        r = entries_read(x);
    if (r == 0)
        r = bough_place_settle(&x->place, err);
    archive_read_free(x->reader);
    bough_place_close(&x->place);
    how->files += x->place.implied;
    return r;
}
