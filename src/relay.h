/* relay.h - bytes between descriptors 0, 1 and 2 of the host and the streams of a process.
 *
 * Knows libuv, knows no Lua. Goes on by callbacks of the loop alone, takes no more than the other side has room for,
 * and never waits: where the host's descriptor has no open file description of our own, it is asked before each
 * read and each (small) write whether it would. It fires `changed` when it has come to its end on either side, or
 * has failed. The relay has a reference on each stream. */
#ifndef BOUGH_RELAY_H
#define BOUGH_RELAY_H

#include "reader.h"
#include "terminal.h"
#include "writer.h"

#define BOUGH_RELAY_CHUNK 65536
#define BOUGH_RELAY_DETACH 16 /* bytes that the sequence which ends it may have */

/* The descriptors that are watched, each by its place in `spots`. */
enum {
    BOUGH_SPOT_SOURCE, /* the host's 0 */
    BOUGH_SPOT_WRITER,
    BOUGH_SPOT_READER,                       /* stdout and stderr */
    BOUGH_SPOT_SINK = BOUGH_SPOT_READER + 2, /* the host's 1 and 2 */
    BOUGH_SPOT_COUNT = BOUGH_SPOT_SINK + 2
};

struct bough_spot {
    int fd;          /* -1: none */
    bool owned;      /* closed with the relay */
    bool ready;      /* cannot be watched since it never makes one wait: a regular file */
    uint32_t events; /* as epoll watches it now; 0: it does not */
};

struct bough_relay {
    struct bough_loop *loop;
    struct bough_cond *changed;  /* the owner's */
    struct bough_writer *writer; /* NULL: nothing is copied there */
    struct bough_reader *readers[2];
    int epoll;
    uv_poll_t *poll;
    struct bough_spot spots[BOUGH_SPOT_COUNT];
    bool terminal; /* the host's 0 and 1 are one, handed over as a whole */
    bool paused;   /* another job has that terminal */
    char *data;    /* from 0, on its way to the writer: [at, at+size) */
    size_t at, size;
    char *ahead; /* what was read before us and comes first: [ahead_at, ahead_size) */
    size_t ahead_at, ahead_size;
    bool eof; /* of the source */
    char detach[BOUGH_RELAY_DETACH];
    size_t detach_size, matched; /* of it, by what was typed last, and held back */
    bool detached;
    bool failed;
    struct bough_err err;
};

/* `writer` and either reader may be NULL. Nothing moves before the first pump. -1: err; close it all the same. */
int bough_relay_open(struct bough_relay *relay, struct bough_loop *loop, struct bough_cond *changed,
                     struct bough_writer *writer, struct bough_reader *const readers[2],
                     struct bough_err *err);
void bough_relay_pump(struct bough_relay *relay); /* moves what can be moved */
/* Where standard input has ended and the process has a terminal: types ^D once more. For now and then. */
void bough_relay_nudge(struct bough_relay *relay);
/* While another job has the terminal; of other input, nothing is read. */
void bough_relay_pause(struct bough_relay *relay, bool paused);
/* The process is over: what its streams hold now is all, whoever else has them open. */
void bough_relay_cut(struct bough_relay *relay);
bool bough_relay_is_drained(
    const struct bough_relay *relay); /* all output has come and is written */
void bough_relay_close(struct bough_relay *relay);

#endif
