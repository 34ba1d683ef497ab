/* place.h - where an entry goes: directories below the output root, whatever earlier entries have
 * put there.
 *
 * An archive of its own never leads through a symbolic link. A layer lies over a tree that has
 * links already (/bin -> usr/bin), and its names lead through them as in a process whose root this is:
 * the links are read one by one, and what is opened is the path without any, so that a place has one
 * name only. The last component is never followed.
 *
 * Owns the descriptors of the directories used last and the list of directories whose
 * mode and time are set at the end (one of mode 0555 must still take its children).
 * bough_place_close frees both. The root descriptor is borrowed. */
#ifndef BOUGH_UNPACK_PLACE_H
#define BOUGH_UNPACK_PLACE_H

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "made.h"
#include "path.h"

/* The directory that was looked up last. */
struct bough_place_slot {
    int fd;
    size_t len; /* of `path`; 0: none */
    char path[PATH_MAX];
    char real[PATH_MAX]; /* the same without links */
    bool gives_group;    /* new files in it get its group, not ours */
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
    bool root_gives_group;
    struct bough_made *made; /* of a layer: what it has made so far, borrowed; else NULL */
    /* entries and hard link targets alternate, so each has its own */
    struct bough_place_slot entry, target;
    struct bough_place_late *late;
    size_t late_count, late_room, late_bytes;
    int64_t implied; /* directories made because an entry lies below them */
};

void bough_place_init(struct bough_place *place, int root, struct bough_made *made);
void bough_place_close(struct bough_place *place);

/* The directory that holds `path`; borrowed, valid until the next call for the same slot. Missing
 * ones are made when `make`. Kind invalid where it would lead through what is no directory. */
int bough_place_parent(struct bough_place *place, struct bough_place_slot *slot,
                       const struct bough_path *path, int make, struct bough_err *err);

/* The path, without links, of what `path` names; its directory has just been found with `slot`. */
int bough_place_real(const struct bough_place_slot *slot, const struct bough_path *path,
                     char real[PATH_MAX], struct bough_err *err);

/* Removes what has the name of a new entry: an earlier non-directory or an empty directory; and, of
 * the layers below, anything. `real` is its path. */
int bough_place_clear(struct bough_place *place, int dir, const char *name, const char *real,
                      struct bough_err *err);

/* Whether new files beside `path`, whose directory has just been found for an entry, get its group. */
bool bough_place_gives_group(const struct bough_place *place, const struct bough_path *path);

/* Whether a layer below has `real`, and not this archive. */
bool bough_place_is_lower(const struct bough_place *place, const char *real);

/* Directories have gone, or links have changed: what was looked up is to be looked up again. */
void bough_place_forget(struct bough_place *place);

/* Remembers what directory `path` gets at the end. */
int bough_place_later(struct bough_place *place, const char *path, mode_t mode,
                      struct timespec mtime, struct bough_err *err);

/* Sets all of them, children before parents. */
int bough_place_settle(struct bough_place *place, struct bough_err *err);

#endif
