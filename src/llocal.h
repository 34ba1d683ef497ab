/* llocal.h - what the embedded engine's userdata (llocal.c), its questions (lask.c) and runs (lrun.c) share. */
#ifndef BOUGH_LLOCAL_H
#define BOUGH_LLOCAL_H

#include <lauxlib.h>
#include <lua.h>

#include "engine.h"
#include "lwait.h"
#include "process.h"
#include "run.h"

#define BOUGH_LOCAL "bough.local"
#define BOUGH_RUN "bough.run"
#define BOUGH_JOB "bough.job"
#define BOUGH_STAGED "bough.staged"
#define BOUGH_SANDBOX "bough.sandbox"
#define BOUGH_CHILD "bough.child"

struct local {
    struct bough_engine *engine; /* NULL when closed */
};

/* The open engine at index 1; raises `closed`. */
struct bough_engine *bough_local_check(lua_State *L, const char *op);

/* Pushes the row of an image (types.lua: bough.row). [-0, +1] */
void bough_lrow_push(lua_State *L, const struct bough_image *image);
/* Pushes a result (types.lua: bough.result). [-0, +1] */
void bough_lresult_push(lua_State *L, const struct bough_result *result);

/* lput.c: what was staged at `index`; raises when it is closed. */
struct bough_staged *bough_lput_staged(lua_State *L, int index);
int bough_lput_stage(lua_State *L);
int bough_lput_files(lua_State *L);
int bough_lput_upload(lua_State *L);
int bough_lput_has_file(lua_State *L);
void bough_lput_register(lua_State *L);
/* llayer.c: layers and trees in and out */
extern const luaL_Reg bough_llayer_methods[];
/* lsearch.c: engine:look */
int bough_lsearch_look(lua_State *L);
void bough_lsearch_register(lua_State *L);
/* lrun.c */
int bough_lrun_start(lua_State *L); /* engine:start(uuid, spec) */
void bough_lrun_register(lua_State *L);
/* lsandbox.c */
int bough_lsandbox_boot(lua_State *L); /* engine:boot(uuid, spec) */
void bough_lsandbox_register(lua_State *L);
/* lchild.c: starts the process that the spec at `spec` describes and pushes its handle. `direct`: a plain command of
 * the host, which gets its files and its environment. [-0, +1] */
int bough_lchild_push(lua_State *L, struct bough_crew *crew, int spec, bool direct);
void bough_lchild_register(lua_State *L);
/* lask.c: the methods that look things up */
extern const luaL_Reg bough_lask_methods[];
void bough_lask_register(lua_State *L);
/* lspec.c: read a spec table at `index`; raise `invalid`. What they fill in is anchored already. */
void bough_lspec_run(lua_State *L, int index, struct bough_run *run);
void bough_lspec_sandbox(lua_State *L, int index,
                         struct bough_run *run); /* all but a command of its own */
void bough_lspec_boot(lua_State *L, int index, struct bough_run *run); /* with an empty command */
void bough_lspec_command(lua_State *L, int index, struct bough_command *command, bool direct);
/* lstreams.c: `direct`: the host's own files go to the command as they are, not through us. */
void bough_lspec_streams(lua_State *L, int index, struct bough_streams *streams, bool direct);
/* Reads limits {memory=,pids=,cpu=,disk=,files=} at `index` (nil: nothing) over what is there. */
void bough_lspec_limits(lua_State *L, int index, struct bough_limits *limits);

#endif
