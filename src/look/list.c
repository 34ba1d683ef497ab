#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>

#include "../record.h"
#include "../sys.h"
#include "args.h"
#include "glob.h"
#include "look.h"
#include "out.h"
#include "tree.h"

struct list {
    const char *path;
    struct bough_globs globs;
    unsigned kinds; /* of DT_..., a bit each; 0 for all */
    int64_t max_depth, max_count, count;
    bool progress, cut;
    struct bough_out out;
};

static int kinds_take(struct list *l, const char *letters, struct bough_err *err)
{
    static const char known[] = "fdlpso";
    static const unsigned kinds[] = {1u << DT_REG,  1u << DT_DIR,  1u << DT_LNK,
                                     1u << DT_FIFO, 1u << DT_SOCK, 1u << DT_CHR | 1u << DT_BLK};
    for (const char *c = letters; *c; c++) {
        const char *at = strchr(known, *c);
        if (!at)
            return bough_err_set(err, BOUGH_ERR_invalid, "--kind %.20s: give letters of \"%s\"",
                                 letters, known);
        l->kinds |= kinds[at - known];
    }
    return 0;
}

static int option_take(struct list *l, char ***args, struct bough_err *err)
{
    const char *option = **args, *value;
    if (!strcmp(option, "--max-depth"))
        return bough_args_number(args, 0, INT64_MAX, &l->max_depth, err);
    if (!strcmp(option, "--max-count"))
        return bough_args_number(args, 1, INT64_MAX, &l->max_count, err);
    if (!strcmp(option, "--progress")) {
        l->progress = true;
        return 0;
    }
    bool glob = !strcmp(option, "--glob"), kind = !strcmp(option, "--kind");
    if (!glob && !kind && strcmp(option, "--path"))
        return bough_args_unknown("list", option, err);
    if (!(value = bough_args_value(args, err)))
        return -1;
    if (glob)
        return bough_globs_add(&l->globs, value, err);
    if (kind)
        return kinds_take(l, value, err);
    l->path = value;
    return 0;
}

static int entry_write(struct list *l, const struct stat *st, const char *path, size_t path_len,
                       const char *target, size_t target_len, struct bough_err *err)
{
    struct bough_entry entry = {
        .name = path,
        .name_len = path_len,
        .target = target,
        .target_len = target_len,
        .mode = st->st_mode,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .size = (uint64_t)st->st_size,
        .nlink = st->st_nlink,
        .mtime_sec = st->st_mtim.tv_sec,
        .mtime_nsec = (uint32_t)st->st_mtim.tv_nsec,
    };
    size_t size = bough_listed_size(&entry);
    char *record = bough_out_room(&l->out, size, err);
    if (!record)
        return -1;
    bough_listed_put(record, &entry);
    bough_out_took(&l->out, size);
    l->count++;
    return bough_out_tick(&l->out, l->count, err);
}

static int entry_list(struct list *l, const struct bough_tree_entry *e, struct bough_err *err)
{
    struct stat st;
    char target[PATH_MAX];
    ssize_t n = 0;
    if (fstatat(e->dir, e->name, &st, AT_SYMLINK_NOFOLLOW))
        return errno == ENOENT ? 0
                               : bough_err_sys(err, errno, "stat %s", BOUGH_TREE_QUOTE(e->path));
    if (S_ISLNK(st.st_mode) && (n = readlinkat(e->dir, e->name, target, sizeof target)) < 0) {
        if (errno == ENOENT || errno == EINVAL)
            return 0;
        return bough_err_sys(err, errno, "read link %s", BOUGH_TREE_QUOTE(e->path));
    }
    return entry_write(l, &st, e->path, e->path_len, target, (size_t)n, err);
}

static int tree_list(struct list *l, int fd, struct bough_err *err)
{
    struct bough_tree tree;
    struct bough_tree_entry e;
    int r = bough_tree_start(&tree, fd, err);
    while (!r && (r = bough_tree_next(&tree, &e, err)) > 0) {
        r = 0;
        bool dir = e.type == DT_DIR;
        /* also one that is not listed may be entered, and an excluded one must not be */
        if (dir && (e.depth >= l->max_depth || !bough_globs_enter(&l->globs, e.path, e.name)))
            bough_tree_skip(&tree);
        if ((l->kinds && !(l->kinds >> e.type & 1)) ||
            !bough_globs_want(&l->globs, e.path, e.name, dir)) {
            r = bough_out_tick(&l->out, l->count, err);
            continue;
        }
        if (l->count == l->max_count) {
            l->cut = true;
            break;
        }
        r = entry_list(l, &e, err);
    }
    bough_tree_free(&tree);
    return r;
}

static int list_run(struct list *l, struct bough_look *look, struct bough_err *err)
{
    for (char **args = look->args; *args; args++)
        if (option_take(l, &args, err))
            return -1;
    struct bough_start start;
    if (bough_start_open(&start, look->root[0], l->path, err))
        return -1;
    BOUGH_CLEANUP_FD int fd = start.fd;
    if (bough_out_start(&l->out, look->out, l->progress ? look->report : -1, err) ||
        bough_look_seal(err))
        return -1;
    int r = S_ISDIR(start.st.st_mode) && l->max_depth > 0
                ? tree_list(l, fd, err)
                : entry_write(l, &start.st, "", 0, "", 0, err);
    return r ? r : bough_out_flush(&l->out, err);
}

int bough_look_list(struct bough_look *look, struct bough_err *err)
{
    struct list l = {.path = "/", .max_depth = INT64_MAX, .max_count = INT64_MAX};
    int r = list_run(&l, look, err);
    look->numbers[0] = l.count;
    look->numbers[1] = l.cut;
    look->numbers[2] = 0;
    bough_globs_free(&l.globs);
    bough_out_free(&l.out);
    return r;
}
