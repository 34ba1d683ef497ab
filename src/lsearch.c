/* lsearch.c - engine:look: the records of bough-look, or the bytes of an archive, as they come, a batch at a time.
 *
 * The keeper's worker writes into a pipe; it is read only when somebody asks for more, so memory is flat and
 * a slow reader slows the search. Closing ends it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "entry.h"
#include "lask.h"
#include "ljob.h"
#include "order.h"
#include "record.h"
#include "sys.h"

#define LOOK "bough.look"
#define BATCH 512
#define READ_ROOM (256 * 1024)

enum look_kind { LOOK_LIST, LOOK_GREP, LOOK_DIFF, LOOK_PACK };

struct look_errand {
    struct bough_errand errand;
    enum look_kind kind;
    char *ref, *other_ref, **args;
    int64_t *stack, stack_count, *other, other_count, *hints, hint_count;
    int ends[2];
    uv_poll_t *poll;
    char *data;
    size_t size, at, room;
    bool eof;
    int64_t numbers[3];
};

struct look_box {
    struct look_errand *look; /* kept alive by the job in user value 1 */
};

static void poll_closed(uv_handle_t *handle)
{
    free(handle);
}

static void look_shut(struct look_errand *l)
{
    if (l->poll)
        uv_close((uv_handle_t *)l->poll, poll_closed);
    l->poll = NULL;
    bough_fd_close(&l->ends[0]);
    bough_fd_close(&l->ends[1]);
    l->eof = true;
}

static void look_clear(struct bough_errand *e)
{
    struct look_errand *l = (struct look_errand *)e;
    look_shut(l);
    for (char **a = l->args; a && *a; a++)
        free(*a);
    free(l->args);
    free(l->ref);
    free(l->other_ref);
    free(l->stack);
    free(l->other);
    free(l->hints);
    free(l->data);
}

/* The layers that the two stacks do not share lie on top of those that they do. */
static int look_hints(struct look_errand *l)
{
    int64_t same = 0, a = l->stack_count, b = l->other_count;
    while (same < a && same < b && l->stack[a - same - 1] == l->other[b - same - 1])
        same++;
    l->hints = calloc((size_t)(a + b + 1), sizeof *l->hints);
    if (!l->hints)
        return bough_err_sys(&l->errand.err, ENOMEM, "diff");
    if (same == 0) {
        l->hint_count = -1;
        return 0;
    }
    for (int64_t i = 0; i < a - same; i++)
        l->hints[l->hint_count++] = l->stack[i];
    for (int64_t i = 0; i < b - same; i++)
        l->hints[l->hint_count++] = l->other[i];
    return 0;
}

static void look_up(struct bough_job *job)
{
    struct look_errand *l = (struct look_errand *)job;
    struct bough_store *store = job->engine->store;
    struct bough_err *err = &l->errand.err;
    l->stack_count = bough_store_find_stack(store, l->ref, NULL, &l->stack, err);
    l->errand.rc = l->stack_count < 0 ? -1 : 0;
    if (l->errand.rc == 0 && l->other_ref) {
        l->other_count = bough_store_find_stack(store, l->other_ref, NULL, &l->other, err);
        l->errand.rc = l->other_count < 0 ? -1 : 0;
        if (l->errand.rc == 0)
            l->errand.rc = look_hints(l);
    }
}

static void look_heard(struct bough_errand *e, struct bough_message *msg)
{
    struct look_errand *l = (struct look_errand *)e;
    for (int i = 0; i < 3; i++)
        l->numbers[i] = bough_get_i64(&msg->body);
    bough_errand_over(e);
}

static void look_ask(struct bough_errand *e)
{
    struct look_errand *l = (struct look_errand *)e;
    struct bough_wbuf body = {0};
    struct bough_look_order order = {.source = BOUGH_LOOK_VIEW,
                                     .stack = l->stack,
                                     .stack_count = l->stack_count,
                                     .other = l->other,
                                     .other_count = l->other_ref ? l->other_count : -1,
                                     .hints = l->hints,
                                     .hint_count = l->other_ref ? l->hint_count : -1,
                                     .args = l->args};
    bough_look_order_put(&body, &order);
    bough_errand_ask(e, BOUGH_MSG_LOOK, &body, &l->ends[1], 1, look_heard);
    bough_wbuf_free(&body);
    bough_fd_close(&l->ends[1]); /* the worker's is the only one now: when it ends, the pipe does */
}

static void nothing_push(lua_State *L, struct bough_errand *e)
{
    (void)e;
    lua_pushboolean(L, true);
}

/* engine:look(uuid, args, { other = uuid }) */
int bough_lsearch_look(lua_State *L)
{
    static const char *const kinds[] = {"list", "grep", "diff", "pack", NULL};
    lua_settop(L, 4);
    luaL_checktype(L, 3, LUA_TTABLE);
    struct look_box *box = lua_newuserdatauv(L, sizeof *box, 1);
    box->look = NULL;
    luaL_setmetatable(L, LOOK);
    struct look_errand *l = bough_errand_new(L, sizeof *l, "look", nothing_push, NULL);
    l->ends[0] = l->ends[1] = -1;
    l->errand.clear = look_clear;
    lua_setiuservalue(L, 5, 1);
    box->look = l;
    lua_Unsigned count = lua_rawlen(L, 3);
    l->args = calloc(count + 1, sizeof *l->args);
    if (!l->args)
        return luaL_error(L, "not enough memory");
    for (lua_Unsigned i = 0; i < count; i++) {
        size_t size;
        lua_rawgeti(L, 3, (lua_Integer)i + 1);
        const char *text = luaL_checklstring(L, -1, &size);
        if (strlen(text) != size)
            return bough_lerr(L, BOUGH_ERR_invalid, "look", "argument %d holds a NUL byte",
                              (int)i + 1);
        l->args[i] = bough_arg_copy(L, -1);
        lua_pop(L, 1);
    }
    lua_rawgeti(L, 3, 1);
    l->kind = (enum look_kind)luaL_checkoption(L, -1, NULL, kinds);
    lua_pop(L, 1);
    static const char *const ops[] = {"list", "grep", "diff", "archive"};
    l->errand.op = ops[l->kind];
    l->ref = bough_arg_copy(L, 2);
    if (lua_istable(L, 4)) {
        if (lua_getfield(L, 4, "other") == LUA_TSTRING)
            l->other_ref = bough_arg_copy(L, -1);
        lua_pop(L, 1);
    }
    int sys =
        pipe2(l->ends, O_CLOEXEC) < 0 || fcntl(l->ends[0], F_SETFL, O_NONBLOCK) < 0 ? errno : 0;
    if (sys == 0) {
        fcntl(l->ends[0], F_SETPIPE_SZ,
              1024 * 1024); /* fewer turns; refused where the user's share is used up */
        l->poll = calloc(1, sizeof *l->poll);
        sys = l->poll ? -uv_poll_init(bough_loop_uv(l->errand.engine->loop), l->poll, l->ends[0])
                      : ENOMEM;
    }
    if (sys != 0) {
        free(l->poll);
        l->poll = NULL;
        bough_err_sys(&l->errand.err, sys, "pipe");
        return bough_lerr_raise(L, &l->errand.err, l->errand.op);
    }
    l->poll->data = l;
    bough_errand_work(&l->errand, look_up, look_ask);
    lua_settop(L, 5);
    return 1;
}

/* -- records ------------------------------------------------------------------------------------- */

static void push_bytes(lua_State *L, const char *name, const char *data, size_t size)
{
    lua_pushlstring(L, data, size);
    lua_setfield(L, -2, name);
}

static void push_match(lua_State *L, const struct bough_match *m)
{
    lua_createtable(L, 0, 7);
    lua_pushstring(L, m->type == 1 ? "match" : "context");
    lua_setfield(L, -2, "type");
    push_bytes(L, "path", m->path, m->path_len);
    push_bytes(L, "line", m->line, m->line_len);
    bough_set_integer(L, "line_number", (lua_Integer)m->line_number);
    bough_set_integer(L, "offset", (lua_Integer)m->offset);
    bough_set_integer(L, "length", m->whole_len);
    if (m->unended) {
        lua_pushboolean(L, true);
        lua_setfield(L, -2, "unended");
    }
    lua_createtable(L, (int)m->sub_count, 0);
    for (uint32_t i = 0; i < m->sub_count; i++) {
        uint32_t sub[2];
        memcpy(sub, (const char *)m->subs + i * sizeof sub, sizeof sub);
        lua_createtable(L, 2, 0);
        lua_pushinteger(L, (lua_Integer)sub[0] + 1);
        lua_rawseti(L, -2, 1);
        lua_pushinteger(L, sub[1]);
        lua_rawseti(L, -2, 2);
        lua_rawseti(L, -2, (lua_Integer)i + 1);
    }
    lua_setfield(L, -2, "submatches");
}

static void push_kind(lua_State *L, const char *name, uint32_t mode)
{
    const struct bough_entry e = {.mode = mode};
    if (mode) {
        lua_pushstring(L, bough_entry_kind(&e));
        lua_setfield(L, -2, name);
    }
}

static void push_change(lua_State *L, const struct bough_change *c)
{
    static const struct {
        uint32_t bit;
        const char *name;
    } words[] = {{BOUGH_DIFF_TYPE, "type"},     {BOUGH_DIFF_CONTENT, "content"},
                 {BOUGH_DIFF_TARGET, "target"}, {BOUGH_DIFF_DEVICE, "device"},
                 {BOUGH_DIFF_MODE, "mode"},     {BOUGH_DIFF_OWNER, "owner"},
                 {BOUGH_DIFF_XATTRS, "xattrs"}};
    lua_createtable(L, 0, 9);
    lua_pushstring(L, c->op == 'A' ? "added" : c->op == 'D' ? "deleted" : "changed");
    lua_setfield(L, -2, "op");
    push_bytes(L, "path", c->path, c->path_len);
    lua_newtable(L);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (c->what & words[i].bit) {
            lua_pushstring(L, words[i].name);
            lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
        }
    lua_setfield(L, -2, "what");
    push_kind(L, "kind", c->mode);
    push_kind(L, "old_kind", c->old_mode);
    if (c->mode) {
        bough_set_integer(L, "mode", c->mode & 07777);
        bough_set_integer(L, "size", (lua_Integer)c->size);
    }
    if (c->old_mode) {
        bough_set_integer(L, "old_mode", c->old_mode & 07777);
        bough_set_integer(L, "old_size", (lua_Integer)c->old_size);
    }
}

/* All that is there of an archive. */
static int push_piece(lua_State *L, struct look_errand *l)
{
    if (l->at == l->size)
        return 0;
    lua_pushlstring(L, l->data + l->at, l->size - l->at);
    l->at = l->size;
    return 1;
}

/* One record, if it is whole: 1 and its table, 0, -1. */
static int push_record(lua_State *L, struct look_errand *l)
{
    if (l->kind == LOOK_PACK)
        return push_piece(L, l);
    const char *at = l->data + l->at, *end = l->data + l->size;
    struct bough_entry entry;
    struct bough_match match;
    struct bough_change change;
    uint32_t length;
    if ((size_t)(end - at) < sizeof length)
        return 0;
    memcpy(&length, at, sizeof length);
    if (length < sizeof length)
        return -1;
    if ((size_t)(end - at) < length)
        return 0;
    int rc = 0;
    if (l->kind == LOOK_LIST && (rc = bough_listed_next(&at, end, &entry)) == 1) {
        bough_llook_entry(L, &entry);
        lua_getfield(L, -1, "name"); /* the record has the path in its place */
        lua_pushvalue(L, -1);
        lua_setfield(L, -3, "path");
        const char *slash = memrchr(entry.name, '/', entry.name_len);
        lua_pop(L, 1);
        if (slash)
            push_bytes(L, "name", slash + 1, entry.name_len - (size_t)(slash + 1 - entry.name));
    } else if (l->kind == LOOK_GREP && (rc = bough_match_next(&at, end, &match)) == 1) {
        push_match(L, &match);
    } else if (l->kind == LOOK_DIFF && (rc = bough_change_next(&at, end, &change)) == 1) {
        push_change(L, &change);
    }
    if (rc != 1)
        return -1;
    l->at = (size_t)(at - l->data);
    return 1;
}

/* -- reading --------------------------------------------------------------------------------------- */

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct look_errand *l = poll->data;
    (void)status;
    (void)events;
    uv_poll_stop(poll);
    bough_cond_fire(&l->errand.changed);
}

static struct look_errand *look_check(lua_State *L)
{
    struct look_box *box = luaL_checkudata(L, 1, LOOK);
    if (!box->look)
        bough_lerr(L, BOUGH_ERR_closed, "look", "the search is closed");
    return box->look;
}

/* Takes in what is there: 1 more data or the end, 0 nothing now. */
static int look_read(lua_State *L, struct look_errand *l)
{
    if (l->at > 0) {
        memmove(l->data, l->data + l->at, l->size - l->at);
        l->size -= l->at;
        l->at = 0;
    }
    if (l->room - l->size < READ_ROOM) {
        char *grown = realloc(l->data, l->size + 2 * READ_ROOM);
        if (!grown)
            luaL_error(L, "not enough memory");
        l->data = grown;
        l->room = l->size + 2 * READ_ROOM;
    }
    ssize_t n = BOUGH_RETRY(read(l->ends[0], l->data + l->size, l->room - l->size));
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n <= 0)
        look_shut(l);
    else
        l->size += (size_t)n;
    return 1;
}

static int look_next_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct look_errand *l = look_check(L);
    lua_settop(L, 1);
    lua_newtable(L);
    lua_Integer count = 0;
    while (count < BATCH) {
        int rc = push_record(L, l);
        if (rc < 0)
            return bough_lerr(L, BOUGH_ERR_protocol, l->errand.op, "a damaged record");
        if (rc == 1) {
            lua_rawseti(L, 2, ++count);
            continue;
        }
        if (count > 0 && l->at == l->size)
            return 1; /* rather these now than more later */
        if (!l->eof && look_read(L, l) == 1)
            continue;
        if (count > 0)
            return 1;
        break;
    }
    if (count > 0)
        return 1;
    lua_settop(L, 1);
    if (l->errand.over && l->ends[1] >= 0)
        look_shut(l); /* it came to nothing before anybody could write */
    if (!l->eof) {
        uv_poll_start(l->poll, UV_READABLE, on_readable);
        return bough_wait(L, &l->errand.changed, ctx, look_next_k);
    }
    if (!l->errand.over)
        return bough_wait(L, &l->errand.changed, ctx, look_next_k);
    if (l->errand.rc < 0)
        return bough_lerr_raise(L, &l->errand.err, l->errand.op);
    if (l->size > l->at)
        return bough_lerr(L, BOUGH_ERR_protocol, l->errand.op, "the last record is cut short");
    lua_pushnil(L);
    return 1;
}

/* look:next() -> array of records, or nil behind the last. Waits. */
static int look_next(lua_State *L)
{
    look_check(L);
    lua_settop(L, 1);
    return look_next_k(L, LUA_OK, 0);
}

/* look:numbers() -> three counts, as look/look.h tells; after the end */
static int look_numbers(lua_State *L)
{
    const struct look_errand *l = look_check(L);
    for (int i = 0; i < 3; i++)
        lua_pushinteger(L, l->numbers[i]);
    return 3;
}

static int look_close(lua_State *L)
{
    struct look_box *box = luaL_checkudata(L, 1, LOOK);
    if (!box->look)
        return 0;
    look_shut(box->look); /* a worker in the middle of it finds nobody reading, and ends */
    box->look = NULL;
    if (lua_getiuservalue(L, 1, 1) == LUA_TUSERDATA) {
        lua_getfield(L, -1, "close");
        lua_insert(L, -2);
        lua_call(L, 1, 0);
    }
    lua_pushnil(L);
    lua_setiuservalue(L, 1, 1);
    return 0;
}

/* The job has a finaliser of its own, in whichever order they come. */
static int look_gc(lua_State *L)
{
    struct look_box *box = luaL_checkudata(L, 1, LOOK);
    box->look = NULL;
    return 0;
}

void bough_lsearch_register(lua_State *L)
{
    static const luaL_Reg methods[] = {
        {"next", look_next}, {"numbers", look_numbers}, {"close", look_close}, {NULL, NULL}};
    static const luaL_Reg meta[] = {{"__gc", look_gc}, {"__close", look_close}, {NULL, NULL}};
    if (luaL_newmetatable(L, LOOK)) {
        luaL_setfuncs(L, meta, 0);
        luaL_newlib(L, methods);
        lua_setfield(L, -2, "__index");
    }
    lua_pop(L, 1);
}
