#define _GNU_SOURCE
#include "commit.h"

#include <stdlib.h>
#include <string.h>

#include "sys.h"

void bough_commit_unref(struct bough_commit *c)
{
    if (--c->refs > 0)
        return;
    bough_cond_destroy(&c->done_cond);
    bough_image_clear(&c->image);
    bough_instance_unref(c->instance);
    free(c);
}

/* The end, well or not; the reference of what was under way goes. */
static void finish(struct bough_commit *c, int rc)
{
    c->rc = rc;
    c->done = true;
    bough_cond_fire(&c->done_cond);
    bough_commit_unref(c);
}

static void record(struct bough_job *job)
{
    struct bough_commit *c = (struct bough_commit *)job;
    c->rc = bough_store_commit(job->engine->store, &c->image, c->changed ? c->layer : 0,
                               c->instance->run->parent_layer, c->image.size, 0, &c->err);
}

static void recorded(struct bough_job *job)
{
    struct bough_commit *c = (struct bough_commit *)job;
    struct bough_engine *engine = job->engine;
    if (c->rc < 0 && c->changed)
        bough_engine_drop_staged(engine, c->layer);
    else if (c->rc == 0 && c->changed)
        bough_engine_compact(engine, c->image.layer);
    finish(c, c->rc);
}

static bool heard(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    struct bough_commit *c = arg;
    struct bough_run *run = c->instance->run;
    if (!msg) {
        bough_run_copied(run);
        c->err = *err;
        finish(c, -1);
        return false;
    }
    if (msg->type != BOUGH_MSG_DONE)
        return true;
    bough_run_copied(run);
    c->bytes = bough_get_i64(&msg->body);
    int64_t files = bough_get_i64(&msg->body);
    (void)files;
    c->changed = bough_get_i64(&msg->body) != 0;
    bough_uuid_make(c->image.uuid);
    memcpy(c->image.parent, run->parent, sizeof c->image.parent);
    strcpy(c->image.origin, "commit");
    c->image.layer = c->changed ? c->layer : run->parent_layer;
    c->image.size = c->bytes + run->files_bytes;
    bough_job_start(run->engine, &c->job, record, recorded);
    return false;
}

static void number(struct bough_job *job)
{
    struct bough_commit *c = (struct bough_commit *)job;
    c->layer = bough_store_layer_ids(job->engine->store, 1, &c->err);
}

static void numbered(struct bough_job *job)
{
    struct bough_commit *c = (struct bough_commit *)job;
    struct bough_run *run = c->instance->run;
    struct bough_wbuf body = {0};
    int64_t id = -1;
    if (c->layer >= 0 && run->id <= 0) {
        bough_err_set(&c->err, BOUGH_ERR_state, "the sandbox has ended");
    } else if (c->layer >= 0) {
        bough_put_i64(&body, run->id);
        bough_put_i64(&body, c->layer);
        id = bough_client_ask(job->engine->client, BOUGH_MSG_COMMIT, &body, NULL, 0, heard, c,
                              &c->err);
        bough_engine_kick(job->engine);
    }
    bough_wbuf_free(&body);
    if (id >= 0)
        run->copying++;
    if (id < 0)
        finish(c, -1);
}

struct bough_commit *bough_commit_start(struct bough_instance *instance, char *tag, char *command,
                                        char *config)
{
    struct bough_commit *c = calloc(1, sizeof *c);
    if (!c) {
        free(tag);
        free(command);
        free(config);
        return NULL;
    }
    c->refs = 2; /* the caller's, and of what is under way */
    c->instance = instance;
    instance->refs++;
    c->image.tag = tag;
    c->image.command = command;
    c->image.config = config;
    bough_cond_init(&c->done_cond, instance->run->engine->loop);
    bough_job_start(instance->run->engine, &c->job, number, numbered);
    return c;
}
