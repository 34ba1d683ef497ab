/* lwait.h - the only place that yields and the only place that resumes.
 *
 * A C method that waits is written as a predicate loop in a continuation:
 *
 *     static int run_wait_k(lua_State *L, int status, lua_KContext ctx)
 *     {
 *         struct run *run = run_check(L, 1);
 *         if (!run->done)
 *             return bough_wait(L, &run->changed, ctx, run_wait_k);   // may return without having waited long
 *         ... push results ...
 *     }
 *     static int run_wait(lua_State *L) { return run_wait_k(L, LUA_OK, 0); }
 *
 * bough_wait(L, cond, ctx, k): waits until `cond` fires (or spuriously), then calls k(L, LUA_YIELD or LUA_OK, ctx) and returns its
 * value. `status` is of no interest to k. The stack of the caller is as it was when k runs. In
 *   - a task of ours that can yield: the task is suspended; other tasks run;
 *   - the main thread, or a foreign coroutine with no task underneath: drives the loop and runs tasks meanwhile;
 *   - inside a task that cannot yield here (a generator of its own, table.sort, string.gsub, a __gc-less metamethod, require):
 *     polls the loop but runs no other task than services (core.service), which are the library's own.
 * Raises kind `cancelled` when the task was cancelled, kind `timeout` when a bough.deadline of the caller has passed, kind `state`
 * when nothing is left in the loop that could ever end the wait, and refuses (kind `state`) in a __gc finaliser where detectable. */
#ifndef BOUGH_LWAIT_H
#define BOUGH_LWAIT_H

#include <lua.h>

#include "err.h"
#include "loop.h"

/* Per-Lua-state core, kept in the registry; found from any thread of the state. */
struct bough_core;

struct bough_core *bough_core(lua_State *L);
struct bough_loop *bough_core_loop(struct bough_core *core);

int bough_wait(lua_State *L, struct bough_cond *cond, lua_KContext ctx, lua_KFunction k);

/* The same, and k runs at `until_ns` (bough_now_ns) at the latest; INT64_MAX for never. `cond` may be NULL. Nothing is raised at
 * that time: k looks at the clock. Where a driver waits, k is called from here, so a k that ends in `return bough_wait(...)` and
 * passes the address of no local to it costs no C stack however often it is woken in vain. */
int bough_wait_until(lua_State *L, struct bough_cond *cond, int64_t until_ns, lua_KContext ctx,
                     lua_KFunction k);

/* Whether a wait here would be private: inside a task, but no other task than services can run meanwhile. */
bool bough_wait_is_private(lua_State *L);

/* Hears what has happened, without waiting: runs the loop once, and services; no other task. Raises nothing but want of
 * stack. */
void bough_wait_glance(lua_State *L);

/* Seconds at argument `arg` as an instant of bough_now_ns; INT64_MAX for huge. Raises `invalid` for NaN, for negative
 * and, unless `zero_ok`, for zero. */
int64_t bough_check_until(lua_State *L, int arg, const char *op, bool zero_ok);

/* lerr.h: the error value. */
/* Pushes an error value made from `err` (op may be NULL): {kind=, message=, op=, errno=, code=} with the metatable `bough.error`. */
void bough_lerr_push(lua_State *L, const struct bough_err *err, const char *op);
/* Raises it. Does not return. */
int bough_lerr_raise(lua_State *L, const struct bough_err *err, const char *op);
/* Raises a fresh one: bough_lerr(L, BOUGH_ERR_state, "session:run", "the session is closed"). */
int bough_lerr(lua_State *L, enum bough_err_kind kind, const char *op, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The kind of the error value at `idx`, NULL when it is something else. Lives as long as the value. */
const char *bough_lerr_kind(lua_State *L, int idx);

#endif
