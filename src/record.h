/* record.h - what bough-look's grep and diff write, one record after another; the host decodes.
 *
 * Both ends are the same machine: numbers are in its byte order and unaligned. Strings are counted
 * and hold any byte; a NUL follows each that is not counted.
 *
 * match:  u32 length of the whole record, this field included
 *         u32 type: 1 a matching line, 2 a line of context; 256 more: no newline ends it, it is its file's last
 *         u64 line number, from 1     u64 offset of the line in its file
 *         u32 length of the path      u32 length of the line (as given here)    u32 whole length of the line in the file
 *         u32 submatches, each two u32: begin and end in the line, end exclusive; none for context and behind a cut
 *         path (absolute in the image), NUL, line without its newline, NUL
 *
 * change: u32 length of the whole record
 *         u32 'A', 'D' or 'C'
 *         u32 what differs: bits 0 content, 1 mode, 2 owner, 3 type, 4 link target (1|16 for a symlink), 5 xattrs, 6 device number
 *         u32 mode here, u32 mode there (st_mode; 0 where it is not)      u64 size here, u64 size there
 *         u32 length of the path      path (absolute), NUL */
#ifndef BOUGH_RECORD_H
#define BOUGH_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "entry.h"

struct bough_match {
    uint32_t type;
    bool unended; /* no newline behind it */
    uint64_t line_number, offset;
    const char *path, *line;
    uint32_t path_len, line_len, whole_len, sub_count;
    const uint32_t *subs; /* unaligned: copy out with memcpy */
};

enum {
    BOUGH_DIFF_CONTENT = 1,
    BOUGH_DIFF_MODE = 2,
    BOUGH_DIFF_OWNER = 4,
    BOUGH_DIFF_TYPE = 8,
    BOUGH_DIFF_TARGET = 16,
    BOUGH_DIFF_XATTRS = 32,
    BOUGH_DIFF_DEVICE = 64
};
struct bough_change {
    uint32_t op, what, mode, old_mode;
    uint64_t size, old_size;
    const char *path;
    uint32_t path_len;
};

/* A decoder calls anything longer damaged, so that whoever wrote it cannot make us buffer without end. */
#define BOUGH_RECORD_LONGEST ((size_t)16 << 20)

/* Decode the record at *cursor and move past it. 1; 0 more bytes are needed; -1 damaged. (src/record.c) */
int bough_match_next(const char **cursor, const char *end, struct bough_match *out);
int bough_change_next(const char **cursor, const char *end, struct bough_change *out);
/* The same for what bough-look's list writes: as entry.h has it, with a relative path for the name,
 * or "" for the start itself. */
int bough_listed_next(const char **cursor, const char *end, struct bough_entry *out);

/* Encode: what it takes (0: more than BOUGH_RECORD_LONGEST), then into that many bytes. */
size_t bough_match_size(const struct bough_match *m);
void bough_match_put(char *at, const struct bough_match *m);
size_t bough_change_size(const struct bough_change *c);
void bough_change_put(char *at, const struct bough_change *c);
size_t bough_listed_size(const struct bough_entry *e);
void bough_listed_put(char *at, const struct bough_entry *e);

#endif
