/* path.h - names of archive entries: what may be used, and how to show it.
 *
 * A path is kept in one form: relative, no "." or empty component, never "..", so
 * "a/b/c"; the empty text is the root of the archive. Bytes are kept exactly, whatever
 * their encoding. Owns nothing: the text lies in the struct. */
#ifndef BOUGH_UNPACK_PATH_H
#define BOUGH_UNPACK_PATH_H

#include <limits.h>
#include <stddef.h>

#include "../err.h"

struct bough_path {
    size_t parent_len;   /* "a/b" of "a/b/c" */
    size_t name_at;      /* where the last component begins; 0 too for the root */
    char text[PATH_MAX]; /* NUL-terminated */
};

/* Room for a quoted name; two of them fit into one error message. */
#define BOUGH_QUOTE_MAX 168

/* Brings `raw` into the one form. Refuses (kind invalid) an empty, absolute or too long
 * name and any ".."; the message is only the reason, the caller names the entry. When
 * `lenient`, as for layers, which name the root in several ways, slashes in front count for
 * nothing and ".." takes back a component; it must still not leave. */
int bough_path_set(struct bough_path *path, const char *raw, int lenient, struct bough_err *err);

static inline const char *bough_path_name(const struct bough_path *path)
{
    return path->text + path->name_at;
}

static inline int bough_path_is_root(const struct bough_path *path)
{
    return path->text[0] == '\0';
}

/* `raw` in double quotes, safe to print: control characters, quotes and bytes that are
 * not UTF-8 are escaped, and the middle of a long name is left out. Returns `out`. */
const char *bough_path_quote(char out[BOUGH_QUOTE_MAX], const char *raw);

#endif
