/* lhttp.c - `core.http`: requests over HTTP for whoever is written in Lua. The client, a transfer, a stream.
 *
 * User values of a transfer: 1 the client, 2 the sink; of a stream: 1 the table of its fields, 2 the client. */
#define _GNU_SOURCE
#include "lhttp.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include <lauxlib.h>

#include "lcore.h"
#include "ltask.h"
#include "lwait.h"
#include "sys.h"

#define OP "http"

struct client {
    struct bough_http *http; /* NULL once it is closed */
};

struct handle {               /* of a transfer or of a stream */
    struct bough_transfer *t; /* NULL once it is closed */
};

/* --- answers ------------------------------------------------------------------------------------- */

/* Headers of one name are joined. */
static void push_headers(lua_State *L, const struct bough_answer *answer)
{
    lua_createtable(L, 0, (int)answer->field_count);
    for (size_t i = 0; i < answer->field_count; i++) {
        const struct bough_field *field = &answer->fields[i];
        lua_pushstring(L, field->name);
        lua_pushvalue(L, -1);
        if (lua_rawget(L, -3) == LUA_TNIL) {
            lua_pushstring(L, field->value);
        } else {
            lua_pushliteral(L, ", ");
            lua_pushstring(L, field->value);
            lua_concat(L, 3);
            lua_pushnil(L);
            lua_insert(L, -2);
        }
        lua_remove(L, -2);
        lua_rawset(L, -3);
    }
}

/* Pushes { status =, headers =, url = }. */
static void push_answer(lua_State *L, const struct bough_transfer *t)
{
    lua_createtable(L, 0, 4);
    lua_pushinteger(L, t->answer.status);
    lua_setfield(L, -2, "status");
    push_headers(L, &t->answer);
    lua_setfield(L, -2, "headers");
    lua_pushstring(L, t->url);
    lua_setfield(L, -2, "url");
}

/* Raises why it failed. */
static int raise_failure(lua_State *L, const struct bough_transfer *t)
{
    bough_lerr_push(L, &t->err, OP);
    lua_pushboolean(L, t->sent);
    lua_setfield(L, -2, "sent");
    return lua_error(L);
}

/* Pushes the result of a transfer that is done, or raises. */
static int push_result(lua_State *L, const struct bough_transfer *t)
{
    if (t->err.msg[0])
        return raise_failure(L, t);
    push_answer(L, t);
    if (!t->spooling) {
        lua_pushlstring(L, t->answer.data ? t->answer.data : "", t->answer.size);
        lua_setfield(L, -2, "body");
    }
    return 1;
}

/* --- transfers ----------------------------------------------------------------------------------- */

static struct bough_transfer *transfer_check(lua_State *L)
{
    const struct handle *handle = luaL_checkudata(L, 1, BOUGH_TRANSFER);
    if (!handle->t)
        bough_lerr(L, BOUGH_ERR_closed, OP, "the transfer was closed");
    return handle->t;
}

static int wait_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_transfer *t = transfer_check(L);
    int64_t until_ns = (int64_t)lua_tointeger(L, 2);
    if (t->done)
        return push_result(L, t);
    if (bough_now_ns() >= until_ns) {
        lua_pushnil(L);
        return 1;
    }
    return bough_wait_until(L, &t->changed, until_ns, ctx, wait_k);
}

/* transfer:wait(seconds?) -> answer, or nil when they have passed. Waits; repeatable. */
static int transfer_wait(lua_State *L)
{
    transfer_check(L);
    int64_t until_ns =
        lua_isnoneornil(L, 2) ? INT64_MAX : bough_check_until(L, 2, "transfer:wait", true);
    lua_settop(L, 1);
    lua_pushinteger(L, (lua_Integer)until_ns);
    return wait_k(L, LUA_OK, 0);
}

/* transfer:progress() -> done, total: bytes, total 0 when it is not known */
static int transfer_progress(lua_State *L)
{
    int64_t done, total;
    bough_transfer_progress(transfer_check(L), &done, &total);
    lua_pushinteger(L, done);
    lua_pushinteger(L, total);
    return 2;
}

/* For __gc, __close and close of both kinds. */
static int handle_close(lua_State *L)
{
    struct handle *handle = lua_touserdata(L, 1);
    if (handle && handle->t) {
        bough_transfer_end(handle->t, BOUGH_ERR_closed, "the transfer was closed");
        bough_transfer_unref(handle->t);
        handle->t = NULL;
    }
    return 0;
}

static int transfer_close(lua_State *L)
{
    luaL_checkudata(L, 1, BOUGH_TRANSFER);
    return handle_close(L);
}

static int transfer_tostring(lua_State *L)
{
    const struct handle *handle = luaL_checkudata(L, 1, BOUGH_TRANSFER);
    if (!handle->t)
        lua_pushliteral(L, "transfer (closed)");
    else
        lua_pushfstring(L, "transfer with %s (%s)", handle->t->host,
                        handle->t->done ? "done" : "under way");
    return 1;
}

/* --- streams --------------------------------------------------------------------------------------- */

static int read_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    const struct handle *handle = lua_touserdata(L, 1);
    struct bough_transfer *t = handle->t;
    if (!t)
        return bough_lerr(L, BOUGH_ERR_closed, OP, "the stream was closed");
    size_t there = t->answer.size - t->answer.taken;
    if (there > 0) {
        size_t most = (size_t)lua_tointeger(L, 2);
        size_t n = there < most ? there : most;
        lua_pushlstring(L, t->answer.data + t->answer.taken, n);
        bough_transfer_taken(t, n);
        return 1;
    }
    if (!t->done)
        return bough_wait(L, &t->changed, ctx, read_k);
    if (t->err.msg[0])
        return raise_failure(L, t);
    lua_pushnil(L);
    return 1;
}

/* stream:read(n?) -> what is there, at most n bytes, or nil at the end. Waits while there is nothing. */
static int stream_read(lua_State *L)
{
    luaL_checkudata(L, 1, BOUGH_HTTP_STREAM);
    lua_Integer most = luaL_optinteger(L, 2, (lua_Integer)BOUGH_TRANSFER_STREAM);
    if (most < 1)
        return bough_lerr(L, BOUGH_ERR_invalid, OP, "read at least one byte");
    lua_settop(L, 1);
    lua_pushinteger(L, most);
    return read_k(L, LUA_OK, 0);
}

static int stream_close(lua_State *L)
{
    luaL_checkudata(L, 1, BOUGH_HTTP_STREAM);
    return handle_close(L);
}

/* Upvalue: the methods. */
static int stream_index(lua_State *L)
{
    luaL_checkudata(L, 1, BOUGH_HTTP_STREAM);
    lua_settop(L, 2);
    lua_pushvalue(L, 2);
    if (lua_rawget(L, lua_upvalueindex(1)) == LUA_TNIL &&
        lua_getiuservalue(L, 1, 1) == LUA_TTABLE) {
        lua_pushvalue(L, 2);
        lua_rawget(L, -2);
    }
    return 1;
}

static int stream_tostring(lua_State *L)
{
    const struct handle *handle = luaL_checkudata(L, 1, BOUGH_HTTP_STREAM);
    if (!handle->t)
        lua_pushliteral(L, "http stream (closed)");
    else
        lua_pushfstring(L, "http stream %d from %s", (int)handle->t->answer.status,
                        handle->t->host);
    return 1;
}

/* --- the client -------------------------------------------------------------------------------------- */

static struct bough_http *client_check(lua_State *L)
{
    const struct client *client = luaL_checkudata(L, 1, BOUGH_HTTP);
    if (!client->http)
        bough_lerr(L, BOUGH_ERR_closed, OP, "the client is closed");
    return client->http;
}

/* client:start{ ... } -> transfer */
static int client_start(lua_State *L)
{
    bough_lrequest_start(L, client_check(L), false);
    return 1;
}

/* [client, request, transfer] */
static int request_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_transfer *t = ((struct handle *)lua_touserdata(L, 3))->t;
    if (!t->done)
        return bough_wait(L, &t->changed, ctx, request_k);
    return push_result(L, t);
}

/* client:request{ ... } -> answer. Waits; a caller who is cancelled ends the transfer. */
static int client_request(lua_State *L)
{
    bough_lrequest_start(L, client_check(L), false);
    lua_toclose(L, 3);
    return request_k(L, LUA_OK, 0);
}

/* [client, request, transfer] */
static int open_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct handle *from = lua_touserdata(L, 3);
    struct bough_transfer *t = from->t;
    if (!t->headers_done && !t->done)
        return bough_wait(L, &t->changed, ctx, open_k);
    if (!t->headers_done) {
        if (t->err.msg[0])
            return raise_failure(L, t);
        return bough_lerr(L, BOUGH_ERR_protocol, OP, "%s gave no answer", t->host);
    }
    struct handle *stream = lua_newuserdatauv(L, sizeof *stream, 2);
    stream->t = NULL;
    luaL_setmetatable(L, BOUGH_HTTP_STREAM);
    push_answer(L, t);
    lua_setiuservalue(L, -2, 1);
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, -2, 2);
    stream->t = t;
    from->t = NULL;
    return 1;
}

/* client:open{ ... } -> stream, when its headers are there. Waits. */
static int client_open(lua_State *L)
{
    bough_lrequest_start(L, client_check(L), true);
    lua_toclose(L, 3);
    return open_k(L, LUA_OK, 0);
}

static int client_close(lua_State *L)
{
    struct client *client = luaL_checkudata(L, 1, BOUGH_HTTP);
    struct bough_http *http = client->http;
    client->http = NULL;
    if (http) {
        bough_http_close(http);
        bough_http_unref(http);
    }
    return 0;
}

static int client_tostring(lua_State *L)
{
    const struct client *client = luaL_checkudata(L, 1, BOUGH_HTTP);
    if (client->http)
        lua_pushfstring(L, "http client (%I transfers)", (LUAI_UACINT)client->http->count);
    else
        lua_pushliteral(L, "http client (closed)");
    return 1;
}

/* The value stays on the stack. */
static const char *option_text(lua_State *L, const char *name)
{
    size_t size = 0;
    int type = lua_getfield(L, 1, name);
    if (type != LUA_TNIL && type != LUA_TSTRING)
        bough_lerr(L, BOUGH_ERR_invalid, OP, "%s must be a string, not %s", name,
                   luaL_typename(L, -1));
    const char *text = type == LUA_TSTRING ? lua_tolstring(L, -1, &size) : NULL;
    if (text && (strlen(text) != size || strpbrk(text, "\r\n")))
        bough_lerr(L, BOUGH_ERR_invalid, OP, "%s holds a line break or a NUL byte", name);
    return text;
}

static const char *or_environment(const char *text, const char *name)
{
    const char *value = text ? text : getenv(name);
    return value && *value ? value : NULL;
}

static void option_names(lua_State *L)
{
    static const char *const known[] = {
        "user_agent", "ca_file", "max_connections", "verify", "proxy", "outside", NULL};
    for (lua_pushnil(L); lua_next(L, 1) != 0; lua_pop(L, 1)) {
        const char *name = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "(no name)";
        int i = 0;
        while (known[i] && strcmp(known[i], name) != 0)
            i++;
        if (!known[i])
            bough_lerr(L, BOUGH_ERR_invalid, OP, "unknown option \"%s\"", name);
    }
}

/* http{ user_agent =, ca_file =, max_connections =, verify =, proxy =, outside = }? -> client */
static int http_new(lua_State *L)
{
    struct bough_http_options options = {0};
    struct bough_err err;
    struct bough_core *core = bough_core(L);
    lua_settop(L, 1);
    if (lua_isnil(L, 1)) {
        lua_newtable(L);
        lua_replace(L, 1);
    }
    luaL_checktype(L, 1, LUA_TTABLE);
    option_names(L);
    options.user_agent = option_text(L, "user_agent");
    options.proxy = option_text(L, "proxy");
    options.ca_file = option_text(L, "ca_file");
    /* as the curl program has it */
    if (!options.ca_file) {
        options.ca_file = or_environment(or_environment(NULL, "CURL_CA_BUNDLE"), "SSL_CERT_FILE");
        if (!options.ca_file)
            options.ca_dir = or_environment(NULL, "SSL_CERT_DIR");
    }
    if (lua_getfield(L, 1, "max_connections") != LUA_TNIL) {
        int is_integer;
        lua_Integer most = lua_tointegerx(L, -1, &is_integer);
        if (!is_integer || most < 0 || most > INT_MAX)
            return bough_lerr(L, BOUGH_ERR_invalid, OP, "max_connections must be a whole number");
        options.max_connections = (long)most;
    }
    if (lua_getfield(L, 1, "verify") != LUA_TNIL && !lua_isboolean(L, -1))
        return bough_lerr(L, BOUGH_ERR_invalid, OP, "verify must be true or false");
    options.trust_all = lua_isboolean(L, -1) && !lua_toboolean(L, -1);
    if (lua_getfield(L, 1, "outside") != LUA_TNIL && !lua_isboolean(L, -1))
        return bough_lerr(L, BOUGH_ERR_invalid, OP, "outside must be true or false");
    options.outside = lua_toboolean(L, -1);

    struct client *client = lua_newuserdatauv(L, sizeof *client, 0);
    client->http = NULL;
    luaL_setmetatable(L, BOUGH_HTTP);
    client->http = bough_http_open(bough_core_loop(core), &options, &err);
    if (!client->http)
        return bough_lerr_raise(L, &err, OP);
    return 1;
}

void bough_open_http(lua_State *L)
{
    static const luaL_Reg client_meta[] = {{"__gc", client_close},
                                           {"__close", client_close},
                                           {"__tostring", client_tostring},
                                           {NULL, NULL}};
    static const luaL_Reg client_methods[] = {{"request", client_request},
                                              {"start", client_start},
                                              {"open", client_open},
                                              {"close", client_close},
                                              {NULL, NULL}};
    static const luaL_Reg transfer_meta[] = {{"__gc", handle_close},
                                             {"__close", handle_close},
                                             {"__tostring", transfer_tostring},
                                             {NULL, NULL}};
    static const luaL_Reg transfer_methods[] = {{"wait", transfer_wait},
                                                {"progress", transfer_progress},
                                                {"close", transfer_close},
                                                {NULL, NULL}};
    static const luaL_Reg stream_meta[] = {{"__gc", handle_close},
                                           {"__close", handle_close},
                                           {"__tostring", stream_tostring},
                                           {NULL, NULL}};
    static const luaL_Reg stream_methods[] = {
        {"read", stream_read}, {"close", stream_close}, {NULL, NULL}};
    bough_class_make(L, BOUGH_HTTP, client_meta, client_methods, NULL);
    bough_class_make(L, BOUGH_TRANSFER, transfer_meta, transfer_methods, NULL);
    bough_class_make(L, BOUGH_HTTP_STREAM, stream_meta, stream_methods, stream_index);
    bough_lsink_register(L);
    lua_pushcfunction(L, http_new);
    lua_setfield(L, -2, "http");
}
