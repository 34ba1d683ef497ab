/* helper.h - a program of our own that does in a jail what the archives and trees of others are exposed to.
 *
 * It gets its descriptors under numbers told on its command line, and one to report to: lines "at <done>" while it
 * works, at the end "ok <results>" or "err <kind> <errno> <message>". */
#ifndef BOUGH_HELPER_H
#define BOUGH_HELPER_H

#include <stdint.h>

#include "../err.h"

/* The numbers that it sees: 10 and up for the first ones, 20 and up for hints. */
#define BOUGH_HELPER_FDS (16 + 256)

struct bough_helper_fd {
    int fd, as;
};

struct bough_helper {
    const char *path; /* of the program */
    const char *task; /* for messages: "unpacking" */
    const char *const *argv;
    struct bough_helper_fd fds[BOUGH_HELPER_FDS];
    int fd_count;
    int report_as;
    uint64_t caps; /* a bit for each capability that it may have; 0: all of ours */
    void (*progress)(void *arg, int64_t done); /* may be NULL */
    void *arg;
    char result[512]; /* out: what followed "ok " */
};

static inline void bough_helper_give(struct bough_helper *helper, int fd, int as)
{
    helper->fds[helper->fd_count++] = (struct bough_helper_fd){.fd = fd, .as = as};
}

/* Starts it, in a process that dies with ours; bough_helper_wait hears it to the end. In between what was only for it
 * can be closed. */
struct bough_helper_process {
    int pid, report;
};
int bough_helper_start(struct bough_helper *helper, struct bough_helper_process *process,
                       struct bough_err *err);
int bough_helper_wait(struct bough_helper *helper, struct bough_helper_process *process,
                      struct bough_err *err);

#endif
