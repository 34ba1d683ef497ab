/* glob.h - which paths of a tree are wanted, by shell patterns.
 *
 *   *  any bytes but "/"        ?  one byte but "/"       [a-z]  one of a set, [!a-z] or [^a-z] none of it
 *   a component of its own: **  any number of components: the ones between in "a" "/" "**" "/" "b" may be none
 *   {a,b}  either               \x  x itself              no byte is special for being a leading "."
 *
 * A pattern without "/" is for the last component, at any depth; one with "/" (in front, or between) for
 * the whole path from the start. A "/" at its end: directories only. "!" in front: what matches is
 * dropped, directories with all that is below them, whatever the other patterns say.
 *
 * All patterns run as automata over the path: the time is its length times theirs at worst. */
#ifndef BOUGH_LOOK_GLOB_H
#define BOUGH_LOOK_GLOB_H

#include <stdbool.h>
#include <stddef.h>

#include "../err.h"

#define BOUGH_GLOB_MAX 4096 /* bytes of a pattern */

struct bough_glob;
/* Zero it to start: everything is wanted. */
struct bough_globs {
    struct bough_glob *all;
    size_t count;
    bool keeps; /* there is one without "!" */
};

/* Copies what it needs of the pattern. Kind invalid for one that is none. */
int bough_globs_add(struct bough_globs *globs, const char *pattern, struct bough_err *err);
/* Is this entry wanted? Its directories have been entered, so patterns with "!" did not match them. */
bool bough_globs_want(struct bough_globs *globs, const char *path, const char *name, bool dir);
/* May anything below this directory be wanted? */
bool bough_globs_enter(struct bough_globs *globs, const char *path, const char *name);
void bough_globs_free(struct bough_globs *globs);

#endif
