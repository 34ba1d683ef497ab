/* lerr.c - the error value: a table {kind=, message=, op=, errno=, code=, ...} to be raised. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <lauxlib.h>
#include <lua.h>

#include "err.h"
#include "lcore.h"
#include "lwait.h"

#define ERROR_NAME "bough.error"

static void field_string(lua_State *L, const char *name, const char *value)
{
    if (value) {
        lua_pushstring(L, value);
        lua_setfield(L, -2, name);
    }
}

/* Names of the caller's may hold anything; a message is one line, and does nothing to a terminal. */
static void push_line(lua_State *L, const char *text)
{
    char line[sizeof((struct bough_err *)0)->msg];
    size_t n = 0;
    for (; text[n] && n + 1 < sizeof line; n++)
        line[n] = (unsigned char)text[n] < ' ' || text[n] == 0x7f ? '?' : text[n];
    lua_pushlstring(L, line, n);
}

void bough_lerr_push(lua_State *L, const struct bough_err *err, const char *op)
{
    luaL_checkstack(L, 4, NULL);
    lua_createtable(L, 0, 6);
    field_string(L, "kind", bough_err_kind_name(err->kind));
    push_line(L, err->msg);
    lua_setfield(L, -2, "message");
    field_string(L, "op", op);
    if (err->sys != 0) {
        lua_pushinteger(L, err->sys);
        lua_setfield(L, -2, "errno");
        field_string(L, "code", bough_err_code(err->sys));
    }
    luaL_setmetatable(L, ERROR_NAME);
}

int bough_lerr_raise(lua_State *L, const struct bough_err *err, const char *op)
{
    bough_lerr_push(L, err, op);
    return lua_error(L);
}

int bough_lerr(lua_State *L, enum bough_err_kind kind, const char *op, const char *fmt, ...)
{
    struct bough_err err = {.kind = kind};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err.msg, sizeof err.msg, fmt, ap);
    va_end(ap);
    return bough_lerr_raise(L, &err, op);
}

const char *bough_lerr_kind(lua_State *L, int idx)
{
    idx = lua_absindex(L, idx);
    if (lua_type(L, idx) != LUA_TTABLE || !lua_getmetatable(L, idx))
        return NULL;
    const char *kind = NULL;
    luaL_getmetatable(L, ERROR_NAME);
    if (lua_rawequal(L, -1, -2)) {
        lua_pushliteral(L, "kind");
        lua_rawget(L, idx);
        kind = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
        lua_pop(L, 1);
    }
    lua_pop(L, 2);
    return kind;
}

static int error_is(lua_State *L)
{
    lua_pushboolean(L, bough_lerr_kind(L, 1) != NULL);
    return 1;
}

static bool kind_known(const char *kind)
{
    for (int i = 0; i < BOUGH_ERR_KIND_COUNT; i++)
        if (strcmp(kind, bough_err_kind_name((enum bough_err_kind)i)) == 0)
            return true;
    return false;
}

/* error(kind, message, fields?) -> value */
static int error_new(lua_State *L)
{
    if (lua_type(L, 1) != LUA_TSTRING || !kind_known(lua_tostring(L, 1)))
        return bough_lerr(L, BOUGH_ERR_invalid, "error", "unknown kind '%s'",
                          luaL_tolstring(L, 1, NULL));
    if (lua_type(L, 2) != LUA_TSTRING)
        return bough_lerr(L, BOUGH_ERR_invalid, "error", "the message must be a string, not a %s",
                          luaL_typename(L, 2));
    if (!lua_isnoneornil(L, 3) && !lua_istable(L, 3))
        return bough_lerr(L, BOUGH_ERR_invalid, "error", "the fields must be a table, not a %s",
                          luaL_typename(L, 3));
    lua_settop(L, 3);
    lua_createtable(L, 0, 6);
    if (lua_istable(L, 3)) {
        for (lua_pushnil(L); lua_next(L, 3) != 0; lua_pop(L, 1)) {
            lua_pushvalue(L, -2);
            lua_pushvalue(L, -2);
            lua_rawset(L, 4);
        }
    }
    lua_pushvalue(L, 1);
    lua_setfield(L, 4, "kind");
    lua_pushvalue(L, 2);
    lua_setfield(L, 4, "message");
    luaL_setmetatable(L, ERROR_NAME);
    return 1;
}

/* One line, whatever a caller did to the fields. */
static int error_tostring(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    lua_getfield(L, 1, "op");
    lua_getfield(L, 1, "message");
    const char *op = lua_tostring(L, 2);
    const char *message = lua_tostring(L, 3);
    if (!message) {
        lua_getfield(L, 1, "kind");
        message = lua_tostring(L, -1);
    }
    if (!message)
        message = "unknown error";
    if (op)
        lua_pushfstring(L, "%s: %s", op, message);
    else
        lua_pushstring(L, message);
    return 1;
}

void bough_open_error(lua_State *L)
{
    if (luaL_newmetatable(L, ERROR_NAME)) {
        lua_pushcfunction(L, error_tostring);
        lua_setfield(L, -2, "__tostring");
    }
    lua_pop(L, 1);

    static const luaL_Reg functions[] = {
        {"error", error_new},
        {"is_error", error_is},
        {NULL, NULL},
    };
    luaL_setfuncs(L, functions, 0);
    lua_createtable(L, BOUGH_ERR_KIND_COUNT, 0);
    for (int i = 0; i < BOUGH_ERR_KIND_COUNT; i++) {
        lua_pushstring(L, bough_err_kind_name((enum bough_err_kind)i));
        lua_seti(L, -2, i + 1);
    }
    lua_setfield(L, -2, "kinds");
}
