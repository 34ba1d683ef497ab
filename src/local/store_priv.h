/* store_priv.h - what store.c, stack.c and gc.c share; nobody else includes it.
 *
 * store.c owns the SQLite handle and is the only file that includes sqlite3.h; the
 * others name a statement of the list below and use the bough_db_ calls. Everything
 * here expects the caller to be between bough_store_enter and bough_store_leave. */
#ifndef BOUGH_STORE_PRIV_H
#define BOUGH_STORE_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "../sys.h"
#include "store.h"

#define BOUGH_LEVEL_BASE 100 /* an import: never merged */
#define BOUGH_ID_BLOCK 64    /* layer ids reserved at once */
#define BOUGH_LOCK_WAIT_NS 10000000000LL
#define BOUGH_OWNER_SIZE 40
#define BOUGH_NAME_SIZE 48 /* "<id>", "trash-<id>", "<owner>/lock" */

/* What image_read in store.c expects, followed by out, err and a tag. */
#define BOUGH_IMAGE_COLUMNS                                                            \
    "i.seq,i.owner,i.uuid,p.uuid,i.origin,i.command,i.layer,i.size,i.created,i.flags," \
    "i.exit_code,i.signal,i.elapsed,i.user_time,i.system_time,i.max_rss,"              \
    "i.out_dropped,i.err_dropped,length(i.out),length(i.err)"
#define BOUGH_IMAGE_FROM " FROM images i LEFT JOIN images p ON p.seq=i.parent"

/* Every statement that is kept prepared. */
#define BOUGH_SQL(X)                                                                               \
    X(begin_write, "BEGIN IMMEDIATE")                                                              \
    X(begin_read, "BEGIN")                                                                         \
    X(commit, "COMMIT")                                                                            \
    X(rollback, "ROLLBACK")                                                                        \
    X(defer_keys, "PRAGMA defer_foreign_keys=ON")                                                  \
    X(take_ids, "UPDATE meta SET value=value+?1 WHERE key='next_layer' RETURNING value-?1")        \
    X(owner_add, "INSERT INTO owners(name) VALUES(?1) RETURNING id")                               \
    X(owner_del, "DELETE FROM owners WHERE id=?1")                                                 \
    X(owner_all, "SELECT id,name FROM owners WHERE id<>?1")                                        \
    X(layer_add, "INSERT INTO layers(id,parent,level,bytes,files,created)"                         \
                 " VALUES(?1,?2,?3,?4,?5,?6)")                                                     \
    X(layer_get, "SELECT l.parent,l.level,s.id,s.bottom,s.level,b.parent FROM layers l"            \
                 " LEFT JOIN stand_ins s ON s.top=l.id LEFT JOIN layers b ON b.id=s.bottom"        \
                 " WHERE l.id=?1 ORDER BY s.level DESC LIMIT 1")                                   \
    X(layer_del, "DELETE FROM layers WHERE id=?1")                                                 \
    X(layer_all, "SELECT id,parent,bytes FROM layers ORDER BY id")                                 \
    X(stand_add, "INSERT INTO stand_ins(id,top,bottom,level,bytes) VALUES(?1,?2,?3,?4,?5)")        \
    X(stand_has, "SELECT 1 FROM stand_ins WHERE top=?1 AND (bottom=?2 OR level>=?3)")              \
    X(stand_del, "DELETE FROM stand_ins WHERE id=?1")                                              \
    X(stand_all, "SELECT id,top,level FROM stand_ins ORDER BY top,level DESC")                     \
    X(dir_has, "SELECT 1 FROM layers WHERE id=?1 UNION ALL"                                        \
               " SELECT 1 FROM stand_ins WHERE id=?1")                                             \
    X(dir_all, "SELECT id FROM layers UNION ALL SELECT id FROM stand_ins")                         \
    X(image_add, "INSERT INTO images(uuid,parent,layer,origin,command,size,created,owner,"         \
                 "flags,exit_code,signal,elapsed,user_time,system_time,max_rss,"                   \
                 "out_dropped,err_dropped,out,err) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,"         \
                 "?11,?12,?13,?14,?15,?16,?17,?18,?19) RETURNING seq")                             \
    X(image_seq, "SELECT seq FROM images WHERE uuid=?1")                                           \
    X(image_live, "SELECT seq FROM images WHERE uuid=?1 AND gone=0")                               \
    X(image_hide, "UPDATE images SET gone=1 WHERE seq=?1")                                         \
    X(image_del, "DELETE FROM images WHERE seq=?1")                                                \
    X(image_all, "SELECT i.seq,i.parent,i.layer,i.owner,"                                          \
                 "EXISTS(SELECT 1 FROM tags t WHERE t.image=i.seq)"                                \
                 " FROM images i ORDER BY i.seq")                                                  \
    X(image_child, "SELECT 1 FROM images WHERE parent=?1 AND gone=0 LIMIT 1")                      \
    X(find_uuid, "SELECT seq,owner,uuid,layer FROM images WHERE uuid=?1 AND gone=0")               \
    X(find_tag, "SELECT i.seq,i.owner,i.uuid,i.layer FROM tags t JOIN images i"                    \
                " ON i.seq=t.image WHERE t.tag=?1")                                                \
    X(image_get, "SELECT " BOUGH_IMAGE_COLUMNS ",i.out,i.err,"                                     \
                 "(SELECT t.tag FROM tags t WHERE t.image=i.seq"                                   \
                 " ORDER BY t.tag=?2 DESC,t.seq DESC LIMIT 1)" BOUGH_IMAGE_FROM " WHERE i.seq=?1") \
    X(tag_add, "INSERT OR REPLACE INTO tags(tag,image) VALUES(?1,?2)")                             \
    X(tag_has, "SELECT 1 FROM tags WHERE image=?1 LIMIT 1")                                        \
    X(tag_del, "DELETE FROM tags WHERE image=?1")                                                  \
    X(lease_add, "INSERT OR IGNORE INTO leases(image,owner) VALUES(?1,?2)")                        \
    X(lease_del, "DELETE FROM leases WHERE image=?1 AND owner=?2")                                 \
    X(lease_all, "SELECT image,owner FROM leases")                                                 \
    X(counts, "SELECT (SELECT count(*) FROM images WHERE gone=0),"                                 \
              "(SELECT count(*) FROM tags),(SELECT count(*) FROM layers),"                         \
              "(SELECT count(*) FROM stand_ins),"                                                  \
              "(SELECT coalesce(sum(bytes),0) FROM layers)")

enum bough_sql {
#define BOUGH_SQL_ENUM(name, text) BOUGH_SQL_##name,
    BOUGH_SQL(BOUGH_SQL_ENUM)
#undef BOUGH_SQL_ENUM
        BOUGH_SQL_COUNT
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
    int64_t *recent;           /* image seqs made or got since bough_store_gc_mark */
    size_t recent_count, recent_size;
    int marks;

    struct bough_idmap cache; /* layer id -> index in nodes */
    struct bough_node *nodes;
    size_t node_count, node_size;
    struct bough_step *steps; /* scratch of the walk */
    size_t step_size;

    pthread_mutex_t checkpoint_mutex; /* taken without `mutex`, never the other way round */
    struct sqlite3 *checkpoint_db;
    atomic_int wal_pages;
};

/* Takes the mutex; refuses a store that came through a fork. */
int bough_store_enter(struct bough_store *store, struct bough_err *err);
void bough_store_leave(struct bough_store *store);

/* Binds and takes the first step: 1 a row, 0 none, -1 error. `types`: one letter for each
 * argument: i int64_t, z int64_t with 0 for NULL, d double, s text, b void pointer and size_t.
 * Call bough_db_end after 1 unless bough_db_next has returned otherwise. */
int bough_db_query(struct bough_store *store, enum bough_sql which, struct bough_err *err,
                   const char *types, ...);
int bough_db_next(struct bough_store *store, enum bough_sql which, struct bough_err *err);
void bough_db_end(struct bough_store *store, enum bough_sql which);
/* A statement of which no row is wanted. */
#define bough_db_run(store, which, err, ...) \
    bough_db_finish(store, which, bough_db_query(store, which, err, __VA_ARGS__))
int bough_db_finish(struct bough_store *store, enum bough_sql which, int step);
int64_t bough_db_int(struct bough_store *store, enum bough_sql which, int column); /* NULL: 0 */
const char *bough_db_text(struct bough_store *store, enum bough_sql which, int column);

/* A write transaction; rollback is harmless when there is none. */
int bough_db_begin(struct bough_store *store, struct bough_err *err);
int bough_db_commit(struct bough_store *store, struct bough_err *err);
void bough_db_rollback(struct bough_store *store);

/* commit.lock: `how` as for flock, LOCK_SH or LOCK_EX. Waits 10 s; with LOCK_NB not at all and
 * returns 1 when somebody else has it. */
int bough_commit_lock(struct bough_store *store, int how, struct bough_err *err);
void bough_commit_unlock(struct bough_store *store);

/* stack.c */
/* bough_store_stack for a caller who holds the mutex. */
int bough_stack_take(struct bough_store *store, int64_t layer, int64_t **ids,
                     struct bough_err *err);
int64_t bough_store_take_ids(struct bough_store *store, int count, struct bough_err *err);
int bough_store_seal(struct bough_store *store, int64_t id, struct bough_err *err);
void bough_cache_add(struct bough_store *store, const struct bough_node *node);
void bough_cache_clear(struct bough_store *store);

/* gc.c */
int bough_owner_make(struct bough_store *store, struct bough_err *err);
void bough_owner_drop(struct bough_store *store);
void bough_store_note(struct bough_store *store, int64_t seq); /* made or got: see gc_mark */

#endif
