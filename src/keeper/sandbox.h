/* sandbox.h - the keeper's side of all sandboxes: blanks in store, runs waiting, runs under way.
 *
 * A run takes a blank, or waits for the nursery to make one. The keeper puts the blank's
 * init into its control groups, hands it the plan, watches the clock, and reports how it ended. */
#ifndef BOUGH_SANDBOX_H
#define BOUGH_SANDBOX_H

#include <stdbool.h>
#include <sys/types.h>

#include "pool.h"
#include "site.h"

#define BOUGH_STALE_MAX 1024

struct bough_sandbox;
struct bough_pending;

struct bough_keep {
    struct bough_site *site;
    int host, epoll, nursery;
    int spare;       /* blanks to keep ready */
    int running_max; /* runs beyond this many wait their turn */
    int making, blanks, running;
    int waiting;  /* runs that wait for a blank with a network namespace of its own */
    bool failing; /* the last blank could not be made: none is ordered ahead of need */
    struct bough_pool pool;
    int networks[BOUGH_POOL_MAX]; /* namespaces that no packet has crossed */
    int network_count;
    int64_t stale[BOUGH_STALE_MAX]; /* layers whose work directories are still to be removed */
    int stale_count;
    struct bough_sandbox *all;
    struct bough_pending *pending, **pending_tail;
    /* Once for each bough_keep_freeze that went well: FROZEN (descriptors may be taken out of it), or NULL and why
     * it never will. Not called for one that was thawed before. */
    void (*frozen)(void *arg, int64_t commit, struct bough_message *frozen,
                   const struct bough_err *err);
    void *frozen_arg;
};

void bough_keep_init(struct bough_keep *keep);
/* A RUN of the host; takes the message over. */
void bough_keep_run(struct bough_keep *keep, struct bough_message *msg);
void bough_keep_kill(struct bough_keep *keep, int64_t id);
/* All in the booted sandbox `id` is to stand still, for the request `commit`, until that is thawed. One at a time (kind busy). */
int bough_keep_freeze(struct bough_keep *keep, int64_t id, int64_t commit, struct bough_err *err);
void bough_keep_thaw(struct bough_keep *keep, int64_t commit);
void bough_keep_oom(struct bough_keep *keep,
                    struct bough_message *msg);   /* answers an OOM of the host */
bool bough_keep_nursery(struct bough_keep *keep); /* its socket is readable; false: it is dead */
void bough_keep_init_ready(struct bough_keep *keep,
                           struct bough_sandbox *box);      /* an init's socket is readable */
bool bough_keep_reaped(struct bough_keep *keep, pid_t pid); /* false: not a sandbox */
int bough_keep_timeout(struct bough_keep *keep);            /* ms until something is due, or -1 */
void bough_keep_clock(struct bough_keep *keep);             /* does what is due */
void bough_keep_stop(struct bough_keep *keep);              /* kills all; the caller reaps */
void bough_keep_groups_remove(struct bough_keep *keep);     /* after all have been reaped */
void bough_keep_order(struct bough_keep *keep);             /* blanks up to `spare` */

/* Tells the host that `id` failed. */
void bough_keep_fail(int host, int64_t id, const struct bough_err *err);

#endif
