/* lstreams.c - stdin, stdout and stderr of a spec table, checked above by lua/bough/options.lua, into streams. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "llocal.h"
#include "lstream.h"
#include "sys.h"

static const char op[] = "run";

/* Whether the value at -1 is core[name]. */
static bool is_constant(lua_State *L, const char *name)
{
    int top = lua_gettop(L);
    luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
    bool same = lua_getfield(L, -1, "bough.core") == LUA_TTABLE &&
                lua_getfield(L, -1, name) != LUA_TNIL && lua_rawequal(L, -1, top);
    lua_settop(L, top);
    return same;
}

/* The descriptor of an open Lua file at -1, or -1. */
static int file_descriptor(lua_State *L, bool writing)
{
    luaL_Stream *stream = luaL_testudata(L, -1, LUA_FILEHANDLE);
    if (!stream)
        return -1;
    if (!stream->closef)
        bough_lerr(L, BOUGH_ERR_closed, op, "the file given for %s is closed",
                   writing ? "output" : "stdin");
    if (writing)
        fflush(stream->f);
    int fd = fcntl(fileno(stream->f), F_DUPFD_CLOEXEC, 3);
    if (fd < 0) {
        struct bough_err err;
        bough_err_sys(&err, errno, "file");
        bough_lerr_raise(L, &err, op);
    }
    return fd;
}

static void open_path_sink(lua_State *L, struct bough_out *out, const char *path)
{
    struct bough_err err;
    out->path = strdup(path);
    if (!out->path || asprintf(&out->temp, "%s.XXXXXX", path) < 0) {
        out->temp = NULL;
        luaL_error(L, "not enough memory");
    }
    out->sink_fd = mkostemp(out->temp, O_CLOEXEC);
    if (out->sink_fd < 0) {
        int sys = errno;
        free(out->temp);
        out->temp = NULL;
        bough_err_sys(&err, sys, "output %s", path);
        bough_lerr_raise(L, &err, op);
    }
    /* A file made by mkstemp(3) is private; one made by a redirection follows the umask, which can only
     * be read by setting it, and that is not ours to do in a host with threads. */
    fchmod(out->sink_fd, 0644);
}

/* A descriptor of the host's own that the command writes to through us, or (`direct`) by itself. */
static void send_to(struct bough_streams *s, int which, int fd, bool direct)
{
    if (direct) {
        s->given[which + 1] = fd;
    } else {
        s->out[which].sink = BOUGH_SINK_FD;
        s->out[which].sink_fd = fd;
    }
}

static void read_output(lua_State *L, int spec, const char *name, struct bough_streams *s,
                        int which, bool direct)
{
    struct bough_out *out = &s->out[which];
    int fd;
    out->sink = BOUGH_SINK_CAPTURE;
    lua_getfield(L, spec, name);
    if (lua_isnil(L, -1)) {
        /* captured */
    } else if (lua_isboolean(L, -1)) {
        out->sink = lua_toboolean(L, -1) ? BOUGH_SINK_CAPTURE : BOUGH_SINK_DISCARD;
    } else if (lua_isfunction(L, -1)) {
        out->sink = BOUGH_SINK_TAKE;
    } else if (lua_type(L, -1) == LUA_TSTRING) {
        out->sink = BOUGH_SINK_FD;
        open_path_sink(L, out, lua_tostring(L, -1));
    } else if (is_constant(L, "PIPE")) {
        out->sink = BOUGH_SINK_DISCARD;
        s->piped[which + 1] = true;
    } else if (is_constant(L, "INHERIT")) {
        fd = fcntl(which + 1, F_DUPFD_CLOEXEC, 3);
        if (fd < 0)
            out->sink = BOUGH_SINK_DISCARD; /* the host has closed its own */
        else
            send_to(s, which, fd, direct);
    } else if (which == 1 && is_constant(L, "STDOUT")) {
        s->joined = true;
    } else if ((fd = file_descriptor(L, true)) >= 0) {
        send_to(s, which, fd, direct);
    } else if (bough_lwriter_test(L, -1)) {
        out->sink = BOUGH_SINK_DISCARD; /* handed over below, when nothing else can go wrong */
    } else {
        bough_lerr(L, BOUGH_ERR_unsupported, op, "%s = %s: this engine cannot send output there",
                   name, luaL_tolstring(L, -1, NULL));
    }
    lua_pop(L, 1);
}

static void read_path(lua_State *L, struct bough_in *in)
{
    const char *path = lua_tostring(L, -1);
    in->source = BOUGH_SOURCE_FD;
    in->source_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (in->source_fd < 0) {
        struct bough_err err;
        bough_err_sys(&err, errno, "stdin %s", path);
        bough_lerr_raise(L, &err, op);
    }
}

static void read_input(lua_State *L, int spec, struct bough_streams *s, bool direct)
{
    struct bough_in *in = &s->in;
    int fd;
    lua_getfield(L, spec, "stdin");
    if (lua_isnil(L, -1) || (lua_isboolean(L, -1) && !lua_toboolean(L, -1))) {
        in->source = BOUGH_SOURCE_NONE;
    } else if (lua_type(L, -1) == LUA_TSTRING) {
        size_t size;
        const char *data = lua_tolstring(L, -1, &size);
        in->source = BOUGH_SOURCE_DATA;
        in->data = malloc(size + 1);
        if (!in->data)
            luaL_error(L, "not enough memory");
        memcpy(in->data, data, size);
        in->size = size;
    } else if (lua_isfunction(L, -1)) {
        in->source = BOUGH_SOURCE_GIVE;
    } else if (is_constant(L, "PIPE")) {
        s->piped[0] = true;
    } else if (is_constant(L, "INHERIT")) {
        fd = fcntl(0, F_DUPFD_CLOEXEC, 3);
        if (fd >= 0 && direct) {
            s->given[0] = fd;
        } else if (fd >= 0) {
            in->source = BOUGH_SOURCE_FD;
            in->source_fd = fd;
        }
    } else if ((fd = file_descriptor(L, false)) >= 0) {
        if (direct) {
            s->given[0] = fd;
        } else {
            in->source = BOUGH_SOURCE_FD;
            in->source_fd = fd;
        }
    } else if (bough_lreader_test(L, -1)) {
        in->source = BOUGH_SOURCE_NONE; /* handed over below */
    } else if (lua_istable(L, -1) && lua_getfield(L, -1, "path") == LUA_TSTRING) {
        read_path(L, in);
        lua_pop(L, 1);
    } else {
        bough_lerr(L, BOUGH_ERR_unsupported, op, "stdin: this engine cannot read from that");
    }
    lua_pop(L, 1);
}

/* A stream of another process goes to the command as it is, with nothing of ours in between. Only what somebody has
 * read ahead has to be pumped, in front of it. */
static void take_reader(lua_State *L, struct bough_streams *s, struct bough_reader *reader)
{
    struct bough_err err;
    struct bough_in *in = &s->in;
    char *ahead = NULL;
    size_t size = 0;
    int fd = bough_reader_hand_over(reader, &ahead, &size, &err);
    if (fd < 0) {
        bough_err_wrap(&err, "stdin");
        bough_lerr_raise(L, &err, op);
    }
    if (!ahead) {
        s->given[0] = fd;
        return;
    }
    in->source = BOUGH_SOURCE_FD;
    in->source_fd = fd;
    in->data = size < BOUGH_STREAM_CHUNK ? realloc(ahead, BOUGH_STREAM_CHUNK) : ahead;
    if (!in->data) {
        free(ahead);
        luaL_error(L, "not enough memory");
    }
    in->size = size;
}

static void take_writer(lua_State *L, struct bough_streams *s, int which, const char *name,
                        struct bough_writer *writer)
{
    struct bough_err err;
    s->given[which + 1] = bough_writer_hand_over(writer, &err);
    if (s->given[which + 1] < 0) {
        bough_err_wrap(&err, "%s", name);
        bough_lerr_raise(L, &err, op);
    }
}

void bough_lspec_streams(lua_State *L, int index, struct bough_streams *s, bool direct)
{
    read_output(L, index, "stdout", s, 0, direct);
    read_output(L, index, "stderr", s, 1, direct);
    read_input(L, index, s, direct);
    lua_Integer limit = 1024 * 1024;
    if (lua_getfield(L, index, "truncate_output_at") == LUA_TNUMBER)
        limit = lua_tointeger(L, -1);
    lua_pop(L, 1);
    s->out[0].limit = s->out[1].limit = (size_t)limit;

    lua_getfield(L, index, "stdin");
    lua_getfield(L, index, "stdout");
    lua_getfield(L, index, "stderr");
    struct bough_reader *input = bough_lreader_test(L, -3);
    struct bough_writer *outputs[2] = {bough_lwriter_test(L, -2), bough_lwriter_test(L, -1)};
    if (outputs[0])
        take_writer(L, s, 0, "stdout", outputs[0]);
    if (outputs[1] && outputs[1] == outputs[0])
        s->joined = true;
    else if (outputs[1])
        take_writer(L, s, 1, "stderr", outputs[1]);
    if (input)
        take_reader(L, s, input);
    lua_pop(L, 3);
}
