/* source.h - where the bytes of the tar archive come from.
 *
 * A plain archive is read as it is. A compressed one is decompressed by a process of its own,
 * which can do nothing but read and write (it is the part that meets the most hostile bytes), and
 * which runs beside the one that writes files. That one does the hashing, so that what a
 * subverted decompressor hands over is not vouched for by itself. The source owns its buffer, the
 * pipe, the hash and that process; bough_source_close frees all of them, and is idempotent. */
#ifndef BOUGH_UNPACK_SOURCE_H
#define BOUGH_UNPACK_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "../err.h"
#include "hasher.h"

enum bough_codec {
    BOUGH_CODEC_PLAIN,
    BOUGH_CODEC_GZIP,
    BOUGH_CODEC_BZIP2,
    BOUGH_CODEC_XZ,
    BOUGH_CODEC_ZSTD,
    BOUGH_CODEC_LZ4,
};

/* What the decoder tells, in memory that both share. It is as trustworthy as
 * the decoder: every field is checked where it is used. */
struct bough_decoded {
    _Atomic int64_t in_bytes;
    _Atomic int failed; /* `err` has been filled */
    struct bough_err err;
};

struct bough_source {
    int fd; /* borrowed while plain, else our end of the pipe, owned */
    enum bough_codec codec;
    char *buffer;  /* blocks in turn: the hasher is still at the ones before */
    size_t block;  /* the one to be filled next, or that holds the */
    size_t peeked; /* bytes that nobody has taken yet */
    bool ended;
    int64_t in_bytes; /* of a plain archive */
    int64_t out_bytes;
    pid_t decoder; /* 0 when there is none */
    int pidfd;
    struct bough_decoded *decoded;
    struct bough_hasher *hasher; /* of what bough_source_read has given; owned; NULL: not wanted */
};

/* For a `source` that is zero but for its hasher, which is optional. Reads the first block of `fd`
 * and tells the compression by its first bytes; nothing is parsed. */
int bough_source_open(struct bough_source *source, int fd, struct bough_err *err);

/* Starts the decoder and the hasher where they are needed. Forks: comes before the seal. */
int bough_source_start(struct bough_source *source, struct bough_err *err);

/* The next bytes, valid until the next call: their number, 0 at the end, -1 on failure. */
ssize_t bough_source_read(struct bough_source *source, const void **data, struct bough_err *err);

/* After the end of the tar archive: reads the rest of a compressed stream, so that its checksums have
 * been looked at; and of any that is hashed, when `whole`. */
int bough_source_finish(struct bough_source *source, bool whole, struct bough_err *err);

/* Bytes of the archive read so far, compressed as they are. */
int64_t bough_source_position(const struct bough_source *source);

void bough_source_close(struct bough_source *source);

#endif
