#define _GNU_SOURCE
#include "put.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "../sys.h"
#include "node.h"
#include "route.h"
#include "walk.h"

#define EVERY_ID INT64_C(4294967294) /* the highest one; the next means "none" */

/* A directory that was made for an item: what is put into it later must not show in its time. */
struct made {
    char *path; /* below the layer's root */
    int64_t mtime_ns;
};

struct state {
    const struct bough_put *put;
    struct bough_route route;
    struct bough_node_copy copy; /* for what cannot be linked */
    struct made *made;
    size_t made_count, made_room;
};

static void times_of(int64_t mtime_ns, struct timespec times[2])
{
    int64_t seconds = mtime_ns / 1000000000, rest = mtime_ns % 1000000000;
    if (rest < 0) {
        seconds--;
        rest += 1000000000;
    }
    times[0] = times[1] = (struct timespec){.tv_sec = seconds, .tv_nsec = rest};
}

/* ---- owners ---- */

static int id_refused(const char *path, const char *what, int64_t id, int64_t most,
                      struct bough_err *err)
{
    return bough_err_set(err, BOUGH_ERR_invalid,
                         "%s: %s %lld cannot be given by this engine (only 0-%lld)",
                         BOUGH_QUOTE(path), what, (long long)id, (long long)most);
}

static int ids_check(const struct bough_put *put, const struct bough_put_item *item,
                     struct bough_err *err)
{
    int64_t most = put->uid_count > 0 ? put->uid_count - 1 : EVERY_ID;
    if (item->uid < 0 || item->uid > most)
        return id_refused(item->path, "uid", item->uid, most, err);
    if (item->gid < 0 || item->gid > most)
        return id_refused(item->path, "gid", item->gid, most, err);
    return 0;
}

static int own_failed(const struct bough_put_item *item, struct bough_err *err)
{
    int sys = errno;
    bough_err_sys(err, sys, "%s: giving it to %lld:%lld", BOUGH_QUOTE(item->path),
                  (long long)item->uid, (long long)item->gid);
    if (err && sys == EPERM)
        err->kind = BOUGH_ERR_invalid; /* as EINVAL: an id that is not mapped */
    return -1;
}

/* ---- what is there already ---- */

static int is_directory(const struct bough_put_item *item, struct bough_err *err)
{
    return bough_err_set(err, BOUGH_ERR_exists, "%s is a directory in the image",
                         BOUGH_QUOTE(item->path));
}

/* Only a directory is in the way of a file or link; anything else is shadowed. */
static int image_check(struct state *s, const struct bough_put_item *item, const char *name,
                       struct bough_err *err)
{
    struct stat st;
    int view = bough_route_here(&s->route)->view;
    if (view < 0)
        return 0;
    if (fstatat(view, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : bough_err_sys(err, errno, "%s", BOUGH_QUOTE(item->path));
    if (S_ISDIR(st.st_mode))
        return is_directory(item, err);
    if (S_ISLNK(st.st_mode))
        bough_route_forget(&s->route);
    return 0;
}

/* Something of ours has the name: two paths lead to one place, and the later one wins. */
static int layer_clear(struct state *s, const struct bough_put_item *item, int dir,
                       const char *name, struct bough_err *err)
{
    bough_route_forget(&s->route);
    if (unlinkat(dir, name, 0) == 0)
        return 0;
    return errno == EISDIR ? is_directory(item, err)
                           : bough_err_sys(err, errno, "%s", BOUGH_QUOTE(item->path));
}

/* ---- files ---- */

/* Gives the staged content its metadata. 1: there is none of that name any more. */
static int staged_dress(const struct bough_put *put, const struct bough_put_item *item,
                        struct bough_err *err)
{
    struct timespec times[2];
    struct stat st;
    times_of(item->mtime_ns, times);
    if (fstatat(put->staging, item->staged, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 1 : bough_err_sys(err, errno, "%s", BOUGH_QUOTE(item->path));
    /* chown drops setuid, so it comes first */
    if ((st.st_uid != item->uid || st.st_gid != item->gid) &&
        fchownat(put->staging, item->staged, (uid_t)item->uid, (gid_t)item->gid,
                 AT_SYMLINK_NOFOLLOW) < 0)
        return own_failed(item, err);
    if (fchmodat(put->staging, item->staged, (mode_t)item->mode & 07777, 0) < 0 ||
        utimensat(put->staging, item->staged, times, AT_SYMLINK_NOFOLLOW) < 0)
        return bough_err_sys(err, errno, "%s", BOUGH_QUOTE(item->path));
    return 0;
}

/* All names of a pooled file are taken: this one becomes a file of its own. */
static int blob_copy(struct state *s, const struct bough_put_item *item, int dir, const char *name,
                     struct bough_err *err)
{
    struct stat st, made;
    BOUGH_CLEANUP_FD int in =
        openat(s->put->blobs, item->blob, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (in < 0 || fstat(in, &st) < 0)
        return bough_err_sys(err, errno, "%s: pooled file", BOUGH_QUOTE(item->path));
    if (!s->copy.buf && !(s->copy.buf = malloc(BOUGH_NODE_BUF)))
        return bough_err_sys(err, ENOMEM, "%s", BOUGH_QUOTE(item->path));
    return bough_node_copy_file(&s->copy, in, &st, dir, name, &made, err) < 0 ? -1 : 0;
}

static int blob_link(struct state *s, const struct bough_put_item *item, int dir, const char *name,
                     struct bough_err *err)
{
    if (linkat(s->put->blobs, item->blob, dir, name, 0) == 0)
        return 0;
    if (errno == EEXIST) {
        if (layer_clear(s, item, dir, name, err) < 0)
            return -1;
        if (linkat(s->put->blobs, item->blob, dir, name, 0) == 0)
            return 0;
    }
    if (errno == EMLINK)
        return blob_copy(s, item, dir, name, err);
    if (errno == ENOENT || errno == EBADF) /* no pool at all */
        return bough_err_set(err, BOUGH_ERR_not_found, "%s: blob gone", BOUGH_QUOTE(item->path));
    return bough_err_sys(err, errno, "%s: link to the pool", BOUGH_QUOTE(item->path));
}

static int file_move(struct state *s, const struct bough_put_item *item, int dir, const char *name,
                     struct bough_err *err)
{
    struct stat st;
    /* rename(2) would replace, but also do nothing when both are names of one file */
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
        layer_clear(s, item, dir, name, err) < 0)
        return -1;
    if (renameat(s->put->staging, item->staged, dir, name) < 0)
        return bough_err_sys(err, errno, "%s", BOUGH_QUOTE(item->path));
    return 0;
}

static int file_put(struct state *s, const struct bough_put_item *item, int dir, const char *name,
                    struct bough_err *err)
{
    const struct bough_put *put = s->put;
    bool pooled = *item->blob != '\0';
    int gone = *item->staged ? staged_dress(put, item, err) : 1;
    if (gone < 0)
        return -1;
    if (gone && !pooled)
        return bough_err_set(err, BOUGH_ERR_not_found, "%s: staged content gone",
                             BOUGH_QUOTE(item->path));
    if (!gone && pooled) {
        /* Somebody was quicker, or has used up its links: ours is the same, and goes. */
        bool ours = linkat(put->staging, item->staged, put->blobs, item->blob, 0) == 0;
        if (!ours && errno != EEXIST)
            return bough_err_sys(err, errno, "%s: adding to the pool", BOUGH_QUOTE(item->path));
        if (!ours) {
            unlinkat(put->staging, item->staged, 0);
            gone = 1;
        }
    }
    return gone ? blob_link(s, item, dir, name, err) : file_move(s, item, dir, name, err);
}

static int symlink_put(struct state *s, const struct bough_put_item *item, int dir,
                       const char *name, struct bough_err *err)
{
    struct timespec times[2];
    times_of(item->mtime_ns, times);
    int rc = symlinkat(item->target, dir, name);
    if (rc < 0 && errno == EEXIST) {
        if (layer_clear(s, item, dir, name, err) < 0)
            return -1;
        rc = symlinkat(item->target, dir, name);
    }
    if (rc < 0)
        return bough_err_sys(err, errno, "%s: symbolic link", BOUGH_QUOTE(item->path));
    if (fchownat(dir, name, (uid_t)item->uid, (gid_t)item->gid, AT_SYMLINK_NOFOLLOW) < 0)
        return own_failed(item, err);
    if (utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW) < 0)
        return bough_err_sys(err, errno, "%s: symbolic link", BOUGH_QUOTE(item->path));
    return 0;
}

/* ---- directories ---- */

static int made_add(struct state *s, int64_t mtime_ns)
{
    if (s->made_count == s->made_room) {
        size_t room = s->made_room ? s->made_room * 2 : 64;
        struct made *more = realloc(s->made, room * sizeof *more);
        if (!more)
            return -1;
        s->made = more;
        s->made_room = room;
    }
    char *path = strndup(s->route.real + 1, bough_route_here(&s->route)->end - 1);
    if (!path)
        return -1;
    s->made[s->made_count++] = (struct made){.path = path, .mtime_ns = mtime_ns};
    return 0;
}

static int dir_put(struct state *s, const struct bough_put_item *item, struct bough_err *err)
{
    size_t length = strlen(item->path);
    int rc = bough_route_go(&s->route, item->path, length, err);
    if (rc < 0)
        return -1;
    if (rc == (int)length)
        return bough_err_set(err, BOUGH_ERR_exists, "%s exists and is not a directory in the image",
                             BOUGH_QUOTE(item->path));
    if (rc > 0)
        return rc;
    struct bough_route_level *here = bough_route_here(&s->route);
    if (here->view >= 0 || here->out >= 0) /* keeps what it has */
        return 0;
    int dir = bough_route_make(&s->route, err);
    if (dir < 0)
        return -1;
    if (fchown(dir, (uid_t)item->uid, (gid_t)item->gid) < 0)
        return own_failed(item, err);
    if (fchmod(dir, (mode_t)item->mode & 07777) < 0)
        return bough_err_sys(err, errno, "%s", BOUGH_QUOTE(item->path));
    if (made_add(s, item->mtime_ns) < 0)
        return bough_err_sys(err, ENOMEM, "%s", BOUGH_QUOTE(item->path));
    return 0;
}

static int made_date(const struct state *s, struct bough_err *err)
{
    for (size_t i = s->made_count; i-- > 0;) {
        struct timespec times[2];
        times_of(s->made[i].mtime_ns, times);
        if (utimensat(s->put->out, s->made[i].path, times, AT_SYMLINK_NOFOLLOW) < 0)
            return bough_err_sys(err, errno, "/%s: set times", BOUGH_QUOTE(s->made[i].path));
    }
    return 0;
}

/* ---- all of it ---- */

static int item_put(struct state *s, const struct bough_put_item *item, struct bough_err *err)
{
    if (ids_check(s->put, item, err) < 0)
        return -1;
    const char *name = strrchr(item->path, '/') + 1;
    int rc = item->kind == BOUGH_PUT_DIR
                 ? dir_put(s, item, err)
                 : bough_route_go(&s->route, item->path, (size_t)(name - 1 - item->path), err);
    if (rc > 0) {
        char part[PATH_MAX];
        snprintf(part, sizeof part, "%.*s", rc, item->path);
        return bough_err_set(err, BOUGH_ERR_invalid, "%s: %s is not a directory in the image",
                             BOUGH_QUOTE(item->path), BOUGH_QUOTE(part));
    }
    if (rc < 0 || item->kind == BOUGH_PUT_DIR)
        return rc;
    if (image_check(s, item, name, err) < 0)
        return -1;
    int dir = bough_route_make(&s->route, err);
    if (dir < 0)
        return -1;
    return item->kind == BOUGH_PUT_FILE ? file_put(s, item, dir, name, err)
                                        : symlink_put(s, item, dir, name, err);
}

static int root_like(const struct bough_put *put, struct bough_err *err)
{
    struct stat st;
    if (put->view < 0)
        return 0;
    if (fstat(put->view, &st) < 0)
        return bough_err_sys(err, errno, "root directory");
    if (bough_node_like(put->view, &st, put->out, put->skip, false, err) < 0)
        return bough_err_wrap(err, "root directory");
    return 0;
}

int bough_put_tree(const struct bough_put *put, struct bough_err *err)
{
    struct state *s = calloc(1, sizeof *s);
    if (!s)
        return bough_err_sys(err, ENOMEM, "put");
    s->put = put;
    bough_route_start(&s->route, put->view, put->out, put->skip);
    int rc = root_like(put, err);
    for (size_t i = 0; rc == 0 && i < put->count; i++) {
        rc = item_put(s, &put->items[i], err);
        if (put->progress)
            put->progress(put->arg, (int64_t)i + 1, (int64_t)put->count);
    }
    if (rc == 0)
        rc = made_date(s, err);
    bough_route_end(&s->route);
    for (size_t i = 0; i < s->made_count; i++)
        free(s->made[i].path);
    free(s->made);
    free(s->copy.buf);
    free(s);
    return rc;
}
