/* base64.h - base64 (RFC 4648, section 4): the plain alphabet, with padding. */
#ifndef BOUGH_BASE64_H
#define BOUGH_BASE64_H

#include <stdbool.h>
#include <stddef.h>

/* The digits that `size` bytes take. */
static inline size_t bough_base64_size(size_t size)
{
    return size / 3 * 4 + (size % 3 > 0 ? 4 : 0);
}

/* Writes bough_base64_size(size) digits, and no NUL. */
void bough_base64_encode(char *out, const void *data, size_t size);
/* Writes at most size / 4 * 3 bytes, `*got` of them; false where the text is broken: digits that are none, line
 * breaks among them, or padding that is missing or not at the end. */
bool bough_base64_decode(char *out, const char *text, size_t size, size_t *got);

#endif
