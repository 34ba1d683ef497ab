/* child.h - from init to the command: the steps between clone and exec.
 *
 * A child is made ahead of time, as part of a blank: in its user namespace, with its system-call filter
 * installed (which takes longer than all the rest), it sleeps until there is a command for it. Of a run it becomes
 * the command itself. In a booted sandbox it stays asleep and makes one child after the other, which have all
 * that from it for the price of a clone, and which are init's children, not its own (CLONE_PARENT).
 *
 * All of them share init's memory and descriptors until they exec, so nothing is copied and a failed step is
 * simply left in `step` and `sys`. Only one ever runs in that memory, the others sleep. Processes of the
 * sandbox may kill or stop a sleeper like any other: then another one is made, and stopped ones are sent on.
 * After the clone: raw calls, no malloc, no stdio. */
#ifndef BOUGH_CHILD_H
#define BOUGH_CHILD_H

#include "site.h"
#include "user.h"

struct bough_child {
    const struct bough_site *site;
    char **argv, **env;
    const char *cwd;
    const struct bough_user *user;
    int fds[3];
    bool terminal;       /* fds[0] is one, to be the controlling one */
    int userns_fd;       /* a user namespace of its own, -1: none */
    int64_t files;       /* RLIMIT_NOFILE, 0: as it is */
    int64_t pids_rlimit; /* stand-ins where there is no control group; 0: none */
    int64_t memory_rlimit;
    double cpu_affinity;
    /* how they wait for each other: futex(2) words, which the kernel clears when a child leaves our memory */
    uint32_t sleeps, inside;
    pid_t sleeper; /* 0: has been reaped */
    char *stacks;  /* of the sleeper and of what it makes; used again and again */
    /* out */
    pid_t pid;        /* of the command */
    const char *step; /* NULL: the command runs */
    const char *object;
    int sys;
};

/* Asks for a time slice of the usual policy, in nanoseconds; 0 is the system's own. Best effort (Linux 6.12). Those
 * whom somebody waits for do little each time they wake and get a short one, which lets them run at once on a busy
 * machine; whoever makes blanks ahead of need gets a long one and stands back. */
enum { BOUGH_SLICE_URGENT = 100000, BOUGH_SLICE_PATIENT = 20000000 };
void bough_sched_slice(uint64_t slice_ns);

/* Makes the sleeping child; needs `site` and `userns_fd`. The record must stay where it is. */
int bough_child_prepare(struct bough_child *child);
/* Sends it on its way with all the rest filled in, for good; it is gone then. 0: the command runs as `pid`. All three
 * return -1 with `step`, `object` and `sys` when they failed. */
int bough_child_run(struct bough_child *child);
/* The same with a child that it makes. A command that could not be started is init's to reap all the same. */
int bough_child_spawn(struct bough_child *child);

/* Turns a failed step into the error that a caller should read. */
int bough_child_error(const struct bough_child *child, struct bough_err *err);

#endif
