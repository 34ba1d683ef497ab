/* tarlink.h - remembers under which path an inode with several names went into the archive. */
#ifndef BOUGH_LOOK_TARLINK_H
#define BOUGH_LOOK_TARLINK_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "../err.h"

struct bough_tar_link;
/* Zero it to start. */
struct bough_tar_links {
    struct bough_tar_link *slots;
    size_t used, size;
    char *paths;
    size_t paths_len, paths_room;
};

/* The path it was met under first (valid until the next call), or "" when that is now. NULL with err. */
const char *bough_tar_links_meet(struct bough_tar_links *l, dev_t dev, ino_t ino, const char *path,
                                 struct bough_err *err);
void bough_tar_links_free(struct bough_tar_links *l);

#endif
