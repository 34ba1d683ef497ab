/* work_views.c - requests that look at trees: list a directory, copy one out, start bough-look. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../order.h"
#include "../plan.h"
#include "../sys.h"
#include "helper.h"
#include "list.h"
#include "walk.h"
#include "work_priv.h"

#define HINTS_MAX 256 /* what bough-look takes */

/* Stack and path; the stack's view is open already. */
static const char *get_path(struct bough_work *w)
{
    int64_t *stack = NULL;
    int64_t count = bough_stack_get(&w->msg->body, &stack);
    free(stack);
    return count < 0 ? NULL : bough_get_str(&w->msg->body);
}

int bough_work_list(struct bough_work *w, struct bough_err *err)
{
    const char *path = get_path(w);
    if (!path)
        return bough_err_set(err, BOUGH_ERR_protocol, "list: malformed");
    BOUGH_CLEANUP_FD int dir = bough_view_open(w->mount[0], path, true, err);
    if (dir < 0)
        return -1;
    w->answer_fd = memfd_create("bough-list", MFD_CLOEXEC);
    if (w->answer_fd < 0)
        return bough_err_sys(err, errno, "list");
    return bough_list_dir(dir, w->answer_fd, err);
}

/* ---- a tree out of an image ---- */

struct extract {
    struct bough_work *work;
    struct bough_inodes pool; /* of all pooled files, once one might be */
    bool read;
};

static void pool_read(struct extract *e)
{
    struct bough_scan dirs = {0}, names = {0};
    struct dirent64 *dir, *name;
    BOUGH_CLEANUP_FD int blobs =
        openat(e->work->site->home_fd, "blobs", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    e->read = true;
    while (blobs >= 0 && bough_scan_next(&dirs, blobs, &dir) > 0) {
        BOUGH_CLEANUP_FD int fd =
            openat(blobs, dir->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        bough_scan_rewind(&names, fd);
        while (fd >= 0 && bough_scan_next(&names, fd, &name) > 0)
            bough_inodes_meet(&e->pool, 0, name->d_ino);
    }
    bough_scan_drop(&dirs);
    bough_scan_drop(&names);
}

/* Files of one content share an inode of the pool, which nobody who takes them home expects of them: what is written
 * to one must not appear in another. An overlay shows the inode's own number. */
static bool is_pooled(void *arg, const struct stat *st)
{
    struct extract *e = arg;
    if (!e->read)
        pool_read(e);
    return bough_inodes_have(&e->pool, 0, st->st_ino);
}

static void extract_progress(void *arg, int64_t bytes)
{
    struct extract *e = arg;
    bough_work_tell(e->work, bytes, 0, false);
}

int bough_work_extract(struct bough_work *w, struct bough_err *err)
{
    const char *path = get_path(w);
    if (!path || w->msg->fd_count < 1)
        return bough_err_set(err, BOUGH_ERR_protocol, "extract: malformed");
    BOUGH_CLEANUP_FD int from = bough_view_open(w->mount[0], path, true, err);
    if (from < 0)
        return -1;
    struct extract e = {.work = w};
    struct bough_tree_copy how = {
        .plain = true, .apart = is_pooled, .progress = extract_progress, .arg = &e};
    struct bough_tree_size size = {0};
    int rc = bough_tree_copy(from, w->msg->fds[0], &how, &size, err);
    bough_inodes_free(&e.pool);
    if (rc == 0)
        bough_work_put_size(w, &size, how.skipped);
    return rc;
}

/* ---- bough-look ---- */

struct look {
    struct bough_work *work;
    struct bough_look_order order;
    struct bough_helper helper;
    const char **argv;
    int argc;
    char hint[HINTS_MAX][8];
};

static void look_progress(void *arg, int64_t done)
{
    struct look *l = arg;
    bough_work_tell(l->work, done, 0, true);
}

static void look_give(struct look *l, int fd, const char *option, int as, const char *number)
{
    bough_helper_give(&l->helper, fd, as);
    l->argv[l->argc++] = option;
    l->argv[l->argc++] = number;
}

static int look_root(struct look *l, struct bough_err *err)
{
    const struct bough_message *msg = l->work->msg;
    if (l->order.source == BOUGH_LOOK_LAYER)
        return bough_work_open_layer(l->work, l->order.stack[0], err);
    int at = l->order.source == BOUGH_LOOK_VIEW ? l->work->mount[0] : msg->fds[1];
    int fd = openat(at, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? bough_err_sys(err, errno, "root of the tree") : fd;
}

static int look_hints(struct look *l, struct bough_err *err)
{
    for (int64_t i = 0; l->order.hint_count <= HINTS_MAX && i < l->order.hint_count; i++) {
        int fd = bough_work_open_layer(l->work, l->order.hints[i], err);
        if (fd < 0)
            return -1;
        snprintf(l->hint[i], sizeof l->hint[i], "%d", (int)(20 + i));
        look_give(l, fd, "--hint-fd", (int)(20 + i), l->hint[i]);
    }
    return 0;
}

/* The command, our descriptors, then its own options. */
static int look_prepare(struct look *l, struct bough_err *err)
{
    char **args = l->order.args;
    int count = 0;
    bool pack = strcmp(args[0], "pack") == 0, layer = false;
    while (args[count])
        count++;
    l->argv = calloc((size_t)count + 2 * HINTS_MAX + 16, sizeof *l->argv);
    if (!l->argv)
        return bough_err_sys(err, ENOMEM, "look");
    l->argv[l->argc++] = "bough-look";
    l->argv[l->argc++] = args[0];
    int root = look_root(l, err);
    if (root < 0)
        return -1;
    look_give(l, root, "--root-fd", 10, "10");
    if (l->order.other_count >= 0) {
        int other = openat(l->work->mount[1], ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (other < 0)
            return bough_err_sys(err, errno, "root of the other tree");
        look_give(l, other, "--other-fd", 11, "11");
    }
    int blobs = pack && l->order.source != BOUGH_LOOK_GIVEN
                    ? openat(l->work->site->home_fd, "blobs", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
                    : -1;
    if (blobs >= 0)
        look_give(l, blobs, "--pool-fd", 14, "14");
    look_give(l, l->work->msg->fds[0], "--out-fd", 12, "12");
    l->argv[l->argc++] = "--report-fd";
    l->argv[l->argc++] = "13";
    if (look_hints(l, err) < 0)
        return -1;
    for (int i = 1; i < count; i++) {
        layer = layer || strcmp(args[i], "--layer") == 0;
        l->argv[l->argc++] = args[i];
    }
    if (pack && layer) {
        l->argv[l->argc++] = "--opaque";
        l->argv[l->argc++] = bough_work_opaque(l->work->site);
    }
    return 0;
}

int bough_work_look(struct bough_work *w, struct bough_err *err)
{
    struct look *l = calloc(1, sizeof *l);
    if (!l)
        return bough_err_sys(err, ENOMEM, "look");
    l->work = w;
    if (bough_look_order_get(&w->msg->body, &l->order, err) < 0)
        return -1;
    if (w->msg->fd_count < (l->order.source == BOUGH_LOOK_GIVEN ? 2 : 1))
        return bough_err_set(err, BOUGH_ERR_protocol, "look: malformed");
    /* To read everything, and of a raw layer the trusted.* attributes; what its jail needs to be made. */
    uint64_t caps = UINT64_C(1) << CAP_DAC_READ_SEARCH | UINT64_C(1) << CAP_SYS_CHROOT |
                    UINT64_C(1) << CAP_SETPCAP;
    if (l->order.source == BOUGH_LOOK_LAYER)
        caps |= UINT64_C(1) << CAP_SYS_ADMIN;
    l->helper = (struct bough_helper){.path = w->site->looker,
                                      .task = "look",
                                      .report_as = 13,
                                      .caps = caps,
                                      .progress = look_progress,
                                      .arg = l};
    struct bough_helper_process process;
    if (look_prepare(l, err) < 0)
        return -1;
    l->helper.argv = l->argv;
    if (bough_helper_start(&l->helper, &process, err) < 0)
        return -1;
    bough_fd_close(&w->msg->fds[0]); /* its reader has to see the end when the helper ends */
    if (bough_helper_wait(&l->helper, &process, err) < 0)
        return -1;
    long long a, b, c;
    int at = 0;
    if (sscanf(l->helper.result, "%lld %lld %lld%n", &a, &b, &c, &at) < 3)
        return bough_err_set(err, BOUGH_ERR_io, "look: a report that means nothing");
    bough_put_i64(&w->answer, a);
    bough_put_i64(&w->answer, b);
    bough_put_i64(&w->answer, c);
    const char *text = l->helper.result + at;
    bough_put_str(&w->answer, *text == ' ' ? text + 1 : text);
    return 0;
}
