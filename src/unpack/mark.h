/* mark.h - names in an OCI layer that mean an absence: ".wh.NAME" and ".wh..wh..opq". */
#ifndef BOUGH_UNPACK_MARK_H
#define BOUGH_UNPACK_MARK_H

#include "extraction.h"

enum bough_mark {
    BOUGH_MARK_NONE,     /* an ordinary name */
    BOUGH_MARK_WHITEOUT, /* what is below has no such name */
    BOUGH_MARK_OPAQUE,   /* nothing from below is in this directory */
    BOUGH_MARK_IGNORED,  /* aufs's own */
};

/* Kind invalid for names that mean nothing sensible. */
int bough_mark_read(const struct bough_path *path, enum bough_mark *mark, struct bough_err *err);

/* Removes what the whiteout or opaque mark at x->path says. What this archive has made stays,
 * whatever the order of the entries. */
int bough_mark_apply(struct bough_extraction *x, enum bough_mark mark);

#endif
