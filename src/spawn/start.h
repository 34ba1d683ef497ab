/* start.h - one command of the host, from its description to a running child.
 *
 * The child shares our memory until it has become the command (vfork), so nothing is copied, and a step that
 * failed is told with its reason. */
#ifndef BOUGH_START_H
#define BOUGH_START_H

#include <sys/types.h>

#include "../command.h"

/* Ignored by bough-spawn, which shares the host's terminal and process group; a child gets the defaults back. */
extern const int bough_start_ignored[];
extern const int bough_start_ignored_count;

/* `fds`: a descriptor above 2 for each stream that the command names; they stay the caller's. Returns the child, and
 * in `master` that of its terminal (the caller's to close) or -1; or -1. Our own 0-2 must be /dev/null. */
pid_t bough_start(const struct bough_command *command, const int *fds, int fd_count, int *master,
                  struct bough_err *err);

#endif
