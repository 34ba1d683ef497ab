/* ltask.c - the task userdata: spawn, wait, cancel, and the report of what nobody waited for. */
#define _GNU_SOURCE
#include "ltask.h"

#include <string.h>

#include <lauxlib.h>

#include "lcore.h"
#include "lwait.h"
#include "sys.h"

#define TASK_NAME "bough.task"

static const char in_flight_key = 0; /* registry: light pointer of a task -> its userdata */
static const char on_error_key = 0;  /* registry: the function for errors nobody waited for */

/* --- the life of a task ------------------------------------------------------------ */

struct bough_task *bough_task_check(lua_State *L, int arg, const char *op)
{
    struct bough_task *task = luaL_testudata(L, arg, TASK_NAME);
    if (!task)
        bough_lerr(L, BOUGH_ERR_invalid, op, "expected a task, not %s", luaL_typename(L, arg));
    return task;
}

bool bough_task_finished(const struct bough_task *task)
{
    return task->status >= BOUGH_TASK_DONE;
}

void bough_task_push(lua_State *L, struct bough_task *task)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &in_flight_key);
    lua_rawgetp(L, -1, task);
    lua_remove(L, -2);
}

/* The message handler of every task: the stack is still there. */
static int task_traceback(lua_State *L)
{
    struct bough_task *task = bough_core(L)->current;
    const char *kind = bough_lerr_kind(L, 1);
    if (!task || (task->cancelling && kind && strcmp(kind, "cancelled") == 0))
        return 1;
    lua_settop(L, 1);
    bough_task_push(L, task);
    luaL_traceback(L, L, NULL, 1);
    if (kind) {
        lua_pushliteral(L, "traceback");
        if (lua_rawget(L, 1) == LUA_TNIL) {
            lua_pushliteral(L, "traceback");
            lua_pushvalue(L, 3);
            lua_rawset(L, 1);
        }
        lua_pop(L, 1);
    }
    lua_setiuservalue(L, 2, BOUGH_TASK_TRACEBACK);
    lua_settop(L, 1);
    return 1;
}

/* The bottom of a task's thread: stack is the handler, then what fn returned or raised. Closers
 * have run by now, as ordinary code that may wait. */
static int task_main_k(lua_State *L, int status, lua_KContext ctx)
{
    struct bough_task *task = (struct bough_task *)ctx;
    luaL_checkstack(L, 4, NULL);
    bough_task_push(L, task);
    lua_insert(L, 1);
    task->raised = status != LUA_OK && status != LUA_YIELD;
    task->count = task->raised ? 1 : lua_gettop(L) - 2;
    if (task->count > 1) {
        int count = task->count;
        lua_createtable(L, count, 0);
        lua_insert(L, 3);
        for (int i = count; i >= 1; i--)
            lua_rawseti(L, 3, i);
        lua_settop(L, 3);
    }
    if (task->count > 0)
        lua_setiuservalue(L, 1, BOUGH_TASK_VALUE);
    return 0;
}

static int task_main(lua_State *L)
{
    struct bough_task *task = bough_core(L)->current;
    if (!task || task->thread != L)
        return luaL_error(L, "this thread belongs to a task");
    lua_pushcfunction(L, task_traceback);
    lua_insert(L, 1);
    int status = lua_pcallk(L, lua_gettop(L) - 2, LUA_MULTRET, 1, (lua_KContext)task, task_main_k);
    return task_main_k(L, status, (lua_KContext)task);
}

/* Everything but the status and the value; the userdata is on top of L, and popped. */
static void task_end(lua_State *L, struct bough_task *task, enum bough_task_status status)
{
    struct bough_core *core = task->core;
    task->status = status;
    task->thread = NULL;
    task->cancel_due = false;
    task->awaits = NULL;
    task->awaits_watch = NULL;
    bough_timer_stop(task->timer);
    task->timer = NULL;
    bough_loop_forget(core->loop, &task->party.waiter);
    while (task->scopes) /* of coroutines that outlive it */
        bough_scope_unlink(task->scopes);
    while (task->nodes) {
        struct bough_node *node = task->nodes;
        task->nodes = node->task_next;
        bough_watch_notice(node);
    }
    bough_cond_fire(&task->done);
    core->in_flight -= !task->party.waiter.service;

    lua_pushnil(L);
    lua_setiuservalue(L, -2, BOUGH_TASK_THREAD);
    lua_rawgetp(L, LUA_REGISTRYINDEX, &in_flight_key);
    lua_pushnil(L);
    lua_rawsetp(L, -2, task); /* clears a key: allocates nothing */
    lua_pop(L, 2);
}

static void thread_reset(lua_State *thread, lua_State *from)
{
#if LUA_VERSION_RELEASE_NUM >= 50406
    lua_closethread(thread, from);
#else
    (void)from;
    lua_resetthread(thread);
#endif
}

void bough_task_finish(lua_State *L, struct bough_task *task, int status)
{
    bough_task_push(L, task);
    if (status != LUA_OK) {
        /* It did not even reach the handler's end: out of memory, mostly. */
        lua_xmove(task->thread, L, 1);
        lua_setiuservalue(L, -2, BOUGH_TASK_VALUE);
        task->raised = true;
        task->count = 1;
        thread_reset(task->thread, L);
    }
    enum bough_task_status end = task->raised ? BOUGH_TASK_FAILED : BOUGH_TASK_DONE;
    if (task->raised && task->cancelling && !task->cancel_due) {
        lua_getiuservalue(L, -1, BOUGH_TASK_VALUE);
        const char *kind = bough_lerr_kind(L, -1);
        if (kind && strcmp(kind, "cancelled") == 0)
            end = BOUGH_TASK_CANCELLED;
        lua_pop(L, 1);
    }
    task_end(L, task, end);
}

/* Protected: (task) stores the error that tells what happened. */
static int task_blame(lua_State *L)
{
    struct bough_task *task = lua_touserdata(L, 1);
    struct bough_err err;
    bough_err_set(
        &err, BOUGH_ERR_state,
        "a task yielded values to nobody: coroutine.yield was meant for another scheduler");
    bough_task_push(L, task);
    bough_lerr_push(L, &err, NULL);
    if (task->thread) {
        luaL_traceback(L, task->thread, NULL, 0);
        lua_pushvalue(L, -1);
        lua_setiuservalue(L, 2, BOUGH_TASK_TRACEBACK);
        lua_setfield(L, 3, "traceback");
    }
    lua_setiuservalue(L, 2, BOUGH_TASK_VALUE);
    return 0;
}

void bough_task_lose(lua_State *L, struct bough_task *task, bool strayed)
{
    task->count = 0;
    if (strayed) {
        lua_pushcfunction(L, task_blame);
        lua_pushlightuserdata(L, task);
        if (lua_pcall(L, 1, 0, 0) != LUA_OK)
            lua_pop(L, 1);
        task->raised = true;
        task->count = 1;
        thread_reset(task->thread, L);
    }
    bough_task_push(L, task);
    task_end(L, task, strayed ? BOUGH_TASK_FAILED : BOUGH_TASK_CANCELLED);
}

void bough_check_function(lua_State *L, int arg, const char *op)
{
    if (lua_type(L, arg) == LUA_TFUNCTION)
        return;
    if (lua_isnone(L, arg) || luaL_getmetafield(L, arg, "__call") == LUA_TNIL)
        bough_lerr(L, BOUGH_ERR_invalid, op, "expected a function, not %s", luaL_typename(L, arg));
    lua_pop(L, 1);
}

/* Stack: fn, args. Leaves the task alone on it. */
static struct bough_task *task_new(lua_State *L, const char *op, bool service)
{
    struct bough_core *core = bough_core(L);
    bough_check_function(L, 1, op);
    int count = lua_gettop(L);
    luaL_checkstack(L, 8, op);

    struct bough_task *task = lua_newuserdatauv(L, sizeof *task, 3);
    memset(task, 0, sizeof *task);
    task->core = core;
    task->party.task = task;
    task->party.waiter.service = service;
    task->status = BOUGH_TASK_DONE; /* until nothing can fail any more */
    bough_cond_init(&task->done, core->loop);
    luaL_setmetatable(L, TASK_NAME);

    lua_State *thread = lua_newthread(L);
    lua_setiuservalue(L, -2, BOUGH_TASK_THREAD);
    if (!lua_checkstack(thread, count + 4))
        bough_lerr(L, BOUGH_ERR_resource, op, "too many arguments");
    lua_rawgetp(L, LUA_REGISTRYINDEX, &in_flight_key);
    lua_pushvalue(L, -2);
    lua_rawsetp(L, -2, task);
    lua_pop(L, 1);

    lua_insert(L, 1);
    lua_pushcfunction(thread, task_main);
    lua_xmove(L, thread, count);
    task->thread = thread;
    task->count = count;
    task->id = ++core->serial;
    task->status = BOUGH_TASK_READY;
    core->in_flight += !service;
    bough_loop_ready(core->loop, &task->party.waiter);
    return task;
}

static int task_spawn(lua_State *L)
{
    task_new(L, "spawn", false);
    return 1;
}

/* service(fn, ...): a task of the library's own, which runs in private waits as well: it must call nothing that
 * somebody else has written. */
static int task_service(lua_State *L)
{
    task_new(L, "service", true);
    return 1;
}

/* --- waiting for tasks ------------------------------------------------------------ */

bool bough_task_reaches(struct bough_core *core, struct bough_task *from,
                        const struct bough_task *goal)
{
    while (from) {
        if (from == goal)
            return true;
        if (from->visit == core->visit)
            return false;
        from->visit = core->visit;
        if (from->awaits_watch) {
            for (struct bough_node *n = from->awaits_watch->pending; n; n = n->next)
                if (bough_task_reaches(core, n->task, goal))
                    return true;
            return false;
        }
        from = from->awaits;
    }
    return false;
}

void bough_task_refuse(lua_State *L, const char *op)
{
    if (bough_wait_is_private(L))
        bough_lerr(L, BOUGH_ERR_state, op,
                   "tasks do not run while a function that cannot yield, or a coroutine inside "
                   "the task, waits");
}

static int task_results(lua_State *L, struct bough_task *task)
{
    if (task->status == BOUGH_TASK_CANCELLED && task->count == 0)
        return bough_lerr(L, BOUGH_ERR_cancelled, "task",
                          task->started ? "it was cancelled"
                                        : "it was cancelled before it started");
    if (task->raised) {
        task->observed = true;
        lua_getiuservalue(L, 1, BOUGH_TASK_VALUE);
        return lua_error(L);
    }
    luaL_checkstack(L, task->count + 4, "too many results");
    if (task->count == 0)
        return 0;
    lua_getiuservalue(L, 1, BOUGH_TASK_VALUE);
    if (task->count > 1) {
        int table = lua_gettop(L);
        for (int i = 1; i <= task->count; i++)
            lua_rawgeti(L, table, i);
    }
    return task->count;
}

static int task_wait_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_task *task = lua_touserdata(L, 1);
    if (bough_task_finished(task))
        return task_results(L, task);
    struct bough_core *core = bough_core(L);
    if (core->current) {
        if (task == core->current)
            return bough_lerr(L, BOUGH_ERR_state, "task", "a task cannot wait for itself");
        if (!task->party.waiter.service)
            bough_task_refuse(L, "task");
        core->visit++;
        if (bough_task_reaches(core, task, core->current))
            return bough_lerr(L, BOUGH_ERR_state, "task",
                              "these tasks would wait for each other in a circle");
        core->current->awaits = task;
    }
    return bough_wait(L, &task->done, ctx, task_wait_k);
}

static int task_wait(lua_State *L)
{
    bough_task_check(L, 1, "task:wait");
    lua_settop(L, 1);
    return task_wait_k(L, LUA_OK, 0);
}

/* run(fn, ...): if the wait is cut short, by a deadline or by Ctrl-C, the task ends with it. */
static int task_run(lua_State *L)
{
    bough_core(L);
    bough_task_refuse(L, "run");
    task_new(L, "run", false);
    lua_toclose(L, 1);
    return task_wait_k(L, LUA_OK, 0);
}

static void task_stop(lua_State *L, struct bough_task *task)
{
    if (bough_task_finished(task))
        return;
    task->cancelling = true;
    if (!task->started) {
        task->count = 0;
        bough_task_push(L, task);
        task_end(L, task, BOUGH_TASK_CANCELLED);
        return;
    }
    task->cancel_due = true;
    /* A running one meets it at its next wait. */
    if (task->status == BOUGH_TASK_WAITING)
        bough_loop_ready(task->core->loop, &task->party.waiter);
}

static int task_cancel(lua_State *L)
{
    struct bough_task *task = bough_task_check(L, 1, "task:cancel");
    task_stop(L, task);
    return 0;
}

/* The outcome is not asked for; if it is an error that nobody has seen, the collector tells. */
static int task_join_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_task *task = lua_touserdata(L, 1);
    bool stands_still = !task->party.waiter.service && bough_wait_is_private(L);
    if (bough_task_finished(task) || stands_still || task == task->core->current)
        return 0;
    if (task->core->current)
        task->core->current->awaits = task;
    return bough_wait(L, &task->done, ctx, task_join_k);
}

/* __close */
static int task_leave(lua_State *L)
{
    struct bough_task *task = bough_task_check(L, 1, "task");
    lua_settop(L, 1);
    if (bough_task_finished(task))
        return 0;
    task_stop(L, task);
    return task_join_k(L, LUA_OK, 0);
}

/* --- the userdata ------------------------------------------------------------ */

static const char *task_status_name(const struct bough_task *task)
{
    static const char *const names[] = {"ready", "waiting", "running",
                                        "done",  "failed",  "cancelled"};
    if (task->status == BOUGH_TASK_WAITING && task->party.waiter.queued)
        return "ready";
    return names[task->status];
}

static int task_index(lua_State *L)
{
    struct bough_task *task = luaL_checkudata(L, 1, TASK_NAME);
    const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
    if (strcmp(key, "status") == 0) {
        lua_pushstring(L, task_status_name(task));
    } else if (strcmp(key, "traceback") == 0) {
        lua_getiuservalue(L, 1, BOUGH_TASK_TRACEBACK);
    } else if (strcmp(key, "cancelling") == 0) {
        lua_pushboolean(L, task->cancelling && !bough_task_finished(task));
    } else if (strcmp(key, "observed") == 0) {
        lua_pushboolean(L, task->observed);
    } else {
        lua_pushvalue(L, 2);
        lua_rawget(L, lua_upvalueindex(1));
    }
    return 1;
}

static int task_tostring(lua_State *L)
{
    struct bough_task *task = luaL_checkudata(L, 1, TASK_NAME);
    lua_pushfstring(L, "task %I %s", (LUAI_UACINT)task->id, task_status_name(task));
    return 1;
}

/* Protected: (task userdata) */
static int task_report(lua_State *L)
{
    luaL_checkstack(L, 8, NULL);
    lua_getiuservalue(L, 1, BOUGH_TASK_VALUE);
    lua_getiuservalue(L, 1, BOUGH_TASK_TRACEBACK);
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &on_error_key) == LUA_TFUNCTION) {
        lua_pushvalue(L, 2);
        lua_pushvalue(L, 3);
        if (lua_pcall(L, 2, 0, 0) != LUA_OK) {
            lua_warning(L, "bough: the on_error function failed: ", 1);
            lua_warning(L, luaL_tolstring(L, -1, NULL), 0);
        }
    }
    lua_settop(L, 3);
    lua_warning(L, "bough: a task failed and nobody waited for it: ", 1);
    lua_warning(L, luaL_tolstring(L, 2, NULL), !lua_isnil(L, 3));
    if (!lua_isnil(L, 3)) {
        lua_warning(L, "\n", 1);
        lua_warning(L, lua_tostring(L, 3), 0);
    }
    return 0;
}

/* In flight only when the state closes: the thread is dropped as it is, as Lua does with all
 * suspended coroutines then. */
static int task_gc(lua_State *L)
{
    struct bough_task *task = lua_touserdata(L, 1);
    struct bough_loop *loop = task->core->loop;
    if (loop) {
        bough_timer_stop(task->timer);
        bough_loop_forget(loop, &task->party.waiter);
        bough_cond_destroy(&task->done);
    }
    task->timer = NULL;
    while (task->scopes)
        bough_scope_unlink(task->scopes);
    for (struct bough_node *n = task->nodes; n; n = n->task_next)
        n->task = NULL;
    task->nodes = NULL;
    if (!bough_task_finished(task)) {
        task->core->in_flight -= !task->party.waiter.service;
        task->status = BOUGH_TASK_CANCELLED;
        task->count = 0;
        task->thread = NULL;
    }
    if (task->status == BOUGH_TASK_FAILED && !task->observed) {
        task->observed = true;
        task->core->finalizing++;
        lua_pushcfunction(L, task_report);
        lua_pushvalue(L, 1);
        if (lua_pcall(L, 1, 0, 0) != LUA_OK)
            lua_pop(L, 1);
        task->core->finalizing--;
    }
    return 0;
}

static int task_current(lua_State *L)
{
    struct bough_task *task = bough_core(L)->current;
    if (task)
        bough_task_push(L, task);
    else
        lua_pushnil(L);
    return 1;
}

/* on_error(fn or nil) -> the one before */
static int task_on_error(lua_State *L)
{
    if (!lua_isnoneornil(L, 1) && !lua_isfunction(L, 1))
        return bough_lerr(L, BOUGH_ERR_invalid, "on_error", "expected a function or nil, not %s",
                          luaL_typename(L, 1));
    lua_settop(L, 1);
    lua_rawgetp(L, LUA_REGISTRYINDEX, &on_error_key);
    lua_insert(L, 1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &on_error_key);
    return 1;
}

/* --- opening ------------------------------------------------------------ */

void bough_class_make(lua_State *L, const char *name, const luaL_Reg *meta, const luaL_Reg *methods,
                      lua_CFunction index)
{
    if (luaL_newmetatable(L, name)) {
        luaL_setfuncs(L, meta, 0);
        lua_newtable(L);
        if (methods)
            luaL_setfuncs(L, methods, 0);
        if (index)
            lua_pushcclosure(L, index, 1);
        lua_setfield(L, -2, "__index");
    }
    lua_pop(L, 1);
}

void bough_open_task(lua_State *L)
{
    static const luaL_Reg task_meta[] = {
        {"__gc", task_gc}, {"__close", task_leave}, {"__tostring", task_tostring}, {NULL, NULL}};
    static const luaL_Reg task_methods[] = {
        {"wait", task_wait}, {"cancel", task_cancel}, {"close", task_cancel}, {NULL, NULL}};
    static const luaL_Reg functions[] = {
        {"spawn", task_spawn},     {"service", task_service},   {"run", task_run},
        {"current", task_current}, {"on_error", task_on_error}, {NULL, NULL},
    };
    bough_class_make(L, TASK_NAME, task_meta, task_methods, task_index);
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &in_flight_key) == LUA_TNIL) {
        lua_newtable(L);
        lua_rawsetp(L, LUA_REGISTRYINDEX, &in_flight_key);
    }
    lua_pop(L, 1);
    luaL_setfuncs(L, functions, 0);
}
