/* writer.h - the host's end of a stream that goes: a pipe or a terminal's master.
 *
 * Knows libuv, knows no Lua. Writes at once what the kernel takes; what is left of something small goes into a queue of
 * at most BOUGH_WRITER_QUEUE bytes, which the loop writes as room comes. A peer that has gone is an error of kind
 * `closed`, never a SIGPIPE. Counted; the last reference closes it, except that what is queued still goes. */
#ifndef BOUGH_WRITER_H
#define BOUGH_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

#include "err.h"
#include "loop.h"

#define BOUGH_WRITER_QUEUE 65536

/* One who writes a long text bit by bit: a place in the line, first come, first served. */
struct bough_writer_turn {
    struct bough_writer_turn *next, *prev;
    struct bough_writer *writer; /* NULL: not in line */
};

struct bough_writer {
    int refs;
    int fd; /* does not block; -1: closed */
    uv_poll_t *poll;
    bool polling, ready; /* the loop watches; it has seen room since we last wrote */
    struct bough_loop *loop;
    struct bough_loop_end at_end;
    struct bough_cond
        changed; /* fires when there is room, when all is written, at errors and close */
    struct bough_cond moved; /* fires when the line of turns moves */
    struct bough_cond *shut; /* somebody else's: fires when nothing more goes; NULL */
    struct bough_writer_turn *first, *last_turn;
    char *data; /* queued: [at, at+size) */
    size_t at, size, room;
    bool ending;       /* close when the queue is empty; holds a reference until then */
    bool closed;       /* by its owner: writing raises `closed` */
    bool grown;        /* a larger pipe has been asked for */
    const char *taken; /* why nothing can be written here (handed to another process), NULL */
    bool is_terminal; /* closing it would be a hang-up of the command: the end is a character, ^D */
    char last;        /* byte that was put */
    struct bough_err err;
    uint64_t written; /* bytes that the kernel has taken, ever */
    size_t streak;    /* bytes put since somebody waited */
};

/* Takes `fd` over (makes it non-blocking) even when it fails. */
struct bough_writer *bough_writer_new(struct bough_loop *loop, int fd, bool is_terminal,
                                      struct bough_err *err);
void bough_writer_unref(struct bough_writer *writer);
/* Takes what it can without waiting: all of it when what the kernel leaves fits into the queue, else only what the
 * kernel has taken. How many bytes, 0 when it is full, -1: writer->err. */
ssize_t bough_writer_put(struct bough_writer *writer, const char *data, size_t size);
bool bough_writer_is_empty(const struct bough_writer *writer); /* nothing queued */
int bough_writer_watch(
    struct bough_writer *writer); /* `changed` fires when there is room. -1: err */
void bough_writer_end(struct bough_writer *writer);   /* close, after what is queued; never waits */
void bough_writer_close(struct bough_writer *writer); /* at once; idempotent */
/* A descriptor that blocks, for another process to write to; the writer is closed (`taken`) after. Refuses
 * (kind `state`) while something is queued or being written. -1: err. */
int bough_writer_hand_over(struct bough_writer *writer, struct bough_err *err);

/* Who has to wait for room gets in line, and may put only while its turn is first: texts never mix. A call that needs
 * no waiting may put when nobody is in line. Leaving twice is harmless. */
void bough_writer_turn_take(struct bough_writer *writer, struct bough_writer_turn *turn);
void bough_writer_turn_leave(struct bough_writer_turn *turn);

/* write(2) without a SIGPIPE for the host, whatever it has set. */
ssize_t bough_write_quietly(int fd, const char *data, size_t size);

#endif
