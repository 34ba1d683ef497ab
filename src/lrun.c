/* lrun.c - a run as userdata: start, wait, close, and the functions that take its output or give its input.
 *
 * Such functions are Lua, so they are called by whoever waits for the run, in that coroutine,
 * never from the loop. User values: 1 the spec (anchors the functions), 2 an unfinished line of stdout, 3 of stderr. */
#define _GNU_SOURCE
#include <string.h>

#include "llocal.h"

struct lrun {
    struct bough_run *run; /* NULL when closed and let go */
    bool lines;            /* functions get whole lines */
    bool serving;          /* one waiter at a time calls the functions */
};

static struct lrun *check(lua_State *L)
{
    return luaL_checkudata(L, 1, BOUGH_RUN);
}

static const char *const sink_names[] = {"stdout", "stderr"};

static int serve(lua_State *L, struct lrun *l);

/* -- starting ---------------------------------------------------------------------------------- */

static int start_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct lrun *l = luaL_checkudata(L, -1, BOUGH_RUN);
    struct bough_run *run = l->run;
    if (run->state == BOUGH_RUN_FAILED)
        return bough_lerr_raise(L, &run->err, "run");
    if (run->state < BOUGH_RUN_RUNNING)
        return bough_wait(L, &run->changed, ctx, start_k);
    return 1;
}

int bough_lrun_start(lua_State *L)
{
    struct bough_engine *engine = bough_local_check(L, "run");
    const char *uuid = luaL_checkstring(L, 2);
    luaL_checktype(L, 3, LUA_TTABLE);
    lua_settop(L, 3);
    struct lrun *l = lua_newuserdatauv(L, sizeof *l, 3);
    *l = (struct lrun){0};
    luaL_setmetatable(L, BOUGH_RUN);
    l->run = bough_run_new(engine);
    if (!l->run)
        return luaL_error(L, "not enough memory");
    if (!bough_uuid_valid(uuid))
        return bough_lerr(L, BOUGH_ERR_invalid, "run", "\"%s\" is not a uuid", uuid);
    for (int i = 0; i < BOUGH_UUID_SIZE - 1; i++)
        l->run->parent[i] = (char)(uuid[i] >= 'A' && uuid[i] <= 'F' ? uuid[i] + 32 : uuid[i]);
    bough_lspec_read(L, 3, l->run);
    lua_pushvalue(L, 3);
    lua_setiuservalue(L, 4, 1);
    lua_getfield(L, 3, "text");
    l->lines = lua_type(L, -1) == LUA_TSTRING && strcmp(lua_tostring(L, -1), "lines") == 0;
    lua_pop(L, 1);
    lua_getfield(L, 3, "eager");
    l->run->eager = lua_toboolean(L, -1);
    lua_pop(L, 1);
    if (lua_getfield(L, 3, "files") == LUA_TUSERDATA) {
        l->run->staged = bough_lput_staged(L, -1);
        l->run->staged->refs++;
    }
    lua_pop(L, 1);
    bough_run_start(l->run);
    return l->run->eager ? 1 : start_k(L, LUA_OK, 0);
}

/* -- functions for output and input ------------------------------------------------------------ */

static bool has_work(const struct bough_run *run)
{
    for (int i = 0; i < 2; i++)
        if (run->out[i].sink == BOUGH_SINK_TAKE && run->out[i].size > 0)
            return true;
    return run->in.source == BOUGH_SOURCE_GIVE && run->in.wants && !run->in.ended;
}

static int rethrow(lua_State *L, struct lrun *l)
{
    l->serving = false;
    bough_cond_fire(&l->run->changed);
    bough_run_close(l->run);
    return lua_error(L);
}

static int wait_k(lua_State *L, int status, lua_KContext ctx);

/* ctx of a call that is under way: which stream it serves. */
enum { CALL_STDOUT = 1, CALL_STDERR, CALL_STDIN };

static int called_k(lua_State *L, int status, lua_KContext ctx)
{
    struct lrun *l = check(L);
    if (status != LUA_OK && status != LUA_YIELD)
        return rethrow(L, l);
    if (ctx == CALL_STDIN) {
        size_t size = 0;
        const char *data = "";
        if (lua_type(L, -1) == LUA_TSTRING)
            data = lua_tolstring(L, -1, &size);
        else if (!lua_isnil(L, -1) && lua_toboolean(L, -1)) {
            struct bough_err err;
            bough_err_set(&err, BOUGH_ERR_invalid,
                          "the function given for stdin must return a string or nil, got %s",
                          luaL_typename(L, -1));
            bough_lerr_push(L, &err, "run");
            return rethrow(L, l);
        }
        bough_in_give(&l->run->in, data, size);
        lua_settop(L, 1);
    }
    lua_settop(L, 1);
    l->serving = false;
    bough_cond_fire(&l->run->changed); /* for others who wait */
    return wait_k(L, LUA_OK, 0);
}

/* Calls the function of stream `which` with the text at the top. */
static int call_sink(lua_State *L, struct lrun *l, int which)
{
    l->serving = true;
    lua_getiuservalue(L, 1, 1);
    lua_getfield(L, -1, sink_names[which]);
    lua_remove(L, -2);
    lua_insert(L, -2);
    return called_k(L, lua_pcallk(L, 1, 0, 0, which + 1, called_k), which + 1);
}

/* Takes whole lines out of what has come: pushes the next one without its newline, or returns false. */
static bool next_line(lua_State *L, struct bough_run *run, int which)
{
    struct bough_out *out = &run->out[which];
    char *newline = out->size ? memchr(out->data, '\n', out->size) : NULL;
    size_t used = newline ? (size_t)(newline - out->data) + 1 : out->size;
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    lua_getiuservalue(L, 1, which + 2);
    if (lua_isnil(L, -1))
        lua_pop(L, 1);
    else
        luaL_addvalue(&b);
    luaL_addlstring(&b, out->data, newline ? used - 1 : used);
    luaL_pushresult(&b);
    memmove(out->data, out->data + used, out->size - used);
    out->size -= used;
    bool is_line = newline != NULL;
    if (is_line)
        lua_pushnil(L);
    else
        lua_pushvalue(L, -1);
    lua_setiuservalue(L, 1, which + 2);
    if (out->size == 0)
        bough_out_taken(out);
    if (!is_line)
        lua_pop(L, 1);
    return is_line;
}

static int serve(lua_State *L, struct lrun *l)
{
    struct bough_run *run = l->run;
    for (int i = 0; i < 2; i++) {
        struct bough_out *out = &run->out[i];
        if (out->sink != BOUGH_SINK_TAKE || out->size == 0)
            continue;
        if (!l->lines) {
            lua_pushlstring(L, out->data, out->size);
            bough_out_taken(out);
            return call_sink(L, l, i);
        }
        if (next_line(L, run, i))
            return call_sink(L, l, i);
        return wait_k(L, LUA_OK, 0);
    }
    l->serving = true;
    lua_getiuservalue(L, 1, 1);
    lua_getfield(L, -1, "stdin");
    lua_remove(L, -2);
    return called_k(L, lua_pcallk(L, 0, 1, 0, CALL_STDIN, called_k), CALL_STDIN);
}

/* A last line without its newline. */
static bool last_line(lua_State *L, struct lrun *l, int *which)
{
    for (int i = 0; i < 2; i++) {
        if (l->run->out[i].sink != BOUGH_SINK_TAKE || !l->run->out[i].eof)
            continue;
        if (lua_getiuservalue(L, 1, i + 2) == LUA_TSTRING && lua_rawlen(L, -1) > 0) {
            lua_pushnil(L);
            lua_setiuservalue(L, 1, i + 2);
            *which = i;
            return true;
        }
        lua_pop(L, 1);
    }
    return false;
}

/* -- waiting ----------------------------------------------------------------------------------- */

static int wait_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct lrun *l = check(L);
    struct bough_run *run = l->run;
    if (!l->serving && has_work(run))
        return serve(L, l);
    if (run->state == BOUGH_RUN_FAILED)
        return bough_lerr_raise(L, &run->err, "run");
    bool drained = true;
    for (int i = 0; i < 2; i++)
        drained = drained && (run->out[i].sink != BOUGH_SINK_TAKE || run->out[i].eof);
    int which;
    if (drained && l->lines && !l->serving && last_line(L, l, &which))
        return call_sink(L, l, which);
    if (run->state != BOUGH_RUN_DONE || !drained || l->serving)
        return bough_wait(L, &run->changed, 0, wait_k);
    if (run->closed)
        return bough_lerr(L, BOUGH_ERR_cancelled, "run", "the run was closed");
    run->collected = true;
    bough_lrow_push(L, &run->image);
    return 1;
}

static int run_wait(lua_State *L)
{
    check(L);
    lua_settop(L, 1);
    return wait_k(L, LUA_OK, 0);
}

static int run_close(lua_State *L)
{
    struct lrun *l = check(L);
    if (l->run)
        bough_run_close(l->run);
    return 0;
}

static int run_gc(lua_State *L)
{
    struct lrun *l = check(L);
    if (l->run) {
        bough_run_close(l->run);
        bough_run_unref(l->run);
        l->run = NULL;
    }
    return 0;
}

static int run_tostring(lua_State *L)
{
    struct lrun *l = check(L);
    static const char *const states[] = {"preparing",  "starting", "running",
                                         "committing", "done",     "failed"};
    lua_pushfstring(L, "run (%s)",
                    !l->run          ? "closed"
                    : l->run->closed ? "closed"
                                     : states[l->run->state]);
    return 1;
}

static int run_index(lua_State *L)
{
    struct lrun *l = check(L);
    const char *key = luaL_checkstring(L, 2);
    if (strcmp(key, "running") == 0)
        lua_pushboolean(L, !bough_run_is_over(l->run));
    else if (strcmp(key, "pid") == 0 && l->run->pid)
        lua_pushinteger(L, l->run->pid);
    else
        lua_getfield(L, lua_upvalueindex(1), key);
    return 1;
}

void bough_lrun_register(lua_State *L)
{
    static const luaL_Reg methods[] = {{"wait", run_wait}, {"close", run_close}, {NULL, NULL}};
    static const luaL_Reg meta[] = {
        {"__gc", run_gc}, {"__close", run_close}, {"__tostring", run_tostring}, {NULL, NULL}};
    if (luaL_newmetatable(L, BOUGH_RUN)) {
        luaL_setfuncs(L, meta, 0);
        luaL_newlib(L, methods);
        lua_pushcclosure(L, run_index, 1);
        lua_setfield(L, -2, "__index");
    }
    lua_pop(L, 1);
}
