#define _GNU_SOURCE
/* layer.c - layers by themselves: their ids, sealing, and those that no image has yet.
 *
 * Such a layer is held by a lease, one row for an owner, however often it was given out:
 * how often is counted in memory. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>

#include "store_priv.h"

/* ---- ids and directories ---- */

int64_t bough_store_take_ids(struct bough_store *store, int count, struct bough_err *err)
{
    if (count < 1 || count > 1 << 20)
        return bough_err_set(err, BOUGH_ERR_invalid, "layer ids: %d is not a sensible number",
                             count);
    if (store->end_id - store->next_id < count) {
        int64_t block = count > BOUGH_ID_BLOCK ? count : BOUGH_ID_BLOCK;
        if (bough_db_begin(store, err))
            return -1;
        int step = bough_db_query(store, BOUGH_SQL_take_ids, err, "i", block);
        int64_t first = step == 1 ? bough_db_int(store, BOUGH_SQL_take_ids, 0) : 0;
        bough_db_end(store, BOUGH_SQL_take_ids);
        if (step == 0)
            bough_err_set(err, BOUGH_ERR_corrupt, "store %s/bough.db: damaged (no layer counter)",
                          store->home);
        if (step != 1 || bough_db_commit(store, err)) {
            bough_db_rollback(store);
            return -1;
        }
        store->next_id = first;
        store->end_id = first + block;
    }
    int64_t id = store->next_id;
    store->next_id += count;
    return id;
}

int64_t bough_store_layer_ids(struct bough_store *store, int count, struct bough_err *err)
{
    if (bough_store_enter(store, err))
        return -1;
    int64_t id = bough_store_take_ids(store, count, err);
    bough_store_leave(store);
    return id;
}

/* Moves a finished directory from staging to layers/. */
int bough_store_seal(struct bough_store *store, int64_t id, struct bough_err *err)
{
    char name[BOUGH_NAME_SIZE];
    snprintf(name, sizeof name, "%lld", (long long)id);
    if (renameat(store->owner_fd, name, store->layers_fd, name) == 0)
        return 0;
    return bough_err_sys(err, errno, "store %s: seal layer %s", store->home, name);
}

void bough_store_unseal(struct bough_store *store, int64_t id)
{
    char name[BOUGH_NAME_SIZE];
    snprintf(name, sizeof name, "%lld", (long long)id);
    renameat(store->layers_fd, name, store->owner_fd, name);
}

/* ---- leases ---- */

static int64_t held_count(const struct bough_store *store, int64_t id)
{
    const int64_t *count = bough_idmap_get(&store->held, id);
    return count ? *count : 0;
}

/* Inside a write transaction: the first lease of a layer is a row. */
static int held_write(struct bough_store *store, int64_t id, struct bough_err *err)
{
    if (held_count(store, id))
        return 0;
    int step = bough_db_run(store, BOUGH_SQL_layer_lease_add, err, "ii", id, store->owner_id);
    return step < 0 ? -1 : 0;
}

/* After it. Without memory the row stays until this opening ends. */
static void held_more(struct bough_store *store, int64_t id)
{
    bough_idmap_put(&store->held, id, held_count(store, id) + 1);
}

void bough_store_layer_release(struct bough_store *store, int64_t id)
{
    if (bough_store_enter(store, NULL))
        return;
    int64_t *count = bough_idmap_get(&store->held, id);
    if (count && *count > 0 && --*count == 0)
        bough_db_run(store, BOUGH_SQL_layer_lease_del, NULL, "ii", id, store->owner_id);
    bough_store_leave(store);
}

/* ---- adding and finding ---- */

/* 1 and the layer's id, 0, -1. */
static int chain_find(struct bough_store *store, const char *chain, int64_t *id,
                      struct bough_err *err)
{
    int step = bough_db_query(store, BOUGH_SQL_layer_chain, err, "s", chain);
    if (step == 1)
        *id = bough_db_int(store, BOUGH_SQL_layer_chain, 0);
    bough_db_end(store, BOUGH_SQL_layer_chain);
    return step;
}

/* Inside the transaction: 0 added and sealed, 1 *id is another one's, -1. */
static int layer_record(struct bough_store *store, const struct bough_node *node, int64_t *id,
                        int64_t bytes, int64_t files, const char *chain, struct bough_err *err)
{
    int known = chain ? chain_find(store, chain, id, err) : 0;
    if (known < 0)
        return -1;
    if (known)
        return held_write(store, *id, err) ? -1 : 1;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t created_us = (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
    if (bough_db_run(store, BOUGH_SQL_layer_add, err, "iziiiis", node->id, node->parent,
                     (int64_t)node->level, bytes, files, created_us, chain) < 0)
        return bough_db_explain(store, NULL, node->id, node->parent, err);
    if (held_write(store, node->id, err))
        return -1;
    return bough_store_seal(store, node->id, err);
}

static int layer_add(struct bough_store *store, const struct bough_node *node, int64_t *id,
                     int64_t bytes, int64_t files, const char *chain, struct bough_err *err)
{
    if (bough_db_begin(store, err))
        return -1;
    int64_t known = node->id;
    int result = layer_record(store, node, &known, bytes, files, chain, err);
    if (result >= 0 && bough_db_commit(store, err)) {
        if (result == 0)
            bough_store_unseal(store, node->id);
        result = -1;
    }
    if (result < 0) {
        bough_db_rollback(store);
        return -1;
    }
    held_more(store, known);
    if (result == 0)
        bough_cache_add(store, node);
    *id = known;
    return result;
}

int bough_store_layer_add(struct bough_store *store, int64_t *id, int64_t parent_layer,
                          int64_t bytes, int64_t files, const char *chain, struct bough_err *err)
{
    if (*id <= 0 || parent_layer < 0 || (chain && !*chain))
        return bough_err_set(err, BOUGH_ERR_invalid, "layer %lld over %lld: no such ids",
                             (long long)*id, (long long)parent_layer);
    if (bough_store_enter(store, err))
        return -1;
    /* What has a name is shared by images that were made elsewhere, and stays as it is; the rest is
     * like what a run leaves, and is merged with it. */
    struct bough_node node = {
        .id = *id, .parent = parent_layer, .level = chain ? BOUGH_LEVEL_BASE : 0};
    int result = bough_commit_lock(store, LOCK_SH, err);
    if (result == 0) {
        result = layer_add(store, &node, id, bytes, files, chain, err);
        bough_commit_unlock(store);
    }
    bough_store_leave(store);
    return result;
}

static int layer_find(struct bough_store *store, const char *chain, int64_t *id,
                      struct bough_err *err)
{
    int64_t known = 0;
    int step = chain_find(store, chain, &known, err);
    if (step == 1 && !held_count(store, known)) {
        /* Again, where no gc can come in between. */
        if (bough_db_begin(store, err))
            return -1;
        step = chain_find(store, chain, &known, err);
        if (step == 1 && (held_write(store, known, err) || bough_db_commit(store, err)))
            step = -1;
        bough_db_rollback(store);
    }
    if (step == 1) {
        held_more(store, known);
        *id = known;
    }
    return step;
}

int bough_store_layer_find(struct bough_store *store, const char *chain, int64_t *id,
                           struct bough_err *err)
{
    if (bough_store_enter(store, err))
        return -1;
    int found = layer_find(store, chain, id, err);
    bough_store_leave(store);
    return found;
}
