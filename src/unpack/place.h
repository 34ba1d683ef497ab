/* place.h - where an entry goes: directories below the output root, found without following
 * a link, whatever earlier entries have put there.
 *
 * Owns the descriptors of the directories used last and the list of directories whose
 * mode and time are set at the end (one of mode 0555 must still take its children).
 * bough_place_close frees both. The root descriptor is borrowed. */
#ifndef BOUGH_UNPACK_PLACE_H
#define BOUGH_UNPACK_PLACE_H

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "path.h"

/* The directory that was looked up last. */
struct bough_place_slot {
    int fd;
    size_t len;
    char path[PATH_MAX];
};

/* What a directory gets at the end. */
struct bough_place_late {
    char *path;
    size_t order; /* the last one of equal paths counts */
    mode_t mode;
    struct timespec mtime; /* tv_nsec UTIME_OMIT: leave it */
};

struct bough_place {
    int root;
    /* entries and hard link targets alternate, so each has its own */
    struct bough_place_slot entry, target;
    struct bough_place_late *late;
    size_t late_count, late_room, late_bytes;
    int64_t implied; /* directories made because an entry lies below them */
};

void bough_place_init(struct bough_place *place, int root);
void bough_place_close(struct bough_place *place);

/* The directory that holds `path`; borrowed, valid until the next call for the same slot. Missing
 * ones are made when `make`. Never leads through a symbolic link: that is kind invalid. */
int bough_place_parent(struct bough_place *place, struct bough_place_slot *slot,
                       const struct bough_path *path, int make, struct bough_err *err);

/* Removes what has the name of a new entry: an earlier non-directory or an empty directory. */
int bough_place_clear(struct bough_place *place, int dir, const char *name, struct bough_err *err);

/* Remembers what directory `path` gets at the end. */
int bough_place_later(struct bough_place *place, const char *path, mode_t mode,
                      struct timespec mtime, struct bough_err *err);

/* Sets all of them, children before parents. */
int bough_place_settle(struct bough_place *place, struct bough_err *err);

#endif
