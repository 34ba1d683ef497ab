#define _GNU_SOURCE
#include "path.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* One byte more for the slash, one for the terminator. */
static int component_push(struct bough_path *path, const char *name, size_t len,
                          struct bough_err *err)
{
    size_t used = strlen(path->text);
    if (len > NAME_MAX)
        return bough_err_set(err, BOUGH_ERR_invalid, "has a name of %zu bytes (at most %d)", len,
                             NAME_MAX);
    if (used + len + 2 > sizeof path->text)
        return bough_err_set(err, BOUGH_ERR_invalid, "has a path of more than %d bytes",
                             PATH_MAX - 1);
    path->parent_len = used;
    if (used)
        path->text[used++] = '/';
    path->name_at = used;
    memcpy(path->text + used, name, len);
    path->text[used + len] = '\0';
    return 0;
}

static void component_pop(struct bough_path *path)
{
    path->text[path->parent_len] = '\0';
    const char *slash = strrchr(path->text, '/');
    path->parent_len = slash ? (size_t)(slash - path->text) : 0;
    path->name_at = slash ? path->parent_len + 1 : 0;
}

int bough_path_set(struct bough_path *path, const char *raw, int lenient, struct bough_err *err)
{
    path->text[0] = '\0';
    path->parent_len = path->name_at = 0;
    if (!raw || !*raw)
        return bough_err_set(err, BOUGH_ERR_invalid, "has an empty name");
    if (*raw == '/' && !lenient)
        return bough_err_set(err, BOUGH_ERR_invalid, "leads out of the archive (absolute path)");
    for (raw += strspn(raw, "/"); *raw; raw += strspn(raw, "/")) {
        size_t len = strcspn(raw, "/");
        if (len == 2 && raw[0] == '.' && raw[1] == '.') {
            if (!lenient || bough_path_is_root(path))
                return bough_err_set(err, BOUGH_ERR_invalid, "leads out of the archive (\"..\")");
            component_pop(path);
        } else if (!(len == 1 && raw[0] == '.') && component_push(path, raw, len, err) < 0) {
            return -1;
        }
        raw += len;
    }
    return 0;
}

/* Length of the printable UTF-8 character at `s`, 0 when it is none. The C1 controls
 * are left out because terminals act on them. */
static size_t utf8_length(const unsigned char *s)
{
    unsigned long code;
    size_t len;
    if (s[0] >= 0xc2 && s[0] <= 0xdf)
        len = 2, code = s[0] & 0x1fu;
    else if (s[0] >= 0xe0 && s[0] <= 0xef)
        len = 3, code = s[0] & 0x0fu;
    else if (s[0] >= 0xf0 && s[0] <= 0xf4)
        len = 4, code = s[0] & 0x07u;
    else
        return 0;
    for (size_t i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (s[i] & 0x3fu);
    }
    static const unsigned long least[] = {0, 0, 0xa0, 0x800, 0x10000};
    bool surrogate = code >= 0xd800 && code <= 0xdfff;
    bool reorders = (code >= 0x200e && code <= 0x200f) || (code >= 0x2028 && code <= 0x202e) ||
                    (code >= 0x2066 && code <= 0x2069);
    return code < least[len] || code > 0x10ffff || surrogate || reorders ? 0 : len;
}

/* One character or escape of `*s` into `out` (room for 5); moves `*s` past it. */
static size_t quote_step(char *out, const char **s)
{
    const unsigned char *c = (const unsigned char *)*s;
    size_t utf8 = utf8_length(c);
    if (utf8) {
        memcpy(out, c, utf8);
        *s += utf8;
        return utf8;
    }
    *s += 1;
    if (*c == '"' || *c == '\\') {
        out[0] = '\\';
        out[1] = (char)*c;
        return 2;
    }
    if (*c >= 0x20 && *c < 0x7f) {
        out[0] = (char)*c;
        return 1;
    }
    return (size_t)snprintf(out, 5, "\\x%02x", *c);
}

const char *bough_path_quote(char out[BOUGH_QUOTE_MAX], const char *raw)
{
    enum { TAIL = 60 };
    size_t at = 0;
    if (!raw)
        raw = "";
    size_t left = strlen(raw);
    const char *tail = left > 2 * TAIL ? raw + left - TAIL : NULL;
    /* the tail may not begin inside a character */
    while (tail && ((unsigned char)*tail & 0xc0) == 0x80)
        tail++;
    out[at++] = '"';
    while (*raw) {
        char piece[5];
        size_t len = quote_step(piece, &raw);
        if (tail && raw >= tail)
            tail = NULL; /* short enough after all */
        if (at + len + 8 > BOUGH_QUOTE_MAX - (tail ? (size_t)TAIL : 0)) {
            memcpy(out + at, "...", 3);
            at += 3;
            if (!tail)
                break;
            raw = tail;
            tail = NULL;
            continue;
        }
        memcpy(out + at, piece, len);
        at += len;
    }
    out[at++] = '"';
    out[at] = '\0';
    return out;
}
