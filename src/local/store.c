#define _GNU_SOURCE
/* store.c - opening a store, and the images in it.
 *
 * Order of what must survive a kill at any instant: a layer's directory is in place
 * before its row can be seen, and a row is gone before its directory is (gc.c). Locks
 * are always taken in this order: mutex, commit.lock, the database's write lock. */
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>

#include "store_priv.h"

/* ---- opening and entering ---- */

int bough_store_enter(struct bough_store *store, struct bough_err *err)
{
    if (store->pid != getpid())
        return bough_err_set(err, BOUGH_ERR_state,
                             "store %s: opened before a fork; the child has to open its own",
                             store->home);
    pthread_mutex_lock(&store->mutex);
    return 0;
}

void bough_store_leave(struct bough_store *store)
{
    pthread_mutex_unlock(&store->mutex);
}

static int store_start(struct bough_store *store, const char *xattr, struct bough_err *err)
{
    if (bough_home_open(store, xattr, err) || bough_owner_make(store, err) ||
        bough_db_open(store, err) || bough_db_begin(store, err))
        return -1;
    if (bough_db_query(store, BOUGH_SQL_owner_add, err, "s", store->owner) == 1)
        store->owner_id = bough_db_int(store, BOUGH_SQL_owner_add, 0);
    bough_db_end(store, BOUGH_SQL_owner_add);
    if (store->owner_id && bough_db_commit(store, err) == 0)
        return 0;
    bough_db_rollback(store);
    store->owner_id = 0;
    return -1;
}

struct bough_store *bough_store_open(const char *home, const char *xattr, struct bough_err *err)
{
    if (!home || !*home) {
        bough_err_set(err, BOUGH_ERR_invalid, "store: no directory named for it");
        return NULL;
    }
    struct bough_store *store = calloc(1, sizeof *store);
    if (!store || !(store->home = bough_home_absolute(home))) {
        bough_err_sys(err, errno, "store %s", home);
        free(store);
        return NULL;
    }
    store->pid = getpid();
    store->home_fd = store->layers_fd = store->tmp_fd = -1;
    store->owner_fd = store->lock_fd = store->commit_fd = -1;
    pthread_mutex_init(&store->mutex, NULL);
    pthread_mutex_init(&store->checkpoint_mutex, NULL);
    if (store_start(store, xattr, err)) {
        bough_store_close(store);
        return NULL;
    }
    return store;
}

void bough_store_close(struct bough_store *store)
{
    if (!store)
        return;
    int *const fds[] = {&store->home_fd,  &store->layers_fd, &store->tmp_fd,
                        &store->owner_fd, &store->lock_fd,   &store->commit_fd};
    bool ours = store->pid == getpid();
    if (ours) {
        if (store->owner_id)
            bough_db_run(store, BOUGH_SQL_owner_del, NULL, "i", store->owner_id);
        bough_db_close(store);
        bough_owner_drop(store);
        pthread_mutex_destroy(&store->mutex);
        pthread_mutex_destroy(&store->checkpoint_mutex);
    }
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        bough_fd_close(fds[i]);
    /* In a forked child database and directory are the parent's, and the mutex may have been locked
     * at the fork: SQLite must not be called, and the memory is left alone. */
    if (!ours)
        return;
    bough_cache_clear(store);
    bough_idmap_clear(&store->leased);
    bough_idmap_clear(&store->handed);
    free(store->recent);
    free(store->steps);
    free(store->home);
    free(store);
}

const char *bough_store_home(const struct bough_store *store)
{
    return store->home;
}

const char *bough_store_owner(const struct bough_store *store)
{
    return store->owner;
}

/* ---- uuids, tags, images in memory ---- */

void bough_image_clear(struct bough_image *image)
{
    free(image->tag);
    free(image->command);
    free(image->result.stdout_data);
    free(image->result.stderr_data);
    *image = (struct bough_image){0};
}

void bough_uuid_make(char uuid[BOUGH_UUID_SIZE])
{
    unsigned char b[16];
    while (getrandom(b, sizeof b, 0) != (ssize_t)sizeof b)
        continue; /* EINTR only: 16 bytes are never given in part */
    b[6] = (unsigned char)((b[6] & 0x0f) | 0x40);
    b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
    static const char hex[] = "0123456789abcdef";
    char *at = uuid;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *at++ = '-';
        *at++ = hex[b[i] >> 4];
        *at++ = hex[b[i] & 15];
    }
    *at = '\0';
}

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

bool bough_uuid_valid(const char *text)
{
    for (int i = 0; i < BOUGH_UUID_SIZE - 1; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash ? text[i] != '-' : !is_hex(text[i]))
            return false;
    }
    return text[BOUGH_UUID_SIZE - 1] == '\0';
}

/* The stored form; any other text becomes one that is no uuid. */
static const char *uuid_lower(char uuid[BOUGH_UUID_SIZE], const char *text)
{
    bool valid = text && bough_uuid_valid(text); /* `text` may be `uuid` itself */
    for (int i = 0; valid && i < BOUGH_UUID_SIZE; i++)
        uuid[i] = (char)(text[i] >= 'A' && text[i] <= 'F' ? text[i] + 32 : text[i]);
    if (!valid)
        uuid[0] = '\0';
    return uuid;
}

static int tag_check(const char *tag, struct bough_err *err)
{
    size_t size = strlen(tag);
    if (size == 0)
        return bough_err_set(err, BOUGH_ERR_invalid, "tag: must not be empty");
    if (size > BOUGH_TAG_MAX)
        return bough_err_set(err, BOUGH_ERR_invalid, "tag \"%.40s...\": longer than %d bytes", tag,
                             BOUGH_TAG_MAX);
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)tag[i] < 0x20 || tag[i] == 0x7f)
            return bough_err_set(err, BOUGH_ERR_invalid, "tag: has a control character in it");
    if (bough_uuid_valid(tag))
        return bough_err_set(err, BOUGH_ERR_invalid,
                             "tag \"%s\": looks like a uuid and could never be found", tag);
    return 0;
}

/* ---- committing ---- */

enum {
    FLAG_RESULT = 1,
    FLAG_TIMED_OUT = 2,
    FLAG_OOM = 4,
};

static int64_t clock_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static int image_insert(struct bough_store *store, const struct bough_image *image,
                        int64_t parent_seq, int64_t *seq, struct bough_err *err)
{
    const struct bough_result *r = &image->result;
    int64_t flags = (r->present ? FLAG_RESULT : 0) | (r->timed_out ? FLAG_TIMED_OUT : 0) |
                    (r->oom ? FLAG_OOM : 0);
    /* An empty blob is not NULL, which means "not captured". */
    const void *out = r->has_stdout ? (r->stdout_size ? r->stdout_data : "") : NULL;
    const void *errout = r->has_stderr ? (r->stderr_size ? r->stderr_data : "") : NULL;
    int step = bough_db_query(store, BOUGH_SQL_image_add, err, "szzssiiiiiidddiiibb", image->uuid,
                              parent_seq, image->layer, image->origin, image->command, image->size,
                              image->created_us, store->owner_id, flags, (int64_t)r->exit_code,
                              (int64_t)r->signal, r->elapsed_time, r->user_time, r->system_time,
                              r->max_rss, r->stdout_dropped, r->stderr_dropped, out, r->stdout_size,
                              errout, r->stderr_size);
    if (step == 1)
        *seq = bough_db_int(store, BOUGH_SQL_image_add, 0);
    bough_db_end(store, BOUGH_SQL_image_add);
    return step == 1 ? 0 : -1;
}

static int commit_rows(struct bough_store *store, const struct bough_image *image,
                       const struct bough_node *node, int64_t bytes, int64_t files, int64_t *seq,
                       struct bough_err *err)
{
    int64_t parent_seq = 0;
    if (image->parent[0]) {
        int step = bough_db_query(store, BOUGH_SQL_image_seq, err, "s", image->parent);
        if (step == 1)
            parent_seq = bough_db_int(store, BOUGH_SQL_image_seq, 0);
        bough_db_end(store, BOUGH_SQL_image_seq);
        if (step == 0)
            bough_err_set(err, BOUGH_ERR_state, "store %s: image %s: its parent %s is gone",
                          store->home, image->uuid, image->parent);
        if (step != 1)
            return -1;
    }
    int step = 0;
    if (node->id)
        step = bough_db_run(store, BOUGH_SQL_layer_add, err, "iziiii", node->id, node->parent,
                            (int64_t)node->level, bytes, files, image->created_us);
    if (step < 0)
        return bough_db_explain(store, image, node->id, node->parent, err);
    if (image_insert(store, image, parent_seq, seq, err))
        return bough_db_explain(store, image, node->id, image->layer, err);
    if (image->tag)
        return bough_db_run(store, BOUGH_SQL_tag_add, err, "si", image->tag, *seq) < 0 ? -1 : 0;
    return 0;
}

static int commit_all(struct bough_store *store, const struct bough_image *image,
                      const struct bough_node *node, int64_t bytes, int64_t files,
                      struct bough_err *err)
{
    int64_t seq = 0;
    if (bough_db_begin(store, err))
        return -1;
    if (commit_rows(store, image, node, bytes, files, &seq, err) ||
        (node->id && bough_store_seal(store, node->id, err))) {
        bough_db_rollback(store);
        return -1;
    }
    if (bough_db_commit(store, err)) {
        bough_db_rollback(store);
        if (node->id) {
            char name[BOUGH_NAME_SIZE];
            snprintf(name, sizeof name, "%lld", (long long)node->id);
            renameat(store->layers_fd, name, store->owner_fd, name);
        }
        return -1;
    }
    if (node->id)
        bough_cache_add(store, node);
    bough_store_note(store, seq);
    return 0;
}

static int commit_check(struct bough_image *image, int64_t new_layer, int64_t parent_layer,
                        struct bough_err *err)
{
    if (!image->uuid[0])
        bough_uuid_make(image->uuid);
    if (!bough_uuid_valid(image->uuid))
        return bough_err_set(err, BOUGH_ERR_invalid, "image \"%.40s\": not a uuid", image->uuid);
    if (image->parent[0] && !bough_uuid_valid(image->parent))
        return bough_err_set(err, BOUGH_ERR_invalid, "image %s: parent \"%.40s\": not a uuid",
                             image->uuid, image->parent);
    if (image->disposable)
        return bough_err_set(err, BOUGH_ERR_invalid, "image %s: disposable ones are never stored",
                             image->uuid);
    if (new_layer < 0 || parent_layer < 0 || (new_layer > 0 && image->layer != new_layer))
        return bough_err_set(err, BOUGH_ERR_invalid,
                             "image %s: layer %lld is not the new layer %lld", image->uuid,
                             (long long)image->layer, (long long)new_layer);
    uuid_lower(image->uuid, image->uuid);
    uuid_lower(image->parent, image->parent);
    return image->tag ? tag_check(image->tag, err) : 0;
}

int bough_store_commit(struct bough_store *store, struct bough_image *image, int64_t new_layer,
                       int64_t parent_layer, int64_t bytes, int64_t files, struct bough_err *err)
{
    if (commit_check(image, new_layer, parent_layer, err) || bough_store_enter(store, err))
        return -1;
    if (image->created_us == 0) {
        int64_t now = clock_us();
        image->created_us = now > store->last_us ? now : store->last_us + 1;
    }
    if (image->created_us > store->last_us)
        store->last_us = image->created_us;
    bool base = parent_layer == 0 && strcmp(image->origin, "run") != 0;
    struct bough_node node = {
        .id = new_layer, .parent = parent_layer, .level = base ? BOUGH_LEVEL_BASE : 0};
    if (new_layer > 0)
        image->size = bytes;
    /* Without a new directory there is nothing that a sweep could take for an orphan. */
    int result = new_layer > 0 ? bough_commit_lock(store, LOCK_SH, err) : 0;
    if (result == 0) {
        result = commit_all(store, image, &node, bytes, files, err);
        if (new_layer > 0)
            bough_commit_unlock(store);
    }
    bough_store_leave(store);
    return result;
}

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
    r->present = (flags & FLAG_RESULT) != 0;
    r->timed_out = (flags & FLAG_TIMED_OUT) != 0;
    r->oom = (flags & FLAG_OOM) != 0;
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

/* Looks a uuid or a tag up and leases what it finds: 1, 0 or -1. */
static int find_take(struct bough_store *store, const char *ref, int64_t *seq, char *uuid,
                     int64_t *layer, struct bough_err *err)
{
    bool by_uuid = bough_uuid_valid(ref);
    enum bough_sql which = by_uuid ? BOUGH_SQL_find_uuid : BOUGH_SQL_find_tag;
    char lower[BOUGH_UUID_SIZE];
    int step = bough_db_query(store, which, err, "s", by_uuid ? uuid_lower(lower, ref) : ref);
    if (step != 1)
        return step;
    *seq = bough_db_int(store, which, 0);
    int64_t owner = bough_db_int(store, which, 1);
    snprintf(uuid, BOUGH_UUID_SIZE, "%s", bough_db_text(store, which, 2));
    *layer = bough_db_int(store, which, 3);
    bough_db_end(store, which);
    return image_lease(store, *seq, owner, uuid, err);
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
        bough_db_query(store, BOUGH_SQL_find_uuid, &err, "s", uuid_lower(lower, uuid)) != 1)
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

static int image_get(struct bough_store *store, const char *ref, struct bough_image *out,
                     struct bough_err *err)
{
    int64_t seq, layer;
    char uuid[BOUGH_UUID_SIZE];
    int found = find_take(store, ref, &seq, uuid, &layer, err);
    if (found != 1)
        return found;
    /* Leased now, so the row cannot go. */
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
    int found = image_get(store, ref, out, err);
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
    const char *parent = filter->parent ? uuid_lower(lower, filter->parent) : NULL;
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

/* ---- tags, removal, numbers ---- */

/* The row number of an image that is not removed; 0 and kind not_found when there is none. */
static int64_t image_seq(struct bough_store *store, const char *uuid, struct bough_err *err)
{
    char lower[BOUGH_UUID_SIZE];
    int step = bough_db_query(store, BOUGH_SQL_image_live, err, "s", uuid_lower(lower, uuid));
    int64_t seq = step == 1 ? bough_db_int(store, BOUGH_SQL_image_live, 0) : 0;
    bough_db_end(store, BOUGH_SQL_image_live);
    if (step == 0)
        bough_err_set(err, BOUGH_ERR_not_found, "image %.80s: not in the store", uuid);
    return seq;
}

/* One write transaction around a change to one image. */
static int image_change(struct bough_store *store, const char *uuid, const char *text,
                        int (*change)(struct bough_store *, int64_t, const char *, const char *,
                                      struct bough_err *),
                        struct bough_err *err)
{
    if (bough_store_enter(store, err))
        return -1;
    int result = bough_db_begin(store, err);
    if (result == 0) {
        int64_t seq = image_seq(store, uuid, err);
        result = seq ? change(store, seq, uuid, text, err) : -1;
        if (result == 0)
            result = bough_db_commit(store, err);
        if (result)
            bough_db_rollback(store);
    }
    bough_store_leave(store);
    return result;
}

static int change_tag(struct bough_store *store, int64_t seq, const char *uuid, const char *tag,
                      struct bough_err *err)
{
    (void)uuid;
    return bough_db_run(store, BOUGH_SQL_tag_add, err, "si", tag, seq) < 0 ? -1 : 0;
}

static int change_untag(struct bough_store *store, int64_t seq, const char *uuid,
                        const char *unused, struct bough_err *err)
{
    (void)uuid, (void)unused;
    return bough_db_run(store, BOUGH_SQL_tag_del, err, "i", seq) < 0 ? -1 : 0;
}

static int change_remove(struct bough_store *store, int64_t seq, const char *uuid,
                         const char *unused, struct bough_err *err)
{
    (void)unused;
    int step = bough_db_run(store, BOUGH_SQL_tag_has, err, "i", seq);
    if (step == 1)
        return bough_err_set(err, BOUGH_ERR_state, "image %s: has a tag; untag it first", uuid);
    if (step == 0)
        step = bough_db_run(store, BOUGH_SQL_image_child, err, "i", seq);
    if (step == 1)
        return bough_err_set(err, BOUGH_ERR_state, "image %s: other images were made from it",
                             uuid);
    if (step == 0)
        step = bough_db_run(store, BOUGH_SQL_image_hide, err, "i", seq);
    return step < 0 ? -1 : 0;
}

int bough_store_tag(struct bough_store *store, const char *uuid, const char *tag,
                    struct bough_err *err)
{
    return tag_check(tag, err) ? -1 : image_change(store, uuid, tag, change_tag, err);
}

int bough_store_untag(struct bough_store *store, const char *uuid, struct bough_err *err)
{
    return image_change(store, uuid, NULL, change_untag, err);
}

int bough_store_remove(struct bough_store *store, const char *uuid, struct bough_err *err)
{
    return image_change(store, uuid, NULL, change_remove, err);
}

int bough_store_info(struct bough_store *store, struct bough_store_info *out, struct bough_err *err)
{
    *out = (struct bough_store_info){0};
    if (bough_store_enter(store, err))
        return -1;
    int step = bough_db_query(store, BOUGH_SQL_counts, err, "");
    if (step == 1) {
        out->images = (long)bough_db_int(store, BOUGH_SQL_counts, 0);
        out->tags = (long)bough_db_int(store, BOUGH_SQL_counts, 1);
        out->layers = (long)bough_db_int(store, BOUGH_SQL_counts, 2);
        out->stand_ins = (long)bough_db_int(store, BOUGH_SQL_counts, 3);
        out->bytes = bough_db_int(store, BOUGH_SQL_counts, 4);
    }
    bough_db_end(store, BOUGH_SQL_counts);
    bough_store_leave(store);
    return step < 0 ? -1 : 0;
}
