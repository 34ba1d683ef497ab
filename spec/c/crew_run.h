/* crew_run.h - a keeper, booted sandboxes and processes in them, over the wire, for crew_test.c.
 *
 * One keeper at a time. Everything waits for messages, up to PATIENCE_S; then the test bails out. */
#ifndef CREW_RUN_H
#define CREW_RUN_H

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "../../src/command.h"
#include "../../src/local/client.h"
#include "../../src/plan.h"

#pragma GCC diagnostic ignored "-Wunused-function"
#include "tree_support.h"

#define PATIENCE_S 60
#define PROCS 4000
#define IMAGE 1 /* the layer with busybox */

static struct bough_client *keeper;
static char home[3100];
static const char *const keeper_owner = "crew";

/* What the keeper has said of one request. */
struct answer {
    int64_t id;
    enum bough_msg type; /* the last one: DONE, EXITED, FAILED, STARTED; 0: nothing yet */
    bool over;
    int64_t numbers[3];
    int64_t pid;
    struct bough_ending ending;
    struct bough_err err;
};

struct proc {
    int64_t id; /* in its sandbox, from 1 */
    bool started, ended, failed;
    int order; /* messages on the channel until its end was told */
    int64_t pid;
    int master;
    struct bough_end end;
    struct bough_err err;
};

struct box {
    int sock;
    bool hung_up; /* the channel: by the other end */
    struct answer run;
    struct proc *procs;
    int count, heard;
    int64_t layer;
};

static _Noreturn void bail(const char *what)
{
    printf("Bail out! %s\n", what);
    exit(1);
}

/* ---- the keeper ---- */

static bool heard(void *arg, struct bough_message *msg, const struct bough_err *failure)
{
    struct answer *a = arg;
    if (!msg) {
        a->type = BOUGH_MSG_FAILED;
        a->err = *failure;
        a->over = true;
        return false;
    }
    if (msg->type == BOUGH_MSG_PROGRESS)
        return true;
    a->type = msg->type;
    if (msg->type == BOUGH_MSG_EXITED)
        bough_ending_get(&msg->body, &a->ending, NULL);
    else if (msg->type == BOUGH_MSG_STARTED)
        a->pid = bough_get_i64(&msg->body);
    else
        for (int i = 0; i < 3; i++)
            a->numbers[i] = bough_get_i64(&msg->body);
    a->over = msg->type != BOUGH_MSG_STARTED;
    return !a->over;
}

static void ask(struct answer *a, enum bough_msg type, struct bough_wbuf *body, const int *fds,
                int count)
{
    *a = (struct answer){0};
    a->id = bough_client_ask(keeper, type, body, fds, count, heard, a, &err);
    if (a->id < 0)
        bail(err.msg);
    if (body)
        bough_wbuf_free(body);
}

static void keeper_start(void)
{
    struct bough_client_options options = {.keeper = getenv("BOUGH_KEEPER"),
                                           .unpacker = "/nowhere",
                                           .looker = "/nowhere",
                                           .home = home,
                                           .owner = keeper_owner,
                                           .spare = 2};
    struct answer hello = {0};
    keeper = bough_client_start(&options, &err);
    if (!keeper)
        bail(err.msg);
    bough_client_expect_hello(keeper, heard, &hello);
    while (!hello.over) {
        struct pollfd fd = {.fd = bough_client_fd(keeper), .events = POLLIN};
        poll(&fd, 1, PATIENCE_S * 1000);
        if (!bough_client_pump(keeper))
            bail(hello.err.msg);
    }
    if (hello.type == BOUGH_MSG_FAILED)
        bail(hello.err.msg);
}

/* ---- a sandbox ---- */

static struct proc *proc_of(struct box *box, int64_t id)
{
    return id > 0 && id <= box->count ? &box->procs[id - 1] : NULL;
}

static void box_take(struct box *box)
{
    struct bough_message msg;
    int rc = bough_recv(box->sock, &msg, &err);
    if (rc <= 0) {
        box->hung_up = true;
        bough_fd_close(&box->sock);
        return;
    }
    struct proc *p = proc_of(box, msg.id);
    if (!p)
        bail("a message of an unknown process");
    box->heard++;
    if (msg.type == BOUGH_MSG_STARTED) {
        if (p->started || p->ended || p->failed)
            bail("STARTED comes late");
        p->started = true;
        p->pid = bough_get_i64(&msg.body);
        if (msg.fd_count == 1)
            p->master = bough_steal_fd(&msg.fds[0]);
    } else if (msg.type == BOUGH_MSG_ENDED) {
        if (!p->started || p->ended)
            bail("ENDED without STARTED");
        p->ended = true;
        p->order = box->heard;
        bough_end_get(&msg.body, &p->end, NULL);
    } else if (msg.type == BOUGH_MSG_FAILED) {
        p->failed = true;
        bough_get_err(&msg.body, &p->err);
    }
    bough_msg_clear(&msg);
}

/* Waits for one event of the keeper or of this sandbox, or for `fd` to have something. */
static void turn(struct box *box, int fd)
{
    struct pollfd fds[3] = {{.fd = bough_client_fd(keeper), .events = POLLIN},
                            {.fd = box ? box->sock : -1, .events = POLLIN},
                            {.fd = fd, .events = POLLIN}};
    if (poll(fds, 3, PATIENCE_S * 1000) == 0)
        bail("nothing happens");
    if (fds[0].revents && !bough_client_pump(keeper))
        bail("the keeper has ended");
    if (box && fds[1].revents)
        box_take(box);
}

#define AWAIT(box, condition) \
    do                        \
        while (!(condition))  \
            turn((box), -1);  \
    while (0)

static int64_t next_layer = 10;

/* Asks for it; `plan` holds what is to be special. */
static struct box *box_ask(struct bough_plan plan)
{
    static char *none[] = {NULL};
    int64_t stack[] = {IMAGE};
    int ends[2];
    struct box *box = calloc(1, sizeof *box);
    box->procs = calloc(PROCS, sizeof *box->procs);
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
    box->sock = ends[0];
    box->layer = plan.layer = next_layer++;
    plan.stack = stack;
    plan.stack_count = 1;
    plan.argv = plan.env = none;
    plan.cwd = "/";
    plan.user = plan.resolv = "";
    plan.hostname = "crew";
    plan.announce = plan.boots = true;
    struct bough_wbuf body = {0};
    bough_plan_put(&body, &plan);
    ask(&box->run, BOUGH_MSG_RUN, &body, &ends[1], 1);
    close(ends[1]);
    return box;
}

static struct box *box_boot(struct bough_plan plan)
{
    struct box *box = box_ask(plan);
    AWAIT(box, box->run.type);
    if (box->run.type == BOUGH_MSG_FAILED)
        bail(box->run.err.msg);
    return box;
}

static void box_say(struct box *box, enum bough_msg type, int64_t id, int64_t a, int64_t b)
{
    struct bough_wbuf body = {0};
    bough_put_i64(&body, a);
    bough_put_i64(&body, b);
    if (bough_send(box->sock, type, id, &body, NULL, 0, &err) < 0)
        bail(err.msg);
    bough_wbuf_free(&body);
}

static void box_signal(struct box *box, const struct proc *p, int number, enum bough_scope scope)
{
    box_say(box, BOUGH_MSG_SIGNAL, p ? p->id : 0, number, scope);
}

/* Until the keeper has told its end; what the channel still holds is heard, too. */
static void box_await_end(struct box *box)
{
    AWAIT(box, box->run.over && box->hung_up);
}

static void box_free(struct box *box)
{
    for (int i = 0; i < box->count; i++)
        bough_fd_close(&box->procs[i].master);
    bough_fd_close(&box->sock);
    AWAIT(box, box->run.over);
    free(box->procs);
    free(box);
}

static void box_finish(struct box *box, bool keep)
{
    box_say(box, BOUGH_MSG_FINISH, 0, keep, 0);
    box_await_end(box);
}

/* ---- processes ---- */

static struct proc *box_exec(struct box *box, struct bough_command command, const int *fds)
{
    static char *path[] = {"PATH=/bin", NULL};
    struct proc *p = &box->procs[box->count++];
    if (box->count > PROCS)
        bail("too many processes");
    *p = (struct proc){.id = box->count, .master = -1};
    struct bough_wbuf body = {0};
    if (!command.env)
        command.env = path;
    if (!command.cwd)
        command.cwd = "/";
    if (!command.user)
        command.user = "";
    bough_command_put(&body, &command);
    if (bough_send(box->sock, BOUGH_MSG_EXEC, p->id, &body, fds,
                   __builtin_popcount((unsigned)command.streams), &err) < 0)
        bail(err.msg);
    bough_wbuf_free(&body);
    return p;
}

static struct proc *box_shell(struct box *box, const char *line)
{
    char *argv[] = {"/bin/sh", "-c", (char *)(uintptr_t)line, NULL};
    return box_exec(box, (struct bough_command){.argv = argv}, NULL);
}

static int proc_code(const struct proc *p)
{
    int status = (int)p->end.status;
    if (!p->ended)
        return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int proc_await(struct box *box, struct proc *p)
{
    AWAIT(box, p->ended || p->failed);
    if (p->failed)
        err = p->err;
    return proc_code(p);
}

/* What it writes to stdout and stderr, up to its end. */
static char said[8192];

static int box_capture(struct box *box, struct bough_command command)
{
    int ends[2];
    size_t n = 0;
    MUST(pipe2(ends, O_CLOEXEC));
    command.streams = 6;
    struct proc *p = box_exec(box, command, (int[]){ends[1], ends[1]});
    close(ends[1]);
    for (;;) {
        turn(box, ends[0]);
        struct pollfd fd = {.fd = ends[0], .events = POLLIN};
        if (poll(&fd, 1, 0) == 0)
            continue;
        ssize_t got = read(ends[0], said + n, sizeof said - 1 - n);
        if (got <= 0)
            break;
        n += (size_t)got;
    }
    close(ends[0]);
    said[n] = '\0';
    return proc_await(box, p);
}

static int box_run(struct box *box, const char *line)
{
    char *argv[] = {"/bin/sh", "-c", (char *)(uintptr_t)line, NULL};
    return box_capture(box, (struct bough_command){.argv = argv});
}

/* A shell line that says with a byte on stdout when it is ready. */
static struct proc *box_ready(struct box *box, const char *line)
{
    char *argv[] = {"/bin/sh", "-c", (char *)(uintptr_t)line, NULL};
    int ends[2];
    MUST(pipe2(ends, O_CLOEXEC));
    struct proc *p =
        box_exec(box, (struct bough_command){.argv = argv, .streams = 2}, (int[]){ends[1]});
    close(ends[1]);
    struct pollfd fd = {.fd = ends[0], .events = POLLIN};
    if (poll(&fd, 1, PATIENCE_S * 1000) != 1 || read(ends[0], said, 1) != 1)
        bail("a process that does not get ready");
    close(ends[0]);
    return p;
}

/* Reads from a terminal until `text` has come; what has come is in `said`. */
static bool expect(struct box *box, struct proc *p, const char *text)
{
    size_t n = 0;
    AWAIT(box, p->started || p->failed);
    if (p->failed)
        err = p->err;
    said[0] = '\0';
    while (!p->failed && !strstr(said, text)) {
        struct pollfd fd = {.fd = p->master, .events = POLLIN};
        ssize_t got = poll(&fd, 1, PATIENCE_S * 1000) == 1
                          ? read(p->master, said + n, sizeof said - 1 - n)
                          : -1;
        if (got <= 0)
            return false;
        n += (size_t)got;
        said[n] = '\0';
    }
    return !p->failed;
}

/* ---- layers ---- */

/* The first line of a file in a new layer; "(none)" without. */
static const char *layer_text(int64_t layer, const char *name)
{
    static char text[256];
    char path[4000];
    snprintf(path, sizeof path, "%s/tmp/%s/%lld/fs/%s", home, keeper_owner, (long long)layer, name);
    BOUGH_CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    text[n > 0 ? n : 0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return n < 0 ? "(none)" : text;
}

static bool layer_there(int64_t layer)
{
    char path[4000];
    snprintf(path, sizeof path, "%s/tmp/%s/%lld", home, keeper_owner, (long long)layer);
    return access(path, F_OK) == 0;
}

static int64_t commit_ask(struct answer *a, int64_t sandbox)
{
    struct bough_wbuf body = {0};
    int64_t layer = next_layer++;
    bough_put_i64(&body, sandbox);
    bough_put_i64(&body, layer);
    ask(a, BOUGH_MSG_COMMIT, &body, NULL, 0);
    return layer;
}

static int64_t commit(struct answer *a, struct box *box)
{
    int64_t layer = commit_ask(a, box->run.id);
    AWAIT(box, a->over);
    if (a->type == BOUGH_MSG_FAILED)
        err = a->err;
    return layer;
}

#endif
