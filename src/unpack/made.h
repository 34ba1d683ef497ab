/* made.h - which paths of the tree this archive has made: eight bytes for each.
 *
 * A layer's whiteouts mean what lay there before the layer, never the layer's own files. Paths are
 * kept as fingerprints under a key drawn at random, so that no archive can be written in which two of its
 * names meet. bough_made_close frees the table. */
#ifndef BOUGH_UNPACK_MADE_H
#define BOUGH_UNPACK_MADE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../err.h"

/* What stands for the root of the tree. */
#define BOUGH_MADE_ROOT ((uint64_t)0)

struct bough_made {
    uint64_t key;
    uint64_t *slots; /* open addressing; 0: free */
    size_t count, room;
};

int bough_made_init(struct bough_made *made, struct bough_err *err);
void bough_made_close(struct bough_made *made);

/* The fingerprint of `name` (`len` bytes: components without a slash at either end) in `dir`. */
uint64_t bough_made_below(const struct bough_made *made, uint64_t dir, const char *name,
                          size_t len);

bool bough_made_has(const struct bough_made *made, uint64_t print);

/* Adds `path` ("a/b/c", no symbolic link in it) and all directories above it. */
int bough_made_add(struct bough_made *made, const char *path, struct bough_err *err);

#endif
