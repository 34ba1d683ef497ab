/* node.h - one file system object made like another: content, owner, mode, times, xattrs.
 *
 * Shared by copying a tree and by the cases in which a merge cannot link. Objects are
 * named by a directory descriptor and one component; symbolic links are never followed. */
#ifndef BOUGH_NODE_H
#define BOUGH_NODE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "../err.h"

struct bough_node_copy {
    bool devices;    /* make device nodes and whiteouts */
    bool squash;     /* an owner that cannot be given becomes 0:0 */
    bool plain;      /* bough_node_like_plain in place of bough_node_like */
    bool no_reflink; /* set once the file system has refused */
    bool limited;
    int64_t room;   /* bytes that may still be written when `limited` */
    char *buf;      /* BOUGH_NODE_BUF bytes, the caller's */
    int64_t copied; /* bytes of content so far; each step is told to `progress`, unless NULL */
    void (*progress)(void *arg, int64_t copied);
    void *arg;
};
#define BOUGH_NODE_BUF (128 * 1024)

/* Makes `name` in `to` like `name` in `from`, which is no directory. `made` gets the
 * new object's stat. 1 made, 0 left out (socket; device without `devices`), -1. */
int bough_node_copy(struct bough_node_copy *how, int from, const char *name, int to,
                    struct stat *made, struct bough_err *err);

/* The same for a regular file that is already open. 1 or -1. */
int bough_node_copy_file(struct bough_node_copy *how, int in, const struct stat *st, int to,
                         const char *name, struct stat *made, struct bough_err *err);

/* Gives the open directory or file `to` the xattrs, owner, mode and times of `from`, whose
 * stat is `st`. Xattrs that begin with `skip` (NULL: none) stay behind, unless
 * what follows is "overlay." (overlayfs escapes those of its inner mounts that way) or
 * "protattr" (where it keeps immutable and append-only). */
int bough_node_like(int from, const struct stat *st, int to, const char *skip, bool squash,
                    struct bough_err *err);

/* The same without its owner: user.* xattrs, permission bits but setuid and setgid, times. */
int bough_node_like_plain(int from, const struct stat *st, int to, struct bough_err *err);

/* Frees a new directory from what it inherited (default ACL, setgid) and makes it ours to fill. */
int bough_node_blank(int dir, struct bough_err *err);

#endif
