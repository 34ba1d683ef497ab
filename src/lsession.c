/* lsession.c - the session userdata: a pointer that moves along images.
 *
 * It knows images only as Lua objects with methods (start, wait, close, apply_files, read, ...), so
 * it serves every engine. How it moves is in lmove.c. */
#include "lsession.h"

#include "lcore.h"
#include "lwait.h"

#include <string.h>
#include <time.h>

struct session *bough_session_check(lua_State *L, const char *op)
{
    struct session *s = luaL_testudata(L, 1, BOUGH_SESSION);
    if (!s)
        bough_lerr(L, BOUGH_ERR_invalid, op,
                   "called on %s instead of a session: write session:%s(...)", luaL_typename(L, 1),
                   op);
    return s;
}

struct session *bough_session_open(lua_State *L, const char *op)
{
    struct session *s = bough_session_check(L, op);
    if (s->closed)
        bough_lerr(L, BOUGH_ERR_closed, op, "the session is closed");
    return s;
}

bool bough_session_busy(const struct session *s)
{
    return s->line > 0 || s->detached;
}

bool bough_session_settling(lua_State *L, int session)
{
    const struct session *s = lua_touserdata(L, session);
    if (!s->detached || s->line > 0)
        return false;
    lua_getiuservalue(L, session, UV_RUNNING);
    bough_session_field(L, -1, "settling");
    bool settling = lua_toboolean(L, -1);
    lua_pop(L, 2);
    return settling;
}

void bough_session_method(lua_State *L, int object, const char *name, const char *op)
{
    object = lua_absindex(L, object);
    if (lua_getfield(L, object, name) == LUA_TNIL)
        bough_lerr(L, BOUGH_ERR_unsupported, op, "images of this engine have no %s", name);
    lua_pushvalue(L, object);
}

static int field_get(lua_State *L)
{
    lua_gettable(L, 1);
    return 1;
}

void bough_session_field(lua_State *L, int object, const char *name)
{
    object = lua_absindex(L, object);
    lua_pushcfunction(L, field_get);
    lua_pushvalue(L, object);
    lua_pushstring(L, name);
    if (lua_pcall(L, 2, 1, 0) != LUA_OK) {
        lua_pop(L, 1);
        lua_pushnil(L);
    }
}

/* Steps that are behind us need no output: a long session would hold all of it. image:brief(),
 * where there is one, gives the same image without, to be fetched again on demand. */
static void step_slim(lua_State *L, int history)
{
    if (lua_rawgeti(L, history, (lua_Integer)lua_rawlen(L, history)) == LUA_TTABLE) {
        lua_getfield(L, -1, "image");
        if (lua_getfield(L, -1, "brief") == LUA_TFUNCTION) {
            lua_insert(L, -2);
            lua_call(L, 1, 1);
            lua_setfield(L, -2, "image");
        } else {
            lua_pop(L, 2);
        }
    }
    lua_pop(L, 1);
}

static void history_copy_field(lua_State *L, int image, int step, const char *name)
{
    bough_session_field(L, image, name);
    lua_setfield(L, step, name);
}

void bough_session_step(lua_State *L, int session, int image, const char *op)
{
    image = lua_absindex(L, image);
    session = lua_absindex(L, session);
    lua_getiuservalue(L, session, UV_HISTORY);
    step_slim(L, lua_gettop(L));
    lua_createtable(L, 0, 6);
    int step = lua_gettop(L);
    lua_pushvalue(L, image);
    lua_setfield(L, step, "image");
    lua_pushstring(L, op);
    lua_setfield(L, step, "op");
    history_copy_field(L, image, step, "uuid");
    /* how an image was made is part of this history only when it was made here */
    if (strcmp(op, "run") == 0 || strcmp(op, "popen") == 0) {
        history_copy_field(L, image, step, "command");
        history_copy_field(L, image, step, "exit_code");
    }
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    lua_pushnumber(L, (lua_Number)now.tv_sec + (lua_Number)now.tv_nsec / 1e9);
    lua_setfield(L, step, "at");
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
    lua_pop(L, 1);
}

void bough_session_stand(lua_State *L, int session, int image)
{
    session = lua_absindex(L, session);
    image = lua_absindex(L, image);
    lua_pushvalue(L, image);
    lua_setiuservalue(L, session, UV_IMAGE);
    lua_pushvalue(L, image);
    lua_setiuservalue(L, session, UV_LATEST);
}

/* -- looking ----------------------------------------------------------------------------------- */

static int session_history(lua_State *L)
{
    static const char *const names[] = {"image", "uuid", "op", "command", "exit_code", "at"};
    bough_session_check(L, "history");
    lua_settop(L, 1);
    lua_getiuservalue(L, 1, UV_HISTORY);
    lua_Integer count = (lua_Integer)lua_rawlen(L, 2);
    lua_createtable(L, (int)count, 0);
    for (lua_Integer i = 1; i <= count; i++) {
        lua_rawgeti(L, 2, i);
        lua_createtable(L, 0, 6);
        for (size_t j = 0; j < sizeof names / sizeof *names; j++) {
            lua_getfield(L, -2, names[j]);
            lua_setfield(L, -2, names[j]);
        }
        lua_rawseti(L, 3, i);
        lua_pop(L, 1);
    }
    return 1;
}

static int session_image(lua_State *L)
{
    bough_session_check(L, "image");
    lua_getiuservalue(L, 1, UV_IMAGE);
    return 1;
}

/* [session, image, twin] */
static int branch_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    luaL_checkudata(L, 3, BOUGH_SESSION);
    lua_getiuservalue(L, 1, UV_LATEST);
    lua_setiuservalue(L, 3, UV_LATEST);
    lua_getiuservalue(L, 1, UV_HISTORY);
    lua_newtable(L);
    for (lua_Integer i = (lua_Integer)lua_rawlen(L, 4); i >= 1; i--) {
        lua_rawgeti(L, 4, i);
        lua_rawseti(L, 5, i); /* shared: all that changes in a step is right for both */
    }
    lua_setiuservalue(L, 3, UV_HISTORY);
    lua_settop(L, 3);
    return 1;
}

static int session_branch(lua_State *L)
{
    bough_session_open(L, "branch");
    lua_settop(L, 1);
    lua_getiuservalue(L, 1, UV_IMAGE);
    bough_session_method(L, 2, "session", "branch");
    lua_getiuservalue(L, 1, UV_DEFAULTS);
    lua_callk(L, 2, 1, 0, branch_k);
    return branch_k(L, LUA_OK, 0);
}

static int delegated_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    return lua_gettop(L) - (int)ctx;
}

/* [session, arguments...]: calls that method of the image where the session stands. */
static int delegate_k(lua_State *L, int status, lua_KContext ctx)
{
    const struct session *s = lua_touserdata(L, 1);
    const char *name = (const char *)ctx;
    if (status != LUA_OK && status != LUA_YIELD) {
        if (s->detached)
            return lua_error(L); /* the wait itself was cut short */
        lua_pop(L, 1);
    }
    int count = lua_gettop(L);
    luaL_checkstack(L, count + 4, "too many arguments");
    lua_getiuservalue(L, 1, UV_IMAGE);
    bough_session_method(L, -1, name, name);
    for (int i = 2; i <= count; i++)
        lua_pushvalue(L, i);
    lua_callk(L, count, LUA_MULTRET, count + 1, delegated_k);
    return delegated_k(L, LUA_OK, count + 1);
}

/* Upvalue 1: the name. */
static int session_delegate(lua_State *L)
{
    const char *name = lua_tostring(L, lua_upvalueindex(1));
    bough_session_open(L, name);
    lua_KContext ctx = (lua_KContext)name;
    if (!bough_session_settling(L, 1))
        return delegate_k(L, LUA_OK, ctx);
    lua_getiuservalue(L, 1, UV_RUNNING);
    bough_session_method(L, -1, "wait", name);
    lua_remove(L, -3);
    return delegate_k(L, lua_pcallk(L, 1, 0, 0, ctx, delegate_k), ctx);
}

/* -- life -------------------------------------------------------------------------------------- */

static int closed_k(lua_State *L, int status, lua_KContext ctx)
{
    if (ctx && status != LUA_OK && status != LUA_YIELD)
        return lua_error(L);
    return 0; /* an error in __close would hide the one that is on its way */
}

static int close_with(lua_State *L, lua_KContext raise)
{
    struct session *s = bough_session_check(L, "close");
    if (s->closed)
        return 0;
    s->closed = true;
    lua_settop(L, 1);
    if (lua_getiuservalue(L, 1, UV_RUNNING) == LUA_TNIL)
        return 0;
    bough_session_method(L, 2, "close", "close");
    return closed_k(L, lua_pcallk(L, 1, 0, 0, raise, closed_k), raise);
}

static int session_close(lua_State *L)
{
    return close_with(L, 1);
}

static int session__close(lua_State *L)
{
    return close_with(L, 0);
}

static int session__gc(lua_State *L)
{
    struct session *s = lua_touserdata(L, 1);
    s->closed = true; /* a run in the making goes with its own finaliser */
    return 0;
}

static const char *session_state(lua_State *L, const struct session *s)
{
    if (s->closed)
        return "closed";
    if (bough_session_busy(s))
        return "executing";
    lua_getiuservalue(L, 1, UV_LATEST);
    bough_session_field(L, -1, "state");
    return lua_isstring(L, -1) ? lua_tostring(L, -1) : "pulled";
}

/* Upvalue 1: methods. Upvalue 2: name of a field -> where it is found. */
static int session__index(lua_State *L)
{
    const struct session *s = bough_session_check(L, "index");
    lua_settop(L, 2);
    lua_pushvalue(L, 2);
    if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
        return 1;
    lua_pushvalue(L, 2);
    if (lua_rawget(L, lua_upvalueindex(2)) == LUA_TNIL)
        return 1;
    int where = (int)lua_tointeger(L, -1);
    if (where == 0) {
        lua_pushstring(L, session_state(L, s));
        return 1;
    }
    lua_settop(L, 2);
    /* while a run is in the making, its image says that there is no result yet */
    if (where != UV_LATEST || lua_getiuservalue(L, 1, UV_RUNNING) == LUA_TNIL) {
        lua_settop(L, 2);
        lua_getiuservalue(L, 1, where);
    }
    if (where == UV_ENGINE)
        return 1;
    lua_pushvalue(L, 2);
    lua_gettable(L, -2); /* raises `state` where there is no result yet */
    return 1;
}

static int session__newindex(lua_State *L)
{
    return bough_lerr(L, BOUGH_ERR_invalid, NULL, "session.%s: fields of a session cannot be set",
                      luaL_tolstring(L, 2, NULL));
}

static int session__tostring(lua_State *L)
{
    const struct session *s = bough_session_check(L, "tostring");
    const char *how = s->closed ? " (closed)" : bough_session_busy(s) ? " (executing)" : "";
    lua_getiuservalue(L, 1, UV_IMAGE);
    lua_pushfstring(L, "session%s at %s", how, luaL_tolstring(L, -1, NULL));
    return 1;
}

/* core.session(engine, image, defaults). Upvalue 1: the core table. */
static int core_session(lua_State *L)
{
    luaL_checkany(L, 2);
    lua_settop(L, 3);
    if (!lua_istable(L, 3)) {
        lua_newtable(L);
        lua_replace(L, 3);
    }
    struct session *s = lua_newuserdatauv(L, sizeof *s, UV_COUNT);
    memset(s, 0, sizeof *s);
    luaL_setmetatable(L, BOUGH_SESSION);
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, 4, UV_ENGINE);
    bough_session_stand(L, 4, 2);
    lua_getfield(L, 3, "queue");
    s->queue = lua_toboolean(L, -1);
    lua_pop(L, 1);
    lua_pushvalue(L, 3);
    lua_setiuservalue(L, 4, UV_DEFAULTS);
    lua_newtable(L);
    lua_setiuservalue(L, 4, UV_HISTORY);
    bough_session_step(L, 4, 2, "session");
    lua_getfield(L, lua_upvalueindex(1), "queue");
    lua_call(L, 0, 1);
    lua_setiuservalue(L, 4, UV_TURN);
    return 1;
}

static const luaL_Reg session_methods[] = {
    {"history", session_history},
    {"image", session_image},
    {"branch", session_branch},
    {"close", session_close},
    {NULL, NULL},
};

static const char *const delegates[] = {
    "read", "ls",     "entries", "walk", "stream", "download", "archive", "parent", "children",
    "diff", "export", "find",    "glob", "grep",   "stat",     "boot",    NULL,
};

static const luaL_Reg session_meta[] = {
    {"__newindex", session__newindex},
    {"__tostring", session__tostring},
    {"__close", session__close},
    {"__gc", session__gc},
    {NULL, NULL},
};

static const struct {
    const char *name;
    int where;
} session_fields[] = {
    {"state", 0},
    {"engine", UV_ENGINE},
    {"uuid", UV_IMAGE},
    {"tag", UV_IMAGE},
    {"parent_uuid", UV_IMAGE},
    {"created_at", UV_IMAGE},
    {"result", UV_LATEST},
    {"exit_code", UV_LATEST},
    {"signal", UV_LATEST},
    {"timed_out", UV_LATEST},
    {"ok", UV_LATEST},
    {"stdout", UV_LATEST},
    {"stderr", UV_LATEST},
    {"stdin", UV_LATEST},
    {"elapsed_time", UV_LATEST},
};

/* [core table on top] -> the same, with `session` */
void bough_open_session(lua_State *L)
{
    luaL_newmetatable(L, BOUGH_SESSION);
    luaL_setfuncs(L, session_meta, 0);
    luaL_newlib(L, session_methods);
    luaL_setfuncs(L, bough_session_moves, 0);
    for (const char *const *name = delegates; *name; name++) {
        lua_pushstring(L, *name);
        lua_pushcclosure(L, session_delegate, 1);
        lua_setfield(L, -2, *name);
    }
    lua_newtable(L);
    for (size_t i = 0; i < sizeof session_fields / sizeof *session_fields; i++) {
        lua_pushinteger(L, session_fields[i].where);
        lua_setfield(L, -2, session_fields[i].name);
    }
    lua_pushvalue(L, -2);
    lua_insert(L, -4); /* [core, methods, class, methods, fields] */
    lua_pushcclosure(L, session__index, 2);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
    lua_setfield(L, -2, "session_methods"); /* helpers in Lua are added there */

    lua_pushvalue(L, -1);
    lua_pushcclosure(L, core_session, 1);
    lua_setfield(L, -2, "session");
}
