/* launch.h - starts a helper program that is nobody's child.
 *
 * The caller's memory is not forked, and neither its wait(2) nor SIGCHLD will ever see the program: its parent
 * is init, or whoever collects orphans here. */
#ifndef BOUGH_LAUNCH_H
#define BOUGH_LAUNCH_H

#include "err.h"

/* Runs `path` with `argv` and an empty environment. The program finds at descriptor 3 a SOCK_SEQPACKET to the
 * caller and at 4 a pidfd of the caller's process, and is to end by them; it has all signals blocked, and whatever
 * else of the caller's is not close-on-exec. Returns the caller's end, which never blocks and is close-on-exec, or
 * -1. `what` names the program in messages. */
int bough_launch(const char *what, const char *path, char *const *argv, struct bough_err *err);

#endif
