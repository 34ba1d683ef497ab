#include "base64.h"

#include <stdint.h>

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void bough_base64_encode(char *out, const void *data, size_t size)
{
    const uint8_t *in = data;
    for (; size >= 3; in += 3, size -= 3) {
        uint32_t bits = (uint32_t)in[0] << 16 | (uint32_t)in[1] << 8 | in[2];
        *out++ = digits[bits >> 18];
        *out++ = digits[bits >> 12 & 63];
        *out++ = digits[bits >> 6 & 63];
        *out++ = digits[bits & 63];
    }
    if (size > 0) {
        uint32_t bits = (uint32_t)in[0] << 16 | (size > 1 ? (uint32_t)in[1] << 8 : 0);
        *out++ = digits[bits >> 18];
        *out++ = digits[bits >> 12 & 63];
        *out++ = size > 1 ? digits[bits >> 6 & 63] : '=';
        *out++ = '=';
    }
}

/* 0 to 63, or -1. */
static int value_of(unsigned char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

bool bough_base64_decode(char *out, const char *text, size_t size, size_t *got)
{
    char *at = out;
    *got = 0;
    if (size % 4 != 0)
        return false;
    size_t padding = size == 0 || text[size - 1] != '=' ? 0 : text[size - 2] != '=' ? 1 : 2;
    for (size_t i = 0; i < size; i += 4) {
        size_t there = i + 4 < size ? 4 : 4 - padding;
        uint32_t bits = 0;
        for (size_t j = 0; j < 4; j++) {
            int value = j < there ? value_of((unsigned char)text[i + j]) : 0;
            if (value < 0)
                return false;
            bits = bits << 6 | (uint32_t)value;
        }
        for (size_t j = 0; j + 1 < there; j++)
            *at++ = (char)(bits >> (16 - 8 * j) & 255);
    }
    *got = (size_t)(at - out);
    return true;
}
