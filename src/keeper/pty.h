/* pty.h - a terminal of the sandbox's own, for one process in it. */
#ifndef BOUGH_PTY_H
#define BOUGH_PTY_H

#include "user.h"

struct bough_pty {
    int master, slave; /* -1 without; the owner's to close */
};

/* Belongs to `user`; `rows` and `cols` 0: unknown. Below the current root, whose /dev is ours. */
int bough_pty_open(struct bough_pty *pty, const struct bough_user *user, int rows, int cols,
                   struct bough_err *err);
void bough_pty_close(struct bough_pty *pty);

#endif
