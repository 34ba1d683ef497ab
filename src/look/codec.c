#include "codec.h"

#include <archive.h>
#include <archive_entry.h>
#include <string.h>

#include "../sys.h"

#define CODEC_BYTES (64 << 10)

static la_ssize_t codec_output(struct archive *a, void *arg, const void *data, size_t size)
{
    struct bough_codec *c = arg;
    (void)a;
    if (c->failed || c->put(c->arg, data, size, &c->err)) {
        c->failed = true;
        return -1;
    }
    return (la_ssize_t)size;
}

static int codec_fail(struct bough_codec *c, struct bough_err *err)
{
    const char *why = archive_error_string(c->writer);
    if (!c->failed && archive_errno(c->writer) == ENOMEM)
        return bough_err_sys(err, ENOMEM, "compress");
    if (!c->failed)
        return bough_err_set(err, BOUGH_ERR_io, "compress: %s", why ? why : "failed");
    if (err)
        *err = c->err;
    return -1;
}

static int filter_add(struct archive *writer, const char *name, struct bough_err *err)
{
    if (!strcmp(name, "gzip"))
        /* zlib is always there; a time in the header would make each run's bytes different */
        return archive_write_add_filter_gzip(writer) != ARCHIVE_OK ||
                       archive_write_set_filter_option(writer, "gzip", "timestamp", NULL)
                   ? bough_err_set(err, BOUGH_ERR_io, "compress: %s", archive_error_string(writer))
                   : 0;
    if (strcmp(name, "zstd") != 0)
        return bough_err_set(err, BOUGH_ERR_invalid, "--compress %.40s: give none, gzip or zstd",
                             name);
    /* without the library it would run a program */
    if (archive_write_add_filter_zstd(writer) != ARCHIVE_OK)
        return bough_err_set(err, BOUGH_ERR_unsupported,
                             "--compress zstd: this machine's libarchive is built without zstd");
    return 0;
}

/* Raw: the filter's output and nothing around it. */
static int writer_open(struct bough_codec *c)
{
    struct archive *w = c->writer;
    struct archive_entry *entry = archive_entry_new();
    if (!entry)
        return ARCHIVE_FATAL;
    archive_entry_set_filetype(entry, AE_IFREG);
    int rc = archive_write_set_format_raw(w);
    if (rc == ARCHIVE_OK)
        rc = archive_write_set_bytes_per_block(w, CODEC_BYTES);
    if (rc == ARCHIVE_OK)
        rc = archive_write_set_bytes_in_last_block(w, 1);
    if (rc == ARCHIVE_OK)
        rc = archive_write_open(w, c, NULL, codec_output, NULL);
    if (rc == ARCHIVE_OK)
        rc = archive_write_header(w, entry);
    archive_entry_free(entry);
    return rc;
}

int bough_codec_start(struct bough_codec *c, const char *name, struct bough_err *err)
{
    if (!strcmp(name, "none"))
        return 0;
    c->writer = archive_write_new();
    if (!c->writer)
        return bough_err_sys(err, ENOMEM, "compress");
    if (filter_add(c->writer, name, err))
        return -1;
    return writer_open(c) == ARCHIVE_OK ? 0 : codec_fail(c, err);
}

int bough_codec_write(struct bough_codec *c, const void *data, size_t size, struct bough_err *err)
{
    if (!c->writer)
        return c->put(c->arg, data, size, err);
    while (size) {
        la_ssize_t n = archive_write_data(c->writer, data, size);
        if (n <= 0)
            return codec_fail(c, err);
        data = (const char *)data + n;
        size -= (size_t)n;
    }
    return 0;
}

int bough_codec_end(struct bough_codec *c, struct bough_err *err)
{
    if (c->writer && archive_write_close(c->writer) != ARCHIVE_OK)
        return codec_fail(c, err);
    return 0;
}

void bough_codec_free(struct bough_codec *c)
{
    if (!c->writer)
        return;
    /* closing, which freeing brings along, would write */
    archive_write_fail(c->writer);
    archive_write_free(c->writer);
    c->writer = NULL;
}
