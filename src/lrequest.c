/* lrequest.c - a table { url =, method =, headers =, body =, sink =, ... } made into a transfer. */
#define _GNU_SOURCE
#include <limits.h>
#include <string.h>

#include <lauxlib.h>

#include "lhttp.h"
#include "lwait.h"

#define OP "http"

static const char *const known[] = {
    "url",     "method",        "headers",    "body",      "sink",
    "resume",  "http2",         "compressed", "max_bytes", "connect_timeout",
    "timeout", "stall_timeout", "follow",     "username",  "password",
    "bearer",  "once",          NULL,
};

static int refuse(lua_State *L, const char *name, const char *wanted)
{
    return bough_lerr(L, BOUGH_ERR_invalid, OP, "%s must be %s, not %s", name, wanted,
                      luaL_typename(L, -1));
}

static void check_names(lua_State *L)
{
    for (lua_pushnil(L); lua_next(L, 2) != 0; lua_pop(L, 1)) {
        const char *name = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "(no name)";
        int i = 0;
        while (known[i] && strcmp(known[i], name) != 0)
            i++;
        if (!known[i])
            bough_lerr(L, BOUGH_ERR_invalid, OP, "unknown option \"%s\"", name);
    }
}

/* Leaves the value on the stack, which keeps the text alive. `line`: it must fit into a header. */
static const char *text(lua_State *L, const char *name, bool line)
{
    size_t size;
    if (lua_getfield(L, 2, name) == LUA_TNIL)
        return NULL;
    if (lua_type(L, -1) != LUA_TSTRING)
        refuse(L, name, "a string");
    const char *value = lua_tolstring(L, -1, &size);
    if (strlen(value) != size || (line && strpbrk(value, "\r\n")))
        bough_lerr(L, BOUGH_ERR_invalid, OP, "%s holds a line break or a NUL byte", name);
    return value;
}

static bool flag(lua_State *L, const char *name, bool otherwise)
{
    bool value = lua_getfield(L, 2, name) == LUA_TNIL ? otherwise : lua_toboolean(L, -1);
    lua_pop(L, 1);
    return value;
}

static int64_t whole(lua_State *L, const char *name, int64_t otherwise)
{
    int is_integer = 1;
    int64_t value = otherwise;
    if (lua_getfield(L, 2, name) != LUA_TNIL)
        value = lua_tointegerx(L, -1, &is_integer);
    if (!is_integer || value < 0)
        refuse(L, name, "a whole number");
    lua_pop(L, 1);
    return value;
}

/* Seconds as milliseconds; 0 for no limit: that is what huge ones mean. */
static int64_t limit_ms(lua_State *L, const char *name, double otherwise)
{
    double seconds = otherwise;
    if (lua_getfield(L, 2, name) != LUA_TNIL) {
        if (lua_type(L, -1) != LUA_TNUMBER || !(lua_tonumber(L, -1) > 0))
            refuse(L, name, "a positive number of seconds");
        seconds = lua_tonumber(L, -1);
    }
    lua_pop(L, 1);
    if (seconds >= INT_MAX / 1000)
        return 0;
    return seconds * 1000 < 1 ? 1 : (int64_t)(seconds * 1000);
}

static bool is_token(const char *name, size_t size)
{
    if (size == 0)
        return false;
    for (size_t i = 0; i < size; i++)
        if (name[i] <= ' ' || name[i] >= 127 || strchr("()<>@,;:\\\"/[]?={}", name[i]))
            return false;
    return true;
}

/* Pushes an array of lines (a userdata) and the table that keeps the lines alive. */
static char **header_lines(lua_State *L)
{
    int count = 0;
    if (lua_getfield(L, 2, "headers") == LUA_TNIL)
        return NULL;
    if (!lua_istable(L, -1))
        refuse(L, "headers", "a table");
    int from = lua_gettop(L);
    for (lua_pushnil(L); lua_next(L, from) != 0; lua_pop(L, 1))
        count++;
    char **lines = lua_newuserdatauv(L, ((size_t)count + 1) * sizeof *lines, 0);
    lua_createtable(L, count, 0);
    count = 0;
    for (lua_pushnil(L); lua_next(L, from) != 0;) {
        size_t name_size, size;
        if (lua_type(L, -2) != LUA_TSTRING ||
            (lua_type(L, -1) != LUA_TSTRING && lua_type(L, -1) != LUA_TNUMBER))
            refuse(L, "headers", "a table of names and texts");
        const char *name = lua_tolstring(L, -2, &name_size);
        const char *value = lua_tolstring(L, -1, &size);
        if (!is_token(name, name_size))
            bough_lerr(L, BOUGH_ERR_invalid, OP, "headers holds a name that is none");
        if (strlen(value) != size || strpbrk(value, "\r\n"))
            bough_lerr(L, BOUGH_ERR_invalid, OP, "header %s holds a line break or a NUL byte",
                       name);
        /* "Name;" is how libcurl is told to send an empty one */
        lua_pushfstring(L, size ? "%s: %s" : "%s;", name, value);
        lines[count] = (char *)lua_tostring(L, -1);
        lua_rawseti(L, -4, ++count);
        lua_pop(L, 1);
    }
    lines[count] = NULL;
    return lines;
}

/* body = { path =, offset =, size = } */
static struct bough_feed *feed_of(lua_State *L, struct bough_loop *loop)
{
    int is_integer = 1;
    int64_t offset = 0, size = -1;
    if (lua_getfield(L, -1, "path") != LUA_TSTRING)
        refuse(L, "body.path", "a string");
    if (lua_getfield(L, -2, "offset") != LUA_TNIL)
        offset = lua_tointegerx(L, -1, &is_integer);
    if (!is_integer || offset < 0)
        refuse(L, "body.offset", "bytes");
    if (lua_getfield(L, -3, "size") != LUA_TNIL)
        size = lua_tointegerx(L, -1, &is_integer);
    if (!is_integer || size < -1)
        refuse(L, "body.size", "bytes");
    struct bough_feed *feed = bough_feed_open(loop, lua_tostring(L, -3), offset, size);
    if (!feed)
        luaL_error(L, "not enough memory");
    lua_pop(L, 3);
    return feed;
}

struct bough_transfer *bough_lrequest_start(lua_State *L, struct bough_http *http, bool stream)
{
    if (!lua_istable(L, 2))
        bough_lerr(L, BOUGH_ERR_invalid, OP, "expected a table { url = ... }, not %s",
                   luaL_typename(L, 2));
    lua_settop(L, 2);
    luaL_checkstack(L, 40, NULL);
    check_names(L);
    struct bough_transfer **box = lua_newuserdatauv(L, sizeof *box, 2);
    *box = NULL;
    luaL_setmetatable(L, BOUGH_TRANSFER);
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, 3, 1);

    struct bough_request request = {.stream = stream};
    request.url = text(L, "url", true);
    request.method = text(L, "method", true);
    request.headers = header_lines(L);
    request.username = text(L, "username", true);
    request.password = text(L, "password", true);
    request.bearer = text(L, "bearer", true);
    if (!request.url)
        bough_lerr(L, BOUGH_ERR_invalid, OP, "url is missing");
    if (!request.method)
        request.method = "GET";
    if (!is_token(request.method, strlen(request.method)))
        bough_lerr(L, BOUGH_ERR_invalid, OP, "method is none");
    if (!request.username != !request.password)
        bough_lerr(L, BOUGH_ERR_invalid, OP, "username and password go together");
    if (lua_getfield(L, 2, "sink") != LUA_TNIL) {
        request.spool = bough_sink_check(L, -1, OP);
        lua_setiuservalue(L, 3, 2);
        if (stream)
            bough_lerr(L, BOUGH_ERR_invalid, OP, "a stream is read, it takes no sink");
        if (request.spool->on_room)
            bough_lerr(L, BOUGH_ERR_busy, OP, "the sink is in use by another transfer");
    }
    bool fetches = strcmp(request.method, "GET") == 0 || strcmp(request.method, "HEAD") == 0;
    request.once = flag(L, "once", false);
    request.resume = flag(L, "resume", false);
    request.compressed = flag(L, "compressed", false);
    request.max_bytes = whole(L, "max_bytes", 16 << 20);
    request.follow = (long)whole(L, "follow", fetches ? 10 : 0);
    request.connect_ms = limit_ms(L, "connect_timeout", 30);
    request.timeout_ms = limit_ms(L, "timeout", INT_MAX);
    request.stall_ms = limit_ms(L, "stall_timeout", 30);
    int body = lua_getfield(L, 2, "body");
    request.http2 = flag(L, "http2", !stream && !request.spool && body != LUA_TTABLE);
    if (body == LUA_TSTRING)
        request.body = lua_tolstring(L, -1, &request.body_size);
    else if (body == LUA_TTABLE)
        request.feed = feed_of(L, http->loop);
    else if (body != LUA_TNIL)
        refuse(L, "body", "a string or { path = ... }");
    else if (!fetches && strcmp(request.method, "DELETE") != 0)
        request.body = ""; /* so that a length is sent */

    struct bough_err err;
    *box = bough_transfer_start(http, &request, &err);
    if (!*box)
        bough_lerr_raise(L, &err, OP);
    lua_settop(L, 3);
    return *box;
}
