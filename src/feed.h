/* feed.h - a local file, or a part of it, on its way into a request.
 *
 * libuv's threads read the next piece while the last one is being sent. Counted, and run on the loop's thread,
 * as a spool is. */
#ifndef BOUGH_FEED_H
#define BOUGH_FEED_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "err.h"
#include "loop.h"

#define BOUGH_FEED_BUFFER ((size_t)256 << 10)

struct bough_feed {
    uv_work_t req; /* first */
    int refs;
    struct bough_loop *loop;
    char *path;
    int fd;
    bool busy;
    bool seeking;         /* what is being read is not wanted any more */
    int64_t offset, size; /* the part; size -1 becomes all there is when it has been opened */
    int64_t at;           /* how much of the part has been given */
    int64_t read_at;      /* how much has been read */
    char *out, *next;     /* being given; being read. Both there once the file is open */
    size_t room, out_size, out_at, next_size;
    struct bough_err err, work_err;
    /* Called when there is something to give, or a failure. */
    void (*on_ready)(void *arg);
    void *arg;
};

/* Starts opening the file: `size` is known, or `err` is set, when on_ready is called. NULL: out of memory. */
struct bough_feed *bough_feed_open(struct bough_loop *loop, const char *path, int64_t offset,
                                   int64_t size);
void bough_feed_unref(struct bough_feed *feed);
void bough_feed_start(struct bough_feed *feed, void (*on_ready)(void *arg), void *arg);
/* Up to `size` bytes: how many; 0 at the end; -1: none yet, on_ready will be called; -2: `feed->err`. */
long bough_feed_take(struct bough_feed *feed, char *data, size_t size);
void bough_feed_seek(struct bough_feed *feed, int64_t at);

#endif
