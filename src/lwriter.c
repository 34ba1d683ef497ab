/* lwriter.c - the writer userdata: strings go from Lua to the kernel bit by bit, as there is room. */
#define _GNU_SOURCE
#include <string.h>

#include <lauxlib.h>

#include "lcore.h"
#include "lstream.h"
#include "ltask.h"
#include "lwait.h"
#include "sys.h"

#define WRITER_NAME "bough.writer"
#define WRITING_NAME "bough.writing"

struct lwriter {
    struct bough_writer *writer;
    int number;
    char name[];
};

/* A call that has to wait, in line with others. To be closed, so that whichever way the call is left, it is out of the
 * line. Stack: the writer, `count` texts, and this. */
struct writing {
    struct bough_writer_turn turn;
    struct bough_writer *writer; /* counted */
    int current;                 /* text */
    size_t at;                   /* how much of it has gone */
};

/* --- writing ------------------------------------------------------------------------------------------ */

static void raise_error(lua_State *L, const struct lwriter *self, const char *op)
{
    struct bough_err err = self->writer->err;
    if (err.kind == BOUGH_ERR_closed && self->number == 0)
        bough_err_set(&err, BOUGH_ERR_closed, "the command no longer reads its %s", self->name);
    else if (err.kind == BOUGH_ERR_closed)
        bough_err_set(&err, BOUGH_ERR_closed, "nobody reads %s any more", self->name);
    else
        bough_err_wrap(&err, "%s", self->name);
    err.sys = self->writer->err.sys;
    bough_lerr_raise(L, &err, op);
}

static void refuse_closed(lua_State *L, const struct lwriter *self, const char *op)
{
    const struct bough_writer *writer = self->writer;
    if (writer->taken)
        bough_lerr(L, BOUGH_ERR_closed, op, "%s %s", self->name, writer->taken);
    if (writer->closed)
        bough_lerr(L, BOUGH_ERR_closed, op, "%s is closed", self->name);
    if (writer->err.msg[0])
        raise_error(L, self, op);
}

/* __close and __gc */
static int writing_leave(lua_State *L)
{
    struct writing *writing = lua_touserdata(L, 1);
    struct bough_writer *writer = writing->writer;
    writing->writer = NULL;
    bough_writer_turn_leave(&writing->turn);
    if (writer)
        bough_writer_unref(writer);
    return 0;
}

static struct writing *get_in_line(lua_State *L, struct bough_writer *writer)
{
    struct writing *writing = lua_newuserdatauv(L, sizeof *writing, 0);
    memset(writing, 0, sizeof *writing);
    luaL_setmetatable(L, WRITING_NAME);
    lua_toclose(L, -1);
    writing->writer = writer;
    writer->refs++;
    bough_writer_turn_take(writer, &writing->turn);
    return writing;
}

/* Puts what can be put; true when that is all. */
static bool advance(lua_State *L, const struct lwriter *self, int count, int *current, size_t *at)
{
    for (; *current < count; ++*current, *at = 0) {
        size_t size;
        const char *text = lua_tolstring(L, 2 + *current, &size);
        if (size == *at)
            continue;
        ssize_t n = bough_writer_put(self->writer, text + *at, size - *at);
        if (n < 0)
            raise_error(L, self, "writer:write");
        *at += (size_t)n;
        if (*at < size)
            return false;
    }
    return true;
}

enum step { STEP_DONE, STEP_ROOM, STEP_LINE, STEP_TURN };

/* Not inlined: bough_wait wants no local whose address is known. */
static __attribute__((noinline)) enum step write_on(lua_State *L, int count)
{
    struct lwriter *self = lua_touserdata(L, 1);
    struct bough_writer *writer = self->writer;
    struct writing *writing = lua_touserdata(L, count + 2);
    refuse_closed(L, self, "writer:write");
    if (!writing && writer->first)
        writing = get_in_line(L, writer);
    if (writing && writer->first != &writing->turn)
        return STEP_LINE;
    if (writer->streak >= BOUGH_STREAM_TURN) {
        writer->streak = 0;
        return STEP_TURN;
    }
    int current = writing ? writing->current : 0;
    size_t at = writing ? writing->at : 0;
    if (advance(L, self, count, &current, &at))
        return STEP_DONE;
    if (!writing)
        writing = get_in_line(L, writer);
    writing->current = current;
    writing->at = at;
    if (bough_writer_watch(writer) < 0)
        raise_error(L, self, "writer:write");
    writer->streak = 0;
    return STEP_ROOM;
}

static int write_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    switch (write_on(L, (int)ctx)) {
    case STEP_TURN:
        return bough_wait_until(L, NULL, bough_now_ns(), ctx, write_k);
    case STEP_LINE:
        return bough_wait(L, &((struct lwriter *)lua_touserdata(L, 1))->writer->moved, ctx,
                          write_k);
    case STEP_ROOM:
        return bough_wait(L, &((struct lwriter *)lua_touserdata(L, 1))->writer->changed, ctx,
                          write_k);
    default:
        lua_pushvalue(L, 1);
        return 1;
    }
}

/* writer:write(...) -> the writer */
static int writer_write(lua_State *L)
{
    bough_lwriter_check(L, 1, "writer:write");
    int count = lua_gettop(L) - 1;
    size_t total = 0;
    luaL_checkstack(L, LUA_MINSTACK, "too many texts");
    for (int arg = 2; arg <= count + 1; arg++) {
        size_t size;
        if (lua_type(L, arg) != LUA_TSTRING && lua_type(L, arg) != LUA_TNUMBER)
            return bough_lerr(L, BOUGH_ERR_invalid, "writer:write",
                              "expected strings and numbers, not %s", luaL_typename(L, arg));
        lua_tolstring(L, arg, &size);
        total += size;
    }
    if (count > 1 && total <= BOUGH_WRITER_QUEUE) { /* one system call rather than several */
        lua_concat(L, count);
        count = 1;
    }
    return write_k(L, LUA_OK, count);
}

/* Whether all has gone that was written before the call. */
static bool has_gone(lua_State *L)
{
    struct lwriter *self = lua_touserdata(L, 1);
    if (self->writer->written >= (uint64_t)lua_tointeger(L, 2))
        return true;
    if (self->writer->err.msg[0])
        raise_error(L, self, "writer:flush");
    if (self->writer->fd < 0)
        bough_lerr(L, BOUGH_ERR_closed, "writer:flush", "%s is closed", self->name);
    return false;
}

static int flush_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    if (has_gone(L)) {
        lua_settop(L, 1);
        return 1;
    }
    return bough_wait(L, &((struct lwriter *)lua_touserdata(L, 1))->writer->changed, ctx, flush_k);
}

/* writer:flush() -> the writer */
static int writer_flush(lua_State *L)
{
    struct bough_writer *writer = bough_lwriter_check(L, 1, "writer:flush");
    if (writer->err.msg[0])
        raise_error(L, lua_touserdata(L, 1), "writer:flush");
    lua_settop(L, 1);
    lua_pushinteger(L, (lua_Integer)(writer->written + writer->size));
    return flush_k(L, LUA_OK, 0);
}

/* --- the userdata ------------------------------------------------------------------------------------- */

/* A finaliser of somebody else may still hold what ours has closed. */
static int writer_close(lua_State *L)
{
    struct lwriter *self = luaL_testudata(L, 1, WRITER_NAME);
    if (!self)
        bough_lwriter_check(L, 1, "writer:close");
    else if (self->writer)
        bough_writer_end(self->writer);
    return 0;
}

static int writer_gc(lua_State *L)
{
    struct lwriter *self = lua_touserdata(L, 1);
    struct bough_writer *writer = self->writer;
    self->writer = NULL;
    if (writer) {
        bough_writer_end(writer);
        bough_writer_unref(writer);
    }
    return 0;
}

static int writer_index(lua_State *L)
{
    struct lwriter *self = luaL_checkudata(L, 1, WRITER_NAME);
    const struct bough_writer *writer = self->writer;
    const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
    if (strcmp(key, "closed") == 0) {
        lua_pushboolean(L, !writer || writer->closed);
    } else if (strcmp(key, "written") == 0) {
        lua_pushinteger(L, writer ? (lua_Integer)(writer->written + writer->size) : 0);
    } else {
        lua_pushvalue(L, 2);
        lua_rawget(L, lua_upvalueindex(1));
    }
    return 1;
}

static int writer_tostring(lua_State *L)
{
    struct lwriter *self = luaL_checkudata(L, 1, WRITER_NAME);
    const char *state = "open";
    if (!self->writer || self->writer->closed)
        state = "closed";
    else if (self->writer->err.msg[0])
        state = "nobody reads it";
    lua_pushfstring(L, "writer %s (%s)", self->name, state);
    return 1;
}

struct bough_writer *bough_lwriter_test(lua_State *L, int arg)
{
    struct lwriter *self = luaL_testudata(L, arg, WRITER_NAME);
    return self ? self->writer : NULL;
}

struct bough_writer *bough_lwriter_check(lua_State *L, int arg, const char *op)
{
    struct lwriter *self = luaL_testudata(L, arg, WRITER_NAME);
    if (!self)
        bough_lerr(L, BOUGH_ERR_invalid, op, "expected a writer, not %s", luaL_typename(L, arg));
    else if (!self->writer)
        bough_lerr(L, BOUGH_ERR_closed, op, "%s is closed", self->name);
    return self ? self->writer : NULL;
}

void bough_lwriter_push(lua_State *L, struct bough_writer *writer, int number, const char *name)
{
    size_t size = strlen(name) + 1;
    struct lwriter *self = lua_newuserdatauv(L, sizeof *self + size, BOUGH_STREAM_UV_COUNT);
    self->writer = writer;
    self->number = number;
    memcpy(self->name, name, size);
    luaL_setmetatable(L, WRITER_NAME);
}

void bough_lwriter_register(lua_State *L)
{
    static const luaL_Reg meta[] = {{"__gc", writer_gc},
                                    {"__close", writer_close},
                                    {"__tostring", writer_tostring},
                                    {NULL, NULL}};
    static const luaL_Reg methods[] = {{"write", writer_write},     {"flush", writer_flush},
                                       {"drain", writer_flush},     {"close", writer_close},
                                       {"write_eof", writer_close}, {NULL, NULL}};
    static const luaL_Reg writing_meta[] = {
        {"__gc", writing_leave}, {"__close", writing_leave}, {NULL, NULL}};
    bough_class_make(L, WRITER_NAME, meta, methods, writer_index);
    bough_class_make(L, WRITING_NAME, writing_meta, NULL, NULL);
}
