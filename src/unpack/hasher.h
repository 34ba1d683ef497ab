/* hasher.h - hashes the archive beside the thread that unpacks it.
 *
 * A thread of its own, in the jail like its process. It reads the blocks where they lie, so that nobody
 * may write to one before bough_hasher_wait has said that it is done with. */
#ifndef BOUGH_UNPACK_HASHER_H
#define BOUGH_UNPACK_HASHER_H

#include <stddef.h>

#include "../err.h"
#include "../sha256.h"

struct bough_hasher;

/* Comes before the jail, for libcrypto reads its configuration now. NULL on failure. */
struct bough_hasher *bough_hasher_new(struct bough_err *err);

/* Starts the thread: after the last fork and before the seal. */
int bough_hasher_start(struct bough_hasher *hasher, struct bough_err *err);

void bough_hasher_put(struct bough_hasher *hasher, const void *data, size_t size);

/* Waits until at most `pending` of the blocks given are still to be hashed. */
void bough_hasher_wait(struct bough_hasher *hasher, size_t pending);

/* Of all that has been put. */
void bough_hasher_hex(struct bough_hasher *hasher, char hex[BOUGH_SHA256_HEX]);

void bough_hasher_free(struct bough_hasher *hasher);

/* How many blocks may be pending. */
enum { BOUGH_HASHER_BLOCKS = 4 };

#endif
