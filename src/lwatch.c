/* lwatch.c - a watch tells which of several tasks has finished; for all, race and scope. */
#define _GNU_SOURCE
#include <string.h>

#include <lauxlib.h>

#include "lcore.h"
#include "ltask.h"
#include "lwait.h"
#include "sys.h"

#define WATCH_NAME "bough.watch"

static struct bough_watch *watch_check(lua_State *L)
{
    return luaL_checkudata(L, 1, WATCH_NAME);
}

static void watch_push(struct bough_watch *watch, struct bough_node *node)
{
    node->next = NULL;
    node->prev = watch->finished_last;
    if (node->prev)
        node->prev->next = node;
    else
        watch->finished = node;
    watch->finished_last = node;
}

static void watch_unpend(struct bough_watch *watch, struct bough_node *node)
{
    if (node->prev)
        node->prev->next = node->next;
    else
        watch->pending = node->next;
    if (node->next)
        node->next->prev = node->prev;
}

void bough_watch_notice(struct bough_node *node)
{
    watch_unpend(node->watch, node);
    watch_push(node->watch, node);
    bough_cond_fire(&node->watch->changed);
}

/* watch:add(task) -> the task */
static int watch_add(lua_State *L)
{
    struct bough_watch *watch = watch_check(L);
    struct bough_task *task = bough_task_check(L, 2, "watch:add");
    bough_core(L);
    lua_settop(L, 2);
    lua_getiuservalue(L, 1, 1);
    if (lua_rawgetp(L, 3, task) != LUA_TNIL)
        return bough_lerr(L, BOUGH_ERR_invalid, "watch:add", "%s is in there already",
                          luaL_tolstring(L, 2, NULL));
    lua_pushvalue(L, 2);
    lua_rawsetp(L, 3, task);
    struct bough_node *node = calloc(1, sizeof *node);
    if (!node)
        return bough_lerr(L, BOUGH_ERR_resource, "watch:add", "out of memory");
    node->task = task;
    node->watch = watch;
    if (bough_task_finished(task)) {
        watch_push(watch, node);
    } else {
        node->next = watch->pending;
        if (node->next)
            node->next->prev = node;
        watch->pending = node;
        node->task_next = task->nodes;
        task->nodes = node;
    }
    watch->checked = false;
    lua_settop(L, 2);
    return 1;
}

/* watch:take() -> a task that has finished, in the order in which they did, or nil. Never waits. */
static int watch_take(lua_State *L)
{
    struct bough_watch *watch = watch_check(L);
    struct bough_node *node = watch->finished;
    if (!node) {
        lua_pushnil(L);
        return 1;
    }
    watch->finished = node->next;
    if (node->next)
        node->next->prev = NULL;
    else
        watch->finished_last = NULL;
    struct bough_task *task = node->task;
    free(node);
    lua_getiuservalue(L, 1, 1);
    lua_rawgetp(L, -1, task);
    lua_pushnil(L);
    lua_rawsetp(L, -3, task);
    return 1;
}

static int watch_next_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_watch *watch = lua_touserdata(L, 1);
    if (watch->finished || !watch->pending)
        return watch_take(L);
    struct bough_core *core = watch->core;
    if (core->current) {
        bough_task_refuse(L, "task");
        if (!watch->checked) {
            core->visit++;
            for (struct bough_node *n = watch->pending; n; n = n->next)
                if (bough_task_reaches(core, n->task, core->current))
                    return bough_lerr(L, BOUGH_ERR_state, "task",
                                      "these tasks would wait for each other in a circle");
            watch->checked = true;
        }
        core->current->awaits_watch = watch;
    }
    return bough_wait(L, &watch->changed, ctx, watch_next_k);
}

/* watch:next() -> the next task that has finished, or nil when there are no more. Waits. */
static int watch_next(lua_State *L)
{
    watch_check(L);
    lua_settop(L, 1);
    return watch_next_k(L, LUA_OK, 0);
}

static int watch_gc(lua_State *L)
{
    struct bough_watch *watch = lua_touserdata(L, 1);
    for (struct bough_node *n = watch->pending, *next; n; n = next) {
        next = n->next;
        for (struct bough_node **p = n->task ? &n->task->nodes : NULL; p && *p;
             p = &(*p)->task_next)
            if (*p == n) {
                *p = n->task_next;
                break;
            }
        free(n);
    }
    for (struct bough_node *n = watch->finished, *next; n; n = next) {
        next = n->next;
        free(n);
    }
    watch->pending = watch->finished = watch->finished_last = NULL;
    if (watch->core->loop)
        bough_cond_destroy(&watch->changed);
    return 0;
}

static int watch_new(lua_State *L)
{
    struct bough_core *core = bough_core(L);
    struct bough_watch *watch = lua_newuserdatauv(L, sizeof *watch, 1);
    memset(watch, 0, sizeof *watch);
    watch->core = core;
    bough_cond_init(&watch->changed, core->loop);
    luaL_setmetatable(L, WATCH_NAME);
    lua_newtable(L);
    lua_setiuservalue(L, -2, 1);
    return 1;
}

void bough_open_watch(lua_State *L)
{
    static const luaL_Reg meta[] = {{"__gc", watch_gc}, {NULL, NULL}};
    static const luaL_Reg methods[] = {
        {"add", watch_add}, {"take", watch_take}, {"next", watch_next}, {NULL, NULL}};
    bough_class_make(L, WATCH_NAME, meta, methods, NULL);
    lua_pushcfunction(L, watch_new);
    lua_setfield(L, -2, "watch");
}
