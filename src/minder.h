/* minder.h - what a small parent knows of its children: whose clock runs, whom to signal, what to report.
 *
 * Shared by the init of a booted sandbox and by bough-spawn: both start processes for a host over a socket
 * (EXEC, SIGNAL) and answer STARTED, ENDED and FAILED there. How a process is started is theirs; the rest is here. */
#ifndef BOUGH_MINDER_H
#define BOUGH_MINDER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "command.h"

struct bough_minded;
struct bough_unsaid;

/* Saying something never waits: what a host that does not listen has no room for is kept until it does. */
struct bough_minder {
    int sock; /* to the host, does not block; -1: nobody hears */
    struct bough_unsaid *unsaid, *unsaid_last;
    bool sessions; /* each child leads a session and a process group of its own */
    struct bough_minded *all;
    int count;
};

/* A child runs: remembers it and says STARTED, with `master` (stays the caller's; -1: none). */
int bough_minder_add(struct bough_minder *minder, int64_t id, pid_t pid, int64_t timeout_ms,
                     int master, struct bough_err *err);
/* Says FAILED of one that does not. */
void bough_minder_fail(struct bough_minder *minder, int64_t id, const struct bough_err *err);
/* A child was reaped: false when it is none of these; else its ENDED has been sent and it is forgotten. */
bool bough_minder_reaped(struct bough_minder *minder, pid_t pid, int status,
                         const struct rusage *usage);
/* A SIGNAL of the host; `id` 0 goes to all. A process that is over is no mistake. */
void bough_minder_signal(struct bough_minder *minder, int64_t id, int number,
                         enum bough_scope scope);
/* Says what is kept, as far as it goes. False while something is left: then the socket is to be polled for room. */
bool bough_minder_flush(struct bough_minder *minder);
int bough_minder_timeout(const struct bough_minder *minder); /* ms until something is due, or -1 */
void bough_minder_clock(struct bough_minder *minder);        /* kills whose time is over */
void bough_minder_clear(struct bough_minder *minder);        /* forgets all */

/* Kills with SIGKILL all that descends from `root` or is in a session that `root` leads, again and again until a
 * look through /proc finds nothing more. What has detached itself (setsid and a parent that ended) is not found. */
void bough_minder_kill_tree(pid_t root);

#endif
