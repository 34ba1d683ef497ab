/* init.h - pid 1 of a sandbox: prepares a blank, carries out one plan, reaps, reports.
 *
 * Talks to the keeper over one socket. It is not dumpable and holds more capabilities than
 * the command, so the command can neither trace it nor look through its /proc entries. When its socket
 * closes or its parent dies it ends, and the kernel ends everything below it. */
#ifndef BOUGH_INIT_H
#define BOUGH_INIT_H

#include "site.h"

/* Moves a descriptor to 3 and closes all behind it; returns 3. What the keeper has open, the host's socket and the
 * store above all, is neither for blanks nor for who makes them. */
int bough_init_keep_only(int fd);

/* Does not return. `sock` is the end that belongs to init; `netns`, a network namespace to use that no packet has
 * crossed yet, or -1: it has one of its own (or the host's). */
_Noreturn void bough_init_main(const struct bough_site *site, int sock, bool host_network,
                               int netns);

#endif
