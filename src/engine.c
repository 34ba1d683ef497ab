#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "stage.h"
#include "sys.h"

void bough_engine_ref(struct bough_engine *engine)
{
    engine->refs++;
}

void bough_hold_add(struct bough_engine *engine, struct bough_hold *hold, const char *uuid)
{
    snprintf(hold->uuid, sizeof hold->uuid, "%s", uuid);
    hold->next = engine->holds;
    hold->link = &engine->holds;
    if (hold->next)
        hold->next->link = &hold->next;
    engine->holds = hold;
}

void bough_hold_drop(struct bough_hold *hold)
{
    if (!hold->link)
        return;
    *hold->link = hold->next;
    if (hold->next)
        hold->next->link = hold->link;
    hold->link = NULL;
}

/* The Lua state is closing. What waits for the keeper would keep the engine for ever: it hears of the end now. */
static void hang_up(struct bough_loop_end *end)
{
    struct bough_engine *engine =
        (struct bough_engine *)((char *)end - offsetof(struct bough_engine, at_end));
    bough_engine_ref(engine);
    engine->closed = engine->gone = true;
    bough_poll_close(&engine->poll);
    bough_client_hang_up(engine->client);
    bough_engine_unref(engine);
}

void bough_engine_unref(struct bough_engine *engine)
{
    if (--engine->refs > 0)
        return;
    bough_loop_end_drop(&engine->at_end);
    bough_poll_close(&engine->poll);
    bough_client_free(engine->client);
    if (engine->store)
        bough_store_close(engine->store);
    bough_cond_destroy(&engine->changed);
    for (size_t i = 0; i < engine->fact_count; i++) {
        free(engine->facts[i].key);
        free(engine->facts[i].value);
    }
    free(engine->facts);
    bough_hashes_free(engine->hashes);
    free(engine);
}

/* --- jobs ----------------------------------------------------------------------------------------- */

static void job_work(uv_work_t *req)
{
    struct bough_job *job = (struct bough_job *)req;
    job->work(job);
}

static void say_bye(struct bough_engine *engine);

static void job_after(uv_work_t *req, int status)
{
    struct bough_job *job = (struct bough_job *)req;
    struct bough_engine *engine = job->engine;
    (void)status;
    engine->busy--;
    job->after(job);
    if (engine->closed) {
        if (engine->busy == 0)
            say_bye(engine);
        bough_cond_fire(&engine->changed);
    }
    bough_engine_unref(engine);
}

void bough_job_start(struct bough_engine *engine, struct bough_job *job,
                     void (*work)(struct bough_job *), void (*after)(struct bough_job *))
{
    job->engine = engine;
    job->work = work;
    job->after = after;
    bough_engine_ref(engine);
    engine->busy++;
    uv_queue_work(bough_loop_uv(engine->loop), &job->req, job_work, job_after);
}

struct release {
    struct bough_job job;
    int64_t layer;
};

static void release_work(struct bough_job *job)
{
    bough_store_layer_release(job->engine->store, ((struct release *)job)->layer);
}

static void release_after(struct bough_job *job)
{
    free(job);
}

void bough_engine_release_layer(struct bough_engine *engine, int64_t layer)
{
    struct release *r = engine->closed ? NULL : calloc(1, sizeof *r);
    if (!r)
        return; /* then it goes with its owner */
    r->layer = layer;
    bough_job_start(engine, &r->job, release_work, release_after);
}

/* --- the keeper ----------------------------------------------------------------------------------- */

static void on_socket(uv_poll_t *poll, int status, int events)
{
    struct bough_engine *engine = poll->data;
    (void)status;
    (void)events;
    bough_engine_ref(engine);
    if (!bough_client_pump(engine->client)) {
        bough_poll_close(&engine->poll);
        engine->gone = true;
        bough_cond_fire(&engine->changed);
    } else {
        bough_engine_kick(engine);
    }
    bough_engine_unref(engine);
}

void bough_engine_kick(struct bough_engine *engine)
{
    if (!engine->poll || uv_is_closing((uv_handle_t *)engine->poll))
        return;
    /* An engine that nobody waits for does not keep the loop alive: so a wait that nothing can end is found out. */
    if (bough_client_outstanding(engine->client) > 0 || engine->closed)
        uv_ref((uv_handle_t *)engine->poll);
    else
        uv_unref((uv_handle_t *)engine->poll);
    uv_poll_start(engine->poll,
                  UV_READABLE | (bough_client_wants_write(engine->client) ? UV_WRITABLE : 0),
                  on_socket);
}

static bool on_hello(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    struct bough_engine *engine = arg;
    if (!msg) {
        if (err->kind != BOUGH_ERR_closed) /* else it has given no reason */
            engine->failure = *err;
        engine->gone = true;
        bough_cond_fire(&engine->changed);
        return false;
    }
    int64_t version = bough_get_i64(&msg->body);
    engine->keeper_pid = (pid_t)bough_get_i64(&msg->body);
    char **facts = bough_get_strv(&msg->body);
    if (version != BOUGH_WIRE_VERSION || !facts) {
        bough_err_set(&engine->failure, BOUGH_ERR_protocol,
                      "bough-keeper: it is of another version than core.so; install both together");
        engine->gone = true;
    } else {
        size_t n = 0;
        while (facts[n])
            n++;
        engine->facts = calloc(n / 2 + 1, sizeof *engine->facts);
        for (size_t i = 0; engine->facts && i + 1 < n; i += 2) {
            struct bough_fact fact = {strdup(facts[i]), strdup(facts[i + 1])};
            engine->facts[engine->fact_count++] = fact;
        }
        engine->said_hello = true;
    }
    free(facts);
    bough_cond_fire(&engine->changed);
    return false;
}

struct bough_engine *bough_engine_open(struct bough_loop *loop,
                                       const struct bough_client_options *options,
                                       const struct bough_limits *limits, struct bough_err *err)
{
    struct bough_engine *engine = calloc(1, sizeof *engine);
    if (!engine) {
        bough_err_sys(err, ENOMEM, "engine");
        return NULL;
    }
    engine->refs = 1;
    engine->loop = loop;
    engine->limits = *limits;
    engine->hashes = bough_hashes_new(); /* without memory for it files are hashed each time */
    bough_cond_init(&engine->changed, loop);
    engine->store = bough_store_open(options->home, geteuid() == 0 ? "trusted" : "user", err);
    struct bough_client_options o = *options;
    if (engine->store) {
        o.home = bough_store_home(engine->store);
        o.owner = bough_store_owner(engine->store);
        engine->client = bough_client_start(&o, err);
    }
    if (!engine->client) {
        bough_engine_unref(engine);
        return NULL;
    }
    bough_client_expect_hello(engine->client, on_hello, engine);
    int rc = bough_poll_open(&engine->poll, loop, bough_client_fd(engine->client), engine);
    if (rc < 0) {
        bough_err_sys(err, -rc, "engine");
        bough_engine_unref(engine);
        return NULL;
    }
    engine->at_end.run = hang_up;
    bough_loop_at_end(loop, &engine->at_end);
    bough_engine_kick(engine);
    return engine;
}

static bool on_bye(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    (void)arg;
    (void)msg;
    (void)err;
    return false;
}

static void say_bye(struct bough_engine *engine)
{
    if (engine->said_bye)
        return;
    engine->said_bye = true;
    if (engine->gone ||
        bough_client_ask(engine->client, BOUGH_MSG_BYE, NULL, NULL, 0, on_bye, engine, NULL) < 0) {
        engine->gone = true;
        bough_cond_fire(&engine->changed);
        return;
    }
    bough_engine_kick(engine);
}

/* A keeper that is told to end removes what is in the making, so jobs that are about to give a layer its
 * name come first. What ends afterwards finds the engine closed and makes no image. */
void bough_engine_close(struct bough_engine *engine)
{
    if (engine->closed)
        return;
    engine->closed = true;
    bough_engine_kick(engine);
    if (engine->busy == 0)
        say_bye(engine);
}

/* --- housekeeping --------------------------------------------------------------------------------- */

struct removal {
    struct bough_engine *engine;
};

static bool on_removed(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    /* What could not be removed is found by the next sweep. */
    struct removal *r = arg;
    (void)msg;
    (void)err;
    bough_engine_unref(r->engine);
    free(r);
    return false;
}

void bough_engine_remove(struct bough_engine *engine, char **names)
{
    struct removal *r = names && names[0] ? calloc(1, sizeof *r) : NULL;
    if (r) {
        struct bough_wbuf body = {0};
        bough_put_strv(&body, names);
        r->engine = engine;
        bough_engine_ref(engine);
        if (bough_client_ask(engine->client, BOUGH_MSG_REMOVE, &body, NULL, 0, on_removed, r,
                             NULL) < 0) {
            bough_engine_unref(engine);
            free(r);
        }
        bough_wbuf_free(&body);
        bough_engine_kick(engine);
    }
    for (char **n = names; n && *n; n++)
        free(*n);
    free(names);
}

struct merge {
    struct bough_job job;
    int64_t layer;
    struct bough_merge plan;
    int64_t bytes;
    int due;
};

static void merge_plan(struct bough_job *job)
{
    struct merge *m = (struct merge *)job;
    m->due = bough_store_merge_plan(job->engine->store, m->layer, &m->plan, NULL);
}

static void merge_record(struct bough_job *job)
{
    struct merge *m = (struct merge *)job;
    m->due = bough_store_merge_done(job->engine->store, &m->plan, m->bytes, NULL);
    bough_store_checkpoint(job->engine->store, NULL);
}

static void merge_finish(struct merge *m, bool again)
{
    struct bough_engine *engine = m->job.engine;
    int64_t layer = m->layer;
    engine->merging = false;
    engine->merges += again;
    free(m);
    if (again)
        bough_engine_compact(engine, layer);
    struct bough_idle *idle = engine->merging ? NULL : engine->idle;
    if (idle)
        engine->idle = NULL;
    while (idle) {
        struct bough_idle *next = idle->next;
        idle->tell(idle);
        idle = next;
    }
}

void bough_engine_drop_staged(struct bough_engine *engine, int64_t id)
{
    char **names = calloc(2, sizeof *names);
    if (names &&
        asprintf(&names[0], "tmp/%s/%lld", bough_store_owner(engine->store), (long long)id) < 0)
        names[0] = NULL;
    bough_engine_remove(engine, names);
}

static void merge_recorded(struct bough_job *job)
{
    struct merge *m = (struct merge *)job;
    if (m->due != 0)
        bough_engine_drop_staged(job->engine, m->plan.id);
    merge_finish(m, m->due == 0);
}

static bool on_merged(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    struct merge *m = arg;
    struct bough_engine *engine = m->job.engine;
    (void)err;
    /* A merge that fails is only a stack left deeper than it might be. */
    if (!msg || engine->closed) {
        merge_finish(m, false);
    } else {
        m->bytes = bough_get_i64(&msg->body);
        bough_job_start(engine, &m->job, merge_record, merge_recorded);
    }
    bough_engine_unref(engine);
    return false;
}

static void merge_planned(struct bough_job *job)
{
    struct merge *m = (struct merge *)job;
    struct bough_engine *engine = job->engine;
    if (m->due != 1 || engine->closed) {
        merge_finish(m, false);
        return;
    }
    struct bough_wbuf body = {0};
    bough_put_i64(&body, m->plan.id);
    bough_stack_put(&body, m->plan.layers, m->plan.count);
    bough_engine_ref(engine);
    if (bough_client_ask(engine->client, BOUGH_MSG_MERGE, &body, NULL, 0, on_merged, m, NULL) < 0) {
        merge_finish(m, false);
        bough_engine_unref(engine);
    } else {
        bough_engine_kick(engine);
    }
    bough_wbuf_free(&body);
}

void bough_engine_when_idle(struct bough_engine *engine, struct bough_idle *idle)
{
    idle->next = engine->idle;
    engine->idle = idle;
}

void bough_engine_compact(struct bough_engine *engine, int64_t layer)
{
    if (engine->merging || engine->closed || layer <= 0)
        return;
    struct merge *m = calloc(1, sizeof *m);
    if (!m)
        return;
    m->layer = layer;
    engine->merging = true;
    bough_job_start(engine, &m->job, merge_plan, merge_planned);
}
