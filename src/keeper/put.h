/* put.h - files put in place: a layer that holds given objects and the directories that lead to them.
 *
 * Paths are looked up in the merged view of the image below, by its own links (route.h). Contents come from the
 * pool (local/blob.h) by hard link. */
#ifndef BOUGH_PUT_H
#define BOUGH_PUT_H

#include <stddef.h>

#include "../order.h"

struct bough_put {
    int view;    /* root of the image, to read; -1: empty */
    int out;     /* root of the layer, an empty directory */
    int blobs;   /* home/blobs; -1: there is none */
    int staging; /* where staged contents lie */
    const struct bough_put_item *items;
    size_t count;
    const char *skip;  /* as in route.h */
    int64_t uid_count; /* ids from 0 that can be given; -1: all */
    void (*progress)(void *arg, int64_t done, int64_t total); /* items; may be NULL */
    void *arg;
};

/* Fills `out`, and gives it the image root's own owner, mode and xattrs. */
int bough_put_tree(const struct bough_put *put, struct bough_err *err);

#endif
