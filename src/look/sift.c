#define _GNU_SOURCE
#include "sift.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "../record.h"
#include "../sys.h"

#define PIECE_BYTES ((size_t)256 << 10)

int bough_sift_start(struct bough_sift *s, struct bough_err *err)
{
    s->room = PIECE_BYTES;
    s->buf = malloc(s->room);
    return s->buf ? 0 : bough_err_sys(err, ENOMEM, "search");
}

void bough_sift_free(struct bough_sift *s)
{
    free(s->buf);
    free(s->subs);
    s->buf = NULL;
    s->subs = NULL;
}

/* ---- lines ---- */

static int64_t newlines_count(const char *text, size_t len)
{
    typedef uint8_t vec __attribute__((vector_size(16)));
    int64_t n = 0;
    for (; len >= 16;) {
        /* no lane overflows in 255 rounds */
        vec sum = {0};
        size_t rounds = len / 16 < 255 ? len / 16 : 255;
        for (size_t i = 0; i < rounds; i++, text += 16) {
            vec v;
            memcpy(&v, text, sizeof v);
            sum -= (vec)(v == '\n');
        }
        len -= rounds * 16;
        for (int i = 0; i < 16; i++)
            n += sum[i];
    }
    for (; len; len--)
        n += *text++ == '\n';
    return n;
}

/* Positions only grow. */
static int64_t line_number(struct bough_sift *s, size_t at)
{
    if (at > s->counted) {
        s->base_line += newlines_count(s->buf + s->counted, at - s->counted);
        s->counted = at;
    }
    return s->base_line + 1;
}

static size_t line_end(const struct bough_sift *s, size_t at, size_t limit)
{
    const char *newline = memchr(s->buf + at, '\n', limit - at);
    return newline ? (size_t)(newline - s->buf) : limit;
}

static size_t line_begin(const struct bough_sift *s, size_t least, size_t at)
{
    const char *newline = memrchr(s->buf + least, '\n', at - least);
    return newline ? (size_t)(newline - s->buf) + 1 : least;
}

/* The beginning of the line `count` lines in front of the one that begins at `at`, or `least`. */
static size_t lines_back(const struct bough_sift *s, size_t least, size_t at, int64_t count)
{
    for (; count > 0 && at > least; count--)
        at = line_begin(s, least, at - 1);
    return at;
}

/* ---- records ---- */

/* The matches in a line, as far as `shown` reaches. Returns how many, -1 with err. */
static int64_t subs_find(struct bough_sift *s, const char *line, size_t len, size_t shown,
                         struct bough_err *err)
{
    size_t count = 0, from = 0, begin, end;
    int r;
    while ((r = bough_search_in_line(s->search, line, len, from, &begin, &end, err)) > 0 &&
           begin < shown) {
        if (count == s->subs_room) {
            size_t room = s->subs_room * 2 + 64;
            uint32_t *more = realloc(s->subs, room * 2 * sizeof *more);
            if (!more)
                return bough_err_sys(err, ENOMEM, "search");
            s->subs = more;
            s->subs_room = room;
        }
        s->subs[count * 2] = (uint32_t)begin;
        s->subs[count++ * 2 + 1] = (uint32_t)(end < shown ? end : shown);
        from = end;
    }
    return r < 0 ? -1 : (int64_t)count;
}

/* The line from `begin` to `end`, which is where its newline is or would be. */
static int line_write(struct bough_sift *s, uint32_t type, size_t begin, size_t end,
                      struct bough_err *err)
{
    const char *line = s->buf + begin;
    size_t len = end - begin, shown = len < (size_t)s->max_line ? len : (size_t)s->max_line;
    int64_t subs = type == 1 ? subs_find(s, line, len, shown, err) : 0;
    if (subs < 0)
        return -1;
    uint64_t whole = len + (uint64_t)(end == s->len ? s->beyond : 0);
    struct bough_match m = {
        .type = type,
        .unended = end == s->len && s->end,
        .line_number = (uint64_t)line_number(s, begin),
        .offset = (uint64_t)s->base + begin,
        .path = s->path,
        .path_len = (uint32_t)s->path_len,
        .line = line,
        .line_len = (uint32_t)shown,
        .whole_len = whole < UINT32_MAX ? (uint32_t)whole : UINT32_MAX,
        .sub_count = (uint32_t)subs,
        .subs = s->subs,
    };
    size_t size = bough_match_size(&m);
    if (!size)
        return bough_err_set(err, BOUGH_ERR_resource, "line %llu: its record would be too long",
                             (unsigned long long)m.line_number);
    char *record = bough_out_room(s->out, size, err);
    if (!record)
        return -1;
    bough_match_put(record, &m);
    bough_out_took(s->out, size);
    return 0;
}

/* Lines behind the last match that are its context, as far as `limit`. */
static int after_write(struct bough_sift *s, size_t limit, struct bough_err *err)
{
    for (; s->after_left > 0 && s->printed < limit; s->after_left--) {
        size_t end = line_end(s, s->printed, limit);
        if (line_write(s, 2, s->printed, end, err))
            return -1;
        s->printed = end < limit ? end + 1 : limit;
    }
    return 0;
}

static int match_write(struct bough_sift *s, size_t begin, size_t end, size_t limit,
                       struct bough_err *err)
{
    if (after_write(s, begin, err))
        return -1;
    for (size_t at = lines_back(s, s->printed, begin, s->before); at < begin;) {
        size_t context_end = line_end(s, at, begin);
        if (line_write(s, 2, at, context_end, err))
            return -1;
        at = context_end + 1;
    }
    if (line_write(s, 1, begin, end, err))
        return -1;
    s->printed = end < limit ? end + 1 : limit;
    s->after_left = s->after;
    s->matched++;
    s->total_left--;
    if (++s->count >= s->max_count || !s->total_left)
        s->stopped = s->cut = true;
    return 0;
}

/* ---- pieces ---- */

/* Searches the lines up to `limit`. */
static int piece_search(struct bough_sift *s, size_t limit, struct bough_err *err)
{
    const size_t start = s->searched;
    int r = 0;
    bough_search_begin(s->search, s->buf + start, limit - start);
    for (size_t from = start; !s->stopped;) {
        size_t at;
        r = bough_search_next(s->search, from - start, &at, err);
        if (r <= 0)
            break;
        at += start;
        size_t end = line_end(s, at, limit);
        if (match_write(s, line_begin(s, from, at), end, limit, err))
            return -1;
        from = end < limit ? end + 1 : limit;
    }
    if (r < 0 || after_write(s, limit, err))
        return -1;
    s->searched = limit;
    return 0;
}

/* Drops what is not needed any more from the front of the buffer. */
static void piece_drop(struct bough_sift *s)
{
    size_t least = s->printed;
    if (s->searched - least > BOUGH_SIFT_LINE)
        least = line_end(s, s->searched - BOUGH_SIFT_LINE, s->searched - 1) + 1;
    size_t keep = s->stopped ? s->searched : lines_back(s, least, s->searched, s->before);
    line_number(s, keep);
    memmove(s->buf, s->buf + keep, s->len - keep);
    s->base += (int64_t)keep;
    s->counted -= keep;
    s->searched -= keep;
    s->printed = s->printed > keep ? s->printed - keep : 0;
    s->len -= keep;
}

/* Reads up to `most` bytes more; makes room for a good piece when that is getting small. */
static int piece_read(struct bough_sift *s, size_t most, struct bough_err *err)
{
    if (s->room - s->len < PIECE_BYTES / 4) {
        char *more = realloc(s->buf, s->room * 2);
        if (!more)
            return bough_err_sys(err, ENOMEM, "search");
        s->buf = more;
        s->room *= 2;
    }
    if (most > s->room - s->len)
        most = s->room - s->len;
    ssize_t n = BOUGH_RETRY(read(s->fd, s->buf + s->len, most));
    /* EAGAIN: a fifo has taken the file's place */
    if (n < 0 && errno != EAGAIN)
        return bough_err_sys(err, errno, "read");
    if (n <= 0)
        s->end = true;
    else
        s->len += (size_t)n;
    s->bytes += n > 0 ? n : 0;
    return 0;
}

/* The line from `searched` on fills the buffer. Finds where it ends; holes are not read. Then it is searched as far
 * as it is there, and reading goes on behind it. */
static int long_line(struct bough_sift *s, struct bough_err *err)
{
    BOUGH_CLEANUP_FREE char *scratch = malloc(PIECE_BYTES);
    if (!scratch)
        return bough_err_sys(err, ENOMEM, "search");
    off_t begin = s->base + (off_t)s->len, at = begin, next = -1;
    while (next < 0) {
        off_t data = lseek(s->fd, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            data = lseek(s->fd, 0, SEEK_END);
        if (data > at)
            at = data;
        ssize_t n = BOUGH_RETRY(pread(s->fd, scratch, PIECE_BYTES, at));
        if (n < 0)
            return bough_err_sys(err, errno, "read");
        const char *newline = n > 0 ? memchr(scratch, '\n', (size_t)n) : NULL;
        s->beyond = at - begin + (newline ? newline - scratch : n);
        if (newline || n == 0)
            next = begin + s->beyond + (newline != NULL);
        s->end = n == 0;
        at += n;
        s->bytes += n;
        if (bough_out_tick(s->out, s->bytes, err))
            return -1;
    }
    if (piece_search(s, s->len, err))
        return -1;
    line_number(s, s->len);
    s->base_line++;
    s->base = next;
    s->len = s->searched = s->printed = s->counted = 0;
    s->beyond = 0;
    return lseek(s->fd, next, SEEK_SET) < 0 ? bough_err_sys(err, errno, "seek") : 0;
}

int bough_sift_file(struct bough_sift *s, int fd, const char *path, size_t path_len,
                    struct bough_err *err)
{
    s->fd = fd;
    s->path = path;
    s->path_len = path_len;
    s->base = s->base_line = s->count = s->after_left = s->beyond = 0;
    s->len = s->counted = s->searched = s->printed = 0;
    s->end = s->stopped = false;
    while (!s->end && s->len < BOUGH_SIFT_BINARY)
        if (piece_read(s, BOUGH_SIFT_BINARY - s->len, err))
            return -1;
    if (!s->len || memchr(s->buf, '\0', s->len))
        return 0;
    s->files++;
    if (!s->end && piece_read(s, SIZE_MAX, err))
        return -1;
    for (;;) {
        size_t limit = s->end ? s->len : line_begin(s, s->searched, s->len);
        if (limit > s->searched) {
            if (piece_search(s, limit, err))
                return -1;
        } else if (s->len - s->searched >= BOUGH_SIFT_LINE) {
            if (long_line(s, err))
                return -1;
        }
        if ((s->end && s->searched == s->len) || (s->stopped && !s->after_left))
            return 0;
        piece_drop(s);
        if (piece_read(s, BOUGH_SIFT_LINE - (s->len - s->searched), err) ||
            bough_out_tick(s->out, s->bytes, err))
            return -1;
    }
}
