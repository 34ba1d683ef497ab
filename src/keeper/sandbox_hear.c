#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../sys.h"
#include "sandbox_priv.h"
#include "tree.h"

/* ---- standing still ---- */

static struct bough_sandbox *find_booted(struct bough_keep *keep, int64_t id)
{
    for (struct bough_sandbox *b = keep->all; b; b = b->next)
        if (b->id == id && b->booted && !b->answered && !b->dead && !b->kill_ns)
            return b;
    return NULL;
}

int bough_keep_freeze(struct bough_keep *keep, int64_t id, int64_t commit, struct bough_err *err)
{
    struct bough_sandbox *box = id > 0 ? find_booted(keep, id) : NULL;
    if (!box)
        return bough_err_set(err, BOUGH_ERR_state, "the sandbox is not running");
    if (box->commit)
        return bough_err_set(err, BOUGH_ERR_busy, "another commit of this sandbox is under way");
    if (bough_send(box->sock, BOUGH_MSG_FREEZE, commit, NULL, NULL, 0, err) < 0)
        return bough_err_set(err, BOUGH_ERR_state, "the sandbox is ending");
    box->commit = commit;
    box->frozen = false;
    return 0;
}

void bough_keep_thaw(struct bough_keep *keep, int64_t commit)
{
    for (struct bough_sandbox *b = keep->all; b; b = b->next)
        if (b->commit == commit && commit) {
            b->commit = 0;
            bough_send(b->sock, BOUGH_MSG_THAW, commit, NULL, NULL, 0, NULL);
        }
}

/* The answer to FREEZE. One to a commit that was given up meanwhile is for nobody: its THAW is on the way. */
static void freeze_answered(struct bough_keep *keep, struct bough_sandbox *box,
                            struct bough_message *msg)
{
    struct bough_err err;
    int64_t commit = box->commit;
    if (msg->id != commit || box->frozen)
        return;
    if (msg->type == BOUGH_MSG_FROZEN) {
        box->frozen = true;
        keep->frozen(keep->frozen_arg, commit, msg, NULL);
        return;
    }
    bough_get_err(&msg->body, &err);
    box->commit = 0;
    keep->frozen(keep->frozen_arg, commit, NULL, &err);
}

void bough_sandbox_lost(struct bough_keep *keep, struct bough_sandbox *box)
{
    struct bough_err err;
    int64_t commit = box->commit;
    if (!commit || box->frozen)
        return;
    box->commit = 0;
    bough_err_set(&err, BOUGH_ERR_state, "the sandbox ended before it could be copied");
    keep->frozen(keep->frozen_arg, commit, NULL, &err);
}

/* ---- endings ---- */

static void keep_network(struct bough_keep *keep, int *netns)
{
    if (keep->network_count < BOUGH_POOL_MAX)
        keep->networks[keep->network_count++] = bough_steal_fd(netns);
}

/* Removing a few inodes after each run makes the next run's slow on ext4 without a journal, which then looks past the
 * recently freed ones; so they go in bulk, by a child that nobody waits for. The rest goes with our directory. */
static void add_stale(struct bough_keep *keep, int64_t layer)
{
    keep->stale[keep->stale_count++] = layer;
    if (keep->stale_count < BOUGH_STALE_MAX)
        return;
    if (fork() == 0) {
        for (int i = 0; i < keep->stale_count; i++) {
            char name[32];
            snprintf(name, sizeof name, "w%lld", (long long)keep->stale[i]);
            bough_tree_remove(keep->site->owner_fd, name, NULL);
        }
        _exit(0);
    }
    keep->stale_count = 0;
}

static void forward_ending(struct bough_keep *keep, struct bough_sandbox *box,
                           struct bough_message *msg)
{
    struct bough_ending ending;
    struct bough_err err;
    if (bough_ending_get(&msg->body, &ending, &err) < 0) {
        bough_keep_fail(keep->host, box->id, &err);
        return;
    }
    /* One that ended by itself, while its layer was being measured perhaps, was in time. */
    int status = (int)ending.status;
    ending.timed_out = box->timed_out && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    ending.killed = box->killed;
    ending.oom = box->watch_oom && bough_cgroup_oom(&keep->site->groups, box->group);
    struct bough_wbuf body = {0};
    bough_ending_put(&body, &ending);
    bough_send(keep->host, BOUGH_MSG_EXITED, box->id, &body, NULL, 0, NULL);
    bough_wbuf_free(&body);
    if (ending.changed)
        add_stale(keep, ending.layer);
    if (msg->fd_count == 1 || msg->fd_count == 3)
        keep_network(keep, &msg->fds[msg->fd_count - 1]);
    if (msg->fd_count >= 2) {
        struct bough_pooled kept = {.tree = msg->fds[0],
                                    .upper = msg->fds[1],
                                    .layer = ending.layer,
                                    .stack = box->stack,
                                    .count = box->stack_count};
        msg->fds[0] = msg->fds[1] = -1;
        box->stack = NULL;
        if (kept.stack)
            bough_pool_put(&keep->pool, &kept);
        else
            bough_pooled_clear(keep->site, &kept, true);
    }
}

/* The pid that a pidfd stands for, in our own numbers: proc(5) tells in fdinfo. */
static pid_t pid_of(int pidfd)
{
    char path[48], text[512];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
    BOUGH_CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : BOUGH_RETRY(read(fd, text, sizeof text - 1));
    text[n > 0 ? n : 0] = '\0';
    const char *at = strstr(text, "\nPid:");
    return at ? (pid_t)strtol(at + 5, NULL, 10) : -1;
}

/* By a child, since it may be much; the keeper's end finds what this misses. */
void bough_keep_remove(struct bough_keep *keep, int64_t layer)
{
    char name[32];
    if (layer <= 0 || fork() != 0)
        return;
    snprintf(name, sizeof name, "w%lld", (long long)layer);
    bough_tree_remove(keep->site->owner_fd, name, NULL);
    bough_tree_remove(keep->site->owner_fd, name + 1, NULL);
    _exit(0);
}

/* ---- messages ---- */

int bough_sandbox_hear(struct bough_keep *keep, struct bough_sandbox *box)
{
    struct bough_message msg;
    struct bough_err err;
    int rc = bough_recv(box->sock, &msg, &err);
    if (rc <= 0)
        return 0;
    switch (msg.type) {
    case BOUGH_MSG_READY:
        box->child = msg.fd_count == 1 ? pid_of(msg.fds[0]) : -1;
        box->ready = box->child > 0;
        keep->failing = false;
        bough_keep_serve(keep);
        break;
    case BOUGH_MSG_STARTED: {
        box->started = true;
        struct bough_wbuf body = {.data = msg.data, .size = msg.size};
        bough_send(keep->host, BOUGH_MSG_STARTED, box->id, &body, NULL, 0, NULL);
        break;
    }
    case BOUGH_MSG_EXITED:
        box->answered = true;
        box->deadline_ns = 0;
        forward_ending(keep, box, &msg);
        bough_sandbox_lost(keep, box);
        break;
    case BOUGH_MSG_FROZEN:
        freeze_answered(keep, box, &msg);
        break;
    case BOUGH_MSG_FAILED:
        if (msg.id) {
            freeze_answered(keep, box, &msg);
            break;
        }
        bough_get_err(&msg.body, &err);
        if (box->id)
            bough_keep_fail(keep->host, box->id, &err);
        else
            bough_keep_blank_failed(keep, &err);
        box->answered = true;
        box->deadline_ns = 0;
        break;
    default:
        break;
    }
    bough_msg_clear(&msg);
    return 1;
}

void bough_sandbox_speak_for(struct bough_keep *keep, struct bough_sandbox *box)
{
    struct bough_err err;
    if (box->watch_oom && bough_cgroup_oom(&keep->site->groups, box->group)) {
        /* The limit was so tight that init went with the rest. That is a result too, of a run that has
         * written nothing. */
        struct bough_ending ending = {.status = SIGKILL,
                                      .oom = true,
                                      .timed_out = box->timed_out,
                                      .killed = box->killed,
                                      .elapsed_ns = bough_now_ns() - box->started_ns};
        struct bough_wbuf body = {0};
        if (box->started) {
            bough_ending_put(&body, &ending);
            bough_send(keep->host, BOUGH_MSG_EXITED, box->id, &body, NULL, 0, NULL);
            bough_wbuf_free(&body);
            return;
        }
        bough_err_set(&err, BOUGH_ERR_resource,
                      "limits.memory: too little for a sandbox to start in");
    } else {
        bough_err_set(&err, BOUGH_ERR_io, "sandbox: its init was killed from outside");
    }
    if (box->id)
        bough_keep_fail(keep->host, box->id, &err);
    else
        bough_keep_blank_failed(keep, &err);
}
