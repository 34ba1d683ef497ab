/* freeze.h - all processes of a sandbox stopped, and sent on again, as seen from its init.
 *
 * By SIGSTOP, which needs no control group and which nothing but its end keeps a process from obeying. From the top
 * down and back from the bottom up, so that a shell never finds a child stopped that it has not stopped itself. */
#ifndef BOUGH_FREEZE_H
#define BOUGH_FREEZE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "../err.h"

struct bough_frozen;

struct bough_freeze {
    enum { BOUGH_FREEZE_NONE, BOUGH_FREEZE_STOPPING, BOUGH_FREEZE_STILL } state;
    int64_t id; /* of the request */
    int64_t began_ns;
    bool all_at_once;           /* what is stopped from here on was stopped by us */
    struct bough_frozen *known; /* by pid; owned */
    int count, room;
};

void bough_freeze_begin(struct bough_freeze *freeze, int64_t id);
/* To be called again and again, every millisecond or so: 1 when all stand still, 0 not yet, -1 when one does not
 * (kind busy); they go on then. `spare`: init's own child, which is none of them; 0. */
int bough_freeze_step(struct bough_freeze *freeze, pid_t spare, struct bough_err *err);
/* They go on, but for those that somebody else had stopped. */
void bough_freeze_end(struct bough_freeze *freeze, pid_t spare);

#endif
