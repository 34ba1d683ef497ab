#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../launch.h"
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

#define KEEPER_ENDED "the keeper of this engine has ended; open the engine again"

struct bough_client {
    int sock;
    const char *ended; /* what to say when nobody is there any more */
    int64_t last_id;
    int outstanding;
    struct call *calls[CALL_BUCKETS];
    struct unsent *unsent, **unsent_tail;
};

/* --- starting ----------------------------------------------------------------------------------- */

struct bough_client *bough_client_start(const struct bough_client_options *o, struct bough_err *err)
{
    char spare[16], running[16];
    snprintf(spare, sizeof spare, "%d", o->spare);
    snprintf(running, sizeof running, "%d", o->running_max > 0 ? o->running_max : 256);
    const char *looker = o->looker ? o->looker : "";
    const char *argv[] = {"bough-keeper", "--home",    o->home,    "--owner", o->owner,
                          "--unpacker",   o->unpacker, "--looker", looker,    "--spare",
                          spare,          "--running", running,    NULL};
    BOUGH_CLEANUP_FD int sock =
        bough_launch("keeper", o->keeper, (char *const *)(uintptr_t)argv, err);
    if (sock < 0)
        return NULL;
    struct bough_client *client = bough_client_over(sock, KEEPER_ENDED);
    if (client)
        bough_steal_fd(&sock);
    else
        bough_err_sys(err, ENOMEM, "starting the keeper");
    return client;
}

struct bough_client *bough_client_over(int sock, const char *ended)
{
    struct bough_client *client = calloc(1, sizeof *client);
    if (!client)
        return NULL;
    client->sock = sock;
    client->ended = ended;
    client->unsent_tail = &client->unsent;
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
        return bough_err_set(err, BOUGH_ERR_closed, "%s", client->ended);
    if (client->unsent)
        return queue(client, type, id, body, fds, fd_count, err);
    struct bough_err failure;
    if (bough_send(client->sock, type, id, body, fds, fd_count, &failure) == 0)
        return 0;
    if (failure.sys == EAGAIN || failure.sys == ENOBUFS || failure.sys == ETOOMANYREFS)
        return queue(client, type, id, body, fds, fd_count, err);
    if (failure.sys == EPIPE || failure.sys == ECONNRESET)
        return bough_err_set(err, BOUGH_ERR_closed, "%s", client->ended);
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
                      const struct bough_wbuf *body, const int *fds, int fd_count,
                      struct bough_err *err)
{
    return send_or_queue(client, type, id, body, fds, fd_count, err);
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
            fail_all(client, BOUGH_ERR_closed, client->ended);
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
