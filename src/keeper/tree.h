/* tree.h - operations on layer trees: remove, merge, copy, measure.
 *
 * Plain directory walking with *at() calls that never follow a symbolic link, so a
 * hostile tree cannot lead outside. Runs in children of the keeper with the
 * keeper's rights; knows nothing of requests. `opaque` is the xattr that marks an opaque
 * directory ("trusted.overlay.opaque" or "user.overlay.opaque"). */
#ifndef BOUGH_TREE_H
#define BOUGH_TREE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "../err.h"

struct bough_tree_size {
    int64_t bytes; /* allocated blocks * 512, hard links counted once per walk */
    int64_t files; /* entries of every type, the root not counted */
};

/* Removes `name` below `dirfd` and everything in it. A missing name is success.
 * Makes directories searchable on its way (a layer may hold mode 000). Constant number of open
 * descriptors whatever the depth; depth beyond PATH_MAX works. */
int bough_tree_remove(int dirfd, const char *name, struct bough_err *err);

int bough_tree_measure(int dirfd, const char *name, struct bough_tree_size *out,
                       struct bough_err *err);

/* Merges `count` layer roots (directory descriptors, top first) into the empty directory `out`:
 * files, links, whiteouts by linkat (never copying data), directories made anew with owner, mode, times
 * and xattrs of the topmost one that has them. Overlay semantics: an entry of a higher layer hides
 * the same name below; an opaque directory, a whiteout, or a non-directory hides what is under it. Whiteouts are kept (the result lies on
 * further layers); a directory is opaque in the result when its topmost run of merged directories ended in
 * an opaque one or on a whiteout/non-directory below. The metadata of the root itself is the topmost's.
 * EMLINK falls back to copying that one file. */
int bough_tree_merge(const int *layers, int count, int out, const char *opaque,
                     struct bough_tree_size *size, struct bough_err *err);

/* Copies the tree in `from` (directory descriptor) into the empty directory `to`: every type (regular
 * files by reflink, copy_file_range, or read/write, holes kept; hard links kept; symlinks; fifos; device nodes and
 * whiteouts where `devices` allows, else skipped and counted in *skipped; sockets skipped and counted), owner,
 * mode, nanosecond times, xattrs (all that can be read and set). Ownership that cannot be
 * mapped (EINVAL/EPERM on chown) becomes 0:0 when `squash`, else an error. Root metadata is copied too. Stays on one file system
 * when `one_fs`. `max_bytes` or `max_files` > 0 stops a tree that is larger, kind `resource`.
 *
 * `plain` is for a directory of the caller's: everything belongs to whoever runs us, no setuid or setgid
 * bits, of the xattrs only user.*, and `to` itself keeps what it has. `apart` says of a file with several names
 * that they are to be files of their own, not links to one another. */
struct bough_tree_copy {
    bool devices, squash, one_fs, plain;
    bool still; /* nobody changes it meanwhile: what vanishes is an error, not somebody's doing */
    int64_t max_bytes, max_files;
    bool (*apart)(void *arg, const struct stat *st); /* may be NULL */
    void (*progress)(void *arg, int64_t bytes);      /* may be NULL; bytes of content so far */
    void *arg;                                       /* for both */
    int64_t skipped;                                 /* out */
};
int bough_tree_copy(int from, int to, struct bough_tree_copy *how, struct bough_tree_size *size,
                    struct bough_err *err);

#endif
