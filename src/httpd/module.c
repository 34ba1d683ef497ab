/* module.c - `bough.httpd`: the server for Lua. What it is like to use is in lua/bough/serve/http.lua, the only
 * place that does. */
#define _GNU_SOURCE
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <lauxlib.h>
#include <lua.h>

#include "httpd/json.h"
#include "httpd/limits.h"
#include "httpd/server.h"
#include "httpd/signals.h"

#define DAEMON "bough.httpd.daemon"
#define EXCHANGE "bough.httpd.exchange"

int luaopen_bough_httpd(lua_State *L);

enum { HEADERS_MAX = 48 };

/* The daemon ------------------------------------------------------------------------------------- */

static struct httpd_server **daemon_box(lua_State *L)
{
    return luaL_checkudata(L, 1, DAEMON);
}

static struct httpd_server *daemon_check(lua_State *L)
{
    struct httpd_server *server = *daemon_box(L);
    if (!server)
        luaL_error(L, "the daemon is closed");
    return server;
}

static double number(lua_State *L, const char *name, double least, double most, double otherwise)
{
    double value = otherwise;
    if (lua_getfield(L, 1, name) != LUA_TNIL) {
        value = luaL_checknumber(L, -1);
        if (!(value >= least && value <= most))
            luaL_error(L, "%s must be between %f and %f", name, least, most);
    }
    lua_pop(L, 1);
    return value;
}

static const char *text(lua_State *L, const char *name)
{
    lua_getfield(L, 1, name);
    return luaL_optstring(L, -1, NULL); /* stays on the stack */
}

/* new(options) -> daemon, or nil, kind, message */
static int new (lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    struct httpd_options options = {
        .port = (unsigned)number(L, "port", 0, 65535, 0),
        .connections = (unsigned)number(L, "connections", 1, 1 << 20, 4096),
        .per_ip = (unsigned)number(L, "per_ip", 0, 1 << 20, 0),
        .headers = (unsigned)number(L, "headers", 1, 1 << 16, 100),
        .header_bytes = (size_t)number(L, "header_bytes", 1024, 1 << 20, 32 << 10),
        .target_bytes = (size_t)number(L, "target_bytes", 64, 1 << 20, 8 << 10),
        .header_seconds = number(L, "header_seconds", 0.1, 1e6, 10),
        .idle_seconds = number(L, "idle_seconds", 0.1, 1e6, 75),
        .gone_seconds = number(L, "gone_seconds", 0, 1e6, 5),
        .slow_seconds = number(L, "slow_seconds", 0.1, 1e6, 20),
        .slow_bytes = number(L, "slow_bytes", 1, 1e9, 2560),
        .linger_seconds = number(L, "linger_seconds", 0, 60, 5),
        .ahead = (size_t)number(L, "ahead", 1024, 1 << 28, 256 << 10),
        .behind = (size_t)number(L, "behind", 1024, 1 << 28, 256 << 10),
    };
    options.address = text(L, "address");
    options.cert = text(L, "cert");
    options.key = text(L, "key");
    options.key_password = text(L, "key_password");
    if (!options.address)
        options.address = "127.0.0.1";
    if (!options.cert != !options.key)
        return luaL_error(L, "cert and key go together");
    struct httpd_server **box = lua_newuserdatauv(L, sizeof(struct httpd_server *), 0);
    *box = NULL;
    luaL_setmetatable(L, DAEMON);
    struct bough_err err;
    *box = httpd_server_new(&options, &err);
    if (*box)
        return 1;
    lua_pushnil(L);
    lua_pushstring(L, bough_err_kind_name(err.kind));
    lua_pushstring(L, err.msg);
    return 3;
}

/* daemon:fd() -> a descriptor, readable when run is to be called */
static int daemon_fd(lua_State *L)
{
    lua_pushinteger(L, httpd_server_fd(daemon_check(L)));
    return 1;
}

/* daemon:where() -> address, port */
static int daemon_where(lua_State *L)
{
    struct httpd_server *server = daemon_check(L);
    lua_pushstring(L, httpd_server_address(server));
    lua_pushinteger(L, httpd_server_port(server));
    return 2;
}

/* daemon:run() -> seconds after which it is to be called again at the latest, nil for no such time */
static int daemon_run(lua_State *L)
{
    double seconds = httpd_server_run(daemon_check(L));
    if (seconds < 0)
        lua_pushnil(L);
    else
        lua_pushnumber(L, seconds);
    return 1;
}

/* daemon:take() -> exchange, number, method, target, refused?, why?; nothing when there is no request */
static int daemon_take(lua_State *L)
{
    struct httpd_server *server = daemon_check(L);
    struct httpd_exchange **box = lua_newuserdatauv(L, sizeof(struct httpd_exchange *), 0);
    *box = NULL;
    luaL_setmetatable(L, EXCHANGE);
    struct httpd_exchange *x = httpd_server_take(server);
    if (!x)
        return 0;
    *box = x;
    lua_pushinteger(L, (lua_Integer)httpd_exchange_number(x));
    lua_pushstring(L, httpd_exchange_method(x));
    size_t size;
    const char *target = httpd_exchange_target(x, &size);
    lua_pushlstring(L, target, size);
    const char *why;
    unsigned refused = httpd_exchange_refused(x, &why);
    if (!refused)
        return 4;
    lua_pushinteger(L, refused);
    lua_pushstring(L, why);
    return 6;
}

/* daemon:news() -> number, body, room, gone, over; nothing when there are none */
static int daemon_news(lua_State *L)
{
    unsigned news;
    const struct httpd_exchange *x = httpd_server_news(daemon_check(L), &news);
    if (!x)
        return 0;
    lua_pushinteger(L, (lua_Integer)httpd_exchange_number(x));
    lua_pushboolean(L, (news & HTTPD_NEWS_BODY) != 0);
    lua_pushboolean(L, (news & HTTPD_NEWS_ROOM) != 0);
    lua_pushboolean(L, (news & HTTPD_NEWS_GONE) != 0);
    lua_pushboolean(L, (news & HTTPD_NEWS_OVER) != 0);
    return 5;
}

/* daemon:counts() -> connections, requests under way */
static int daemon_counts(lua_State *L)
{
    const struct httpd_server *server = daemon_check(L);
    lua_pushinteger(L, httpd_server_connections(server));
    lua_pushinteger(L, httpd_server_busy(server));
    return 2;
}

static int daemon_quiesce(lua_State *L)
{
    httpd_server_quiesce(daemon_check(L));
    return 0;
}

static int daemon_close(lua_State *L)
{
    struct httpd_server **box = daemon_box(L);
    struct httpd_server *server = *box;
    *box = NULL;
    httpd_server_free(server);
    return 0;
}

/* Exchanges -------------------------------------------------------------------------------------- */

static struct httpd_exchange *check(lua_State *L)
{
    struct httpd_exchange *x = *(struct httpd_exchange **)luaL_checkudata(L, 1, EXCHANGE);
    if (!x)
        luaL_error(L, "the exchange is closed");
    return x;
}

/* x:headers() -> lower-case name -> value; several of one name are joined by ", " */
static int x_headers(lua_State *L)
{
    const struct httpd_exchange *x = check(L);
    lua_newtable(L);
    const char *name, *value;
    for (size_t at = 0; httpd_exchange_header(x, &at, &name, &value);) {
        if (lua_getfield(L, -1, name) == LUA_TNIL) {
            lua_pop(L, 1);
            lua_pushstring(L, value);
        } else {
            lua_pushfstring(L, "%s, %s", lua_tostring(L, -1), value);
            lua_remove(L, -2);
        }
        lua_setfield(L, -2, name);
    }
    return 1;
}

/* x:about() -> peer, version, length of the body or nil when it is not known */
static int x_about(lua_State *L)
{
    const struct httpd_exchange *x = check(L);
    lua_pushstring(L, httpd_exchange_peer(x));
    lua_pushstring(L, httpd_exchange_version(x));
    if (httpd_exchange_length(x) >= 0)
        lua_pushinteger(L, httpd_exchange_length(x));
    else
        lua_pushnil(L);
    return 3;
}

static int x_accepts_gzip(lua_State *L)
{
    lua_pushboolean(L, httpd_exchange_accepts_gzip(check(L)));
    return 1;
}

/* x:read() -> the next piece of the body; or nil and "wait", "end", "slow" or "gone" */
static int x_read(lua_State *L)
{
    struct httpd_exchange *x = check(L);
    const void *piece;
    size_t size;
    enum httpd_body state = httpd_exchange_body(x, &piece, &size);
    if (state == HTTPD_BODY_SOME) {
        lua_pushlstring(L, piece, size);
        httpd_exchange_body_drop(x, size);
        return 1;
    }
    lua_pushnil(L);
    lua_pushstring(L, state == HTTPD_BODY_WAIT   ? "wait"
                      : state == HTTPD_BODY_END  ? "end"
                      : state == HTTPD_BODY_SLOW ? "slow"
                                                 : "gone");
    return 2;
}

static unsigned status_at(lua_State *L, int arg)
{
    lua_Integer status = luaL_checkinteger(L, arg);
    luaL_argcheck(L, status >= 200 && status <= 599, arg, "not a status");
    return (unsigned)status;
}

/* Answers are put together from what clients said: nothing may begin a line of its own. */
static bool is_clean(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 32 || *text == 127)
            return false;
    return true;
}

/* { name, value, name, value, ... }; the strings stay in that table. Empty ones are left out. */
static size_t headers_at(lua_State *L, int arg, struct httpd_header headers[HEADERS_MAX])
{
    luaL_checktype(L, arg, LUA_TTABLE);
    size_t count = 0;
    for (lua_Integer i = 1; lua_rawgeti(L, arg, i) == LUA_TSTRING; i += 2) {
        luaL_argcheck(L, count < HEADERS_MAX, arg, "too many headers");
        luaL_argcheck(L, lua_rawgeti(L, arg, i + 1) == LUA_TSTRING, arg, "not a string");
        const char *name = lua_tostring(L, -2), *value = lua_tostring(L, -1);
        luaL_argcheck(L, *name && is_clean(name) && !strpbrk(name, ": "), arg,
                      "not the name of a header");
        luaL_argcheck(L, is_clean(value), arg, "a header holds control characters");
        luaL_argcheck(L,
                      strcasecmp(name, "content-length") != 0 &&
                          strcasecmp(name, "transfer-encoding") != 0,
                      arg, "the length of an answer is the server's business");
        if (value[strspn(value, " ")])
            headers[count++] = (struct httpd_header){name, value};
        lua_pop(L, 2);
    }
    lua_pop(L, 1);
    return count;
}

/* x:reply(status, headers, body?, gzip) -> whether it is on its way */
static int x_reply(lua_State *L)
{
    struct httpd_exchange *x = check(L);
    unsigned status = status_at(L, 2);
    struct httpd_header headers[HEADERS_MAX];
    size_t count = headers_at(L, 3, headers);
    size_t size = 0;
    const char *body = luaL_optlstring(L, 4, "", &size);
    lua_pushboolean(
        L, httpd_exchange_reply(x, status, headers, count, body, size, lua_toboolean(L, 5)));
    return 1;
}

/* x:open(status, headers, gzip: nil, "events" or "bulk") -> whether it is on its way */
static int x_open(lua_State *L)
{
    static const char *const names[] = {"none", "events", "bulk", NULL};
    struct httpd_exchange *x = check(L);
    unsigned status = status_at(L, 2);
    struct httpd_header headers[HEADERS_MAX];
    size_t count = headers_at(L, 3, headers);
    enum httpd_gzip gzip = (enum httpd_gzip)luaL_checkoption(L, 4, "none", names);
    int64_t size = luaL_optinteger(L, 5, -1);
    lua_pushboolean(L, httpd_exchange_open(x, status, headers, count, gzip, size));
    return 1;
}

/* x:put(bytes, from) -> how many were taken from there on, 0 for no room; nil: nobody reads them */
static int x_put(lua_State *L)
{
    struct httpd_exchange *x = check(L);
    size_t size;
    const char *bytes = luaL_checklstring(L, 2, &size);
    lua_Integer from = luaL_optinteger(L, 3, 1);
    luaL_argcheck(L, from >= 1 && (size_t)from <= size + 1, 3, "out of range");
    ptrdiff_t taken = httpd_exchange_put(x, bytes + from - 1, size - (size_t)from + 1);
    if (taken < 0)
        lua_pushnil(L);
    else
        lua_pushinteger(L, taken);
    return 1;
}

/* x:flush() -> false: nobody reads it */
static int x_flush(lua_State *L)
{
    lua_pushboolean(L, httpd_exchange_flush(check(L)));
    return 1;
}

/* x:finish() */
static int x_finish(lua_State *L)
{
    httpd_exchange_end(check(L));
    return 0;
}

/* x:abort(): the client sees a broken connection */
static int x_abort(lua_State *L)
{
    httpd_exchange_break(check(L));
    return 0;
}

/* x:counts() -> bytes of body in, out */
static int x_counts(lua_State *L)
{
    const struct httpd_exchange *x = check(L);
    lua_pushinteger(L, (lua_Integer)httpd_exchange_in(x));
    lua_pushinteger(L, (lua_Integer)httpd_exchange_out(x));
    return 2;
}

static int x_close(lua_State *L)
{
    struct httpd_exchange **box = luaL_checkudata(L, 1, EXCHANGE);
    struct httpd_exchange *x = *box;
    *box = NULL;
    if (x)
        httpd_exchange_free(x);
    return 0;
}

/* Text ------------------------------------------------------------------------------------------- */

static int hex(int c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* unescape(text, plus) -> the same without %XX, and with blanks for "+" when `plus`; nil when it is broken */
static int unescape(lua_State *L)
{
    size_t size;
    const char *from = luaL_checklstring(L, 1, &size);
    bool plus = lua_toboolean(L, 2);
    if (!memchr(from, '%', size) && !(plus && memchr(from, '+', size))) {
        lua_settop(L, 1);
        return 1;
    }
    luaL_Buffer buffer;
    char *to = luaL_buffinitsize(L, &buffer, size);
    size_t length = 0;
    for (size_t i = 0; i < size; i++) {
        char c = from[i];
        if (c == '%') {
            int high = i + 2 < size ? hex((unsigned char)from[i + 1]) : -1;
            int low = high >= 0 ? hex((unsigned char)from[i + 2]) : -1;
            if (low < 0) {
                lua_pushnil(L);
                return 1;
            }
            c = (char)(high * 16 + low);
            i += 2;
        } else if (c == '+' && plus) {
            c = ' ';
        }
        to[length++] = c;
    }
    luaL_pushresultsize(&buffer, length);
    return 1;
}

static void class(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction closer)
{
    luaL_newmetatable(L, name);
    lua_newtable(L);
    luaL_setfuncs(L, methods, 0);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, closer);
    lua_setfield(L, -2, "__gc");
    lua_pushcfunction(L, closer);
    lua_setfield(L, -2, "__close");
    lua_pop(L, 1);
}

int luaopen_bough_httpd(lua_State *L)
{
    static const luaL_Reg daemon[] = {
        {"fd", daemon_fd},           {"where", daemon_where}, {"run", daemon_run},
        {"take", daemon_take},       {"news", daemon_news},   {"counts", daemon_counts},
        {"quiesce", daemon_quiesce}, {"close", daemon_close}, {NULL, NULL}};
    static const luaL_Reg exchange[] = {{"headers", x_headers},
                                        {"about", x_about},
                                        {"accepts_gzip", x_accepts_gzip},
                                        {"read", x_read},
                                        {"reply", x_reply},
                                        {"open", x_open},
                                        {"put", x_put},
                                        {"flush", x_flush},
                                        {"finish", x_finish},
                                        {"abort", x_abort},
                                        {"counts", x_counts},
                                        {"close", x_close},
                                        {NULL, NULL}};
    static const luaL_Reg functions[] = {{"new", new},
                                         {"json", httpd_json},
                                         {"unescape", unescape},
                                         {"signals", httpd_signals},
                                         {"raise_files", httpd_raise_files},
                                         {NULL, NULL}};
    luaL_checkversion(L);
    class(L, DAEMON, daemon, daemon_close);
    class(L, EXCHANGE, exchange, x_close);
    httpd_signals_open(L);
    luaL_newlib(L, functions);
    return 1;
}
