/* entry.h - one directory entry as it travels from the keeper to the host.
 *
 * Nothing here owns memory: the strings of an entry point into the bytes. Both ends are the
 * same machine, so numbers are in its byte order and unaligned. One record is:
 *
 *   u32 length of the whole record, this field included
 *   u32 mode (type and permissions, as st_mode)    u32 uid     u32 gid
 *   u64 size    u64 nlink    i64 mtime seconds     u32 mtime nanoseconds
 *   u32 length of the name      u32 length of the link target
 *   name, NUL, link target, NUL
 *
 * Names may hold any byte but NUL and '/'. Only symbolic links have a target. */
#ifndef BOUGH_ENTRY_H
#define BOUGH_ENTRY_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

/* Offsets of a record's fields. */
enum {
    BOUGH_AT_LENGTH = 0,
    BOUGH_AT_MODE = 4,
    BOUGH_AT_UID = 8,
    BOUGH_AT_GID = 12,
    BOUGH_AT_SIZE = 16,
    BOUGH_AT_NLINK = 24,
    BOUGH_AT_SEC = 32,
    BOUGH_AT_NSEC = 40,
    BOUGH_AT_NAME_LEN = 44,
    BOUGH_AT_TARGET_LEN = 48,
    BOUGH_RECORD_HEAD = 52
};
#define BOUGH_RECORD_MAX (BOUGH_RECORD_HEAD + NAME_MAX + 1 + PATH_MAX + 1)

struct bough_entry {
    const char *name; /* NUL-terminated, inside the bytes decoded */
    size_t name_len;
    const char *target; /* NUL-terminated; "" for all but symbolic links */
    size_t target_len;
    uint32_t mode; /* whole st_mode: use S_ISDIR and so on, and `mode & 07777` */
    uint32_t uid, gid;
    uint64_t size; /* bytes, as st_size */
    uint64_t nlink;
    int64_t mtime_sec;
    uint32_t mtime_nsec;
};

/* "file", "dir", "symlink", "fifo", "socket" or "other". */
const char *bough_entry_kind(const struct bough_entry *e);

/* Decodes the record at *cursor and moves the cursor past it. Returns 1, 0 at the
 * end, -1 when the bytes are cut short or no record; then the cursor stays. */
int bough_list_next(const char **cursor, const char *end, struct bough_entry *out);

#endif
