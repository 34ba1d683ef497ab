/* cgroup.h - limits of a sandbox by control groups: v2, v1, or none.
 *
 * The keeper makes one directory, `bough-<pid>`, where its own rights allow, and one
 * below it per sandbox. The directory is flock'ed while its keeper lives; an unlocked one is
 * left over and swept by the next. What cannot be had is told by `why`. */
#ifndef BOUGH_CGROUP_H
#define BOUGH_CGROUP_H

#include <stdbool.h>
#include <sys/types.h>

#include "../plan.h"

enum bough_controller { BOUGH_MEMORY, BOUGH_PIDS, BOUGH_CPU, BOUGH_CONTROLLERS };

struct bough_cgroups {
    int version;                 /* 2, 1 or 0 */
    int dirs[BOUGH_CONTROLLERS]; /* our directory for each controller, -1: not to be had */
    int parents[BOUGH_CONTROLLERS];
    char name[32];
    char why[160]; /* what is missing and why, "" when all is there */
};

/* Never fails: what is missing has dirs -1. Call before the mount namespace hides /sys. */
void bough_cgroups_open(struct bough_cgroups *groups);
void bough_cgroups_close(struct bough_cgroups *groups); /* removes our directories */

/* Puts `pids` into groups of their own with these limits (0: none), as far as there are controllers. */
int bough_cgroup_place(struct bough_cgroups *groups, const char *name, const pid_t *pids, int count,
                       const struct bough_limits *limits, struct bough_err *err);
long bough_cgroup_oom(const struct bough_cgroups *groups,
                      const char *name); /* how many processes the limit has killed */
/* Removes the groups; false while the kernel still holds them (try again later). */
bool bough_cgroup_remove(const struct bough_cgroups *groups, const char *name);

#endif
