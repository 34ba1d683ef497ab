/* bough-keeper - the helper that owns the mount namespace (and an ordinary user's user
 * namespace) of one engine, and with it every sandbox.
 *
 * Started by the host with descriptor 3, a SOCK_SEQPACKET to it, and 4, a pidfd of it. Single-threaded,
 * event driven. Ends, with everything below it, when the host says so, closes the socket or dies. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "../sys.h"
#include "child.h"
#include "filter.h"
#include "nursery.h"
#include "sandbox.h"
#include "tree.h"
#include "view.h"
#include "work.h"
#include "workers.h"

#define HOST_FD 3
#define HOST_PIDFD 4

struct keeper {
    struct bough_site site;
    struct bough_keep keep;
    struct bough_views views;
    struct bough_workers workers;
    int signals;
    pid_t nursery_pid;
    bool bye;
    int64_t bye_id;
};

static _Noreturn void refuse(const struct bough_err *err)
{
    bough_keep_fail(HOST_FD, 0, err);
    _exit(1);
}

/* Runs on from a sealed copy in memory, so that what a sandbox might reach as /proc/PID/exe is nobody's
 * file (CVE-2019-5736). */
static void seal_self(char **argv)
{
    BOUGH_CLEANUP_FD int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    BOUGH_CLEANUP_FD int copy = memfd_create("bough-keeper", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct stat st;
    if (self < 0 || copy < 0 || fstat(self, &st) < 0)
        return;
    off_t at = 0;
    while (at < st.st_size)
        if (BOUGH_RETRY(sendfile(copy, self, &at, (size_t)(st.st_size - at))) <= 0)
            return;
    if (fchmod(copy, 0500) < 0 ||
        fcntl(copy, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
        return;
    char *env[] = {"BOUGH_SEALED=1",
                   "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    syscall(SYS_execveat, copy, "", argv, env, AT_EMPTY_PATH);
}

static void calm_down(void)
{
    /* As a plain call: the C library keeps two numbers to itself, which may come ignored like any other. */
    uint64_t fallback[8] = {0}; /* SIG_DFL, no flags, an empty mask */
    for (int sig = 1; sig < 65; sig++)
        if (sig != SIGKILL && sig != SIGSTOP)
            syscall(SYS_rt_sigaction, sig, fallback, NULL, 8);
    signal(SIGPIPE, SIG_IGN);
    setsid(); /* a Ctrl-C in the host's terminal is for the host */
    umask(022);
    int null = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++)
        dup2(null, i);
    syscall(SYS_close_range, 5u, ~0u, 0u);
    fcntl(HOST_FD, F_SETFD, FD_CLOEXEC);
    fcntl(HOST_PIDFD, F_SETFD, FD_CLOEXEC);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

static void parse(struct keeper *k, int argc, char **argv)
{
    struct bough_err err;
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *value = argv[i + 1];
        if (strcmp(argv[i], "--home") == 0)
            k->site.home = strdup(value);
        else if (strcmp(argv[i], "--owner") == 0)
            k->site.owner = strdup(value);
        else if (strcmp(argv[i], "--unpacker") == 0)
            k->site.unpacker = strdup(value);
        else if (strcmp(argv[i], "--looker") == 0)
            k->site.looker = strdup(value);
        else if (strcmp(argv[i], "--spare") == 0)
            k->keep.spare = atoi(value);
        else if (strcmp(argv[i], "--running") == 0)
            k->keep.running_max = atoi(value);
    }
    if (!k->site.home || !k->site.owner || !k->site.unpacker || !k->site.looker) {
        bough_err_set(&err, BOUGH_ERR_invalid,
                      "bough-keeper: started by hand? The engine starts it");
        refuse(&err);
    }
}

static void say_hello(struct keeper *k)
{
    const struct bough_site *s = &k->site;
    const struct bough_cgroups *g = &s->groups;
    char cgroup[32], uids[24];
    snprintf(cgroup, sizeof cgroup, g->version ? "cgroup v%d" : "none", g->version);
    snprintf(uids, sizeof uids, "%ld", s->uid_count);
    const char *facts[] = {
        "mode",
        s->root ? "root" : "user",
        "uids",
        s->root ? "all" : uids,
        "uids_why",
        s->uid_why,
        "cgroup",
        cgroup,
        "cgroup_why",
        g->why,
        "limit_memory",
        g->dirs[BOUGH_MEMORY] >= 0 ? cgroup : "rlimit (address space of each process)",
        "limit_pids",
        g->dirs[BOUGH_PIDS] >= 0 ? cgroup
        : s->root                ? "none"
                                 : "rlimit (in a user namespace of its own)",
        "limit_cpu",
        g->dirs[BOUGH_CPU] >= 0 ? cgroup : "affinity (whole processors)",
        "limit_files",
        "rlimit",
        "limit_disk",
        s->disk_limit ? "tmpfs" : "none",
        "overlay",
        s->lowerdir_plus ? "lowerdir+" : "mount(2)",
        "seccomp",
        "on",
        "helper",
        s->sealed ? "sealed memfd" : "file",
        NULL,
    };
    struct bough_wbuf body = {0};
    BOUGH_CLEANUP_FD int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    bough_put_i64(&body, BOUGH_WIRE_VERSION);
    bough_put_i64(&body, getpid());
    bough_put_strv(&body, (char *const *)(uintptr_t)facts);
    bough_send(HOST_FD, BOUGH_MSG_HELLO, 0, &body, &self, self >= 0, NULL);
    bough_wbuf_free(&body);
}

/* Whether a tmpfs can carry an upper layer here: in a user namespace that takes user.* xattrs on tmpfs (Linux 6.6). */
static bool probe_disk_limit(const struct bough_site *site)
{
    if (site->root)
        return true;
    pid_t pid = fork();
    if (pid == 0) {
        /* In a mount namespace of its own: nothing to undo. */
        char path[4096];
        snprintf(path, sizeof path, "%s/tmp/%s", site->home, site->owner);
        if (unshare(CLONE_NEWNS) < 0 || mount("probe", path, "tmpfs", 0, "size=64k") < 0)
            _exit(1);
        _exit(setxattr(path, "user.overlay.opaque", "y", 1, 0) < 0);
    }
    int status = 1;
    if (pid > 0)
        BOUGH_RETRY(waitpid(pid, &status, 0));
    return status == 0;
}

static void watch(struct keeper *k, int fd, void *tag)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = tag};
    epoll_ctl(k->keep.epoll, EPOLL_CTL_ADD, fd, &ev);
}

static void set_up(struct keeper *k, char *args, size_t args_size)
{
    struct bough_err err;
    struct bough_site *s = &k->site;
    s->args = args;
    s->args_size = args_size;
    s->root = geteuid() == 0;
    s->sealed = getenv("BOUGH_SEALED") != NULL;
    bough_cgroups_open(&s->groups);
    if (bough_filter_compile(&s->filter, &err) < 0 || bough_site_enter(s, &err) < 0 ||
        bough_site_probe(s, &err) < 0) {
        bough_cgroups_close(&s->groups);
        refuse(&err);
    }
    s->disk_limit = probe_disk_limit(s);
    bough_views_init(&k->views, s);

    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    k->signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    k->keep.epoll = epoll_create1(EPOLL_CLOEXEC);
    k->keep.site = s;
    k->keep.host = HOST_FD;
    bough_keep_init(&k->keep);
    bough_workers_init(&k->workers, &k->keep, &k->views);
    k->nursery_pid = bough_nursery_start(s, &k->keep.nursery, &err);
    if (k->nursery_pid < 0 || k->signals < 0 || k->keep.epoll < 0)
        refuse(&err);
    /* Any address of ours will do as a tag; sandboxes use their own. */
    watch(k, HOST_FD, &k->site);
    watch(k, HOST_PIDFD, &k->views);
    watch(k, k->signals, &k->signals);
    watch(k, k->keep.nursery, &k->keep.nursery);
}

static void open_file(struct keeper *k, struct bough_message *msg)
{
    struct bough_err err;
    int64_t *stack = NULL;
    int64_t count = bough_stack_get(&msg->body, &stack);
    const char *path = bough_get_str(&msg->body);
    int view = count < 0 || !path ? bough_err_set(&err, BOUGH_ERR_protocol, "open: malformed")
                                  : bough_views_mount(&k->views, stack, count, &err);
    BOUGH_CLEANUP_FD int fd = view < 0 ? -1 : bough_view_open(view, path, false, &err);
    free(stack);
    if (fd < 0)
        bough_keep_fail(HOST_FD, msg->id, &err);
    else
        bough_send(HOST_FD, BOUGH_MSG_DONE, msg->id, NULL, &fd, 1, NULL);
}

/* False when the host is gone or has said goodbye. */
static bool serve_host(struct keeper *k)
{
    struct bough_message msg;
    struct bough_err err;
    int rc = bough_recv(HOST_FD, &msg, &err);
    if (rc < 0 && err.sys == EMFILE) { /* too many at once: this one is refused, the others go on */
        bough_keep_fail(HOST_FD, msg.id, &err);
        return true;
    }
    if (rc <= 0)
        return false;
    switch (msg.type) {
    case BOUGH_MSG_RUN:
        bough_keep_run(&k->keep, &msg); /* takes it over */
        return true;
    case BOUGH_MSG_KILL:
        bough_keep_kill(&k->keep, msg.id);
        bough_workers_kill(&k->workers, msg.id);
        break;
    case BOUGH_MSG_OPEN:
        open_file(k, &msg);
        break;
    case BOUGH_MSG_OOM:
        bough_keep_oom(&k->keep, &msg);
        break;
    case BOUGH_MSG_BYE:
        k->bye = true;
        k->bye_id = msg.id;
        bough_msg_clear(&msg);
        return false;
    default:
        if (bough_work_is(msg.type)) {
            bough_workers_start(&k->workers, &msg);
        } else {
            bough_err_set(&err, BOUGH_ERR_protocol, "keeper: request %d is unknown", (int)msg.type);
            bough_keep_fail(HOST_FD, msg.id, &err);
        }
    }
    bough_msg_clear(&msg);
    return true;
}

static void reap(struct keeper *k)
{
    struct signalfd_siginfo info;
    while (read(k->signals, &info, sizeof info) == (ssize_t)sizeof info)
        continue;
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (!bough_keep_reaped(&k->keep, pid))
            bough_workers_reaped(&k->workers, pid, status);
}

static void loop(struct keeper *k)
{
    struct epoll_event events[64];
    for (;;) {
        int n = epoll_wait(k->keep.epoll, events, 64, bough_keep_timeout(&k->keep));
        if (n < 0 && errno != EINTR)
            return;
        /* Reaping frees sandboxes, so it comes after their messages of this round. */
        bool reaping = false;
        for (int i = 0; i < n; i++) {
            void *tag = events[i].data.ptr;
            if (tag == &k->signals)
                reaping = true;
            else if (tag == &k->views)
                return; /* the host has died */
            else if (tag == &k->keep.nursery) {
                if (!bough_keep_nursery(&k->keep))
                    return; /* without blanks there is nothing to keep */
            } else if (tag == &k->site) {
                if (!serve_host(k))
                    return;
            } else {
                bough_keep_init_ready(&k->keep, tag);
            }
        }
        if (reaping)
            reap(k);
        bough_keep_clock(&k->keep);
    }
}

static void end(struct keeper *k)
{
    bough_keep_stop(&k->keep);
    kill(k->nursery_pid, SIGKILL);
    bough_workers_stop(&k->workers);
    /* A blank may have been cloned that we never heard of: it ends when it finds its socket closed. */
    bough_fd_close(&k->keep.nursery);
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        continue;
    bough_views_drop(&k->views);
    bough_pool_drop(&k->keep.pool);
    bough_keep_groups_remove(&k->keep);
    bough_cgroups_close(&k->site.groups);
    char name[300];
    snprintf(name, sizeof name, "tmp/%s", k->site.owner);
    if (fchdir(k->site.home_fd) == 0)
        bough_tree_remove(k->site.home_fd, name, NULL);
    if (k->bye)
        bough_send(HOST_FD, BOUGH_MSG_DONE, k->bye_id, NULL, NULL, 0, NULL);
}

int main(int argc, char **argv)
{
    static struct keeper k;
    k.keep.spare = 4;
    k.keep.running_max = 256;
    if (!getenv("BOUGH_SEALED")) {
        calm_down();
        /* The C library may have opened the descriptor close-on-exec above; the copy needs both. */
        fcntl(HOST_FD, F_SETFD, 0);
        fcntl(HOST_PIDFD, F_SETFD, 0);
        seal_self(argv);
    }
    calm_down();
    prctl(PR_SET_NAME, "bough-keeper");
    prctl(PR_SET_CHILD_SUBREAPER,
          1); /* what a worker leaves behind when it is killed is ours to reap */
    bough_sched_slice(BOUGH_SLICE_URGENT);
    parse(&k, argc, argv);
    char *last = argv[argc - 1];
    set_up(&k, argv[0], (size_t)(last + strlen(last) - argv[0]));
    say_hello(&k);
    bough_keep_order(&k.keep);
    loop(&k);
    end(&k);
    return 0;
}
