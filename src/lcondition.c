/* lcondition.c - something that happens, for Lua code to wait on: `core.condition`. Unlike a task or a lock it works
 * wherever there is a wait, private ones too, as long as whoever fires it runs there. */
#define _GNU_SOURCE
#include <string.h>

#include <lauxlib.h>

#include "lcore.h"
#include "ltask.h"
#include "lwait.h"
#include "sys.h"

#define CONDITION_NAME "bough.condition"

static struct bough_cond *condition_check(lua_State *L)
{
    struct bough_cond *cond = luaL_testudata(L, 1, CONDITION_NAME);
    if (!cond)
        bough_lerr(L, BOUGH_ERR_invalid, "condition", "expected a condition, not %s",
                   luaL_typename(L, 1));
    return cond;
}

/* Stack: the condition, the instant, how often it had fired. */
static int wait_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_cond *cond = lua_touserdata(L, 1);
    int64_t until_ns = (int64_t)lua_tointeger(L, 2);
    bool fired = cond->fired != (uint64_t)lua_tointeger(L, 3);
    if (!fired && bough_now_ns() < until_ns)
        return bough_wait_until(L, cond, until_ns, ctx, wait_k);
    lua_pushboolean(L, fired);
    return 1;
}

/* condition:wait(seconds?) -> whether it fired since the call; false when they have passed first */
static int condition_wait(lua_State *L)
{
    const struct bough_cond *cond = condition_check(L);
    int64_t until_ns =
        lua_isnoneornil(L, 2) ? INT64_MAX : bough_check_until(L, 2, "condition:wait", true);
    lua_settop(L, 1);
    lua_pushinteger(L, (lua_Integer)until_ns);
    lua_pushinteger(L, (lua_Integer)cond->fired);
    return wait_k(L, LUA_OK, 0);
}

static int condition_fire(lua_State *L)
{
    struct bough_cond *cond = condition_check(L);
    bough_core(L); /* raises when there is no loop any more */
    bough_cond_fire(cond);
    return 0;
}

static int condition_gc(lua_State *L)
{
    struct bough_cond *cond = lua_touserdata(L, 1);
    if (cond->waiters) /* nobody can reach it any more: what waits is dropped with it */
        bough_cond_destroy(cond);
    return 0;
}

static int condition_tostring(lua_State *L)
{
    const struct bough_cond *cond = condition_check(L);
    lua_pushstring(L, cond->waiters ? "condition (waited for)" : "condition");
    return 1;
}

static int condition_new(lua_State *L)
{
    struct bough_core *core = bough_core(L);
    struct bough_cond *cond = lua_newuserdatauv(L, sizeof *cond, 0);
    bough_cond_init(cond, bough_core_loop(core));
    luaL_setmetatable(L, CONDITION_NAME);
    return 1;
}

void bough_open_condition(lua_State *L)
{
    static const luaL_Reg meta[] = {
        {"__gc", condition_gc}, {"__tostring", condition_tostring}, {NULL, NULL}};
    static const luaL_Reg methods[] = {
        {"wait", condition_wait}, {"fire", condition_fire}, {NULL, NULL}};
    bough_class_make(L, CONDITION_NAME, meta, methods, NULL);
    lua_pushcfunction(L, condition_new);
    lua_setfield(L, -2, "condition");
}
