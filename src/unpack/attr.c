#define _GNU_SOURCE
#include "attr.h"

#include <archive_entry.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "../sys.h"

/* Overlay's own, where it is mounted by an ordinary user. */
#define OVERLAY "user.overlay."

static bool owner_wanted(const struct bough_extraction *x, const struct bough_subject *s,
                         int64_t uid, int64_t gid)
{
    return bough_place_gives_group(&x->place, &x->path) || s->foreign || uid != (int64_t)x->uid ||
           gid != (int64_t)x->gid;
}

static int owner_try(const struct bough_subject *s, int64_t uid, int64_t gid)
{
    /* -1 would mean "as it is" to the kernel, and numbers beyond are cut off */
    if (uid < 0 || gid < 0 || uid >= UINT32_MAX || gid >= UINT32_MAX) {
        errno = EINVAL;
        return -1;
    }
    return s->fd >= 0 ? fchown(s->fd, (uid_t)uid, (gid_t)gid)
                      : fchownat(s->dir, s->name, (uid_t)uid, (gid_t)gid, AT_SYMLINK_NOFOLLOW);
}

int bough_owner_set(struct bough_extraction *x, struct bough_subject *s)
{
    int64_t uid = archive_entry_uid(x->entry), gid = archive_entry_gid(x->entry);
    bool squash = x->how->squash;
    if (x->how->mode == BOUGH_EXTRACT_PLAIN || !owner_wanted(x, s, uid, gid))
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

int bough_xattrs_check(struct bough_extraction *x)
{
    static const char *const forged[] = {"trusted.", OVERLAY};
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

bool bough_xattrs_wanted(const struct bough_extraction *x)
{
    return x->how->mode != BOUGH_EXTRACT_PLAIN && archive_entry_xattr_count(x->entry) > 0;
}

int bough_xattrs_set(struct bough_extraction *x, int fd)
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

int bough_xattrs_clear(struct bough_extraction *x, int fd)
{
    ssize_t len = flistxattr(fd, NULL, 0);
    if (len <= 0)
        return len == 0 || errno == ENOTSUP ? 0 : bough_err_sys(x->err, errno, "list attributes");
    BOUGH_CLEANUP_FREE char *names = malloc((size_t)len);
    if (!names)
        return bough_err_set(x->err, BOUGH_ERR_resource, "out of memory");
    len = flistxattr(fd, names, (size_t)len);
    if (len < 0)
        return bough_err_sys(x->err, errno, "list attributes");
    for (const char *name = names; name < names + len; name += strlen(name) + 1)
        if (!strncmp(name, "user.", 5) && strncmp(name, OVERLAY, sizeof OVERLAY - 1) != 0 &&
            fremovexattr(fd, name) < 0 && errno != ENODATA)
            return bough_err_sys(x->err, errno, "remove an attribute from below");
    return 0;
}

struct timespec bough_time_of(struct archive_entry *entry)
{
    if (!archive_entry_mtime_is_set(entry))
        return (struct timespec){.tv_nsec = UTIME_OMIT};
    long nsec = archive_entry_mtime_nsec(entry);
    if (nsec < 0 || nsec > 999999999)
        nsec = 0;
    return (struct timespec){.tv_sec = archive_entry_mtime(entry), .tv_nsec = nsec};
}

int bough_time_set(struct bough_extraction *x, const struct bough_subject *s)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, bough_time_of(x->entry)};
    if (times[1].tv_nsec == UTIME_OMIT)
        return 0;
    int r = s->fd >= 0 ? futimens(s->fd, times)
                       : utimensat(s->dir, s->name, times, AT_SYMLINK_NOFOLLOW);
    return r < 0 ? bough_err_sys(x->err, errno, "set time") : 0;
}
