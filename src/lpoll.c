/* lpoll.c - waiting until a descriptor can be read: `core.poll`, for modules in C that bring a descriptor of their own. */
#define _GNU_SOURCE
#include <string.h>

#include <lauxlib.h>

#include "lcore.h"
#include "ltask.h"
#include "lwait.h"
#include "sys.h"

#define POLL_NAME "bough.poll"

struct lpoll {
    uv_poll_t *poll; /* NULL when closed; active only while somebody waits */
    struct bough_core *core;
    struct bough_cond changed;
    bool ready;
};

static struct lpoll *poll_check(lua_State *L)
{
    struct lpoll *p = luaL_testudata(L, 1, POLL_NAME);
    if (!p)
        bough_lerr(L, BOUGH_ERR_invalid, "poll", "expected a poll, not %s", luaL_typename(L, 1));
    return p;
}

/* An error counts as readable: whoever reads next hears of it. */
static void on_ready(uv_poll_t *handle, int status, int events)
{
    struct lpoll *p = handle->data;
    (void)status;
    (void)events;
    uv_poll_stop(handle);
    p->ready = true;
    bough_cond_fire(&p->changed);
}

/* Stack: the poll, the instant. */
static int wait_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct lpoll *p = lua_touserdata(L, 1);
    int64_t until_ns = (int64_t)lua_tointeger(L, 2);
    if (!p->poll)
        return bough_lerr(L, BOUGH_ERR_closed, "poll", "it was closed");
    if (!p->ready && bough_now_ns() < until_ns) {
        int rc = uv_is_active((uv_handle_t *)p->poll)
                     ? 0
                     : uv_poll_start(p->poll, UV_READABLE, on_ready);
        if (rc < 0)
            return bough_lerr(L, BOUGH_ERR_io, "poll", "%s", uv_strerror(rc));
        return bough_wait_until(L, &p->changed, until_ns, ctx, wait_k);
    }
    lua_pushboolean(L, p->ready);
    return 1;
}

/* poll:wait(seconds?) -> whether it can be read; false when they have passed first */
static int poll_wait(lua_State *L)
{
    struct lpoll *p = poll_check(L);
    int64_t until_ns =
        lua_isnoneornil(L, 2) ? INT64_MAX : bough_check_until(L, 2, "poll:wait", true);
    lua_settop(L, 1);
    lua_pushinteger(L, (lua_Integer)until_ns);
    p->ready = false;
    return wait_k(L, LUA_OK, 0);
}

static int poll_close(lua_State *L)
{
    struct lpoll *p = poll_check(L);
    if (p->poll && p->core->loop) {
        bough_poll_close(&p->poll);
        bough_cond_fire(&p->changed);
    }
    p->poll = NULL;
    return 0;
}

static int poll_new(lua_State *L)
{
    struct bough_core *core = bough_core(L);
    int fd = (int)luaL_checkinteger(L, 1);
    struct lpoll *p = lua_newuserdatauv(L, sizeof *p, 0);
    *p = (struct lpoll){.core = core};
    bough_cond_init(&p->changed, core->loop);
    luaL_setmetatable(L, POLL_NAME);
    int rc = bough_poll_open(&p->poll, core->loop, fd, p);
    if (rc < 0)
        return bough_lerr(L, BOUGH_ERR_io, "poll", "descriptor %d: %s", fd, uv_strerror(rc));
    return 1;
}

void bough_open_poll(lua_State *L)
{
    static const luaL_Reg meta[] = {{"__gc", poll_close}, {"__close", poll_close}, {NULL, NULL}};
    static const luaL_Reg methods[] = {{"wait", poll_wait}, {"close", poll_close}, {NULL, NULL}};
    bough_class_make(L, POLL_NAME, meta, methods, NULL);
    lua_pushcfunction(L, poll_new);
    lua_setfield(L, -2, "poll");
}
