/* work.h - requests that take their time: each runs in a child of the keeper, which answers the host itself. */
#ifndef BOUGH_WORK_H
#define BOUGH_WORK_H

#include "site.h"
#include "view.h"

/* Whether this message is one for a worker. */
bool bough_work_is(enum bough_msg type);

/* Forks a worker for `msg`. It sends DONE or FAILED to `host` and exits 0; any other end is for the
 * keeper to report. Returns its pid or -1. */
pid_t bough_work_start(const struct bough_site *site, struct bough_views *views, int host,
                       struct bough_message *msg, struct bough_err *err);

#endif
