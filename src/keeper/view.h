/* view.h - looking into an image without starting it.
 *
 * A read-only overlay that is attached nowhere, and paths resolved inside of it as if it were the root
 * (openat2(2), RESOLVE_IN_ROOT): neither a link nor ".." leads out, and only regular files and directories are
 * opened. The mounts last used are kept. */
#ifndef BOUGH_VIEW_H
#define BOUGH_VIEW_H

#include "site.h"

#define BOUGH_VIEWS 8

struct bough_view {
    int mount; /* -1: free */
    int64_t *stack;
    int64_t count;
    uint64_t used;
};

struct bough_views {
    const struct bough_site *site;
    struct bough_view all[BOUGH_VIEWS];
    uint64_t clock;
};

void bough_views_init(struct bough_views *views, const struct bough_site *site);
void bough_views_drop(
    struct bough_views *views); /* lets go of all mounts, so that layers can be removed */

/* The image's root (O_PATH), mounted now or still there from before. It stays the views' own: good for
 * the next BOUGH_VIEWS - 1 calls. */
int bough_views_mount(struct bough_views *views, const int64_t *stack, int64_t count,
                      struct bough_err *err);

/* A descriptor to read a regular file, or of a directory when `dir`. Not followed at the end: nothing; a
 * link is followed inside the image. */
int bough_view_open(int mount, const char *path, bool dir, struct bough_err *err);

#endif
