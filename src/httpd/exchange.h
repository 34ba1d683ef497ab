/* exchange.h - an exchange from inside: what server.c and exchange.c share. */
#ifndef BOUGH_HTTPD_EXCHANGE_H
#define BOUGH_HTTPD_EXCHANGE_H

#include <microhttpd.h>

#include "httpd/listen.h"
#include "httpd/pack.h"
#include "httpd/queue.h"
#include "httpd/server.h"

/* The lists that an exchange can be in, and its places in them; a list is a ring with a head. */
enum httpd_list { HTTPD_READY, HTTPD_TALK, HTTPD_FRESH, HTTPD_LISTS };

struct httpd_hook {
    struct httpd_hook *next, *prev; /* NULL: in no list */
};

enum { HTTPD_SMALL_BODY = 64 << 10 }; /* comes before the request is handed over */

enum httpd_phase {
    HTTPD_IDLE,   /* between requests */
    HTTPD_HEADER, /* of a request is coming, or should be: a fresh connection */
    HTTPD_BUSY,   /* with an exchange */
};

struct httpd_connection {
    struct httpd_connection *next, **link;
    struct httpd_server *server;
    struct MHD_Connection *mhd;
    struct httpd_exchange *exchange; /* under way, or NULL */
    int fd;
    enum httpd_phase phase;
    bool measured;     /* `received` holds what had come when the phase began */
    bool secure;       /* TLS */
    bool linger;       /* the client may still be sending */
    int64_t since;     /* of the phase */
    int64_t half;      /* when its end was first seen, 0: it is open */
    int64_t window;    /* when the time began in which `progress` must grow, 0: not now */
    uint64_t received; /* by TCP */
    uint64_t progress;
    char peer[HTTPD_ADDRESS_MAX];
};

struct httpd_exchange {
    struct httpd_hook
        hooks[HTTPD_LISTS]; /* not taken yet; with news; may be answered before it is suspended */
    struct httpd_server *server;         /* NULL when over */
    struct httpd_connection *connection; /* NULL when over */
    unsigned refs;
    unsigned news;
    uint64_t number;
    bool taken;
    bool seen;      /* by on_request */
    bool held;      /* suspended when only the header had come */
    bool handed;    /* was ready once */
    bool suspended; /* the connection stands still */
    bool in_over;   /* the whole body has come */
    bool slow;      /* the body came too slowly */
    bool answered;
    bool said;   /* past MHD, in the middle of the body */
    bool queued; /* the answer was given to the connection */
    bool streams, ended;
    bool broken; /* the connection is to end */
    bool gone, over;
    bool head, accepts_gzip, expects;
    unsigned refused;
    const char *why;
    /* the request: one block */
    char *target;
    size_t target_size;
    char *block;
    const char *method, *version, *peer;
    const char *headers;
    size_t headers_size;
    int64_t length; /* declared, -1: chunked */
    /* its body */
    struct httpd_queue in;
    uint64_t in_bytes;
    uint64_t dropped;
    /* the answer */
    struct MHD_Response *response; /* ours until it is queued */
    unsigned status;
    int64_t answered_at;
    int64_t size; /* of a stream, as promised; -1: none was */
    uint64_t out_bytes;
    struct httpd_queue out;
    struct httpd_pack *pack;
};

struct httpd_exchange *httpd_exchange_new(struct httpd_connection *connection, const char *target);
void httpd_exchange_unref(struct httpd_exchange *x);
void httpd_exchange_forget_answer(
    struct httpd_exchange *x); /* one that was not queued: it holds us */
/* Copies what the connection knows of the request, and looks whether it can be served. */
bool httpd_exchange_capture(struct httpd_exchange *x, const char *method, const char *version);
enum MHD_Result httpd_exchange_queue(struct httpd_exchange *x);
void httpd_exchange_suspend(struct httpd_exchange *x);
void httpd_exchange_resume(struct httpd_exchange *x);
void httpd_exchange_tell(struct httpd_exchange *x, unsigned news);
bool httpd_exchange_is_early(const struct httpd_exchange *x);
void httpd_exchange_hand(struct httpd_exchange *x);
void httpd_exchange_unlist(struct httpd_exchange *x); /* out of all */
void httpd_exchange_list(struct httpd_exchange *x, enum httpd_list list);
void httpd_exchange_leave(struct httpd_exchange *x, enum httpd_list list);
bool httpd_exchange_is_in(const struct httpd_exchange *x, enum httpd_list list);
struct httpd_exchange *httpd_exchange_of(struct httpd_hook *hook, enum httpd_list list);

const struct httpd_options *httpd_server_options(const struct httpd_server *server);
struct httpd_press *httpd_server_press(struct httpd_server *server);
bool httpd_server_is_quiet(const struct httpd_server *server);
struct httpd_hook *httpd_server_list(struct httpd_server *server, enum httpd_list list);
uint64_t httpd_server_count(struct httpd_server *server);

#endif
