/* pooled.h - which inodes are the pool's (local/blob.h).
 *
 * Files of one content share an inode there, in different images and under different names. That is the store's
 * business: who takes such files out expects separate ones, so they are no hard links in an archive. */
#ifndef BOUGH_LOOK_POOLED_H
#define BOUGH_LOOK_POOLED_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct bough_pooled_inodes {
    int fd; /* home/blobs, or -1: nothing is pooled; borrowed */
    bool read;
    ino_t *all; /* sorted; read at the first question */
    size_t count, room;
};

/* An overlay shows the number that the inode has below. Without memory it says no. */
bool bough_pooled_has(struct bough_pooled_inodes *pooled, ino_t ino);
void bough_pooled_free(struct bough_pooled_inodes *pooled);

#endif
