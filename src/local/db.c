#define _GNU_SOURCE
/* db.c - a store's database: its schema, its connections, its statements, its errors.
 *
 * With journal.c the one file that includes sqlite3.h. */
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "store_priv.h"

#define SCHEMA_VERSION ((int)(sizeof migrations / sizeof *migrations))
#define CHECKPOINT_PAGES 1000     /* bough_store_checkpoint does nothing below it */
#define CHECKPOINT_PAGES_MAX 8000 /* a commit does it itself above it */

/* migrations[n] takes a database from user_version n to n + 1. Foreign keys are not looked at meanwhile,
 * so that a table can be replaced under those that refer to it. */
static const char *const migrations[] = {
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;"
    "INSERT INTO meta VALUES('next_layer',1);"
    /* AUTOINCREMENT: images.owner may name an owner that is long gone, and must not come to
     * mean another one. */
    "CREATE TABLE owners(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);"
    "CREATE TABLE layers(id INTEGER PRIMARY KEY, parent INTEGER REFERENCES layers(id),"
    " level INTEGER NOT NULL, bytes INTEGER NOT NULL, files INTEGER NOT NULL,"
    " created INTEGER NOT NULL);"
    "CREATE INDEX layers_parent ON layers(parent);"
    "CREATE TABLE stand_ins(id INTEGER PRIMARY KEY, top INTEGER NOT NULL REFERENCES layers(id),"
    " bottom INTEGER NOT NULL REFERENCES layers(id), level INTEGER NOT NULL,"
    " bytes INTEGER NOT NULL, UNIQUE(top,bottom));"
    "CREATE INDEX stand_ins_bottom ON stand_ins(bottom);"
    /* gone: removed, but perhaps still in use somewhere; gc drops the row. Blobs come last, so
     * that reading the rest never walks their overflow pages. */
    "CREATE TABLE images(seq INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE,"
    " parent INTEGER REFERENCES images(seq), layer INTEGER REFERENCES layers(id),"
    " origin TEXT NOT NULL, command TEXT, size INTEGER NOT NULL, created INTEGER NOT NULL,"
    " owner INTEGER NOT NULL, gone INTEGER NOT NULL DEFAULT 0, flags INTEGER NOT NULL,"
    " exit_code INTEGER, signal INTEGER, elapsed REAL, user_time REAL, system_time REAL,"
    " max_rss INTEGER, out_dropped INTEGER, err_dropped INTEGER, out BLOB, err BLOB);"
    "CREATE INDEX images_parent ON images(parent);"
    "CREATE INDEX images_layer ON images(layer);"
    "CREATE INDEX images_created ON images(created);"
    /* seq grows with every tagging: the newest tag of an image is the one with the largest. */
    "CREATE TABLE tags(seq INTEGER PRIMARY KEY, tag TEXT NOT NULL UNIQUE,"
    " image INTEGER NOT NULL REFERENCES images(seq) ON DELETE CASCADE);"
    "CREATE INDEX tags_image ON tags(image);"
    "CREATE TABLE leases(image INTEGER NOT NULL REFERENCES images(seq) ON DELETE CASCADE,"
    " owner INTEGER NOT NULL REFERENCES owners(id) ON DELETE CASCADE,"
    " PRIMARY KEY(image,owner)) WITHOUT ROWID;",

    /* An index with the layers that have a chain alone: those of runs write nothing to it. */
    "ALTER TABLE layers ADD COLUMN chain TEXT;"
    "CREATE UNIQUE INDEX layers_chain ON layers(chain) WHERE chain IS NOT NULL;"
    "CREATE TABLE layer_leases(layer INTEGER NOT NULL REFERENCES layers(id) ON DELETE CASCADE,"
    " owner INTEGER NOT NULL REFERENCES owners(id) ON DELETE CASCADE,"
    " PRIMARY KEY(layer,owner)) WITHOUT ROWID;"
    /* A run's config is its parent's: one text for all of them. AUTOINCREMENT, because ids are
     * remembered by processes that do not see a gc of another one. */
    "CREATE TABLE configs(id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL UNIQUE);"
    /* A column that ALTER adds would be behind the blobs. */
    "CREATE TABLE images_2(seq INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE,"
    " parent INTEGER REFERENCES images(seq), layer INTEGER REFERENCES layers(id),"
    " origin TEXT NOT NULL, command TEXT, size INTEGER NOT NULL, created INTEGER NOT NULL,"
    " owner INTEGER NOT NULL, gone INTEGER NOT NULL DEFAULT 0, flags INTEGER NOT NULL,"
    " exit_code INTEGER, signal INTEGER, elapsed REAL, user_time REAL, system_time REAL,"
    " max_rss INTEGER, out_dropped INTEGER, err_dropped INTEGER,"
    " config INTEGER REFERENCES configs(id), out BLOB, err BLOB);"
    "INSERT INTO images_2 SELECT seq,uuid,parent,layer,origin,command,size,created,owner,gone,"
    " flags,exit_code,signal,elapsed,user_time,system_time,max_rss,out_dropped,err_dropped,NULL,"
    " out,err FROM images;"
    "DROP TABLE images;"
    "ALTER TABLE images_2 RENAME TO images;"
    "CREATE INDEX images_parent ON images(parent);"
    "CREATE INDEX images_layer ON images(layer);"
    "CREATE INDEX images_created ON images(created);"
    "CREATE TABLE cache(key TEXT PRIMARY KEY,"
    " image INTEGER NOT NULL REFERENCES images(seq) ON DELETE CASCADE) WITHOUT ROWID;"
    "CREATE INDEX cache_image ON cache(image);",
};

static const char *const sql_text[BOUGH_SQL_COUNT] = {
#define BOUGH_SQL_TEXT(name, text) text,
    BOUGH_SQL(BOUGH_SQL_TEXT)
#undef BOUGH_SQL_TEXT
};

/* ---- errors ---- */

/* Turns what SQLite said into one line that names the store. */
static int db_fail(const struct bough_store *store, sqlite3 *db, int rc, struct bough_err *err)
{
    int sys = db ? sqlite3_system_errno(db) : 0;
    const char *text = db ? sqlite3_errmsg(db) : sqlite3_errstr(rc);
    const char *home = store->home;
    switch (rc & 0xff) {
    case SQLITE_FULL:
        return bough_home_no_space(store, sys, err);
    case SQLITE_IOERR:
        if (sys == ENOSPC || sys == EDQUOT)
            return bough_home_no_space(store, sys, err);
        if (sys)
            return bough_err_sys(err, sys, "store %s/bough.db", home);
        return bough_err_set(err, BOUGH_ERR_io, "store %s/bough.db: %s", home, text);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return bough_err_set(err, BOUGH_ERR_corrupt,
                             "store %s/bough.db: damaged (%s); move %s away to start anew", home,
                             text, home);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL:
        return bough_err_set(err, BOUGH_ERR_busy,
                             "store %s: another process has kept the database locked for 10 s",
                             home);
    case SQLITE_READONLY:
    case SQLITE_PERM:
        return bough_err_set(err, BOUGH_ERR_denied, "store %s/bough.db: cannot write (%s)", home,
                             rc == SQLITE_READONLY_DBMOVED ? "moved or removed while in use"
                                                           : text);
    case SQLITE_CANTOPEN:
        return sys ? bough_err_sys(err, sys, "store %s/bough.db: cannot open", home)
                   : bough_err_set(err, BOUGH_ERR_io, "store %s/bough.db: cannot open", home);
    case SQLITE_NOMEM:
        return bough_err_sys(err, ENOMEM, "store %s", home);
    case SQLITE_TOOBIG:
        return bough_err_set(err, BOUGH_ERR_resource,
                             "store %s: a text or an output is too large for one row", home);
    default:
        return bough_err_set(err, BOUGH_ERR_io, "store %s/bough.db: %s", home, text);
    }
}

int bough_db_explain(struct bough_store *store, const char *uuid, int64_t new_layer, int64_t below,
                     struct bough_err *err)
{
    switch (sqlite3_extended_errcode(store->db)) {
    case SQLITE_CONSTRAINT_FOREIGNKEY:
        return bough_err_set(err, BOUGH_ERR_state, "store %s: %s%s: layer %lld is gone",
                             store->home, uuid ? "image " : "seal", uuid ? uuid : "",
                             (long long)below);
    case SQLITE_CONSTRAINT_UNIQUE:
        return bough_err_set(err, BOUGH_ERR_exists, "store %s: %s%s: there already", store->home,
                             uuid ? "image " : "seal", uuid ? uuid : "");
    case SQLITE_CONSTRAINT_PRIMARYKEY:
    case SQLITE_CONSTRAINT_ROWID:
        return bough_err_set(err, BOUGH_ERR_exists, "store %s: layer %lld: there already",
                             store->home, (long long)new_layer);
    default:
        return -1;
    }
}

/* ---- statements ---- */

static int db_bind(sqlite3_stmt *stmt, const char *types, va_list ap)
{
    int rc = SQLITE_OK;
    for (int i = 1; *types && rc == SQLITE_OK; types++, i++) {
        switch (*types) {
        case 'i':
            rc = sqlite3_bind_int64(stmt, i, va_arg(ap, int64_t));
            break;
        case 'z': {
            int64_t value = va_arg(ap, int64_t);
            rc = value ? sqlite3_bind_int64(stmt, i, value) : sqlite3_bind_null(stmt, i);
            break;
        }
        case 'd':
            rc = sqlite3_bind_double(stmt, i, va_arg(ap, double));
            break;
        case 's':
            rc = sqlite3_bind_text(stmt, i, va_arg(ap, const char *), -1, SQLITE_STATIC);
            break;
        case 'b': {
            const void *data = va_arg(ap, const void *);
            size_t size = va_arg(ap, size_t);
            rc = sqlite3_bind_blob64(stmt, i, data, size, SQLITE_STATIC);
            break;
        }
        default:
            return SQLITE_MISUSE;
        }
    }
    return rc;
}

int bough_db_next(struct bough_store *store, enum bough_sql which, struct bough_err *err)
{
    int rc = sqlite3_step(store->stmts[which]);
    if (rc == SQLITE_ROW)
        return 1;
    if (rc != SQLITE_DONE)
        db_fail(store, store->db, rc, err);
    sqlite3_reset(store->stmts[which]);
    return rc == SQLITE_DONE ? 0 : -1;
}

int bough_db_query(struct bough_store *store, enum bough_sql which, struct bough_err *err,
                   const char *types, ...)
{
    int rc = SQLITE_OK;
    if (!store->stmts[which])
        rc = sqlite3_prepare_v3(store->db, sql_text[which], -1, SQLITE_PREPARE_PERSISTENT,
                                &store->stmts[which], NULL);
    if (rc == SQLITE_OK) {
        va_list ap;
        va_start(ap, types);
        rc = db_bind(store->stmts[which], types, ap);
        va_end(ap);
    }
    return rc == SQLITE_OK ? bough_db_next(store, which, err) : db_fail(store, store->db, rc, err);
}

void bough_db_end(struct bough_store *store, enum bough_sql which)
{
    if (store->stmts[which])
        sqlite3_reset(store->stmts[which]);
}

int bough_db_finish(struct bough_store *store, enum bough_sql which, int step)
{
    if (step)
        bough_db_end(store, which);
    return step;
}

int bough_db_begin(struct bough_store *store, struct bough_err *err)
{
    return bough_db_query(store, BOUGH_SQL_begin_write, err, "") < 0 ? -1 : 0;
}

int bough_db_commit(struct bough_store *store, struct bough_err *err)
{
    return bough_db_query(store, BOUGH_SQL_commit, err, "") < 0 ? -1 : 0;
}

void bough_db_rollback(struct bough_store *store)
{
    /* After some errors SQLite has rolled back by itself. */
    if (!sqlite3_get_autocommit(store->db))
        bough_db_query(store, BOUGH_SQL_rollback, NULL, "");
}

/* ---- columns ---- */

int64_t bough_db_int(struct bough_store *store, enum bough_sql which, int column)
{
    return sqlite3_column_int64(store->stmts[which], column);
}

const char *bough_db_text(struct bough_store *store, enum bough_sql which, int column)
{
    return (const char *)sqlite3_column_text(store->stmts[which], column);
}

double bough_db_double(struct bough_store *store, enum bough_sql which, int column)
{
    return sqlite3_column_double(store->stmts[which], column);
}

void bough_db_copy(struct bough_store *store, enum bough_sql which, int column, char *to,
                   size_t size)
{
    const char *text = bough_db_text(store, which, column);
    snprintf(to, size, "%s", text ? text : "");
}

int bough_db_dup(struct bough_store *store, enum bough_sql which, int column, char **to)
{
    const char *text = bough_db_text(store, which, column);
    *to = text ? strdup(text) : NULL;
    return text && !*to ? -1 : 0;
}

int bough_db_output(struct bough_store *store, enum bough_sql which, int column, int size_column,
                    bool *has, char **data, size_t *size)
{
    sqlite3_stmt *stmt = store->stmts[which];
    *has = sqlite3_column_type(stmt, size_column) != SQLITE_NULL;
    *size = (size_t)sqlite3_column_int64(stmt, size_column);
    if (sqlite3_column_type(stmt, column) == SQLITE_NULL)
        return 0;
    const void *blob = sqlite3_column_blob(stmt, column);
    *data = !blob && *size ? NULL : malloc(*size + 1);
    if (!*data)
        return -1;
    if (*size)
        memcpy(*data, blob, *size);
    (*data)[*size] = '\0';
    return 0;
}

/* ---- the list query ---- */

struct sql_buffer {
    char text[2048];
    size_t size;
};

static void sql_add(struct sql_buffer *sql, const char *text)
{
    size_t size = strlen(text);
    if (sql->size + size < sizeof sql->text) /* all of them together fit: see list_sql */
        memcpy(sql->text + sql->size, text, size + 1);
    sql->size += size;
}

/* The text of a query with just the conditions asked for, so that SQLite can pick an index. */
static void list_sql(const struct bough_filter *f, struct sql_buffer *sql)
{
    sql_add(sql, "SELECT " BOUGH_IMAGE_COLUMNS);
    sql_add(sql, f->brief ? ",NULL,NULL" : ",i.out,i.err");
    /* An image found by a tag shows the tag it was found by. */
    sql_add(sql, ",(SELECT t.tag FROM tags t WHERE t.image=i.seq");
    sql_add(sql, f->tag ? " AND t.tag=?1" : "");
    sql_add(sql, f->tag_glob ? " AND t.tag GLOB ?2" : "");
    sql_add(sql, f->tag_first ? " ORDER BY t.tag=?6 DESC,t.seq DESC" : " ORDER BY t.seq DESC");
    sql_add(sql, " LIMIT 1)" BOUGH_IMAGE_FROM " WHERE i.gone=0");
    if (f->tag || f->tag_glob || f->tagged) {
        sql_add(sql, " AND i.seq IN (SELECT t.image FROM tags t WHERE 1");
        sql_add(sql, f->tag ? " AND t.tag=?1" : "");
        sql_add(sql, f->tag_glob ? " AND t.tag GLOB ?2" : "");
        sql_add(sql, ")");
    }
    if (f->parent)
        sql_add(sql, " AND i.parent=(SELECT seq FROM images WHERE uuid=?3)");
    /* a range, which the index knows; 'g' is behind all digits */
    sql_add(sql, f->uuid_prefix ? " AND i.uuid>=?7 AND i.uuid<?7||'g'" : "");
    sql_add(sql, f->since_us ? " AND i.created>=?4" : "");
    sql_add(sql, f->before_us ? " AND i.created<?5" : "");
    sql_add(sql, " ORDER BY ");
    sql_add(sql, f->tag_first ? "i.seq=(SELECT image FROM tags WHERE tag=?6) DESC," : "");
    sql_add(sql, f->oldest_first ? "i.created,i.seq" : "i.created DESC,i.seq DESC");
    sql_add(sql, " LIMIT ?8 OFFSET ?9");
}

/* Preparing takes longer than most lists do, and who pages asks for the same again. */
static int list_prepare(struct bough_store *store, const char *sql)
{
    sqlite3_stmt **stmt = &store->stmts[BOUGH_SQL_list];
    if (*stmt && strcmp(sqlite3_sql(*stmt), sql) == 0)
        return SQLITE_OK;
    sqlite3_finalize(*stmt);
    *stmt = NULL;
    return sqlite3_prepare_v3(store->db, sql, -1, SQLITE_PREPARE_PERSISTENT, stmt, NULL);
}

int bough_db_list(struct bough_store *store, const struct bough_filter *filter, const char *parent,
                  struct bough_err *err)
{
    struct sql_buffer sql = {.size = 0};
    list_sql(filter, &sql);
    int rc = list_prepare(store, sql.text);
    if (rc != SQLITE_OK)
        return db_fail(store, store->db, rc, err);
    /* LIMIT and OFFSET are always there, and so the parameters before them may be bound. */
    return bough_db_query(store, BOUGH_SQL_list, err, "sssiissii", filter->tag, filter->tag_glob,
                          parent, filter->since_us, filter->before_us, filter->tag_first,
                          filter->uuid_prefix, filter->limit > 0 ? filter->limit : (int64_t)-1,
                          filter->offset > 0 ? filter->offset : (int64_t)0);
}

/* ---- schema ---- */

static int db_pragma(struct bough_store *store, const char *sql, char *text, size_t size)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(store->db, sql, -1, &stmt, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW && text)
        snprintf(text, size, "%s", (const char *)sqlite3_column_text(stmt, 0));
    sqlite3_finalize(stmt);
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
}

static int db_version(struct bough_store *store, struct bough_err *err)
{
    char text[24] = "0";
    int rc = db_pragma(store, "PRAGMA user_version", text, sizeof text);
    return rc == SQLITE_OK ? atoi(text) : db_fail(store, store->db, rc, err);
}

static int db_migrate(struct bough_store *store, struct bough_err *err)
{
    int version = db_version(store, err);
    if (version < 0 || version == SCHEMA_VERSION)
        return version < 0 ? -1 : 0;
    if (version > SCHEMA_VERSION)
        return bough_err_set(err, BOUGH_ERR_unsupported,
                             "store %s/bough.db: schema %d, made by a newer bough", store->home,
                             version);
    if (bough_db_begin(store, err))
        return -1;
    version = db_version(store, err); /* another process may have been quicker */
    if (version == 0 && !bough_home_layers_empty(store)) {
        /* Going on would let the next sweep throw away every layer. */
        bough_err_set(err, BOUGH_ERR_corrupt,
                      "store %s/bough.db: empty, yet there are layers; put the database back or"
                      " move %s away to start anew",
                      store->home, store->home);
        version = -1;
    }
    for (; version >= 0 && version < SCHEMA_VERSION; version++) {
        char done[40];
        snprintf(done, sizeof done, "PRAGMA user_version=%d", version + 1);
        int rc = sqlite3_exec(store->db, migrations[version], NULL, NULL, NULL);
        if (rc == SQLITE_OK)
            rc = sqlite3_exec(store->db, done, NULL, NULL, NULL);
        if (rc != SQLITE_OK) {
            db_fail(store, store->db, rc, err);
            version = -2;
        }
    }
    if (version >= 0 && bough_db_commit(store, err) == 0)
        return 0;
    bough_db_rollback(store);
    return -1;
}

/* ---- opening and closing ---- */

/* SQLite's own back-off starts at 1 ms, twenty times what a commit takes. */
static int db_wait(void *arg, int tries)
{
    struct bough_store *store = arg;
    if (tries == 0)
        store->busy_since_ns = bough_now_ns();
    else if (bough_now_ns() - store->busy_since_ns > BOUGH_LOCK_WAIT_NS)
        return 0;
    usleep(tries < 20 ? 50 : tries < 100 ? 500 : 2000);
    return 1;
}

/* Counts only: what a hook returns would become the result of a commit that has happened. */
static int db_wal_grew(void *arg, sqlite3 *db, const char *name, int pages)
{
    struct bough_store *store = arg;
    atomic_store(&store->wal_pages, pages);
    if (pages >= CHECKPOINT_PAGES_MAX)
        sqlite3_wal_checkpoint_v2(db, name, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
    return SQLITE_OK;
}

/* SQLite does not call the busy handler for this switch. */
static int db_make_wal(struct bough_store *store, struct bough_err *err)
{
    char mode[16] = "";
    int rc = db_pragma(store, "PRAGMA journal_mode", mode, sizeof mode);
    for (int tries = 0; rc == SQLITE_OK && strcmp(mode, "wal") != 0;) {
        rc = db_pragma(store, "PRAGMA journal_mode=WAL", mode, sizeof mode);
        if ((rc & 0xff) == SQLITE_BUSY && db_wait(store, tries++))
            rc = SQLITE_OK;
        else if (rc == SQLITE_OK && strcmp(mode, "wal") != 0)
            return bough_err_set(err, BOUGH_ERR_unsupported,
                                 "store %s: its file system cannot hold a WAL database",
                                 store->home);
    }
    return rc == SQLITE_OK ? 0 : db_fail(store, store->db, rc, err);
}

/* Gives what SQLite says. */
static int db_connect(const struct bough_store *store, sqlite3 **db)
{
    char *path BOUGH_CLEANUP_FREE = NULL;
    if (asprintf(&path, "%s/bough.db", store->home) < 0) {
        path = NULL;
        return SQLITE_NOMEM;
    }
    int rc = sqlite3_open_v2(
        path, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc == SQLITE_OK)
        sqlite3_extended_result_codes(*db, 1);
    return rc;
}

int bough_db_open(struct bough_store *store, struct bough_err *err)
{
    int rc = db_connect(store, &store->db);
    if (rc != SQLITE_OK)
        return db_fail(store, store->db, rc, err);
    sqlite3_busy_handler(store->db, db_wait, store);
    if (db_make_wal(store, err))
        return -1;
    rc = sqlite3_exec(store->db, "PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=OFF", NULL, NULL,
                      NULL);
    if (rc != SQLITE_OK)
        return db_fail(store, store->db, rc, err);
    sqlite3_wal_hook(store->db, db_wal_grew, store);
    if (db_migrate(store, err))
        return -1;
    rc = sqlite3_exec(store->db, "PRAGMA foreign_keys=ON", NULL, NULL, NULL);
    return rc == SQLITE_OK ? 0 : db_fail(store, store->db, rc, err);
}

void bough_db_close(struct bough_store *store)
{
    for (int i = 0; i < BOUGH_SQL_COUNT; i++)
        sqlite3_finalize(store->stmts[i]);
    sqlite3_close(store->checkpoint_db);
    /* The last one to close would copy a log of any size, with two fsyncs; a small one may as
     * well wait for the next opening. */
    if (store->db && atomic_load(&store->wal_pages) < CHECKPOINT_PAGES)
        sqlite3_db_config(store->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    sqlite3_close(store->db);
}

int bough_store_checkpoint(struct bough_store *store, struct bough_err *err)
{
    if (store->pid != getpid() || atomic_load(&store->wal_pages) < CHECKPOINT_PAGES)
        return 0;
    pthread_mutex_lock(&store->checkpoint_mutex);
    int result = 0;
    int rc = store->checkpoint_db ? SQLITE_OK : db_connect(store, &store->checkpoint_db);
    int log = 0, copied = 0;
    /* PASSIVE waits for nobody; what it could not copy, the next one will. */
    if (rc == SQLITE_OK)
        rc = sqlite3_wal_checkpoint_v2(store->checkpoint_db, NULL, SQLITE_CHECKPOINT_PASSIVE, &log,
                                       &copied);
    /* The first write after a complete one starts the log anew and syncs its header: here rather
     * than in a commit. */
    if (rc == SQLITE_OK && log == copied)
        rc = sqlite3_exec(store->checkpoint_db,
                          "PRAGMA synchronous=NORMAL;"
                          "UPDATE meta SET value=value WHERE key='next_layer'",
                          NULL, NULL, NULL);
    atomic_store(&store->wal_pages, 0);
    if (rc != SQLITE_OK && (rc & 0xff) != SQLITE_BUSY)
        result = db_fail(store, store->checkpoint_db, rc, err);
    if (result) {
        sqlite3_close(store->checkpoint_db);
        store->checkpoint_db = NULL;
    }
    pthread_mutex_unlock(&store->checkpoint_mutex);
    return result;
}
