/* store_priv.h - what the files of the store share; nobody else includes it.
 *
 * Everything here expects the caller to be between bough_store_enter and
 * bough_store_leave, or to be the one that opens or closes the store. */
#ifndef BOUGH_STORE_PRIV_H
#define BOUGH_STORE_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "../sys.h"
#include "db.h"
#include "store.h"

#define BOUGH_LEVEL_BASE 100 /* an import: never merged */
#define BOUGH_ID_BLOCK 64    /* layer ids reserved at once */
#define BOUGH_LOCK_WAIT_NS 10000000000LL
#define BOUGH_OWNER_SIZE 40
#define BOUGH_NAME_SIZE 48 /* "<id>", "trash-<id>", "<owner>/lock" */

/* images.flags */
enum {
    BOUGH_FLAG_RESULT = 1,
    BOUGH_FLAG_TIMED_OUT = 2,
    BOUGH_FLAG_OOM = 4,
};

/* A hash from positive int64 to int64: a set when the value is of no interest. */
struct bough_idmap {
    struct bough_id_slot {
        int64_t key, value; /* key 0: free */
    } * slots;
    size_t size, used; /* size: 0 or a power of two */
};
int64_t *bough_idmap_get(const struct bough_idmap *map, int64_t key);     /* NULL: not there */
int bough_idmap_put(struct bough_idmap *map, int64_t key, int64_t value); /* -1: no memory */
void bough_idmap_clear(struct bough_idmap *map);

/* One layer as the walk over a stack needs it. */
struct bough_node {
    int64_t id, parent;
    int64_t stand, stand_bottom, stand_next; /* widest stand-in with this top, and what is below */
    int level, stand_level;
};

/* One step of a stack: a directory and the original layers that it holds. */
struct bough_step {
    int64_t id, top, bottom;
    int level;
};

struct bough_store {
    char *home;
    char owner[BOUGH_OWNER_SIZE];
    int64_t owner_id;
    pid_t pid;
    int home_fd, layers_fd, tmp_fd, owner_fd, lock_fd, commit_fd;

    pthread_mutex_t mutex;
    struct sqlite3 *db;
    struct sqlite3_stmt *stmts[BOUGH_SQL_COUNT];
    int64_t busy_since_ns;
    int64_t last_us;
    int64_t next_id, end_id;

    struct bough_idmap leased; /* image seqs with a lease row of ours */
    struct bough_idmap handed; /* stand-ins that were part of a stack we gave out */
    struct bough_idmap held;   /* layer id -> how often we hold a lease on it */
    int64_t *recent;           /* image seqs made or got since bough_store_gc_mark */
    size_t recent_count, recent_size;
    int marks;

    struct bough_idmap cache; /* layer id -> index in nodes */
    struct bough_node *nodes;
    size_t node_count, node_size;
    struct bough_step *steps; /* scratch of the walk */
    size_t step_size;

    int64_t config_id; /* the config inherited last, 0 none */
    char *config_text;

    pthread_mutex_t checkpoint_mutex; /* taken without `mutex`, never the other way round */
    struct sqlite3 *checkpoint_db;
    atomic_int wal_pages;
};

/* Takes the mutex; refuses a store that came through a fork. */
int bough_store_enter(struct bough_store *store, struct bough_err *err);
void bough_store_leave(struct bough_store *store);

/* The stored form of a uuid; any other text, or NULL, becomes one that is no uuid. Returns `uuid`. */
const char *bough_uuid_lower(char uuid[BOUGH_UUID_SIZE], const char *text);

/* home.c */
/* `home` with the current directory in front where needed; malloc'ed, NULL with errno. */
char *bough_home_absolute(const char *home);
/* Makes the directory or checks that it is a store of this kind; opens home_fd, layers_fd, tmp_fd
 * and commit_fd, which are the caller's to close, after a failure too. */
int bough_home_open(struct bough_store *store, const char *xattr, struct bough_err *err);
bool bough_home_layers_empty(const struct bough_store *store);
/* The error for ENOSPC or EDQUOT; any other `sys` counts as ENOSPC. Returns -1. */
int bough_home_no_space(const struct bough_store *store, int sys, struct bough_err *err);
/* commit.lock: `how` as for flock, LOCK_SH or LOCK_EX. Waits 10 s; with LOCK_NB not at all and
 * returns 1 when somebody else has it. */
int bough_commit_lock(struct bough_store *store, int how, struct bough_err *err);
void bough_commit_unlock(struct bough_store *store);

/* stack.c */
/* bough_store_stack for a caller who holds the mutex. */
int bough_stack_take(struct bough_store *store, int64_t layer, int64_t **ids,
                     struct bough_err *err);
void bough_cache_add(struct bough_store *store, const struct bough_node *node);
void bough_cache_clear(struct bough_store *store);

/* layer.c */
int64_t bough_store_take_ids(struct bough_store *store, int count, struct bough_err *err);
/* Moves a finished directory from staging to layers/, or back when its row could not be committed. */
int bough_store_seal(struct bough_store *store, int64_t id, struct bough_err *err);
void bough_store_unseal(struct bough_store *store, int64_t id);

/* gc.c */
int bough_owner_make(struct bough_store *store, struct bough_err *err);
void bough_owner_drop(struct bough_store *store);
void bough_store_note(struct bough_store *store, int64_t seq); /* made or got: see gc_mark */

#endif
