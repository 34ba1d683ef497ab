/* start.h - how a program starts in a sandbox: whom it runs as, what it finds in its environment, what limits it.
 *
 * The same for a run's command and for each process of a booted sandbox. */
#ifndef BOUGH_START_H
#define BOUGH_START_H

#include "../plan.h"
#include "child.h"
#include "user.h"

struct bough_start {
    char **argv, **env; /* as in a plan */
    const char *cwd;
    const struct bough_user *user;
    int fds[3];
    bool terminal;                     /* fds are one, which is to be the controlling one */
    int64_t files;                     /* RLIMIT_NOFILE, 0: what `limits` says */
    const struct bough_limits *limits; /* of the sandbox */
    bool one_of_many;                  /* the child is wanted again */
};

/* 0: it runs as child->pid. -1: it does not; a child that has failed is still to be reaped. */
int bough_start(struct bough_child *child, const struct bough_start *start, struct bough_err *err);

#endif
