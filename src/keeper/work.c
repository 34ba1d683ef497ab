#define _GNU_SOURCE
#include "work.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../order.h"
#include "../plan.h"
#include "../sys.h"
#include "sandbox.h"
#include "work_priv.h"

/* How long to wait for the end of processes that have been killed. */
#define SWEEP_WAIT_MS 2000

const char *bough_work_opaque(const struct bough_site *site)
{
    return site->root ? "trusted.overlay.opaque" : "user.overlay.opaque";
}

const char *bough_work_own(const struct bough_site *site)
{
    return site->root ? "trusted.overlay." : "user.overlay.";
}

int bough_work_open_layer(struct bough_work *w, int64_t id, struct bough_err *err)
{
    char name[48];
    snprintf(name, sizeof name, "%lld/fs", (long long)id);
    int fd = openat(w->site->layers_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? bough_err_sys(err, errno, "layer %s", name) : fd;
}

int bough_work_make_layer(struct bough_work *w, int64_t id, struct bough_err *err)
{
    char name[48];
    snprintf(name, sizeof name, "%lld", (long long)id);
    if (mkdirat(w->site->owner_fd, name, 0700) < 0)
        return bough_err_sys(err, errno, "layer %s", name);
    snprintf(name, sizeof name, "%lld/fs", (long long)id);
    if (mkdirat(w->site->owner_fd, name, 0755) < 0)
        return bough_err_sys(err, errno, "layer %s", name);
    int fd = openat(w->site->owner_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? bough_err_sys(err, errno, "layer %s", name) : fd;
}

static void drop_layer(const struct bough_site *site, int64_t id)
{
    char name[48];
    snprintf(name, sizeof name, "w%lld", (long long)id);
    bough_tree_remove(site->owner_fd, name, NULL);
    bough_tree_remove(site->owner_fd, name + 1, NULL);
}

void bough_work_drop_layer(struct bough_work *w, int64_t id)
{
    drop_layer(w->site, id);
}

void bough_work_put_size(struct bough_work *w, const struct bough_tree_size *size, int64_t skipped)
{
    bough_put_i64(&w->answer, size->bytes);
    bough_put_i64(&w->answer, size->files);
    bough_put_i64(&w->answer, skipped);
}

void bough_work_tell(struct bough_work *w, int64_t done, int64_t total, bool always)
{
    int64_t now = bough_now_ns();
    if (!always && now - w->told_ns < BOUGH_PROGRESS_NS)
        return;
    w->told_ns = now;
    struct bough_wbuf body = {0};
    bough_put_i64(&body, done);
    bough_put_i64(&body, total);
    bough_send(w->host, BOUGH_MSG_PROGRESS, w->msg->id, &body, NULL, 0, NULL);
    bough_wbuf_free(&body);
}

void bough_work_copied(void *work, int64_t bytes)
{
    bough_work_tell(work, bytes, 0, false);
}

static int do_remove(struct bough_work *w, struct bough_err *err)
{
    char **names = bough_get_strv(&w->msg->body);
    if (!names)
        return bough_err_set(err, BOUGH_ERR_protocol, "remove: malformed");
    int rc = 0;
    for (char **n = names; *n; n++) {
        /* Only what lies directly in a directory of tmp: the store hands out no other names. */
        if (strncmp(*n, "tmp/", 4) != 0 || strstr(*n, ".."))
            rc = bough_err_set(err, BOUGH_ERR_invalid,
                               "remove %s: not a temporary directory of the store", *n);
        else if (bough_tree_remove(w->site->home_fd, *n, err) < 0)
            rc = bough_err_wrap(err, "remove %s", *n);
    }
    free(names);
    return rc;
}

static const struct job {
    enum bough_msg type;
    int (*run)(struct bough_work *, struct bough_err *);
    int layer; /* which number of the body is the id of a layer to make; 0: none */
} jobs[] = {
    {BOUGH_MSG_REMOVE, do_remove, 0},           {BOUGH_MSG_MERGE, bough_work_merge, 1},
    {BOUGH_MSG_COPY, bough_work_copy, 1},       {BOUGH_MSG_UNPACK, bough_work_unpack, 1},
    {BOUGH_MSG_PUT, bough_work_put, 1},         {BOUGH_MSG_LIST, bough_work_list, 0},
    {BOUGH_MSG_EXTRACT, bough_work_extract, 0}, {BOUGH_MSG_LOOK, bough_work_look, 0},
    {BOUGH_MSG_COMMIT, bough_work_commit, 2},
};

static const struct job *job_of(enum bough_msg type)
{
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++)
        if (jobs[i].type == type)
            return &jobs[i];
    return NULL;
}

bool bough_work_is(enum bough_msg type)
{
    return job_of(type) != NULL;
}

int64_t bough_work_layer(const struct bough_message *msg)
{
    struct bough_rbuf body = msg->body;
    int64_t id = 0;
    for (int i = 0; i < job_of(msg->type)->layer; i++)
        id = bough_get_i64(&body);
    return id;
}

/* ---- views: mounted by the keeper, so that they are there for the next request as well ---- */

static int view_for(struct bough_work *w, struct bough_views *views, struct bough_rbuf *body,
                    struct bough_err *err)
{
    int64_t *stack = NULL;
    int64_t count = bough_stack_get(body, &stack);
    if (count < 0)
        return bough_err_set(err, BOUGH_ERR_protocol, "keeper: malformed request");
    w->mount[0] = bough_views_mount(views, stack, count, err);
    free(stack);
    return w->mount[0] < 0 ? -1 : 0;
}

static int views_for_look(struct bough_work *w, struct bough_views *views, struct bough_rbuf *body,
                          struct bough_err *err)
{
    struct bough_look_order order;
    int rc = 0;
    if (bough_look_order_get(body, &order, err) < 0)
        return -1;
    if (order.source == BOUGH_LOOK_VIEW)
        rc = w->mount[0] = bough_views_mount(views, order.stack, order.stack_count, err);
    if (rc >= 0 && order.other_count >= 0)
        rc = w->mount[1] = bough_views_mount(views, order.other, order.other_count, err);
    bough_look_order_clear(&order);
    return rc < 0 ? -1 : 0;
}

static int open_views(struct bough_work *w, struct bough_views *views, struct bough_err *err)
{
    struct bough_rbuf body = w->msg->body;
    switch (w->msg->type) {
    case BOUGH_MSG_PUT:
        bough_get_i64(&body);
        return view_for(w, views, &body, err);
    case BOUGH_MSG_LIST:
    case BOUGH_MSG_EXTRACT:
        return view_for(w, views, &body, err);
    case BOUGH_MSG_LOOK:
        return views_for_look(w, views, &body, err);
    default:
        return 0;
    }
}

/* ---- the process ---- */

static int by_number(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

/* Mounts of images, overlays kept for other runs above all, must not live as long as a slow worker. */
static void keep_only(int *fds, int count)
{
    int from = 3;
    qsort(fds, (size_t)count, sizeof *fds, by_number);
    for (int i = 0; i < count; i++) {
        if (fds[i] < from)
            continue;
        if (fds[i] > from)
            syscall(SYS_close_range, (unsigned)from, (unsigned)fds[i] - 1, 0u);
        from = fds[i] + 1;
    }
    syscall(SYS_close_range, (unsigned)from, ~0u, 0u);
}

static void settle(const char *name)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, name);
}

static void answer_is_final(void)
{
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigprocmask(SIG_BLOCK, &term, NULL);
}

static _Noreturn void work_main(struct bough_work *w)
{
    struct bough_err err;
    int fds[BOUGH_WIRE_FDS + 6] = {w->host,           w->site->home_fd, w->site->layers_fd,
                                   w->site->owner_fd, w->mount[0],      w->mount[1]};
    memcpy(fds + 6, w->msg->fds, sizeof *fds * (size_t)w->msg->fd_count);
    settle("bough-worker");
    keep_only(fds, 6 + w->msg->fd_count);
    int rc = job_of(w->msg->type)->run(w, &err);
    answer_is_final();
    enum bough_msg type = BOUGH_MSG_DONE;
    if (rc < 0) {
        bough_wbuf_free(&w->answer);
        bough_put_err(&w->answer, &err);
        type = BOUGH_MSG_FAILED;
    }
    bool with_fd = rc == 0 && w->answer_fd >= 0;
    rc = bough_send(w->host, type, w->msg->id, &w->answer, &w->answer_fd, with_fd, NULL);
    _exit(rc < 0 ? 1 : 0);
}

pid_t bough_work_start(const struct bough_site *site, struct bough_views *views, int host,
                       struct bough_message *msg, struct bough_err *err)
{
    struct bough_work w = {.site = site,
                           .msg = msg,
                           .host = host,
                           .mount = {-1, -1},
                           .answer_fd = -1,
                           .told_ns = bough_now_ns()};
    if (open_views(&w, views, err) < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0)
        work_main(&w);
    if (pid < 0)
        return (pid_t)bough_err_sys(err, errno, "keeper: worker");
    setpgid(pid, pid); /* whoever comes first */
    return pid;
}

pid_t bough_work_sweep(const struct bough_site *site, int host, int64_t id, pid_t group,
                       int64_t layer, const struct bough_err *why)
{
    kill(-group, SIGKILL); /* helpers; while nobody else can have got that number */
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    int fds[] = {host, site->owner_fd};
    settle("bough-sweeper");
    answer_is_final();
    keep_only(fds, 2);
    for (int i = 0; i < SWEEP_WAIT_MS && (kill(-group, 0) == 0 || errno != ESRCH); i++)
        usleep(1000);
    if (layer > 0)
        drop_layer(site, layer);
    bough_keep_fail(host, id, why);
    _exit(0);
}
