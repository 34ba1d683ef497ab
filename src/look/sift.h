/* sift.h - searches one file after another and writes the records of the lines found (../record.h).
 *
 * The file goes through one buffer, in pieces of whole lines. A line longer than BOUGH_SIFT_LINE is
 * searched in that many bytes, counts with its whole length, and is no context of a later line. Context in
 * front reaches back over at most as many bytes. */
#ifndef BOUGH_LOOK_SIFT_H
#define BOUGH_LOOK_SIFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "out.h"
#include "search.h"

#define BOUGH_SIFT_LINE ((size_t)8 << 20)
#define BOUGH_SIFT_BINARY ((size_t)32 << 10) /* a NUL in this many bytes: a binary file */

struct bough_sift {
    struct bough_search *search;
    struct bough_out *out;
    /* limits; INT64_MAX for none */
    int64_t before, after, max_count, max_line;
    int64_t total_left; /* matching lines that may still come, over all files */
    /* sums so far */
    int64_t matched, files, bytes;
    bool cut; /* a limit ended the search of a file */

    /* this file */
    int fd;
    const char *path; /* for its records */
    size_t path_len;
    int64_t base;      /* offset of buf[0] in the file */
    int64_t base_line; /* newlines in front of `counted` */
    size_t counted;
    size_t searched; /* up to here, lines are done with */
    size_t printed;  /* no line in front of this is a context any more */
    int64_t beyond;  /* bytes of the last line that are not in the buffer */
    int64_t count, after_left;
    bool end, stopped; /* end of file; a limit has been reached */

    char *buf;
    size_t len, room;
    uint32_t *subs;
    size_t subs_room;
};

int bough_sift_start(struct bough_sift *s, struct bough_err *err);
/* Searches the regular file `fd`, which stays the caller's. With total_left at 0 afterwards it is over. */
int bough_sift_file(struct bough_sift *s, int fd, const char *path, size_t path_len,
                    struct bough_err *err);
void bough_sift_free(struct bough_sift *s);

#endif
