/* ljob.h - long pieces of work of the embedded engine, as userdata `bough.job`.
 *
 * An errand is a chain of steps, each on a worker thread or at the keeper, that goes on by callbacks whether
 * anybody waits or not. The userdata can be waited for, asked how far it is, and closed, which
 * cancels. An errand is a struct of its own kind that begins with struct bough_errand; it lives until the userdata and
 * the step under way have both let go. */
#ifndef BOUGH_LJOB_H
#define BOUGH_LJOB_H

#include "llocal.h"

struct bough_errand {
    struct bough_job job; /* first: a step on a thread gets this */
    int refs;
    struct bough_engine *engine;
    const char *op; /* for messages */
    struct bough_cond changed;
    bool over, cancelled;
    int rc; /* of the step, in the end of the whole */
    struct bough_err err;
    int64_t request;        /* the keeper's, while it has one */
    int64_t done, total;    /* as the keeper last said */
    struct bough_hold hold; /* on the image it makes, until the job is closed or collected */
    bool
        final; /* the step under way is the last: what it has done is not undone by a late cancellation */
    int64_t staged;                       /* a layer in the making: dropped when the errand fails */
    void (*then)(struct bough_errand *e); /* what follows the step on a thread */
    void (*heard)(struct bough_errand *e,
                  struct bough_message *msg); /* what follows the keeper's DONE */
    /* the kind's own; all but push may be NULL */
    void (*push)(lua_State *L,
                 struct bough_errand *e);  /* pushes the result, one value, never nil */
    void (*clear)(struct bough_errand *e); /* frees what it owns */
    void (*failed)(
        struct bough_errand *e); /* removes what it has made, once, before anybody hears */
    void (*cancel)(struct bough_errand *e); /* tells a step on a thread to hurry */
    void (*progress)(struct bough_errand *e, int64_t *done, int64_t *total);
};

/* Pushes a new job with a zeroed errand of `size` bytes; the engine is the one at index 1. */
void *bough_errand_new(lua_State *L, size_t size, const char *op,
                       void (*push)(lua_State *, struct bough_errand *),
                       void (*clear)(struct bough_errand *));

/* The steps. `work` touches nothing but the errand and the store, and leaves rc (and err). `then` is called
 * only after success, on the loop's thread; NULL: the errand is over. */
void bough_errand_work(struct bough_errand *e, void (*work)(struct bough_job *),
                       void (*then)(struct bough_errand *));
/* The same for the step that makes it all true. */
void bough_errand_last(struct bough_errand *e, void (*work)(struct bough_job *),
                       void (*then)(struct bough_errand *));
void bough_errand_ask(struct bough_errand *e, enum bough_msg type, const struct bough_wbuf *body,
                      const int *fds, int fd_count,
                      void (*heard)(struct bough_errand *, struct bough_message *));
/* For a step of another kind: keeps the errand until it is let go. */
void bough_errand_hold(struct bough_errand *e);
void bough_errand_release(struct bough_errand *e);
void bough_errand_over(struct bough_errand *e);
void bough_errand_fail(struct bough_errand *e, const struct bough_err *err);

void bough_ljob_register(lua_State *L);

#endif
