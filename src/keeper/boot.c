#define _GNU_SOURCE
#include "boot.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include "../command.h"
#include "../sys.h"
#include "pty.h"
#include "start.h"

int bough_boot_open(struct bough_boot *boot, struct bough_child *child,
                    const struct bough_limits *limits, int sock, struct bough_err *err)
{
    *boot = (struct bough_boot){.child = child,
                                .limits = *limits,
                                .minder = {.sock = sock, .sessions = true},
                                .null = open("/dev/null", O_RDWR | O_CLOEXEC)};
    if (boot->null < 0)
        return bough_err_sys(err, errno, "sandbox: /dev/null");
    if (fcntl(sock, F_SETFL, O_NONBLOCK) < 0)
        return bough_err_sys(err, errno, "sandbox: socket");
    return 0;
}

/* How long a host that does not listen may keep us here: its processes are over, and so are we. */
#define PARTING_MS 30000

void bough_boot_close(struct bough_boot *boot)
{
    struct pollfd room = {.fd = boot->minder.sock, .events = POLLOUT};
    int64_t until_ns = bough_now_ns() + PARTING_MS * INT64_C(1000000), left_ns;
    while (!bough_minder_flush(&boot->minder) && (left_ns = until_ns - bough_now_ns()) > 0 &&
           !(room.revents & (POLLHUP | POLLERR)))
        poll(&room, 1, (int)(left_ns / 1000000) + 1);
    bough_fd_close(&boot->minder.sock);
    bough_fd_close(&boot->null);
    bough_minder_clear(&boot->minder);
}

static int start(struct bough_boot *boot, struct bough_message *msg,
                 const struct bough_command *command, struct bough_pty *pty, struct bough_err *err)
{
    struct bough_user user;
    if (bough_user_find(command->user, &user, err) < 0)
        return -1;
    struct bough_start start = {.argv = command->argv,
                                .env = command->env,
                                .cwd = command->cwd,
                                .user = &user,
                                .terminal = command->pty,
                                .files = command->files,
                                .limits = &boot->limits,
                                .one_of_many = true};
    if (command->pty && bough_pty_open(pty, &user, command->rows, command->cols, err) < 0)
        return -1;
    for (int i = 0, n = 0; i < 3; i++)
        start.fds[i] = command->pty                ? pty->slave
                       : command->streams & 1 << i ? msg->fds[n++]
                                                   : boot->null;
    if (bough_start(boot->child, &start, err) < 0)
        return -1;
    pid_t pid = boot->child->pid;
    if (bough_minder_add(&boot->minder, msg->id, pid, command->timeout_ms, pty->master, err) < 0) {
        kill(-pid, SIGKILL); /* nobody would ever hear of it */
        return -1;
    }
    return 0;
}

/* What it says of a process that runs comes before what it says of that process's end: both are said from here, one
 * after the other, and nothing is reaped in between. */
static void exec_command(struct bough_boot *boot, struct bough_message *msg)
{
    struct bough_err err;
    struct bough_command command;
    struct bough_pty pty = {.master = -1, .slave = -1};
    int rc = bough_command_get(&msg->body, &command, &err);
    if (rc == 0 &&
        msg->fd_count != (command.pty ? 0 : __builtin_popcount((unsigned)command.streams)))
        rc = bough_err_set(&err, BOUGH_ERR_protocol, "command: its streams are missing");
    if (rc == 0)
        rc = start(boot, msg, &command, &pty, &err);
    if (rc < 0)
        bough_minder_fail(&boot->minder, msg->id, &err);
    bough_pty_close(&pty);
    bough_command_clear(&command);
}

enum bough_boot_wish bough_boot_serve(struct bough_boot *boot, bool starting)
{
    struct bough_message msg;
    struct bough_err err;
    enum bough_boot_wish wish = BOUGH_BOOT_GO_ON;
    int rc = bough_recv(boot->minder.sock, &msg, &err);
    if (rc < 0 && err.sys == EMFILE) { /* that one is refused, the others go on */
        bough_minder_fail(&boot->minder, msg.id, &err);
        return wish;
    }
    if (rc < 0 && err.sys == EAGAIN)
        return wish;
    if (rc <= 0)
        return BOUGH_BOOT_END;
    if (msg.type == BOUGH_MSG_EXEC) {
        bough_err_set(&err, BOUGH_ERR_state, "sandbox: it is ending");
        if (starting)
            exec_command(boot, &msg);
        else
            bough_minder_fail(&boot->minder, msg.id, &err);
    } else if (msg.type == BOUGH_MSG_SIGNAL) {
        int number = (int)bough_get_i64(&msg.body);
        enum bough_scope scope = (enum bough_scope)bough_get_i64(&msg.body);
        if (!msg.body.failed)
            bough_minder_signal(&boot->minder, msg.id, number, scope);
    } else if (msg.type == BOUGH_MSG_FINISH) {
        wish = bough_get_i64(&msg.body) ? BOUGH_BOOT_END_AND_KEEP : BOUGH_BOOT_END;
    }
    bough_msg_clear(&msg);
    return wish;
}
