/* lcore.c - luaopen_bough_core: one core per Lua state, and all that is registered on it. */
#define _GNU_SOURCE
#include "lcore.h"

#include <lauxlib.h>

#include "ltask.h"

#define CONSTANT_NAME "bough.constant"

/* The key of the module table in the registry: a second require gets the same constants. */
static const char module_key = 0;

static int constant_tostring(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_rawgeti(L, 1, 1);
    return 1;
}

static int constant_newindex(lua_State *L)
{
    return luaL_error(L, "%s is a constant", luaL_tolstring(L, 1, NULL));
}

static void constant_add(lua_State *L, const char *name)
{
    lua_createtable(L, 1, 0);
    lua_pushfstring(L, "bough.%s", name);
    lua_rawseti(L, -2, 1);
    luaL_setmetatable(L, CONSTANT_NAME);
    lua_setfield(L, -2, name);
}

static void open_constants(lua_State *L)
{
    if (luaL_newmetatable(L, CONSTANT_NAME)) {
        lua_pushcfunction(L, constant_tostring);
        lua_setfield(L, -2, "__tostring");
        lua_pushcfunction(L, constant_newindex);
        lua_setfield(L, -2, "__newindex");
    }
    lua_pop(L, 1);
    constant_add(L, "PIPE");
    constant_add(L, "INHERIT");
    constant_add(L, "STDOUT");
}

LUAMOD_API int luaopen_bough_core(lua_State *L)
{
    luaL_checkversion(L);
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &module_key) == LUA_TTABLE)
        return 1;
    lua_pop(L, 1);
    lua_newtable(L);
    bough_open_error(L); /* first: whatever comes next may raise one */
    bough_core_open(L);
    bough_open_wait(L);
    bough_open_task(L);
    bough_open_watch(L);
    bough_open_queue(L);
    bough_open_condition(L);
    bough_open_poll(L);
    bough_open_stream(L);
    open_constants(L);
    bough_open_session(L);
    bough_open_process(L);
    bough_open_instance(L);
    bough_open_fs(L);
    bough_open_http(L);
    bough_open_codec(L);
    bough_open_local(L);
    bough_open_journal(L);
    bough_open_host(L);
    bough_open_child(L);
    bough_open_terminal(L);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &module_key);
    return 1;
}
