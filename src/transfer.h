/* transfer.h - one request over HTTP and its answer: in memory, into a spool, or as a stream that is not read while
 * nobody takes.
 *
 * Counted: by whoever holds it, and once while it is under way. No message holds credentials, or more of a URL
 * than its host. */
#ifndef BOUGH_TRANSFER_H
#define BOUGH_TRANSFER_H

#include "answer.h"
#include "feed.h"
#include "http.h"
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
    bool http2;                               /* may be used; what is paused had better not */
    bool compressed;                          /* it may be; it is decoded */
    int64_t max_bytes;                        /* of a body in memory */
    int64_t connect_ms, timeout_ms, stall_ms; /* 0: no limit */
    long follow;                              /* redirects at most */
    const char *username, *password, *bearer;
};

struct bough_transfer {
    int refs;
    struct bough_http *http;
    struct bough_cond changed; /* fires for headers, for body bytes of a stream, and at the end */
    bool headers_done, done;
    struct bough_err err; /* when done: err.msg[0] means that it failed */
    struct bough_answer answer;
    char *url;                  /* where it ended up; with headers_done */
    int64_t received, expected; /* body bytes, -1 unknown; what a resumed spool had counts */
    /* the rest is transfer.c's */
    void *easy;
    void *header_list;
    struct bough_transfer *next, *prev; /* in the client */
    struct bough_feed *feed;
    struct bough_spool *spool;
    char *body, *method;
    char *host; /* as in "example.org:5000", for messages */
    size_t body_size, header_size;
    int64_t max_bytes, stall_ms, resume_at;
    int64_t active_ns; /* when the last byte moved; 0 while connecting */
    long follow;
    int paused; /* CURLPAUSE_ bits */
    bool added, stream, spooling, cut, finishing;
    char reason[256]; /* libcurl's */
};

/* Returns at once; what goes wrong later is the transfer's error. NULL: `err`. One reference is the caller's. */
struct bough_transfer *bough_transfer_start(struct bough_http *http,
                                            const struct bough_request *request,
                                            struct bough_err *err);
void bough_transfer_unref(struct bough_transfer *t);
/* Ends it with an error, unless it is over. */
void bough_transfer_end(struct bough_transfer *t, enum bough_err_kind kind, const char *why);
/* For the client: libcurl has done with it, for this reason (a CURLcode). */
void bough_transfer_finish(struct bough_transfer *t, int code);
/* Of a stream: so many bytes of answer.data were taken, read on. */
void bough_transfer_taken(struct bough_transfer *t, size_t size);
/* How far it has come, and of how much; 0 when that is unknown. */
void bough_transfer_progress(const struct bough_transfer *t, int64_t *done, int64_t *total);

#endif
