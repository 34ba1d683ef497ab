#define _GNU_SOURCE
#include "transfer.h"

#include <curl/curl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "sys.h"

#define HEADERS_MOST ((size_t)512 << 10) /* of one exchange, redirects and all */

/* --- what went wrong -------------------------------------------------------------------------------- */

/* "example.org:5000" of a URL; NULL when it is none that may be fetched. */
static char *host_of(const char *url, CURLUcode *why)
{
    char *host = NULL, *port = NULL, *scheme = NULL, *both = NULL;
    CURLU *u = curl_url();
    *why = u ? curl_url_set(u, CURLUPART_URL, url, CURLU_DISALLOW_USER) : CURLUE_OUT_OF_MEMORY;
    if (*why == CURLUE_OK)
        *why = curl_url_get(u, CURLUPART_SCHEME, &scheme, 0);
    if (*why == CURLUE_OK && strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0)
        *why = CURLUE_UNSUPPORTED_SCHEME;
    if (*why == CURLUE_OK)
        *why = curl_url_get(u, CURLUPART_HOST, &host, 0);
    if (*why == CURLUE_OK) {
        bool with_port = curl_url_get(u, CURLUPART_PORT, &port, 0) == CURLUE_OK;
        if (asprintf(&both, "%s%s%s", host, with_port ? ":" : "", with_port ? port : "") < 0)
            both = NULL;
    }
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    curl_url_cleanup(u);
    return both;
}

/* Redirects may have led elsewhere. */
static void transfer_locate(struct bough_transfer *t)
{
    char *url = NULL;
    CURLUcode why;
    if (curl_easy_getinfo(t->easy, CURLINFO_EFFECTIVE_URL, &url) != CURLE_OK || !url)
        return;
    char *host = host_of(url, &why);
    if (host) {
        free(t->host);
        t->host = host;
    }
}

static int transfer_explain(struct bough_transfer *t, CURLcode code)
{
    long sys = 0;
    struct bough_err *err = &t->err;
    transfer_locate(t);
    curl_easy_getinfo(t->easy, CURLINFO_OS_ERRNO, &sys);
    const char *host = t->host;
    for (char *c = t->reason; *c; c++)
        if ((unsigned char)*c < ' ')
            *c = ' ';
    const char *reason = t->reason[0] ? t->reason : curl_easy_strerror(code);
    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
        return bough_err_set(err, BOUGH_ERR_transport,
                             "cannot find the host %s: check its name and the network", host);
    case CURLE_COULDNT_RESOLVE_PROXY:
        return bough_err_set(err, BOUGH_ERR_transport,
                             "cannot find the proxy for %s: check http_proxy and https_proxy",
                             host);
    case CURLE_COULDNT_CONNECT:
        return bough_err_set(err, BOUGH_ERR_transport,
                             "cannot connect to %s: %s: check the address and the network", host,
                             sys ? strerror((int)sys) : "no answer");
    case CURLE_OPERATION_TIMEDOUT:
        if (t->active_ns == 0)
            return bough_err_set(err, BOUGH_ERR_timeout,
                                 "no connection to %s in time: check the address and the network",
                                 host);
        return bough_err_set(err, BOUGH_ERR_timeout, "%s did not finish its answer in time", host);
    case CURLE_PEER_FAILED_VERIFICATION:
        return bough_err_set(err, BOUGH_ERR_transport,
                             "the certificate of %s is not to be trusted (%s): give ca_file if the "
                             "host is yours",
                             host, reason);
    case CURLE_SSL_CACERT_BADFILE:
        return bough_err_set(err, BOUGH_ERR_invalid, "ca_file %s cannot be used: %s",
                             t->http->ca_file ? t->http->ca_file : "of the system", reason);
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
        return bough_err_set(err, BOUGH_ERR_transport,
                             "no TLS connection to %s (%s): does it speak https?", host, reason);
    case CURLE_TOO_MANY_REDIRECTS:
        return bough_err_set(err, BOUGH_ERR_protocol, "%s redirects more than %ld times", host,
                             t->follow);
    case CURLE_UNSUPPORTED_PROTOCOL:
        if (t->follow > 0 && bough_answer_field(&t->answer, "location"))
            return bough_err_set(err, BOUGH_ERR_transport,
                                 "%s redirects away from https, which is refused", host);
        return bough_err_set(err, BOUGH_ERR_protocol, "%s does not speak HTTP", host);
    case CURLE_LOGIN_DENIED:
    case CURLE_URL_MALFORMAT:
        return bough_err_set(err, BOUGH_ERR_protocol,
                             "%s redirects to a URL that cannot be followed", host);
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_BAD_CONTENT_ENCODING:
        return bough_err_set(err, BOUGH_ERR_protocol, "%s answers with nonsense: %s", host, reason);
    case CURLE_OUT_OF_MEMORY:
    case CURLE_FAILED_INIT:
        return bough_err_set(err, BOUGH_ERR_resource, "out of memory or descriptors");
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
    case CURLE_SEND_FAIL_REWIND:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
        return bough_err_set(err, BOUGH_ERR_transport,
                             "the connection to %s was cut after %lld bytes of the answer: try "
                             "again",
                             host, (long long)t->received);
    default:
        return bough_err_set(err, BOUGH_ERR_transport, "%s: %s", host, reason);
    }
}

/* --- what comes in, called by libcurl --------------------------------------------------------------- */
static void transfer_moved(struct bough_transfer *t)
{
    bool first = t->active_ns == 0;
    t->active_ns = bough_now_ns();
    if (first && t->stall_ms > 0)
        bough_http_stall_at(t->http, t->active_ns + t->stall_ms * 1000000);
}

/* CURLOPT_OPENSOCKETFUNCTION */
static curl_socket_t open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *addr)
{
    (void)arg;
    (void)purpose;
    return socket(addr->family, addr->socktype | SOCK_CLOEXEC, addr->protocol);
}

static bool is_redirect(long status)
{
    return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
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

/* The empty line after a block of headers; false ends the transfer. */
static bool headers_end(struct bough_transfer *t)
{
    long status = 0;
    char *url = NULL;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    if (status < 200 ||
        (t->follow > 0 && is_redirect(status) && bough_answer_field(&t->answer, "location")))
        return true;
    transfer_locate(t);
    if (curl_easy_getinfo(t->easy, CURLINFO_EFFECTIVE_URL, &url) == CURLE_OK && url)
        t->url = strdup(url);
    t->answer.status = status;
    t->spooling = t->spool && status >= 200 && status < 300;
    if (t->spooling && t->resume_at > 0 && !resume_fits(t))
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

/* Into memory; 0 ends the transfer. */
static size_t body_keep(struct bough_transfer *t, const char *data, size_t size)
{
    if (bough_answer_append(&t->answer, data, size))
        return size;
    bough_err_set(&t->err, BOUGH_ERR_resource, "out of memory");
    return 0;
}

/* The body of an answer that says why there is nothing for the spool: its beginning will do. */
static size_t body_aside(struct bough_transfer *t, const char *data, size_t size)
{
    size_t left = BOUGH_TRANSFER_ASIDE - t->answer.size;
    t->cut = size > left;
    if (!t->cut)
        return body_keep(t, data, size);
    body_keep(t, data, left);
    return 0;
}

static size_t body_pause(struct bough_transfer *t)
{
    t->paused |= CURLPAUSE_RECV;
    return CURL_WRITEFUNC_PAUSE;
}

static size_t body_spool(struct bough_transfer *t, const char *data, size_t size)
{
    int taken = bough_spool_put(t->spool, data, size);
    if (taken == 0)
        return body_pause(t);
    if (taken > 0)
        return size;
    t->err = t->spool->err;
    return 0;
}

static size_t body_stream(struct bough_transfer *t, const char *data, size_t size)
{
    size_t there = t->answer.size - t->answer.taken;
    bough_cond_fire(&t->changed);
    if (there > 0 && there + size > BOUGH_TRANSFER_STREAM)
        return body_pause(t);
    return body_keep(t, data, size);
}

static size_t body_memory(struct bough_transfer *t, const char *data, size_t size)
{
    if ((int64_t)size <= t->max_bytes - (int64_t)t->answer.size)
        return body_keep(t, data, size);
    bough_err_set(&t->err, BOUGH_ERR_resource, "%s sends more than the %lld bytes that are wanted",
                  t->host, (long long)t->max_bytes);
    return 0;
}

/* CURLOPT_WRITEFUNCTION */
static size_t on_body(char *data, size_t one, size_t size, void *arg)
{
    struct bough_transfer *t = arg;
    (void)one;
    transfer_moved(t);
    size_t took = t->stream     ? body_stream(t, data, size)
                  : t->spooling ? body_spool(t, data, size)
                  : t->spool    ? body_aside(t, data, size)
                                : body_memory(t, data, size);
    if (took == size)
        t->received += (int64_t)size;
    return took;
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

/* CURLOPT_PREREQFUNCTION: connected, about to ask. */
static int on_connected(void *arg, char *ip, char *local_ip, int port, int local_port)
{
    (void)ip;
    (void)local_ip;
    (void)port;
    (void)local_port;
    transfer_moved(arg);
    return CURL_PREREQFUNC_OK;
}

/* --- the life of a transfer ------------------------------------------------------------------------- */

static void transfer_settle(struct bough_transfer *t)
{
    struct bough_http *http = t->http;
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

/* libcurl is done with it, or we are. What is in the spool's buffers still has to get into the file. */
void bough_transfer_finish(struct bough_transfer *t, int code)
{
    if (t->done || t->finishing)
        return;
    t->finishing = true;
    if (code == CURLE_OK && !t->headers_done)
        code = CURLE_GOT_NOTHING; /* libcurl takes half a header for a whole one */
    if (code != CURLE_OK && !t->err.msg[0] && !t->cut)
        transfer_explain(t, (CURLcode)code);
    if (t->added)
        curl_multi_remove_handle(t->http->multi, t->easy);
    curl_easy_cleanup(t->easy);
    t->easy = NULL;
    t->added = false;
    if (!t->spool || !t->spool->busy)
        transfer_settle(t);
}

static void transfer_unpause(struct bough_transfer *t, int bits)
{
    if (!(t->paused & bits) || t->finishing)
        return;
    t->paused &= ~bits;
    t->active_ns = 0; /* the time while it was paused is nobody's silence */
    transfer_moved(t);
    CURLcode code = curl_easy_pause(t->easy, t->paused);
    if (code != CURLE_OK)
        bough_transfer_finish(t, code);
}

static void on_room(void *arg)
{
    struct bough_transfer *t = arg;
    if (!t->finishing)
        transfer_unpause(t, CURLPAUSE_RECV);
    else if (!t->spool->busy)
        transfer_settle(t);
}

static void transfer_add(struct bough_transfer *t)
{
    t->added = true;
    CURLMcode code = curl_multi_add_handle(t->http->multi, t->easy);
    if (code != CURLM_OK) {
        t->added = false;
        bough_transfer_finish(t, CURLE_OUT_OF_MEMORY);
    }
}

static void on_ready(void *arg)
{
    struct bough_transfer *t = arg;
    if (t->added) {
        transfer_unpause(t, CURLPAUSE_SEND);
    } else if (t->feed->err.msg[0]) {
        t->err = t->feed->err;
        bough_transfer_finish(t, CURLE_READ_ERROR);
    } else if (!t->finishing) {
        curl_easy_setopt(t->easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)t->feed->size);
        transfer_add(t);
    }
}

static bool header_put(struct bough_transfer *t, const char *line)
{
    struct curl_slist *grown = curl_slist_append(t->header_list, line);
    if (grown)
        t->header_list = grown;
    return grown != NULL;
}

/* NULL: out of memory. */
static char *base64(const char *text)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t size = strlen(text);
    char *out = malloc((size + 2) / 3 * 4 + 1), *at = out;
    for (size_t i = 0; out && i < size; i += 3) {
        uint32_t bits = 0;
        for (size_t j = i; j < i + 3; j++)
            bits = bits << 8 | (j < size ? (unsigned char)text[j] : 0);
        for (size_t j = 0; j < 4; j++)
            *at++ = i + j > size ? '=' : digits[bits >> (18 - 6 * j) & 63];
    }
    if (out)
        *at = '\0';
    return out;
}

/* As a header of ours: libcurl keeps that to the first host as well, but would put a user name that it is given
 * into the URL when it is sent on. */
static bool header_login(struct bough_transfer *t, const struct bough_request *request)
{
    char *line = NULL, *both = NULL, *basic = NULL;
    if (request->bearer) {
        if (asprintf(&line, "Authorization: Bearer %s", request->bearer) < 0)
            line = NULL;
    } else {
        if (asprintf(&both, "%s:%s", request->username, request->password) < 0)
            both = NULL;
        basic = both ? base64(both) : NULL;
        if (!basic || asprintf(&line, "Authorization: Basic %s", basic) < 0)
            line = NULL;
    }
    bool good = line && header_put(t, line);
    free(line);
    free(basic);
    free(both);
    return good;
}

static bool set_headers(struct bough_transfer *t, const struct bough_request *request)
{
    bool typed = false, good = true;
    for (char **h = request->headers; h && *h && good; h++) {
        typed = typed || strncasecmp(*h, "content-type:", 13) == 0;
        good = header_put(t, *h);
    }
    if (!typed && request->body)
        good = good && header_put(t, "Content-Type:"); /* not what an HTML form would send */
    if (request->body)
        good = good && header_put(t, "Expect:");
    if (request->username || request->bearer)
        good = good && header_login(t, request);
    if (t->resume_at > 0) {
        char line[64];
        snprintf(line, sizeof line, "Range: bytes=%lld-", (long long)t->resume_at);
        good = good && header_put(t, line);
    }
    return good;
}

static void set_method(struct bough_transfer *t)
{
    CURL *easy = t->easy;
    const char *natural = "GET"; /* what the options below stand for */
    if (t->feed) {
        curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(easy, CURLOPT_READFUNCTION, on_read);
        curl_easy_setopt(easy, CURLOPT_READDATA, t);
        curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, on_seek);
        curl_easy_setopt(easy, CURLOPT_SEEKDATA, t);
        natural = "PUT";
    } else if (t->body) {
        curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)t->body_size);
        curl_easy_setopt(easy, CURLOPT_POSTFIELDS, t->body);
        natural = "POST";
    } else if (strcmp(t->method, "HEAD") == 0) {
        curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
        natural = "HEAD";
    }
    if (strcmp(t->method, natural) != 0)
        curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, t->method);
}

/* What stays on this machine is no proxy's business: it may be without encryption for that reason. */
static bool is_here(const char *host)
{
    size_t size = strcspn(host, ":");
    return (size == 9 && strncasecmp(host, "localhost", 9) == 0) || strncmp(host, "127.", 4) == 0 ||
           strncmp(host, "[::1]", 5) == 0;
}

static void set_security(const struct bough_transfer *t, const struct bough_request *request)
{
    CURL *easy = t->easy;
    bool secure = strncasecmp(request->url, "https:", 6) == 0;
#if LIBCURL_VERSION_NUM >= 0x075500
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS_STR, secure ? "https" : "http,https");
#else
    long both = CURLPROTO_HTTP | CURLPROTO_HTTPS;
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS, both);
    curl_easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS, secure ? (long)CURLPROTO_HTTPS : both);
#endif
    curl_easy_setopt(easy, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
    if (is_here(t->host))
        curl_easy_setopt(easy, CURLOPT_PROXY, "");
    if (t->http->ca_file)
        curl_easy_setopt(easy, CURLOPT_CAINFO, t->http->ca_file);
    if (t->http->trust_all) {
        curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 0L);
        curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 0L);
    }
}

static void set_options(struct bough_transfer *t, const struct bough_request *request)
{
    CURL *easy = t->easy;
    curl_easy_setopt(easy, CURLOPT_URL, request->url);
    curl_easy_setopt(easy, CURLOPT_PRIVATE, t);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, t->reason);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_USERAGENT, t->http->user_agent ? t->http->user_agent : "bough");
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, t->header_list);
    curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, on_connected);
    curl_easy_setopt(easy, CURLOPT_PREREQDATA, t);
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, open_socket);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)request->connect_ms);
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, (long)request->timeout_ms);
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, t->follow > 0 ? 1L : 0L);
    curl_easy_setopt(easy, CURLOPT_MAXREDIRS, t->follow);
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION,
                     request->http2 ? (long)CURL_HTTP_VERSION_2TLS : (long)CURL_HTTP_VERSION_1_1);
    if (request->compressed)
        curl_easy_setopt(easy, CURLOPT_ACCEPT_ENCODING, "gzip, deflate");
    if (t->spool)
        curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, 256L << 10);
#if LIBCURL_VERSION_NUM >= 0x075700
    /* Giving up a name lookup does not wait for it: the loop must not stand still. */
    curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
#endif
    set_security(t, request);
    set_method(t);
}

static void transfer_free(struct bough_transfer *t)
{
    bough_cond_destroy(&t->changed);
    bough_answer_free(&t->answer);
    curl_slist_free_all(t->header_list);
    if (t->easy)
        curl_easy_cleanup(t->easy);
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

struct bough_transfer *bough_transfer_start(struct bough_http *http,
                                            const struct bough_request *request,
                                            struct bough_err *err)
{
    CURLUcode why = CURLUE_OUT_OF_MEMORY;
    struct bough_transfer *t = calloc(1, sizeof *t);
    if (!t) {
        if (request->feed)
            bough_feed_unref(request->feed);
        refuse_url(err, why);
        return NULL;
    }
    t->refs = 1;
    t->http = http;
    bough_http_ref(http);
    bough_cond_init(&t->changed, http->loop);
    t->expected = -1;
    t->max_bytes = request->max_bytes;
    t->stall_ms = request->stall_ms;
    t->stream = request->stream;
    t->follow = request->follow;
    t->feed = request->feed;
    t->method = strdup(request->method);
    if (request->spool) {
        t->spool = request->spool;
        bough_spool_ref(t->spool);
        t->resume_at = request->resume ? t->spool->size : 0;
    }
    if (request->body && (t->body = malloc(request->body_size + 1)) != NULL) {
        memcpy(t->body, request->body, request->body_size);
        t->body_size = request->body_size;
    }
    t->host = host_of(request->url, &why);
    if (!http->multi)
        bough_err_set(err, BOUGH_ERR_closed, "the client is closed");
    else if (!t->host)
        refuse_url(err, why);
    else if (!t->method || (request->body && !t->body) || !set_headers(t, request) ||
             !(t->easy = curl_easy_init()))
        refuse_url(err, CURLUE_OUT_OF_MEMORY);
    if (!t->easy) {
        transfer_free(t);
        return NULL;
    }
    set_options(t, request);
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
    if (t->feed)
        bough_feed_start(t->feed, on_ready, t);
    else
        transfer_add(t);
    return t;
}

void bough_transfer_unref(struct bough_transfer *t)
{
    if (--t->refs == 0)
        transfer_free(t);
}

void bough_transfer_end(struct bough_transfer *t, enum bough_err_kind kind, const char *why)
{
    if (t->done)
        return;
    bough_err_set(&t->err, kind, "%s", why);
    if (!t->finishing)
        bough_transfer_finish(t, CURLE_ABORTED_BY_CALLBACK);
    if (!t->done) /* the spool gets the rest into its file without us */
        transfer_settle(t);
}

void bough_transfer_taken(struct bough_transfer *t, size_t size)
{
    bough_answer_take(&t->answer, size);
    if (!t->done && t->answer.size - t->answer.taken <= BOUGH_TRANSFER_STREAM / 2)
        transfer_unpause(t, CURLPAUSE_RECV);
}

void bough_transfer_progress(const struct bough_transfer *t, int64_t *done, int64_t *total)
{
    if (t->feed && !t->headers_done) {
        *done = t->feed->at;
        *total = t->feed->size > 0 ? t->feed->size : 0;
        return;
    }
    *done = t->received;
    *total = t->expected > 0 ? t->expected : 0;
}
