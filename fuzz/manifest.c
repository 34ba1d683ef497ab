/* manifest: any bytes as an index, a manifest, a configuration or a reference, for libFuzzer.
 *
 * The readers are Lua, so an interpreter runs in this process, with the module of the tree. The first byte chooses
 * the reader; whatever it is given, it may return or raise one of the error values, in one line, and nothing else: a plain Lua
 * error is a check that is missing. libFuzzer's coverage is that of fuzz/manifest.lua's own trace: which lines of the readers
 * have run is told to it through the counters below. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* One counter for each line that a reader can run, by a hash of file and line. */
__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t counters[1 << 14];

static lua_State *state;

static void on_line(lua_State *L, lua_Debug *where)
{
    lua_getinfo(L, "S", where);
    uint32_t hash = 2166136261u;
    for (const char *c = where->short_src; *c; c++)
        hash = (hash ^ (uint8_t)*c) * 16777619u;
    counters[(hash ^ (uint32_t)where->currentline * 2654435761u) % sizeof counters]++;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    state = luaL_newstate();
    luaL_openlibs(state);
    if (luaL_dofile(state, "fuzz/manifest.lua") != LUA_OK) {
        fprintf(stderr, "%s\n", lua_tostring(state, -1));
        exit(1);
    }
    lua_sethook(state, on_line, LUA_MASKLINE, 0);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    lua_pushvalue(state, -1);
    lua_pushinteger(state, data[0]);
    lua_pushlstring(state, (const char *)data + 1, size - 1);
    if (lua_pcall(state, 2, 0, 0) != LUA_OK) {
        fprintf(stderr, "%s\n", luaL_tolstring(state, -1, NULL));
        abort();
    }
    return 0;
}
