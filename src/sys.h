/* sys.h - small helpers over system calls that every C file shares.
 *
 * Descriptors start at -1 and are born close-on-exec. The cleanup attributes
 * close or free what a scope owns; `bough_steal_fd` makes handing over visible.
 * Never use them across a Lua call: a Lua error jumps past them. */
#ifndef BOUGH_SYS_H
#define BOUGH_SYS_H

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static inline void bough_fd_close(int *fd)
{
    if (*fd >= 0) {
        int saved = errno;
        close(*fd);
        *fd = -1;
        errno = saved;
    }
}

static inline void bough_ptr_free(void *p)
{
    free(*(void **)p);
}

static inline int bough_steal_fd(int *fd)
{
    int taken = *fd;
    *fd = -1;
    return taken;
}

#define BOUGH_CLEANUP_FD __attribute__((cleanup(bough_fd_close)))
#define BOUGH_CLEANUP_FREE __attribute__((cleanup(bough_ptr_free)))

/* For functions that run on a stack of our own making: the address sanitizer would mark that memory and never
 * learn that it has gone to somebody else. */
#define BOUGH_FOREIGN_STACK __attribute__((no_sanitize_address))

/* Repeats a call that a signal interrupted. */
#define BOUGH_RETRY(call)                              \
    __extension__({                                    \
        long retry_result_;                            \
        do                                             \
            retry_result_ = (long)(call);              \
        while (retry_result_ == -1 && errno == EINTR); \
        retry_result_;                                 \
    })

/* Monotonic time in nanoseconds. */
static inline int64_t bough_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#endif
