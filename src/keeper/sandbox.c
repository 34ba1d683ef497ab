#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../sys.h"
#include "sandbox_priv.h"

/* Blanks on order at the nursery. */
#define MAKING_MAX 4
/* How long an init may take to kill its processes and report before it is killed itself. Writing out a
 * large layer counts, so this is generous. */
#define KILL_GRACE_NS (30 * 1000000000LL)

struct bough_pending {
    struct bough_pending *next;
    struct bough_message msg;
    struct bough_limits limits;
    int64_t timeout_ms;
    bool host_network, announce, boots;
    int64_t layer;
    int64_t *stack, stack_count; /* owned */
};

void bough_keep_fail(int host, int64_t id, const struct bough_err *err)
{
    struct bough_wbuf body = {0};
    bough_put_err(&body, err);
    bough_send(host, BOUGH_MSG_FAILED, id, &body, NULL, 0, NULL);
    bough_wbuf_free(&body);
}

void bough_keep_init(struct bough_keep *keep)
{
    bough_pool_init(&keep->pool, keep->site);
    keep->pending_tail = &keep->pending;
}

static bool order_blank(struct bough_keep *keep, bool host_network)
{
    BOUGH_CLEANUP_FD int netns = -1;
    if (!host_network && keep->network_count > 0)
        netns = keep->networks[--keep->network_count];
    if (bough_send(keep->nursery, BOUGH_MSG_BLANK, host_network, NULL, &netns, netns >= 0, NULL) <
        0)
        return false; /* it is dead, which its socket tells as well */
    keep->making++;
    return true;
}

void bough_keep_order(struct bough_keep *keep)
{
    int room = keep->running_max - keep->running;
    int wanted = keep->spare + (keep->waiting < room ? keep->waiting : room);
    /* A few at a time: the nursery makes one after the other anyway, and runs that end meanwhile hand
     * their networks on. */
    while ((!keep->failing || keep->waiting > 0) && keep->making < MAKING_MAX &&
           keep->blanks + keep->making < wanted)
        if (!order_blank(keep, false))
            break;
}

static void box_free(struct bough_keep *keep, struct bough_sandbox *box)
{
    for (struct bough_sandbox **at = &keep->all; *at; at = &(*at)->next)
        if (*at == box) {
            *at = box->next;
            break;
        }
    if (box->id)
        keep->running--;
    else
        keep->blanks--;
    bough_fd_close(&box->sock);
    free(box->stack);
    free(box);
}

/* Out of the queue for good. */
static void pending_free(struct bough_keep *keep, struct bough_pending *run)
{
    if (!run->host_network)
        keep->waiting--;
    bough_msg_clear(&run->msg);
    free(run->stack);
    free(run);
}

/* Gives a run to a blank. Descriptors of the message are closed either way. */
static void assign(struct bough_keep *keep, struct bough_sandbox *box, struct bough_pending *run)
{
    struct bough_err err;
    keep->blanks--;
    keep->running++;
    box->id = run->msg.id;
    box->booted = run->boots;
    snprintf(box->group, sizeof box->group, "%lld", (long long)box->id);
    int rc = 0;
    if (run->boots && run->limits.pids > 0)
        run->limits.pids++; /* the sleeper, which makes the others (child.h) */
    if (run->limits.memory > 0 || run->limits.pids > 0 || run->limits.cpu > 0) {
        box->grouped = true;
        box->watch_oom = run->limits.memory > 0;
        rc = bough_cgroup_place(&keep->site->groups, box->group, (pid_t[]){box->pid, box->child}, 2,
                                &run->limits, &err);
    }
    if (rc == 0) {
        struct bough_wbuf body = {.data = run->msg.data, .size = run->msg.size};
        struct bough_pooled kept = {.tree = -1, .upper = -1};
        int fds[BOUGH_WIRE_FDS], count = run->msg.fd_count;
        memcpy(fds, run->msg.fds, sizeof *fds * (size_t)count);
        if (run->stack && bough_pool_take(&keep->pool, run->stack, run->stack_count, &kept)) {
            fds[count++] = kept.tree;
            fds[count++] = kept.upper;
        }
        rc = bough_send(box->sock, BOUGH_MSG_RUN, kept.layer, &body, fds, count, &err);
        box->layer = kept.tree >= 0 ? kept.layer : run->layer;
        box->started = !run->announce; /* nobody will say */
        bough_pooled_clear(keep->site, &kept, false);
        box->stack = run->stack;
        box->stack_count = run->stack_count;
        run->stack = NULL;
    }
    box->started_ns = bough_now_ns();
    if (run->timeout_ms > 0)
        box->deadline_ns = bough_now_ns() + run->timeout_ms * 1000000;
    if (rc < 0) {
        bough_keep_fail(keep->host, box->id, &err);
        box->answered = true;
        kill(box->pid, SIGKILL);
    }
    pending_free(keep, run);
}

static struct bough_sandbox *find_blank(struct bough_keep *keep, bool host_network)
{
    struct bough_sandbox *found = NULL;
    for (struct bough_sandbox *b = keep->all; b; b = b->next)
        if (b->id == 0 && b->ready && !b->dead && b->host_network == host_network)
            found = b;
    return found;
}

void bough_keep_serve(struct bough_keep *keep)
{
    struct bough_pending **at = &keep->pending;
    while (*at && keep->running < keep->running_max) {
        struct bough_pending *run = *at;
        struct bough_sandbox *box = find_blank(keep, run->host_network);
        if (!box) {
            at = &run->next;
            continue;
        }
        *at = run->next;
        if (keep->pending_tail == &run->next)
            keep->pending_tail = at;
        assign(keep, box, run);
    }
    bough_keep_order(keep);
}

void bough_keep_run(struct bough_keep *keep, struct bough_message *msg)
{
    struct bough_plan plan;
    struct bough_err err;
    struct bough_rbuf body = msg->body;
    struct bough_pending *run = calloc(1, sizeof *run);
    int rc = run ? bough_plan_get(&body, &plan, &err) : bough_err_sys(&err, ENOMEM, "keeper");
    if (rc < 0) {
        bough_keep_fail(keep->host, msg->id, &err);
        bough_msg_clear(msg);
        free(run);
        return;
    }
    if (msg->fd_count != __builtin_popcount((unsigned)plan.streams) + plan.boots) {
        bough_err_set(&err, BOUGH_ERR_protocol, "plan: its streams are missing");
        bough_keep_fail(keep->host, msg->id, &err);
        bough_msg_clear(msg);
        bough_plan_clear(&plan);
        free(run);
        return;
    }
    run->msg = *msg;
    run->limits = plan.limits;
    run->timeout_ms = plan.timeout_ms;
    run->layer = plan.layer;
    run->announce = plan.announce;
    run->boots = plan.boots;
    run->host_network = plan.network == BOUGH_NETWORK_HOST;
    if (plan.limits.disk == 0) {
        run->stack = plan.stack;
        run->stack_count = plan.stack_count;
        plan.stack = NULL;
    }
    bough_plan_clear(&plan);
    *keep->pending_tail = run;
    keep->pending_tail = &run->next;
    if (run->host_network)
        order_blank(keep, true);
    else
        keep->waiting++;
    bough_keep_serve(keep);
}

static void kill_box(struct bough_sandbox *box)
{
    if (box->kill_ns)
        return;
    box->kill_ns = bough_now_ns() + KILL_GRACE_NS;
    if (bough_send(box->sock, BOUGH_MSG_KILL, box->id, NULL, NULL, 0, NULL) < 0)
        kill(box->pid, SIGKILL);
}

void bough_keep_kill(struct bough_keep *keep, int64_t id)
{
    for (struct bough_pending **at = &keep->pending; *at; at = &(*at)->next) {
        struct bough_pending *run = *at;
        if (run->msg.id != id)
            continue;
        *at = run->next;
        if (keep->pending_tail == &run->next)
            keep->pending_tail = at;
        struct bough_err err;
        bough_err_set(&err, BOUGH_ERR_cancelled, "killed before it started");
        bough_keep_fail(keep->host, id, &err);
        pending_free(keep, run);
        return;
    }
    for (struct bough_sandbox *b = keep->all; b; b = b->next)
        if (b->id == id) {
            b->killed = true;
            kill_box(b);
        }
}

void bough_keep_blank_failed(struct bough_keep *keep, const struct bough_err *err)
{
    keep->failing = true;
    while (keep->pending) {
        struct bough_pending *run = keep->pending;
        keep->pending = run->next;
        bough_keep_fail(keep->host, run->msg.id, err);
        pending_free(keep, run);
    }
    keep->pending_tail = &keep->pending;
}

void bough_keep_oom(struct bough_keep *keep, struct bough_message *msg)
{
    int64_t id = bough_get_i64(&msg->body), kills = -1;
    bool timed_out = false;
    struct bough_wbuf body = {0};
    for (struct bough_sandbox *b = keep->all; b; b = b->next)
        if (b->id == id) {
            kills = b->watch_oom ? bough_cgroup_oom(&keep->site->groups, b->group) : 0;
            timed_out = b->timed_out;
        }
    bough_put_i64(&body, kills);
    bough_put_i64(&body, timed_out);
    bough_send(keep->host, BOUGH_MSG_DONE, msg->id, &body, NULL, 0, NULL);
    bough_wbuf_free(&body);
}

bool bough_keep_nursery(struct bough_keep *keep)
{
    struct bough_message msg;
    struct bough_err err;
    int rc = bough_recv(keep->nursery, &msg, &err);
    if (rc < 0 && err.sys == EMFILE) {
        keep->making--;
        bough_keep_blank_failed(keep, &err);
        return true;
    }
    if (rc <= 0)
        return false;
    keep->making--;
    if (msg.type == BOUGH_MSG_FAILED) {
        bough_get_err(&msg.body, &err);
        bough_keep_blank_failed(keep, &err);
    } else if (msg.type == BOUGH_MSG_BLANK && msg.fd_count == 1) {
        struct bough_sandbox *box = calloc(1, sizeof *box);
        if (box) {
            box->pid = (pid_t)bough_get_i64(&msg.body);
            box->sock = msg.fds[0];
            msg.fds[0] = -1;
            box->host_network = msg.id != 0;
            box->next = keep->all;
            keep->all = box;
            keep->blanks++;
            struct epoll_event ev = {.events = EPOLLIN, .data.ptr = box};
            epoll_ctl(keep->epoll, EPOLL_CTL_ADD, box->sock, &ev);
            bough_keep_serve(keep);
        }
    }
    bough_msg_clear(&msg);
    return true;
}

void bough_keep_init_ready(struct bough_keep *keep, struct bough_sandbox *box)
{
    if (!bough_sandbox_hear(keep, box)) {
        /* Gone: what is left to say is said when it is reaped. */
        epoll_ctl(keep->epoll, EPOLL_CTL_DEL, box->sock, NULL);
        kill(box->pid, SIGKILL);
    }
}

bool bough_keep_reaped(struct bough_keep *keep, pid_t pid)
{
    struct bough_sandbox *box = keep->all;
    while (box && (box->pid != pid || box->dead))
        box = box->next;
    if (!box)
        return false;
    epoll_ctl(keep->epoll, EPOLL_CTL_DEL, box->sock, NULL);
    while (bough_sandbox_hear(keep, box))
        continue;
    if (!box->answered) {
        bough_sandbox_speak_for(keep, box);
        bough_keep_remove(keep, box->layer);
    }
    bough_sandbox_lost(keep, box);
    box->dead = true;
    if (box->grouped && !bough_cgroup_remove(&keep->site->groups, box->group)) {
        box->kill_ns =
            bough_now_ns() + 2000000; /* the kernel is still letting go: try again soon */
        return true;
    }
    box_free(keep, box);
    bough_keep_serve(keep);
    return true;
}

int bough_keep_timeout(struct bough_keep *keep)
{
    int64_t next = 0;
    for (struct bough_sandbox *b = keep->all; b; b = b->next) {
        if (b->deadline_ns && !b->dead && (!next || b->deadline_ns < next))
            next = b->deadline_ns;
        if (b->kill_ns && (!next || b->kill_ns < next))
            next = b->kill_ns;
    }
    if (!next)
        return -1;
    int64_t left = next - bough_now_ns();
    return left <= 0 ? 0 : (int)(left / 1000000 + 1);
}

void bough_keep_clock(struct bough_keep *keep)
{
    int64_t now = bough_now_ns();
    struct bough_sandbox *next;
    bool freed = false;
    for (struct bough_sandbox *b = keep->all; b; b = next) {
        next = b->next;
        if (b->dead) {
            if (now < b->kill_ns)
                continue;
            if (bough_cgroup_remove(&keep->site->groups, b->group)) {
                box_free(keep, b);
                freed = true;
            } else {
                b->kill_ns = now + 10000000;
            }
            continue;
        }
        if (b->deadline_ns && now >= b->deadline_ns) {
            b->deadline_ns = 0;
            b->timed_out = true;
            kill_box(b);
        }
        if (b->kill_ns && now >= b->kill_ns) {
            b->kill_ns = now + KILL_GRACE_NS;
            kill(b->pid, SIGKILL);
        }
    }
    if (freed)
        bough_keep_serve(keep);
}

void bough_keep_stop(struct bough_keep *keep)
{
    for (struct bough_sandbox *b = keep->all; b; b = b->next)
        if (!b->dead)
            kill(b->pid, SIGKILL);
}

void bough_keep_groups_remove(struct bough_keep *keep)
{
    /* The kernel lets go of a group a moment after its last process: up to two seconds of patience. */
    struct timespec moment = {.tv_nsec = 2000000};
    for (struct bough_sandbox *b = keep->all; b; b = b->next)
        for (int i = 0;
             b->grouped && i < 1000 && !bough_cgroup_remove(&keep->site->groups, b->group); i++)
            nanosleep(&moment, NULL);
}
