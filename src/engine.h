/* engine.h - the embedded engine on the loop: store, keeper and what is under way between them.
 *
 * Knows libuv, knows no Lua. One `bough_engine` per opened engine, counted: runs and jobs keep
 * it alive until they are over, so that closing never leaves a callback without its
 * ground. Everything here runs on the loop's thread but the `work` of a job. */
#ifndef BOUGH_ENGINE_H
#define BOUGH_ENGINE_H

#include <stdbool.h>

#include "local/client.h"
#include "local/store.h"
#include "loop.h"
#include "plan.h"

struct bough_fact {
    char *key, *value;
};

/* An image that is about to be, or has just been made by something that goes on with it: gc leaves it alone. */
struct bough_hold {
    struct bough_hold *next, **link; /* link NULL: not held */
    char uuid[BOUGH_UUID_SIZE];
};

/* Somebody to be told when no merge is under way (any more); embedded in what is told. */
struct bough_idle {
    struct bough_idle *next;
    void (*tell)(struct bough_idle *idle);
};

struct bough_engine {
    int refs;
    struct bough_loop *loop;
    struct bough_store *store; /* NULL once it is closed and nothing is under way */
    struct bough_client *client;
    struct bough_loop_end at_end; /* the loop goes before what is under way is over */
    uv_poll_t *poll;              /* on the keeper's socket */
    bool closed;                  /* no new requests */
    bool said_bye;                /* the keeper has been told */
    bool said_hello, gone;        /* of the keeper */
    struct bough_err failure;     /* why it never said hello */
    struct bough_cond changed;    /* fires on hello and on the keeper's end */
    pid_t keeper_pid;
    struct bough_fact *facts;
    size_t fact_count;
    struct bough_limits limits; /* for runs that say nothing */
    bool merging;
    int64_t merges;              /* done since it was opened */
    struct bough_idle *idle;     /* who waits for the merging to end */
    int busy;                    /* jobs under way */
    struct bough_hashes *hashes; /* digests of local files */
    struct bough_hold *holds;
    struct bough_run *runs; /* all that exist, for gc: their images and parents are in use */
};

/* Opens store and keeper; returns at once. The hello fires `changed`. `xattr` names the kind of store. */
struct bough_engine *bough_engine_open(struct bough_loop *loop,
                                       const struct bough_client_options *options,
                                       const struct bough_limits *limits, struct bough_err *err);
void bough_engine_ref(struct bough_engine *engine);
void bough_engine_unref(struct bough_engine *engine);
/* Asks the keeper to end; `changed` fires when it has (`gone`). */
void bough_engine_close(struct bough_engine *engine);
/* After the engine has sent something: has the loop watch for room to send the rest. */
void bough_engine_kick(struct bough_engine *engine);
/* Compacts what is due on the stack of `layer`, in the background, one merge at a time. */
void bough_engine_compact(struct bough_engine *engine, int64_t layer);
/* Gives up a lease of ours on a layer, in the background; of an engine that is closed they are gone already. */
void bough_engine_release_layer(struct bough_engine *engine, int64_t layer);
void bough_hold_add(struct bough_engine *engine, struct bough_hold *hold, const char *uuid);
void bough_hold_drop(struct bough_hold *hold); /* harmless when it is not held */
/* Tells `idle` once, at the end of the merging that goes on now. Only while engine->merging. */
void bough_engine_when_idle(struct bough_engine *engine, struct bough_idle *idle);
/* Removes trees below home/tmp in the background; takes the names over. */
void bough_engine_remove(struct bough_engine *engine, char **names);

void bough_engine_drop_staged(struct bough_engine *engine,
                              int64_t layer); /* a layer that nobody wants */

/* A piece of work for libuv's threads. Embedded first in a struct of its own; `work` runs elsewhere and touches
 * nothing but that struct and the store, `after` back on the loop. */
struct bough_job {
    uv_work_t req;
    struct bough_engine *engine;
    void (*work)(struct bough_job *job);
    void (*after)(struct bough_job *job);
};
void bough_job_start(struct bough_engine *engine, struct bough_job *job,
                     void (*work)(struct bough_job *), void (*after)(struct bough_job *));

#endif
