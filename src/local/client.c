#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../sys.h"

#define CALL_BUCKETS 64

struct call {
    struct call *next;
    int64_t id;
    bough_client_heard *heard;
    void *arg;
};

struct unsent {
    struct unsent *next;
    enum bough_msg type;
    int64_t id;
    struct bough_wbuf body;
    int fds[BOUGH_WIRE_FDS];
    int fd_count;
};

struct bough_client {
    int sock;
    int64_t last_id;
    int outstanding;
    struct call *calls[CALL_BUCKETS];
    struct unsent *unsent, **unsent_tail;
};

/* --- starting ----------------------------------------------------------------------------------- */

struct launch {
    const char *path;
    char **argv;
    int sock, host;
    char *stack2_top;
    int sys;
};

/* dup2 replaces, so this works even when the caller's descriptor table is full. */
BOUGH_FOREIGN_STACK static int place(int sock, int host)
{
    int a = 5, b = 6;
    while (a == sock || a == host)
        a++;
    while (b == sock || b == host || b == a)
        b++;
    return dup2(sock, a) < 0 || dup2(host, b) < 0 || dup2(a, 3) < 0 || dup2(b, 4) < 0 ? -1 : 0;
}

/* _exit(2) as a plain call: the address sanitizer takes a function that does not return for the end of the
 * stack it knows, and these run on another. */
BOUGH_FOREIGN_STACK static int leave(int status)
{
    return (int)syscall(SYS_exit_group, status);
}

BOUGH_FOREIGN_STACK static int launch_keeper(void *arg)
{
    struct launch *l = arg;
    char *env[] = {NULL};
    if (place(l->sock, l->host) == 0)
        execve(l->path, l->argv, env);
    l->sys = errno;
    return leave(127);
}

BOUGH_FOREIGN_STACK static int launch_between(void *arg)
{
    struct launch *l = arg;
    if (clone(launch_keeper, l->stack2_top, CLONE_VM | CLONE_VFORK | SIGCHLD, l) < 0)
        l->sys = errno;
    return leave(0);
}

#define LAUNCH_STACK (64 * 1024)

/* A child shares our memory until it has become the keeper (a fork of a large host would cost tens of
 * milliseconds). The process in between sends no signal when it ends (exit signal 0) and is only seen by
 * a wait that asks for clones; the keeper is then nobody's child but init's. */
static int launch(struct launch *l, struct bough_err *err)
{
    char *stacks = mmap(NULL, LAUNCH_STACK * 2, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stacks == MAP_FAILED)
        return bough_err_sys(err, errno, "starting the keeper");
    l->stack2_top = stacks + LAUNCH_STACK * 2;
    sigset_t all, before;
    sigfillset(&all);
    /* Handlers of the host must not run in a child that shares its memory. */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t pid = clone(launch_between, stacks + LAUNCH_STACK, CLONE_VM | CLONE_VFORK, l);
    int sys = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pid > 0)
        BOUGH_RETRY(waitpid(pid, NULL, __WCLONE));
    munmap(stacks, LAUNCH_STACK * 2);
    if (pid < 0)
        return bough_err_sys(err, sys, "starting the keeper");
    if (l->sys)
        return bough_err_sys(err, l->sys, "keeper %s", l->path);
    return 0;
}

struct bough_client *bough_client_start(const struct bough_client_options *o, struct bough_err *err)
{
    char spare[16], running[16];
    snprintf(spare, sizeof spare, "%d", o->spare);
    snprintf(running, sizeof running, "%d", o->running_max > 0 ? o->running_max : 256);
    const char *looker = o->looker ? o->looker : "";
    const char *argv[] = {"bough-keeper", "--home",    o->home,    "--owner", o->owner,
                          "--unpacker",   o->unpacker, "--looker", looker,    "--spare",
                          spare,          "--running", running,    NULL};
    struct bough_client *client = calloc(1, sizeof *client);
    int ends[2];
    if (!client) {
        bough_err_sys(err, ENOMEM, "starting the keeper");
        return NULL;
    }
    client->sock = -1;
    client->unsent_tail = &client->unsent;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) {
        bough_err_sys(err, errno, "starting the keeper");
        free(client);
        return NULL;
    }
    client->sock = ends[0];
    BOUGH_CLEANUP_FD int theirs = ends[1];
    BOUGH_CLEANUP_FD int host = (int)syscall(SYS_pidfd_open, getpid(), 0);
    struct launch l = {
        .path = o->keeper, .argv = (char **)(uintptr_t)argv, .sock = theirs, .host = host};
    int rc = host < 0 ? bough_err_sys(err, errno, "pidfd_open (Linux 5.3 or later is needed)")
                      : launch(&l, err);
    if (rc == 0 && fcntl(client->sock, F_SETFL, O_NONBLOCK) < 0)
        rc = bough_err_sys(err, errno, "starting the keeper");
    if (rc < 0) {
        bough_client_free(client);
        return NULL;
    }
    return client;
}

/* --- calls -------------------------------------------------------------------------------------- */

static struct call **find(struct bough_client *client, int64_t id)
{
    struct call **at = &client->calls[(uint64_t)id % CALL_BUCKETS];
    while (*at && (*at)->id != id)
        at = &(*at)->next;
    return at;
}

static int add_call(struct bough_client *client, int64_t id, bough_client_heard *heard, void *arg,
                    struct bough_err *err)
{
    struct call *call = calloc(1, sizeof *call);
    if (!call)
        return bough_err_sys(err, ENOMEM, "request");
    *call = (struct call){.id = id, .heard = heard, .arg = arg};
    struct call **at = &client->calls[(uint64_t)id % CALL_BUCKETS];
    call->next = *at;
    *at = call;
    client->outstanding++;
    return 0;
}

void bough_client_forget(struct bough_client *client, int64_t id)
{
    struct call **at = find(client, id);
    struct call *call = *at;
    if (call) {
        *at = call->next;
        free(call);
        client->outstanding--;
    }
}

/* The callback may forget its own call or make new ones, so nothing is held across it. */
static void tell_heard(struct bough_client *client, int64_t id, struct bough_message *msg,
                       const struct bough_err *failure)
{
    struct call *call = *find(client, id);
    if (!call)
        return;
    bool more = call->heard(call->arg, msg, failure);
    if (!more || !msg)
        bough_client_forget(client, id);
}

static void fail_all(struct bough_client *client, enum bough_err_kind kind, const char *text)
{
    struct bough_err err;
    bough_err_set(&err, kind, "%s", text);
    for (int i = 0; i < CALL_BUCKETS; i++)
        while (client->calls[i])
            tell_heard(client, client->calls[i]->id, NULL, &err);
}

static void unsent_free(struct unsent *u)
{
    for (int i = 0; i < u->fd_count; i++)
        close(u->fds[i]);
    bough_wbuf_free(&u->body);
    free(u);
}

static void drop_unsent(struct bough_client *client)
{
    while (client->unsent) {
        struct unsent *u = client->unsent;
        client->unsent = u->next;
        unsent_free(u);
    }
    client->unsent_tail = &client->unsent;
}

void bough_client_hang_up(struct bough_client *client)
{
    bough_fd_close(&client->sock);
    fail_all(client, BOUGH_ERR_closed, "the engine was closed");
}

void bough_client_free(struct bough_client *client)
{
    if (!client)
        return;
    bough_client_hang_up(client);
    drop_unsent(client);
    free(client);
}

int bough_client_fd(const struct bough_client *client)
{
    return client->sock;
}

int bough_client_outstanding(const struct bough_client *client)
{
    return client->outstanding;
}

bool bough_client_wants_write(const struct bough_client *client)
{
    return client->unsent != NULL;
}

static int queue(struct bough_client *client, enum bough_msg type, int64_t id,
                 const struct bough_wbuf *body, const int *fds, int fd_count, struct bough_err *err)
{
    struct unsent *u = calloc(1, sizeof *u);
    if (!u)
        return bough_err_sys(err, ENOMEM, "request");
    u->type = type;
    u->id = id;
    if (body && body->size) {
        u->body.data = malloc(body->size);
        if (!u->body.data) {
            free(u);
            return bough_err_sys(err, ENOMEM, "request");
        }
        memcpy(u->body.data, body->data, body->size);
        u->body.size = u->body.room = body->size;
    }
    for (int i = 0; i < fd_count; i++) {
        int fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
        if (fd < 0) {
            bough_err_sys(err, errno, "request");
            unsent_free(u);
            return -1;
        }
        u->fds[u->fd_count++] = fd;
    }
    *client->unsent_tail = u;
    client->unsent_tail = &u->next;
    return 0;
}

static int send_or_queue(struct bough_client *client, enum bough_msg type, int64_t id,
                         const struct bough_wbuf *body, const int *fds, int fd_count,
                         struct bough_err *err)
{
    if (client->sock < 0)
        return bough_err_set(err, BOUGH_ERR_closed,
                             "the keeper of this engine has ended; open the engine again");
    if (client->unsent)
        return queue(client, type, id, body, fds, fd_count, err);
    struct bough_err failure;
    if (bough_send(client->sock, type, id, body, fds, fd_count, &failure) == 0)
        return 0;
    if (failure.sys == EAGAIN || failure.sys == ENOBUFS || failure.sys == ETOOMANYREFS)
        return queue(client, type, id, body, fds, fd_count, err);
    if (failure.sys == EPIPE || failure.sys == ECONNRESET)
        return bough_err_set(err, BOUGH_ERR_closed,
                             "the keeper of this engine has ended; open the engine again");
    if (err)
        *err = failure;
    return -1;
}

void bough_client_expect_hello(struct bough_client *client, bough_client_heard *heard, void *arg)
{
    add_call(client, 0, heard, arg, NULL);
}

int64_t bough_client_ask(struct bough_client *client, enum bough_msg type,
                         const struct bough_wbuf *body, const int *fds, int fd_count,
                         bough_client_heard *heard, void *arg, struct bough_err *err)
{
    int64_t id = ++client->last_id;
    if (add_call(client, id, heard, arg, err) < 0)
        return -1;
    if (send_or_queue(client, type, id, body, fds, fd_count, err) < 0) {
        bough_client_forget(client, id);
        return -1;
    }
    return id;
}

int bough_client_tell(struct bough_client *client, enum bough_msg type, int64_t id,
                      struct bough_err *err)
{
    return send_or_queue(client, type, id, NULL, NULL, 0, err);
}

static void flush(struct bough_client *client)
{
    while (client->unsent) {
        struct unsent *u = client->unsent;
        struct bough_err err;
        if (bough_send(client->sock, u->type, u->id, &u->body, u->fds, u->fd_count, &err) < 0 &&
            (err.sys == EAGAIN || err.sys == ENOBUFS || err.sys == ETOOMANYREFS))
            return;
        client->unsent = u->next;
        if (!client->unsent)
            client->unsent_tail = &client->unsent;
        unsent_free(u);
    }
}

bool bough_client_pump(struct bough_client *client)
{
    while (client->sock >= 0) {
        struct bough_message msg;
        struct bough_err err;
        int rc = bough_recv(client->sock, &msg, &err);
        if (rc < 0 && err.sys == EAGAIN)
            break;
        if (rc < 0 &&
            err.sys == EMFILE) { /* this process has no descriptors left: that one answer is lost */
            tell_heard(client, msg.id, NULL, &err);
            continue;
        }
        if (rc <= 0) {
            bough_fd_close(&client->sock);
            drop_unsent(client);
            fail_all(client, BOUGH_ERR_closed,
                     "the keeper of this engine has ended; open the engine again");
            return false;
        }
        if (msg.type == BOUGH_MSG_FAILED) {
            bough_get_err(&msg.body, &err);
            tell_heard(client, msg.id, NULL, &err);
        } else {
            tell_heard(client, msg.id, &msg, NULL);
        }
        bough_msg_clear(&msg);
    }
    if (client->sock >= 0)
        flush(client);
    return client->sock >= 0;
}
