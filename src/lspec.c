/* lspec.c - a spec table, checked above by lua/bough/options.lua, into the parts of a run. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "llocal.h"
#include "sys.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static const char op[] = "run";

static char *copy_text(lua_State *L, const char *text)
{
    char *copy = strdup(text);
    if (!copy)
        luaL_error(L, "not enough memory");
    return copy;
}

/* A string field, or a copy of `fallback` (NULL: none). */
static char *text_field(lua_State *L, int spec, const char *name, const char *fallback)
{
    char *copy = NULL;
    if (lua_getfield(L, spec, name) == LUA_TSTRING)
        copy = copy_text(L, lua_tostring(L, -1));
    else if (fallback)
        copy = copy_text(L, fallback);
    lua_pop(L, 1);
    return copy;
}

static void read_argv(lua_State *L, int spec, struct bough_run *run)
{
    if (lua_getfield(L, spec, "argv") != LUA_TTABLE)
        bough_lerr(L, BOUGH_ERR_invalid, op, "spec.argv must be an array of strings");
    lua_Unsigned count = lua_rawlen(L, -1);
    run->argv = calloc(count + 1, sizeof *run->argv);
    if (!run->argv)
        luaL_error(L, "not enough memory");
    for (lua_Unsigned i = 0; i < count; i++) {
        if (lua_rawgeti(L, -1, (lua_Integer)i + 1) != LUA_TSTRING)
            bough_lerr(L, BOUGH_ERR_invalid, op, "spec.argv must be an array of strings");
        run->argv[i] = copy_text(L, lua_tostring(L, -1));
        lua_pop(L, 1);
    }
    if (count == 0)
        bough_lerr(L, BOUGH_ERR_invalid, op, "spec.argv is empty");
    lua_pop(L, 1);
}

/* PATH is given unless the caller sets or removes it; `false` removes a name. It goes along bare, so
 * that init, which knows the image's HOME, does not put that in its place. */
static void read_env(lua_State *L, int spec, struct bough_run *run)
{
    lua_Unsigned count = 2, n = 0;
    bool has_table = lua_getfield(L, spec, "env") == LUA_TTABLE;
    int env = lua_gettop(L);
    if (has_table)
        for (lua_pushnil(L); lua_next(L, env); lua_pop(L, 1))
            count++;
    run->env = calloc(count + 1, sizeof *run->env);
    if (!run->env)
        luaL_error(L, "not enough memory");
    bool has_path = false;
    if (has_table)
        for (lua_pushnil(L); lua_next(L, env); lua_pop(L, 1)) {
            if (lua_type(L, -2) != LUA_TSTRING)
                bough_lerr(L, BOUGH_ERR_invalid, op, "names in env are strings");
            const char *name = lua_tostring(L, -2);
            has_path = has_path || strcmp(name, "PATH") == 0;
            if (!lua_toboolean(L, -1)) {
                run->env[n++] = copy_text(L, name);
                continue;
            }
            lua_pushfstring(L, "%s=%s", name, luaL_tolstring(L, -1, NULL));
            run->env[n++] = copy_text(L, lua_tostring(L, -1));
            lua_pop(L, 2);
        }
    if (!has_path)
        run->env[n++] = copy_text(L, "PATH=" DEFAULT_PATH);
    lua_settop(L, env - 1);
}

void bough_lspec_limits(lua_State *L, int index, struct bough_limits *limits)
{
    if (lua_type(L, index) != LUA_TTABLE)
        return;
    const struct {
        const char *name;
        int64_t *at;
    } fields[] = {{"memory", &limits->memory},
                  {"disk", &limits->disk},
                  {"pids", &limits->pids},
                  {"files", &limits->files}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (lua_getfield(L, index, fields[i].name) == LUA_TNUMBER) {
            double value = lua_tonumber(L, -1);
            if (!(value >= 0))
                bough_lerr(L, BOUGH_ERR_invalid, op, "limits.%s must not be negative",
                           fields[i].name);
            *fields[i].at = value >= 9e18 ? 0 : (int64_t)value;
        } else if (lua_type(L, -1) == LUA_TBOOLEAN && !lua_toboolean(L, -1)) {
            *fields[i].at = 0;
        }
        lua_pop(L, 1);
    }
    if (lua_getfield(L, index, "cpu") == LUA_TNUMBER) {
        double cpu = lua_tonumber(L, -1);
        limits->cpu = cpu > 0 && cpu < 1e6 ? cpu : 0;
    }
    lua_pop(L, 1);
}

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
    out->path = copy_text(L, path);
    if (asprintf(&out->temp, "%s.XXXXXX", path) < 0) {
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

static void read_output(lua_State *L, int spec, const char *name, struct bough_run *run, int which)
{
    struct bough_out *out = &run->out[which];
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
    } else if (is_constant(L, "INHERIT")) {
        out->sink = BOUGH_SINK_FD;
        out->sink_fd = fcntl(which + 1, F_DUPFD_CLOEXEC, 3);
        if (out->sink_fd < 0)
            out->sink = BOUGH_SINK_DISCARD; /* the host has closed its own */
    } else if (which == 1 && is_constant(L, "STDOUT")) {
        run->joined = true;
    } else if ((out->sink_fd = file_descriptor(L, true)) >= 0) {
        out->sink = BOUGH_SINK_FD;
    } else {
        bough_lerr(L, BOUGH_ERR_unsupported, op, "%s = %s: this engine cannot send output there",
                   name, luaL_tolstring(L, -1, NULL));
    }
    lua_pop(L, 1);
}

static void read_input(lua_State *L, int spec, struct bough_run *run)
{
    struct bough_in *in = &run->in;
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
    } else if ((in->source_fd = file_descriptor(L, false)) >= 0) {
        in->source = BOUGH_SOURCE_FD;
    } else if (lua_istable(L, -1) && lua_getfield(L, -1, "path") == LUA_TSTRING) {
        const char *path = lua_tostring(L, -1);
        in->source = BOUGH_SOURCE_FD;
        in->source_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        if (in->source_fd < 0) {
            struct bough_err err;
            bough_err_sys(&err, errno, "stdin %s", path);
            bough_lerr_raise(L, &err, op);
        }
        lua_pop(L, 1);
    } else {
        bough_lerr(L, BOUGH_ERR_unsupported, op, "stdin: this engine cannot read from that");
    }
    lua_pop(L, 1);
}

static char *read_small_file(const char *path)
{
    BOUGH_CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    char *text = calloc(1, 16385);
    ssize_t n = fd >= 0 && text ? BOUGH_RETRY(read(fd, text, 16384)) : 0;
    if (text)
        text[n > 0 ? n : 0] = '\0';
    return text;
}

void bough_lspec_read(lua_State *L, int index, struct bough_run *run)
{
    luaL_checktype(L, index, LUA_TTABLE);
    read_argv(L, index, run);
    read_env(L, index, run);
    run->cwd = text_field(L, index, "cwd", "/");
    run->user = text_field(L, index, "user", "");
    run->hostname = text_field(L, index, "hostname", "bough");
    run->tag = text_field(L, index, "tag", NULL);
    run->command = text_field(L, index, "command", NULL);
    run->cache_key = text_field(L, index, "cache_key", NULL);
    if (lua_getfield(L, index, "network") == LUA_TSTRING &&
        strcmp(lua_tostring(L, -1), "host") == 0) {
        run->network = BOUGH_NETWORK_HOST;
        run->resolv = read_small_file("/etc/resolv.conf");
    }
    lua_pop(L, 1);
    lua_getfield(L, index, "limits");
    run->limits = run->engine->limits;
    bough_lspec_limits(L, lua_gettop(L), &run->limits);
    lua_pop(L, 1);
    lua_getfield(L, index, "disposable");
    run->disposable = lua_toboolean(L, -1);
    lua_pop(L, 1);
    if (lua_getfield(L, index, "timeout") == LUA_TNUMBER) {
        double ms = lua_tonumber(L, -1) * 1000;
        run->timeout_ms = ms < 1 ? 1 : ms > 9e15 ? 0 : (int64_t)(ms + 0.5);
    }
    lua_pop(L, 1);
    read_output(L, index, "stdout", run, 0);
    read_output(L, index, "stderr", run, 1);
    read_input(L, index, run);
    lua_Integer limit = 1024 * 1024;
    if (lua_getfield(L, index, "truncate_output_at") == LUA_TNUMBER)
        limit = lua_tointeger(L, -1);
    lua_pop(L, 1);
    run->out[0].limit = run->out[1].limit = (size_t)limit;
}
