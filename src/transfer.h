/* transfer.h - one request over HTTP and its answer: in memory, into a spool, or as a stream that is not read while
 * nobody takes.
 *
 * Counted: by whoever holds it, and once while it is under way. No message holds credentials, or more of a URL
 * than its host. transfer.c is its life; transfer_ask.c makes a request into what libcurl wants, transfer_fault.c
 * says what went wrong. */
#ifndef BOUGH_TRANSFER_H
#define BOUGH_TRANSFER_H

#include "answer.h"
#include "feed.h"
#include "gunzip.h"
#include "http.h"
#include "origin.h"
#include "spool.h"

#define BOUGH_TRANSFER_STREAM ((size_t)256 << 10) /* buffered for whoever reads a stream */
#define BOUGH_TRANSFER_ASIDE ((size_t)64 << 10)   /* kept of a body that the spool does not want */

struct bough_request {
    const char *url, *method;
    char **headers;   /* "Name: value", NULL at the end */
    const char *body; /* NULL: none; copied */
    size_t body_size;
    struct bough_feed
        *feed; /* the body as a file, not yet started; taken over, also by a failure */
    struct bough_spool *spool; /* bodies of 2xx go there; referenced */
    bool resume; /* ask for what the spool does not have; start over where that is not given */
    bool stream;
    bool
        http2; /* may be used. While a stream stands still libcurl takes up to 32 MiB more of it there */
    bool compressed; /* it may be; it is unpacked. Not of what is resumed */
    bool
        once; /* never sent a second time, not even where a reused connection turns out to be dead */
    int64_t max_bytes;                        /* of a body in memory */
    int64_t connect_ms, timeout_ms, stall_ms; /* 0: no limit */
    long follow; /* redirects at most. To another host goes no header but those about formats */
    const char *username, *password, *bearer;
};

enum bough_transfer_phase {
    BOUGH_TRANSFER_PREPARING, /* its file is being opened */
    BOUGH_TRANSFER_WAITING,   /* others are let in first */
    BOUGH_TRANSFER_STARTING,  /* libcurl has it; there is no connection yet */
    BOUGH_TRANSFER_ACTIVE,
    BOUGH_TRANSFER_ENDING, /* libcurl is done with it; some of the body is not yet where it goes */
    BOUGH_TRANSFER_DONE,
};

struct bough_transfer {
    int refs;
    struct bough_http *http;
    enum bough_transfer_phase phase;
    struct bough_cond changed; /* fires for headers, for body bytes of a stream, and at the end */
    bool headers_done, done;
    struct bough_err err; /* when done: err.msg[0] means that it failed */
    bool sent;            /* when done: some of the request may have reached the host */
    struct bough_answer answer;
    char *url;                  /* where it ended up; with headers_done */
    int64_t received, expected; /* body bytes, -1 unknown; what a resumed spool had counts */
    bool spooling;              /* the body is in the spool, not in the answer */
    char *host;                 /* as in "example.org:5000", for messages */
    /* the rest is its own, http.c's and origin.c's */
    void *easy, *header_list;
    struct bough_transfer *next, *prev;    /* in the client */
    struct bough_transfer *before, *after; /* in the origin's queue */
    struct bough_origin *origin;
    struct bough_feed *feed;
    struct bough_spool *spool;
    struct bough_gunzip *gunzip; /* of an answer that is compressed */
    char *packed;                /* what came and is not unpacked, because nobody takes */
    size_t packed_at, packed_size;
    char *body, *method;
    size_t body_size, header_size;
    int64_t uploaded; /* of a body in memory */
    int64_t max_bytes, connect_ms, timeout_ms, stall_ms, resume_at;
    int64_t start_ns, active_ns; /* active: when the last byte moved; 0 while connecting */
    long follow, asked_size;     /* bytes sent, CONNECT and all, when the request began */
    int paused;                  /* CURLPAUSE_ bits */
    int local_port;              /* of the connection, 0 before there is one */
    bool stream, cut, once, compressed, http2;
    bool more;        /* what is unpacked may not be all that the bytes so far stand for */
    bool framed;      /* the end of the body shows, other than by the end of the connection */
    bool alone;       /* shares its connection with none */
    bool opening;     /* makes a connection of its own */
    bool asked;       /* the request, or what a redirect made of it, has begun */
    bool away;        /* redirected to another host */
    bool inside;      /* was kept from connecting to this machine */
    bool insists;     /* told by 417 not to ask beforehand whether its file is wanted */
    char reason[256]; /* libcurl's */
};

/* Returns at once; what goes wrong later is the transfer's error. NULL: `err`. One reference is the caller's. */
struct bough_transfer *bough_transfer_start(struct bough_http *http,
                                            const struct bough_request *request,
                                            struct bough_err *err);
void bough_transfer_unref(struct bough_transfer *t);
/* Ends it with an error, unless it is over. */
void bough_transfer_end(struct bough_transfer *t, enum bough_err_kind kind, const char *why);
/* Of a stream: so many bytes of answer.data were taken, read on. */
void bough_transfer_taken(struct bough_transfer *t, size_t size);
/* How far it has come, and of how much; 0 when that is unknown. */
void bough_transfer_progress(const struct bough_transfer *t, int64_t *done, int64_t *total);

/* For the client. */
/* It may begin: it is the first in its origin's queue. */
void bough_transfer_admit(struct bough_transfer *t);
/* libcurl has done with it, for this reason (a CURLcode). */
void bough_transfer_finish(struct bough_transfer *t, int code);
/* When it will have been silent, or in want of a connection, for too long as things stand; INT64_MAX for never. */
int64_t bough_transfer_due(const struct bough_transfer *t);
void bough_transfer_overdue(struct bough_transfer *t);

#endif
