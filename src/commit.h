/* commit.h - an image of what a booted sandbox has changed so far, while it goes on.
 *
 * Knows libuv, knows no Lua. Once begun it is carried out, whether anybody waits or not. */
#ifndef BOUGH_COMMIT_H
#define BOUGH_COMMIT_H

#include "instance.h"

struct bough_commit {
    struct bough_job job; /* first */
    int refs;
    struct bough_instance *instance;
    struct bough_cond done_cond;
    bool done;
    int rc; /* -1: err */
    struct bough_err err;
    bool changed; /* it has a layer of its own */
    int64_t layer, bytes;
    struct bough_image image;
};

/* Takes tag, command and config (malloc'ed, NULL for none; config: JSON text of what the image says about runs, NULL for
 * its parent's) over. NULL: out of memory. */
struct bough_commit *bough_commit_start(struct bough_instance *instance, char *tag, char *command,
                                        char *config);
void bough_commit_unref(struct bough_commit *commit);

#endif
