#define _GNU_SOURCE
#include "transfer.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "reach.h"
#include "sys.h"
#include "transfer_priv.h"

#define HEADERS_MOST ((size_t)512 << 10) /* of one exchange, redirects and all */
#define UNPACK_BYTES ((size_t)16 << 10)  /* at a time */
#define EXPECT_BYTES \
    ((int64_t)1 << 20)   /* libcurl asks first whether a file from this size on is wanted */
#define PROBES 3         /* unanswered, and an idle connection is dead */
#define UNHEARD_MS 10000 /* without an acknowledgement a connection is dead */

/* --- where the body goes ----------------------------------------------------------------------------- */

static bool is_redirect(long status)
{
    return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

/* Compressed bytes have come for which there is no room. */
static bool held(const struct bough_transfer *t)
{
    return t->more || t->packed_at < t->packed_size;
}

static bool spool_has_room(const struct bough_spool *spool, size_t size)
{
    if (spool->err.msg[0] || spool->closed)
        return true; /* it will say so */
    return !spool->reset_due && (!spool->busy || spool->work == BOUGH_SPOOL_WRITE) &&
           spool->in_size + size <= BOUGH_SPOOL_BUFFER;
}

static bool has_room(const struct bough_transfer *t, size_t size)
{
    if (t->stream) {
        size_t there = t->answer.size - t->answer.taken;
        return there == 0 || there + size <= BOUGH_TRANSFER_STREAM;
    }
    return !t->spooling || spool_has_room(t->spool, size);
}

/* Into memory; false ends the transfer, as below. */
static bool body_keep(struct bough_transfer *t, const char *data, size_t size)
{
    if (bough_answer_append(&t->answer, data, size))
        return true;
    bough_err_set(&t->err, BOUGH_ERR_resource, "out of memory");
    return false;
}

/* The body of an answer that says why there is nothing for the spool: its beginning will do. */
static bool body_aside(struct bough_transfer *t, const char *data, size_t size)
{
    size_t left = BOUGH_TRANSFER_ASIDE - t->answer.size;
    t->cut = size > left;
    return body_keep(t, data, t->cut ? left : size) && !t->cut;
}

/* There is room. */
static bool body_put(struct bough_transfer *t, const char *data, size_t size)
{
    if (t->stream) {
        bough_cond_fire(&t->changed);
    } else if (t->spooling) {
        if (bough_spool_put(t->spool, data, size) <= 0) {
            t->err = t->spool->err;
            return false;
        }
        t->received += (int64_t)size;
        return true;
    } else if (t->spool) {
        t->received += (int64_t)size;
        return body_aside(t, data, size);
    } else if ((int64_t)size > t->max_bytes - (int64_t)t->answer.size) {
        bough_err_set(&t->err, BOUGH_ERR_resource,
                      "%s sends more than the %lld bytes that are wanted", t->host,
                      (long long)t->max_bytes);
        return false;
    }
    t->received += (int64_t)size;
    return body_keep(t, data, size);
}

/* Unpacks as much as there is room for, and moves *data ahead. */
static bool unpack_from(struct bough_transfer *t, const char **data, size_t *size)
{
    char out[UNPACK_BYTES];
    while ((*size > 0 || t->more) && has_room(t, sizeof out)) {
        long got = bough_gunzip_take(t->gunzip, data, size, out, sizeof out);
        if (got < 0) {
            bough_err_set(&t->err, BOUGH_ERR_protocol,
                          "%s sends a compressed answer that cannot be unpacked", t->host);
            return false;
        }
        t->more = got == (long)sizeof out;
        if (got > 0 && !body_put(t, out, (size_t)got))
            return false;
    }
    return true;
}

static void packed_drop(struct bough_transfer *t)
{
    free(t->packed);
    t->packed = NULL;
    t->packed_at = t->packed_size = 0;
    t->more = false;
}

/* Goes on with what is held. */
static bool unpack_held(struct bough_transfer *t)
{
    const char *data = t->packed + t->packed_at;
    size_t size = t->packed_size - t->packed_at;
    bool good = unpack_from(t, &data, &size);
    t->packed_at = t->packed_size - size;
    if (!good || !held(t))
        packed_drop(t);
    return good;
}

static bool body_unpack(struct bough_transfer *t, const char *data, size_t size)
{
    if (!unpack_from(t, &data, &size))
        return false;
    if (size == 0)
        return true;
    t->packed = malloc(size);
    if (!t->packed) {
        bough_err_set(&t->err, BOUGH_ERR_resource, "out of memory");
        return false;
    }
    memcpy(t->packed, data, size);
    t->packed_size = size;
    return true;
}

/* Whether the answer is all there, as far as its compression tells: what just breaks off has no trailer. */
static bool is_whole(const struct bough_transfer *t)
{
    if (!t->gunzip || t->cut || bough_gunzip_ended(t->gunzip))
        return true;
    /* none at all is fine where something else says that it is over */
    return !bough_gunzip_begun(t->gunzip) && (t->framed || strcmp(t->method, "HEAD") == 0 ||
                                              t->answer.status == 204 || t->answer.status == 304);
}

/* --- what comes in, called by libcurl --------------------------------------------------------------- */

static void transfer_moved(struct bough_transfer *t)
{
    bool first = t->active_ns == 0;
    t->active_ns = bough_now_ns();
    if (first && t->stall_ms > 0)
        bough_http_stall_at(t->http, t->active_ns + t->stall_ms * 1000000);
}

/* What a spool resumed at is given, or not: then it starts over. */
static bool resume_fits(struct bough_transfer *t)
{
    if (t->answer.status == 206) {
        const char *range = bough_answer_field(&t->answer, "content-range");
        long long first = -1;
        if (range && sscanf(range, "bytes %lld-", &first) == 1 && first == t->resume_at)
            return true;
        bough_err_set(&t->err, BOUGH_ERR_protocol,
                      "%s was asked for the bytes from %lld on and sends others", t->host,
                      (long long)t->resume_at);
        return false;
    }
    t->resume_at = 0;
    bough_spool_reset(t->spool);
    return true;
}

static bool unpack_prepare(struct bough_transfer *t)
{
    const char *encoding = bough_answer_field(&t->answer, "content-encoding");
    if (!t->compressed || !encoding || !*encoding || strcasecmp(encoding, "identity") == 0)
        return true;
    if (strcasecmp(encoding, "gzip") != 0 && strcasecmp(encoding, "x-gzip") != 0) {
        bough_err_set(&t->err, BOUGH_ERR_protocol,
                      "%s sends an answer that is neither plain nor gzip, as it was told to",
                      t->host);
        return false;
    }
    t->gunzip = bough_gunzip_new();
    if (!t->gunzip)
        bough_err_set(&t->err, BOUGH_ERR_resource, "out of memory");
    return t->gunzip != NULL;
}

/* Not the last answer: libcurl goes on. */
static bool goes_on(struct bough_transfer *t, long status)
{
    if (status < 200)
        return true;
    t->sent = true;
    if (t->follow > 0 && is_redirect(status) && bough_answer_field(&t->answer, "location")) {
        t->asked = false; /* what comes next is another request */
        return true;
    }
    /* libcurl had asked whether the file is wanted, and is told not to ask but to send it */
    if (status == 417 && t->feed && t->feed->size > EXPECT_BYTES && !t->insists) {
        t->insists = true;
        t->asked = false;
        return true;
    }
    return false;
}

/* The empty line after a block of headers; false ends the transfer. */
static bool headers_end(struct bough_transfer *t)
{
    long status = 0, version = 0;
    char *url = NULL;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    if (goes_on(t, status))
        return true;
    bough_transfer_locate(t);
    if (curl_easy_getinfo(t->easy, CURLINFO_EFFECTIVE_URL, &url) == CURLE_OK && url)
        t->url = strdup(url);
    curl_easy_getinfo(t->easy, CURLINFO_HTTP_VERSION, &version);
    if (t->http2 && !t->away)
        t->origin->version = version >= CURL_HTTP_VERSION_2_0 ? 2 : 1;
    t->framed = version >= CURL_HTTP_VERSION_2_0 ||
                bough_answer_field(&t->answer, "content-length") ||
                bough_answer_field(&t->answer, "transfer-encoding");
    t->answer.status = status;
    t->spooling = t->spool && status >= 200 && status < 300;
    if (!unpack_prepare(t) || (t->spooling && t->resume_at > 0 && !resume_fits(t)))
        return false;
    const char *length = bough_answer_field(&t->answer, "content-length");
    long long bytes;
    if (length && !bough_answer_field(&t->answer, "content-encoding") &&
        sscanf(length, "%lld", &bytes) == 1 && bytes >= 0 && bytes < INT64_MAX / 2)
        t->expected = bytes + (t->spooling ? t->resume_at : 0);
    t->received = t->spooling ? t->resume_at : 0;
    t->headers_done = true;
    bough_cond_fire(&t->changed);
    return true;
}

/* CURLOPT_HEADERFUNCTION: one line at a time, of each answer on the way. */
static size_t on_header(char *line, size_t one, size_t size, void *arg)
{
    struct bough_transfer *t = arg;
    (void)one;
    transfer_moved(t);
    t->header_size += size;
    if (t->header_size > HEADERS_MOST) {
        bough_err_set(&t->err, BOUGH_ERR_protocol, "%s sends headers without end", t->host);
        return 0;
    }
    if (t->headers_done) /* trailers */
        return size;
    if (size >= 5 && memcmp(line, "HTTP/", 5) == 0) {
        bough_answer_clear(&t->answer);
        return size;
    }
    if (size <= 2 && (size == 0 || line[0] == '\r' || line[0] == '\n'))
        return headers_end(t) ? size : 0;
    if (!bough_answer_header(&t->answer, line, size)) {
        bough_err_set(&t->err, BOUGH_ERR_protocol, "%s sends more than %d headers", t->host,
                      BOUGH_ANSWER_FIELDS);
        return 0;
    }
    return size;
}

/* CURLOPT_WRITEFUNCTION */
static size_t on_body(char *data, size_t one, size_t size, void *arg)
{
    struct bough_transfer *t = arg;
    (void)one;
    transfer_moved(t);
    if (!t->headers_done) /* of an answer that is not the last */
        return size;
    if (held(t) || (!t->gunzip && !has_room(t, size))) {
        t->paused |= CURLPAUSE_RECV;
        return CURL_WRITEFUNC_PAUSE;
    }
    return (t->gunzip ? body_unpack(t, data, size) : body_put(t, data, size)) ? size : 0;
}

/* CURLOPT_READFUNCTION */
static size_t on_read(char *data, size_t one, size_t size, void *arg)
{
    struct bough_transfer *t = arg;
    transfer_moved(t);
    long n = bough_feed_take(t->feed, data, one * size);
    if (n >= 0)
        return (size_t)n;
    if (n == -1) {
        t->paused |= CURLPAUSE_SEND;
        return CURL_READFUNC_PAUSE;
    }
    t->err = t->feed->err;
    return CURL_READFUNC_ABORT;
}

/* CURLOPT_SEEKFUNCTION: to send the body once more. */
static int on_seek(void *arg, curl_off_t at, int origin)
{
    struct bough_transfer *t = arg;
    if (origin != SEEK_SET || at < 0 || at > t->feed->size)
        return CURL_SEEKFUNC_CANTSEEK;
    bough_feed_seek(t->feed, at);
    return CURL_SEEKFUNC_OK;
}

/* CURLOPT_XFERINFOFUNCTION: a body in memory has no other sign of life. */
static int on_progress(void *arg, curl_off_t total, curl_off_t now, curl_off_t up_total,
                       curl_off_t up_now)
{
    struct bough_transfer *t = arg;
    (void)total;
    (void)now;
    (void)up_total;
    if (up_now != t->uploaded) {
        t->uploaded = up_now;
        transfer_moved(t);
    }
    return 0;
}

/* CURLOPT_OPENSOCKETFUNCTION */
static curl_socket_t open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *addr)
{
    struct bough_transfer *t = arg;
    (void)purpose;
    if (t->http->outside && bough_reach_inside(&addr->addr) &&
        !bough_reach_proxy(t->http->proxy, &addr->addr)) {
        t->inside = true;
        return CURL_SOCKET_BAD;
    }
    if (t->phase == BOUGH_TRANSFER_STARTING && !t->opening) {
        t->opening = true;
        t->origin->opening++;
        t->origin->opening_ns = bough_now_ns();
        bough_http_stall_at(t->http, t->origin->opening_ns + BOUGH_ORIGIN_PATIENCE_NS);
    }
    int fd = socket(addr->family, addr->socktype | SOCK_CLOEXEC, addr->protocol), probes = PROBES;
    if (fd >= 0)
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    return fd;
}

/* Its phase and the origin's numbers. */
static void transfer_enter(struct bough_transfer *t, enum bough_transfer_phase phase)
{
    struct bough_origin *origin = t->origin;
    if (t->phase == BOUGH_TRANSFER_WAITING)
        bough_origin_unqueue(origin, t);
    else if (t->phase == BOUGH_TRANSFER_STARTING)
        origin->starting--;
    else if (t->phase == BOUGH_TRANSFER_ACTIVE) {
        origin->active--;
        t->http->active--;
        origin->quiet_ns = t->http->freed_ns = bough_now_ns();
    }
    if (t->opening)
        origin->opening--;
    t->opening = false;
    if (t->alone && phase > BOUGH_TRANSFER_ACTIVE) {
        t->http->alone--;
        t->alone = false;
    }
    t->phase = phase;
    if (phase == BOUGH_TRANSFER_WAITING)
        bough_origin_queue(origin, t);
    else if (phase == BOUGH_TRANSFER_STARTING)
        origin->starting++;
    else if (phase == BOUGH_TRANSFER_ACTIVE) {
        origin->active++;
        t->http->active++;
    }
}

/* What says who asks is for the host that was named, and does not come back when that is where it ends. */
static bool keep_to_origin(struct bough_transfer *t)
{
    CURLUcode why;
    char *url = NULL, *origin = NULL;
    if (t->away || curl_easy_getinfo(t->easy, CURLINFO_EFFECTIVE_URL, &url) != CURLE_OK || !url)
        return t->away;
    char *host = bough_transfer_host(url, &origin, &why);
    if (host)
        t->away = strcmp(origin, t->origin->name) != 0;
    free(host);
    free(origin);
    return host && (!t->away || bough_transfer_bare(t));
}

/* CURLOPT_PREREQFUNCTION: connected, about to ask; for the second time where libcurl found a reused connection dead,
 * or was told that the host is about to close it. */
static int on_connected(void *arg, char *ip, char *local_ip, int port, int local_port)
{
    struct bough_transfer *t = arg;
    long size = 0;
    (void)ip;
    (void)local_ip;
    (void)port;
    t->local_port = local_port;
    if (t->phase == BOUGH_TRANSFER_STARTING)
        transfer_enter(t, BOUGH_TRANSFER_ACTIVE);
    transfer_moved(t);
    curl_easy_getinfo(t->easy, CURLINFO_REQUEST_SIZE, &size);
    bool again = t->asked && size != t->asked_size;
    t->sent = t->sent || again;
    if (t->once && again) {
        bough_transfer_unanswered(t);
        return CURL_PREREQFUNC_ABORT;
    }
    if (!keep_to_origin(t)) {
        bough_err_set(&t->err, BOUGH_ERR_resource, "out of memory");
        return CURL_PREREQFUNC_ABORT;
    }
    t->asked = true;
    t->asked_size = size;
    return CURL_PREREQFUNC_OK;
}

/* --- the life of a transfer ------------------------------------------------------------------------- */

static void set_callbacks(struct bough_transfer *t)
{
    CURL *easy = t->easy;
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, on_connected);
    curl_easy_setopt(easy, CURLOPT_PREREQDATA, t);
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, open_socket);
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, t);
    if (t->feed) {
        curl_easy_setopt(easy, CURLOPT_READFUNCTION, on_read);
        curl_easy_setopt(easy, CURLOPT_READDATA, t);
        curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, on_seek);
        curl_easy_setopt(easy, CURLOPT_SEEKDATA, t);
    }
    if (t->body_size > 0) {
        curl_easy_setopt(easy, CURLOPT_NOPROGRESS, 0L);
        curl_easy_setopt(easy, CURLOPT_XFERINFOFUNCTION, on_progress);
        curl_easy_setopt(easy, CURLOPT_XFERINFODATA, t);
    }
}

static void transfer_settle(struct bough_transfer *t)
{
    struct bough_http *http = t->http;
    if (!t->err.msg[0] && !is_whole(t))
        bough_err_set(&t->err, BOUGH_ERR_transport,
                      "the answer of %s breaks off after %lld bytes, unpacked: try again", t->host,
                      (long long)t->received);
    packed_drop(t);
    bough_gunzip_free(t->gunzip);
    t->gunzip = NULL;
    if (t->spool) {
        if (t->spool->err.msg[0] && !t->err.msg[0])
            t->err = t->spool->err;
        t->spool->on_room = NULL;
        bough_spool_unref(t->spool);
        t->spool = NULL;
    }
    if (t->feed) {
        t->feed->on_ready = NULL;
        bough_feed_unref(t->feed);
        t->feed = NULL;
    }
    transfer_enter(t, BOUGH_TRANSFER_DONE);
    if (t->prev)
        t->prev->next = t->next;
    else
        http->transfers = t->next;
    if (t->next)
        t->next->prev = t->prev;
    if (--http->count == 0 && http->stall)
        uv_timer_stop(http->stall);
    t->done = true;
    bough_cond_fire(&t->changed);
    bough_transfer_unref(t);
}

/* Of one that is ending: unpacks more where there is room, and settles when all is where it goes. */
static void transfer_drain(struct bough_transfer *t)
{
    if (held(t) && !unpack_held(t))
        packed_drop(t);
    if (!held(t) && (!t->spool || !t->spool->busy))
        transfer_settle(t);
}

/* A connection that others share, and that has died without a word, would swallow whatever is sent next: TCP itself
 * takes a quarter of an hour to give it up. libcurl names its socket when it has ended the transfer, but not before. */
static void connection_check(const struct bough_transfer *t)
{
    curl_socket_t fd = CURL_SOCKET_BAD;
    struct tcp_info info;
    socklen_t size = sizeof info;
    if (t->origin->version != 2 || t->local_port == 0)
        return;
    curl_easy_getinfo(t->easy, CURLINFO_ACTIVESOCKET, &fd);
    if (fd == CURL_SOCKET_BAD)
        fd = bough_http_socket(t->http, t->local_port);
    if (fd != CURL_SOCKET_BAD && getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
        info.tcpi_unacked > 0 && info.tcpi_last_ack_recv >= UNHEARD_MS)
        shutdown(fd, SHUT_RDWR);
}

/* libcurl is done with it, or we are. What is unpacked or in the spool's buffers late is still waited for. */
void bough_transfer_finish(struct bough_transfer *t, int code)
{
    long size = 0;
    if (t->phase >= BOUGH_TRANSFER_ENDING)
        return;
    if (t->asked && curl_easy_getinfo(t->easy, CURLINFO_REQUEST_SIZE, &size) == CURLE_OK &&
        size != t->asked_size)
        t->sent = true;
    if (code == CURLE_OK && !t->headers_done)
        code = CURLE_GOT_NOTHING; /* libcurl takes half a header for a whole one */
    if (code != CURLE_OK && !t->err.msg[0] && !t->cut)
        bough_transfer_explain(t, (CURLcode)code);
    if (code == CURLE_OPERATION_TIMEDOUT)
        connection_check(t);
    if (t->phase >= BOUGH_TRANSFER_STARTING)
        curl_multi_remove_handle(t->http->multi, t->easy);
    curl_easy_cleanup(t->easy);
    t->easy = NULL;
    transfer_enter(t, BOUGH_TRANSFER_ENDING);
    transfer_drain(t);
}

static void transfer_unpause(struct bough_transfer *t, int bits)
{
    if (!(t->paused & bits) || t->phase >= BOUGH_TRANSFER_ENDING)
        return;
    t->paused &= ~bits;
    t->active_ns = 0; /* the time while it was paused is nobody's silence */
    transfer_moved(t);
    CURLcode code = curl_easy_pause(t->easy, t->paused);
    if (code != CURLE_OK)
        bough_transfer_finish(t, code);
}

/* There is room again in the spool, or in the stream's buffer. */
static void transfer_resume(struct bough_transfer *t)
{
    if (t->phase == BOUGH_TRANSFER_ENDING) {
        transfer_drain(t);
        return;
    }
    if (held(t)) {
        bool good = unpack_held(t);
        if (!good) {
            bough_transfer_finish(t, CURLE_WRITE_ERROR);
            return;
        }
        if (held(t))
            return;
        t->active_ns = 0; /* as above */
        transfer_moved(t);
    }
    transfer_unpause(t, CURLPAUSE_RECV);
}

static void on_room(void *arg)
{
    struct bough_transfer *t = arg;
    struct bough_http *http = t->http;
    bough_http_ref(http);
    transfer_resume(t);
    bough_http_admit(http);
    bough_http_unref(http);
}

static int64_t left_ms(const struct bough_transfer *t)
{
    int64_t left = t->timeout_ms - (bough_now_ns() - t->start_ns) / 1000000;
    return left > 0 ? left : 1;
}

void bough_transfer_admit(struct bough_transfer *t)
{
    bool shares = t->http2 && t->origin->version != 1;
    transfer_enter(t, BOUGH_TRANSFER_STARTING);
    t->alone = !shares;
    t->http->alone += t->alone;
    curl_easy_setopt(t->easy, CURLOPT_HTTP_VERSION,
                     shares ? (long)CURL_HTTP_VERSION_2TLS : (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(t->easy, CURLOPT_PIPEWAIT, shares ? 1L : 0L);
    if (t->timeout_ms > 0)
        curl_easy_setopt(t->easy, CURLOPT_TIMEOUT_MS, (long)left_ms(t));
    if (curl_multi_add_handle(t->http->multi, t->easy) != CURLM_OK) {
        transfer_enter(t, BOUGH_TRANSFER_PREPARING); /* libcurl does not have it */
        bough_transfer_finish(t, CURLE_OUT_OF_MEMORY);
    }
}

/* To be let in; what becomes of it is looked at by the time it is overdue. */
static void transfer_wait(struct bough_transfer *t)
{
    transfer_enter(t, BOUGH_TRANSFER_WAITING);
    int64_t due_ns = bough_transfer_due(t);
    if (due_ns < INT64_MAX)
        bough_http_stall_at(t->http, due_ns);
    bough_http_admit(t->http);
}

static void on_ready(void *arg)
{
    struct bough_transfer *t = arg;
    struct bough_http *http = t->http;
    bough_http_ref(http);
    if (t->phase > BOUGH_TRANSFER_PREPARING) {
        transfer_unpause(t, CURLPAUSE_SEND);
        bough_http_admit(http);
    } else if (t->feed->err.msg[0]) {
        t->err = t->feed->err;
        bough_transfer_finish(t, CURLE_READ_ERROR);
    } else {
        curl_easy_setopt(t->easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)t->feed->size);
        transfer_wait(t);
    }
    bough_http_unref(http);
}

static void transfer_free(struct bough_transfer *t)
{
    bough_cond_destroy(&t->changed);
    bough_answer_free(&t->answer);
    if (t->easy)
        curl_easy_cleanup(t->easy);
    curl_slist_free_all(t->header_list);
    if (t->origin)
        bough_origin_leave(&t->http->origins, t->origin);
    if (t->spool)
        bough_spool_unref(t->spool);
    if (t->feed)
        bough_feed_unref(t->feed);
    free(t->url);
    free(t->host);
    free(t->body);
    free(t->method);
    bough_http_unref(t->http);
    free(t);
}

static int refuse_url(struct bough_err *err, CURLUcode why)
{
    if (why == CURLUE_OUT_OF_MEMORY)
        return bough_err_set(err, BOUGH_ERR_resource, "out of memory");
    if (why == CURLUE_USER_NOT_ALLOWED)
        return bough_err_set(err, BOUGH_ERR_invalid,
                             "url holds a user name: give username and password beside it");
    return bough_err_set(err, BOUGH_ERR_invalid, "url is not one of http or https: %s",
                         curl_url_strerror(why));
}

/* What is to be had without libcurl's handle. */
static int transfer_fill(struct bough_transfer *t, const struct bough_request *request,
                         struct bough_err *err)
{
    CURLUcode why = CURLUE_OUT_OF_MEMORY;
    char *origin = NULL;
    t->expected = -1;
    t->start_ns = bough_now_ns();
    t->max_bytes = request->max_bytes;
    t->connect_ms = request->connect_ms;
    t->timeout_ms = request->timeout_ms;
    t->stall_ms = request->stall_ms;
    t->stream = request->stream;
    t->follow = request->follow;
    t->once = request->once;
    t->http2 = request->http2 && strncasecmp(request->url, "https:", 6) == 0;
    if (request->spool) {
        t->spool = request->spool;
        bough_spool_ref(t->spool);
        t->resume_at = request->resume ? t->spool->size : 0;
    }
    t->compressed = request->compressed && t->resume_at == 0; /* offsets are those of the file */
    if (!t->http->multi)
        return bough_err_set(err, BOUGH_ERR_closed, "the client is closed");
    t->host = bough_transfer_host(request->url, &origin, &why);
    if (!t->host)
        return refuse_url(err, why);
    t->origin = bough_origin_join(&t->http->origins, origin);
    free(origin);
    t->method = strdup(request->method);
    if (request->body && (t->body = malloc(request->body_size + 1)) != NULL) {
        memcpy(t->body, request->body, request->body_size);
        t->body_size = request->body_size;
    }
    if (!t->origin || !t->method || (request->body && !t->body) || !bough_transfer_ask(t, request))
        return refuse_url(err, CURLUE_OUT_OF_MEMORY);
    return 0;
}

struct bough_transfer *bough_transfer_start(struct bough_http *http,
                                            const struct bough_request *request,
                                            struct bough_err *err)
{
    struct bough_transfer *t = calloc(1, sizeof *t);
    if (!t) {
        if (request->feed)
            bough_feed_unref(request->feed);
        refuse_url(err, CURLUE_OUT_OF_MEMORY);
        return NULL;
    }
    t->refs = 1;
    t->http = http;
    bough_http_ref(http);
    bough_cond_init(&t->changed, http->loop);
    t->feed = request->feed;
    if (transfer_fill(t, request, err) < 0) {
        transfer_free(t);
        return NULL;
    }
    set_callbacks(t);
    t->refs++;
    t->next = http->transfers;
    if (t->next)
        t->next->prev = t;
    http->transfers = t;
    http->count++;
    if (t->spool) {
        t->spool->on_room = on_room;
        t->spool->arg = t;
    }
    if (!t->feed) {
        transfer_wait(t);
        return t;
    }
    if (t->timeout_ms > 0)
        bough_http_stall_at(http, bough_transfer_due(t));
    bough_feed_start(t->feed, on_ready, t);
    return t;
}

void bough_transfer_unref(struct bough_transfer *t)
{
    if (--t->refs == 0)
        transfer_free(t);
}

void bough_transfer_end(struct bough_transfer *t, enum bough_err_kind kind, const char *why)
{
    struct bough_http *http = t->http;
    if (t->done)
        return;
    bough_err_set(&t->err, kind, "%s", why);
    packed_drop(t);
    bough_http_ref(http);
    bough_transfer_finish(t, CURLE_ABORTED_BY_CALLBACK);
    if (t->phase == BOUGH_TRANSFER_ENDING) /* the spool gets the rest into its file without us */
        transfer_settle(t);
    bough_http_admit(http);
    bough_http_unref(http);
}

void bough_transfer_taken(struct bough_transfer *t, size_t size)
{
    bough_answer_take(&t->answer, size);
    if (!t->done && t->answer.size - t->answer.taken <= BOUGH_TRANSFER_STREAM / 2) {
        transfer_resume(t);
        bough_http_admit(t->http);
    }
}

void bough_transfer_progress(const struct bough_transfer *t, int64_t *done, int64_t *total)
{
    if (t->feed && !t->headers_done) {
        *done = t->feed->at;
        *total = t->feed->size > 0 ? t->feed->size : 0;
        return;
    }
    if (t->body_size > 0 && !t->headers_done) {
        *done = t->uploaded;
        *total = (int64_t)t->body_size;
        return;
    }
    *done = t->received;
    *total = t->expected > 0 ? t->expected : 0;
}

/* --- what takes too long ------------------------------------------------------------------------------ */

static int64_t later(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* libcurl counts only from where it has begun to connect. In the queue behind others that do no better, the time is
 * the same; behind those that are being served it is not. */
static int64_t connect_from(const struct bough_transfer *t)
{
    const struct bough_http *http = t->http;
    if (t->origin->active > 0)
        return bough_now_ns();
    if (http->max_connections == 0)
        return later(t->start_ns, t->origin->quiet_ns);
    if (http->active >= (size_t)http->max_connections)
        return bough_now_ns();
    return later(t->start_ns, http->freed_ns);
}

static int64_t start_due(const struct bough_transfer *t)
{
    int64_t total_ns = INT64_MAX, connect_ns = INT64_MAX;
    if (t->timeout_ms > 0)
        total_ns = t->start_ns + t->timeout_ms * 1000000;
    if (t->connect_ms > 0 && t->phase > BOUGH_TRANSFER_PREPARING)
        connect_ns = connect_from(t) + t->connect_ms * 1000000;
    return total_ns < connect_ns ? total_ns : connect_ns;
}

int64_t bough_transfer_due(const struct bough_transfer *t)
{
    if (t->phase < BOUGH_TRANSFER_ACTIVE)
        return start_due(t);
    if (t->phase > BOUGH_TRANSFER_ACTIVE || t->stall_ms == 0 || t->active_ns == 0 ||
        t->paused != 0 || held(t))
        return INT64_MAX;
    return t->active_ns + t->stall_ms * 1000000;
}

void bough_transfer_overdue(struct bough_transfer *t)
{
    if (t->phase == BOUGH_TRANSFER_ACTIVE)
        bough_err_set(&t->err, BOUGH_ERR_timeout, "%s has been silent for %g s: try again later",
                      t->host, (double)t->stall_ms / 1000);
    bough_transfer_finish(t, CURLE_OPERATION_TIMEDOUT);
}
