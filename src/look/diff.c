/* diff.c - bough-look diff: two walks side by side.
 *
 * Both walks hand out paths in the same order, so one pass tells what is here, there, and in both.
 *
 * Hints. The two stacks without the hint layers are the same layers in the same order. So a directory that
 * is in both trees and in no hint layer shows the same on both sides all the way down, unless a hint
 * layer cuts off a shared layer below it further up: by a whiteout or file in a parent's place, or by an
 * opaque parent. Below such a cut nothing is left out. (Where the hint layers are the tops of both
 * stacks no cut can matter. Marks of the trusted kind are seen only by who may read them.) */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "../record.h"
#include "../sys.h"
#include "args.h"
#include "look.h"
#include "out.h"
#include "same.h"
#include "tree.h"

/* What the hint layers have in the place of one directory of the way down. */
struct diff_level {
    uint8_t live[BOUGH_LOOK_HINTS / 8]; /* bit: has a directory there */
    bool cut;
};

struct diff_side {
    struct bough_tree tree;
    struct bough_tree_entry entry;
    bool more; /* entry is valid */
};

struct diff {
    struct bough_look *look;
    struct bough_out out;
    struct bough_same same;
    struct diff_side ours, other;
    struct diff_level *levels; /* by depth; 0 is the root */
    size_t levels_room;
    char *path; /* of the latest record */
    size_t path_room;
    int64_t done; /* paths, for the progress */
};

/* ---- records ---- */

/* `path` as the tree hands it out; "" for the root. NULL stands for the side that has nothing there. */
static int record_put(struct diff *d, uint32_t op, uint32_t what, const char *path, size_t path_len,
                      const struct stat *ours, const struct stat *other, struct bough_err *err)
{
    static const int number_of[] = {['A'] = 0, ['C'] = 1, ['D'] = 2};
    if (path_len + 2 > d->path_room) {
        char *bigger = realloc(d->path, path_len * 2 + 256);
        if (!bigger)
            return bough_err_sys(err, ENOMEM, "compare");
        d->path = bigger;
        d->path_room = path_len * 2 + 256;
    }
    d->path[0] = '/';
    memcpy(d->path + 1, path, path_len);
    d->path[path_len + 1] = '\0';
    struct bough_change change = {
        .op = op,
        .what = what,
        .mode = ours ? ours->st_mode : 0,
        .old_mode = other ? other->st_mode : 0,
        .size = ours ? (uint64_t)ours->st_size : 0,
        .old_size = other ? (uint64_t)other->st_size : 0,
        .path = d->path,
        .path_len = (uint32_t)path_len + 1,
    };
    size_t size = bough_change_size(&change);
    char *to = bough_out_room(&d->out, size, err);
    if (!to)
        return -1;
    bough_change_put(to, &change);
    bough_out_took(&d->out, size);
    d->look->numbers[number_of[op]]++;
    return 0;
}

/* ---- hints ---- */

static struct diff_level *level_at(struct diff *d, size_t depth)
{
    if (depth >= d->levels_room) {
        size_t room = depth * 2 + 32;
        struct diff_level *bigger = realloc(d->levels, room * sizeof *bigger);
        if (!bigger)
            return NULL;
        d->levels = bigger;
        d->levels_room = room;
    }
    return &d->levels[depth];
}

/* What cannot be known counts as a cut. */
static bool dir_cuts(int layer, const char *path)
{
    static const char *const marks[] = {"trusted.overlay.opaque", "user.overlay.opaque"};
    char value[2];
    BOUGH_CLEANUP_FD int fd =
        openat(layer, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return true;
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++)
        if (fgetxattr(fd, marks[i], value, sizeof value) >= 0 ||
            (errno != ENODATA && errno != EOPNOTSUPP))
            return true;
    return false;
}

/* Of a directory that both have: must it be entered? Lookups go through directories of the
 * layer only: all on the way have been seen to be such. */
static int hints_enter(struct diff *d, const struct bough_tree_entry *e, struct bough_err *err)
{
    if (d->look->hint_count <= 0)
        return 1;
    struct diff_level *level = level_at(d, e->depth);
    if (!level)
        return bough_err_sys(err, ENOMEM, "compare");
    const struct diff_level *above = level - 1;
    bool found = false;
    *level = (struct diff_level){.cut = above->cut || e->path_len >= PATH_MAX};
    for (int i = 0; i < d->look->hint_count && !level->cut; i++) {
        struct stat st;
        if (!(above->live[i / 8] & 1 << i % 8))
            continue;
        int rc = fstatat(d->look->hints[i], e->path, &st, AT_SYMLINK_NOFOLLOW);
        if (rc && (errno == ENOENT || errno == ENOTDIR))
            continue;
        found = true;
        level->cut = rc || !S_ISDIR(st.st_mode) || dir_cuts(d->look->hints[i], e->path);
        level->live[i / 8] |= (uint8_t)(1 << i % 8);
    }
    return found || level->cut;
}

static int hints_start(struct diff *d, struct bough_err *err)
{
    struct diff_level *root = level_at(d, 0);
    if (!root)
        return bough_err_sys(err, ENOMEM, "compare");
    *root = (struct diff_level){0};
    memset(root->live, 0xff, sizeof root->live);
    for (int i = 0; i < d->look->hint_count; i++)
        root->cut = root->cut || dir_cuts(d->look->hints[i], ".");
    return 0;
}

/* ---- the walk ---- */

static int side_next(struct diff_side *s, struct bough_err *err)
{
    int rc = bough_tree_next(&s->tree, &s->entry, err);
    s->more = rc > 0;
    return rc < 0 ? -1 : 0;
}

static int side_stat(const struct diff_side *s, struct stat *st, struct bough_err *err)
{
    if (fstatat(s->entry.dir, s->entry.name, st, AT_SYMLINK_NOFOLLOW))
        return bough_err_sys(err, errno, "stat %s", BOUGH_TREE_QUOTE(s->entry.path));
    return 0;
}

static int side_alone(struct diff *d, struct diff_side *s, uint32_t op, struct bough_err *err)
{
    struct stat st;
    const struct bough_tree_entry *e = &s->entry;
    if (side_stat(s, &st, err))
        return -1;
    if (record_put(d, op, 0, e->path, e->path_len, op == 'A' ? &st : NULL, op == 'D' ? &st : NULL,
                   err))
        return -1;
    return side_next(s, err);
}

static int both_have(struct diff *d, struct bough_err *err)
{
    struct diff_side *x = &d->ours, *y = &d->other;
    const struct bough_tree_entry *e = &x->entry;
    struct stat sx, sy;
    uint32_t what;
    if (side_stat(x, &sx, err) || side_stat(y, &sy, err))
        return -1;
    if (bough_same_entries(&d->same, e, &sx, &y->entry, &sy, &what, err))
        return bough_err_wrap(err, "compare %s", BOUGH_TREE_QUOTE(e->path));
    if (what && record_put(d, 'C', what, e->path, e->path_len, &sx, &sy, err))
        return -1;
    if (S_ISDIR(sx.st_mode) && S_ISDIR(sy.st_mode)) {
        int enter = hints_enter(d, e, err);
        if (enter < 0)
            return -1;
        if (!enter) {
            bough_tree_skip(&x->tree);
            bough_tree_skip(&y->tree);
        }
    }
    return side_next(x, err) || side_next(y, err) ? -1 : 0;
}

static int root_compare(struct diff *d, struct bough_err *err)
{
    const int *root = d->look->root;
    struct stat sx, sy;
    uint32_t what;
    if (bough_same_dirs(&d->same, root[0], root[1], &what, err))
        return bough_err_wrap(err, "compare /");
    if (!what)
        return 0;
    if (fstat(root[0], &sx) || fstat(root[1], &sy))
        return bough_err_sys(err, errno, "stat /");
    return record_put(d, 'C', what, "", 0, &sx, &sy, err);
}

static int diff_tick(void *arg, struct bough_err *err)
{
    struct diff *d = arg;
    return bough_out_tick(&d->out, d->done, err);
}

static int diff_walk(struct diff *d, struct bough_err *err)
{
    if (root_compare(d, err) || side_next(&d->ours, err) || side_next(&d->other, err))
        return -1;
    while (d->ours.more || d->other.more) {
        int order = !d->other.more  ? -1
                    : !d->ours.more ? 1
                                    : bough_tree_compare(d->ours.entry.path, d->other.entry.path);
        int rc = order < 0   ? side_alone(d, &d->ours, 'A', err)
                 : order > 0 ? side_alone(d, &d->other, 'D', err)
                             : both_have(d, err);
        d->done++;
        if (rc || diff_tick(d, err))
            return -1;
    }
    return bough_out_flush(&d->out, err);
}

static int diff_start(struct diff *d, struct bough_err *err)
{
    struct bough_look *look = d->look;
    bool progress = false;
    for (char **arg = look->args; *arg; arg++) {
        if (strcmp(*arg, "--progress") != 0)
            return bough_args_unknown("diff", *arg, err);
        progress = true;
    }
    if (look->root[0] < 0 || look->root[1] < 0)
        return bough_err_set(err, BOUGH_ERR_invalid, "diff: needs --root-fd and --other-fd");
    if (bough_out_start(&d->out, look->out, progress ? look->report : -1, err) ||
        bough_same_start(&d->same, err))
        return -1;
    return bough_look_seal(err);
}

int bough_look_diff(struct bough_look *look, struct bough_err *err)
{
    struct diff d = {.look = look, .same = {.tick = diff_tick}};
    d.same.arg = &d;
    int rc = diff_start(&d, err);
    if (!rc)
        rc = hints_start(&d, err) || bough_tree_start(&d.ours.tree, look->root[0], err) ||
                     bough_tree_start(&d.other.tree, look->root[1], err)
                 ? -1
                 : diff_walk(&d, err);
    bough_tree_free(&d.ours.tree);
    bough_tree_free(&d.other.tree);
    bough_same_free(&d.same);
    bough_out_free(&d.out);
    free(d.levels);
    free(d.path);
    return rc;
}
