/* search.h - finds lines: one or many patterns over a text of whole lines.
 *
 * A match never spans lines, as if each line stood alone. Patterns that cannot see a newline (nearly
 * all can be rewritten so) run over the whole text at once, the others line by line. */
#ifndef BOUGH_LOOK_SEARCH_H
#define BOUGH_LOOK_SEARCH_H

#include <stdbool.h>
#include <stddef.h>

#include "../err.h"

struct bough_search_code;
struct bough_search_tools;
struct bough_search {
    struct bough_search_code *codes;
    size_t count;
    struct bough_search_tools *tools;
    char *needle; /* what every match of the only pattern holds; NULL when none is known */
    const char *text;
    size_t len;
};

/* Patterns are fixed strings or PCRE2's regular expressions; ignoring case is for ASCII. Kind invalid with the
 * reason for what is no pattern. Free it also after a failure. */
int bough_search_compile(struct bough_search *s, char *const *patterns, size_t count, bool fixed,
                         bool ignore_case, struct bough_err *err);
void bough_search_free(struct bough_search *s);

/* From now on in this text, which the caller keeps. It begins where a line does. */
void bough_search_begin(struct bough_search *s, const char *text, size_t len);
/* The first line with a match at or behind `from`, itself the beginning of a line: 1 and a position in that line
 * (maybe of its newline), 0, -1 with kind resource when a pattern is too much work. `from` only grows. */
int bough_search_next(struct bough_search *s, size_t from, size_t *at, struct bough_err *err);
/* In one line: the next match at or behind `from` that is not empty. */
int bough_search_in_line(struct bough_search *s, const char *line, size_t len, size_t from,
                         size_t *begin, size_t *end, struct bough_err *err);

/* Calls back, in a signal handler, when one search has used the processor for more than five
 * seconds: PCRE2 counts steps for each position, and a text has many. The callback must not return. */
int bough_search_watch(void (*too_long)(void), struct bough_err *err);

#endif
