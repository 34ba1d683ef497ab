/* lsession.h - what the object (lsession.c) and its moves (lmove.c) share. */
#ifndef BOUGH_LSESSION_H
#define BOUGH_LSESSION_H

#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>

#define BOUGH_SESSION "bough.session"

/* User values. All state lives in the userdata and in these, never on the C stack: nearly all that
 * a session calls may suspend the task. */
enum {
    UV_ENGINE = 1,
    UV_IMAGE,    /* where the session stands: its last good image */
    UV_LATEST,   /* the image whose result the fields mirror */
    UV_RUNNING,  /* a run in the making, or nil */
    UV_LAST,     /* what run or start began last, for wait */
    UV_DEFAULTS, /* options under those of each run */
    UV_HISTORY,  /* array of { image=, uuid=, op=, command=, exit_code=, at= }, oldest first */
    UV_TURN,     /* core.queue() */
    UV_COUNT = UV_TURN
};

struct session {
    int line;      /* callers that have the turn or wait for it */
    bool detached; /* UV_RUNNING was begun by start */
    bool queue;    /* line up by default instead of refusing */
    bool closed;
};

/* The session at index 1, whatever its state; raises `invalid` naming `op`. */
struct session *bough_session_check(lua_State *L, const char *op);
/* The same, raising `closed` when it is. */
struct session *bough_session_open(lua_State *L, const char *op);
bool bough_session_busy(const struct session *s);
/* Whether it is busy only because the last process of its sandbox has just ended: then whoever comes next waits. */
bool bough_session_settling(lua_State *L, int session);

/* Pushes object.name and the object, for a call; raises `unsupported` without one. [-0, +2] */
void bough_session_method(lua_State *L, int object, const char *name, const char *op);
/* Pushes object[name], nil where reading it raises. [-0, +1] */
void bough_session_field(lua_State *L, int object, const char *name);
/* The session now stands on the image at `image`. [-0, +0] */
void bough_session_stand(lua_State *L, int session, int image);
/* Appends a step of its history for the image at `image`. [-0, +0] */
void bough_session_step(lua_State *L, int session, int image, const char *op);

/* The methods that may move a session, for its method table. */
extern const luaL_Reg bough_session_moves[];

#endif
