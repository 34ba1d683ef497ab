/* out.h - the buffered way to bough-look's output, and what it says while it works.
 *
 * All functions that return int return -1 with err when they cannot write. When nobody reads the
 * output any more that is kind `closed` with EPIPE; a command passes it up like any failure, with its
 * numbers filled in, and main reports "ok". */
#ifndef BOUGH_LOOK_OUT_H
#define BOUGH_LOOK_OUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../err.h"

#define BOUGH_OUT_BYTES ((size_t)256 << 10)

struct bough_out {
    int fd;
    int report; /* gets the progress lines; -1: none wanted */
    char *buf;
    size_t len, room;
    int64_t written;              /* handed to the kernel */
    int64_t flushed_ns, shown_ns; /* when last */
    unsigned ticks;
};

/* Descriptors stay the caller's. */
int bough_out_start(struct bough_out *o, int fd, int report, struct bough_err *err);
/* Frees the buffer and writes nothing. Fine on a zeroed one. */
void bough_out_free(struct bough_out *o);

/* `size` bytes in a row to fill in; bough_out_took says how many were used. NULL with err. Valid
 * until the next call. */
char *bough_out_room(struct bough_out *o, size_t size, struct bough_err *err);
void bough_out_took(struct bough_out *o, size_t size);
int bough_out_write(struct bough_out *o, const void *data, size_t size, struct bough_err *err);
int bough_out_flush(struct bough_out *o, struct bough_err *err);

/* To call often, say for each file: passes on what has waited for some time, shows progress when that is
 * wanted, notices when the reader has gone. */
int bough_out_tick(struct bough_out *o, int64_t done, struct bough_err *err);

/* Writes a whole line to a report, waiting for room. Nothing can be done when
 * nobody listens. */
void bough_out_line(int fd, const char *line);
/* "err <kind> <errno> <message>", whatever bytes the message has. May be called in a signal handler. */
void bough_out_failure(int fd, const struct bough_err *err);

#endif
