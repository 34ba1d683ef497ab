/* terminal.h - the host's own terminal: whether there is one, how large it is, raw while it is handed over, and put
 * back as it was.
 *
 * Knows no Lua. The terminal is what descriptors 0 and 1 of the host are open on. Others share those open file
 * descriptions (the shell that started us), so no flag of them is touched. While another job has the terminal, its
 * settings are that job's; none of the calls here stops the host with SIGTTIN or SIGTTOU. */
#ifndef BOUGH_TERMINAL_H
#define BOUGH_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <termios.h>

#include "err.h"

struct bough_terminal {
    bool taken;           /* `saved` holds what has to be put back */
    struct termios saved; /* as it was */
    struct termios raw;   /* as the kernel says it is, once raw */
};

bool bough_terminal_is_there(void); /* both descriptors are open on one */
/* Of the terminal at descriptor 0, 1 or 2; false when none of them is one, or it does not know. */
bool bough_terminal_size(int *rows, int *cols);
/* Whether we may touch it: false while another job of its session has it. */
bool bough_terminal_is_ours(void);
bool bough_terminal_is_gone(void); /* hung up: its window was closed, its line was cut */

/* Remembers the settings, to be put back. Raw comes with tend. -1: err. */
int bough_terminal_take(struct bough_terminal *terminal, struct bough_err *err);
/* Makes it raw where it is not: the first time, and after a shell that stopped us and let us go on. */
void bough_terminal_tend(struct bough_terminal *terminal);
void bough_terminal_restore(struct bough_terminal *terminal); /* idempotent; never waits */

/* A descriptor that does not block, for what `fd` (0, 1 or 2) is open on, with an open file description of its own.
 * -1 where there can be none: only terminals, and pipes to write to, can be opened anew. */
int bough_terminal_view(int fd, bool to_write);

/* read(2) and write(2) that neither raise SIGPIPE nor stop us. A read while another job has the terminal: EIO. */
ssize_t bough_terminal_read(int fd, char *data, size_t size);
ssize_t bough_terminal_write(int fd, const char *data, size_t size);

/* What stdio has read of standard input and nobody has asked for: how many bytes, *data malloc'ed; 0: none. */
size_t bough_terminal_ahead(char **data);

#endif
