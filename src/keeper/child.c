#define _GNU_SOURCE
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../sys.h"
#include "filter.h"

#define STACK_SIZE (64 * 1024)
/* How long to wait before looking whether somebody has stopped whom we wait for. */
#define NUDGE_NS (20 * 1000000)
/* How often a sleeper that was killed is made anew for one command. */
#define TRIES 3
#define SEARCH_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

BOUGH_FOREIGN_STACK static int failed(struct bough_child *child, const char *step,
                                      const char *object)
{
    child->sys = errno;
    child->object = object;
    child->step = step;
    return -1;
}

/* A table of descriptors of its own first; until here it was init's. Then all others are closed for good, not
 * merely on exec: the steps that follow look up paths of the caller's, which may name a descriptor
 * (CVE-2024-21626). */
BOUGH_FOREIGN_STACK static int take_stdio(struct bough_child *child)
{
    if (syscall(SYS_close_range, 3u, ~0u, CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC) < 0)
        return failed(child, "close_range", NULL);
    for (int i = 0; i < 3; i++)
        if (dup2(child->fds[i], i) < 0)
            return failed(child, "stdio", NULL);
    if (syscall(SYS_close_range, 3u, ~0u, 0u) < 0)
        return failed(child, "close_range", NULL);
    return 0;
}

BOUGH_FOREIGN_STACK static int set_rlimit(int which, int64_t value)
{
    struct rlimit limit = {.rlim_cur = (rlim_t)value, .rlim_max = (rlim_t)value};
    return setrlimit((__rlimit_resource_t)which, &limit);
}

BOUGH_FOREIGN_STACK static int take_limits(struct bough_child *child)
{
    struct rlimit core = {0, RLIM_INFINITY};
    setrlimit(RLIMIT_CORE, &core);
    if (child->files > 0 && set_rlimit(RLIMIT_NOFILE, child->files) < 0)
        return failed(child, "limits.files", NULL);
    if (child->memory_rlimit > 0 && set_rlimit(RLIMIT_AS, child->memory_rlimit) < 0)
        return failed(child, "limits.memory", NULL);
    if (child->pids_rlimit > 0 && set_rlimit(RLIMIT_NPROC, child->pids_rlimit) < 0)
        return failed(child, "limits.pids", NULL);
    if (child->cpu_affinity > 0) {
        cpu_set_t have, want;
        CPU_ZERO(&want);
        if (sched_getaffinity(0, sizeof have, &have) < 0)
            return failed(child, "limits.cpu", NULL);
        double left = child->cpu_affinity;
        for (int i = 0; i < CPU_SETSIZE && left > 0; i++)
            if (CPU_ISSET(i, &have)) {
                CPU_SET(i, &want);
                left -= 1;
            }
        if (sched_setaffinity(0, sizeof want, &want) < 0)
            return failed(child, "limits.cpu", NULL);
    }
    return 0;
}

/* Raw calls: the C library's would look for other threads to tell, in memory that is not ours. */
BOUGH_FOREIGN_STACK static int take_identity(struct bough_child *child)
{
    const struct bough_user *u = child->user;
    /* With one uid alone setgroups(2) is barred, and there is only one group to be in. */
    if (syscall(SYS_setgroups, u->group_count, u->groups) < 0 &&
        (child->site->root || child->site->range))
        return failed(child, "groups of user", u->name);
    if (syscall(SYS_setresgid, u->gid, u->gid, u->gid) < 0)
        return failed(child, "group of user", u->name);
    if (syscall(SYS_setresuid, u->uid, u->uid, u->uid) < 0)
        return failed(child, "user", u->name);
    if (bough_caps_drop_rest() < 0)
        return failed(child, "capabilities", NULL);
    return 0;
}

/* init has everything else at its default already. */
static void reset_signals(void)
{
    struct sigaction fallback = {.sa_handler = SIG_DFL};
    sigaction(SIGPIPE, &fallback, NULL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* execvp(3) without its allocations and without its shell for unmarked scripts. */
BOUGH_FOREIGN_STACK static int exec_search(struct bough_child *child)
{
    const char *name = child->argv[0];
    if (strchr(name, '/')) {
        execve(name, child->argv, child->env);
        return failed(child, "exec", name);
    }
    const char *search = SEARCH_PATH;
    for (char **e = child->env; *e; e++)
        if (strncmp(*e, "PATH=", 5) == 0)
            search = *e + 5;
    int worst = ENOENT;
    char path[4096];
    size_t length = strlen(name);
    for (const char *at = search; at; at = strchr(at, ':') ? strchr(at, ':') + 1 : NULL) {
        size_t n = strcspn(at, ":");
        if (n + length + 2 > sizeof path)
            continue;
        memcpy(path, at, n);
        if (n)
            path[n++] = '/';
        memcpy(path + n, name, length + 1);
        execve(path, child->argv, child->env);
        if (errno != ENOENT && errno != ENOTDIR)
            worst = errno;
        if (errno != ENOENT && errno != ENOTDIR && errno != EACCES)
            break;
    }
    errno = worst;
    return failed(child, "exec", name);
}

void bough_sched_slice(uint64_t slice_ns)
{
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attr = {.size = sizeof attr};
    if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) == 0 && attr.policy == SCHED_OTHER) {
        attr.runtime = slice_ns;
        syscall(SYS_sched_setattr, 0, &attr, 0);
    }
}

/* What the sleeper is doing. */
enum { GONE, MAKING, ASLEEP, BECOME, SPAWN };

BOUGH_FOREIGN_STACK static void futex_set(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

BOUGH_FOREIGN_STACK static uint32_t futex_wait(uint32_t *word, uint32_t value)
{
    uint32_t now;
    while ((now = __atomic_load_n(word, __ATOMIC_ACQUIRE)) == value)
        syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
    return now;
}

/* FUTEX_WAIT with a timeout that leaves errno alone, which belongs to the child while it runs in our memory. */
static void futex_doze(uint32_t *word, uint32_t value, const struct timespec *timeout)
{
#if defined(__x86_64__) && !defined(__ILP32__)
    register const struct timespec *r10 __asm__("r10") = timeout;
    long rc = SYS_futex;
    __asm__ volatile("syscall"
                     : "+a"(rc)
                     : "D"(word), "S"((long)FUTEX_WAIT), "d"((long)value), "r"(r10)
                     : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = SYS_futex;
    register long x0 __asm__("x0") = (long)word;
    register long x1 __asm__("x1") = FUTEX_WAIT;
    register long x2 __asm__("x2") = (long)value;
    register long x3 __asm__("x3") = (long)timeout;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
#else
    syscall(SYS_futex, word, FUTEX_WAIT, value, timeout, NULL, 0);
#endif
}

/* init's wait for its children, whom nobody is to hold up by stopping them. */
static void wait_for(struct bough_child *child, uint32_t *word, uint32_t value)
{
    struct timespec patience = {.tv_nsec = NUDGE_NS};
    int64_t nudge_ns = bough_now_ns() + NUDGE_NS;
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == value) {
        futex_doze(word, value, &patience);
        int64_t now = bough_now_ns();
        if (now < nudge_ns)
            continue;
        nudge_ns = now + NUDGE_NS;
        kill(child->sleeper, SIGCONT);
        if (child->pid > 0 && __atomic_load_n(&child->inside, __ATOMIC_ACQUIRE))
            kill(child->pid, SIGCONT);
    }
}

/* What needs no plan. */
static int get_ready(struct bough_child *child)
{
    reset_signals();
    setsid();
    umask(022);
    /* At the root, so that pivot_root(2) takes us along. */
    if (chdir("/") < 0)
        return failed(child, "chdir", "/");
    if (child->userns_fd >= 0) {
        if (setns(child->userns_fd, CLONE_NEWUSER) < 0)
            return failed(child, "user namespace", NULL);
        /* Entering it has filled the bounding set that init had emptied. */
        if (bough_caps_drop_bounding() < 0)
            return failed(child, "capabilities", NULL);
    }
    if (bough_filter_install(&child->site->filter) < 0)
        return failed(child, "seccomp", NULL);
    bough_sched_slice(0);
    return 0;
}

BOUGH_FOREIGN_STACK static int become_command(struct bough_child *child)
{
    if (take_stdio(child) < 0)
        return -1;
    if (child->terminal && ioctl(0, TIOCSCTTY, 0) < 0)
        return failed(child, "terminal", NULL);
    if (take_limits(child) < 0 || take_identity(child) < 0)
        return -1;
    if (chdir(child->cwd) < 0)
        return failed(child, "cwd", child->cwd);
    return exec_search(child);
}

BOUGH_FOREIGN_STACK static int spawned_main(void *arg)
{
    setsid();
    become_command(arg);
    _exit(127);
}

/* CLONE_VFORK: until the new one has left our memory nobody else is to run in it. */
BOUGH_FOREIGN_STACK static void spawn(struct bough_child *child)
{
    /* This limit counts when a process is made, so it has to be the maker's. */
    if (child->pids_rlimit > 0)
        set_rlimit(RLIMIT_NPROC, child->pids_rlimit);
    if (clone(spawned_main, child->stacks + 2 * STACK_SIZE,
              CLONE_VM | CLONE_FILES | CLONE_VFORK | CLONE_PARENT | CLONE_PARENT_SETTID |
                  CLONE_CHILD_CLEARTID | SIGCHLD,
              child, &child->pid, NULL, &child->inside) < 0)
        failed(child, "clone", NULL);
}

static int child_main(void *arg)
{
    struct bough_child *child = arg;
    if (get_ready(child) < 0)
        _exit(127);
    for (;;) {
        futex_set(&child->sleeps, ASLEEP);
        if (futex_wait(&child->sleeps, ASLEEP) == BECOME)
            break;
        spawn(child);
    }
    become_command(child);
    _exit(127);
}

int bough_child_prepare(struct bough_child *child)
{
    child->step = NULL;
    if (!child->stacks) {
        char *stacks = mmap(NULL, 2 * STACK_SIZE, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        if (stacks == MAP_FAILED)
            return failed(child, "stack", NULL);
        child->stacks = stacks;
    }
    child->sleeps = MAKING;
    child->pid = 0;
    child->sleeper = clone(child_main, child->stacks + STACK_SIZE,
                           CLONE_VM | CLONE_FILES | CLONE_CHILD_CLEARTID | SIGCHLD, child, NULL,
                           NULL, &child->sleeps);
    if (child->sleeper < 0) {
        child->sleeper = 0;
        child->sleeps = GONE;
        return failed(child, "clone", NULL);
    }
    wait_for(child, &child->sleeps, MAKING);
    return child->step ? -1 : 0;
}

/* False: it is gone. */
static bool wake(struct bough_child *child, uint32_t what)
{
    uint32_t asleep = ASLEEP;
    child->step = NULL;
    if (!__atomic_compare_exchange_n(&child->sleeps, &asleep, what, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE))
        return false;
    syscall(SYS_futex, &child->sleeps, FUTEX_WAKE, 1, NULL, NULL, 0);
    wait_for(child, &child->sleeps, what);
    return true;
}

static int killed(struct bough_child *child)
{
    errno = EAGAIN;
    return failed(child, "starting", "(somebody in the sandbox keeps killing all others)");
}

int bough_child_run(struct bough_child *child)
{
    child->pid = child->sleeper;
    child->inside = 0;
    if (!wake(child, BECOME))
        return killed(child);
    return child->step ? -1 : 0;
}

int bough_child_spawn(struct bough_child *child)
{
    for (int i = 0; i < TRIES; i++) {
        child->pid = 0;
        child->inside = 1;
        bool awake = wake(child, SPAWN);
        /* If the sleeper was killed meanwhile, what it has made may still be on its way. */
        if (awake && child->pid > 0)
            wait_for(child, &child->inside, 1);
        if (child->step)
            return -1;
        if (child->pid > 0)
            return 0;
        if (bough_child_prepare(child) < 0)
            return -1;
    }
    return killed(child);
}

int bough_child_error(const struct bough_child *child, struct bough_err *err)
{
    const char *what = child->object ? child->object : "";
    if (strcmp(child->step, "exec") == 0) {
        struct stat st;
        /* The file is there and yet not found: it is its interpreter that is missing. */
        bool present = strchr(what, '/') && stat(what, &st) == 0;
        if (child->sys == ENOENT && present)
            return bough_err_set(err, BOUGH_ERR_not_found,
                                 "program \"%s\": it is there, but the interpreter or loader it "
                                 "names is not in the image",
                                 what);
        if (child->sys == ENOENT)
            return bough_err_set(
                err, BOUGH_ERR_not_found, "program \"%s\": not found in the image%s", what,
                strchr(what, ' ') ? " (a whole command line goes into `shell`)" : "");
        if (child->sys == ENOEXEC)
            return bough_err_set(
                err, BOUGH_ERR_invalid,
                "program \"%s\": not a program for this machine (a script without #!?)", what);
        return bough_err_sys(err, child->sys, "program \"%s\"", what);
    }
    if (strcmp(child->step, "clone") == 0 && child->sys == EAGAIN)
        return bough_err_set(err, BOUGH_ERR_resource,
                             "starting: the sandbox has as many processes as it may "
                             "(limits.pids)");
    if (strcmp(child->step, "cwd") == 0)
        return bough_err_sys(err, child->sys, "cwd \"%s\"", what);
    if (strcmp(child->step, "user") == 0 || strcmp(child->step, "group of user") == 0) {
        if (child->sys == EINVAL)
            return bough_err_set(
                err, BOUGH_ERR_unsupported,
                "user \"%s\": its uid is outside of the %ld that this user may use here%s%s", what,
                child->site->uid_count, child->site->uid_why[0] ? ": " : "", child->site->uid_why);
    }
    return bough_err_sys(err, child->sys, "%s%s%s", child->step, *what ? " " : "", what);
}
