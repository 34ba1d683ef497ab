/* limits.h - limits of the process that a server needs high. */
#ifndef BOUGH_HTTPD_LIMITS_H
#define BOUGH_HTTPD_LIMITS_H

#include <lua.h>

/* raise_files() -> how many descriptors the process may have open from now on: as many as it is allowed to ask for. */
int httpd_raise_files(lua_State *L);

#endif
