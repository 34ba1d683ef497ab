/* decode.h - the decompressors: bytes from one descriptor to another.
 *
 * gzip is done with zlib directly, because libarchive ignores its checksum; the others by
 * libarchive. Exactly one layer of compression is taken off. */
#ifndef BOUGH_UNPACK_DECODE_H
#define BOUGH_UNPACK_DECODE_H

#include "source.h"

/* Decompresses `head` (bytes already read) and the rest of `in_fd` to `out_fd`. Stops without an
 * error when nobody reads any more. `decoded->in_bytes` is kept up to date. */
int bough_decode(enum bough_codec codec, const char *head, size_t head_len, int in_fd, int out_fd,
                 struct bough_decoded *decoded, struct bough_err *err);

/* read(2) that waits when the descriptor is not blocking. */
ssize_t bough_read_wait(int fd, void *buffer, size_t size);

#endif
