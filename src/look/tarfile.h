/* tarfile.h - a regular file's entry: header, holes, content. */
#ifndef BOUGH_LOOK_TARFILE_H
#define BOUGH_LOOK_TARFILE_H

#include <sys/stat.h>

#include "tar.h"

/* Writes `e`, whose size this sets, with what `fd` (at its beginning; its stat is `st`) holds. With `holes`,
 * a file that has some is written without them. One that shrinks meanwhile is an error; of one that
 * grows the new part is left out. */
int bough_tar_file(struct bough_tar *t, struct bough_tar_entry *e, int fd, const struct stat *st,
                   bool holes, struct bough_err *err);

#endif
