/* lmove.c - what moves a session: runs, files, tags, checkout and rollback.
 *
 * Whatever waits takes its turn first. A run that `start` began (detached) keeps the session busy
 * without holding the turn; it is settled by whoever waits for it. A failure anywhere leaves the
 * session where it was, with nothing running and the turn given back. */
#include "lsession.h"
#include "lwait.h"

#include <string.h>

/* An operation that takes its turn. */
struct change {
    const char *name;
    lua_CFunction body; /* called with the operation's arguments; returns its one result */
};

static int refuse_busy(lua_State *L, const char *op)
{
    const struct session *s = lua_touserdata(L, 1);
    lua_getiuservalue(L, 1, UV_RUNNING);
    bough_session_field(L, -1, "hosting");
    if (s->detached && lua_isstring(L, -1))
        return bough_lerr(
            L, BOUGH_ERR_busy, op,
            "the session's sandbox is running %s: wait for it, kill it, or give queue = true",
            lua_tostring(L, -1));
    return bough_lerr(L, BOUGH_ERR_busy, op,
                      "the session is busy with another run: wait for it, or give queue = true");
}

static bool failed(int status)
{
    return status != LUA_OK && status != LUA_YIELD;
}

/* -- taking turns ---------------------------------------------------------------------------- */

static void turn_release(lua_State *L)
{
    lua_getiuservalue(L, 1, UV_TURN);
    lua_getfield(L, -1, "release");
    lua_insert(L, -2);
    lua_call(L, 1, 0);
}

/* The detached run is over, or waiting for it failed. */
static int turn_settled_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)ctx;
    struct session *s = lua_touserdata(L, 1);
    /* its failure is for those who wait for it; ours (cancelled, a deadline) leaves it running */
    if (failed(status) && s->detached) {
        turn_release(L);
        return lua_error(L);
    }
    return 0;
}

static int turn_held_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    const struct session *s = lua_touserdata(L, 1);
    if (!s->detached)
        return 0;
    lua_settop(L, 1);
    lua_getiuservalue(L, 1, UV_RUNNING);
    bough_session_method(L, 2, "wait", NULL);
    return turn_settled_k(L, lua_pcallk(L, 1, 0, 0, 0, turn_settled_k), 0);
}

/* turn_take(session): returns when the caller may change the session. */
static int turn_take(lua_State *L)
{
    lua_getiuservalue(L, 1, UV_TURN);
    bough_session_method(L, -1, "acquire", NULL);
    lua_callk(L, 1, 0, 0, turn_held_k);
    return turn_held_k(L, LUA_OK, 0);
}

/* A change went wrong with the error on top; what it had started has been closed. */
static int change_failed_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)ctx;
    struct session *s = lua_touserdata(L, 1);
    if (failed(status))
        lua_pop(L, 1); /* the first error counts */
    s->line--;
    turn_release(L);
    return lua_error(L);
}

static int change_done_k(lua_State *L, int status, lua_KContext ctx)
{
    struct session *s = lua_touserdata(L, 1);
    if (failed(status)) {
        if (!s->detached && lua_getiuservalue(L, 1, UV_RUNNING) != LUA_TNIL) {
            bough_session_method(L, -1, "close", NULL);
            lua_remove(L, -3);
            return change_failed_k(L, lua_pcallk(L, 1, 0, 0, ctx, change_failed_k), ctx);
        }
        if (!s->detached)
            lua_pop(L, 1);
        return change_failed_k(L, LUA_OK, ctx);
    }
    s->line--;
    turn_release(L);
    return 1;
}

static int change_held_k(lua_State *L, int status, lua_KContext ctx)
{
    const struct change *change = (const struct change *)ctx;
    struct session *s = lua_touserdata(L, 1);
    if (failed(status)) {
        s->line--;
        return lua_error(L);
    }
    int count = lua_gettop(L);
    luaL_checkstack(L, count + 8, "too many arguments");
    lua_pushcfunction(L, change->body);
    for (int i = 1; i <= count; i++)
        lua_pushvalue(L, i);
    return change_done_k(L, lua_pcallk(L, count, 1, 0, ctx, change_done_k), ctx);
}

/* Runs `change` with the arguments of the caller, in turn. */
static int change_begin(lua_State *L, const struct change *change, bool queue)
{
    struct session *s = bough_session_open(L, change->name);
    luaL_checkstack(L, 8, NULL);
    /* What has come meanwhile and nobody has heard of may have freed it. */
    if (s->detached && !queue)
        bough_wait_glance(L);
    if (bough_session_busy(s) && !queue && !bough_session_settling(L, 1))
        return refuse_busy(L, change->name);
    lua_pushcfunction(L, turn_take);
    lua_pushvalue(L, 1);
    s->line++;
    lua_KContext ctx = (lua_KContext)change;
    return change_held_k(L, lua_pcallk(L, 1, 0, 0, ctx, change_held_k), ctx);
}

/* -- runs -------------------------------------------------------------------------------------- */

/* on_done(image, ok), upvalues: the session, the name of the step. Called once, by whoever waited or closed first. */
static int run_settled(lua_State *L)
{
    lua_settop(L, 2);
    lua_pushvalue(L, lua_upvalueindex(1));
    struct session *s = lua_touserdata(L, 3);
    s->detached = false;
    lua_pushnil(L);
    lua_setiuservalue(L, 3, UV_RUNNING);
    if (s->closed)
        return 0;
    bough_session_field(L, 1, "exit_code");
    if (lua_isnil(L, -1))
        return 0; /* no result: it never got that far */
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, 3, UV_LATEST);
    bough_session_field(L, 1, "uuid");
    bough_session_field(L, 1, "timed_out");
    if (lua_toboolean(L, 2) && !lua_isnil(L, -2) && !lua_toboolean(L, -1)) {
        bough_session_stand(L, 3, 1);
        bough_session_step(L, 3, 1, lua_tostring(L, lua_upvalueindex(2)));
    }
    return 0;
}

/* [session, command, options, within, image, started] -> the last */
static int run_started_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    const char *op = (const char *)ctx;
    struct session *s = lua_touserdata(L, 1);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, 1, UV_RUNNING);
    if (s->closed) /* meanwhile; change_done_k closes what has started */
        return bough_lerr(L, BOUGH_ERR_closed, op, "the session is closed");
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, 1, UV_LAST);
    return 1;
}

/* Calls image:METHOD(command, options, { op=, defaults=, on_done=, eager= }), which leaves `results` on top. */
static int run_start(lua_State *L, const char *op, const char *method, int results, lua_KFunction k)
{
    bough_session_open(L, op); /* it may have been closed while this was in line */
    lua_settop(L, 4);
    lua_getiuservalue(L, 1, UV_IMAGE);
    bough_session_method(L, 5, method, op);
    lua_pushvalue(L, 2);
    lua_pushvalue(L, 3);
    lua_createtable(L, 0, 4);
    if (lua_istable(L, 4)) {
        lua_getfield(L, 4, "eager");
        lua_setfield(L, -2, "eager");
    }
    lua_pushstring(L, op);
    lua_setfield(L, -2, "op");
    lua_getiuservalue(L, 1, UV_DEFAULTS);
    lua_setfield(L, -2, "defaults");
    lua_pushvalue(L, 1);
    lua_pushstring(L, strcmp(method, "popen") == 0 ? method : "run");
    lua_pushcclosure(L, run_settled, 2);
    lua_setfield(L, -2, "on_done");
    lua_callk(L, 4, results, (lua_KContext)op, k);
    return k(L, LUA_OK, (lua_KContext)op);
}

static int run_waited_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)L;
    (void)status;
    (void)ctx;
    return 1;
}

static int run_wait_k(lua_State *L, int status, lua_KContext ctx)
{
    run_started_k(L, status, ctx);
    bough_session_method(L, -1, "wait", (const char *)ctx);
    lua_callk(L, 1, 1, ctx, run_waited_k);
    return run_waited_k(L, LUA_OK, ctx);
}

static int run_detach_k(lua_State *L, int status, lua_KContext ctx)
{
    struct session *s = lua_touserdata(L, 1);
    run_started_k(L, status, ctx);
    s->detached = true;
    return 1;
}

static int run_body(lua_State *L)
{
    return run_start(L, "run", "start", 1, run_wait_k);
}

static int start_body(lua_State *L)
{
    return run_start(L, "start", "start", 1, run_detach_k);
}

/* Whether this call lines up: its own `queue` option, else the session's. */
static bool wants_queue(lua_State *L, const struct session *s)
{
    bool queue = s->queue;
    int options = lua_istable(L, 2) ? 2 : 3;
    if (lua_istable(L, options)) {
        if (lua_getfield(L, options, "queue") != LUA_TNIL)
            queue = lua_toboolean(L, -1);
        lua_pop(L, 1);
    }
    return queue;
}

static int session_run(lua_State *L)
{
    static const struct change change = {"run", run_body};
    lua_settop(L, 3);
    return change_begin(L, &change, wants_queue(L, bough_session_open(L, "run")));
}

static int session_start(lua_State *L)
{
    static const struct change change = {"start", start_body};
    lua_settop(L, 3);
    return change_begin(L, &change, wants_queue(L, bough_session_open(L, "start")));
}

static int session_wait(lua_State *L)
{
    bough_session_check(L, "wait");
    lua_settop(L, 1);
    if (lua_getiuservalue(L, 1, UV_LAST) == LUA_TNIL)
        return bough_lerr(L, BOUGH_ERR_state, "wait", "nothing was run in this session yet");
    bough_session_method(L, 2, "wait", "wait");
    lua_callk(L, 1, 1, 0, run_waited_k);
    return run_waited_k(L, LUA_OK, 0);
}

/* -- live processes -------------------------------------------------------------------------- */

/* [session, command, options, within, image, process, started]: the sandbox is a run in the making until its last process has
 * ended. */
static int popen_begun_k(lua_State *L, int status, lua_KContext ctx)
{
    struct session *s = lua_touserdata(L, 1);
    run_started_k(L, status, ctx);
    s->detached = true;
    lua_pushvalue(L, -2);
    return 1;
}

static int popen_body(lua_State *L)
{
    return run_start(L, "popen", "popen", 2, popen_begun_k);
}

static int popen_settled_k(lua_State *L, int status, lua_KContext ctx)
{
    static const struct change change = {"popen", popen_body};
    const struct session *s = bough_session_open(L, "popen");
    (void)ctx;
    if (failed(status) && s->detached)
        return lua_error(L); /* the wait itself was cut short */
    lua_settop(L, 4);
    return change_begin(L, &change, wants_queue(L, s));
}

/* [session, command, options, within, running, answer]: a process in the sandbox that is there, false where none can be had,
 * nil when it is just ending. */
static int popen_joined_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    if (lua_toboolean(L, -1))
        return 1;
    if (!lua_isnil(L, -1))
        return popen_settled_k(L, LUA_OK, 0);
    lua_settop(L, 5);
    bough_session_method(L, 5, "wait", "popen");
    return popen_settled_k(L, lua_pcallk(L, 1, 0, 0, 0, popen_settled_k), 0);
}

/* session:popen(command, options?, { eager= }?) -> process */
static int session_popen(lua_State *L)
{
    const struct session *s = bough_session_open(L, "popen");
    lua_settop(L, 4);
    if (!s->detached)
        return popen_settled_k(L, LUA_OK, 0);
    lua_getiuservalue(L, 1, UV_RUNNING);
    bough_session_method(L, 5, "join", "popen");
    lua_pushvalue(L, 2);
    lua_pushvalue(L, 3);
    lua_getiuservalue(L, 1, UV_DEFAULTS);
    lua_pushvalue(L, 4);
    lua_callk(L, 5, 1, 0, popen_joined_k);
    return popen_joined_k(L, LUA_OK, 0);
}

/* -- other changes ------------------------------------------------------------------------- */

/* [session, ..., new image] */
static int moved_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    lua_getiuservalue(L, 1, UV_IMAGE);
    bool same = lua_rawequal(L, -1, -2);
    lua_pop(L, 1);
    if (!same) {
        bough_session_stand(L, 1, -1);
        bough_session_step(L, 1, -1, (const char *)ctx);
    }
    lua_pushvalue(L, 1);
    return 1;
}

/* The same, and what comes back is the image, as from a run: two results never alias. */
static int applied_k(lua_State *L, int status, lua_KContext ctx)
{
    lua_pushvalue(L, -1);
    lua_insert(L, 2); /* out of the way */
    moved_k(L, status, ctx);
    lua_pushvalue(L, 2);
    return 1;
}

static int apply_body(lua_State *L)
{
    bough_session_open(L, "apply_files");
    int count = lua_gettop(L);
    lua_getiuservalue(L, 1, UV_IMAGE);
    bough_session_method(L, -1, "apply_files", "apply_files");
    for (int i = 2; i <= count; i++)
        lua_pushvalue(L, i);
    lua_KContext ctx = (lua_KContext) "apply_files";
    lua_callk(L, count, 1, ctx, applied_k);
    return applied_k(L, LUA_OK, ctx);
}

static int session_apply_files(lua_State *L)
{
    static const struct change change = {"apply_files", apply_body};
    return change_begin(L, &change, bough_session_open(L, "apply_files")->queue);
}

/* [session, ..., old image, the same image under its new tag]: no step, the tree is the same. */
static int retagged_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    lua_getiuservalue(L, 1, UV_LATEST);
    if (lua_rawequal(L, -1, -3)) {
        lua_pushvalue(L, -2);
        lua_setiuservalue(L, 1, UV_LATEST);
    }
    lua_pop(L, 1);
    lua_getiuservalue(L, 1, UV_HISTORY);
    lua_rawgeti(L, -1, (lua_Integer)lua_rawlen(L, -1));
    lua_pushvalue(L, -3);
    lua_setfield(L, -2, "image");
    lua_pop(L, 2);
    lua_setiuservalue(L, 1, UV_IMAGE);
    lua_pushvalue(L, 1);
    return 1;
}

static int tag_body(lua_State *L)
{
    bough_session_open(L, "tag_as");
    lua_settop(L, 2);
    lua_getiuservalue(L, 1, UV_IMAGE);
    bough_session_method(L, -1, "tag_as", "tag_as"); /* of nil: untag */
    lua_pushvalue(L, 2);
    lua_callk(L, 2, 1, 0, retagged_k);
    return retagged_k(L, LUA_OK, 0);
}

static int session_tag_as(lua_State *L)
{
    static const struct change change = {"tag_as", tag_body};
    return change_begin(L, &change, bough_session_open(L, "tag_as")->queue);
}

static int session_untag(lua_State *L)
{
    static const struct change change = {"untag", tag_body};
    lua_settop(L, 1);
    return change_begin(L, &change, bough_session_open(L, "untag")->queue);
}

/* [session, reference, image] */
static int checkout_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)ctx;
    if (lua_getfield(L, -1, "engine") == LUA_TNIL)
        return bough_lerr(L, BOUGH_ERR_invalid, "checkout",
                          "expected an image, a uuid or a tag, got another table");
    lua_getiuservalue(L, 1, UV_ENGINE);
    if (!lua_rawequal(L, -1, -2))
        return bough_lerr(L, BOUGH_ERR_invalid, "checkout", "the image belongs to another engine");
    lua_pop(L, 2);
    if (lua_getfield(L, -1, "uuid") == LUA_TNIL)
        return bough_lerr(L, BOUGH_ERR_disposed, "checkout", "this run left no image to go to");
    lua_pop(L, 1);
    return moved_k(L, status, (lua_KContext) "checkout");
}

static int checkout_body(lua_State *L)
{
    bough_session_open(L, "checkout");
    lua_settop(L, 2);
    if (lua_istable(L, 2)) {
        lua_pushvalue(L, 2);
        return checkout_k(L, LUA_OK, 0);
    }
    if (lua_type(L, 2) != LUA_TSTRING)
        return bough_lerr(L, BOUGH_ERR_invalid, "checkout",
                          "expected an image, a uuid or a tag, got %s", luaL_typename(L, 2));
    lua_getiuservalue(L, 1, UV_ENGINE);
    lua_getfield(L, -1, "images");
    bough_session_method(L, -1, "get", "checkout");
    lua_pushvalue(L, 2);
    lua_callk(L, 2, 1, 0, checkout_k);
    return checkout_k(L, LUA_OK, 0);
}

static int session_checkout(lua_State *L)
{
    static const struct change change = {"checkout", checkout_body};
    lua_settop(L, 2);
    return change_begin(L, &change, bough_session_open(L, "checkout")->queue);
}

static int rollback_k(lua_State *L, int status, lua_KContext ctx)
{
    const struct session *s = bough_session_open(L, "rollback");
    (void)ctx;
    if (failed(status) && s->detached)
        return lua_error(L); /* the wait itself was cut short */
    if (bough_session_busy(s))
        return refuse_busy(L, "rollback");
    lua_settop(L, 2);
    int exact = 1;
    lua_Integer n = lua_isnoneornil(L, 2) ? 1 : lua_tointegerx(L, 2, &exact);
    if (!exact || n < 0 || lua_type(L, 2) == LUA_TSTRING)
        return bough_lerr(L, BOUGH_ERR_invalid, "rollback", "expected a number of steps, got %s",
                          luaL_tolstring(L, 2, NULL));
    lua_settop(L, 1);
    lua_getiuservalue(L, 1, UV_HISTORY);
    lua_Integer steps = (lua_Integer)lua_rawlen(L, 2) - 1;
    if (n > steps)
        return bough_lerr(L, BOUGH_ERR_state, "rollback",
                          "cannot go back %lld: the session has %lld step%s", (long long)n,
                          (long long)steps, steps == 1 ? "" : "s");
    for (lua_Integer i = steps + 1; i > steps + 1 - n; i--) {
        lua_pushnil(L);
        lua_rawseti(L, 2, i);
    }
    lua_rawgeti(L, 2, steps + 1 - n);
    lua_getfield(L, -1, "image");
    bough_session_stand(L, 1, -1);
    lua_settop(L, 1);
    return 1;
}

static int session_rollback(lua_State *L)
{
    bough_session_open(L, "rollback");
    lua_settop(L, 2);
    if (!bough_session_settling(L, 1))
        return rollback_k(L, LUA_OK, 0);
    lua_getiuservalue(L, 1, UV_RUNNING);
    bough_session_method(L, -1, "wait", "rollback");
    lua_remove(L, -3);
    return rollback_k(L, lua_pcallk(L, 1, 0, 0, 0, rollback_k), 0);
}

const luaL_Reg bough_session_moves[] = {
    {"run", session_run},
    {"start", session_start},
    {"popen", session_popen},
    {"wait", session_wait},
    {"apply_files", session_apply_files},
    {"tag_as", session_tag_as},
    {"untag", session_untag},
    {"checkout", session_checkout},
    {"rollback", session_rollback},
    {NULL, NULL},
};
