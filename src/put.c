#include "put.h"

#include <string.h>

#include "sys.h"

struct bough_staged *bough_staged_new(struct bough_engine *engine)
{
    struct bough_staged *staged = calloc(1, sizeof *staged);
    if (!staged)
        return NULL;
    staged->refs = 1;
    staged->engine = engine;
    bough_engine_ref(engine);
    staged->stage.blobs = staged->stage.lock = -1;
    staged->stage.home = bough_store_home(engine->store);
    staged->stage.owner = bough_store_owner(engine->store);
    staged->stage.hashes = engine->hashes;
    return staged;
}

void bough_staged_unref(struct bough_staged *staged)
{
    if (--staged->refs > 0)
        return;
    bough_stage_free(&staged->stage);
    bough_engine_unref(staged->engine);
    free(staged);
}

static void put_end(struct bough_put *put)
{
    if (put->rc < 0 && put->layer > 0 && !put->job.engine->closed)
        bough_engine_drop_staged(put->job.engine, put->layer);
    put->done(put);
    bough_staged_unref(put->staged);
    free(put->stack);
    free(put);
}

/* Whether it may not go on. */
static bool put_stopped(struct bough_put *put)
{
    if (put->rc >= 0 && put->cancelled)
        put->rc = bough_err_set(&put->err, BOUGH_ERR_cancelled, "closed before it was done");
    else if (put->rc >= 0 && put->job.engine->closed)
        put->rc = bough_err_set(&put->err, BOUGH_ERR_closed, "the engine was closed");
    if (put->rc >= 0)
        return false;
    put_end(put);
    return true;
}

static void seal(struct bough_job *job)
{
    struct bough_put *put = (struct bough_put *)job;
    put->rc = bough_store_layer_add(job->engine->store, &put->layer, put->parent_layer, put->bytes,
                                    put->files, NULL, &put->err);
}

static void sealed(struct bough_job *job)
{
    put_end((struct bough_put *)job);
}

static bool put_heard(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    struct bough_put *put = arg;
    struct bough_engine *engine = put->job.engine;
    if (msg && msg->type == BOUGH_MSG_PROGRESS)
        return true;
    put->request = 0;
    if (msg) {
        put->bytes = bough_get_i64(&msg->body);
        put->files = bough_get_i64(&msg->body);
    } else {
        put->err = *err;
        put->rc = -1;
    }
    if (!put_stopped(put))
        bough_job_start(engine, &put->job, seal, sealed);
    bough_engine_unref(engine);
    return false;
}

static void look_up(struct bough_job *job)
{
    struct bough_put *put = (struct bough_put *)job;
    struct bough_store *store = job->engine->store;
    put->rc = -1;
    put->stack_count =
        bough_store_find_stack(store, put->parent, &put->parent_layer, &put->stack, &put->err);
    if (put->stack_count < 0)
        return;
    put->layer = bough_store_layer_ids(store, 1, &put->err);
    put->rc = put->layer < 0 ? -1 : 0;
}

static void looked_up(struct bough_job *job)
{
    struct bough_put *put = (struct bough_put *)job;
    struct bough_engine *engine = job->engine;
    if (put_stopped(put))
        return;
    struct bough_wbuf body = {0};
    bough_put_i64(&body, put->layer);
    bough_stack_put(&body, put->stack, put->stack_count);
    bough_stage_put(&put->staged->stage, &body);
    bough_engine_ref(engine);
    int64_t id = body.failed ? bough_err_sys(&put->err, ENOMEM, "files")
                             : bough_client_ask(engine->client, BOUGH_MSG_PUT, &body, NULL, 0,
                                                put_heard, put, &put->err);
    bough_wbuf_free(&body);
    if (id < 0) {
        put->rc = -1;
        put_end(put);
        bough_engine_unref(engine);
        return;
    }
    put->request = id;
    bough_engine_kick(engine);
}

struct bough_put *bough_put_start(struct bough_engine *engine, struct bough_staged *staged,
                                  const char *parent, void (*done)(struct bough_put *), void *arg)
{
    struct bough_put *put = calloc(1, sizeof *put);
    if (!put)
        return NULL;
    put->staged = staged;
    staged->refs++;
    memcpy(put->parent, parent, sizeof put->parent);
    put->done = done;
    put->arg = arg;
    bough_job_start(engine, &put->job, look_up, looked_up);
    return put;
}

void bough_put_cancel(struct bough_put *put)
{
    put->cancelled = true;
    if (put->request > 0) {
        bough_client_tell(put->job.engine->client, BOUGH_MSG_KILL, put->request, NULL, NULL, 0,
                          NULL);
        bough_engine_kick(put->job.engine);
    }
}
