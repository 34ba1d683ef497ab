/* crew.h - a connection to whoever starts processes for us: the init of a booted sandbox, or bough-spawn.
 *
 * Knows libuv, knows no Lua. Counted: processes hold it. Those that have not ended when the other end goes away fail:
 * at once, or when the owner says why (bough_crew_hang_up). */
#ifndef BOUGH_CREW_H
#define BOUGH_CREW_H

#include <stdbool.h>

#include "local/client.h"
#include "loop.h"

struct bough_process;

struct bough_crew {
    int refs;
    struct bough_loop *loop;
    struct bough_client *client;
    const char *ended; /* what to say once nobody is there any more */
    uv_poll_t *poll;   /* NULL then */
    bool hung_up;
    struct bough_loop_end at_end;
    struct bough_process *all; /* that have not ended */
    int live;                  /* how many those are */
    bool sessions;             /* each process leads a session and a group of its own */
    void (*left)(struct bough_crew *crew,
                 struct bough_process *process); /* one has ended; may be NULL */
    /* One was killed by SIGKILL and nobody here knows why: true when bough_process_conclude will be called. May be NULL. */
    bool (*ask_why)(struct bough_crew *crew, struct bough_process *process);
    void (*gone)(
        struct bough_crew *crew); /* the other end has closed; NULL: then all fail at once */
    void *owner;
};

/* Takes the socket over, also when it fails; `ended` is a literal. */
struct bough_crew *bough_crew_new(struct bough_loop *loop, int sock, const char *ended,
                                  struct bough_err *err);
void bough_crew_unref(struct bough_crew *crew);
void bough_crew_kick(struct bough_crew *crew);  /* after something was sent */
void bough_crew_drain(struct bough_crew *crew); /* hears what is there, without waiting */
/* Closes the connection; all that have not ended fail with `why`. */
void bough_crew_hang_up(struct bough_crew *crew, const struct bough_err *why);

#endif
