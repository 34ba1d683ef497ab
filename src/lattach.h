/* lattach.h - process:attach, the caller's terminal in the hands of a process. */
#ifndef BOUGH_LATTACH_H
#define BOUGH_LATTACH_H

#include <lua.h>

/* The method: process at index 1, options or nil at 2; waits; pushes the code, or nil after the detach keys. */
int bough_attach(lua_State *L);

#endif
