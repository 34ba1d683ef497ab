/* pack_run.h - runs bough-look as a child on open directories, for pack_test.c and diff_test.c.
 *
 * One run at a time: `report` and the file `out` in the scratch directory belong to the latest. */
#ifndef PACK_RUN_H
#define PACK_RUN_H

#include <libgen.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/wait.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* not all of it is needed here */
#include "tree_support.h"
#pragma GCC diagnostic pop

static char look_program[PATH_MAX], unpack_program[PATH_MAX];
static char report[2048];
static long long numbers[3]; /* of an "ok" */
static char sums[2][80];

static bool program_find(char *path, const char *variable, const char *name)
{
    const char *named = getenv(variable), *other = getenv("BOUGH_UNPACK");
    char beside[PATH_MAX] = "bough/x", want[PATH_MAX + 32];
    if (other)
        snprintf(beside, sizeof beside, "%s", other);
    snprintf(want, sizeof want, "%s/%s", dirname(beside), name);
    return realpath(named ? named : want, path) != NULL;
}

/* To be called before anything that changes the current directory. */
static bool programs_find(void)
{
    return program_find(look_program, "BOUGH_LOOK", "bough-look") &&
           program_find(unpack_program, "BOUGH_UNPACK", "bough-unpack");
}

enum { FIRST_FD = 20, HINTS_MAX = 16 };

/* `fds` are "--option descriptor" pairs, options[i] for fds[i]; `args` the rest. True for "ok". */
static bool program_run(const char *program, const char *command, const char *const *options,
                        const int *fds, int count, const char *const *args)
{
    const char *argv[80] = {program, command};
    char number[2 * HINTS_MAX][12];
    int argc = command ? 2 : 1, ends[2], status = 0;
    MUST(pipe2(ends, O_CLOEXEC));
    for (int i = 0; i <= count; i++) {
        snprintf(number[i], sizeof number[i], "%d", FIRST_FD + i);
        argv[argc++] = i < count ? options[i] : "--report-fd";
        argv[argc++] = number[i];
    }
    while (args && *args)
        argv[argc++] = *args++;
    pid_t pid = MUST(fork());
    if (!pid) {
        int high[2 * HINTS_MAX];
        for (int i = 0; i <= count; i++)
            high[i] = fcntl(i < count ? fds[i] : ends[1], F_DUPFD_CLOEXEC, FIRST_FD + count + 1);
        for (int i = 0; i <= count; i++)
            if (dup2(high[i], FIRST_FD + i) < 0)
                _exit(96);
        execv(program, (char *const *)(uintptr_t)argv);
        _exit(95);
    }
    close(ends[1]);
    size_t len = 0;
    ssize_t n;
    while (len < sizeof report - 1 &&
           (n = read(ends[0], report + len, sizeof report - 1 - len)) > 0)
        len += (size_t)n;
    close(ends[0]);
    report[len] = '\0';
    MUST(waitpid(pid, &status, 0));
    const char *last = strstr(report, "ok ");
    memset(sums, 0, sizeof sums);
    bool good = WIFEXITED(status) && !WEXITSTATUS(status) && last &&
                sscanf(last, "ok %lld %lld %lld %70s %70s", &numbers[0], &numbers[1], &numbers[2],
                       sums[0], sums[1]) >= 3;
    if (!good)
        snprintf(err.msg, sizeof err.msg, "status %x, report %.300s", (unsigned)status, report);
    return good;
}

/* Packs `root` into the new file `name` in `at`. */
static bool pack(int root, int at, const char *name, const char *const *args)
{
    const char *options[] = {"--root-fd", "--out-fd"};
    int out = MUST(openat(at, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    int fds[] = {root, out};
    bool good = program_run(look_program, "pack", options, fds, 2, args);
    close(out);
    return good;
}

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* What a shell command, run in the scratch directory, writes; to be freed. */
static char *shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static char *shell(const char *fmt, ...)
{
    char command[2000], *text = NULL;
    size_t size = 0;
    va_list ap;
    int n = snprintf(command, sizeof command, "cd %s && ", scratch);
    va_start(ap, fmt);
    vsnprintf(command + n, sizeof command - (size_t)n, fmt, ap);
    va_end(ap);
    fflush(stdout);
    FILE *from = popen(command, "re"), *to = open_memstream(&text, &size);
    int c;
    while (from && (c = getc(from)) != EOF)
        putc(c, to);
    fclose(to);
    if (!from || pclose(from))
        printf("# failed: %s\n", command);
    return text;
}

static bool shell_says(const char *want, const char *command)
{
    char *got = shell("%s", command);
    bool same = texts_same(want, got);
    free(got);
    return same;
}

static bool have(const char *tool)
{
    char command[100];
    snprintf(command, sizeof command, "command -v %s >/dev/null 2>&1", tool);
    return system(command) == 0;
}

#endif
