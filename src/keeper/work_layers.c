/* work_layers.c - requests that make a layer: of layers, a directory, what a sandbox has changed, an archive, files. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../order.h"
#include "../plan.h"
#include "../sys.h"
#include "helper.h"
#include "node.h"
#include "put.h"
#include "root.h"
#include "work_priv.h"

#define MERGE_MAX 64

int bough_work_merge(struct bough_work *w, struct bough_err *err)
{
    int64_t id = bough_get_i64(&w->msg->body), *layers = NULL;
    int64_t count = bough_stack_get(&w->msg->body, &layers);
    if (count < 2 || count > MERGE_MAX)
        return bough_err_set(err, BOUGH_ERR_protocol, "merge: malformed");
    int fds[MERGE_MAX];
    struct bough_tree_size size = {0};
    for (int64_t i = 0; i < count; i++)
        if ((fds[i] = bough_work_open_layer(w, layers[i], err)) < 0)
            return -1;
    BOUGH_CLEANUP_FD int out = bough_work_make_layer(w, id, err);
    if (out < 0)
        return -1;
    if (bough_tree_merge(fds, (int)count, out, bough_work_opaque(w->site), &size, err) < 0) {
        bough_work_drop_layer(w, id);
        return -1;
    }
    bough_work_put_size(w, &size, 0);
    return 0;
}

int bough_work_copy(struct bough_work *w, struct bough_err *err)
{
    int64_t id = bough_get_i64(&w->msg->body);
    int64_t max_bytes = bough_get_i64(&w->msg->body), max_files = bough_get_i64(&w->msg->body);
    if (w->msg->body.failed || w->msg->fd_count < 1)
        return bough_err_set(err, BOUGH_ERR_protocol, "copy: malformed");
    BOUGH_CLEANUP_FD int out = bough_work_make_layer(w, id, err);
    if (out < 0)
        return -1;
    struct bough_tree_copy how = {.squash = !w->site->root,
                                  .one_fs = true,
                                  .max_bytes = max_bytes,
                                  .max_files = max_files,
                                  .progress = bough_work_copied,
                                  .arg = w};
    struct bough_tree_size size = {0};
    if (bough_tree_copy(w->msg->fds[0], out, &how, &size, err) < 0) {
        bough_work_drop_layer(w, id);
        return -1;
    }
    bough_work_put_size(w, &size, how.skipped);
    return 0;
}

/* The upper directory of a sandbox that stands still, as it is: with what overlayfs has put there. */
int bough_work_commit(struct bough_work *w, struct bough_err *err)
{
    bough_get_i64(&w->msg->body); /* the sandbox */
    int64_t id = bough_get_i64(&w->msg->body);
    if (w->msg->body.failed || id <= 0 || w->msg->fd_count != 1)
        return bough_err_set(err, BOUGH_ERR_protocol, "commit: malformed");
    BOUGH_CLEANUP_FD int out = bough_work_make_layer(w, id, err);
    if (out < 0)
        return -1;
    struct bough_tree_copy how = {
        .devices = true, .still = true, .progress = bough_work_copied, .arg = w};
    struct bough_tree_size size = {0};
    if (bough_tree_copy(w->msg->fds[0], out, &how, &size, err) < 0) {
        bough_work_drop_layer(w, id);
        return bough_err_wrap(err, "commit");
    }
    bough_put_i64(&w->answer, size.bytes);
    bough_put_i64(&w->answer, size.files);
    bough_put_i64(&w->answer, 1); /* changed */
    return 0;
}

static int measure_layer(struct bough_work *w, int64_t id, struct bough_tree_size *size,
                         struct bough_err *err)
{
    char name[48];
    snprintf(name, sizeof name, "%lld/fs", (long long)id);
    return bough_tree_measure(w->site->owner_fd, name, size, err);
}

/* ---- archives ---- */

struct unpack {
    struct bough_work *work;
    struct bough_unpack_order order;
    struct bough_helper helper;
    int64_t archive_size; /* 0: not known */
    struct bough_tree_size size;
    int64_t skipped;
    char digest[80];
};

static void unpack_progress(void *arg, int64_t done)
{
    struct unpack *u = arg;
    bough_work_tell(u->work, done, u->archive_size, true);
}

static int unpack_into(struct unpack *u, int out, bool layered, struct bough_err *err)
{
    char bytes[24], files[24];
    const char *argv[24] = {"bough-unpack", "--out-fd",    "10", "--in-fd",
                            "11",           "--report-fd", "12", "--progress"};
    int n = 8;
    snprintf(bytes, sizeof bytes, "%lld", (long long)u->order.max_bytes);
    snprintf(files, sizeof files, "%lld", (long long)u->order.max_files);
    if (u->order.max_bytes > 0) {
        argv[n++] = "--max-bytes";
        argv[n++] = bytes;
    }
    if (u->order.max_files > 0) {
        argv[n++] = "--max-files";
        argv[n++] = files;
    }
    if (!u->work->site->root)
        argv[n++] = "--squash";
    if (layered)
        argv[n++] = "--layer";
    if (u->order.digest)
        argv[n++] = "--digest";
    if (u->order.plain)
        argv[n++] = "--plain";
    u->helper = (struct bough_helper){.path = u->work->site->unpacker,
                                      .task = "unpacking",
                                      .argv = argv,
                                      .report_as = 12,
                                      .progress = unpack_progress,
                                      .arg = u};
    bough_helper_give(&u->helper, out, 10);
    bough_helper_give(&u->helper, u->work->msg->fds[0], 11);
    struct bough_helper_process process;
    if (bough_helper_start(&u->helper, &process, err) < 0 ||
        bough_helper_wait(&u->helper, &process, err) < 0)
        return -1;
    long long got_bytes, got_files, skipped;
    if (sscanf(u->helper.result, "%lld %lld %lld %79s", &got_bytes, &got_files, &skipped,
               u->digest) < 3)
        return bough_err_set(err, BOUGH_ERR_io, "unpacking: a report that means nothing");
    u->size = (struct bough_tree_size){.bytes = got_bytes, .files = got_files};
    u->skipped = skipped;
    return 0;
}

/* The upper directory is the image's root directory: it has to look like the one below. */
static int upper_like(struct unpack *u, int upper, struct bough_err *err)
{
    struct stat st;
    BOUGH_CLEANUP_FD int below = bough_work_open_layer(u->work, u->order.stack[0], err);
    if (below < 0)
        return -1;
    if (fstat(below, &st) < 0)
        return bough_err_sys(err, errno, "layer %lld", (long long)u->order.stack[0]);
    return bough_node_like(below, &st, upper, bough_work_own(u->work->site), false, err);
}

/* A writable overlay of the new layer over the stack, attached nowhere. */
static int unpack_mount(struct unpack *u, struct bough_err *err)
{
    const struct bough_site *site = u->work->site;
    char upper[300], work[300];
    snprintf(work, sizeof work, "w%lld", (long long)u->order.layer);
    if (mkdirat(site->owner_fd, work, 0700) < 0)
        return bough_err_sys(err, errno, "layer %s", work);
    /* Older kernels mount on a directory in passing, which others do at the same time. */
    if (!site->lowerdir_plus && unshare(CLONE_NEWNS) < 0)
        return bough_err_sys(err, errno, "unpacking: mount namespace");
    snprintf(upper, sizeof upper, "../tmp/%s/%lld/fs", site->owner, (long long)u->order.layer);
    snprintf(work, sizeof work, "../tmp/%s/w%lld", site->owner, (long long)u->order.layer);
    struct bough_overlay o = {.site = site,
                              .stack = u->order.stack,
                              .stack_count = u->order.stack_count,
                              .upper = upper,
                              .work = work};
    return bough_overlay_mount(&o, err);
}

/* Whiteouts, hard links to files below and parents that the archive does not name come out as they do for a
 * command that does these things in a sandbox. */
static int unpack_over(struct unpack *u, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int tree = unpack_mount(u, err);
    if (tree < 0)
        return -1;
    BOUGH_CLEANUP_FD int out = openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (out < 0)
        return bough_err_sys(err, errno, "unpacking: overlay");
    return unpack_into(u, out, u->order.whiteouts, err);
}

static int unpack_layer(struct unpack *u, struct bough_err *err)
{
    int64_t id = u->order.layer;
    BOUGH_CLEANUP_FD int upper = bough_work_make_layer(u->work, id, err);
    if (upper < 0)
        return -1;
    if (u->order.stack_count == 0)
        return unpack_into(u, upper, u->order.whiteouts, err);
    if (upper_like(u, upper, err) < 0 || unpack_over(u, err) < 0)
        return -1;
    char name[32];
    snprintf(name, sizeof name, "w%lld", (long long)id);
    if (bough_tree_remove(u->work->site->owner_fd, name, err) < 0)
        return -1;
    return measure_layer(u->work, id, &u->size, err);
}

int bough_work_unpack(struct bough_work *w, struct bough_err *err)
{
    struct unpack u = {.work = w};
    struct stat st;
    if (bough_unpack_order_get(&w->msg->body, &u.order, err) < 0)
        return -1;
    if (w->msg->fd_count < (u.order.layer ? 1 : 2) || fstat(w->msg->fds[0], &st) < 0)
        return bough_err_set(err, BOUGH_ERR_protocol, "unpack: malformed");
    u.archive_size = S_ISREG(st.st_mode) ? st.st_size : 0;
    if (!u.order.layer) {
        if (unpack_into(&u, w->msg->fds[1], u.order.whiteouts, err) < 0)
            return -1;
    } else if (unpack_layer(&u, err) < 0) {
        bough_work_drop_layer(w, u.order.layer);
        return -1;
    }
    bough_work_put_size(w, &u.size, u.skipped);
    bough_put_str(&w->answer, u.digest);
    return 0;
}

/* ---- files ---- */

static void put_progress(void *arg, int64_t done, int64_t total)
{
    bough_work_tell(arg, done, total, false);
}

static struct bough_put_item *get_items(struct bough_rbuf *body, int64_t count,
                                        struct bough_err *err)
{
    /* An item takes nine numbers at least, so this asks for no more than the message is worth. */
    if (body->failed || count < 0 || count > (body->end - body->at) / 64) {
        bough_err_set(err, BOUGH_ERR_protocol, "put: malformed");
        return NULL;
    }
    struct bough_put_item *items = calloc((size_t)count + 1, sizeof *items);
    if (!items) {
        bough_err_sys(err, ENOMEM, "put");
        return NULL;
    }
    for (int64_t i = 0; i < count; i++)
        if (bough_put_item_get(body, &items[i], err) < 0) {
            free(items);
            return NULL;
        }
    return items;
}

int bough_work_put(struct bough_work *w, struct bough_err *err)
{
    struct bough_rbuf *body = &w->msg->body;
    int64_t id = bough_get_i64(body), *stack = NULL;
    int64_t stack_count = bough_stack_get(body, &stack), count = bough_get_i64(body);
    free(stack); /* its view is open already */
    if (stack_count < 0 || id <= 0)
        return bough_err_set(err, BOUGH_ERR_protocol, "put: malformed");
    BOUGH_CLEANUP_FREE struct bough_put_item *items = get_items(body, count, err);
    if (!items)
        return -1;
    BOUGH_CLEANUP_FD int view = openat(w->mount[0], ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    BOUGH_CLEANUP_FD int blobs =
        openat(w->site->home_fd, "blobs", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (view < 0)
        return bough_err_sys(err, errno, "image");
    BOUGH_CLEANUP_FD int out = bough_work_make_layer(w, id, err);
    if (out < 0)
        return -1;
    struct bough_put put = {.view = view,
                            .out = out,
                            .blobs = blobs,
                            .staging = w->site->owner_fd,
                            .items = items,
                            .count = (size_t)count,
                            .skip = bough_work_own(w->site),
                            .uid_count = w->site->uid_count,
                            .progress = put_progress,
                            .arg = w};
    struct bough_tree_size size = {0};
    if (bough_put_tree(&put, err) < 0 || measure_layer(w, id, &size, err) < 0) {
        bough_work_drop_layer(w, id);
        return -1;
    }
    bough_put_i64(&w->answer, size.bytes);
    bough_put_i64(&w->answer, size.files);
    return 0;
}
