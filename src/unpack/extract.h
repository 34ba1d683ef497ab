/* extract.h - turns a tar archive into the files below a directory.
 *
 * The reader is libarchive's, restricted to tar; every file is made by our own calls, relative to
 * directory descriptors. What no rule covers is refused:
 *  - absolute names, "..", and names that lead through a symbolic link or a file;
 *  - hard links to something that is not there (or is a directory);
 *  - a directory where an earlier entry put something else, and the reverse unless it is empty;
 *  - extended attributes that would forge overlay metadata (trusted.*, user.overlay.*).
 * Device nodes and sockets are skipped and counted. A later entry replaces an earlier one of its
 * name. Owner, mode with setuid bits, times, user.* attributes and file capabilities are kept;
 * other attributes, ACLs and flags are not. After a failure the directory holds part of the
 * tree. */
#ifndef BOUGH_UNPACK_EXTRACT_H
#define BOUGH_UNPACK_EXTRACT_H

#include <stdbool.h>
#include <stdint.h>

#include "source.h"

struct bough_extract {
    int root;       /* directory to fill; borrowed */
    bool squash;    /* an owner that cannot be mapped becomes 0:0, and loses setuid with it */
    bool may_chown; /* false: with squash everything stays ours */
    int64_t max_bytes, max_files; /* 0: no limit */
    /* called now and then, from within a read too; NULL for none */
    void (*progress)(void *arg, int64_t entries);
    void *progress_arg;
    int64_t bytes, files, skipped; /* out: file data written, entries made, entries left out */
};

int bough_extract_tar(struct bough_extract *how, struct bough_source *source,
                      struct bough_err *err);

#endif
