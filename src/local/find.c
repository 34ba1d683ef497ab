#define _GNU_SOURCE
/* find.c - reading images: one by its uuid, a tag or what the run cache knows, or many by a filter.
 *
 * What is handed out is leased first, so that no other process's gc takes it. */
#include <stdio.h>
#include <string.h>

#include "store_priv.h"

/* ---- finding ---- */

static int image_read(struct bough_store *store, enum bough_sql which, struct bough_image *image)
{
    *image = (struct bough_image){0};
    bough_db_copy(store, which, BOUGH_COLUMN_UUID, image->uuid, sizeof image->uuid);
    bough_db_copy(store, which, BOUGH_COLUMN_PARENT, image->parent, sizeof image->parent);
    bough_db_copy(store, which, BOUGH_COLUMN_ORIGIN, image->origin, sizeof image->origin);
    image->layer = bough_db_int(store, which, BOUGH_COLUMN_LAYER);
    image->size = bough_db_int(store, which, BOUGH_COLUMN_SIZE);
    image->created_us = bough_db_int(store, which, BOUGH_COLUMN_CREATED);
    int64_t flags = bough_db_int(store, which, BOUGH_COLUMN_FLAGS);
    struct bough_result *r = &image->result;
    r->present = (flags & BOUGH_FLAG_RESULT) != 0;
    r->timed_out = (flags & BOUGH_FLAG_TIMED_OUT) != 0;
    r->oom = (flags & BOUGH_FLAG_OOM) != 0;
    r->exit_code = (int)bough_db_int(store, which, BOUGH_COLUMN_EXIT_CODE);
    r->signal = (int)bough_db_int(store, which, BOUGH_COLUMN_SIGNAL);
    r->elapsed_time = bough_db_double(store, which, BOUGH_COLUMN_ELAPSED);
    r->user_time = bough_db_double(store, which, BOUGH_COLUMN_USER_TIME);
    r->system_time = bough_db_double(store, which, BOUGH_COLUMN_SYSTEM_TIME);
    r->max_rss = bough_db_int(store, which, BOUGH_COLUMN_MAX_RSS);
    r->stdout_dropped = bough_db_int(store, which, BOUGH_COLUMN_OUT_DROPPED);
    r->stderr_dropped = bough_db_int(store, which, BOUGH_COLUMN_ERR_DROPPED);
    if (bough_db_dup(store, which, BOUGH_COLUMN_COMMAND, &image->command) == 0 &&
        bough_db_dup(store, which, BOUGH_COLUMN_TAG, &image->tag) == 0 &&
        bough_db_dup(store, which, BOUGH_COLUMN_CONFIG, &image->config) == 0 &&
        bough_db_output(store, which, BOUGH_COLUMN_OUT, BOUGH_COLUMN_OUT_SIZE, &r->has_stdout,
                        &r->stdout_data, &r->stdout_size) == 0 &&
        bough_db_output(store, which, BOUGH_COLUMN_ERR, BOUGH_COLUMN_ERR_SIZE, &r->has_stderr,
                        &r->stderr_data, &r->stderr_size) == 0)
        return 0;
    bough_image_clear(image);
    return -1;
}

/* Makes sure that gc of another process leaves the image alone: 1 it is there, 0 gone, -1. */
static int image_lease(struct bough_store *store, int64_t seq, int64_t owner, const char *uuid,
                       struct bough_err *err)
{
    if (owner != store->owner_id && !bough_idmap_get(&store->leased, seq)) {
        if (bough_db_begin(store, err))
            return -1;
        int there = bough_db_query(store, BOUGH_SQL_image_live, err, "s", uuid);
        bough_db_end(store, BOUGH_SQL_image_live);
        int step = 0;
        if (there == 1)
            step = bough_db_run(store, BOUGH_SQL_lease_add, err, "ii", seq, store->owner_id);
        if (there != 1 || step < 0 || bough_db_commit(store, err)) {
            bough_db_rollback(store);
            return there == 0 ? 0 : -1;
        }
        bough_idmap_put(&store->leased, seq, 1); /* without memory: a lease written twice */
    }
    bough_store_note(store, seq);
    return 1;
}

/* Looks an image up by one of the statements find_* and leases what it finds: 1, 0 or -1. */
static int find_by(struct bough_store *store, enum bough_sql which, const char *key, int64_t *seq,
                   char *uuid, int64_t *layer, struct bough_err *err)
{
    int step = bough_db_query(store, which, err, "s", key);
    if (step != 1)
        return step;
    *seq = bough_db_int(store, which, 0);
    int64_t owner = bough_db_int(store, which, 1);
    snprintf(uuid, BOUGH_UUID_SIZE, "%s", bough_db_text(store, which, 2));
    *layer = bough_db_int(store, which, 3);
    bough_db_end(store, which);
    return image_lease(store, *seq, owner, uuid, err);
}

static int find_take(struct bough_store *store, const char *ref, int64_t *seq, char *uuid,
                     int64_t *layer, struct bough_err *err)
{
    char lower[BOUGH_UUID_SIZE];
    if (bough_uuid_valid(ref))
        return find_by(store, BOUGH_SQL_find_uuid, bough_uuid_lower(lower, ref), seq, uuid, layer,
                       err);
    return find_by(store, BOUGH_SQL_find_tag, ref, seq, uuid, layer, err);
}

int bough_store_find(struct bough_store *store, const char *ref, char uuid[BOUGH_UUID_SIZE],
                     int64_t *layer, struct bough_err *err)
{
    if (bough_store_enter(store, err))
        return -1;
    int64_t seq;
    int found = find_take(store, ref, &seq, uuid, layer, err);
    bough_store_leave(store);
    return found;
}

static bool quick(struct bough_store *store, const char *uuid, int64_t *layer, int64_t **stack,
                  int64_t *count, int64_t *fresh)
{
    struct bough_err err;
    char lower[BOUGH_UUID_SIZE];
    if (store->next_id >= store->end_id ||
        bough_db_query(store, BOUGH_SQL_find_uuid, &err, "s", bough_uuid_lower(lower, uuid)) != 1)
        return false;
    int64_t seq = bough_db_int(store, BOUGH_SQL_find_uuid, 0);
    int64_t owner = bough_db_int(store, BOUGH_SQL_find_uuid, 1);
    *layer = bough_db_int(store, BOUGH_SQL_find_uuid, 3);
    bough_db_end(store, BOUGH_SQL_find_uuid);
    if (owner != store->owner_id && !bough_idmap_get(&store->leased, seq))
        return false; /* a lease would have to be written */
    bough_store_note(store, seq);
    *count = bough_stack_take(store, *layer, stack, &err);
    if (*count < 0)
        return false;
    *fresh = store->next_id++;
    return true;
}

bool bough_store_quick(struct bough_store *store, const char *uuid, int64_t *layer, int64_t **stack,
                       int64_t *count, int64_t *fresh)
{
    if (store->pid != getpid() || pthread_mutex_trylock(&store->mutex) != 0)
        return false;
    bool done = quick(store, uuid, layer, stack, count, fresh);
    bough_store_leave(store);
    return done;
}

/* The whole of an image that was found as `ref`. It is leased, so the row cannot go. */
static int image_get(struct bough_store *store, int64_t seq, const char *ref, const char *uuid,
                     struct bough_image *out, struct bough_err *err)
{
    int step = bough_db_query(store, BOUGH_SQL_image_get, err, "is", seq, ref);
    if (step == 1 && image_read(store, BOUGH_SQL_image_get, out))
        step = bough_err_sys(err, ENOMEM, "image %s", uuid);
    bough_db_end(store, BOUGH_SQL_image_get);
    return step;
}

int bough_store_get(struct bough_store *store, const char *ref, struct bough_image *out,
                    struct bough_err *err)
{
    *out = (struct bough_image){0};
    if (bough_store_enter(store, err))
        return -1;
    int64_t seq, layer;
    char uuid[BOUGH_UUID_SIZE];
    int found = find_take(store, ref, &seq, uuid, &layer, err);
    if (found == 1)
        found = image_get(store, seq, ref, uuid, out, err);
    bough_store_leave(store);
    return found;
}

int bough_store_cached(struct bough_store *store, const char *key, struct bough_image *out,
                       struct bough_err *err)
{
    *out = (struct bough_image){0};
    if (bough_store_enter(store, err))
        return -1;
    int64_t seq, layer;
    char uuid[BOUGH_UUID_SIZE];
    int found = find_by(store, BOUGH_SQL_find_cached, key, &seq, uuid, &layer, err);
    if (found == 1)
        found = image_get(store, seq, uuid, uuid, out, err);
    bough_store_leave(store);
    return found;
}

/* ---- listing ---- */

static void images_free(struct bough_image *list, long count)
{
    for (long i = 0; i < count; i++)
        bough_image_clear(&list[i]);
    free(list);
}

static long list_read(struct bough_store *store, const struct bough_filter *filter,
                      struct bough_image **out, struct bough_err *err)
{
    char lower[BOUGH_UUID_SIZE];
    const char *parent = filter->parent ? bough_uuid_lower(lower, filter->parent) : NULL;
    long count = 0, size = 0;
    struct bough_image *list = NULL;
    int step = bough_db_list(store, filter, parent, err);
    while (step == 1) {
        struct bough_image *grown = list;
        if (count == size) {
            size = size ? size * 2 : 16;
            grown = reallocarray(list, (size_t)size, sizeof *list);
        }
        list = grown ? grown : list;
        if (!grown || image_read(store, BOUGH_SQL_list, &list[count])) {
            step = bough_err_sys(err, ENOMEM, "store %s", store->home);
            break;
        }
        count++;
        step = bough_db_next(store, BOUGH_SQL_list, err);
    }
    bough_db_end(store, BOUGH_SQL_list);
    if (step < 0) {
        images_free(list, count);
        return -1;
    }
    *out = list;
    return count;
}

long bough_store_list(struct bough_store *store, const struct bough_filter *filter,
                      struct bough_image **out, struct bough_err *err)
{
    static const struct bough_filter everything;
    *out = NULL;
    if (bough_store_enter(store, err))
        return -1;
    long count = list_read(store, filter ? filter : &everything, out, err);
    bough_store_leave(store);
    return count;
}

int64_t bough_store_find_stack(struct bough_store *store, const char *ref, int64_t *layer,
                               int64_t **stack, struct bough_err *err)
{
    char uuid[BOUGH_UUID_SIZE];
    int64_t top;
    int found = bough_store_find(store, ref, uuid, &top, err);
    if (found == 0)
        bough_err_set(err, BOUGH_ERR_not_found, "image %s: it is not in the store (any more)", ref);
    if (found != 1)
        return -1;
    if (layer)
        *layer = top;
    return bough_store_stack(store, top, stack, err);
}
