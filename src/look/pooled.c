#define _GNU_SOURCE
#include "pooled.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../sys.h"

static int ino_order(const void *a, const void *b)
{
    ino_t x = *(const ino_t *)a, y = *(const ino_t *)b;
    return x < y ? -1 : x > y;
}

static bool ino_add(struct bough_pooled_inodes *p, ino_t ino)
{
    if (p->count == p->room) {
        size_t room = p->room ? p->room * 2 : 1024;
        ino_t *grown = realloc(p->all, room * sizeof *grown);
        if (!grown)
            return false;
        p->all = grown;
        p->room = room;
    }
    p->all[p->count++] = ino;
    return true;
}

/* The names in one directory; `below` for each of them that might be a directory. */
static void names_read(struct bough_pooled_inodes *p, int fd, bool top)
{
    char buf[16384] __attribute__((aligned(__alignof__(struct dirent64))));
    long n;
    while ((n = syscall(SYS_getdents64, fd, buf, sizeof buf)) > 0)
        for (long at = 0; at < n;) {
            struct dirent64 *d = (struct dirent64 *)(buf + at);
            at += d->d_reclen;
            if (d->d_name[0] == '.')
                continue;
            if (!top) {
                if (!ino_add(p, d->d_ino))
                    return;
                continue;
            }
            BOUGH_CLEANUP_FD int dir =
                openat(fd, d->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (dir >= 0)
                names_read(p, dir, false);
        }
}

bool bough_pooled_has(struct bough_pooled_inodes *p, ino_t ino)
{
    if (p->fd < 0)
        return false;
    if (!p->read) {
        p->read = true;
        names_read(p, p->fd, true);
        if (p->count > 1)
            qsort(p->all, p->count, sizeof *p->all, ino_order);
    }
    return p->count > 0 && bsearch(&ino, p->all, p->count, sizeof ino, ino_order) != NULL;
}

void bough_pooled_free(struct bough_pooled_inodes *p)
{
    free(p->all);
    p->all = NULL;
    p->count = p->room = 0;
}
