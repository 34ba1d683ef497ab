/* process.h - one live command in a crew, with its streams, from the request to its end.
 *
 * Knows libuv, knows no Lua. STARTING -> RUNNING -> OVER by callbacks alone; `changed` fires on each step and when a
 * function's stream has data for it. */
#ifndef BOUGH_PROCESS_H
#define BOUGH_PROCESS_H

#include "command.h"
#include "crew.h"
#include "local/store.h"
#include "streams.h"

enum bough_process_state { BOUGH_PROCESS_STARTING, BOUGH_PROCESS_RUNNING, BOUGH_PROCESS_OVER };

struct bough_process {
    int refs;
    struct bough_process *next, **link; /* in crew->all until it is over */
    struct bough_crew *crew;
    struct bough_cond changed;
    enum bough_process_state state;
    bool failed;   /* OVER without having run, or the crew was lost: err says why */
    bool given_up; /* closed before its end: nobody wants what it did */
    struct bough_err err;
    int64_t id;                   /* in the crew; 0 before */
    int64_t pid;                  /* as the crew numbers it: inside of the sandbox */
    struct bough_command command; /* vectors and strings owned, unlike a decoded one's */
    char *label;                  /* the command in one line, owned; NULL */
    int terminal;                 /* descriptor of its terminal for resizing, -1 */
    struct bough_streams streams;
    struct bough_end end;
    bool ended; /* `end` is known */
    bool oom;   /* the sandbox's memory limit has killed it */
};

struct bough_process *bough_process_new(struct bough_crew *crew); /* everything empty */
void bough_process_unref(struct bough_process *process);
void bough_process_conclude(
    struct bough_process *process); /* it has ended, and all that is to be known is */
void bough_process_start(struct bough_process *process);
void bough_process_signal(struct bough_process *process, int number, enum bough_scope scope);
int bough_process_resize(struct bough_process *process, int rows, int cols, struct bough_err *err);
void bough_process_close(struct bough_process *process); /* kills all it started; never waits */
/* How it ended. What was captured is copied, or (`!copy`) moved. */
void bough_process_result(struct bough_process *process, struct bough_result *result, bool copy);
/* The crew is gone and with it the process. */
void bough_process_lose(struct bough_process *process, const struct bough_err *why);

#endif
