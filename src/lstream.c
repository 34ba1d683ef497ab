/* lstream.c - pipe: a reader and a writer that belong together. */
#define _GNU_SOURCE
#include "lstream.h"

#include <lauxlib.h>

#include "lcore.h"
#include "lwait.h"
#include "stream.h"
#include "sys.h"

/* pipe(name?) -> reader, writer */
static int stream_pipe(lua_State *L)
{
    struct bough_loop *loop = bough_core_loop(bough_core(L));
    struct bough_err err;
    int ends[2];
    if (!lua_isnoneornil(L, 1) && lua_type(L, 1) != LUA_TSTRING)
        return bough_lerr(L, BOUGH_ERR_invalid, "pipe", "expected a name, a string, not %s",
                          luaL_typename(L, 1));
    const char *name = luaL_optstring(L, 1, "pipe");
    if (bough_pipe_open(ends, -1, &err) < 0)
        return bough_lerr_raise(L, &err, "pipe");
    struct bough_reader *reader = bough_reader_new(loop, ends[0], false, &err);
    struct bough_writer *writer = bough_writer_new(loop, ends[1], false, &err);
    if (!reader || !writer) {
        if (reader)
            bough_reader_unref(reader);
        if (writer)
            bough_writer_unref(writer);
        return bough_lerr_raise(L, &err, "pipe");
    }
    bough_lreader_push(L, reader, -1, name);
    bough_lwriter_push(L, writer, -1, name);
    return 2;
}

void bough_open_stream(lua_State *L)
{
    bough_lreader_register(L);
    bough_lwriter_register(L);
    lua_pushcfunction(L, stream_pipe);
    lua_setfield(L, -2, "pipe");
}
