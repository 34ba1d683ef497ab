/* prune.h - removes what lower layers have at a place, and leaves what this archive has made there.
 *
 * Takes two descriptors however deep a tree is, and memory for the names of directories yet to be
 * entered. Directories that nobody may read are no hindrance to their owner. */
#ifndef BOUGH_UNPACK_PRUNE_H
#define BOUGH_UNPACK_PRUNE_H

#include "made.h"

/* Whatever is at the path `real`, if anything; `dir` is the directory that holds it. */
int bough_prune_name(const struct bough_made *made, int dir, const char *real,
                     struct bough_err *err);

/* All that the directory `dir`, whose path is `real`, holds. */
int bough_prune_inside(const struct bough_made *made, int dir, const char *real,
                       struct bough_err *err);

#endif
