/* filter.h - what a command in a sandbox may ask of the kernel: capabilities and system calls.
 *
 * The filter is compiled once by the keeper and inherited as plain BPF, so that
 * the child that becomes the command only installs it. */
#ifndef BOUGH_FILTER_H
#define BOUGH_FILTER_H

#include <linux/filter.h>
#include <stdbool.h>
#include <sys/types.h>

#include "../err.h"

/* Compiles the system-call filter (seccomp(2), libseccomp). The memory lives as long as the process. */
int bough_filter_compile(struct sock_fprog *prog, struct bough_err *err);

/* The rest runs in the child between clone and exec: raw calls only, errno on failure. */
int bough_filter_install(const struct sock_fprog *prog); /* sets no_new_privs too */
int bough_caps_drop_bounding(void);
int bough_caps_drop_rest(
    void); /* after the ids are set; keeps a container's default set for uid 0 */

#endif
