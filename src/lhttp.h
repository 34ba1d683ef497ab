/* lhttp.h - what the userdata for HTTP share. */
#ifndef BOUGH_LHTTP_H
#define BOUGH_LHTTP_H

#include <lua.h>

#include "spool.h"
#include "transfer.h"

#define BOUGH_HTTP "bough.http"
#define BOUGH_TRANSFER "bough.transfer"
#define BOUGH_HTTP_STREAM "bough.http_stream"
#define BOUGH_SINK "bough.sink"

/* The spool of the open sink at `arg`; raises `invalid` and `closed`. */
struct bough_spool *bough_sink_check(lua_State *L, int arg, const char *op);
void bough_lsink_register(lua_State *L); /* adds `sink` to the table on top of the stack */

/* Starts the transfer that the table at index 2 describes, by the client at index 1, and pushes its userdata, which
 * ends it when it goes. */
struct bough_transfer *bough_lrequest_start(lua_State *L, struct bough_http *http, bool stream);

#endif
