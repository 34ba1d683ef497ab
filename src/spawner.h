/* spawner.h - the crew that starts plain commands of the host: bough-spawn, when it is first needed.
 *
 * Knows libuv, knows no Lua. One for each loop is enough; whoever makes it frees it. The host gets no child by it
 * (see launch.h). Nothing of it keeps the loop alive but commands that have not ended. */
#ifndef BOUGH_SPAWNER_H
#define BOUGH_SPAWNER_H

#include <stdbool.h>
#include <termios.h>

#include "crew.h"

struct bough_spawner;

/* Starts the program `path`. It is there to be used at once; NULL says why it could not be started. */
struct bough_spawner *bough_spawner_new(struct bough_loop *loop, const char *path,
                                        struct bough_err *err);
/* Ends the program; commands that live are killed, and their processes fail with kind `closed`. NULL is fine. */
void bough_spawner_free(struct bough_spawner *spawner);

/* False once the program has ended, which it does not do by itself: free this one and make another. */
bool bough_spawner_alive(const struct bough_spawner *spawner);
struct bough_crew *bough_spawner_crew(struct bough_spawner *spawner); /* the spawner's own */

/* From now on `tty` gets `settings` back should this process die, in whichever way. Replaces the one before; the
 * descriptor stays the caller's. */
int bough_spawner_guard(struct bough_spawner *spawner, int tty, const struct termios *settings,
                        struct bough_err *err);
void bough_spawner_unguard(struct bough_spawner *spawner);

#endif
