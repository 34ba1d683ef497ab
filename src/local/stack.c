#define _GNU_SOURCE
/* stack.c - which directories make up a layer's tree, and which of them to merge.
 *
 * A chain is cut into blocks counted from its base: as soon as eight neighbours have
 * the same level, the lowest eight become one stand-in of the next level. So a
 * stand-in's top lies at a depth that is a multiple of 8^level, whoever planned it and
 * from whichever branch: branches share the stand-ins below their fork, two processes
 * plan the same merge, and a layer is merged once per level. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>

#include "store_priv.h"

#define CACHE_MAX 65536
#define DEPTH_MAX (1 << 20) /* a chain longer than this has a circle in it */

/* ---- the hash ---- */

static size_t idmap_slot(const struct bough_idmap *map, int64_t key)
{
    size_t at = (size_t)(((uint64_t)key * UINT64_C(0x9E3779B97F4A7C15)) >> 32) & (map->size - 1);
    while (map->slots[at].key && map->slots[at].key != key)
        at = (at + 1) & (map->size - 1);
    return at;
}

int64_t *bough_idmap_get(const struct bough_idmap *map, int64_t key)
{
    if (!map->size || key <= 0)
        return NULL;
    struct bough_id_slot *slot = &map->slots[idmap_slot(map, key)];
    return slot->key ? &slot->value : NULL;
}

static int idmap_grow(struct bough_idmap *map)
{
    struct bough_idmap wide = {.size = map->size ? map->size * 2 : 64, .used = map->used};
    wide.slots = calloc(wide.size, sizeof *wide.slots);
    if (!wide.slots)
        return -1;
    for (size_t i = 0; i < map->size; i++)
        if (map->slots[i].key)
            wide.slots[idmap_slot(&wide, map->slots[i].key)] = map->slots[i];
    free(map->slots);
    *map = wide;
    return 0;
}

int bough_idmap_put(struct bough_idmap *map, int64_t key, int64_t value)
{
    if (key <= 0)
        return 0;
    if ((map->used + 1) * 3 > map->size * 2 && idmap_grow(map))
        return -1;
    struct bough_id_slot *slot = &map->slots[idmap_slot(map, key)];
    if (!slot->key)
        map->used++;
    *slot = (struct bough_id_slot){key, value};
    return 0;
}

void bough_idmap_clear(struct bough_idmap *map)
{
    free(map->slots);
    *map = (struct bough_idmap){0};
}

/* ---- the cache ---- */

void bough_cache_clear(struct bough_store *store)
{
    bough_idmap_clear(&store->cache);
    free(store->nodes);
    store->nodes = NULL;
    store->node_count = store->node_size = 0;
}

/* Without memory the layer just stays out of the cache. */
void bough_cache_add(struct bough_store *store, const struct bough_node *node)
{
    int64_t *at = bough_idmap_get(&store->cache, node->id);
    if (at) {
        store->nodes[*at] = *node;
        return;
    }
    if (store->node_count >= CACHE_MAX)
        bough_cache_clear(store);
    if (store->node_count == store->node_size) {
        size_t size = store->node_size ? store->node_size * 2 : 64;
        struct bough_node *nodes = reallocarray(store->nodes, size, sizeof *nodes);
        if (!nodes)
            return;
        store->nodes = nodes;
        store->node_size = size;
    }
    if (bough_idmap_put(&store->cache, node->id, (int64_t)store->node_count) == 0)
        store->nodes[store->node_count++] = *node;
}

/* Reads a layer and its widest stand-in from the database into the cache. */
static int node_load(struct bough_store *store, int64_t id, struct bough_node *node,
                     struct bough_err *err)
{
    int step = bough_db_query(store, BOUGH_SQL_layer_get, err, "i", id);
    if (step < 0)
        return -1;
    if (!step)
        return bough_err_set(err, BOUGH_ERR_not_found, "store %s: layer %lld: not there",
                             store->home, (long long)id);
    *node = (struct bough_node){
        .id = id,
        .parent = bough_db_int(store, BOUGH_SQL_layer_get, 0),
        .level = (int)bough_db_int(store, BOUGH_SQL_layer_get, 1),
        .stand = bough_db_int(store, BOUGH_SQL_layer_get, 2),
        .stand_bottom = bough_db_int(store, BOUGH_SQL_layer_get, 3),
        .stand_level = (int)bough_db_int(store, BOUGH_SQL_layer_get, 4),
        .stand_next = bough_db_int(store, BOUGH_SQL_layer_get, 5),
    };
    bough_db_end(store, BOUGH_SQL_layer_get);
    bough_cache_add(store, node);
    return 0;
}

static int node_get(struct bough_store *store, int64_t id, struct bough_node *node,
                    struct bough_err *err)
{
    int64_t *at = bough_idmap_get(&store->cache, id);
    if (!at)
        return node_load(store, id, node, err);
    *node = store->nodes[*at];
    return 0;
}

/* ---- walking ---- */

/* Fills store->steps, top first; returns how many. */
static int stack_walk(struct bough_store *store, int64_t layer, struct bough_err *err)
{
    int count = 0;
    while (layer > 0) {
        struct bough_node node;
        if (node_get(store, layer, &node, err))
            return -1;
        if (count == DEPTH_MAX)
            return bough_err_set(err, BOUGH_ERR_corrupt,
                                 "store %s: layer %lld: its parents run in a circle", store->home,
                                 (long long)layer);
        if ((size_t)count == store->step_size) {
            size_t size = store->step_size ? store->step_size * 2 : 64;
            struct bough_step *steps = reallocarray(store->steps, size, sizeof *steps);
            if (!steps)
                return bough_err_sys(err, ENOMEM, "layer stack");
            store->steps = steps;
            store->step_size = size;
        }
        struct bough_step *step = &store->steps[count++];
        if (node.stand) {
            *step = (struct bough_step){node.stand, layer, node.stand_bottom, node.stand_level};
            layer = node.stand_next;
        } else {
            *step = (struct bough_step){layer, layer, layer, node.level};
            layer = node.parent;
        }
    }
    return count;
}

int bough_stack_take(struct bough_store *store, int64_t layer, int64_t **ids, struct bough_err *err)
{
    *ids = NULL;
    int count = stack_walk(store, layer, err);
    int64_t *list = count < 0 ? NULL : malloc(((size_t)count + 1) * sizeof *list);
    if (count >= 0 && !list)
        count = bough_err_sys(err, ENOMEM, "layer stack");
    for (int i = 0; i < count; i++) {
        const struct bough_step *step = &store->steps[i];
        list[i] = step->id;
        /* Somebody may mount it from here on: gc must know (see gc.c). */
        if (step->id != step->top && !bough_idmap_get(&store->handed, step->id) &&
            bough_idmap_put(&store->handed, step->id, 1))
            count = bough_err_sys(err, ENOMEM, "layer stack");
    }
    if (count < 0)
        free(list);
    else
        *ids = list;
    return count;
}

int bough_store_stack(struct bough_store *store, int64_t layer, int64_t **ids,
                      struct bough_err *err)
{
    *ids = NULL;
    if (bough_store_enter(store, err))
        return -1;
    int count = bough_stack_take(store, layer, ids, err);
    bough_store_leave(store);
    return count;
}

/* ---- merging ---- */

/* The lowest WIDTH of the first run (from below) of that many neighbours of one level: the index
 * of its uppermost step, or -1. */
static int due_find(const struct bough_step *steps, int count)
{
    for (int low = count - 1; low >= 0;) {
        int high = low;
        while (high > 0 && steps[high - 1].level == steps[low].level)
            high--;
        if (low - high + 1 >= BOUGH_STACK_WIDTH && steps[low].level < BOUGH_LEVEL_BASE)
            return low - BOUGH_STACK_WIDTH + 1;
        low = high - 1;
    }
    return -1;
}

static int merge_plan(struct bough_store *store, int64_t layer, struct bough_merge *plan,
                      struct bough_err *err)
{
    for (;;) {
        int count = stack_walk(store, layer, err);
        if (count < 0)
            return -1;
        int first = due_find(store->steps, count);
        if (first < 0)
            return 0;
        /* Another process may have made it already: then take theirs and look again. */
        struct bough_node known, fresh;
        int64_t top = store->steps[first].top;
        if (node_get(store, top, &known, err) || node_load(store, top, &fresh, err))
            return -1;
        if (fresh.stand != known.stand)
            continue;
        plan->count = BOUGH_STACK_WIDTH;
        for (int i = 0; i < plan->count; i++)
            plan->layers[i] = store->steps[first + i].id;
        plan->top = top;
        plan->bottom = store->steps[first + plan->count - 1].bottom;
        plan->level = store->steps[first].level + 1;
        plan->id = bough_store_take_ids(store, 1, err);
        return plan->id < 0 ? -1 : 1;
    }
}

int bough_store_merge_plan(struct bough_store *store, int64_t layer, struct bough_merge *plan,
                           struct bough_err *err)
{
    *plan = (struct bough_merge){0};
    if (bough_store_enter(store, err))
        return -1;
    int due = merge_plan(store, layer, plan, err);
    bough_store_leave(store);
    return due;
}

/* Inside the transaction: 0 recorded and moved, 1 not wanted any more, -1 error. */
static int merge_record(struct bough_store *store, const struct bough_merge *plan, int64_t bytes,
                        struct bough_err *err)
{
    /* A source that gc took while it was being linked may have been half gone by then. */
    for (int i = 0; i < plan->count; i++) {
        int there = bough_db_query(store, BOUGH_SQL_dir_has, err, "i", plan->layers[i]);
        bough_db_end(store, BOUGH_SQL_dir_has);
        if (there < 0)
            return -1;
        if (!there)
            return bough_err_set(err, BOUGH_ERR_state,
                                 "store %s: merge into %lld: layer %lld is gone", store->home,
                                 (long long)plan->id, (long long)plan->layers[i]);
    }
    int beaten = bough_db_query(store, BOUGH_SQL_stand_has, err, "iii", plan->top, plan->bottom,
                                (int64_t)plan->level);
    bough_db_end(store, BOUGH_SQL_stand_has);
    if (beaten)
        return beaten;
    if (bough_db_run(store, BOUGH_SQL_stand_add, err, "iiiii", plan->id, plan->top, plan->bottom,
                     (int64_t)plan->level, bytes) < 0)
        return -1;
    return bough_store_seal(store, plan->id, err);
}

static int merge_done(struct bough_store *store, const struct bough_merge *plan, int64_t bytes,
                      struct bough_err *err)
{
    if (bough_commit_lock(store, LOCK_SH, err))
        return -1;
    int result = bough_db_begin(store, err) ? -1 : merge_record(store, plan, bytes, err);
    if (result == 0 && bough_db_commit(store, err)) {
        bough_store_unseal(store, plan->id);
        result = -1;
    }
    if (result)
        bough_db_rollback(store);
    bough_commit_unlock(store);
    struct bough_node node;
    if (result >= 0)
        node_load(store, plan->top, &node, NULL); /* ours or theirs; a miss is found later */
    return result;
}

int bough_store_merge_done(struct bough_store *store, const struct bough_merge *plan, int64_t bytes,
                           struct bough_err *err)
{
    if (plan->id <= 0 || plan->top <= 0 || plan->bottom <= 0 || plan->count < 2 ||
        plan->count > BOUGH_STACK_WIDTH || plan->level < 1 || plan->level >= BOUGH_LEVEL_BASE)
        return bough_err_set(err, BOUGH_ERR_invalid, "merge: not a plan of merge_plan");
    if (bough_store_enter(store, err))
        return -1;
    int result = merge_done(store, plan, bytes, err);
    bough_store_leave(store);
    return result;
}
