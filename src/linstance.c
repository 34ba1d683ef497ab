/* linstance.c - a running sandbox that hosts processes, as userdata: its life and its fields.
 *
 * It knows its engine's handle only as an object with fields and methods (close, hosts, live, stopped, closed), so it
 * serves every engine. What its methods do with the handle is in lua/bough/instance.lua. */
#include <string.h>

#include <lauxlib.h>

#include "lcore.h"
#include "lwait.h"

#define BOUGH_INSTANCE "bough.instance"

/* User values. */
enum { OF_HANDLE = 1, OF_METHODS, OF_FIELDS, OF_COUNT = OF_FIELDS };

struct instance {
    bool closed;
};

static struct instance *check(lua_State *L, const char *op)
{
    struct instance *i = luaL_testudata(L, 1, BOUGH_INSTANCE);
    if (!i)
        bough_lerr(L, BOUGH_ERR_invalid, op,
                   "called on %s instead of an instance: write instance:%s(...)",
                   luaL_typename(L, 1), op);
    return i;
}

/* Pushes handle[name]. */
static int handle_get(lua_State *L, const char *name)
{
    lua_getiuservalue(L, 1, OF_HANDLE);
    int type = lua_getfield(L, -1, name);
    lua_remove(L, -2);
    return type;
}

static bool handle_is(lua_State *L, const char *name)
{
    handle_get(L, name);
    bool is = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return is;
}

static const char *state(lua_State *L, const struct instance *i)
{
    if (i->closed || handle_is(L, "closed"))
        return "closed";
    if (handle_is(L, "stopped"))
        return "stopped";
    return handle_is(L, "hosts") ? "running" : "stopping";
}

/* instance:close(): ends it, and what was not committed is gone. Never waits. */
static int instance_close(lua_State *L)
{
    struct instance *i = check(L, "close");
    if (i->closed)
        return 0;
    i->closed = true;
    lua_settop(L, 1);
    handle_get(L, "close");
    lua_getiuservalue(L, 1, OF_HANDLE);
    lua_call(L, 1, 0);
    return 0;
}

static int instance_gc(lua_State *L)
{
    struct instance *i = check(L, "close");
    i->closed = true; /* the handle has a finaliser of its own */
    return 0;
}

/* Upvalue 1: the methods of all. */
static int instance_index(lua_State *L)
{
    const struct instance *i = check(L, "index");
    lua_settop(L, 2);
    lua_pushvalue(L, 2);
    if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
        return 1;
    for (int from = OF_METHODS; from <= OF_FIELDS; from++) {
        lua_getiuservalue(L, 1, from);
        lua_pushvalue(L, 2);
        if (lua_gettable(L, -2) != LUA_TNIL)
            return 1;
    }
    const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
    if (strcmp(key, "state") == 0)
        lua_pushstring(L, state(L, i));
    else if (strcmp(key, "live") == 0 || strcmp(key, "timed_out") == 0 || strcmp(key, "oom") == 0)
        handle_get(L, key);
    else
        lua_pushnil(L);
    return 1;
}

static int instance_newindex(lua_State *L)
{
    return bough_lerr(L, BOUGH_ERR_invalid, NULL,
                      "instance.%s: fields of an instance cannot be set",
                      luaL_tolstring(L, 2, NULL));
}

static int instance_tostring(lua_State *L)
{
    const struct instance *i = check(L, "tostring");
    const char *how = state(L, i);
    lua_getiuservalue(L, 1, OF_FIELDS);
    lua_getfield(L, -1, "image");
    const char *image = luaL_tolstring(L, -1, NULL);
    handle_get(L, "live");
    lua_Integer live = lua_tointeger(L, -1);
    if (strcmp(how, "running") == 0)
        lua_pushfstring(L, "instance of %s, %d process%s", image, (int)live, live == 1 ? "" : "es");
    else
        lua_pushfstring(L, "instance of %s (%s)", image, how);
    return 1;
}

/* core.instance(handle, methods, fields): `methods` are functions of the instance, `fields` what can be read. */
static int core_instance(lua_State *L)
{
    luaL_checkany(L, 1);
    luaL_checktype(L, 2, LUA_TTABLE);
    luaL_checktype(L, 3, LUA_TTABLE);
    lua_settop(L, 3);
    struct instance *i = lua_newuserdatauv(L, sizeof *i, OF_COUNT);
    *i = (struct instance){0};
    for (int at = 1; at <= OF_COUNT; at++) {
        lua_pushvalue(L, at);
        lua_setiuservalue(L, 4, at);
    }
    luaL_setmetatable(L, BOUGH_INSTANCE);
    return 1;
}

/* [core table on top] -> the same, with `instance` */
void bough_open_instance(lua_State *L)
{
    static const luaL_Reg methods[] = {{"close", instance_close}, {NULL, NULL}};
    static const luaL_Reg meta[] = {
        {"__newindex", instance_newindex},
        {"__tostring", instance_tostring},
        {"__close", instance_close},
        {"__gc", instance_gc},
        {NULL, NULL},
    };
    luaL_newmetatable(L, BOUGH_INSTANCE);
    luaL_setfuncs(L, meta, 0);
    luaL_newlib(L, methods);
    lua_pushcclosure(L, instance_index, 1);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
    lua_pushcfunction(L, core_instance);
    lua_setfield(L, -2, "instance");
}
