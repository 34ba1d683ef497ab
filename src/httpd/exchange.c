/* exchange.c - a request with its answer. */
#define _GNU_SOURCE
#include <ctype.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>

#include "httpd/exchange.h"
#include "sys.h"

enum {
    CHUNKED_BLOCK = 1024,   /* MHD's buffer for a stream: it uses none for chunks ... */
    WHOLE_BLOCK = 32 << 10, /* ... and this one where there are none */
    PORTION = 64 << 10,     /* that is compressed at once */
    INTERRUPT_MOST = 16 << 10,
    METHOD_MAX = 32,
};

/* Lists ---------------------------------------------------------------------------------------- */

bool httpd_exchange_is_in(const struct httpd_exchange *x, enum httpd_list list)
{
    return x->hooks[list].next != NULL;
}

void httpd_exchange_list(struct httpd_exchange *x, enum httpd_list list)
{
    struct httpd_hook *hook = &x->hooks[list], *head = httpd_server_list(x->server, list);
    if (hook->next)
        return;
    hook->next = head;
    hook->prev = head->prev;
    hook->prev->next = hook;
    head->prev = hook;
}

void httpd_exchange_leave(struct httpd_exchange *x, enum httpd_list list)
{
    struct httpd_hook *hook = &x->hooks[list];
    if (!hook->next)
        return;
    hook->prev->next = hook->next;
    hook->next->prev = hook->prev;
    *hook = (struct httpd_hook){0};
}

struct httpd_exchange *httpd_exchange_of(struct httpd_hook *hook, enum httpd_list list)
{
    return (struct httpd_exchange *)((char *)hook - offsetof(struct httpd_exchange, hooks) -
                                     list * sizeof(struct httpd_hook));
}

void httpd_exchange_unlist(struct httpd_exchange *x)
{
    for (int list = 0; list < HTTPD_LISTS; list++)
        httpd_exchange_leave(x, list);
    x->news = 0;
}

void httpd_exchange_tell(struct httpd_exchange *x, unsigned news)
{
    if (!x->taken || !x->server)
        return;
    x->news |= news;
    httpd_exchange_list(x, HTTPD_TALK);
}

/* Life ----------------------------------------------------------------------------------------- */

struct httpd_exchange *httpd_exchange_new(struct httpd_connection *connection, const char *target)
{
    struct httpd_exchange *x = calloc(1, sizeof *x);
    if (!x)
        return NULL;
    struct httpd_server *server = connection->server;
    size_t most = httpd_server_options(server)->target_bytes;
    size_t size = strnlen(target, most + 1);
    if (size > most) {
        x->refused = MHD_HTTP_URI_TOO_LONG;
        x->why = "the request target is too long";
        size = size < 256 ? size : 256;
    }
    x->target = malloc(size + 1);
    if (!x->target) {
        free(x);
        return NULL;
    }
    memcpy(x->target, target, size);
    x->target[size] = '\0';
    x->target_size = size;
    x->refs = 1;
    x->server = server;
    x->connection = connection;
    x->number = httpd_server_count(server);
    return x;
}

void httpd_exchange_forget_answer(struct httpd_exchange *x)
{
    struct MHD_Response *response = x->response;
    x->response = NULL;
    if (response)
        MHD_destroy_response(response);
}

void httpd_exchange_unref(struct httpd_exchange *x)
{
    if (--x->refs)
        return;
    httpd_exchange_forget_answer(x);
    httpd_queue_clear(&x->in);
    httpd_queue_clear(&x->out);
    httpd_pack_free(x->pack);
    free(x->target);
    free(x->block);
    free(x);
}

void httpd_exchange_suspend(struct httpd_exchange *x)
{
    if (x->suspended)
        return;
    x->suspended = true;
    x->connection->window = 0;
    MHD_suspend_connection(x->connection->mhd);
}

void httpd_exchange_resume(struct httpd_exchange *x)
{
    if (!x->suspended || !x->connection)
        return;
    x->suspended = false;
    MHD_resume_connection(x->connection->mhd);
}

void httpd_exchange_hand(struct httpd_exchange *x)
{
    x->handed = true;
    httpd_exchange_list(x, HTTPD_READY);
}

void httpd_exchange_free(struct httpd_exchange *x)
{
    if (x->server) {
        httpd_exchange_unlist(x);
        if (!x->answered)
            httpd_exchange_break(x);
        else if (x->streams && !x->ended)
            httpd_exchange_break(x);
    }
    x->taken = false;
    httpd_exchange_unref(x);
}

/* The request ---------------------------------------------------------------------------------- */

struct gather {
    struct httpd_exchange *x;
    size_t size; /* of all names and values with their ends */
    unsigned count, lengths, encodings, hosts;
    char *to; /* NULL: only count */
    bool bad, unknown_encoding;
};

static bool is_token(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (!isalnum((unsigned char)text[i]) && !strchr("!#$%&'*+-.^_`|~", text[i]))
            return false;
    return size > 0;
}

static bool is_clean(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (((unsigned char)text[i] < 32 && text[i] != '\t') || text[i] == 127)
            return false;
    return true;
}

static enum MHD_Result on_header(void *cls, enum MHD_ValueKind kind, const char *name,
                                 size_t name_size, const char *value, size_t value_size)
{
    (void)kind;
    struct gather *gather = cls;
    if (!gather->to) {
        gather->count++;
        gather->size += name_size + value_size + 2;
        if (!is_token(name, name_size) || (value && !is_clean(value, value_size)))
            gather->bad = true;
        return MHD_YES;
    }
    char *start = gather->to;
    for (size_t i = 0; i < name_size; i++)
        *gather->to++ = (char)tolower((unsigned char)name[i]);
    *gather->to++ = '\0';
    if (value_size)
        memcpy(gather->to, value, value_size);
    gather->to[value_size] = '\0';
    const char *mine = gather->to;
    gather->to += value_size + 1;
    struct httpd_exchange *x = gather->x;
    if (strcmp(start, "content-length") == 0) {
        gather->lengths++;
        char *end;
        unsigned long long length = strtoull(mine, &end, 10);
        if (!isdigit((unsigned char)*mine) || *end || length > INT64_MAX)
            gather->bad = true;
        else
            x->length = (int64_t)length;
    } else if (strcmp(start, "transfer-encoding") == 0) {
        gather->encodings++;
        if (strcasecmp(mine, "chunked") != 0)
            gather->unknown_encoding = true;
    } else if (strncmp(start, "content-length", 14) == 0 ||
               strncmp(start, "transfer-encoding", 17) == 0) {
        gather->bad = true; /* how this MHD reads a value that goes on in the next line */
    } else if (strcmp(start, "host") == 0) {
        gather->hosts++;
    } else if (strcmp(start, "expect") == 0) {
        x->expects = true;
    }
    return MHD_YES;
}

static void refuse(struct httpd_exchange *x, unsigned status, const char *why)
{
    if (x->refused)
        return;
    x->refused = status;
    x->why = why;
}

/* A request whose end could be read in two ways is not served: who stands in between may read the other. */
static void judge(struct httpd_exchange *x, const struct gather *gather)
{
    const struct httpd_options *options = httpd_server_options(x->server);
    const union MHD_ConnectionInfo *size =
        MHD_get_connection_info(x->connection->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    bool is_1_1 = strcmp(x->version, "HTTP/1.1") == 0;
    if (!is_1_1 && strcmp(x->version, "HTTP/1.0") != 0)
        refuse(x, MHD_HTTP_BAD_REQUEST, "the request line has no version of HTTP/1");
    if (strlen(x->method) > METHOD_MAX || !is_token(x->method, strlen(x->method)))
        refuse(x, MHD_HTTP_BAD_REQUEST, "the method is not a word");
    for (size_t i = 0; i < x->target_size; i++)
        if ((unsigned char)x->target[i] <= ' ' || x->target[i] == 127)
            refuse(x, MHD_HTTP_BAD_REQUEST, "there are blanks or control characters in the target");
    if (size && size->header_size > options->header_bytes)
        refuse(x, MHD_HTTP_REQUEST_HEADER_FIELDS_TOO_LARGE, "the header is too large");
    if (gather->count > options->headers)
        refuse(x, MHD_HTTP_REQUEST_HEADER_FIELDS_TOO_LARGE, "there are too many header lines");
    if (gather->bad)
        refuse(x, MHD_HTTP_BAD_REQUEST, "a header line is malformed");
    if (is_1_1 && gather->hosts != 1)
        refuse(x, MHD_HTTP_BAD_REQUEST, "there must be one Host header");
    if (gather->encodings + gather->lengths > 1)
        refuse(x, MHD_HTTP_BAD_REQUEST, "the length of the body is told more than once");
    if (gather->encodings && !is_1_1)
        refuse(x, MHD_HTTP_BAD_REQUEST, "HTTP/1.0 knows no Transfer-Encoding");
    if (gather->unknown_encoding)
        refuse(x, MHD_HTTP_NOT_IMPLEMENTED, "the only known Transfer-Encoding is chunked");
}

bool httpd_exchange_capture(struct httpd_exchange *x, const char *method, const char *version)
{
    struct MHD_Connection *mhd = x->connection->mhd;
    struct gather gather = {.x = x};
    MHD_get_connection_values_n(mhd, MHD_HEADER_KIND, on_header, &gather);
    size_t method_size = strlen(method) + 1, version_size = strlen(version) + 1;
    size_t peer_size = strlen(x->connection->peer) + 1;
    x->block = malloc(method_size + version_size + peer_size + gather.size + 1);
    if (!x->block)
        return false;
    char *to = x->block;
    x->method = memcpy(to, method, method_size);
    to += method_size;
    x->version = memcpy(to, version, version_size);
    to += version_size;
    x->peer = memcpy(to, x->connection->peer, peer_size);
    to += peer_size;
    x->headers = gather.to = to;
    x->headers_size = gather.size;
    MHD_get_connection_values_n(mhd, MHD_HEADER_KIND, on_header, &gather);
    if (gather.encodings)
        x->length = -1;
    x->head = strcmp(method, "HEAD") == 0;
    judge(x, &gather);
    return true;
}

/* Whether it must be decided about before the body comes. */
bool httpd_exchange_is_early(const struct httpd_exchange *x)
{
    return x->refused || x->length > HTTPD_SMALL_BODY || (x->expects && x->length);
}

uint64_t httpd_exchange_number(const struct httpd_exchange *x)
{
    return x->number;
}

const char *httpd_exchange_method(const struct httpd_exchange *x)
{
    return x->method;
}

const char *httpd_exchange_target(const struct httpd_exchange *x, size_t *size)
{
    *size = x->target_size;
    return x->target;
}

const char *httpd_exchange_version(const struct httpd_exchange *x)
{
    return x->version;
}

const char *httpd_exchange_peer(const struct httpd_exchange *x)
{
    return x->peer;
}

bool httpd_exchange_header(const struct httpd_exchange *x, size_t *at, const char **name,
                           const char **value)
{
    if (*at >= x->headers_size)
        return false;
    *name = x->headers + *at;
    *value = *name + strlen(*name) + 1;
    *at = (size_t)(*value + strlen(*value) + 1 - x->headers);
    return true;
}

unsigned httpd_exchange_refused(const struct httpd_exchange *x, const char **why)
{
    *why = x->why;
    return x->refused;
}

/* "gzip;q=0.5, *;q=0": a coding with q=0 is refused; a name counts more than the star. */
bool httpd_exchange_accepts_gzip(const struct httpd_exchange *x)
{
    int gzip = -1, star = -1;
    const char *name, *value;
    for (size_t at = 0; httpd_exchange_header(x, &at, &name, &value);) {
        if (strcmp(name, "accept-encoding") != 0)
            continue;
        while (*value) {
            value += strspn(value, " \t,");
            size_t size = strcspn(value, " \t,;");
            const char *end = value + strcspn(value, ",");
            bool wanted = true;
            for (const char *p = memchr(value, ';', (size_t)(end - value)); p && p < end;
                 p = memchr(p + 1, ';', (size_t)(end - p - 1))) {
                const char *q = p + 1 + strspn(p + 1, " \t");
                if ((*q == 'q' || *q == 'Q') && q[1] == '=')
                    wanted = strspn(q + 2, "0.") < strcspn(q + 2, " \t,;");
            }
            if ((size == 4 && strncasecmp(value, "gzip", 4) == 0) ||
                (size == 6 && strncasecmp(value, "x-gzip", 6) == 0))
                gzip = wanted;
            else if (size == 1 && *value == '*')
                star = wanted;
            value = end;
        }
    }
    return gzip >= 0 ? gzip : star > 0;
}

int64_t httpd_exchange_length(const struct httpd_exchange *x)
{
    return x->length;
}

/* Its body ------------------------------------------------------------------------------------- */

enum httpd_body httpd_exchange_body(struct httpd_exchange *x, const void **piece, size_t *size)
{
    *piece = httpd_queue_front(&x->in, size);
    if (*piece)
        return HTTPD_BODY_SOME;
    if (x->in_over)
        return HTTPD_BODY_END;
    if (x->slow)
        return HTTPD_BODY_SLOW;
    if (x->over || x->gone)
        return HTTPD_BODY_GONE;
    if (x->answered)
        return HTTPD_BODY_END;
    httpd_exchange_resume(x);
    return HTTPD_BODY_WAIT;
}

void httpd_exchange_body_drop(struct httpd_exchange *x, size_t size)
{
    httpd_queue_drop(&x->in, size);
    if (x->suspended && !x->in_over && !x->answered && x->server &&
        x->in.length < httpd_server_options(x->server)->ahead / 2)
        httpd_exchange_resume(x);
}

/* The answer ----------------------------------------------------------------------------------- */

enum MHD_Result httpd_exchange_queue(struct httpd_exchange *x)
{
    struct MHD_Response *response = x->response;
    x->response = NULL;
    x->queued = true;
    bool rest = !x->in_over && x->length;
    if (rest || x->refused || httpd_server_is_quiet(x->server))
        MHD_add_response_header(response, "Connection", "close");
    if (rest || x->refused)
        x->connection->linger = true;
    enum MHD_Result result = MHD_queue_response(x->connection->mhd, x->status, response);
    MHD_destroy_response(response);
    return result;
}

static bool answer(struct httpd_exchange *x, unsigned status, struct MHD_Response *response,
                   const struct httpd_header *headers, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (MHD_add_response_header(response, headers[i].name, headers[i].value) != MHD_YES) {
            MHD_destroy_response(response);
            httpd_exchange_break(x);
            return false;
        }
    }
    x->status = status;
    x->response = response;
    x->answered = true;
    x->answered_at = bough_now_ns();
    httpd_queue_clear(&x->in);
    httpd_exchange_resume(x);
    return true;
}

/* Whether the body has begun to come, and not ended: MHD takes no answer then. */
static bool is_in_body(const struct httpd_exchange *x)
{
    return x->length && !x->in_over && !x->held;
}

/* An answer in the middle of the body, past MHD, which has nothing to say yet itself. False when that cannot be. */
static bool interrupt(struct httpd_exchange *x, unsigned status, const struct httpd_header *headers,
                      size_t count, const void *body, size_t size)
{
    struct httpd_queue out = {0};
    char line[256], date[64];
    time_t now = time(NULL);
    struct tm tm;
    if (x->connection->secure || !gmtime_r(&now, &tm) ||
        !strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &tm))
        return false;
    int length =
        snprintf(line, sizeof line,
                 "HTTP/1.1 %u %s\r\nDate: %s\r\nConnection: close\r\nContent-Length: %zu\r\n",
                 status, MHD_get_reason_phrase_for(status), date, size);
    bool good =
        length > 0 && (size_t)length < sizeof line && httpd_queue_put(&out, line, (size_t)length);
    for (size_t i = 0; good && i < count; i++)
        good = httpd_queue_put(&out, headers[i].name, strlen(headers[i].name)) &&
               httpd_queue_put(&out, ": ", 2) &&
               httpd_queue_put(&out, headers[i].value, strlen(headers[i].value)) &&
               httpd_queue_put(&out, "\r\n", 2);
    good =
        good && httpd_queue_put(&out, "\r\n", 2) && (x->head || httpd_queue_put(&out, body, size));
    size_t all = out.length;
    char *bytes = good ? malloc(all) : NULL;
    if (bytes) /* in one go, or not at all: there is room, because nothing was said before */
        httpd_queue_take(&out, bytes, all);
    httpd_queue_clear(&out);
    good =
        bytes && send(x->connection->fd, bytes, all, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)all;
    free(bytes);
    if (!good)
        return false;
    x->status = status;
    x->answered = x->said = true;
    x->out_bytes = x->head ? 0 : size;
    x->connection->linger = true;
    httpd_queue_clear(&x->in);
    httpd_exchange_break(x);
    return true;
}

bool httpd_exchange_reply(struct httpd_exchange *x, unsigned status,
                          const struct httpd_header *headers, size_t count, const void *body,
                          size_t size, bool gzip)
{
    if (x->over || x->gone || x->answered)
        return false;
    if (is_in_body(x) && size <= INTERRUPT_MOST && interrupt(x, status, headers, count, body, size))
        return true;
    struct MHD_Response *response = NULL;
    size_t packed_size;
    void *packed =
        gzip ? httpd_press_whole(httpd_server_press(x->server), body, size, &packed_size) : NULL;
    if (packed) {
        response = MHD_create_response_from_buffer(packed_size, packed, MHD_RESPMEM_MUST_FREE);
        if (!response)
            free(packed);
        else if (MHD_add_response_header(response, "Content-Encoding", "gzip") != MHD_YES) {
            MHD_destroy_response(response);
            response = NULL;
        }
        size = packed_size;
    } else {
        response =
            MHD_create_response_from_buffer(size, (void *)(size ? body : ""),
                                            size ? MHD_RESPMEM_MUST_COPY : MHD_RESPMEM_PERSISTENT);
    }
    if (!response) {
        httpd_exchange_break(x);
        return false;
    }
    x->out_bytes = x->head ? 0 : size;
    return answer(x, status, response, headers, count);
}

/* MHD asks for bytes of a stream. */
static ssize_t on_wanted(void *cls, uint64_t pos, char *into, size_t size)
{
    struct httpd_exchange *x = cls;
    if (x->broken || !x->server)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t before = x->out.length;
    if (before) {
        size_t taken = httpd_queue_take(&x->out, into, size < INT_MAX ? size : INT_MAX);
        size_t half = httpd_server_options(x->server)->behind / 2;
        if (before > half && x->out.length <= half)
            httpd_exchange_tell(x, HTTPD_NEWS_ROOM);
        return (ssize_t)taken;
    }
    if (x->ended) /* less than was promised is an error, that the client is to see */
        return x->size >= 0 && pos < (uint64_t)x->size ? MHD_CONTENT_READER_END_WITH_ERROR
                                                       : MHD_CONTENT_READER_END_OF_STREAM;
    httpd_exchange_suspend(x);
    return 0;
}

static void on_released(void *cls)
{
    httpd_exchange_unref(cls);
}

bool httpd_exchange_open(struct httpd_exchange *x, unsigned status,
                         const struct httpd_header *headers, size_t count, enum httpd_gzip gzip,
                         int64_t size)
{
    if (x->over || x->gone || x->answered)
        return false;
    bool sized = size >= 0 && gzip == HTTPD_GZIP_NO;
    if (gzip != HTTPD_GZIP_NO && !x->head) {
        x->pack = httpd_pack_new(gzip == HTTPD_GZIP_BULK ? HTTPD_PACK_BULK : HTTPD_PACK_EVENTS);
        if (!x->pack) {
            httpd_exchange_break(x);
            return false;
        }
    }
    x->size = sized ? size : -1;
    bool chunked = !sized && strcmp(x->version, "HTTP/1.1") == 0;
    struct MHD_Response *response = MHD_create_response_from_callback(
        sized ? (uint64_t)size : MHD_SIZE_UNKNOWN, chunked ? CHUNKED_BLOCK : WHOLE_BLOCK, on_wanted,
        x, on_released);
    if (!response) {
        httpd_exchange_break(x);
        return false;
    }
    x->refs++;
    /* or MHD sends the end of a body that it did not begin; the price is the connection */
    if (x->head && !sized)
        MHD_set_response_options(response, MHD_RF_HTTP_VERSION_1_0_ONLY, MHD_RO_END);
    if (gzip != HTTPD_GZIP_NO &&
        MHD_add_response_header(response, "Content-Encoding", "gzip") != MHD_YES) {
        MHD_destroy_response(response);
        httpd_exchange_break(x);
        return false;
    }
    x->streams = true;
    return answer(x, status, response, headers, count);
}

static bool takes(const struct httpd_exchange *x)
{
    return x->streams && !x->ended && !x->over && !x->gone && !x->broken && !x->head;
}

/* After something was put into `out`. */
static bool grown(struct httpd_exchange *x, size_t before, bool good)
{
    if (!good) {
        httpd_exchange_break(x);
        return false;
    }
    x->out_bytes += x->out.length - before;
    if (x->out.length && x->queued)
        httpd_exchange_resume(x);
    return true;
}

ptrdiff_t httpd_exchange_put(struct httpd_exchange *x, const void *data, size_t size)
{
    if (!takes(x))
        return -1;
    size_t before = x->out.length, behind = httpd_server_options(x->server)->behind;
    if (before >= behind)
        return 0;
    size_t most = x->pack ? PORTION : behind - before;
    if (size > most)
        size = most;
    bool good = size == 0 || (x->pack ? httpd_pack_put(httpd_server_press(x->server), x->pack, data,
                                                       size, false, &x->out)
                                      : httpd_queue_put(&x->out, data, size));
    return grown(x, before, good) ? (ptrdiff_t)size : -1;
}

bool httpd_exchange_flush(struct httpd_exchange *x)
{
    if (!takes(x))
        return false;
    size_t before = x->out.length;
    return grown(x, before,
                 !x->pack ||
                     httpd_pack_put(httpd_server_press(x->server), x->pack, "", 0, true, &x->out));
}

void httpd_exchange_end(struct httpd_exchange *x)
{
    if (!x->streams || x->ended)
        return;
    size_t before = x->out.length;
    if (x->pack && x->server && !x->gone &&
        !httpd_pack_end(httpd_server_press(x->server), x->pack, &x->out))
        x->broken = true;
    x->ended = true;
    x->out_bytes += x->out.length - before;
    if (x->queued)
        httpd_exchange_resume(x);
}

void httpd_exchange_break(struct httpd_exchange *x)
{
    x->broken = true;
    httpd_exchange_resume(x);
}

bool httpd_exchange_gone(const struct httpd_exchange *x)
{
    return x->gone;
}

bool httpd_exchange_answered(const struct httpd_exchange *x)
{
    return x->answered;
}

uint64_t httpd_exchange_in(const struct httpd_exchange *x)
{
    return x->in_bytes;
}

uint64_t httpd_exchange_out(const struct httpd_exchange *x)
{
    return x->out_bytes;
}
