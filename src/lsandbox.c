/* lsandbox.c - a booted sandbox of the embedded engine as its handle: processes, commits, the end. */
#define _GNU_SOURCE
#include <string.h>

#include "commit.h"
#include "lask.h"
#include "sys.h"

#define COMMIT "bough.commit"

struct lsandbox {
    struct bough_instance *instance; /* NULL when collected */
};

static struct lsandbox *check(lua_State *L)
{
    struct lsandbox *l = luaL_checkudata(L, 1, BOUGH_SANDBOX);
    if (!l->instance) /* a finaliser of somebody else has kept it */
        bough_lerr(L, BOUGH_ERR_closed, NULL, "the sandbox has been collected");
    return l;
}

static struct bough_run *run_of(lua_State *L)
{
    return check(L)->instance->run;
}

/* engine:boot(uuid, spec) -> sandbox, at once: what is wrong with it is told by `started`, and by its processes. With
 * spec.automatic it ends with its last process. */
int bough_lsandbox_boot(lua_State *L)
{
    struct bough_engine *engine = bough_local_check(L, "boot");
    const char *uuid = luaL_checkstring(L, 2);
    struct bough_err err;
    luaL_checktype(L, 3, LUA_TTABLE);
    lua_settop(L, 3);
    struct lsandbox *l = lua_newuserdatauv(L, sizeof *l, 1);
    l->instance = NULL;
    luaL_setmetatable(L, BOUGH_SANDBOX);
    if (!bough_uuid_valid(uuid))
        return bough_lerr(L, BOUGH_ERR_invalid, "boot", "\"%s\" is not a uuid", uuid);
    l->instance = bough_instance_new(engine, &err);
    if (!l->instance)
        return bough_lerr_raise(L, &err, "boot");
    struct bough_run *run = l->instance->run;
    for (int i = 0; i < BOUGH_UUID_SIZE - 1; i++)
        run->parent[i] = (char)(uuid[i] >= 'A' && uuid[i] <= 'F' ? uuid[i] + 32 : uuid[i]);
    bough_lspec_boot(L, 3, run);
    lua_getfield(L, 3, "automatic");
    l->instance->automatic = lua_toboolean(L, -1);
    run->eager = l->instance->automatic;
    if (lua_getfield(L, 3, "files") == LUA_TUSERDATA) {
        run->staged = bough_lput_staged(L, -1);
        run->staged->refs++;
    }
    lua_settop(L, 4);
    bough_run_start(run);
    return 1;
}

static int started_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_run *run = run_of(L);
    if (run->state == BOUGH_RUN_FAILED)
        return bough_lerr_raise(L, &run->err, NULL);
    if (run->state < BOUGH_RUN_RUNNING)
        return bough_wait(L, &run->changed, ctx, started_k);
    return 0;
}

/* sandbox:started(): waits until it is there; raises why it is not. */
static int sandbox_started(lua_State *L)
{
    lua_settop(L, 1);
    return started_k(L, LUA_OK, 0);
}

/* sandbox:exec(spec) -> child, at once */
static int sandbox_exec(lua_State *L)
{
    struct bough_instance *instance = check(L)->instance;
    if (!bough_instance_hosts(instance)) {
        if (instance->run->state == BOUGH_RUN_FAILED)
            return bough_lerr_raise(L, &instance->run->err, "exec");
        return bough_lerr(L, BOUGH_ERR_closed, "exec", "the sandbox has ended");
    }
    return bough_lchild_push(L, instance->crew, 2, false);
}

/* -- the image --------------------------------------------------------------------------------- */

/* What somebody waits for, as the context of the wait. */
enum { WAIT_END, WAIT_COMMIT, WAIT_STOP };

static int wait_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_run *run = run_of(L);
    if (run->state == BOUGH_RUN_FAILED) {
        static const char *const ops[] = {"popen", "commit", "stop"};
        return bough_lerr_raise(L, &run->err, ops[ctx]);
    }
    if (run->state != BOUGH_RUN_DONE && (ctx == WAIT_COMMIT || run->state != BOUGH_RUN_STOPPED))
        return bough_wait(L, &run->changed, ctx, wait_k);
    if (run->state != BOUGH_RUN_DONE || run->closed || run->disposable)
        return 0;
    run->collected = true;
    bough_lrow_push(L, &run->image);
    return 1;
}

/* sandbox:wait() -> the row of its image; nothing where it left none (yet) */
static int sandbox_wait(lua_State *L)
{
    lua_settop(L, 1);
    return wait_k(L, LUA_OK, WAIT_END);
}

static int commit_gc(lua_State *L)
{
    struct bough_commit **box = luaL_checkudata(L, 1, COMMIT);
    if (*box)
        bough_commit_unref(*box);
    *box = NULL;
    return 0;
}

static char *field_copy(lua_State *L, const char *name)
{
    char *copy = NULL;
    if (lua_istable(L, 2)) {
        if (lua_getfield(L, 2, name) == LUA_TSTRING)
            copy = strdup(lua_tostring(L, -1));
        lua_pop(L, 1);
    }
    return copy;
}

/* Of a sandbox that is STOPPED, or further. */
static int commit_stopped(lua_State *L)
{
    struct bough_run *run = run_of(L);
    if (run->state == BOUGH_RUN_STOPPED) {
        free(run->tag);
        free(run->command);
        run->tag = field_copy(L, "tag");
        run->command = field_copy(L, "command");
        run->image.config = field_copy(L, "config");
        bough_run_commit(run);
    }
    return wait_k(L, LUA_OK, WAIT_COMMIT);
}

static int committed_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_commit *c = *(struct bough_commit **)luaL_checkudata(L, -1, COMMIT);
    if (!c->done)
        return bough_wait(L, &c->done_cond, ctx, committed_k);
    if (c->rc == 0) {
        bough_lrow_push(L, &c->image);
        return 1;
    }
    /* It has come to its end meanwhile: then the image is of that. */
    struct bough_run *run = run_of(L);
    if (c->err.kind != BOUGH_ERR_state || run->closed || run->state == BOUGH_RUN_FAILED)
        return bough_lerr_raise(L, &c->err, "commit");
    if (run->state < BOUGH_RUN_STOPPED)
        return bough_wait(L, &run->changed, ctx, committed_k);
    return commit_stopped(L);
}

/* sandbox:commit{ tag=, command=, config= } -> row */
static int sandbox_commit(lua_State *L)
{
    struct bough_instance *instance = check(L)->instance;
    struct bough_run *run = instance->run;
    lua_settop(L, 2);
    if (run->closed)
        return bough_lerr(L, BOUGH_ERR_closed, "commit", "the sandbox was closed");
    if (run->disposable)
        return bough_lerr(L, BOUGH_ERR_disposed, "commit",
                          "the sandbox was booted with disposable = true");
    if (run->state >= BOUGH_RUN_STOPPED)
        return commit_stopped(L);
    if (instance->finishing)
        return bough_lerr(L, BOUGH_ERR_busy, "commit",
                          "the sandbox is stopping: wait for stop(), then commit");
    char *tag = field_copy(L, "tag"), *command = field_copy(L, "command");
    char *config = field_copy(L, "config");
    struct bough_commit **box = lua_newuserdatauv(L, sizeof *box, 0);
    *box = NULL;
    luaL_setmetatable(L, COMMIT);
    *box = bough_commit_start(instance, tag, command, config);
    if (!*box)
        return luaL_error(L, "not enough memory");
    return committed_k(L, LUA_OK, 0);
}

/* -- the end ----------------------------------------------------------------------------------- */

static int stop_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_instance *instance = check(L)->instance;
    struct bough_run *run = instance->run;
    int64_t until_ns = lua_tointeger(L, 2);
    if (run->state >= BOUGH_RUN_STOPPED)
        return wait_k(L, LUA_OK, WAIT_STOP);
    if (!instance->finishing && instance->crew->live > 0 && bough_now_ns() < until_ns)
        return bough_wait_until(L, &instance->quiet, until_ns, ctx, stop_k);
    bough_instance_finish(instance);
    return bough_wait(L, &run->changed, ctx, stop_k);
}

/* sandbox:stop(seconds): SIGTERM to all, SIGKILL to who is left then; sealed when it returns. */
static int sandbox_stop(lua_State *L)
{
    struct bough_instance *instance = check(L)->instance;
    int64_t until_ns = bough_check_until(L, 2, "stop", true);
    bool patient = lua_tonumber(L, 2) > 0;
    lua_settop(L, 1);
    lua_pushinteger(L, until_ns);
    if (bough_instance_hosts(instance) && patient)
        bough_instance_terminate(instance);
    instance->stopping = true;
    return stop_k(L, LUA_OK, 0);
}

static int sandbox_close(lua_State *L)
{
    struct lsandbox *l = luaL_checkudata(L, 1, BOUGH_SANDBOX);
    if (l->instance)
        bough_instance_close(l->instance);
    return 0;
}

static int sandbox_gc(lua_State *L)
{
    struct lsandbox *l = luaL_checkudata(L, 1, BOUGH_SANDBOX);
    if (l->instance) {
        bough_instance_close(l->instance);
        bough_instance_unref(l->instance);
    }
    l->instance = NULL;
    return 0;
}

/* How many run that nobody has given up. */
static int wanted(const struct bough_instance *instance)
{
    int count = 0;
    for (const struct bough_process *p = instance->crew->all; p; p = p->next)
        count += !p->given_up;
    return count;
}

/* hosts: processes may be started; live: how many run; over: its image is there, or never will be */
static int sandbox_index(lua_State *L)
{
    static const char *const fields[] = {"hosts",   "live",   "wanted",    "over",
                                         "stopped", "closed", "timed_out", "oom"};
    const struct bough_instance *instance =
        ((struct lsandbox *)luaL_checkudata(L, 1, BOUGH_SANDBOX))->instance;
    const char *key = luaL_checkstring(L, 2);
    /* Collected before whoever looks at it here: it is over, and closed. */
    for (size_t i = 0; !instance && i < sizeof fields / sizeof *fields; i++)
        if (strcmp(key, fields[i]) == 0) {
            if (strcmp(key, "live") == 0 || strcmp(key, "wanted") == 0)
                lua_pushinteger(L, 0);
            else
                lua_pushboolean(L, i >= 3 && i <= 5);
            return 1;
        }
    const struct bough_run *run = instance ? instance->run : NULL;
    if (strcmp(key, "hosts") == 0)
        lua_pushboolean(L, bough_instance_hosts(instance));
    else if (strcmp(key, "live") == 0)
        lua_pushinteger(L, instance->crew->live);
    else if (strcmp(key, "wanted") == 0)
        lua_pushinteger(L, wanted(instance));
    else if (strcmp(key, "over") == 0)
        lua_pushboolean(L, bough_run_is_over(run));
    else if (strcmp(key, "stopped") == 0)
        lua_pushboolean(L, run->state >= BOUGH_RUN_STOPPED);
    else if (strcmp(key, "closed") == 0)
        lua_pushboolean(L, run->closed);
    else if (strcmp(key, "timed_out") == 0)
        lua_pushboolean(L, run->ending.timed_out);
    else if (strcmp(key, "oom") == 0)
        lua_pushboolean(L, run->ending.oom);
    else
        lua_getfield(L, lua_upvalueindex(1), key);
    return 1;
}

void bough_lsandbox_register(lua_State *L)
{
    static const luaL_Reg methods[] = {
        {"started", sandbox_started},
        {"exec", sandbox_exec},
        {"wait", sandbox_wait},
        {"commit", sandbox_commit},
        {"stop", sandbox_stop},
        {"close", sandbox_close},
        {NULL, NULL},
    };
    static const luaL_Reg meta[] = {{"__gc", sandbox_gc}, {"__close", sandbox_close}, {NULL, NULL}};
    static const luaL_Reg commit_meta[] = {{"__gc", commit_gc}, {NULL, NULL}};
    if (luaL_newmetatable(L, COMMIT))
        luaL_setfuncs(L, commit_meta, 0);
    lua_pop(L, 1);
    if (luaL_newmetatable(L, BOUGH_SANDBOX)) {
        luaL_setfuncs(L, meta, 0);
        luaL_newlib(L, methods);
        lua_pushcclosure(L, sandbox_index, 1);
        lua_setfield(L, -2, "__index");
    }
    lua_pop(L, 1);
}
