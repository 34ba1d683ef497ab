/* bough-look's frame: descriptors, dispatch, the report. What it is for: look.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "jail.h"
#include "out.h"

#if defined(__SANITIZE_ADDRESS__)
/* The leak checker forks and traces its parent, which the jail is there to prevent. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
#endif

struct command {
    const char *name;
    int (*run)(struct bough_look *look, struct bough_err *err);
};

static const struct command commands[] = {
    {"list", bough_look_list},
    {"grep", bough_look_grep},
    {"diff", bough_look_diff},
    {"pack", bough_look_pack},
};

static int fd_parse(const char *text, int *out)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < 0 || value > INT32_MAX)
        return -1;
    *out = (int)value;
    return 0;
}

static int hint_parse(struct bough_look *look, const char *text)
{
    if (look->hint_count < 0)
        look->hint_count = 0;
    return look->hint_count < BOUGH_LOOK_HINTS ? fd_parse(text, &look->hints[look->hint_count++])
                                               : -1;
}

/* The descriptors come first, in any order; the rest is the command's. */
static int descriptors_parse(struct bough_look *look, char **args)
{
    *look = (struct bough_look){
        .root = {-1, -1}, .pool = -1, .hint_count = -1, .out = -1, .report = -1};
    for (; *args && args[1]; args += 2) {
        int *to;
        if (!strcmp(*args, "--root-fd"))
            to = &look->root[0];
        else if (!strcmp(*args, "--other-fd"))
            to = &look->root[1];
        else if (!strcmp(*args, "--out-fd"))
            to = &look->out;
        else if (!strcmp(*args, "--report-fd"))
            to = &look->report;
        else if (!strcmp(*args, "--pool-fd"))
            to = &look->pool;
        else if (!strcmp(*args, "--hint-fd"))
            to = NULL;
        else
            break;
        if (to ? fd_parse(args[1], to) : hint_parse(look, args[1]))
            return -1;
    }
    look->args = args;
    return look->root[0] < 0 || look->out < 0 || look->report < 0 ? -1 : 0;
}

/* Overlay's marks in the layers of root's own stores. */
static bool wants_trusted(const struct command *command, char **args)
{
    if (command->run == bough_look_pack)
        for (; *args; args++)
            if (!strcmp(*args, "--opaque") && args[1])
                return !strncmp(args[1], "trusted.", 8);
    return false;
}

int main(int argc, char **argv)
{
    static struct bough_look look;
    struct bough_err err = {.kind = BOUGH_ERR_io};
    const struct command *command = NULL;
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name))
            command = &commands[i];
    if (!command || descriptors_parse(&look, argv + 2)) {
        fputs("usage: bough-look list|grep|diff|pack --root-fd N [--other-fd N] [--pool-fd N] "
              "[--hint-fd N]... "
              "--out-fd N --report-fd N [options]\n",
              stderr);
        return 2;
    }
    bough_look_jail_roots(&look, wants_trusted(command, look.args));
    int r = bough_look_jail_enter(&look, &err);
    if (!r)
        r = command->run(&look, &err);
    /* nobody reads the output any more: then there is nothing left to do, and nothing went wrong */
    if (r && !(err.kind == BOUGH_ERR_closed && err.sys == EPIPE)) {
        bough_out_failure(look.report, &err);
        return 1;
    }
    char line[sizeof look.text + 80];
    snprintf(line, sizeof line, "ok %lld %lld %lld %s\n", (long long)look.numbers[0],
             (long long)look.numbers[1], (long long)look.numbers[2], look.text);
    bough_out_line(look.report, line);
    return 0;
}
