/* lrow.c - an image of the store as a Lua table. */
#include "lask.h"

void bough_set_integer(lua_State *L, const char *name, lua_Integer value)
{
    lua_pushinteger(L, value);
    lua_setfield(L, -2, name);
}

void bough_set_number(lua_State *L, const char *name, double value)
{
    lua_pushnumber(L, value);
    lua_setfield(L, -2, name);
}

void bough_set_boolean(lua_State *L, const char *name, bool value)
{
    lua_pushboolean(L, value);
    lua_setfield(L, -2, name);
}

void bough_set_text(lua_State *L, const char *name, const char *text)
{
    if (text && *text) {
        lua_pushstring(L, text);
        lua_setfield(L, -2, name);
    }
}

void bough_lresult_push(lua_State *L, const struct bough_result *r)
{
    lua_createtable(L, 0, 14);
    bough_set_integer(L, "exit_code", r->exit_code);
    if (r->signal)
        bough_set_integer(L, "signal", r->signal);
    bough_set_boolean(L, "timed_out", r->timed_out);
    bough_set_boolean(L, "oom", r->oom);
    bough_set_boolean(L, "ok", r->exit_code == 0 && !r->timed_out);
    bough_set_number(L, "elapsed_time", r->elapsed_time);
    bough_set_number(L, "user_time", r->user_time);
    bough_set_number(L, "system_time", r->system_time);
    bough_set_integer(L, "max_rss", r->max_rss);
    if (r->has_stdout) {
        lua_pushlstring(L, r->stdout_data ? r->stdout_data : "",
                        r->stdout_data ? r->stdout_size : 0);
        lua_setfield(L, -2, "stdout");
    }
    if (r->has_stderr) {
        lua_pushlstring(L, r->stderr_data ? r->stderr_data : "",
                        r->stderr_data ? r->stderr_size : 0);
        lua_setfield(L, -2, "stderr");
    }
    lua_createtable(L, 0, 2);
    if (r->stdout_dropped)
        bough_set_integer(L, "stdout", r->stdout_dropped);
    if (r->stderr_dropped)
        bough_set_integer(L, "stderr", r->stderr_dropped);
    lua_setfield(L, -2, "truncated");
    lua_createtable(L, 0, r->usage.known ? 10 : 3);
    bough_set_number(L, "user_time", r->user_time);
    bough_set_number(L, "system_time", r->system_time);
    bough_set_integer(L, "max_rss", r->max_rss);
    if (r->usage.known) {
        bough_set_integer(L, "minor_faults", r->usage.minor_faults);
        bough_set_integer(L, "major_faults", r->usage.major_faults);
        bough_set_integer(L, "blocks_in", r->usage.blocks_in);
        bough_set_integer(L, "blocks_out", r->usage.blocks_out);
        bough_set_integer(L, "waits", r->usage.waits);
        bough_set_integer(L, "preemptions", r->usage.preemptions);
        bough_set_boolean(L, "core_dump", r->core_dump);
    }
    lua_setfield(L, -2, "resources");
}

void bough_lrow_push(lua_State *L, const struct bough_image *image)
{
    lua_createtable(L, 0, 9);
    bough_set_text(L, "uuid", image->uuid);
    bough_set_text(L, "parent_uuid", image->parent);
    bough_set_text(L, "tag", image->tag);
    bough_set_text(L, "origin", image->origin);
    bough_set_text(L, "command", image->command);
    bough_set_text(L, "config", image->config);
    bough_set_number(L, "created_at", (double)image->created_us / 1e6);
    bough_set_integer(L, "size", image->size);
    if (image->result.present) {
        bough_lresult_push(L, &image->result);
        lua_setfield(L, -2, "result");
    }
}
