#define _GNU_SOURCE
#include "pool.h"

#include <stdio.h>
#include <string.h>

#include "../sys.h"
#include "tree.h"

void bough_pool_init(struct bough_pool *pool, const struct bough_site *site)
{
    *pool = (struct bough_pool){.site = site};
    for (int i = 0; i < BOUGH_POOL_MAX; i++)
        pool->all[i].tree = pool->all[i].upper = -1;
}

void bough_pooled_clear(const struct bough_site *site, struct bough_pooled *entry, bool remove)
{
    bool held = entry->tree >= 0;
    bough_fd_close(&entry->tree); /* the last reference: this unmounts */
    bough_fd_close(&entry->upper);
    if (held && remove) {
        char name[32];
        snprintf(name, sizeof name, "w%lld", (long long)entry->layer);
        bough_tree_remove(site->owner_fd, name, NULL);
        bough_tree_remove(site->owner_fd, name + 1, NULL);
    }
    free(entry->stack);
    *entry = (struct bough_pooled){.tree = -1, .upper = -1};
}

bool bough_pool_take(struct bough_pool *pool, const int64_t *stack, int64_t count,
                     struct bough_pooled *out)
{
    struct bough_pooled *best = NULL;
    for (int i = 0; i < BOUGH_POOL_MAX; i++) {
        struct bough_pooled *p = &pool->all[i];
        /* The warmest: its caches are most likely still there. */
        if (p->tree >= 0 && p->count == count &&
            memcmp(p->stack, stack, sizeof *stack * (size_t)count) == 0 &&
            (!best || p->used > best->used))
            best = p;
    }
    if (!best)
        return false;
    *out = *best;
    *best = (struct bough_pooled){.tree = -1, .upper = -1};
    return true;
}

void bough_pool_put(struct bough_pool *pool, struct bough_pooled *entry)
{
    struct bough_pooled *place = &pool->all[0];
    for (int i = 0; i < BOUGH_POOL_MAX && place->tree >= 0; i++)
        if (pool->all[i].tree < 0 || pool->all[i].used < place->used)
            place = &pool->all[i];
    bough_pooled_clear(pool->site, place, true);
    *place = *entry;
    place->used = ++pool->clock;
    *entry = (struct bough_pooled){.tree = -1, .upper = -1};
}

void bough_pool_drop(struct bough_pool *pool)
{
    for (int i = 0; i < BOUGH_POOL_MAX; i++)
        bough_pooled_clear(pool->site, &pool->all[i], true);
}
