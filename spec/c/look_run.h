/* look_run.h - runs bough-look as a child and reads what it wrote. For look_test.c. */
#ifndef LOOK_RUN_H
#define LOOK_RUN_H

#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../src/record.h"
#include "../../src/sys.h"

static int tests, failures;
static char base[] = "/tmp/look-test-XXXXXX";
static char program[4096];

/* What the latest run said. */
static char report[1024];
static char *output;
static size_t output_len;
static int status;

static bool check(bool good, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static bool check(bool good, const char *fmt, ...)
{
    va_list ap;
    printf("%sok %d - ", good ? "" : "not ", ++tests);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    if (!good)
        printf("# status %#x, report: %s\n", (unsigned)status, report);
    failures += !good;
    fflush(stdout);
    return good;
}

#define MUST(call)                                                                   \
    __extension__({                                                                  \
        long must_ = (long)(call);                                                   \
        if (must_ < 0) {                                                             \
            printf("Bail out! line %d: %s: %s\n", __LINE__, #call, strerror(errno)); \
            exit(1);                                                                 \
        }                                                                            \
        (int)must_;                                                                  \
    })

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static void tree_remove(const char *path)
{
    nftw(path, remove_one, 32, FTW_DEPTH | FTW_PHYS);
}

static void file_write(int at, const char *name, const void *data, size_t len)
{
    int fd = MUST(openat(at, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    for (size_t done = 0; done < len;)
        done += (size_t)MUST(write(fd, (const char *)data + done, len - done));
    close(fd);
}

static int dir_make(int at, const char *name)
{
    MUST(mkdirat(at, name, 0755));
    return MUST(openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

static void output_add(const char *data, size_t len)
{
    output = realloc(output, output_len + len + 1);
    memcpy(output + output_len, data, len);
    output_len += len;
    output[output_len] = '\0';
}

/* Starts the program. args: the command first. */
static pid_t look_start(int root, int out, int report_fd, const char *const *args)
{
    pid_t pid = MUST(fork());
    if (pid)
        return pid;
    const char *argv[64] = {"bough-look", args[0], "--root-fd",   "20",
                            "--out-fd",   "21",    "--report-fd", "22"};
    int n = 8;
    for (int i = 1; args[i]; i++)
        argv[n++] = args[i];
    if (dup2(root, 20) < 0 || dup2(out, 21) < 0 || dup2(report_fd, 22) < 0)
        _exit(98);
    execv(program, (char *const *)(void *)argv);
    _exit(99);
}

static int look_args(int root, const char *const *args)
{
    int out[2], rep[2], left = 2;
    size_t report_len = 0;
    MUST(pipe2(out, O_CLOEXEC));
    MUST(pipe2(rep, O_CLOEXEC));
    output_len = 0;
    output_add("", 0);
    pid_t pid = look_start(root, out[1], rep[1], args);
    close(out[1]);
    close(rep[1]);
    struct pollfd p[] = {{.fd = out[0], .events = POLLIN}, {.fd = rep[0], .events = POLLIN}};
    while (left) {
        static char piece[65536];
        MUST(poll(p, 2, -1));
        for (int i = 0; i < 2; i++) {
            if (p[i].fd < 0 || !p[i].revents)
                continue;
            ssize_t n = read(p[i].fd, piece, sizeof piece);
            if (n <= 0) {
                bough_fd_close(&p[i].fd);
                left--;
            } else if (i == 0) {
                output_add(piece, (size_t)n);
            } else if (report_len + (size_t)n < sizeof report) {
                memcpy(report + report_len, piece, (size_t)n);
                report_len += (size_t)n;
            }
        }
    }
    report[report_len ? report_len - 1 : 0] = '\0';
    waitpid(pid, &status, 0);
    return status;
}

#define LOOK(root, ...) look_args(root, (const char *const[]){__VA_ARGS__, NULL})

static bool reported(const char *text)
{
    return !strncmp(report, text, strlen(text));
}

/* ---- text that is compared ---- */

static int line_compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Sorts the lines of a text, which loses its last newline's line if that is empty. */
static char *lines_sorted(const char *text)
{
    size_t count = 0, room = 0, len = 0;
    char **lines = NULL, *copy = strdup(text), *sorted = NULL;
    for (char *save, *line = strtok_r(copy, "\n", &save); line;
         line = strtok_r(NULL, "\n", &save)) {
        if (count == room)
            lines = realloc(lines, (room = room * 2 + 64) * sizeof *lines);
        lines[count++] = line;
    }
    if (count)
        qsort(lines, count, sizeof *lines, line_compare);
    FILE *f = open_memstream(&sorted, &len);
    for (size_t i = 0; i < count; i++)
        fprintf(f, "%s\n", lines[i]);
    fclose(f);
    free(lines);
    free(copy);
    return sorted;
}

/* What a shell command prints. */
static char *shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static char *shell(const char *fmt, ...)
{
    char *command = NULL, *text = NULL;
    size_t len = 0;
    va_list ap;
    va_start(ap, fmt);
    MUST(vasprintf(&command, fmt, ap));
    va_end(ap);
    FILE *from = popen(command, "r"), *to = open_memstream(&text, &len);
    char piece[4096];
    for (size_t n; (n = fread(piece, 1, sizeof piece, from)) > 0; fwrite(piece, 1, n, to))
        for (char *nul; (nul = memchr(piece, '\0', n));)
            *nul = '|';
    pclose(from);
    fclose(to);
    free(command);
    return text;
}

/* The matches as `grep -nZ` has them, with '|' for the NUL. */
static char *matches_text(void)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    const char *cursor = output, *end = output + output_len;
    struct bough_match m;
    int r;
    while ((r = bough_match_next(&cursor, end, &m)) > 0)
        fprintf(f, "%s|%llu%c%.*s\n", m.path, (unsigned long long)m.line_number,
                m.type == 1 ? ':' : '-', (int)m.line_len, m.line);
    if (r < 0 || cursor != end)
        fprintf(f, "damaged\n");
    fclose(f);
    return text;
}

/* The paths of a list, a line each. */
static char *listed_text(void)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    const char *cursor = output, *end = output + output_len;
    struct bough_entry e;
    int r;
    while ((r = bough_listed_next(&cursor, end, &e)) > 0)
        fprintf(f, "%s\n", e.name);
    if (r < 0 || cursor != end)
        fprintf(f, "damaged\n");
    fclose(f);
    return text;
}

static bool same_text(const char *a, const char *b)
{
    size_t i = 0;
    while (a[i] && a[i] == b[i])
        i++;
    if (a[i] == b[i])
        return true;
    printf("# from byte %zu: \"%.60s\" and \"%.60s\"\n", i, a + i, b + i);
    return false;
}

/* The single match: its line number, or -1. */
static bool first_match(struct bough_match *m)
{
    const char *cursor = output;
    return bough_match_next(&cursor, output + output_len, m) == 1;
}

#endif
