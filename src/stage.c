#define _GNU_SOURCE
#include "stage.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "content.h"
#include "draft.h"
#include "local/blob.h"
#include "sys.h"

#define HANDS_MAX 4
#define HAND_ITEMS 64 /* a thread more for so many */
#define HAND_STEP 8   /* items taken at once */

_Static_assert(sizeof((struct bough_stage_item){0}.blob) >= BOUGH_BLOB_NAME, "a name fits");

/* What the threads of one stage share. */
struct work {
    struct bough_stage *stage;
    bool copies;       /* else it only hashes */
    struct stat *seen; /* of each item's local file, as found at first */
    atomic_size_t next;
    atomic_bool failed;
    pthread_mutex_t mutex; /* of what is below */
    size_t *claims;        /* items by their blob: index + 1 of the one that makes it */
    size_t claim_size;     /* a power of two */
};

/* One of the threads; the first one is the caller's. */
struct hand {
    struct work *work;
    pthread_t thread;
    bool started;
    int (*step)(struct hand *, size_t index);
    char *buffer; /* BOUGH_CONTENT_SMALL + 1 bytes */
    struct bough_err err;
    size_t failed;   /* index + 1 of the item that it failed at */
    int64_t counted; /* bytes of this item that are in stage->done_bytes already */
    int64_t copied_files, copied_bytes;
};

/* ---- sharing out ---- */

static int hand_failed(struct hand *hand, size_t index)
{
    hand->failed = index + 1;
    atomic_store(&hand->work->failed, true);
    return -1;
}

/* Items are taken in order, so that of several failures the first item's is known in the end. */
static void *hand_main(void *arg)
{
    struct hand *hand = arg;
    struct work *w = hand->work;
    for (;;) {
        size_t from = atomic_fetch_add(&w->next, HAND_STEP);
        for (size_t i = from; i < from + HAND_STEP; i++) {
            if (i >= w->stage->count || atomic_load(&w->failed))
                return NULL;
            if (atomic_load(&w->stage->cancelled)) {
                bough_err_set(&hand->err, BOUGH_ERR_cancelled, "files: cancelled");
                hand_failed(hand, i);
            } else if (hand->step(hand, i)) {
                hand_failed(hand, i);
            }
        }
    }
}

static size_t hands_wanted(const struct work *w)
{
    size_t count = 1 + w->stage->count / HAND_ITEMS;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    if (cpus > 0 && count > (size_t)cpus)
        count = (size_t)cpus;
    return count < HANDS_MAX ? count : HANDS_MAX;
}

/* Calls `step` for every item. With memory or threads for fewer hands there are fewer. */
static int share_out(struct work *w, int (*step)(struct hand *, size_t), struct bough_err *err)
{
    struct hand hands[HANDS_MAX] = {0};
    size_t wanted = hands_wanted(w), count = 0;
    sigset_t all, old;
    atomic_store(&w->next, 0);
    for (; count < wanted; count++) {
        hands[count] = (struct hand){.work = w, .step = step};
        if (!(hands[count].buffer = malloc(BOUGH_CONTENT_SMALL + 1)))
            break;
    }
    if (count == 0)
        return bough_err_sys(err, ENOMEM, "files");
    sigfillset(&all); /* the host's handlers do not run in threads it knows nothing of */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (size_t i = 1; i < count; i++)
        hands[i].started = pthread_create(&hands[i].thread, NULL, hand_main, &hands[i]) == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    hand_main(&hands[0]);
    const struct hand *first = NULL;
    for (size_t i = 0; i < count; i++) {
        if (hands[i].started)
            pthread_join(hands[i].thread, NULL);
        if (hands[i].failed && (!first || hands[i].failed < first->failed))
            first = &hands[i];
        w->stage->copied_files += hands[i].copied_files;
        w->stage->copied_bytes += hands[i].copied_bytes;
        free(hands[i].buffer);
    }
    if (first && err)
        *err = first->err;
    return first ? -1 : 0;
}

/* ---- looking at an item ---- */

static int look_source(struct bough_stage_item *item, struct stat *st, struct bough_err *err)
{
    if (item->kind == BOUGH_PUT_FILE ? bough_content_stat(item->source, st, err)
                                     : stat(item->source, st))
        return item->kind == BOUGH_PUT_FILE ? -1 : bough_err_sys(err, errno, "%s", item->source);
    return 0;
}

static void take_times(struct bough_stage_item *item, const struct stat *st)
{
    struct bough_hash_key key;
    bough_content_key(st, &key);
    if (item->mode < 0)
        item->final_mode = st->st_mode & 07777;
    if (item->mtime_ns == INT64_MIN)
        item->final_mtime_ns = key.mtime_ns;
}

/* What can be said before anything is read. */
static int item_look(struct hand *hand, size_t index)
{
    static const int64_t usual[] = {
        [BOUGH_PUT_FILE] = 0644, [BOUGH_PUT_DIR] = 0755, [BOUGH_PUT_SYMLINK] = 0777};
    struct work *w = hand->work;
    struct bough_stage_item *item = &w->stage->items[index];
    struct stat *st = &w->seen[index];
    item->final_mode = item->mode < 0 ? usual[item->kind] : item->mode & 07777;
    item->final_mtime_ns = item->mtime_ns == INT64_MIN ? w->stage->now_ns : item->mtime_ns;
    item->size = 0;
    item->hex[0] = item->blob[0] = '\0';
    if (item->uid < 0 || item->gid < 0 || item->uid >= UINT32_MAX || item->gid >= UINT32_MAX)
        return bough_err_set(&hand->err, BOUGH_ERR_invalid, "%s: no such owner: %lld:%lld",
                             item->path, (long long)item->uid, (long long)item->gid);
    if (item->kind == BOUGH_PUT_SYMLINK && (!item->target || !item->target[0]))
        return bough_err_set(&hand->err, BOUGH_ERR_invalid, "%s: a symbolic link needs a target",
                             item->path);
    if (item->kind == BOUGH_PUT_FILE && !item->source && !item->data && !item->digest)
        return bough_err_set(&hand->err, BOUGH_ERR_invalid, "%s: a file needs content", item->path);
    if (item->source && item->kind != BOUGH_PUT_SYMLINK) {
        if (look_source(item, st, &hand->err))
            return -1;
        take_times(item, st);
        item->size = item->kind == BOUGH_PUT_FILE ? st->st_size : 0;
    } else if (item->data) {
        item->size = (int64_t)item->data_size;
    }
    atomic_fetch_add(&w->stage->total_bytes, item->size);
    return 0;
}

/* ---- taking its content ---- */

/* Where the item's blob is in the claims, or belongs. */
static size_t *claim_of(const struct work *w, const struct bough_stage_item *item)
{
    size_t at = 0;
    sscanf(item->hex, "%12zx", &at);
    for (at &= w->claim_size - 1; w->claims[at]; at = (at + 1) & (w->claim_size - 1))
        if (strcmp(w->stage->items[w->claims[at] - 1].blob, item->blob) == 0)
            break;
    return &w->claims[at];
}

/* Names the item's blob, by its hex: true when there is no need to copy the content. */
static bool item_pooled(struct work *w, struct bough_stage_item *item)
{
    size_t own = (size_t)(item - w->stage->items) + 1;
    char name[BOUGH_BLOB_NAME];
    bough_blob_name(name, item->hex, item->final_mode, item->uid, item->gid, item->final_mtime_ns);
    pthread_mutex_lock(&w->mutex); /* under it the names are compared */
    memcpy(item->blob, name, sizeof name);
    size_t *claim = claim_of(w, item);
    bool theirs = *claim && *claim != own;
    if (!theirs)
        *claim = own;
    pthread_mutex_unlock(&w->mutex);
    return theirs || bough_blob_has(w->stage->blobs, name);
}

/* Writes what has been loaded, or copies it and hashes on the way. */
static int item_write(struct hand *hand, struct bough_stage_item *item,
                      struct bough_content *content, struct bough_draft *draft)
{
    struct bough_stage *stage = hand->work->stage;
    if (bough_draft_open(stage, item->uid, item->gid, item->final_mode, draft, &hand->err))
        return -1;
    if (content->data)
        return bough_content_write(content, draft->fd, stage->home, &hand->err);
    if (bough_content_copy(content, draft->fd, stage->home, hand->buffer, stage, &hand->err))
        return -1;
    hand->counted += content->size;
    return 0;
}

static int item_finish(struct hand *hand, struct bough_stage_item *item, struct bough_draft *draft)
{
    if (bough_draft_finish(hand->work->stage, draft, item->blob, item->final_mode,
                           item->final_mtime_ns, item->staged, &hand->err))
        return -1;
    if (!item->digest) {
        hand->copied_files++;
        hand->copied_bytes += item->size;
    }
    return 0;
}

static void item_known(struct bough_stage_item *item, const struct bough_content *content)
{
    memcpy(item->hex, content->hex, sizeof item->hex);
    item->size = content->size;
}

/* A small content is read first, and written only when the pool lacks it. */
static int take_small(struct hand *hand, struct bough_stage_item *item,
                      struct bough_content *content, struct bough_draft *draft)
{
    if (bough_content_load(content, hand->buffer, &hand->err))
        return -1;
    item_known(item, content);
    if (!hand->work->copies || item_pooled(hand->work, item))
        return 0;
    return item_write(hand, item, content, draft) ? -1 : item_finish(hand, item, draft);
}

/* A large one is copied while it is hashed; the copy is dropped when the pool turns out to have it. */
static int take_large(struct hand *hand, struct bough_stage_item *item,
                      struct bough_content *content, struct bough_draft *draft)
{
    struct work *w = hand->work;
    if (w->copies) {
        if (item_write(hand, item, content, draft))
            return -1;
    } else {
        if (bough_content_copy(content, -1, "", hand->buffer, w->stage, &hand->err))
            return -1;
        hand->counted += content->size;
    }
    item_known(item, content);
    if (!w->copies || item_pooled(w, item))
        return 0;
    return item_finish(hand, item, draft);
}

static int take_content(struct hand *hand, struct bough_stage_item *item,
                        struct bough_content *content)
{
    struct bough_draft draft = {.fd = -1};
    int result = bough_content_is_small(content) ? take_small(hand, item, content, &draft)
                                                 : take_large(hand, item, content, &draft);
    bough_draft_drop(hand->work->stage, &draft);
    return result;
}

static int take_source(struct hand *hand, struct bough_stage_item *item, const struct stat *st)
{
    struct work *w = hand->work;
    struct bough_hash_key key;
    struct bough_content content;
    bough_content_key(st, &key);
    if (bough_hashes_get(w->stage->hashes, &key, item->hex) && (!w->copies || item_pooled(w, item)))
        return 0;
    if (bough_content_open(&content, AT_FDCWD, item->source, &hand->err))
        return -1;
    take_times(item, &content.st); /* it may have changed since it was looked at */
    int result = take_content(hand, item, &content);
    bough_fd_close(&content.fd);
    if (result == 0)
        bough_content_remember(&content, w->stage->hashes);
    return result;
}

/* Copies content out of the pool that it lacks in this form. */
static int take_blob(struct hand *hand, struct bough_stage_item *item, const char *name)
{
    struct bough_stage *stage = hand->work->stage;
    struct bough_draft draft = {.fd = -1};
    struct bough_content content;
    if (bough_content_open(&content, stage->blobs, name, &hand->err))
        return bough_err_wrap(&hand->err, "store %s/blobs", stage->home);
    content.verified = true;
    int result = bough_content_is_small(&content)
                     ? bough_content_load(&content, hand->buffer, &hand->err)
                     : 0;
    if (result == 0)
        result = item_write(hand, item, &content, &draft);
    bough_fd_close(&content.fd);
    item->size = content.size;
    if (result == 0 && strcmp(content.hex, item->digest) != 0)
        result = bough_err_set(&hand->err, BOUGH_ERR_corrupt,
                               "store %s/blobs/%s: damaged (its digest is %s)", stage->home, name,
                               content.hex);
    if (result == 0)
        result = item_finish(hand, item, &draft);
    bough_draft_drop(stage, &draft);
    return result;
}

static int take_digest(struct hand *hand, struct bough_stage_item *item)
{
    struct work *w = hand->work;
    char name[BOUGH_BLOB_NAME];
    bool valid = bough_blob_digest_valid(item->digest);
    if (valid)
        memcpy(item->hex, item->digest, sizeof item->hex);
    if (valid && w->copies && item_pooled(w, item))
        return 0;
    int found = bough_blob_find(w->stage->blobs, item->digest, name, &hand->err);
    if (found == 0)
        bough_err_set(&hand->err, BOUGH_ERR_not_found,
                      "%s: no content with the digest %s in the store; upload it first", item->path,
                      item->digest);
    if (found != 1 || !w->copies)
        return found == 1 ? 0 : -1;
    return take_blob(hand, item, name);
}

static int item_take(struct hand *hand, size_t index)
{
    struct bough_stage *stage = hand->work->stage;
    struct bough_stage_item *item = &stage->items[index];
    int64_t expected = item->size;
    int result = 0;
    hand->counted = 0;
    if (item->kind != BOUGH_PUT_FILE)
        return 0;
    if (item->source) {
        result = take_source(hand, item, &hand->work->seen[index]);
    } else if (item->digest) {
        result = take_digest(hand, item);
    } else {
        struct bough_content content;
        bough_content_bytes(&content, item->path, item->data, item->data_size);
        result = take_content(hand, item, &content);
    }
    atomic_fetch_add(&stage->done_bytes, expected - hand->counted);
    return result;
}

/* ---- the whole ---- */

static int item_compare(const void *a, const void *b)
{
    return strcmp(((const struct bough_stage_item *)a)->path,
                  ((const struct bough_stage_item *)b)->path);
}

static int items_sort(struct bough_stage *stage, struct bough_err *err)
{
    if (stage->count)
        qsort(stage->items, stage->count, sizeof *stage->items, item_compare);
    for (size_t i = 1; i < stage->count; i++)
        if (strcmp(stage->items[i - 1].path, stage->items[i].path) == 0)
            return bough_err_set(err, BOUGH_ERR_invalid, "%s: named twice", stage->items[i].path);
    return 0;
}

/* The worker goes through the items in order: the first one of each blob must have what it is made of. */
static void staged_to_first(struct work *w)
{
    struct bough_stage_item *items = w->stage->items;
    for (size_t i = 0; i < w->stage->count; i++) {
        size_t *claim = items[i].blob[0] ? claim_of(w, &items[i]) : NULL;
        if (!claim || *claim <= i + 1)
            continue;
        memcpy(items[i].staged, items[*claim - 1].staged, sizeof items[i].staged);
        items[*claim - 1].staged[0] = '\0';
        *claim = i + 1;
    }
}

/* Every field with its length or an end, so that no two lists of items look the same. */
static int stage_digest(struct bough_stage *stage, struct bough_err *err)
{
    struct bough_sha256 *sha = bough_sha256_new();
    if (!sha)
        return bough_err_sys(err, ENOMEM, "files");
    for (size_t i = 0; i < stage->count; i++) {
        const struct bough_stage_item *item = &stage->items[i];
        const char *value = item->kind == BOUGH_PUT_FILE      ? item->hex
                            : item->kind == BOUGH_PUT_SYMLINK ? item->target
                                                              : "";
        char head[160];
        int size = snprintf(head, sizeof head, "%d %llo %lld %lld %lld %zu %zu\n", (int)item->kind,
                            (unsigned long long)item->final_mode, (long long)item->uid,
                            (long long)item->gid, (long long)item->mtime_ns, strlen(item->path),
                            strlen(value));
        bough_sha256_update(sha, head, (size_t)size);
        bough_sha256_update(sha, item->path, strlen(item->path));
        bough_sha256_update(sha, value, strlen(value));
    }
    bough_sha256_hex(sha, stage->digest);
    bough_sha256_free(sha);
    return 0;
}

static bool has_digests(const struct bough_stage *stage)
{
    for (size_t i = 0; i < stage->count; i++)
        if (stage->items[i].digest)
            return true;
    return false;
}

static int work_all(struct work *w, struct bough_err *err)
{
    struct bough_stage *stage = w->stage;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (!stage->now_ns)
        stage->now_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    stage->copied_files = stage->copied_bytes = 0;
    atomic_store(&stage->done_bytes, 0);
    atomic_store(&stage->total_bytes, 0);
    if (items_sort(stage, err) || (w->copies && bough_draft_ready(stage, err)) ||
        (has_digests(stage) && bough_draft_pool(stage, err)))
        return -1;
    for (w->claim_size = 64; w->claim_size < stage->count * 2;)
        w->claim_size *= 2;
    w->claims = calloc(w->claim_size, sizeof *w->claims);
    w->seen = calloc(stage->count + 1, sizeof *w->seen);
    if (!w->claims || !w->seen)
        return bough_err_sys(err, ENOMEM, "files");
    /* All are looked at first: a file that is missing shows before gigabytes have been copied. */
    if (share_out(w, item_look, err) || share_out(w, item_take, err))
        return -1;
    staged_to_first(w);
    return stage_digest(stage, err);
}

static int work_run(struct bough_stage *stage, bool copies, struct bough_err *err)
{
    struct work w = {.stage = stage, .copies = copies, .mutex = PTHREAD_MUTEX_INITIALIZER};
    int result = work_all(&w, err);
    free(w.claims);
    free(w.seen);
    pthread_mutex_destroy(&w.mutex);
    return result;
}

int bough_stage_work(struct bough_stage *stage, struct bough_err *err)
{
    return work_run(stage, true, err);
}

int bough_stage_hash(struct bough_stage *stage, struct bough_err *err)
{
    return work_run(stage, false, err);
}

void bough_stage_put(const struct bough_stage *stage, struct bough_wbuf *buf)
{
    bough_put_i64(buf, (int64_t)stage->count);
    for (size_t i = 0; i < stage->count; i++) {
        const struct bough_stage_item *item = &stage->items[i];
        struct bough_put_item put = {.path = item->path,
                                     .kind = item->kind,
                                     .mode = item->final_mode,
                                     .uid = item->uid,
                                     .gid = item->gid,
                                     .mtime_ns = item->final_mtime_ns,
                                     .blob = item->blob,
                                     .staged = item->staged,
                                     .target = item->target ? item->target : ""};
        bough_put_item_put(buf, &put);
    }
}

void bough_stage_free(struct bough_stage *stage)
{
    for (size_t i = 0; i < stage->count; i++) {
        struct bough_stage_item *item = &stage->items[i];
        if (item->staged[0] && stage->tmp > 0)
            unlinkat(stage->tmp, item->staged, 0);
        free(item->path);
        free(item->source);
        free(item->data);
        free(item->digest);
        free(item->target);
    }
    free(stage->items);
    stage->items = NULL;
    stage->count = 0;
    if (stage->tmp > 0)
        close(stage->tmp);
    stage->tmp = 0;
    bough_fd_close(&stage->lock);
    bough_fd_close(&stage->blobs);
}
