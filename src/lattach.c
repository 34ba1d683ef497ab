/* lattach.c - process:attach: the caller's terminal, or his plain descriptors, in the hands of a process.
 *
 * The bytes go by callbacks (relay.c) and never through Lua. What is left for whoever waits: the size of the window
 * and the settings of the terminal, at which it looks now and then since no signal handler is ours to install, and
 * the end. All of it is given back by the userdata on the stack, which is closed however the wait ends. */
#define _GNU_SOURCE
#include "lattach.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include <lauxlib.h>

#include "lcore.h"
#include "lhost.h"
#include "lprocess.h"
#include "lstream.h"
#include "lwait.h"
#include "relay.h"
#include "spawner.h"
#include "sys.h"
#include "terminal.h"

#define OP "process:attach"
#define ATTACH_NAME "bough.attach"
#define TICK_NS (100 * INT64_C(1000000))
#define PRIVATE_TICK_NS (10 * INT64_C(1000000)) /* where functions are called from here */
#define SELF 3                                  /* the attach, on the stack */

struct attach {
    bool pty;
    bool over; /* the process */
    struct bough_relay relay;
    struct bough_terminal terminal;
    struct bough_spawner *spawner; /* who puts the settings back should the host be killed; NULL */
    bool guarded;                  /* it has them */
    struct bough_cond *changed;    /* of the first stream, or `own` */
    struct bough_cond own;
    int64_t tick_ns; /* when to look at the terminal again */
    int rows, cols;  /* as the process was told */
    int rows_now, cols_now;
    struct attach **desk; /* where the state notes who has descriptor 0 */
};

/* Registry: a userdata with that note. */
static const char desk_key = 0;

static int push_spawner(lua_State *L)
{
    lua_pushlightuserdata(L, bough_host_spawner(L));
    return 1;
}

/* Who puts the settings back should the host be killed. It is had before the attach is made, and so outlives it. */
static struct bough_spawner *get_spawner(lua_State *L)
{
    lua_pushcfunction(L, push_spawner);
    struct bough_spawner *spawner = lua_pcall(L, 0, 1, 0) == LUA_OK ? lua_touserdata(L, -1) : NULL;
    lua_pop(L, 1);
    return spawner;
}

static void give_back(lua_State *L, struct attach *a)
{
    bough_relay_close(&a->relay);
    bough_terminal_restore(&a->terminal);
    if (a->guarded && get_spawner(L) == a->spawner) /* else that one has ended, and forgotten it */
        bough_spawner_unguard(a->spawner);
    a->guarded = false;
    if (a->own.loop)
        bough_cond_destroy(&a->own);
    a->own.loop = NULL;
    if (a->desk && *a->desk == a)
        *a->desk = NULL;
    a->desk = NULL;
}

static int attach_drop(lua_State *L)
{
    give_back(L, lua_touserdata(L, 1));
    return 0;
}

static struct attach *push_attach(lua_State *L)
{
    struct attach *a = lua_newuserdatauv(L, sizeof *a, 0);
    memset(a, 0, sizeof *a);
    if (luaL_newmetatable(L, ATTACH_NAME)) {
        lua_pushcfunction(L, attach_drop);
        lua_setfield(L, -2, "__close");
        lua_pushcfunction(L, attach_drop);
        lua_setfield(L, -2, "__gc");
    }
    lua_setmetatable(L, -2);
    return a;
}

/* --- options ---------------------------------------------------------------------------------- */

struct options {
    int pty; /* -1: as it fits */
    char detach[BOUGH_RELAY_DETACH];
    size_t detach_size;
};

static const char *const known[] = {"pty", "detach"};

/* Edits from `a` to `b`, of which the second is one of ours. */
static size_t edits(const char *a, const char *b)
{
    size_t row[8], size = strlen(b);
    for (size_t j = 0; j <= size; j++)
        row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t corner = row[0];
        row[0] = i + 1;
        for (size_t j = 1; j <= size; j++) {
            size_t cost = corner + (tolower((unsigned char)a[i]) != b[j - 1]);
            corner = row[j];
            cost = cost < row[j] + 1 ? cost : row[j] + 1;
            row[j] = cost < row[j - 1] + 1 ? cost : row[j - 1] + 1;
        }
    }
    return row[size];
}

static int refuse_option(lua_State *L, const char *name)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (edits(name, known[i]) <= 2 || strncmp(name, known[i], 3) == 0)
            return bough_lerr(L, BOUGH_ERR_invalid, OP,
                              "unknown option \"%.40s\": did you mean \"%s\"?", name, known[i]);
    return bough_lerr(L, BOUGH_ERR_invalid, OP, "unknown option \"%.40s\": known are pty, detach",
                      name);
}

/* The byte that a key sends, as it is written: "ctrl-]", or the one byte itself. -1: that is no key. */
static int key_of(const char *text, size_t size)
{
    static const char control[] = "ctrl-";
    size_t prefix = sizeof control - 1;
    if (size == 1)
        return (unsigned char)*text;
    if (size != prefix + 1 || memcmp(text, control, prefix) != 0)
        return -1;
    int key = (unsigned char)text[prefix];
    bool known_key = (key >= 'a' && key <= 'z') || (key && strchr("[\\]^_@ ", key));
    return known_key ? key & 0x1f : -1;
}

/* "ctrl-]", "ctrl-p,ctrl-q", "~,.". Whoever has mistyped it would find no way out, or leave by a word that he types, so
 * all else is refused. */
static void read_detach(lua_State *L, struct options *options)
{
    size_t size;
    if (lua_type(L, -1) != LUA_TSTRING)
        bough_lerr(L, BOUGH_ERR_invalid, OP, "detach must be a string such as \"ctrl-]\", not a %s",
                   luaL_typename(L, -1));
    const char *text = lua_tolstring(L, -1, &size);
    const char *end = text + size;
    if (size == 0)
        bough_lerr(L, BOUGH_ERR_invalid, OP, "detach is empty: leave it out for none");
    for (const char *at = text, *stop; at <= end; at = stop + 1) {
        stop = memchr(at, ',', (size_t)(end - at));
        stop = stop ? stop : end;
        int key = key_of(at, (size_t)(stop - at));
        if (key < 0) {
            bough_lprocess_quote(L, at, (size_t)(stop - at));
            bough_lerr(L, BOUGH_ERR_invalid, OP,
                       "detach: %s is no key: write \"ctrl-]\" (ctrl- and one of a-z [\\]^_@ and "
                       "space), a single character, or several of these with commas between: "
                       "\"ctrl-p,ctrl-q\"",
                       lua_tostring(L, -1));
        }
        if (options->detach_size == sizeof options->detach)
            bough_lerr(L, BOUGH_ERR_invalid, OP, "detach has too many keys: at most %zu",
                       sizeof options->detach);
        options->detach[options->detach_size++] = (char)key;
    }
}

static struct options read_options(lua_State *L)
{
    struct options options = {.pty = -1};
    if (lua_isnil(L, 2))
        return options;
    if (!lua_istable(L, 2))
        bough_lerr(L, BOUGH_ERR_invalid, OP, "options must be a table, got a %s",
                   luaL_typename(L, 2));
    for (lua_pushnil(L); lua_next(L, 2) != 0; lua_pop(L, 1)) {
        if (lua_type(L, -2) != LUA_TSTRING)
            bough_lerr(L, BOUGH_ERR_invalid, OP, "option names are strings, not a %s",
                       luaL_typename(L, -2));
        const char *name = lua_tostring(L, -2);
        if (strcmp(name, "pty") == 0) {
            if (!lua_isboolean(L, -1))
                bough_lerr(L, BOUGH_ERR_invalid, OP, "pty must be true or false, not a %s",
                           luaL_typename(L, -1));
            options.pty = lua_toboolean(L, -1);
        } else if (strcmp(name, "detach") == 0) {
            read_detach(L, &options);
        } else {
            refuse_option(L, name);
        }
    }
    if (options.pty == 0 && options.detach_size > 0)
        bough_lerr(L, BOUGH_ERR_invalid, OP, "detach needs pty = true: without it no key is seen");
    return options;
}

/* --- the streams ------------------------------------------------------------------------------ */

struct streams {
    struct bough_writer *writer;
    struct bough_reader *readers[2];
    bool terminal; /* the process has one */
};

static struct streams read_streams(lua_State *L)
{
    struct streams s = {0};
    lua_getiuservalue(L, 1, BOUGH_PROCESS_STDIN);
    s.writer = bough_lwriter_test(L, -1);
    lua_getiuservalue(L, 1, BOUGH_PROCESS_STDOUT);
    s.readers[0] = bough_lreader_test(L, -1);
    lua_getiuservalue(L, 1, BOUGH_PROCESS_STDERR);
    s.readers[1] = bough_lreader_test(L, -1);
    s.terminal = s.writer && s.readers[0] && s.readers[0]->is_terminal;
    lua_settop(L, 2);
    return s;
}

/* Closed by somebody who has read it to its end: there is nothing that would be missed. What is put aside for a wait
 * brings a stream to its end too, but counts as no reading. */
static bool was_read(const struct bough_reader *reader)
{
    return bough_reader_at_end(reader) && reader->reads > 0;
}

/* Leaves out what is used up. */
static void check_open(lua_State *L, struct streams *s, bool pty)
{
    static const char *const names[] = {"stdout", "stderr"};
    for (int i = 0; i < 2; i++) {
        const struct bough_reader *reader = s->readers[i];
        if (reader && reader->taken)
            bough_lerr(L, BOUGH_ERR_state, OP, "the process's %s cannot be copied: it %s", names[i],
                       reader->taken);
        if (reader && reader->closed && !was_read(reader))
            bough_lerr(L, BOUGH_ERR_state, OP,
                       "the process's %s is closed: close() was called before it was read to its "
                       "end",
                       names[i]);
        if (reader && reader->closed)
            s->readers[i] = NULL;
    }
    if (s->writer && s->writer->taken)
        bough_lerr(L, BOUGH_ERR_state, OP, "the process's stdin cannot be written: it %s",
                   s->writer->taken);
    if (s->writer && pty && s->writer->closed)
        bough_lerr(L, BOUGH_ERR_state, OP,
                   "the process's stdin is closed: after close() no key would reach it");
}

static void check_terminals(lua_State *L, const struct streams *s)
{
    const char *missing = isatty(STDIN_FILENO) != 1    ? "standard input is not a terminal"
                          : isatty(STDOUT_FILENO) != 1 ? "standard output is not a terminal"
                                                       : NULL;
    if (!s->terminal)
        bough_lerr(L, BOUGH_ERR_state, OP,
                   "the process has no terminal: start it with pty = true, or let "
                   "attach{ pty = false } copy its streams");
    if (missing)
        bough_lerr(L, BOUGH_ERR_state, OP, "%s: attach{ pty = false } copies without one", missing);
}

/* Two that read from descriptor 0 would each get a part. */
static void take_desk(lua_State *L, struct attach *a)
{
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &desk_key) == LUA_TNIL) {
        lua_pop(L, 1);
        struct attach **made = lua_newuserdatauv(L, sizeof *made, 0);
        *made = NULL;
        lua_pushvalue(L, -1);
        lua_rawsetp(L, LUA_REGISTRYINDEX, &desk_key);
    }
    struct attach **desk = lua_touserdata(L, -1);
    lua_pop(L, 1);
    if (*desk)
        bough_lerr(L, BOUGH_ERR_busy, OP,
                   "another process is attached: one at a time has the terminal");
    *desk = a;
    a->desk = desk;
}

/* --- while it lasts --------------------------------------------------------------------------- */

static void tend(struct attach *a)
{
    bool ours = bough_terminal_is_ours();
    bough_relay_pause(&a->relay, !ours);
    if (!a->pty || !ours)
        return;
    if (!a->terminal.taken) {
        if (bough_terminal_take(&a->terminal, NULL) < 0)
            return; /* gone: the relay will notice */
        a->guarded = a->spawner &&
                     bough_spawner_guard(a->spawner, STDIN_FILENO, &a->terminal.saved, NULL) == 0;
    }
    bough_terminal_tend(&a->terminal);
}

static bool resized(struct attach *a)
{
    if (!a->pty || !bough_terminal_size(&a->rows_now, &a->cols_now))
        return false;
    if (a->rows_now == a->rows && a->cols_now == a->cols)
        return false;
    a->rows = a->rows_now;
    a->cols = a->cols_now;
    return true;
}

/* From here on nothing takes the address of a local, and all calls of continuations are the last thing: lwait.h. */

static int go_on_k(lua_State *L, int status, lua_KContext ctx);

static int polled_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct attach *a = lua_touserdata(L, SELF);
    if (!lua_isnil(L, -1)) {
        a->over = true;
        bough_relay_cut(&a->relay);
    }
    lua_settop(L, SELF);
    return go_on_k(L, LUA_OK, ctx);
}

static int ask_process(lua_State *L, lua_KContext ctx)
{
    lua_settop(L, SELF);
    lua_getfield(L, 1, "poll");
    lua_pushvalue(L, 1);
    lua_callk(L, 1, 1, ctx, polled_k);
    return polled_k(L, LUA_OK, ctx);
}

static int served_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    return ask_process(L, ctx);
}

/* The end of the output says that the process is over, unless another one has the streams open. */
static int poll_process(lua_State *L, lua_KContext ctx)
{
    const struct attach *a = lua_touserdata(L, SELF);
    if (a->over)
        return go_on_k(L, LUA_OK, ctx);
    if (!bough_wait_is_private(L))
        return ask_process(L, ctx);
    /* The task that calls the functions which were given for other streams does not run meanwhile, and without them the
     * process may never go on: so they are called from here. */
    bough_lprocess_method(L, "wait", OP);
    lua_pushinteger(L, 0);
    lua_callk(L, 2, 0, ctx, served_k);
    return served_k(L, LUA_OK, ctx);
}

static int resized_k(lua_State *L, int status, lua_KContext ctx)
{
    static const char *const harmless[] = {"unsupported", "state", "closed", "not_found", NULL};
    const char *kind = status == LUA_OK || status == LUA_YIELD ? NULL : bough_lerr_kind(L, -1);
    if (status != LUA_OK && status != LUA_YIELD) {
        bool is_harmless = false; /* it is over, or cannot have its size changed */
        for (int i = 0; kind && harmless[i]; i++)
            is_harmless = is_harmless || strcmp(kind, harmless[i]) == 0;
        if (!is_harmless)
            return lua_error(L);
    }
    lua_settop(L, SELF);
    return poll_process(L, ctx);
}

static int tick(lua_State *L, lua_KContext ctx)
{
    struct attach *a = lua_touserdata(L, SELF);
    a->tick_ns = bough_now_ns() + (bough_wait_is_private(L) ? PRIVATE_TICK_NS : TICK_NS);
    tend(a);
    bough_relay_nudge(&a->relay);
    if (!resized(a))
        return poll_process(L, ctx);
    lua_getfield(L, 1, "resize");
    lua_pushvalue(L, 1);
    lua_pushinteger(L, a->rows);
    lua_pushinteger(L, a->cols);
    return resized_k(L, lua_pcallk(L, 3, 0, 0, ctx, resized_k), ctx);
}

static int ended_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    give_back(L, lua_touserdata(L, SELF));
    return 1;
}

/* All output is shown. A terminal without its process has nothing more to give; a process without its output may
 * still read. */
static int end(lua_State *L, lua_KContext ctx)
{
    struct attach *a = lua_touserdata(L, SELF);
    if (a->pty)
        give_back(L, a);
    lua_getfield(L, 1, "wait");
    lua_pushvalue(L, 1);
    lua_callk(L, 1, 1, ctx, ended_k);
    return ended_k(L, LUA_OK, ctx);
}

static int stop(lua_State *L, struct attach *a)
{
    if (a->relay.detached) {
        give_back(L, a);
        return 0;
    }
    struct bough_err err = a->relay.err;
    give_back(L, a);
    return bough_lerr_raise(L, &err, OP);
}

static int go_on_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    struct attach *a = lua_touserdata(L, SELF);
    bough_relay_pump(&a->relay);
    if (a->relay.detached)
        return stop(L, a);
    if (bough_relay_is_drained(&a->relay))
        return end(L, ctx);
    if (a->relay.failed)
        return stop(L, a);
    if (bough_now_ns() >= a->tick_ns)
        return tick(L, ctx);
    return bough_wait_until(L, a->changed, a->tick_ns, ctx, go_on_k);
}

/* --- the beginning ---------------------------------------------------------------------------- */

static void start(lua_State *L, struct attach *a, const struct options *options,
                  const struct streams *streams)
{
    struct bough_loop *loop = bough_core_loop(bough_core(L));
    struct bough_relay *relay = &a->relay;
    struct bough_err err;
    bool fed = streams->writer && !streams->writer->closed && !a->over;
    struct bough_writer *writer = fed ? streams->writer : NULL;
    if (a->pty || writer)
        take_desk(L, a);
    bough_cond_init(&a->own, loop);
    a->changed = streams->readers[0]   ? &streams->readers[0]->changed
                 : streams->readers[1] ? &streams->readers[1]->changed
                                       : &a->own;
    relay->terminal = a->pty;
    if (a->pty) {
        relay->detach_size = options->detach_size;
        memcpy(relay->detach, options->detach, sizeof relay->detach);
    }
    /* What the caller has printed comes before what the process prints. */
    fflush(stdout);
    if (bough_relay_open(relay, loop, a->changed, writer, streams->readers, &err) < 0)
        bough_lerr_raise(L, &err, OP);
    if (writer)
        relay->ahead_size = bough_terminal_ahead(&relay->ahead);
}

/* Whether it has ended, as far as can be known without waiting. */
static bool is_over(lua_State *L, const struct lprocess *p)
{
    if (!p->over)
        bough_loop_poll(bough_core_loop(bough_core(L)), 0);
    bough_lprocess_learn(L);
    return p->over;
}

/* Not part of bough_attach, whose last call is to leave no frame behind. */
static __attribute__((noinline)) void begin(lua_State *L)
{
    const struct lprocess *p = bough_lprocess_check(L, OP);
    lua_settop(L, 2);
    struct options options = read_options(L);
    struct streams streams = read_streams(L);
    /* Of a process that is over there is only what it has left behind: nobody to type to, and no need of a terminal. */
    bool over = is_over(L, p);
    bool pty = options.pty < 0 ? streams.terminal && bough_terminal_is_there() : options.pty;
    pty = pty && !over;
    if (pty)
        check_terminals(L, &streams);
    check_open(L, &streams, pty);
    struct bough_spawner *spawner = pty ? get_spawner(L) : NULL;
    struct attach *a = push_attach(L);
    a->pty = pty;
    a->over = over;
    lua_toclose(L, SELF);
    start(L, a, &options, &streams);
    a->spawner = spawner;
    if (over)
        bough_relay_cut(&a->relay);
}

int bough_attach(lua_State *L)
{
    begin(L);
    return tick(L, 0);
}

/* --- the size ---------------------------------------------------------------------------------- */

/* core.terminal_size() -> rows, cols of the caller's terminal; nothing where there is none */
static int terminal_size(lua_State *L)
{
    int rows, cols;
    if (!bough_terminal_size(&rows, &cols))
        return 0;
    lua_pushinteger(L, rows);
    lua_pushinteger(L, cols);
    return 2;
}

void bough_open_terminal(lua_State *L)
{
    lua_pushcfunction(L, terminal_size);
    lua_setfield(L, -2, "terminal_size");
}
