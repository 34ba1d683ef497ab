/* signals.h - a descriptor that tells of signals, for a program that is to end in order. */
#ifndef BOUGH_HTTPD_SIGNALS_H
#define BOUGH_HTTPD_SIGNALS_H

#include <lua.h>

/* signals{ "TERM", "INT" } -> signals; from then on these do nothing else to the process. For a program of our
 * own: a library has no business with its host's signals. */
int httpd_signals(lua_State *L);
void httpd_signals_open(lua_State *L);

#endif
