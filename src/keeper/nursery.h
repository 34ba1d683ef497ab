/* nursery.h - a child of the keeper that does nothing but make blanks.
 *
 * Making namespaces takes a millisecond or more; here it holds nobody up. The blanks are
 * the keeper's own children (CLONE_PARENT): it reaps them, and they die with it. */
#ifndef BOUGH_NURSERY_H
#define BOUGH_NURSERY_H

#include "site.h"

/* Forks the nursery; *sock is the keeper's end. It answers each BLANK (id: host network or not; perhaps a
 * descriptor: the network namespace to use) with a BLANK (body: pid; descriptor: control socket) or FAILED. */
pid_t bough_nursery_start(struct bough_site *site, int *sock, struct bough_err *err);

#endif
