/* jail.h - what the frame tells the jail; the lock itself is bough_look_seal (look.h). */
#ifndef BOUGH_LOOK_JAIL_H
#define BOUGH_LOOK_JAIL_H

#include <stdbool.h>

#include "look.h"

/* The trees that may be read after sealing: the roots and hints of `look`. With `trusted`,
 * trusted.* xattrs can be read, which takes CAP_SYS_ADMIN. Never called: no file can be opened for
 * writing, but any for reading. */
void bough_look_jail_roots(const struct bough_look *look, bool trusted);

/* Before any of the caller's bytes is looked at: puts /dev/null on 0, 1 and 2, closes whatever is none of
 * look's descriptors, dies with its parent, never gains a privilege. */
int bough_look_jail_enter(const struct bough_look *look, struct bough_err *err);

#endif
