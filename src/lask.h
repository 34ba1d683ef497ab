/* lask.h - a question to the embedded engine, shared by the files that ask.
 *
 * A question is a malloc'ed record that the loop's callbacks fill in, held by a userdata, so that a caller who is
 * cancelled leaves nothing dangling. It goes through a job for the store, a request to the keeper, or both. */
#ifndef BOUGH_LASK_H
#define BOUGH_LASK_H

#include "llocal.h"

struct bough_question {
    struct bough_job job;
    int refs; /* the userdata, and what is under way */
    struct bough_engine *engine;
    struct bough_cond done_cond;
    bool done;
    int rc;
    struct bough_err err;
    const char *op;
    /* what is asked */
    char *ref, *path, *tag;
    struct bough_filter filter;
    char *filter_tag, *filter_glob, *filter_first, *filter_parent, *filter_uuid;
    char **keep;
    bool dry;
    enum bough_msg request;
    bool keep_open; /* the answer is the descriptor itself, not what can be read from it */
    /* what is answered */
    struct bough_image image;
    struct bough_image *images;
    long count;
    struct bough_gc gc;
    struct bough_store_info info;
    int64_t *stack, stack_count, layer;
    int64_t leased; /* a layer to be let go of unless somebody has taken it; 0 */
    int fd;
    char *data;
    size_t size;
};

/* Pushes its userdata, with `engine` the one at index 1; raises `closed`. */
struct bough_question *bough_question_ask(lua_State *L, const char *op);
struct bough_question *bough_question_top(lua_State *L); /* the one on top of the stack */
void bough_question_unref(struct bough_question *q);
/* The answer is in: wakes whoever waits and lets go of what was under way. */
void bough_question_answered(struct bough_question *q);
void bough_question_after(struct bough_job *job); /* the same, as the end of a job */
/* Starts the job and waits; `k` pushes the answer (or raises what went wrong). */
int bough_question_wait(lua_State *L, struct bough_question *q, void (*work)(struct bough_job *),
                        lua_KFunction k);

#define BOUGH_NOT_YET(L, q, k)                       \
    if (!(q)->done)                                  \
        return bough_wait(L, &(q)->done_cond, 0, k); \
    if ((q)->rc < 0)                                 \
    return bough_lerr_raise(L, &(q)->err, (q)->op)

char *bough_arg_copy(lua_State *L, int index); /* a string argument, strdup'ed */

/* Fields of the table on top of the stack. */
void bough_set_integer(lua_State *L, const char *name, lua_Integer value);
void bough_set_number(lua_State *L, const char *name, double value);
void bough_set_boolean(lua_State *L, const char *name, bool value);
void bough_set_text(lua_State *L, const char *name, const char *text); /* NULL and "": no field */

/* llook.c */
int bough_ask_read(lua_State *L);     /* engine:read(uuid, path) */
int bough_ask_list_dir(lua_State *L); /* engine:list_dir(uuid, path) */
int bough_ask_open(lua_State *L);     /* engine:open(uuid, path) */
int bough_ask_save(lua_State *L);     /* engine:save(uuid, path, destination) */
int bough_ask_extract(lua_State *L);  /* engine:extract(uuid, path, directory) */
void bough_llook_register(lua_State *L);
struct bough_entry;
void bough_llook_entry(lua_State *L, const struct bough_entry *entry); /* pushes its table */
/* limport.c */
int bough_ask_import(lua_State *L); /* engine:import(kind, source, opts) -> job */

#endif
