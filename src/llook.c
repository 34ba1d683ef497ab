/* llook.c - looking into an image: its stack from the store, a file or a list from the keeper. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "entry.h"
#include "lask.h"
#include "sys.h"

static void work_stack(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    q->stack_count = bough_store_find_stack(q->engine->store, q->ref, NULL, &q->stack, &q->err);
    q->rc = q->stack_count < 0 ? -1 : 0;
}

/* Reads the descriptor to its end, off the loop's thread: it may be a file of any size on a slow disk. */
static void work_slurp(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    struct stat st;
    if (fstat(q->fd, &st) < 0) {
        q->rc = bough_err_sys(&q->err, errno, "%s", q->path);
        return;
    }
    size_t room = (size_t)st.st_size + 1;
    q->data = malloc(room);
    while (q->data) {
        if (q->size == room) {
            char *grown = realloc(q->data, room *= 2);
            if (!grown)
                break;
            q->data = grown;
        }
        ssize_t n = BOUGH_RETRY(pread(q->fd, q->data + q->size, room - q->size, (off_t)q->size));
        if (n < 0)
            q->rc = bough_err_sys(&q->err, errno, "%s", q->path);
        if (n <= 0)
            return;
        q->size += (size_t)n;
    }
    q->rc = bough_err_sys(&q->err, ENOMEM, "%s", q->path);
}

static bool heard_fd(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    struct bough_question *q = arg;
    if (!msg || msg->fd_count < 1) {
        q->rc = -1;
        if (!msg)
            q->err = *err;
        else
            bough_err_set(&q->err, BOUGH_ERR_protocol, "keeper: an answer without its file");
        bough_question_answered(q);
        return false;
    }
    q->fd = bough_steal_fd(&msg->fds[0]);
    if (q->keep_open)
        bough_question_answered(q);
    else
        bough_job_start(q->engine, &q->job, work_slurp, bough_question_after);
    return false;
}

static void stack_known(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    if (q->rc < 0) {
        bough_question_answered(q);
        return;
    }
    struct bough_engine *engine = job->engine; /* the question may be gone behind its answer */
    struct bough_wbuf body = {0};
    bough_stack_put(&body, q->stack, q->stack_count);
    bough_put_str(&body, q->path);
    if (bough_client_ask(engine->client, q->request, &body, NULL, 0, heard_fd, q, &q->err) < 0) {
        q->rc = -1;
        bough_question_answered(q);
    }
    bough_wbuf_free(&body);
    bough_engine_kick(engine);
}

static struct bough_question *ask_inside(lua_State *L, const char *op, enum bough_msg request,
                                         bool keep_open)
{
    struct bough_question *q = bough_question_ask(L, op);
    q->ref = bough_arg_copy(L, 2);
    size_t size;
    const char *path = luaL_checklstring(L, 3, &size);
    if (strlen(path) != size)
        bough_lerr(L, BOUGH_ERR_invalid, op, "the path holds a NUL byte");
    q->path = bough_arg_copy(L, 3);
    q->request = request;
    q->keep_open = keep_open;
    q->refs++;
    bough_job_start(q->engine, &q->job, work_stack, stack_known);
    return q;
}

static int read_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct bough_question *q = bough_question_top(L);
    BOUGH_NOT_YET(L, q, read_k);
    lua_pushlstring(L, q->data, q->size);
    return 1;
}

int bough_ask_read(lua_State *L)
{
    ask_inside(L, "read", BOUGH_MSG_OPEN, false);
    return read_k(L, LUA_OK, 0);
}

void bough_llook_entry(lua_State *L, const struct bough_entry *e)
{
    lua_createtable(L, 0, 10);
    lua_pushlstring(L, e->name, e->name_len);
    lua_setfield(L, -2, "name");
    lua_pushstring(L, bough_entry_kind(e));
    lua_setfield(L, -2, "kind");
    bough_set_integer(L, "size", (lua_Integer)e->size);
    bough_set_integer(L, "mode", e->mode & 07777);
    bough_set_integer(L, "uid", e->uid);
    bough_set_integer(L, "gid", e->gid);
    bough_set_integer(L, "nlink", (lua_Integer)e->nlink);
    bough_set_number(L, "mtime", (double)e->mtime_sec + e->mtime_nsec / 1e9);
    if (e->target_len) {
        lua_pushlstring(L, e->target, e->target_len);
        lua_setfield(L, -2, "symlink_to");
    }
}

static int list_dir_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct bough_question *q = bough_question_top(L);
    BOUGH_NOT_YET(L, q, list_dir_k);
    const char *at = q->data;
    struct bough_entry e;
    int rc;
    lua_newtable(L);
    for (lua_Integer i = 1; (rc = bough_list_next(&at, q->data + q->size, &e)) == 1; i++) {
        bough_llook_entry(L, &e);
        lua_rawseti(L, -2, i);
    }
    if (rc < 0)
        return bough_lerr(L, BOUGH_ERR_protocol, "ls", "the keeper's list is damaged");
    return 1;
}

int bough_ask_list_dir(lua_State *L)
{
    ask_inside(L, "ls", BOUGH_MSG_LIST, false);
    return list_dir_k(L, LUA_OK, 0);
}

/* -- a file read piece by piece ------------------------------------------------------------------ */

#define BLOB_STREAM "bough.blob_stream"
#define PIECE (256 * 1024)
#define PIECE_MAX (64 * 1024 * 1024)

/* One read at a time: a record of its own for the thread, so that whoever is cancelled leaves nothing dangling. */
struct piece {
    struct bough_job job;
    int refs; /* the stream, and the thread */
    struct bough_cond done_cond;
    bool busy;
    lua_KContext turn; /* counts reads: who finds another one has lost the piece to somebody else */
    int fd;
    off_t at;   /* moved by who takes the piece: one that nobody has taken is read again */
    char *data; /* PIECE bytes at first; grows with what is asked for */
    size_t room, wanted;
    ssize_t got;
    int sys;
    struct bough_engine *engine;
};

struct blob_stream {
    struct piece *piece; /* NULL: closed */
    lua_Integer size;
};

static void piece_unref(struct piece *p)
{
    if (--p->refs > 0)
        return;
    bough_fd_close(&p->fd);
    free(p->data);
    bough_cond_destroy(&p->done_cond);
    bough_engine_unref(p->engine);
    free(p);
}

static void piece_work(struct bough_job *job)
{
    struct piece *p = (struct piece *)job;
    p->got = BOUGH_RETRY(pread(p->fd, p->data, p->wanted, p->at));
    p->sys = errno;
}

static void piece_after(struct bough_job *job)
{
    struct piece *p = (struct piece *)job;
    p->busy = false;
    bough_cond_fire(&p->done_cond);
    piece_unref(p);
}

static struct blob_stream *blob_check(lua_State *L)
{
    struct blob_stream *s = luaL_checkudata(L, 1, BLOB_STREAM);
    if (!s->piece)
        bough_lerr(L, BOUGH_ERR_closed, "stream", "the stream is closed");
    return s;
}

static int blob_read_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct piece *p = blob_check(L)->piece;
    if (p->turn != ctx)
        return bough_lerr(L, BOUGH_ERR_busy, "stream", "somebody else is reading from it");
    if (p->busy)
        return bough_wait(L, &p->done_cond, ctx, blob_read_k);
    if (p->got < 0) {
        struct bough_err err;
        bough_err_sys(&err, p->sys, "file");
        return bough_lerr_raise(L, &err, "stream");
    }
    p->at += p->got;
    if (p->got > 0)
        lua_pushlstring(L, p->data, (size_t)p->got);
    else
        lua_pushnil(L);
    return 1;
}

/* stream:read(n?) -> up to n bytes, or nil at the end */
static int blob_read(lua_State *L)
{
    struct blob_stream *s = blob_check(L);
    struct piece *p = s->piece;
    lua_Integer wanted = luaL_optinteger(L, 2, PIECE);
    if (p->busy)
        return bough_lerr(L, BOUGH_ERR_busy, "stream", "somebody else is reading from it");
    if (wanted < 1 || wanted > PIECE_MAX)
        return bough_lerr(L, BOUGH_ERR_invalid, "stream", "a piece has 1 to %d bytes", PIECE_MAX);
    lua_settop(L, 1);
    if ((size_t)wanted > p->room) {
        char *grown = realloc(p->data, (size_t)wanted);
        if (!grown)
            return luaL_error(L, "not enough memory");
        p->data = grown;
        p->room = (size_t)wanted;
    }
    p->wanted = (size_t)wanted;
    p->busy = true;
    p->turn++;
    p->refs++;
    bough_job_start(p->engine, &p->job, piece_work, piece_after);
    return blob_read_k(L, LUA_OK, p->turn);
}

static int blob_close(lua_State *L)
{
    struct blob_stream *s = luaL_checkudata(L, 1, BLOB_STREAM);
    if (s->piece)
        piece_unref(s->piece);
    s->piece = NULL;
    return 0;
}

static int blob_index(lua_State *L)
{
    const struct blob_stream *s = luaL_checkudata(L, 1, BLOB_STREAM);
    const char *key = luaL_checkstring(L, 2);
    if (strcmp(key, "size") == 0)
        lua_pushinteger(L, s->size);
    else
        lua_getfield(L, lua_upvalueindex(1), key);
    return 1;
}

static int open_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct bough_question *q = bough_question_top(L);
    BOUGH_NOT_YET(L, q, open_k);
    struct stat st;
    struct blob_stream *s = lua_newuserdatauv(L, sizeof *s, 0);
    *s = (struct blob_stream){0};
    luaL_setmetatable(L, BLOB_STREAM);
    struct piece *p = calloc(1, sizeof *p);
    if (!p)
        return luaL_error(L, "not enough memory");
    p->refs = 1;
    p->fd = bough_steal_fd(&q->fd);
    p->engine = q->engine;
    bough_engine_ref(p->engine);
    bough_cond_init(&p->done_cond, p->engine->loop);
    s->piece = p;
    s->size = fstat(p->fd, &st) == 0 ? (lua_Integer)st.st_size : 0;
    return 1;
}

int bough_ask_open(lua_State *L)
{
    ask_inside(L, "stream", BOUGH_MSG_OPEN, true);
    return open_k(L, LUA_OK, 0);
}

void bough_llook_register(lua_State *L)
{
    static const luaL_Reg methods[] = {{"read", blob_read}, {"close", blob_close}, {NULL, NULL}};
    static const luaL_Reg meta[] = {{"__gc", blob_close}, {"__close", blob_close}, {NULL, NULL}};
    if (luaL_newmetatable(L, BLOB_STREAM)) {
        luaL_setfuncs(L, meta, 0);
        luaL_newlib(L, methods);
        lua_pushcclosure(L, blob_index, 1);
        lua_setfield(L, -2, "__index");
    }
    lua_pop(L, 1);
}
