/* instance.h - a booted sandbox that hosts processes: a run without a command, and the crew inside of it.
 *
 * Knows libuv, knows no Lua. An automatic one ends when its last process has, and leaves an image unless all of them
 * were given up; others end when they are told to. The state is the run's. */
#ifndef BOUGH_INSTANCE_H
#define BOUGH_INSTANCE_H

#include "process.h"
#include "run.h"

struct bough_instance {
    int refs;
    struct bough_run *run; /* in force for its whole life */
    struct bough_crew *crew;
    bool automatic;
    bool stopping;           /* about to be told to end: no more processes */
    bool finishing;          /* told to end; no more processes */
    int64_t good;            /* processes that ended of their own */
    int64_t oom_kills;       /* how many the memory limit has killed so far, as far as we know */
    struct bough_cond quiet; /* fires when the last process has ended */
};

/* Not started yet: fill in instance->run (parent, limits, ...), then bough_run_start(instance->run). Processes may be
 * started at once; they run when the sandbox is there, and fail with its error when it cannot be had. */
struct bough_instance *bough_instance_new(struct bough_engine *engine, struct bough_err *err);
void bough_instance_unref(struct bough_instance *instance);
bool bough_instance_hosts(
    const struct bough_instance *instance); /* whether processes may be started */
void bough_instance_terminate(struct bough_instance *instance); /* SIGTERM to all that is in it */
/* Ends it, with what its processes have changed (the run is STOPPED then, or DONE of an automatic one). */
void bough_instance_finish(struct bough_instance *instance);
void bough_instance_close(
    struct bough_instance *instance); /* ends it and keeps nothing; never waits */

#endif
