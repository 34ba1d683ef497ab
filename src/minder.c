#define _GNU_SOURCE
#include "minder.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kin.h"
#include "sys.h"

struct bough_minded {
    struct bough_minded *next;
    int64_t id;
    pid_t pid;
    int64_t started_ns, due_ns; /* due_ns 0: its time is not limited */
    bool timed_out;
};

struct bough_unsaid {
    struct bough_unsaid *next;
    enum bough_msg type;
    int64_t id;
    struct bough_wbuf body;
    int fd; /* -1 */
};

/* Takes the body over. */
static int keep(struct bough_minder *minder, enum bough_msg type, int64_t id,
                struct bough_wbuf *body, int fd, struct bough_err *err)
{
    struct bough_unsaid *one = calloc(1, sizeof *one);
    int copy = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : -1;
    if (!one || (fd >= 0 && copy < 0)) {
        int sys = one ? errno : ENOMEM;
        free(one);
        bough_wbuf_free(body);
        return bough_err_sys(err, sys, "telling the host");
    }
    *one = (struct bough_unsaid){.type = type, .id = id, .body = *body, .fd = copy};
    *body = (struct bough_wbuf){0};
    if (minder->unsaid)
        minder->unsaid_last->next = one;
    else
        minder->unsaid = one;
    minder->unsaid_last = one;
    return 0;
}

static bool is_full(const struct bough_err *err)
{
    return err->sys == EAGAIN || err->sys == ENOBUFS || err->sys == ETOOMANYREFS;
}

/* Frees the body. */
static int say(struct bough_minder *minder, enum bough_msg type, int64_t id,
               struct bough_wbuf *body, int fd, struct bough_err *err)
{
    struct bough_err failure;
    if (minder->sock < 0) {
        bough_wbuf_free(body);
        return 0;
    }
    if (minder->unsaid)
        return keep(minder, type, id, body, fd, err);
    if (bough_send(minder->sock, type, id, body, &fd, fd >= 0, &failure) < 0) {
        if (is_full(&failure))
            return keep(minder, type, id, body, fd, err);
        bough_wbuf_free(body);
        if (err)
            *err = failure;
        return -1;
    }
    bough_wbuf_free(body);
    return 0;
}

static void forget_first(struct bough_minder *minder)
{
    struct bough_unsaid *one = minder->unsaid;
    minder->unsaid = one->next;
    bough_wbuf_free(&one->body);
    bough_fd_close(&one->fd);
    free(one);
}

bool bough_minder_flush(struct bough_minder *minder)
{
    struct bough_err err;
    while (minder->unsaid) {
        struct bough_unsaid *one = minder->unsaid;
        if (minder->sock >= 0 &&
            bough_send(minder->sock, one->type, one->id, &one->body, &one->fd, one->fd >= 0, &err) <
                0 &&
            is_full(&err))
            return false;
        forget_first(minder);
    }
    return true;
}

int bough_minder_add(struct bough_minder *minder, int64_t id, pid_t pid, int64_t timeout_ms,
                     int master, struct bough_err *err)
{
    struct bough_minded *one = calloc(1, sizeof *one);
    if (!one)
        return bough_err_sys(err, ENOMEM, "starting a process");
    *one = (struct bough_minded){.id = id, .pid = pid, .started_ns = bough_now_ns()};
    if (timeout_ms > 0)
        one->due_ns = timeout_ms < (INT64_MAX - one->started_ns) / 1000000
                          ? one->started_ns + timeout_ms * 1000000
                          : 0;
    struct bough_wbuf body = {0};
    bough_put_i64(&body, pid);
    if (say(minder, BOUGH_MSG_STARTED, id, &body, master, err) < 0) {
        free(one);
        return -1;
    }
    one->next = minder->all;
    minder->all = one;
    minder->count++;
    return 0;
}

void bough_minder_fail(struct bough_minder *minder, int64_t id, const struct bough_err *err)
{
    struct bough_wbuf body = {0};
    bough_put_err(&body, err);
    say(minder, BOUGH_MSG_FAILED, id, &body, -1, NULL);
}

bool bough_minder_reaped(struct bough_minder *minder, pid_t pid, int status,
                         const struct rusage *usage)
{
    struct bough_minded **at = &minder->all;
    while (*at && (*at)->pid != pid)
        at = &(*at)->next;
    struct bough_minded *one = *at;
    if (!one)
        return false;
    *at = one->next;
    minder->count--;
    if (minder->sock >= 0) {
        struct bough_end end = {
            .status = status,
            .timed_out = one->timed_out,
            .elapsed_ns = bough_now_ns() - one->started_ns,
            .user_us = usage->ru_utime.tv_sec * INT64_C(1000000) + usage->ru_utime.tv_usec,
            .system_us = usage->ru_stime.tv_sec * INT64_C(1000000) + usage->ru_stime.tv_usec,
            .max_rss = usage->ru_maxrss * INT64_C(1024),
            .usage = bough_usage_of(usage),
        };
        struct bough_wbuf body = {0};
        bough_end_put(&body, &end);
        say(minder, BOUGH_MSG_ENDED, one->id, &body, -1, NULL);
    }
    free(one);
    return true;
}

void bough_minder_kill_tree(pid_t root)
{
    bough_kin_signal(&root, 1, SIGKILL);
}

/* The trees of all for which `wanted` says so, in as few looks as those of one. */
static void signal_wanted(struct bough_minder *minder, int number,
                          bool (*wanted)(struct bough_minded *one, int64_t arg), int64_t arg)
{
    size_t count = 0;
    BOUGH_CLEANUP_FREE pid_t *roots = malloc((size_t)(minder->count + 1) * sizeof *roots);
    for (struct bough_minded *one = minder->all; one; one = one->next)
        if (wanted(one, arg)) {
            if (roots)
                roots[count++] = one->pid;
            else
                bough_kin_signal(&one->pid, 1, number);
        }
    if (count > 0)
        bough_kin_signal(roots, count, number);
}

static bool has_id(struct bough_minded *one, int64_t id)
{
    return id == 0 || one->id == id;
}

void bough_minder_signal(struct bough_minder *minder, int64_t id, int number,
                         enum bough_scope scope)
{
    if (number <= 0 || number >= NSIG) /* 0 would only ask */
        return;
    if (id == 0 && getpid() == 1) { /* an init: all there are, whoever started them */
        kill(-1, number);
        return;
    }
    if (scope == BOUGH_SCOPE_TREE) {
        signal_wanted(minder, number, has_id, id);
        return;
    }
    for (struct bough_minded *one = minder->all; one; one = one->next)
        if (has_id(one, id) && (!minder->sessions || kill(-one->pid, number) < 0))
            kill(one->pid, number);
}

/* --- time ------------------------------------------------------------------------------------------- */

int bough_minder_timeout(const struct bough_minder *minder)
{
    int64_t first = INT64_MAX;
    for (const struct bough_minded *one = minder->all; one; one = one->next)
        if (one->due_ns > 0 && !one->timed_out && one->due_ns < first)
            first = one->due_ns;
    if (first == INT64_MAX)
        return -1;
    int64_t left = first - bough_now_ns();
    if (left <= 0)
        return 0;
    left = (left + 999999) / 1000000;
    return left < INT_MAX ? (int)left : INT_MAX;
}

/* One that has ended already, and only waits to be reaped, was in time. */
static bool is_late(struct bough_minded *one, int64_t now)
{
    siginfo_t info = {0};
    if (one->due_ns == 0 || one->due_ns > now || one->timed_out)
        return false;
    one->timed_out =
        waitid(P_PID, (id_t)one->pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0;
    if (!one->timed_out)
        one->due_ns = 0;
    return one->timed_out;
}

void bough_minder_clock(struct bough_minder *minder)
{
    signal_wanted(minder, SIGKILL, is_late, bough_now_ns());
}

void bough_minder_clear(struct bough_minder *minder)
{
    while (minder->all) {
        struct bough_minded *one = minder->all;
        minder->all = one->next;
        free(one);
    }
    minder->count = 0;
    while (minder->unsaid)
        forget_first(minder);
}
