/* lspec.c - a spec table, checked above by lua/bough/options.lua, into the parts of a run, a sandbox or a process. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
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

static void read_argv(lua_State *L, int spec, char ***at)
{
    if (lua_getfield(L, spec, "argv") != LUA_TTABLE)
        bough_lerr(L, BOUGH_ERR_invalid, op, "spec.argv must be an array of strings");
    lua_Unsigned count = lua_rawlen(L, -1);
    char **argv = *at = calloc(count + 1, sizeof *argv);
    if (!argv)
        luaL_error(L, "not enough memory");
    for (lua_Unsigned i = 0; i < count; i++) {
        if (lua_rawgeti(L, -1, (lua_Integer)i + 1) != LUA_TSTRING)
            bough_lerr(L, BOUGH_ERR_invalid, op, "spec.argv must be an array of strings");
        argv[i] = copy_text(L, lua_tostring(L, -1));
        lua_pop(L, 1);
    }
    if (count == 0)
        bough_lerr(L, BOUGH_ERR_invalid, op, "spec.argv is empty");
    lua_pop(L, 1);
}

/* PATH is given unless the caller sets or removes it; `false` removes a name. It goes along bare, so
 * that init, which knows the image's HOME, does not put that in its place. */
static void read_env(lua_State *L, int spec, char ***at)
{
    lua_Unsigned count = 2, n = 0;
    bool has_table = lua_getfield(L, spec, "env") == LUA_TTABLE;
    int env = lua_gettop(L);
    if (has_table)
        for (lua_pushnil(L); lua_next(L, env); lua_pop(L, 1))
            count++;
    char **list = *at = calloc(count + 1, sizeof *list);
    if (!list)
        luaL_error(L, "not enough memory");
    bool has_path = false;
    if (has_table)
        for (lua_pushnil(L); lua_next(L, env); lua_pop(L, 1)) {
            if (lua_type(L, -2) != LUA_TSTRING)
                bough_lerr(L, BOUGH_ERR_invalid, op, "names in env are strings");
            const char *name = lua_tostring(L, -2);
            has_path = has_path || strcmp(name, "PATH") == 0;
            if (!lua_toboolean(L, -1)) {
                list[n++] = copy_text(L, name);
                continue;
            }
            lua_pushfstring(L, "%s=%s", name, luaL_tolstring(L, -1, NULL));
            list[n++] = copy_text(L, lua_tostring(L, -1));
            lua_pop(L, 2);
        }
    if (!has_path)
        list[n++] = copy_text(L, "PATH=" DEFAULT_PATH);
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

static char *read_small_file(const char *path)
{
    BOUGH_CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    char *text = calloc(1, 16385);
    ssize_t n = fd >= 0 && text ? BOUGH_RETRY(read(fd, text, 16384)) : 0;
    if (text)
        text[n > 0 ? n : 0] = '\0';
    return text;
}

static int64_t read_timeout(lua_State *L, int spec)
{
    int64_t timeout_ms = 0;
    if (lua_getfield(L, spec, "timeout") == LUA_TNUMBER) {
        double ms = lua_tonumber(L, -1) * 1000;
        timeout_ms = ms < 1 ? 1 : ms > 9e15 ? 0 : (int64_t)(ms + 0.5);
    }
    lua_pop(L, 1);
    return timeout_ms;
}

/* Where the host stands now, and what it has in its environment: bough-spawn was started earlier. */
static void read_host_cwd(lua_State *L, int spec, struct bough_command *command)
{
    char here[PATH_MAX];
    int top = lua_gettop(L);
    const char *cwd = lua_getfield(L, spec, "cwd") == LUA_TSTRING ? lua_tostring(L, -1) : "";
    if (*cwd != '/' && !getcwd(here, sizeof here))
        bough_lerr(L, BOUGH_ERR_not_found, op, "the working directory of this process is gone");
    if (*cwd == '/')
        command->cwd = copy_text(L, cwd);
    else
        command->cwd = copy_text(L, *cwd ? lua_pushfstring(L, "%s/%s", here, cwd) : here);
    lua_settop(L, top);
}

static bool is_set(lua_State *L, int env, const char *name, size_t size)
{
    lua_pushlstring(L, name, size);
    bool set = lua_istable(L, env) && lua_rawget(L, env) != LUA_TNIL;
    lua_pop(L, 1);
    return set;
}

static void read_host_env(lua_State *L, int spec, char ***at)
{
    read_env(L, spec, at);
    size_t given = 0, count = 0, n = 0;
    while ((*at)[given])
        given++;
    while (environ && environ[count])
        count++;
    char **list = calloc(given + count + 1, sizeof *list);
    if (!list)
        luaL_error(L, "not enough memory");
    lua_getfield(L, spec, "env");
    int env = lua_gettop(L);
    /* A name that is to go has no value; PATH is the host's unless the caller says otherwise. */
    for (size_t i = 0; i < given; i++)
        if (strchr((*at)[i], '=') &&
            (strncmp((*at)[i], "PATH=", 5) != 0 || is_set(L, env, "PATH", 4)))
            list[n++] = (*at)[i];
        else
            free((*at)[i]);
    free(*at);
    *at = list;
    for (size_t i = 0; i < count; i++)
        if (!is_set(L, env, environ[i], strcspn(environ[i], "=")))
            list[n++] = copy_text(L, environ[i]);
    lua_pop(L, 1);
}

void bough_lspec_command(lua_State *L, int index, struct bough_command *command, bool direct)
{
    read_argv(L, index, &command->argv);
    if (direct) {
        read_host_env(L, index, &command->env);
        read_host_cwd(L, index, command);
    } else {
        read_env(L, index, &command->env);
        command->cwd = text_field(L, index, "cwd", "/");
    }
    command->user = text_field(L, index, "user", "");
    command->timeout_ms = read_timeout(L, index);
    if (lua_getfield(L, index, "pty") == LUA_TTABLE) {
        command->pty = true;
        lua_getfield(L, -1, "rows");
        lua_getfield(L, -2, "cols");
        command->rows = (int)luaL_optinteger(L, -2, 24);
        command->cols = (int)luaL_optinteger(L, -1, 80);
        lua_pop(L, 2);
    }
    lua_pop(L, 1);
}

void bough_lspec_sandbox(lua_State *L, int index, struct bough_run *run)
{
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
}

void bough_lspec_run(lua_State *L, int index, struct bough_run *run)
{
    luaL_checktype(L, index, LUA_TTABLE);
    read_argv(L, index, &run->argv);
    read_env(L, index, &run->env);
    run->cwd = text_field(L, index, "cwd", "/");
    run->user = text_field(L, index, "user", "");
    run->timeout_ms = read_timeout(L, index);
    bough_lspec_sandbox(L, index, run);
    bough_lspec_streams(L, index, &run->streams, false);
}

void bough_lspec_boot(lua_State *L, int index, struct bough_run *run)
{
    run->argv = calloc(1, sizeof *run->argv);
    run->env = calloc(1, sizeof *run->env);
    if (!run->argv || !run->env)
        luaL_error(L, "not enough memory");
    run->cwd = copy_text(L, "/");
    run->user = copy_text(L, "");
    run->timeout_ms = read_timeout(L, index);
    bough_lspec_sandbox(L, index, run);
}
