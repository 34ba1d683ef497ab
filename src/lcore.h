/* lcore.h - the parts that make up `bough.core`.
 *
 * Each opener is called once per Lua state with the core table on top of the stack, adds its
 * functions to that table and leaves the stack as it was. When it runs, bough_core(L) works. */
#ifndef BOUGH_LCORE_H
#define BOUGH_LCORE_H

#include <lua.h>

int luaopen_bough_core(lua_State *L);

void bough_open_error(lua_State *L);     /* error, is_error, kinds */
void bough_open_wait(lua_State *L);      /* sleep, deadline, step, fd, timeout */
void bough_open_task(lua_State *L);      /* spawn, service, run, current, on_error */
void bough_open_condition(lua_State *L); /* condition */
void bough_open_poll(lua_State *L);      /* poll */
void bough_open_watch(lua_State *L);     /* watch */
void bough_open_queue(lua_State *L);     /* queue */
void bough_open_stream(lua_State *L);    /* pipe */
void bough_open_session(lua_State *L);   /* session */
void bough_open_process(lua_State *L);   /* process */
void bough_open_instance(lua_State *L);  /* instance */
void bough_open_fs(lua_State *L);        /* fs, sha256, sha256_file, machine, now, is_terminal */
void bough_open_http(lua_State *L);      /* http, sink */
void bough_open_codec(lua_State *L);     /* base64_encode, base64_decode, is_text, uuid, time */
void bough_open_host(lua_State *L);      /* host_exec */
void bough_open_child(lua_State *L);     /* child; after `local`, which has its class */
void bough_open_terminal(lua_State *L);  /* terminal_size */
void bough_open_local(lua_State *L);     /* open_local */
void bough_open_journal(lua_State *L);   /* journal */

#endif
