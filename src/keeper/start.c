#define _GNU_SOURCE
#include "start.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "../sys.h"

static ssize_t score(const char *process, int flags, char *text, ssize_t size)
{
    char path[48];
    snprintf(path, sizeof path, "/proc/%s/oom_score_adj", process);
    BOUGH_CLEANUP_FD int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0)
        return -1;
    return flags == O_RDONLY ? read(fd, text, (size_t)size) : write(fd, text, (size_t)size);
}

/* When the memory limit is reached the command and its children are to go, not init, which has to report. The kernel
 * takes a score for all who share a memory, and it may be a moment yet until the command has one of its own. */
static void go_first(pid_t command)
{
    char pid[16], own[16], now[16], first[] = "800";
    snprintf(pid, sizeof pid, "%d", (int)command);
    ssize_t size = score("self", O_RDONLY, own, sizeof own);
    for (int i = 0; i < 100 && size > 0; i++) {
        if (score(pid, O_WRONLY, first, 3) < 0 ||
            (score("self", O_RDONLY, now, sizeof now) == size &&
             memcmp(now, own, (size_t)size) == 0))
            return;
        score("self", O_WRONLY, own, size);
        sched_yield();
    }
}

/* HOME comes from the image's passwd(5) unless the caller says otherwise. A bare name is one that the caller does not
 * want. The vector is the caller's, its strings are not. */
static char **make_env(const struct bough_start *start, char *home, size_t home_size)
{
    size_t count = 0;
    bool has_home = false;
    while (start->env[count])
        count++;
    char **env = calloc(count + 2, sizeof *env);
    if (!env)
        return NULL;
    count = 0;
    for (char **e = start->env; *e; e++) {
        has_home = has_home || strncmp(*e, "HOME=", 5) == 0 || strcmp(*e, "HOME") == 0;
        if (strchr(*e, '='))
            env[count++] = *e;
    }
    if (!has_home) {
        snprintf(home, home_size, "HOME=%s", start->user->home);
        env[count] = home;
    }
    return env;
}

int bough_start(struct bough_child *child, const struct bough_start *start, struct bough_err *err)
{
    const struct bough_cgroups *groups = &child->site->groups;
    const struct bough_limits *limits = start->limits;
    char home[sizeof start->user->home + 8];
    char **env = make_env(start, home, sizeof home);
    if (!env)
        return bough_err_sys(err, ENOMEM, "environment");
    child->argv = start->argv;
    child->env = env;
    child->cwd = start->cwd;
    child->user = start->user;
    memcpy(child->fds, start->fds, sizeof child->fds);
    child->terminal = start->terminal;
    child->files = start->files > 0 ? start->files : limits->files;
    child->pids_rlimit = groups->dirs[BOUGH_PIDS] < 0 ? limits->pids : 0;
    if (child->pids_rlimit > 0 && start->one_of_many)
        child->pids_rlimit++; /* the sleeper is one, too */
    child->memory_rlimit = groups->dirs[BOUGH_MEMORY] < 0 ? limits->memory : 0;
    child->cpu_affinity = groups->dirs[BOUGH_CPU] < 0 ? limits->cpu : 0;
    int rc = start->one_of_many ? bough_child_spawn(child) : bough_child_run(child);
    free(env);
    if (rc < 0)
        return bough_child_error(child, err);
    if (child->memory_rlimit == 0 && limits->memory > 0)
        go_first(child->pid);
    return 0;
}
