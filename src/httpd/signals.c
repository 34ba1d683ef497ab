/* signals.c - a descriptor that tells of signals. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <lauxlib.h>

#include "httpd/signals.h"

#define NAME "bough.httpd.signals"

static int number_of(const char *name)
{
    for (int i = 1; i < NSIG; i++) {
        const char *known = sigabbrev_np(i);
        if (known && strcmp(known, name) == 0)
            return i;
    }
    return 0;
}

int httpd_signals(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    sigset_t set;
    sigemptyset(&set);
    for (lua_Integer i = 1; lua_geti(L, 1, i) != LUA_TNIL; i++) {
        const char *name = lua_tostring(L, -1);
        int number = name ? number_of(name) : 0;
        if (!number)
            return luaL_error(L, "signals: %s is not the name of a signal",
                              luaL_tolstring(L, -1, NULL));
        sigaddset(&set, number);
        lua_pop(L, 1);
    }
    int *fd = lua_newuserdatauv(L, sizeof *fd, 0);
    *fd = -1;
    luaL_setmetatable(L, NAME);
    *fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (*fd < 0)
        return luaL_error(L, "signals: %s", strerror(errno));
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    return 1;
}

static int *check(lua_State *L)
{
    return luaL_checkudata(L, 1, NAME);
}

/* signals:fd() -> the descriptor, readable when there is something to read */
static int signals_fd(lua_State *L)
{
    lua_pushinteger(L, *check(L));
    return 1;
}

/* signals:read() -> "TERM", or nil when none has come */
static int signals_read(lua_State *L)
{
    struct signalfd_siginfo info;
    if (read(*check(L), &info, sizeof info) != (ssize_t)sizeof info) {
        lua_pushnil(L);
        return 1;
    }
    lua_pushstring(L, sigabbrev_np((int)info.ssi_signo));
    return 1;
}

/* signals:close(): the signals stay blocked, so that a late one does not kill a program that is ending */
static int signals_close(lua_State *L)
{
    int *fd = check(L);
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return 0;
}

void httpd_signals_open(lua_State *L)
{
    static const luaL_Reg meta[] = {
        {"__gc", signals_close}, {"__close", signals_close}, {NULL, NULL}};
    static const luaL_Reg methods[] = {
        {"fd", signals_fd}, {"read", signals_read}, {"close", signals_close}, {NULL, NULL}};
    luaL_newmetatable(L, NAME);
    luaL_setfuncs(L, meta, 0);
    luaL_newlib(L, methods);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
}
