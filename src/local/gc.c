#define _GNU_SOURCE
/* gc.c - who is alive, what nobody needs any more, what the dead left behind.
 *
 * A live engine holds its tmp/<owner>/lock with flock; the kernel lets go of it however
 * the process ends. Owner names are random and never come back, so "dead" is for good.
 * Rows are dropped in one transaction, directories move to trash after it: a kill in
 * between leaves directories without a row, which a sweep finds. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "store_priv.h"

#define NEWBORN ".new-" /* in front of an owner's name until its lock is held */

/* ---- owners ---- */

/* Only what looks like ours is ever given to the keeper to remove: "<pid>-<16 hex>". */
static bool owner_name_valid(const char *name)
{
    size_t digits = strspn(name, "0123456789");
    return digits > 0 && name[digits] == '-' && strlen(name + digits + 1) == 16 &&
           strspn(name + digits + 1, "0123456789abcdef") == 16;
}

/* Under commit.lock, so that a sweep, which has it alone, finds newborn directories only where
 * their maker died. By its final name an owner is locked from the first instant. */
static int owner_make_locked(struct bough_store *store, struct bough_err *err)
{
    char newborn[sizeof NEWBORN + BOUGH_OWNER_SIZE];
    snprintf(newborn, sizeof newborn, NEWBORN "%s", store->owner);
    if (mkdirat(store->tmp_fd, newborn, 0700))
        return bough_err_sys(err, errno, "store %s: cannot make tmp/%s", store->home, newborn);
    store->owner_fd = openat(store->tmp_fd, newborn, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->owner_fd < 0)
        return bough_err_sys(err, errno, "store %s/tmp/%s", store->home, newborn);
    store->lock_fd = openat(store->owner_fd, "lock", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (store->lock_fd < 0 || flock(store->lock_fd, LOCK_EX | LOCK_NB) ||
        renameat(store->tmp_fd, newborn, store->tmp_fd, store->owner)) {
        int sys = errno;
        unlinkat(store->owner_fd, "lock", 0);
        unlinkat(store->tmp_fd, newborn, AT_REMOVEDIR);
        return bough_err_sys(err, sys, "store %s: cannot lock tmp/%s", store->home, newborn);
    }
    return 0;
}

int bough_owner_make(struct bough_store *store, struct bough_err *err)
{
    uint64_t random = 0;
    while (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
        continue;
    snprintf(store->owner, sizeof store->owner, "%ld-%016llx", (long)store->pid,
             (unsigned long long)random);
    if (bough_commit_lock(store, LOCK_SH, err))
        return -1;
    int result = owner_make_locked(store, err);
    bough_commit_unlock(store);
    if (result && err && (err->sys == ENOSPC || err->sys == EDQUOT))
        bough_err_set(err, BOUGH_ERR_resource, "store %s: no space left on the device",
                      store->home);
    return result;
}

/* Staging that is still in there stays for a sweep: without its lock the owner is dead. */
void bough_owner_drop(struct bough_store *store)
{
    if (store->owner_fd < 0)
        return;
    unlinkat(store->owner_fd, "lock", 0);
    unlinkat(store->tmp_fd, store->owner, AT_REMOVEDIR);
}

/* In doubt an owner is alive. A shared lock does as well as an exclusive one to find the owner's,
 * and two who look at the same time do not take each other for it. */
static bool owner_live(const struct bough_store *store, const char *name)
{
    char path[BOUGH_OWNER_SIZE + 8];
    if ((size_t)snprintf(path, sizeof path, "%s/lock", name) >= sizeof path)
        return true;
    int fd BOUGH_CLEANUP_FD = openat(store->tmp_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return errno != ENOENT;
    return flock(fd, LOCK_SH | LOCK_NB) != 0;
}

/* ---- lists of ids ---- */

struct id_list {
    int64_t *ids;
    size_t count, size;
};

static int list_add(struct id_list *list, int64_t id)
{
    if (list->count == list->size) {
        size_t size = list->size ? list->size * 2 : 64;
        int64_t *ids = reallocarray(list->ids, size, sizeof *ids);
        if (!ids)
            return -1;
        list->ids = ids;
        list->size = size;
    }
    list->ids[list->count++] = id;
    return 0;
}

static int id_compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

void bough_store_note(struct bough_store *store, int64_t seq)
{
    if (!store->marks)
        return;
    struct id_list list = {store->recent, store->recent_count, store->recent_size};
    if (list_add(&list, seq))
        return;
    store->recent = list.ids;
    store->recent_count = list.count;
    store->recent_size = list.size;
}

void bough_store_gc_mark(struct bough_store *store)
{
    if (bough_store_enter(store, NULL) == 0) {
        store->marks++;
        bough_store_leave(store);
    }
}

/* ---- gc: the picture ---- */

enum {
    NEEDED = 1,
    MOUNTED = 2, /* perhaps, by this process: in the stack of an image in its `keep` */
};

struct gc_image {
    int64_t seq, parent, layer, owner;
    int flags;
};

struct gc_layer {
    int64_t id, parent, bytes;
    int flags;
};

struct gc_stand {
    int64_t id, top;
    int level;
    bool drop;
};

struct gc_state {
    struct bough_store *store;
    struct bough_err *err;
    struct gc_image *images;
    struct gc_layer *layers;
    struct gc_stand *stands;
    size_t image_count, layer_count, stand_count;
    struct id_list live;     /* other owners */
    struct id_list unleased; /* images whose lease of ours has lost its reason */
    struct id_list trash;
};

static int gc_nomem(const struct gc_state *gc)
{
    return bough_err_sys(gc->err, ENOMEM, "gc of %s", gc->store->home);
}

static bool gc_is_live(const struct gc_state *gc, int64_t owner)
{
    for (size_t i = 0; i < gc->live.count; i++)
        if (gc->live.ids[i] == owner)
            return true;
    return false;
}

/* Both arrays begin their elements with the key and are sorted by it. */
static void *gc_find(void *array, size_t count, size_t size, int64_t key)
{
    return key > 0 && count ? bsearch(&key, array, count, size, id_compare) : NULL;
}

static struct gc_image *gc_image(const struct gc_state *gc, int64_t seq)
{
    return gc_find(gc->images, gc->image_count, sizeof *gc->images, seq);
}

/* Room for one more element; *array is NULL or has a power of two. */
static void *gc_room(void *array, size_t count, size_t size)
{
    if (count && (count & (count - 1)))
        return array;
    return reallocarray(array, count ? count * 2 : 1, size);
}

static int gc_load_owners(struct gc_state *gc)
{
    struct bough_store *store = gc->store;
    int step = bough_db_query(store, BOUGH_SQL_owner_all, gc->err, "i", store->owner_id);
    for (; step == 1; step = bough_db_next(store, BOUGH_SQL_owner_all, gc->err))
        if (owner_live(store, bough_db_text(store, BOUGH_SQL_owner_all, 1)) &&
            list_add(&gc->live, bough_db_int(store, BOUGH_SQL_owner_all, 0)))
            return bough_db_finish(store, BOUGH_SQL_owner_all, gc_nomem(gc));
    return step;
}

static int gc_load_images(struct gc_state *gc)
{
    const enum bough_sql q = BOUGH_SQL_image_all;
    struct bough_store *store = gc->store;
    int step = bough_db_query(store, q, gc->err, "");
    for (; step == 1; step = bough_db_next(store, q, gc->err)) {
        void *room = gc_room(gc->images, gc->image_count, sizeof *gc->images);
        if (!room)
            return bough_db_finish(store, q, gc_nomem(gc));
        gc->images = room;
        struct gc_image *image = &gc->images[gc->image_count++];
        *image = (struct gc_image){
            .seq = bough_db_int(store, q, 0),
            .parent = bough_db_int(store, q, 1),
            .layer = bough_db_int(store, q, 2),
            .owner = bough_db_int(store, q, 3),
        };
        if (bough_db_int(store, q, 4) || gc_is_live(gc, image->owner))
            image->flags = NEEDED;
    }
    return step;
}

static int gc_load_layers(struct gc_state *gc)
{
    const enum bough_sql q = BOUGH_SQL_layer_all;
    struct bough_store *store = gc->store;
    int step = bough_db_query(store, q, gc->err, "");
    for (; step == 1; step = bough_db_next(store, q, gc->err)) {
        void *room = gc_room(gc->layers, gc->layer_count, sizeof *gc->layers);
        if (!room)
            return bough_db_finish(store, q, gc_nomem(gc));
        gc->layers = room;
        gc->layers[gc->layer_count++] = (struct gc_layer){
            .id = bough_db_int(store, q, 0),
            .parent = bough_db_int(store, q, 1),
            .bytes = bough_db_int(store, q, 2),
        };
    }
    return step;
}

static int gc_load_stands(struct gc_state *gc)
{
    const enum bough_sql q = BOUGH_SQL_stand_all;
    struct bough_store *store = gc->store;
    int step = bough_db_query(store, q, gc->err, "");
    for (; step == 1; step = bough_db_next(store, q, gc->err)) {
        void *room = gc_room(gc->stands, gc->stand_count, sizeof *gc->stands);
        if (!room)
            return bough_db_finish(store, q, gc_nomem(gc));
        gc->stands = room;
        gc->stands[gc->stand_count++] = (struct gc_stand){
            .id = bough_db_int(store, q, 0),
            .top = bough_db_int(store, q, 1),
            .level = (int)bough_db_int(store, q, 2),
        };
    }
    return step;
}

/* ---- gc: what is needed ---- */

static int gc_mark_keep(struct gc_state *gc, const char *const *keep, long keep_count)
{
    struct bough_store *store = gc->store;
    for (long i = 0; i < keep_count; i++) {
        int step = bough_db_query(store, BOUGH_SQL_image_seq, gc->err, "s", keep[i]);
        int64_t seq = step == 1 ? bough_db_int(store, BOUGH_SQL_image_seq, 0) : 0;
        bough_db_end(store, BOUGH_SQL_image_seq);
        struct gc_image *image = gc_image(gc, seq);
        if (step < 0)
            return -1;
        if (image)
            image->flags |= NEEDED | MOUNTED;
    }
    for (size_t i = 0; i < store->recent_count; i++) {
        struct gc_image *image = gc_image(gc, store->recent[i]);
        if (image)
            image->flags |= NEEDED | MOUNTED;
    }
    return 0;
}

static int gc_mark_leases(struct gc_state *gc)
{
    const enum bough_sql q = BOUGH_SQL_lease_all;
    struct bough_store *store = gc->store;
    int step = bough_db_query(store, q, gc->err, "");
    for (; step == 1; step = bough_db_next(store, q, gc->err)) {
        struct gc_image *image = gc_image(gc, bough_db_int(store, q, 0));
        int64_t owner = bough_db_int(store, q, 1);
        if (image && gc_is_live(gc, owner))
            image->flags |= NEEDED;
        else if (image && owner == store->owner_id && !(image->flags & MOUNTED) &&
                 list_add(&gc->unleased, image->seq))
            return bough_db_finish(store, q, gc_nomem(gc));
    }
    return step;
}

/* `flags` for a layer and all below it. */
static void gc_mark_layers(struct gc_state *gc, int64_t id, int flags)
{
    while (id && flags) {
        struct gc_layer *layer = gc_find(gc->layers, gc->layer_count, sizeof *gc->layers, id);
        if (!layer || (layer->flags & flags) == flags)
            break;
        layer->flags |= flags;
        id = layer->parent;
    }
}

/* Layers that somebody holds without an image: ours may be mounted here as well. */
static int gc_mark_held(struct gc_state *gc)
{
    const enum bough_sql q = BOUGH_SQL_layer_lease_all;
    struct bough_store *store = gc->store;
    int step = bough_db_query(store, q, gc->err, "");
    for (; step == 1; step = bough_db_next(store, q, gc->err)) {
        int64_t layer = bough_db_int(store, q, 0), owner = bough_db_int(store, q, 1);
        if (owner == store->owner_id)
            gc_mark_layers(gc, layer, NEEDED | MOUNTED);
        else if (gc_is_live(gc, owner))
            gc_mark_layers(gc, layer, NEEDED);
    }
    return step;
}

static void gc_spread(struct gc_state *gc)
{
    /* A parent always has the smaller number: it was there when its child came. */
    for (size_t i = gc->image_count; i-- > 0;) {
        struct gc_image *image = &gc->images[i];
        struct gc_image *parent = image->flags & NEEDED ? gc_image(gc, image->parent) : NULL;
        if (parent)
            parent->flags |= NEEDED;
        gc_mark_layers(gc, image->layer, image->flags);
    }
}

/* A stand-in goes with its top layer. One that a wider one has replaced goes as well when nobody
 * can have it mounted: no other process, and not this one. */
static void gc_judge_stands(struct gc_state *gc)
{
    for (size_t i = 0; i < gc->stand_count; i++) {
        struct gc_stand *stand = &gc->stands[i];
        const struct gc_layer *top =
            gc_find(gc->layers, gc->layer_count, sizeof *gc->layers, stand->top);
        bool replaced =
            i > 0 && gc->stands[i - 1].top == stand->top && gc->stands[i - 1].level > stand->level;
        bool used = gc->live.count || (bough_idmap_get(&gc->store->handed, stand->id) && top &&
                                       (top->flags & MOUNTED));
        stand->drop = !top || !(top->flags & NEEDED) || (replaced && !used);
    }
}

/* ---- gc: doing it ---- */

static int gc_count(struct gc_state *gc, struct bough_gc *out)
{
    for (size_t i = 0; i < gc->image_count; i++)
        out->images += !(gc->images[i].flags & NEEDED);
    for (size_t i = 0; i < gc->stand_count; i++)
        if (gc->stands[i].drop && list_add(&gc->trash, gc->stands[i].id))
            return gc_nomem(gc);
    for (size_t i = 0; i < gc->layer_count; i++) {
        if (gc->layers[i].flags & NEEDED)
            continue;
        out->layers++;
        out->bytes += gc->layers[i].bytes;
        if (list_add(&gc->trash, gc->layers[i].id))
            return gc_nomem(gc);
    }
    return 0;
}

static int gc_drop_rows(struct gc_state *gc)
{
    struct bough_store *store = gc->store;
    int step = bough_db_run(store, BOUGH_SQL_defer_keys, gc->err, "");
    for (size_t i = 0; step >= 0 && i < gc->unleased.count; i++)
        step = bough_db_run(store, BOUGH_SQL_lease_del, gc->err, "ii", gc->unleased.ids[i],
                            store->owner_id);
    for (size_t i = gc->image_count; step >= 0 && i-- > 0;)
        if (!(gc->images[i].flags & NEEDED))
            step = bough_db_run(store, BOUGH_SQL_image_del, gc->err, "i", gc->images[i].seq);
    for (size_t i = 0; step >= 0 && i < gc->stand_count; i++)
        if (gc->stands[i].drop)
            step = bough_db_run(store, BOUGH_SQL_stand_del, gc->err, "i", gc->stands[i].id);
    for (size_t i = gc->layer_count; step >= 0 && i-- > 0;)
        if (!(gc->layers[i].flags & NEEDED))
            step = bough_db_run(store, BOUGH_SQL_layer_del, gc->err, "i", gc->layers[i].id);
    if (step >= 0)
        step = bough_db_run(store, BOUGH_SQL_config_drop, gc->err, "");
    return step < 0 ? -1 : 0;
}

/* True when it was there and is in our trash now. */
static bool trash_move(struct bough_store *store, int64_t id)
{
    char from[BOUGH_NAME_SIZE], to[BOUGH_NAME_SIZE];
    snprintf(from, sizeof from, "%lld", (long long)id);
    snprintf(to, sizeof to, "trash-%lld", (long long)id);
    return renameat(store->layers_fd, from, store->owner_fd, to) == 0;
}

static int gc_look(struct gc_state *gc, const char *const *keep, long keep_count,
                   struct bough_gc *out)
{
    if (gc_load_owners(gc) < 0 || gc_load_images(gc) < 0 || gc_load_layers(gc) < 0 ||
        gc_load_stands(gc) < 0 || gc_mark_keep(gc, keep, keep_count) < 0 ||
        gc_mark_leases(gc) < 0 || gc_mark_held(gc) < 0)
        return -1;
    gc_spread(gc);
    gc_judge_stands(gc);
    return gc_count(gc, out);
}

/* The rows are gone. */
static void gc_finish(struct gc_state *gc)
{
    struct bough_store *store = gc->store;
    bough_cache_clear(store);
    /* Those leases that are left; one forgotten here would only be written again. */
    struct bough_idmap left = {0};
    for (size_t i = 0; i < gc->image_count; i++)
        if (gc->images[i].flags & MOUNTED && bough_idmap_get(&store->leased, gc->images[i].seq))
            bough_idmap_put(&left, gc->images[i].seq, 1);
    bough_idmap_clear(&store->leased);
    store->leased = left;
}

/* Without mutex and commit.lock: ids never come back, so nobody can want what is moved, and what a
 * sweep takes for an orphan first is in its trash instead. A sweep finds what cannot be moved. */
static void gc_move(struct gc_state *gc, struct bough_gc *out)
{
    for (size_t i = 0; i < gc->trash.count; i++)
        if (trash_move(gc->store, gc->trash.ids[i]))
            gc->trash.ids[out->trash_count++] = gc->trash.ids[i];
    out->trash = gc->trash.ids;
    gc->trash.ids = NULL;
}

static int gc_run(struct gc_state *gc, const char *const *keep, long keep_count, bool dry,
                  struct bough_gc *out)
{
    struct bough_store *store = gc->store;
    if (dry) {
        int step = bough_db_query(store, BOUGH_SQL_begin_read, gc->err, "");
        int result = step < 0 ? -1 : gc_look(gc, keep, keep_count, out);
        bough_db_rollback(store);
        return result;
    }
    if (bough_db_begin(store, gc->err))
        return -1;
    if (gc_look(gc, keep, keep_count, out) || gc_drop_rows(gc) || bough_db_commit(store, gc->err)) {
        bough_db_rollback(store);
        return -1;
    }
    gc_finish(gc);
    return 0;
}

int bough_store_gc(struct bough_store *store, const char *const *keep, long keep_count, bool dry,
                   struct bough_gc *out, struct bough_err *err)
{
    *out = (struct bough_gc){0};
    if (bough_store_enter(store, err))
        return -1;
    struct gc_state gc = {.store = store, .err = err};
    int result = gc_run(&gc, keep, keep_count, dry, out);
    if (result)
        *out = (struct bough_gc){0};
    if (store->marks && --store->marks == 0)
        store->recent_count = 0;
    bough_store_leave(store);
    if (result == 0 && !dry)
        gc_move(&gc, out);
    free(gc.images);
    free(gc.layers);
    free(gc.stands);
    free(gc.live.ids);
    free(gc.unleased.ids);
    free(gc.trash.ids);
    return result;
}

/* ---- sweep ---- */

/* Opens a directory of the store for reading, with an offset of its own. */
static DIR *dir_open(int fd)
{
    int own = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = own < 0 ? NULL : fdopendir(own);
    if (!dir && own >= 0)
        bough_fd_close(&own);
    return dir;
}

static int sweep_add_dead(struct bough_sweep *out, const char *name)
{
    char **dead = reallocarray(out->dead, (size_t)out->dead_count + 2, sizeof *dead);
    if (!dead)
        return -1;
    out->dead = dead;
    int length = asprintf(&dead[out->dead_count], "tmp/%s", name);
    if (length < 0)
        dead[out->dead_count] = NULL;
    else
        dead[++out->dead_count] = NULL;
    return length < 0 ? -1 : 0;
}

/* The dead by name. With `newborn` those that died before they had one, for which the caller must
 * have commit.lock alone. */
static int sweep_owners(struct bough_store *store, struct bough_sweep *out, bool newborn,
                        struct bough_err *err)
{
    DIR *dir = dir_open(store->tmp_fd);
    if (!dir)
        return bough_err_sys(err, errno, "store %s/tmp", store->home);
    size_t skip = newborn ? sizeof NEWBORN - 1 : 0;
    int result = 0;
    for (struct dirent *entry; result == 0 && (entry = readdir(dir));) {
        const char *name = entry->d_name;
        if (strncmp(name, NEWBORN, skip) != 0 || !owner_name_valid(name + skip) ||
            strcmp(name + skip, store->owner) == 0)
            continue;
        if ((newborn || !owner_live(store, name)) && sweep_add_dead(out, name))
            result = bough_err_sys(err, ENOMEM, "store %s: sweep", store->home);
    }
    closedir(dir);
    return result;
}

static int sweep_leases(struct bough_store *store, struct bough_err *err)
{
    struct id_list dead = {0};
    int step = bough_db_query(store, BOUGH_SQL_owner_all, err, "i", store->owner_id);
    for (; step == 1; step = bough_db_next(store, BOUGH_SQL_owner_all, err))
        if (!owner_live(store, bough_db_text(store, BOUGH_SQL_owner_all, 1)) &&
            list_add(&dead, bough_db_int(store, BOUGH_SQL_owner_all, 0)))
            break;
    if (step == 1)
        step = bough_db_finish(store, BOUGH_SQL_owner_all,
                               bough_err_sys(err, ENOMEM, "store %s: sweep", store->home));
    /* Most sweeps find nobody, and write nothing. */
    if (step == 0 && dead.count) {
        step = bough_db_begin(store, err);
        for (size_t i = 0; step >= 0 && i < dead.count; i++)
            step = bough_db_run(store, BOUGH_SQL_owner_del, err, "i", dead.ids[i]);
        if (step < 0 || bough_db_commit(store, err)) {
            bough_db_rollback(store);
            step = -1;
        }
    }
    free(dead.ids);
    return step < 0 ? -1 : 0;
}

static int layers_read(struct bough_store *store, struct id_list *list, struct bough_err *err)
{
    DIR *dir = dir_open(store->layers_fd);
    if (!dir)
        return bough_err_sys(err, errno, "store %s/layers", store->home);
    int result = 0;
    for (struct dirent *entry; result == 0 && (entry = readdir(dir));) {
        char *end;
        int64_t id = strtoll(entry->d_name, &end, 10);
        if (id > 0 && *end == '\0' && entry->d_name[0] != '+' && list_add(list, id))
            result = bough_err_sys(err, ENOMEM, "store %s: sweep", store->home);
    }
    closedir(dir);
    return result;
}

/* Strikes those that have a row. The rows are read after the directory was: a layer sealed in
 * between is in the rows alone, one just being sealed is looked at again under the lock. */
static int layers_strike(struct bough_store *store, struct id_list *list, struct bough_err *err)
{
    struct id_list rows = {0};
    int step = bough_db_query(store, BOUGH_SQL_dir_all, err, "");
    for (; step == 1; step = bough_db_next(store, BOUGH_SQL_dir_all, err))
        if (list_add(&rows, bough_db_int(store, BOUGH_SQL_dir_all, 0)))
            break;
    if (step == 1)
        step = bough_db_finish(store, BOUGH_SQL_dir_all,
                               bough_err_sys(err, ENOMEM, "store %s: sweep", store->home));
    if (rows.count)
        qsort(rows.ids, rows.count, sizeof *rows.ids, id_compare);
    size_t left = 0;
    for (size_t i = 0; i < list->count; i++)
        if (!rows.count ||
            !bsearch(&list->ids[i], rows.ids, rows.count, sizeof *rows.ids, id_compare))
            list->ids[left++] = list->ids[i];
    list->count = left;
    free(rows.ids);
    return step < 0 ? -1 : 0;
}

static int sweep_orphans(struct bough_store *store, struct id_list *suspects,
                         struct bough_sweep *out, struct bough_err *err)
{
    int locked = bough_commit_lock(store, LOCK_EX | LOCK_NB, err);
    if (locked)
        return locked < 0 ? -1 : 0; /* somebody is sealing: the next sweep gets them */
    int result = sweep_owners(store, out, true, err);
    for (size_t i = 0; result == 0 && i < suspects->count; i++) {
        int step = bough_db_query(store, BOUGH_SQL_dir_has, err, "i", suspects->ids[i]);
        bough_db_end(store, BOUGH_SQL_dir_has);
        if (step < 0)
            result = -1;
        else if (step == 0 && trash_move(store, suspects->ids[i]))
            suspects->ids[out->orphans++] = suspects->ids[i];
    }
    bough_commit_unlock(store);
    return result;
}

int bough_store_sweep(struct bough_store *store, struct bough_sweep *out, struct bough_err *err)
{
    *out = (struct bough_sweep){0};
    struct id_list suspects = {0};
    /* Reading a big directory takes a while: without the mutex. */
    if (sweep_owners(store, out, false, err) || layers_read(store, &suspects, err) ||
        bough_store_enter(store, err)) {
        free(suspects.ids);
        bough_sweep_clear(out);
        return -1;
    }
    int result = sweep_leases(store, err);
    if (result == 0)
        result = layers_strike(store, &suspects, err);
    if (result == 0)
        result = sweep_orphans(store, &suspects, out, err);
    bough_store_leave(store);
    out->trash = suspects.ids;
    if (result)
        bough_sweep_clear(out);
    return result;
}

void bough_sweep_clear(struct bough_sweep *sweep)
{
    for (long i = 0; i < sweep->dead_count; i++)
        free(sweep->dead[i]);
    free(sweep->dead);
    free(sweep->trash);
    *sweep = (struct bough_sweep){0};
}
