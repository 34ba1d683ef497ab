/* lwait.c - the only place that yields, the only place that resumes; deadlines; the host's step. */
#define _GNU_SOURCE
#include "lwait.h"

#include <limits.h>
#include <string.h>

#include <lauxlib.h>

#include "lcore.h"
#include "ltask.h"
#include "sys.h"

#define NEVER INT64_MAX
#define SCOPE_NAME "bough.deadline"

/* Its address is the key in the registry; it has no value to share between states. */
static const char core_key = 0;

/* --- the core ------------------------------------------------------------ */

struct bough_core *bough_core(lua_State *L)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &core_key);
    struct bough_core *core = lua_touserdata(L, -1);
    lua_pop(L, 1);
    if (!core || !core->loop)
        bough_lerr(L, BOUGH_ERR_closed, NULL, "the Lua state is closing");
    return core;
}

struct bough_loop *bough_core_loop(struct bough_core *core)
{
    return core->loop;
}

static int core_gc(lua_State *L)
{
    struct bough_core *core = lua_touserdata(L, 1);
    struct bough_loop *loop = core->loop;
    core->loop = NULL;
    bough_loop_free(loop);
    return 0;
}

/* The core gets its finaliser before anything else of ours does, so at the end of the state it is
 * finalised after everything else of ours. */
void bough_core_open(lua_State *L)
{
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &core_key) == LUA_TNIL) {
        struct bough_core *core = lua_newuserdatauv(L, sizeof *core, 0);
        memset(core, 0, sizeof *core);
        lua_createtable(L, 0, 1);
        lua_pushcfunction(L, core_gc);
        lua_setfield(L, -2, "__gc");
        lua_setmetatable(L, -2);
        core->loop = bough_loop_new();
        if (!core->loop)
            bough_lerr(L, BOUGH_ERR_resource, "bough.core",
                       "cannot make an event loop: out of descriptors or memory");
        lua_rawsetp(L, LUA_REGISTRYINDEX, &core_key);
    }
    lua_pop(L, 1);
}

/* --- deadlines ------------------------------------------------------------ */

void bough_scope_unlink(struct bough_scope *scope)
{
    if (!scope->link)
        return;
    *scope->link = scope->next;
    if (scope->next)
        scope->next->link = scope->link;
    scope->next = NULL;
    scope->link = NULL;
}

/* A generator may have been left in the middle of its deadline: then it is not in force. Only one
 * chain of threads runs at a time, so a thread that has frames and is not suspended is below us. */
static bool scope_in_force(const struct bough_scope *scope, lua_State *L)
{
    lua_Debug ar;
    return scope->thread == L ||
           (lua_status(scope->thread) == LUA_OK && lua_getstack(scope->thread, 0, &ar));
}

static int scope_drop(lua_State *L)
{
    bough_scope_unlink(lua_touserdata(L, 1));
    return 0;
}

static int deadline_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    return lua_gettop(L) - 1;
}

int64_t bough_check_until(lua_State *L, int arg, const char *op, bool zero_ok)
{
    int is_number;
    double seconds = lua_tonumberx(L, arg, &is_number);
    if (!is_number || lua_type(L, arg) != LUA_TNUMBER)
        bough_lerr(L, BOUGH_ERR_invalid, op, "expected seconds, a number, not %s",
                   luaL_typename(L, arg));
    if (!(seconds >= 0) || (seconds == 0 && !zero_ok))
        bough_lerr(L, BOUGH_ERR_invalid, op, "expected a %s number of seconds, not %s",
                   zero_ok ? "non-negative" : "positive", luaL_tolstring(L, arg, NULL));
    int64_t now_ns = bough_now_ns();
    if (seconds >= (double)(NEVER - now_ns) / 1e9)
        return NEVER;
    /* Rounded up: half a nanosecond is not nothing. */
    double delay_ns = seconds * 1e9;
    int64_t whole_ns = (int64_t)delay_ns;
    return now_ns + whole_ns + (delay_ns > (double)whole_ns);
}

/* deadline(seconds, fn, ...) -> results of fn */
static int wait_deadline(lua_State *L)
{
    struct bough_core *core = bough_core(L);
    int64_t due_ns = bough_check_until(L, 1, "deadline", false);
    double seconds = lua_tonumber(L, 1);
    bough_check_function(L, 2, "deadline");

    struct bough_scope *scope = lua_newuserdatauv(L, sizeof *scope, 1);
    memset(scope, 0, sizeof *scope);
    luaL_setmetatable(L, SCOPE_NAME);
    lua_pushthread(L);
    lua_setiuservalue(L, -2, 1);
    lua_replace(L, 1);
    /* To be closed rather than a protected call: handlers of the caller see the whole stack. */
    lua_toclose(L, 1);
    scope->thread = L;
    scope->due_ns = due_ns;
    scope->seconds = seconds;
    struct bough_scope **head = core->current ? &core->current->scopes : &core->scopes;
    scope->next = *head;
    scope->link = head;
    if (scope->next)
        scope->next->link = &scope->next;
    *head = scope;

    lua_callk(L, lua_gettop(L) - 2, LUA_MULTRET, 0, deadline_k);
    return deadline_k(L, LUA_OK, 0);
}

/* --- waiting ------------------------------------------------------------ */

/* A finaliser runs in the middle of somebody's allocation, perhaps in the middle of another wait.
 * Lua marks the frame, in this thread; a coroutine that a finaliser of somebody else resumes
 * cannot be told from any other. Far below it does not matter: the walk is quadratic. */
static bool in_finalizer(lua_State *L)
{
    lua_Debug ar;
    for (int level = 0; level < 60 && lua_getstack(L, level, &ar); level++) {
        lua_getinfo(L, "n", &ar);
        if (*ar.namewhat == 'm' && strcmp(ar.name, "__gc") == 0)
            return true;
    }
    return false;
}

bool bough_wait_is_private(lua_State *L)
{
    struct bough_task *task = bough_core(L)->current;
    return task && (task->thread != L || !lua_isyieldable(L));
}

static bool is_finalizing(lua_State *L, const struct bough_core *core)
{
    return core->finalizing > 0 || (!lua_isyieldable(L) && in_finalizer(L));
}

static void refuse_in_finalizer(lua_State *L, struct bough_core *core)
{
    if (is_finalizing(L, core))
        bough_lerr(L, BOUGH_ERR_state, NULL, "cannot wait in a finaliser (__gc)");
}

/* Everything that a wait may raise before it begins. Returns the instant at which to wake up at
 * the latest. Not inlined: see bough_wait_until. */
static __attribute__((noinline)) int64_t wait_enter(lua_State *L, struct bough_core *core,
                                                    int64_t until_ns)
{
    luaL_checkstack(L, 16, "wait");
    refuse_in_finalizer(L, core);
    struct bough_task *task = core->current;
    if (task && task->cancel_due) {
        task->cancel_due = false;
        task->awaits = NULL;
        task->awaits_watch = NULL;
        bough_lerr(L, BOUGH_ERR_cancelled, NULL, "the task was cancelled");
    }
    struct bough_scope *nearest = NULL;
    for (struct bough_scope *s = task ? task->scopes : core->scopes; s; s = s->next)
        if (!s->spent && (!nearest || s->due_ns < nearest->due_ns) && scope_in_force(s, L))
            nearest = s;
    if (!nearest)
        return until_ns;
    if (nearest->due_ns <= bough_now_ns()) {
        nearest->spent = true;
        if (task) {
            task->awaits = NULL;
            task->awaits_watch = NULL;
        }
        lua_pushfstring(L, "%f", nearest->seconds);
        bough_lerr(L, BOUGH_ERR_timeout, "deadline", "the time limit of %s s has passed",
                   lua_tostring(L, -1));
    }
    return nearest->due_ns < until_ns ? nearest->due_ns : until_ns;
}

static int ms_until(int64_t instant_ns)
{
    if (instant_ns == NEVER)
        return -1;
    int64_t left_ns = instant_ns - bough_now_ns();
    if (left_ns <= 0)
        return 0;
    int64_t left_ms = left_ns / 1000000 + (left_ns % 1000000 != 0);
    return left_ms < INT_MAX ? (int)left_ms : INT_MAX;
}

/* In the continuation of the yield. Somebody may have got hold of the thread and resumed it past
 * us: the wait goes on, and the stranger gets nothing. */
static int wait_resumed(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_task *task = (struct bough_task *)ctx;
    lua_settop(L, task->top);
    if (task->core->current != task || task->thread != L)
        return lua_yieldk(L, 0, ctx, wait_resumed);
    return task->k(L, LUA_YIELD, task->k_ctx);
}

static int wait_suspend(lua_State *L, struct bough_core *core, struct bough_cond *cond,
                        int64_t limit_ns, lua_KContext ctx, lua_KFunction k)
{
    struct bough_task *task = core->current;
    if (limit_ns != NEVER && limit_ns <= bough_now_ns()) {
        bough_loop_ready(core->loop, &task->party.waiter);
    } else {
        if (limit_ns != NEVER) {
            task->timer = bough_timer_wake(core->loop, limit_ns, &task->party.waiter);
            if (!task->timer)
                return bough_lerr(L, BOUGH_ERR_resource, NULL, "out of memory for a timer");
        }
        bough_loop_park(core->loop, &task->party.waiter, cond);
    }
    task->status = BOUGH_TASK_WAITING;
    task->yielded = true;
    task->k = k;
    task->k_ctx = ctx;
    task->top = lua_gettop(L);
    return lua_yieldk(L, 0, (lua_KContext)task, wait_resumed);
}

/* Runs a task until it waits again or ends. */
static void task_resume(lua_State *L, struct bough_task *task)
{
    struct bough_core *core = task->core;
    lua_State *thread = task->thread;
    bough_timer_stop(task->timer);
    task->timer = NULL;
    task->awaits = NULL;
    task->awaits_watch = NULL;
    if (task->started && lua_status(thread) != LUA_YIELD) {
        bough_task_lose(L, task, false);
        return;
    }
    int nargs = task->started ? 0 : task->count;
    task->started = true;
    task->yielded = false;
    task->status = BOUGH_TASK_RUNNING;

    struct bough_task *below = core->current;
    core->current = task;
    int nresults = 0;
    int status = lua_resume(thread, L, nargs, &nresults);
    core->current = below;

    if (status != LUA_YIELD) {
        bough_task_finish(L, task, status);
    } else if (!task->yielded) {
        /* A bare coroutine.yield() lets the others have a turn. */
        if (nresults > 0) {
            bough_task_lose(L, task, true);
        } else {
            task->status = BOUGH_TASK_READY;
            bough_loop_ready(core->loop, &task->party.waiter);
        }
    }
}

/* Resumes who is ready now. Who becomes ready meanwhile has to wait until the loop was polled, so
 * that busy tasks do not starve timers and descriptors. */
static void dispatch(lua_State *L, struct bough_core *core, const struct bough_party *self)
{
    struct bough_loop *loop = core->loop;
    for (size_t n = bough_loop_ready_count(loop); n > 0 && !(self && self->woken); n--) {
        struct bough_party *party = (struct bough_party *)bough_loop_next(loop);
        if (!party)
            return;
        if (party->task)
            task_resume(L, party->task);
        else
            party->woken = true; /* self, or a driver further down the C stack */
    }
}

/* The same for a private wait: services alone, which run no code of anybody who might be further down the stack. */
static void dispatch_services(lua_State *L, struct bough_core *core, const struct bough_party *self)
{
    struct bough_loop *loop = core->loop;
    for (size_t n = bough_loop_service_count(loop); n > 0 && !(self && self->waiter.queued); n--) {
        struct bough_party *party = (struct bough_party *)bough_loop_next_service(loop);
        if (!party)
            return;
        task_resume(L, party->task);
    }
}

static int nothing(lua_State *L)
{
    (void)L;
    return 0;
}

/* lua.c answers Ctrl-C by setting a hook, which runs, and raises, at the next call. */
static void call_hook(lua_State *L)
{
    if (lua_gethookmask(L) & LUA_MASKCALL) {
        lua_pushcfunction(L, nothing);
        lua_call(L, 0, 0);
    }
}

/* Waits where there is nobody to yield to. Outside of tasks this drives the loop and runs the
 * tasks; inside of one it runs services alone. `self` is on the C stack, so nothing may raise while
 * it is parked. Not inlined: see bough_wait_until. */
static __attribute__((noinline)) void wait_here(lua_State *L, struct bough_core *core,
                                                struct bough_cond *cond, int64_t limit_ns)
{
    struct bough_loop *loop = core->loop;
    bool private = core->current != NULL;
    bool interrupted = false, stuck = false;
    struct bough_party self = {0};

    call_hook(L);
    bough_loop_park(loop, &self.waiter, cond);
    while (!interrupted) {
        if (private)
            dispatch_services(L, core, &self);
        else
            dispatch(L, core, &self);
        if (self.woken || self.waiter.queued)
            break;
        int timeout_ms = ms_until(limit_ns);
        bool ready = private ? bough_loop_service_count(loop) > 0 : bough_loop_has_ready(loop);
        stuck = timeout_ms < 0 && !bough_loop_alive(loop) && !ready;
        if (stuck)
            break;
        interrupted = !bough_loop_turn(loop, ready ? 0 : timeout_ms);
        if (timeout_ms == 0)
            break;
    }
    bough_loop_forget(loop, &self.waiter);
    if (interrupted)
        call_hook(L);
    if (stuck)
        bough_lerr(L, BOUGH_ERR_state, NULL,
                   private ? "this wait can never end: no other task runs while a function that "
                             "cannot yield, or a coroutine inside the task, waits"
                           : "this wait can never end: nothing is running that could end it");
}

/* Here `return k(...)` and in most k `return bough_wait(...)` are tail calls, which the compiler
 * makes jumps as long as no address of a local escapes: the functions above are not inlined. */
int bough_wait_until(lua_State *L, struct bough_cond *cond, int64_t until_ns, lua_KContext ctx,
                     lua_KFunction k)
{
    struct bough_core *core = bough_core(L);
    int64_t limit_ns = wait_enter(L, core, until_ns);
    if (core->current && core->current->thread == L && lua_isyieldable(L))
        return wait_suspend(L, core, cond, limit_ns, ctx, k);
    wait_here(L, core, cond, limit_ns);
    return k(L, LUA_OK, ctx);
}

int bough_wait(lua_State *L, struct bough_cond *cond, lua_KContext ctx, lua_KFunction k)
{
    return bough_wait_until(L, cond, NEVER, ctx, k);
}

void bough_wait_glance(lua_State *L)
{
    struct bough_core *core = bough_core(L);
    bough_loop_poll(core->loop, 0);
    if (bough_loop_service_count(core->loop) == 0 || is_finalizing(L, core))
        return;
    luaL_checkstack(L, 16, "poll");
    dispatch_services(L, core, NULL);
}

/* --- what hosts and scripts call ---------------------------------------------------------- */

static int sleep_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    int64_t due_ns = (int64_t)lua_tointeger(L, 1);
    if (bough_now_ns() >= due_ns)
        return 0;
    return bough_wait_until(L, NULL, due_ns, ctx, sleep_k);
}

/* sleep(seconds): 0 gives the others a turn. */
static int wait_sleep(lua_State *L)
{
    int64_t due_ns = bough_check_until(L, 1, "sleep", true);
    lua_settop(L, 0);
    lua_pushinteger(L, (lua_Integer)due_ns);
    return bough_wait_until(L, NULL, due_ns, 0, sleep_k);
}

/* step(seconds?) -> whether there are tasks left */
static int wait_step(lua_State *L)
{
    struct bough_core *core = bough_core(L);
    int64_t until_ns = lua_isnoneornil(L, 1) ? 0 : bough_check_until(L, 1, "step", true);
    if (core->current)
        return bough_lerr(L, BOUGH_ERR_state, "step", "a task cannot drive the loop that runs it");
    luaL_checkstack(L, 16, "step");
    /* With nothing under way there is nothing to wait for. The finaliser check comes late because
     * it costs more than all the rest of an idle step. */
    if (until_ns != 0 && bough_loop_alive(core->loop)) {
        refuse_in_finalizer(L, core);
        bough_loop_poll(core->loop, ms_until(until_ns));
    } else {
        bough_loop_poll(core->loop, 0);
    }
    if (bough_loop_has_ready(core->loop)) {
        refuse_in_finalizer(L, core);
        dispatch(L, core, NULL);
    }
    lua_pushboolean(L, core->in_flight > 0);
    return 1;
}

static int wait_fd(lua_State *L)
{
    lua_pushinteger(L, bough_loop_fd(bough_core(L)->loop));
    return 1;
}

static int wait_timeout(lua_State *L)
{
    int timeout_ms = bough_loop_timeout(bough_core(L)->loop);
    if (timeout_ms < 0)
        lua_pushnil(L);
    else
        lua_pushnumber(L, timeout_ms / 1000.0);
    return 1;
}

void bough_open_wait(lua_State *L)
{
    if (luaL_newmetatable(L, SCOPE_NAME)) {
        lua_pushcfunction(L, scope_drop);
        lua_setfield(L, -2, "__close");
        lua_pushcfunction(L, scope_drop);
        lua_setfield(L, -2, "__gc");
    }
    lua_pop(L, 1);

    static const luaL_Reg functions[] = {
        {"sleep", wait_sleep}, {"deadline", wait_deadline}, {"step", wait_step},
        {"fd", wait_fd},       {"timeout", wait_timeout},   {NULL, NULL},
    };
    luaL_setfuncs(L, functions, 0);
}
