/* remote.h - one live command that runs elsewhere: what its two sides, the child and the peer, share.
 *
 * Knows libuv, knows no Lua. The child is the caller's side: streams as a spec asked for them (streams.h), and wishes.
 * The peer is whoever moves the bytes to and from the true command and tells of its end: it holds the other ends of
 * the same kernel pipes. Counted; both sides hold it, and neither holds the other. */
#ifndef BOUGH_REMOTE_H
#define BOUGH_REMOTE_H

#include "process.h"

#define BOUGH_REMOTE_SIGNALS 128 /* pending at once: each number once for each scope */

struct bough_remote_signal {
    int number;
    enum bough_scope scope;
};

struct bough_remote {
    int refs;
    struct bough_loop *loop;
    struct bough_cond changed;      /* for the child: a step, the end, data for a function */
    struct bough_cond wished;       /* for the peer: a wish, and the end */
    enum bough_process_state state; /* OVER once the peer has told */
    bool ran;                       /* it was started, whatever came of it */
    bool failed;                    /* err says why, unless somebody above knows better */
    bool given_up;                  /* nobody wants what it does */
    bool told;                      /* and the peer has heard that */
    struct bough_err err;
    int64_t pid; /* 0: unknown */
    struct bough_streams streams;
    struct bough_reader *input;     /* the peer's ends; counted, NULL where there is nothing */
    struct bough_writer *output[2]; /* the second NULL too when joined */
    struct bough_reader *kept[2];   /* what the caller reads himself; counted, NULL */
    struct bough_result result;     /* at the end: without what was captured */
    struct bough_remote_signal signals[BOUGH_REMOTE_SIGNALS]; /* in their order */
    int signal_count;
};

enum bough_wish { BOUGH_WISH_NONE, BOUGH_WISH_SIGNAL, BOUGH_WISH_CLOSE };

struct bough_remote *bough_remote_new(struct bough_loop *loop); /* NULL when out of memory */
void bough_remote_unref(struct bough_remote *remote);
/* Once `streams` say what is wanted: makes the pipes and the peer's ends of them. */
int bough_remote_open(struct bough_remote *remote, struct bough_err *err);

/* The child's side. */
/* OVER only when what the caller reads himself is in his pipes too, as with any command that has ended; unless nobody
 * wants it. */
enum bough_process_state bough_remote_state(const struct bough_remote *remote);
void bough_remote_signal(struct bough_remote *remote, int number, enum bough_scope scope);
void bough_remote_close(struct bough_remote *remote); /* gives it up; idempotent */
/* How it ended. What was captured is moved. */
void bough_remote_result(struct bough_remote *remote, struct bough_result *result);

/* The peer's side. */
enum bough_wish bough_remote_next(struct bough_remote *remote, struct bough_remote_signal *signal);
void bough_remote_started(struct bough_remote *remote, int64_t pid);
/* The command is over, and its output has been written: takes what is in the pipes. What the caller reads himself may
 * still be on its way, until the peer closes it. -1: something is queued in another writer, and nothing was done. Twice
 * does nothing. */
int bough_remote_finish(struct bough_remote *remote, const struct bough_result *result,
                        struct bough_err *err);
/* It could not be started, or was lost. `err` may be NULL where somebody above knows. Twice does nothing. */
void bough_remote_fail(struct bough_remote *remote, const struct bough_err *err);
/* What the caller reads himself of this stream (0 stdout, 1 stderr) ends with `why` after what is in the pipe; false: he
 * does not read it, so somebody else has to be told. The peer's end is closed, and what is queued there goes. */
bool bough_remote_cut(struct bough_remote *remote, int which, const struct bough_err *why);

#endif
