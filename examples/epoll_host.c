/* epoll_host.c - a C program with a loop of its own that embeds Lua and bough.
 *
 * It waits in epoll for its own events (here: a timer that ticks) and for ours:
 * bough.fd() turns readable when there is something to do, bough.timeout() says
 * how long to wait at most, bough.step(0) does what is ready and never waits. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

/* Calls bough[name](argument?) of the module at stack index 1 and leaves its first result. */
static int call(lua_State *L, const char *name, int has_argument)
{
    lua_getfield(L, 1, name);
    if (has_argument)
        lua_pushinteger(L, 0);
    return lua_pcall(L, has_argument, 1, 0);
}

static int fail(lua_State *L)
{
    fprintf(stderr, "epoll_host: %s\n", luaL_tolstring(L, -1, NULL));
    return 1;
}

static int watch(int epoll, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data = {.fd = fd}};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static int run(lua_State *L, const char *script)
{
    if (luaL_loadfile(L, script) || lua_pcall(L, 0, 1, 0) || call(L, "fd", 0))
        return fail(L);
    int bough_fd = (int)lua_tointeger(L, -1);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    struct itimerspec every = {.it_interval = {.tv_nsec = 10000000},
                               .it_value = {.tv_nsec = 10000000}};
    timerfd_settime(timer, 0, &every, NULL);
    if (watch(epoll, timer) < 0 || watch(epoll, bough_fd) < 0) {
        perror("epoll_ctl");
        return 1;
    }
    uint64_t ticks = 0;
    int finished = 0;
    while (!finished) {
        lua_settop(L, 1);
        if (call(L, "timeout", 0))
            return fail(L);
        double seconds = lua_isnumber(L, -1) ? lua_tonumber(L, -1) : -1;
        struct epoll_event events[8];
        int n = epoll_wait(epoll, events, 8, seconds < 0 ? -1 : (int)(seconds * 1000) + 1);
        for (int i = 0; i < n; i++) {
            uint64_t count;
            if (events[i].data.fd == timer && read(timer, &count, sizeof count) == sizeof count)
                ticks += count;
        }
        if (call(L, "step", 1))
            return fail(L);
        lua_getglobal(L, "finished");
        finished = lua_toboolean(L, -1);
    }
    printf("the host's own timer ran meanwhile: %s\n", ticks > 0 ? "yes" : "no");
    close(timer);
    close(epoll);
    return 0;
}

int main(int argc, char **argv)
{
    lua_State *L = luaL_newstate();
    if (!L)
        return 1;
    luaL_openlibs(L);
    int status = run(L, argc > 1 ? argv[1] : "examples/epoll_host.lua");
    lua_close(L);
    return status;
}
