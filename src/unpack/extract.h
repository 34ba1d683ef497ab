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
 * tree.
 *
 * BOUGH_EXTRACT_LAYER: an OCI layer, on top of what the directory holds (a mounted overlay, say). It
 * may replace all of that, whiteouts remove from it (mark.h), hard links may be to it, names
 * lead through symbolic links inside the directory, and slashes in front of them and ".." inside
 * count as in path.h.
 * BOUGH_EXTRACT_PLAIN: into a directory of the host's. No owner, attribute, setuid bit or fifo comes
 * along, all is readable and writable for us, and the directory itself stays as it is. */
#ifndef BOUGH_UNPACK_EXTRACT_H
#define BOUGH_UNPACK_EXTRACT_H

#include <stdbool.h>
#include <stdint.h>

#include "source.h"

enum bough_extract_mode {
    BOUGH_EXTRACT_TREE,
    BOUGH_EXTRACT_LAYER,
    BOUGH_EXTRACT_PLAIN,
};

struct bough_extract {
    int root; /* directory to fill; borrowed */
    enum bough_extract_mode mode;
    bool squash;    /* an owner that cannot be mapped becomes 0:0, and loses setuid with it */
    bool may_chown; /* false: with squash everything stays ours */
    int64_t max_bytes, max_files; /* 0: no limit */
    /* called now and then, from within a read too; NULL for none */
    void (*progress)(void *arg);
    void *progress_arg;
    int64_t bytes, files, skipped; /* out: file data written, entries made, entries left out */
};

int bough_extract_tar(struct bough_extract *how, struct bough_source *source,
                      struct bough_err *err);

#endif
