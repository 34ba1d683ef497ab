/* store.h - the embedded engine's metadata: images, layers, tags, leases.
 *
 * One SQLite database (WAL) per store; several processes may have it open. All
 * functions are synchronous, safe to call from several threads (one mutex inside)
 * and wait at most 10 s for another process's write. The store owns rows and the
 * directories home/layers and home/tmp/<owner>; whoever deletes trees in them is
 * the keeper (only it may remove what foreign uids own), on the store's word. */
#ifndef BOUGH_STORE_H
#define BOUGH_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../err.h"
#include "../usage.h"

#define BOUGH_UUID_SIZE 37 /* 36 characters, lower case, and the NUL */
#define BOUGH_TAG_MAX 255

/* How a run ended and what it used. Zeroed means "no run" (imports). */
struct bough_result {
    bool present;
    int exit_code; /* 128+n after signal n; 137 after a timeout */
    int signal;    /* 0 when it exited by itself */
    bool timed_out, oom;
    double elapsed_time;             /* seconds, wall clock */
    double user_time, system_time;   /* seconds */
    int64_t max_rss;                 /* bytes, peak */
    struct bough_usage usage;        /* of live processes; not stored */
    bool core_dump;                  /* the same */
    bool has_stdout, has_stderr;     /* false: not captured */
    char *stdout_data, *stderr_data; /* owned, malloc; may hold NUL */
    size_t stdout_size, stderr_size;
    int64_t stdout_dropped, stderr_dropped; /* bytes cut by truncate_output_at */
};

struct bough_image {
    char uuid[BOUGH_UUID_SIZE];
    char parent[BOUGH_UUID_SIZE]; /* "" for none */
    char *tag;                    /* owned; NULL for none. Of several the newest */
    char origin[16];              /* "run", "import", "files", "commit" */
    char *command;                /* owned; one line for people, NULL for none */
    int64_t layer;                /* top layer, 0 for an empty stack */
    int64_t size;                 /* bytes of its own layer, 0 when the run changed nothing */
    int64_t created_us;           /* since the epoch */
    char *config; /* owned; JSON text of the defaults that an imported image brings along (env,
                                   * cwd, user, entrypoint, ...), NULL for none. bough_store_commit gives an image
                                   * without one its parent's */
    char
        *cache_key; /* owned, for commit alone: the run cache's key, NULL for none; not read back */
    bool disposable; /* never stored; here so that one struct serves */
    struct bough_result result;
};

void bough_image_clear(struct bough_image *image); /* frees what it owns, zeroes it */
void bough_uuid_make(char uuid[BOUGH_UUID_SIZE]);  /* random, version 4 */
bool bough_uuid_valid(const char *text);           /* canonical form; upper case accepted */

struct bough_store;

/* Opens, creating it at need (home and parents, mode 0700). `xattr` is "trusted" or
 * "user" and must match the store's format file: a store of the other kind is refused
 * with kind `denied` and a line that says who made it. A read-only or full disk, a
 * damaged database (kind `corrupt`) each give one clear line naming the path. */
struct bough_store *bough_store_open(const char *home, const char *xattr, struct bough_err *err);
void bough_store_close(struct bough_store *store);
const char *bough_store_home(const struct bough_store *store);
/* This opening's directory name under tmp/. */
const char *bough_store_owner(const struct bough_store *store);

/* Hands out `count` consecutive fresh layer ids; returns the first or -1. In memory
 * mostly: ids are reserved in the database in blocks, so most calls write nothing. */
int64_t bough_store_layer_ids(struct bough_store *store, int count, struct bough_err *err);

/* Seals a finished layer and inserts the image in one go:
 * takes commit.lock shared; when `new_layer` > 0 renames tmp/<owner>/<new_layer> to
 * layers/<new_layer> and inserts the layer row (parent = `parent_layer`); then inserts
 * the image (image->layer must be set by the caller), its tag if image->tag, leased to this
 * owner. `bytes`/`files`: size of the new layer. image->created_us is filled in when 0 (strictly
 * increasing within this opening), image->uuid when "". On failure nothing is left but the staging
 * directory. A tag moves silently from another image. */
int bough_store_commit(struct bough_store *store, struct bough_image *image, int64_t new_layer,
                       int64_t parent_layer, int64_t bytes, int64_t files, struct bough_err *err);

/* Seals a layer that no image has yet: renames tmp/<owner>/<id> to layers/<id> and inserts its row, leased
 * to this owner until bough_store_layer_release or its end, so that no gc takes it. `chain` (NULL: none) names what
 * it holds, an OCI chain id: bough_store_layer_find finds it by that again. A chain that is there already
 * wins: returns 1 with *id set to the layer that has it, leased, and the staged one is the caller's to remove. */
int bough_store_layer_add(struct bough_store *store, int64_t *id, int64_t parent_layer,
                          int64_t bytes, int64_t files, const char *chain, struct bough_err *err);
/* The layer of this chain id: 1 found (leased), 0 not, -1. */
int bough_store_layer_find(struct bough_store *store, const char *chain, int64_t *id,
                           struct bough_err *err);
/* Gives up one lease of ours (they are counted: find and add give one each). */
void bough_store_layer_release(struct bough_store *store, int64_t id);

/* The image that an earlier run left under this cache key: as bough_store_get. Commit has recorded it for
 * image->cache_key, replacing an earlier one, when the result says exit code 0 and nothing was cut off. An
 * image that is removed takes its key with it. */
int bough_store_cached(struct bough_store *store, const char *key, struct bough_image *out,
                       struct bough_err *err);

/* Looks up a uuid or a tag (a uuid-shaped text is a uuid). Returns 1 found, 0 not, -1 error. Leases
 * the image to this owner, so that another process's gc leaves it alone. out->tag is `ref` when that
 * was a tag, else the newest one. */
int bough_store_get(struct bough_store *store, const char *ref, struct bough_image *out,
                    struct bough_err *err);

/* Everything that the start of a run needs, if it can be had at once: no lock waited for, nothing written. False
 * otherwise, and then the calls below and bough_store_layer_ids, on a worker thread, do it. Fills the top layer, its stack
 * (malloc'ed), and a fresh layer id. */
bool bough_store_quick(struct bough_store *store, const char *uuid, int64_t *layer, int64_t **stack,
                       int64_t *count, int64_t *fresh);

/* The same without the result and its output: the canonical uuid and the top layer. For the path
 * of every run; a few microseconds once the image is leased. */
int bough_store_find(struct bough_store *store, const char *ref, char uuid[BOUGH_UUID_SIZE],
                     int64_t *layer, struct bough_err *err);

/* Both at once, for whoever works on an image: its top layer (may be NULL) and the stack of that, as bough_store_stack
 * gives it. Returns the stack's length; -1, with kind not_found for an image that is gone. */
int64_t bough_store_find_stack(struct bough_store *store, const char *ref, int64_t *layer,
                               int64_t **stack, struct bough_err *err);

struct bough_filter {
    const char *tag;         /* exact, NULL any */
    const char *tag_glob;    /* SQLite GLOB over tags, NULL any */
    const char *tag_first;   /* the image with this tag comes before all others; NULL none does */
    const char *parent;      /* uuid, NULL any */
    const char *uuid_prefix; /* how uuids begin, in lower case, NULL any */
    bool tagged;             /* only tagged ones */
    int64_t since_us, before_us; /* 0: no bound; since inclusive, before exclusive */
    int64_t limit;               /* <= 0: all */
    int64_t offset;
    bool oldest_first; /* default: newest first */
    bool brief;        /* leave stdout/stderr data out (has_* and sizes kept) */
};
/* Fills *out with a malloc'ed array (each cleared by bough_image_clear). Returns the count or -1.
 * With `tag` or `tag_glob` each image shows the tag that it was found by. */
long bough_store_list(struct bough_store *store, const struct bough_filter *filter,
                      struct bough_image **out, struct bough_err *err);

int bough_store_tag(struct bough_store *store, const char *uuid, const char *tag,
                    struct bough_err *err);
/* Takes all its tags. */
int bough_store_untag(struct bough_store *store, const char *uuid, struct bough_err *err);
/* Removes one image: nobody can find it any more. Refused (kind `state`) while it has children or a
 * tag. Its row stays hidden until gc finds that nobody uses it; layers go with it. */
int bough_store_remove(struct bough_store *store, const char *uuid, struct bough_err *err);

/* The overlay stack of a layer, top first, with compacted stand-ins used where they exist: fills a
 * malloc'ed array of layer ids whose directories give the same tree; returns its length or -1.
 * Served from an in-memory cache where possible: this is on the path of every run. */
int bough_store_stack(struct bough_store *store, int64_t layer, int64_t **ids,
                      struct bough_err *err);

/* Compaction, a log-structured merge: when a stack (as bough_store_stack gives it) has
 * BOUGH_STACK_WIDTH or more neighbours of one level directly on top of each other, those are due to
 * be merged into one of the next level. `plan` finds the next one for `layer`: returns 1 and fills
 * it, 0 when nothing is due. Imports are level 100 and never merged. `done` renames
 * tmp/<owner>/<id> to layers/<id> under commit.lock and records that `id` stands for top..bottom;
 * a stand-in that another process made in the meantime wins, and ours is to be removed (returns 1). */
#define BOUGH_STACK_WIDTH 8
struct bough_merge {
    int64_t id;                        /* the new directory's id, from bough_store_layer_ids */
    int64_t layers[BOUGH_STACK_WIDTH]; /* directories to merge, top first */
    int count;
    int64_t top, bottom; /* the original layers covered */
    int level;           /* of the result */
};
int bough_store_merge_plan(struct bough_store *store, int64_t layer, struct bough_merge *plan,
                           struct bough_err *err);
int bough_store_merge_done(struct bough_store *store, const struct bough_merge *plan, int64_t bytes,
                           struct bough_err *err);

/* gc: drops every image that has no tag, no kept descendant, and is neither leased by another live
 * owner nor in `keep` (uuids of this process's live sessions and objects); then every layer and
 * stand-in that no image's stack needs. Fills the ids of layer directories that were moved to
 * tmp/<owner>/trash-<id> for the keeper to remove (malloc'ed). A layer used by any image or by a stack
 * handed out and still leased stays. With `dry` nothing changes and only numbers are filled. */
struct bough_gc {
    long images, layers; /* dropped; stand-ins are not counted, but are in `trash` */
    int64_t bytes;       /* freed */
    int64_t *trash;      /* owned: ids to remove as tmp/<owner>/trash-<id> */
    long trash_count;
};
/* Call it right before collecting `keep`: what commit and get return to threads of this process
 * between here and the gc is kept as well. What they returned earlier has to be in `keep`; a run on
 * another thread is safest when it makes its uuid first and lists it there before it commits (uuids
 * that are not in the store do no harm). Without the mark an image that comes in between goes. */
void bough_store_gc_mark(struct bough_store *store);
int bough_store_gc(struct bough_store *store, const char *const *keep, long keep_count, bool dry,
                   struct bough_gc *out, struct bough_err *err);

/* Finds what dead processes left: fills names under home/tmp (relative, "tmp/<owner>") whose lock
 * nobody holds, and moves layer directories without a row to tmp/<owner>/trash-<id>. Also drops
 * leases of dead owners. The keeper then removes the trees. */
struct bough_sweep {
    char **
        dead; /* owned array of owned names, relative to home; NULL behind the last, NULL for none */
    long dead_count;
    long orphans;   /* layer directories without a row, now trash */
    int64_t *trash; /* owned: their ids, `orphans` of them, now tmp/<owner>/trash-<id> */
};
int bough_store_sweep(struct bough_store *store, struct bough_sweep *out, struct bough_err *err);
void bough_sweep_clear(struct bough_sweep *sweep);

/* Moves the write-ahead log into the database, on a connection of its own, once it has grown past
 * 4 MB; else returns at once. Call it from a worker thread every now and then (after a merge, say):
 * the fsyncs cost milliseconds, which a commit has to pay itself when the log gets to 32 MB. */
int bough_store_checkpoint(struct bough_store *store, struct bough_err *err);

struct bough_store_info {
    long images, tags, layers, stand_ins;
    int64_t bytes; /* of all layers as recorded */
};
int bough_store_info(struct bough_store *store, struct bough_store_info *out,
                     struct bough_err *err);

#endif
