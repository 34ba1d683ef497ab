/* lhost.c - plain commands of the host as processes. */
#include "lhost.h"

#include <limits.h>

#include "lcore.h"
#include "llocal.h"

#define SPAWNER "bough.spawner"

/* Its address is the key in the registry. */
static const char spawner_key = 0;

static int spawner_gc(lua_State *L)
{
    struct bough_spawner **box = luaL_checkudata(L, 1, SPAWNER);
    bough_spawner_free(*box);
    *box = NULL;
    return 0;
}

struct bough_spawner *bough_host_spawner(lua_State *L)
{
    char path[PATH_MAX];
    struct bough_err err;
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &spawner_key) == LUA_TNIL) {
        lua_pop(L, 1);
        struct bough_spawner **box = lua_newuserdatauv(L, sizeof *box, 0);
        *box = NULL;
        luaL_setmetatable(L, SPAWNER);
        lua_pushvalue(L, -1);
        lua_rawsetp(L, LUA_REGISTRYINDEX, &spawner_key);
    }
    struct bough_spawner **box = lua_touserdata(L, -1);
    lua_pop(L, 1);
    if (*box && bough_spawner_alive(*box))
        return *box;
    bough_spawner_free(*box);
    *box = NULL;
    bough_lprogram_find(L, NULL, "BOUGH_SPAWN", "bough-spawn", path, "host");
    *box = bough_spawner_new(bough_core_loop(bough_core(L)), path, &err);
    if (!*box)
        bough_lerr_raise(L, &err, "host");
    return *box;
}

/* core.host_exec(spec) -> child: a plain command of the host, with its environment (spec.env over it), in its working
 * directory unless spec.cwd says otherwise, and with its own files. */
static int host_exec(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    return bough_lchild_push(L, bough_spawner_crew(bough_host_spawner(L)), 1, true);
}

void bough_open_host(lua_State *L)
{
    if (luaL_newmetatable(L, SPAWNER)) {
        lua_pushcfunction(L, spawner_gc);
        lua_setfield(L, -2, "__gc");
    }
    lua_pop(L, 1);
    lua_pushcfunction(L, host_exec);
    lua_setfield(L, -2, "host_exec");
}
