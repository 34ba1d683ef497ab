#include "gunzip.h"

#include <stdlib.h>
#include <zlib.h>

struct bough_gunzip {
    z_stream z;
    bool begun, ended; /* ended: behind a trailer */
};

struct bough_gunzip *bough_gunzip_new(void)
{
    struct bough_gunzip *gunzip = calloc(1, sizeof *gunzip);
    if (gunzip && inflateInit2(&gunzip->z, MAX_WBITS + 16) != Z_OK) {
        free(gunzip);
        return NULL;
    }
    return gunzip;
}

void bough_gunzip_free(struct bough_gunzip *gunzip)
{
    if (!gunzip)
        return;
    inflateEnd(&gunzip->z);
    free(gunzip);
}

long bough_gunzip_take(struct bough_gunzip *gunzip, const char **data, size_t *size, char *out,
                       size_t room)
{
    z_stream *z = &gunzip->z;
    z->next_in = (Bytef *)*data;
    z->avail_in = (uInt)*size;
    z->next_out = (Bytef *)out;
    z->avail_out = (uInt)room;
    int rc = Z_OK;
    gunzip->begun = gunzip->begun || *size > 0;
    while (rc == Z_OK && z->avail_out > 0 && (z->avail_in > 0 || !gunzip->ended)) {
        if (gunzip->ended) {
            inflateReset(z);
            gunzip->ended = false;
        }
        rc = inflate(z, Z_SYNC_FLUSH);
        if (rc == Z_STREAM_END) {
            gunzip->ended = true;
            rc = Z_OK;
        }
    }
    *data = (const char *)z->next_in;
    *size = z->avail_in;
    if (rc != Z_OK && rc != Z_BUF_ERROR) /* that one: nothing more to be had now */
        return -1;
    return (long)(room - z->avail_out);
}

bool bough_gunzip_ended(const struct bough_gunzip *gunzip)
{
    return gunzip->ended;
}

bool bough_gunzip_begun(const struct bough_gunzip *gunzip)
{
    return gunzip->begun;
}
