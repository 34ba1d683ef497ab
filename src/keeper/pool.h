/* pool.h - overlays that a run left untouched, kept mounted for the next run of the same image.
 *
 * Mounting an overlay makes and removes a dozen inodes; a run that changed nothing leaves one as good
 * as new (its upper directory is empty, and all processes that could hold anything of it are
 * dead). Detached mounts, owned here; the least recently used go first. */
#ifndef BOUGH_POOL_H
#define BOUGH_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "site.h"

#define BOUGH_POOL_MAX 64

struct bough_pooled {
    int tree;  /* the detached mount, -1: a free place */
    int upper; /* its upper directory */
    int64_t layer;
    int64_t *stack, count;
    uint64_t used;
};

struct bough_pool {
    const struct bough_site *site;
    struct bough_pooled all[BOUGH_POOL_MAX];
    uint64_t clock;
};

void bough_pool_init(struct bough_pool *pool, const struct bough_site *site);
/* Takes one that lies on this stack; its descriptors and `stack` are the caller's then. */
bool bough_pool_take(struct bough_pool *pool, const int64_t *stack, int64_t count,
                     struct bough_pooled *out);
/* Takes over everything that `entry` owns. */
void bough_pool_put(struct bough_pool *pool, struct bough_pooled *entry);
void bough_pool_drop(struct bough_pool *pool); /* lets go of all, removing their directories */
void bough_pooled_clear(const struct bough_site *site, struct bough_pooled *entry, bool remove);

#endif
