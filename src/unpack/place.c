#define _GNU_SOURCE
#include "place.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "../sys.h"

/* Memory for remembered directories: about two million of them. */
#define LATE_BYTES ((size_t)256 << 20)

static int dir_open(int dir, const char *path, unsigned flags)
{
    struct open_how how = {
        .flags = flags | O_DIRECTORY | O_CLOEXEC,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    return (int)BOUGH_RETRY(syscall(SYS_openat2, dir, path, &how, sizeof how));
}

void bough_place_init(struct bough_place *place, int root)
{
    memset(place, 0, sizeof *place);
    place->root = root;
    place->entry.fd = place->target.fd = -1;
}

void bough_place_close(struct bough_place *place)
{
    bough_fd_close(&place->entry.fd);
    bough_fd_close(&place->target.fd);
    for (size_t i = 0; i < place->late_count; i++)
        free(place->late[i].path);
    free(place->late);
    place->late = NULL;
    place->late_count = 0;
}

/* Says which part of `path` is no directory. Prefixes are looked at shortest first, so that all
 * before the culprit are real directories. Changes `path`, but puts it back. */
static int culprit_name(struct bough_place *place, char *path, int sys, struct bough_err *err)
{
    for (char *end = path; end;) {
        char quoted[BOUGH_QUOTE_MAX], linked[BOUGH_QUOTE_MAX], target[256];
        struct stat st;
        end = strchr(*end == '/' ? end + 1 : end, '/');
        if (end)
            *end = '\0';
        ssize_t n = readlinkat(place->root, path, target, sizeof target - 1);
        int known = fstatat(place->root, path, &st, AT_SYMLINK_NOFOLLOW) == 0;
        bough_path_quote(quoted, path);
        if (end)
            *end = '/';
        if (n >= 0) {
            target[n] = '\0';
            return bough_err_set(err, BOUGH_ERR_invalid, "leads through the symbolic link %s -> %s",
                                 quoted, bough_path_quote(linked, target));
        }
        if (known && !S_ISDIR(st.st_mode))
            return bough_err_set(err, BOUGH_ERR_invalid, "lies below %s, which is no directory",
                                 quoted);
    }
    return bough_err_sys(err, sys, "look up its directory");
}

/* Opens `path`, making what is missing, one component at a time. */
static int dir_make(struct bough_place *place, char *path, struct bough_err *err)
{
    int dir = place->root;
    char *name = path;
    while (name) {
        char *end = strchr(name, '/');
        if (end)
            *end = '\0';
        int next = dir_open(dir, name, O_PATH);
        if (next < 0 && errno == ENOENT) {
            int made = mkdirat(dir, name, 0755);
            place->implied += made == 0;
            next = made == 0 ? dir_open(dir, name, O_PATH) : -1;
        }
        int sys = errno;
        if (dir != place->root)
            close(dir);
        if (end)
            *end = '/';
        if (next < 0)
            return culprit_name(place, path, sys, err);
        dir = next;
        name = end ? end + 1 : NULL;
    }
    return dir;
}

int bough_place_parent(struct bough_place *place, struct bough_place_slot *slot,
                       const struct bough_path *path, int make, struct bough_err *err)
{
    if (path->parent_len == 0)
        return place->root;
    if (slot->fd >= 0 && slot->len == path->parent_len &&
        !memcmp(slot->path, path->text, slot->len))
        return slot->fd;
    bough_fd_close(&slot->fd);
    memcpy(slot->path, path->text, path->parent_len);
    slot->path[path->parent_len] = '\0';
    slot->len = path->parent_len;
    slot->fd = dir_open(place->root, slot->path, O_PATH);
    if (slot->fd < 0 && errno == ENOENT && make)
        slot->fd = dir_make(place, slot->path, err);
    else if (slot->fd < 0)
        return culprit_name(place, slot->path, errno, err);
    return slot->fd;
}

int bough_place_clear(struct bough_place *place, int dir, const char *name, struct bough_err *err)
{
    if (unlinkat(dir, name, 0) == 0)
        return 0;
    if (errno != EISDIR)
        return bough_err_sys(err, errno, "replace the earlier entry of this name");
    if (unlinkat(dir, name, AT_REMOVEDIR) < 0) {
        if (errno == ENOTEMPTY || errno == EEXIST)
            return bough_err_set(err, BOUGH_ERR_invalid,
                                 "would replace a directory that is not empty");
        return bough_err_sys(err, errno, "replace the earlier directory of this name");
    }
    /* a slot may hold this directory; they stay open because the caller borrows one */
    place->entry.len = place->target.len = 0;
    return 0;
}

int bough_place_later(struct bough_place *place, const char *path, mode_t mode,
                      struct timespec mtime, struct bough_err *err)
{
    place->late_bytes += sizeof *place->late + strlen(path) + 1;
    if (place->late_bytes > LATE_BYTES)
        return bough_err_set(err, BOUGH_ERR_resource, "too many directories");
    if (place->late_count == place->late_room) {
        size_t room = place->late_room ? place->late_room * 2 : 256;
        struct bough_place_late *grown = realloc(place->late, room * sizeof *grown);
        if (!grown)
            return bough_err_set(err, BOUGH_ERR_resource, "out of memory");
        place->late = grown;
        place->late_room = room;
    }
    char *copy = strdup(path);
    if (!copy)
        return bough_err_set(err, BOUGH_ERR_resource, "out of memory");
    size_t order = place->late_count++;
    place->late[order] = (struct bough_place_late){
        .path = copy,
        .order = order,
        .mode = mode,
        .mtime = mtime,
    };
    return 0;
}

/* Longer paths before their prefixes, the last of equal ones first. */
static int late_compare(const void *left, const void *right)
{
    const struct bough_place_late *a = left, *b = right;
    int r = strcmp(b->path, a->path);
    return r ? r : (a->order < b->order) - (a->order > b->order);
}

static int late_apply(struct bough_place *place, const struct bough_place_late *late,
                      struct bough_err *err)
{
    BOUGH_CLEANUP_FD int dir = dir_open(place->root, *late->path ? late->path : ".", O_RDONLY);
    if (dir < 0) {
        /* a later entry has taken its place */
        if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP)
            return 0;
        return bough_err_sys(err, errno, "open directory");
    }
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, late->mtime};
    if (fchmod(dir, late->mode) < 0)
        return bough_err_sys(err, errno, "set mode");
    if (late->mtime.tv_nsec != UTIME_OMIT && futimens(dir, times) < 0)
        return bough_err_sys(err, errno, "set time");
    return 0;
}

int bough_place_settle(struct bough_place *place, struct bough_err *err)
{
    if (place->late_count)
        qsort(place->late, place->late_count, sizeof *place->late, late_compare);
    for (size_t i = 0; i < place->late_count; i++) {
        char quoted[BOUGH_QUOTE_MAX];
        const struct bough_place_late *late = &place->late[i];
        if (i && !strcmp(late->path, place->late[i - 1].path))
            continue;
        if (late_apply(place, late, err) < 0)
            return bough_err_wrap(err, "archive entry %s", bough_path_quote(quoted, late->path));
    }
    return 0;
}
