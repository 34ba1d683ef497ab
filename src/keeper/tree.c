/* tree.c - removing a tree and measuring one. */
#define _GNU_SOURCE
#include "tree.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "../sys.h"
#include "walk.h"

/* ---- remove ----
 *
 * A fixed number of levels, each with its descriptor and buffer. What lies deeper is
 * moved up into the root of the tree and has its turn later, so neither memory
 * nor descriptors grow with the depth, and no ".." is ever followed. A failure
 * does not stop the rest: the first one is reported, the rest is gone. */

#define REMOVE_LEVELS 32

struct remove_level {
    int fd;
    struct bough_scan scan;
    const char *name; /* in the buffer of the level above */
    bool writable;    /* has been given rwx already */
    bool failed;      /* something in it stays, so it stays too */
    bool progress;    /* this pass removed or moved something */
};

struct remove {
    struct remove_level level[REMOVE_LEVELS];
    int depth; /* levels in use */
    unsigned serial;
    bool lifted; /* something was moved into the root since its last pass began */
    struct bough_err *err;
    bool failed;
};

static void remove_fail(struct remove *r, const char *step, const char *name)
{
    if (!r->failed)
        bough_err_sys(r->err, errno, "%s %s", step, BOUGH_QUOTE(name));
    r->failed = true;
    if (r->depth > 0)
        r->level[r->depth - 1].failed = true;
}

/* Never leaves the file system: a mount below fails with EXDEV instead of being emptied. */
static int remove_open(int dirfd, const char *name)
{
    struct open_how how = {
        .flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
        .resolve = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS,
    };
    int fd = (int)syscall(SYS_openat2, dirfd, name, &how, sizeof how);
    if (fd < 0 && (errno == ENOSYS || errno == EPERM))
        fd = openat(dirfd, name, (int)how.flags);
    return fd;
}

/* For an owner without privileges who may not write here yet. */
static bool remove_made_writable(struct remove_level *in)
{
    if (errno != EACCES || in->writable)
        return false;
    in->writable = true;
    return fchmod(in->fd, 0700) == 0;
}

static int remove_enter(struct remove *r, int dirfd, const char *name)
{
    int fd = remove_open(dirfd, name);
    if (fd < 0 && errno == EACCES && !bough_walk_chmod(dirfd, name, 0700))
        fd = remove_open(dirfd, name);
    if (fd < 0) {
        if (errno == ENOENT)
            return 0;
        remove_fail(r, "open", name);
        return -1;
    }
    struct remove_level *l = &r->level[r->depth++];
    bough_scan_rewind(&l->scan, fd);
    l->scan.dropped = false;
    l->fd = fd;
    l->name = name;
    l->writable = l->failed = l->progress = false;
    return 0;
}

static int remove_lift_once(struct remove *r, int fd, const char *name)
{
    int rc;
    do {
        char lifted[32];
        snprintf(lifted, sizeof lifted, ".bough-lifted-%u", ++r->serial);
        rc = renameat(fd, name, r->level[0].fd, lifted);
    } while (rc && (errno == EEXIST || errno == ENOTEMPTY || errno == ENOTDIR));
    return rc;
}

/* Moves a directory that lies too deep into the root of the tree. */
static void remove_lift(struct remove *r, struct remove_level *in, const char *name)
{
    int rc = remove_lift_once(r, in->fd, name);
    if (rc && errno == EACCES) {
        (void)!fchmod(in->fd, 0700);
        (void)!fchmod(r->level[0].fd, 0700);
        bough_walk_chmod(in->fd, name, 0700); /* its ".." changes */
        rc = remove_lift_once(r, in->fd, name);
    }
    if (rc) {
        remove_fail(r, "move", name);
        return;
    }
    in->progress = true;
    r->lifted = true;
}

static void remove_entry(struct remove *r, struct remove_level *in, const struct dirent64 *d)
{
    if (d->d_type != DT_DIR) {
        int rc = unlinkat(in->fd, d->d_name, 0);
        if (rc && remove_made_writable(in))
            rc = unlinkat(in->fd, d->d_name, 0);
        if (!rc || errno == ENOENT) {
            in->progress = true;
            return;
        }
        if (errno != EISDIR) {
            remove_fail(r, "unlink", d->d_name);
            return;
        }
    }
    if (r->depth == REMOVE_LEVELS)
        remove_lift(r, in, d->d_name);
    else
        remove_enter(r, in->fd, d->d_name);
}

/* At the end of the topmost level's directory. */
static void remove_leave(struct remove *r, int dirfd)
{
    struct remove_level *l = &r->level[r->depth - 1];
    struct remove_level *up = r->depth > 1 ? l - 1 : NULL;
    if (!up && r->lifted) {
        r->lifted = false;
        bough_scan_rewind(&l->scan, l->fd);
        return;
    }
    int rc = l->failed ? 0 : unlinkat(up ? up->fd : dirfd, l->name, AT_REMOVEDIR);
    if (rc && up && remove_made_writable(up))
        rc = unlinkat(up->fd, l->name, AT_REMOVEDIR);
    if (rc && errno == ENOTEMPTY && l->progress) { /* entries that a scan skipped */
        l->progress = false;
        bough_scan_rewind(&l->scan, l->fd);
        return;
    }
    bool failed = l->failed;
    bough_fd_close(&l->fd);
    r->depth--;
    if (rc && errno != ENOENT)
        remove_fail(r, "remove directory", l->name);
    else if (up && failed)
        up->failed = true;
    else if (up)
        up->progress = true;
}

int bough_tree_remove(int dirfd, const char *name, struct bough_err *err)
{
    if (!unlinkat(dirfd, name, 0) || errno == ENOENT)
        return 0;
    if (errno != EISDIR)
        return bough_err_sys(err, errno, "unlink %s", BOUGH_QUOTE(name));

    struct remove *r = calloc(1, sizeof *r);
    if (!r)
        return bough_err_sys(err, ENOMEM, "remove %s", BOUGH_QUOTE(name));
    r->err = err;
    remove_enter(r, dirfd, name);
    while (r->depth) {
        struct remove_level *l = &r->level[r->depth - 1];
        struct dirent64 *d;
        int rc = bough_scan_next(&l->scan, l->fd, &d);
        if (rc > 0) {
            remove_entry(r, l, d);
        } else {
            if (rc < 0)
                remove_fail(r, "read directory", l->name);
            remove_leave(r, dirfd);
        }
    }
    bool failed = r->failed;
    for (int i = 0; i < REMOVE_LEVELS; i++)
        bough_scan_drop(&r->level[i].scan);
    free(r);
    return failed ? -1 : 0;
}

/* ---- measure ---- */

struct measure_level {
    struct bough_spot spot;
    struct bough_scan scan;
};

struct measure {
    struct measure_level *level;
    int depth, room;
    struct bough_inodes links;
    struct bough_tree_size *size;
};

static int measure_count(struct measure *m, const struct stat *st)
{
    m->size->files++;
    if (!S_ISDIR(st->st_mode) && st->st_nlink > 1) {
        struct bough_inode *seen = bough_inodes_meet(&m->links, st->st_dev, st->st_ino);
        if (!seen)
            return -1;
        if (seen->seen > 1)
            return 0;
    }
    m->size->bytes += (int64_t)st->st_blocks * 512;
    return 0;
}

static int measure_enter(struct measure *m, int dirfd, const char *name)
{
    if (m->depth == m->room) {
        int room = m->room ? m->room * 2 : 64;
        struct measure_level *more = realloc(m->level, (size_t)room * sizeof *more);
        if (!more)
            return -1;
        m->level = more;
        m->room = room;
    }
    struct measure_level *l = &m->level[m->depth];
    *l = (struct measure_level){0};
    if (bough_spot_open(&l->spot, dirfd, name, true))
        return -1;
    m->depth++;
    if (m->depth > BOUGH_WALK_LEVELS) {
        if (bough_spot_park(&l[-1].spot))
            return -1;
        bough_scan_drop(&l[-1].scan);
    }
    return 0;
}

static int measure_leave(struct measure *m)
{
    struct measure_level *l = &m->level[--m->depth];
    int rc = m->depth ? bough_spot_return(&l[-1].spot, &l->spot) : 0;
    bough_scan_drop(&l->scan);
    bough_spot_close(&l->spot);
    return rc;
}

static int measure_next(struct measure *m, struct bough_err *err)
{
    struct measure_level *l = &m->level[m->depth - 1];
    struct dirent64 *d;
    struct stat st;
    int rc = bough_scan_next(&l->scan, l->spot.fd, &d);
    if (rc < 0)
        return bough_err_sys(err, errno, "read directory");
    if (rc == 0)
        return measure_leave(m) ? bough_err_sys(err, errno, "return from directory") : 0;
    if (fstatat(l->spot.fd, d->d_name, &st, AT_SYMLINK_NOFOLLOW)) {
        if (errno == ENOENT)
            return 0;
        return bough_err_sys(err, errno, "stat %s", BOUGH_QUOTE(d->d_name));
    }
    if (measure_count(m, &st))
        return bough_err_sys(err, ENOMEM, "measure");
    if (S_ISDIR(st.st_mode) && measure_enter(m, l->spot.fd, d->d_name))
        return bough_err_sys(err, errno, "open directory %s", BOUGH_QUOTE(d->d_name));
    return 0;
}

int bough_tree_measure(int dirfd, const char *name, struct bough_tree_size *out,
                       struct bough_err *err)
{
    struct measure m = {.size = out};
    int rc = 0;
    *out = (struct bough_tree_size){0};
    if (measure_enter(&m, dirfd, name))
        rc = bough_err_sys(err, errno, "open directory %s", BOUGH_QUOTE(name));
    while (!rc && m.depth)
        rc = measure_next(&m, err);
    while (m.depth) /* after a failure: what was lent is given back */
        measure_leave(&m);
    free(m.level);
    bough_inodes_free(&m.links);
    return rc;
}
