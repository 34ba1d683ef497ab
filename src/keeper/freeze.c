#define _GNU_SOURCE
#include "freeze.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../sys.h"

/* After so long without a result all are stopped at once, whoever may notice: the order is no help against processes
 * that keep making others. */
#define ORDERLY_NS (1000 * 1000000LL)
/* A process in the middle of a large write stops after it only. */
#define PATIENCE_NS (5000 * 1000000LL)
/* How long one step may go on. */
#define STEP_NS (500 * 1000LL)

struct seen {
    pid_t pid, parent;
    bool still;
    bool stopping; /* some of its threads have stopped */
    char state;    /* of a thread that is not still */
};

/* By pid, as /proc lists them. */
struct look {
    struct seen *all;
    int count, room;
};

struct bough_frozen {
    pid_t pid;
    bool ours; /* else somebody else had stopped it */
    int depth; /* below init, when they are to go on */
};

/* ---- one process ---- */

/* Everything behind the name of proc(5)'s stat, which may hold anything: state, ppid, and so on. */
static char *read_stat(int proc, const char *path, char *text, size_t room)
{
    BOUGH_CLEANUP_FD int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : BOUGH_RETRY(read(fd, text, room - 1));
    text[n > 0 ? n : 0] = '\0';
    char *end = strrchr(text, ')');
    return end && end[1] == ' ' ? end + 2 : NULL;
}

/* A parent in vfork(2) cannot be stopped before its child has become a program or ended, nor can it do
 * anything. */
static bool is_in_vfork(int proc, pid_t pid, long tid)
{
    char path[64], text[128];
    snprintf(path, sizeof path, "%d/task/%ld/syscall", (int)pid, tid);
    BOUGH_CLEANUP_FD int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : BOUGH_RETRY(read(fd, text, sizeof text - 1));
    text[n > 0 ? n : 0] = '\0';
    long number;
    unsigned long first;
    if (sscanf(text, "%ld %lx", &number, &first) != 2)
        return false;
#ifdef SYS_vfork
    if (number == SYS_vfork)
        return true;
#endif
    return number == SYS_clone && (first & CLONE_VFORK);
}

static bool is_still(int proc, pid_t pid, long tid, char state)
{
    return strchr("TtZXx", state) || (state == 'D' && is_in_vfork(proc, pid, tid));
}

/* Each thread stops for itself. */
static bool threads_still(int proc, pid_t pid, struct seen *seen)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "%d/task", (int)pid);
    int fd = openat(proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *tasks = fd < 0 ? NULL : fdopendir(fd);
    bool still = true;
    if (!tasks) {
        if (fd >= 0)
            close(fd);
        return errno == ENOENT; /* it has ended */
    }
    struct dirent *entry;
    while ((entry = readdir(tasks))) {
        long tid = strtol(entry->d_name, NULL, 10);
        if (tid <= 0)
            continue;
        snprintf(path, sizeof path, "%d/task/%ld/stat", (int)pid, tid);
        const char *at = read_stat(proc, path, text, sizeof text);
        if (!at)
            continue;
        seen->stopping = seen->stopping || *at == 'T';
        if (!is_still(proc, pid, tid, *at)) {
            seen->state = *at;
            still = false;
        }
    }
    closedir(tasks);
    return still;
}

static bool see(int proc, pid_t pid, struct seen *seen)
{
    char path[32], text[1024], state;
    int parent;
    long threads;
    snprintf(path, sizeof path, "%d/stat", (int)pid);
    const char *at = read_stat(proc, path, text, sizeof text);
    if (!at || sscanf(at, "%c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %ld",
                      &state, &parent, &threads) != 3)
        return false;
    *seen = (struct seen){.pid = pid, .parent = parent, .state = state};
    seen->still = threads > 1 ? threads_still(proc, pid, seen) : is_still(proc, pid, pid, state);
    return true;
}

/* Whether somebody has sent it a SIGSTOP that it has not obeyed yet. A signal is taken and obeyed in one go, so who has
 * none any more has stopped by now or never had one. */
static bool is_told_to_stop(int proc, pid_t pid)
{
    char path[32], text[4096];
    struct seen now;
    snprintf(path, sizeof path, "%d/status", (int)pid);
    BOUGH_CLEANUP_FD int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : BOUGH_RETRY(read(fd, text, sizeof text - 1));
    text[n > 0 ? n : 0] = '\0';
    static const char *const fields[] = {"\nSigPnd:", "\nShdPnd:"};
    for (int i = 0; i < 2; i++) {
        const char *at = strstr(text, fields[i]);
        if (at && strtoull(at + 8, NULL, 16) & 1ULL << (SIGSTOP - 1))
            return true;
    }
    return !see(proc, pid, &now) || now.still || now.stopping;
}

/* ---- all of them ---- */

static int look_take(struct look *look, pid_t spare)
{
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    if (!proc)
        return -1;
    look->count = 0;
    while ((entry = readdir(proc))) {
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (pid <= 1 || pid == spare)
            continue;
        if (look->count == look->room) {
            int room = look->room ? 2 * look->room : 64;
            struct seen *grown = realloc(look->all, (size_t)room * sizeof *grown);
            if (!grown) {
                closedir(proc);
                errno = ENOMEM;
                return -1;
            }
            look->all = grown;
            look->room = room;
        }
        if (see(dirfd(proc), pid, &look->all[look->count]))
            look->count++;
    }
    closedir(proc);
    return 0;
}

static int by_pid(const void *key, const void *element)
{
    pid_t x = *(const pid_t *)key, y = ((const struct seen *)element)->pid;
    return (x > y) - (x < y);
}

static const struct seen *look_find(const struct look *look, pid_t pid)
{
    if (look->count == 0)
        return NULL;
    return bsearch(&pid, look->all, (size_t)look->count, sizeof *look->all, by_pid);
}

static const struct seen *look_moving(const struct look *look)
{
    for (int i = 0; i < look->count; i++)
        if (!look->all[i].still)
            return &look->all[i];
    return NULL;
}

/* Where it is among those that are known, or has to go. */
static int known_place(const struct bough_freeze *freeze, pid_t pid)
{
    int low = 0, high = freeze->count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (freeze->known[middle].pid < pid)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool is_known(const struct bough_freeze *freeze, pid_t pid)
{
    int at = known_place(freeze, pid);
    return at < freeze->count && freeze->known[at].pid == pid;
}

/* One that was found stopped and moves later is ours from then on, but not the other way round. */
static int remember(struct bough_freeze *freeze, const struct seen *seen, bool ours)
{
    int at = known_place(freeze, seen->pid);
    if (is_known(freeze, seen->pid)) {
        if (ours && (!seen->still || seen->state == 'D'))
            freeze->known[at].ours = true;
        return 0;
    }
    if (freeze->count == freeze->room) {
        int room = freeze->room ? 2 * freeze->room : 64;
        struct bough_frozen *grown = realloc(freeze->known, (size_t)room * sizeof *grown);
        if (!grown)
            return -1;
        freeze->known = grown;
        freeze->room = room;
    }
    memmove(&freeze->known[at + 1], &freeze->known[at],
            (size_t)(freeze->count - at) * sizeof *freeze->known);
    freeze->known[at] = (struct bough_frozen){.pid = seen->pid, .ours = ours};
    freeze->count++;
    return 0;
}

/* Those whose parents stand still already. One in vfork(2) gets it as well, for when its child is killed. */
static int look_stop(const struct look *look, struct bough_freeze *freeze)
{
    BOUGH_CLEANUP_FD int proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; i < look->count; i++) {
        const struct seen *s = &look->all[i];
        if (s->still && s->state != 'D') {
            if (remember(freeze, s, freeze->all_at_once) < 0)
                return -1;
            continue;
        }
        const struct seen *parent = freeze->all_at_once ? NULL : look_find(look, s->parent);
        if (parent && !parent->still)
            continue;
        /* It may be about to stop for somebody else, and is not ours to send on then. */
        if (!s->still && !freeze->all_at_once && !is_known(freeze, s->pid) &&
            (s->stopping || is_told_to_stop(proc, s->pid)))
            continue;
        if (remember(freeze, s, true) < 0)
            return -1;
        kill(s->pid, SIGSTOP);
    }
    if (freeze->all_at_once)
        kill(-1, SIGSTOP);
    return 0;
}

void bough_freeze_begin(struct bough_freeze *freeze, int64_t id)
{
    *freeze =
        (struct bough_freeze){.state = BOUGH_FREEZE_STOPPING, .id = id, .began_ns = bough_now_ns()};
}

int bough_freeze_step(struct bough_freeze *freeze, pid_t spare, struct bough_err *err)
{
    struct look look = {0};
    int64_t now = bough_now_ns(), step_ns = now;
    /* Twice in a row: a look takes its time, and who was seen last may have sent on who was seen first. */
    int calm = 0, sys = 0;
    pid_t busy = 0;
    while (!sys && calm < 2 && (calm > 0 || now - step_ns < STEP_NS)) {
        if (look_take(&look, spare) < 0)
            sys = errno;
        const struct seen *moving = look_moving(&look);
        busy = moving ? moving->pid : 0;
        calm = moving ? 0 : calm + 1;
        if (!sys && look_stop(&look, freeze) < 0)
            sys = ENOMEM;
        if (moving)
            sched_yield();
        now = bough_now_ns();
        if (now - freeze->began_ns > ORDERLY_NS && moving)
            freeze->all_at_once = true;
    }
    free(look.all);
    if (!sys && calm == 2) {
        freeze->state = BOUGH_FREEZE_STILL;
        return 1;
    }
    if (!sys && now - freeze->began_ns < PATIENCE_NS)
        return 0;
    bough_freeze_end(freeze, spare);
    if (sys)
        return bough_err_sys(err, sys, "commit: stopping the sandbox's processes");
    return bough_err_set(err, BOUGH_ERR_busy,
                         "commit: process %d of the sandbox does not stand still (it waits for a "
                         "disk?); try again",
                         (int)busy);
}

/* ---- and on ---- */

static int depth_of(const struct look *look, pid_t pid)
{
    int depth = 0;
    const struct seen *seen = look_find(look, pid);
    while (seen && depth < look->count) {
        seen = look_find(look, seen->parent);
        depth++;
    }
    return depth;
}

static int deepest_first(const void *a, const void *b)
{
    const struct bough_frozen *x = a, *y = b;
    return (x->depth < y->depth) - (x->depth > y->depth);
}

void bough_freeze_end(struct bough_freeze *freeze, pid_t spare)
{
    struct look look = {0};
    if (look_take(&look, spare) == 0) /* else in any order rather than not at all */
        for (int i = 0; i < freeze->count; i++)
            freeze->known[i].depth = depth_of(&look, freeze->known[i].pid);
    if (freeze->count > 0)
        qsort(freeze->known, (size_t)freeze->count, sizeof *freeze->known, deepest_first);
    for (int i = 0; i < freeze->count; i++)
        if (freeze->known[i].ours)
            kill(freeze->known[i].pid, SIGCONT);
    if (spare > 0 && freeze->all_at_once)
        kill(spare, SIGCONT);
    free(look.all);
    free(freeze->known);
    *freeze = (struct bough_freeze){0};
}
