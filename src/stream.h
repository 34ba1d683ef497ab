/* stream.h - the host's ends of a run's stdin, stdout and stderr.
 *
 * Output comes through a pipe and goes to memory (up to a limit), to a descriptor, or to a
 * buffer that somebody empties; the pipe is not read while that buffer is full, so a slow consumer slows the command.
 * Input comes from a descriptor or from a buffer that somebody fills. Nothing here waits,
 * and writing to a command that has closed its stdin raises no SIGPIPE in the host. */
#ifndef BOUGH_STREAM_H
#define BOUGH_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "err.h"
#include "loop.h"

#define BOUGH_STREAM_CHUNK 65536

/* A pipe whose end `ours` (0 read, 1 write; -1: neither) does not block. Descriptors below 3 stay free: a host that has
 * closed its stdin must not find a pipe there. */
int bough_pipe_open(int ends[2], int ours, struct bough_err *err);

enum bough_sink { BOUGH_SINK_DISCARD, BOUGH_SINK_CAPTURE, BOUGH_SINK_FD, BOUGH_SINK_TAKE };

struct bough_out {
    enum bough_sink sink;
    int fd;            /* the pipe's read end, -1 */
    int sink_fd;       /* owned; SINK_FD */
    char *path, *temp; /* owned; renamed from temp to path at the end */
    uv_poll_t *poll;
    struct bough_cond *changed;
    char *data;
    size_t size, room, limit;
    int64_t dropped;
    bool eof;
    struct bough_err err; /* of the sink; kind io.. when err.msg[0] */
};

/* Makes the pipe and starts reading; *theirs is the end for the command, -1 for nothing: the host's own
 * /dev/null is no present for a sandbox's root, who could change its mode. */
int bough_out_open(struct bough_out *out, struct bough_loop *loop, struct bough_cond *changed,
                   int *theirs, struct bough_err *err);
/* The same over a terminal's master (taken over, does not block), which is discarded where nobody wants the output. */
int bough_out_over(struct bough_out *out, struct bough_loop *loop, struct bough_cond *changed,
                   int terminal, struct bough_err *err);
void bough_out_drain(
    struct bough_out *out); /* reads what is there: to the end when no writer is left */
/* The command is over: takes what is in the pipe (no more than it holds, so a full buffer does not matter)
 * and closes it, even where somebody outside still has the other end. */
void bough_out_finish(struct bough_out *out);
void bough_out_taken(struct bough_out *out); /* the buffer was emptied (SINK_TAKE): read on */
int bough_out_settle(struct bough_out *out,
                     bool keep); /* renames or removes the temporary file; -1: out->err */
void bough_out_close(struct bough_out *out);

enum bough_source { BOUGH_SOURCE_NONE, BOUGH_SOURCE_DATA, BOUGH_SOURCE_FD, BOUGH_SOURCE_GIVE };

struct bough_in {
    enum bough_source source;
    int fd;        /* the pipe's write end, -1 */
    int source_fd; /* owned; SOURCE_FD */
    int source_epoll; /* owned; tells when source_fd can be read, -1 where it always can (a regular file) */
    uv_poll_t *poll, *source_poll;
    struct bough_cond *changed;
    char *data; /* owned: all of it for SOURCE_DATA, what is still to be written otherwise */
    size_t size, at;
    bool terminal; /* fd is a master: the end of the input is a character */
    char last;     /* written, then */
    bool wants;    /* SOURCE_GIVE: the buffer is empty, more is welcome */
    bool ended;    /* nothing more will come */
    struct bough_err err;
};

int bough_in_open(struct bough_in *in, struct bough_loop *loop, struct bough_cond *changed,
                  int *theirs, struct bough_err *err);
/* The same over a terminal's master (taken over, does not block). */
int bough_in_over(struct bough_in *in, struct bough_loop *loop, struct bough_cond *changed,
                  int terminal, struct bough_err *err);
int bough_in_give(struct bough_in *in, const char *data,
                  size_t size); /* SOURCE_GIVE; size 0 ends it */
void bough_in_close(struct bough_in *in);

#endif
