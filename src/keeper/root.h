/* root.h - the file system a command sees: overlay, /dev, /proc, /sys, and the way into it.
 *
 * Three stages. The nursery builds a template once (its mount namespace holds the
 * store, a /dev and nothing of the host's). A blank adds what each sandbox needs for itself.
 * A run mounts the image and pivots into it. `seal` undoes the last step, so that nothing holds
 * the upper layer any more when its image is announced. */
#ifndef BOUGH_ROOT_H
#define BOUGH_ROOT_H

#include <stdbool.h>
#include <stdint.h>

#include "../plan.h"
#include "site.h"

struct bough_overlay {
    const struct bough_site *site;
    const int64_t *stack; /* top first; may be empty */
    int64_t stack_count;
    const char *upper, *work; /* paths, NULL when read-only */
    bool skeleton;            /* with mount points below everything */
};

/* A detached mount (fsmount(2)). The working directory must be home/layers. */
int bough_overlay_mount(const struct bough_overlay *overlay, struct bough_err *err);

int bough_root_template(const struct bough_site *site, struct bough_err *err);

struct bough_root {
    const struct bough_site *site;
    int owner_fd; /* home/tmp/<owner> */
    int upper_fd; /* -1 until entered */
    int64_t layer;
    int reused;     /* an overlay mounted before, to be used instead of a new one; -1 */
    bool in_memory; /* the upper layer is a tmpfs, for a disk limit */
    uint32_t root_mode, root_uid, root_gid; /* of the image's root directory */
    bool root_marked;                       /* it had xattrs of its own before the run */
};

/* `set_up_network`: the network namespace is new. */
int bough_root_blank(struct bough_root *root, const struct bough_site *site, bool host_network,
                     bool set_up_network, struct bough_err *err);
/* `reused` and `upper` (taken over): an overlay on the plan's stack that an earlier run of the name `layer` left
 * untouched; -1: mount one. */
void bough_root_reuse(struct bough_root *root, int reused, int upper, int64_t layer);
int bough_root_enter(struct bough_root *root, const struct bough_plan *plan, struct bough_err *err);
/* Whether nothing has been changed so far. */
bool bough_root_untouched(const struct bough_root *root);
/* `shared`: with the host's network, descriptors of the image may have been passed to processes outside, which
 * must not write to what is about to become a layer, nor to what another run would get.
 * Leaves the image again and fills changed, layer, bytes and files of `ending`. Where the run has touched nothing,
 * *spare becomes a detached mount of the overlay, for another run to use (else -1). */
int bough_root_seal(struct bough_root *root, bool keep, bool shared, int *spare,
                    struct bough_ending *ending, struct bough_err *err);
/* Removes the overlay's directories. */
void bough_root_tidy(struct bough_root *root);

#endif
