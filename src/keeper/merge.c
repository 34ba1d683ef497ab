/* merge.c - several layers made into one that shows the same.
 *
 * For every directory of the result the layers are read from the top down, and each
 * name is linked where no higher layer has put it already: EEXIST means hidden, so no
 * set of names is kept. A directory is entered when the first layer that has
 * it is read, together with those below that overlayfs would merge with it.
 *
 * Descriptors: one per layer and level, up to MERGE_FDS; beyond that a directory is
 * parked while the walk is in its child (walk.h), so that about one per layer and one for
 * the result stay open whatever the depth. */
#define _GNU_SOURCE
#include "tree.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "../sys.h"
#include "node.h"
#include "walk.h"

#define MERGE_FDS 256

/* A directory of one layer, at one level. */
struct merge_part {
    struct bough_spot spot;
    size_t above; /* index in merge.part of the same layer one level up */
};

struct merge_level {
    size_t first, count; /* in merge.part, top layer first */
    size_t reading;      /* the part being read, counted from `first` */
    struct bough_scan scan;
    struct bough_spot out;
    bool opaque;    /* hides what is under the layers merged */
    bool sealed;    /* nothing under it can show: it or a parent is opaque */
    bool whiteouts; /* some were linked here */
};

struct merge {
    struct merge_level *level;
    size_t depth, level_room;
    struct merge_part *part;
    size_t parts, part_room;
    int open; /* descriptors of ours */
    const char *opaque;
    char prefix[64]; /* "trusted.overlay." */
    struct bough_inodes links;
    struct bough_tree_size *size;
    struct bough_node_copy copy;
};

static struct merge_level *merge_top(struct merge *m)
{
    return &m->level[m->depth - 1];
}

/* ---- growing and shrinking ---- */

static struct merge_level *merge_push_level(struct merge *m)
{
    if (m->depth == m->level_room) {
        size_t room = m->level_room ? m->level_room * 2 : 64;
        struct merge_level *more = realloc(m->level, room * sizeof *more);
        if (!more)
            return NULL;
        m->level = more;
        m->level_room = room;
    }
    struct merge_level *l = &m->level[m->depth++];
    *l = (struct merge_level){.first = m->parts, .out = {.fd = -1}};
    return l;
}

static struct merge_part *merge_push_part(struct merge *m, size_t above)
{
    if (m->parts == m->part_room) {
        size_t room = m->part_room ? m->part_room * 2 : 256;
        struct merge_part *more = realloc(m->part, room * sizeof *more);
        if (!more)
            return NULL;
        m->part = more;
        m->part_room = room;
    }
    struct merge_part *p = &m->part[m->parts++];
    *p = (struct merge_part){.spot = {.fd = -1}, .above = above};
    merge_top(m)->count++;
    return p;
}

static int merge_open(struct merge *m, struct bough_spot *s, int dirfd, const char *name)
{
    if (bough_spot_open(s, dirfd, name, true))
        return -1;
    m->open++;
    return 0;
}

static void merge_close(struct merge *m, struct bough_spot *s)
{
    if (s->fd >= 0 && !s->borrowed)
        m->open--;
    bough_spot_close(s);
}

static int merge_park(struct merge *m, struct bough_spot *s)
{
    if (m->open <= MERGE_FDS || s->fd < 0 || s->borrowed)
        return 0;
    if (bough_spot_park(s))
        return -1;
    m->open--;
    return 0;
}

static int merge_return(struct merge *m, struct bough_spot *s, const struct bough_spot *child)
{
    if (s->fd >= 0)
        return 0;
    if (bough_spot_return(s, child))
        return -1;
    m->open++;
    return 0;
}

/* Opens again what the level above had parked for the topmost one. */
static int merge_ascend(struct merge *m)
{
    struct merge_level *l = merge_top(m), *up = l - 1;
    int rc = 0;
    if (m->depth == 1)
        return 0;
    for (size_t i = 0; i < l->count; i++) {
        struct merge_part *p = &m->part[l->first + i];
        if (p->spot.fd >= 0 && merge_return(m, &m->part[p->above].spot, &p->spot))
            rc = -1;
    }
    if (l->out.fd >= 0 && merge_return(m, &up->out, &l->out))
        rc = -1;
    return rc;
}

static void merge_pop(struct merge *m)
{
    struct merge_level *l = merge_top(m);
    for (size_t i = 0; i < l->count; i++)
        merge_close(m, &m->part[l->first + i].spot);
    merge_close(m, &l->out);
    bough_scan_drop(&l->scan);
    m->parts = l->first;
    m->depth--;
}

/* ---- one directory ---- */

/* 1 when the directory is opaque, 0, or -1 when it says things that a merge would lose. */
static int merge_is_opaque(const struct merge *m, int fd, const char *name, struct bough_err *err)
{
    char small[1024], value[2], key[80];
    BOUGH_CLEANUP_FREE char *big = NULL;
    char *list = small;
    ssize_t n = flistxattr(fd, list, sizeof small);
    if (n < 0 && errno == ERANGE) {
        if (!(list = big = malloc(XATTR_LIST_MAX)))
            return bough_err_sys(err, ENOMEM, "list xattrs");
        n = flistxattr(fd, list, XATTR_LIST_MAX);
    }
    if (n < 0)
        return errno == EOPNOTSUPP ? 0 : bough_err_sys(err, errno, "list xattrs");
    bool opaque = false;
    snprintf(key, sizeof key, "%sredirect", m->prefix);
    for (const char *k = list; k < list + n; k += strlen(k) + 1) {
        if (!strcmp(k, key))
            return bough_err_set(err, BOUGH_ERR_unsupported,
                                 "merge %s: the layer was made with redirect_dir",
                                 BOUGH_QUOTE(name));
        if (strcmp(k, m->opaque) != 0)
            continue;
        ssize_t got = fgetxattr(fd, k, value, sizeof value);
        if (got == 1 && value[0] == 'x')
            return bough_err_set(err, BOUGH_ERR_unsupported, "merge %s: whiteouts made of xattrs",
                                 BOUGH_QUOTE(name));
        opaque = got == 1 && value[0] == 'y';
    }
    return opaque;
}

/* Collects the directories that overlayfs would merge as `name`, from the layer being read down. */
static int merge_collect(struct merge *m, const char *name, struct bough_err *err)
{
    struct merge_level *l = merge_top(m), *up = l - 1;
    for (size_t i = up->reading; i < up->count; i++) {
        struct bough_spot spot;
        size_t above = up->first + i;
        if (merge_open(m, &spot, m->part[above].spot.fd, name)) {
            if (i > up->reading && errno == ENOENT)
                continue;
            if (i > up->reading && errno == ENOTDIR) {
                l->opaque = true;
                return 0;
            }
            return bough_err_sys(err, errno, "open directory %s", BOUGH_QUOTE(name));
        }
        struct merge_part *p = merge_push_part(m, above);
        if (!p) {
            merge_close(m, &spot);
            return bough_err_sys(err, ENOMEM, "merge %s", BOUGH_QUOTE(name));
        }
        p->spot = spot;
        int opaque = merge_is_opaque(m, spot.fd, name, err);
        if (opaque < 0)
            return -1;
        if (merge_park(m, &m->part[above].spot))
            return bough_err_sys(err, errno, "close directory");
        if (opaque) {
            l->opaque = true;
            return 0;
        }
    }
    return 0;
}

/* `name` is in the scan buffer of the level above until the very end. */
static int merge_enter(struct merge *m, const char *name, struct bough_err *err)
{
    if (mkdirat(merge_top(m)->out.fd, name, 0700)) {
        if (errno == EEXIST)
            return 0;
        return bough_err_sys(err, errno, "create directory %s", BOUGH_QUOTE(name));
    }
    if (!merge_push_level(m))
        return bough_err_sys(err, ENOMEM, "merge %s", BOUGH_QUOTE(name));
    struct merge_level *l = merge_top(m), *up = l - 1;
    if (merge_open(m, &l->out, up->out.fd, name))
        return bough_err_sys(err, errno, "open directory %s", BOUGH_QUOTE(name));
    if (merge_collect(m, name, err))
        return -1;
    l->sealed = up->sealed || l->opaque;
    if (m->size)
        m->size->files++;
    if (merge_park(m, &up->out))
        return bough_err_sys(err, errno, "close directory");
    if (m->part[up->first + up->reading].spot.fd < 0)
        bough_scan_drop(&up->scan);
    return 0;
}

static int merge_count(struct merge *m, const struct stat *st)
{
    m->size->files++;
    if (st->st_nlink > 2) { /* more than its layer's name and ours */
        struct bough_inode *seen = bough_inodes_meet(&m->links, st->st_dev, st->st_ino);
        if (!seen)
            return -1;
        if (seen->seen > 1)
            return 0;
    }
    m->size->bytes += (int64_t)st->st_blocks * 512;
    return 0;
}

static int merge_link(struct merge *m, struct merge_level *l, int from, const char *name,
                      bool maybe_whiteout, struct bough_err *err)
{
    struct stat st;
    bool known = false;
    if (linkat(from, name, l->out.fd, name, 0)) {
        if (errno == EEXIST)
            return 0;
        if (errno != EMLINK)
            return bough_err_sys(err, errno, "link %s", BOUGH_QUOTE(name));
        if (!m->copy.buf && !(m->copy.buf = malloc(BOUGH_NODE_BUF)))
            return bough_err_sys(err, ENOMEM, "copy %s", BOUGH_QUOTE(name));
        int rc = bough_node_copy(&m->copy, from, name, l->out.fd, &st, err);
        if (rc <= 0)
            return rc < 0 ? -1 : bough_err_sys(err, EMLINK, "link %s", BOUGH_QUOTE(name));
        known = true;
    }
    if (!known && (m->size || maybe_whiteout) && fstatat(l->out.fd, name, &st, AT_SYMLINK_NOFOLLOW))
        return bough_err_sys(err, errno, "stat %s", BOUGH_QUOTE(name));
    if (maybe_whiteout && S_ISCHR(st.st_mode) && st.st_rdev == 0)
        l->whiteouts = true;
    if (m->size && merge_count(m, &st))
        return bough_err_sys(err, ENOMEM, "merge %s", BOUGH_QUOTE(name));
    return 0;
}

/* Whiteouts that hid something within the merge only. */
static int merge_drop_whiteouts(struct merge *m, struct merge_level *l, struct bough_err *err)
{
    struct bough_scan scan = {0};
    struct dirent64 *d;
    struct stat st;
    int rc;
    lseek(l->out.fd, 0, SEEK_SET);
    while ((rc = bough_scan_next(&scan, l->out.fd, &d)) > 0) {
        if ((d->d_type != DT_CHR && d->d_type != DT_UNKNOWN) ||
            fstatat(l->out.fd, d->d_name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISCHR(st.st_mode) ||
            st.st_rdev != 0)
            continue;
        if ((rc = unlinkat(l->out.fd, d->d_name, 0)))
            break;
        if (m->size)
            m->size->files--;
    }
    if (rc)
        bough_err_sys(err, errno, "drop whiteouts");
    bough_scan_drop(&scan);
    return rc;
}

static int merge_finish(struct merge *m, struct bough_err *err)
{
    struct merge_level *l = merge_top(m);
    struct stat st;
    char key[80];
    const struct bough_spot *source = &m->part[l->first].spot;
    int top = source->fd, out = l->out.fd;
    if (l->whiteouts && l->sealed && merge_drop_whiteouts(m, l, err))
        return -1;
    if (fstat(top, &st))
        return bough_err_sys(err, errno, "stat directory");
    if (source->lent)
        st.st_mode = S_IFDIR | source->mode;
    if (l->opaque && !(m->depth > 1 && l[-1].sealed) && fsetxattr(out, m->opaque, "y", 1, 0))
        return bough_err_sys(err, errno, "set xattr %s", m->opaque);
    if (l->whiteouts && !l->sealed) {
        /* Where nothing lies under this directory overlayfs lists it unfiltered, unless
         * it carries this mark (empty: "copied up, origin unknown"). */
        snprintf(key, sizeof key, "%sorigin", m->prefix);
        if (fsetxattr(out, key, "", 0, 0))
            return bough_err_sys(err, errno, "set xattr %s", key);
    }
    if (bough_node_like(top, &st, out, m->prefix, false, err))
        return -1;
    if (m->size && m->depth > 1) {
        if (fstat(out, &st))
            return bough_err_sys(err, errno, "stat directory");
        m->size->bytes += (int64_t)st.st_blocks * 512;
    }
    return 0;
}

/* ---- the walk ---- */

/* The next layer of this directory. The first part stays for its owner, mode and times. */
static void merge_next_part(struct merge *m, struct merge_level *l)
{
    struct merge_part *p = &m->part[l->first + l->reading];
    bool above_open = m->depth == 1 || m->part[p->above].spot.fd >= 0;
    if (l->reading > 0 && above_open)
        merge_close(m, &p->spot);
    l->reading++;
    bough_scan_drop(&l->scan);
    l->scan = (struct bough_scan){0};
}

static int merge_step(struct merge *m, struct bough_err *err)
{
    struct merge_level *l = merge_top(m);
    if (l->reading == l->count) {
        if (merge_ascend(m)) /* first: the result's mode may not let us search it */
            return bough_err_sys(err, errno, "return from directory");
        if (merge_finish(m, err))
            return -1;
        merge_pop(m);
        return 0;
    }
    struct bough_spot *spot = &m->part[l->first + l->reading].spot;
    if (spot->borrowed) { /* a root: the caller's descriptor keeps its offset */
        struct bough_spot own;
        if (merge_open(m, &own, spot->fd, "."))
            return bough_err_sys(err, errno, "open layer");
        *spot = own;
    }
    struct dirent64 *d;
    int rc = bough_scan_next(&l->scan, spot->fd, &d);
    if (rc < 0)
        return bough_err_sys(err, errno, "read directory");
    if (rc == 0) {
        merge_next_part(m, l);
        return 0;
    }
    unsigned char type = d->d_type;
    if (type == DT_UNKNOWN) {
        struct stat st;
        if (fstatat(spot->fd, d->d_name, &st, AT_SYMLINK_NOFOLLOW))
            return bough_err_sys(err, errno, "stat %s", BOUGH_QUOTE(d->d_name));
        type = IFTODT(st.st_mode);
    }
    if (type == DT_DIR)
        return merge_enter(m, d->d_name, err);
    return merge_link(m, l, spot->fd, d->d_name, type == DT_CHR, err);
}

static int merge_start(struct merge *m, const int *layers, int count, int out,
                       struct bough_err *err)
{
    size_t n = strlen(m->opaque);
    if (count < 1 || n < 7 || n >= sizeof m->prefix || strcmp(m->opaque + n - 6, "opaque") != 0)
        return bough_err_set(err, BOUGH_ERR_invalid, "merge: bad arguments");
    memcpy(m->prefix, m->opaque, n - 6);
    if (bough_node_blank(out, err))
        return -1;
    struct merge_level *l = merge_push_level(m);
    if (!l)
        return bough_err_sys(err, ENOMEM, "merge");
    l->out = (struct bough_spot){.fd = out, .borrowed = true};
    for (int i = 0; i < count; i++) {
        struct merge_part *p = merge_push_part(m, 0);
        if (!p)
            return bough_err_sys(err, ENOMEM, "merge");
        p->spot = (struct bough_spot){.fd = layers[i], .borrowed = true};
    }
    return 0;
}

int bough_tree_merge(const int *layers, int count, int out, const char *opaque,
                     struct bough_tree_size *size, struct bough_err *err)
{
    struct merge m = {.opaque = opaque, .size = size, .copy = {.devices = true}};
    if (size)
        *size = (struct bough_tree_size){0};
    int rc = merge_start(&m, layers, count, out, err);
    while (!rc && m.depth)
        rc = merge_step(&m, err);
    while (m.depth) { /* after a failure: what was lent is given back */
        merge_ascend(&m);
        merge_pop(&m);
    }
    free(m.level);
    free(m.part);
    free(m.copy.buf);
    bough_inodes_free(&m.links);
    return rc;
}
