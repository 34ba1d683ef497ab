#define _GNU_SOURCE
#include "tree.h"

#include <endian.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "../sys.h"

#define SCAN_BYTES 65536
#define DIR_FLAGS (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

/* Levels whose descriptors stay open; below them only the one that is being read. */
enum { OPEN_LEVELS = BOUGH_TREE_FDS - 2 };

struct bough_tree_level {
    int fd; /* -1 while closed */
    dev_t dev;
    ino_t ino;        /* set on closing */
    size_t next, end; /* names still to come */
    size_t bytes;     /* where its names' bytes start */
    size_t path_len;
};

struct bough_tree_name {
    uint64_t key; /* the first eight bytes, so that most comparisons end here */
    uint64_t at : 56;
    uint64_t type : 8;
};

const char *bough_tree_quote(struct bough_tree_quoted *q, const char *path)
{
    size_t room = sizeof q->text - 4, len = strlen(path), n = 0;
    const char *p = path + len;
    for (size_t used = 0; p > path; p--) {
        unsigned char c = (unsigned char)p[-1];
        used += c < 0x20 || c >= 0x7f || c == '\\' ? 4 : 1;
        if (used > room)
            break;
    }
    if (p > path)
        n += (size_t)snprintf(q->text, 4, "...");
    for (; *p; p++) {
        unsigned char c = (unsigned char)*p;
        if (c < 0x20 || c >= 0x7f || c == '\\')
            n += (size_t)snprintf(q->text + n, 5, "\\x%02x", c);
        else
            q->text[n++] = (char)c;
    }
    q->text[n] = '\0';
    return q->text;
}

int bough_tree_compare(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    if (*a == *b)
        return 0;
    int x = !*a ? -2 : *a == '/' ? -1 : (unsigned char)*a;
    int y = !*b ? -2 : *b == '/' ? -1 : (unsigned char)*b;
    return x < y ? -1 : 1;
}

int bough_tree_open(const struct bough_tree_entry *e)
{
    if (e->type != DT_REG && e->type != DT_DIR) {
        errno = EINVAL;
        return -1;
    }
    return openat(e->dir, e->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

/* The array, with room for `more` elements behind `used` of them. */
static void *grown(void *array, size_t *room, size_t used, size_t more, size_t size)
{
    if (used + more <= *room)
        return array;
    size_t bigger = *room * 2 + more + 64;
    array = realloc(array, bigger * size);
    if (array)
        *room = bigger;
    return array;
}

/* 0, or -1 with the array as it was. */
#define GROW(array, room, used, more)                                            \
    __extension__({                                                              \
        void *grown_ = grown((array), &(room), (used), (more), sizeof *(array)); \
        if (grown_)                                                              \
            (array) = grown_;                                                    \
        grown_ ? 0 : -1;                                                         \
    })

static int failed(const struct bough_tree *t, int sys, const char *what, struct bough_err *err)
{
    return bough_err_sys(err, sys, "%s %s", what, t->path_len ? BOUGH_TREE_QUOTE(t->path) : "/");
}

/* ---- names ---- */

static int name_compare(const void *a, const void *b, void *bytes)
{
    const struct bough_tree_name *x = a, *y = b;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return strcmp((char *)bytes + x->at, (char *)bytes + y->at);
}

static int name_add(struct bough_tree *t, const char *name, unsigned char type)
{
    size_t size = strlen(name) + 1;
    char first[8] = {0};
    uint64_t key;
    if (GROW(t->bytes, t->bytes_room, t->bytes_len, size) ||
        GROW(t->names, t->names_room, t->name_count, 1))
        return -1;
    memcpy(first, name, size < 8 ? size : 8);
    memcpy(&key, first, 8);
    t->names[t->name_count++] =
        (struct bough_tree_name){.key = be64toh(key), .at = t->bytes_len, .type = type};
    memcpy(t->bytes + t->bytes_len, name, size);
    t->bytes_len += size;
    return 0;
}

/* The type of a name where the file system does not tell; DT_UNKNOWN when it has gone. */
static unsigned char name_type(int fd, const char *name)
{
    struct stat st;
    return fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) ? DT_UNKNOWN : IFTODT(st.st_mode);
}

/* Reads the names of the level on top. */
static int names_read(struct bough_tree *t, struct bough_err *err)
{
    struct bough_tree_level *level = &t->levels[t->depth - 1];
    ssize_t n;
    level->next = t->name_count;
    level->bytes = t->bytes_len;
    while ((n = getdents64(level->fd, t->scan, SCAN_BYTES)) > 0)
        for (ssize_t i = 0; i < n;) {
            struct dirent64 *d = (struct dirent64 *)(void *)(t->scan + i);
            const char *name = d->d_name;
            unsigned char type = d->d_type;
            i += d->d_reclen;
            if (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])))
                continue;
            if (type == DT_UNKNOWN && (type = name_type(level->fd, name)) == DT_UNKNOWN)
                continue;
            if (name_add(t, name, type))
                return failed(t, ENOMEM, "read directory", err);
        }
    if (n < 0 && errno != ENOENT) /* a directory that has been removed reads as that */
        return failed(t, errno, "read directory", err);
    level->end = t->name_count;
    if (level->end > level->next)
        qsort_r(t->names + level->next, level->end - level->next, sizeof *t->names, name_compare,
                t->bytes);
    return 0;
}

/* ---- up and down ---- */

static int level_push(struct bough_tree *t, int fd, struct bough_err *err)
{
    if (GROW(t->levels, t->levels_room, t->depth, 1)) {
        if (t->depth)
            close(fd);
        return failed(t, ENOMEM, "read directory", err);
    }
    t->levels[t->depth++] = (struct bough_tree_level){.fd = fd, .path_len = t->path_len};
    return names_read(t, err);
}

/* Closes a deep level for as long as the walk is below it. */
static int level_park(struct bough_tree *t, struct bough_tree_level *level, struct bough_err *err)
{
    struct stat st;
    if (fstat(level->fd, &st))
        return failed(t, errno, "stat", err);
    level->dev = st.st_dev;
    level->ino = st.st_ino;
    bough_fd_close(&level->fd);
    return 0;
}

static int level_return(struct bough_tree *t, struct bough_tree_level *level, int child,
                        struct bough_err *err)
{
    struct stat st;
    if (level->fd >= 0)
        return 0;
    BOUGH_CLEANUP_FD int fd = openat(child, "..", DIR_FLAGS);
    if (fd < 0 || fstat(fd, &st))
        return failed(t, errno, "go up from", err);
    if (st.st_dev != level->dev || st.st_ino != level->ino)
        return failed(t, ESTALE, "go up from", err);
    level->fd = bough_steal_fd(&fd);
    return 0;
}

/* Into the directory that the path names. One that has gone or been replaced has no entries. */
static int level_enter(struct bough_tree *t, struct bough_err *err)
{
    struct bough_tree_level *above = &t->levels[t->depth - 1];
    const char *name = t->path + above->path_len + (above->path_len > 0);
    int fd = openat(above->fd, name, DIR_FLAGS);
    if (fd < 0) {
        if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP)
            return 0;
        return failed(t, errno, "open directory", err);
    }
    if (t->depth >= OPEN_LEVELS && level_park(t, above, err)) {
        close(fd);
        return -1;
    }
    return level_push(t, fd, err);
}

static int level_leave(struct bough_tree *t, struct bough_err *err)
{
    struct bough_tree_level *level = &t->levels[t->depth - 1];
    if (level_return(t, level - 1, level->fd, err))
        return -1;
    bough_fd_close(&level->fd);
    t->bytes_len = level->bytes;
    t->depth--;
    /* the level above still has its names: they end where those of this one began */
    t->name_count = t->levels[t->depth - 1].end;
    return 0;
}

/* ---- the walk ---- */

int bough_tree_start(struct bough_tree *t, int fd, struct bough_err *err)
{
    *t = (struct bough_tree){0};
    t->scan = malloc(SCAN_BYTES);
    if (!t->scan)
        return bough_err_sys(err, ENOMEM, "read directory");
    if (lseek(fd, 0, SEEK_SET) < 0)
        return bough_err_sys(err, errno, "read directory");
    return level_push(t, fd, err);
}

void bough_tree_skip(struct bough_tree *t)
{
    t->inside = false;
}

int bough_tree_next(struct bough_tree *t, struct bough_tree_entry *out, struct bough_err *err)
{
    if (t->inside) {
        t->inside = false;
        if (level_enter(t, err))
            return -1;
    }
    struct bough_tree_level *level = &t->levels[t->depth - 1];
    for (; level->next == level->end; level = &t->levels[t->depth - 1])
        if (t->depth == 1)
            return 0;
        else if (level_leave(t, err))
            return -1;
    const struct bough_tree_name *n = &t->names[level->next++];
    const char *name = t->bytes + n->at;
    size_t size = strlen(name) + 1, at = level->path_len;
    if (at + size >= BOUGH_TREE_PATH_MAX)
        return bough_err_set(err, BOUGH_ERR_resource, "%s: nested too deep: longest path %zu bytes",
                             BOUGH_TREE_QUOTE(t->path), BOUGH_TREE_PATH_MAX);
    if (GROW(t->path, t->path_room, at, size + 1))
        return bough_err_sys(err, ENOMEM, "read directory");
    if (at)
        t->path[at++] = '/';
    memcpy(t->path + at, name, size);
    t->path_len = at + size - 1;
    t->inside = n->type == DT_DIR;
    *out = (struct bough_tree_entry){
        .path = t->path,
        .path_len = t->path_len,
        .name = t->path + at,
        .dir = level->fd,
        .depth = (unsigned)t->depth,
        .type = n->type,
    };
    return 1;
}

void bough_tree_free(struct bough_tree *t)
{
    for (size_t i = 1; i < t->depth; i++)
        bough_fd_close(&t->levels[i].fd);
    free(t->levels);
    free(t->names);
    free(t->bytes);
    free(t->path);
    free(t->scan);
    *t = (struct bough_tree){0};
}
