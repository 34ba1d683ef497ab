/* sandbox_priv.h - what the two sides of sandbox.h share: sandbox.c gives inits something to do, sandbox_hear.c hears
 * what they say and passes it on. */
#ifndef BOUGH_SANDBOX_PRIV_H
#define BOUGH_SANDBOX_PRIV_H

#include "sandbox.h"

struct bough_sandbox {
    struct bough_sandbox *next;
    pid_t pid, child; /* init, and the process that becomes the command */
    int sock;
    int64_t id; /* of the run, 0 for a blank */
    bool ready, host_network, answered, timed_out, killed, grouped, dead;
    bool watch_oom, started, booted;
    int64_t commit; /* the request for which all in it stand still, or are about to; 0 */
    bool frozen;    /* they do */
    int64_t started_ns, deadline_ns, kill_ns; /* 0: none */
    int64_t layer;                            /* in the making: to be removed when init cannot */
    char group[24];
    int64_t *stack, stack_count; /* of the run, owned; NULL: its overlay is not for keeping */
};

/* Gives runs that wait to blanks that are there. */
void bough_keep_serve(struct bough_keep *keep);
/* No blank can be made: the runs that wait hear why. */
void bough_keep_blank_failed(struct bough_keep *keep, const struct bough_err *err);
/* What is left of a layer that will never be finished. */
void bough_keep_remove(struct bough_keep *keep, int64_t layer);

/* One message of an init: 1 handled, 0 nothing (more) to come. */
int bough_sandbox_hear(struct bough_keep *keep, struct bough_sandbox *box);
/* Its init is dead and has not said why. */
void bough_sandbox_speak_for(struct bough_keep *keep, struct bough_sandbox *box);
/* It is over: who waits for it to stand still hears that. */
void bough_sandbox_lost(struct bough_keep *keep, struct bough_sandbox *box);

#endif
