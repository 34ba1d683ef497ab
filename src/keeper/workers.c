#define _GNU_SOURCE
#include "workers.h"

#include <signal.h>
#include <stdlib.h>

#include "../sys.h"
#include "work.h"

struct bough_worker {
    struct bough_worker *next;
    pid_t pid; /* 0: a commit that waits for its turn, or for its sandbox to stand still */
    int64_t id;
    int64_t layer;            /* that it is making, 0 */
    bool killed;              /* the host has asked for it */
    bool sweeping;            /* after another one */
    int64_t sandbox;          /* that a commit copies, 0 */
    bool asked;               /* it is to stand still for this one */
    struct bough_message msg; /* of a commit that waits */
};

static void drop(struct bough_workers *workers, struct bough_worker *w)
{
    struct bough_worker **at = &workers->all;
    while (*at != w)
        at = &(*at)->next;
    *at = w->next;
    bough_msg_clear(&w->msg);
    free(w);
}

static void fail(struct bough_workers *workers, struct bough_worker *w, const struct bough_err *err)
{
    bough_keep_fail(workers->keep->host, w->id, err);
    drop(workers, w);
}

static int begin(struct bough_workers *workers, struct bough_worker *w, struct bough_message *msg,
                 struct bough_err *err)
{
    pid_t pid =
        bough_work_start(workers->keep->site, workers->views, workers->keep->host, msg, err);
    w->pid = pid > 0 ? pid : 0;
    return pid < 0 ? -1 : 0;
}

/* ---- commits ---- */

/* One after the other: whoever has heard of his may ask for the next before its worker is gone. */
static int commit_turn(struct bough_workers *workers, struct bough_worker *w, struct bough_err *err)
{
    for (const struct bough_worker *o = workers->all; o; o = o->next)
        if (o->asked && o->sandbox == w->sandbox)
            return 0;
    w->asked = true;
    return bough_keep_freeze(workers->keep, w->sandbox, w->id, err);
}

/* The message goes into the worker, until there is a directory to copy. */
static int commit_begin(struct bough_workers *workers, struct bough_worker *w,
                        struct bough_message *msg, struct bough_err *err)
{
    struct bough_rbuf body = msg->body;
    w->sandbox = bough_get_i64(&body);
    bough_get_i64(&body);
    if (body.failed || w->sandbox <= 0 || msg->fd_count > 0)
        return bough_err_set(err, BOUGH_ERR_protocol, "commit: malformed");
    if (commit_turn(workers, w, err) < 0)
        return -1;
    w->msg = *msg;
    msg->data = NULL;
    return 0;
}

/* The sandbox goes on, until the commit that has waited longest stops it again. */
static void commit_end(struct bough_workers *workers, int64_t sandbox, int64_t commit)
{
    struct bough_err err;
    bough_keep_thaw(workers->keep, commit);
    for (;;) {
        struct bough_worker *first = NULL;
        for (struct bough_worker *w = workers->all; w; w = w->next)
            if (w->sandbox == sandbox && !w->asked)
                first = w; /* new ones come in front */
        if (!first || commit_turn(workers, first, &err) == 0)
            return;
        fail(workers, first, &err);
    }
}

static void say_unchanged(struct bough_workers *workers, struct bough_worker *w)
{
    struct bough_wbuf body = {0};
    for (int i = 0; i < 3; i++)
        bough_put_i64(&body, 0); /* bytes, files, changed */
    bough_send(workers->keep->host, BOUGH_MSG_DONE, w->id, &body, NULL, 0, NULL);
    bough_wbuf_free(&body);
    drop(workers, w);
}

static void sandbox_frozen(void *arg, int64_t commit, struct bough_message *frozen,
                           const struct bough_err *why)
{
    struct bough_workers *workers = arg;
    struct bough_worker *w = workers->all;
    struct bough_err err;
    while (w && w->id != commit)
        w = w->next;
    if (!w)
        return;
    int64_t sandbox = w->sandbox;
    if (!frozen) {
        fail(workers, w, why);
        commit_end(workers, sandbox, commit);
        return;
    }
    bool changed = bough_get_i64(&frozen->body) != 0;
    if (frozen->body.failed || frozen->fd_count != 1) {
        bough_err_set(&err, BOUGH_ERR_protocol, "commit: an answer without a directory");
        fail(workers, w, &err);
    } else if (!changed) {
        say_unchanged(workers, w);
    } else {
        w->msg.fds[w->msg.fd_count++] = bough_steal_fd(&frozen->fds[0]);
        int rc = begin(workers, w, &w->msg, &err);
        bough_msg_clear(&w->msg);
        if (rc == 0)
            return;
        fail(workers, w, &err);
    }
    commit_end(workers, sandbox, commit);
}

/* ---- all requests ---- */

void bough_workers_init(struct bough_workers *workers, struct bough_keep *keep,
                        struct bough_views *views)
{
    *workers = (struct bough_workers){.keep = keep, .views = views};
    keep->frozen = sandbox_frozen;
    keep->frozen_arg = workers;
}

void bough_workers_start(struct bough_workers *workers, struct bough_message *msg)
{
    struct bough_err err;
    /* Layers are about to be moved or removed: a view kept open would hold their mounts. */
    if (msg->type == BOUGH_MSG_REMOVE) {
        bough_views_drop(workers->views);
        bough_pool_drop(&workers->keep->pool);
    }
    struct bough_worker *w = calloc(1, sizeof *w);
    if (!w) {
        bough_err_sys(&err, ENOMEM, "keeper");
        bough_keep_fail(workers->keep->host, msg->id, &err);
        return;
    }
    *w = (struct bough_worker){.next = workers->all, .id = msg->id, .layer = bough_work_layer(msg)};
    workers->all = w;
    int rc = msg->type == BOUGH_MSG_COMMIT ? commit_begin(workers, w, msg, &err)
                                           : begin(workers, w, msg, &err);
    if (rc < 0)
        fail(workers, w, &err);
}

void bough_workers_kill(struct bough_workers *workers, int64_t id)
{
    struct bough_worker *w = workers->all;
    while (w && (w->id != id || w->sweeping))
        w = w->next;
    if (!w)
        return;
    if (w->pid) {
        w->killed = true;
        kill(w->pid, SIGTERM);
        return;
    }
    struct bough_err err;
    int64_t sandbox = w->sandbox;
    bough_err_set(&err, BOUGH_ERR_cancelled, "cancelled");
    fail(workers, w, &err);
    commit_end(workers, sandbox, id);
}

/* Puts another in the place of a worker that did not end well. False: there is nobody to wait for. */
static bool sweep(struct bough_workers *workers, struct bough_worker *w, int status)
{
    struct bough_err err;
    struct bough_keep *keep = workers->keep;
    if (w->killed)
        bough_err_set(&err, BOUGH_ERR_cancelled, "cancelled");
    else
        bough_err_set(&err, BOUGH_ERR_io,
                      "keeper: a worker ended before its work was done (status %d)", status);
    w->pid = bough_work_sweep(keep->site, keep->host, w->id, w->pid, w->layer, &err);
    w->sweeping = w->pid > 0;
    if (!w->sweeping)
        bough_keep_fail(keep->host, w->id, &err);
    return w->sweeping;
}

void bough_workers_reaped(struct bough_workers *workers, pid_t pid, int status)
{
    struct bough_worker *w = workers->all;
    while (w && w->pid != pid)
        w = w->next;
    if (!w)
        return;
    int64_t sandbox = w->sandbox, id = w->id;
    w->sandbox = 0; /* nothing of it is read any more */
    if (status == 0 || w->sweeping || !sweep(workers, w, status))
        drop(workers, w);
    if (sandbox)
        commit_end(workers, sandbox, id);
}

void bough_workers_stop(struct bough_workers *workers)
{
    for (struct bough_worker *w = workers->all; w; w = w->next)
        if (w->pid) {
            kill(w->pid, SIGKILL);
            kill(-w->pid, SIGKILL); /* with its helpers */
        }
}
