/* db.h - the store's database, for the files of the store: the statements by name.
 *
 * All SQL is here and in db.c, the only file that includes sqlite3.h. Everything but
 * bough_db_open and bough_db_close expects the caller to be between bough_store_enter
 * and bough_store_leave. */
#ifndef BOUGH_DB_H
#define BOUGH_DB_H

#include "store.h"

/* An image as it is read, followed by out, err and a tag. */
#define BOUGH_IMAGE_COLUMNS                                                            \
    "i.seq,i.owner,i.uuid,p.uuid,i.origin,i.command,i.layer,i.size,i.created,i.flags," \
    "i.exit_code,i.signal,i.elapsed,i.user_time,i.system_time,i.max_rss,"              \
    "i.out_dropped,i.err_dropped,length(i.out),length(i.err),"                         \
    "(SELECT c.text FROM configs c WHERE c.id=i.config)"
#define BOUGH_IMAGE_FROM " FROM images i LEFT JOIN images p ON p.seq=i.parent"

/* The columns above, in their order. */
enum bough_column {
    BOUGH_COLUMN_SEQ,
    BOUGH_COLUMN_OWNER,
    BOUGH_COLUMN_UUID,
    BOUGH_COLUMN_PARENT,
    BOUGH_COLUMN_ORIGIN,
    BOUGH_COLUMN_COMMAND,
    BOUGH_COLUMN_LAYER,
    BOUGH_COLUMN_SIZE,
    BOUGH_COLUMN_CREATED,
    BOUGH_COLUMN_FLAGS,
    BOUGH_COLUMN_EXIT_CODE,
    BOUGH_COLUMN_SIGNAL,
    BOUGH_COLUMN_ELAPSED,
    BOUGH_COLUMN_USER_TIME,
    BOUGH_COLUMN_SYSTEM_TIME,
    BOUGH_COLUMN_MAX_RSS,
    BOUGH_COLUMN_OUT_DROPPED,
    BOUGH_COLUMN_ERR_DROPPED,
    BOUGH_COLUMN_OUT_SIZE,
    BOUGH_COLUMN_ERR_SIZE,
    BOUGH_COLUMN_CONFIG,
    BOUGH_COLUMN_OUT,
    BOUGH_COLUMN_ERR,
    BOUGH_COLUMN_TAG,
};

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
    X(layer_add, "INSERT INTO layers(id,parent,level,bytes,files,created,chain)"                   \
                 " VALUES(?1,?2,?3,?4,?5,?6,?7)")                                                  \
    X(layer_chain, "SELECT id FROM layers WHERE chain=?1")                                         \
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
                 "out_dropped,err_dropped,config,out,err) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,"      \
                 "?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20) RETURNING seq")                     \
    X(image_seq, "SELECT seq,config FROM images WHERE uuid=?1")                                    \
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
    X(find_cached, "SELECT i.seq,i.owner,i.uuid,i.layer FROM cache c JOIN images i"                \
                   " ON i.seq=c.image WHERE c.key=?1 AND i.gone=0")                                \
    X(image_get, "SELECT " BOUGH_IMAGE_COLUMNS ",i.out,i.err,"                                     \
                 "(SELECT t.tag FROM tags t WHERE t.image=i.seq"                                   \
                 " ORDER BY t.tag=?2 DESC,t.seq DESC LIMIT 1)" BOUGH_IMAGE_FROM " WHERE i.seq=?1") \
    X(tag_add, "INSERT OR REPLACE INTO tags(tag,image) VALUES(?1,?2)")                             \
    X(tag_has, "SELECT 1 FROM tags WHERE image=?1 LIMIT 1")                                        \
    X(tag_del, "DELETE FROM tags WHERE image=?1")                                                  \
    X(lease_add, "INSERT OR IGNORE INTO leases(image,owner) VALUES(?1,?2)")                        \
    X(lease_del, "DELETE FROM leases WHERE image=?1 AND owner=?2")                                 \
    X(lease_all, "SELECT image,owner FROM leases")                                                 \
    X(layer_lease_add, "INSERT OR IGNORE INTO layer_leases(layer,owner) VALUES(?1,?2)")            \
    X(layer_lease_del, "DELETE FROM layer_leases WHERE layer=?1 AND owner=?2")                     \
    X(layer_lease_all, "SELECT layer,owner FROM layer_leases")                                     \
    X(config_get, "SELECT text FROM configs WHERE id=?1")                                          \
    X(config_find, "SELECT id FROM configs WHERE text=?1")                                         \
    X(config_add, "INSERT INTO configs(text) VALUES(?1) RETURNING id")                             \
    X(config_drop, "DELETE FROM configs WHERE id NOT IN"                                           \
                   " (SELECT config FROM images WHERE config IS NOT NULL)")                        \
    X(cache_add, "INSERT OR REPLACE INTO cache(key,image) VALUES(?1,?2)")                          \
    X(cache_del, "DELETE FROM cache WHERE image=?1")                                               \
    X(counts, "SELECT (SELECT count(*) FROM images WHERE gone=0),"                                 \
              "(SELECT count(*) FROM tags),(SELECT count(*) FROM layers),"                         \
              "(SELECT count(*) FROM stand_ins),"                                                  \
              "(SELECT coalesce(sum(bytes),0) FROM layers)")

enum bough_sql {
#define BOUGH_SQL_ENUM(name, text) BOUGH_SQL_##name,
    BOUGH_SQL(BOUGH_SQL_ENUM)
#undef BOUGH_SQL_ENUM
        BOUGH_SQL_list, /* its text is made for each filter: bough_db_list */
    BOUGH_SQL_COUNT
};

/* Opens home/bough.db and brings its schema up to date. After a failure close it all the same. */
int bough_db_open(struct bough_store *store, struct bough_err *err);
void bough_db_close(struct bough_store *store);

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
int64_t bough_db_int(struct bough_store *store, enum bough_sql which, int column);   /* NULL: 0 */
double bough_db_double(struct bough_store *store, enum bough_sql which, int column); /* 0.0 */
const char *bough_db_text(struct bough_store *store, enum bough_sql which, int column);
/* Text into a buffer of `size`, "" for NULL; or a malloc'ed copy, NULL for NULL (-1: no memory). */
void bough_db_copy(struct bough_store *store, enum bough_sql which, int column, char *to,
                   size_t size);
int bough_db_dup(struct bough_store *store, enum bough_sql which, int column, char **to);
/* A captured output; `size_column` has its size, NULL when none was captured. *data is left alone
 * when `column` is NULL, else it is a copy that ends in a NUL not counted. -1: no memory. */
int bough_db_output(struct bough_store *store, enum bough_sql which, int column, int size_column,
                    bool *has, char **data, size_t *size);

/* A write transaction; rollback is harmless when there is none. */
int bough_db_begin(struct bough_store *store, struct bough_err *err);
int bough_db_commit(struct bough_store *store, struct bough_err *err);
void bough_db_rollback(struct bough_store *store);

/* Starts the statement BOUGH_SQL_list, as bough_db_query would. `parent` is filter->parent in lower
 * case. Call bough_db_end whatever comes of it. */
int bough_db_list(struct bough_store *store, const struct bough_filter *filter, const char *parent,
                  struct bough_err *err);

/* Says what a refused foreign key or a double uuid means, right after an insert for image `uuid` (NULL:
 * for a layer alone) failed; keeps `err` as it is when it was something else. Returns -1. */
int bough_db_explain(struct bough_store *store, const char *uuid, int64_t new_layer, int64_t below,
                     struct bough_err *err);

#endif
