/* workers.h - the keeper's children that carry out requests (work.h): started, killed, swept up after.
 *
 * A COMMIT waits for its sandbox to stand still before its worker starts, and lets it go on when that has ended. A
 * second one of the same sandbox waits for that. */
#ifndef BOUGH_WORKERS_H
#define BOUGH_WORKERS_H

#include "sandbox.h"
#include "view.h"

struct bough_worker;

struct bough_workers {
    struct bough_keep *keep;
    struct bough_views *views;
    struct bough_worker *all;
};

void bough_workers_init(struct bough_workers *workers, struct bough_keep *keep,
                        struct bough_views *views);
/* A request for which bough_work_is says so. Each is answered once, also when it cannot be started. */
void bough_workers_start(struct bough_workers *workers, struct bough_message *msg);
/* It answers that it was cancelled once all it left is gone, or else in time with its result. */
void bough_workers_kill(struct bough_workers *workers, int64_t id);
void bough_workers_reaped(struct bough_workers *workers, pid_t pid, int status);
void bough_workers_stop(struct bough_workers *workers); /* kills all; the caller reaps */

#endif
