/* gunzip.h - a gzip stream (RFC 1952) that is unpacked as it comes.
 *
 * Nothing is kept back: whatever the bytes so far stand for comes out. Several members in a row are one stream. */
#ifndef BOUGH_GUNZIP_H
#define BOUGH_GUNZIP_H

#include <stdbool.h>
#include <stddef.h>

struct bough_gunzip;

struct bough_gunzip *bough_gunzip_new(void);         /* NULL: no memory */
void bough_gunzip_free(struct bough_gunzip *gunzip); /* NULL is fine */
/* Unpacks from *data on and moves it ahead, until `room` bytes are out or all is unpacked: how many came out, -1 when
 * it is broken. A full `out` means that there may be more, even without more data. */
long bough_gunzip_take(struct bough_gunzip *gunzip, const char **data, size_t *size, char *out,
                       size_t room);
/* Whether it may end here: behind a trailer. A stream of no bytes at all has neither ended nor begun. */
bool bough_gunzip_ended(const struct bough_gunzip *gunzip);
bool bough_gunzip_begun(const struct bough_gunzip *gunzip);

#endif
