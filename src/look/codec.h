/* codec.h - compresses a stream of bytes: gzip and zstd by libarchive, or nothing at all.
 *
 * The same bytes give the same bytes: no time, no name, no padding. */
#ifndef BOUGH_LOOK_CODEC_H
#define BOUGH_LOOK_CODEC_H

#include <stdbool.h>
#include <stddef.h>

#include "../err.h"

struct archive;
struct bough_codec {
    /* takes what comes out; -1 with err */
    int (*put)(void *arg, const void *data, size_t size, struct bough_err *err);
    void *arg;
    struct archive *writer; /* NULL: bytes pass as they are */
    struct bough_err err;   /* why put has failed, which libarchive cannot tell */
    bool failed;
};

/* "none", "gzip" or "zstd". Fill in `put` and `arg` of a zeroed one first; it stays in its place. */
int bough_codec_start(struct bough_codec *c, const char *name, struct bough_err *err);
int bough_codec_write(struct bough_codec *c, const void *data, size_t size, struct bough_err *err);
int bough_codec_end(struct bough_codec *c, struct bough_err *err);
/* Fine on a zeroed one; writes nothing. */
void bough_codec_free(struct bough_codec *c);

#endif
