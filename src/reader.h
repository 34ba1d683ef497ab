/* reader.h - the host's end of a stream that comes: a pipe or a terminal's master, read when somebody wants it.
 *
 * Knows libuv, knows no Lua. Little is read ahead of need, so a slow reader slows the command and memory stays
 * flat. The exception is output that nobody reads while somebody waits for something else of the same process (its
 * end, the other stream): that is put aside, in memory and beyond BOUGH_READER_ASIDE in an unnamed file. Bytes keep
 * their order: `data`, then the file, then the pipe. Counted; the last reference closes it. */
#ifndef BOUGH_READER_H
#define BOUGH_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

#include "err.h"
#include "loop.h"

#define BOUGH_READER_CHUNK 65536
#define BOUGH_READER_ASIDE (1024 * 1024)

struct bough_reader {
    int refs;
    int fd; /* does not block; -1: closed, handed over, or at its end */
    uv_poll_t *poll;
    bool polling, ready; /* the loop watches; it has seen something since we last read */
    struct bough_loop *loop;
    struct bough_loop_end at_end;
    struct bough_cond
        changed; /* fires when there is something to read, at the end, and when it is closed */
    char *data;  /* [at, at+size) has been read and not taken */
    size_t at, size, room;
    uint64_t used; /* bytes taken, ever: tells whether somebody else has taken some */
    int aside;     /* unnamed file with what comes after `data`; -1 */
    off_t aside_at, aside_end;
    bool eof;    /* nothing more comes from the pipe; there may be some in `data` and in the file */
    bool closed; /* by its owner; reading raises `closed` */
    bool grown;  /* a larger pipe has been asked for */
    const char
        *taken;       /* why there is nothing left to read here (handed to another process), NULL */
    bool is_terminal; /* a master: EIO is its end */
    struct bough_err err; /* of reading: comes after what is there */
    uint64_t reads;       /* calls that wanted something, ever */
    size_t streak;        /* bytes read and taken since somebody waited */
    int unattended; /* how many wait for something else: put aside what comes while nobody reads it */
    uint64_t reads_before; /* `reads` when `unattended` rose from 0 */
    struct bough_reader
        *sibling; /* the other output of the process, not counted: it clears this when it goes */
};

/* Takes `fd` over (makes it non-blocking) even when it fails. */
struct bough_reader *bough_reader_new(struct bough_loop *loop, int fd, bool is_terminal,
                                      struct bough_err *err);
void bough_reader_unref(struct bough_reader *reader);
void bough_reader_pair(struct bough_reader *a, struct bough_reader *b); /* makes them siblings */

/* Reads what is there without waiting, at most `want` bytes more than is in `data` already. Returns how many
 * came, 0 when none did; bough_reader_at_end and `err` tell more. */
size_t bough_reader_pull(struct bough_reader *reader, size_t want);
bool bough_reader_at_end(
    const struct bough_reader *reader); /* nothing will come after what is in `data` */
/* Has the loop watch for more; `changed` will fire. Before each bough_wait for it. -1: err. */
int bough_reader_watch(struct bough_reader *reader);
void bough_reader_take(struct bough_reader *reader,
                       size_t size); /* `size` bytes of `data` are used up */
/* One more (1) or less (-1) who waits for something else of the process. */
void bough_reader_unattend(struct bough_reader *reader, int change);
/* The process is over: whoever has inherited its end may keep it open for ever, so what is in the pipe now is all.
 * For communicate alone; a read goes on to the true end. */
void bough_reader_cut(struct bough_reader *reader);
void bough_reader_close(struct bough_reader *reader); /* idempotent; waiters hear */

/* Hands the stream to another process as its stdin. When nothing was read ahead: a descriptor that blocks, and
 * *head is NULL. Else *head (malloc'ed) has to be fed in front of it. The reader is closed (`taken`) after. -1: err. */
int bough_reader_hand_over(struct bough_reader *reader, char **head, size_t *head_size,
                           struct bough_err *err);

#endif
