/* attr.h - owner, extended attributes and time of what an entry has become. */
#ifndef BOUGH_UNPACK_ATTR_H
#define BOUGH_UNPACK_ATTR_H

#include <time.h>

#include "extraction.h"

/* A file in the making: by descriptor, or where it has none by its directory and name. */
struct bough_subject {
    int fd;
    int dir;
    const char *name;
    mode_t mode;
    bool foreign; /* was there before: may belong to anybody */
};

/* Refuses attributes that would forge overlay metadata. Looked at for every entry, also for those
 * that take no attributes. */
int bough_xattrs_check(struct bough_extraction *x);

/* Comes before the mode is set: takes setuid from it where the owner cannot be had. */
int bough_owner_set(struct bough_extraction *x, struct bough_subject *s);

bool bough_xattrs_wanted(const struct bough_extraction *x);
int bough_xattrs_set(struct bough_extraction *x, int fd);

/* A directory of a layer below becomes the entry's: what the entry does not carry goes. */
int bough_xattrs_clear(struct bough_extraction *x, int fd);

/* tv_nsec is UTIME_OMIT when the archive has none. */
struct timespec bough_time_of(struct archive_entry *entry);
int bough_time_set(struct bough_extraction *x, const struct bough_subject *s);

#endif
