/* limits.c - limits of the process that a server needs high. */
#include <math.h>
#include <sys/resource.h>

#include "httpd/limits.h"

int httpd_raise_files(lua_State *L)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) {
        lua_pushnil(L);
        return 1;
    }
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        limit.rlim_cur = before;
    if (limit.rlim_cur == RLIM_INFINITY)
        lua_pushnumber(L, (lua_Number)HUGE_VAL);
    else
        lua_pushinteger(L, (lua_Integer)limit.rlim_cur);
    return 1;
}
