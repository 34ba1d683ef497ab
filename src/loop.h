/* loop.h - one libuv loop per Lua state, and conditions to wait on.
 *
 * Knows no Lua. Callbacks of libuv only mark conditions and queue waiters; whoever
 * is queued is resumed later, outside of uv_run. So uv_run may be called from
 * anywhere at any depth of Lua, which private waits need. */
#ifndef BOUGH_LOOP_H
#define BOUGH_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct bough_loop;

/* One suspended party (a task). Embedded in its owner; never allocated here. */
struct bough_waiter {
    struct bough_waiter *next, *prev; /* in a condition's list or in the ready queue */
    struct bough_cond *cond;          /* what it waits for, NULL when ready or running */
    bool queued;                      /* in the ready queue */
    bool service; /* runs while others stand still; set once, before the first use */
};

/* Something that happens: an exit, bytes to read, an answer. Embedded in a userdata or a malloc'ed box.
 * `fired` counts, so that a waiter can tell a wake-up from an earlier one. */
struct bough_cond {
    struct bough_loop *loop;
    struct bough_waiter *waiters; /* first in, first out */
    uint64_t fired;
};

/* Something that has to let go before the loop can; embedded in it, and taken off the list before the call. */
struct bough_loop_end {
    struct bough_loop_end *next, **link; /* link NULL: not on a list */
    void (*run)(struct bough_loop_end *end);
};
void bough_loop_at_end(struct bough_loop *loop, struct bough_loop_end *end);
void bough_loop_end_drop(struct bough_loop_end *end); /* harmless when it is not on a list */

struct bough_loop *bough_loop_new(void);       /* NULL when out of memory or descriptors */
void bough_loop_free(struct bough_loop *loop); /* closes every handle, runs close callbacks */
uv_loop_t *bough_loop_uv(struct bough_loop *loop);
int bough_loop_fd(const struct bough_loop *loop); /* the pollable descriptor */

/* A descriptor watched by the loop, in memory of its own: `data` is the handle's. 0, or uv's error with *poll NULL. */
int bough_poll_open(uv_poll_t **poll, struct bough_loop *loop, int fd, void *data);
void bough_poll_close(uv_poll_t **poll); /* NULL is fine; *poll is NULL then */

void bough_cond_init(struct bough_cond *cond, struct bough_loop *loop);
/* Moves all waiters to the ready queue. Callable from uv callbacks; never runs Lua. */
void bough_cond_fire(struct bough_cond *cond);
/* Must be called before the memory of a condition goes: as fire, waiters see their predicate. */
void bough_cond_destroy(struct bough_cond *cond);

void bough_loop_park(struct bough_loop *loop, struct bough_waiter *waiter, struct bough_cond *cond);
void bough_loop_ready(struct bough_loop *loop, struct bough_waiter *waiter);  /* unpark; queue it */
void bough_loop_forget(struct bough_loop *loop, struct bough_waiter *waiter); /* out of any list */
struct bough_waiter *bough_loop_next(struct bough_loop *loop); /* take one ready waiter, or NULL */
struct bough_waiter *bough_loop_next_service(
    struct bough_loop *loop); /* the same, of services only */
bool bough_loop_has_ready(const struct bough_loop *loop);
size_t bough_loop_service_count(const struct bough_loop *loop); /* of those that are ready */
size_t bough_loop_ready_count(const struct bough_loop *loop);
bool bough_loop_alive(
    const struct bough_loop *loop); /* active handles or requests: something may yet happen */

/* Runs uv callbacks: waits at most `timeout_ms` (0 never waits, -1 without bound) for the first. Returns
 * at once when somebody is ready. False when a signal cut the waiting short: somebody above may want to know. */
bool bough_loop_poll(struct bough_loop *loop, int timeout_ms);
/* The same for who cannot run the others: waits even though somebody is ready, until a waiter more is. */
bool bough_loop_turn(struct bough_loop *loop, int timeout_ms);
/* How long until the next timer, in ms; 0 when somebody is ready; -1 for no bound. Polls once without
 * waiting first, so that watchers added since are known to the kernel. */
int bough_loop_timeout(struct bough_loop *loop);

/* A one-shot timer that fires a condition. Handle memory is the loop's; stop may be called at any time, once. */
struct bough_timer;
struct bough_timer *bough_timer_start(struct bough_loop *loop, int64_t delay_ms,
                                      struct bough_cond *cond);
/* One that readies a waiter, wherever it is parked, at an instant of bough_now_ns. Stop it before the waiter goes. */
struct bough_timer *bough_timer_wake(struct bough_loop *loop, int64_t due_ns,
                                     struct bough_waiter *waiter);
/* NULL is fine. Both starts give NULL when out of memory. */
void bough_timer_stop(struct bough_timer *timer);

#endif
