/* rewrite.h - makes a regular expression blind for newlines.
 *
 * One that neither takes nor asks for a newline finds in a text of many lines exactly what it
 * finds in each of them alone, provided that "^" and "$" mean lines (PCRE2_MULTILINE). So "[^a]" becomes
 * "[^\na]", "\s" "[^\S\n]" and so on; what is not known to be harmless is left alone. */
#ifndef BOUGH_LOOK_REWRITE_H
#define BOUGH_LOOK_REWRITE_H

enum bough_rewrite {
    BOUGH_REWRITE_FREE,  /* and it may stand beside others in one expression */
    BOUGH_REWRITE_ALONE, /* and it counts its groups */
    BOUGH_REWRITE_NONE,  /* must be shown one line after the other, as it is */
    BOUGH_REWRITE_FAILED /* out of memory */
};

/* `pattern` is one that PCRE2 takes. For the first two results *out is the new one, to be freed. */
enum bough_rewrite bough_rewrite(const char *pattern, char **out);

#endif
