/* spawn_host.h - the host's side of bough-spawn over a bare socket, for spawn_test.c. */
#ifndef SPAWN_HOST_H
#define SPAWN_HOST_H

#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "../../src/command.h"
#include "../../src/launch.h"

#pragma GCC diagnostic ignored "-Wunused-function"
#include "tree_support.h"

#define PATIENCE_MS 60000

static int host_start(void)
{
    const char *path = getenv("BOUGH_SPAWN");
    const char *argv[] = {"bough-spawn", NULL};
    return MUST(bough_launch("spawner", path ? path : "", (char *const *)(uintptr_t)argv, &err));
}

static char *const PLAIN_ENV[] = {"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL=C", NULL};

/* What a test wants of a command; the rest is as in these. */
static struct bough_command command_of(char **argv)
{
    return (struct bough_command){
        .argv = argv, .env = (char **)(uintptr_t)PLAIN_ENV, .cwd = "/", .user = ""};
}

#define ARGV(...) ((char **)(uintptr_t)(const char *[]){__VA_ARGS__, NULL})
#define SHELL(text) ARGV("sh", "-c", text)

static void host_exec(int sock, int64_t id, const struct bough_command *command, const int *fds)
{
    struct bough_wbuf body = {0};
    bough_command_put(&body, command);
    int count = __builtin_popcount((unsigned)command->streams);
    for (;;) {
        if (bough_send(sock, BOUGH_MSG_EXEC, id, &body, fds, count, &err) == 0)
            break;
        struct pollfd ready = {.fd = sock, .events = POLLOUT};
        MUST(err.sys == EAGAIN ? poll(&ready, 1, PATIENCE_MS) : -1);
    }
    bough_wbuf_free(&body);
}

static void host_signal(int sock, int64_t id, int number, enum bough_scope scope)
{
    struct bough_wbuf body = {0};
    bough_put_i64(&body, number);
    bough_put_i64(&body, scope);
    MUST(bough_send(sock, BOUGH_MSG_SIGNAL, id, &body, NULL, 0, &err));
    bough_wbuf_free(&body);
}

/* The next message; false when there is none: the program has gone. */
static bool host_hear(int sock, struct bough_message *msg)
{
    struct pollfd ready = {.fd = sock, .events = POLLIN};
    if (MUST(poll(&ready, 1, PATIENCE_MS)) == 0) {
        printf("Bail out! nothing was heard for %d ms\n", PATIENCE_MS);
        exit(1);
    }
    int rc = bough_recv(sock, msg, &err);
    if (rc < 0)
        MUST(rc);
    return rc > 0;
}

/* How one command went. `master` is the caller's to close. */
struct story {
    bool started, ended, failed;
    pid_t pid;
    int master;
    struct bough_end end;
    struct bough_err why;
};

/* Takes in one message and returns the id it was about, 0 when the program has gone. */
static int64_t host_turn(int sock, struct story *stories, int count)
{
    struct bough_message msg;
    if (!host_hear(sock, &msg))
        return 0;
    int64_t id = msg.id;
    struct story *s = id > 0 && id <= count ? &stories[id - 1] : NULL;
    if (s && msg.type == BOUGH_MSG_STARTED) {
        s->started = !s->started && !s->ended && !s->failed;
        s->pid = (pid_t)bough_get_i64(&msg.body);
        s->master = msg.fd_count > 0 ? bough_steal_fd(&msg.fds[0]) : -1;
    } else if (s && msg.type == BOUGH_MSG_ENDED) {
        s->ended = s->started && !s->ended && bough_end_get(&msg.body, &s->end, &err) == 0;
    } else if (s && msg.type == BOUGH_MSG_FAILED) {
        s->failed = !s->started && !s->failed;
        bough_get_err(&msg.body, &s->why);
    }
    bough_msg_clear(&msg);
    return id;
}

static struct story host_begin(int sock, const struct bough_command *command, const int *fds)
{
    struct story s = {.master = -1};
    host_exec(sock, 1, command, fds);
    while (!s.started && !s.failed && host_turn(sock, &s, 1))
        continue;
    return s;
}

static void host_finish(int sock, struct story *s)
{
    while (!s->ended && !s->failed && host_turn(sock, s, 1))
        continue;
}

static struct story host_run(int sock, const struct bough_command *command, const int *fds)
{
    struct story s = host_begin(sock, command, fds);
    host_finish(sock, &s);
    return s;
}

/* All until the end of the file. Who holds its other end is gone then. */
static void read_all(int fd, char *text, size_t size)
{
    size_t done = 0;
    for (ssize_t n; done < size - 1; done += (size_t)n) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        if (MUST(poll(&ready, 1, PATIENCE_MS)) == 0) {
            printf("Bail out! no end of a stream for %d ms\n", PATIENCE_MS);
            exit(1);
        }
        n = BOUGH_RETRY(read(fd, text + done, size - 1 - done));
        if (n <= 0) /* of a terminal: EIO */
            break;
    }
    text[done] = '\0';
}

static void read_line(int fd, char *text, size_t size)
{
    size_t done = 0;
    while (done < size - 1 && BOUGH_RETRY(read(fd, text + done, 1)) == 1 && text[done] != '\n')
        done++;
    text[done] = '\0';
}

/* Runs a shell's line and gives what it printed. */
static struct story shell_run(int sock, const char *line, char *text, size_t size)
{
    int out[2];
    MUST(pipe2(out, O_CLOEXEC));
    struct bough_command command = command_of(SHELL(line));
    command.streams = 2;
    host_exec(sock, 1, &command, &out[1]);
    close(out[1]);
    struct story s = {.master = -1};
    host_finish(sock, &s);
    read_all(out[0], text, size);
    close(out[0]);
    return s;
}

static pid_t host_pid_of(int sock)
{
    char text[32];
    shell_run(sock, "echo $PPID", text, sizeof text);
    return (pid_t)strtol(text, NULL, 10);
}

/* Waits for the end of a process that is no child. */
static bool gone(int pidfd)
{
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    return poll(&ended, 1, PATIENCE_MS) == 1;
}

static bool ended_with(const struct story *s, int status)
{
    return s->started && s->ended && s->end.status == status && !s->end.timed_out;
}

#define EXITED(code) ((code) << 8)

#endif
