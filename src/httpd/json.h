/* json.h - a writer of JSON, for answers: fast, and always valid UTF-8. */
#ifndef BOUGH_HTTPD_JSON_H
#define BOUGH_HTTPD_JSON_H

#include <lua.h>

/* json(value) -> string. A table with `[1]` is an array, as one is whose metatable has `__array`; any other is an
 * object with string keys. A light userdata NULL is null. Bytes that are not UTF-8 become U+FFFD. Raises for what
 * cannot be said: functions, NaN, tables nested too deeply. */
int httpd_json(lua_State *L);

#endif
