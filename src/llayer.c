/* llayer.c - layers and trees in and out: add_layer, find_layer, release_layer, commit_image, layers, pack,
 * unpack, compact. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lask.h"
#include "ljob.h"
#include "order.h"
#include "sys.h"

struct layer_errand {
    struct bough_errand errand;
    char *path, *out, *chain, *diff_id; /* owned */
    int source, target;                 /* descriptors */
    int64_t below, layer, bytes, files, skipped, numbers[3];
    int64_t *stack, stack_count;
    char ref[BOUGH_UUID_SIZE];
    struct bough_unpack_order order;
    enum bough_look_source from;
    char *args[8]; /* of bough-look; literals */
    char digest[80], text[200];
    bool leased; /* the layer, and nobody has been told of it yet */
};

static void layer_clear(struct bough_errand *e)
{
    struct layer_errand *l = (struct layer_errand *)e;
    free(l->path);
    free(l->out);
    free(l->chain);
    free(l->diff_id);
    free(l->stack);
    bough_fd_close(&l->source);
    bough_fd_close(&l->target);
    if (l->leased)
        bough_engine_release_layer(e->engine, l->layer);
}

static struct layer_errand *layer_errand(lua_State *L, const char *op,
                                         void (*push)(lua_State *, struct bough_errand *))
{
    struct layer_errand *l = bough_errand_new(L, sizeof *l, op, push, NULL);
    l->source = l->target = -1;
    l->errand.clear = layer_clear;
    return l;
}

/* Fields of the options at index 2. */
static char *option_text(lua_State *L, int index, const char *name)
{
    char *copy = NULL;
    if (lua_istable(L, index) && lua_getfield(L, index, name) == LUA_TSTRING)
        copy = bough_arg_copy(L, -1);
    if (lua_istable(L, index))
        lua_pop(L, 1);
    return copy;
}

static int64_t option_integer(lua_State *L, int index, const char *name)
{
    int64_t value = 0;
    if (lua_istable(L, index)) {
        lua_getfield(L, index, name);
        value = (int64_t)lua_tointeger(L, -1);
        lua_pop(L, 1);
    }
    return value;
}

static bool option_flag(lua_State *L, int index, const char *name)
{
    bool value = false;
    if (lua_istable(L, index)) {
        lua_getfield(L, index, name);
        value = lua_toboolean(L, -1);
        lua_pop(L, 1);
    }
    return value;
}

static void open_archive(lua_State *L, struct layer_errand *l)
{
    struct stat st;
    l->source = open(l->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (l->source < 0 || fstat(l->source, &st) < 0) {
        bough_err_sys(&l->errand.err, errno, "%s", l->path);
        bough_lerr_raise(L, &l->errand.err, l->errand.op);
    }
    if (!S_ISREG(st.st_mode))
        bough_lerr(L, BOUGH_ERR_invalid, l->errand.op, "%s: it is not a regular file", l->path);
}

static void directory_open(lua_State *L, struct layer_errand *l, int *fd, const char *path)
{
    *fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0) {
        bough_err_sys(&l->errand.err, errno, "%s", path);
        bough_lerr_raise(L, &l->errand.err, l->errand.op);
    }
}

/* -- add_layer ----------------------------------------------------------------------------------- */

static void add_prepare(struct bough_job *job)
{
    struct layer_errand *l = (struct layer_errand *)job;
    struct bough_store *store = job->engine->store;
    struct bough_err *err = &l->errand.err;
    l->errand.rc = -1;
    if (l->below > 0) {
        l->stack_count = bough_store_stack(store, l->below, &l->stack, err);
        if (l->stack_count < 0)
            return;
    }
    l->layer = bough_store_layer_ids(store, 1, err);
    l->errand.rc = l->layer < 0 ? -1 : 0;
}

static void add_seal(struct bough_job *job)
{
    struct layer_errand *l = (struct layer_errand *)job;
    int64_t made = l->layer;
    l->errand.rc = bough_store_layer_add(job->engine->store, &l->layer, l->below, l->bytes,
                                         l->files, l->chain, &l->errand.err);
    if (l->errand.rc == 0)
        l->errand.staged = 0;
    else if (l->errand.rc == 1)
        l->errand.staged = made; /* somebody else was quicker: theirs it is */
}

static void add_sealed(struct bough_errand *e)
{
    if (e->rc == 1)
        bough_engine_drop_staged(e->engine, e->staged);
    ((struct layer_errand *)e)->leased = true;
    e->staged = 0;
    e->rc = 0;
    bough_errand_over(e);
}

static void unpack_heard(struct bough_errand *e, struct bough_message *msg)
{
    struct layer_errand *l = (struct layer_errand *)e;
    l->bytes = bough_get_i64(&msg->body);
    l->files = bough_get_i64(&msg->body);
    l->skipped = bough_get_i64(&msg->body);
    const char *digest = bough_get_str(&msg->body);
    snprintf(l->digest, sizeof l->digest, "%s", digest ? digest : "");
    if (l->diff_id && strcmp(l->diff_id, l->digest) != 0) {
        struct bough_err err;
        bough_err_set(&err, BOUGH_ERR_corrupt,
                      "layer %s: its content is %s, but the image's configuration says %s", l->path,
                      l->digest[0] ? l->digest : "of no known digest", l->diff_id);
        bough_errand_fail(e, &err);
    } else if (l->layer > 0) {
        bough_errand_last(e, add_seal, add_sealed);
    } else {
        bough_errand_over(e);
    }
}

static void unpack_ask(struct bough_errand *e)
{
    struct layer_errand *l = (struct layer_errand *)e;
    struct bough_wbuf body = {0};
    int fds[2] = {l->source, l->target};
    l->order.layer = e->staged = l->layer;
    l->order.stack = l->stack;
    l->order.stack_count = l->stack_count;
    bough_unpack_order_put(&body, &l->order);
    bough_errand_ask(e, BOUGH_MSG_UNPACK, &body, fds, l->target >= 0 ? 2 : 1, unpack_heard);
    bough_wbuf_free(&body);
}

static void sizes_push(lua_State *L, struct bough_errand *e)
{
    struct layer_errand *l = (struct layer_errand *)e;
    lua_createtable(L, 0, 5);
    l->leased = false;
    if (l->layer > 0)
        bough_set_integer(L, "layer", l->layer);
    bough_set_integer(L, "bytes", l->bytes);
    bough_set_integer(L, "files", l->files);
    bough_set_integer(L, "skipped", l->skipped);
    bough_set_text(L, "diff_id", l->digest);
}

/* engine:add_layer{ archive =, below =, chain =, diff_id =, digest =, max_bytes =, max_files = } -> job */
static int add_layer(lua_State *L)
{
    lua_settop(L, 2);
    luaL_checktype(L, 2, LUA_TTABLE);
    struct layer_errand *l = layer_errand(L, "import", sizes_push);
    l->path = option_text(L, 2, "archive");
    l->chain = option_text(L, 2, "chain");
    l->diff_id = option_text(L, 2, "diff_id");
    l->below = option_integer(L, 2, "below");
    l->order.whiteouts = true;
    l->order.digest = l->diff_id || option_flag(L, 2, "digest");
    l->order.max_bytes = option_integer(L, 2, "max_bytes");
    l->order.max_files = option_integer(L, 2, "max_files");
    luaL_argcheck(L, l->path, 2, "archive is missing");
    open_archive(L, l);
    bough_errand_work(&l->errand, add_prepare, unpack_ask);
    return 1;
}

/* engine:unpack(archive, directory, { max_bytes =, max_files = }) -> job */
static int unpack(lua_State *L)
{
    lua_settop(L, 4);
    const char *directory = luaL_checkstring(L, 3);
    struct layer_errand *l = layer_errand(L, "import", sizes_push);
    l->path = bough_arg_copy(L, 2);
    l->order.plain = true;
    l->order.max_bytes = option_integer(L, 4, "max_bytes");
    l->order.max_files = option_integer(L, 4, "max_files");
    open_archive(L, l);
    directory_open(L, l, &l->target, directory);
    unpack_ask(&l->errand);
    return 1;
}

/* -- what the store knows of layers ------------------------------------------------------------- */

static void work_find_layer(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    q->rc = bough_store_layer_find(q->engine->store, q->ref, &q->leased, &q->err);
    if (q->rc != 1)
        q->leased = 0;
}

static int find_layer_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct bough_question *q = bough_question_top(L);
    BOUGH_NOT_YET(L, q, find_layer_k);
    if (q->rc == 1)
        lua_pushinteger(L, q->leased);
    else
        lua_pushnil(L);
    q->leased = 0;
    return 1;
}

/* engine:find_layer(chain) -> id or nil */
static int find_layer(lua_State *L)
{
    struct bough_question *q = bough_question_ask(L, "import");
    q->ref = bough_arg_copy(L, 2);
    return bough_question_wait(L, q, work_find_layer, find_layer_k);
}

/* engine:release_layer(id); does not wait, and is no error on an engine that is closed: its leases are gone */
static int release_layer(lua_State *L)
{
    struct local *local = luaL_checkudata(L, 1, BOUGH_LOCAL);
    int64_t layer = luaL_checkinteger(L, 2);
    if (local->engine)
        bough_engine_release_layer(local->engine, layer);
    return 0;
}

static void work_commit_image(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    bough_uuid_make(q->image.uuid);
    q->rc = bough_store_commit(q->engine->store, &q->image, 0, q->image.layer, 0, 0, &q->err);
}

static int commit_image_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct bough_question *q = bough_question_top(L);
    BOUGH_NOT_YET(L, q, commit_image_k);
    bough_lrow_push(L, &q->image);
    return 1;
}

/* engine:commit_image{ layer =, tag =, config =, command =, size = } -> row */
static int commit_image(lua_State *L)
{
    lua_settop(L, 2);
    luaL_checktype(L, 2, LUA_TTABLE);
    struct bough_question *q = bough_question_ask(L, "import");
    q->image.layer = option_integer(L, 2, "layer");
    q->image.size = option_integer(L, 2, "size");
    q->image.tag = option_text(L, 2, "tag");
    q->image.config = option_text(L, 2, "config");
    q->image.command = option_text(L, 2, "command");
    strcpy(q->image.origin, "import");
    return bough_question_wait(L, q, work_commit_image, commit_image_k);
}

static void work_layers(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    q->stack_count = bough_store_find_stack(q->engine->store, q->ref, NULL, &q->stack, &q->err);
    q->rc = q->stack_count < 0 ? -1 : 0;
}

static int layers_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct bough_question *q = bough_question_top(L);
    BOUGH_NOT_YET(L, q, layers_k);
    lua_createtable(L, (int)q->stack_count, 0);
    for (int64_t i = 0; i < q->stack_count; i++) {
        lua_pushinteger(L, q->stack[i]);
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

/* engine:layers(uuid) -> ids, top first */
static int layers(lua_State *L)
{
    struct bough_question *q = bough_question_ask(L, "export");
    q->ref = bough_arg_copy(L, 2);
    return bough_question_wait(L, q, work_layers, layers_k);
}

/* -- pack ------------------------------------------------------------------------------------------ */

static void pack_prepare(struct bough_job *job)
{
    struct layer_errand *l = (struct layer_errand *)job;
    struct bough_err *err = &l->errand.err;
    l->errand.rc = 0;
    if (l->ref[0]) {
        l->stack_count = bough_store_find_stack(job->engine->store, l->ref, NULL, &l->stack, err);
        l->errand.rc = l->stack_count < 0 ? -1 : 0;
    }
    bool member = l->from != BOUGH_LOOK_LAYER;
    for (int64_t i = 0; l->errand.rc == 0 && i < l->stack_count; i++)
        member = member || l->stack[i] == l->layer;
    if (l->errand.rc == 0 && !member)
        l->errand.rc =
            bough_err_set(err, BOUGH_ERR_busy,
                          "image %s: its layers have been compacted meanwhile: try again", l->ref);
    if (l->errand.rc < 0)
        return;
    l->target = open(l->out, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (l->target < 0) {
        l->errand.rc = bough_err_sys(err, errno, "%s", l->out);
        free(l->out); /* not ours to remove */
        l->out = NULL;
    }
}

static void pack_heard(struct bough_errand *e, struct bough_message *msg)
{
    struct layer_errand *l = (struct layer_errand *)e;
    for (int i = 0; i < 3; i++)
        l->numbers[i] = bough_get_i64(&msg->body);
    const char *text = bough_get_str(&msg->body);
    snprintf(l->text, sizeof l->text, "%s", text ? text : "");
    free(l->out);
    l->out = NULL; /* it is whole: nobody removes it */
    bough_errand_over(e);
}

static void pack_ask(struct bough_errand *e)
{
    struct layer_errand *l = (struct layer_errand *)e;
    struct bough_wbuf body = {0};
    struct bough_look_order order = {.source = l->from,
                                     .stack = l->stack,
                                     .stack_count = l->stack_count,
                                     .other_count = -1,
                                     .hint_count = -1,
                                     .args = l->args};
    int fds[2] = {l->target, l->source};
    if (l->from == BOUGH_LOOK_LAYER) {
        order.stack = &l->layer;
        order.stack_count = 1;
    }
    bough_look_order_put(&body, &order);
    bough_errand_ask(e, BOUGH_MSG_LOOK, &body, fds, l->source >= 0 ? 2 : 1, pack_heard);
    bough_wbuf_free(&body);
}

static void pack_failed(struct bough_errand *e)
{
    struct layer_errand *l = (struct layer_errand *)e;
    if (l->out && l->target >= 0)
        unlink(l->out);
    free(l->out);
    l->out = NULL;
}

static void pack_push(lua_State *L, struct bough_errand *e)
{
    const struct layer_errand *l = (struct layer_errand *)e;
    char diff[70] = "", digest[70] = "";
    sscanf(l->text, "%69s %69s", diff, digest);
    lua_createtable(L, 0, 5);
    bough_set_integer(L, "size", l->numbers[0]);
    bough_set_integer(L, "entries", l->numbers[1]);
    bough_set_integer(L, "tar_size", l->numbers[2]);
    lua_pushfstring(L, "%s%s", strchr(diff, ':') ? "" : "sha256:", diff);
    lua_setfield(L, -2, "diff_id");
    lua_pushfstring(L, "%s%s", strchr(digest, ':') ? "" : "sha256:", digest);
    lua_setfield(L, -2, "digest");
}

/* engine:pack{ uuid =, layer =, directory =, out =, compress =, plain =, sparse = } -> job */
static int pack(lua_State *L)
{
    static const char *const codecs[] = {"none", "gzip", "zstd", NULL};
    lua_settop(L, 2);
    luaL_checktype(L, 2, LUA_TTABLE);
    struct layer_errand *l = layer_errand(L, "export", pack_push);
    l->errand.failed = pack_failed;
    char *uuid = option_text(L, 2, "uuid");
    snprintf(l->ref, sizeof l->ref, "%s", uuid ? uuid : "");
    free(uuid);
    l->layer = option_integer(L, 2, "layer");
    l->path = option_text(L, 2, "directory");
    l->from = l->path ? BOUGH_LOOK_GIVEN : l->layer > 0 ? BOUGH_LOOK_LAYER : BOUGH_LOOK_VIEW;
    luaL_argcheck(L, l->path || l->ref[0], 2, "uuid or directory is missing");
    l->out = option_text(L, 2, "out");
    luaL_argcheck(L, l->out, 2, "out is missing");
    lua_getfield(L, 2, "compress");
    int codec = lua_isnil(L, -1) ? 0 : luaL_checkoption(L, -1, NULL, codecs);
    int n = 0;
    l->args[n++] = (char *)(uintptr_t) "pack";
    l->args[n++] = (char *)(uintptr_t) "--compress";
    l->args[n++] = (char *)(uintptr_t)codecs[codec];
    l->args[n++] = (char *)(uintptr_t) "--progress";
    if (l->from == BOUGH_LOOK_LAYER)
        l->args[n++] = (char *)(uintptr_t) "--layer";
    if (option_flag(L, 2, "sparse"))
        l->args[n++] = (char *)(uintptr_t) "--sparse";
    if (option_flag(L, 2, "plain"))
        l->args[n++] = (char *)(uintptr_t) "--plain";
    lua_settop(L, 3);
    if (l->path)
        directory_open(L, l, &l->source, l->path);
    bough_errand_work(&l->errand, pack_prepare, pack_ask);
    return 1;
}

/* -- compact --------------------------------------------------------------------------------------- */

struct compact_errand {
    struct bough_errand errand;
    struct bough_idle idle;
    char ref[BOUGH_UUID_SIZE];
    int64_t layer, merges;
    bool asked;
};

static void compact_look_up(struct bough_job *job)
{
    struct compact_errand *c = (struct compact_errand *)job;
    char uuid[BOUGH_UUID_SIZE];
    int found = bough_store_find(job->engine->store, c->ref, uuid, &c->layer, &c->errand.err);
    if (found == 0)
        bough_err_set(&c->errand.err, BOUGH_ERR_not_found,
                      "image %s: it is not in the store (any more)", c->ref);
    c->errand.rc = found == 1 ? 0 : -1;
}

static void compact_go_on(struct bough_errand *e)
{
    struct compact_errand *c = (struct compact_errand *)e;
    struct bough_engine *engine = e->engine;
    if (!engine->merging && !c->asked && !engine->closed) {
        c->asked = true;
        bough_engine_compact(engine, c->layer);
    }
    if (engine->merging) {
        bough_errand_hold(e);
        bough_engine_when_idle(engine, &c->idle);
        return;
    }
    bough_errand_over(e);
}

static void compact_told(struct bough_idle *idle)
{
    struct compact_errand *c =
        (struct compact_errand *)((char *)idle - offsetof(struct compact_errand, idle));
    compact_go_on(&c->errand);
    bough_errand_release(&c->errand);
}

static void compact_progress(struct bough_errand *e, int64_t *done, int64_t *total)
{
    *done = e->engine->merges - ((struct compact_errand *)e)->merges;
    *total = 0;
}

static void compact_push(lua_State *L, struct bough_errand *e)
{
    int64_t done, total;
    compact_progress(e, &done, &total);
    lua_createtable(L, 0, 1);
    bough_set_integer(L, "merged", done);
}

/* engine:compact(uuid) -> job */
static int compact(lua_State *L)
{
    const char *uuid = luaL_checkstring(L, 2);
    lua_settop(L, 2);
    struct compact_errand *c = bough_errand_new(L, sizeof *c, "compact", compact_push, NULL);
    snprintf(c->ref, sizeof c->ref, "%s", uuid);
    c->merges = c->errand.engine->merges;
    c->idle.tell = compact_told;
    c->errand.progress = compact_progress;
    bough_errand_work(&c->errand, compact_look_up, compact_go_on);
    return 1;
}

const luaL_Reg bough_llayer_methods[] = {
    {"add_layer", add_layer},
    {"unpack", unpack},
    {"find_layer", find_layer},
    {"release_layer", release_layer},
    {"commit_image", commit_image},
    {"layers", layers},
    {"pack", pack},
    {"compact", compact},
    {NULL, NULL},
};
