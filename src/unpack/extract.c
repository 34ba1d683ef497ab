#define _GNU_SOURCE
#include "extract.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "../sys.h"
#include "attr.h"
#include "extraction.h"
#include "mark.h"
#include "object.h"

#define NOT_TAR "not a tar archive (plain, gzip, bzip2, xz, zstd, lz4)"

/* libarchive keeps the name of this one to itself. */
enum { READER_ERRNO_MISC = -1 };

/* A symbolic link for libarchive alone, in front of the archive. Until libarchive (3.6) has met a
 * link name in a header, it loses one that a pax record brings along with an empty field there, as
 * Go's writer does for names without any ASCII. */
static void primer_make(char header[512])
{
    unsigned sum = 0;
    memset(header, 0, 512);
    memcpy(header, "primer", 6);
    memcpy(header + 100, "0000644\0000000000\0000000000\00000000000000\00000000000000", 48);
    memcpy(header + 148, "        2primer", 15);
    memcpy(header + 257, "ustar\00000", 8);
    for (int i = 0; i < 512; i++)
        sum += (unsigned char)header[i];
    snprintf(header + 148, 8, "%06o", sum);
}

static la_ssize_t source_input(struct archive *a, void *arg, const void **data)
{
    struct bough_extraction *x = arg;
    (void)a;
    if (!x->primed) {
        x->primed = true;
        primer_make(x->primer);
        *data = x->primer;
        return sizeof x->primer;
    }
    if (x->source_failed)
        return ARCHIVE_FATAL;
    if (x->how->progress)
        x->how->progress(x->how->progress_arg);
    ssize_t n = bough_source_read(x->source, data, &x->source_err);
    x->source_failed = n < 0;
    return n < 0 ? ARCHIVE_FATAL : n;
}

int bough_reader_fail(struct bough_extraction *x)
{
    const char *why = archive_error_string(x->reader);
    if (x->source_failed) {
        *x->err = x->source_err;
        return -1;
    }
    if (archive_errno(x->reader) == ENOMEM)
        return bough_err_set(x->err, BOUGH_ERR_resource, "out of memory");
    /* some decompressors hand out a block before they have looked at its checksum */
    if (bough_source_finish(x->source, false, &x->source_err) < 0) {
        x->source_failed = true;
        *x->err = x->source_err;
        return -1;
    }
    return bough_err_set(x->err, BOUGH_ERR_corrupt, "%s", why ? why : "damaged");
}

static int files_count(struct bough_extraction *x)
{
    const struct bough_extract *how = x->how;
    int64_t count = how->files + how->skipped + x->whiteouts + x->place.implied;
    if (how->max_files && count > how->max_files)
        return bough_err_set(x->err, BOUGH_ERR_resource, "the archive holds more than %lld files",
                             (long long)how->max_files);
    return 0;
}

/* What the host shall not have, or nobody. */
static bool is_skipped(const struct bough_extraction *x)
{
    mode_t type = archive_entry_filetype(x->entry);
    return type == AE_IFCHR || type == AE_IFBLK || type == AE_IFSOCK ||
           (type == AE_IFIFO && x->how->mode == BOUGH_EXTRACT_PLAIN);
}

static int object_make(struct bough_extraction *x)
{
    const char *to = archive_entry_hardlink(x->entry);
    if (x->how->mode != BOUGH_EXTRACT_PLAIN && bough_xattrs_check(x) < 0)
        return -1;
    bool is_root = bough_path_is_root(&x->path);
    if (is_root && (to || archive_entry_filetype(x->entry) != AE_IFDIR))
        return bough_err_set(x->err, BOUGH_ERR_invalid, "is the root, but no directory");
    if (!to && is_skipped(x)) {
        x->how->skipped++;
        return files_count(x);
    }
    x->how->files += !is_root;
    if (files_count(x) < 0)
        return -1;
    int dir = bough_place_parent(&x->place, &x->place.entry, &x->path, true, x->err);
    if (dir < 0 || bough_place_real(&x->place.entry, &x->path, x->real, x->err) < 0)
        return -1;
    if ((to ? bough_object_link(x, dir, to) : bough_object_make(x, dir)) < 0)
        return -1;
    return x->place.made && !is_root ? bough_made_add(&x->made, x->real, x->err) : 0;
}

static int entry_make(struct bough_extraction *x)
{
    bool layer = x->how->mode == BOUGH_EXTRACT_LAYER;
    enum bough_mark mark = BOUGH_MARK_NONE;
    if (bough_path_set(&x->path, archive_entry_pathname(x->entry), layer, x->err) < 0 ||
        (layer && bough_mark_read(&x->path, &mark, x->err) < 0))
        return -1;
    if (mark == BOUGH_MARK_NONE)
        return object_make(x);
    x->whiteouts++;
    if (files_count(x) < 0)
        return -1;
    return mark == BOUGH_MARK_IGNORED ? 0 : bough_mark_apply(x, mark);
}

static int entries_read(struct bough_extraction *x)
{
    char last[BOUGH_QUOTE_MAX] = "", quoted[BOUGH_QUOTE_MAX];
    for (;;) {
        int r = archive_read_next_header(x->reader, &x->entry);
        if (r == ARCHIVE_EOF && x->source->out_bytes > 0)
            return bough_source_finish(x->source, true, x->err);
        /* There are two warnings: a name that is not of this locale, and then we get its bytes,
         * which is what we want; or a pax record that makes no sense. */
        if (r != ARCHIVE_OK &&
            (r != ARCHIVE_WARN || archive_errno(x->reader) == READER_ERRNO_MISC)) {
            bough_reader_fail(x);
            if (!x->source_failed && !*last && r != ARCHIVE_WARN &&
                x->err->kind == BOUGH_ERR_corrupt)
                return bough_err_set(x->err, BOUGH_ERR_invalid, NOT_TAR);
            return *last ? bough_err_wrap(x->err, "archive after entry %s", last) : -1;
        }
        const char *name = archive_entry_pathname(x->entry);
        if (entry_make(x) < 0)
            return bough_err_wrap(x->err, "archive entry %s", bough_path_quote(quoted, name));
        bough_path_quote(last, name);
    }
}

/* Plain tar only. Filters are not enabled: the source has taken the compression off. */
static int reader_open(struct bough_extraction *x)
{
    x->reader = archive_read_new();
    if (!x->reader)
        return bough_err_set(x->err, BOUGH_ERR_resource, "out of memory");
    int r = archive_read_support_format_tar(x->reader);
    if (r == ARCHIVE_OK)
        r = archive_read_open(x->reader, x, NULL, source_input, NULL);
    if (r == ARCHIVE_OK)
        r = archive_read_next_header(x->reader, &x->entry); /* the primer */
    return r == ARCHIVE_OK ? 0 : bough_reader_fail(x);
}

static int root_examine(struct bough_extraction *x)
{
    struct stat st;
    if (fstat(x->how->root, &st) < 0)
        return bough_err_sys(x->err, errno, "output directory");
    x->uid = geteuid();
    x->gid = getegid();
    x->place.root_gives_group = st.st_mode & S_ISGID;
    return 0;
}

int bough_extract_tar(struct bough_extract *how, struct bough_source *source, struct bough_err *err)
{
    BOUGH_CLEANUP_FREE struct bough_extraction *x = calloc(1, sizeof *x);
    bool layer = how->mode == BOUGH_EXTRACT_LAYER;
    if (!x)
        return bough_err_set(err, BOUGH_ERR_resource, "out of memory");
    x->how = how;
    x->source = source;
    x->err = err;
    how->bytes = how->files = how->skipped = 0;
    bough_place_init(&x->place, how->root, layer ? &x->made : NULL);
    int r = layer ? bough_made_init(&x->made, err) : 0;
    if (r == 0)
        r = root_examine(x);
    if (r == 0)
        r = reader_open(x);
    if (r == 0)
        r = entries_read(x);
    if (r == 0)
        r = bough_place_settle(&x->place, err);
    archive_read_free(x->reader);
    bough_place_close(&x->place);
    bough_made_close(&x->made);
    how->files += x->place.implied;
    return r;
}
