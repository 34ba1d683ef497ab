#define _GNU_SOURCE
#include "decode.h"

#include <archive.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>

#include "../sys.h"

enum { BLOCK_BYTES = 256 * 1024 };

/* No real tree does this: 2 GiB out of less than 1 MiB. */
#define BOMB_BYTES ((int64_t)2 << 30)
#define BOMB_RATIO 2000

struct decoder {
    const char *head;
    size_t head_len;
    int in_fd, out_fd;
    int64_t out_bytes;
    struct bough_decoded *decoded;
    struct bough_err *err;
    bool failed;   /* `err` tells why: what libarchive says about it is not the cause */
    bool unwanted; /* the reader has gone */
    char block[BLOCK_BYTES];
};

ssize_t bough_read_wait(int fd, void *buffer, size_t size)
{
    for (;;) {
        ssize_t n = read(fd, buffer, size);
        if (n >= 0 || (errno != EINTR && errno != EAGAIN))
            return n;
        if (errno == EAGAIN) {
            struct pollfd p = {.fd = fd, .events = POLLIN};
            (void)poll(&p, 1, -1);
        }
    }
}

static int fail_set(struct decoder *d, int result)
{
    d->failed = true;
    return result;
}

/* The next compressed bytes; 0 at the end. */
static ssize_t input_next(struct decoder *d, const void **data)
{
    ssize_t n;
    if (d->head_len) {
        n = (ssize_t)d->head_len;
        *data = d->head;
        d->head_len = 0;
    } else {
        n = bough_read_wait(d->in_fd, d->block, sizeof d->block);
        if (n < 0)
            return fail_set(d, bough_err_sys(d->err, errno, "read the archive"));
        *data = d->block;
    }
    d->decoded->in_bytes += n;
    return n;
}

static int output_put(struct decoder *d, const char *data, size_t size)
{
    d->out_bytes += (int64_t)size;
    if (d->out_bytes > BOMB_BYTES && d->out_bytes / BOMB_RATIO > d->decoded->in_bytes)
        return fail_set(d, bough_err_set(d->err, BOUGH_ERR_resource,
                                         "looks like a decompression bomb: more than %d MiB "
                                         "out of %lld KiB",
                                         (int)(BOMB_BYTES >> 20),
                                         (long long)d->decoded->in_bytes >> 10));
    while (size) {
        ssize_t n = BOUGH_RETRY(write(d->out_fd, data, size));
        if (n < 0) {
            d->unwanted = errno == EPIPE;
            return d->unwanted ? -1 : fail_set(d, bough_err_sys(d->err, errno, "write"));
        }
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

static int gzip_fail(struct decoder *d, const z_stream *z, int result)
{
    if (result == Z_MEM_ERROR)
        return bough_err_set(d->err, BOUGH_ERR_resource, "gzip: out of memory");
    return bough_err_set(d->err, BOUGH_ERR_corrupt, "corrupt gzip data: %s",
                         z->msg ? z->msg : "no reason given");
}

/* More input when there is none left, or a second byte beside a last one: a member's
 * magic may lie across two blocks. */
static int gzip_fill(struct decoder *d, z_stream *z, unsigned char carry[2])
{
    if (z->avail_in == 1 && z->next_in != carry) {
        carry[0] = *z->next_in;
        ssize_t n = bough_read_wait(d->in_fd, carry + 1, 1);
        if (n < 0)
            return fail_set(d, bough_err_sys(d->err, errno, "read the archive"));
        d->decoded->in_bytes += n;
        z->next_in = carry;
        z->avail_in = (uInt)(1 + n);
    } else if (!z->avail_in) {
        const void *data = NULL;
        ssize_t n = input_next(d, &data);
        if (n < 0)
            return -1;
        z->next_in = (Bytef *)(uintptr_t)data;
        z->avail_in = (uInt)n;
    }
    return 0;
}

static int gzip_members(struct decoder *d, z_stream *z, unsigned char *out)
{
    unsigned char carry[2];
    for (bool first = true;; first = false) {
        if (gzip_fill(d, z, carry) < 0 || (z->avail_in == 1 && gzip_fill(d, z, carry) < 0))
            return -1;
        /* after the first member anything else is padding, as gzip itself sees it */
        if (!first && (z->avail_in < 2 || z->next_in[0] != 0x1f || z->next_in[1] != 0x8b))
            return 0;
        int r;
        do {
            if (!z->avail_in && gzip_fill(d, z, carry) < 0)
                return -1;
            if (!z->avail_in)
                return bough_err_set(d->err, BOUGH_ERR_corrupt, "truncated gzip data");
            z->next_out = out;
            z->avail_out = BLOCK_BYTES;
            r = inflate(z, Z_NO_FLUSH);
            if (r != Z_OK && r != Z_STREAM_END && r != Z_BUF_ERROR)
                return gzip_fail(d, z, r);
            if (output_put(d, (char *)out, BLOCK_BYTES - z->avail_out) < 0)
                return -1;
        } while (r != Z_STREAM_END);
        if (inflateReset(z) != Z_OK)
            return gzip_fail(d, z, Z_STREAM_ERROR);
    }
}

static int gzip_decode(struct decoder *d)
{
    BOUGH_CLEANUP_FREE unsigned char *out = malloc(BLOCK_BYTES);
    z_stream z = {.zalloc = Z_NULL};
    /* 15: the largest window; 16: gzip, with its header and checksum */
    if (!out || inflateInit2(&z, 15 + 16) != Z_OK)
        return bough_err_set(d->err, BOUGH_ERR_resource, "gzip: out of memory");
    int r = gzip_members(d, &z, out);
    inflateEnd(&z);
    return r;
}

static la_ssize_t filter_input(struct archive *a, void *arg, const void **data)
{
    (void)a;
    ssize_t n = input_next(arg, data);
    return n < 0 ? ARCHIVE_FATAL : n;
}

static int filter_fail(struct decoder *d, struct archive *a)
{
    if (d->failed || d->unwanted)
        return -1;
    const char *why = archive_error_string(a);
    /* a window larger than zstd wants to allocate has no errno of its own */
    bool memory = archive_errno(a) == ENOMEM || (why && strstr(why, "too much memory"));
    enum bough_err_kind kind = memory ? BOUGH_ERR_resource : BOUGH_ERR_corrupt;
    return bough_err_set(d->err, kind, "%s data: %s",
                         memory ? "cannot decompress the" : "corrupt or truncated",
                         why ? why : "no reason given");
}

static int filter_copy(struct decoder *d, struct archive *a)
{
    struct archive_entry *entry;
    int r = archive_read_open(a, d, NULL, filter_input, NULL);
    /* the decompressor itself and the bottom of the stack */
    if (r == ARCHIVE_OK && archive_filter_count(a) > 2)
        return bough_err_set(d->err, BOUGH_ERR_invalid, "is compressed more than once");
    if (r == ARCHIVE_OK)
        r = archive_read_next_header(a, &entry);
    if (r != ARCHIVE_OK)
        return filter_fail(d, a);
    for (;;) {
        const void *data;
        size_t size;
        la_int64_t offset;
        r = archive_read_data_block(a, &data, &size, &offset);
        if (r == ARCHIVE_EOF)
            return 0;
        if (r != ARCHIVE_OK)
            return filter_fail(d, a);
        if (output_put(d, data, size) < 0)
            return -1;
    }
}

static int filter_decode(struct decoder *d, enum bough_codec codec)
{
    struct archive *a = archive_read_new();
    if (!a)
        return bough_err_set(d->err, BOUGH_ERR_resource, "out of memory");
    int r = ARCHIVE_FATAL;
    switch (codec) {
    case BOUGH_CODEC_BZIP2:
        r = archive_read_support_filter_bzip2(a);
        break;
    case BOUGH_CODEC_XZ:
        r = archive_read_support_filter_xz(a);
        break;
    case BOUGH_CODEC_ZSTD:
        r = archive_read_support_filter_zstd(a);
        break;
    case BOUGH_CODEC_LZ4:
        r = archive_read_support_filter_lz4(a);
        break;
    case BOUGH_CODEC_PLAIN:
    case BOUGH_CODEC_GZIP:
        break;
    }
    /* ARCHIVE_WARN: built without that library, libarchive would start a program */
    if (r != ARCHIVE_OK)
        r = bough_err_set(d->err, BOUGH_ERR_unsupported,
                          "this libarchive cannot read the compression");
    else if (archive_read_support_format_raw(a) != ARCHIVE_OK)
        r = filter_fail(d, a);
    else
        r = filter_copy(d, a);
    archive_read_free(a);
    return r;
}

int bough_decode(enum bough_codec codec, const char *head, size_t head_len, int in_fd, int out_fd,
                 struct bough_decoded *decoded, struct bough_err *err)
{
    BOUGH_CLEANUP_FREE struct decoder *d = malloc(sizeof *d);
    if (!d)
        return bough_err_set(err, BOUGH_ERR_resource, "out of memory");
    d->head = head;
    d->head_len = head_len;
    d->in_fd = in_fd;
    d->out_fd = out_fd;
    d->out_bytes = 0;
    d->decoded = decoded;
    d->err = err;
    d->failed = d->unwanted = false;
    int r = codec == BOUGH_CODEC_GZIP ? gzip_decode(d) : filter_decode(d, codec);
    return d->unwanted ? 0 : r;
}
