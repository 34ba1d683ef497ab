/* work_priv.h - what the files that carry out requests share: work.c decides which, work_layers.c
 * makes layers, work_views.c looks at trees. Inside of a worker's process; memory is freed by its end. */
#ifndef BOUGH_WORK_PRIV_H
#define BOUGH_WORK_PRIV_H

#include "site.h"
#include "tree.h"
#include "view.h"

#define BOUGH_PROGRESS_NS (100 * 1000000LL)

struct bough_work {
    const struct bough_site *site;
    struct bough_message *msg;
    int host;
    int mount[2]; /* the views asked for, -1 */
    struct bough_wbuf answer;
    int answer_fd;
    int64_t told_ns; /* when progress was last told */
};

const char *bough_work_opaque(const struct bough_site *site); /* the xattr of opaque directories */
const char *bough_work_own(const struct bough_site *site); /* what overlayfs's xattrs begin with */

/* home/layers/<id>/fs, to read. */
int bough_work_open_layer(struct bough_work *work, int64_t id, struct bough_err *err);
/* home/tmp/<owner>/<id>/fs, new and empty. */
int bough_work_make_layer(struct bough_work *work, int64_t id, struct bough_err *err);
void bough_work_drop_layer(struct bough_work *work, int64_t id);
void bough_work_put_size(struct bough_work *work, const struct bough_tree_size *size,
                         int64_t skipped);

/* Tells the host how far it is: at most every 100 ms, and as often as a helper says so with `always`. */
void bough_work_tell(struct bough_work *work, int64_t done, int64_t total, bool always);
void bough_work_copied(void *work, int64_t bytes); /* the same for bough_tree_copy */

int bough_work_merge(struct bough_work *work, struct bough_err *err);
int bough_work_copy(struct bough_work *work, struct bough_err *err);
int bough_work_unpack(struct bough_work *work, struct bough_err *err);
int bough_work_put(struct bough_work *work, struct bough_err *err);
int bough_work_commit(struct bough_work *work, struct bough_err *err);

int bough_work_list(struct bough_work *work, struct bough_err *err);
int bough_work_extract(struct bough_work *work, struct bough_err *err);
int bough_work_look(struct bough_work *work, struct bough_err *err);

#endif
