/* lchild.c - a live process as its engine's handle: what core.process, instances and pipelines build on. */
#define _GNU_SOURCE
#include "lchild.h"

#include <string.h>

#include "lask.h"
#include "lstream.h"
#include "sys.h"

static struct bough_lchild *check(lua_State *L)
{
    struct bough_lchild *l = luaL_checkudata(L, 1, BOUGH_CHILD);
    if (!l->process) /* a finaliser of somebody else has kept it */
        bough_lerr(L, BOUGH_ERR_closed, NULL, "the process has been collected");
    return l;
}

/* Not inlined, as much else here: bough_wait wants no local whose address is known. */

static __attribute__((noinline)) struct bough_child_look look(const struct bough_lchild *l)
{
    return l->class->look(l->process);
}

static __attribute__((noinline)) enum bough_process_state state_of(const struct bough_lchild *l)
{
    return look(l).state;
}

/* It is over and did not go well, or, `at_start`, has not even begun. */
static __attribute__((noinline)) bool has_failed(const struct bough_lchild *l, bool at_start)
{
    struct bough_child_look now = look(l);
    return now.state == BOUGH_PROCESS_OVER && now.failed && (!at_start || !now.ran);
}

/* --- making ---------------------------------------------------------------------------------------- */

static void give_up(struct bough_served *served)
{
    const struct bough_lchild *l = (struct bough_lchild *)served;
    l->class->close(l->process);
}

static int wait_k(lua_State *L, int status, lua_KContext ctx);

struct bough_lchild *bough_lchild_new(lua_State *L)
{
    struct bough_lchild *l = lua_newuserdatauv(L, sizeof *l, BOUGH_CHILD_VALUES);
    *l = (struct bough_lchild){0};
    luaL_setmetatable(L, BOUGH_CHILD);
    return l;
}

void bough_lchild_adopt(lua_State *L, const struct bough_child_class *class, void *process,
                        struct bough_streams *streams, struct bough_cond *changed, int spec)
{
    struct bough_lchild *l = lua_touserdata(L, -1);
    l->class = class;
    l->process = process;
    l->served = (struct bough_served){
        .streams = streams, .changed = changed, .go_on = wait_k, .args = 2, .give_up = give_up};
    bough_served_init(L, &l->served, spec);
}

/* --- a process of a crew's --------------------------------------------------------------------------- */

static struct bough_child_look process_look(const void *process)
{
    const struct bough_process *p = process;
    return (struct bough_child_look){.state = p->state,
                                     .ran = p->pid != 0,
                                     .failed = p->failed,
                                     .terminal = p->command.pty,
                                     .pid = p->pid,
                                     .err = &p->err};
}

static void process_result(void *process, struct bough_result *result)
{
    bough_process_result(process, result, false);
}

static void process_signal(void *process, int number, enum bough_scope scope)
{
    bough_process_signal(process, number, scope);
}

static int process_resize(void *process, int rows, int cols, struct bough_err *err)
{
    return bough_process_resize(process, rows, cols, err);
}

static void process_close(void *process)
{
    bough_process_close(process);
}

static void process_unref(void *process)
{
    bough_process_unref(process);
}

static const struct bough_child_class process_class = {
    process_look, process_result, process_signal, process_resize, process_close, process_unref};

int bough_lchild_push(lua_State *L, struct bough_crew *crew, int spec, bool direct)
{
    spec = lua_absindex(L, spec);
    luaL_checktype(L, spec, LUA_TTABLE);
    bough_lchild_new(L);
    struct bough_process *p = bough_process_new(crew);
    if (!p)
        return luaL_error(L, "not enough memory");
    bough_lchild_adopt(L, &process_class, p, &p->streams, &p->changed, spec);
    if (lua_getfield(L, spec, "command") == LUA_TSTRING)
        p->label = strdup(lua_tostring(L, -1));
    lua_pop(L, 1);
    bough_lspec_command(L, spec, &p->command, direct);
    bough_lspec_streams(L, spec, &p->streams, direct);
    bough_process_start(p);
    return 1;
}

/* --- waiting --------------------------------------------------------------------------------------- */

/* Raises what the process failed with. */
static int raise_failure(lua_State *L, const struct bough_lchild *l, const char *op)
{
    if (lua_getiuservalue(L, 1, BOUGH_CHILD_FAILURE) == LUA_TTABLE &&
        lua_rawgeti(L, -1, 1) != LUA_TNIL)
        return lua_error(L);
    return bough_lerr_raise(L, look(l).err, op);
}

static int started_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    const struct bough_lchild *l = check(L);
    if (state_of(l) == BOUGH_PROCESS_STARTING)
        return bough_wait(L, l->served.changed, ctx, started_k);
    if (has_failed(l, true))
        return raise_failure(L, l, NULL); /* whoever starts it says what it was called */
    return 0;
}

/* child:started(): waits until it runs; raises why it does not. */
static int child_started(lua_State *L)
{
    check(L);
    lua_settop(L, 1);
    return started_k(L, LUA_OK, 0);
}

static __attribute__((noinline)) void push_result(lua_State *L, struct bough_lchild *l)
{
    if (lua_getiuservalue(L, 1, BOUGH_CHILD_RESULT) != LUA_TNIL)
        return;
    lua_pop(L, 1);
    struct bough_out *out = l->served.streams->out;
    char *captured[2] = {out[0].data, out[1].data};
    struct bough_result r = {0};
    l->class->result(l->process, &r);
    for (int i = 0; i < 2; i++)
        out[i].data = captured[i]; /* what raises on the way leaves it there */
    bough_lresult_push(L, &r);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, 1, BOUGH_CHILD_RESULT);
    for (int i = 0; i < 2; i++) {
        free(out[i].data);
        out[i].data = NULL;
    }
}

static bool is_over(const struct bough_lchild *l)
{
    return state_of(l) == BOUGH_PROCESS_OVER &&
           (has_failed(l, false) || l->served.failed || bough_served_drained(&l->served));
}

/* Calls the functions that are due, down to the last unfinished line; raises what it, or one of them, failed with. */
static void serve(lua_State *L, struct bough_lchild *l)
{
    for (bool again = true; again;) {
        if (l->served.failed) {
            lua_getiuservalue(L, 1, BOUGH_SERVED_ERROR);
            lua_error(L);
        }
        again = bough_served_due(&l->served);
        if (again)
            bough_served_call(L, &l->served);
        else if (has_failed(l, false))
            raise_failure(L, l, "wait");
        else if (bough_served_drained(&l->served))
            again = bough_served_last(L, &l->served);
    }
}

static int wait_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct bough_lchild *l = check(L);
    serve(L, l);
    if (is_over(l)) {
        push_result(L, l);
        return 1;
    }
    int64_t until_ns = lua_tointeger(L, 2);
    if (bough_now_ns() >= until_ns) {
        lua_pushnil(L);
        return 1;
    }
    return bough_wait_until(L, l->served.changed, until_ns, 0, wait_k);
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
    struct bough_lchild *l = check(L);
    struct bough_streams *s = l->served.streams;
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
    struct bough_lchild *l = check(L);
    lua_Integer number = luaL_checkinteger(L, 2);
    if (number < 0 || number > 64)
        return bough_lerr(L, BOUGH_ERR_invalid, "kill", "there is no signal %d", (int)number);
    l->class->signal(l->process, (int)number,
                     (enum bough_scope)luaL_checkoption(L, 3, "group", scopes));
    return 0;
}

static int child_resize(lua_State *L)
{
    struct bough_err err;
    const struct bough_lchild *l = check(L);
    if (l->class->resize(l->process, (int)luaL_checkinteger(L, 2), (int)luaL_checkinteger(L, 3),
                         &err) < 0)
        return bough_lerr_raise(L, &err, "resize");
    return 0;
}

static int child_close(lua_State *L)
{
    struct bough_lchild *l = luaL_checkudata(L, 1, BOUGH_CHILD);
    if (l->process)
        l->class->close(l->process);
    return 0;
}

static int child_gc(lua_State *L)
{
    struct bough_lchild *l = luaL_checkudata(L, 1, BOUGH_CHILD);
    if (l->process) {
        l->class->close(l->process);
        l->class->unref(l->process);
    }
    l->process = NULL;
    return 0;
}

static int child_index(lua_State *L)
{
    struct bough_lchild *l = check(L);
    const char *key = luaL_checkstring(L, 2);
    if (strcmp(key, "over") == 0)
        lua_pushboolean(L, is_over(l));
    else if (strcmp(key, "ended") == 0)
        lua_pushboolean(L, state_of(l) == BOUGH_PROCESS_OVER);
    else if (strcmp(key, "terminal") == 0)
        lua_pushboolean(L, look(l).terminal);
    else if (strcmp(key, "pid") != 0)
        lua_getfield(L, lua_upvalueindex(1), key);
    else if (look(l).pid > 0)
        lua_pushinteger(L, look(l).pid);
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
