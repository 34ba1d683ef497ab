/* child.h - from init to the command: the steps between clone and exec.
 *
 * The child shares init's memory until it has become the command (clone with CLONE_VM and
 * CLONE_VFORK), so nothing is copied and a failed step is simply left in `step`
 * and `sys`. After the clone: raw calls, no malloc, no stdio. */
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
    /* out */
    const char *step;   /* NULL: the command runs */
    const char *object;
    int sys;
};

/* Asks for a time slice of the usual policy, in nanoseconds; 0 is the system's own. Best effort. */
void bough_sched_slice(uint64_t slice_ns);

/* Returns the pid, or -1 with `step`, `object` and `sys` filled in. */
pid_t bough_child_spawn(struct bough_child *child);

/* Turns a failed step into the error that a caller should read. */
int bough_child_error(const struct bough_child *child, struct bough_err *err);

#endif
