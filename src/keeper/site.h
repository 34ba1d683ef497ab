/* site.h - what the keeper has found out and set up once, for all sandboxes of its engine. */
#ifndef BOUGH_SITE_H
#define BOUGH_SITE_H

#include <linux/filter.h>
#include <stdbool.h>
#include <sys/types.h>

#include "cgroup.h"

struct bough_site {
    const char *home;     /* the store, absolute */
    const char *owner;    /* our directory below home/tmp */
    const char *unpacker; /* path of bough-unpack */
    const char *looker;   /* path of bough-look */
    int home_fd, layers_fd, owner_fd;
    bool root;          /* runs with the host's root; else in a user namespace */
    bool range;         /* user namespace with a range of uids, not one alone */
    bool sealed;        /* the program runs from a sealed memfd */
    bool lowerdir_plus; /* overlay takes layers one by one (kernel 6.8 and later) */
    bool disk_limit;    /* a tmpfs can be an overlay's upper layer */
    long uid_count;     /* uids known inside */
    struct sock_fprog filter;
    struct bough_cgroups groups;
    char *args; /* our argument vector as ps(1) shows it: an init blanks it */
    size_t args_size;
    char uid_why[160]; /* why there is no range */
};

/* ns.c: enters a mount namespace (and for ordinary users a user namespace with its id maps). */
int bough_site_enter(struct bough_site *site, struct bough_err *err);
/* Opens the store's directories anew. After every unshare: a descriptor from before belongs to a mount that
 * the new namespace does not have, and the kernel refuses to build on it. */
int bough_site_open_store(struct bough_site *site, struct bough_err *err);
/* Probes what this kernel's overlay can do, by mounting one. */
int bough_site_probe(struct bough_site *site, struct bough_err *err);

#endif
