#include "tar.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "../sys.h"

#define BLOCK ((size_t)512)
#define OCTAL_7 INT64_C(07777777)
#define OCTAL_11 INT64_C(077777777777)

/* POSIX.1-2017, pax, "ustar Interchange Format". */
struct header {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], sum[8], type, link[100];
    char magic[8], uname[32], gname[32], major[8], minor[8], prefix[155], rest[12];
};
_Static_assert(sizeof(struct header) == BLOCK, "a header is one block");

int bough_tar_start(struct bough_tar *t, struct bough_err *err)
{
    t->buf = malloc(BOUGH_TAR_BYTES);
    return t->buf ? 0 : bough_err_sys(err, ENOMEM, "pack");
}

void bough_tar_free(struct bough_tar *t)
{
    free(t->buf);
    free(t->records);
    t->buf = t->records = NULL;
}

/* ---- bytes ---- */

char *bough_tar_room(struct bough_tar *t, size_t *room, struct bough_err *err)
{
    if (t->len == BOUGH_TAR_BYTES) {
        t->len = 0;
        if (t->put(t->arg, t->buf, BOUGH_TAR_BYTES, err))
            return NULL;
    }
    *room = BOUGH_TAR_BYTES - t->len;
    return t->buf + t->len;
}

void bough_tar_took(struct bough_tar *t, size_t size)
{
    t->len += size;
}

int bough_tar_write(struct bough_tar *t, const void *data, size_t size, struct bough_err *err)
{
    while (size) {
        size_t room;
        char *to = bough_tar_room(t, &room, err);
        if (!to)
            return -1;
        size_t n = size < room ? size : room;
        memcpy(to, data, n);
        bough_tar_took(t, n);
        data = (const char *)data + n;
        size -= n;
    }
    return 0;
}

int bough_tar_pad(struct bough_tar *t, struct bough_err *err)
{
    static const char zeros[BLOCK];
    /* the buffer holds whole blocks, so its fill tells where in a block we are */
    size_t over = t->len % BLOCK;
    return over ? bough_tar_write(t, zeros, BLOCK - over, err) : 0;
}

int bough_tar_end(struct bough_tar *t, struct bough_err *err)
{
    static const char zeros[2 * BLOCK];
    if (bough_tar_write(t, zeros, sizeof zeros, err))
        return -1;
    size_t len = t->len;
    t->len = 0;
    return t->put(t->arg, t->buf, len, err);
}

/* ---- records ---- */

static size_t decimal_digits(size_t n)
{
    size_t digits = 1;
    while (n >= 10) {
        n /= 10;
        digits++;
    }
    return digits;
}

int bough_tar_record(struct bough_tar *t, const char *space, const char *key, const void *value,
                     size_t size, struct bough_err *err)
{
    /* "length space key = value newline", where the length counts its own digits */
    size_t rest = 1 + strlen(space) + strlen(key) + 1 + size + 1;
    size_t len = rest + decimal_digits(rest);
    len = rest + decimal_digits(len);
    if (len > BOUGH_TAR_RECORDS_MAX - t->records_len)
        return bough_err_set(err, BOUGH_ERR_unsupported,
                             "name and attributes take more than 1 MiB, which no tar reader takes");
    if (t->records_len + len + 1 > t->records_room) {
        size_t room = (t->records_len + len) * 2 + 1024;
        char *bigger = realloc(t->records, room);
        if (!bigger)
            return bough_err_sys(err, ENOMEM, "pack");
        t->records = bigger;
        t->records_room = room;
    }
    char *at = t->records + t->records_len;
    at += sprintf(at, "%zu %s%s=", len, space, key);
    memcpy(at, value, size);
    at[size] = '\n';
    t->records_len += len;
    return 0;
}

static int record_text(struct bough_tar *t, const char *key, const char *text,
                       struct bough_err *err)
{
    return bough_tar_record(t, "", key, text, strlen(text), err);
}

static int record_number(struct bough_tar *t, const char *key, int64_t number,
                         struct bough_err *err)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, number);
    return record_text(t, key, text, err);
}

/* Decimal, as in POSIX: -1.5 is half a second before -1. */
static int record_time(struct bough_tar *t, const char *key, struct timespec time,
                       struct bough_err *err)
{
    char text[48];
    int64_t seconds = time.tv_sec;
    long nanoseconds = time.tv_nsec;
    const char *sign = seconds < 0 ? "-" : "";
    if (seconds < 0 && nanoseconds > 0) {
        seconds++;
        nanoseconds = 1000000000 - nanoseconds;
    }
    uint64_t whole = seconds < 0 ? -(uint64_t)seconds : (uint64_t)seconds;
    int n = snprintf(text, sizeof text, "%s%" PRIu64 ".%09ld", sign, whole, nanoseconds);
    while (text[n - 1] == '0')
        n--;
    n -= text[n - 1] == '.';
    return bough_tar_record(t, "", key, text, (size_t)n, err);
}

/* ---- headers ---- */

static void octal_put(char *field, size_t size, int64_t value)
{
    field[--size] = '\0';
    while (size--) {
        field[size] = (char)('0' + (value & 7));
        value >>= 3;
    }
}

static int header_put(struct bough_tar *t, struct header *h, struct bough_err *err)
{
    unsigned sum = 0;
    memcpy(h->magic, "ustar\00000", 8);
    memset(h->sum, ' ', sizeof h->sum);
    for (size_t i = 0; i < BLOCK; i++)
        sum += ((const unsigned char *)h)[i];
    octal_put(h->sum, 7, sum);
    return bough_tar_write(t, h, BLOCK, err);
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Puts `path`, and `slash` behind it, into name and prefix; false when they do not hold it. */
static bool name_fits(struct header *h, const char *path, bool slash)
{
    size_t len = strlen(path), cut = 0;
    if (len + slash > sizeof h->prefix + 1 + sizeof h->name)
        return false;
    if (len + slash > sizeof h->name) {
        /* the first slash behind which the rest fits; prefixes are short as can be */
        cut = len + slash - sizeof h->name - 1;
        while (cut < len && path[cut] != '/')
            cut++;
        if (!cut || cut + 1 >= len || cut > sizeof h->prefix)
            return false;
        memcpy(h->prefix, path, cut);
        cut++;
    }
    memcpy(h->name, path + cut, len - cut);
    if (slash)
        h->name[len - cut] = '/';
    return true;
}

/* A name for readers that know no pax records. */
static void name_stand_in(struct header *h, const char *dir, const char *path)
{
    size_t n = strlen(dir);
    const char *last = last_part(path);
    memset(h->name, 0, sizeof h->name);
    memset(h->prefix, 0, sizeof h->prefix);
    memcpy(h->name, dir, n);
    memcpy(h->name + n, last, strnlen(last, sizeof h->name - n));
}

static int names_put(struct bough_tar *t, struct header *h, const struct bough_tar_entry *e,
                     struct bough_err *err)
{
    if (e->sparse) {
        name_stand_in(h, "GNUSparseFile.0/", e->path);
        if (record_text(t, "GNU.sparse.major", "1", err) ||
            record_text(t, "GNU.sparse.minor", "0", err) ||
            record_text(t, "GNU.sparse.name", e->path, err) ||
            record_number(t, "GNU.sparse.realsize", e->real_size, err))
            return -1;
    } else if (!name_fits(h, e->path, e->type == BOUGH_TAR_DIR)) {
        name_stand_in(h, "", e->path);
        if (bough_tar_record(t, "", "path", e->path, strlen(e->path), err))
            return -1;
    }
    if (!e->link)
        return 0;
    size_t len = strlen(e->link);
    if (len > sizeof h->link) {
        memcpy(h->link, e->link, sizeof h->link);
        return record_text(t, "linkpath", e->link, err);
    }
    memcpy(h->link, e->link, len);
    return 0;
}

/* Into the field, or where that is too small into a record. */
static int number_put(struct bough_tar *t, char *field, size_t size, int64_t most, const char *key,
                      int64_t value, struct bough_err *err)
{
    bool fits = value >= 0 && value <= most;
    octal_put(field, size, fits ? value : 0);
    return fits ? 0 : record_number(t, key, value, err);
}

static int numbers_put(struct bough_tar *t, struct header *h, const struct bough_tar_entry *e,
                       struct bough_err *err)
{
    bool plain_time = e->mtime.tv_sec >= 0 && e->mtime.tv_sec <= OCTAL_11;
    octal_put(h->mode, sizeof h->mode, e->mode & 07777);
    octal_put(h->mtime, sizeof h->mtime, plain_time ? e->mtime.tv_sec : 0);
    if (number_put(t, h->uid, sizeof h->uid, OCTAL_7, "uid", e->uid, err) ||
        number_put(t, h->gid, sizeof h->gid, OCTAL_7, "gid", e->gid, err) ||
        number_put(t, h->size, sizeof h->size, OCTAL_11, "size", e->size, err))
        return -1;
    if ((!plain_time || e->mtime.tv_nsec) && record_time(t, "mtime", e->mtime, err))
        return -1;
    if (e->type == BOUGH_TAR_CHAR || e->type == BOUGH_TAR_BLOCK) {
        octal_put(h->major, sizeof h->major, major(e->device));
        octal_put(h->minor, sizeof h->minor, minor(e->device));
    }
    return 0;
}

static int records_put(struct bough_tar *t, const char *path, struct bough_err *err)
{
    struct header h = {.type = 'x'};
    name_stand_in(&h, "PaxHeaders/", path);
    octal_put(h.mode, sizeof h.mode, 0644);
    octal_put(h.uid, sizeof h.uid, 0);
    octal_put(h.gid, sizeof h.gid, 0);
    octal_put(h.size, sizeof h.size, (int64_t)t->records_len);
    octal_put(h.mtime, sizeof h.mtime, 0);
    if (header_put(t, &h, err) || bough_tar_write(t, t->records, t->records_len, err))
        return -1;
    t->records_len = 0;
    return bough_tar_pad(t, err);
}

int bough_tar_header(struct bough_tar *t, const struct bough_tar_entry *e, struct bough_err *err)
{
    struct header h = {.type = (char)e->type};
    if (names_put(t, &h, e, err) || numbers_put(t, &h, e, err))
        return -1;
    if (t->records_len && records_put(t, e->path, err))
        return -1;
    t->entries++;
    return header_put(t, &h, err);
}
