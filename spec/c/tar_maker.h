/* tar_maker.h - writes tar archives byte by byte, valid or not, for tests.
 *
 * Unlike a real archiver it never refuses anything: names, types, sizes and pax records are
 * taken as they come. Memory is owned by `struct tar`; tar_free releases it. */
#ifndef TAR_MAKER_H
#define TAR_MAKER_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <archive.h>
#include <archive_entry.h>

struct tar {
    char *data;
    size_t len, room;
};

/* A mode of 0, because 0 itself asks for the usual 0644. */
#define TAR_MODE_NONE 0x10000u

struct tar_entry {
    const char *name, *link, *data;
    char type; /* '0' file, '1' hard link, '2' symbolic, '3' '4' device, '5' directory, '6' fifo */
    unsigned mode, uid, gid;
    long long size; /* 0: length of `data` as a string */
    long long mtime;
};

static inline void tar_put(struct tar *t, const void *data, size_t len)
{
    if (t->len + len > t->room) {
        t->room = (t->len + len) * 2;
        t->data = realloc(t->data, t->room);
        if (!t->data)
            abort();
    }
    if (len)
        memcpy(t->data + t->len, data, len);
    t->len += len;
}

static inline void tar_free(struct tar *t)
{
    free(t->data);
    *t = (struct tar){0};
}

static inline void tar_pad(struct tar *t)
{
    static const char zeros[512];
    tar_put(t, zeros, (512 - t->len % 512) % 512);
}

static inline void tar_seal(struct tar *t, size_t at)
{
    unsigned sum = 0;
    memset(t->data + at + 148, ' ', 8);
    for (int i = 0; i < 512; i++)
        sum += (unsigned char)t->data[at + (size_t)i];
    char text[8];
    snprintf(text, sizeof text, "%06o", sum & 0777777);
    memcpy(t->data + at + 148, text, 7);
}

static inline void tar_octal(char *field, int width, unsigned long long value)
{
    char text[32];
    snprintf(text, sizeof text, "%0*llo", width - 1, value);
    memcpy(field, text, (size_t)width - 1);
}

/* The header alone; returns its offset. */
static inline size_t tar_header(struct tar *t, const struct tar_entry *e)
{
    char h[512] = {0};
    size_t at = t->len;
    size_t name = strlen(e->name), link = e->link ? strlen(e->link) : 0;
    memcpy(h, e->name, name > 100 ? 100 : name);
    tar_octal(h + 100, 8, e->mode ? e->mode & 07777 : 0644);
    tar_octal(h + 108, 8, e->uid);
    tar_octal(h + 116, 8, e->gid);
    tar_octal(h + 124, 12, (unsigned long long)e->size);
    tar_octal(h + 136, 12, (unsigned long long)e->mtime);
    h[156] = e->type ? e->type : '0';
    if (link)
        memcpy(h + 157, e->link, link > 100 ? 100 : link);
    memcpy(h + 257, "ustar\00000", 8);
    tar_put(t, h, sizeof h);
    tar_seal(t, at);
    return at;
}

static inline void tar_add(struct tar *t, struct tar_entry e)
{
    if (e.data && !e.size)
        e.size = (long long)strlen(e.data);
    tar_header(t, &e);
    if (e.data)
        tar_put(t, e.data, (size_t)e.size);
    tar_pad(t);
}

/* A pax header in front of the next entry: one record, whose value may hold anything. */
static inline void tar_pax(struct tar *t, const char *key, const void *value, size_t len)
{
    /* the length counts its own digits */
    size_t body = strlen(key) + len + 3, total = body + 1;
    char digits[24];
    while ((size_t)snprintf(digits, sizeof digits, "%zu", total) + body != total)
        total = body + strlen(digits);
    tar_header(t, &(struct tar_entry){.name = "pax", .type = 'x', .size = (long long)total});
    tar_put(t, digits, strlen(digits));
    tar_put(t, " ", 1);
    tar_put(t, key, strlen(key));
    tar_put(t, "=", 1);
    tar_put(t, value, len);
    tar_put(t, "\n", 1);
    tar_pad(t);
}

static inline void tar_pax_text(struct tar *t, const char *key, const char *value)
{
    tar_pax(t, key, value, strlen(value));
}

/* GNU's way of a long name. */
static inline void tar_long(struct tar *t, const char *name)
{
    tar_header(t, &(struct tar_entry){
                      .name = "././@LongLink", .type = 'L', .size = (long long)strlen(name) + 1});
    tar_put(t, name, strlen(name) + 1);
    tar_pad(t);
}

static inline void tar_end(struct tar *t)
{
    static const char zeros[1024];
    tar_put(t, zeros, sizeof zeros);
}

static inline la_ssize_t tar_take(struct archive *a, void *arg, const void *data, size_t len)
{
    (void)a;
    tar_put(arg, data, len);
    return (la_ssize_t)len;
}

/* `data` compressed by one of libarchive's filters, appended to `out`. */
static inline void tar_compress(struct tar *out, int filter, const void *data, size_t len)
{
    struct archive *a = archive_write_new();
    struct archive_entry *e = archive_entry_new();
    archive_write_set_format_raw(a);
    archive_write_set_bytes_in_last_block(a, 1);
    if (archive_write_add_filter(a, filter) != ARCHIVE_OK ||
        archive_write_open(a, out, NULL, tar_take, NULL) != ARCHIVE_OK)
        abort();
    archive_entry_set_filetype(e, AE_IFREG);
    if (archive_write_header(a, e) != ARCHIVE_OK ||
        archive_write_data(a, data, len) != (la_ssize_t)len)
        abort();
    archive_entry_free(e);
    archive_write_free(a);
}

#endif
