/* lask.c - what can be asked of the embedded engine without running anything.
 *
 * Each method makes a question: a malloc'ed record that the loop's callbacks fill in, held by a userdata, so that a
 * caller who is cancelled leaves nothing dangling. A question goes through a job for the store, a
 * request to the keeper, or both. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "entry.h"
#include "llocal.h"
#include "sys.h"

#define QUESTION "bough.question"

struct question {
    struct bough_job job;
    int refs; /* the userdata, and what is under way */
    struct bough_engine *engine;
    struct bough_cond done_cond;
    bool done;
    int rc;
    struct bough_err err;
    const char *op;
    /* what is asked */
    char *ref, *path, *tag;
    struct bough_filter filter;
    char *filter_tag, *filter_glob, *filter_parent;
    char **keep;
    bool dry;
    enum bough_msg request;
    int source_fd;
    int64_t max_bytes;
    /* what is answered */
    struct bough_image image;
    struct bough_image *images;
    long count;
    struct bough_gc gc;
    struct bough_store_info info;
    int64_t *stack, stack_count, layer, bytes, files, skipped;
    int fd;
    char *data;
    size_t size;
};

static void question_unref(struct question *q)
{
    if (--q->refs > 0)
        return;
    bough_image_clear(&q->image);
    for (long i = 0; i < q->count; i++)
        bough_image_clear(&q->images[i]);
    free(q->images);
    free(q->gc.trash);
    free(q->stack);
    bough_fd_close(&q->fd);
    bough_fd_close(&q->source_fd);
    free(q->data);
    free(q->ref);
    free(q->path);
    free(q->tag);
    free(q->filter_tag);
    free(q->filter_glob);
    free(q->filter_parent);
    for (char **k = q->keep; k && *k; k++)
        free(*k);
    free(q->keep);
    bough_cond_destroy(&q->done_cond);
    bough_engine_unref(q->engine);
    free(q);
}

static int question_gc(lua_State *L)
{
    struct question **box = luaL_checkudata(L, 1, QUESTION);
    if (*box)
        question_unref(*box);
    *box = NULL;
    return 0;
}

/* Pushes its userdata. */
static struct question *ask(lua_State *L, const char *op)
{
    struct bough_engine *engine = bough_local_check(L, op);
    struct question **box = lua_newuserdatauv(L, sizeof *box, 0);
    *box = NULL;
    luaL_setmetatable(L, QUESTION);
    struct question *q = calloc(1, sizeof *q);
    if (!q)
        luaL_error(L, "not enough memory");
    q->refs = 1;
    q->op = op;
    q->fd = q->source_fd = -1;
    q->engine = engine;
    bough_engine_ref(engine);
    bough_cond_init(&q->done_cond, engine->loop);
    *box = q;
    return q;
}

static struct question *top_question(lua_State *L)
{
    return *(struct question **)luaL_checkudata(L, -1, QUESTION);
}

static void answered(struct question *q)
{
    q->done = true;
    bough_cond_fire(&q->done_cond);
    question_unref(q);
}

static void after_job(struct bough_job *job)
{
    answered((struct question *)job);
}

/* Starts the job and waits; `k` pushes the answer (or raises what went wrong). */
static int wait_for(lua_State *L, struct question *q, void (*work)(struct bough_job *),
                    lua_KFunction k)
{
    q->refs++;
    bough_job_start(q->engine, &q->job, work, after_job);
    return k(L, LUA_OK, 0);
}

#define NOT_YET(L, q, k)                             \
    if (!(q)->done)                                  \
        return bough_wait(L, &(q)->done_cond, 0, k); \
    if ((q)->rc < 0)                                 \
    return bough_lerr_raise(L, &(q)->err, (q)->op)

static char *copy_arg(lua_State *L, int index)
{
    char *copy = strdup(luaL_checkstring(L, index));
    if (!copy)
        luaL_error(L, "not enough memory");
    return copy;
}

/* -- the store alone --------------------------------------------------------------------------- */

static void work_get(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    q->rc = bough_store_get(q->engine->store, q->ref, &q->image, &q->err);
}

static int resolve_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct question *q = top_question(L);
    NOT_YET(L, q, resolve_k);
    if (q->rc == 0)
        lua_pushnil(L);
    else
        bough_lrow_push(L, &q->image);
    return 1;
}

static int ask_resolve(lua_State *L)
{
    struct question *q = ask(L, "use");
    q->ref = copy_arg(L, 2);
    return wait_for(L, q, work_get, resolve_k);
}

static char *filter_text(lua_State *L, const char *name)
{
    char *copy = NULL;
    if (lua_getfield(L, 2, name) == LUA_TSTRING)
        copy = copy_arg(L, -1);
    lua_pop(L, 1);
    return copy;
}

static int64_t filter_time(lua_State *L, const char *name)
{
    lua_getfield(L, 2, name);
    double seconds = lua_tonumber(L, -1);
    lua_pop(L, 1);
    return seconds > 9e12 || seconds < -9e12 ? INT64_MAX : (int64_t)(seconds * 1e6);
}

static int64_t filter_count(lua_State *L, const char *name)
{
    lua_getfield(L, 2, name);
    double value = lua_tonumber(L, -1);
    lua_pop(L, 1);
    return value >= 9e15 ? 0 : (int64_t)value;
}

static bool filter_flag(lua_State *L, const char *name)
{
    lua_getfield(L, 2, name);
    bool flag = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return flag;
}

static void work_list(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    q->count = bough_store_list(q->engine->store, &q->filter, &q->images, &q->err);
    q->rc = q->count < 0 ? -1 : 0;
    if (q->count < 0)
        q->count = 0;
}

static int list_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct question *q = top_question(L);
    NOT_YET(L, q, list_k);
    lua_createtable(L, (int)q->count, 0);
    for (long i = 0; i < q->count; i++) {
        bough_lrow_push(L, &q->images[i]);
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

static int ask_list(lua_State *L)
{
    lua_settop(L, 2);
    if (lua_isnil(L, 2)) {
        lua_newtable(L);
        lua_replace(L, 2);
    }
    luaL_checktype(L, 2, LUA_TTABLE);
    struct question *q = ask(L, "list");
    q->filter_tag = filter_text(L, "tag");
    q->filter_glob = filter_text(L, "tag_glob");
    q->filter_parent = filter_text(L, "parent");
    q->filter = (struct bough_filter){
        .tag = q->filter_tag,
        .tag_glob = q->filter_glob,
        .parent = q->filter_parent,
        .tagged = filter_flag(L, "tagged"),
        .since_us = filter_time(L, "since"),
        .before_us = filter_time(L, "before"),
        .limit = filter_count(L, "limit"),
        .offset = filter_count(L, "offset"),
        .oldest_first = filter_flag(L, "oldest_first"),
        .brief = filter_flag(L, "brief"),
    };
    return wait_for(L, q, work_list, list_k);
}

static int nothing_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct question *q = top_question(L);
    NOT_YET(L, q, nothing_k);
    return 0;
}

static void work_tag(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    q->rc = bough_store_tag(q->engine->store, q->ref, q->tag, &q->err);
}

static int ask_tag(lua_State *L)
{
    struct question *q = ask(L, "tag_as");
    q->ref = copy_arg(L, 2);
    q->tag = copy_arg(L, 3);
    return wait_for(L, q, work_tag, nothing_k);
}

static void work_untag(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    q->rc = bough_store_untag(q->engine->store, q->ref, &q->err);
}

static int ask_untag(lua_State *L)
{
    struct question *q = ask(L, "untag");
    q->ref = copy_arg(L, 2);
    return wait_for(L, q, work_untag, nothing_k);
}

static void work_remove(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    q->rc = bough_store_remove(q->engine->store, q->ref, &q->err);
}

static int ask_remove(lua_State *L)
{
    struct question *q = ask(L, "remove");
    q->ref = copy_arg(L, 2);
    return wait_for(L, q, work_remove, nothing_k);
}

/* -- gc ---------------------------------------------------------------------------------------- */

static bool gc_removed(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    /* The rows are gone; a tree that stayed is found by the next sweep. */
    (void)msg;
    (void)err;
    answered(arg);
    return false;
}

static void gc_dropped(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    struct bough_engine *engine = q->engine;
    char **names = q->rc == 0 && q->gc.trash_count > 0
                       ? calloc((size_t)q->gc.trash_count + 1, sizeof *names)
                       : NULL;
    if (!names) {
        answered(q);
        return;
    }
    struct bough_wbuf body = {0};
    for (long i = 0; i < q->gc.trash_count; i++)
        if (asprintf(&names[i], "tmp/%s/trash-%lld", bough_store_owner(engine->store),
                     (long long)q->gc.trash[i]) < 0) {
            names[i] = NULL;
            break;
        }
    bough_put_strv(&body, names);
    if (bough_client_ask(engine->client, BOUGH_MSG_REMOVE, &body, NULL, 0, gc_removed, q, &q->err) <
        0)
        answered(q);
    bough_engine_kick(engine);
    bough_wbuf_free(&body);
    for (char **n = names; *n; n++)
        free(*n);
    free(names);
}

static void work_gc(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    long count = 0;
    while (q->keep && q->keep[count])
        count++;
    q->rc = bough_store_gc(q->engine->store, (const char *const *)q->keep, count, q->dry, &q->gc,
                           &q->err);
}

static int gc_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct question *q = top_question(L);
    NOT_YET(L, q, gc_k);
    lua_createtable(L, 0, 3);
    lua_pushinteger(L, q->gc.images);
    lua_setfield(L, -2, "images");
    lua_pushinteger(L, q->gc.layers);
    lua_setfield(L, -2, "layers");
    lua_pushinteger(L, q->gc.bytes);
    lua_setfield(L, -2, "bytes");
    return 1;
}

static int ask_gc(lua_State *L)
{
    lua_settop(L, 3);
    struct question *q = ask(L, "gc");
    bough_store_gc_mark(q->engine->store);
    lua_Unsigned named = lua_istable(L, 2) ? lua_rawlen(L, 2) : 0, count = 0;
    for (struct bough_run *run = q->engine->runs; run; run = run->next)
        count += 2;
    q->keep = calloc(named + count + 1, sizeof *q->keep);
    if (!q->keep)
        return luaL_error(L, "not enough memory");
    for (count = 0; count < named; count++) {
        lua_rawgeti(L, 2, (lua_Integer)count + 1);
        q->keep[count] = copy_arg(L, -1);
        lua_pop(L, 1);
    }
    /* Runs in flight are about to make images, and their parents are in use. */
    for (struct bough_run *run = q->engine->runs; run; run = run->next) {
        const char *const uuids[] = {run->parent, run->image.uuid};
        for (int i = 0; i < 2; i++)
            if (uuids[i][0] && !run->collected && run->state != BOUGH_RUN_FAILED &&
                (q->keep[count] = strdup(uuids[i])) != NULL)
                count++;
    }
    q->dry = lua_toboolean(L, 3);
    q->refs++;
    bough_job_start(q->engine, &q->job, work_gc, gc_dropped);
    return gc_k(L, LUA_OK, 0);
}

/* -- looking into an image --------------------------------------------------------------------- */

static void work_stack(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    q->rc = bough_store_get(q->engine->store, q->ref, &q->image, &q->err);
    if (q->rc == 0)
        q->rc = bough_err_set(&q->err, BOUGH_ERR_not_found,
                              "image %s: it is not in the store (any more)", q->ref);
    if (q->rc == 1) {
        q->stack_count = bough_store_stack(q->engine->store, q->image.layer, &q->stack, &q->err);
        q->rc = q->stack_count < 0 ? -1 : 0;
    }
}

/* Reads the descriptor to its end, off the loop's thread: it may be a file of any size on a slow disk. */
static void work_slurp(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    struct stat st;
    if (fstat(q->fd, &st) < 0) {
        q->rc = bough_err_sys(&q->err, errno, "%s", q->path);
        return;
    }
    size_t room = (size_t)st.st_size + 1;
    q->data = malloc(room);
    while (q->data) {
        if (q->size == room) {
            char *grown = realloc(q->data, room *= 2);
            if (!grown)
                break;
            q->data = grown;
        }
        ssize_t n = BOUGH_RETRY(pread(q->fd, q->data + q->size, room - q->size, (off_t)q->size));
        if (n < 0)
            q->rc = bough_err_sys(&q->err, errno, "%s", q->path);
        if (n <= 0)
            return;
        q->size += (size_t)n;
    }
    q->rc = bough_err_sys(&q->err, ENOMEM, "%s", q->path);
}

static bool heard_fd(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    struct question *q = arg;
    if (!msg || msg->fd_count < 1) {
        q->rc = -1;
        if (!msg)
            q->err = *err;
        else
            bough_err_set(&q->err, BOUGH_ERR_protocol, "keeper: an answer without its file");
        answered(q);
        return false;
    }
    q->fd = bough_steal_fd(&msg->fds[0]);
    bough_job_start(q->engine, &q->job, work_slurp, after_job);
    return false;
}

static void stack_known(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    if (q->rc < 0) {
        answered(q);
        return;
    }
    struct bough_wbuf body = {0};
    bough_stack_put(&body, q->stack, q->stack_count);
    bough_put_str(&body, q->path);
    if (bough_client_ask(q->engine->client, q->request, &body, NULL, 0, heard_fd, q, &q->err) < 0) {
        q->rc = -1;
        answered(q);
    }
    bough_wbuf_free(&body);
    bough_engine_kick(q->engine);
}

static struct question *ask_inside(lua_State *L, const char *op, enum bough_msg request)
{
    struct question *q = ask(L, op);
    q->ref = copy_arg(L, 2);
    size_t size;
    const char *path = luaL_checklstring(L, 3, &size);
    if (strlen(path) != size)
        bough_lerr(L, BOUGH_ERR_invalid, op, "the path holds a NUL byte");
    q->path = copy_arg(L, 3);
    q->request = request;
    q->refs++;
    bough_job_start(q->engine, &q->job, work_stack, stack_known);
    return q;
}

static int read_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct question *q = top_question(L);
    NOT_YET(L, q, read_k);
    lua_pushlstring(L, q->data, q->size);
    return 1;
}

static int ask_read(lua_State *L)
{
    ask_inside(L, "read", BOUGH_MSG_OPEN);
    return read_k(L, LUA_OK, 0);
}

static void set_integer(lua_State *L, const char *name, lua_Integer value)
{
    lua_pushinteger(L, value);
    lua_setfield(L, -2, name);
}

static void set_number(lua_State *L, const char *name, double value)
{
    lua_pushnumber(L, value);
    lua_setfield(L, -2, name);
}

static void set_boolean(lua_State *L, const char *name, bool value)
{
    lua_pushboolean(L, value);
    lua_setfield(L, -2, name);
}

static void set_text(lua_State *L, const char *name, const char *text)
{
    if (text && *text) {
        lua_pushstring(L, text);
        lua_setfield(L, -2, name);
    }
}

static void push_entry(lua_State *L, const struct bough_entry *e)
{
    lua_createtable(L, 0, 10);
    lua_pushlstring(L, e->name, e->name_len);
    lua_setfield(L, -2, "name");
    lua_pushstring(L, bough_entry_kind(e));
    lua_setfield(L, -2, "kind");
    set_integer(L, "size", (lua_Integer)e->size);
    set_integer(L, "mode", e->mode & 07777);
    set_integer(L, "uid", e->uid);
    set_integer(L, "gid", e->gid);
    set_integer(L, "nlink", (lua_Integer)e->nlink);
    set_number(L, "mtime", (double)e->mtime_sec + e->mtime_nsec / 1e9);
    if (e->target_len) {
        lua_pushlstring(L, e->target, e->target_len);
        lua_setfield(L, -2, "symlink_to");
    }
}

static int list_dir_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct question *q = top_question(L);
    NOT_YET(L, q, list_dir_k);
    const char *at = q->data;
    struct bough_entry e;
    int rc;
    lua_newtable(L);
    for (lua_Integer i = 1; (rc = bough_list_next(&at, q->data + q->size, &e)) == 1; i++) {
        push_entry(L, &e);
        lua_rawseti(L, -2, i);
    }
    if (rc < 0)
        return bough_lerr(L, BOUGH_ERR_protocol, "ls", "the keeper's list is damaged");
    return 1;
}

static int ask_list_dir(lua_State *L)
{
    ask_inside(L, "ls", BOUGH_MSG_LIST);
    return list_dir_k(L, LUA_OK, 0);
}

/* -- import ------------------------------------------------------------------------------------ */

static void work_commit(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    bough_uuid_make(q->image.uuid);
    strcpy(q->image.origin, "import");
    q->image.tag = q->tag;
    q->tag = NULL;
    q->image.layer = q->layer;
    q->image.size = q->bytes;
    q->rc =
        bough_store_commit(q->engine->store, &q->image, q->layer, 0, q->bytes, q->files, &q->err);
}

static void import_committed(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    if (q->rc < 0)
        bough_engine_drop_staged(q->engine, q->layer);
    answered(q);
}

static bool heard_import(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    struct question *q = arg;
    if (!msg) {
        q->rc = -1;
        q->err = *err;
        answered(q);
        return false;
    }
    q->bytes = bough_get_i64(&msg->body);
    q->files = bough_get_i64(&msg->body);
    q->skipped = bough_get_i64(&msg->body);
    bough_job_start(q->engine, &q->job, work_commit, import_committed);
    return false;
}

static void work_layer_id(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    q->layer = bough_store_layer_ids(q->engine->store, 1, &q->err);
    q->rc = q->layer < 0 ? -1 : 0;
}

static void import_numbered(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    struct bough_wbuf body = {0};
    bough_put_i64(&body, q->layer);
    bough_put_i64(&body, q->max_bytes);
    bough_put_i64(&body, 0);
    if (q->rc < 0 || bough_client_ask(q->engine->client, q->request, &body, &q->source_fd, 1,
                                      heard_import, q, &q->err) < 0) {
        q->rc = -1;
        answered(q);
    }
    bough_wbuf_free(&body);
    bough_engine_kick(q->engine);
}

/* The machine's busybox as a tree: itself, a shell, and the places that programs expect. Its other
 * names are made by running it once (lua/bough/images.lua). */
static int copy_program(int from, int dir, const char *name, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int to = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
    BOUGH_CLEANUP_FREE char *block =
        NULL; /* for two file systems between which the kernel does not copy */
    const size_t room = 256 * 1024;
    struct stat st;
    if (to < 0 || fstat(from, &st) < 0 || fchmod(to, 0755) < 0)
        return bough_err_sys(err, errno, "busybox");
    off_t at = 0;
    while (at < st.st_size) {
        off_t source = at;
        ssize_t n = block ? 0
                          : BOUGH_RETRY(copy_file_range(from, &source, to, NULL,
                                                        (size_t)(st.st_size - at), 0));
        if (n <= 0) {
            if (!block && !(block = malloc(room)))
                return bough_err_sys(err, ENOMEM, "busybox");
            n = BOUGH_RETRY(pread(from, block, room, at));
            if (n > 0)
                n = BOUGH_RETRY(write(to, block, (size_t)n));
        }
        if (n <= 0)
            return bough_err_sys(err, n < 0 ? errno : EIO, "busybox");
        at += n;
    }
    return 0;
}

static int write_text(int dir, const char *name, const char *text, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0 || fchmod(fd, 0644) < 0 || BOUGH_RETRY(write(fd, text, strlen(text))) < 0)
        return bough_err_sys(err, errno, "busybox image: %s", name);
    return 0;
}

static int make_busybox_tree(struct question *q)
{
    char path[4300];
    struct bough_err *err = &q->err;
    snprintf(path, sizeof path, "%s/tmp/%s/%lld", bough_store_home(q->engine->store),
             bough_store_owner(q->engine->store), (long long)q->layer);
    if (mkdir(path, 0700) < 0)
        return bough_err_sys(err, errno, "layer %s", path);
    strcat(path, "/fs");
    if (mkdir(path, 0755) < 0)
        return bough_err_sys(err, errno, "layer %s", path);
    BOUGH_CLEANUP_FD int fs = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    static const struct {
        const char *name;
        mode_t mode;
    } dirs[] = {{"bin", 0755},      {"sbin", 0755}, {"usr", 0755},      {"usr/bin", 0755},
                {"usr/sbin", 0755}, {"etc", 0755},  {"root", 0700},     {"home", 0755},
                {"tmp", 01777},     {"var", 0755},  {"var/tmp", 01777}, {"proc", 0555},
                {"sys", 0555},      {"dev", 0755},  {"run", 0755}};
    if (fs < 0 || fchmod(fs, 0755) < 0)
        return bough_err_sys(err, errno, "layer %s", path);
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
        if (mkdirat(fs, dirs[i].name, 0755) < 0 || fchmodat(fs, dirs[i].name, dirs[i].mode, 0) < 0)
            return bough_err_sys(err, errno, "busybox image: %s", dirs[i].name);
    if (copy_program(q->source_fd, fs, "bin/busybox", err) < 0)
        return -1;
    if (symlinkat("busybox", fs, "bin/sh") < 0)
        return bough_err_sys(err, errno, "busybox image: bin/sh");
    if (write_text(fs, "etc/passwd",
                   "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
                   err) < 0 ||
        write_text(fs, "etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n", err) < 0 ||
        write_text(fs, "etc/hosts", "", err) < 0 || write_text(fs, "etc/hostname", "", err) < 0 ||
        write_text(fs, "etc/resolv.conf", "", err) < 0)
        return -1;
    struct stat st;
    q->bytes = fstat(q->source_fd, &st) == 0 ? st.st_size : 0;
    q->files = (int64_t)(sizeof dirs / sizeof *dirs) + 7;
    return 0;
}

static void work_busybox(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    work_layer_id(job);
    if (q->rc == 0)
        q->rc = make_busybox_tree(q);
    if (q->rc == 0)
        work_commit(job);
}

/* A dynamically linked busybox would need libraries that an image of its own does not have. */
static bool is_static(int fd)
{
    unsigned char head[4096];
    ssize_t n = pread(fd, head, sizeof head, 0);
    if (n < 64 || memcmp(head, "\177ELF", 4) != 0)
        return false;
    return memmem(head, (size_t)n, "/ld", 3) == NULL;
}

static int open_busybox(lua_State *L)
{
    const char *named = getenv("BOUGH_BUSYBOX");
    const char *const places[] = {named ? named : "/bin/busybox", "/usr/bin/busybox",
                                  "/bin/busybox.static", "/usr/bin/busybox-static",
                                  "/usr/local/bin/busybox"};
    bool dynamic = false;
    for (size_t i = 0; i < (named ? 1 : sizeof places / sizeof *places); i++) {
        int fd = open(places[i], O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        if (is_static(fd))
            return fd;
        dynamic = true;
        close(fd);
    }
    return bough_lerr(
        L, BOUGH_ERR_not_found, "import",
        dynamic
            ? "busybox: the one on this machine is not statically linked; install busybox-static"
            : "busybox: none on this machine; install busybox-static, or name one in "
              "$BOUGH_BUSYBOX");
}

static int import_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct question *q = top_question(L);
    NOT_YET(L, q, import_k);
    bough_lrow_push(L, &q->image);
    return 1;
}

static int ask_import(lua_State *L)
{
    static const char *const kinds[] = {"busybox", "directory", "archive", NULL};
    lua_settop(L, 4);
    int kind = luaL_checkoption(L, 2, NULL, kinds);
    struct question *q = ask(L, "import");
    if (lua_istable(L, 4)) {
        if (lua_getfield(L, 4, "tag") == LUA_TSTRING)
            q->tag = copy_arg(L, -1);
        lua_getfield(L, 4, "max_bytes");
        q->max_bytes = (int64_t)lua_tointeger(L, -1);
        lua_pop(L, 2);
    }
    if (kind == 0) {
        q->source_fd = open_busybox(L);
        q->refs++;
        bough_job_start(q->engine, &q->job, work_busybox, import_committed);
        return import_k(L, LUA_OK, 0);
    }
    const char *path = luaL_checkstring(L, 3);
    q->source_fd =
        open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | (kind == 1 ? O_DIRECTORY : O_NONBLOCK));
    struct stat st;
    if (q->source_fd < 0 || fstat(q->source_fd, &st) < 0) {
        bough_err_sys(&q->err, errno, "%s", path);
        return bough_lerr_raise(L, &q->err, "import");
    }
    if (kind == 2 && !S_ISREG(st.st_mode))
        return bough_lerr(L, BOUGH_ERR_invalid, "import", "%s: it is not a regular file", path);
    q->request = kind == 1 ? BOUGH_MSG_COPY : BOUGH_MSG_UNPACK;
    q->refs++;
    bough_job_start(q->engine, &q->job, work_layer_id, import_numbered);
    return import_k(L, LUA_OK, 0);
}

/* -- info -------------------------------------------------------------------------------------- */

static void work_info(struct bough_job *job)
{
    struct question *q = (struct question *)job;
    q->rc = bough_store_info(q->engine->store, &q->info, &q->err);
}

static int info_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct question *q = top_question(L);
    NOT_YET(L, q, info_k);
    const struct bough_engine *engine = q->engine;
    lua_createtable(L, 0, 20);
    lua_newtable(L); /* limits */
    for (size_t i = 0; i < engine->fact_count; i++) {
        const char *key = engine->facts[i].key;
        bool limit = strncmp(key, "limit_", 6) == 0;
        if (engine->facts[i].value[0] == '\0')
            continue;
        lua_pushstring(L, engine->facts[i].value);
        lua_setfield(L, limit ? -2 : -3, limit ? key + 6 : key);
    }
    lua_setfield(L, -2, "limits");
    lua_pushstring(L, "local");
    lua_setfield(L, -2, "engine");
    if (engine->store) /* else it was closed between the answer and now */
        set_text(L, "home", bough_store_home(engine->store));
    set_integer(L, "keeper_pid", engine->keeper_pid);
    set_integer(L, "images", q->info.images);
    set_integer(L, "tags", q->info.tags);
    set_integer(L, "layers", q->info.layers);
    set_integer(L, "stand_ins", q->info.stand_ins);
    set_integer(L, "bytes", q->info.bytes);
    set_boolean(L, "compacting", engine->merging);
    return 1;
}

static int ask_info(lua_State *L)
{
    struct question *q = ask(L, "info");
    return wait_for(L, q, work_info, info_k);
}

/* -- rows -------------------------------------------------------------------------------------- */

static void push_result(lua_State *L, const struct bough_result *r)
{
    lua_createtable(L, 0, 14);
    set_integer(L, "exit_code", r->exit_code);
    if (r->signal)
        set_integer(L, "signal", r->signal);
    set_boolean(L, "timed_out", r->timed_out);
    set_boolean(L, "oom", r->oom);
    set_boolean(L, "ok", r->exit_code == 0 && !r->timed_out);
    set_number(L, "elapsed_time", r->elapsed_time);
    set_number(L, "user_time", r->user_time);
    set_number(L, "system_time", r->system_time);
    set_integer(L, "max_rss", r->max_rss);
    if (r->has_stdout) {
        lua_pushlstring(L, r->stdout_data ? r->stdout_data : "",
                        r->stdout_data ? r->stdout_size : 0);
        lua_setfield(L, -2, "stdout");
    }
    if (r->has_stderr) {
        lua_pushlstring(L, r->stderr_data ? r->stderr_data : "",
                        r->stderr_data ? r->stderr_size : 0);
        lua_setfield(L, -2, "stderr");
    }
    lua_createtable(L, 0, 2);
    if (r->stdout_dropped)
        set_integer(L, "stdout", r->stdout_dropped);
    if (r->stderr_dropped)
        set_integer(L, "stderr", r->stderr_dropped);
    lua_setfield(L, -2, "truncated");
    lua_createtable(L, 0, 3);
    set_number(L, "user_time", r->user_time);
    set_number(L, "system_time", r->system_time);
    set_integer(L, "max_rss", r->max_rss);
    lua_setfield(L, -2, "resources");
}

void bough_lrow_push(lua_State *L, const struct bough_image *image)
{
    lua_createtable(L, 0, 9);
    set_text(L, "uuid", image->uuid);
    set_text(L, "parent_uuid", image->parent);
    set_text(L, "tag", image->tag);
    set_text(L, "origin", image->origin);
    set_text(L, "command", image->command);
    set_number(L, "created_at", (double)image->created_us / 1e6);
    set_integer(L, "size", image->size);
    if (image->result.present) {
        push_result(L, &image->result);
        lua_setfield(L, -2, "result");
    }
}

const luaL_Reg bough_lask_methods[] = {
    {"resolve", ask_resolve}, {"list", ask_list}, {"tag", ask_tag},   {"untag", ask_untag},
    {"remove", ask_remove},   {"gc", ask_gc},     {"read", ask_read}, {"list_dir", ask_list_dir},
    {"import", ask_import},   {"info", ask_info}, {NULL, NULL},
};

void bough_lask_register(lua_State *L)
{
    static const luaL_Reg meta[] = {{"__gc", question_gc}, {NULL, NULL}};
    if (luaL_newmetatable(L, QUESTION))
        luaL_setfuncs(L, meta, 0);
    lua_pop(L, 1);
}
