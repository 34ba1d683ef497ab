/* llocal.c - the embedded engine as userdata: open, close, and the table of its methods. */
#define _GNU_SOURCE
#include "llocal.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lcore.h"
#include "lhost.h"
#include "sys.h"

struct bough_engine *bough_local_check(lua_State *L, const char *op)
{
    struct local *local = luaL_checkudata(L, 1, BOUGH_LOCAL);
    if (!local->engine || local->engine->closed)
        bough_lerr(L, BOUGH_ERR_closed, op, "the engine is closed");
    if (local->engine->gone)
        bough_lerr(L, BOUGH_ERR_closed, op,
                   "the keeper of this engine has ended; open the engine again");
    return local->engine;
}

/* -- open -------------------------------------------------------------------------------------- */

static void find_program(lua_State *L, const char *option, const char *variable, const char *name,
                         char *path)
{
    bool given = lua_getfield(L, 1, option) == LUA_TSTRING;
    bough_lprogram_find(L, given ? lua_tostring(L, -1) : NULL, variable, name, path, "open");
    lua_pop(L, 1);
}

static void find_home(lua_State *L, char *home)
{
    const char *given =
        lua_getfield(L, 1, "home") == LUA_TSTRING ? lua_tostring(L, -1) : getenv("BOUGH_HOME");
    const char *xdg = getenv("XDG_DATA_HOME"), *user = getenv("HOME");
    if (given && *given)
        snprintf(home, PATH_MAX, "%s", given);
    else if (xdg && xdg[0] == '/')
        snprintf(home, PATH_MAX, "%s/bough", xdg);
    else if (user && user[0] == '/')
        snprintf(home, PATH_MAX, "%s/.local/share/bough", user);
    else
        bough_lerr(L, BOUGH_ERR_invalid, "open", "no place for the store: set BOUGH_HOME or HOME");
    lua_pop(L, 1);
    if (home[0] != '/') {
        char here[PATH_MAX], whole[PATH_MAX];
        if (!getcwd(here, sizeof here) ||
            snprintf(whole, sizeof whole, "%s/%s", here, home) >= PATH_MAX)
            bough_lerr(L, BOUGH_ERR_invalid, "open", "the path of the store is too long");
        strcpy(home, whole);
    }
}

struct sweep_job {
    struct bough_job job;
    struct bough_sweep sweep;
};

static void sweep_work(struct bough_job *job)
{
    struct sweep_job *s = (struct sweep_job *)job;
    /* Nobody waits for this: what it cannot do now, the next open does. */
    if (bough_store_sweep(job->engine->store, &s->sweep, NULL) < 0)
        s->sweep = (struct bough_sweep){0};
}

static void sweep_after(struct bough_job *job)
{
    struct sweep_job *s = (struct sweep_job *)job;
    if (!job->engine->closed && !job->engine->gone) {
        long count = s->sweep.dead_count + s->sweep.orphans, n = 0;
        char **names = calloc((size_t)count + 1, sizeof *names);
        for (long i = 0; names && i < s->sweep.dead_count; i++, n++) {
            names[n] = s->sweep.dead[i];
            s->sweep.dead[i] = NULL;
        }
        for (long i = 0; names && i < s->sweep.orphans; i++)
            if (asprintf(&names[n], "tmp/%s/trash-%lld", bough_store_owner(job->engine->store),
                         (long long)s->sweep.trash[i]) >= 0)
                n++;
        if (names)
            names[n] = NULL;
        bough_engine_remove(job->engine, names);
    }
    bough_sweep_clear(&s->sweep);
    free(s);
}

static int open_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct local *local = luaL_checkudata(L, -1, BOUGH_LOCAL);
    struct bough_engine *engine = local->engine;
    if (!engine->said_hello && !engine->gone)
        return bough_wait(L, &engine->changed, ctx, open_k);
    if (!engine->said_hello) {
        if (!engine->failure.msg[0])
            bough_err_set(&engine->failure, BOUGH_ERR_io,
                          "bough-keeper ended before it said a word");
        struct bough_err err = engine->failure;
        local->engine = NULL;
        bough_engine_unref(engine);
        return bough_lerr_raise(L, &err, "open");
    }
    struct sweep_job *s = calloc(1, sizeof *s);
    if (s)
        bough_job_start(engine, &s->job, sweep_work, sweep_after);
    return 1;
}

static int local_open(lua_State *L)
{
    char keeper[PATH_MAX], unpacker[PATH_MAX], looker[PATH_MAX], home[PATH_MAX];
    lua_settop(L, 1);
    if (lua_isnil(L, 1)) {
        lua_newtable(L);
        lua_replace(L, 1);
    }
    luaL_checktype(L, 1, LUA_TTABLE);
    find_program(L, "keeper", "BOUGH_KEEPER", "bough-keeper", keeper);
    find_program(L, "unpacker", "BOUGH_UNPACK", "bough-unpack", unpacker);
    find_program(L, "looker", "BOUGH_LOOK", "bough-look", looker);
    find_home(L, home);
    struct bough_client_options o = {
        .keeper = keeper, .unpacker = unpacker, .looker = looker, .home = home, .spare = 4};
    if (lua_getfield(L, 1, "spare") == LUA_TNUMBER)
        o.spare = (int)lua_tointeger(L, -1);
    if (lua_getfield(L, 1, "max_running") == LUA_TNUMBER)
        o.running_max = (int)lua_tointeger(L, -1);
    lua_pop(L, 2);
    struct bough_limits limits = {.pids = 4096};
    lua_getfield(L, 1, "limits");
    bough_lspec_limits(L, lua_gettop(L), &limits);
    lua_pop(L, 1);
    struct local *local = lua_newuserdatauv(L, sizeof *local, 0);
    local->engine = NULL;
    luaL_setmetatable(L, BOUGH_LOCAL);
    struct bough_err err;
    local->engine = bough_engine_open(bough_core_loop(bough_core(L)), &o, &limits, &err);
    if (!local->engine)
        return bough_lerr_raise(L, &err, "open");
    return open_k(L, LUA_OK, 0);
}

/* -- close ------------------------------------------------------------------------------------- */

struct shut_job {
    struct bough_job job;
    struct bough_store *store;
};

static void shut_work(struct bough_job *job)
{
    bough_store_close(((struct shut_job *)job)->store);
}

static void shut_after(struct bough_job *job)
{
    free(job);
}

/* Objects that are not collected yet keep the engine, but not its store: its lock and its files go with close,
 * on another thread, because the last one out moves the log into the database. */
static void shut_store(struct bough_engine *engine)
{
    struct shut_job *s = calloc(1, sizeof *s);
    if (!s)
        return; /* then it goes with the engine */
    s->store = engine->store;
    engine->store = NULL;
    bough_job_start(engine, &s->job, shut_work, shut_after);
}

static int close_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct local *local = luaL_checkudata(L, 1, BOUGH_LOCAL);
    struct bough_engine *engine = local->engine;
    if (!engine)
        return 0;
    /* The jobs as well: when close returns, nothing of this engine is under way any more. */
    if (engine->gone && engine->busy == 0 && engine->store)
        shut_store(engine);
    if (!engine->gone || engine->busy > 0)
        return bough_wait(L, &engine->changed, ctx, close_k);
    local->engine = NULL;
    bough_engine_unref(engine);
    return 0;
}

static int local_close(lua_State *L)
{
    struct local *local = luaL_checkudata(L, 1, BOUGH_LOCAL);
    lua_settop(L, 1);
    if (!local->engine)
        return 0;
    bough_engine_close(local->engine);
    return close_k(L, LUA_OK, 0);
}

/* Never waits: the socket closes, and the keeper ends by itself. */
static int local_gc(lua_State *L)
{
    struct local *local = luaL_checkudata(L, 1, BOUGH_LOCAL);
    if (local->engine) {
        bough_engine_close(local->engine);
        bough_engine_unref(local->engine);
        local->engine = NULL;
    }
    return 0;
}

static int local_tostring(lua_State *L)
{
    struct local *local = luaL_checkudata(L, 1, BOUGH_LOCAL);
    if (!local->engine || local->engine->closed)
        lua_pushliteral(L, "local engine (closed)");
    else
        lua_pushfstring(L, "local engine %s", bough_store_home(local->engine->store));
    return 1;
}

static int local_index(lua_State *L)
{
    struct local *local = luaL_checkudata(L, 1, BOUGH_LOCAL);
    const char *key = luaL_checkstring(L, 2);
    if (strcmp(key, "closed") == 0)
        lua_pushboolean(L, !local->engine || local->engine->closed || local->engine->gone);
    else
        lua_getfield(L, lua_upvalueindex(1), key);
    return 1;
}

void bough_open_local(lua_State *L)
{
    static const luaL_Reg methods[] = {{"start", bough_lrun_start},
                                       {"boot", bough_lsandbox_boot},
                                       {"close", local_close},
                                       {NULL, NULL}};
    static const luaL_Reg meta[] = {
        {"__gc", local_gc}, {"__close", local_close}, {"__tostring", local_tostring}, {NULL, NULL}};
    if (luaL_newmetatable(L, BOUGH_LOCAL)) {
        luaL_setfuncs(L, meta, 0);
        luaL_newlib(L, methods);
        luaL_setfuncs(L, bough_lask_methods, 0);
        luaL_setfuncs(L, bough_llayer_methods, 0);
        lua_pushcclosure(L, local_index, 1);
        lua_setfield(L, -2, "__index");
    }
    lua_pop(L, 1);
    bough_lask_register(L);
    bough_lrun_register(L);
    bough_lsandbox_register(L);
    bough_lchild_register(L);
    lua_pushcfunction(L, local_open);
    lua_setfield(L, -2, "open_local");
}
