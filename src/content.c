#define _GNU_SOURCE
#include "content.h"

#include <fcntl.h>
#include <string.h>

#include "sys.h"

/* ---- local files ---- */

static int check_regular(const char *path, mode_t mode, struct bough_err *err)
{
    if (S_ISREG(mode))
        return 0;
    if (S_ISDIR(mode))
        return bough_err_set(err, BOUGH_ERR_invalid,
                             "%s: is a directory (bough.dir(path) takes a tree)", path);
    const char *what = S_ISFIFO(mode)   ? "a fifo"
                       : S_ISSOCK(mode) ? "a socket"
                       : S_ISCHR(mode)  ? "a character device"
                                        : "a block device";
    return bough_err_set(err, BOUGH_ERR_invalid, "%s: is %s; only regular files can go in", path,
                         what);
}

int bough_content_stat(const char *path, struct stat *st, struct bough_err *err)
{
    if (stat(path, st))
        return bough_err_sys(err, errno, "%s", path);
    return check_regular(path, st->st_mode, err);
}

int bough_content_open(struct bough_content *content, int dir, const char *path,
                       struct bough_err *err)
{
    *content = (struct bough_content){.name = path, .fd = -1};
    int fd BOUGH_CLEANUP_FD = openat(dir, path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &content->st))
        return bough_err_sys(err, errno, "%s", path);
    if (check_regular(path, content->st.st_mode, err))
        return -1;
    content->size = content->st.st_size;
    content->fd = bough_steal_fd(&fd);
    return 0;
}

void bough_content_bytes(struct bough_content *content, const char *name, const char *data,
                         size_t size)
{
    *content = (struct bough_content){.name = name, .fd = -1, .data = data, .size = (int64_t)size};
}

bool bough_content_is_small(const struct bough_content *content)
{
    return content->fd < 0 || content->size <= BOUGH_CONTENT_SMALL;
}

static int64_t time_ns(struct timespec t)
{
    int64_t ns;
    if (__builtin_mul_overflow((int64_t)t.tv_sec, INT64_C(1000000000), &ns) ||
        __builtin_add_overflow(ns, (int64_t)t.tv_nsec, &ns))
        return t.tv_sec < 0 ? INT64_MIN + 1 : INT64_MAX;
    return ns;
}

void bough_content_key(const struct stat *st, struct bough_hash_key *key)
{
    *key = (struct bough_hash_key){.device = st->st_dev,
                                   .inode = st->st_ino,
                                   .size = st->st_size,
                                   .mtime_ns = time_ns(st->st_mtim),
                                   .ctime_ns = time_ns(st->st_ctim)};
}

void bough_content_remember(const struct bough_content *content, struct bough_hashes *hashes)
{
    struct bough_hash_key key;
    bough_content_key(&content->st, &key);
    /* Not those of /proc and the like, whose size and times say nothing. */
    if (content->size == content->st.st_size && content->size > 0)
        bough_hashes_put(hashes, &key, content->hex);
}

static int changed(const struct bough_content *content, struct bough_err *err)
{
    return bough_err_set(err, BOUGH_ERR_state, "%s: changed while it was read", content->name);
}

/* Whether what was read can be what the file held at one moment. */
static int check_unchanged(const struct bough_content *content, struct bough_err *err)
{
    const struct stat *before = &content->st;
    struct stat after;
    if (content->verified)
        return 0;
    if (fstat(content->fd, &after))
        return bough_err_sys(err, errno, "%s", content->name);
    if (after.st_size != before->st_size || after.st_mtim.tv_sec != before->st_mtim.tv_sec ||
        after.st_mtim.tv_nsec != before->st_mtim.tv_nsec ||
        /* Another name for it changes this time as well. */
        (after.st_nlink == before->st_nlink && (after.st_ctim.tv_sec != before->st_ctim.tv_sec ||
                                                after.st_ctim.tv_nsec != before->st_ctim.tv_nsec)))
        return changed(content, err);
    return 0;
}

/* ---- small ones ---- */

static int load_file(struct bough_content *content, char *buffer, struct bough_err *err)
{
    /* Those of /proc say that they are empty. */
    size_t room = content->size ? (size_t)content->size : BOUGH_CONTENT_SMALL + 1, got = 0;
    while (got < room) {
        ssize_t part = BOUGH_RETRY(read(content->fd, buffer + got, room - got));
        if (part < 0)
            return bough_err_sys(err, errno, "%s", content->name);
        if (part == 0)
            break;
        got += (size_t)part;
    }
    bool counted = content->st.st_blocks > 0; /* those of /sys say too much */
    if (got > BOUGH_CONTENT_SMALL || (counted && got != (size_t)content->size))
        return changed(content, err);
    content->data = buffer;
    content->size = (int64_t)got;
    return check_unchanged(content, err);
}

int bough_content_load(struct bough_content *content, char *buffer, struct bough_err *err)
{
    if (content->fd >= 0 && load_file(content, buffer, err))
        return -1;
    struct bough_sha256 *sha = bough_sha256_new();
    if (!sha)
        return bough_err_sys(err, ENOMEM, "%s", content->name);
    bough_sha256_update(sha, content->data, (size_t)content->size);
    bough_sha256_hex(sha, content->hex);
    bough_sha256_free(sha);
    return 0;
}

static int write_all(int out, const char *data, size_t size, int64_t offset, const char *where,
                     struct bough_err *err)
{
    while (size) {
        ssize_t part = BOUGH_RETRY(pwrite(out, data, size, offset));
        if (part <= 0)
            return bough_err_sys(err, part ? errno : EIO, "%s", where);
        data += part;
        size -= (size_t)part;
        offset += part;
    }
    return 0;
}

int bough_content_write(const struct bough_content *content, int out, const char *where,
                        struct bough_err *err)
{
    return write_all(out, content->data, (size_t)content->size, 0, where, err);
}

/* ---- large ones ---- */

struct copying {
    struct bough_content *content;
    struct bough_stage *stage;
    struct bough_sha256 *sha;
    int out;
    const char *where;
    char *buffer;
    struct bough_err *err;
};

static int copy_moved(struct copying *c, int64_t size)
{
    atomic_fetch_add(&c->stage->done_bytes, size);
    if (atomic_load(&c->stage->cancelled))
        return bough_err_set(c->err, BOUGH_ERR_cancelled, "%s: cancelled", c->content->name);
    return 0;
}

static int64_t copy_part(int64_t from, int64_t to)
{
    return to - from < BOUGH_CONTENT_SMALL ? to - from : BOUGH_CONTENT_SMALL;
}

static int copy_hole(struct copying *c, int64_t from, int64_t to)
{
    if (from < to)
        memset(c->buffer, 0, (size_t)copy_part(from, to));
    for (int64_t part; from < to; from += part) {
        part = copy_part(from, to);
        bough_sha256_update(c->sha, c->buffer, (size_t)part);
        if (copy_moved(c, part))
            return -1;
    }
    return 0;
}

static int copy_data(struct copying *c, int64_t from, int64_t to)
{
    while (from < to) {
        ssize_t part =
            BOUGH_RETRY(pread(c->content->fd, c->buffer, (size_t)copy_part(from, to), from));
        if (part < 0)
            return bough_err_sys(c->err, errno, "%s", c->content->name);
        if (part == 0)
            return changed(c->content, c->err);
        bough_sha256_update(c->sha, c->buffer, (size_t)part);
        if ((c->out >= 0 && write_all(c->out, c->buffer, (size_t)part, from, c->where, c->err)) ||
            copy_moved(c, part))
            return -1;
        from += part;
    }
    return 0;
}

static int copy_all(struct copying *c)
{
    int fd = c->content->fd;
    int64_t size = c->content->size;
    for (int64_t at = 0; at < size;) {
        /* A file system without holes fails or says that all is data. */
        int64_t data = lseek(fd, at, SEEK_DATA);
        if (data < 0)
            data = errno == ENXIO ? size : at;
        data = data > size ? size : data;
        int64_t hole = data < size ? lseek(fd, data, SEEK_HOLE) : size;
        hole = hole <= data || hole > size ? size : hole;
        if (copy_hole(c, at, data) || copy_data(c, data, hole))
            return -1;
        at = hole;
    }
    if (c->out >= 0 && ftruncate(c->out, size))
        return bough_err_sys(c->err, errno, "%s", c->where);
    return check_unchanged(c->content, c->err);
}

int bough_content_copy(struct bough_content *content, int out, const char *where, char *buffer,
                       struct bough_stage *stage, struct bough_err *err)
{
    struct copying c = {.content = content,
                        .stage = stage,
                        .sha = bough_sha256_new(),
                        .out = out,
                        .where = where,
                        .buffer = buffer,
                        .err = err};
    if (!c.sha)
        return bough_err_sys(err, ENOMEM, "%s", content->name);
    posix_fadvise(content->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    int result = copy_all(&c);
    if (result == 0)
        bough_sha256_hex(c.sha, content->hex);
    bough_sha256_free(c.sha);
    return result;
}
