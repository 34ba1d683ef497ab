/* answer.h - what has come back over HTTP: status, headers, and body bytes in memory.
 *
 * Embedded in its owner. Knows neither libcurl nor Lua. */
#ifndef BOUGH_ANSWER_H
#define BOUGH_ANSWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BOUGH_ANSWER_FIELDS 1000 /* headers in one answer at most */

struct bough_field {
    char *name, *value; /* the name in lower case */
};

struct bough_answer {
    long status;
    struct bough_field *fields;
    size_t field_count, field_room;
    char *data; /* what has come; a stream's reader has had it up to `taken` */
    size_t size, taken, room;
};

void bough_answer_clear(struct bough_answer *answer); /* the headers: another answer begins */
void bough_answer_free(struct bough_answer *answer);
/* A line "Name: value"; others are passed over. False: too many, or out of memory. */
bool bough_answer_header(struct bough_answer *answer, const char *line, size_t size);
/* The first header of that name, NULL when there is none. */
const char *bough_answer_field(const struct bough_answer *answer, const char *name);
bool bough_answer_append(struct bough_answer *answer, const char *data, size_t size);
void bough_answer_take(struct bough_answer *answer, size_t size);

#endif
