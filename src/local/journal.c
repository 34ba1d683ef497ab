#define _GNU_SOURCE
#include "journal.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

#include "../sys.h"

#define SCHEMA_VERSION ((int)(sizeof migrations / sizeof *migrations))
#define LOCK_WAIT_NS 500000000LL  /* for one that is just ending */
#define CHECKPOINT_PAGES 1000     /* bough_journal_checkpoint does nothing below it */
#define CHECKPOINT_PAGES_MAX 8000 /* a commit does it itself above it */
#define BUSY_MS 10000             /* our own two connections wait for each other */

/* migrations[n] takes a database from user_version n to n + 1. */
static const char *const migrations[] = {
    /* What is long is elsewhere, so that a listing does not walk over it. */
    "CREATE TABLE operations(seq INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE,"
    " kind TEXT NOT NULL, status TEXT NOT NULL, token TEXT, image TEXT, result_image TEXT,"
    " created INTEGER NOT NULL, updated INTEGER NOT NULL, over INTEGER NOT NULL, summary TEXT);"
    "CREATE INDEX operations_created ON operations(created);"
    "CREATE INDEX operations_active ON operations(created) WHERE over=0;"
    "CREATE INDEX operations_made ON operations(result_image) WHERE result_image IS NOT NULL;"
    "CREATE TABLE metadata(seq INTEGER PRIMARY KEY, text TEXT NOT NULL);"
    "CREATE TABLE results(seq INTEGER PRIMARY KEY, text TEXT NOT NULL);"
    /* key: the operation's seq, and the id in the lowest 24 bits: the events of one lie together. */
    "CREATE TABLE events(key INTEGER PRIMARY KEY, spid INTEGER, frame BLOB NOT NULL);"
    "CREATE TABLE files(seq INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE,"
    " sha256 TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, created INTEGER NOT NULL,"
    " updated INTEGER NOT NULL);"
    "CREATE INDEX files_created ON files(created);"
    "CREATE TABLE checkpoints(at INTEGER);"
    "INSERT INTO checkpoints VALUES(0);",
};

#define FILE_COLUMNS "uuid,sha256,size,created,updated"

#define SQL(X)                                                                                    \
    X(begin, "BEGIN IMMEDIATE")                                                                   \
    X(commit, "COMMIT")                                                                           \
    X(rollback, "ROLLBACK")                                                                       \
    X(change, "UPDATE operations SET kind=coalesce(?2,kind),status=coalesce(?3,status),"          \
              "token=coalesce(?4,token),image=coalesce(?5,image),"                                \
              "result_image=coalesce(?6,result_image),"                                           \
              "created=CASE ?7 WHEN 0 THEN created ELSE ?7 END,updated=?8,over=?9,"               \
              "summary=coalesce(?10,summary) WHERE uuid=?1 RETURNING seq")                        \
    X(insert, "INSERT INTO operations(uuid,kind,status,token,image,result_image,created,updated," \
              "over,summary) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10) RETURNING seq")               \
    X(put_metadata, "INSERT OR REPLACE INTO metadata(seq,text) VALUES(?1,?2)")                    \
    X(put_result, "INSERT OR REPLACE INTO results(seq,text) VALUES(?1,?2)")                       \
    X(get, "SELECT o.uuid,o.kind,o.status,o.token,o.image,o.result_image,o.created,o.updated,"    \
           "o.over,o.summary,m.text,r.text FROM operations o LEFT JOIN metadata m ON m.seq=o.seq" \
           " LEFT JOIN results r ON r.seq=o.seq WHERE o.uuid=?1")                                 \
    X(find, "SELECT seq FROM operations WHERE uuid=?1")                                           \
    X(maker, "SELECT uuid FROM operations WHERE result_image=?1 ORDER BY seq LIMIT 1")            \
    X(old, "SELECT seq FROM operations WHERE over=1 AND created<?1 AND updated<?1"                \
           " ORDER BY created LIMIT ?2")                                                          \
    X(drop_events, "DELETE FROM events WHERE key>=?1 AND key<?2")                                 \
    X(drop_metadata, "DELETE FROM metadata WHERE seq=?1")                                         \
    X(drop_result, "DELETE FROM results WHERE seq=?1")                                            \
    X(drop, "DELETE FROM operations WHERE seq=?1")                                                \
    X(append, "INSERT OR REPLACE INTO events(key,spid,frame) VALUES(?1,?2,?3)")                   \
    X(events, "SELECT key,frame FROM events WHERE key>?1 AND key<?2 ORDER BY key")                \
    X(events_of, "SELECT key,frame FROM events WHERE key>?1 AND key<?2 AND spid=?3 ORDER BY key") \
    X(last, "SELECT max(key) FROM events WHERE key>=?1 AND key<?2")                               \
    X(put_file, "INSERT INTO files(" FILE_COLUMNS ") VALUES(?1,?2,?3,?4,?5)"                      \
                " ON CONFLICT(sha256) DO UPDATE SET updated=excluded.updated"                     \
                " RETURNING " FILE_COLUMNS)                                                       \
    X(file, "SELECT " FILE_COLUMNS " FROM files WHERE uuid=?1")                                   \
    X(file_by_digest, "SELECT " FILE_COLUMNS " FROM files WHERE sha256=?1")                       \
    X(files, "SELECT " FILE_COLUMNS " FROM files WHERE created>=?1 AND created<?2"                \
             " ORDER BY created DESC,seq DESC LIMIT ?3 OFFSET ?4")

enum sql {
#define SQL_ENUM(name, text) SQL_##name,
    SQL(SQL_ENUM)
#undef SQL_ENUM
        SQL_list, /* its text is made for each filter */
    SQL_COUNT
};

static const char *const sql_text[SQL_COUNT] = {
#define SQL_TEXT(name, text) text,
    SQL(SQL_TEXT)
#undef SQL_TEXT
};

struct bough_journal {
    char *path;
    int lock; /* on a file of its own: closing any descriptor of the database would let go of SQLite's locks */
    sqlite3 *db;
    sqlite3 *checkpoint_db; /* of bough_journal_checkpoint's thread; NULL until it is needed */
    atomic_int wal_pages;
    sqlite3_stmt *stmts[SQL_COUNT];
};

/* -- errors and statements --------------------------------------------------------------------- */

static int no_space(const struct bough_journal *journal, struct bough_err *err)
{
    return bough_err_set(err, BOUGH_ERR_resource, "%s: no space left on its file system",
                         journal->path);
}

static int fail(const struct bough_journal *journal, int rc, struct bough_err *err)
{
    int sys = journal->db ? sqlite3_system_errno(journal->db) : 0;
    const char *text = journal->db ? sqlite3_errmsg(journal->db) : sqlite3_errstr(rc);
    switch (rc & 0xff) {
    case SQLITE_FULL:
        return no_space(journal, err);
    case SQLITE_IOERR:
        if (sys == ENOSPC || sys == EDQUOT)
            return no_space(journal, err);
        break;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return bough_err_set(err, BOUGH_ERR_corrupt,
                             "%s: damaged (%s); move it away to start anew without its operations",
                             journal->path, text);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL:
        return bough_err_set(err, BOUGH_ERR_busy, "%s: another server has it open", journal->path);
    case SQLITE_READONLY:
    case SQLITE_PERM:
        return bough_err_set(err, BOUGH_ERR_denied, "%s: cannot be written (%s)", journal->path,
                             text);
    case SQLITE_NOMEM:
        return bough_err_sys(err, ENOMEM, "%s", journal->path);
    case SQLITE_TOOBIG:
        return bough_err_set(err, BOUGH_ERR_resource, "%s: too large for one row", journal->path);
    default:
        break;
    }
    return sys ? bough_err_sys(err, sys, "%s", journal->path)
               : bough_err_set(err, BOUGH_ERR_io, "%s: %s", journal->path, text);
}

static void end(struct bough_journal *journal, enum sql which)
{
    if (which == SQL_list) {
        sqlite3_finalize(journal->stmts[which]);
        journal->stmts[which] = NULL;
    } else if (journal->stmts[which]) {
        sqlite3_reset(journal->stmts[which]);
        sqlite3_clear_bindings(journal->stmts[which]); /* they point into what the caller owns */
    }
}

/* 1 a row, 0 none, -1. After the last two the statement has ended. */
static int step(struct bough_journal *journal, enum sql which, struct bough_err *err)
{
    int rc = sqlite3_step(journal->stmts[which]);
    if (rc == SQLITE_ROW)
        return 1;
    if (rc != SQLITE_DONE)
        fail(journal, rc, err);
    end(journal, which);
    return rc == SQLITE_DONE ? 0 : -1;
}

static int bind(sqlite3_stmt *stmt, const char *types, va_list ap)
{
    int rc = SQLITE_OK;
    for (int i = 1; *types && rc == SQLITE_OK; types++, i++) {
        if (*types == 'i') {
            rc = sqlite3_bind_int64(stmt, i, va_arg(ap, int64_t));
        } else if (*types == 's') {
            rc = sqlite3_bind_text(stmt, i, va_arg(ap, const char *), -1, SQLITE_STATIC);
        } else {
            const void *data = va_arg(ap, const void *);
            rc = sqlite3_bind_blob64(stmt, i, data, va_arg(ap, size_t), SQLITE_STATIC);
        }
    }
    return rc;
}

/* Binds (i int64_t, s text, b pointer and size_t) and takes the first step. */
static int query(struct bough_journal *journal, enum sql which, struct bough_err *err,
                 const char *types, ...)
{
    int rc = SQLITE_OK;
    if (!journal->stmts[which])
        rc = sqlite3_prepare_v3(journal->db, sql_text[which], -1, SQLITE_PREPARE_PERSISTENT,
                                &journal->stmts[which], NULL);
    if (rc == SQLITE_OK) {
        va_list ap;
        va_start(ap, types);
        rc = bind(journal->stmts[which], types, ap);
        va_end(ap);
    }
    if (rc == SQLITE_OK)
        return step(journal, which, err);
    fail(journal, rc, err);
    end(journal, which);
    return -1;
}

/* For a statement of which no row is wanted: 0 or -1. */
#define RUN(journal, which, err, ...) \
    run_end(journal, which, query(journal, which, err, __VA_ARGS__))
static int run_end(struct bough_journal *journal, enum sql which, int stepped)
{
    if (stepped == 1)
        end(journal, which);
    return stepped < 0 ? -1 : 0;
}

static int64_t column_int(struct bough_journal *journal, enum sql which, int column)
{
    return sqlite3_column_int64(journal->stmts[which], column);
}

/* A malloc'ed copy, NULL for NULL. False: no memory. */
static bool column_text(struct bough_journal *journal, enum sql which, int column, char **to)
{
    const char *text = (const char *)sqlite3_column_text(journal->stmts[which], column);
    *to = text ? strdup(text) : NULL;
    return *to || sqlite3_column_type(journal->stmts[which], column) == SQLITE_NULL;
}

/* -- opening ----------------------------------------------------------------------------------- */

/* One number or word that a pragma says. */
static int pragma(struct bough_journal *journal, const char *sql, char *text, size_t size)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(journal->db, sql, -1, &stmt, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW && sqlite3_column_text(stmt, 0))
        snprintf(text, size, "%s", (const char *)sqlite3_column_text(stmt, 0));
    sqlite3_finalize(stmt);
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* One process at a time; whoever has died has let go. */
static int take(struct bough_journal *journal, struct bough_err *err)
{
    char *path BOUGH_CLEANUP_FREE = NULL;
    if (asprintf(&path, "%s-lock", journal->path) < 0) {
        path = NULL;
        return bough_err_sys(err, ENOMEM, "%s", journal->path);
    }
    journal->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (journal->lock < 0)
        return bough_err_sys(err, errno, "%s", path);
    int64_t until_ns = bough_now_ns() + LOCK_WAIT_NS;
    while (flock(journal->lock, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return bough_err_sys(err, errno, "%s", path);
        if (bough_now_ns() >= until_ns)
            return bough_err_set(err, BOUGH_ERR_busy, "%s: another server has it open",
                                 journal->path);
        usleep(10000);
    }
    return 0;
}

/* Counts only: what a hook returns would become the result of a commit that has happened. */
static int wal_grew(void *arg, sqlite3 *db, const char *name, int pages)
{
    struct bough_journal *journal = arg;
    atomic_store(&journal->wal_pages, pages);
    if (pages >= CHECKPOINT_PAGES_MAX)
        sqlite3_wal_checkpoint_v2(db, name, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
    return SQLITE_OK;
}

/* Gives what SQLite says. */
static int connect(const struct bough_journal *journal, sqlite3 **db)
{
    int rc = sqlite3_open_v2(journal->path, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc == SQLITE_OK) {
        sqlite3_extended_result_codes(*db, 1);
        sqlite3_busy_timeout(*db, BUSY_MS);
        rc = sqlite3_exec(*db, "PRAGMA synchronous=NORMAL", NULL, NULL, NULL);
    }
    return rc;
}

static int migrate(struct bough_journal *journal, struct bough_err *err)
{
    char text[24] = "0";
    int rc = pragma(journal, "PRAGMA user_version", text, sizeof text);
    if (rc != SQLITE_OK)
        return fail(journal, rc, err);
    int version = atoi(text);
    if (version > SCHEMA_VERSION)
        return bough_err_set(err, BOUGH_ERR_unsupported, "%s: version %d, made by a newer bough",
                             journal->path, version);
    if (version == SCHEMA_VERSION)
        return 0;
    if (bough_journal_begin(journal, err))
        return -1;
    for (; version < SCHEMA_VERSION && rc == SQLITE_OK; version++) {
        snprintf(text, sizeof text, "%d", version + 1);
        char done[48] = "PRAGMA user_version=";
        rc = sqlite3_exec(journal->db, migrations[version], NULL, NULL, NULL);
        if (rc == SQLITE_OK)
            rc = sqlite3_exec(journal->db, strcat(done, text), NULL, NULL, NULL);
    }
    if (rc == SQLITE_OK && bough_journal_commit(journal, err) == 0)
        return 0;
    if (rc != SQLITE_OK)
        fail(journal, rc, err);
    bough_journal_rollback(journal);
    return -1;
}

/* What was given to a server may be secret: nobody else reads it. */
static int make_private(const char *path, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd >= 0 || errno == EEXIST ? 0 : bough_err_sys(err, errno, "%s", path);
}

static int start(struct bough_journal *journal, struct bough_err *err)
{
    char mode[16] = "";
    if (make_private(journal->path, err) || take(journal, err))
        return -1;
    int rc = connect(journal, &journal->db);
    if (rc == SQLITE_OK)
        rc = pragma(journal, "PRAGMA journal_mode=WAL", mode, sizeof mode);
    if (rc != SQLITE_OK)
        return fail(journal, rc, err);
    if (strcmp(mode, "wal") != 0)
        return bough_err_set(err, BOUGH_ERR_unsupported,
                             "%s: its file system cannot hold a WAL database", journal->path);
    sqlite3_wal_hook(journal->db, wal_grew, journal);
    return migrate(journal, err);
}

struct bough_journal *bough_journal_open(const char *path, struct bough_err *err)
{
    struct bough_journal *journal = calloc(1, sizeof *journal);
    if (!journal || !(journal->path = strdup(path))) {
        free(journal);
        bough_err_sys(err, ENOMEM, "%s", path);
        return NULL;
    }
    journal->lock = -1;
    if (start(journal, err) == 0)
        return journal;
    bough_journal_close(journal);
    return NULL;
}

void bough_journal_close(struct bough_journal *journal)
{
    if (!journal)
        return;
    for (int i = 0; i < SQL_COUNT; i++)
        sqlite3_finalize(journal->stmts[i]);
    sqlite3_close(journal->checkpoint_db);
    sqlite3_close(journal->db);
    bough_fd_close(&journal->lock);
    free(journal->path);
    free(journal);
}

bool bough_journal_wants_checkpoint(const struct bough_journal *journal)
{
    return atomic_load(&((struct bough_journal *)journal)->wal_pages) >= CHECKPOINT_PAGES;
}

void bough_journal_checkpoint(struct bough_journal *journal)
{
    int rc = journal->checkpoint_db ? SQLITE_OK : connect(journal, &journal->checkpoint_db);
    int log = 0, copied = 0;
    /* PASSIVE waits for nobody; what it could not copy, the next one will. */
    if (rc == SQLITE_OK)
        rc = sqlite3_wal_checkpoint_v2(journal->checkpoint_db, NULL, SQLITE_CHECKPOINT_PASSIVE,
                                       &log, &copied);
    /* The first write after a complete one starts the log anew and syncs its header: here, where nobody waits. */
    if (rc == SQLITE_OK && log == copied)
        rc = sqlite3_exec(journal->checkpoint_db, "UPDATE checkpoints SET at=at+1", NULL, NULL,
                          NULL);
    atomic_store(&journal->wal_pages, 0);
    if (rc != SQLITE_OK) {
        sqlite3_close(journal->checkpoint_db);
        journal->checkpoint_db = NULL;
    }
}

int bough_journal_begin(struct bough_journal *journal, struct bough_err *err)
{
    return RUN(journal, SQL_begin, err, "");
}

int bough_journal_commit(struct bough_journal *journal, struct bough_err *err)
{
    return RUN(journal, SQL_commit, err, "");
}

void bough_journal_rollback(struct bough_journal *journal)
{
    /* After some errors SQLite has rolled back by itself. */
    if (!sqlite3_get_autocommit(journal->db))
        RUN(journal, SQL_rollback, NULL, "");
}

/* -- operations -------------------------------------------------------------------------------- */

void bough_operation_clear(struct bough_operation *o)
{
    char *const owned[] = {o->uuid,         o->kind,    o->status,   o->token, o->image,
                           o->result_image, o->summary, o->metadata, o->result};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
    *o = (struct bough_operation){0};
}

static int put_row(struct bough_journal *journal, enum sql which, const struct bough_operation *o,
                   int64_t *seq, struct bough_err *err)
{
    int stepped =
        query(journal, which, err, "ssssssiiis", o->uuid, o->kind, o->status, o->token, o->image,
              o->result_image, o->created_us, o->updated_us, (int64_t)o->over, o->summary);
    if (stepped == 1) {
        *seq = column_int(journal, which, 0);
        end(journal, which);
    }
    return stepped;
}

int bough_journal_put(struct bough_journal *journal, const struct bough_operation *o,
                      struct bough_err *err)
{
    int64_t seq = 0;
    int stepped = put_row(journal, SQL_change, o, &seq, err);
    if (stepped == 0)
        stepped = put_row(journal, SQL_insert, o, &seq, err);
    int rc = stepped == 1 ? 0 : -1;
    if (rc == 0 && o->metadata)
        rc = RUN(journal, SQL_put_metadata, err, "is", seq, o->metadata);
    if (rc == 0 && o->result)
        rc = RUN(journal, SQL_put_result, err, "is", seq, o->result);
    return rc;
}

/* The row that a statement stands on; -1: no memory. */
static int read_row(struct bough_journal *journal, enum sql which, bool whole,
                    struct bough_operation *o, struct bough_err *err)
{
    char **const texts[] = {&o->uuid,  &o->kind,         &o->status,   &o->token,
                            &o->image, &o->result_image, NULL,         NULL,
                            NULL,      &o->summary,      &o->metadata, &o->result};
    bool good = true;
    *o = (struct bough_operation){0};
    for (int i = 0; i < (whole ? 12 : 10); i++)
        if (texts[i])
            good = column_text(journal, which, i, texts[i]) && good;
    o->created_us = column_int(journal, which, 6);
    o->updated_us = column_int(journal, which, 7);
    o->over = column_int(journal, which, 8) != 0;
    if (good)
        return 0;
    bough_operation_clear(o);
    return bough_err_sys(err, ENOMEM, "%s", journal->path);
}

int bough_journal_get(struct bough_journal *journal, const char *uuid, struct bough_operation *out,
                      struct bough_err *err)
{
    int stepped = query(journal, SQL_get, err, "s", uuid);
    if (stepped == 1 && read_row(journal, SQL_get, true, out, err))
        stepped = -1;
    end(journal, SQL_get);
    return stepped;
}

/* Just the conditions asked for, so that SQLite can pick an index. */
static int prepare_list(struct bough_journal *journal, const struct bough_operation_filter *f,
                        struct bough_err *err)
{
    char sql[600];
    snprintf(sql, sizeof sql,
             "SELECT uuid,kind,status,token,image,result_image,created,updated,over,summary"
             " FROM operations WHERE created>=?3 AND created<?4%s%s%s"
             " ORDER BY created DESC,seq DESC LIMIT ?5 OFFSET ?6",
             f->over < 0 ? ""
             : f->over   ? " AND over=1"
                         : " AND over=0",
             f->kind ? " AND kind=?1" : "", f->status ? " AND status=?2" : "");
    int rc = sqlite3_prepare_v2(journal->db, sql, -1, &journal->stmts[SQL_list], NULL);
    return rc == SQLITE_OK ? 0 : fail(journal, rc, err);
}

/* Room for one more at the end of a malloc'ed array that doubles. */
static void *grow(void *rows, long count, size_t size)
{
    return count & (count - 1) ? rows : realloc(rows, (size_t)(count ? 2 * count : 1) * size);
}

static int64_t bound(int64_t before_us)
{
    return before_us > 0 ? before_us : INT64_MAX;
}

long bough_journal_list(struct bough_journal *journal, const struct bough_operation_filter *f,
                        struct bough_operation **out, struct bough_err *err)
{
    struct bough_operation *rows = NULL;
    long count = 0;
    int stepped = prepare_list(journal, f, err);
    if (stepped == 0)
        stepped = query(journal, SQL_list, err, "ssiiii", f->kind, f->status, f->since_us,
                        bound(f->before_us), f->limit > 0 ? f->limit : (int64_t)-1, f->offset);
    while (stepped == 1) {
        struct bough_operation *more = grow(rows, count, sizeof *rows);
        if (!more || read_row(journal, SQL_list, false, &more[count], err)) {
            rows = more ? more : rows;
            stepped = more ? -1 : bough_err_sys(err, ENOMEM, "%s", journal->path);
            break;
        }
        rows = more;
        count++;
        stepped = step(journal, SQL_list, err);
    }
    end(journal, SQL_list);
    if (stepped < 0) {
        while (count > 0)
            bough_operation_clear(&rows[--count]);
        free(rows);
        return -1;
    }
    *out = rows;
    return count;
}

int bough_journal_maker(struct bough_journal *journal, const char *image, char **uuid,
                        struct bough_err *err)
{
    int stepped = query(journal, SQL_maker, err, "s", image);
    if (stepped == 1 && !column_text(journal, SQL_maker, 0, uuid))
        stepped = bough_err_sys(err, ENOMEM, "%s", journal->path);
    end(journal, SQL_maker);
    return stepped;
}

static int64_t key_of(int64_t seq, int64_t id)
{
    return seq * BOUGH_JOURNAL_EVENTS_MAX + id;
}

static int drop(struct bough_journal *journal, int64_t seq, struct bough_err *err)
{
    return RUN(journal, SQL_drop_events, err, "ii", key_of(seq, 0), key_of(seq + 1, 0)) ||
                   RUN(journal, SQL_drop_metadata, err, "i", seq) ||
                   RUN(journal, SQL_drop_result, err, "i", seq) ||
                   RUN(journal, SQL_drop, err, "i", seq)
               ? -1
               : 0;
}

long bough_journal_prune(struct bough_journal *journal, int64_t before_us, int64_t most,
                         struct bough_err *err)
{
    long count = 0;
    for (; count < most; count++) {
        int stepped = query(journal, SQL_old, err, "ii", before_us, (int64_t)1);
        if (stepped <= 0)
            return stepped < 0 ? -1 : count;
        int64_t seq = column_int(journal, SQL_old, 0);
        end(journal, SQL_old);
        if (drop(journal, seq, err))
            return -1;
    }
    return count;
}

/* -- events ------------------------------------------------------------------------------------ */

/* 1 found, 0 not, -1. */
static int find(struct bough_journal *journal, const char *uuid, int64_t *seq,
                struct bough_err *err)
{
    int stepped = query(journal, SQL_find, err, "s", uuid);
    if (stepped == 1)
        *seq = column_int(journal, SQL_find, 0);
    end(journal, SQL_find);
    return stepped;
}

int bough_journal_append(struct bough_journal *journal, const char *uuid, int64_t first,
                         const struct bough_event *events, size_t count, struct bough_err *err)
{
    int64_t seq = 0;
    int found = find(journal, uuid, &seq, err);
    if (found == 0)
        bough_err_set(err, BOUGH_ERR_not_found, "%s: no operation %s", journal->path, uuid);
    if (found != 1)
        return -1;
    if (first < 0 || first + (int64_t)count > BOUGH_JOURNAL_EVENTS_MAX)
        return bough_err_set(err, BOUGH_ERR_resource, "%s: operation %s has too many events",
                             journal->path, uuid);
    for (size_t i = 0; i < count; i++)
        if (RUN(journal, SQL_append, err, "iib", key_of(seq, first + (int64_t)i), events[i].spid,
                (const void *)events[i].frame, events[i].size))
            return -1;
    return 0;
}

/* The row that the statement stands on, behind what is there; 0: it does not fit any more; -1: no memory. */
static int take_frame(struct bough_journal *journal, enum sql which, size_t most, size_t *room,
                      struct bough_events_page *out)
{
    const void *frame = sqlite3_column_blob(journal->stmts[which], 1);
    size_t size = (size_t)sqlite3_column_bytes(journal->stmts[which], 1);
    if (out->count > 0 && out->size + size > most)
        return 0;
    if (out->size + size > *room) {
        size_t wanted = 2 * (out->size + size) + 256;
        char *text = realloc(out->text, wanted);
        if (!text)
            return -1;
        out->text = text;
        *room = wanted;
    }
    if (size)
        memcpy(out->text + out->size, frame, size);
    out->size += size;
    out->count++;
    out->last = column_int(journal, which, 0) % BOUGH_JOURNAL_EVENTS_MAX;
    return 1;
}

int bough_journal_events(struct bough_journal *journal, const char *uuid, int64_t after,
                         int64_t spid, size_t most, struct bough_events_page *out,
                         struct bough_err *err)
{
    int64_t seq = 0;
    size_t room = 0;
    enum sql which = spid < 0 ? SQL_events : SQL_events_of;
    *out = (struct bough_events_page){.last = after};
    int found = find(journal, uuid, &seq, err);
    if (found <= 0 || after >= BOUGH_JOURNAL_EVENTS_MAX)
        return found < 0 ? -1 : 0;
    int64_t from = after < -1 ? -1 : after;
    int stepped = query(journal, which, err, spid < 0 ? "ii" : "iii", key_of(seq, from),
                        key_of(seq + 1, 0), spid);
    while (stepped == 1) {
        int taken = take_frame(journal, which, most, &room, out);
        if (taken <= 0) {
            stepped = taken < 0 ? bough_err_sys(err, ENOMEM, "%s", journal->path) : 0;
            break;
        }
        stepped = step(journal, which, err);
    }
    end(journal, which);
    if (stepped < 0) {
        free(out->text);
        *out = (struct bough_events_page){.last = after};
    }
    return stepped;
}

int64_t bough_journal_last(struct bough_journal *journal, const char *uuid, struct bough_err *err)
{
    int64_t seq = 0, last = -1;
    int stepped = find(journal, uuid, &seq, err);
    if (stepped == 1)
        stepped = query(journal, SQL_last, err, "ii", key_of(seq, 0), key_of(seq + 1, 0));
    if (stepped == 1 && sqlite3_column_type(journal->stmts[SQL_last], 0) != SQLITE_NULL)
        last = column_int(journal, SQL_last, 0) % BOUGH_JOURNAL_EVENTS_MAX;
    end(journal, SQL_last);
    return stepped < 0 ? -2 : last;
}

/* -- files ------------------------------------------------------------------------------------- */

static void read_file(struct bough_journal *journal, enum sql which, struct bough_upload_row *row)
{
    const char *uuid = (const char *)sqlite3_column_text(journal->stmts[which], 0);
    const char *sha256 = (const char *)sqlite3_column_text(journal->stmts[which], 1);
    snprintf(row->uuid, sizeof row->uuid, "%s", uuid ? uuid : "");
    snprintf(row->sha256, sizeof row->sha256, "%s", sha256 ? sha256 : "");
    row->size = column_int(journal, which, 2);
    row->created_us = column_int(journal, which, 3);
    row->updated_us = column_int(journal, which, 4);
}

int bough_journal_put_file(struct bough_journal *journal, struct bough_upload_row *row,
                           struct bough_err *err)
{
    struct bough_upload_row given = *row;
    int stepped = query(journal, SQL_put_file, err, "ssiii", given.uuid, given.sha256, given.size,
                        given.created_us, given.updated_us);
    if (stepped == 1)
        read_file(journal, SQL_put_file, row);
    end(journal, SQL_put_file);
    return stepped == 1 ? 0 : -1;
}

int bough_journal_file(struct bough_journal *journal, const char *key, struct bough_upload_row *out,
                       struct bough_err *err)
{
    enum sql which = strlen(key) == 64 ? SQL_file_by_digest : SQL_file;
    int stepped = query(journal, which, err, "s", key);
    if (stepped == 1)
        read_file(journal, which, out);
    end(journal, which);
    return stepped;
}

long bough_journal_files(struct bough_journal *journal, const struct bough_operation_filter *f,
                         struct bough_upload_row **out, struct bough_err *err)
{
    struct bough_upload_row *rows = NULL;
    long count = 0;
    int stepped = query(journal, SQL_files, err, "iiii", f->since_us, bound(f->before_us),
                        f->limit > 0 ? f->limit : (int64_t)-1, f->offset);
    while (stepped == 1) {
        struct bough_upload_row *more = grow(rows, count, sizeof *rows);
        if (!more) {
            stepped = bough_err_sys(err, ENOMEM, "%s", journal->path);
            break;
        }
        rows = more;
        read_file(journal, SQL_files, &rows[count++]);
        stepped = step(journal, SQL_files, err);
    }
    end(journal, SQL_files);
    if (stepped < 0) {
        free(rows);
        return -1;
    }
    *out = rows;
    return count;
}
