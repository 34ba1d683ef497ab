/* client.h - this side of the keeper's socket: start it, ask, hear.
 *
 * Never waits: what cannot be sent at once is queued, and answers come through
 * callbacks from bough_client_pump, to be called when the descriptor is readable. */
#ifndef BOUGH_CLIENT_H
#define BOUGH_CLIENT_H

#include <stdbool.h>
#include <sys/types.h>

#include "../wire.h"

struct bough_client;

struct bough_client_options {
    const char *keeper, *unpacker, *looker; /* paths of the programs */
    const char *home, *owner;               /* the store, and our directory in its tmp/ */
    int spare;                              /* blanks to keep ready */
    int running_max;                        /* 0: the keeper's own choice */
};

/* Starts a keeper, without forking the caller's memory and without making a child that its wait(2) or SIGCHLD
 * could ever see. Its hello arrives as a message with id 0. */
struct bough_client *bough_client_start(const struct bough_client_options *options,
                                        struct bough_err *err);

/* A client on a socket that is there already, non-blocking and taken over; `ended`, a literal, is what requests say once
 * the other end has gone. NULL: out of memory. */
struct bough_client *bough_client_over(int sock, const char *ended);

/* The first half of that alone: nothing can be asked any more, and nothing is outstanding. */
void bough_client_hang_up(struct bough_client *client);

/* Closes the socket: the keeper and all sandboxes end by themselves. Outstanding calls hear kind `closed`. */
void bough_client_free(struct bough_client *client);

int bough_client_fd(
    const struct bough_client *client); /* the socket; -1 once the keeper has gone */
bool bough_client_wants_write(const struct bough_client *client);
int bough_client_outstanding(const struct bough_client *client); /* requests that await an answer */

/* Called for each message of one request; `msg` is NULL when it failed, `err` then says how. A message of type
 * FAILED arrives as such an error. The message is cleared afterwards (take descriptors out of it).
 * Returns whether more messages are expected for this id. */
typedef bool bough_client_heard(void *arg, struct bough_message *msg, const struct bough_err *err);

/* Registers interest in id 0, the hello. */
void bough_client_expect_hello(struct bough_client *client, bough_client_heard *heard, void *arg);

/* Sends a request; descriptors stay the caller's. Returns its id (> 0), or -1. */
int64_t bough_client_ask(struct bough_client *client, enum bough_msg type,
                         const struct bough_wbuf *body, const int *fds, int fd_count,
                         bough_client_heard *heard, void *arg, struct bough_err *err);
/* Says something about a request that is under way (KILL, SIGNAL), or that needs no answer. */
int bough_client_tell(struct bough_client *client, enum bough_msg type, int64_t id,
                      const struct bough_wbuf *body, const int *fds, int fd_count,
                      struct bough_err *err);
/* No more callbacks for `id`; its messages are dropped. */
void bough_client_forget(struct bough_client *client, int64_t id);

/* Reads and hands out all there is, and sends what was queued. False once the keeper has gone; all
 * outstanding calls have heard of it then. */
bool bough_client_pump(struct bough_client *client);

#endif
