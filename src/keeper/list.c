#define _GNU_SOURCE
#include "list.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "../sys.h"
#include "walk.h"

struct list_out {
    int fd;
    size_t len;
    char buf[32768];
};

static int out_flush(struct list_out *o, struct bough_err *err)
{
    for (size_t done = 0; done < o->len;) {
        ssize_t n = BOUGH_RETRY(write(o->fd, o->buf + done, o->len - done));
        if (n < 0)
            return bough_err_sys(err, errno, "write list");
        done += (size_t)n;
    }
    o->len = 0;
    return 0;
}

static void put(char *rec, size_t at, const void *value, size_t size)
{
    memcpy(rec + at, value, size);
}

static int out_record(struct list_out *o, const char *name, const struct stat *st,
                      const char *target, size_t target_len, struct bough_err *err)
{
    size_t name_len = strlen(name);
    size_t length = BOUGH_RECORD_HEAD + name_len + 1 + target_len + 1;
    if (length > BOUGH_RECORD_MAX)
        return bough_err_sys(err, ENAMETOOLONG, "list %s", BOUGH_QUOTE(name));
    if (o->len + length > sizeof o->buf && out_flush(o, err))
        return -1;
    uint32_t u32[] = {(uint32_t)length,
                      st->st_mode,
                      st->st_uid,
                      st->st_gid,
                      (uint32_t)name_len,
                      (uint32_t)target_len,
                      (uint32_t)st->st_mtim.tv_nsec};
    uint64_t size = (uint64_t)st->st_size, nlink = st->st_nlink;
    int64_t sec = st->st_mtim.tv_sec;
    char *rec = o->buf + o->len;
    put(rec, BOUGH_AT_LENGTH, &u32[0], 4);
    put(rec, BOUGH_AT_MODE, &u32[1], 4);
    put(rec, BOUGH_AT_UID, &u32[2], 4);
    put(rec, BOUGH_AT_GID, &u32[3], 4);
    put(rec, BOUGH_AT_SIZE, &size, 8);
    put(rec, BOUGH_AT_NLINK, &nlink, 8);
    put(rec, BOUGH_AT_SEC, &sec, 8);
    put(rec, BOUGH_AT_NSEC, &u32[6], 4);
    put(rec, BOUGH_AT_NAME_LEN, &u32[4], 4);
    put(rec, BOUGH_AT_TARGET_LEN, &u32[5], 4);
    put(rec, BOUGH_RECORD_HEAD, name, name_len + 1);
    put(rec, BOUGH_RECORD_HEAD + name_len + 1, target, target_len);
    rec[length - 1] = '\0';
    o->len += length;
    return 0;
}

/* One entry: `at` below `dirfd`, or `dirfd` itself when `at` is empty. */
static int out_entry(struct list_out *o, int dirfd, const char *at, const char *name,
                     struct bough_err *err)
{
    struct stat st;
    char target[PATH_MAX];
    ssize_t n = 0;
    if (fstatat(dirfd, at, &st, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) {
        if (errno == ENOENT)
            return 0;
        return bough_err_sys(err, errno, "stat %s", BOUGH_QUOTE(name));
    }
    if (S_ISLNK(st.st_mode) && (n = readlinkat(dirfd, at, target, sizeof target)) < 0) {
        if (errno == ENOENT || errno == EINVAL)
            return 0;
        return bough_err_sys(err, errno, "read link %s", BOUGH_QUOTE(name));
    }
    return out_record(o, name, &st, target, (size_t)n, err);
}

int bough_list_entry(int fd, int out_fd, const char *name, struct bough_err *err)
{
    struct list_out o = {.fd = out_fd};
    return out_entry(&o, fd, "", name, err) || out_flush(&o, err) ? -1 : 0;
}

/* ---- a directory: its names are collected and sorted, the rest is read on writing ---- */

struct names {
    char *bytes; /* one after the other, NUL-terminated */
    size_t len, room;
    size_t *start;
    size_t count, start_room;
};

static int names_add(struct names *n, const char *name)
{
    size_t size = strlen(name) + 1;
    if (n->len + size > n->room) {
        size_t room = (n->room + size) * 2 + 4096;
        char *more = realloc(n->bytes, room);
        if (!more)
            return -1;
        n->bytes = more;
        n->room = room;
    }
    if (n->count == n->start_room) {
        size_t room = n->start_room * 2 + 256;
        size_t *more = realloc(n->start, room * sizeof *more);
        if (!more)
            return -1;
        n->start = more;
        n->start_room = room;
    }
    n->start[n->count++] = n->len;
    memcpy(n->bytes + n->len, name, size);
    n->len += size;
    return 0;
}

static int names_compare(const void *a, const void *b, void *bytes)
{
    return strcmp((char *)bytes + *(const size_t *)a, (char *)bytes + *(const size_t *)b);
}

static int names_read(struct names *n, int dirfd, struct bough_err *err)
{
    struct bough_scan scan = {0};
    struct dirent64 *d;
    int rc;
    bough_scan_rewind(&scan, dirfd);
    while ((rc = bough_scan_next(&scan, dirfd, &d)) > 0)
        if (names_add(n, d->d_name)) {
            errno = ENOMEM;
            rc = -1;
            break;
        }
    if (rc < 0)
        bough_err_sys(err, errno, "read directory");
    bough_scan_drop(&scan);
    return rc;
}

int bough_list_dir(int dirfd, int out_fd, struct bough_err *err)
{
    struct names n = {0};
    struct list_out o = {.fd = out_fd};
    int rc = names_read(&n, dirfd, err);
    if (!rc && n.count)
        qsort_r(n.start, n.count, sizeof *n.start, names_compare, n.bytes);
    for (size_t i = 0; !rc && i < n.count; i++)
        rc = out_entry(&o, dirfd, n.bytes + n.start[i], n.bytes + n.start[i], err);
    if (!rc)
        rc = out_flush(&o, err);
    free(n.bytes);
    free(n.start);
    return rc;
}
