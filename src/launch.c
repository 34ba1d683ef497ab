#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys.h"

#define STACK_SIZE (64 * 1024)

struct launch {
    const char *path;
    char *const *argv;
    int sock, host;
    char *stack2_top;
    int sys;
};

/* dup2 replaces, so this works even when the caller's descriptor table is full. */
BOUGH_FOREIGN_STACK static int place(int sock, int host)
{
    int a = 5, b = 6;
    while (a == sock || a == host)
        a++;
    while (b == sock || b == host || b == a)
        b++;
    return dup2(sock, a) < 0 || dup2(host, b) < 0 || dup2(a, 3) < 0 || dup2(b, 4) < 0 ? -1 : 0;
}

/* _exit(2) as a plain call: the address sanitizer takes a function that does not return for the end of the
 * stack it knows, and these run on another. */
BOUGH_FOREIGN_STACK static int leave(int status)
{
    return (int)syscall(SYS_exit_group, status);
}

BOUGH_FOREIGN_STACK static int become_program(void *arg)
{
    struct launch *l = arg;
    char *env[] = {NULL};
    if (place(l->sock, l->host) == 0)
        execve(l->path, l->argv, env);
    l->sys = errno;
    return leave(127);
}

BOUGH_FOREIGN_STACK static int go_between(void *arg)
{
    struct launch *l = arg;
    if (clone(become_program, l->stack2_top, CLONE_VM | CLONE_VFORK | SIGCHLD, l) < 0)
        l->sys = errno;
    return leave(0);
}

/* A child shares our memory until it has become the program (a fork of a large host would cost tens of
 * milliseconds). The process in between sends no signal when it ends (exit signal 0) and is only seen by
 * a wait that asks for clones; the program is then nobody's child but init's. */
static int start(struct launch *l, const char *what, struct bough_err *err)
{
    char *stacks = mmap(NULL, STACK_SIZE * 2, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stacks == MAP_FAILED)
        return bough_err_sys(err, errno, "starting the %s", what);
    l->stack2_top = stacks + STACK_SIZE * 2;
    sigset_t all, before;
    sigfillset(&all);
    /* Handlers of the host must not run in a child that shares its memory. */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t pid = clone(go_between, stacks + STACK_SIZE, CLONE_VM | CLONE_VFORK, l);
    int sys = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pid > 0)
        BOUGH_RETRY(waitpid(pid, NULL, __WCLONE));
    munmap(stacks, STACK_SIZE * 2);
    if (pid < 0)
        return bough_err_sys(err, sys, "starting the %s", what);
    if (l->sys)
        return bough_err_sys(err, l->sys, "%s %s", what, l->path);
    return 0;
}

int bough_launch(const char *what, const char *path, char *const *argv, struct bough_err *err)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return bough_err_sys(err, errno, "starting the %s", what);
    BOUGH_CLEANUP_FD int ours = ends[0];
    BOUGH_CLEANUP_FD int theirs = ends[1];
    BOUGH_CLEANUP_FD int host = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (host < 0)
        return bough_err_sys(err, errno, "pidfd_open (Linux 5.3 or later is needed)");
    struct launch l = {.path = path, .argv = argv, .sock = theirs, .host = host};
    if (start(&l, what, err) < 0)
        return -1;
    if (fcntl(ours, F_SETFL, O_NONBLOCK) < 0)
        return bough_err_sys(err, errno, "starting the %s", what);
    return bough_steal_fd(&ours);
}
