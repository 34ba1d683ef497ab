#define _GNU_SOURCE
#include "lserve.h"

#include <string.h>

#include "lwait.h"

static const char *const sink_names[] = {"stdout", "stderr"};

/* ctx of a call that is under way: which stream it serves. */
enum { CALL_STDOUT = 1, CALL_STDERR, CALL_STDIN };

void bough_served_init(lua_State *L, struct bough_served *served, int spec)
{
    lua_pushvalue(L, spec);
    lua_setiuservalue(L, -2, BOUGH_SERVED_SPEC);
    lua_getfield(L, spec, "text");
    served->lines = lua_type(L, -1) == LUA_TSTRING && strcmp(lua_tostring(L, -1), "lines") == 0;
    lua_pop(L, 1);
}

bool bough_served_due(const struct bough_served *served)
{
    const struct bough_streams *s = served->streams;
    if (served->serving || served->failed)
        return false;
    for (int i = 0; i < 2; i++)
        if (s->out[i].sink == BOUGH_SINK_TAKE && s->out[i].size > 0)
            return true;
    return s->in.source == BOUGH_SOURCE_GIVE && s->in.wants && !s->in.ended;
}

bool bough_served_drained(const struct bough_served *served)
{
    if (served->serving)
        return false;
    for (int i = 0; i < 2; i++) {
        const struct bough_out *out = &served->streams->out[i];
        if (out->sink == BOUGH_SINK_TAKE && (!out->eof || out->size > 0))
            return false;
    }
    return true;
}

static int rethrow(lua_State *L, struct bough_served *served)
{
    served->serving = false;
    served->failed = true;
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, 1, BOUGH_SERVED_ERROR);
    bough_cond_fire(served->changed);
    served->give_up(served);
    return lua_error(L);
}

/* The function of stream `ctx` has returned, or raised. */
static void called(lua_State *L, int status, lua_KContext ctx)
{
    struct bough_served *served = lua_touserdata(L, 1);
    if (status != LUA_OK && status != LUA_YIELD)
        rethrow(L, served);
    if (ctx == CALL_STDIN) {
        size_t size = 0;
        const char *data = "";
        if (lua_type(L, -1) == LUA_TSTRING)
            data = lua_tolstring(L, -1, &size);
        else if (!lua_isnil(L, -1) && lua_toboolean(L, -1)) {
            struct bough_err err;
            bough_err_set(&err, BOUGH_ERR_invalid,
                          "the function given for stdin must return a string or nil, got %s",
                          luaL_typename(L, -1));
            bough_lerr_push(L, &err, "run");
            rethrow(L, served);
        }
        bough_in_give(&served->streams->in, data, size);
    }
    lua_settop(L, served->args);
    served->serving = false;
    bough_cond_fire(served->changed); /* for others who wait */
}

static int called_k(lua_State *L, int status, lua_KContext ctx)
{
    called(L, status, ctx);
    return ((struct bough_served *)lua_touserdata(L, 1))->go_on(L, LUA_OK, 0);
}

/* Calls the function of stream `which` with the text at the top. */
static void call_sink(lua_State *L, struct bough_served *served, int which)
{
    served->serving = true;
    lua_getiuservalue(L, 1, BOUGH_SERVED_SPEC);
    lua_getfield(L, -1, sink_names[which]);
    lua_remove(L, -2);
    lua_insert(L, -2);
    called(L, lua_pcallk(L, 1, 0, 0, which + 1, called_k), which + 1);
}

/* Takes whole lines out of what has come: pushes the next one without its newline, or returns false. */
static bool next_line(lua_State *L, struct bough_served *served, int which)
{
    struct bough_out *out = &served->streams->out[which];
    const char *start = out->data + served->at[which];
    size_t size = out->size - served->at[which];
    const char *newline = memchr(start, '\n', size);
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    lua_getiuservalue(L, 1, which + 2);
    if (lua_isnil(L, -1))
        lua_pop(L, 1);
    else
        luaL_addvalue(&b);
    luaL_addlstring(&b, start, newline ? (size_t)(newline - start) : size);
    luaL_pushresult(&b);
    served->at[which] += newline ? (size_t)(newline - start) + 1 : size;
    bool is_line = newline != NULL;
    if (is_line)
        lua_pushnil(L);
    else
        lua_pushvalue(L, -1);
    lua_setiuservalue(L, 1, which + 2);
    if (served->at[which] == out->size) {
        served->at[which] = 0;
        bough_out_taken(out);
    }
    if (!is_line)
        lua_pop(L, 1);
    return is_line;
}

void bough_served_call(lua_State *L, struct bough_served *served)
{
    for (int i = 0; i < 2; i++) {
        struct bough_out *out = &served->streams->out[i];
        if (out->sink != BOUGH_SINK_TAKE || out->size == 0)
            continue;
        if (!served->lines) {
            lua_pushlstring(L, out->data, out->size);
            bough_out_taken(out);
            call_sink(L, served, i);
        } else if (next_line(L, served, i)) {
            call_sink(L, served, i);
        }
        return;
    }
    served->serving = true;
    lua_getiuservalue(L, 1, BOUGH_SERVED_SPEC);
    lua_getfield(L, -1, "stdin");
    lua_remove(L, -2);
    called(L, lua_pcallk(L, 0, 1, 0, CALL_STDIN, called_k), CALL_STDIN);
}

bool bough_served_last(lua_State *L, struct bough_served *served)
{
    if (!served->lines || served->serving)
        return false;
    for (int i = 0; i < 2; i++) {
        const struct bough_out *out = &served->streams->out[i];
        if (out->sink != BOUGH_SINK_TAKE || !out->eof)
            continue;
        if (lua_getiuservalue(L, 1, i + 2) == LUA_TSTRING && lua_rawlen(L, -1) > 0) {
            lua_pushnil(L);
            lua_setiuservalue(L, 1, i + 2);
            call_sink(L, served, i);
            return true;
        }
        lua_pop(L, 1);
    }
    return false;
}
