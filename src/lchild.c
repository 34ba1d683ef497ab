/* lchild.c - a live process as its engine's handle: what core.process, instances and pipelines build on. */
#define _GNU_SOURCE
#include <string.h>

#include "lask.h"
#include "lserve.h"
#include "lstream.h"
#include "sys.h"

enum { UV_RESULT = BOUGH_SERVED_VALUES + 1, UV_COUNT = UV_RESULT };

struct lchild {
    struct bough_served served; /* first */
    struct bough_process *process;
    bool streams_given;
};

static struct lchild *check(lua_State *L)
{
    struct lchild *l = luaL_checkudata(L, 1, BOUGH_CHILD);
    if (!l->process) /* a finaliser of somebody else has kept it */
        bough_lerr(L, BOUGH_ERR_closed, NULL, "the process has been collected");
    return l;
}

static void give_up(struct bough_served *served)
{
    bough_process_close(((struct lchild *)served)->process);
}

static int wait_k(lua_State *L, int status, lua_KContext ctx);

int bough_lchild_push(lua_State *L, struct bough_crew *crew, int spec, bool direct)
{
    spec = lua_absindex(L, spec);
    luaL_checktype(L, spec, LUA_TTABLE);
    struct lchild *l = lua_newuserdatauv(L, sizeof *l, UV_COUNT);
    *l = (struct lchild){0};
    luaL_setmetatable(L, BOUGH_CHILD);
    struct bough_process *p = l->process = bough_process_new(crew);
    if (!p)
        return luaL_error(L, "not enough memory");
    l->served = (struct bough_served){.streams = &p->streams,
                                      .changed = &p->changed,
                                      .go_on = wait_k,
                                      .args = 2,
                                      .give_up = give_up};
    bough_served_init(L, &l->served, spec);
    if (lua_getfield(L, spec, "command") == LUA_TSTRING)
        p->label = strdup(lua_tostring(L, -1));
    lua_pop(L, 1);
    bough_lspec_command(L, spec, &p->command, direct);
    bough_lspec_streams(L, spec, &p->streams, direct);
    bough_process_start(p);
    return 1;
}

static int started_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    const struct bough_process *p = check(L)->process;
    if (p->state == BOUGH_PROCESS_STARTING)
        return bough_wait(L, &check(L)->process->changed, ctx, started_k);
    if (p->failed && p->pid == 0)
        return bough_lerr_raise(L, &p->err, NULL); /* whoever starts it says what it was called */
    return 0;
}

/* child:started(): waits until it runs; raises why it does not. */
static int child_started(lua_State *L)
{
    check(L);
    lua_settop(L, 1);
    return started_k(L, LUA_OK, 0);
}

static void push_result(lua_State *L, struct lchild *l)
{
    if (lua_getiuservalue(L, 1, UV_RESULT) != LUA_TNIL)
        return;
    lua_pop(L, 1);
    struct bough_result r = {0};
    bough_process_result(l->process, &r, true); /* what raises on the way leaves it there */
    bough_lresult_push(L, &r);
    free(r.stdout_data);
    free(r.stderr_data);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, 1, UV_RESULT);
    for (int i = 0; i < 2; i++) {
        free(l->process->streams.out[i].data);
        l->process->streams.out[i].data = NULL;
    }
}

static bool is_over(const struct lchild *l)
{
    return l->process->state == BOUGH_PROCESS_OVER &&
           (l->process->failed || l->served.failed || bough_served_drained(&l->served));
}

static int wait_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct lchild *l = check(L);
    struct bough_process *p = l->process;
    int result;
    if (l->served.failed) {
        lua_getiuservalue(L, 1, BOUGH_SERVED_ERROR);
        return lua_error(L);
    }
    if (bough_served_due(&l->served))
        return bough_served_call(L, &l->served);
    if (p->state == BOUGH_PROCESS_OVER && p->failed)
        return bough_lerr_raise(L, &p->err, "wait");
    if (bough_served_drained(&l->served) && bough_served_last(L, &l->served, &result))
        return result;
    if (is_over(l)) {
        push_result(L, l);
        return 1;
    }
    int64_t until_ns = lua_tointeger(L, 2);
    if (bough_now_ns() >= until_ns) {
        lua_pushnil(L);
        return 1;
    }
    return bough_wait_until(L, &p->changed, until_ns, 0, wait_k);
}

/* child:wait(seconds?) -> result, or nil when the time has passed first */
static int child_wait(lua_State *L)
{
    check(L);
    int64_t until_ns = lua_isnoneornil(L, 2) ? INT64_MAX : bough_check_until(L, 2, "wait", true);
    lua_settop(L, 1);
    lua_pushinteger(L, until_ns);
    return wait_k(L, LUA_OK, 0);
}

/* child:streams() -> stdin, stdout, stderr: nil for those that are not pipes; once */
static int child_streams(lua_State *L)
{
    struct lchild *l = check(L);
    struct bough_streams *s = &l->process->streams;
    static const char *const names[] = {"stdout", "stderr"};
    if (l->streams_given)
        return bough_lerr(L, BOUGH_ERR_state, NULL, "the streams belong to somebody already");
    l->streams_given = true;
    if (s->writer) {
        struct bough_writer *writer = s->writer;
        s->writer = NULL;
        bough_lwriter_push(L, writer, 0, "stdin");
    } else {
        lua_pushnil(L);
    }
    for (int i = 0; i < 2; i++) {
        struct bough_reader *reader = s->reader[i];
        s->reader[i] = NULL;
        if (reader)
            bough_lreader_push(L, reader, i + 1, names[i]);
        else
            lua_pushnil(L);
    }
    return 3;
}

/* child:signal(number, "group"|"tree") */
static int child_signal(lua_State *L)
{
    static const char *const scopes[] = {"group", "tree", NULL};
    struct lchild *l = check(L);
    lua_Integer number = luaL_checkinteger(L, 2);
    if (number < 0 || number > 64)
        return bough_lerr(L, BOUGH_ERR_invalid, "kill", "there is no signal %d", (int)number);
    bough_process_signal(l->process, (int)number,
                         (enum bough_scope)luaL_checkoption(L, 3, "group", scopes));
    return 0;
}

static int child_resize(lua_State *L)
{
    struct bough_err err;
    if (bough_process_resize(check(L)->process, (int)luaL_checkinteger(L, 2),
                             (int)luaL_checkinteger(L, 3), &err) < 0)
        return bough_lerr_raise(L, &err, "resize");
    return 0;
}

static int child_close(lua_State *L)
{
    struct lchild *l = luaL_checkudata(L, 1, BOUGH_CHILD);
    if (l->process)
        bough_process_close(l->process);
    return 0;
}

static int child_gc(lua_State *L)
{
    struct lchild *l = luaL_checkudata(L, 1, BOUGH_CHILD);
    if (l->process) {
        bough_process_close(l->process);
        bough_process_unref(l->process);
    }
    l->process = NULL;
    return 0;
}

static int child_index(lua_State *L)
{
    struct lchild *l = check(L);
    const char *key = luaL_checkstring(L, 2);
    if (strcmp(key, "over") == 0)
        lua_pushboolean(L, is_over(l));
    else if (strcmp(key, "ended") == 0)
        lua_pushboolean(L, l->process->state == BOUGH_PROCESS_OVER);
    else if (strcmp(key, "terminal") == 0)
        lua_pushboolean(L, l->process->command.pty);
    else if (strcmp(key, "pid") != 0)
        lua_getfield(L, lua_upvalueindex(1), key);
    else if (l->process->pid > 0)
        lua_pushinteger(L, l->process->pid);
    else
        lua_pushnil(L);
    return 1;
}

void bough_lchild_register(lua_State *L)
{
    static const luaL_Reg methods[] = {
        {"wait", child_wait},
        {"started", child_started},
        {"streams", child_streams},
        {"signal", child_signal},
        {"resize", child_resize},
        {"close", child_close},
        {NULL, NULL},
    };
    static const luaL_Reg meta[] = {{"__gc", child_gc}, {"__close", child_close}, {NULL, NULL}};
    if (luaL_newmetatable(L, BOUGH_CHILD)) {
        luaL_setfuncs(L, meta, 0);
        luaL_newlib(L, methods);
        lua_pushcclosure(L, child_index, 1);
        lua_setfield(L, -2, "__index");
    }
    lua_pop(L, 1);
}
