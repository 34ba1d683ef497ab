/* lput.c - files into an image: stage, put_files, upload, has_file. */
#define _GNU_SOURCE
#include <string.h>

#include "lask.h"
#include "ljob.h"
#include "local/blob.h"
#include "put.h"
#include "sys.h"

struct staged_box {
    struct bough_staged *staged;
};

struct bough_staged *bough_lput_staged(lua_State *L, int index)
{
    struct staged_box *box = luaL_checkudata(L, index, BOUGH_STAGED);
    if (!box->staged)
        bough_lerr(L, BOUGH_ERR_closed, "files", "what was staged is closed already");
    return box->staged;
}

/* -- reading items ------------------------------------------------------------------------------ */

static char *item_text(lua_State *L, const char *name, size_t *size)
{
    char *copy = NULL;
    size_t length;
    if (lua_getfield(L, -1, name) == LUA_TSTRING) {
        const char *text = lua_tolstring(L, -1, &length);
        copy = malloc(length + 1);
        if (!copy)
            luaL_error(L, "not enough memory");
        memcpy(copy, text, length + 1);
        if (size)
            *size = length;
        else if (strlen(copy) != length) {
            free(copy);
            bough_lerr(L, BOUGH_ERR_invalid, "files", "%s holds a NUL byte", name);
        }
    }
    lua_pop(L, 1);
    return copy;
}

static int64_t item_integer(lua_State *L, const char *name, int64_t fallback)
{
    if (lua_getfield(L, -1, name) == LUA_TNUMBER)
        fallback = (int64_t)lua_tointeger(L, -1);
    lua_pop(L, 1);
    return fallback;
}

/* The item at the top of the stack. What has been copied is the stage's at once: an error loses nothing. */
static void item_read(lua_State *L, struct bough_stage_item *item)
{
    luaL_checktype(L, -1, LUA_TTABLE);
    item->path = item_text(L, "path", NULL);
    if (!item->path || !bough_put_path_valid(item->path))
        bough_lerr(L, BOUGH_ERR_invalid, "files",
                   "%s: an item needs an absolute path without \"..\"",
                   item->path ? item->path : "?");
    lua_getfield(L, -1, "kind");
    const char *kind = luaL_optstring(L, -1, "file");
    item->kind = strcmp(kind, "dir") == 0       ? BOUGH_PUT_DIR
                 : strcmp(kind, "symlink") == 0 ? BOUGH_PUT_SYMLINK
                                                : BOUGH_PUT_FILE;
    lua_pop(L, 1);
    item->mode = item_integer(L, "mode", item->kind == BOUGH_PUT_DIR ? 0755 : 0644);
    item->uid = item_integer(L, "uid", 0);
    item->gid = item_integer(L, "gid", 0);
    item->mtime_ns = INT64_MIN;
    if (lua_getfield(L, -1, "mtime") == LUA_TNUMBER) {
        double seconds = lua_tonumber(L, -1);
        if (lua_isinteger(L, -1) && seconds > -9e9 && seconds < 9e9)
            item->mtime_ns = (int64_t)lua_tointeger(L, -1) * 1000000000;
        else if (seconds > -9e9 && seconds < 9e9)
            item->mtime_ns = (int64_t)(seconds * 1e9);
    }
    lua_pop(L, 1);
    item->source = item_text(L, "source", NULL);
    item->data = item_text(L, "content", &item->data_size);
    item->digest = item_text(L, "digest", NULL);
    item->target = item_text(L, "target", NULL);
    if (item->kind == BOUGH_PUT_FILE &&
        (item->source != NULL) + (item->data != NULL) + (item->digest != NULL) != 1)
        bough_lerr(L, BOUGH_ERR_invalid, "files", "%s: needs one of source, content and digest",
                   item->path);
    if (item->kind == BOUGH_PUT_SYMLINK && (!item->target || !item->target[0]))
        bough_lerr(L, BOUGH_ERR_invalid, "files", "%s: a symbolic link needs a target", item->path);
}

/* -- stage --------------------------------------------------------------------------------------- */

struct stage_errand {
    struct bough_errand errand;
    struct bough_staged *staged;
};

static void stage_clear(struct bough_errand *e)
{
    struct stage_errand *s = (struct stage_errand *)e;
    if (s->staged)
        bough_staged_unref(s->staged);
}

static void stage_cancel(struct bough_errand *e)
{
    atomic_store(&((struct stage_errand *)e)->staged->stage.cancelled, true);
}

static void stage_progress(struct bough_errand *e, int64_t *done, int64_t *total)
{
    struct bough_stage *stage = &((struct stage_errand *)e)->staged->stage;
    *done = atomic_load(&stage->done_bytes);
    *total = atomic_load(&stage->total_bytes);
}

static void stage_work(struct bough_job *job)
{
    struct stage_errand *s = (struct stage_errand *)job;
    s->errand.rc = bough_stage_work(&s->staged->stage, &s->errand.err);
}

static void stage_push(lua_State *L, struct bough_errand *e)
{
    struct stage_errand *s = (struct stage_errand *)e;
    struct staged_box *box = lua_newuserdatauv(L, sizeof *box, 0);
    box->staged = s->staged;
    s->staged->refs++;
    luaL_setmetatable(L, BOUGH_STAGED);
}

static struct stage_errand *stage_errand(lua_State *L, const char *op,
                                         void (*push)(lua_State *, struct bough_errand *))
{
    struct stage_errand *s = bough_errand_new(L, sizeof *s, op, push, stage_clear);
    s->staged = bough_staged_new(s->errand.engine);
    if (!s->staged)
        luaL_error(L, "not enough memory");
    s->errand.cancel = stage_cancel;
    s->errand.progress = stage_progress;
    return s;
}

/* engine:stage(items) -> job */
int bough_lput_stage(lua_State *L)
{
    lua_settop(L, 2);
    luaL_checktype(L, 2, LUA_TTABLE);
    struct stage_errand *s = stage_errand(L, "files", stage_push);
    struct bough_stage *stage = &s->staged->stage;
    lua_Unsigned count = lua_rawlen(L, 2);
    stage->items = calloc(count + 1, sizeof *stage->items);
    if (!stage->items)
        return luaL_error(L, "not enough memory");
    for (lua_Unsigned i = 0; i < count; i++) {
        lua_rawgeti(L, 2, (lua_Integer)i + 1);
        stage->count = (size_t)i + 1;
        item_read(L, &stage->items[i]);
        lua_pop(L, 1);
    }
    bough_errand_work(&s->errand, stage_work, NULL);
    return 1;
}

static int staged_close(lua_State *L)
{
    struct staged_box *box = luaL_checkudata(L, 1, BOUGH_STAGED);
    if (box->staged)
        bough_staged_unref(box->staged);
    box->staged = NULL;
    return 0;
}

static int staged_index(lua_State *L)
{
    struct staged_box *box = luaL_checkudata(L, 1, BOUGH_STAGED);
    const char *key = luaL_checkstring(L, 2);
    if (strcmp(key, "close") == 0) {
        lua_pushcfunction(L, staged_close);
        return 1;
    }
    const struct bough_stage *stage = &bough_lput_staged(L, 1)->stage;
    (void)box;
    if (strcmp(key, "digest") == 0)
        lua_pushstring(L, stage->digest);
    else if (strcmp(key, "copied_files") == 0)
        lua_pushinteger(L, stage->copied_files);
    else if (strcmp(key, "copied_bytes") == 0)
        lua_pushinteger(L, stage->copied_bytes);
    else if (strcmp(key, "count") == 0)
        lua_pushinteger(L, (lua_Integer)stage->count);
    else
        lua_pushnil(L);
    return 1;
}

/* -- put_files ----------------------------------------------------------------------------------- */

struct put_errand {
    struct bough_errand errand;
    struct bough_put *put; /* while it is under way */
    struct bough_image image;
    int64_t layer, parent_layer, bytes;
};

static void put_clear(struct bough_errand *e)
{
    bough_image_clear(&((struct put_errand *)e)->image);
}

static void put_cancel(struct bough_errand *e)
{
    struct put_errand *p = (struct put_errand *)e;
    if (p->put)
        bough_put_cancel(p->put);
}

static void put_commit(struct bough_job *job)
{
    struct put_errand *p = (struct put_errand *)job;
    struct bough_store *store = job->engine->store;
    p->errand.rc = bough_store_commit(store, &p->image, 0, p->layer, 0, 0, &p->errand.err);
    bough_store_layer_release(store, p->layer);
}

static void put_committed(struct bough_errand *e)
{
    int64_t layer = ((struct put_errand *)e)->layer;
    bough_errand_over(e);
    bough_engine_compact(e->engine, layer);
}

static void put_done(struct bough_put *put)
{
    struct put_errand *p = put->arg;
    struct bough_err err;
    p->put = NULL;
    if (put->rc < 0) {
        bough_errand_fail(&p->errand, &put->err);
    } else if (p->errand.cancelled || p->errand.engine->closed) {
        bough_engine_release_layer(p->errand.engine, put->layer);
        bough_err_set(&err, p->errand.cancelled ? BOUGH_ERR_cancelled : BOUGH_ERR_closed,
                      p->errand.cancelled ? "closed before it was done" : "the engine was closed");
        bough_errand_fail(&p->errand, &err);
    } else {
        p->layer = p->image.layer = put->layer;
        p->image.size = put->bytes;
        bough_errand_last(&p->errand, put_commit, put_committed);
    }
    bough_errand_release(&p->errand);
}

static void put_push(lua_State *L, struct bough_errand *e)
{
    bough_lrow_push(L, &((struct put_errand *)e)->image);
}

/* engine:put_files(uuid, staged, { tag =, command = }) -> job */
int bough_lput_files(lua_State *L)
{
    lua_settop(L, 4);
    const char *uuid = luaL_checkstring(L, 2);
    struct bough_staged *staged = bough_lput_staged(L, 3);
    struct put_errand *p = bough_errand_new(L, sizeof *p, "apply_files", put_push, put_clear);
    p->errand.cancel = put_cancel;
    if (strlen(uuid) != BOUGH_UUID_SIZE - 1)
        return bough_lerr(L, BOUGH_ERR_invalid, "apply_files", "\"%s\" is not a uuid", uuid);
    memcpy(p->image.parent, uuid, BOUGH_UUID_SIZE);
    strcpy(p->image.origin, "files");
    bough_uuid_make(p->image.uuid);
    bough_hold_add(p->errand.engine, &p->errand.hold, p->image.uuid);
    if (lua_istable(L, 4)) {
        lua_pushvalue(L, 4);
        p->image.tag = item_text(L, "tag", NULL);
        p->image.command = item_text(L, "command", NULL);
        lua_pop(L, 1);
    }
    bough_errand_hold(&p->errand);
    p->put = bough_put_start(p->errand.engine, staged, p->image.parent, put_done, p);
    if (!p->put) {
        bough_errand_release(&p->errand);
        return luaL_error(L, "not enough memory");
    }
    return 1;
}

/* -- uploads ------------------------------------------------------------------------------------- */

static void upload_work(struct bough_job *job)
{
    struct stage_errand *s = (struct stage_errand *)job;
    struct bough_stage *stage = &s->staged->stage;
    s->errand.rc = bough_stage_upload(stage, &stage->items[0], &s->errand.err);
}

static void upload_push(lua_State *L, struct bough_errand *e)
{
    const struct bough_stage_item *item = &((struct stage_errand *)e)->staged->stage.items[0];
    lua_createtable(L, 0, 3);
    bough_set_text(L, "sha256", item->hex);
    bough_set_integer(L, "size", item->size);
    bough_set_boolean(L, "new", e->rc == 1);
}

/* engine:upload(item) -> job */
int bough_lput_upload(lua_State *L)
{
    lua_settop(L, 2);
    struct stage_errand *s = stage_errand(L, "upload", upload_push);
    struct bough_stage *stage = &s->staged->stage;
    stage->items = calloc(2, sizeof *stage->items);
    if (!stage->items)
        return luaL_error(L, "not enough memory");
    stage->count = 1;
    lua_pushvalue(L, 2);
    luaL_checktype(L, -1, LUA_TTABLE);
    lua_pushliteral(L, "/upload"); /* it has no place yet, which item_read asks for */
    lua_setfield(L, -2, "path");
    item_read(L, &stage->items[0]);
    lua_pop(L, 1);
    bough_errand_work(&s->errand, upload_work, NULL);
    return 1;
}

static void work_has_file(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    char name[BOUGH_BLOB_NAME];
    BOUGH_CLEANUP_FD int blobs = bough_blobs_open(bough_store_home(q->engine->store), &q->err);
    q->rc = blobs < 0 ? -1 : bough_blob_find(blobs, q->ref, name, &q->err);
}

static int has_file_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct bough_question *q = bough_question_top(L);
    BOUGH_NOT_YET(L, q, has_file_k);
    lua_pushboolean(L, q->rc == 1);
    return 1;
}

/* engine:has_file(sha256) -> boolean */
int bough_lput_has_file(lua_State *L)
{
    struct bough_question *q = bough_question_ask(L, "exists");
    q->ref = bough_arg_copy(L, 2);
    return bough_question_wait(L, q, work_has_file, has_file_k);
}

void bough_lput_register(lua_State *L)
{
    static const luaL_Reg meta[] = {
        {"__gc", staged_close}, {"__close", staged_close}, {"__index", staged_index}, {NULL, NULL}};
    if (luaL_newmetatable(L, BOUGH_STAGED))
        luaL_setfuncs(L, meta, 0);
    lua_pop(L, 1);
}
