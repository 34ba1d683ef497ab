#define _GNU_SOURCE
#include "run.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys.h"

struct run_job {
    struct bough_job job;
    struct bough_run *run;
    int rc;
    struct bough_err err;
    int64_t *stack; /* of the prepare job */
    int64_t stack_count, layer, parent_layer;
};

struct bough_run *bough_run_new(struct bough_engine *engine)
{
    struct bough_run *run = calloc(1, sizeof *run);
    if (!run)
        return NULL;
    run->refs = 1;
    run->engine = engine;
    bough_engine_ref(engine);
    run->next = engine->runs;
    run->link = &engine->runs;
    if (run->next)
        run->next->link = &run->next;
    engine->runs = run;
    bough_cond_init(&run->changed, engine->loop);
    bough_streams_init(&run->streams);
    run->channel = -1;
    return run;
}

void bough_run_unref(struct bough_run *run)
{
    if (--run->refs > 0)
        return;
    *run->link = run->next;
    if (run->next)
        run->next->link = run->link;
    bough_streams_close(&run->streams);
    bough_fd_close(&run->channel);
    bough_cond_destroy(&run->changed);
    bough_image_clear(&run->image);
    bough_strv_free(run->argv);
    bough_strv_free(run->env);
    free(run->cwd);
    free(run->user);
    free(run->hostname);
    free(run->resolv);
    free(run->tag);
    free(run->command);
    free(run->cache_key);
    if (run->staged)
        bough_staged_unref(run->staged);
    bough_engine_unref(run->engine);
    free(run);
}

bool bough_run_is_over(const struct bough_run *run)
{
    return run->state == BOUGH_RUN_DONE || run->state == BOUGH_RUN_FAILED;
}

static void free_job(struct run_job *j)
{
    bough_run_unref(j->run);
    free(j->stack);
    free(j);
}

static void step(struct bough_run *run, enum bough_run_state state)
{
    run->state = state;
    bough_cond_fire(&run->changed);
    if (run->files_layer > 0 && bough_run_is_over(run)) {
        /* the image holds the layer of its files now, or nobody does */
        bough_engine_release_layer(run->engine, run->files_layer);
        run->files_layer = 0;
    }
    if (run->stepped)
        run->stepped(run);
}

static void fail(struct bough_run *run, const struct bough_err *err)
{
    if (bough_run_is_over(run))
        return;
    run->err = *err;
    bough_streams_stop(&run->streams);
    bough_fd_close(&run->channel);
    step(run, BOUGH_RUN_FAILED);
}

static struct run_job *new_job(struct bough_run *run)
{
    struct run_job *j = calloc(1, sizeof *j);
    struct bough_err err;
    if (!j) {
        bough_err_sys(&err, ENOMEM, "run");
        fail(run, &err);
        return NULL;
    }
    j->run = run;
    run->refs++;
    return j;
}

/* --- the ending ----------------------------------------------------------------------------------- */

static void commit(struct bough_job *job)
{
    struct run_job *j = (struct run_job *)job;
    struct bough_run *run = j->run;
    j->rc =
        bough_store_commit(job->engine->store, &run->image, run->ending.changed ? run->layer : 0,
                           run->parent_layer, run->ending.bytes, run->ending.files, &j->err);
}

static void committed(struct bough_job *job)
{
    struct run_job *j = (struct run_job *)job;
    struct bough_run *run = j->run;
    if (j->rc < 0) {
        if (run->ending.changed)
            bough_engine_drop_staged(job->engine, run->layer);
        fail(run, &j->err);
    } else {
        step(run, BOUGH_RUN_DONE);
        if (run->ending.changed || run->files_bytes > 0)
            bough_engine_compact(job->engine, run->image.layer);
    }
    free_job(j);
}

static void fill_result(struct bough_run *run)
{
    const struct bough_ending *e = &run->ending;
    struct bough_result *r = &run->image.result;
    bough_streams_result(&run->streams, (int)e->status, e->timed_out, r);
    r->oom = e->oom;
    r->elapsed_time = (double)e->elapsed_ns / 1e9;
    r->user_time = (double)e->user_us / 1e6;
    r->system_time = (double)e->system_us / 1e6;
    r->max_rss = e->max_rss;
}

/* Of a run that was closed, or is not to be kept, nothing stays. */
static void drop(struct bough_run *run)
{
    if (run->ending.changed && run->copying > 0)
        run->drop_due = true;
    else if (run->ending.changed)
        bough_engine_drop_staged(run->engine, run->layer);
    run->ending.changed = false;
}

void bough_run_copied(struct bough_run *run)
{
    if (--run->copying > 0 || !run->drop_due)
        return;
    run->drop_due = false;
    bough_engine_drop_staged(run->engine, run->layer);
}

void bough_run_commit(struct bough_run *run)
{
    struct bough_image *image = &run->image;
    bough_uuid_make(image->uuid);
    memcpy(image->parent, run->parent, sizeof image->parent);
    image->tag = run->tag;
    image->command = run->command;
    image->cache_key = run->cache_key;
    run->tag = run->command = run->cache_key = NULL;
    strcpy(image->origin, image->result.present ? "run" : "commit");
    image->layer = run->ending.changed ? run->layer : run->parent_layer;
    image->size = run->ending.bytes + run->files_bytes;
    struct run_job *j = new_job(run);
    if (!j)
        return;
    step(run, BOUGH_RUN_COMMITTING);
    bough_job_start(run->engine, &j->job, commit, committed);
}

/* All output is in; an image is made of what the sandbox left. */
static void conclude(struct bough_run *run)
{
    struct bough_err trouble;
    if (run->engine->closed) {
        bough_err_set(&trouble, BOUGH_ERR_closed, "the engine was closed");
        fail(run, &trouble);
        return;
    }
    /* of a run that was closed no file is whole */
    if (bough_streams_settle(&run->streams, !run->closed, &trouble) < 0) {
        drop(run);
        fail(run, &trouble);
        return;
    }
    if (run->boots && !run->disposable && !run->closed) {
        step(run, BOUGH_RUN_STOPPED); /* its owner decides */
        return;
    }
    if (!run->boots)
        fill_result(run);
    if (run->disposable || run->closed) {
        drop(run);
        step(run, BOUGH_RUN_DONE);
        return;
    }
    bough_run_commit(run);
}

static void on_exited(struct bough_run *run)
{
    bough_streams_finish(&run->streams);
    conclude(run);
}

static bool on_message(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    struct bough_run *run = arg;
    bool more = false;
    if (!msg) {
        struct bough_err why = *err;
        if (why.kind == BOUGH_ERR_closed && run->engine->closed)
            bough_err_set(&why, BOUGH_ERR_closed, "the engine was closed");
        run->id = 0;
        fail(run, &why);
    } else if (msg->type == BOUGH_MSG_STARTED) {
        run->pid = bough_get_i64(&msg->body);
        step(run, BOUGH_RUN_RUNNING);
        return true;
    } else if (msg->type == BOUGH_MSG_EXITED) {
        struct bough_err bad;
        run->id = 0;
        if (bough_ending_get(&msg->body, &run->ending, &bad) < 0) {
            fail(run, &bad);
        } else {
            run->layer = run->ending.layer;
            on_exited(run);
        }
    } else {
        more = true;
    }
    if (!more)
        bough_run_unref(run);
    return more;
}

/* --- the start ------------------------------------------------------------------------------------ */

static void hand_over(struct bough_run *run, int64_t *stack, int64_t count)
{
    struct bough_engine *engine = run->engine;
    struct bough_err err;
    struct bough_plan plan = {
        .layer = run->layer,
        .stack = stack,
        .stack_count = count,
        .argv = run->argv,
        .env = run->env,
        .boots = run->boots,
        .cwd = run->cwd,
        .user = run->user,
        .hostname = run->hostname,
        .resolv = run->resolv,
        .limits = run->limits,
        .network = run->network,
        .timeout_ms = run->timeout_ms,
        .keep = !run->disposable,
        .announce = !run->eager,
    };
    struct bough_wbuf body = {0};
    int fds[3] = {-1, -1, -1}, sent[4], count_sent = 0, rc = 0;
    if (!run->boots)
        rc = bough_streams_open(&run->streams, engine->loop, &run->changed, fds, &err);
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0) {
            plan.streams |= 1 << i;
            sent[count_sent++] = fds[i];
        }
    if (run->channel >= 0)
        sent[count_sent++] = run->channel;
    bough_plan_put(&body, &plan);
    if (rc == 0) {
        run->refs++; /* until the keeper's last word */
        run->id = bough_client_ask(engine->client, BOUGH_MSG_RUN, &body, sent, count_sent,
                                   on_message, run, &err);
        if (run->id < 0) {
            run->id = 0;
            bough_run_unref(run);
            rc = -1;
        }
    }
    bough_wbuf_free(&body);
    bough_streams_close_ends(fds);
    bough_fd_close(&run->channel);
    if (rc < 0) {
        fail(run, &err);
        return;
    }
    bough_engine_kick(engine);
    step(run, BOUGH_RUN_STARTING);
}

static void prepare(struct bough_job *job)
{
    struct run_job *j = (struct run_job *)job;
    struct bough_store *store = job->engine->store;
    if (j->run->files_layer > 0) {
        j->parent_layer = j->run->files_layer;
        j->stack_count = bough_store_stack(store, j->parent_layer, &j->stack, &j->err);
    } else {
        j->stack_count =
            bough_store_find_stack(store, j->run->parent, &j->parent_layer, &j->stack, &j->err);
    }
    j->layer = j->stack_count < 0 ? -1 : bough_store_layer_ids(store, 1, &j->err);
    j->rc = j->layer < 0 ? -1 : 0;
}

static void prepared(struct bough_job *job)
{
    struct run_job *j = (struct run_job *)job;
    struct bough_run *run = j->run;
    struct bough_err err;
    if (j->rc < 0) {
        fail(run, &j->err);
    } else if (run->closed || job->engine->closed) {
        bough_err_set(&err, run->closed ? BOUGH_ERR_cancelled : BOUGH_ERR_closed,
                      run->closed ? "the run was closed before it started"
                                  : "the engine was closed");
        fail(run, &err);
    } else {
        run->layer = j->layer;
        run->parent_layer = j->parent_layer;
        hand_over(run, j->stack, j->stack_count);
    }
    free_job(j);
}

static void files_put(struct bough_put *put)
{
    struct bough_run *run = put->arg;
    run->put = NULL;
    if (put->rc < 0) {
        fail(run, &put->err);
    } else {
        run->files_layer = put->layer;
        run->files_bytes = put->bytes;
        struct run_job *j = new_job(run);
        if (j)
            bough_job_start(run->engine, &j->job, prepare, prepared);
    }
    bough_run_unref(run);
}

void bough_run_start(struct bough_run *run)
{
    if (run->staged && run->staged->stage.count > 0) {
        struct bough_err err;
        run->refs++;
        run->put = bough_put_start(run->engine, run->staged, run->parent, files_put, run);
        if (!run->put) {
            bough_err_sys(&err, ENOMEM, "run");
            fail(run, &err);
            bough_run_unref(run);
        }
        return;
    }
    int64_t *stack = NULL, count;
    if (bough_store_quick(run->engine->store, run->parent, &run->parent_layer, &stack, &count,
                          &run->layer)) {
        hand_over(run, stack, count);
        free(stack);
        return;
    }
    struct run_job *j = new_job(run);
    if (j)
        bough_job_start(run->engine, &j->job, prepare, prepared);
}

void bough_run_close(struct bough_run *run)
{
    if (run->closed || bough_run_is_over(run))
        return;
    run->closed = true;
    if (run->put)
        bough_put_cancel(run->put);
    if (run->state == BOUGH_RUN_STOPPED) {
        drop(run);
        step(run, BOUGH_RUN_DONE);
        return;
    }
    if (run->id > 0) {
        bough_client_tell(run->engine->client, BOUGH_MSG_KILL, run->id, NULL, NULL, 0, NULL);
        bough_engine_kick(run->engine);
        bough_streams_discard(&run->streams);
    }
}
