/* lremote.c - core.child: a live process that runs elsewhere, as its two sides.
 *
 * The child is what core.process, instances and pipelines build on, as that of any engine (lchild.h). The peer is for
 * the engine that runs the command, which may be Lua: it holds the other ends of the child's streams, hears what is
 * wished, and tells of the end. Neither keeps the other alive, so a child that nobody wants is collected, and its peer
 * hears of it. What they share in Lua is a table for the error that the engine fails with. */
#define _GNU_SOURCE
#include <limits.h>
#include <signal.h>
#include <string.h>

#include "lask.h"
#include "lchild.h"
#include "lcore.h"
#include "lprocess.h"
#include "lstream.h"
#include "remote.h"
#include "sys.h"

#define PEER_NAME "bough.peer"

struct lpeer {
    struct bough_remote *remote; /* NULL once it is collected */
};

/* User values of a peer. */
enum {
    PEER_STDIN = 1, /* a reader, or nil */
    PEER_STDOUT,    /* writers, or nil */
    PEER_STDERR,
    PEER_FAILURE, /* the table that BOUGH_CHILD_FAILURE is */
    PEER_VALUES = PEER_FAILURE
};

/* --- the child --------------------------------------------------------------------------------------- */

static struct bough_child_look remote_look(const void *process)
{
    const struct bough_remote *remote = process;
    return (struct bough_child_look){.state = bough_remote_state(remote),
                                     .ran = remote->ran,
                                     .failed = remote->failed,
                                     .pid = remote->pid,
                                     .err = &remote->err};
}

static void remote_result(void *process, struct bough_result *result)
{
    bough_remote_result(process, result);
}

static void remote_signal(void *process, int number, enum bough_scope scope)
{
    bough_remote_signal(process, number, scope);
}

static int remote_resize(void *process, int rows, int cols, struct bough_err *err)
{
    (void)process;
    (void)rows;
    (void)cols;
    return bough_err_set(err, BOUGH_ERR_state, "the process has no terminal");
}

static void remote_close(void *process)
{
    bough_remote_close(process);
}

static void remote_unref(void *process)
{
    bough_remote_unref(process);
}

static const struct bough_child_class remote_class = {remote_look,   remote_result, remote_signal,
                                                      remote_resize, remote_close,  remote_unref};

/* --- the peer ---------------------------------------------------------------------------------------- */

static struct bough_remote *peer_check(lua_State *L, const char *op)
{
    const struct lpeer *peer = luaL_testudata(L, 1, PEER_NAME);
    if (!peer)
        bough_lerr(L, BOUGH_ERR_invalid, op, "expected a peer, not %s", luaL_typename(L, 1));
    else if (!peer->remote) /* a finaliser of somebody else has kept it */
        bough_lerr(L, BOUGH_ERR_closed, op, "the peer has been collected");
    return peer ? peer->remote : NULL;
}

/* peer:started(pid?) */
static int peer_started(lua_State *L)
{
    struct bough_remote *remote = peer_check(L, "peer:started");
    lua_Integer pid = 0;
    if (!lua_isnoneornil(L, 2)) {
        int exact = 0;
        pid = lua_type(L, 2) == LUA_TNUMBER ? lua_tointegerx(L, 2, &exact) : 0;
        if (!exact || pid < 1)
            return bough_lerr(L, BOUGH_ERR_invalid, "peer:started",
                              "expected the number of a process, not %s",
                              luaL_tolstring(L, 2, NULL));
    }
    bough_remote_started(remote, pid);
    return 0;
}

/* The number in field `name` of the table at 2, or `fallback`; none is negative. */
static double number_field(lua_State *L, const char *name, double fallback)
{
    double value = fallback;
    if (lua_getfield(L, 2, name) == LUA_TNUMBER)
        value = lua_tonumber(L, -1);
    else if (!lua_isnil(L, -1))
        bough_lerr(L, BOUGH_ERR_invalid, "peer:finish", "%s must be a number, not %s", name,
                   luaL_typename(L, -1));
    lua_pop(L, 1);
    return value >= 0 ? value : 0;
}

static int64_t size_field(lua_State *L, const char *name)
{
    double value = number_field(L, name, 0);
    return value < 9e18 ? (int64_t)value : INT64_MAX / 2; /* leaves room for a sum */
}

static int whole_field(lua_State *L, const char *name, int fallback, int least, int most)
{
    int value = fallback;
    if (lua_getfield(L, 2, name) != LUA_TNIL) {
        int exact = 0;
        lua_Integer given = lua_type(L, -1) == LUA_TNUMBER ? lua_tointegerx(L, -1, &exact) : 0;
        if (!exact || given < least || given > most)
            bough_lerr(L, BOUGH_ERR_invalid, "peer:finish", "%s cannot be %s", name,
                       luaL_tolstring(L, -1, NULL));
        value = (int)given;
    }
    lua_pop(L, 1);
    return value;
}

static bool flag_field(lua_State *L, const char *name)
{
    lua_getfield(L, 2, name);
    bool value = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return value;
}

/* A time limit and a signal look the same whoever runs the command. */
static void read_result(lua_State *L, struct bough_result *r)
{
    r->timed_out = flag_field(L, "timed_out");
    r->oom = flag_field(L, "oom");
    r->signal = r->timed_out ? SIGKILL : whole_field(L, "signal", 0, 0, SIGRTMAX);
    r->exit_code =
        r->signal ? 128 + r->signal : whole_field(L, "exit_code", INT_MIN, INT_MIN + 1, INT_MAX);
    if (r->exit_code == INT_MIN)
        bough_lerr(L, BOUGH_ERR_invalid, "peer:finish", "a result needs an exit_code");
    r->elapsed_time = number_field(L, "elapsed_time", 0);
    r->user_time = number_field(L, "user_time", 0);
    r->system_time = number_field(L, "system_time", 0);
    r->max_rss = size_field(L, "max_rss");
    r->stdout_dropped = size_field(L, "stdout_dropped");
    r->stderr_dropped = size_field(L, "stderr_dropped");
}

/* peer:finish(result) */
static int peer_finish(lua_State *L)
{
    struct bough_remote *remote = peer_check(L, "peer:finish");
    struct bough_result result = {0};
    struct bough_err err;
    if (!lua_istable(L, 2))
        return bough_lerr(L, BOUGH_ERR_invalid, "peer:finish", "expected a result, not %s",
                          luaL_typename(L, 2));
    read_result(L, &result);
    if (bough_remote_finish(remote, &result, &err) < 0)
        return bough_lerr_raise(L, &err, "peer:finish");
    return 0;
}

/* [..., value] -> [..., error]: whatever an engine has caught, as an error that tells of the process rather than of
 * somebody's wait. */
static void push_failure(lua_State *L)
{
    if (!bough_lerr_kind(L, -1)) {
        struct bough_err err;
        bough_err_set(&err, BOUGH_ERR_api, "the engine has failed: %s",
                      luaL_tolstring(L, -1, NULL));
        bough_lerr_push(L, &err, NULL);
        lua_pushvalue(L, -3);
        lua_setfield(L, -2, "cause");
        lua_replace(L, -3);
        lua_pop(L, 1);
    } else if (bough_lprocess_cut_short(L)) {
        lua_pushliteral(L, "process");
        lua_setfield(L, -2, "op");
    }
}

/* peer:fail(error) */
static int peer_fail(lua_State *L)
{
    struct bough_remote *remote = peer_check(L, "peer:fail");
    lua_settop(L, 2);
    if (lua_isnil(L, 2))
        return bough_lerr(L, BOUGH_ERR_invalid, "peer:fail", "expected an error, not nil");
    if (remote->state == BOUGH_PROCESS_OVER)
        return 0;
    push_failure(L);
    lua_getiuservalue(L, 1, PEER_FAILURE);
    lua_insert(L, 2);
    lua_rawseti(L, 2, 1);
    bough_remote_fail(remote, NULL);
    return 0;
}

static enum bough_err_kind kind_of(const char *name)
{
    int kind = 0;
    while (kind < BOUGH_ERR_KIND_COUNT &&
           strcmp(name, bough_err_kind_name((enum bough_err_kind)kind)) != 0)
        kind++;
    return kind < BOUGH_ERR_KIND_COUNT ? (enum bough_err_kind)kind : BOUGH_ERR_io;
}

/* peer:cut("stdout"|"stderr", error) -> whether the caller will get it */
static int peer_cut(lua_State *L)
{
    static const char *const streams[] = {"stdout", "stderr", NULL};
    struct bough_remote *remote = peer_check(L, "peer:cut");
    int which = luaL_checkoption(L, 2, NULL, streams);
    struct bough_err why;
    const char *kind = bough_lerr_kind(L, 3);
    if (!kind)
        return bough_lerr(L, BOUGH_ERR_invalid, "peer:cut", "expected an error, not %s",
                          luaL_typename(L, 3));
    lua_getfield(L, 3, "message");
    const char *message = lua_tostring(L, -1);
    bough_err_set(&why, kind_of(kind), "%s", message ? message : kind);
    lua_pushboolean(L, bough_remote_cut(remote, which, &why));
    return 1;
}

static int next_k(lua_State *L, int status, lua_KContext ctx);

/* Pushes the next wish; 0: there is none. Not inlined: bough_wait wants no local whose address is known. */
static __attribute__((noinline)) int push_wish(lua_State *L, struct bough_remote *remote)
{
    struct bough_remote_signal signal;
    switch (bough_remote_next(remote, &signal)) {
    case BOUGH_WISH_SIGNAL:
        lua_pushliteral(L, "signal");
        lua_pushinteger(L, signal.number);
        lua_pushstring(L, signal.scope == BOUGH_SCOPE_TREE ? "tree" : "group");
        return 3;
    case BOUGH_WISH_CLOSE:
        lua_pushliteral(L, "close");
        return 1;
    default:
        return 0;
    }
}

static int next_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_remote *remote = peer_check(L, "peer:next");
    int count = push_wish(L, remote);
    if (count > 0)
        return count;
    int64_t until_ns = lua_tointeger(L, 2);
    if (remote->state == BOUGH_PROCESS_OVER || bough_now_ns() >= until_ns)
        return 0;
    return bough_wait_until(L, &remote->wished, until_ns, ctx, next_k);
}

/* peer:next(seconds?) -> "signal", number, scope | "close" | nothing */
static int peer_next(lua_State *L)
{
    peer_check(L, "peer:next");
    int64_t until_ns =
        lua_isnoneornil(L, 2) ? INT64_MAX : bough_check_until(L, 2, "peer:next", true);
    lua_settop(L, 1);
    lua_pushinteger(L, until_ns);
    return next_k(L, LUA_OK, 0);
}

static void lose(struct bough_remote *remote)
{
    struct bough_err err;
    bough_err_set(&err, BOUGH_ERR_closed, "the engine has lost the process");
    bough_remote_fail(remote, &err);
}

static int peer_close(lua_State *L)
{
    struct lpeer *peer = luaL_checkudata(L, 1, PEER_NAME);
    if (peer->remote)
        lose(peer->remote);
    return 0;
}

static int peer_gc(lua_State *L)
{
    struct lpeer *peer = lua_touserdata(L, 1);
    struct bough_remote *remote = peer->remote;
    peer->remote = NULL;
    if (remote) {
        lose(remote);
        bough_remote_unref(remote);
    }
    return 0;
}

/* Upvalue 1: the methods. */
static int peer_index(lua_State *L)
{
    static const char *const streams[] = {"stdin", "stdout", "stderr"};
    const struct bough_remote *remote = peer_check(L, NULL);
    const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
    for (int i = 0; i < 3; i++)
        if (strcmp(key, streams[i]) == 0) {
            lua_getiuservalue(L, 1, PEER_STDIN + i);
            return 1;
        }
    if (strcmp(key, "given_up") == 0) {
        lua_pushboolean(L, remote->given_up);
    } else if (strcmp(key, "over") == 0) {
        lua_pushboolean(L, remote->state == BOUGH_PROCESS_OVER);
    } else if (strcmp(key, "kept_stdout") == 0) {
        lua_pushboolean(L, remote->kept[0] != NULL);
    } else if (strcmp(key, "kept_stderr") == 0) {
        lua_pushboolean(L, remote->kept[remote->streams.joined ? 0 : 1] != NULL);
    } else {
        lua_pushvalue(L, 2);
        lua_rawget(L, lua_upvalueindex(1));
    }
    return 1;
}

static int peer_tostring(lua_State *L)
{
    static const char *const states[] = {"starting", "running", "over"};
    const struct lpeer *peer = luaL_checkudata(L, 1, PEER_NAME);
    lua_pushfstring(L, "peer (%s)", peer->remote ? states[peer->remote->state] : "collected");
    return 1;
}

/* --- making ------------------------------------------------------------------------------------------ */

/* [spec, child] -> [spec, child, peer] */
static void push_peer(lua_State *L, struct bough_remote *remote)
{
    static const char *const names[] = {"stdout", "stderr"};
    struct lpeer *peer = lua_newuserdatauv(L, sizeof *peer, PEER_VALUES);
    peer->remote = NULL;
    luaL_setmetatable(L, PEER_NAME);
    peer->remote = remote;
    remote->refs++;
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, 2, BOUGH_CHILD_FAILURE);
    lua_setiuservalue(L, 3, PEER_FAILURE);
    if (remote->input) {
        bough_lreader_push(L, remote->input, -1, "stdin");
        remote->input->refs++;
        lua_setiuservalue(L, 3, PEER_STDIN);
    }
    for (int i = 0; i < 2; i++) {
        if (!remote->output[i])
            continue;
        bough_lwriter_push(L, remote->output[i], -1, names[i]);
        remote->output[i]->refs++;
        lua_setiuservalue(L, 3, PEER_STDOUT + i);
    }
    if (remote->streams.joined) {
        lua_getiuservalue(L, 3, PEER_STDOUT);
        lua_setiuservalue(L, 3, PEER_STDERR);
    }
}

/* core.child(spec) -> child, peer */
static int core_child(lua_State *L)
{
    struct bough_err err;
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    if (lua_getfield(L, 1, "pty") != LUA_TNIL)
        return bough_lerr(L, BOUGH_ERR_unsupported, NULL, "this engine gives no terminals");
    lua_pop(L, 1);
    bough_lchild_new(L);
    struct bough_remote *remote = bough_remote_new(bough_core_loop(bough_core(L)));
    if (!remote)
        return luaL_error(L, "not enough memory");
    bough_lchild_adopt(L, &remote_class, remote, &remote->streams, &remote->changed, 1);
    bough_lspec_streams(L, 1, &remote->streams, false);
    if (bough_remote_open(remote, &err) < 0)
        return bough_lerr_raise(L, &err, NULL);
    push_peer(L, remote);
    return 2;
}

void bough_open_child(lua_State *L)
{
    static const luaL_Reg methods[] = {
        {"started", peer_started}, {"finish", peer_finish}, {"fail", peer_fail}, {"cut", peer_cut},
        {"next", peer_next},       {"close", peer_close},   {NULL, NULL},
    };
    static const luaL_Reg meta[] = {
        {"__gc", peer_gc}, {"__close", peer_close}, {"__tostring", peer_tostring}, {NULL, NULL}};
    if (luaL_newmetatable(L, PEER_NAME)) {
        luaL_setfuncs(L, meta, 0);
        luaL_newlib(L, methods);
        lua_pushcclosure(L, peer_index, 1);
        lua_setfield(L, -2, "__index");
    }
    lua_pop(L, 1);
    lua_pushcfunction(L, core_child);
    lua_setfield(L, -2, "child");
}
