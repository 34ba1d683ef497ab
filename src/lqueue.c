/* lqueue.c - a fair lock for Lua code: first come, first served. */
#define _GNU_SOURCE
#include <string.h>

#include <lauxlib.h>

#include "lcore.h"
#include "ltask.h"
#include "lwait.h"

#define QUEUE_NAME "bough.queue"
#define TURN_NAME "bough.turn"

/* Somebody in line for a queue; a userdata on its stack. */
struct bough_turn {
    struct bough_queue *queue; /* NULL when no longer in line */
    struct bough_turn *next, *prev;
    bool granted;
    struct bough_cond called;
};

struct bough_queue {
    struct bough_core *core;
    struct bough_turn *first, *last;
    size_t length;
    bool held;
    uint64_t holder; /* id of the task, 0 outside of tasks */
};

static struct bough_queue *queue_check(lua_State *L)
{
    return luaL_checkudata(L, 1, QUEUE_NAME);
}

static void turn_leave(struct bough_turn *turn)
{
    struct bough_queue *queue = turn->queue;
    if (!queue)
        return;
    if (turn->prev)
        turn->prev->next = turn->next;
    else
        queue->first = turn->next;
    if (turn->next)
        turn->next->prev = turn->prev;
    else
        queue->last = turn->prev;
    queue->length--;
    turn->queue = NULL;
}

/* The lock is handed over while it is held, so that nobody can push in. */
static void queue_hand_over(struct bough_queue *queue)
{
    struct bough_turn *turn = queue->first;
    queue->held = turn != NULL;
    queue->holder = UINT64_MAX; /* nobody, until it arrives */
    if (turn) {
        turn_leave(turn);
        turn->granted = true;
        bough_cond_fire(&turn->called);
    }
}

/* __close of a turn: on any way out of acquire. A lock that was granted to somebody who was
 * cancelled before it could notice goes on to the next. User value 1 is the queue. */
static int turn_close(lua_State *L)
{
    struct bough_turn *turn = lua_touserdata(L, 1);
    bool granted = turn->granted;
    turn->granted = false;
    turn_leave(turn);
    bough_cond_destroy(&turn->called);
    if (granted && lua_getiuservalue(L, 1, 1) == LUA_TUSERDATA)
        queue_hand_over(lua_touserdata(L, -1));
    return 0;
}

static int turn_gc(lua_State *L)
{
    turn_leave(lua_touserdata(L, 1)); /* the state closes: nobody waits any more */
    return 0;
}

static void queue_take(struct bough_queue *queue)
{
    queue->held = true;
    queue->holder = queue->core->current ? queue->core->current->id : 0;
}

static int acquire_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_queue *queue = lua_touserdata(L, 1);
    struct bough_turn *turn = lua_touserdata(L, 2);
    if (!turn->granted)
        return bough_wait(L, &turn->called, ctx, acquire_k);
    turn->granted = false; /* it has arrived */
    queue_take(queue);
    lua_pushvalue(L, 1);
    return 1;
}

/* queue:acquire() -> the queue, whose __close releases it. Waits for its turn. */
static int queue_acquire(lua_State *L)
{
    struct bough_queue *queue = queue_check(L);
    struct bough_core *core = bough_core(L);
    lua_settop(L, 1);
    if (!queue->held) {
        queue_take(queue);
        return 1;
    }
    if (queue->holder == (core->current ? core->current->id : 0))
        return bough_lerr(L, BOUGH_ERR_state, "queue:acquire", "the caller holds it already");
    bough_task_refuse(L, "queue:acquire");
    struct bough_turn *turn = lua_newuserdatauv(L, sizeof *turn, 1);
    memset(turn, 0, sizeof *turn);
    luaL_setmetatable(L, TURN_NAME);
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, 2, 1);
    lua_toclose(L, 2);
    bough_cond_init(&turn->called, core->loop);
    turn->queue = queue;
    turn->prev = queue->last;
    if (turn->prev)
        turn->prev->next = turn;
    else
        queue->first = turn;
    queue->last = turn;
    queue->length++;
    return acquire_k(L, LUA_OK, 0);
}

static int queue_release(lua_State *L)
{
    struct bough_queue *queue = queue_check(L);
    if (!queue->held)
        return bough_lerr(L, BOUGH_ERR_state, "queue:release", "nobody holds it");
    queue_hand_over(queue);
    return 0;
}

static int queue_tostring(lua_State *L)
{
    struct bough_queue *queue = queue_check(L);
    if (queue->held)
        lua_pushfstring(L, "queue (held, %I waiting)", (LUAI_UACINT)queue->length);
    else
        lua_pushliteral(L, "queue (free)");
    return 1;
}

static int queue_new(lua_State *L)
{
    struct bough_core *core = bough_core(L);
    struct bough_queue *queue = lua_newuserdatauv(L, sizeof *queue, 0);
    memset(queue, 0, sizeof *queue);
    queue->core = core;
    luaL_setmetatable(L, QUEUE_NAME);
    return 1;
}

void bough_open_queue(lua_State *L)
{
    static const luaL_Reg meta[] = {
        {"__close", queue_release}, {"__tostring", queue_tostring}, {NULL, NULL}};
    static const luaL_Reg methods[] = {
        {"acquire", queue_acquire}, {"release", queue_release}, {NULL, NULL}};
    static const luaL_Reg turn_meta[] = {{"__close", turn_close}, {"__gc", turn_gc}, {NULL, NULL}};
    bough_class_make(L, QUEUE_NAME, meta, methods, NULL);
    bough_class_make(L, TURN_NAME, turn_meta, NULL, NULL);
    lua_pushcfunction(L, queue_new);
    lua_setfield(L, -2, "queue");
}
