/* lsink.c - `core.sink`: a local file that a download, or whatever a caller writes, goes into, with its digest. */
#define _GNU_SOURCE
#include <string.h>

#include <lauxlib.h>

#include "lcore.h"
#include "lhttp.h"
#include "ltask.h"
#include "lwait.h"

#define WRITE_BYTES ((size_t)256 << 10) /* taken at a time: less than a spool's buffer */

struct sink {
    struct bough_spool *spool; /* NULL once it is closed */
};

static const char *path_check(lua_State *L, int arg)
{
    size_t size = 0;
    const char *path = lua_type(L, arg) == LUA_TSTRING ? lua_tolstring(L, arg, &size) : NULL;
    if (!path || size == 0 || strlen(path) != size)
        bough_lerr(L, BOUGH_ERR_invalid, "sink", "expected the path of a file, not %s",
                   path ? "an odd string" : luaL_typename(L, arg));
    return path;
}

struct bough_spool *bough_sink_check(lua_State *L, int arg, const char *op)
{
    const struct sink *sink = luaL_testudata(L, arg, BOUGH_SINK);
    if (!sink)
        bough_lerr(L, BOUGH_ERR_invalid, op, "expected a sink, not %s", luaL_typename(L, arg));
    else if (!sink->spool)
        bough_lerr(L, BOUGH_ERR_closed, op, "the sink is closed");
    return sink ? sink->spool : NULL;
}

/* Waits until nothing is to be written; raises what went wrong. Leaves the sink alone on the stack. */
static struct bough_spool *settled(lua_State *L, lua_KContext ctx, lua_KFunction k, bool *waited,
                                   int *result)
{
    struct bough_spool *spool = bough_sink_check(L, 1, "sink");
    *waited = spool->busy;
    if (spool->busy)
        *result = bough_wait(L, &spool->changed, ctx, k);
    else if (spool->err.msg[0])
        bough_lerr_raise(L, &spool->err, "sink");
    return spool;
}

static int opened_k(lua_State *L, int status, lua_KContext ctx)
{
    bool waited;
    int result = 0;
    (void)status;
    settled(L, ctx, opened_k, &waited, &result);
    if (waited)
        return result;
    lua_settop(L, 1);
    return 1;
}

/* sink(path, { resume =, max_bytes = }?) -> sink. Waits. */
static int sink_new(lua_State *L)
{
    const char *path = path_check(L, 1);
    bool resume = false;
    int64_t max_bytes = -1;
    if (!lua_isnoneornil(L, 2)) {
        int is_integer;
        luaL_checktype(L, 2, LUA_TTABLE);
        lua_getfield(L, 2, "resume");
        resume = lua_toboolean(L, -1);
        if (lua_getfield(L, 2, "max_bytes") != LUA_TNIL) {
            max_bytes = lua_tointegerx(L, -1, &is_integer);
            if (!is_integer || max_bytes < 0)
                return bough_lerr(L, BOUGH_ERR_invalid, "sink", "max_bytes must be bytes, not %s",
                                  luaL_tolstring(L, -1, NULL));
        }
    }
    struct bough_core *core = bough_core(L);
    struct sink *sink = lua_newuserdatauv(L, sizeof *sink, 0);
    sink->spool = NULL;
    luaL_setmetatable(L, BOUGH_SINK);
    sink->spool = bough_spool_open(bough_core_loop(core), path, resume, max_bytes);
    if (!sink->spool)
        return luaL_error(L, "not enough memory");
    lua_replace(L, 1);
    lua_settop(L, 1);
    return opened_k(L, LUA_OK, 0);
}

static int sha256_k(lua_State *L, int status, lua_KContext ctx)
{
    bool waited;
    int result = 0;
    (void)status;
    const struct bough_spool *spool = settled(L, ctx, sha256_k, &waited, &result);
    if (waited)
        return result;
    char hex[BOUGH_SHA256_HEX];
    bough_spool_hex(spool, hex);
    lua_pushstring(L, hex);
    return 1;
}

/* sink:sha256() -> hex, of all that is in the file. Waits. */
static int sink_sha256(lua_State *L)
{
    luaL_checkudata(L, 1, BOUGH_SINK);
    lua_settop(L, 1);
    return sha256_k(L, LUA_OK, 0);
}

/* ctx: how much has been taken. */
static int write_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    size_t size, done = (size_t)ctx;
    const char *data = lua_tolstring(L, 2, &size);
    struct bough_spool *spool = bough_sink_check(L, 1, "sink");
    while (done < size) {
        size_t piece = size - done < WRITE_BYTES ? size - done : WRITE_BYTES;
        int taken = bough_spool_put(spool, data + done, piece);
        if (taken < 0)
            return bough_lerr_raise(L, &spool->err, "sink");
        if (taken == 0) /* only work under way takes the room */
            return bough_wait(L, &spool->changed, (lua_KContext)done, write_k);
        done += piece;
    }
    lua_settop(L, 1);
    return 1;
}

/* sink:write(data) -> sink. What it has taken is on its way to the file. Waits for room. One that is cancelled has taken
 * some of it. */
static int sink_write(lua_State *L)
{
    luaL_checkudata(L, 1, BOUGH_SINK);
    if (lua_type(L, 2) != LUA_TSTRING)
        return bough_lerr(L, BOUGH_ERR_invalid, "sink", "expected a string to write, not %s",
                          luaL_typename(L, 2));
    lua_settop(L, 2);
    return write_k(L, LUA_OK, 0);
}

static int reset_k(lua_State *L, int status, lua_KContext ctx)
{
    bool waited;
    int result = 0;
    (void)status;
    settled(L, ctx, reset_k, &waited, &result);
    return waited ? result : 0;
}

/* sink:reset(): empty again, whatever has gone wrong. Waits. */
static int sink_reset(lua_State *L)
{
    bough_spool_reset(bough_sink_check(L, 1, "sink"));
    lua_settop(L, 1);
    return reset_k(L, LUA_OK, 0);
}

static int close_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct sink *sink = lua_touserdata(L, 1);
    if (sink->spool && sink->spool->busy)
        return bough_wait(L, &sink->spool->changed, ctx, close_k);
    if (sink->spool)
        bough_spool_unref(sink->spool);
    sink->spool = NULL;
    return 0;
}

/* sink:close(): nothing is written to the file from now on. Waits for what is being written. */
static int sink_close(lua_State *L)
{
    const struct sink *sink = luaL_checkudata(L, 1, BOUGH_SINK);
    if (sink->spool)
        bough_spool_close(sink->spool);
    lua_settop(L, 1);
    return close_k(L, LUA_OK, 0);
}

static int sink_gc(lua_State *L)
{
    struct sink *sink = lua_touserdata(L, 1);
    if (sink->spool) {
        bough_spool_close(sink->spool);
        bough_spool_unref(sink->spool);
    }
    sink->spool = NULL;
    return 0;
}

/* Upvalue: the methods. */
static int sink_index(lua_State *L)
{
    const struct sink *sink = luaL_checkudata(L, 1, BOUGH_SINK);
    const char *name = lua_tostring(L, 2);
    if (name && strcmp(name, "size") == 0 && sink->spool) {
        lua_pushinteger(L, sink->spool->size);
    } else if (name && strcmp(name, "path") == 0 && sink->spool) {
        lua_pushstring(L, sink->spool->path);
    } else {
        lua_pushvalue(L, 2);
        lua_rawget(L, lua_upvalueindex(1));
    }
    return 1;
}

static int sink_tostring(lua_State *L)
{
    const struct sink *sink = luaL_checkudata(L, 1, BOUGH_SINK);
    if (sink->spool)
        lua_pushfstring(L, "sink %s (%I bytes)", sink->spool->path, (LUAI_UACINT)sink->spool->size);
    else
        lua_pushliteral(L, "sink (closed)");
    return 1;
}

void bough_lsink_register(lua_State *L)
{
    static const luaL_Reg meta[] = {
        {"__gc", sink_gc}, {"__close", sink_close}, {"__tostring", sink_tostring}, {NULL, NULL}};
    static const luaL_Reg methods[] = {{"write", sink_write},
                                       {"sha256", sink_sha256},
                                       {"reset", sink_reset},
                                       {"close", sink_close},
                                       {NULL, NULL}};
    bough_class_make(L, BOUGH_SINK, meta, methods, sink_index);
    lua_pushcfunction(L, sink_new);
    lua_setfield(L, -2, "sink");
}
