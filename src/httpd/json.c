/* json.c - a writer of JSON. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <lauxlib.h>

#include "httpd/json.h"

enum { DEPTH_MAX = 64, AT_FIRST = 1000, BUFFER = 2 /* its place on the stack */ };

struct writer {
    lua_State *L;
    char *bytes; /* of the userdata at BUFFER */
    size_t length, room;
};

static char *need(struct writer *out, size_t size)
{
    if (out->room - out->length < size) {
        size_t room = 2 * out->room + size;
        char *bytes = lua_newuserdatauv(out->L, room, 0);
        memcpy(bytes, out->bytes, out->length);
        lua_replace(out->L, BUFFER);
        out->bytes = bytes;
        out->room = room;
    }
    return out->bytes + out->length;
}

static void add(struct writer *out, const char *text, size_t size)
{
    if (size)
        memcpy(need(out, size), text, size);
    out->length += size;
}

static void add_char(struct writer *out, char c)
{
    *need(out, 1) = c;
    out->length++;
}

/* How long the UTF-8 sequence at `s` is; 0 when it is none. */
static size_t sequence(const unsigned char *s, size_t left)
{
    unsigned char c = s[0];
    size_t size = c < 0x80 ? 1 : c < 0xC2 ? 0 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : c < 0xF5 ? 4 : 0;
    if (size == 0 || size > left)
        return 0;
    for (size_t i = 1; i < size; i++)
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    if ((c == 0xE0 && s[1] < 0xA0) || (c == 0xED && s[1] > 0x9F) || (c == 0xF0 && s[1] < 0x90) ||
        (c == 0xF4 && s[1] > 0x8F))
        return 0;
    return size;
}

static void escape(struct writer *out, unsigned char c)
{
    static const char these[] = "\"\\\n\r\t\b\f", letters[] = "\"\\nrtbf";
    const char *known = memchr(these, c, sizeof these - 1);
    char code[8] = {'\\', known ? letters[known - these] : 'u', '\0'};
    if (!known)
        snprintf(code + 2, sizeof code - 2, "%04x", c);
    add(out, code, strlen(code));
}

static void put_string(struct writer *out, const char *text, size_t size)
{
    const unsigned char *s = (const unsigned char *)text;
    add_char(out, '"');
    size_t from = 0, at = 0;
    while (at < size) {
        unsigned char c = s[at];
        if (c >= 32 && c < 128 && c != '"' && c != '\\') {
            at++;
            continue;
        }
        size_t length = sequence(s + at, size - at);
        if (length > 1) {
            at += length;
            continue;
        }
        add(out, text + from, at - from);
        if (length)
            escape(out, c);
        else
            add(out, "\xEF\xBF\xBD", 3);
        from = ++at;
    }
    add(out, text + from, size - from);
    add_char(out, '"');
}

static void put_number(struct writer *out)
{
    char text[40];
    if (lua_isinteger(out->L, -1)) {
        snprintf(text, sizeof text, "%lld", (long long)lua_tointeger(out->L, -1));
    } else {
        double number = lua_tonumber(out->L, -1);
        if (!isfinite(number))
            luaL_error(out->L, "JSON has no number for %f", number);
        if (number == floor(number) && fabs(number) < 1e15) {
            snprintf(text, sizeof text, "%.0f", number);
        } else {
            snprintf(text, sizeof text, "%.14g", number);
            if (strtod(text, NULL) != number)
                snprintf(text, sizeof text, "%.17g", number);
        }
    }
    add(out, text, strlen(text));
}

/* Writes the value on top of the stack, and leaves it there. */
static void put(struct writer *out, int depth);

static bool is_array(lua_State *L)
{
    bool array = lua_rawgeti(L, -1, 1) != LUA_TNIL;
    lua_pop(L, 1);
    if (!array && luaL_getmetafield(L, -1, "__array") != LUA_TNIL) {
        array = lua_toboolean(L, -1);
        lua_pop(L, 1);
    }
    return array;
}

static void put_array(struct writer *out, int depth)
{
    lua_State *L = out->L;
    add_char(out, '[');
    for (lua_Integer i = 1; lua_rawgeti(L, -1, i) != LUA_TNIL; i++) {
        if (i > 1)
            add_char(out, ',');
        put(out, depth);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    add_char(out, ']');
}

static void put_object(struct writer *out, int depth)
{
    lua_State *L = out->L;
    char before = '{';
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
        if (lua_type(L, -2) != LUA_TSTRING)
            luaL_error(L, "JSON has no keys but strings, and this one is a %s",
                       luaL_typename(L, -2));
        add_char(out, before);
        before = ',';
        size_t size;
        const char *key = lua_tolstring(L, -2, &size);
        put_string(out, key, size);
        add_char(out, ':');
        put(out, depth);
    }
    if (before == '{')
        add_char(out, '{');
    add_char(out, '}');
}

static void put(struct writer *out, int depth)
{
    lua_State *L = out->L;
    size_t size;
    const char *text;
    switch (lua_type(L, -1)) {
    case LUA_TSTRING:
        text = lua_tolstring(L, -1, &size);
        put_string(out, text, size);
        return;
    case LUA_TNUMBER:
        put_number(out);
        return;
    case LUA_TBOOLEAN:
        text = lua_toboolean(L, -1) ? "true" : "false";
        add(out, text, strlen(text));
        return;
    case LUA_TTABLE:
        if (depth >= DEPTH_MAX)
            luaL_error(L, "JSON nested too deeply");
        luaL_checkstack(L, 8, NULL);
        if (is_array(L))
            put_array(out, depth + 1);
        else
            put_object(out, depth + 1);
        return;
    case LUA_TLIGHTUSERDATA:
        if (!lua_touserdata(L, -1)) {
            add(out, "null", 4);
            return;
        }
        break;
    default:
        break;
    }
    luaL_error(L, "JSON has no word for a %s", luaL_typename(L, -1));
}

int httpd_json(lua_State *L)
{
    luaL_checkany(L, 1);
    lua_settop(L, 1);
    struct writer out = {.L = L, .room = AT_FIRST};
    out.bytes = lua_newuserdatauv(L, out.room, 0);
    lua_pushvalue(L, 1);
    put(&out, 0);
    lua_pushlstring(L, out.bytes, out.length);
    return 1;
}
