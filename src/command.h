/* command.h - one process to start in a crew, and how it ended, as data.
 *
 * Like plan.h: the host encodes, the crew decodes; a decoded command points into the message it came from, and
 * only the vectors are its own (bough_command_clear). */
#ifndef BOUGH_COMMAND_H
#define BOUGH_COMMAND_H

#include <stdbool.h>
#include <stdint.h>

#include "usage.h"
#include "wire.h"

struct bough_command {
    char **argv; /* NULL-terminated, at least one */
    char **env; /* "NAME=value"; a bare "NAME" is one that the caller does not want (init's HOME) */
    const char *cwd;
    const char *user;   /* as in a plan; bough-spawn takes none but "" */
    int64_t timeout_ms; /* 0: none. Then all that it started is killed, others are not */
    int streams; /* bits 0-2: stdin, stdout, stderr have a descriptor with the message; the others are /dev/null */
    bool pty; /* a terminal of its own on all three; `streams` is 0 then */
    int rows, cols;
    int64_t files; /* RLIMIT_NOFILE; 0: as it is */
};

void bough_command_put(struct bough_wbuf *buf, const struct bough_command *command);
int bough_command_get(struct bough_rbuf *buf, struct bough_command *command, struct bough_err *err);
void bough_command_clear(struct bough_command *command);

/* Whom a signal goes to. */
enum bough_scope {
    BOUGH_SCOPE_GROUP, /* the process and what is in its process group (of bough-spawn's: the process alone) */
    BOUGH_SCOPE_TREE, /* all that descends from it or is in its session, until nothing is left to kill */
};

/* How a process ended: the body of BOUGH_MSG_ENDED. */
struct bough_end {
    int64_t status; /* as waitpid gives it */
    bool timed_out;
    int64_t elapsed_ns, user_us, system_us,
        max_rss; /* of it and what it waited for; max_rss in bytes */
    struct bough_usage usage;
};

void bough_end_put(struct bough_wbuf *buf, const struct bough_end *end);
int bough_end_get(struct bough_rbuf *buf, struct bough_end *end, struct bough_err *err);

#endif
