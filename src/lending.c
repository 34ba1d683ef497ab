/* lending.c - waiting for a process's end: wait, communicate and close.
 *
 * Each is the same chain: input (communicate), the end as the handle tells it, settling, and what the caller wants of
 * it. All of these may suspend the task. What a wait holds meanwhile is a value to be closed, so that it is let go on
 * every way out. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include "lprocess.h"
#include "lstream.h"
#include "sys.h"

#define NEVER INT64_MAX
#define HOLD_NAME "bough.process_wait"
#define SLICE_MIN 10   /* ms: how long input that finds no room waits before it asks for the end */
#define SLICE_MAX 1000 /* ms */

/* What one wait holds of a process, let go on every way out: a value to be closed. User value 1: the process. */
struct hold {
    struct lprocess *process;
    struct bough_reader *readers[2]; /* have one unattended more; counted */
    struct bough_writer *writer;     /* takes our input; counted */
    struct bough_writer_turn turn;
    bool settling, talking;
};

/* The stack of every wait for the end. */
enum { AT_UNTIL = AT_PROCESS + 1, AT_SECONDS, AT_HOLD };

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

/* -- the end as an error, for `check` ------------------------------------------------------------ */

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

/* Into `err`: how the process ended. */
static void complaint(lua_State *L, struct bough_err *err)
{
    int top = lua_gettop(L);
    luaL_checkstack(L, 8, NULL);
    bough_lprocess_field(L, "timed_out");
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
    bough_lprocess_field(L, "signal");
    bough_lprocess_field(L, "oom");
    if (lua_toboolean(L, -1))
        snprintf(how, sizeof how, ", out of memory");
    else if (lua_isinteger(L, -2))
        snprintf(how, sizeof how, ", killed by signal %d", (int)lua_tointeger(L, -2));
    bough_lprocess_field(L, "exit_code");
    int code = (int)lua_tointeger(L, -1);
    bough_lprocess_field(L, "stderr");
    size_t size = 0;
    const char *line = lua_tolstring(L, -1, &size);
    if (line)
        line = last_line(line, &size);
    if (line && size > 0) {
        bough_lprocess_quote(L, line, size);
        bough_err_set(err, BOUGH_ERR_exit, "exit code %d%s (last line of stderr: %s)", code, how,
                      lua_tostring(L, -1));
    } else {
        bough_err_set(err, BOUGH_ERR_exit, "exit code %d%s", code, how);
    }
    lua_settop(L, top);
}

#define UNREAD_MAX (1024 * 1024)

/* What nobody has read of its streams goes into the result, and stays to be read. */
static void show_unread(lua_State *L)
{
    static const char *const names[] = {"stdout", "stderr"};
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_RESULT);
    for (int i = 0; i < 2; i++) {
        lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_STDOUT + i);
        struct bough_reader *reader = bough_lreader_test(L, -1);
        lua_pop(L, 1);
        bool known = lua_getfield(L, -1, names[i]) != LUA_TNIL;
        lua_pop(L, 1);
        if (!reader || known || reader->closed || reader->taken)
            continue;
        while (reader->size < UNREAD_MAX && bough_reader_pull(reader, BOUGH_READER_CHUNK) > 0)
            continue;
        lua_pushlstring(L, reader->size > 0 ? reader->data + reader->at : "",
                        reader->size < UNREAD_MAX ? reader->size : UNREAD_MAX);
        lua_setfield(L, -2, names[i]);
    }
    lua_pop(L, 1);
}

/* Raises it when the process did badly and was to be checked. */
static void end_check(lua_State *L)
{
    const struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    bough_lprocess_field(L, "ok");
    bool ok = lua_toboolean(L, -1);
    lua_pop(L, 1);
    if (ok || !p->check)
        return;
    struct bough_err err;
    luaL_checkstack(L, 16, NULL);
    show_unread(L);
    complaint(L, &err);
    size_t size;
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_OP);
    const char *op = lua_tostring(L, -1);
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_COMMAND);
    const char *command = luaL_tolstring(L, -1, &size);
    bough_lprocess_quote(L, command, size);
    lua_pushfstring(L, "%s %s", op ? op : "process", lua_tostring(L, -1));
    bough_lerr_push(L, &err, lua_tostring(L, -1));
    lua_getiuservalue(L, AT_PROCESS, BOUGH_PROCESS_RESULT);
    bough_lprocess_copy(L, -1, 2);
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
        if (!bough_lprocess_cut_short(L)) { /* else the next one who waits settles */
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

/* Above the hold is what the handle's wait has just given, if anything. */
static int await_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    const struct ending *ending = (const struct ending *)ctx;
    struct lprocess *p = lua_touserdata(L, AT_PROCESS);
    for (;;) {
        if (lua_gettop(L) > AT_HOLD) {
            if (lua_istable(L, -1)) {
                bough_lprocess_take(L);
            } else {
                until_check(L, ending->op);
                if (lua_isnil(L, AT_SECONDS))
                    return bough_lerr(L, BOUGH_ERR_protocol, ending->op,
                                      "the engine gave no result for a process that it waited for");
            }
            lua_settop(L, AT_HOLD);
        }
        bough_lprocess_learn(L);
        if (p->failed)
            return bough_lprocess_failure(L);
        if (p->ended)
            break;
        bough_lprocess_method(L, "wait", ending->op);
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
    bough_lprocess_field(L, "exit_code");
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
    bough_lprocess_field(L, "stdout");
    bough_lprocess_field(L, "stderr");
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
        bough_lprocess_take(L);
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
    bough_lprocess_learn(L);
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
        bough_lprocess_method(L, "wait", communication.op);
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
    bough_lprocess_learn(L);
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

/* -- close --------------------------------------------------------------------------------------- */

/* As io.popen's close has it. */
static int close_finish(lua_State *L)
{
    bough_lprocess_field(L, "ok");
    if (!lua_toboolean(L, -1))
        lua_pushnil(L);
    bough_lprocess_field(L, "signal");
    bool signalled = !lua_isnil(L, -1);
    lua_pushstring(L, signalled ? "signal" : "exit");
    lua_insert(L, -2);
    if (!signalled) {
        lua_pop(L, 1);
        bough_lprocess_field(L, "exit_code");
    }
    return 3;
}

static int process_close(lua_State *L)
{
    static const struct ending ending = {"close", NULL, close_finish};
    bough_lprocess_check(L, ending.op);
    lua_settop(L, 1);
    lua_pushcfunction(L, bough_lprocess_streams_close);
    lua_pushvalue(L, 1);
    lua_call(L, 1, 0);
    wait_prepare(L, 0, ending.op, false);
    return await_k(L, LUA_OK, (lua_KContext)&ending);
}

const luaL_Reg bough_lprocess_waits[] = {
    {"wait", process_wait},
    {"communicate", process_communicate},
    {"close", process_close},
    {NULL, NULL},
};

void bough_lprocess_waits_register(lua_State *L)
{
    luaL_newmetatable(L, HOLD_NAME);
    lua_pushcfunction(L, hold_close);
    lua_setfield(L, -2, "__close");
    lua_pushcfunction(L, hold_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}
