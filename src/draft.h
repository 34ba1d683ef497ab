/* draft.h - a new file on its way into the pool, which has no name there before it is whole.
 *
 * For stage.c and upload.c. Where we can give it its owner it is a file without any name (O_TMPFILE), and goes
 * into the pool finished. Else it is home/tmp/<owner>/b<n>, and the keeper's worker, who can, finishes it. */
#ifndef BOUGH_DRAFT_H
#define BOUGH_DRAFT_H

#include "stage.h"

struct bough_draft {
    int fd;        /* -1: none */
    char name[32]; /* below home/tmp/<owner>; "" for a file without a name */
    int64_t mode;  /* of that, as it is */
};

/* Opens the stage's directories and takes the pool's lock. */
int bough_draft_ready(struct bough_stage *stage, struct bough_err *err);
/* Just the pool, without the lock: for looking. */
int bough_draft_pool(struct bough_stage *stage, struct bough_err *err);
/* An empty file for owner `uid`, `gid` (as the image sees them). */
int bough_draft_open(struct bough_stage *stage, int64_t uid, int64_t gid, int64_t mode,
                     struct bough_draft *draft, struct bough_err *err);
/* Puts it into the pool as `blob`, where the same may be already, or keeps it in `staged`. */
int bough_draft_finish(struct bough_stage *stage, struct bough_draft *draft, const char *blob,
                       int64_t mode, int64_t mtime_ns, char staged[32], struct bough_err *err);
/* The same for an upload, which is ours whatever it becomes later. */
int bough_draft_upload(struct bough_stage *stage, struct bough_draft *draft, const char *blob,
                       struct bough_err *err);
void bough_draft_drop(struct bough_stage *stage, struct bough_draft *draft); /* harmless after */

#endif
