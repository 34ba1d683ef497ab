/* lprocess.h - what the process object (lprocess.c), its waits (lending.c) and attach share.
 *
 * A process owns nothing but Lua values: the engine's handle, which kills what still runs when it is closed, and the
 * streams, which have finalisers of their own. */
#ifndef BOUGH_LPROCESS_H
#define BOUGH_LPROCESS_H

#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>

#include "lwait.h"

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

struct lprocess {
    bool over;                 /* the handle says so */
    bool ended;                /* and has given the result */
    bool failed;               /* or an error */
    bool check;                /* a failing end is an error */
    bool given_up;             /* its handle was closed */
    bool settling;             /* somebody is at it */
    bool settled;              /* it went well, or there is nothing to do */
    bool talking;              /* somebody is in communicate */
    bool begun;                /* communicate has taken its input */
    bool collected;            /* what the streams had at the end is in the result */
    size_t sent;               /* of the input */
    struct bough_cond changed; /* fires when whoever was settling has done */
};

enum { AT_PROCESS = 1 }; /* index of the process in all that follows */

/* Raises `invalid` naming `op` where that is no process. */
struct lprocess *bough_lprocess_check(lua_State *L, const char *op);

/* Pushes a text as messages show it: quoted, control characters escaped, long ones clipped. */
void bough_lprocess_quote(lua_State *L, const char *text, size_t size);
/* A table and the tables in it, `depth` deep. [-0, +1] */
void bough_lprocess_copy(lua_State *L, int from, int depth);
/* Whether the error on top tells only that a wait was cut short, and nothing about the process. */
bool bough_lprocess_cut_short(lua_State *L);
void bough_lprocess_take(lua_State *L);   /* the handle's result, from the top. [-1, +0] */
void bough_lprocess_learn(lua_State *L);  /* of the end, if it is over: never waits, never raises */
int bough_lprocess_failure(lua_State *L); /* raises what it failed with */
void bough_lprocess_field(lua_State *L, const char *name); /* result[name]. [-0, +1] */
/* Pushes handle.name and the handle, for a call; raises `unsupported` without one. [-0, +2] */
void bough_lprocess_method(lua_State *L, const char *name, const char *op);
int bough_lprocess_streams_close(lua_State *L); /* a function of the process */

extern const luaL_Reg bough_lprocess_waits[]; /* the methods that wait for the end */
void bough_lprocess_waits_register(lua_State *L);

#endif
