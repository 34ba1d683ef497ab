#include "record.h"

#include <stdbool.h>
#include <string.h>

enum {
    MATCH_HEAD = 40,
    SUB_BYTES = 8,
    CHANGE_HEAD = 40,
    UNENDED = 256, /* beside the type of a match */
};

/* ---- bytes ---- */

static uint32_t get32(const char *at)
{
    uint32_t v;
    memcpy(&v, at, sizeof v);
    return v;
}

static uint64_t get64(const char *at)
{
    uint64_t v;
    memcpy(&v, at, sizeof v);
    return v;
}

static char *put32(char *at, uint64_t value)
{
    uint32_t v = (uint32_t)value;
    memcpy(at, &v, sizeof v);
    return at + sizeof v;
}

static char *put64(char *at, uint64_t v)
{
    memcpy(at, &v, sizeof v);
    return at + sizeof v;
}

static char *put_text(char *at, const char *text, size_t len)
{
    if (len)
        memcpy(at, text, len);
    at[len] = '\0';
    return at + len + 1;
}

/* The length of the record at `rec`: 0 when it is not all there, -1 when it is none. */
static int64_t record_length(const char *rec, const char *end, size_t head)
{
    if (rec > end)
        return -1;
    if (end - rec < 4)
        return 0;
    size_t length = get32(rec);
    if (length < head || length > BOUGH_RECORD_LONGEST)
        return -1;
    return length > (size_t)(end - rec) ? 0 : (int64_t)length;
}

static size_t record_size(uint64_t length)
{
    return length <= BOUGH_RECORD_LONGEST ? (size_t)length : 0;
}

/* A path has no NUL but the one behind it. */
static bool path_good(const char *path, size_t len)
{
    return memchr(path, '\0', len + 1) == path + len;
}

/* ---- a matching line ---- */

size_t bough_match_size(const struct bough_match *m)
{
    return record_size(MATCH_HEAD + (uint64_t)m->sub_count * SUB_BYTES + m->path_len + 1 +
                       m->line_len + 1);
}

void bough_match_put(char *at, const struct bough_match *m)
{
    at = put32(at, bough_match_size(m));
    at = put32(at, m->type | (m->unended ? UNENDED : 0));
    at = put64(at, m->line_number);
    at = put64(at, m->offset);
    at = put32(at, m->path_len);
    at = put32(at, m->line_len);
    at = put32(at, m->whole_len);
    at = put32(at, m->sub_count);
    if (m->sub_count)
        memcpy(at, m->subs, (size_t)m->sub_count * SUB_BYTES);
    at = put_text(at + (size_t)m->sub_count * SUB_BYTES, m->path, m->path_len);
    put_text(at, m->line, m->line_len);
}

int bough_match_next(const char **cursor, const char *end, struct bough_match *out)
{
    const char *rec = *cursor;
    int64_t length = record_length(rec, end, MATCH_HEAD + 2);
    if (length <= 0)
        return (int)length;
    struct bough_match m = {
        .type = get32(rec + 4) & ~(uint32_t)UNENDED,
        .unended = (get32(rec + 4) & UNENDED) != 0,
        .line_number = get64(rec + 8),
        .offset = get64(rec + 16),
        .path_len = get32(rec + 24),
        .line_len = get32(rec + 28),
        .whole_len = get32(rec + 32),
        .sub_count = get32(rec + 36),
        .subs = (const uint32_t *)(const void *)(rec + MATCH_HEAD),
    };
    uint64_t subs = (uint64_t)m.sub_count * SUB_BYTES;
    if ((m.type != 1 && m.type != 2) || m.line_len > m.whole_len ||
        MATCH_HEAD + subs + m.path_len + 1 + m.line_len + 1 != (uint64_t)length)
        return -1;
    m.path = rec + MATCH_HEAD + subs;
    m.line = m.path + m.path_len + 1;
    if (!path_good(m.path, m.path_len) || m.line[m.line_len])
        return -1;
    for (const char *s = rec + MATCH_HEAD; s < m.path; s += SUB_BYTES)
        if (get32(s) > get32(s + 4) || get32(s + 4) > m.line_len)
            return -1;
    *out = m;
    *cursor = rec + length;
    return 1;
}

/* ---- a difference ---- */

size_t bough_change_size(const struct bough_change *c)
{
    return record_size(CHANGE_HEAD + (uint64_t)c->path_len + 1);
}

void bough_change_put(char *at, const struct bough_change *c)
{
    at = put32(at, bough_change_size(c));
    at = put32(at, c->op);
    at = put32(at, c->what);
    at = put32(at, c->mode);
    at = put32(at, c->old_mode);
    at = put64(at, c->size);
    at = put64(at, c->old_size);
    at = put32(at, c->path_len);
    put_text(at, c->path, c->path_len);
}

int bough_change_next(const char **cursor, const char *end, struct bough_change *out)
{
    const char *rec = *cursor;
    int64_t length = record_length(rec, end, CHANGE_HEAD + 1);
    if (length <= 0)
        return (int)length;
    struct bough_change c = {
        .op = get32(rec + 4),
        .what = get32(rec + 8),
        .mode = get32(rec + 12),
        .old_mode = get32(rec + 16),
        .size = get64(rec + 20),
        .old_size = get64(rec + 28),
        .path_len = get32(rec + 36),
        .path = rec + CHANGE_HEAD,
    };
    if ((c.op != 'A' && c.op != 'D' && c.op != 'C') ||
        CHANGE_HEAD + (uint64_t)c.path_len + 1 != (uint64_t)length ||
        !path_good(c.path, c.path_len))
        return -1;
    *out = c;
    *cursor = rec + length;
    return 1;
}

/* ---- an entry ---- */

size_t bough_listed_size(const struct bough_entry *e)
{
    return record_size(BOUGH_RECORD_HEAD + (uint64_t)e->name_len + 1 + e->target_len + 1);
}

void bough_listed_put(char *at, const struct bough_entry *e)
{
    put32(at + BOUGH_AT_LENGTH, bough_listed_size(e));
    put32(at + BOUGH_AT_MODE, e->mode);
    put32(at + BOUGH_AT_UID, e->uid);
    put32(at + BOUGH_AT_GID, e->gid);
    put64(at + BOUGH_AT_SIZE, e->size);
    put64(at + BOUGH_AT_NLINK, e->nlink);
    put64(at + BOUGH_AT_SEC, (uint64_t)e->mtime_sec);
    put32(at + BOUGH_AT_NSEC, e->mtime_nsec);
    put32(at + BOUGH_AT_NAME_LEN, e->name_len);
    put32(at + BOUGH_AT_TARGET_LEN, e->target_len);
    at = put_text(at + BOUGH_RECORD_HEAD, e->name, e->name_len);
    put_text(at, e->target, e->target_len);
}

int bough_listed_next(const char **cursor, const char *end, struct bough_entry *out)
{
    const char *rec = *cursor;
    int64_t length = record_length(rec, end, BOUGH_RECORD_HEAD + 2);
    if (length <= 0)
        return (int)length;
    struct bough_entry e = {
        .name = rec + BOUGH_RECORD_HEAD,
        .name_len = get32(rec + BOUGH_AT_NAME_LEN),
        .target_len = get32(rec + BOUGH_AT_TARGET_LEN),
        .mode = get32(rec + BOUGH_AT_MODE),
        .uid = get32(rec + BOUGH_AT_UID),
        .gid = get32(rec + BOUGH_AT_GID),
        .size = get64(rec + BOUGH_AT_SIZE),
        .nlink = get64(rec + BOUGH_AT_NLINK),
        .mtime_sec = (int64_t)get64(rec + BOUGH_AT_SEC),
        .mtime_nsec = get32(rec + BOUGH_AT_NSEC),
    };
    if (BOUGH_RECORD_HEAD + (uint64_t)e.name_len + 1 + e.target_len + 1 != (uint64_t)length)
        return -1;
    e.target = e.name + e.name_len + 1;
    if (!path_good(e.name, e.name_len) || !path_good(e.target, e.target_len))
        return -1;
    *out = e;
    *cursor = rec + length;
    return 1;
}
