/* work.h - requests that take their time: each runs in a child of the keeper, which answers the host itself. */
#ifndef BOUGH_WORK_H
#define BOUGH_WORK_H

#include "site.h"
#include "view.h"

/* Whether this message is one for a worker. */
bool bough_work_is(enum bough_msg type);
/* The layer that it will make below home/tmp/<owner>, 0: none. */
int64_t bough_work_layer(const struct bough_message *msg);

/* Forks a worker for `msg`, the leader of a process group of its own. It sends DONE or FAILED to `host` and
 * exits 0; any other end is for the keeper to report. SIGTERM ends it, unless its answer is on the way.
 * Returns its pid or -1. */
pid_t bough_work_start(const struct bough_site *site, struct bough_views *views, int host,
                       struct bough_message *msg, struct bough_err *err);

/* For a worker that ended otherwise, in the group `group`: forks one that removes what it left and then tells the
 * host that `id` failed by `why`. SIGTERM does not end this one. */
pid_t bough_work_sweep(const struct bough_site *site, int host, int64_t id, pid_t group,
                       int64_t layer, const struct bough_err *why);

#endif
