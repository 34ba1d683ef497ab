/* lreader.c - the reader userdata: Lua's formats over a stream that may make one wait.
 *
 * A read takes nothing before it can return: one that is cancelled or runs into a time limit has lost nothing. What the
 * formats of a call have found is kept on the stack while it waits, so that no byte is looked at twice. */
#define _GNU_SOURCE
#include <ctype.h>
#include <locale.h>
#include <string.h>

#include <lauxlib.h>

#include "lcore.h"
#include "lstream.h"
#include "ltask.h"
#include "lwait.h"
#include "sys.h"

#define READER_NAME "bough.reader"
#define FORMATS_MAX 250   /* of lines: they become upvalues */
#define NUMERAL_MAX 200   /* as file:read has it */
#define CHUNK_MAX 1048576 /* what "c" returns at most */

struct lreader {
    struct bough_reader *reader;
    int number;
    char name[];
};

/* A call under way. Stack: the reader, `count` formats, one of these once the call has waited, the results so far. */
struct reading {
    int current;    /* format */
    size_t start;   /* where its bytes begin in the reader's data */
    size_t scanned; /* how many of them need not be looked at again */
    uint64_t used;  /* `used` of the reader when this was true */
};

struct format {
    char kind; /* n, l, L, a, c; # for a count */
    size_t count;
};

/* --- formats ------------------------------------------------------------------------------------------ */

static struct format format_check(lua_State *L, int arg, const char *op)
{
    struct format format = {0};
    if (lua_type(L, arg) == LUA_TNUMBER) {
        int is_whole;
        lua_Integer count = lua_tointegerx(L, arg, &is_whole);
        if (!is_whole || count < 0)
            bough_lerr(L, BOUGH_ERR_invalid, op, "%s is not a number of bytes",
                       luaL_tolstring(L, arg, NULL));
        format.kind = '#';
        format.count = (size_t)count;
        return format;
    }
    const char *text = lua_type(L, arg) == LUA_TSTRING ? lua_tostring(L, arg) : "";
    format.kind = *text == '*' ? text[1] : *text;
    if (format.kind == '\0' || !strchr("nlLac", format.kind))
        bough_lerr(
            L, BOUGH_ERR_invalid, op,
            "%s is not a format: expected \"n\", \"l\", \"L\", \"a\", \"c\" or a number of bytes",
            luaL_tolstring(L, arg, NULL));
    return format;
}

enum outcome { OUTCOME_PARTIAL, OUTCOME_MISSING, OUTCOME_FOUND };

/* A numeral is read as file:read does it: as long as what comes can still belong to one. */
struct numeral {
    const char *at, *end;
    char text[NUMERAL_MAX + 1];
    int size;
    bool too_long;
};

static int numeral_next(const struct numeral *numeral)
{
    return numeral->at < numeral->end ? (unsigned char)*numeral->at : -1;
}

static bool numeral_take(struct numeral *numeral)
{
    if (numeral->size == NUMERAL_MAX) {
        numeral->too_long = true;
        return false;
    }
    numeral->text[numeral->size++] = *numeral->at++;
    return true;
}

static bool numeral_accept(struct numeral *numeral, char one, char other)
{
    int c = numeral_next(numeral);
    return c >= 0 && (c == one || c == other) && numeral_take(numeral);
}

static int numeral_digits(struct numeral *numeral, bool hex)
{
    int count = 0, c;
    while ((c = numeral_next(numeral)) >= 0 && (hex ? isxdigit(c) : isdigit(c)) &&
           numeral_take(numeral))
        count++;
    return count;
}

static void numeral_read(struct numeral *numeral)
{
    bool hex = false;
    int digits = 0;
    numeral_accept(numeral, '-', '+');
    if (numeral_accept(numeral, '0', '0')) {
        hex = numeral_accept(numeral, 'x', 'X');
        digits = !hex;
    }
    digits += numeral_digits(numeral, hex);
    if (numeral_accept(numeral, localeconv()->decimal_point[0], '.'))
        digits += numeral_digits(numeral, hex);
    if (digits > 0 && numeral_accept(numeral, hex ? 'p' : 'e', hex ? 'P' : 'E')) {
        numeral_accept(numeral, '-', '+');
        numeral_digits(numeral, false);
    }
    numeral->text[numeral->size] = '\0';
}

static enum outcome scan_number(lua_State *L, const char *data, size_t size, bool final,
                                size_t *scanned, size_t *next)
{
    while (*scanned < size && isspace((unsigned char)data[*scanned]))
        ++*scanned;
    struct numeral numeral = {.at = data + *scanned, .end = data + size};
    numeral_read(&numeral);
    if (numeral.at == numeral.end && !numeral.too_long && !final)
        return OUTCOME_PARTIAL;
    *next = (size_t)(numeral.at - data);
    return !numeral.too_long && lua_stringtonumber(L, numeral.text) ? OUTCOME_FOUND
                                                                    : OUTCOME_MISSING;
}

static enum outcome scan_line(lua_State *L, char kind, const char *data, size_t size, bool final,
                              size_t *scanned, size_t *next)
{
    const char *end = memchr(data + *scanned, '\n', size - *scanned);
    *scanned = size;
    if (!end && !final)
        return OUTCOME_PARTIAL;
    *next = end ? (size_t)(end - data) + 1 : size;
    if (*next == 0)
        return OUTCOME_MISSING;
    lua_pushlstring(L, data, *next - (end && kind == 'l'));
    return OUTCOME_FOUND;
}

/* Applies a format to the bytes that are there, the last of all when `final`. FOUND pushes the value. */
static enum outcome scan(lua_State *L, struct format format, const char *data, size_t size,
                         bool final, size_t *scanned, size_t *next)
{
    switch (format.kind) {
    case 'n':
        return scan_number(L, data, size, final, scanned, next);
    case 'l':
    case 'L':
        return scan_line(L, format.kind, data, size, final, scanned, next);
    case 'c':
        format.count = size < CHUNK_MAX ? size : CHUNK_MAX;
        break;
    case 'a':
        if (!final)
            return OUTCOME_PARTIAL;
        lua_pushlstring(L, data, *next = size);
        return OUTCOME_FOUND;
    default:
        break;
    }
    if (!final && (size == 0 || size < format.count))
        return OUTCOME_PARTIAL;
    if (size == 0)
        return OUTCOME_MISSING;
    *next = size < format.count ? size : format.count;
    lua_pushlstring(L, data, *next);
    return OUTCOME_FOUND;
}

/* --- reading ------------------------------------------------------------------------------------------ */

static void refuse_closed(lua_State *L, const struct lreader *self, const char *op)
{
    const struct bough_reader *reader = self->reader;
    if (reader->taken)
        bough_lerr(L, BOUGH_ERR_closed, op, "%s %s", self->name, reader->taken);
    if (reader->closed)
        bough_lerr(L, BOUGH_ERR_closed, op, "%s is closed", self->name);
}

static void raise_error(lua_State *L, const struct lreader *self)
{
    struct bough_err err = self->reader->err;
    bough_err_wrap(&err, "%s", self->name);
    bough_lerr_raise(L, &err, "reader:read");
}

/* Goes on with the formats; true when the call can return. */
static bool advance(lua_State *L, struct bough_reader *reader, int count, struct reading *reading)
{
    bool final = bough_reader_at_end(reader) && !reader->err.msg[0];
    while (reading->current < count) {
        struct format format = format_check(L, 2 + reading->current, "reader:read");
        size_t size = reader->size - reading->start, next = 0;
        const char *data = size > 0 ? reader->data + reader->at + reading->start : "";
        enum outcome outcome = scan(L, format, data, size, final, &reading->scanned, &next);
        if (outcome == OUTCOME_PARTIAL)
            return false;
        reading->start += next;
        reading->scanned = 0;
        reading->current++;
        if (outcome == OUTCOME_MISSING) {
            lua_pushnil(L);
            return true;
        }
    }
    return true;
}

/* How much to ask for: more than is needed saves calls, and long texts come in larger and larger pieces. */
static size_t appetite(lua_State *L, const struct bough_reader *reader,
                       const struct reading *reading)
{
    struct format format = format_check(L, 2 + reading->current, "reader:read");
    size_t have = reader->size - reading->start, want = BOUGH_READER_CHUNK;
    if (format.kind == '#' && format.count > have + want)
        want = format.count - have;
    else if (format.kind == 'a')
        want = have;
    else
        return want;
    if (want > BOUGH_STREAM_TURN)
        want = BOUGH_STREAM_TURN;
    return want > BOUGH_READER_CHUNK ? want : BOUGH_READER_CHUNK;
}

enum step { STEP_DONE, STEP_WAIT, STEP_TURN };

/* Leaves what is found on the stack. Not inlined: bough_wait wants no local whose address is known. */
static __attribute__((noinline)) enum step read_on(lua_State *L, int count)
{
    struct lreader *self = lua_touserdata(L, 1);
    struct bough_reader *reader = self->reader;
    struct reading begun = {.used = reader->used}, *reading = lua_touserdata(L, count + 2);
    if (!reading) {
        reading = &begun;
    } else if (reading->used != reader->used) { /* somebody else has taken what we looked at */
        lua_settop(L, count + 2);
        *reading = begun;
    }
    enum step step = STEP_TURN;
    while (reader->streak <
           2 * BOUGH_STREAM_TURN) { /* each byte counts as it comes and as it goes */
        refuse_closed(L, self, "reader:read");
        if (advance(L, reader, count, reading)) {
            bough_reader_take(reader, reading->start);
            return STEP_DONE;
        }
        if (bough_reader_pull(reader, appetite(L, reader, reading)) > 0 ||
            (bough_reader_at_end(reader) && !reader->err.msg[0]))
            continue;
        if (bough_reader_watch(reader) < 0 || reader->err.msg[0])
            raise_error(L, self);
        step = STEP_WAIT;
        break;
    }
    reader->streak = 0;
    if (reading == &begun) {
        reading = lua_newuserdatauv(L, sizeof *reading, 0);
        *reading = begun;
        lua_replace(L, count + 2);
    }
    return step;
}

static int read_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    int count = (int)ctx;
    enum step step = read_on(L, count);
    if (step == STEP_DONE)
        return lua_gettop(L) - count - 2;
    if (step == STEP_TURN)
        return bough_wait_until(L, NULL, bough_now_ns(), ctx, read_k);
    return bough_wait(L, &((struct lreader *)lua_touserdata(L, 1))->reader->changed, ctx, read_k);
}

/* Stack: the reader and its formats, which are good. */
static int read_begin(lua_State *L)
{
    if (lua_gettop(L) == 1)
        lua_pushliteral(L, "l");
    int count = lua_gettop(L) - 1;
    luaL_checkstack(L, count + LUA_MINSTACK, "too many formats");
    lua_pushnil(L);
    return read_k(L, LUA_OK, count);
}

static void check_formats(lua_State *L, const char *op)
{
    for (int arg = 2; arg <= lua_gettop(L); arg++)
        format_check(L, arg, op);
}

/* reader:read(...) -> a value for each format, nil for the first that there is nothing for */
static int reader_read(lua_State *L)
{
    bough_lreader_check(L, 1, "reader:read");
    check_formats(L, "reader:read");
    return read_begin(L);
}

/* The usual case, at a fraction of the cost: a whole line is there. */
static bool next_line(lua_State *L, struct bough_reader *reader, char kind)
{
    const char *data = reader->data + reader->at;
    const char *end = reader->size > 0 ? memchr(data, '\n', reader->size) : NULL;
    if (!end || reader->streak >= 2 * BOUGH_STREAM_TURN)
        return false;
    size_t size = (size_t)(end - data) + 1;
    lua_pushlstring(L, data, size - (kind == 'l'));
    bough_reader_take(reader, size);
    return true;
}

/* Upvalues: the reader, 'l' or 'L' where that is the only format (else 0), how many formats, the formats. */
static int lines_next(lua_State *L)
{
    struct lreader *self = lua_touserdata(L, lua_upvalueindex(1));
    char kind = (char)lua_tointeger(L, lua_upvalueindex(2));
    lua_settop(L, 0);
    if (kind && self->reader && next_line(L, self->reader, kind))
        return 1;
    int count = (int)lua_tointeger(L, lua_upvalueindex(3));
    luaL_checkstack(L, count + LUA_MINSTACK, "too many formats");
    lua_pushvalue(L, lua_upvalueindex(1));
    for (int i = 1; i <= count; i++)
        lua_pushvalue(L, lua_upvalueindex(3 + i));
    bough_lreader_check(L, 1, "reader:read");
    return read_begin(L);
}

/* reader:lines(...) -> iterator */
static int reader_lines(lua_State *L)
{
    bough_lreader_check(L, 1, "reader:lines");
    refuse_closed(L, lua_touserdata(L, 1), "reader:lines");
    if (lua_gettop(L) == 1)
        lua_pushliteral(L, "l");
    int count = lua_gettop(L) - 1;
    if (count > FORMATS_MAX)
        return bough_lerr(L, BOUGH_ERR_invalid, "reader:lines", "more than %d formats",
                          FORMATS_MAX);
    check_formats(L, "reader:lines");
    char kind = format_check(L, 2, "reader:lines").kind;
    lua_pushinteger(L, count == 1 && (kind == 'l' || kind == 'L') ? kind : 0);
    lua_insert(L, 2);
    lua_pushinteger(L, count);
    lua_insert(L, 3);
    lua_pushcclosure(L, lines_next, count + 3);
    return 1;
}

/* --- the userdata ------------------------------------------------------------------------------------- */

/* A finaliser of somebody else may still hold what ours has closed. */
static int reader_close(lua_State *L)
{
    struct lreader *self = luaL_testudata(L, 1, READER_NAME);
    if (!self)
        bough_lreader_check(L, 1, "reader:close");
    else if (self->reader)
        bough_reader_close(self->reader);
    return 0;
}

static int reader_gc(lua_State *L)
{
    struct lreader *self = lua_touserdata(L, 1);
    struct bough_reader *reader = self->reader;
    self->reader = NULL;
    if (reader) {
        bough_reader_close(reader);
        bough_reader_unref(reader);
    }
    return 0;
}

static int reader_index(lua_State *L)
{
    struct lreader *self = luaL_checkudata(L, 1, READER_NAME);
    const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
    if (strcmp(key, "closed") == 0) {
        lua_pushboolean(L, !self->reader || self->reader->closed);
    } else if (strcmp(key, "fd") == 0) {
        if (self->number < 0)
            lua_pushnil(L);
        else
            lua_pushinteger(L, self->number);
    } else {
        lua_pushvalue(L, 2);
        lua_rawget(L, lua_upvalueindex(1));
    }
    return 1;
}

static int reader_tostring(lua_State *L)
{
    struct lreader *self = luaL_checkudata(L, 1, READER_NAME);
    const struct bough_reader *reader = self->reader;
    const char *state = "open";
    if (!reader || reader->closed)
        state = "closed";
    else if (bough_reader_at_end(reader) && reader->size == 0)
        state = "at end";
    lua_pushfstring(L, "reader %s (%s)", self->name, state);
    return 1;
}

struct bough_reader *bough_lreader_test(lua_State *L, int arg)
{
    struct lreader *self = luaL_testudata(L, arg, READER_NAME);
    return self ? self->reader : NULL;
}

struct bough_reader *bough_lreader_check(lua_State *L, int arg, const char *op)
{
    struct lreader *self = luaL_testudata(L, arg, READER_NAME);
    if (!self)
        bough_lerr(L, BOUGH_ERR_invalid, op, "expected a reader, not %s", luaL_typename(L, arg));
    else if (!self->reader)
        bough_lerr(L, BOUGH_ERR_closed, op, "%s is closed", self->name);
    return self ? self->reader : NULL;
}

void bough_lreader_push(lua_State *L, struct bough_reader *reader, int number, const char *name)
{
    size_t size = strlen(name) + 1;
    struct lreader *self = lua_newuserdatauv(L, sizeof *self + size, BOUGH_STREAM_UV_COUNT);
    self->reader = reader;
    self->number = number;
    memcpy(self->name, name, size);
    luaL_setmetatable(L, READER_NAME);
}

void bough_lreader_register(lua_State *L)
{
    static const luaL_Reg meta[] = {{"__gc", reader_gc},
                                    {"__close", reader_close},
                                    {"__tostring", reader_tostring},
                                    {NULL, NULL}};
    static const luaL_Reg methods[] = {
        {"read", reader_read}, {"lines", reader_lines}, {"close", reader_close}, {NULL, NULL}};
    bough_class_make(L, READER_NAME, meta, methods, reader_index);
}
