/* pack.c - gzip of answers. */
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "httpd/pack.h"

enum {
    RAW = -15,          /* deflate without a header */
    GZIP = 15 + 16,     /* with that of gzip */
    REMEMBERED = 2048,  /* of a stream of events */
    PORTION = 16 << 10, /* of output */
};

struct httpd_press {
    z_stream raw, gzip;
    unsigned char portion[PORTION];
};

struct httpd_pack {
    bool begun;      /* gzip's header is out */
    bool has_own;    /* bulk: `own` is alive */
    z_stream own;    /* bulk */
    uint32_t crc;    /* the rest for events */
    uint32_t length; /* modulo 2^32 */
    size_t remembered;
    unsigned char memory[]; /* REMEMBERED bytes for events, none for bulk */
};

struct httpd_press *httpd_press_new(void)
{
    struct httpd_press *press = calloc(1, sizeof *press);
    if (!press)
        return NULL;
    /* Events are small: the table of a small memLevel is cleared sooner. */
    if (deflateInit2(&press->raw, 6, Z_DEFLATED, RAW, 5, Z_DEFAULT_STRATEGY) != Z_OK) {
        free(press);
        return NULL;
    }
    if (deflateInit2(&press->gzip, 4, Z_DEFLATED, GZIP, 7, Z_DEFAULT_STRATEGY) != Z_OK) {
        deflateEnd(&press->raw);
        free(press);
        return NULL;
    }
    return press;
}

void httpd_press_free(struct httpd_press *press)
{
    if (!press)
        return;
    deflateEnd(&press->raw);
    deflateEnd(&press->gzip);
    free(press);
}

void *httpd_press_whole(struct httpd_press *press, const void *data, size_t size, size_t *packed)
{
    if (size < 32 || size > UINT_MAX / 2)
        return NULL;
    z_stream *z = &press->gzip;
    size_t room = size - 1; /* what does not fit is not worth it */
    unsigned char *out = malloc(room);
    if (!out || deflateReset(z) != Z_OK) {
        free(out);
        return NULL;
    }
    z->next_in = (unsigned char *)data;
    z->avail_in = (uInt)size;
    z->next_out = out;
    z->avail_out = (uInt)room;
    if (deflate(z, Z_FINISH) != Z_STREAM_END) {
        free(out);
        return NULL;
    }
    *packed = room - z->avail_out;
    void *fitting = realloc(out, *packed);
    return fitting ? fitting : out;
}

struct httpd_pack *httpd_pack_new(enum httpd_pack_kind kind)
{
    bool bulk = kind == HTTPD_PACK_BULK;
    struct httpd_pack *pack = calloc(1, sizeof *pack + (bulk ? 0 : REMEMBERED));
    if (!pack)
        return NULL;
    pack->has_own = bulk;
    /* A server has one thread: level 1, so that a piece of 64 KiB takes half a millisecond. */
    if (bulk && deflateInit2(&pack->own, 1, Z_DEFLATED, GZIP, 8, Z_DEFAULT_STRATEGY) != Z_OK) {
        free(pack);
        return NULL;
    }
    return pack;
}

void httpd_pack_free(struct httpd_pack *pack)
{
    if (!pack)
        return;
    if (pack->has_own)
        deflateEnd(&pack->own);
    free(pack);
}

static bool squeeze(struct httpd_press *press, z_stream *z, const void *data, size_t size, int how,
                    struct httpd_queue *out)
{
    z->next_in = (unsigned char *)data;
    z->avail_in = (uInt)size;
    int rc;
    do {
        z->next_out = press->portion;
        z->avail_out = PORTION;
        rc = deflate(z, how);
        if (rc == Z_STREAM_ERROR)
            return false;
        if (!httpd_queue_put(out, press->portion, PORTION - z->avail_out))
            return false;
    } while (z->avail_out == 0 && rc != Z_STREAM_END);
    return true;
}

static bool begin(struct httpd_pack *pack, struct httpd_queue *out)
{
    static const unsigned char head[] = {0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3};
    if (pack->begun)
        return true;
    pack->begun = true;
    pack->crc = (uint32_t)crc32(0, NULL, 0);
    return httpd_queue_put(out, head, sizeof head);
}

static void keep(struct httpd_pack *pack, const unsigned char *data, size_t size)
{
    if (size >= REMEMBERED) {
        memcpy(pack->memory, data + size - REMEMBERED, REMEMBERED);
        pack->remembered = REMEMBERED;
        return;
    }
    size_t old = pack->remembered;
    if (old > REMEMBERED - size) {
        memmove(pack->memory, pack->memory + (old - (REMEMBERED - size)), REMEMBERED - size);
        old = REMEMBERED - size;
    }
    memcpy(pack->memory + old, data, size);
    pack->remembered = old + size;
}

bool httpd_pack_put(struct httpd_press *press, struct httpd_pack *pack, const void *data,
                    size_t size, bool flush, struct httpd_queue *out)
{
    if (size > UINT_MAX / 2)
        return false;
    if (pack->has_own)
        return squeeze(press, &pack->own, data, size, flush ? Z_SYNC_FLUSH : Z_NO_FLUSH, out);
    if (!begin(pack, out))
        return false;
    if (size == 0)
        return true;
    z_stream *z = &press->raw;
    if (deflateReset(z) != Z_OK)
        return false;
    if (pack->remembered && deflateSetDictionary(z, pack->memory, (uInt)pack->remembered) != Z_OK)
        return false;
    pack->crc = (uint32_t)crc32(pack->crc, data, (uInt)size);
    pack->length += (uint32_t)size;
    if (!squeeze(press, z, data, size, Z_SYNC_FLUSH, out))
        return false;
    keep(pack, data, size);
    return true;
}

static void little(unsigned char *into, uint32_t number)
{
    for (int i = 0; i < 4; i++)
        into[i] = (unsigned char)(number >> (8 * i));
}

bool httpd_pack_end(struct httpd_press *press, struct httpd_pack *pack, struct httpd_queue *out)
{
    if (pack->has_own)
        return squeeze(press, &pack->own, NULL, 0, Z_FINISH, out);
    unsigned char tail[10] = {3, 0}; /* a last block with nothing in it */
    little(tail + 2, pack->crc);
    little(tail + 6, pack->length);
    return begin(pack, out) && httpd_queue_put(out, tail, sizeof tail);
}
