/* run.h - one run of a command in a sandbox, from spec to image.
 *
 * Knows libuv, knows no Lua. It goes through these states by callbacks alone, whether anybody waits or not:
 *
 *   PREPARING (image and stack looked up) -> STARTING (the keeper has it) -> RUNNING -> COMMITTING -> DONE
 *
 * FAILED may come from any of them. `changed` fires on every step, and when a function's
 * stream has data for it. A run that boots has no command of its own: its sandbox serves processes (instance.h) until
 * it is told to end, is STOPPED then, and COMMITTING only when its owner says so. */
#ifndef BOUGH_RUN_H
#define BOUGH_RUN_H

#include "engine.h"
#include "put.h"
#include "streams.h"

enum bough_run_state {
    BOUGH_RUN_PREPARING,
    BOUGH_RUN_STARTING,
    BOUGH_RUN_RUNNING,
    BOUGH_RUN_STOPPED,
    BOUGH_RUN_COMMITTING,
    BOUGH_RUN_DONE,
    BOUGH_RUN_FAILED,
};

struct bough_run {
    int refs;
    struct bough_run *next, **link; /* in engine->runs */
    struct bough_engine *engine;
    struct bough_cond changed;
    enum bough_run_state state;
    struct bough_err err;
    int copying;    /* commits that read its upper directory */
    bool drop_due;  /* once they are through */
    bool closed;    /* nobody wants its image: kill, keep nothing */
    bool eager;     /* somebody waits for the end, nobody for the start: it is not announced */
    bool collected; /* somebody has got its image: gc asks them from then on */
    bool disposable;
    char parent[BOUGH_UUID_SIZE];
    char *tag, *command, *cache_key;
    struct bough_staged *staged; /* files to be in place before it starts; owned, NULL */
    struct bough_put *put;       /* while they are put there */
    int64_t files_layer;         /* their layer, leased; 0 */
    int64_t files_bytes;
    /* the plan's parts, owned */
    char **argv, **env;
    char *cwd, *user, *hostname, *resolv;
    struct bough_limits limits;
    enum bough_network network;
    int64_t timeout_ms;
    int64_t parent_layer, layer;
    int64_t id; /* at the keeper; 0 before */
    int64_t pid;
    struct bough_streams streams;
    bool boots;
    int channel; /* the crew's end of a booted sandbox's socket until the keeper has it; -1 */
    void (*stepped)(struct bough_run *run); /* its owner is told of each state; may be NULL */
    void *owner;
    struct bough_ending ending;
    struct bough_image image;
};

struct bough_run *bough_run_new(struct bough_engine *engine); /* streams closed, everything empty */
void bough_run_unref(struct bough_run *run);
void bough_run_start(struct bough_run *run);
void bough_run_copied(struct bough_run *run); /* one of `copying` is through, well or not */
void bough_run_close(struct bough_run *run);  /* kills; idempotent, never waits */
void bough_run_commit(
    struct bough_run *run); /* of one that is STOPPED: its image, which is DONE then */
bool bough_run_is_over(const struct bough_run *run);

#endif
