/* route.h - the way to a directory of an image, and to its counterpart in a layer that is being laid over it.
 *
 * A path is walked by component through what the layer and the image show together. Links are followed
 * inside the image, as if its root were "/"; where the way ends is the real directory, which is what a layer needs:
 * /bin/x with /bin -> usr/bin leads to usr/bin. Nothing is made before it is asked for. The last way is
 * kept, so paths that come sorted cost little. */
#ifndef BOUGH_ROUTE_H
#define BOUGH_ROUTE_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#include "../err.h"

#define BOUGH_ROUTE_DEPTH (PATH_MAX / 2)

/* A directory on the real way. */
struct bough_route_level {
    int view, out; /* in the image, in the layer; -1: not there, or not made yet */
    size_t end;    /* of its path in `real` */
};

/* A component of the path as it was asked for. */
struct bough_route_part {
    size_t end; /* in `text` */
    int depth;  /* levels up to where it led; 0: these have been left since */
};

struct bough_route {
    const char
        *skip; /* xattrs that directories of the layer do not get from the image: overlayfs's own */
    int depth, parts;
    int links; /* followed on the way so far */
    struct bough_route_level level[BOUGH_ROUTE_DEPTH];
    struct bough_route_part part[BOUGH_ROUTE_DEPTH];
    char real[PATH_MAX], text[PATH_MAX];
};

/* `view` and `out`, the two roots, stay the caller's. */
void bough_route_start(struct bough_route *route, int view, int out, const char *skip);
void bough_route_end(struct bough_route *route);
/* What an earlier walk found may have changed: a link was replaced. */
void bough_route_forget(struct bough_route *route);

/* Goes to the first `length` bytes of `path`, "" or "/a/b". 0; -1; or the length of the part of `path` that
 * leads to something that is no directory. What does not exist is taken for a directory to be made. */
int bough_route_go(struct bough_route *route, const char *path, size_t length,
                   struct bough_err *err);
static inline struct bough_route_level *bough_route_here(struct bough_route *route)
{
    return &route->level[route->depth - 1];
}

/* Makes the directories that lead here in the layer: those of the image with their owner, mode and
 * xattrs, new ones 0755 and root's. Returns this one's descriptor there, the route's own, or -1. */
int bough_route_make(struct bough_route *route, struct bough_err *err);

#endif
