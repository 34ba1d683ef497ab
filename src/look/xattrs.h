/* xattrs.h - the extended attributes of an open file or directory, in the order of their names.
 *
 * One struct serves many files, one after the other; its memory grows to the largest. */
#ifndef BOUGH_LOOK_XATTRS_H
#define BOUGH_LOOK_XATTRS_H

#include <stddef.h>
#include <sys/types.h>

#include "../err.h"

struct bough_xattrs {
    const char **names; /* sorted bytewise; valid until the next list */
    size_t count, names_room;
    char *list;
    size_t list_room;
    char *value; /* of the latest get */
    size_t value_room;
};

/* What a file system does not know it has none of. -1 with err. */
int bough_xattrs_list(struct bough_xattrs *x, int fd, struct bough_err *err);
/* The length of what x->value holds then; -1 with errno. */
ssize_t bough_xattrs_get(struct bough_xattrs *x, int fd, const char *name);
/* Fine on a zeroed one. */
void bough_xattrs_free(struct bough_xattrs *x);

#endif
