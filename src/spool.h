/* spool.h - a local file that is being written, and the SHA-256 of what is in it.
 *
 * Bytes are taken into one of two buffers while libuv's threads write and hash the other, so that nothing here
 * blocks. Counted: by whoever holds it and by the work under way. Runs on the loop's thread; only the work itself
 * runs elsewhere, and touches what the loop's thread leaves alone while `busy`. */
#ifndef BOUGH_SPOOL_H
#define BOUGH_SPOOL_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "err.h"
#include "loop.h"
#include "sha256.h"

#define BOUGH_SPOOL_BUFFER ((size_t)1 << 20)

enum bough_spool_work { BOUGH_SPOOL_OPEN, BOUGH_SPOOL_WRITE, BOUGH_SPOOL_RESET };

struct bough_spool {
    uv_work_t req; /* first */
    int refs;
    struct bough_loop *loop;
    struct bough_cond changed; /* fires when work ends */
    char *path;
    int fd;
    bool resume;    /* what is in the file stays, and is hashed */
    bool busy;      /* work is under way: `work`, `out`, `hash`, `work_err` and `fd` are its own */
    bool reset_due; /* once that is over */
    bool closed;    /* what has not been written yet is not wanted */
    int64_t max_bytes;              /* -1: no bound */
    int64_t size;                   /* of the file, with what is still in a buffer */
    struct bough_err err, work_err; /* a failure lasts until the next reset */
    enum bough_spool_work work;
    struct bough_sha256 *hash;
    char *in, *out; /* the buffer that fills, and the one being written; NULL when idle */
    size_t in_size, out_size;
    int64_t out_at;
    /* Called when there is room again, or when nothing is left to write. */
    void (*on_room)(void *arg);
    void *arg;
};

/* Starts opening (and, to resume, hashing) the file: it is ready, or failed (`err`), when not busy. */
struct bough_spool *bough_spool_open(struct bough_loop *loop, const char *path, bool resume,
                                     int64_t max_bytes);
void bough_spool_ref(struct bough_spool *spool);
void bough_spool_unref(struct bough_spool *spool);
/* Takes all of it: 1, or nothing because there is no room now: 0, or -1 with `spool->err`. */
int bough_spool_put(struct bough_spool *spool, const char *data, size_t size);
void bough_spool_reset(struct bough_spool *spool); /* empty again, and without its failure */
void bough_spool_hex(const struct bough_spool *spool, char hex[BOUGH_SHA256_HEX]); /* not busy */
/* Drops what is not written yet. The file is closed when the work under way is over and the last holder has gone. */
void bough_spool_close(struct bough_spool *spool);

#endif
