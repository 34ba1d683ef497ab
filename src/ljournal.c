/* ljournal.c - a server's journal for Lua: `core.journal`.
 *
 * What is asked is a note (scribe.h) in a userdata, so that a caller who is cancelled leaves nothing dangling. Writes
 * give that userdata back at once; everything else waits. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "lask.h"
#include "lcore.h"
#include "lwait.h"
#include "scribe.h"
#include "sys.h"

#define JOURNAL "bough.journal"
#define NOTE "bough.journal_note"

struct ljournal {
    struct bough_scribe *scribe; /* NULL when collected */
};

/* Of all kinds in one: what is asked, then what is answered. */
struct note {
    struct bough_note note; /* first */
    char *key;              /* a uuid or a digest */
    char **keys, **answers; /* of `makers`, both with `count` entries */
    long count;
    struct bough_operation operation;
    struct bough_operation_filter filter;
    char *kind, *status; /* of the filter */
    struct bough_event *events;
    char *frames; /* what they point into */
    int64_t first, after, spid;
    size_t most;
    struct bough_upload_row upload;
    struct bough_operation *operations;
    struct bough_upload_row *uploads;
    long rows;
    struct bough_events_page page;
};

static void forget_answer(struct note *n)
{
    for (long i = 0; n->operations && i < n->rows; i++)
        bough_operation_clear(&n->operations[i]);
    free(n->operations);
    free(n->uploads);
    free(n->page.text);
    for (long i = 0; n->answers && i < n->count; i++) {
        free(n->answers[i]);
        n->answers[i] = NULL;
    }
    n->operations = NULL;
    n->uploads = NULL;
    n->page.text = NULL;
    n->rows = 0;
}

static void clear(struct bough_note *note)
{
    struct note *n = (struct note *)note;
    forget_answer(n);
    for (long i = 0; n->keys && i < n->count; i++)
        free(n->keys[i]);
    free(n->keys);
    free(n->answers);
    free(n->key);
    free(n->kind);
    free(n->status);
    free(n->events);
    free(n->frames);
    bough_operation_clear(&n->operation);
}

static struct ljournal *check(lua_State *L)
{
    struct ljournal *l = luaL_checkudata(L, 1, JOURNAL);
    if (!l->scribe || l->scribe->closed)
        bough_lerr(L, BOUGH_ERR_closed, "journal", "the journal is closed");
    return l;
}

/* -- notes ------------------------------------------------------------------------------------- */

static int note_gc(lua_State *L)
{
    struct note **box = luaL_checkudata(L, 1, NOTE);
    if (*box)
        bough_note_unref(&(*box)->note);
    *box = NULL;
    return 0;
}

/* Pushes its userdata. */
static struct note *new_note(lua_State *L, struct ljournal *l,
                             int (*carry_out)(struct bough_journal *, struct bough_note *,
                                              struct bough_err *),
                             bool writes)
{
    struct note **box = lua_newuserdatauv(L, sizeof *box, 0);
    *box = NULL;
    luaL_setmetatable(L, NOTE);
    struct note *n = calloc(1, sizeof *n);
    if (!n)
        luaL_error(L, "not enough memory");
    bough_note_init(&n->note, l->scribe->loop);
    n->note.writes = writes;
    n->note.weight = sizeof *n;
    n->note.carry_out = carry_out;
    n->note.clear = clear;
    *box = n;
    return n;
}

static struct note *top_note(lua_State *L)
{
    return *(struct note **)luaL_checkudata(L, -1, NOTE);
}

/* Its userdata is on top. */
static void give(struct ljournal *l, struct note *n)
{
    n->note.refs++;
    bough_scribe_give(l->scribe, &n->note);
}

static int ask(lua_State *L, struct ljournal *l, struct note *n, lua_KFunction k)
{
    give(l, n);
    return k(L, LUA_OK, 0);
}

#define NOT_YET(L, n, k)                                  \
    if (!(n)->note.done)                                  \
        return bough_wait(L, &(n)->note.done_cond, 0, k); \
    if ((n)->note.rc < 0)                                 \
    return bough_lerr_raise(L, &(n)->note.err, "journal")

static int done_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct note *n = top_note(L);
    NOT_YET(L, n, done_k);
    return 0;
}

/* note:wait(): until it is written; raises why it is not. Repeatable. */
static int note_wait(lua_State *L)
{
    luaL_checkudata(L, 1, NOTE);
    lua_settop(L, 1);
    return done_k(L, LUA_OK, 0);
}

/* done: `wait` would not wait */
static int note_index(lua_State *L)
{
    const struct note *n = *(struct note **)luaL_checkudata(L, 1, NOTE);
    const char *key = luaL_checkstring(L, 2);
    if (strcmp(key, "done") == 0)
        lua_pushboolean(L, !n || n->note.done);
    else
        lua_getfield(L, lua_upvalueindex(1), key);
    return 1;
}

/* -- arguments --------------------------------------------------------------------------------- */

static char *copy_of(lua_State *L, int index)
{
    char *copy = strdup(luaL_checkstring(L, index));
    if (!copy)
        luaL_error(L, "not enough memory");
    return copy;
}

/* A field of the table at `index`, NULL where it is no string; its length is added to *weight. */
static char *text_of(lua_State *L, int index, const char *name, size_t *weight)
{
    char *copy = NULL;
    if (lua_getfield(L, index, name) == LUA_TSTRING) {
        copy = copy_of(L, -1);
        *weight += strlen(copy);
    }
    lua_pop(L, 1);
    return copy;
}

/* Seconds since the epoch in microseconds; 0 where there is none. */
static int64_t moment_of(lua_State *L, int index, const char *name)
{
    lua_getfield(L, index, name);
    double seconds = lua_tonumber(L, -1);
    lua_pop(L, 1);
    return seconds > 9e12 ? INT64_MAX : seconds > 0 ? (int64_t)(seconds * 1e6 + 0.5) : 0;
}

static int64_t number_of(lua_State *L, int index, const char *name)
{
    lua_getfield(L, index, name);
    int64_t value = lua_tointeger(L, -1);
    lua_pop(L, 1);
    return value;
}

static void read_filter(lua_State *L, struct note *n)
{
    if (lua_isnoneornil(L, 2)) {
        n->filter.over = -1;
        return;
    }
    luaL_checktype(L, 2, LUA_TTABLE);
    n->kind = text_of(L, 2, "kind", &n->note.weight);
    n->status = text_of(L, 2, "status", &n->note.weight);
    lua_getfield(L, 2, "over");
    n->filter = (struct bough_operation_filter){
        .kind = n->kind,
        .status = n->status,
        .over = lua_isboolean(L, -1) ? lua_toboolean(L, -1) : -1,
        .since_us = moment_of(L, 2, "since"),
        .before_us = moment_of(L, 2, "before"),
        .limit = number_of(L, 2, "limit"),
        .offset = number_of(L, 2, "offset"),
    };
    lua_pop(L, 1);
}

/* -- operations -------------------------------------------------------------------------------- */

static int carry_put(struct bough_journal *journal, struct bough_note *note, struct bough_err *err)
{
    return bough_journal_put(journal, &((struct note *)note)->operation, err);
}

/* journal:put_operation(row) -> note, at once */
static int journal_put_operation(lua_State *L)
{
    struct ljournal *l = check(L);
    luaL_checktype(L, 2, LUA_TTABLE);
    struct note *n = new_note(L, l, carry_put, true);
    struct bough_operation *o = &n->operation;
    struct {
        const char *name;
        char **at;
    } texts[] = {
        {"uuid", &o->uuid},       {"kind", &o->kind},         {"status", &o->status},
        {"token", &o->token},     {"image", &o->image},       {"result_image", &o->result_image},
        {"summary", &o->summary}, {"metadata", &o->metadata}, {"result", &o->result}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        *texts[i].at = text_of(L, 2, texts[i].name, &n->note.weight);
    if (!o->uuid)
        return bough_lerr(L, BOUGH_ERR_invalid, "journal", "an operation without its uuid");
    o->created_us = moment_of(L, 2, "created");
    o->updated_us = moment_of(L, 2, "updated");
    lua_getfield(L, 2, "over");
    o->over = lua_toboolean(L, -1);
    lua_pop(L, 1);
    give(l, n);
    return 1;
}

static void set_moment(lua_State *L, const char *name, int64_t us)
{
    bough_set_number(L, name, (double)us / 1e6);
}

static void push_operation(lua_State *L, const struct bough_operation *o)
{
    lua_createtable(L, 0, 12);
    bough_set_text(L, "uuid", o->uuid);
    bough_set_text(L, "kind", o->kind);
    bough_set_text(L, "status", o->status);
    bough_set_text(L, "token", o->token);
    bough_set_text(L, "image", o->image);
    bough_set_text(L, "result_image", o->result_image);
    bough_set_text(L, "summary", o->summary);
    bough_set_text(L, "metadata", o->metadata);
    bough_set_text(L, "result", o->result);
    set_moment(L, "created", o->created_us);
    set_moment(L, "updated", o->updated_us);
    bough_set_boolean(L, "over", o->over);
}

static int carry_get(struct bough_journal *journal, struct bough_note *note, struct bough_err *err)
{
    struct note *n = (struct note *)note;
    bough_operation_clear(&n->operation);
    return bough_journal_get(journal, n->key, &n->operation, err);
}

static int operation_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct note *n = top_note(L);
    NOT_YET(L, n, operation_k);
    if (n->note.rc == 1)
        push_operation(L, &n->operation);
    else
        lua_pushnil(L);
    return 1;
}

/* journal:operation(uuid) -> row or nil */
static int journal_operation(lua_State *L)
{
    struct ljournal *l = check(L);
    luaL_checkstring(L, 2);
    struct note *n = new_note(L, l, carry_get, false);
    n->key = copy_of(L, 2);
    return ask(L, l, n, operation_k);
}

static int carry_list(struct bough_journal *journal, struct bough_note *note, struct bough_err *err)
{
    struct note *n = (struct note *)note;
    forget_answer(n);
    long count = bough_journal_list(journal, &n->filter, &n->operations, err);
    n->rows = count < 0 ? 0 : count;
    return count < 0 ? -1 : 0;
}

static int operations_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct note *n = top_note(L);
    NOT_YET(L, n, operations_k);
    lua_createtable(L, (int)n->rows, 0);
    for (long i = 0; i < n->rows; i++) {
        push_operation(L, &n->operations[i]);
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

/* journal:operations{ kind=, status=, over=, since=, before=, limit=, offset= } -> rows, newest first, without metadata
 * and result */
static int journal_operations(lua_State *L)
{
    struct ljournal *l = check(L);
    lua_settop(L, 2);
    struct note *n = new_note(L, l, carry_list, false);
    read_filter(L, n);
    return ask(L, l, n, operations_k);
}

static int carry_makers(struct bough_journal *journal, struct bough_note *note,
                        struct bough_err *err)
{
    struct note *n = (struct note *)note;
    int rc = 0;
    forget_answer(n);
    for (long i = 0; i < n->count && rc >= 0; i++)
        rc = bough_journal_maker(journal, n->keys[i], &n->answers[i], err);
    return rc;
}

static int makers_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct note *n = top_note(L);
    NOT_YET(L, n, makers_k);
    lua_createtable(L, 0, (int)n->count);
    for (long i = 0; i < n->count; i++)
        bough_set_text(L, n->keys[i], n->answers[i]);
    return 1;
}

/* journal:makers(uuids of images) -> { [image] = uuid of the operation that made it } */
static int journal_makers(lua_State *L)
{
    struct ljournal *l = check(L);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    struct note *n = new_note(L, l, carry_makers, false);
    long count = (long)lua_rawlen(L, 2);
    n->keys = calloc((size_t)count + 1, sizeof *n->keys);
    n->answers = calloc((size_t)count + 1, sizeof *n->answers);
    if (!n->keys || !n->answers)
        return luaL_error(L, "not enough memory");
    for (; n->count < count; n->count++) {
        lua_rawgeti(L, 2, n->count + 1);
        n->keys[n->count] = copy_of(L, -1);
        lua_pop(L, 1);
    }
    return ask(L, l, n, makers_k);
}

static int carry_prune(struct bough_journal *journal, struct bough_note *note,
                       struct bough_err *err)
{
    struct note *n = (struct note *)note;
    n->rows = bough_journal_prune(journal, n->filter.before_us, n->filter.limit, err);
    return n->rows < 0 ? -1 : 0;
}

static int count_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct note *n = top_note(L);
    NOT_YET(L, n, count_k);
    lua_pushinteger(L, n->rows);
    return 1;
}

/* journal:prune{ before=, limit= } -> how many operations are forgotten */
static int journal_prune(lua_State *L)
{
    struct ljournal *l = check(L);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    struct note *n = new_note(L, l, carry_prune, true);
    read_filter(L, n);
    return ask(L, l, n, count_k);
}

/* -- events ------------------------------------------------------------------------------------ */

static int carry_append(struct bough_journal *journal, struct bough_note *note,
                        struct bough_err *err)
{
    const struct note *n = (struct note *)note;
    return bough_journal_append(journal, n->key, n->first, n->events, (size_t)n->count, err);
}

/* The frames at index 5 and the numbers at index 4, in memory of our own. */
static void copy_events(lua_State *L, struct note *n)
{
    size_t total = 0, size, count = (size_t)lua_rawlen(L, 5);
    for (size_t i = 0; i < count; i++) {
        lua_rawgeti(L, 5, (lua_Integer)i + 1);
        luaL_checklstring(L, -1, &size);
        total += size;
        lua_pop(L, 1);
    }
    n->events = calloc(count + 1, sizeof *n->events);
    n->frames = malloc(total + 1);
    if (!n->events || !n->frames)
        luaL_error(L, "not enough memory");
    n->note.weight += total + count * sizeof *n->events;
    char *at = n->frames;
    for (size_t i = 0; i < count; i++) {
        lua_rawgeti(L, 4, (lua_Integer)i + 1);
        lua_rawgeti(L, 5, (lua_Integer)i + 1);
        const char *frame = lua_tolstring(L, -1, &size);
        memcpy(at, frame, size);
        n->events[i] = (struct bough_event){
            .spid = lua_isinteger(L, -2) ? lua_tointeger(L, -2) : -1, .frame = at, .size = size};
        at += size;
        lua_pop(L, 2);
    }
    n->count = (long)count;
}

/* journal:append(uuid, first id, process numbers, frames) -> note, at once */
static int journal_append(lua_State *L)
{
    struct ljournal *l = check(L);
    luaL_checkstring(L, 2);
    lua_Integer first = luaL_checkinteger(L, 3);
    luaL_checktype(L, 4, LUA_TTABLE);
    luaL_checktype(L, 5, LUA_TTABLE);
    lua_settop(L, 5);
    struct note *n = new_note(L, l, carry_append, true);
    n->key = copy_of(L, 2);
    n->first = first;
    copy_events(L, n);
    give(l, n);
    return 1;
}

static int carry_events(struct bough_journal *journal, struct bough_note *note,
                        struct bough_err *err)
{
    struct note *n = (struct note *)note;
    forget_answer(n);
    return bough_journal_events(journal, n->key, n->after, n->spid, n->most, &n->page, err);
}

static int events_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct note *n = top_note(L);
    NOT_YET(L, n, events_k);
    if (n->page.count == 0)
        return 0;
    lua_pushlstring(L, n->page.text, n->page.size);
    lua_pushinteger(L, n->page.last);
    lua_pushinteger(L, n->page.count);
    return 3;
}

/* journal:events(uuid, after, process number or nil, bytes?) -> frames as one text, id of the last, their number; nothing
 * when there are no more */
static int journal_events(lua_State *L)
{
    struct ljournal *l = check(L);
    luaL_checkstring(L, 2);
    lua_Integer after = luaL_checkinteger(L, 3);
    lua_Integer spid = luaL_optinteger(L, 4, -1);
    lua_Integer most = luaL_optinteger(L, 5, 1 << 18);
    struct note *n = new_note(L, l, carry_events, false);
    n->key = copy_of(L, 2);
    n->after = after;
    n->spid = spid;
    n->most = most > 0 ? (size_t)most : 0;
    return ask(L, l, n, events_k);
}

static int carry_last(struct bough_journal *journal, struct bough_note *note, struct bough_err *err)
{
    struct note *n = (struct note *)note;
    n->after = bough_journal_last(journal, n->key, err);
    return n->after < -1 ? -1 : 0;
}

static int last_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct note *n = top_note(L);
    NOT_YET(L, n, last_k);
    lua_pushinteger(L, n->after);
    return 1;
}

/* journal:last_event(uuid) -> its id, -1 where there is none */
static int journal_last_event(lua_State *L)
{
    struct ljournal *l = check(L);
    luaL_checkstring(L, 2);
    struct note *n = new_note(L, l, carry_last, false);
    n->key = copy_of(L, 2);
    return ask(L, l, n, last_k);
}

/* -- files ------------------------------------------------------------------------------------- */

static int carry_put_file(struct bough_journal *journal, struct bough_note *note,
                          struct bough_err *err)
{
    return bough_journal_put_file(journal, &((struct note *)note)->upload, err) < 0 ? -1 : 1;
}

static int carry_file(struct bough_journal *journal, struct bough_note *note, struct bough_err *err)
{
    struct note *n = (struct note *)note;
    return bough_journal_file(journal, n->key, &n->upload, err);
}

static void push_upload(lua_State *L, const struct bough_upload_row *row)
{
    lua_createtable(L, 0, 5);
    bough_set_text(L, "uuid", row->uuid);
    bough_set_text(L, "sha256", row->sha256);
    bough_set_integer(L, "size", row->size);
    set_moment(L, "created", row->created_us);
    set_moment(L, "updated", row->updated_us);
}

static int file_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct note *n = top_note(L);
    NOT_YET(L, n, file_k);
    if (n->note.rc == 1)
        push_upload(L, &n->upload);
    else
        lua_pushnil(L);
    return 1;
}

static void read_field(lua_State *L, const char *name, char *to, size_t size)
{
    size_t length = 0;
    const char *text =
        lua_getfield(L, 2, name) == LUA_TSTRING ? lua_tolstring(L, -1, &length) : NULL;
    if (!text || length == 0 || length >= size)
        bough_lerr(L, BOUGH_ERR_invalid, "journal", "a file without its %s", name);
    memcpy(to, text, length + 1);
    lua_pop(L, 1);
}

/* journal:put_file{ uuid=, sha256=, size=, created=, updated= } -> row: of one that is there with this digest, if so */
static int journal_put_file(lua_State *L)
{
    struct ljournal *l = check(L);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    struct note *n = new_note(L, l, carry_put_file, true);
    read_field(L, "uuid", n->upload.uuid, sizeof n->upload.uuid);
    read_field(L, "sha256", n->upload.sha256, sizeof n->upload.sha256);
    n->upload.size = number_of(L, 2, "size");
    n->upload.created_us = moment_of(L, 2, "created");
    n->upload.updated_us = moment_of(L, 2, "updated");
    return ask(L, l, n, file_k);
}

/* journal:file(uuid or digest) -> row or nil */
static int journal_file(lua_State *L)
{
    struct ljournal *l = check(L);
    luaL_checkstring(L, 2);
    struct note *n = new_note(L, l, carry_file, false);
    n->key = copy_of(L, 2);
    return ask(L, l, n, file_k);
}

static int carry_files(struct bough_journal *journal, struct bough_note *note,
                       struct bough_err *err)
{
    struct note *n = (struct note *)note;
    forget_answer(n);
    long count = bough_journal_files(journal, &n->filter, &n->uploads, err);
    n->rows = count < 0 ? 0 : count;
    return count < 0 ? -1 : 0;
}

static int files_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct note *n = top_note(L);
    NOT_YET(L, n, files_k);
    lua_createtable(L, (int)n->rows, 0);
    for (long i = 0; i < n->rows; i++) {
        push_upload(L, &n->uploads[i]);
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

/* journal:files{ since=, before=, limit=, offset= } -> rows, newest first */
static int journal_files(lua_State *L)
{
    struct ljournal *l = check(L);
    lua_settop(L, 2);
    struct note *n = new_note(L, l, carry_files, false);
    read_filter(L, n);
    return ask(L, l, n, files_k);
}

/* -- the journal ------------------------------------------------------------------------------- */

static int carry_nothing(struct bough_journal *journal, struct bough_note *note,
                         struct bough_err *err)
{
    (void)journal;
    (void)note;
    (void)err;
    return 0;
}

/* journal:sync(): waits until all that was given before is written, or could not be */
static int journal_sync(lua_State *L)
{
    struct ljournal *l = check(L);
    lua_settop(L, 1);
    return ask(L, l, new_note(L, l, carry_nothing, false), done_k);
}

static int close_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct ljournal *l = luaL_checkudata(L, 1, JOURNAL);
    if (l->scribe && !bough_scribe_is_over(l->scribe))
        return bough_wait(L, &l->scribe->changed, ctx, close_k);
    return 0;
}

/* journal:close(): waits until all is written and the file is another's to open. Twice does nothing. */
static int journal_close(lua_State *L)
{
    struct ljournal *l = luaL_checkudata(L, 1, JOURNAL);
    lua_settop(L, 1);
    if (l->scribe)
        bough_scribe_close(l->scribe);
    return close_k(L, LUA_OK, 0);
}

static int journal_gc(lua_State *L)
{
    struct ljournal *l = luaL_checkudata(L, 1, JOURNAL);
    if (l->scribe) {
        if (l->scribe->at_end.link) /* else the loop has gone, and all was written */
            bough_scribe_close(l->scribe);
        bough_scribe_unref(l->scribe);
    }
    l->scribe = NULL;
    return 0;
}

/* pending: bytes that wait to be written; path; closed */
static int journal_index(lua_State *L)
{
    const struct ljournal *l = luaL_checkudata(L, 1, JOURNAL);
    const char *key = luaL_checkstring(L, 2);
    if (strcmp(key, "pending") == 0)
        lua_pushinteger(L, l->scribe ? (lua_Integer)l->scribe->pending : 0);
    else if (strcmp(key, "closed") == 0)
        lua_pushboolean(L, !l->scribe || l->scribe->closed);
    else if (strcmp(key, "path") == 0 && l->scribe)
        lua_pushstring(L, l->scribe->path);
    else
        lua_getfield(L, lua_upvalueindex(1), key);
    return 1;
}

static int opened_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct note *n = top_note(L);
    NOT_YET(L, n, opened_k);
    lua_pop(L, 1);
    return 1;
}

/* core.journal(path) -> journal, once it is open */
static int core_journal(lua_State *L)
{
    const char *path = luaL_checkstring(L, 1);
    struct bough_loop *loop = bough_core_loop(bough_core(L));
    struct ljournal *l = lua_newuserdatauv(L, sizeof *l, 0);
    l->scribe = NULL;
    luaL_setmetatable(L, JOURNAL);
    l->scribe = bough_scribe_new(loop, path);
    if (!l->scribe)
        return luaL_error(L, "not enough memory");
    return ask(L, l, new_note(L, l, carry_nothing, false), opened_k);
}

/* [core table on top] -> the same, with `journal` */
void bough_open_journal(lua_State *L)
{
    static const luaL_Reg methods[] = {
        {"put_operation", journal_put_operation},
        {"operation", journal_operation},
        {"operations", journal_operations},
        {"makers", journal_makers},
        {"prune", journal_prune},
        {"append", journal_append},
        {"events", journal_events},
        {"last_event", journal_last_event},
        {"put_file", journal_put_file},
        {"file", journal_file},
        {"files", journal_files},
        {"sync", journal_sync},
        {"close", journal_close},
        {NULL, NULL},
    };
    static const luaL_Reg meta[] = {{"__gc", journal_gc}, {"__close", journal_close}, {NULL, NULL}};
    static const luaL_Reg note_methods[] = {{"wait", note_wait}, {NULL, NULL}};
    static const luaL_Reg note_meta[] = {{"__gc", note_gc}, {NULL, NULL}};
    if (luaL_newmetatable(L, JOURNAL)) {
        luaL_setfuncs(L, meta, 0);
        luaL_newlib(L, methods);
        lua_pushcclosure(L, journal_index, 1);
        lua_setfield(L, -2, "__index");
    }
    lua_pop(L, 1);
    if (luaL_newmetatable(L, NOTE)) {
        luaL_setfuncs(L, note_meta, 0);
        luaL_newlib(L, note_methods);
        lua_pushcclosure(L, note_index, 1);
        lua_setfield(L, -2, "__index");
    }
    lua_pop(L, 1);
    lua_pushcfunction(L, core_journal);
    lua_setfield(L, -2, "journal");
}
