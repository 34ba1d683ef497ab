/* lchild.h - the child userdata: a live process as its engine's handle, whoever runs it.
 *
 * What core.process, instances and pipelines build on. It serves the functions that were given for streams, waits, and
 * keeps the result; all else goes to the process, which it knows by a class. */
#ifndef BOUGH_LCHILD_H
#define BOUGH_LCHILD_H

#include <lua.h>

#include "lserve.h"
#include "process.h"

/* How the process is doing. */
struct bough_child_look {
    enum bough_process_state state;
    bool ran;    /* it was not its start that failed */
    bool failed; /* err says why, unless the failure is a Lua value */
    bool terminal;
    int64_t pid; /* 0: none */
    const struct bough_err *err;
};

struct bough_child_class {
    struct bough_child_look (*look)(const void *process);
    void (*result)(void *process,
                   struct bough_result *result); /* what was captured is moved into it */
    void (*signal)(void *process, int number, enum bough_scope scope);
    int (*resize)(void *process, int rows, int cols, struct bough_err *err);
    void (*close)(void *process); /* gives it up; idempotent, never waits */
    void (*unref)(void *process);
};

/* User values behind those of bough_served. */
enum {
    BOUGH_CHILD_RESULT = BOUGH_SERVED_VALUES + 1,
    BOUGH_CHILD_FAILURE, /* a table whose [1], if any, is what the process failed with; or nil */
    BOUGH_CHILD_VALUES = BOUGH_CHILD_FAILURE
};

struct bough_lchild {
    struct bough_served served; /* first */
    const struct bough_child_class *class;
    void *process; /* a reference; NULL once it is collected */
    bool streams_given;
};

/* Pushes one without a process, whose finaliser copes with that. [-0, +1] */
struct bough_lchild *bough_lchild_new(lua_State *L);
/* Gives it, on top of the stack, its process (taking over the reference) and the spec with the functions. */
void bough_lchild_adopt(lua_State *L, const struct bough_child_class *class, void *process,
                        struct bough_streams *streams, struct bough_cond *changed, int spec);

#endif
