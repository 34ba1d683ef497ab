/* put.h - the second half of putting files in place: a layer of what was staged, over an image's.
 *
 * Knows no Lua. Looks up the parent's stack, has the keeper make the layer, and seals it; the layer is
 * leased then (bough_store_layer_release), and no image has it yet. */
#ifndef BOUGH_PUT_H
#define BOUGH_PUT_H

#include "engine.h"
#include "stage.h"

/* A stage that several may hold on to. */
struct bough_staged {
    int refs;
    struct bough_engine *engine;
    struct bough_stage stage;
};
struct bough_staged *bough_staged_new(struct bough_engine *engine); /* NULL: no memory */
void bough_staged_unref(struct bough_staged *staged);

struct bough_put {
    struct bough_job job;
    struct bough_staged *staged;
    char parent[BOUGH_UUID_SIZE];
    int64_t *stack, stack_count;
    int64_t request;
    bool cancelled;
    void (*done)(struct bough_put *put); /* called once, at the end; the put is freed behind it */
    void *arg;
    /* for `done` */
    int rc;
    struct bough_err err;
    int64_t layer, bytes, files;
    int64_t parent_layer;
};

/* NULL: no memory, and `done` is not called. */
struct bough_put *bough_put_start(struct bough_engine *engine, struct bough_staged *staged,
                                  const char *parent, void (*done)(struct bough_put *), void *arg);
void bough_put_cancel(struct bough_put *put);

#endif
