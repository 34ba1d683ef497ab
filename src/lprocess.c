/* lprocess.c - the process userdata: a live or finished command, whatever the engine.
 *
 * It knows its engine only by the handle, an object with wait, signal, resize, close, over and pid, each of which may
 * be Lua and may suspend the task. So all state is in the userdata and its user values. Every wait for the end is the
 * same chain: input (communicate), the handle's end, settling, and what the caller wants of it. */
#define _GNU_SOURCE
#include "lprocess.h"

#include <lauxlib.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lattach.h"
#include "lcore.h"
#include "lstream.h"
#include "lwait.h"
#include "reader.h"
#include "sys.h"
#include "writer.h"

#define NEVER INT64_MAX
#define HOLD_NAME "bough.process_wait"
#define CLIP 60        /* bytes of a foreign text in a message */
#define SLICE_MIN 10   /* ms: how long input that finds no room waits before it asks for the end */
#define SLICE_MAX 1000 /* ms */
#define RETRIES 8      /* of __close, when its wait is cut short */

struct lprocess {
    bool over;                 /* the handle says so */
    bool ended;                /* and has given the result */
    bool failed;               /* or an error */
    bool check;                /* a failing end is an error */
    bool given_up;             /* its handle was closed */
    bool settling;             /* somebody is at it */
    bool settled;              /* it went well, or there is nothing to do */
    bool talking;              /* somebody is in communicate */
    bool begun;                /* communicate has taken its input */
    bool collected;            /* what the streams had at the end is in the result */
    size_t sent;               /* of the input */
    struct bough_cond changed; /* fires when whoever was settling has done */
};

/* What one wait holds of a process, let go on every way out: a value to be closed. User value 1: the process. */
struct hold {
    struct lprocess *process;
    struct bough_reader *readers[2]; /* have one unattended more; counted */
    struct bough_writer *writer;     /* takes our input; counted */
    struct bough_writer_turn turn;
    bool settling, talking;
};

/* The stack of every wait for the end. */
enum { AT_PROCESS = 1, AT_UNTIL, AT_SECONDS, AT_HOLD };

/* A wait for the end. */
struct ending {
    const char *op;
    void (*ended)(lua_State *L); /* at the end, before settling; NULL */
    int (*finish)(lua_State *L); /* pushes the results, or raises */
};

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
static void quoted_push(lua_State *L, const char *text, size_t size)
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

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The last line that has something on it: its start in `text`, and its size. */
static const char *last_line(const char *text, size_t *size)
{
    size_t end = *size;
    while (end > 0 && is_space(text[end - 1]))
        end--;
    size_t start = end;
    while (start > 0 && text[start - 1] != '\n')
        start--;
    while (start < end && is_space(text[start]))
        start++;
    *size = end - start;
    return text + start;
}

/* A table and the tables in it, `depth` deep. [-0, +1] */
static void table_copy(lua_State *L, int from, int depth)
{
    from = lua_absindex(L, from);
    luaL_checkstack(L, 5, NULL);
    lua_newtable(L);
    for (lua_pushnil(L); lua_next(L, from) != 0; lua_pop(L, 1)) {
        lua_pushvalue(L, -2);
        if (depth > 0 && lua_istable(L, -2))
            table_copy(L, -2, depth - 1);
        else
            lua_pushvalue(L, -2);
        lua_rawset(L, -5);
    }
}

/* Whether the error on top tells only that a wait was cut short (lwait.c), or is none of ours (Ctrl-C): nothing about
 * the process, which may be waited for again. */
static bool is_interruption(lua_State *L)
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
static void end_take(lua_State *L)
{
    struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    if (!p->ended) {
        table_copy(L, -1, 2);
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
        end_take(L);
    return 0;
}

/* Learns of the end of the process at index 1, if it is over: never waits, never raises. */
static void end_learn(lua_State *L)
{
    struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    if (p->ended || p->failed)
        return;
    luaL_checkstack(L, 4, NULL);
    lua_pushcfunction(L, end_ask);
    lua_pushvalue(L, AT_PROCESS);
    if (lua_pcall(L, 1, 0, 0) == LUA_OK)
        return;
    if (p->over && !is_interruption(L)) {
        lua_setiuservalue(L, AT_PROCESS, BOUGH_PROCESS_FAILURE);
        p->failed = true;
    } else {
        lua_pop(L, 1);
    }
}

static int failure_raise(lua_State *L)
{
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_FAILURE);
    return lua_error(L);
}

static void result_field(lua_State *L, const char *name)
{
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_RESULT);
    lua_getfield(L, -1, name);
    lua_remove(L, -2);
}

/* -- the end as an error, for `check` ------------------------------------------------------------ */

/* Into `err`: how the process ended. */
static void complaint(lua_State *L, struct bough_err *err)
{
    int top = lua_gettop(L);
    luaL_checkstack(L, 8, NULL);
    result_field(L, "timed_out");
    if (lua_toboolean(L, -1)) {
        if (lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_TIMEOUT) == LUA_TNUMBER)
            bough_err_set(err, BOUGH_ERR_timeout, "stopped at its time limit of %g s",
                          lua_tonumber(L, -1));
        else
            bough_err_set(err, BOUGH_ERR_timeout, "stopped at its time limit");
        lua_settop(L, top);
        return;
    }
    char how[64] = "";
    result_field(L, "signal");
    result_field(L, "oom");
    if (lua_toboolean(L, -1))
        snprintf(how, sizeof how, ", out of memory");
    else if (lua_isinteger(L, -2))
        snprintf(how, sizeof how, ", killed by signal %d", (int)lua_tointeger(L, -2));
    result_field(L, "exit_code");
    int code = (int)lua_tointeger(L, -1);
    result_field(L, "stderr");
    size_t size = 0;
    const char *line = lua_tolstring(L, -1, &size);
    if (line)
        line = last_line(line, &size);
    if (line && size > 0) {
        quoted_push(L, line, size);
        bough_err_set(err, BOUGH_ERR_exit, "exit code %d%s (last line of stderr: %s)", code, how,
                      lua_tostring(L, -1));
    } else {
        bough_err_set(err, BOUGH_ERR_exit, "exit code %d%s", code, how);
    }
    lua_settop(L, top);
}

/* Raises it when the process did badly and was to be checked. */
static void end_check(lua_State *L)
{
    const struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    result_field(L, "ok");
    bool ok = lua_toboolean(L, -1);
    lua_pop(L, 1);
    if (ok || !p->check)
        return;
    struct bough_err err;
    luaL_checkstack(L, 16, NULL);
    complaint(L, &err);
    size_t size;
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_OP);
    const char *op = lua_tostring(L, -1);
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_COMMAND);
    const char *command = luaL_tolstring(L, -1, &size);
    quoted_push(L, command, size);
    lua_pushfstring(L, "%s %s", op ? op : "process", lua_tostring(L, -1));
    bough_lerr_push(L, &err, lua_tostring(L, -1));
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_RESULT);
    table_copy(L, -1, 2);
    lua_setfield(L, -3, "result");
    lua_pop(L, 1);
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_COMMAND);
    lua_setfield(L, -2, "command");
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_IMAGE);
    lua_setfield(L, -2, "image");
    lua_error(L);
}

/* -- what a wait holds --------------------------------------------------------------------------- */

/* The process's output is the caller's again. */
static void hold_attend(struct hold *hold)
{
    for (int i = 0; i < 2; i++) {
        struct bough_reader *reader = hold->readers[i];
        hold->readers[i] = NULL;
        if (reader) {
            bough_reader_unattend(reader, -1);
            bough_reader_unref(reader);
        }
    }
}

/* Gets in line for writing. */
static void hold_feed(struct hold *hold, struct bough_writer *writer)
{
    if (hold->writer)
        return;
    hold->writer = writer;
    writer->refs++;
    bough_writer_turn_take(writer, &hold->turn);
}

static void hold_fed(struct hold *hold)
{
    if (!hold->writer)
        return;
    bough_writer_turn_leave(&hold->turn);
    bough_writer_unref(hold->writer);
    hold->writer = NULL;
}

static void hold_settled(struct hold *hold)
{
    if (!hold->settling)
        return;
    hold->settling = hold->process->settling = false;
    bough_cond_fire(&hold->process->changed);
}

static int hold_close(lua_State *L)
{
    struct hold *hold = lua_touserdata(L, 1);
    hold_attend(hold);
    hold_fed(hold);
    hold_settled(hold);
    if (hold->talking)
        hold->talking = hold->process->talking = false;
    return 0;
}

/* Its thread went with the state, or was dropped by somebody: the process may have gone first. */
static int hold_gc(lua_State *L)
{
    struct hold *hold = lua_touserdata(L, 1);
    hold_attend(hold);
    hold_fed(hold);
    return 0;
}

/* [process, ...] -> [process, until, seconds, hold]. `arg`: where the seconds are, 0 for none. */
static struct hold *wait_prepare(lua_State *L, int arg, const char *op, bool unattended)
{
    int64_t until_ns = NEVER;
    if (arg && !lua_isnoneornil(L, arg))
        until_ns = bough_check_until(L, arg, op, true);
    lua_pushinteger(L, (lua_Integer)until_ns);
    if (until_ns == NEVER)
        lua_pushnil(L);
    else
        lua_pushvalue(L, arg);
    lua_rotate(L, AT_UNTIL, 2);
    lua_settop(L, AT_SECONDS);
    struct hold *hold = lua_newuserdatauv(L, sizeof *hold, 1);
    memset(hold, 0, sizeof *hold);
    luaL_setmetatable(L, HOLD_NAME);
    lua_pushvalue(L, AT_PROCESS);
    lua_setiuservalue(L, AT_HOLD, 1);
    hold->process = lua_touserdata(L, AT_PROCESS);
    lua_toclose(L, AT_HOLD);
    luaL_checkstack(L, 16, NULL);
    for (int i = 0; unattended && i < 2; i++) {
        lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_STDOUT + i);
        struct bough_reader *reader = bough_lreader_test(L, -1);
        lua_pop(L, 1);
        if (reader) {
            reader->refs++;
            hold->readers[i] = reader;
            bough_reader_unattend(reader, 1);
        }
    }
    return hold;
}

/* -- settling ------------------------------------------------------------------------------------ */

static int settled_k(lua_State *L, int status, lua_KContext ctx)
{
    const struct ending *ending = (const struct ending *)ctx;
    struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    hold_settled(lua_touserdata(L, AT_HOLD));
    if (has_failed(status)) {
        if (!is_interruption(L)) { /* else the next one who waits settles */
            lua_pushvalue(L, -1);
            lua_setiuservalue(L, AT_PROCESS, BOUGH_PROCESS_TROUBLE);
        }
        return lua_error(L);
    }
    lua_setiuservalue(L, AT_PROCESS, BOUGH_PROCESS_IMAGE);
    p->settled = true;
    lua_settop(L, AT_HOLD);
    return ending->finish(L);
}

static int settle_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    const struct ending *ending = (const struct ending *)ctx;
    struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    struct hold *hold = lua_touserdata(L, AT_HOLD);
    if (p->settled)
        return ending->finish(L);
    if (lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_TROUBLE) != LUA_TNIL)
        return lua_error(L);
    lua_pop(L, 1);
    if (p->settling) {
        if (bough_wait_is_private(L))
            return bough_lerr(L, BOUGH_ERR_state, ending->op,
                              "another task is moving the session after this process, and cannot "
                              "go on while a coroutine inside a task waits");
        return bough_wait(L, &p->changed, ctx, settle_k);
    }
    if (lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_SETTLE) == LUA_TNIL) {
        lua_pop(L, 1);
        p->settled = true;
        return ending->finish(L);
    }
    hold->settling = p->settling = true;
    return settled_k(L, lua_pcallk(L, 0, 1, 0, ctx, settled_k), ctx);
}

/* -- waiting for the end ------------------------------------------------------------------------- */

/* Raises `timeout` when the time of this wait has passed. */
static void until_check(lua_State *L, const char *op)
{
    int64_t until_ns = (int64_t)lua_tointeger(L, AT_UNTIL);
    if (until_ns != NEVER && bough_now_ns() >= until_ns)
        bough_lerr(L, BOUGH_ERR_timeout, op,
                   "the process is still running after %.14g s: it goes on; kill() ends it",
                   lua_tonumber(L, AT_SECONDS));
}

/* Pushes handle.name and the handle, for a call. [-0, +2] */
static void handle_method(lua_State *L, const char *name, const char *op)
{
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_HANDLE);
    if (lua_getfield(L, -1, name) == LUA_TNIL)
        bough_lerr(L, BOUGH_ERR_unsupported, op, "processes of this engine have no %s", name);
    lua_insert(L, -2);
}

/* Above the hold is what the handle's wait has just given, if anything. */
static int await_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    const struct ending *ending = (const struct ending *)ctx;
    struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    for (;;) {
        if (lua_gettop(L) > AT_HOLD) {
            if (lua_istable(L, -1)) {
                end_take(L);
            } else {
                until_check(L, ending->op);
                if (lua_isnil(L, AT_SECONDS))
                    return bough_lerr(L, BOUGH_ERR_protocol, ending->op,
                                      "the engine gave no result for a process that it waited for");
            }
            lua_settop(L, AT_HOLD);
        }
        end_learn(L);
        if (p->failed)
            return failure_raise(L);
        if (p->ended)
            break;
        handle_method(L, "wait", ending->op);
        int count = 1;
        if (!lua_isnil(L, AT_SECONDS)) {
            int64_t left_ns = (int64_t)lua_tointeger(L, AT_UNTIL) - bough_now_ns();
            lua_pushnumber(L, left_ns > 0 ? (lua_Number)left_ns / 1e9 : 0.0);
            count = 2;
        }
        lua_callk(L, count, 1, ctx, await_k);
    }
    hold_attend(lua_touserdata(L, AT_HOLD));
    if (ending->ended)
        ending->ended(L);
    return settle_k(L, LUA_OK, ctx);
}

static int wait_finish(lua_State *L)
{
    end_check(L);
    result_field(L, "exit_code");
    return 1;
}

static int process_wait(lua_State *L)
{
    static const struct ending ending = {"wait", NULL, wait_finish};
    bough_lprocess_check(L, ending.op);
    lua_settop(L, 2);
    wait_prepare(L, 2, ending.op, true);
    return await_k(L, LUA_OK, (lua_KContext)&ending);
}

static int process_poll(lua_State *L)
{
    struct lprocess *p = bough_lprocess_check(L, "poll");
    lua_settop(L, 1);
    /* a caller who never waits drives no loop otherwise, and would never hear of the end */
    if (!p->over)
        bough_loop_poll(bough_core_loop(bough_core(L)), 0);
    end_learn(L);
    if (p->failed)
        return failure_raise(L);
    if (!p->ended)
        return 0;
    result_field(L, "exit_code");
    return 1;
}

/* -- communicate --------------------------------------------------------------------------------- */

/* Everything that a reader has, and no more than is there now. [-0, +1] */
static void reader_collect(lua_State *L, struct bough_reader *reader)
{
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    bough_reader_cut(reader);
    for (;;) {
        if (reader->size == 0)
            bough_reader_pull(reader, BOUGH_READER_ASIDE);
        if (reader->size == 0)
            break;
        luaL_addlstring(&b, reader->data + reader->at, reader->size);
        bough_reader_take(reader, reader->size);
    }
    luaL_pushresult(&b);
}

static void communicate_ended(lua_State *L)
{
    static const char *const names[] = {"stdout", "stderr"};
    struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    if (p->collected)
        return;
    p->collected = true;
    for (int i = 0; i < 2; i++) {
        lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_RESULT);
        lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_STDOUT + i);
        struct bough_reader *reader = bough_lreader_test(L, -1);
        if (reader && !reader->closed && !reader->taken) {
            reader_collect(L, reader);
            lua_setfield(L, -3, names[i]);
        }
        lua_pop(L, 2);
    }
    lua_pushnil(L);
    lua_setiuservalue(L, AT_PROCESS, BOUGH_PROCESS_INPUT);
}

static int communicate_finish(lua_State *L)
{
    for (int i = 0; i < 2; i++) {
        lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_STDOUT + i);
        const struct bough_reader *reader = bough_lreader_test(L, -1);
        lua_pop(L, 1);
        if (reader && !reader->closed && reader->err.msg[0])
            return bough_lerr_raise(L, &reader->err, "communicate"); /* something is missing */
    }
    end_check(L);
    result_field(L, "stdout");
    result_field(L, "stderr");
    return 2;
}

static const struct ending communication = {"communicate", communicate_ended, communicate_finish};

static struct bough_writer *stdin_of(lua_State *L)
{
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_STDIN);
    struct bough_writer *writer = bough_lwriter_test(L, -1);
    lua_pop(L, 1);
    return writer;
}

/* No more input: `all` of it is on its way, or nobody wants it. */
static int feed_done(lua_State *L, struct bough_writer *writer, bool all)
{
    if (writer && !writer->closed && !writer->taken) {
        if (all)
            bough_writer_end(writer);
        else
            bough_writer_close(writer);
    }
    hold_fed(lua_touserdata(L, AT_HOLD));
    return await_k(L, LUA_OK, (lua_KContext)&communication);
}

static int feed_k(lua_State *L, int status, lua_KContext ctx);

/* [..., result or nil] The input has found no room for a while, and perhaps never will: a child in the background may
 * hold the pipe of a process that is over. ctx: how long that was, in ms. */
static int feed_asked_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    if (lua_istable(L, -1))
        end_take(L);
    lua_settop(L, AT_HOLD);
    return feed_k(L, LUA_OK, ctx < SLICE_MAX ? -2 * ctx : -ctx);
}

/* Puts what fits of the input into the writer. 1: all is in, -1: nobody wants more, 0: there is no room, or it is not
 * our turn. Not inlined: see bough_wait_until. */
static __attribute__((noinline)) int feed_put(lua_State *L, struct bough_writer *writer)
{
    struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    struct hold *hold = lua_touserdata(L, AT_HOLD);
    size_t size = 0;
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_INPUT); /* stays there */
    const char *input = lua_tolstring(L, -1, &size);
    lua_pop(L, 1);
    if (p->sent < size)
        hold_feed(hold, writer);
    if (p->sent < size && writer->first != &hold->turn)
        return 0;
    while (p->sent < size) {
        ssize_t count = bough_writer_put(writer, input + p->sent, size - p->sent);
        if (count < 0 && writer->err.kind != BOUGH_ERR_closed)
            return bough_lerr_raise(L, &writer->err, communication.op);
        if (count <= 0)
            return (int)count; /* closed: a command need not read all that it is given */
        p->sent += (size_t)count;
    }
    return 1;
}

/* Feeds stdin until all is in or nobody wants more; the output is put aside meanwhile. ctx: how long, in ms, to wait
 * for room before asking whether the process is over; negative when that has just been asked. */
static int feed_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    struct bough_writer *writer = stdin_of(L);
    end_learn(L);
    if (p->over || !writer || writer->closed || writer->taken)
        return feed_done(L, writer, false);
    size_t before = p->sent;
    int outcome = feed_put(L, writer);
    if (outcome != 0)
        return feed_done(L, writer, outcome > 0);
    until_check(L, communication.op);
    if (p->sent > before)
        ctx = -SLICE_MIN;
    if (ctx > 0) {
        handle_method(L, "wait", communication.op);
        lua_pushnumber(L, 0);
        lua_callk(L, 2, 1, ctx, feed_asked_k);
        return feed_asked_k(L, LUA_OK, ctx);
    }
    int64_t due_ns = bough_now_ns() - (int64_t)ctx * 1000000;
    int64_t until_ns = (int64_t)lua_tointeger(L, AT_UNTIL);
    const struct hold *hold = lua_touserdata(L, AT_HOLD);
    bool first = writer->first == &hold->turn;
    if (first && bough_writer_watch(writer) < 0)
        return feed_k(L, LUA_OK, ctx); /* will say why */
    return bough_wait_until(L, first ? &writer->changed : &writer->moved,
                            due_ns < until_ns ? due_ns : until_ns, -ctx, feed_k);
}

/* [process, input]: what communicate is to send, checked against the streams and an earlier call. */
static void input_take(lua_State *L, struct lprocess *p)
{
    const char *op = communication.op;
    if (!lua_isnil(L, 2) && !lua_isstring(L, 2))
        bough_lerr(L, BOUGH_ERR_invalid, op, "the input must be a string or nil, not %s",
                   luaL_typename(L, 2));
    size_t size;
    const char *input = lua_tolstring(L, 2, &size);
    end_learn(L);
    if (p->over)
        return; /* nobody is there to read it */
    if (p->begun) {
        lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_INPUT);
        if (input && !lua_rawequal(L, 2, -1))
            bough_lerr(L, BOUGH_ERR_state, op,
                       "another input is being sent already: leave it out to go on with that one");
        lua_pop(L, 1);
        return;
    }
    if (input && size > 0) {
        const struct bough_writer *writer = stdin_of(L);
        if (!writer)
            bough_lerr(L, BOUGH_ERR_invalid, op, "input needs a process with stdin = bough.PIPE");
        if (writer->taken)
            bough_lerr(L, BOUGH_ERR_closed, op, "stdin %s", writer->taken);
        if (writer->closed)
            bough_lerr(L, BOUGH_ERR_closed, op, "stdin is closed");
    }
    p->begun = true;
    lua_pushvalue(L, 2);
    lua_setiuservalue(L, AT_PROCESS, BOUGH_PROCESS_INPUT);
}

/* communicate(input?, timeout?) -> stdout, stderr */
static int process_communicate(lua_State *L)
{
    struct lprocess *p = bough_lprocess_check(L, communication.op);
    lua_settop(L, 3);
    if (!lua_isnil(L, 3))
        bough_check_until(L, 3, communication.op, true); /* before anything is begun */
    if (p->talking)
        return bough_lerr(L, BOUGH_ERR_busy, communication.op,
                          "another communicate with this process is under way");
    input_take(L, p);
    struct hold *hold = wait_prepare(L, 3, communication.op, true);
    hold->talking = p->talking = true;
    return feed_k(L, LUA_OK, SLICE_MIN);
}

/* -- signals ------------------------------------------------------------------------------------- */

/* Those of signal(7), without SIG. */
static const struct {
    const char *name;
    int number;
} signals[] = {
    {"ABRT", SIGABRT},     {"ALRM", SIGALRM}, {"BUS", SIGBUS},   {"CHLD", SIGCHLD},
    {"CLD", SIGCHLD},      {"CONT", SIGCONT}, {"FPE", SIGFPE},   {"HUP", SIGHUP},
    {"ILL", SIGILL},       {"INFO", SIGPWR},  {"INT", SIGINT},   {"IO", SIGIO},
    {"IOT", SIGABRT},      {"KILL", SIGKILL}, {"PIPE", SIGPIPE}, {"POLL", SIGPOLL},
    {"PROF", SIGPROF},     {"PWR", SIGPWR},   {"QUIT", SIGQUIT}, {"SEGV", SIGSEGV},
    {"STOP", SIGSTOP},     {"SYS", SIGSYS},   {"TERM", SIGTERM}, {"TRAP", SIGTRAP},
    {"TSTP", SIGTSTP},     {"TTIN", SIGTTIN}, {"TTOU", SIGTTOU}, {"UNUSED", SIGSYS},
    {"URG", SIGURG},       {"USR1", SIGUSR1}, {"USR2", SIGUSR2}, {"VTALRM", SIGVTALRM},
    {"WINCH", SIGWINCH},   {"XCPU", SIGXCPU}, {"XFSZ", SIGXFSZ},
#ifdef SIGSTKFLT
    {"STKFLT", SIGSTKFLT},
#endif
#ifdef SIGEMT
    {"EMT", SIGEMT},
#endif
#ifdef SIGLOST
    {"LOST", SIGLOST},
#endif
};

enum { SIGNAL_SIZE = 16 }; /* of a name, more than any has */

/* How many letters have to be changed, put in or left out to get from one name to the other. */
static int name_distance(const char *a, const char *b)
{
    int row[SIGNAL_SIZE + 1];
    int width = (int)strlen(b);
    for (int j = 0; j <= width; j++)
        row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int corner = row[0];
        row[0] = i;
        for (int j = 1; j <= width; j++) {
            int cost = corner + (a[i - 1] != b[j - 1]);
            corner = row[j];
            int shorter = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            row[j] = cost < shorter ? cost : shorter;
        }
    }
    return row[width];
}

/* "RTMIN+3", "RTMAX": its number, or 0. */
static int signal_realtime(const char *name)
{
    bool low = strncmp(name, "RTMIN", 5) == 0;
    if (!low && strncmp(name, "RTMAX", 5) != 0)
        return 0;
    int number = low ? SIGRTMIN : SIGRTMAX;
    if (name[5] != '\0') {
        char *end;
        if (name[5] != (low ? '+' : '-') || name[6] < '0' || name[6] > '9')
            return 0;
        long offset = strtol(name + 6, &end, 10);
        if (*end || offset > SIGRTMAX - SIGRTMIN)
            return 0;
        number += low ? (int)offset : -(int)offset;
    }
    return number;
}

/* Raises `invalid`, with the name that was meant. */
static int signal_unknown(lua_State *L, int arg, const char *name, const char *op)
{
    const char *nearest = "TERM";
    int best = SIGNAL_SIZE;
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        int cost = name_distance(name, signals[i].name);
        if (cost < best) {
            best = cost;
            nearest = signals[i].name;
        }
    }
    if (strncmp(name, "RT", 2) == 0)
        nearest = strncmp(name, "RTMA", 4) == 0 ? "RTMAX-n" : "RTMIN+n";
    size_t size;
    const char *given = lua_tolstring(L, arg, &size);
    quoted_push(L, given, size);
    return bough_lerr(L, BOUGH_ERR_invalid, op, "unknown signal %s: did you mean \"%s\"?",
                      lua_tostring(L, -1), nearest);
}

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
    const char *given = lua_tolstring(L, arg, &size);
    const char *bare = strncasecmp(given, "SIG", 3) == 0 ? given + 3 : given;
    char name[SIGNAL_SIZE] = "";
    for (size_t i = 0; i < sizeof name - 1 && bare[i]; i++)
        name[i] = (char)(bare[i] >= 'a' && bare[i] <= 'z' ? bare[i] - 32 : bare[i]);
    bool whole = (size_t)(bare - given) + strlen(name) == size; /* not too long, no NUL inside */
    for (size_t i = 0; whole && i < sizeof signals / sizeof *signals; i++)
        if (strcmp(name, signals[i].name) == 0)
            return signals[i].number;
    int number = whole ? signal_realtime(name) : 0;
    return number ? number : signal_unknown(L, arg, name, op);
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
    end_learn(L);
    if (p->over)
        return done_k(L, LUA_OK, 0);
    handle_method(L, "signal", op);
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
    end_learn(L);
    if (p->over)
        return done_k(L, LUA_OK, 0);
    handle_method(L, "resize", "resize");
    lua_pushvalue(L, 2);
    lua_pushvalue(L, 3);
    lua_callk(L, 3, 0, 0, done_k);
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
static int streams_close(lua_State *L)
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

/* As io.popen's close has it. */
static int close_finish(lua_State *L)
{
    result_field(L, "ok");
    if (!lua_toboolean(L, -1))
        lua_pushnil(L);
    result_field(L, "signal");
    bool signalled = !lua_isnil(L, -1);
    lua_pushstring(L, signalled ? "signal" : "exit");
    lua_insert(L, -2);
    if (!signalled) {
        lua_pop(L, 1);
        result_field(L, "exit_code");
    }
    return 3;
}

static int process_close(lua_State *L)
{
    static const struct ending ending = {"close", NULL, close_finish};
    bough_lprocess_check(L, ending.op);
    lua_settop(L, 1);
    lua_pushcfunction(L, streams_close);
    lua_pushvalue(L, 1);
    lua_call(L, 1, 0);
    wait_prepare(L, 0, ending.op, false);
    return await_k(L, LUA_OK, (lua_KContext)&ending);
}

/* [process, error under way or nil, own error or nil] */
static int left(lua_State *L)
{
    lua_settop(L, 3);
    lua_pushcfunction(L, streams_close);
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
        bool cut = is_interruption(L) && !(kind && strcmp(kind, "state") == 0);
        bool again = cut && kind && ctx > 0;
        if (cut && lua_isnil(L, 3))
            lua_replace(L, 3);
        lua_settop(L, 3);
        end_learn(L);
        if (again && !p->over) {
            handle_method(L, "wait", "close");
            return leaving_k(L, lua_pcallk(L, 1, 1, 0, ctx - 1, leaving_k), ctx - 1);
        }
    } else if (lua_istable(L, -1)) {
        end_take(L);
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
    handle_method(L, "wait", "close");
    return leaving_k(L, lua_pcallk(L, 1, 1, 0, RETRIES, leaving_k), RETRIES);
}

static int process__close(lua_State *L)
{
    struct lprocess *p = bough_lprocess_check(L, "close");
    lua_settop(L, 2);
    lua_pushnil(L);
    end_learn(L);
    if (p->over)
        return left(L);
    p->given_up = true;
    handle_method(L, "close", "close");
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
        result_field(L, names[i]);
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
    end_learn(L);
    if (!p->ended) {
        if (where != FROM_ALL)
            return 0;
        if (p->failed)
            return failure_raise(L);
        return bough_lerr(L, BOUGH_ERR_state, NULL,
                          "process.result: there is none before the end: wait for it");
    }
    if (where == FROM_TIMES)
        return resources_push(L);
    if (where == FROM_RESULT) {
        result_field(L, fields[which].source);
    } else {
        lua_getiuservalue(L, 1, BOUGH_PROCESS_RESULT);
        table_copy(L, -1, 2);
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
    result_field(L, "timed_out");
    const char *late = lua_toboolean(L, -1) ? ", timed out" : "";
    result_field(L, "signal");
    result_field(L, "exit_code");
    bool signalled = !lua_isnil(L, -2);
    lua_pushfstring(L, "%s %I%s", signalled ? "signal" : "exit",
                    (LUAI_UACINT)lua_tointeger(L, signalled ? -2 : -1), late);
}

static int process__tostring(lua_State *L)
{
    const struct lprocess *p = bough_lprocess_check(L, "tostring");
    lua_settop(L, 1);
    end_learn(L);
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
    quoted_push(L, command, size);
    state_push(L, p);
    lua_pushfstring(L, "%s %s %s", lua_tostring(L, 3), lua_tostring(L, 6), lua_tostring(L, -1));
    return 1;
}

/* -- making -------------------------------------------------------------------------------------- */

/* Moves fields.name to a user value of the process on top. */
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
    luaL_setmetatable(L, BOUGH_PROCESS); /* last: from here on it has a finaliser */
    return 1;
}

static const luaL_Reg process_methods[] = {
    {"poll", process_poll},
    {"wait", process_wait},
    {"communicate", process_communicate},
    {"kill", process_kill},
    {"terminate", process_terminate},
    {"send_signal", process_send_signal},
    {"resize", process_resize},
    {"attach", process_attach},
    {"close", process_close},
    {NULL, NULL},
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
    lua_newtable(L);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        lua_pushinteger(L, (lua_Integer)i);
        lua_setfield(L, -2, fields[i].name);
    }
    lua_pushcclosure(L, process__index, 2);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);

    luaL_newmetatable(L, HOLD_NAME);
    lua_pushcfunction(L, hold_close);
    lua_setfield(L, -2, "__close");
    lua_pushcfunction(L, hold_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);

    lua_pushcfunction(L, core_process);
    lua_setfield(L, -2, "process");
}
