/* lserve.h - calling the Lua functions that were given for output and input.
 *
 * They are Lua, so they are called by whoever waits for the command, in that coroutine, never from the loop. What has
 * them is a userdata at index 1 that begins with a struct bough_served and has four user values: 1 the spec (anchors
 * the functions), 2 an unfinished line of stdout, 3 of stderr, 4 what a function has raised. */
#ifndef BOUGH_LSERVE_H
#define BOUGH_LSERVE_H

#include <lauxlib.h>
#include <lua.h>

#include "streams.h"

struct bough_served {
    struct bough_streams *streams;
    struct bough_cond *changed;
    bool lines;          /* functions get whole lines */
    size_t at[2];        /* of what has come: how much of it was given away, line by line */
    bool failed;         /* a function has raised */
    bool serving;        /* one waiter at a time calls them */
    lua_KFunction go_on; /* the waiting, with the stack cut to the arguments */
    int args;            /* how many those are, the userdata included */
    void (*give_up)(struct bough_served *served); /* a function has raised: kill */
};

enum { BOUGH_SERVED_SPEC = 1, BOUGH_SERVED_ERROR = 4, BOUGH_SERVED_VALUES = 4 };

/* Reads `text` of the spec at `index` and anchors it; the userdata is on top of the stack. */
void bough_served_init(lua_State *L, struct bough_served *served, int spec);
/* Whether there is something to call. */
bool bough_served_due(const struct bough_served *served);
/* Calls it; look again then. Where that has to wait, `go_on` runs in place of what follows the call. */
void bough_served_call(lua_State *L, struct bough_served *served);
/* At the end of the streams: has a function called with an unfinished line, if one is left; look again then. */
bool bough_served_last(lua_State *L, struct bough_served *served);
bool bough_served_drained(
    const struct bough_served *served); /* no function will be called any more */

#endif
