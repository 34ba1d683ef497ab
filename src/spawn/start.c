#define _GNU_SOURCE
#include "start.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../sys.h"

/* For a command without a PATH of its own. */
#define SEARCH_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const int bough_start_ignored[] = {SIGHUP,  SIGINT,  SIGQUIT, SIGTERM, SIGPIPE,
                                   SIGUSR1, SIGUSR2, SIGTSTP, SIGTTIN, SIGTTOU};
const int bough_start_ignored_count = sizeof bough_start_ignored / sizeof *bough_start_ignored;

struct attempt {
    const struct bough_command *command;
    char **env;
    int fds[3];
    pid_t parent;
    /* out */
    const char *step; /* NULL: the command runs */
    const char *object;
    int sys;
    bool present; /* the program is there, what it names to load it is not */
};

/* --- in the child: raw calls, no malloc, no stdio ----------------------------------------------------- */

static int failed(struct attempt *a, const char *step, const char *object)
{
    a->sys = errno;
    a->object = object;
    a->step = step;
    return -1;
}

/* A child is not to survive us: what it is for has gone with the host. */
static int die_with_parent(struct attempt *a)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return failed(a, "prctl", NULL);
    if (getppid() != a->parent)
        _exit(127);
    return 0;
}

static void reset_signals(void)
{
    struct sigaction fallback = {.sa_handler = SIG_DFL};
    sigset_t none;
    for (int i = 0; i < bough_start_ignored_count; i++)
        sigaction(bough_start_ignored[i], &fallback, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static int take_stdio(struct attempt *a)
{
    if (a->command->pty && (setsid() < 0 || ioctl(a->fds[0], TIOCSCTTY, 0) < 0))
        return failed(a, "pty", NULL);
    for (int i = 0; i < 3; i++)
        if (dup2(a->fds[i], i) < 0)
            return failed(a, "stdio", NULL);
    /* All are close-on-exec besides; this is for those that a path could name meanwhile (/proc/self/fd). */
    syscall(SYS_close_range, 3u, ~0u, 0u);
    return 0;
}

static int take_limits(struct attempt *a)
{
    rlim_t files = (rlim_t)a->command->files;
    struct rlimit limit = {.rlim_cur = files, .rlim_max = files};
    if (a->command->files > 0 && setrlimit(RLIMIT_NOFILE, &limit) < 0)
        return failed(a, "limits.files", NULL);
    return 0;
}

static void try_exec(struct attempt *a, const char *path)
{
    execve(path, a->command->argv, a->env);
    int sys = errno;
    a->present = a->present || (sys == ENOENT && faccessat(AT_FDCWD, path, F_OK, 0) == 0);
    errno = sys;
}

/* execvp(3) along the command's own PATH, without its allocations and its shell for unmarked scripts. */
static int exec_search(struct attempt *a)
{
    const char *name = a->command->argv[0];
    if (strchr(name, '/') || !*name) {
        try_exec(a, name);
        return failed(a, "exec", name);
    }
    const char *search = SEARCH_PATH;
    for (char **e = a->env; *e; e++)
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
        try_exec(a, path);
        if (errno != ENOENT && errno != ENOTDIR)
            worst = errno;
        if (errno != ENOENT && errno != ENOTDIR && errno != EACCES)
            break;
    }
    errno = worst;
    return failed(a, "exec", name);
}

static void become_command(struct attempt *a)
{
    if (die_with_parent(a) < 0 || take_stdio(a) < 0 || take_limits(a) < 0)
        return;
    if (chdir(a->command->cwd) < 0) {
        failed(a, "cwd", a->command->cwd);
        return;
    }
    reset_signals();
    exec_search(a);
}

/* --- in the parent ------------------------------------------------------------------------------------- */

static int explain(const struct attempt *a, struct bough_err *err)
{
    const char *what = a->object ? a->object : "";
    if (strcmp(a->step, "exec") == 0) {
        if (a->sys == ENOENT && a->present)
            return bough_err_set(err, BOUGH_ERR_not_found,
                                 "program \"%s\": it is there, but the interpreter or loader it "
                                 "names is not on this machine",
                                 what);
        if (a->sys == ENOENT)
            return bough_err_set(
                err, BOUGH_ERR_not_found, "program \"%s\": not found on this machine%s", what,
                strchr(what, ' ') ? " (a whole command line goes into `shell`)" : "");
        if (a->sys == ENOEXEC)
            return bough_err_set(
                err, BOUGH_ERR_invalid,
                "program \"%s\": not a program for this machine (a script without #!?)", what);
        return bough_err_sys(err, a->sys, "program \"%s\"", what);
    }
    if (strcmp(a->step, "cwd") == 0)
        return bough_err_sys(err, a->sys, "cwd \"%s\"", what);
    return bough_err_sys(err, a->sys, "%s", a->step);
}

static int open_terminal(const struct bough_command *command, int *slave, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    int unlocked = 0;
    struct winsize size = {.ws_row = (unsigned short)command->rows,
                           .ws_col = (unsigned short)command->cols};
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlocked) < 0 ||
        ioctl(master, TIOCSWINSZ, &size) < 0)
        return bough_err_sys(err, errno, "pty");
    *slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*slave < 0)
        return bough_err_sys(err, errno, "pty");
    return bough_steal_fd(&master);
}

static int check(const struct bough_command *command, int fd_count, struct bough_err *err)
{
    int streams = command->pty ? 0 : command->streams;
    if (*command->user)
        return bough_err_set(err, BOUGH_ERR_unsupported,
                             "user \"%s\": a command of the host runs as the host's own user",
                             command->user);
    if (command->cwd[0] != '/')
        return bough_err_set(err, BOUGH_ERR_invalid, "cwd \"%s\": it must be absolute",
                             command->cwd);
    if (fd_count != __builtin_popcount((unsigned)streams))
        return bough_err_set(err, BOUGH_ERR_protocol, "command: its streams are missing");
    return 0;
}

/* Nothing of the frame changes after vfork(2) but by the child, which runs in it. */
static pid_t run(struct attempt *a)
{
    pid_t pid = vfork();
    if (pid == 0) {
        become_command(a);
        _exit(127);
    }
    if (pid < 0)
        failed(a, "starting a process", NULL);
    return pid;
}

pid_t bough_start(const struct bough_command *command, const int *fds, int fd_count, int *master,
                  struct bough_err *err)
{
    BOUGH_CLEANUP_FD int slave = -1;
    BOUGH_CLEANUP_FD int terminal = -1;
    struct attempt a = {.command = command, .parent = getpid()};
    if (check(command, fd_count, err) < 0)
        return -1;
    if (command->pty) {
        terminal = open_terminal(command, &slave, err);
        if (terminal < 0)
            return -1;
    }
    /* Ours are /dev/null: a stream that nobody named is left as it is. */
    for (int i = 0, n = 0; i < 3; i++)
        a.fds[i] = command->pty ? slave : command->streams & 1 << i ? fds[n++] : i;
    size_t count = 0;
    while (command->env[count])
        count++;
    BOUGH_CLEANUP_FREE char **env = calloc(count + 1, sizeof *env);
    if (!env)
        return bough_err_sys(err, ENOMEM, "environment");
    count = 0;
    for (char **e = command->env; *e; e++) /* a bare name is one that the caller does not want */
        if (strchr(*e, '='))
            env[count++] = *e;
    a.env = env;
    pid_t pid = run(&a);
    if (a.step) {
        if (pid > 0)
            BOUGH_RETRY(waitpid(pid, NULL, 0));
        return explain(&a, err);
    }
    *master = bough_steal_fd(&terminal);
    return pid;
}
