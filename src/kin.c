#define _GNU_SOURCE
#include "kin.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys.h"

/* A line of /proc/PID/stat. A number alone is not a process: with the time of its start it is. */
struct kin {
    pid_t pid, parent, group, session;
    unsigned long long start;
    int threads;
    char state;
    bool ours, barred; /* barred: ours, but not ours to signal (sudo) */
};

/* All processes at one time, by pid. */
struct look {
    struct kin *all;
    size_t count, room;
};

/* Roots are children that were not waited for: their numbers are theirs. */
struct hunt {
    DIR *proc;
    const pid_t *roots;
    size_t root_count;
    bool stopping;      /* whoever is found is stopped at once */
    struct look before; /* what the look before this one has shown */
};

#define ROUNDS_MAX 100
#define WAITS_MAX 50 /* rounds that wait for somebody to stand still, of a millisecond or more */

static int kin_read(DIR *proc, pid_t pid, struct kin *kin)
{
    char name[32], text[1024];
    snprintf(name, sizeof name, "%d/stat", (int)pid);
    BOUGH_CLEANUP_FD int fd = openat(dirfd(proc), name, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : BOUGH_RETRY(read(fd, text, sizeof text - 1));
    if (size <= 0)
        return -1;
    text[size] = '\0';
    /* The name in parentheses is the program's to choose: what follows its last one is the kernel's. */
    const char *at = strrchr(text, ')');
    *kin = (struct kin){.pid = pid};
    return at && sscanf(at + 1,
                        " %c %d %d %d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %d "
                        "%*d %llu",
                        &kin->state, &kin->parent, &kin->group, &kin->session, &kin->threads,
                        &kin->start) == 6
               ? 0
               : -1;
}

/* The first thread may have ended before the others. */
static bool is_alive(const struct kin *kin)
{
    return (kin->state != 'Z' && kin->state != 'X' && kin->state != 'x') || kin->threads > 1;
}

static bool stands(const struct kin *kin)
{
    return kin->state == 'T' || kin->state == 't';
}

static bool threads_stand(const struct kin *kin, DIR *proc)
{
    char name[32];
    snprintf(name, sizeof name, "%d/task", (int)kin->pid);
    int fd = openat(dirfd(proc), name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *tasks = fd < 0 ? NULL : fdopendir(fd);
    bool stand = true;
    for (struct dirent *entry; tasks && stand && (entry = readdir(tasks));) {
        struct kin task;
        if (entry->d_name[0] != '.' &&
            kin_read(tasks, (pid_t)strtol(entry->d_name, NULL, 10), &task) == 0)
            stand = stands(&task) || task.state == 'Z' || task.state == 'X';
    }
    if (tasks)
        closedir(tasks);
    else
        bough_fd_close(&fd);
    return stand;
}

/* By a descriptor that is known to stand for the process that was seen. False: it may not be signalled. */
static bool kin_signal(const struct kin *kin, DIR *proc, int number)
{
    BOUGH_CLEANUP_FD int fd = (int)syscall(SYS_pidfd_open, kin->pid, 0);
    struct kin now;
    if ((fd < 0 && errno == ESRCH) || kin_read(proc, kin->pid, &now) < 0 || now.start != kin->start)
        return true;
    /* Without a descriptor when there are none left. */
    long rc = fd < 0 ? kill(kin->pid, number) : syscall(SYS_pidfd_send_signal, fd, number, NULL, 0);
    return rc == 0 || errno != EPERM;
}

static int by_pid(const void *a, const void *b)
{
    pid_t x = ((const struct kin *)a)->pid, y = ((const struct kin *)b)->pid;
    return (x > y) - (x < y);
}

static struct kin *look_find(const struct look *look, pid_t pid)
{
    struct kin key = {.pid = pid};
    return look->count > 0 ? bsearch(&key, look->all, look->count, sizeof key, by_pid) : NULL;
}

/* Whether `pid` is one of ours that can have led to `kin`: nobody is older than his parent, so a number that has
 * been given away again during the look does not make a stranger a relative. */
static bool leads_to(const struct look *look, pid_t pid, const struct kin *kin)
{
    const struct kin *leader = look_find(look, pid);
    return leader && leader != kin && leader->ours && leader->start <= kin->start;
}

/* Whether one is found to be ours that was not so far in this look; `fresh` is set when it was not in the last
 * either. */
static bool hunt_judge(struct hunt *hunt, struct look *look, struct kin *kin, bool *fresh)
{
    if (kin->ours || kin->pid <= 1 || kin->pid == getpid())
        return false;
    for (size_t i = 0; i < hunt->root_count && !kin->ours; i++)
        kin->ours = kin->pid == hunt->roots[i];
    kin->ours = kin->ours || leads_to(look, kin->parent, kin) ||
                leads_to(look, kin->session, kin) || leads_to(look, kin->group, kin);
    if (!kin->ours || !is_alive(kin))
        return kin->ours;
    const struct kin *known = look_find(&hunt->before, kin->pid);
    if (known && known->ours && known->start == kin->start) {
        kin->barred = known->barred;
        return true;
    }
    *fresh = true;
    kin->barred = hunt->stopping && !kin_signal(kin, hunt->proc, SIGSTOP);
    return true;
}

/* /proc lists by number, and children have the larger one most of the time: so most are judged on the way, and one
 * that goes on and on making children is caught up with. */
static int hunt_look(struct hunt *hunt, struct look *look, bool *fresh)
{
    rewinddir(hunt->proc);
    for (struct dirent *entry; (entry = readdir(hunt->proc));) {
        if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
            continue;
        if (look->count == look->room) {
            size_t room = look->room ? look->room * 2 : 256;
            struct kin *grown = realloc(look->all, room * sizeof *grown);
            if (!grown)
                return -1;
            look->all = grown;
            look->room = room;
        }
        struct kin *kin = &look->all[look->count];
        if (kin_read(hunt->proc, (pid_t)strtol(entry->d_name, NULL, 10), kin) == 0) {
            hunt_judge(hunt, look, kin, fresh);
            look->count++;
        }
    }
    if (look->count == 0)
        return -1;
    qsort(look->all, look->count, sizeof *look->all, by_pid);
    for (bool more = true; more;) {
        more = false;
        for (size_t i = 0; i < look->count; i++)
            more = hunt_judge(hunt, look, &look->all[i], fresh) || more;
    }
    return 0;
}

static void hunt_signal(const struct hunt *hunt, const struct look *look, int number)
{
    for (size_t i = 0; i < look->count; i++)
        if (look->all[i].ours && is_alive(&look->all[i]))
            kin_signal(&look->all[i], hunt->proc, number);
}

/* A stop that was sent is not one that has been made: a fork under way still comes to its end. */
static bool hunt_stands(const struct hunt *hunt, const struct look *look)
{
    for (size_t i = 0; i < look->count; i++) {
        const struct kin *kin = &look->all[i];
        if (kin->ours && is_alive(kin) && !kin->barred &&
            !(kin->threads > 1 ? threads_stand(kin, hunt->proc) : stands(kin)))
            return false;
    }
    return true;
}

/* Whoever dies leaves his children to others, and they are not found any more. So all are stopped first, and killed
 * when a look that began after the last of them stood still shows nobody new. */
static int hunt_kill(struct hunt *hunt)
{
    bool stood = false, killed = false, over = false;
    int waits = 0, rc = 0;
    hunt->stopping = true;
    for (int round = 0; rc == 0 && !over && round < ROUNDS_MAX; round++) {
        struct look now = {0};
        bool fresh = false;
        rc = hunt_look(hunt, &now, &fresh);
        if (rc == 0 && !fresh && !killed && stood) {
            hunt_signal(hunt, &now, SIGKILL);
            killed = true;
        } else if (rc == 0 && !fresh) {
            over = killed;
        } else {
            killed = false;
        }
        stood = hunt_stands(hunt, &now);
        if (rc == 0 && !fresh && !stood && !over) {
            poll(NULL, 0, 1);
            stood = ++waits > WAITS_MAX;
        }
        free(hunt->before.all);
        hunt->before = now;
    }
    if (rc == 0 && !over)
        hunt_signal(hunt, &hunt->before, SIGKILL);
    return rc;
}

void bough_kin_signal(const pid_t *roots, size_t count, int number)
{
    struct hunt hunt = {.proc = opendir("/proc"), .roots = roots, .root_count = count};
    bool fresh, killing = number == SIGKILL;
    int rc = -1;
    if (hunt.proc && killing)
        rc = hunt_kill(&hunt);
    else if (hunt.proc && (rc = hunt_look(&hunt, &hunt.before, &fresh)) == 0)
        hunt_signal(&hunt, &hunt.before, number);
    free(hunt.before.all);
    if (hunt.proc)
        closedir(hunt.proc);
    for (size_t i = 0; (rc < 0 || killing) && i < count; i++)
        kill(roots[i], number);
}
