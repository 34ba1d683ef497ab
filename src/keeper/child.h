/* child.h - from init to the command: the steps between clone and exec.
 *
 * The child is made ahead of time, as part of a blank: in its user namespace, with its system-call filter
 * installed (which takes longer than all the rest), it sleeps until there is a command for it. It shares
 * init's memory and descriptors until then, so nothing is copied and a failed step is simply left in
 * `step` and `sys`. One of the two always sleeps, so they never run in that memory at once.
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
    int userns_fd;       /* a user namespace of its own, -1: none */
    int64_t files;       /* RLIMIT_NOFILE, 0: as it is */
    int64_t pids_rlimit; /* stand-ins where there is no control group; 0: none */
    int64_t memory_rlimit;
    double cpu_affinity;
    /* how the two wait for each other: futex(2) words */
    uint32_t prepared, go;
    pid_t tid; /* the kernel clears it when the child leaves our memory */
    pid_t pid;
    /* out */
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
/* Sends it on its way with all the rest filled in. Both return -1 with `step`, `object` and `sys` when it
 * failed; 0 means that the command runs as `pid`. */
int bough_child_run(struct bough_child *child);

/* Turns a failed step into the error that a caller should read. */
int bough_child_error(const struct bough_child *child, struct bough_err *err);

#endif
