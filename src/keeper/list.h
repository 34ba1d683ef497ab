/* list.h - writes directory entries for the host; see ../entry.h for what a record looks like. */
#ifndef BOUGH_LIST_H
#define BOUGH_LIST_H

#include "../entry.h"
#include "../err.h"

/* Writes the entries of the directory `dirfd` (O_RDONLY, its offset is moved) to
 * `out_fd`, sorted by name bytewise, without "." and "..". An entry that vanishes
 * meanwhile is left out. A partial list may have been written when it fails. */
int bough_list_dir(int dirfd, int out_fd, struct bough_err *err);

/* Writes one record for the file that `fd` (O_PATH will do) stands for, called `name`. */
int bough_list_entry(int fd, int out_fd, const char *name, struct bough_err *err);

#endif
