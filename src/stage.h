/* stage.h - the first half of putting files in place: hash what is to go in, and copy what the pool lacks.
 *
 * Knows no Lua and no loop: bough_stage_work runs on a worker thread. The second half is the keeper's
 * (PUT), which makes a layer of it. Memory is flat: contents go through one buffer for each thread. */
#ifndef BOUGH_STAGE_H
#define BOUGH_STAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "order.h"
#include "sha256.h"

struct bough_stage_item {
    char *path; /* in the image: absolute, normalised */
    enum bough_put_kind kind;
    int64_t mode; /* permission bits; -1: those of the local file ("keep") */
    int64_t uid, gid;
    int64_t mtime_ns; /* INT64_MIN: the local file's, or the stage's own time for data */
    /* exactly one of these for a file: */
    char *source; /* local path; relative to the working directory */
    char *data;   /* bytes, owned */
    char *digest; /* content uploaded before (64 hex digits) */
    size_t data_size;
    char *target; /* symbolic link */
    /* filled in by the work */
    char hex[BOUGH_SHA256_HEX];
    char blob[160], staged[32];
    int64_t size;
    int64_t final_mode, final_mtime_ns; /* what `mode` and `mtime_ns` come to */
};

struct bough_stage {
    struct bough_stage_item *items; /* owned; sorted by path by the work */
    size_t count;
    const char *home, *owner; /* the store's, borrowed */
    int64_t now_ns;           /* time for data without an mtime; set when 0 */
    int blobs, lock;          /* descriptors, -1 at first; the lock is held until free */
    int tmp;                  /* descriptor of home/tmp/<owner>; 0 at first */
    bool direct; /* we can put a finished file into the pool ourselves; found out by the work */
    struct bough_hashes
        *hashes; /* borrowed: digests of files that have not changed since (may be NULL) */
    /* results */
    char digest
        [BOUGH_SHA256_HEX]; /* of the whole: paths, kinds, modes, owners, digests, targets, and mtimes
                                    * that the caller gave; not of mtimes taken from files or the clock */
    int64_t copied_files,
        copied_bytes; /* what was not in the pool yet, in the form that was asked for */
    atomic_llong done_bytes, total_bytes; /* progress, read by another thread */
    atomic_bool cancelled; /* set by another thread: the work stops with kind `cancelled` */
};

/* Digests of local files by (device, inode, size, mtime, ctime): a file is hashed once per engine. A file
 * that changed less than two seconds before it was hashed is not remembered. One mutex inside. */
struct bough_hashes *bough_hashes_new(void);
void bough_hashes_free(struct bough_hashes *hashes);

struct bough_hash_key {
    uint64_t device, inode;
    int64_t size, mtime_ns, ctime_ns;
};
/* Without memory for them, and for `hashes` NULL, nothing is known and nothing remembered. */
bool bough_hashes_get(struct bough_hashes *hashes, const struct bough_hash_key *key,
                      char hex[BOUGH_SHA256_HEX]);
void bough_hashes_put(struct bough_hashes *hashes, const struct bough_hash_key *key,
                      const char hex[BOUGH_SHA256_HEX]);

/* The work: stats and hashes every item, and finds it in the pool or copies it, holes kept: into the pool itself
 * where we can give it its owner, else to home/tmp/<owner>/b<n> (0600). Many items are shared out among threads.
 * A source that is missing, a directory, a fifo or a device is one clear error naming the local path; one that changes
 * while it is read is an error too. Two items of the same content and metadata are copied once: the first in the
 * order of the paths has it in `staged`. Once for a stage, perhaps after bough_stage_hash. */
int bough_stage_work(struct bough_stage *stage, struct bough_err *err);
/* Only the hashes and the stage's digest: copies nothing. A file may change until the work: then its digest does. */
int bough_stage_hash(struct bough_stage *stage, struct bough_err *err);
/* Stores one content as an upload, kept for a day: fills item->hex, size. Returns 1 copied, 0 there already (its day
 * begins anew), -1. An item with a digest is only looked for: not_found when it is not there. */
int bough_stage_upload(struct bough_stage *stage, struct bough_stage_item *item,
                       struct bough_err *err);
/* Writes the items as the body of a PUT, after id and stack. */
void bough_stage_put(const struct bough_stage *stage, struct bough_wbuf *buf);
/* Removes staged files that are still there, lets go of the lock, frees what the stage owns, but not the struct. */
void bough_stage_free(struct bough_stage *stage);

#endif
