#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../sys.h"
#include "boot.h"
#include "child.h"
#include "filter.h"
#include "freeze.h"
#include "root.h"
#include "start.h"

/* A host that never stops talking is not waited for. */
#define HEAR_OUT_MAX 1000

struct init {
    const struct bough_site *site;
    int sock, signals;
    struct bough_child child;
    bool host_network;
    struct bough_root root;
    struct bough_plan plan;
    bool entered;  /* the image's root; there is a plan */
    pid_t command; /* of a run */
    bool booted;   /* no run but a sandbox to start processes in */
    struct bough_boot boot;
    struct bough_freeze freeze;
    int64_t started_ns;
    struct bough_ending ending;
};

static _Noreturn void give_up(struct init *init, const struct bough_err *err)
{
    struct bough_wbuf body = {0};
    bough_put_err(&body, err);
    bough_send(init->sock, BOUGH_MSG_FAILED, 0, &body, NULL, 0, NULL);
    bough_root_tidy(&init->root);
    _exit(1);
}

/* A user namespace for the command alone, with the same ids: the mount, network and process namespaces
 * belong to the one outside of it, so the command's root has no say over them, and RLIMIT_NPROC
 * counts this sandbox only. A short-lived child makes it; the descriptor keeps it. */
static int make_userns(struct init *init, struct bough_err *err)
{
    if (init->site->root)
        return 0;
    int up[2], down[2];
    if (pipe2(up, O_CLOEXEC) < 0 || pipe2(down, O_CLOEXEC) < 0)
        return bough_err_sys(err, errno, "sandbox: pipe");
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_DUMPABLE, 1); /* or its maps could not be written from outside */
        char c = unshare(CLONE_NEWUSER) < 0 ? (char)errno : 0;
        (void)!write(up[1], &c, 1);
        close(down[1]);
        (void)!read(down[0], &c, 1);
        _exit(0);
    }
    char c = 1;
    bool ok = pid > 0 && BOUGH_RETRY(read(up[0], &c, 1)) == 1 && c == 0;
    char path[64], map[64];
    int sys = c;
    /* Two extents, as in the namespace around it: one across its seam would be refused. */
    snprintf(map, sizeof map, init->site->range ? "0 0 1\n1 1 %ld\n" : "0 0 1\n",
             init->site->uid_count - 1);
    static const char *const files[] = {"uid_map", "gid_map"};
    if (ok && !init->site->range) {
        snprintf(path, sizeof path, "/proc/%d/setgroups", (int)pid);
        BOUGH_CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd >= 0)
            (void)!write(fd, "deny", 4);
    }
    for (int i = 0; ok && i < 2; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, files[i]);
        BOUGH_CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
        ok = fd >= 0 && write(fd, map, strlen(map)) > 0;
        sys = errno;
    }
    if (ok) {
        snprintf(path, sizeof path, "/proc/%d/ns/user", (int)pid);
        init->child.userns_fd = open(path, O_RDONLY | O_CLOEXEC);
        sys = errno;
        ok = init->child.userns_fd >= 0;
    }
    close(up[0]);
    close(up[1]);
    close(down[0]);
    close(down[1]);
    if (pid > 0)
        BOUGH_RETRY(waitpid(pid, NULL, 0));
    return ok ? 0 : bough_err_sys(err, sys, "sandbox: user namespace");
}

int bough_init_keep_only(int fd)
{
    if (fd != 3)
        dup3(fd, 3, O_CLOEXEC);
    syscall(SYS_close_range, 4u, ~0u, 0u);
    return 3;
}

static void prepare(struct init *init, int netns)
{
    struct bough_err err;
    bool used_before = netns >= 0;
    if (used_before && setns(netns, CLONE_NEWNET) < 0)
        _exit(1);
    init->sock = bough_init_keep_only(init->sock); /* netns goes with the rest */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_NAME, "bough-init");
    memset(init->site->args, 0,
           init->site->args_size); /* paths of the host are not for the sandbox's ps(1) */
    snprintf(init->site->args, init->site->args_size, "bough-init");
    signal(SIGPIPE, SIG_IGN);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    init->signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    if (init->signals < 0) {
        bough_err_sys(&err, errno, "sandbox: signalfd");
        give_up(init, &err);
    }
    if (bough_root_blank(&init->root, init->site, init->host_network,
                         !init->host_network && !used_before, &err) < 0 ||
        make_userns(init, &err) < 0)
        give_up(init, &err);
    if (bough_caps_drop_bounding() < 0) {
        bough_err_sys(&err, errno, "sandbox: capabilities");
        give_up(init, &err);
    }
    if (bough_child_prepare(&init->child) < 0) {
        bough_child_error(&init->child, &err);
        give_up(init, &err);
    }
    /* The keeper has to move both of us into control groups, and knows other numbers for us: a pidfd says it. */
    BOUGH_CLEANUP_FD int child = (int)syscall(SYS_pidfd_open, init->child.sleeper, 0);
    bough_sched_slice(BOUGH_SLICE_URGENT);
    if (bough_send(init->sock, BOUGH_MSG_READY, 0, NULL, &child, 1, &err) < 0)
        _exit(1);
}

static void announce(struct init *init, pid_t pid)
{
    if (!init->plan.announce)
        return;
    struct bough_wbuf body = {0};
    bough_put_i64(&body, pid);
    bough_send(init->sock, BOUGH_MSG_STARTED, 0, &body, NULL, 0, NULL);
    bough_wbuf_free(&body);
}

static void start_command(struct init *init, const struct bough_message *msg)
{
    struct bough_err err;
    struct bough_user user;
    const struct bough_plan *plan = &init->plan;
    if (bough_user_find(plan->user, &user, &err) < 0)
        give_up(init, &err);
    struct bough_start start = {.argv = plan->argv,
                                .env = plan->env,
                                .cwd = plan->cwd,
                                .user = &user,
                                .limits = &plan->limits};
    BOUGH_CLEANUP_FD int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int i = 0, n = 0; i < 3; i++)
        start.fds[i] = plan->streams & 1 << i ? msg->fds[n++] : null;
    init->started_ns = bough_now_ns();
    if (bough_start(&init->child, &start, &err) < 0)
        give_up(init, &err);
    init->command = init->child.pid;
    announce(init, init->command);
}

static void boot(struct init *init, struct bough_message *msg)
{
    struct bough_err err;
    int *channel = &msg->fds[__builtin_popcount((unsigned)init->plan.streams)];
    init->booted = true;
    init->started_ns = bough_now_ns();
    if (bough_boot_open(&init->boot, &init->child, &init->plan.limits, bough_steal_fd(channel),
                        &err) < 0)
        give_up(init, &err);
    announce(init, getpid());
}

/* Descriptors of the message: those of the streams, the host's socket of a booted sandbox, and a kept overlay with its
 * upper directory. */
static void carry_out(struct init *init, struct bough_message *msg)
{
    struct bough_err err;
    if (bough_plan_get(&msg->body, &init->plan, &err) < 0)
        give_up(init, &err);
    struct bough_plan *plan = &init->plan;
    int own = __builtin_popcount((unsigned)plan->streams) + plan->boots;
    if (msg->fd_count != own && msg->fd_count != own + 2) {
        bough_err_set(&err, BOUGH_ERR_protocol, "plan: its streams are missing");
        give_up(init, &err);
    }
    if (msg->fd_count == own + 2) {
        bough_root_reuse(&init->root, msg->fds[own], msg->fds[own + 1], msg->id);
        msg->fds[own] = msg->fds[own + 1] = -1;
    }
    if (bough_root_enter(&init->root, plan, &err) < 0)
        give_up(init, &err);
    init->entered = true;
    if (plan->boots)
        boot(init, msg);
    else
        start_command(init, msg);
    bough_msg_clear(msg); /* of the plan only what is no text is wanted from here on */
}

/* A descriptor of the network namespace if it is as good as new. Nobody inside may configure it, and without a
 * single byte over its only device it holds no connection, not even one in TIME_WAIT. */
static int unused_network(void)
{
    char text[1024];
    BOUGH_CLEANUP_FD int fd = open("/proc/self/net/dev", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : BOUGH_RETRY(read(fd, text, sizeof text - 1));
    text[n > 0 ? n : 0] = '\0';
    const char *lo = strstr(text, "lo:");
    if (!lo || strtoull(lo + 3, NULL, 10) != 0)
        return -1;
    return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

static void reap_all(struct init *init)
{
    struct rusage usage;
    int status;
    pid_t pid;
    while ((pid = (pid_t)BOUGH_RETRY(wait4(-1, &status, 0, &usage))) > 0)
        bough_minder_reaped(&init->boot.minder, pid, status, &usage);
}

/* While a copy is made of the upper directory it stays what it is. */
static void wait_for_thaw(struct init *init)
{
    struct bough_message msg;
    bool still = true;
    while (still && bough_recv(init->sock, &msg, NULL) > 0) {
        still = msg.type != BOUGH_MSG_THAW;
        bough_msg_clear(&msg);
    }
}

/* The command, or the duty, is over: so is everything that runs. The ends of processes are told before that of
 * the sandbox. */
static _Noreturn void finish(struct init *init, bool keep)
{
    struct bough_err err;
    struct rusage usage;
    struct bough_ending *e = &init->ending;
    bool copied = init->freeze.state == BOUGH_FREEZE_STILL;
    e->elapsed_ns = bough_now_ns() - init->started_ns;
    kill(-1, SIGKILL);
    reap_all(init);
    /* Files there count as memory: with a limit they might leave none for what follows. */
    if (init->plan.limits.memory > 0)
        umount2("/dev/shm", MNT_DETACH);
    getrusage(RUSAGE_CHILDREN, &usage);
    e->user_us = usage.ru_utime.tv_sec * 1000000LL + usage.ru_utime.tv_usec;
    e->system_us = usage.ru_stime.tv_sec * 1000000LL + usage.ru_stime.tv_usec;
    e->max_rss = usage.ru_maxrss * 1024LL;
    /* What another run may use: the overlay when nothing was changed, the network when nothing was sent. */
    int spare, fds[3], count = 0;
    int netns = init->host_network ? -1 : unused_network();
    if (bough_root_seal(&init->root, keep, init->host_network, &spare, e, &err) < 0)
        give_up(init, &err);
    if (copied)
        bough_fd_close(&spare);
    if (spare >= 0) {
        fds[count++] = spare;
        fds[count++] = init->root.upper_fd;
    }
    if (netns >= 0)
        fds[count++] = netns;
    struct bough_wbuf body = {0};
    bough_ending_put(&body, e);
    bough_send(init->sock, BOUGH_MSG_EXITED, 0, &body, fds, count, NULL);
    if (init->booted)
        bough_boot_close(&init->boot);
    if (copied)
        wait_for_thaw(init);
    /* The work directory of a layer is left to the keeper, which removes them many at a time. */
    if (spare < 0 && !e->changed)
        bough_root_tidy(&init->root);
    _exit(0);
}

static void reap(struct init *init)
{
    struct signalfd_siginfo info;
    while (read(init->signals, &info, sizeof info) == (ssize_t)sizeof info)
        continue;
    struct rusage usage;
    int status;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
        if (pid == init->child.sleeper)
            init->child.sleeper = 0; /* the next command finds out */
        else if (init->booted)
            bough_minder_reaped(&init->boot.minder, pid, status, &usage);
        if (pid == init->command) {
            init->ending.status = status;
            finish(init, init->plan.keep);
        }
    }
}

/* --- standing still ------------------------------------------------------------------------------ */

static void freeze_step(struct init *init)
{
    struct bough_err err;
    struct bough_wbuf body = {0};
    int64_t id = init->freeze.id;
    int rc = bough_freeze_step(&init->freeze, init->child.sleeper, &err);
    if (rc > 0) {
        bough_put_i64(&body, !bough_root_untouched(&init->root));
        bough_send(init->sock, BOUGH_MSG_FROZEN, id, &body, &init->root.upper_fd, 1, NULL);
    } else if (rc < 0) {
        bough_put_err(&body, &err);
        bough_send(init->sock, BOUGH_MSG_FAILED, id, &body, NULL, 0, NULL);
    }
    bough_wbuf_free(&body);
}

/* --- the loop ------------------------------------------------------------------------------------ */

static _Noreturn void be_killed(struct init *init)
{
    init->ending.status = SIGKILL; /* as of a run's command */
    finish(init, init->plan.keep);
}

/* While processes stand still, or are about to, none is started or signalled. A host that has hung up is heard all the
 * same. */
static void serve(struct init *init, short events)
{
    bool starting = init->freeze.state == BOUGH_FREEZE_NONE;
    if (events & POLLOUT)
        bough_minder_flush(&init->boot.minder);
    if (!(events & POLLHUP) && !(starting && events & POLLIN))
        return;
    enum bough_boot_wish wish = bough_boot_serve(&init->boot, starting);
    if (wish != BOUGH_BOOT_GO_ON)
        finish(init, wish == BOUGH_BOOT_END_AND_KEEP);
}

/* What the host has said on its own socket before it asked for a commit comes first. */
static void hear_out(struct init *init)
{
    struct pollfd fd = {.fd = init->boot.minder.sock, .events = POLLIN};
    for (int i = 0; i < HEAR_OUT_MAX && poll(&fd, 1, 0) > 0 && fd.revents & POLLIN; i++)
        serve(init, fd.revents);
}

static void obey(struct init *init)
{
    struct bough_message msg;
    int rc = bough_recv(init->sock, &msg, NULL);
    if (rc <= 0)
        _exit(1); /* the keeper is gone */
    switch (msg.type) {
    case BOUGH_MSG_RUN:
        if (!init->entered)
            carry_out(init, &msg);
        break;
    case BOUGH_MSG_KILL:
        if (init->booted)
            be_killed(init);
        kill(-1, SIGKILL);
        break;
    case BOUGH_MSG_FREEZE:
        hear_out(init);
        bough_freeze_begin(&init->freeze, msg.id);
        freeze_step(init);
        break;
    case BOUGH_MSG_THAW:
        if (init->freeze.state != BOUGH_FREEZE_NONE)
            bough_freeze_end(&init->freeze, init->child.sleeper);
        break;
    default:
        break;
    }
    bough_msg_clear(&msg);
}

static int time_left(const struct init *init)
{
    if (init->freeze.state == BOUGH_FREEZE_STOPPING)
        return 1;
    return init->booted ? bough_minder_timeout(&init->boot.minder) : -1;
}

_Noreturn void bough_init_main(const struct bough_site *site, int sock, bool host_network,
                               int netns)
{
    struct init init = {.site = site,
                        .sock = sock,
                        .child = {.site = site, .userns_fd = -1},
                        .root = {.upper_fd = -1, .reused = -1}};
    init.host_network = host_network;
    prepare(&init, netns);
    struct pollfd fds[3] = {
        {.fd = init.sock, .events = POLLIN}, {.fd = init.signals, .events = POLLIN}, {.fd = -1}};
    for (;;) {
        if (init.booted) {
            fds[2].fd = init.boot.minder.sock;
            fds[2].events = (short)((init.freeze.state == BOUGH_FREEZE_NONE ? POLLIN : 0) |
                                    (init.boot.minder.unsaid ? POLLOUT : 0));
        }
        if (poll(fds, 3, time_left(&init)) < 0 && errno != EINTR)
            _exit(1);
        if (fds[1].revents)
            reap(&init);
        if (fds[0].revents)
            obey(&init);
        if (fds[2].revents)
            serve(&init, fds[2].revents);
        if (init.freeze.state == BOUGH_FREEZE_STOPPING)
            freeze_step(&init);
        if (init.booted)
            bough_minder_clock(&init.boot.minder);
        fds[0].revents = fds[1].revents = fds[2].revents = 0;
    }
}
