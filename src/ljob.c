#include "ljob.h"

#include <string.h>

#include "sys.h"

struct job_box {
    struct bough_errand *errand;
};

void bough_errand_release(struct bough_errand *e)
{
    if (--e->refs > 0)
        return;
    bough_hold_drop(&e->hold);
    if (e->clear)
        e->clear(e);
    bough_cond_destroy(&e->changed);
    bough_engine_unref(e->engine);
    free(e);
}

void bough_errand_hold(struct bough_errand *e)
{
    e->refs++;
}

void *bough_errand_new(lua_State *L, size_t size, const char *op,
                       void (*push)(lua_State *, struct bough_errand *),
                       void (*clear)(struct bough_errand *))
{
    struct bough_engine *engine = bough_local_check(L, op);
    struct job_box *box = lua_newuserdatauv(L, sizeof *box, 1);
    box->errand = NULL;
    luaL_setmetatable(L, BOUGH_JOB);
    struct bough_errand *e = calloc(1, size);
    if (!e)
        luaL_error(L, "not enough memory");
    e->refs = 1;
    e->op = op;
    e->engine = engine;
    e->push = push;
    e->clear = clear;
    bough_engine_ref(engine);
    bough_cond_init(&e->changed, engine->loop);
    box->errand = e;
    return e;
}

void bough_errand_over(struct bough_errand *e)
{
    if (e->rc < 0 && e->staged > 0 && !e->engine->closed)
        bough_engine_drop_staged(e->engine, e->staged);
    e->staged = 0;
    if (e->rc < 0 && e->failed)
        e->failed(e);
    e->over = true;
    bough_cond_fire(&e->changed);
}

void bough_errand_fail(struct bough_errand *e, const struct bough_err *err)
{
    e->err = *err;
    e->rc = -1;
    bough_errand_over(e);
}

/* Whether it may go on to its next step. */
static bool errand_stopped(struct bough_errand *e)
{
    struct bough_err err;
    if (e->rc >= 0 && !e->cancelled && !e->engine->closed)
        return false;
    if (e->cancelled)
        bough_err_set(&err, BOUGH_ERR_cancelled, "closed before it was done");
    else if (e->rc < 0)
        err = e->err;
    else
        bough_err_set(&err, BOUGH_ERR_closed, "the engine was closed");
    bough_errand_fail(e, &err);
    return true;
}

static void errand_worked(struct bough_job *job)
{
    struct bough_errand *e = (struct bough_errand *)job;
    if (e->rc >= 0 && e->final) {
        if (e->then)
            e->then(e);
        else
            bough_errand_over(e);
    } else if (!errand_stopped(e)) {
        e->then(e);
    }
    bough_errand_release(e);
}

void bough_errand_work(struct bough_errand *e, void (*work)(struct bough_job *),
                       void (*then)(struct bough_errand *))
{
    e->refs++;
    e->then = then;
    e->final = !then;
    bough_job_start(e->engine, &e->job, work, errand_worked);
}

void bough_errand_last(struct bough_errand *e, void (*work)(struct bough_job *),
                       void (*then)(struct bough_errand *))
{
    bough_errand_work(e, work, then);
    e->final = true;
}

static bool errand_heard(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    struct bough_errand *e = arg;
    if (msg && msg->type == BOUGH_MSG_PROGRESS) {
        e->done = bough_get_i64(&msg->body);
        e->total = bough_get_i64(&msg->body);
        return true;
    }
    e->request = 0;
    if (!msg) {
        e->err = *err;
        e->rc = -1;
    }
    if (!errand_stopped(e))
        e->heard(e, msg);
    bough_errand_release(e);
    return false;
}

void bough_errand_ask(struct bough_errand *e, enum bough_msg type, const struct bough_wbuf *body,
                      const int *fds, int fd_count,
                      void (*heard)(struct bough_errand *, struct bough_message *))
{
    struct bough_err err;
    e->heard = heard;
    e->refs++;
    int64_t id = body && body->failed ? bough_err_sys(&err, ENOMEM, "request")
                                      : bough_client_ask(e->engine->client, type, body, fds,
                                                         fd_count, errand_heard, e, &err);
    if (id < 0) {
        bough_errand_fail(e, &err);
        bough_errand_release(e);
        return;
    }
    e->request = id;
    bough_engine_kick(e->engine);
}

/* -- as userdata ------------------------------------------------------------------------------- */

static struct bough_errand *job_check(lua_State *L)
{
    struct job_box *box = luaL_checkudata(L, 1, BOUGH_JOB);
    if (!box->errand)
        bough_lerr(L, BOUGH_ERR_closed, "job", "the job is closed");
    return box->errand;
}

/* Index 2: when to give up, in nanoseconds of bough_now_ns. */
static int job_wait_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct bough_errand *e = job_check(L);
    if (!e->over) {
        int64_t until = lua_tointeger(L, 2);
        if (until != INT64_MAX && bough_now_ns() >= until) {
            lua_pushnil(L);
            return 1;
        }
        return bough_wait_until(L, &e->changed, until, ctx, job_wait_k);
    }
    if (e->rc < 0)
        return bough_lerr_raise(L, &e->err, e->op);
    if (lua_getiuservalue(L, 1, 1) == LUA_TNIL) {
        lua_pop(L, 1);
        e->push(L, e);
        lua_pushvalue(L, -1);
        lua_setiuservalue(L, 1, 1);
    }
    return 1;
}

/* job:wait(seconds?) -> result, or nil when the time has passed first. */
static int job_wait(lua_State *L)
{
    job_check(L);
    int64_t until = lua_isnoneornil(L, 2) ? INT64_MAX : bough_check_until(L, 2, "wait", true);
    lua_settop(L, 1);
    lua_pushinteger(L, until);
    return job_wait_k(L, LUA_OK, 0);
}

/* job:progress() -> done, total (0: not known) */
static int job_progress(lua_State *L)
{
    struct bough_errand *e = job_check(L);
    int64_t done = e->done, total = e->total;
    if (e->progress)
        e->progress(e, &done, &total);
    lua_pushinteger(L, done);
    lua_pushinteger(L, total);
    return 2;
}

static void job_cancel(struct bough_errand *e)
{
    if (e->over || e->cancelled)
        return;
    e->cancelled = true;
    if (e->request > 0) {
        bough_client_tell(e->engine->client, BOUGH_MSG_KILL, e->request, NULL, NULL, 0, NULL);
        bough_engine_kick(e->engine);
    }
    if (e->cancel)
        e->cancel(e);
}

/* Never waits: what is under way is told to stop, and cleans up behind itself. */
static int job_close(lua_State *L)
{
    struct job_box *box = luaL_checkudata(L, 1, BOUGH_JOB);
    if (box->errand) {
        job_cancel(box->errand);
        bough_hold_drop(&box->errand->hold);
    }
    return 0;
}

static int job_gc(lua_State *L)
{
    struct job_box *box = luaL_checkudata(L, 1, BOUGH_JOB);
    if (box->errand) {
        job_cancel(box->errand);
        bough_hold_drop(&box->errand->hold);
        bough_errand_release(box->errand);
    }
    box->errand = NULL;
    return 0;
}

static int job_tostring(lua_State *L)
{
    struct job_box *box = luaL_checkudata(L, 1, BOUGH_JOB);
    const struct bough_errand *e = box->errand;
    lua_pushfstring(L, "job %s%s", e ? e->op : "",
                    !e || e->cancelled ? " (closed)"
                    : !e->over         ? ""
                    : e->rc < 0        ? " (failed)"
                                       : " (done)");
    return 1;
}

void bough_ljob_register(lua_State *L)
{
    static const luaL_Reg methods[] = {
        {"wait", job_wait}, {"progress", job_progress}, {"close", job_close}, {NULL, NULL}};
    static const luaL_Reg meta[] = {
        {"__gc", job_gc}, {"__close", job_close}, {"__tostring", job_tostring}, {NULL, NULL}};
    if (luaL_newmetatable(L, BOUGH_JOB)) {
        luaL_setfuncs(L, meta, 0);
        luaL_newlib(L, methods);
        lua_setfield(L, -2, "__index");
    }
    lua_pop(L, 1);
}
