#define _GNU_SOURCE
#include "view.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "../sys.h"
#include "mountapi.h"
#include "root.h"

static void view_clear(struct bough_view *view)
{
    bough_fd_close(&view->mount);
    free(view->stack);
    view->stack = NULL;
    view->count = 0;
}

void bough_views_init(struct bough_views *views, const struct bough_site *site)
{
    *views = (struct bough_views){.site = site};
    for (int i = 0; i < BOUGH_VIEWS; i++)
        views->all[i].mount = -1;
}

void bough_views_drop(struct bough_views *views)
{
    for (int i = 0; i < BOUGH_VIEWS; i++)
        view_clear(&views->all[i]);
}

int bough_views_mount(struct bough_views *views, const int64_t *stack, int64_t count,
                      struct bough_err *err)
{
    struct bough_view *oldest = &views->all[0];
    size_t bytes = sizeof *stack * (size_t)count;
    for (int i = 0; i < BOUGH_VIEWS; i++) {
        struct bough_view *v = &views->all[i];
        if (v->mount >= 0 && v->count == count && memcmp(v->stack, stack, bytes) == 0) {
            v->used = ++views->clock;
            return v->mount;
        }
        if (v->mount < 0 || (oldest->mount >= 0 && v->used < oldest->used))
            oldest = v;
    }
    view_clear(oldest);
    oldest->stack = malloc(bytes + 1);
    if (!oldest->stack)
        return bough_err_sys(err, ENOMEM, "view");
    memcpy(oldest->stack, stack, bytes);
    oldest->count = count;
    struct bough_overlay o = {.site = views->site, .stack = stack, .stack_count = count};
    oldest->mount = bough_overlay_mount(&o, err);
    if (oldest->mount < 0) {
        view_clear(oldest);
        return -1;
    }
    oldest->used = ++views->clock;
    return oldest->mount;
}

static const char *type_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return "a file";
    case S_IFDIR:
        return "a directory";
    case S_IFIFO:
        return "a fifo";
    case S_IFSOCK:
        return "a socket";
    default:
        return "a device";
    }
}

int bough_view_open(int mount, const char *path, bool dir, struct bough_err *err)
{
    struct stat st;
    uint64_t resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    BOUGH_CLEANUP_FD int found = bough_openat2(mount, *path ? path : "/", O_PATH, resolve);
    if (found < 0 || fstat(found, &st) < 0)
        return bough_err_sys(err, errno, "%s", path);
    if (dir ? !S_ISDIR(st.st_mode) : !S_ISREG(st.st_mode))
        return bough_err_set(err, BOUGH_ERR_invalid, "%s: it is %s, not a %s", path,
                             type_name(st.st_mode), dir ? "directory" : "regular file");
    /* Images do not change, so the second look finds what the first one found. */
    int fd = bough_openat2(mount, *path ? path : "/",
                           O_RDONLY | O_NONBLOCK | O_NOCTTY | (dir ? O_DIRECTORY : 0), resolve);
    return fd < 0 ? bough_err_sys(err, errno, "%s", path) : fd;
}
