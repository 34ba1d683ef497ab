/* lcodec.c - small things that go over a wire: base64, text or not, uuids, the time of day. */
#define _GNU_SOURCE
#include <time.h>

#include <lauxlib.h>

#include "base64.h"
#include "lcore.h"
#include "local/store.h"
#include "lwait.h"

static const char *check_bytes(lua_State *L, const char *op, size_t *size)
{
    if (lua_type(L, 1) != LUA_TSTRING)
        bough_lerr(L, BOUGH_ERR_invalid, op, "expected a string, not %s", luaL_typename(L, 1));
    return lua_tolstring(L, 1, size);
}

/* base64_encode(bytes) -> text */
static int base64_encode(lua_State *L)
{
    size_t size;
    const char *data = check_bytes(L, "base64_encode", &size);
    if (size > SIZE_MAX / 2)
        return luaL_error(L, "not enough memory");
    luaL_Buffer buffer;
    char *out = luaL_buffinitsize(L, &buffer, bough_base64_size(size));
    bough_base64_encode(out, data, size);
    luaL_pushresultsize(&buffer, bough_base64_size(size));
    return 1;
}

/* base64_decode(text) -> bytes, or nil where it is broken */
static int base64_decode(lua_State *L)
{
    size_t size, got;
    const char *text = check_bytes(L, "base64_decode", &size);
    luaL_Buffer buffer;
    char *out = luaL_buffinitsize(L, &buffer, size / 4 * 3);
    bool good = bough_base64_decode(out, text, size, &got);
    luaL_pushresultsize(&buffer, got);
    if (!good)
        lua_pushnil(L);
    return 1;
}

/* is_text(bytes) -> boolean */
static int is_text(lua_State *L)
{
    size_t size;
    const char *data = check_bytes(L, "is_text", &size);
    bool text = true;
    for (size_t i = 0; i < size && text; i++)
        text = (data[i] >= ' ' && data[i] <= '~') || data[i] == '\t' || data[i] == '\n' ||
               data[i] == '\r';
    lua_pushboolean(L, text);
    return 1;
}

/* uuid() -> a random one (version 4), in lower case */
static int uuid(lua_State *L)
{
    char text[BOUGH_UUID_SIZE];
    bough_uuid_make(text);
    lua_pushstring(L, text);
    return 1;
}

/* time() -> seconds since the epoch, with a fraction */
static int time_of_day(lua_State *L)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    lua_pushnumber(L, (lua_Number)t.tv_sec + (lua_Number)t.tv_nsec / 1e9);
    return 1;
}

void bough_open_codec(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"base64_encode", base64_encode},
        {"base64_decode", base64_decode},
        {"is_text", is_text},
        {"uuid", uuid},
        {"time", time_of_day},
        {NULL, NULL},
    };
    luaL_setfuncs(L, functions, 0);
}
