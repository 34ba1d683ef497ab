/* lprocess.c - the process userdata: a live or finished command, whatever the engine.
 *
 * It knows its engine only by the handle, an object with wait, signal, resize, close, over and pid, each of which may
 * be Lua and may suspend the task. So all state is in the userdata and its user values. Waiting for the end is in
 * lending.c. */
#define _GNU_SOURCE
#include "lprocess.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "lattach.h"
#include "lcore.h"
#include "lstream.h"
#include "signals.h"

#define CLIP 60   /* bytes of a foreign text in a message */
#define RETRIES 8 /* of __close, when its wait is cut short */

static bool has_failed(int status)
{
    return status != LUA_OK && status != LUA_YIELD;
}

struct lprocess *bough_lprocess_check(lua_State *L, const char *op)
{
    struct lprocess *p = luaL_testudata(L, 1, BOUGH_PROCESS);
    if (!p)
        bough_lerr(L, BOUGH_ERR_invalid, op,
                   "called on %s instead of a process: write process:%s(...)", luaL_typename(L, 1),
                   op);
    return p;
}

/* -- words ------------------------------------------------------------------------------------- */

/* Pushes a text as messages show it: quoted, control characters escaped, long ones clipped. */
void bough_lprocess_quote(lua_State *L, const char *text, size_t size)
{
    size_t shown = size;
    if (size > CLIP) {
        shown = CLIP - 3;
        while (shown > CLIP - 10 && ((unsigned char)text[shown] & 0xc0) == 0x80)
            shown--; /* not in the middle of a UTF-8 sequence */
    }
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    luaL_addchar(&b, '"');
    for (size_t i = 0; i < shown; i++) {
        unsigned char c = (unsigned char)text[i];
        char escaped[8];
        if (c == '"' || c == '\\')
            snprintf(escaped, sizeof escaped, "\\%c", c);
        else if (c == '\n')
            snprintf(escaped, sizeof escaped, "\\n");
        else if (c < 32 || c == 127)
            snprintf(escaped, sizeof escaped, "\\%d", c);
        else
            snprintf(escaped, sizeof escaped, "%c", c);
        luaL_addstring(&b, escaped);
    }
    luaL_addstring(&b, size > shown ? "...\"" : "\"");
    luaL_pushresult(&b);
}

/* A table and the tables in it, `depth` deep. [-0, +1] */
void bough_lprocess_copy(lua_State *L, int from, int depth)
{
    from = lua_absindex(L, from);
    luaL_checkstack(L, 5, NULL);
    lua_newtable(L);
    for (lua_pushnil(L); lua_next(L, from) != 0; lua_pop(L, 1)) {
        lua_pushvalue(L, -2);
        if (depth > 0 && lua_istable(L, -2))
            bough_lprocess_copy(L, -2, depth - 1);
        else
            lua_pushvalue(L, -2);
        lua_rawset(L, -5);
    }
}

/* Whether the error on top tells only that a wait was cut short (lwait.c), or is none of ours (Ctrl-C): nothing about
 * the process, which may be waited for again. */
bool bough_lprocess_cut_short(lua_State *L)
{
    const char *kind = bough_lerr_kind(L, -1);
    if (!kind)
        return true;
    lua_pushliteral(L, "op");
    lua_rawget(L, -2);
    const char *op = lua_tostring(L, -1);
    bool cut = op ? strcmp(kind, "timeout") == 0 && strcmp(op, "deadline") == 0
                  : strcmp(kind, "cancelled") == 0 || strcmp(kind, "state") == 0;
    lua_pop(L, 1);
    return cut;
}

/* -- what is known of the end -------------------------------------------------------------------- */

/* Takes the handle's result from the top. */
void bough_lprocess_take(lua_State *L)
{
    struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    if (!p->ended) {
        bough_lprocess_copy(L, -1, 2);
        lua_setiuservalue(L, AT_PROCESS, BOUGH_PROCESS_RESULT);
        p->over = p->ended = true;
    }
    lua_pop(L, 1);
}

/* [process], protected: of a process that is over, nothing waits here. */
static int end_ask(lua_State *L)
{
    struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_HANDLE);
    lua_getfield(L, 2, "over");
    p->over = lua_toboolean(L, -1);
    if (!p->over)
        return 0;
    lua_settop(L, 2);
    lua_getfield(L, 2, "wait");
    lua_insert(L, 2);
    lua_pushnumber(L, 0);
    lua_call(L, 2, 1);
    if (lua_istable(L, -1))
        bough_lprocess_take(L);
    return 0;
}

/* Learns of the end of the process at index 1, if it is over: never waits, never raises. */
void bough_lprocess_learn(lua_State *L)
{
    struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    if (p->ended || p->failed)
        return;
    luaL_checkstack(L, 4, NULL);
    lua_pushcfunction(L, end_ask);
    lua_pushvalue(L, AT_PROCESS);
    if (lua_pcall(L, 1, 0, 0) == LUA_OK)
        return;
    if (p->over && !bough_lprocess_cut_short(L)) {
        lua_setiuservalue(L, AT_PROCESS, BOUGH_PROCESS_FAILURE);
        p->failed = true;
    } else {
        lua_pop(L, 1);
    }
}

int bough_lprocess_failure(lua_State *L)
{
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_FAILURE);
    return lua_error(L);
}

void bough_lprocess_field(lua_State *L, const char *name)
{
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_RESULT);
    lua_getfield(L, -1, name);
    lua_remove(L, -2);
}

/* Pushes handle.name and the handle, for a call. [-0, +2] */
void bough_lprocess_method(lua_State *L, const char *name, const char *op)
{
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_HANDLE);
    if (lua_getfield(L, -1, name) == LUA_TNIL)
        bough_lerr(L, BOUGH_ERR_unsupported, op, "processes of this engine have no %s", name);
    lua_insert(L, -2);
}

static int process_poll(lua_State *L)
{
    struct lprocess *p = bough_lprocess_check(L, "poll");
    lua_settop(L, 1);
    /* a caller who never waits drives no loop otherwise, and would never hear of the end */
    if (!p->over)
        bough_wait_glance(L);
    bough_lprocess_learn(L);
    if (p->failed)
        return bough_lprocess_failure(L);
    if (p->ended)
        bough_lprocess_field(L, "exit_code");
    else
        lua_pushnil(L);
    return 1;
}

/* -- signals ------------------------------------------------------------------------------------- */

/* The number of the signal at `arg`, given by number or by name; raises `invalid`. */
static int signal_number(lua_State *L, int arg, const char *op)
{
    if (lua_type(L, arg) == LUA_TNUMBER) {
        int exact;
        lua_Integer number = lua_tointegerx(L, arg, &exact);
        if (!exact || number < 1 || number > SIGRTMAX)
            return bough_lerr(L, BOUGH_ERR_invalid, op,
                              "there is no signal %s: their numbers are 1 to %d",
                              luaL_tolstring(L, arg, NULL), SIGRTMAX);
        return (int)number;
    }
    if (lua_type(L, arg) != LUA_TSTRING)
        return bough_lerr(L, BOUGH_ERR_invalid, op, "expected a signal's name or number, not %s",
                          luaL_typename(L, arg));
    size_t size;
    const char *name = lua_tolstring(L, arg, &size);
    int number = bough_signal_number(name, size);
    if (number)
        return number;
    bough_lprocess_quote(L, name, size);
    return bough_lerr(L, BOUGH_ERR_invalid, op, "unknown signal %s: did you mean \"%s\"?",
                      lua_tostring(L, -1), bough_signal_nearest(name));
}

static int done_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    lua_pushboolean(L, true);
    return 1;
}

/* A process that is over gets none: that is no mistake of anybody's. */
static int signal_send(lua_State *L, int number, const char *op)
{
    const struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    bough_lprocess_learn(L);
    if (p->over)
        return done_k(L, LUA_OK, 0);
    bough_lprocess_method(L, "signal", op);
    lua_pushinteger(L, number);
    lua_pushliteral(L, "group");
    lua_callk(L, 3, 0, 0, done_k);
    return done_k(L, LUA_OK, 0);
}

static int process_kill(lua_State *L)
{
    bough_lprocess_check(L, "kill");
    return signal_send(L, lua_isnoneornil(L, 2) ? SIGKILL : signal_number(L, 2, "kill"), "kill");
}

static int process_terminate(lua_State *L)
{
    bough_lprocess_check(L, "terminate");
    return signal_send(L, SIGTERM, "terminate");
}

static int process_send_signal(lua_State *L)
{
    bough_lprocess_check(L, "send_signal");
    return signal_send(L, signal_number(L, 2, "send_signal"), "send_signal");
}

/* -- terminals ----------------------------------------------------------------------------------- */

static void size_check(lua_State *L, int arg, const char *name)
{
    int exact = 0;
    lua_Integer value = lua_type(L, arg) == LUA_TNUMBER ? lua_tointegerx(L, arg, &exact) : 0;
    if (!exact || value < 1 || value > 65535)
        bough_lerr(L, BOUGH_ERR_invalid, "resize",
                   "%s must be a whole number from 1 to 65535, not %s", name,
                   luaL_tolstring(L, arg, NULL));
    lua_pushinteger(L, value);
    lua_replace(L, arg);
}

static int process_resize(lua_State *L)
{
    const struct lprocess *p = bough_lprocess_check(L, "resize");
    lua_settop(L, 3);
    size_check(L, 2, "rows");
    size_check(L, 3, "cols");
    bough_lprocess_learn(L);
    if (p->over)
        return done_k(L, LUA_OK, 0);
    bough_lprocess_method(L, "resize", "resize");
    lua_pushvalue(L, 2);
    lua_pushvalue(L, 3);
    lua_callk(L, 3, 0, 0, done_k);
    return done_k(L, LUA_OK, 0);
}

/* process:started(): waits until it runs; raises why it does not. For those who have started it without waiting. */
static int process_started(lua_State *L)
{
    bough_lprocess_check(L, "started");
    lua_settop(L, 1);
    bough_lprocess_method(L, "started", "started");
    lua_callk(L, 1, 0, 0, done_k);
    return done_k(L, LUA_OK, 0);
}

static int process_attach(lua_State *L)
{
    bough_lprocess_check(L, "attach");
    lua_settop(L, 2);
    return bough_attach(L);
}

/* -- the end of its use -------------------------------------------------------------------------- */

/* [process]: our ends of its streams. What was written still goes; none of this waits. */
int bough_lprocess_streams_close(lua_State *L)
{
    for (int i = BOUGH_PROCESS_STDIN; i <= BOUGH_PROCESS_STDERR; i++) {
        if (lua_getiuservalue(L, 1, i) != LUA_TNIL) {
            lua_getfield(L, -1, "close");
            lua_insert(L, -2);
            lua_call(L, 1, 0);
        } else {
            lua_pop(L, 1);
        }
    }
    return 0;
}

/* [process, error under way or nil, own error or nil] */
static int left(lua_State *L)
{
    lua_settop(L, 3);
    lua_pushcfunction(L, bough_lprocess_streams_close);
    lua_pushvalue(L, 1);
    if (lua_pcall(L, 1, 0, 0) != LUA_OK)
        lua_pop(L, 1);
    lua_settop(L, 3);
    /* the process is no reason to raise here, but a cancellation of the caller must not be lost */
    if (lua_isnil(L, 2) && !lua_isnil(L, 3))
        return lua_error(L);
    return 0;
}

/* [process, error under way, own error, result or error]. ctx: how often to try again. */
static int leaving_k(lua_State *L, int status, lua_KContext ctx)
{
    const struct lprocess *p = lua_touserdata(L, 1);
    if (has_failed(status)) {
        const char *kind = bough_lerr_kind(L, -1);
        /* `state`: here nobody may wait, as in a finaliser */
        bool cut = bough_lprocess_cut_short(L) && !(kind && strcmp(kind, "state") == 0);
        bool again = cut && kind && ctx > 0;
        if (cut && lua_isnil(L, 3))
            lua_replace(L, 3);
        lua_settop(L, 3);
        bough_lprocess_learn(L);
        if (again && !p->over) {
            bough_lprocess_method(L, "wait", "close");
            return leaving_k(L, lua_pcallk(L, 1, 1, 0, ctx - 1, leaving_k), ctx - 1);
        }
    } else if (lua_istable(L, -1)) {
        bough_lprocess_take(L);
    }
    return left(L);
}

/* The handle was closed, so it is soon over. */
static int gave_up_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)ctx;
    if (has_failed(status))
        return leaving_k(L, status, 0); /* perhaps nothing was killed */
    lua_settop(L, 3);
    bough_lprocess_method(L, "wait", "close");
    return leaving_k(L, lua_pcallk(L, 1, 1, 0, RETRIES, leaving_k), RETRIES);
}

static int process__close(lua_State *L)
{
    struct lprocess *p = bough_lprocess_check(L, "close");
    lua_settop(L, 2);
    lua_pushnil(L);
    bough_lprocess_learn(L);
    if (p->over)
        return left(L);
    p->given_up = true;
    bough_lprocess_method(L, "close", "close");
    return gave_up_k(L, lua_pcallk(L, 1, 0, 0, 0, gave_up_k), 0);
}

static int gc_give_up(lua_State *L)
{
    lua_getiuservalue(L, 1, BOUGH_PROCESS_HANDLE);
    lua_getfield(L, 2, "over");
    if (lua_toboolean(L, -1))
        return 0;
    lua_getfield(L, 2, "close");
    lua_pushvalue(L, 2);
    lua_call(L, 1, 0);
    return 0;
}

/* The streams have finalisers of their own, and may be in use without the process. */
static int process__gc(lua_State *L)
{
    struct lprocess *p = lua_touserdata(L, 1);
    if (!p->over && !p->given_up) {
        p->given_up = true;
        lua_pushcfunction(L, gc_give_up);
        lua_pushvalue(L, 1);
        if (lua_pcall(L, 1, 0, 0) != LUA_OK)
            lua_pop(L, 1); /* there is nobody to tell */
    }
    bough_cond_destroy(&p->changed);
    return 0;
}

/* -- fields -------------------------------------------------------------------------------------- */

enum field_where {
    FROM_PROCESS = 1, /* a user value */
    FROM_HANDLE,
    FROM_RESULT, /* nil before the end */
    FROM_ALL,    /* the result itself */
    FROM_TIMES,
};

static const struct {
    const char *name, *source;
    enum field_where where;
    int value;
} fields[] = {
    {"stdin", NULL, FROM_PROCESS, BOUGH_PROCESS_STDIN},
    {"stdout", NULL, FROM_PROCESS, BOUGH_PROCESS_STDOUT},
    {"stderr", NULL, FROM_PROCESS, BOUGH_PROCESS_STDERR},
    {"command", NULL, FROM_PROCESS, BOUGH_PROCESS_COMMAND},
    {"image", NULL, FROM_PROCESS, BOUGH_PROCESS_IMAGE},
    {"pid", "pid", FROM_HANDLE, 0},
    {"returncode", "exit_code", FROM_RESULT, 0},
    {"signal", "signal", FROM_RESULT, 0},
    {"timed_out", "timed_out", FROM_RESULT, 0},
    {"ok", "ok", FROM_RESULT, 0},
    {"result", NULL, FROM_ALL, 0},
    {"resources", NULL, FROM_TIMES, 0},
};

static int resources_push(lua_State *L)
{
    static const char *const names[] = {"user_time", "system_time", "max_rss", "elapsed_time"};
    lua_createtable(L, 0, 4);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        bough_lprocess_field(L, names[i]);
        lua_setfield(L, -2, names[i]);
    }
    return 1;
}

static int field_push(lua_State *L, int which)
{
    const struct lprocess *p = lua_touserdata(L, 1);
    enum field_where where = fields[which].where;
    if (where == FROM_PROCESS) {
        lua_getiuservalue(L, 1, fields[which].value);
        return 1;
    }
    if (where == FROM_HANDLE) {
        lua_getiuservalue(L, 1, BOUGH_PROCESS_HANDLE);
        lua_getfield(L, -1, fields[which].source);
        return 1;
    }
    bough_lprocess_learn(L);
    if (!p->ended) {
        if (where != FROM_ALL)
            return 0;
        if (p->failed)
            return bough_lprocess_failure(L);
        return bough_lerr(L, BOUGH_ERR_state, NULL,
                          "process.result: there is none before the end: wait for it");
    }
    if (where == FROM_TIMES)
        return resources_push(L);
    if (where == FROM_RESULT) {
        bough_lprocess_field(L, fields[which].source);
    } else {
        lua_getiuservalue(L, 1, BOUGH_PROCESS_RESULT);
        bough_lprocess_copy(L, -1, 2);
    }
    return 1;
}

/* Upvalue 1: methods. Upvalue 2: name of a field -> its place in `fields`. */
static int process__index(lua_State *L)
{
    bough_lprocess_check(L, "index");
    lua_settop(L, 2);
    lua_pushvalue(L, 2);
    if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
        return 1;
    lua_pushvalue(L, 2);
    if (lua_rawget(L, lua_upvalueindex(2)) == LUA_TNIL)
        return 1;
    return field_push(L, (int)lua_tointeger(L, -1));
}

static int process__newindex(lua_State *L)
{
    return bough_lerr(L, BOUGH_ERR_invalid, NULL, "process.%s: fields of a process cannot be set",
                      luaL_tolstring(L, 2, NULL));
}

static int pid_push(lua_State *L)
{
    lua_getiuservalue(L, 1, BOUGH_PROCESS_HANDLE);
    lua_getfield(L, -1, "pid");
    return 1;
}

/* Pushes how it is doing. */
static void state_push(lua_State *L, const struct lprocess *p)
{
    if (!p->ended) {
        lua_pushstring(L, p->over ? "failed" : "running");
        return;
    }
    bough_lprocess_field(L, "timed_out");
    const char *late = lua_toboolean(L, -1) ? ", timed out" : "";
    bough_lprocess_field(L, "signal");
    bough_lprocess_field(L, "exit_code");
    bool signalled = !lua_isnil(L, -2);
    lua_pushfstring(L, "%s %I%s", signalled ? "signal" : "exit",
                    (LUAI_UACINT)lua_tointeger(L, signalled ? -2 : -1), late);
}

static int process__tostring(lua_State *L)
{
    const struct lprocess *p = bough_lprocess_check(L, "tostring");
    lua_settop(L, 1);
    bough_lprocess_learn(L);
    lua_pushcfunction(L, pid_push);
    lua_pushvalue(L, 1);
    bool numbered = lua_pcall(L, 1, 1, 0) == LUA_OK && lua_isinteger(L, -1);
    if (numbered)
        lua_pushfstring(L, "process %I", (LUAI_UACINT)lua_tointeger(L, -1));
    else
        lua_pushliteral(L, "process");
    size_t size;
    lua_getiuservalue(L, 1, BOUGH_PROCESS_COMMAND);
    const char *command = luaL_tolstring(L, -1, &size);
    bough_lprocess_quote(L, command, size);
    state_push(L, p);
    lua_pushfstring(L, "%s %s %s", lua_tostring(L, 3), lua_tostring(L, 6), lua_tostring(L, -1));
    return 1;
}

/* -- making -------------------------------------------------------------------------------------- */

/* Moves fields.name to a user value of the process on top. */
/* The stream in the field `name`, if it is one, holds the process on top: or it would be killed by the collector while
 * somebody still reads from it. */
static void hold_by_stream(lua_State *L, const char *name)
{
    if (lua_getfield(L, 2, name) != LUA_TNIL) {
        lua_pushvalue(L, -2);
        lua_setiuservalue(L, -2, BOUGH_STREAM_OWNER);
    }
    lua_pop(L, 1);
}

static void take_field(lua_State *L, const char *name, int value)
{
    lua_getfield(L, 2, name);
    lua_setiuservalue(L, -2, value);
}

static void check_stream(lua_State *L, const char *name, bool is_good)
{
    if (!is_good && !lua_isnil(L, -1))
        bough_lerr(L, BOUGH_ERR_invalid, "process", "%s must be a %s, not %s", name,
                   strcmp(name, "stdin") == 0 ? "writer" : "reader", luaL_typename(L, -1));
    lua_pop(L, 1);
}

/* core.process(handle, fields) */
static int core_process(lua_State *L)
{
    lua_settop(L, 2);
    if (!lua_istable(L, 1) && !lua_isuserdata(L, 1))
        return bough_lerr(L, BOUGH_ERR_invalid, "process", "expected an engine's handle, not %s",
                          luaL_typename(L, 1));
    if (!lua_istable(L, 2))
        return bough_lerr(L, BOUGH_ERR_invalid, "process", "expected a table of fields, not %s",
                          luaL_typename(L, 2));
    lua_getfield(L, 2, "stdin");
    check_stream(L, "stdin", bough_lwriter_test(L, -1) != NULL);
    lua_getfield(L, 2, "stdout");
    check_stream(L, "stdout", bough_lreader_test(L, -1) != NULL);
    lua_getfield(L, 2, "stderr");
    check_stream(L, "stderr", bough_lreader_test(L, -1) != NULL);
    struct bough_loop *loop = bough_core_loop(bough_core(L));
    struct lprocess *p = lua_newuserdatauv(L, sizeof *p, BOUGH_PROCESS_UV_COUNT);
    memset(p, 0, sizeof *p);
    bough_cond_init(&p->changed, loop);
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, -2, BOUGH_PROCESS_HANDLE);
    take_field(L, "stdin", BOUGH_PROCESS_STDIN);
    take_field(L, "stdout", BOUGH_PROCESS_STDOUT);
    take_field(L, "stderr", BOUGH_PROCESS_STDERR);
    take_field(L, "command", BOUGH_PROCESS_COMMAND);
    take_field(L, "timeout", BOUGH_PROCESS_TIMEOUT);
    take_field(L, "settle", BOUGH_PROCESS_SETTLE);
    take_field(L, "op", BOUGH_PROCESS_OP);
    lua_getfield(L, 2, "check");
    p->check = lua_toboolean(L, -1);
    lua_pop(L, 1);
    hold_by_stream(L, "stdin");
    hold_by_stream(L, "stdout");
    hold_by_stream(L, "stderr");
    luaL_setmetatable(L, BOUGH_PROCESS); /* last: from here on it has a finaliser */
    return 1;
}

static const luaL_Reg process_methods[] = {
    {"poll", process_poll},           {"kill", process_kill},
    {"terminate", process_terminate}, {"send_signal", process_send_signal},
    {"resize", process_resize},       {"started", process_started},
    {"attach", process_attach},       {NULL, NULL},
};

static const luaL_Reg process_meta[] = {
    {"__newindex", process__newindex},
    {"__tostring", process__tostring},
    {"__close", process__close},
    {"__gc", process__gc},
    {NULL, NULL},
};

/* [core table on top] -> the same, with `process` */
void bough_open_process(lua_State *L)
{
    luaL_newmetatable(L, BOUGH_PROCESS);
    luaL_setfuncs(L, process_meta, 0);
    luaL_newlib(L, process_methods);
    luaL_setfuncs(L, bough_lprocess_waits, 0);
    lua_newtable(L);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        lua_pushinteger(L, (lua_Integer)i);
        lua_setfield(L, -2, fields[i].name);
    }
    lua_pushcclosure(L, process__index, 2);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);

    bough_lprocess_waits_register(L);
    lua_pushcfunction(L, core_process);
    lua_setfield(L, -2, "process");
}
