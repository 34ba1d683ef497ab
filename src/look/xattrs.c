#include "xattrs.h"

#include <limits.h>
#include <linux/limits.h>
#include <string.h>
#include <sys/xattr.h>

#include "../sys.h"

static int names_compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int room_make(char **buf, size_t *room, size_t want)
{
    if (*room >= want)
        return 0;
    char *bigger = realloc(*buf, want);
    if (!bigger)
        return -1;
    *buf = bigger;
    *room = want;
    return 0;
}

/* Into `buf`, which grows once to the most that Linux has. */
static ssize_t list_read(struct bough_xattrs *x, int fd)
{
    if (room_make(&x->list, &x->list_room, 1024))
        return -1;
    ssize_t n = flistxattr(fd, x->list, x->list_room);
    if (n >= 0 || errno != ERANGE)
        return n;
    if (room_make(&x->list, &x->list_room, XATTR_LIST_MAX))
        return -1;
    return flistxattr(fd, x->list, x->list_room);
}

int bough_xattrs_list(struct bough_xattrs *x, int fd, struct bough_err *err)
{
    x->count = 0;
    ssize_t n = list_read(x, fd);
    if (n < 0 && errno == EOPNOTSUPP)
        return 0;
    if (n < 0)
        return bough_err_sys(err, errno, "list xattrs");
    for (ssize_t i = 0; i < n; i += (ssize_t)strlen(x->list + i) + 1) {
        if (x->count == x->names_room) {
            size_t room = x->names_room * 2 + 16;
            const char **bigger = realloc(x->names, room * sizeof *bigger);
            if (!bigger)
                return bough_err_sys(err, ENOMEM, "list xattrs");
            x->names = bigger;
            x->names_room = room;
        }
        x->names[x->count++] = x->list + i;
    }
    if (x->count > 1)
        qsort(x->names, x->count, sizeof *x->names, names_compare);
    return 0;
}

ssize_t bough_xattrs_get(struct bough_xattrs *x, int fd, const char *name)
{
    if (room_make(&x->value, &x->value_room, 1024))
        return -1;
    ssize_t n = fgetxattr(fd, name, x->value, x->value_room);
    if (n >= 0 || errno != ERANGE)
        return n;
    if (room_make(&x->value, &x->value_room, XATTR_SIZE_MAX))
        return -1;
    return fgetxattr(fd, name, x->value, x->value_room);
}

void bough_xattrs_free(struct bough_xattrs *x)
{
    free(x->names);
    free(x->list);
    free(x->value);
    *x = (struct bough_xattrs){0};
}
