/* bough-spawn - starts plain commands of the host, so that the host need neither fork nor have children.
 *
 * Started by core.so with descriptor 3, a SOCK_SEQPACKET to it, and 4, a pidfd of the host. Single-threaded,
 * event driven. Unlike the keeper it stays in the host's session and process group, and so do its commands:
 * less(1) or an editor finds the terminal that the host has. When the host closes the socket or dies, a guarded
 * terminal gets its settings back, and all commands are killed. What a command has left running when it ended by
 * itself, a daemon, goes on. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "../minder.h"
#include "../sys.h"
#include "start.h"

#define HOST_FD 3
#define HOST_PIDFD 4
#define PATIENCE_MS \
    2000 /* for the death of commands at the end; who takes longer is not waited for */

struct spawn {
    struct bough_minder minder;
    int signals;
    int guarded; /* a terminal, or -1 */
    struct termios settings;
};

static int set_up(struct spawn *s)
{
    struct sigaction fallback = {.sa_handler = SIG_DFL}, ignore = {.sa_handler = SIG_IGN};
    for (int sig = 1; sig < NSIG; sig++)
        if (sig != SIGKILL && sig != SIGSTOP)
            sigaction(sig, &fallback, NULL);
    for (int i = 0; i < bough_start_ignored_count; i++)
        sigaction(bough_start_ignored[i], &ignore, NULL);
    int null = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++)
        if (dup2(null, i) < 0)
            return -1;
    syscall(SYS_close_range, 5u, ~0u, 0u);
    fcntl(HOST_FD, F_SETFD, FD_CLOEXEC);
    fcntl(HOST_PIDFD, F_SETFD, FD_CLOEXEC);
    fcntl(HOST_FD, F_SETFL, O_NONBLOCK);
    if (chdir("/") < 0) /* the host's is not ours to keep busy; commands bring their own */
        return -1;
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    s->signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    return s->signals;
}

static void start_command(struct spawn *s, struct bough_message *msg)
{
    struct bough_command command;
    struct bough_err err;
    int master = -1;
    pid_t pid = -1;
    if (bough_command_get(&msg->body, &command, &err) == 0) {
        pid = bough_start(&command, msg->fds, msg->fd_count, &master, &err);
        if (pid > 0 &&
            bough_minder_add(&s->minder, msg->id, pid, command.timeout_ms, master, &err) < 0) {
            bough_minder_kill_tree(pid);
            BOUGH_RETRY(waitpid(pid, NULL, 0));
            pid = -1;
        }
        bough_command_clear(&command);
    }
    if (pid < 0)
        bough_minder_fail(&s->minder, msg->id, &err);
    bough_fd_close(&master);
}

static void signal_command(struct spawn *s, struct bough_message *msg)
{
    int64_t number = bough_get_i64(&msg->body);
    int64_t scope = bough_get_i64(&msg->body);
    if (!msg->body.failed)
        bough_minder_signal(&s->minder, msg->id, (int)number,
                            scope == BOUGH_SCOPE_TREE ? BOUGH_SCOPE_TREE : BOUGH_SCOPE_GROUP);
}

static void guard(struct spawn *s, struct bough_message *msg)
{
    bough_fd_close(&s->guarded);
    if (msg->fd_count == 0)
        return;
    const char *settings = bough_get_str(&msg->body);
    if (settings && msg->body.at - (const uint8_t *)settings == sizeof s->settings + 1) {
        memcpy(&s->settings, settings, sizeof s->settings);
        s->guarded = bough_steal_fd(&msg->fds[0]);
    }
}

/* False when the host is gone. */
static bool serve_host(struct spawn *s)
{
    struct bough_message msg;
    struct bough_err err;
    int rc = bough_recv(HOST_FD, &msg, &err);
    if (rc < 0 && err.sys == EMFILE) { /* this one is refused, the others go on */
        bough_minder_fail(&s->minder, msg.id, &err);
        return true;
    }
    if (rc < 0 && err.sys == EAGAIN)
        return true;
    if (rc <= 0)
        return false;
    switch (msg.type) {
    case BOUGH_MSG_EXEC:
        start_command(s, &msg);
        break;
    case BOUGH_MSG_SIGNAL:
        signal_command(s, &msg);
        break;
    case BOUGH_MSG_GUARD:
        guard(s, &msg);
        break;
    default:
        bough_err_set(&err, BOUGH_ERR_protocol, "bough-spawn: request %d is unknown",
                      (int)msg.type);
        bough_minder_fail(&s->minder, msg.id, &err);
    }
    bough_msg_clear(&msg);
    return true;
}

/* The host is dead. Of what it has said last only a terminal that it has just taken matters. */
static void hear_last_words(struct spawn *s)
{
    struct pollfd fd = {.fd = HOST_FD, .events = POLLIN};
    struct bough_message msg;
    struct bough_err err;
    while (poll(&fd, 1, 0) > 0 && bough_recv(HOST_FD, &msg, &err) > 0) {
        if (msg.type == BOUGH_MSG_GUARD)
            guard(s, &msg);
        bough_msg_clear(&msg);
    }
}

static void reap(struct spawn *s)
{
    struct signalfd_siginfo info;
    while (read(s->signals, &info, sizeof info) == (ssize_t)sizeof info)
        continue;
    int status;
    struct rusage usage;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0)
        bough_minder_reaped(&s->minder, pid, status, &usage);
}

static void loop(struct spawn *s)
{
    struct pollfd fds[3] = {{.fd = HOST_FD, .events = POLLIN},
                            {.fd = HOST_PIDFD, .events = POLLIN},
                            {.fd = s->signals, .events = POLLIN}};
    for (;;) {
        fds[0].events = (short)(POLLIN | (s->minder.unsaid ? POLLOUT : 0));
        int n = poll(fds, 3, bough_minder_timeout(&s->minder));
        if (n < 0 && errno != EINTR)
            return;
        if (n > 0 && fds[1].revents) {
            hear_last_words(s);
            return;
        }
        if (n > 0 && fds[2].revents)
            reap(s);
        if (n > 0 && fds[0].revents & POLLOUT)
            bough_minder_flush(&s->minder);
        if (n > 0 && fds[0].revents & ~POLLOUT && !serve_host(s))
            return;
        bough_minder_clock(&s->minder);
    }
}

/* Terminals first: the host's shell is about to take its own back. Ours may be in the background by now, which is
 * why SIGTTOU is ignored. */
static void end(struct spawn *s)
{
    if (s->guarded >= 0)
        tcsetattr(s->guarded, TCSANOW, &s->settings);
    s->minder.sock = -1;
    bough_minder_signal(&s->minder, 0, SIGKILL, BOUGH_SCOPE_TREE);
    int64_t until_ns = bough_now_ns() + PATIENCE_MS * INT64_C(1000000);
    for (;;) {
        reap(s);
        int64_t left_ns = until_ns - bough_now_ns();
        struct pollfd ready = {.fd = s->signals, .events = POLLIN};
        if (s->minder.count == 0 || left_ns <= 0)
            break;
        poll(&ready, 1, (int)(left_ns / 1000000) + 1);
    }
    bough_minder_clear(&s->minder);
}

int main(void)
{
    struct spawn s = {.minder = {.sock = HOST_FD}, .guarded = -1};
    if (set_up(&s) < 0)
        return 1;
    loop(&s);
    end(&s);
    return 0;
}
