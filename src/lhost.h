/* lhost.h - plain commands of the host: bough-spawn, started once per Lua state when it is first needed. */
#ifndef BOUGH_LHOST_H
#define BOUGH_LHOST_H

#include <lua.h>

#include "spawner.h"

/* The one of this state, alive. Raises where it cannot be started. */
struct bough_spawner *bough_host_spawner(lua_State *L);

/* lprogram.c: the path (PATH_MAX) of one of our programs: `given`, else what $variable says, else the one beside
 * core.so. Raises `not_found`. */
void bough_lprogram_find(lua_State *L, const char *given, const char *variable, const char *name,
                         char *path, const char *op);

#endif
