#define _GNU_SOURCE
#include "helper.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../sys.h"

#define FIRST_ASIDE 300 /* above all numbers that a helper sees */

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

/* ---- in the child ---- */

static int fds_place(struct bough_helper *h)
{
    /* First aside: the places may be taken by one another. */
    for (int i = 0; i < h->fd_count; i++)
        if ((h->fds[i].fd = fcntl(h->fds[i].fd, F_DUPFD_CLOEXEC, FIRST_ASIDE)) < 0)
            return -1;
    syscall(SYS_close_range, 3u, ~0u, CLOSE_RANGE_CLOEXEC);
    for (int i = 0; i < h->fd_count; i++)
        if (dup2(h->fds[i].fd, h->fds[i].as) < 0)
            return -1;
    return 0;
}

/* What is left in the bounding set is what exec gives to root. */
static void caps_bound(uint64_t caps)
{
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    for (int cap = 0; caps && cap <= CAP_LAST_CAP; cap++)
        if (!(caps & UINT64_C(1) << cap))
            prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
}

static _Noreturn void become(struct bough_helper *h, int report)
{
    char *none[] = {NULL};
    bough_helper_give(h, report, h->report_as);
    caps_bound(h->caps);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (fds_place(h) == 0)
        execve(h->path, (char *const *)(uintptr_t)h->argv, none);
    int sys = errno;
    dprintf(h->fds[h->fd_count - 1].fd, "err %s %d %s: %s: %s\n",
            bough_err_kind_name(bough_err_kind_of(sys)), sys, h->argv[0], h->path, strerror(sys));
    _exit(1);
}

/* ---- in the worker ---- */

int bough_helper_start(struct bough_helper *h, struct bough_helper_process *process,
                       struct bough_err *err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return bough_err_sys(err, errno, "%s: pipe", h->task);
    pid_t pid = fork();
    if (pid == 0)
        become(h, ends[1]);
    int sys = errno;
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return bough_err_sys(err, sys, "%s: fork", h->task);
    }
    *process = (struct bough_helper_process){.pid = pid, .report = ends[0]};
    return 0;
}

/* 0: not the last word; 1: it went well; -1. */
static int line_take(struct bough_helper *h, const char *line, struct bough_err *err)
{
    char kind[24];
    long long done;
    int sys, at = 0;
    if (sscanf(line, "at %lld", &done) == 1) {
        if (h->progress)
            h->progress(h->arg, done);
        return 0;
    }
    if (strncmp(line, "ok ", 3) == 0) {
        snprintf(h->result, sizeof h->result, "%s", line + 3);
        return 1;
    }
    if (sscanf(line, "err %23s %d %n", kind, &sys, &at) < 2 || at == 0)
        return 0;
    bough_err_set(err, BOUGH_ERR_io, "%s", line + at);
    for (int k = 0; err && k < BOUGH_ERR_KIND_COUNT; k++)
        if (strcmp(kind, bough_err_kind_name((enum bough_err_kind)k)) == 0)
            err->kind = (enum bough_err_kind)k;
    if (err)
        err->sys = sys;
    return -1;
}

/* The last word: as line_take; 0 when there was none. */
static int report_read(struct bough_helper *h, int fd, struct bough_err *err)
{
    char text[1024];
    size_t n = 0;
    int rc = 0;
    for (;;) {
        ssize_t got = BOUGH_RETRY(read(fd, text + n, sizeof text - 1 - n));
        if (got <= 0)
            break;
        n += (size_t)got;
        text[n] = '\0';
        char *line = text, *end;
        while ((end = strchr(line, '\n'))) {
            *end = '\0';
            if (rc == 0)
                rc = line_take(h, line, err);
            line = end + 1;
        }
        n = (size_t)(text + n - line);
        memmove(text, line, n);
        if (n == sizeof text - 1) /* none of ours is that long */
            n = 0;
    }
    return rc;
}

int bough_helper_wait(struct bough_helper *h, struct bough_helper_process *process,
                      struct bough_err *err)
{
    int rc = report_read(h, process->report, err), status = 0;
    bough_fd_close(&process->report);
    BOUGH_RETRY(waitpid(process->pid, &status, 0));
    if (rc < 0)
        return -1;
    if (WIFSIGNALED(status))
        return bough_err_set(err, BOUGH_ERR_io, "%s: %s was killed (signal %d)", h->task,
                             h->argv[0], WTERMSIG(status));
    if (rc == 0 || status != 0)
        return bough_err_set(err, BOUGH_ERR_io, "%s: %s ended without a word (status %d)", h->task,
                             h->argv[0], WEXITSTATUS(status));
    return 0;
}
