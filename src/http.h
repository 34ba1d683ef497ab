/* http.h - a client for HTTP and HTTPS on the loop: libcurl's multi handle driven by libuv.
 *
 * Knows no Lua. A client owns the connections; transfers (transfer.h) use them. Counted. All runs on the loop's
 * thread; callbacks only fire conditions. */
#ifndef BOUGH_HTTP_H
#define BOUGH_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "err.h"
#include "loop.h"

struct bough_http_options {
    const char *user_agent, *ca_file, *ca_dir; /* NULL: the default */
    const char *proxy;    /* its URL; "": none; NULL: as the environment says */
    long max_connections; /* 0: as many as there are transfers */
    bool trust_all;       /* certificates are not checked */
    bool outside; /* does not connect to what reach.h calls inside, unless that is a proxy */
};

struct bough_http {
    int refs;
    struct bough_loop *loop;
    void *multi;               /* libcurl's; NULL once it is closed */
    uv_timer_t *timer, *stall; /* libcurl's, and ours for peers that have fallen silent */
    int64_t looked_ns;         /* when they were last looked for */
    struct bough_http_watch *watches;
    struct bough_transfer *transfers; /* under way */
    size_t count, active, alone;      /* alone: begun, and each with a connection of its own */
    struct bough_origin *origins;
    int64_t freed_ns; /* when a connection was last given up or back */
    char *user_agent, *ca_file, *ca_dir, *proxy;
    long max_connections;
    bool trust_all, outside, closing;
    bool ca_default; /* libcurl has a file of certificates of its own */
};

struct bough_http *bough_http_open(struct bough_loop *loop,
                                   const struct bough_http_options *options, struct bough_err *err);
void bough_http_ref(struct bough_http *http);
void bough_http_unref(struct bough_http *http); /* the last one closes it */
void bough_http_close(struct bough_http *http); /* ends what is under way */
/* Has transfers begin that wait, as far as they may. Not to be called by what libcurl calls. */
void bough_http_admit(struct bough_http *http);
/* The socket in use whose own port is this, -1. */
int bough_http_socket(const struct bough_http *http, int port);
/* Has silent transfers looked at by then. */
void bough_http_stall_at(struct bough_http *http, int64_t due_ns);

#endif
