#define _GNU_SOURCE
#include "instance.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "sys.h"

#define ENDED "the sandbox has ended"

/* The sandbox is over: what its processes had to say is on the socket already, or never comes. */
static void hang_up(struct bough_instance *instance)
{
    struct bough_run *run = instance->run;
    struct bough_err why;
    if (instance->crew->hung_up)
        return;
    instance->refs++;
    bough_crew_drain(instance->crew);
    /* Its init is still telling: the end of the socket comes (gone) when it has. */
    if (instance->crew->poll && instance->crew->live > 0 && run->state != BOUGH_RUN_FAILED &&
        !run->closed) {
        bough_instance_unref(instance);
        return;
    }
    if (run->closed)
        bough_err_set(&why, BOUGH_ERR_cancelled, "the sandbox was closed");
    else if (run->state == BOUGH_RUN_FAILED)
        why = run->err;
    else
        bough_err_set(&why, BOUGH_ERR_closed, ENDED);
    for (struct bough_process *p = instance->crew->all; p; p = p->next) {
        /* Of what ends with its sandbox it is known how. */
        if (!p->ended && run->closed && p->state == BOUGH_PROCESS_RUNNING) {
            p->end.status = SIGKILL;
            p->ended = true;
        }
        if (p->ended && run->state != BOUGH_RUN_FAILED)
            p->end.timed_out = p->end.timed_out || run->ending.timed_out;
    }
    bough_crew_hang_up(instance->crew, &why);
    bough_instance_unref(instance);
}

static void stepped(struct bough_run *run)
{
    struct bough_instance *instance = run->owner;
    if (run->state < BOUGH_RUN_STOPPED || run->state == BOUGH_RUN_COMMITTING)
        return;
    instance->finishing = true;
    hang_up(instance);
    if (run->state == BOUGH_RUN_STOPPED && instance->automatic) {
        if (instance->good > 0)
            bough_run_commit(run);
        else
            bough_run_close(run);
    }
}

/* The last one to end in time is what the image says of its making. */
static void remember(struct bough_instance *instance, struct bough_process *p)
{
    struct bough_run *run = instance->run;
    struct bough_result *r = &run->image.result;
    free(r->stdout_data);
    free(r->stderr_data);
    memset(r, 0, sizeof *r);
    bough_process_result(p, r, true);
    free(run->command);
    run->command = p->label ? strdup(p->label) : NULL;
}

static void left(struct bough_crew *crew, struct bough_process *p)
{
    struct bough_instance *instance = crew->owner;
    if (!p->failed && !p->given_up) {
        if (instance->automatic && (instance->good == 0 || !p->end.timed_out))
            remember(instance, p);
        instance->good++;
    }
    if (crew->live == 0)
        bough_cond_fire(&instance->quiet);
    if (!instance->automatic || crew->live > 0 || instance->finishing)
        return;
    if (instance->good > 0)
        bough_instance_finish(instance);
    else
        bough_instance_close(instance);
}

/* --- why was it killed? ---- */

struct inquiry {
    struct bough_instance *instance;
    struct bough_process *process;
};

static bool answered(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    struct inquiry *i = arg;
    (void)err;
    int64_t kills = msg && msg->type == BOUGH_MSG_DONE ? bough_get_i64(&msg->body) : 0;
    bool timed_out = msg && msg->type == BOUGH_MSG_DONE && bough_get_i64(&msg->body) != 0;
    /* Less than none: the sandbox is over, and hang_up says more. */
    if (kills >= 0) {
        i->process->oom = kills > i->instance->oom_kills;
        if (i->process->oom)
            i->instance->oom_kills = kills;
        i->process->end.timed_out = i->process->end.timed_out || timed_out;
        bough_process_conclude(i->process);
    }
    bough_process_unref(i->process);
    bough_instance_unref(i->instance);
    free(i);
    return false;
}

/* Only the keeper can look into the sandbox's control group. */
static bool ask_why(struct bough_crew *crew, struct bough_process *p)
{
    struct bough_instance *instance = crew->owner;
    struct bough_run *run = instance->run;
    if ((run->limits.memory <= 0 && run->timeout_ms <= 0) || run->id <= 0)
        return false;
    struct bough_wbuf body = {0};
    struct inquiry *i = calloc(1, sizeof *i);
    bough_put_i64(&body, run->id);
    if (i) {
        *i = (struct inquiry){.instance = instance, .process = p};
        if (bough_client_ask(run->engine->client, BOUGH_MSG_OOM, &body, NULL, 0, answered, i,
                             NULL) < 0) {
            free(i);
            i = NULL;
        }
    }
    bough_wbuf_free(&body);
    if (!i)
        return false;
    instance->refs++;
    p->refs++;
    bough_engine_kick(run->engine);
    return true;
}

static void gone(struct bough_crew *crew)
{
    struct bough_instance *instance = crew->owner;
    /* The keeper will say why, or has. */
    if (instance->run->state >= BOUGH_RUN_STOPPED)
        hang_up(instance);
}

static int open_channel(struct bough_instance *instance, struct bough_err *err)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return bough_err_sys(err, errno, "sandbox");
    for (int i = 0; i < 2; i++)
        if (ends[i] < 3) {
            int moved = fcntl(ends[i], F_DUPFD_CLOEXEC, 3);
            int sys = errno;
            close(ends[i]);
            ends[i] = moved;
            if (moved < 0) {
                close(ends[1 - i]);
                return bough_err_sys(err, sys, "sandbox");
            }
        }
    instance->run->channel = ends[1];
    instance->crew = bough_crew_new(instance->run->engine->loop, ends[0], ENDED, err);
    return instance->crew ? 0 : -1;
}

struct bough_instance *bough_instance_new(struct bough_engine *engine, struct bough_err *err)
{
    struct bough_instance *instance = calloc(1, sizeof *instance);
    if (instance)
        instance->run = bough_run_new(engine);
    if (!instance || !instance->run) {
        free(instance);
        bough_err_sys(err, ENOMEM, "sandbox");
        return NULL;
    }
    instance->refs = 1;
    bough_cond_init(&instance->quiet, engine->loop);
    if (open_channel(instance, err) < 0) {
        bough_instance_unref(instance);
        return NULL;
    }
    instance->run->boots = true;
    instance->run->stepped = stepped;
    instance->run->owner = instance;
    instance->crew->left = left;
    instance->crew->gone = gone;
    instance->crew->ask_why = ask_why;
    instance->crew->sessions = true;
    instance->crew->owner = instance;
    return instance;
}

void bough_instance_unref(struct bough_instance *instance)
{
    if (--instance->refs > 0)
        return;
    /* Runs and crews may live longer, with others. */
    if (instance->crew) {
        struct bough_err why;
        instance->crew->left = NULL;
        instance->crew->ask_why = NULL;
        bough_err_set(&why, BOUGH_ERR_cancelled, "the sandbox was closed");
        bough_crew_hang_up(instance->crew, &why);
        bough_crew_unref(instance->crew);
    }
    instance->run->stepped = NULL;
    bough_run_close(instance->run);
    bough_run_unref(instance->run);
    bough_cond_destroy(&instance->quiet);
    free(instance);
}

bool bough_instance_hosts(const struct bough_instance *instance)
{
    return !instance->stopping && !instance->finishing && !instance->run->closed &&
           instance->run->state < BOUGH_RUN_STOPPED;
}

static void tell(struct bough_instance *instance, enum bough_msg type,
                 const struct bough_wbuf *body)
{
    bough_client_tell(instance->crew->client, type, 0, body, NULL, 0, NULL);
    bough_crew_kick(instance->crew);
}

void bough_instance_terminate(struct bough_instance *instance)
{
    struct bough_wbuf body = {0};
    bough_put_i64(&body, SIGTERM);
    bough_put_i64(&body, BOUGH_SCOPE_TREE);
    tell(instance, BOUGH_MSG_SIGNAL, &body);
    bough_wbuf_free(&body);
}

void bough_instance_finish(struct bough_instance *instance)
{
    struct bough_wbuf body = {0};
    if (instance->finishing || instance->run->closed || instance->run->state >= BOUGH_RUN_STOPPED)
        return;
    instance->finishing = true;
    bough_put_i64(&body, true);
    tell(instance, BOUGH_MSG_FINISH, &body);
    bough_wbuf_free(&body);
}

void bough_instance_close(struct bough_instance *instance)
{
    instance->finishing = true;
    bough_run_close(instance->run);
}
