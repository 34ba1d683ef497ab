/* lprocess.h - the process object, for what serves it from another file (attach).
 *
 * A process owns nothing but Lua values: the engine's handle, which kills what still runs when it is closed, and the
 * streams, which have finalisers of their own. */
#ifndef BOUGH_LPROCESS_H
#define BOUGH_LPROCESS_H

#include <lua.h>

#define BOUGH_PROCESS "bough.process"

/* User values. */
enum {
    BOUGH_PROCESS_HANDLE = 1, /* of the engine: wait, signal, resize, close, over, pid */
    BOUGH_PROCESS_STDIN,      /* a writer, or nil */
    BOUGH_PROCESS_STDOUT,     /* readers, or nil */
    BOUGH_PROCESS_STDERR,
    BOUGH_PROCESS_COMMAND, /* in one line */
    BOUGH_PROCESS_OP,      /* what started it, for messages */
    BOUGH_PROCESS_TIMEOUT, /* the seconds that it was given, for messages; or nil */
    BOUGH_PROCESS_SETTLE,  /* what is to be called after the end, or nil */
    BOUGH_PROCESS_RESULT,  /* a table of our own, once it has ended */
    BOUGH_PROCESS_FAILURE, /* what it failed with, or nil */
    BOUGH_PROCESS_TROUBLE, /* what settling failed with, or nil */
    BOUGH_PROCESS_IMAGE,   /* what settling gave, or nil */
    BOUGH_PROCESS_INPUT,   /* of communicate, until the end */
    BOUGH_PROCESS_UV_COUNT = BOUGH_PROCESS_INPUT
};

/* The process at index 1; raises `invalid` naming `op`. */
struct lprocess *bough_lprocess_check(lua_State *L, const char *op);

#endif
