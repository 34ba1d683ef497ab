/* lrun.c - a run as userdata: start, wait, close. */
#define _GNU_SOURCE
#include <string.h>

#include "llocal.h"
#include "lserve.h"

struct lrun {
    struct bough_served served; /* first */
    struct bough_run *run;      /* NULL when closed and let go */
};

static struct lrun *check(lua_State *L)
{
    return luaL_checkudata(L, 1, BOUGH_RUN);
}

static void give_up(struct bough_served *served)
{
    bough_run_close(((struct lrun *)served)->run);
}

static int wait_k(lua_State *L, int status, lua_KContext ctx);

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
    struct lrun *l = lua_newuserdatauv(L, sizeof *l, BOUGH_SERVED_VALUES);
    *l = (struct lrun){0};
    luaL_setmetatable(L, BOUGH_RUN);
    l->run = bough_run_new(engine);
    if (!l->run)
        return luaL_error(L, "not enough memory");
    if (!bough_uuid_valid(uuid))
        return bough_lerr(L, BOUGH_ERR_invalid, "run", "\"%s\" is not a uuid", uuid);
    for (int i = 0; i < BOUGH_UUID_SIZE - 1; i++)
        l->run->parent[i] = (char)(uuid[i] >= 'A' && uuid[i] <= 'F' ? uuid[i] + 32 : uuid[i]);
    bough_lspec_run(L, 3, l->run);
    l->served = (struct bough_served){.streams = &l->run->streams,
                                      .changed = &l->run->changed,
                                      .go_on = wait_k,
                                      .args = 1,
                                      .give_up = give_up};
    bough_served_init(L, &l->served, 3);
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

/* -- waiting ----------------------------------------------------------------------------------- */

static int wait_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct lrun *l = check(L);
    struct bough_run *run = l->run;
    for (bool again = true; again;) {
        again = bough_served_due(&l->served);
        if (again)
            bough_served_call(L, &l->served);
        else if (run->state == BOUGH_RUN_FAILED)
            return bough_lerr_raise(L, &run->err, "run");
        else if (bough_served_drained(&l->served))
            again = bough_served_last(L, &l->served);
    }
    if (run->state != BOUGH_RUN_DONE || !bough_served_drained(&l->served))
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
    static const char *const states[] = {"preparing",  "starting", "running", "stopped",
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
