/* boot.h - the duty of a booted sandbox's init: starts processes for the host, over a socket of their own.
 *
 * The messages are wire.h's for a crew. What is known of each process is the minder's; init reaps. */
#ifndef BOUGH_BOOT_H
#define BOUGH_BOOT_H

#include "../minder.h"
#include "../plan.h"
#include "child.h"

struct bough_boot {
    struct bough_child *child;
    struct bough_limits limits;
    struct bough_minder minder;
    int null; /* the sandbox's /dev/null */
};

/* In the image's root. Takes `sock` over. */
int bough_boot_open(struct bough_boot *boot, struct bough_child *child,
                    const struct bough_limits *limits, int sock, struct bough_err *err);

enum bough_boot_wish { BOUGH_BOOT_GO_ON, BOUGH_BOOT_END, BOUGH_BOOT_END_AND_KEEP };

/* The socket is readable: one message. `starting`: a process may be started now. */
enum bough_boot_wish bough_boot_serve(struct bough_boot *boot, bool starting);

/* Nothing will be said any more but what is kept for the host, which is waited for. */
void bough_boot_close(struct bough_boot *boot);

#endif
