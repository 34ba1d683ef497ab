/* object.h - makes what an entry stands for: file, directory, link, fifo. */
#ifndef BOUGH_UNPACK_OBJECT_H
#define BOUGH_UNPACK_OBJECT_H

#include "extraction.h"

/* The entry at `x`, whose path has been set, in the directory `dir`. */
int bough_object_make(struct bough_extraction *x, int dir);

/* The same for one that is a hard link to `to`. */
int bough_object_link(struct bough_extraction *x, int dir, const char *to);

#endif
