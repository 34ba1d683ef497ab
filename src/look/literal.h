/* literal.h - a text that every match of a regular expression holds, to look for that first.
 *
 * Finding a fixed text in a buffer costs a fraction of what trying an expression at each position does. Anything
 * that is not understood gives no literal, which is always right. */
#ifndef BOUGH_LOOK_LITERAL_H
#define BOUGH_LOOK_LITERAL_H

#define BOUGH_LITERAL_MIN 3 /* shorter ones are too common to be worth it */

/* The longest run of plain characters that a match of `pattern` (PCRE2's syntax, case counts) cannot be without;
 * malloc'ed. NULL: none is known, or no memory. */
char *bough_literal_required(const char *pattern);

#endif
