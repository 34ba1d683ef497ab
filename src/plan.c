#define _GNU_SOURCE
#include "plan.h"

#include <errno.h>
#include <stdlib.h>

#define STACK_MAX 500 /* OVL_MAX_STACK of the kernel */

void bough_stack_put(struct bough_wbuf *buf, const int64_t *stack, int64_t count)
{
    bough_put_i64(buf, count);
    for (int64_t i = 0; i < count; i++)
        bough_put_i64(buf, stack[i]);
}

int64_t bough_stack_get(struct bough_rbuf *buf, int64_t **stack)
{
    int64_t count = bough_get_i64(buf);
    if (buf->failed || count < 0 || count > STACK_MAX) {
        buf->failed = true;
        return -1;
    }
    *stack = calloc((size_t)count + 1, sizeof **stack);
    if (!*stack) {
        buf->failed = true;
        return -1;
    }
    for (int64_t i = 0; i < count; i++)
        (*stack)[i] = bough_get_i64(buf);
    return count;
}

void bough_plan_put(struct bough_wbuf *buf, const struct bough_plan *plan)
{
    bough_put_i64(buf, plan->layer);
    bough_put_i64(buf, plan->network);
    bough_put_i64(buf, plan->timeout_ms);
    bough_put_i64(buf, plan->keep);
    bough_put_i64(buf, plan->streams);
    bough_put_i64(buf, plan->announce);
    bough_put_i64(buf, plan->boots);
    bough_put_i64(buf, plan->limits.memory);
    bough_put_i64(buf, plan->limits.disk);
    bough_put_i64(buf, plan->limits.pids);
    bough_put_i64(buf, plan->limits.files);
    bough_put_f64(buf, plan->limits.cpu);
    bough_stack_put(buf, plan->stack, plan->stack_count);
    bough_put_str(buf, plan->cwd);
    bough_put_str(buf, plan->user);
    bough_put_str(buf, plan->hostname);
    bough_put_str(buf, plan->resolv);
    bough_put_strv(buf, plan->argv);
    bough_put_strv(buf, plan->env);
}

int bough_plan_get(struct bough_rbuf *buf, struct bough_plan *plan, struct bough_err *err)
{
    *plan = (struct bough_plan){0};
    plan->layer = bough_get_i64(buf);
    plan->network = (enum bough_network)bough_get_i64(buf);
    plan->timeout_ms = bough_get_i64(buf);
    plan->keep = bough_get_i64(buf) != 0;
    plan->streams = (int)bough_get_i64(buf) & 7;
    plan->announce = bough_get_i64(buf) != 0;
    plan->boots = bough_get_i64(buf) != 0;
    plan->limits.memory = bough_get_i64(buf);
    plan->limits.disk = bough_get_i64(buf);
    plan->limits.pids = bough_get_i64(buf);
    plan->limits.files = bough_get_i64(buf);
    plan->limits.cpu = bough_get_f64(buf);
    plan->stack_count = bough_stack_get(buf, &plan->stack);
    plan->cwd = bough_get_str(buf);
    plan->user = bough_get_str(buf);
    plan->hostname = bough_get_str(buf);
    plan->resolv = bough_get_str(buf);
    plan->argv = bough_get_strv(buf);
    plan->env = bough_get_strv(buf);
    if (buf->failed || !plan->argv || !plan->argv[0] != plan->boots || !plan->env || !plan->cwd ||
        !plan->user || !plan->hostname || plan->layer <= 0) {
        bough_plan_clear(plan);
        return bough_err_set(err, BOUGH_ERR_protocol, "plan: malformed");
    }
    return 0;
}

void bough_plan_clear(struct bough_plan *plan)
{
    free(plan->stack);
    free(plan->argv);
    free(plan->env);
    *plan = (struct bough_plan){0};
}

void bough_ending_put(struct bough_wbuf *buf, const struct bough_ending *ending)
{
    bough_put_i64(buf, ending->status);
    bough_put_i64(buf, ending->timed_out);
    bough_put_i64(buf, ending->oom);
    bough_put_i64(buf, ending->killed);
    bough_put_i64(buf, ending->changed);
    bough_put_i64(buf, ending->layer);
    bough_put_i64(buf, ending->bytes);
    bough_put_i64(buf, ending->files);
    bough_put_i64(buf, ending->elapsed_ns);
    bough_put_i64(buf, ending->user_us);
    bough_put_i64(buf, ending->system_us);
    bough_put_i64(buf, ending->max_rss);
}

int bough_ending_get(struct bough_rbuf *buf, struct bough_ending *ending, struct bough_err *err)
{
    *ending = (struct bough_ending){0};
    ending->status = bough_get_i64(buf);
    ending->timed_out = bough_get_i64(buf) != 0;
    ending->oom = bough_get_i64(buf) != 0;
    ending->killed = bough_get_i64(buf) != 0;
    ending->changed = bough_get_i64(buf) != 0;
    ending->layer = bough_get_i64(buf);
    ending->bytes = bough_get_i64(buf);
    ending->files = bough_get_i64(buf);
    ending->elapsed_ns = bough_get_i64(buf);
    ending->user_us = bough_get_i64(buf);
    ending->system_us = bough_get_i64(buf);
    ending->max_rss = bough_get_i64(buf);
    if (buf->failed)
        return bough_err_set(err, BOUGH_ERR_protocol, "ending: malformed");
    return 0;
}
