/* walk.h - what every walk over a tree shares: reading directories, going up and
 * down with few descriptors, remembering inodes, quoting names for messages.
 *
 * A walk keeps the descriptors of its first levels open. Deeper down it "parks" a
 * directory as it enters a child: remembers device and inode, closes it, and comes
 * back through the child's ".." later. The numbers must match then, so a
 * directory that somebody moves meanwhile is an error and not a way out of the tree. */
#ifndef BOUGH_WALK_H
#define BOUGH_WALK_H

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "../err.h"

/* Levels that stay open, per directory that a level needs. */
#define BOUGH_WALK_LEVELS 48

/* A name made fit for a message: one line, printable, at most this long. */
struct bough_quoted {
    char text[128];
};
const char *bough_walk_quote(struct bough_quoted *q, const char *name);
#define BOUGH_QUOTE(name) bough_walk_quote(&(struct bough_quoted){{0}}, (name))

/* A directory being read. Zero it to start at the beginning; the owner frees it
 * with bough_scan_drop, after which reading may go on (it seeks to its place). */
struct bough_scan {
    char *buf;
    size_t pos, len;
    off_t place; /* behind the last entry that was handed out */
    bool dropped;
};
/* 1 and an entry (valid until the next call; never "." or ".."), 0 at the end, -1 with errno. */
int bough_scan_next(struct bough_scan *s, int fd, struct dirent64 **out);
void bough_scan_drop(struct bough_scan *s);
void bough_scan_rewind(struct bough_scan *s, int fd);

/* One level's directory. */
struct bough_spot {
    int fd;        /* -1 while parked or closed */
    bool borrowed; /* somebody else closes fd */
    bool lent;     /* made searchable for the walk: `mode` is put back on close */
    mode_t mode;
    dev_t dev; /* set by parking */
    ino_t ino;
};

/* Opens a directory, no symbolic link; with `lend`, one without rx for its owner is
 * given them until the spot is closed. -1 with errno; ENOTDIR for anything else. */
int bough_spot_open(struct bough_spot *s, int dirfd, const char *name, bool lend);
void bough_spot_close(struct bough_spot *s);
int bough_spot_park(struct bough_spot *s);
/* Opens a parked `s` again through its child. ESTALE when it is another directory now. */
int bough_spot_return(struct bough_spot *s, const struct bough_spot *child);

/* chmod that does not follow a symbolic link. -1 with errno. */
int bough_walk_chmod(int dirfd, const char *name, mode_t mode);

/* Inodes met before. Zero it to start; freed by bough_inodes_free. */
struct bough_inode {
    dev_t dev;
    ino_t ino;
    uint64_t number; /* counts up from 1 as inodes are added; 0 is a free slot */
    uint64_t seen;   /* times looked up */
};
struct bough_inodes {
    struct bough_inode *slots;
    size_t used, size;
};
/* Finds or adds an inode and counts it as seen; NULL without memory. Valid until the next call. */
struct bough_inode *bough_inodes_meet(struct bough_inodes *map, dev_t dev, ino_t ino);
bool bough_inodes_have(const struct bough_inodes *map, dev_t dev, ino_t ino);
void bough_inodes_free(struct bough_inodes *map);

#endif
