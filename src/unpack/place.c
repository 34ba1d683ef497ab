#define _GNU_SOURCE
#include "place.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "../sys.h"
#include "prune.h"

/* As the kernel has it. */
enum { LINKS_MAX = 40 };

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

void bough_place_init(struct bough_place *place, int root, struct bough_made *made)
{
    memset(place, 0, sizeof *place);
    place->root = root;
    place->made = made;
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

static int long_fail(struct bough_err *err)
{
    return bough_err_set(err, BOUGH_ERR_invalid, "leads to a path of more than %d bytes",
                         PATH_MAX - 1);
}

/* A walk along a path that may have links in it. */
struct walk {
    int dir;             /* the last directory of `real` that exists; owned unless the root */
    int root;            /* borrowed */
    size_t missing;      /* components of `real` that lie beyond it */
    size_t len;          /* of `real` */
    char *real;          /* what has been walked, PATH_MAX bytes */
    char todo[PATH_MAX]; /* what is left */
    int links;
};

static void walk_to(struct walk *w, int dir)
{
    if (w->dir != w->root)
        bough_fd_close(&w->dir);
    w->dir = dir;
}

/* Back to the parent. Above the root is the root. */
static int walk_up(struct walk *w, struct bough_err *err)
{
    while (w->len && w->real[w->len - 1] != '/')
        w->len--;
    w->len -= w->len > 0;
    w->real[w->len] = '\0';
    if (w->missing) {
        w->missing--;
        return 0;
    }
    walk_to(w, w->len ? dir_open(w->root, w->real, O_PATH) : w->root);
    return w->dir < 0 ? bough_err_sys(err, errno, "look up its directory") : 0;
}

/* Puts the link's target in front of what is left, and goes to where the target begins. */
static int walk_link(struct walk *w, const char *target, size_t len, const char *rest,
                     struct bough_err *err)
{
    size_t left = strlen(rest);
    if (++w->links > LINKS_MAX)
        return bough_err_set(err, BOUGH_ERR_invalid, "leads through too many symbolic links");
    if (len + 1 + left + 1 > sizeof w->todo)
        return long_fail(err);
    memmove(w->todo + len + 1, rest, left + 1);
    memcpy(w->todo, target, len);
    w->todo[len] = '/';
    if (*target == '/') {
        walk_to(w, w->root);
        w->len = 0;
        w->real[0] = '\0';
    }
    return 0;
}

/* One component, `len` bytes at `name` in `todo`; `name` ends there. */
static int walk_step(struct walk *w, const char *name, size_t len, const char *rest,
                     struct bough_err *err)
{
    char target[PATH_MAX];
    ssize_t n = w->missing ? -1 : readlinkat(w->dir, name, target, sizeof target);
    if (n > 0)
        return walk_link(w, target, (size_t)n, rest, err);
    if (w->len + 1 + len + 1 > PATH_MAX)
        return long_fail(err);
    if (w->len)
        w->real[w->len++] = '/';
    memcpy(w->real + w->len, name, len + 1);
    w->len += len;
    int next = w->missing ? -1 : dir_open(w->dir, name, O_PATH);
    if (next >= 0)
        walk_to(w, next);
    else
        w->missing++;
    memmove(w->todo, rest, strlen(rest) + 1);
    return 0;
}

/* `real` becomes the path that `path` leads to when its links are followed inside the root. Parts that are
 * missing, or no directories, are taken as they are. */
static int links_follow(struct bough_place *place, const char *path, char *real,
                        struct bough_err *err)
{
    struct walk w = {.dir = place->root, .root = place->root, .real = real};
    int r = 0;
    strcpy(w.todo, path);
    real[0] = '\0';
    while (r == 0) {
        char *name = w.todo + strspn(w.todo, "/");
        size_t len = strcspn(name, "/");
        char *rest = name + len + (name[len] == '/');
        name[len] = '\0';
        if (!len)
            break;
        if (strcmp(name, ".") && strcmp(name, "..")) {
            r = walk_step(&w, name, len, rest, err);
            continue;
        }
        if (len == 2)
            r = walk_up(&w, err);
        memmove(w.todo, rest, strlen(rest) + 1);
    }
    walk_to(&w, place->root);
    return r;
}

static int parent_open(struct bough_place *place, struct bough_place_slot *slot, int make,
                       struct bough_err *err)
{
    strcpy(slot->real, slot->path);
    int fd = dir_open(place->root, slot->real, O_PATH);
    if (fd < 0 && errno == ELOOP && place->made) {
        if (links_follow(place, slot->path, slot->real, err) < 0)
            return -1;
        fd = dir_open(place->root, *slot->real ? slot->real : ".", O_PATH);
    }
    if (fd < 0 && errno == ENOENT && make)
        return dir_make(place, slot->real, err);
    return fd < 0 ? culprit_name(place, slot->real, errno, err) : fd;
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
    slot->fd = parent_open(place, slot, make, err);
    /* an archive's own directories get such a mode when all is in them, but a layer finds others */
    struct stat st;
    slot->gives_group =
        place->root_gives_group ||
        (place->made && slot->fd >= 0 && fstat(slot->fd, &st) == 0 && st.st_mode & S_ISGID);
    return slot->fd;
}

int bough_place_real(const struct bough_place_slot *slot, const struct bough_path *path,
                     char real[PATH_MAX], struct bough_err *err)
{
    const char *name = bough_path_name(path);
    size_t dir = path->parent_len ? strlen(slot->real) : 0, len = strlen(name);
    if (dir + 1 + len + 1 > PATH_MAX)
        return long_fail(err);
    memcpy(real, slot->real, dir);
    if (dir)
        real[dir++] = '/';
    memcpy(real + dir, name, len + 1);
    return 0;
}

bool bough_place_gives_group(const struct bough_place *place, const struct bough_path *path)
{
    return path->parent_len ? place->entry.gives_group : place->root_gives_group;
}

bool bough_place_is_lower(const struct bough_place *place, const char *real)
{
    return place->made &&
           !bough_made_has(place->made,
                           bough_made_below(place->made, BOUGH_MADE_ROOT, real, strlen(real)));
}

/* The descriptors stay open because the caller borrows one. */
void bough_place_forget(struct bough_place *place)
{
    place->entry.len = place->target.len = 0;
}

int bough_place_clear(struct bough_place *place, int dir, const char *name, const char *real,
                      struct bough_err *err)
{
    bough_place_forget(place);
    if (unlinkat(dir, name, 0) == 0)
        return 0;
    if (errno != EISDIR)
        return bough_err_sys(err, errno, "replace the earlier entry of this name");
    if (bough_place_is_lower(place, real))
        return bough_prune_name(place->made, dir, real, err);
    if (unlinkat(dir, name, AT_REMOVEDIR) < 0) {
        if (errno == ENOTEMPTY || errno == EEXIST)
            return bough_err_set(err, BOUGH_ERR_invalid,
                                 "would replace a directory that is not empty");
        return bough_err_sys(err, errno, "replace the earlier directory of this name");
    }
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
