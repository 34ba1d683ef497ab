/* jail.h - makes this process harmless before it looks at hostile data.
 *
 * A process in the jail sees no file but those below the output directory, no network and no
 * other process; it cannot start a program, map code, or gain a privilege. What is
 * refused for good kills the process (SIGSYS), everything else unknown gives EPERM. */
#ifndef BOUGH_UNPACK_JAIL_H
#define BOUGH_UNPACK_JAIL_H

#include <stdbool.h>

#include "../err.h"

struct bough_jail {
    bool chrooted;  /* false: an ordinary user, confined by Landlock where there is one */
    bool may_chown; /* CAP_CHOWN is still there */
};

/* Descriptors that survive, at fixed places so that everything else can be closed. */
enum { BOUGH_JAIL_IN = 3, BOUGH_JAIL_OUT = 4, BOUGH_JAIL_REPORT = 5 };

/* Moves the three descriptors to the places above, puts /dev/null on 0, 1 and 2, and
 * closes the rest. */
int bough_jail_close(int in_fd, int out_fd, int report_fd, struct bough_err *err);

/* Limits, namespaces, root directory, capabilities. Forking is still possible after it. */
int bough_jail_enter(struct bough_jail *jail, struct bough_err *err);

/* The system-call filters, the last step: for the process that writes files (and, for a layer, looks
 * into directories to remove what they hold), and for the one that only turns bytes from one
 * descriptor into bytes on another. */
int bough_jail_seal_writer(bool layer, struct bough_err *err);
int bough_jail_seal_decoder(struct bough_err *err);

#endif
