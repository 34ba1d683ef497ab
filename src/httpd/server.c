/* server.c - connections, and what passes on them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "httpd/exchange.h"
#include "sys.h"

enum {
    BACKLOG = 1024,
    LINGERERS = 128,          /* connections at most that are only drained */
    LINGER_PORTION = 1 << 20, /* that is read of each in one go */
    LINGER_MOST = 256 << 20,  /* and altogether */
    READER = 3,               /* times as long as a writer may a reader be slow */
    DROP_MOST = 64 << 20,     /* of a body that nobody wants, before the answer */
};

static const int64_t SECOND = 1000000000;
static const int64_t LINGER_PAUSE = 50000000;

/* A connection that is over for us, while its client is still sending: to close it now would reset it,
 * and the answer would be lost. */
struct lingerer {
    struct lingerer *next;
    int fd;
    int64_t until;
    uint64_t dropped;
};

struct httpd_server {
    struct httpd_options options; /* its strings are gone */
    struct MHD_Daemon *daemon;
    struct httpd_listener listener; /* fd -1 when quiet */
    struct httpd_press *press;
    struct httpd_connection *connections;
    struct httpd_hook lists[HTTPD_LISTS];
    struct lingerer *lingerers;
    unsigned lingering;
    unsigned count, busy;
    uint64_t last;
    int fd;
    bool secure, quiet, ending;
    int64_t swept;
};

const struct httpd_options *httpd_server_options(const struct httpd_server *server)
{
    return &server->options;
}

struct httpd_press *httpd_server_press(struct httpd_server *server)
{
    return server->press;
}

bool httpd_server_is_quiet(const struct httpd_server *server)
{
    return server->quiet;
}

struct httpd_hook *httpd_server_list(struct httpd_server *server, enum httpd_list list)
{
    return &server->lists[list];
}

static struct httpd_exchange *first(struct httpd_server *server, enum httpd_list list)
{
    struct httpd_hook *head = &server->lists[list];
    return head->next == head ? NULL : httpd_exchange_of(head->next, list);
}

uint64_t httpd_server_count(struct httpd_server *server)
{
    return ++server->last;
}

int httpd_server_fd(const struct httpd_server *server)
{
    return server->fd;
}

unsigned httpd_server_port(const struct httpd_server *server)
{
    return server->listener.port;
}

const char *httpd_server_address(const struct httpd_server *server)
{
    return server->listener.address;
}

unsigned httpd_server_connections(const struct httpd_server *server)
{
    return server->count;
}

unsigned httpd_server_busy(const struct httpd_server *server)
{
    return server->busy;
}

struct httpd_exchange *httpd_server_take(struct httpd_server *server)
{
    struct httpd_exchange *x = first(server, HTTPD_READY);
    if (!x)
        return NULL;
    httpd_exchange_leave(x, HTTPD_READY);
    x->taken = true;
    x->refs++;
    return x;
}

struct httpd_exchange *httpd_server_news(struct httpd_server *server, unsigned *news)
{
    struct httpd_exchange *x = first(server, HTTPD_TALK);
    if (!x)
        return NULL;
    *news = x->news;
    x->news = 0;
    httpd_exchange_leave(x, HTTPD_TALK);
    if (x->over)
        x->server = NULL;
    return x;
}

/* Connections ---------------------------------------------------------------------------------- */

static void enter(struct httpd_connection *connection, enum httpd_phase phase)
{
    connection->phase = phase;
    connection->since = bough_now_ns();
    connection->measured = false;
    connection->window = 0;
}

static void begin_connection(struct httpd_server *server, struct MHD_Connection *mhd,
                             void **context)
{
    const union MHD_ConnectionInfo *fd =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
    const union MHD_ConnectionInfo *peer =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    struct httpd_connection *connection = calloc(1, sizeof *connection);
    if (!connection || !fd) {
        free(connection); /* without a context, its requests are turned down */
        return;
    }
    connection->server = server;
    connection->mhd = mhd;
    connection->fd = fd->connect_fd;
    connection->secure = server->secure;
    if (peer)
        httpd_address_text(peer->client_addr, connection->peer);
    connection->link = &server->connections;
    connection->next = server->connections;
    if (connection->next)
        connection->next->link = &connection->next;
    server->connections = connection;
    server->count++;
    enter(connection, HTTPD_HEADER);
    *context = connection;
}

static void linger(struct httpd_connection *connection)
{
    struct httpd_server *server = connection->server;
    if (server->ending || server->lingering >= LINGERERS)
        return;
    struct lingerer *lingerer = malloc(sizeof *lingerer);
    int fd = lingerer ? fcntl(connection->fd, F_DUPFD_CLOEXEC, 3) : -1;
    if (fd < 0) {
        free(lingerer);
        return;
    }
    *lingerer = (struct lingerer){
        .next = server->lingerers,
        .fd = fd,
        .until = bough_now_ns() + (int64_t)(server->options.linger_seconds * (double)SECOND)};
    server->lingerers = lingerer;
    server->lingering++;
}

static void end_connection(struct httpd_connection *connection)
{
    if (connection->linger)
        linger(connection);
    connection->server->count--;
    *connection->link = connection->next;
    if (connection->next)
        connection->next->link = connection->link;
    free(connection);
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    struct httpd_server *server = cls;
    if (what == MHD_CONNECTION_NOTIFY_STARTED)
        begin_connection(server, mhd, context);
    else if (*context)
        end_connection(*context);
}

/* Requests ------------------------------------------------------------------------------------- */

static void *on_target(void *cls, const char *target, struct MHD_Connection *mhd)
{
    struct httpd_server *server = cls;
    const union MHD_ConnectionInfo *context =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct httpd_connection *connection = context ? context->socket_context : NULL;
    if (!connection || connection->exchange)
        return NULL;
    struct httpd_exchange *x = httpd_exchange_new(connection, target);
    if (!x)
        return NULL;
    connection->exchange = x;
    server->busy++;
    /* the header is still coming: its time runs on */
    if (connection->phase != HTTPD_HEADER)
        enter(connection, HTTPD_HEADER);
    return x;
}

static enum MHD_Result on_body(struct httpd_exchange *x, const char *data, size_t *size)
{
    const struct httpd_options *options = &x->server->options;
    if (x->answered) { /* too late: read it, so that the answer can be sent */
        x->dropped += *size;
        x->in_bytes += *size;
        *size = 0;
        x->connection->linger = true;
        return x->dropped > DROP_MOST ? MHD_NO : MHD_YES;
    }
    size_t room = x->in.length < options->ahead ? options->ahead - x->in.length : 0;
    size_t taken = *size < room ? *size : room;
    if (taken && !httpd_queue_put(&x->in, data, taken))
        return MHD_NO;
    x->in_bytes += taken;
    *size -= taken;
    if (!x->handed && x->in.length >= HTTPD_SMALL_BODY)
        httpd_exchange_hand(x);
    if (x->handed) {
        httpd_exchange_tell(x, HTTPD_NEWS_BODY);
        if (x->in.length >= options->ahead)
            httpd_exchange_suspend(x);
    }
    return MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *mhd, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *size, void **context)
{
    (void)cls;
    (void)mhd;
    (void)url;
    struct httpd_exchange *x = *context;
    if (!x || x->broken || !x->server)
        return MHD_NO;
    httpd_exchange_leave(x, HTTPD_FRESH);
    if (!x->seen) {
        x->seen = true;
        enter(x->connection, HTTPD_BUSY);
        if (!httpd_exchange_capture(x, method, version))
            return MHD_NO;
        if (httpd_exchange_is_early(x)) {
            x->held = true;
            httpd_exchange_hand(x);
            httpd_exchange_suspend(x);
        }
        return MHD_YES;
    }
    if (*size)
        return on_body(x, data, size);
    if (x->held) { /* the first call once more: nothing of a body has been read */
        x->held = false;
        return x->response ? httpd_exchange_queue(x) : MHD_YES;
    }
    if (!x->in_over) {
        x->in_over = true;
        httpd_exchange_tell(x, HTTPD_NEWS_BODY);
    }
    if (x->response)
        return httpd_exchange_queue(x);
    if (!x->handed)
        httpd_exchange_hand(x);
    httpd_exchange_list(x, HTTPD_FRESH);
    return MHD_YES;
}

/* Most requests are answered before the server runs again, and those need not be suspended. It would not do to
 * suspend the others in on_request either: MHD would take them for ones that it still has to read, and when they
 * are resumed, it would read, find that the client has closed its side, and hang up. */
static void suspend_the_unanswered(struct httpd_server *server)
{
    struct httpd_hook *head = &server->lists[HTTPD_FRESH];
    for (struct httpd_hook *hook = head->next, *next; hook != head; hook = next) {
        next = hook->next;
        struct httpd_exchange *x = httpd_exchange_of(hook, HTTPD_FRESH);
        if (x->response || x->broken)
            continue;
        httpd_exchange_leave(x, HTTPD_FRESH);
        httpd_exchange_suspend(x);
    }
}

/* The answered ones are no longer fresh when MHD has looked at them again, as it should have. */
static void push_the_answered(struct httpd_server *server)
{
    struct httpd_hook *head = &server->lists[HTTPD_FRESH];
    for (struct httpd_hook *hook = head->next, *next; hook != head; hook = next) {
        next = hook->next;
        struct httpd_exchange *x = httpd_exchange_of(hook, HTTPD_FRESH);
        if (!x->response && !x->broken)
            continue;
        httpd_exchange_leave(x, HTTPD_FRESH);
        httpd_exchange_suspend(x);
        httpd_exchange_resume(x);
    }
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **context,
                         enum MHD_RequestTerminationCode how)
{
    (void)mhd;
    struct httpd_server *server = cls;
    struct httpd_exchange *x = *context;
    if (!x)
        return;
    *context = NULL;
    struct httpd_connection *connection = x->connection;
    unsigned news = HTTPD_NEWS_OVER;
    if (how != MHD_REQUEST_TERMINATED_COMPLETED_OK && !x->said) {
        x->gone = true;
        news |= HTTPD_NEWS_GONE;
    }
    httpd_exchange_tell(x, news);
    httpd_exchange_leave(x, HTTPD_READY); /* gone before anybody took it */
    httpd_exchange_leave(x, HTTPD_FRESH);
    x->over = true;
    x->connection = NULL;
    httpd_exchange_forget_answer(x);
    server->busy--;
    connection->exchange = NULL;
    enter(connection, HTTPD_IDLE);
    if (server->quiet)
        shutdown(connection->fd, SHUT_RD);
    if (!httpd_exchange_is_in(x, HTTPD_TALK))
        x->server = NULL;
    httpd_exchange_unref(x);
}

static size_t as_it_is(void *cls, struct MHD_Connection *mhd, char *text)
{
    (void)cls;
    (void)mhd;
    return strlen(text);
}

/* Once a second: who is too slow, and who has gone ------------------------------------------------ */

struct measure {
    bool known;
    bool closed;      /* by both sides, or reset */
    bool half_closed; /* the client sends no more */
    uint64_t received, acknowledged;
};

static void measure(int fd, struct measure *m)
{
    struct tcp_info info;
    socklen_t size = sizeof info;
    *m = (struct measure){0};
    memset(&info, 0, sizeof info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0)
        return;
    m->closed = info.tcpi_state == 7;      /* TCP_CLOSE */
    m->half_closed = info.tcpi_state == 8; /* TCP_CLOSE_WAIT */
    m->known = size >= offsetof(struct tcp_info, tcpi_bytes_received) + 8;
    m->received = info.tcpi_bytes_received;
    m->acknowledged = info.tcpi_bytes_acked;
}

static bool passed(int64_t since, double seconds, int64_t now)
{
    return (double)(now - since) > seconds * (double)SECOND;
}

static void hang_up(struct httpd_connection *connection)
{
    shutdown(connection->fd, SHUT_RDWR);
}

/* Whether too little has happened in the time for it. */
static bool is_slow(struct httpd_connection *connection, uint64_t progress, double seconds,
                    int64_t now)
{
    const struct httpd_options *options = &connection->server->options;
    if (!connection->window || (double)(progress - connection->progress) >= options->slow_bytes) {
        connection->window = now;
        connection->progress = progress;
        return false;
    }
    return passed(connection->window, seconds, now);
}

/* MHD does not see an end that came together with bytes. */
static bool is_unseen(const struct httpd_connection *connection, int64_t now)
{
    return connection->half && passed(connection->half, 0.9, now);
}

static void look_at_busy(struct httpd_connection *connection, const struct measure *m, int64_t now)
{
    const struct httpd_options *options = &connection->server->options;
    struct httpd_exchange *x = connection->exchange;
    if (m->closed || (connection->half && x->suspended &&
                      passed(connection->half, options->gone_seconds, now))) {
        if (!x->gone) {
            x->gone = true;
            httpd_exchange_tell(x, HTTPD_NEWS_GONE);
        }
        if (x->suspended)
            httpd_exchange_break(x);
        else
            hang_up(connection);
        return;
    }
    if (x->suspended)
        return;
    if (!x->queued && is_unseen(connection, now)) {
        hang_up(connection);
        return;
    }
    if (x->broken ||
        (x->answered && !x->queued && passed(x->answered_at, options->linger_seconds, now))) {
        hang_up(connection);
        return;
    }
    if (!x->queued) {
        if (!x->slow && is_slow(connection, x->in_bytes, options->slow_seconds, now)) {
            x->slow = true; /* it may still be told so */
            connection->window = 0;
            if (!x->handed)
                httpd_exchange_hand(x);
            else if (!x->answered)
                httpd_exchange_tell(x, HTTPD_NEWS_BODY);
            else
                hang_up(connection);
        } else if (x->slow && is_slow(connection, x->in_bytes, options->slow_seconds, now)) {
            hang_up(connection);
        }
    } else if (m->known &&
               is_slow(connection, m->acknowledged, READER * options->slow_seconds, now)) {
        hang_up(connection);
    }
}

static void look_at_waiting(struct httpd_connection *connection, const struct measure *m,
                            int64_t now)
{
    const struct httpd_options *options = &connection->server->options;
    if (is_unseen(connection, now)) {
        hang_up(connection);
        return;
    }
    if (connection->phase == HTTPD_HEADER) {
        if (passed(connection->since, options->header_seconds, now))
            hang_up(connection);
        return;
    }
    if (!connection->measured) {
        connection->measured = true;
        connection->received = m->received;
    } else if (m->known && m->received != connection->received) {
        enter(connection, HTTPD_HEADER);
        return;
    }
    if (passed(connection->since, options->idle_seconds, now))
        hang_up(connection);
}

static void sweep(struct httpd_server *server, int64_t now)
{
    struct measure m;
    for (struct httpd_connection *c = server->connections; c; c = c->next) {
        measure(c->fd, &m);
        if (!m.closed && !m.half_closed)
            c->half = 0;
        else if (!c->half)
            c->half = now;
        if (c->phase == HTTPD_BUSY && c->exchange)
            look_at_busy(c, &m, now);
        else
            look_at_waiting(c, &m, now);
    }
}

static void drain(struct httpd_server *server, int64_t now)
{
    for (struct lingerer **p = &server->lingerers, *l; (l = *p);) {
        size_t portion = 0;
        ssize_t got = 1;
        while (portion < LINGER_PORTION &&
               (got = recv(l->fd, NULL, LINGER_PORTION, MSG_DONTWAIT | MSG_TRUNC)) > 0)
            portion += (size_t)got;
        l->dropped += portion;
        bool alive = got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
        if (alive && now < l->until && l->dropped < LINGER_MOST) {
            p = &l->next;
            continue;
        }
        close(l->fd);
        *p = l->next;
        server->lingering--;
        free(l);
    }
}

/* The server ------------------------------------------------------------------------------------- */

double httpd_server_run(struct httpd_server *server)
{
    suspend_the_unanswered(server);
    MHD_run(server->daemon);
    push_the_answered(server);
    int64_t now = bough_now_ns();
    if (server->count && now - server->swept >= SECOND) {
        server->swept = now;
        sweep(server, now);
    }
    if (server->lingerers)
        drain(server, now);
    MHD_UNSIGNED_LONG_LONG ms;
    if (MHD_get_timeout(server->daemon, &ms) == MHD_YES && ms == 0)
        return 0;
    if (server->lingerers)
        return (double)LINGER_PAUSE / (double)SECOND;
    if (server->count)
        return (double)(SECOND - (now - server->swept)) / (double)SECOND;
    return -1;
}

void httpd_server_quiesce(struct httpd_server *server)
{
    if (server->quiet)
        return;
    server->quiet = true;
    MHD_socket fd = MHD_quiesce_daemon(server->daemon);
    if (fd != MHD_INVALID_SOCKET)
        close(fd);
    server->listener.fd = -1;
    for (struct httpd_connection *c = server->connections; c; c = c->next)
        if (!c->exchange)
            shutdown(c->fd, SHUT_RD); /* a request that is there already is read nevertheless */
}

static bool starts(struct httpd_server *server, const struct httpd_options *options,
                   struct bough_err *err)
{
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC;
    struct MHD_OptionItem more[8];
    size_t count = 0;
    if (options->cert) {
        flags |= MHD_USE_TLS;
        more[count++] =
            (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_CERT, 0, (void *)options->cert};
        more[count++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_KEY, 0, (void *)options->key};
        more[count++] = (struct MHD_OptionItem){
            MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)"NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"};
        if (options->key_password)
            more[count++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_KEY_PASSWORD, 0,
                                                    (void *)options->key_password};
    }
    more[count] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
    if (server->listener.ipv6)
        flags |= MHD_USE_IPv6;
    /* All of it is cleared before each request, so it is no larger than it must be. */
    size_t memory = options->header_bytes + (8 << 10);
    server->daemon = MHD_start_daemon(
        flags, (uint16_t)server->listener.port, NULL, NULL, on_request, server,
        MHD_OPTION_LISTEN_SOCKET, server->listener.fd, MHD_OPTION_CONNECTION_LIMIT,
        options->connections, MHD_OPTION_PER_IP_CONNECTION_LIMIT, options->per_ip,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, memory, MHD_OPTION_NOTIFY_COMPLETED, on_completed,
        server, MHD_OPTION_NOTIFY_CONNECTION, on_connection, server, MHD_OPTION_URI_LOG_CALLBACK,
        on_target, server, MHD_OPTION_UNESCAPE_CALLBACK, as_it_is, NULL,
        MHD_OPTION_STRICT_FOR_CLIENT, 0, MHD_OPTION_ARRAY, more, MHD_OPTION_END);
    if (!server->daemon) {
        if (options->cert)
            bough_err_set(
                err, BOUGH_ERR_invalid,
                "the certificate and its key cannot be used: both in PEM, and of one pair");
        else
            bough_err_sys(err, errno ? errno : ENOMEM, "cannot start the server");
        return false;
    }
    const union MHD_DaemonInfo *info =
        MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    server->fd = info ? info->epoll_fd : -1;
    if (server->fd < 0) {
        bough_err_set(err, BOUGH_ERR_unsupported, "this libmicrohttpd has no epoll");
        return false;
    }
    return true;
}

struct httpd_server *httpd_server_new(const struct httpd_options *options, struct bough_err *err)
{
    if (options->cert && MHD_is_feature_supported(MHD_FEATURE_TLS) != MHD_YES) {
        bough_err_set(err, BOUGH_ERR_unsupported, "this libmicrohttpd has no TLS");
        return NULL;
    }
    struct httpd_server *server = calloc(1, sizeof *server);
    struct httpd_press *press = httpd_press_new();
    if (!server || !press) {
        bough_err_sys(err, ENOMEM, "cannot start the server");
        httpd_press_free(press);
        free(server);
        return NULL;
    }
    for (int list = 0; list < HTTPD_LISTS; list++)
        server->lists[list] = (struct httpd_hook){&server->lists[list], &server->lists[list]};
    server->options = *options;
    server->options.address = server->options.cert = server->options.key =
        server->options.key_password = NULL;
    server->press = press;
    server->swept = bough_now_ns();
    server->secure = options->cert != NULL;
    server->listener.fd = -1;
    if (httpd_listen(&server->listener, options->address, options->port, BACKLOG, err) < 0 ||
        !starts(server, options, err)) {
        httpd_server_free(server);
        return NULL;
    }
    return server;
}

void httpd_server_free(struct httpd_server *server)
{
    if (!server)
        return;
    server->ending = true;
    if (server->daemon) {
        httpd_server_quiesce(server);
        for (struct httpd_connection *c = server->connections; c; c = c->next) {
            if (c->exchange)
                httpd_exchange_break(c->exchange);
            shutdown(c->fd, SHUT_RDWR);
        }
        /* Those that stood still must move before the daemon may stop. */
        for (int i = 0; i < 4 && server->count; i++)
            MHD_run(server->daemon);
        MHD_stop_daemon(server->daemon);
    } else if (server->listener.fd >= 0) {
        close(server->listener.fd);
    }
    for (struct httpd_exchange *x; (x = first(server, HTTPD_TALK));) {
        httpd_exchange_unlist(x);
        x->server = NULL;
    }
    for (struct lingerer *l = server->lingerers, *next; l; l = next) {
        next = l->next;
        close(l->fd);
        free(l);
    }
    httpd_press_free(server->press);
    free(server);
}
