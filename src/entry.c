#include "entry.h"

#include <string.h>
#include <sys/stat.h>

const char *bough_entry_kind(const struct bough_entry *e)
{
    switch (e->mode & S_IFMT) {
    case S_IFREG:
        return "file";
    case S_IFDIR:
        return "dir";
    case S_IFLNK:
        return "symlink";
    case S_IFIFO:
        return "fifo";
    case S_IFSOCK:
        return "socket";
    default:
        return "other";
    }
}

static uint32_t get32(const char *rec, size_t at)
{
    uint32_t v;
    memcpy(&v, rec + at, sizeof v);
    return v;
}

static uint64_t get64(const char *rec, size_t at)
{
    uint64_t v;
    memcpy(&v, rec + at, sizeof v);
    return v;
}

int bough_list_next(const char **cursor, const char *end, struct bough_entry *out)
{
    const char *rec = *cursor;
    if (rec == end)
        return 0;
    if (rec > end || (size_t)(end - rec) < BOUGH_RECORD_HEAD + 2)
        return -1;
    size_t length = get32(rec, BOUGH_AT_LENGTH);
    size_t name_len = get32(rec, BOUGH_AT_NAME_LEN), target_len = get32(rec, BOUGH_AT_TARGET_LEN);
    if (length > BOUGH_RECORD_MAX || length > (size_t)(end - rec) || name_len < 1 ||
        name_len > length || target_len > length ||
        BOUGH_RECORD_HEAD + name_len + 1 + target_len + 1 != length)
        return -1;
    const char *name = rec + BOUGH_RECORD_HEAD, *target = name + name_len + 1;
    if (memchr(name, '\0', name_len + 1) != name + name_len ||
        memchr(target, '\0', target_len + 1) != target + target_len || memchr(name, '/', name_len))
        return -1;
    *out = (struct bough_entry){
        .name = name,
        .name_len = name_len,
        .target = target,
        .target_len = target_len,
        .mode = get32(rec, BOUGH_AT_MODE),
        .uid = get32(rec, BOUGH_AT_UID),
        .gid = get32(rec, BOUGH_AT_GID),
        .size = get64(rec, BOUGH_AT_SIZE),
        .nlink = get64(rec, BOUGH_AT_NLINK),
        .mtime_sec = (int64_t)get64(rec, BOUGH_AT_SEC),
        .mtime_nsec = get32(rec, BOUGH_AT_NSEC),
    };
    *cursor = rec + length;
    return 1;
}
