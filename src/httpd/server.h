/* server.h - a server: connections, and the exchanges on them, each a request with its answer.
 *
 * Everything happens inside httpd_server_run, called when the server's descriptor is readable and when the
 * time it returned has passed; nothing here waits. A connection stands still (suspended) whenever it is not
 * its turn: while a request is being worked on, while a body has no room, while a stream has nothing to send.
 *
 * An exchange has two holders: the server while the request is under way, and whoever took it
 * (httpd_server_take) until httpd_exchange_free. Whoever took it hears of news by httpd_server_news. */
#ifndef BOUGH_HTTPD_SERVER_H
#define BOUGH_HTTPD_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

struct httpd_server;
struct httpd_exchange;

struct httpd_options {
    const char *address;
    unsigned port;
    const char *cert, *key, *key_password; /* PEM; plain HTTP when NULL */
    unsigned connections;                  /* at most at a time; more wait to be accepted */
    unsigned per_ip;                       /* of one address, 0: as many */
    unsigned headers;                      /* header lines of a request */
    size_t header_bytes, target_bytes;
    double
        header_seconds; /* from the first byte of a request, or the connection, to the end of the header */
    double idle_seconds;   /* between requests */
    double gone_seconds;   /* a client that has closed its side for so long counts as gone */
    double slow_seconds;   /* in so many seconds, and three times as many ... */
    double slow_bytes;     /* ... a body must grow, and an answer be read, by as many bytes */
    double linger_seconds; /* how long a client may go on sending what nobody reads any more */
    size_t ahead;          /* bytes of a body that are read before anybody asks for them */
    size_t behind;         /* bytes of a stream that wait for the client */
};

struct httpd_server *httpd_server_new(const struct httpd_options *options, struct bough_err *err);
void httpd_server_free(struct httpd_server *server); /* ends every connection first */
int httpd_server_fd(const struct httpd_server *server);
unsigned httpd_server_port(const struct httpd_server *server);
const char *httpd_server_address(const struct httpd_server *server);
unsigned httpd_server_connections(const struct httpd_server *server);
unsigned httpd_server_busy(const struct httpd_server *server); /* exchanges that are not over */

/* Does what is ready. Returns after how many seconds at most it must be called again, < 0 for never. */
double httpd_server_run(struct httpd_server *server);
/* Accepts no more connections, and closes those on which nothing is under way; each of the others is closed
 * after its answer. */
void httpd_server_quiesce(struct httpd_server *server);
/* The next request, NULL when there is none. */
struct httpd_exchange *httpd_server_take(struct httpd_server *server);

enum httpd_news {
    HTTPD_NEWS_BODY = 1, /* there is more of it, or its end */
    HTTPD_NEWS_ROOM = 2, /* a stream takes more */
    HTTPD_NEWS_GONE = 4, /* the client has gone; comes before OVER or with it */
    HTTPD_NEWS_OVER = 8, /* the answer is out, or never will be */
};
/* The next exchange with news, and which; NULL when there is none. Borrowed. */
struct httpd_exchange *httpd_server_news(struct httpd_server *server, unsigned *news);

/* The request. What is returned lives as long as the exchange. */
uint64_t httpd_exchange_number(const struct httpd_exchange *x);
const char *httpd_exchange_method(const struct httpd_exchange *x);
const char *httpd_exchange_target(const struct httpd_exchange *x, size_t *size);
const char *httpd_exchange_version(const struct httpd_exchange *x);
const char *httpd_exchange_peer(const struct httpd_exchange *x);
/* The header after `*at`, which begins as 0: false when there are no more. */
bool httpd_exchange_header(const struct httpd_exchange *x, size_t *at, const char **name,
                           const char **value);
/* Why it must not be served: a status, and a line that says so. 0 when all is well. */
unsigned httpd_exchange_refused(const struct httpd_exchange *x, const char **why);
bool httpd_exchange_accepts_gzip(const struct httpd_exchange *x);
int64_t httpd_exchange_length(const struct httpd_exchange *x); /* -1: not told beforehand */

/* The body. */
enum httpd_body {
    HTTPD_BODY_SOME,
    HTTPD_BODY_WAIT,
    HTTPD_BODY_END,
    HTTPD_BODY_SLOW,
    HTTPD_BODY_GONE
};
/* SOME: the piece in front, to be dropped when it has been used. */
enum httpd_body httpd_exchange_body(struct httpd_exchange *x, const void **piece, size_t *size);
void httpd_exchange_body_drop(struct httpd_exchange *x, size_t size);

/* The answer, once: a whole one (reply) or a stream (open). False: the client has gone, or out of memory. */
struct httpd_header {
    const char *name, *value;
};
enum httpd_gzip { HTTPD_GZIP_NO, HTTPD_GZIP_EVENTS, HTTPD_GZIP_BULK };

bool httpd_exchange_reply(struct httpd_exchange *x, unsigned status,
                          const struct httpd_header *headers, size_t count, const void *body,
                          size_t size, bool gzip);
/* size: of the whole body, -1 when it is not known; tells the client so where nothing is compressed. */
bool httpd_exchange_open(struct httpd_exchange *x, unsigned status,
                         const struct httpd_header *headers, size_t count, enum httpd_gzip gzip,
                         int64_t size);
/* How much of `data` was taken, 0 for no room; -1: the client has gone, or nobody reads bodies (HEAD). */
ptrdiff_t httpd_exchange_put(struct httpd_exchange *x, const void *data, size_t size);
bool httpd_exchange_flush(struct httpd_exchange *x); /* false as -1 of put */
void httpd_exchange_end(struct httpd_exchange *x);
/* Ends the connection in the middle, so that the client sees that there should be more. */
void httpd_exchange_break(struct httpd_exchange *x);

bool httpd_exchange_gone(const struct httpd_exchange *x);
bool httpd_exchange_answered(const struct httpd_exchange *x); /* reply or open was called */
uint64_t httpd_exchange_in(const struct httpd_exchange *x);   /* bytes of body */
uint64_t httpd_exchange_out(const struct httpd_exchange *x);  /* the same, as sent */
/* Lets go. An exchange that was not answered is broken off. */
void httpd_exchange_free(struct httpd_exchange *x);

#endif
