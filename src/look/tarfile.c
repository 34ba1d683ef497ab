/* Holes are written in GNU's sparse format 1.0, which GNU tar, libarchive and Go's archive/tar read: a
 * map in decimal in front of the data, the data without gaps. GNU tar takes each piece from a new block on,
 * the others take the pieces in a row, so that only pieces of whole blocks suit all.
 *
 * The map's length must be known before it is written. Rather than to keep the map in memory, the file
 * is asked again: once to count, once for the map, once for the data. All three must agree. */
#define _GNU_SOURCE
#include "tarfile.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "../sys.h"

#define BLOCK 512
/* Go's archive/tar refuses maps beyond 1 MiB. */
#define MAP_MAX (INT64_C(512) << 10)

struct piece {
    off_t at, end;
};

/* What there is to write for a file with holes. */
struct plan {
    off_t size;
    off_t least; /* holes smaller than this are written out */
    int64_t pieces, text, data;
};

static int changed(struct bough_err *err)
{
    return bough_err_set(err, BOUGH_ERR_io, "has changed while it was read");
}

/* ---- where the data is ---- */

/* The next piece from `from` on: 1, 0 when only a hole is left, -1 with errno. */
static int piece_next(int fd, const struct plan *p, off_t from, struct piece *out)
{
    off_t data = from < p->size ? lseek(fd, from, SEEK_DATA) : p->size;
    if (data < 0)
        return errno == ENXIO ? 0 : -1;
    if (data >= p->size)
        return 0;
    out->at = data - data % BLOCK;
    for (;;) {
        off_t hole = lseek(fd, data, SEEK_HOLE);
        if (hole < 0)
            return -1;
        if (hole <= data) {
            errno = ESTALE;
            return -1;
        }
        out->end = hole + (BLOCK - hole % BLOCK) % BLOCK;
        if (out->end >= p->size) {
            out->end = p->size;
            return 1;
        }
        data = lseek(fd, out->end, SEEK_DATA);
        if (data < 0)
            return errno == ENXIO ? 1 : -1;
        if (data >= p->size || data - data % BLOCK - out->end >= p->least)
            return 1;
    }
}

static int piece_line(char line[48], off_t at, int64_t size)
{
    return snprintf(line, 48, "%" PRId64 "\n%" PRId64 "\n", (int64_t)at, size);
}

/* Writes the map into the archive, or with `t` NULL only counts. */
static int map_put(struct bough_tar *t, struct plan *p, int fd, struct bough_err *err)
{
    struct piece piece = {0};
    char line[48];
    int rc;
    p->pieces = p->text = p->data = 0;
    while ((rc = piece_next(fd, p, piece.end, &piece)) > 0) {
        int n = piece_line(line, piece.at, piece.end - piece.at);
        p->pieces++;
        p->text += n;
        p->data += piece.end - piece.at;
        if (t && bough_tar_write(t, line, (size_t)n, err))
            return -1;
    }
    if (rc < 0)
        return bough_err_sys(err, errno, "look for holes");
    if (piece.end < p->size) { /* tells GNU tar how long the file is */
        int n = piece_line(line, p->size, 0);
        p->pieces++;
        p->text += n;
        if (t && bough_tar_write(t, line, (size_t)n, err))
            return -1;
    }
    return 0;
}

/* 1 when there are holes worth a map. */
static int plan_make(struct plan *p, int fd, const struct stat *st, struct bough_err *err)
{
    struct piece first;
    *p = (struct plan){.size = st->st_size, .least = 4096};
    if ((int64_t)st->st_blocks * 512 >= st->st_size)
        return 0;
    int rc = piece_next(fd, p, 0, &first);
    if (rc < 0) /* a file system that does not tell */
        return 0;
    if (rc > 0 && first.at == 0 && first.end == p->size)
        return 0;
    if (map_put(NULL, p, fd, err))
        return -1;
    while (p->text > MAP_MAX) {
        p->least *= 4;
        if (map_put(NULL, p, fd, err))
            return -1;
    }
    return 1;
}

/* ---- content ---- */

static int data_put(struct bough_tar *t, int fd, off_t at, off_t end, struct bough_err *err)
{
    while (at < end) {
        size_t room;
        char *to = bough_tar_room(t, &room, err);
        if (!to)
            return -1;
        size_t want = end - at < (off_t)room ? (size_t)(end - at) : room;
        ssize_t n = BOUGH_RETRY(pread(fd, to, want, at));
        if (n < 0)
            return bough_err_sys(err, errno, "read");
        if (n == 0)
            return bough_err_set(err, BOUGH_ERR_io, "has shrunk while it was read");
        bough_tar_took(t, (size_t)n);
        at += n;
    }
    return 0;
}

static int pieces_put(struct bough_tar *t, int fd, const struct plan *p, struct bough_err *err)
{
    struct piece piece = {0};
    int64_t left = p->data;
    int rc;
    while ((rc = piece_next(fd, p, piece.end, &piece)) > 0) {
        left -= piece.end - piece.at;
        if (left < 0)
            return changed(err);
        if (data_put(t, fd, piece.at, piece.end, err))
            return -1;
    }
    if (rc < 0)
        return bough_err_sys(err, errno, "look for holes");
    return left ? changed(err) : 0;
}

static int sparse_put(struct bough_tar *t, struct bough_tar_entry *e, int fd, const struct plan *p,
                      struct bough_err *err)
{
    struct plan again = *p;
    char line[24];
    int n = snprintf(line, sizeof line, "%" PRId64 "\n", p->pieces);
    int64_t map = n + p->text;
    e->sparse = true;
    e->real_size = p->size;
    e->size = map + (BLOCK - map % BLOCK) % BLOCK + p->data;
    if (bough_tar_header(t, e, err) || bough_tar_write(t, line, (size_t)n, err) ||
        map_put(t, &again, fd, err))
        return -1;
    if (again.pieces != p->pieces || again.text != p->text || again.data != p->data)
        return changed(err);
    if (bough_tar_pad(t, err) || pieces_put(t, fd, p, err))
        return -1;
    return bough_tar_pad(t, err);
}

int bough_tar_file(struct bough_tar *t, struct bough_tar_entry *e, int fd, const struct stat *st,
                   bool holes, struct bough_err *err)
{
    struct plan plan;
    int rc = holes ? plan_make(&plan, fd, st, err) : 0;
    if (rc < 0)
        return -1;
    if (rc > 0)
        return sparse_put(t, e, fd, &plan, err);
    e->sparse = false;
    e->size = st->st_size;
    if (bough_tar_header(t, e, err) || data_put(t, fd, 0, st->st_size, err))
        return -1;
    return bough_tar_pad(t, err);
}
