/* kin.h - the processes that descend from some, found through /proc.
 *
 * Of a root's kin is who has one of them for a parent, or for the leader of his session or process group. Who has
 * left all three (setsid, and a parent that ended) is not found. Never signals ourselves or pid 1, nor by a
 * number that may have gone to somebody else. */
#ifndef BOUGH_KIN_H
#define BOUGH_KIN_H

#include <stddef.h>
#include <sys/types.h>

/* Sends a signal to the roots, which are children that were not waited for, and to their kin. SIGKILL goes on until
 * nothing is left to kill, as far as that can be found out in a hundred looks; it does not wait for the dying. */
void bough_kin_signal(const pid_t *roots, size_t count, int number);

#endif
