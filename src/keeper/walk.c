#define _GNU_SOURCE
#include "walk.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "../sys.h"

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif

#define SCAN_BYTES 32768
#define DIR_FLAGS (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

const char *bough_walk_quote(struct bough_quoted *q, const char *name)
{
    size_t room = sizeof q->text - 8, n = 0;
    for (const unsigned char *p = (const unsigned char *)name; *p; p++) {
        if (n >= room) {
            memcpy(q->text + n, "...", 3);
            n += 3;
            break;
        }
        if (*p < 0x20 || *p >= 0x7f || *p == '\\')
            n += (size_t)snprintf(q->text + n, 5, "\\x%02x", *p);
        else
            q->text[n++] = (char)*p;
    }
    q->text[n] = '\0';
    return q->text;
}

/* ---- reading a directory ---- */

static int scan_fill(struct bough_scan *s, int fd)
{
    if (!s->buf && !(s->buf = malloc(SCAN_BYTES)))
        return -1;
    if (s->dropped && lseek(fd, s->place, SEEK_SET) < 0)
        return -1;
    s->dropped = false;
    ssize_t n = getdents64(fd, s->buf, SCAN_BYTES);
    if (n < 0) {
        if (errno != ENOENT)
            return -1;
        n = 0; /* the directory itself is gone: nothing left to read */
    }
    s->pos = 0;
    s->len = (size_t)n;
    return 0;
}

int bough_scan_next(struct bough_scan *s, int fd, struct dirent64 **out)
{
    for (;;) {
        if (s->pos >= s->len) {
            if (scan_fill(s, fd))
                return -1;
            if (!s->len)
                return 0;
        }
        struct dirent64 *d = (struct dirent64 *)(void *)(s->buf + s->pos);
        s->pos += d->d_reclen;
        s->place = d->d_off;
        const char *n = d->d_name;
        if (n[0] == '.' && (!n[1] || (n[1] == '.' && !n[2])))
            continue;
        *out = d;
        return 1;
    }
}

void bough_scan_drop(struct bough_scan *s)
{
    free(s->buf);
    s->buf = NULL;
    s->pos = s->len = 0;
    s->dropped = true;
}

void bough_scan_rewind(struct bough_scan *s, int fd)
{
    lseek(fd, 0, SEEK_SET);
    s->pos = s->len = 0;
    s->place = 0;
}

/* ---- up and down ---- */

int bough_walk_chmod(int dirfd, const char *name, mode_t mode)
{
    if (!syscall(SYS_fchmodat2, dirfd, name, mode, AT_SYMLINK_NOFOLLOW))
        return 0;
    if (errno != ENOSYS && errno != EPERM)
        return -1;
    /* Before Linux 6.6 the C library does it by O_PATH and /proc/self/fd. */
    return fchmodat(dirfd, name, mode, AT_SYMLINK_NOFOLLOW);
}

/* Gives the owner rwx on `name` (or on `fd` itself) and remembers what there was. */
static int spot_lend(struct bough_spot *s, int dirfd, const char *name)
{
    struct stat st;
    if (s->fd >= 0 ? fstat(s->fd, &st) : fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW))
        return -1;
    if (!S_ISDIR(st.st_mode)) {
        errno = ENOTDIR;
        return -1;
    }
    mode_t old = st.st_mode & 07777;
    if (s->fd >= 0) {
        if (fchmod(s->fd, old | 0700))
            return -1;
    } else {
        if (bough_walk_chmod(dirfd, name, old | 0700))
            return -1;
        if ((s->fd = openat(dirfd, name, DIR_FLAGS)) < 0) {
            int saved = errno;
            bough_walk_chmod(dirfd, name, old);
            errno = saved;
            return -1;
        }
    }
    s->lent = true;
    s->mode = old;
    return 0;
}

int bough_spot_open(struct bough_spot *s, int dirfd, const char *name, bool lend)
{
    *s = (struct bough_spot){.fd = openat(dirfd, name, DIR_FLAGS)};
    if (s->fd < 0 && errno == ELOOP)
        errno = ENOTDIR;
    if (!lend || (s->fd < 0 && errno != EACCES))
        return s->fd < 0 ? -1 : 0;
    /* To list a directory is one right, to reach what is in it another. Root has both. */
    if (s->fd >= 0 && (geteuid() == 0 || !faccessat(s->fd, ".", X_OK, AT_EACCESS)))
        return 0;
    if (spot_lend(s, dirfd, name)) {
        bough_fd_close(&s->fd);
        return -1;
    }
    return 0;
}

void bough_spot_close(struct bough_spot *s)
{
    if (s->fd >= 0 && s->lent) {
        int saved = errno;
        (void)!fchmod(s->fd, s->mode);
        errno = saved;
    }
    s->lent = false;
    if (s->borrowed)
        s->fd = -1;
    else
        bough_fd_close(&s->fd);
}

int bough_spot_park(struct bough_spot *s)
{
    struct stat st;
    if (s->fd < 0 || s->borrowed)
        return 0;
    if (fstat(s->fd, &st))
        return -1;
    s->dev = st.st_dev;
    s->ino = st.st_ino;
    bough_fd_close(&s->fd);
    return 0;
}

int bough_spot_return(struct bough_spot *s, const struct bough_spot *child)
{
    struct stat st;
    if (s->fd >= 0)
        return 0;
    BOUGH_CLEANUP_FD int fd = openat(child->fd, "..", DIR_FLAGS);
    if (fd < 0 || fstat(fd, &st))
        return -1;
    if (st.st_dev != s->dev || st.st_ino != s->ino) {
        errno = ESTALE;
        return -1;
    }
    s->fd = bough_steal_fd(&fd);
    return 0;
}

/* ---- inodes met before: open addressing, a power of two, at most 3/4 full ---- */

static size_t inode_slot(const struct bough_inodes *map, dev_t dev, ino_t ino)
{
    uint64_t h = ((uint64_t)ino ^ ((uint64_t)dev << 40)) * UINT64_C(0x9e3779b97f4a7c15);
    size_t i = (size_t)(h >> 32) & (map->size - 1);
    while (map->slots[i].number && (map->slots[i].ino != ino || map->slots[i].dev != dev))
        i = (i + 1) & (map->size - 1);
    return i;
}

static int inodes_grow(struct bough_inodes *map)
{
    struct bough_inodes bigger = {.used = map->used, .size = map->size ? map->size * 2 : 256};
    bigger.slots = calloc(bigger.size, sizeof *bigger.slots);
    if (!bigger.slots)
        return -1;
    for (size_t i = 0; i < map->size; i++)
        if (map->slots[i].number)
            bigger.slots[inode_slot(&bigger, map->slots[i].dev, map->slots[i].ino)] = map->slots[i];
    free(map->slots);
    *map = bigger;
    return 0;
}

struct bough_inode *bough_inodes_meet(struct bough_inodes *map, dev_t dev, ino_t ino)
{
    if (map->used * 4 >= map->size * 3 && inodes_grow(map))
        return NULL;
    struct bough_inode *slot = &map->slots[inode_slot(map, dev, ino)];
    if (!slot->number)
        *slot = (struct bough_inode){.dev = dev, .ino = ino, .number = ++map->used};
    slot->seen++;
    return slot;
}

bool bough_inodes_have(const struct bough_inodes *map, dev_t dev, ino_t ino)
{
    return map->size && map->slots[inode_slot(map, dev, ino)].number;
}

void bough_inodes_free(struct bough_inodes *map)
{
    free(map->slots);
    *map = (struct bough_inodes){0};
}
