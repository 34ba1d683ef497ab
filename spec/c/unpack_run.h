/* unpack_run.h - runs bough-unpack as a child, as one of three users, and looks at what it left.
 *
 * One run at a time: `report`, `status` and the directory `out` belong to the latest. For the
 * tests that include it. */
#ifndef UNPACK_RUN_H
#define UNPACK_RUN_H

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tar_maker.h"

enum who { ROOT, NAMESPACE, USER };
enum { NOBODY = 65534 };

static const char *const who_names[] = {"root", "namespace", "user"};
static const char *program;
static enum who who;
static char base[] = "/tmp/unpack-test-XXXXXX";
static char out[64]; /* the directory of the latest run */
static int count, failures;

/* What the latest run said. */
static char report[4096];
static int status;

static void check(bool good, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void check(bool good, const char *fmt, ...)
{
    va_list ap;
    printf("%sok %d - %s: ", good ? "" : "not ", ++count, who_names[who]);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    if (!good) {
        failures++;
        printf("# status %#x, report: %s\n", (unsigned)status, report);
    }
    fflush(stdout);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static void tree_remove(const char *path)
{
    char command[128];
    /* directories without any rights hinder an ordinary user */
    snprintf(command, sizeof command, "chmod -R u+rwx %s 2>/dev/null", path);
    if (access(path, F_OK) == 0 && system(command) >= 0)
        nftw(path, remove_one, 32, FTW_DEPTH | FTW_PHYS);
}

static void text_write(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        _exit(99);
    close(fd);
}

/* In the child: becomes the one that the program shall run as. */
static void identity_take(void)
{
    if (who == ROOT || getuid() != 0)
        return;
    if (setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
        _exit(98);
    if (who == USER)
        return;
    /* the change of user has taken our own files in /proc from us */
    if (prctl(PR_SET_DUMPABLE, 1) < 0 || unshare(CLONE_NEWUSER) < 0)
        _exit(97);
    text_write("/proc/self/setgroups", "deny");
    text_write("/proc/self/uid_map", "0 65534 1");
    text_write("/proc/self/gid_map", "0 65534 1");
}

/* The bytes as something to read from: a file in memory, or a pipe with a writer. */
static int input_open(const void *data, size_t len, bool piped)
{
    if (!piped) {
        int fd = memfd_create("archive", MFD_CLOEXEC);
        for (size_t at = 0; at < len;) {
            ssize_t n = write(fd, (const char *)data + at, len - at);
            if (n <= 0)
                abort();
            at += (size_t)n;
        }
        lseek(fd, 0, SEEK_SET);
        return fd;
    }
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        abort();
    if (fork() == 0) {
        signal(SIGPIPE, SIG_DFL);
        close(ends[0]);
        /* odd pieces, so that every header comes in two halves */
        for (size_t at = 0; at < len;) {
            ssize_t n = write(ends[1], (const char *)data + at, len - at < 333 ? len - at : 333);
            if (n <= 0)
                _exit(0);
            at += (size_t)n;
        }
        _exit(0);
    }
    close(ends[1]);
    return ends[0];
}

static void report_read(int fd)
{
    size_t len = 0;
    ssize_t n;
    while (len < sizeof report - 1 && (n = read(fd, report + len, sizeof report - 1 - len)) > 0)
        len += (size_t)n;
    report[len] = '\0';
    if (len && report[len - 1] == '\n')
        report[len - 1] = '\0';
}

/* Starts the program on `in`, which is closed; `*from` gives its report. */
static pid_t program_start(int in, int *from, const char *const *options)
{
    const char *argv[16] = {program, "--in-fd", "10", "--out-fd", "11", "--report-fd", "12"};
    int argc = 7, ends[2];
    if (who != ROOT)
        argv[argc++] = "--squash";
    for (; options && *options; options++)
        argv[argc++] = *options;
    int dir = open(out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0 || pipe2(ends, O_CLOEXEC) < 0)
        abort();
    pid_t pid = fork();
    if (pid == 0) {
        identity_take();
        if (dup2(in, 10) < 0 || dup2(dir, 11) < 0 || dup2(ends[1], 12) < 0)
            _exit(96);
        execv(program, (char *const *)(uintptr_t)argv);
        _exit(95);
    }
    close(in);
    close(dir);
    close(ends[1]);
    *from = ends[0];
    return pid;
}

static bool run_into(const void *data, size_t len, bool piped, const char *const *options)
{
    int from;
    pid_t pid = program_start(input_open(data, len, piped), &from, options);
    report_read(from);
    close(from);
    waitpid(pid, &status, 0);
    while (piped && waitpid(-1, NULL, 0) > 0)
        ;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 && strstr(report, "ok ");
}

static void out_renew(void)
{
    if (*out)
        tree_remove(out);
    snprintf(out, sizeof out, "%s/out", base);
    if (mkdir(out, 0755) < 0 || (who != ROOT && getuid() == 0 && chown(out, NOBODY, NOBODY) < 0))
        abort();
}

static bool run_bytes(const void *data, size_t len, const char *const *options)
{
    out_renew();
    return run_into(data, len, false, options);
}

/* The run has failed in the way it should. */
static bool refused(const char *kind, const char *text)
{
    char start[64];
    snprintf(start, sizeof start, "err %s ", kind);
    return WIFEXITED(status) && WEXITSTATUS(status) == 1 &&
           !strncmp(report, start, strlen(start)) && strstr(report, text) && !strchr(report, '\n');
}

static const char *in_out(const char *name)
{
    static char path[8192];
    snprintf(path, sizeof path, "%s/%s", out, name);
    return path;
}

static mode_t mode_of(const char *name)
{
    struct stat st;
    return lstat(in_out(name), &st) < 0 ? 0 : st.st_mode;
}

static const char *content(const char *name)
{
    static char text[4096];
    int fd = open(in_out(name), O_RDONLY | O_NOFOLLOW);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = '\0';
    return n < 0 ? "(none)" : text;
}

static bool holds(const char *name, const char *text)
{
    return !strcmp(content(name), text);
}

#endif
