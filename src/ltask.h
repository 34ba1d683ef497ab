/* ltask.h - tasks, and the core that they share. Only lwait.c, ltask.c, lwatch.c, lqueue.c and
 * lcore.c look inside.
 *
 * A task is a userdata. While it is in flight, the registry anchors it, and it anchors its thread
 * (user value 1); afterwards the thread is gone, and user value 2 holds its results or its error,
 * user value 3 the traceback. */
#ifndef BOUGH_LTASK_H
#define BOUGH_LTASK_H

#include <lauxlib.h>
#include <lua.h>

#include "loop.h"

enum bough_task_status {
    BOUGH_TASK_READY, /* to be run; also a waiting one that has been woken */
    BOUGH_TASK_WAITING,
    BOUGH_TASK_RUNNING,
    BOUGH_TASK_DONE, /* from here on: finished */
    BOUGH_TASK_FAILED,
    BOUGH_TASK_CANCELLED,
};

enum { BOUGH_TASK_THREAD = 1, BOUGH_TASK_VALUE = 2, BOUGH_TASK_TRACEBACK = 3 };

/* Whoever waits: a task, or a driver on the C stack. */
struct bough_party {
    struct bough_waiter waiter; /* first */
    struct bough_task *task;    /* NULL for a driver */
    bool woken;                 /* of a driver */
};

/* One bough.deadline under way. A userdata on the stack of the thread it belongs to. */
struct bough_scope {
    struct bough_scope *next, **link;
    lua_State *thread; /* pinned by the user value */
    int64_t due_ns;
    double seconds; /* as the caller said it */
    bool spent;     /* raised: once, so that closers may wait */
};

struct bough_task {
    struct bough_party party; /* first */
    struct bough_core *core;
    lua_State *thread; /* NULL when finished */
    enum bough_task_status status;
    uint64_t id;
    int count; /* arguments before it started, results afterwards */
    bool started;
    bool yielded;    /* by bough_wait, not by a stranger */
    bool cancelling; /* somebody asked for it */
    bool cancel_due; /* and it has not been raised yet */
    bool raised;     /* what is in user value 2 is an error */
    bool observed;   /* the error reached somebody */
    /* the wait that suspends it */
    lua_KFunction k;
    lua_KContext k_ctx;
    int top;
    struct bough_timer *timer;
    struct bough_task *awaits;        /* for finding cycles: the task, or */
    struct bough_watch *awaits_watch; /* all tasks of the watch, that it waits for */
    uint64_t visit;
    struct bough_scope *scopes;
    struct bough_node *nodes; /* the watches that want to know */
    struct bough_cond done;
};

/* One task that one watch looks at. In the task's list until it finishes, then in the watch's. */
struct bough_node {
    struct bough_task *task; /* NULL: the state closes and the task went first */
    struct bough_watch *watch;
    struct bough_node *task_next;
    struct bough_node *next, *prev; /* in the watch: `pending` or `finished` */
};

/* User value 1: light pointer of a task -> its userdata, for all nodes. */
struct bough_watch {
    struct bough_core *core;
    struct bough_node *pending, *finished, *finished_last;
    bool checked; /* for cycles, since the last add */
    struct bough_cond changed;
};

struct bough_core {
    struct bough_loop *loop;    /* NULL once the state closes */
    struct bough_task *current; /* the one being resumed: it is on the C stack */
    struct bough_scope *scopes; /* deadlines outside of tasks */
    size_t in_flight;           /* tasks, services apart */
    uint64_t serial;
    uint64_t visit;
    int finalizing; /* inside a __gc of ours that calls Lua */
};

/* Pushes the userdata of a task in flight, or nil. Allocates nothing. */
void bough_task_push(lua_State *L, struct bough_task *task);

/* The thread has come to its end: well (task_main has stored what there is), or by an error that
 * is on top of the thread's stack. Never raises. */
void bough_task_finish(lua_State *L, struct bough_task *task, int status);

/* It yielded values to nobody, or its thread was closed under it. Never raises. */
void bough_task_lose(lua_State *L, struct bough_task *task, bool strayed);

/* The task at `arg`; raises `invalid`. */
struct bough_task *bough_task_check(lua_State *L, int arg, const char *op);
bool bough_task_finished(const struct bough_task *task);

/* Raises `invalid` for what cannot be called. */
void bough_check_function(lua_State *L, int arg, const char *op);

/* Raises `state` where a wait for other tasks would be private and so never end. */
void bough_task_refuse(lua_State *L, const char *op);

/* Whether `from` waits, through others, for `goal`. Of a watch, all tasks are waited for. Take a
 * new number for `core->visit` before each search. */
bool bough_task_reaches(struct bough_core *core, struct bough_task *from,
                        const struct bough_task *goal);

/* The task of the node has finished: to the watch with it. */
void bough_watch_notice(struct bough_node *node);

/* A metatable with methods; `index`, if any, gets the methods as its upvalue. */
void bough_class_make(lua_State *L, const char *name, const luaL_Reg *meta, const luaL_Reg *methods,
                      lua_CFunction index);

/* Out of its context's list; callable twice. */
void bough_scope_unlink(struct bough_scope *scope);

void bough_core_open(lua_State *L); /* creates the core where there is none */

#endif
