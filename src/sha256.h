/* sha256.h - SHA-256 (FIPS 180-4), by libcrypto, with the names and errors of this code.
 *
 * A state is one allocation; updating never fails once it is there. */
#ifndef BOUGH_SHA256_H
#define BOUGH_SHA256_H

#include <stddef.h>

#define BOUGH_SHA256_HEX 65 /* 64 lower-case digits and the NUL */

struct bough_sha256;

struct bough_sha256 *bough_sha256_new(void); /* NULL: no memory */
void bough_sha256_free(struct bough_sha256 *state);
void bough_sha256_update(struct bough_sha256 *state, const void *data, size_t size);
/* The digest so far; the state can be updated further. */
void bough_sha256_hex(const struct bough_sha256 *state, char hex[BOUGH_SHA256_HEX]);

#endif
