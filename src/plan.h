/* plan.h - a sandbox as data.
 *
 * The host makes a plan and checks it, the keeper passes it on, and init carries it
 * out. A decoded plan points into the message it came from; only the vectors are
 * its own (bough_plan_clear). */
#ifndef BOUGH_PLAN_H
#define BOUGH_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "wire.h"

enum bough_network { BOUGH_NETWORK_NONE, BOUGH_NETWORK_HOST };

struct bough_limits {
    int64_t memory; /* bytes; 0: no limit, for each of these */
    int64_t disk;   /* bytes that the run may add or change */
    int64_t pids;   /* processes and threads */
    int64_t files;  /* open descriptors per process */
    double cpu;     /* processors, 0.5 is half of one */
};

struct bough_plan {
    int64_t layer;  /* name of the layer in the making */
    int64_t *stack; /* layer directories, top first; owned by a decoded plan */
    int64_t stack_count;
    char **argv, **env;                /* NULL-terminated */
    const char *cwd, *user, *hostname; /* user: "uid[:gid]" or a name; "" is root */
    const char *resolv;                /* text for /etc/resolv.conf */
    struct bough_limits limits;
    enum bough_network network;
    int64_t timeout_ms; /* 0: none */
    bool keep;          /* make a layer of what changed */
    bool announce; /* say when the command has started, or the booted sandbox is ready for some */
    bool
        boots; /* no command of its own (argv is empty): a socket comes as the last descriptor, over
                         * which the host has processes started until it says FINISH */
    int streams; /* bits 0-2: stdin, stdout, stderr have a descriptor with the plan; the others are the
                         * sandbox's /dev/null */
};

void bough_plan_put(struct bough_wbuf *buf, const struct bough_plan *plan);
int bough_plan_get(struct bough_rbuf *buf, struct bough_plan *plan, struct bough_err *err);
void bough_plan_clear(struct bough_plan *plan);

/* How a sandbox ended: the body of BOUGH_MSG_EXITED. */
struct bough_ending {
    int64_t status; /* as waitpid gives it */
    bool timed_out, oom, killed;
    bool changed;  /* a layer has been made, under the name of `layer` */
    int64_t layer; /* the plan's own, or that of an earlier run whose overlay this one took over */
    int64_t bytes, files;                            /* of it */
    int64_t elapsed_ns, user_us, system_us, max_rss; /* max_rss in bytes */
};

void bough_ending_put(struct bough_wbuf *buf, const struct bough_ending *ending);
int bough_ending_get(struct bough_rbuf *buf, struct bough_ending *ending, struct bough_err *err);

/* A stack of layers on the wire, top first. */
void bough_stack_put(struct bough_wbuf *buf, const int64_t *stack, int64_t count);
int64_t bough_stack_get(struct bough_rbuf *buf,
                        int64_t **stack); /* count or -1; *stack is malloc'ed */

#endif
