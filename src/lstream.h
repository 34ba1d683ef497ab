/* lstream.h - readers and writers as userdata, for whoever makes them or is given one. */
#ifndef BOUGH_LSTREAM_H
#define BOUGH_LSTREAM_H

#include <lua.h>

#include "reader.h"
#include "writer.h"

/* Bytes after which a call that had no need to wait lets the others have a turn. */
#define BOUGH_STREAM_TURN (1024 * 1024)

/* User value of both userdata: the process whose stream it is, which lives as long as somebody holds the stream. */
enum { BOUGH_STREAM_OWNER = 1, BOUGH_STREAM_UV_COUNT = BOUGH_STREAM_OWNER };

/* The one at `arg`: check raises `invalid`, test gives NULL. Perhaps closed. */
struct bough_reader *bough_lreader_check(lua_State *L, int arg, const char *op);
struct bough_reader *bough_lreader_test(lua_State *L, int arg);
struct bough_writer *bough_lwriter_check(lua_State *L, int arg, const char *op);
struct bough_writer *bough_lwriter_test(lua_State *L, int arg);

/* Pushes a userdata that takes over a reference, and closes the stream when it goes. `number`: as the command counts it
 * (its `fd`), -1 for no command's; `name`, for messages, is copied. Once for each stream. */
void bough_lreader_push(lua_State *L, struct bough_reader *reader, int number, const char *name);
void bough_lwriter_push(lua_State *L, struct bough_writer *writer, int number, const char *name);

void bough_lreader_register(lua_State *L); /* the classes */
void bough_lwriter_register(lua_State *L);

#endif
