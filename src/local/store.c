#define _GNU_SOURCE
/* store.c - opening a store; images coming in, being tagged and going.
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
    bough_idmap_clear(&store->held);
    free(store->config_text);
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
    free(image->config);
    free(image->cache_key);
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

const char *bough_uuid_lower(char uuid[BOUGH_UUID_SIZE], const char *text)
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

static int64_t clock_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Another run of that key may take the image as its own result: it says all that happened. */
static bool result_lasting(const struct bough_result *r)
{
    return r->present && r->exit_code == 0 && r->signal == 0 && !r->timed_out && !r->oom &&
           r->stdout_dropped == 0 && r->stderr_dropped == 0;
}

static int config_remember(struct bough_store *store, int64_t id, const char *text)
{
    char *copy = strdup(text);
    if (!copy)
        return -1;
    free(store->config_text);
    store->config_text = copy;
    store->config_id = id;
    return 0;
}

/* Gives the image its parent's config, `id`. One parent has many children: the text is read once. */
static int config_inherit(struct bough_store *store, struct bough_image *image, int64_t id,
                          struct bough_err *err)
{
    if (id != store->config_id) {
        int step = bough_db_query(store, BOUGH_SQL_config_get, err, "i", id);
        if (step == 1 && config_remember(store, id, bough_db_text(store, BOUGH_SQL_config_get, 0)))
            step = bough_err_sys(err, ENOMEM, "image %s", image->uuid);
        bough_db_end(store, BOUGH_SQL_config_get);
        if (step == 0)
            bough_err_set(err, BOUGH_ERR_corrupt, "store %s/bough.db: damaged (config %lld)",
                          store->home, (long long)id);
        if (step != 1)
            return -1;
    }
    image->config = strdup(store->config_text);
    return image->config ? 0 : bough_err_sys(err, ENOMEM, "image %s", image->uuid);
}

/* The row of a config that the image brings along. */
static int config_store(struct bough_store *store, const char *text, int64_t *id,
                        struct bough_err *err)
{
    enum bough_sql which = BOUGH_SQL_config_find;
    int step = bough_db_query(store, which, err, "s", text);
    if (step == 0) {
        which = BOUGH_SQL_config_add;
        step = bough_db_query(store, which, err, "s", text);
    }
    if (step == 1)
        *id = bough_db_int(store, which, 0);
    bough_db_end(store, which);
    return step == 1 ? 0 : -1;
}

static int image_insert(struct bough_store *store, const struct bough_image *image,
                        int64_t parent_seq, int64_t config, int64_t *seq, struct bough_err *err)
{
    const struct bough_result *r = &image->result;
    int64_t flags = (r->present ? BOUGH_FLAG_RESULT : 0) |
                    (r->timed_out ? BOUGH_FLAG_TIMED_OUT : 0) | (r->oom ? BOUGH_FLAG_OOM : 0);
    /* An empty blob is not NULL, which means "not captured". */
    const void *out = r->has_stdout ? (r->stdout_size ? r->stdout_data : "") : NULL;
    const void *errout = r->has_stderr ? (r->stderr_size ? r->stderr_data : "") : NULL;
    int step = bough_db_query(store, BOUGH_SQL_image_add, err, "szzssiiiiiidddiiizbb", image->uuid,
                              parent_seq, image->layer, image->origin, image->command, image->size,
                              image->created_us, store->owner_id, flags, (int64_t)r->exit_code,
                              (int64_t)r->signal, r->elapsed_time, r->user_time, r->system_time,
                              r->max_rss, r->stdout_dropped, r->stderr_dropped, config, out,
                              r->stdout_size, errout, r->stderr_size);
    if (step == 1)
        *seq = bough_db_int(store, BOUGH_SQL_image_add, 0);
    bough_db_end(store, BOUGH_SQL_image_add);
    return step == 1 ? 0 : -1;
}

static int commit_rows(struct bough_store *store, struct bough_image *image,
                       const struct bough_node *node, int64_t bytes, int64_t files, int64_t *seq,
                       struct bough_err *err)
{
    int64_t parent_seq = 0, config = 0;
    if (image->parent[0]) {
        int step = bough_db_query(store, BOUGH_SQL_image_seq, err, "s", image->parent);
        if (step == 1) {
            parent_seq = bough_db_int(store, BOUGH_SQL_image_seq, 0);
            config = bough_db_int(store, BOUGH_SQL_image_seq, 1);
        }
        bough_db_end(store, BOUGH_SQL_image_seq);
        if (step == 0)
            bough_err_set(err, BOUGH_ERR_state, "store %s: image %s: its parent %s is gone",
                          store->home, image->uuid, image->parent);
        if (step != 1)
            return -1;
    }
    if (image->config ? config_store(store, image->config, &config, err)
                      : config && config_inherit(store, image, config, err))
        return -1;
    int step = 0;
    if (node->id)
        step = bough_db_run(store, BOUGH_SQL_layer_add, err, "iziiiis", node->id, node->parent,
                            (int64_t)node->level, bytes, files, image->created_us, NULL);
    if (step < 0)
        return bough_db_explain(store, image->uuid, node->id, node->parent, err);
    if (image_insert(store, image, parent_seq, config, seq, err))
        return bough_db_explain(store, image->uuid, node->id, image->layer, err);
    if (image->tag)
        step = bough_db_run(store, BOUGH_SQL_tag_add, err, "si", image->tag, *seq);
    if (step >= 0 && image->cache_key && result_lasting(&image->result))
        step = bough_db_run(store, BOUGH_SQL_cache_add, err, "si", image->cache_key, *seq);
    return step < 0 ? -1 : 0;
}

static int commit_all(struct bough_store *store, struct bough_image *image,
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
        if (node->id)
            bough_store_unseal(store, node->id);
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
    bough_uuid_lower(image->uuid, image->uuid);
    bough_uuid_lower(image->parent, image->parent);
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

/* ---- tags, removal, numbers ---- */

/* The row number of an image that is not removed; 0 and kind not_found when there is none. */
static int64_t image_seq(struct bough_store *store, const char *uuid, struct bough_err *err)
{
    char lower[BOUGH_UUID_SIZE];
    int step = bough_db_query(store, BOUGH_SQL_image_live, err, "s", bough_uuid_lower(lower, uuid));
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
        step = bough_db_run(store, BOUGH_SQL_cache_del, err, "i", seq);
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
