#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../sys.h"
#include "args.h"
#include "glob.h"
#include "look.h"
#include "out.h"
#include "search.h"
#include "sift.h"
#include "tree.h"

enum { CONTEXT_MAX = 1000000, LINE_MAX_BYTES = 1 << 20, LINE_BYTES = 65536 };

struct grep_start {
    struct bough_start found;
    char *path; /* absolute in the image: "" for "/" */
};

struct grep {
    char **patterns;
    size_t pattern_count;
    struct grep_start *starts;
    size_t start_count;
    bool fixed, ignore_case, progress;
    struct bough_globs globs;
    struct bough_search search;
    struct bough_out out;
    struct bough_sift sift;
    char *path; /* of the file that is being searched */
    size_t path_len, path_room;
};

/* For the signal handler. */
static struct {
    int report;
    const struct grep *grep;
} slow;

/* ---- options ---- */

/* "/a/b" for "a//b/" and the like; NULL without memory. */
static char *path_clean(const char *path)
{
    char *clean = malloc(strlen(path) + 2), *to = clean;
    for (; clean && *path; path++) {
        if (*path == '/')
            continue;
        *to++ = '/';
        while (*path && *path != '/')
            *to++ = *path++;
        path--;
    }
    if (clean)
        *to = '\0';
    return clean;
}

static int start_add(struct grep *g, int root, const char *path, struct bough_err *err)
{
    struct grep_start *more = realloc(g->starts, (g->start_count + 1) * sizeof *more);
    if (!more)
        return bough_err_sys(err, ENOMEM, "grep");
    g->starts = more;
    struct grep_start *start = &more[g->start_count];
    if (bough_start_open(&start->found, root, path, err))
        return -1;
    g->start_count++;
    start->path = path_clean(path);
    return start->path ? 0 : bough_err_sys(err, ENOMEM, "grep");
}

static int pattern_add(struct grep *g, char *pattern, struct bough_err *err)
{
    char **more = realloc(g->patterns, (g->pattern_count + 1) * sizeof *more);
    if (!more)
        return bough_err_sys(err, ENOMEM, "grep");
    g->patterns = more;
    g->patterns[g->pattern_count++] = pattern;
    return 0;
}

static int option_take(struct grep *g, int root, char ***args, struct bough_err *err)
{
    static const struct {
        const char *name;
        size_t field;
        int64_t least, most;
    } numbers[] = {
        {"--before", offsetof(struct bough_sift, before), 0, CONTEXT_MAX},
        {"--after", offsetof(struct bough_sift, after), 0, CONTEXT_MAX},
        {"--max-count", offsetof(struct bough_sift, max_count), 1, INT64_MAX},
        {"--max-total", offsetof(struct bough_sift, total_left), 1, INT64_MAX},
        {"--max-line", offsetof(struct bough_sift, max_line), 1, LINE_MAX_BYTES},
    };
    const char *option = **args, *value;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(option, numbers[i].name))
            return bough_args_number(args, numbers[i].least, numbers[i].most,
                                     (int64_t *)(void *)((char *)&g->sift + numbers[i].field), err);
    if (!strcmp(option, "--fixed"))
        g->fixed = true;
    else if (!strcmp(option, "--ignore-case"))
        g->ignore_case = true;
    else if (!strcmp(option, "--progress"))
        g->progress = true;
    else if (!strcmp(option, "-e"))
        return bough_args_value(args, err) ? pattern_add(g, **args, err) : -1;
    else if (!strcmp(option, "--path"))
        return (value = bough_args_value(args, err)) ? start_add(g, root, value, err) : -1;
    else if (!strcmp(option, "--glob"))
        return (value = bough_args_value(args, err)) ? bough_globs_add(&g->globs, value, err) : -1;
    else
        return bough_args_unknown("grep", option, err);
    return 0;
}

/* ---- the search ---- */

static int path_set(struct grep *g, const char *prefix, const char *rest, size_t rest_len,
                    struct bough_err *err)
{
    size_t prefix_len = strlen(prefix), len = prefix_len + (rest_len > 0) + rest_len;
    if (len >= g->path_room) {
        char *more = realloc(g->path, len * 2 + 256);
        if (!more)
            return bough_err_sys(err, ENOMEM, "grep");
        g->path = more;
        g->path_room = len * 2 + 256;
    }
    memcpy(g->path, prefix, prefix_len);
    if (rest_len) {
        g->path[prefix_len] = '/';
        memcpy(g->path + prefix_len + 1, rest, rest_len);
    }
    g->path[len] = '\0';
    g->path_len = len;
    return 0;
}

static int file_search(struct grep *g, int fd, struct bough_err *err)
{
    if (bough_sift_file(&g->sift, fd, g->path, g->path_len, err) == 0)
        return bough_out_tick(&g->out, g->sift.bytes, err);
    return bough_err_wrap(err, "%s", BOUGH_TREE_QUOTE(g->path));
}

static int entry_search(struct grep *g, const char *prefix, const struct bough_tree_entry *e,
                        struct bough_err *err)
{
    if (path_set(g, prefix, e->path, e->path_len, err))
        return -1;
    BOUGH_CLEANUP_FD int fd = bough_tree_open(e);
    if (fd >= 0)
        return file_search(g, fd, err);
    /* gone, or no regular file any more */
    if (errno == ENOENT || errno == ELOOP || errno == ENXIO)
        return 0;
    return bough_err_sys(err, errno, "open %s", BOUGH_TREE_QUOTE(g->path));
}

static int tree_search(struct grep *g, const struct grep_start *start, struct bough_err *err)
{
    struct bough_tree tree;
    struct bough_tree_entry e;
    int r = bough_tree_start(&tree, start->found.fd, err);
    while (!r && g->sift.total_left && (r = bough_tree_next(&tree, &e, err)) > 0) {
        r = 0;
        if (e.type == DT_DIR) {
            if (!bough_globs_enter(&g->globs, e.path, e.name))
                bough_tree_skip(&tree);
        } else if (e.type == DT_REG && bough_globs_want(&g->globs, e.path, e.name, false)) {
            r = entry_search(g, start->path, &e, err);
        }
    }
    bough_tree_free(&tree);
    return r;
}

static int starts_search(struct grep *g, struct bough_err *err)
{
    for (size_t i = 0; i < g->start_count && g->sift.total_left; i++) {
        const struct grep_start *start = &g->starts[i];
        if (S_ISDIR(start->found.st.st_mode)) {
            if (tree_search(g, start, err))
                return -1;
        } else if (S_ISREG(start->found.st.st_mode)) {
            if (path_set(g, start->path, "", 0, err) || file_search(g, start->found.fd, err))
                return -1;
        }
    }
    return bough_out_flush(&g->out, err);
}

/* In a signal handler, but never inside of anything that holds a lock: see bough_search_watch. */
static void pattern_slow(void)
{
    struct bough_err err;
    const struct grep *g = slow.grep;
    bough_err_set(&err, BOUGH_ERR_resource, "%s: pattern %.150s: takes too long: make it simpler",
                  g->path ? BOUGH_TREE_QUOTE(g->path) : "", g->patterns[0]);
    bough_out_failure(slow.report, &err);
    _exit(1);
}

static int grep_run(struct grep *g, struct bough_look *look, struct bough_err *err)
{
    for (char **args = look->args; *args; args++)
        if (option_take(g, look->root[0], &args, err))
            return -1;
    if (!g->pattern_count)
        return bough_err_set(err, BOUGH_ERR_invalid, "grep: give a pattern (-e)");
    if (!g->start_count && start_add(g, look->root[0], "/", err))
        return -1;
    slow.report = look->report;
    slow.grep = g;
    if (bough_search_compile(&g->search, g->patterns, g->pattern_count, g->fixed, g->ignore_case,
                             err) ||
        bough_out_start(&g->out, look->out, g->progress ? look->report : -1, err) ||
        bough_sift_start(&g->sift, err) || bough_search_watch(pattern_slow, err) ||
        bough_look_seal(err))
        return -1;
    return starts_search(g, err);
}

int bough_look_grep(struct bough_look *look, struct bough_err *err)
{
    struct grep g = {.out = {.fd = -1}};
    g.sift = (struct bough_sift){
        .search = &g.search,
        .out = &g.out,
        .max_count = INT64_MAX,
        .total_left = INT64_MAX,
        .max_line = LINE_BYTES,
    };
    int r = grep_run(&g, look, err);
    look->numbers[0] = g.sift.matched;
    look->numbers[1] = g.sift.cut;
    look->numbers[2] = g.sift.files;
    for (size_t i = 0; i < g.start_count; i++) {
        bough_fd_close(&g.starts[i].found.fd);
        free(g.starts[i].path);
    }
    free(g.starts);
    free(g.patterns);
    free(g.path);
    bough_globs_free(&g.globs);
    bough_search_free(&g.search);
    bough_out_free(&g.out);
    bough_sift_free(&g.sift);
    return r;
}
