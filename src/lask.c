/* lask.c - what can be asked of the embedded engine's store: images, tags, gc, info. */
#define _GNU_SOURCE
#include "lask.h"
#include "ljob.h"

#include <stdio.h>
#include <string.h>

#include "local/blob.h"
#include "sys.h"

#define QUESTION "bough.question"

void bough_question_unref(struct bough_question *q)
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
    free(q->data);
    free(q->ref);
    free(q->path);
    free(q->tag);
    free(q->filter_tag);
    free(q->filter_glob);
    free(q->filter_first);
    free(q->filter_parent);
    free(q->filter_uuid);
    for (char **k = q->keep; k && *k; k++)
        free(*k);
    free(q->keep);
    if (q->leased > 0)
        bough_engine_release_layer(q->engine, q->leased);
    bough_cond_destroy(&q->done_cond);
    bough_engine_unref(q->engine);
    free(q);
}

static int question_gc(lua_State *L)
{
    struct bough_question **box = luaL_checkudata(L, 1, QUESTION);
    if (*box)
        bough_question_unref(*box);
    *box = NULL;
    return 0;
}

/* Pushes its userdata. */
struct bough_question *bough_question_ask(lua_State *L, const char *op)
{
    struct bough_engine *engine = bough_local_check(L, op);
    struct bough_question **box = lua_newuserdatauv(L, sizeof *box, 0);
    *box = NULL;
    luaL_setmetatable(L, QUESTION);
    struct bough_question *q = calloc(1, sizeof *q);
    if (!q)
        luaL_error(L, "not enough memory");
    q->refs = 1;
    q->op = op;
    q->fd = -1;
    q->engine = engine;
    bough_engine_ref(engine);
    bough_cond_init(&q->done_cond, engine->loop);
    *box = q;
    return q;
}

struct bough_question *bough_question_top(lua_State *L)
{
    return *(struct bough_question **)luaL_checkudata(L, -1, QUESTION);
}

void bough_question_answered(struct bough_question *q)
{
    q->done = true;
    bough_cond_fire(&q->done_cond);
    bough_question_unref(q);
}

void bough_question_after(struct bough_job *job)
{
    bough_question_answered((struct bough_question *)job);
}

/* Starts the job and waits; `k` pushes the answer (or raises what went wrong). */
int bough_question_wait(lua_State *L, struct bough_question *q, void (*work)(struct bough_job *),
                        lua_KFunction k)
{
    q->refs++;
    bough_job_start(q->engine, &q->job, work, bough_question_after);
    return k(L, LUA_OK, 0);
}

char *bough_arg_copy(lua_State *L, int index)
{
    char *copy = strdup(luaL_checkstring(L, index));
    if (!copy)
        luaL_error(L, "not enough memory");
    return copy;
}

/* -- the store alone --------------------------------------------------------------------------- */

static void work_get(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    q->rc = bough_store_get(q->engine->store, q->ref, &q->image, &q->err);
}

static int resolve_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct bough_question *q = bough_question_top(L);
    BOUGH_NOT_YET(L, q, resolve_k);
    if (q->rc == 0)
        lua_pushnil(L);
    else
        bough_lrow_push(L, &q->image);
    return 1;
}

static void work_cached(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    q->rc = bough_store_cached(q->engine->store, q->ref, &q->image, &q->err);
}

/* engine:cached(key) -> row or nil */
static int ask_cached(lua_State *L)
{
    struct bough_question *q = bough_question_ask(L, "run");
    q->ref = bough_arg_copy(L, 2);
    return bough_question_wait(L, q, work_cached, resolve_k);
}

static int ask_resolve(lua_State *L)
{
    struct bough_question *q = bough_question_ask(L, "use");
    q->ref = bough_arg_copy(L, 2);
    return bough_question_wait(L, q, work_get, resolve_k);
}

static char *filter_text(lua_State *L, const char *name)
{
    char *copy = NULL;
    if (lua_getfield(L, 2, name) == LUA_TSTRING)
        copy = bough_arg_copy(L, -1);
    lua_pop(L, 1);
    return copy;
}

static int64_t filter_time(lua_State *L, const char *name)
{
    lua_getfield(L, 2, name);
    double seconds = lua_tonumber(L, -1);
    lua_pop(L, 1);
    return seconds > 9e12 || seconds < -9e12
               ? INT64_MAX
               : (int64_t)(seconds * 1e6 + (seconds < 0 ? -0.5 : 0.5));
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
    struct bough_question *q = (struct bough_question *)job;
    q->count = bough_store_list(q->engine->store, &q->filter, &q->images, &q->err);
    q->rc = q->count < 0 ? -1 : 0;
    if (q->count < 0)
        q->count = 0;
}

static int list_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct bough_question *q = bough_question_top(L);
    BOUGH_NOT_YET(L, q, list_k);
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
    struct bough_question *q = bough_question_ask(L, "list");
    q->filter_tag = filter_text(L, "tag");
    q->filter_glob = filter_text(L, "tag_glob");
    q->filter_first = filter_text(L, "tag_first");
    q->filter_parent = filter_text(L, "parent");
    q->filter_uuid = filter_text(L, "uuid_prefix");
    q->filter = (struct bough_filter){
        .tag = q->filter_tag,
        .tag_glob = q->filter_glob,
        .tag_first = q->filter_first,
        .parent = q->filter_parent,
        .uuid_prefix = q->filter_uuid,
        .tagged = filter_flag(L, "tagged"),
        .since_us = filter_time(L, "since"),
        .before_us = filter_time(L, "before"),
        .limit = filter_count(L, "limit"),
        .offset = filter_count(L, "offset"),
        .oldest_first = filter_flag(L, "oldest_first"),
        .brief = filter_flag(L, "brief"),
    };
    return bough_question_wait(L, q, work_list, list_k);
}

static int nothing_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct bough_question *q = bough_question_top(L);
    BOUGH_NOT_YET(L, q, nothing_k);
    return 0;
}

static void work_tag(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    q->rc = bough_store_tag(q->engine->store, q->ref, q->tag, &q->err);
}

static int ask_tag(lua_State *L)
{
    struct bough_question *q = bough_question_ask(L, "tag_as");
    q->ref = bough_arg_copy(L, 2);
    q->tag = bough_arg_copy(L, 3);
    return bough_question_wait(L, q, work_tag, nothing_k);
}

static void work_untag(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    q->rc = bough_store_untag(q->engine->store, q->ref, &q->err);
}

static int ask_untag(lua_State *L)
{
    struct bough_question *q = bough_question_ask(L, "untag");
    q->ref = bough_arg_copy(L, 2);
    return bough_question_wait(L, q, work_untag, nothing_k);
}

static void work_remove(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    q->rc = bough_store_remove(q->engine->store, q->ref, &q->err);
}

static int ask_remove(lua_State *L)
{
    struct bough_question *q = bough_question_ask(L, "remove");
    q->ref = bough_arg_copy(L, 2);
    return bough_question_wait(L, q, work_remove, nothing_k);
}

/* -- gc ---------------------------------------------------------------------------------------- */

/* Contents that no layer links to any more; those that a removed layer had are found once it is gone. */
static void work_sweep_blobs(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    int64_t count = 0, bytes = 0;
    BOUGH_CLEANUP_FD int blobs = bough_blobs_open(bough_store_home(q->engine->store), NULL);
    if (blobs >= 0) /* their bytes have been counted with the layers that had them */
        bough_blobs_sweep(blobs, q->dry, &count, &bytes, NULL);
}

static void gc_sweep(struct bough_question *q)
{
    if (q->engine->closed)
        bough_question_answered(q);
    else
        bough_job_start(q->engine, &q->job, work_sweep_blobs, bough_question_after);
}

static bool gc_removed(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    /* The rows are gone; a tree that stayed is found by the next sweep. */
    (void)msg;
    (void)err;
    gc_sweep(arg);
    return false;
}

static void gc_dropped(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    struct bough_engine *engine = q->engine;
    char **names = q->rc == 0 && q->gc.trash_count > 0
                       ? calloc((size_t)q->gc.trash_count + 1, sizeof *names)
                       : NULL;
    if (!names) {
        if (q->rc < 0)
            bough_question_answered(q);
        else
            gc_sweep(q);
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
        bough_question_answered(q);
    bough_engine_kick(engine);
    bough_wbuf_free(&body);
    for (char **n = names; *n; n++)
        free(*n);
    free(names);
}

static void work_gc(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
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
    struct bough_question *q = bough_question_top(L);
    BOUGH_NOT_YET(L, q, gc_k);
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
    struct bough_question *q = bough_question_ask(L, "gc");
    lua_Unsigned named = lua_istable(L, 2) ? lua_rawlen(L, 2) : 0, count = 0;
    for (struct bough_run *run = q->engine->runs; run; run = run->next)
        count += 2;
    for (struct bough_hold *hold = q->engine->holds; hold; hold = hold->next)
        count++;
    q->keep = calloc(named + count + 1, sizeof *q->keep);
    if (!q->keep)
        return luaL_error(L, "not enough memory");
    for (count = 0; count < named; count++) {
        lua_rawgeti(L, 2, (lua_Integer)count + 1);
        q->keep[count] = bough_arg_copy(L, -1);
        lua_pop(L, 1);
    }
    q->dry = lua_toboolean(L, 3);
    bough_store_gc_mark(q->engine->store); /* nothing from here on to the job may raise */
    for (struct bough_hold *hold = q->engine->holds; hold; hold = hold->next)
        if ((q->keep[count] = strdup(hold->uuid)) != NULL)
            count++;
    /* Runs in flight are about to make images, and their parents are in use. */
    for (struct bough_run *run = q->engine->runs; run; run = run->next) {
        const char *const uuids[] = {run->parent, run->image.uuid};
        for (int i = 0; i < 2; i++)
            if (uuids[i][0] && !run->collected && run->state != BOUGH_RUN_FAILED &&
                (q->keep[count] = strdup(uuids[i])) != NULL)
                count++;
    }
    q->refs++;
    bough_job_start(q->engine, &q->job, work_gc, gc_dropped);
    return gc_k(L, LUA_OK, 0);
}

/* -- info -------------------------------------------------------------------------------------- */

static void work_info(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    q->rc = bough_store_info(q->engine->store, &q->info, &q->err);
}

static int info_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct bough_question *q = bough_question_top(L);
    BOUGH_NOT_YET(L, q, info_k);
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
        bough_set_text(L, "home", bough_store_home(engine->store));
    bough_set_integer(L, "keeper_pid", engine->keeper_pid);
    bough_set_integer(L, "images", q->info.images);
    bough_set_integer(L, "tags", q->info.tags);
    bough_set_integer(L, "layers", q->info.layers);
    bough_set_integer(L, "stand_ins", q->info.stand_ins);
    bough_set_integer(L, "bytes", q->info.bytes);
    bough_set_boolean(L, "compacting", engine->merging);
    if (engine->store) {
        lua_pushfstring(L, "%s/tmp/%s", bough_store_home(engine->store),
                        bough_store_owner(engine->store));
        lua_setfield(L, -2, "scratch");
    }
    return 1;
}

static int ask_info(lua_State *L)
{
    struct bough_question *q = bough_question_ask(L, "info");
    return bough_question_wait(L, q, work_info, info_k);
}

const luaL_Reg bough_lask_methods[] = {
    {"resolve", ask_resolve},
    {"list", ask_list},
    {"tag", ask_tag},
    {"untag", ask_untag},
    {"remove", ask_remove},
    {"gc", ask_gc},
    {"cached", ask_cached},
    {"read", bough_ask_read},
    {"list_dir", bough_ask_list_dir},
    {"open", bough_ask_open},
    {"save", bough_ask_save},
    {"extract", bough_ask_extract},
    {"look", bough_lsearch_look},
    {"import", bough_ask_import},
    {"stage", bough_lput_stage},
    {"put_files", bough_lput_files},
    {"upload", bough_lput_upload},
    {"has_file", bough_lput_has_file},
    {"info", ask_info},
    {NULL, NULL},
};

void bough_lask_register(lua_State *L)
{
    static const luaL_Reg meta[] = {{"__gc", question_gc}, {NULL, NULL}};
    if (luaL_newmetatable(L, QUESTION))
        luaL_setfuncs(L, meta, 0);
    lua_pop(L, 1);
    bough_ljob_register(L);
    bough_llook_register(L);
    bough_lput_register(L);
    bough_lsearch_register(L);
}
