/* copy.c - copying a tree.
 *
 * The source may be a live directory of the host: it is never changed, each of its
 * directories is opened by one component without following links, and one that moves while the
 * walk is deep below it is an error (walk.h). Both sides keep their
 * descriptors for the first levels and are parked beyond, so their number is bounded.
 *
 * Hard links: the first copy of an inode with several names also gets a numbered name in
 * a stash directory inside the new tree, and later names are linked from there. So
 * no path is kept, and a first copy in a directory that is closed to us by now can
 * still be linked. The stash is removed before the root gets its times. */
#define _GNU_SOURCE
#include "tree.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "../sys.h"
#include "node.h"
#include "walk.h"

struct copy_level {
    struct bough_spot from, to;
    struct bough_scan scan;
    bool shut; /* a mount point that is not descended into */
};

struct copy {
    struct copy_level *level;
    int depth, room;
    struct bough_tree_copy *how;
    struct bough_tree_size *size;
    struct bough_node_copy node;
    struct bough_inodes links;
    int stash;
    char stash_name[48];
    int from, to; /* the roots, the caller's */
    dev_t dev;    /* the source's file system */
    struct stat to_stat;
};

/* ---- hard links ---- */

static int stash_open(struct copy *c)
{
    struct stat st;
    for (unsigned i = 0; c->stash < 0; i++) {
        snprintf(c->stash_name, sizeof c->stash_name, ".bough-links-%ld-%u", (long)getpid(), i);
        if (!fstatat(c->from, c->stash_name, &st, AT_SYMLINK_NOFOLLOW))
            continue; /* the source has that name */
        if (mkdirat(c->to, c->stash_name, 0700)) {
            c->stash_name[0] = '\0';
            return -1;
        }
        c->stash = openat(c->to, c->stash_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (c->stash < 0)
            return -1;
    }
    return 0;
}

static int stash_remove(struct copy *c, struct bough_err *err)
{
    bough_fd_close(&c->stash);
    if (!c->stash_name[0])
        return 0;
    int rc = bough_tree_remove(c->to, c->stash_name, err);
    c->stash_name[0] = '\0';
    return rc;
}

/* ---- entries ---- */

static int copy_count(struct copy *c, const struct stat *made, struct bough_err *err)
{
    c->size->files++;
    if (c->how->max_files > 0 && c->size->files > c->how->max_files)
        return bough_err_set(err, BOUGH_ERR_resource,
                             "copy: the tree holds more than %" PRId64 " files", c->how->max_files);
    c->size->bytes += (int64_t)made->st_blocks * 512;
    if (c->how->max_bytes > 0 && c->size->bytes > c->how->max_bytes)
        return bough_err_set(err, BOUGH_ERR_resource,
                             "copy: the tree is larger than %" PRId64 " bytes", c->how->max_bytes);
    return 0;
}

/* Makes the object itself. `in` is open for a regular file, -1 for the rest. */
static int copy_make(struct copy *c, struct copy_level *l, const char *name, int in,
                     const struct stat *st, struct stat *made, struct bough_err *err)
{
    if (c->how->max_bytes > 0)
        c->node.room = c->how->max_bytes - c->size->bytes;
    int rc = in >= 0 ? bough_node_copy_file(&c->node, in, st, l->to.fd, name, made, err)
                     : bough_node_copy(&c->node, l->from.fd, name, l->to.fd, made, err);
    if (rc < 0)
        return -1;
    if (rc == 0) {
        c->how->skipped++;
        return 0;
    }
    return copy_count(c, made, err) ? -1 : 1;
}

/* The same for one of several names of an inode. */
static int copy_linked(struct copy *c, struct copy_level *l, const char *name, int in,
                       const struct stat *st, struct bough_err *err)
{
    char number[24];
    struct stat made;
    struct bough_inode *met = bough_inodes_meet(&c->links, st->st_dev, st->st_ino);
    if (!met)
        return bough_err_sys(err, ENOMEM, "copy %s", BOUGH_QUOTE(name));
    if (c->stash < 0 && stash_open(c))
        return bough_err_sys(err, errno, "create directory for hard links");
    snprintf(number, sizeof number, "%" PRIu64, met->number);
    bool last = met->seen == st->st_nlink;
    if (met->seen > 1 && !linkat(c->stash, number, l->to.fd, name, 0)) {
        c->size->files++;
    } else {
        if (met->seen > 1 && errno != ENOENT && errno != EMLINK)
            return bough_err_sys(err, errno, "link %s", BOUGH_QUOTE(name));
        int rc = copy_make(c, l, name, in, st, &made, err);
        if (rc <= 0)
            return rc;
        if (met->seen > 1) /* too many links: go on from this copy */
            unlinkat(c->stash, number, 0);
        if (!last && linkat(l->to.fd, name, c->stash, number, 0))
            return bough_err_sys(err, errno, "link %s", BOUGH_QUOTE(name));
    }
    if (last && met->seen > 1)
        unlinkat(c->stash, number, 0);
    return 0;
}

static int copy_enter(struct copy *c, const char *name, struct bough_err *err);

static int copy_entry(struct copy *c, struct copy_level *l, const struct dirent64 *d,
                      struct bough_err *err)
{
    BOUGH_CLEANUP_FD int in = -1;
    const char *name = d->d_name;
    struct stat st, made;
    if (d->d_type == DT_DIR)
        return copy_enter(c, name, err);
    if (d->d_type != DT_REG && fstatat(l->from.fd, name, &st, AT_SYMLINK_NOFOLLOW)) {
        if (errno == ENOENT && !c->how->still)
            return 0;
        return bough_err_sys(err, errno, "stat %s", BOUGH_QUOTE(name));
    }
    if (d->d_type != DT_REG && S_ISDIR(st.st_mode))
        return copy_enter(c, name, err);
    if (d->d_type == DT_REG || S_ISREG(st.st_mode)) {
        in = openat(l->from.fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
        if (in < 0 && errno == ENOENT && !c->how->still)
            return 0;
        if (in < 0 || fstat(in, &st))
            return bough_err_sys(err, errno, "open %s", BOUGH_QUOTE(name));
        if (!S_ISREG(st.st_mode))
            return bough_err_set(err, BOUGH_ERR_io, "copy %s: changed while it was read",
                                 BOUGH_QUOTE(name));
    }
    if (st.st_nlink > 1 && !(c->how->apart && c->how->apart(c->how->arg, &st)))
        return copy_linked(c, l, name, in, &st, err);
    return copy_make(c, l, name, in, &st, &made, err) < 0 ? -1 : 0;
}

/* ---- directories ---- */

static struct copy_level *copy_push(struct copy *c)
{
    if (c->depth == c->room) {
        int room = c->room ? c->room * 2 : 64;
        struct copy_level *more = realloc(c->level, (size_t)room * sizeof *more);
        if (!more)
            return NULL;
        c->level = more;
        c->room = room;
    }
    struct copy_level *l = &c->level[c->depth++];
    *l = (struct copy_level){.from = {.fd = -1}, .to = {.fd = -1}};
    return l;
}

static void copy_pop(struct copy *c)
{
    struct copy_level *l = &c->level[--c->depth];
    bough_scan_drop(&l->scan);
    bough_spot_close(&l->from);
    bough_spot_close(&l->to);
}

static int copy_enter(struct copy *c, const char *name, struct bough_err *err)
{
    struct copy_level *l = copy_push(c), *up;
    struct stat st;
    if (!l)
        return bough_err_sys(err, ENOMEM, "copy %s", BOUGH_QUOTE(name));
    up = l - 1;
    if (bough_spot_open(&l->from, up->from.fd, name, false) || fstat(l->from.fd, &st)) {
        if (errno != ENOENT)
            return bough_err_sys(err, errno, "open directory %s", BOUGH_QUOTE(name));
        c->depth--;
        return 0;
    }
    if (st.st_dev == c->to_stat.st_dev && st.st_ino == c->to_stat.st_ino) {
        c->how->skipped++; /* the copy lies inside of what is copied */
        bough_spot_close(&l->from);
        c->depth--;
        return 0;
    }
    l->shut = c->how->one_fs && st.st_dev != c->dev;
    if (mkdirat(up->to.fd, name, 0700) || bough_spot_open(&l->to, up->to.fd, name, false))
        return bough_err_sys(err, errno, "create directory %s", BOUGH_QUOTE(name));
    if (c->depth > BOUGH_WALK_LEVELS) {
        if (bough_spot_park(&up->from) || bough_spot_park(&up->to))
            return bough_err_sys(err, errno, "close directory");
        bough_scan_drop(&up->scan);
    }
    return 0;
}

static int copy_leave(struct copy *c, struct bough_err *err)
{
    struct copy_level *l = &c->level[c->depth - 1];
    struct stat st, made;
    bool root = c->depth == 1;
    if (root && stash_remove(c, err))
        return -1;
    /* First of all: with its final mode we may not be able to search the directory. */
    if (!root && (bough_spot_return(&l[-1].from, &l->from) || bough_spot_return(&l[-1].to, &l->to)))
        return bough_err_sys(err, errno, "return from directory");
    if (fstat(l->from.fd, &st))
        return bough_err_sys(err, errno, "stat directory");
    int rc = 0;
    if (!c->how->plain)
        rc = bough_node_like(l->from.fd, &st, l->to.fd, NULL, c->how->squash, err);
    else if (!root) /* the root is the caller's own */
        rc = bough_node_like_plain(l->from.fd, &st, l->to.fd, err);
    if (rc)
        return bough_err_wrap(err, "copy directory");
    if (!root && fstat(l->to.fd, &made))
        return bough_err_sys(err, errno, "stat directory");
    if (!root && copy_count(c, &made, err))
        return -1;
    copy_pop(c);
    return 0;
}

static int copy_step(struct copy *c, struct bough_err *err)
{
    struct copy_level *l = &c->level[c->depth - 1];
    struct dirent64 *d;
    int rc = l->shut ? 0 : bough_scan_next(&l->scan, l->from.fd, &d);
    if (rc < 0)
        return bough_err_sys(err, errno, "read directory");
    return rc ? copy_entry(c, l, d, err) : copy_leave(c, err);
}

static int copy_start(struct copy *c, struct bough_err *err)
{
    struct stat st;
    c->how->skipped = 0;
    c->node = (struct bough_node_copy){.devices = c->how->devices,
                                       .squash = c->how->squash,
                                       .plain = c->how->plain,
                                       .progress = c->how->progress,
                                       .arg = c->how->arg,
                                       .limited = c->how->max_bytes > 0,
                                       .buf = malloc(BOUGH_NODE_BUF)};
    struct copy_level *l = copy_push(c);
    if (!l || !c->node.buf)
        return bough_err_sys(err, ENOMEM, "copy");
    if (fstat(c->from, &st) || fstat(c->to, &c->to_stat))
        return bough_err_sys(err, errno, "stat directory");
    c->dev = st.st_dev;
    l->to = (struct bough_spot){.fd = c->to, .borrowed = true};
    if (bough_spot_open(&l->from, c->from, ".", false))
        return bough_err_sys(err, errno, "open directory");
    return c->how->plain ? 0 : bough_node_blank(c->to, err);
}

int bough_tree_copy(int from, int to, struct bough_tree_copy *how, struct bough_tree_size *size,
                    struct bough_err *err)
{
    struct bough_tree_size ours;
    struct copy c = {.how = how, .size = size ? size : &ours, .stash = -1, .from = from, .to = to};
    *c.size = (struct bough_tree_size){0};
    int rc = copy_start(&c, err);
    while (!rc && c.depth)
        rc = copy_step(&c, err);
    while (c.depth)
        copy_pop(&c);
    stash_remove(&c, NULL);
    free(c.level);
    free(c.node.buf);
    bough_inodes_free(&c.links);
    return rc;
}
