#define _GNU_SOURCE
/* store.c - opening a store, its database, and the images in it.
 *
 * The one file that includes sqlite3.h. Order of what must survive a kill at any
 * instant: a layer's directory is in place before its row can be seen, and a row is
 * gone before its directory is (gc.c). Locks are always taken in this order: mutex,
 * commit.lock, the database's write lock. */
#include <dirent.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "store_priv.h"

#define SCHEMA_VERSION ((int)(sizeof migrations / sizeof *migrations))
#define CHECKPOINT_PAGES 1000     /* bough_store_checkpoint does nothing below it */
#define CHECKPOINT_PAGES_MAX 8000 /* a commit does it itself above it */

/* migrations[n] takes a database from user_version n to n + 1. */
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
};

static const char *const sql_text[BOUGH_SQL_COUNT] = {
#define BOUGH_SQL_TEXT(name, text) text,
    BOUGH_SQL(BOUGH_SQL_TEXT)
#undef BOUGH_SQL_TEXT
};

/* ---- entering ---- */

int bough_store_enter(struct bough_store *store, struct bough_err *err)
{
    if (store->pid != getpid())
        return bough_err_set(err, BOUGH_ERR_state,
                             "store %s: opened before a fork; the child has to open its own",
                             store->home);
    pthread_mutex_lock(&store->mutex);
    return 0;
}

void bough_store_leave(struct bough_store *store)
{
    pthread_mutex_unlock(&store->mutex);
}

int bough_commit_lock(struct bough_store *store, int how, struct bough_err *err)
{
    int64_t start = bough_now_ns();
    unsigned pause_us = 20;
    while (BOUGH_RETRY(flock(store->commit_fd, (how & ~LOCK_NB) | LOCK_NB))) {
        if (errno != EWOULDBLOCK)
            return bough_err_sys(err, errno, "store %s: commit.lock", store->home);
        if (how & LOCK_NB)
            return 1;
        if (bough_now_ns() - start > BOUGH_LOCK_WAIT_NS)
            return bough_err_set(err, BOUGH_ERR_busy,
                                 "store %s: another process has kept commit.lock for 10 s",
                                 store->home);
        usleep(pause_us);
        pause_us = pause_us < 5000 ? pause_us * 2 : pause_us;
    }
    return 0;
}

void bough_commit_unlock(struct bough_store *store)
{
    flock(store->commit_fd, LOCK_UN);
}

/* ---- the database ---- */

static int db_no_space(const struct bough_store *store, int sys, struct bough_err *err)
{
    bough_err_set(err, BOUGH_ERR_resource, "store %s: %s", store->home,
                  sys == EDQUOT ? "disk quota used up" : "no space left on the device");
    if (err)
        err->sys = sys == EDQUOT ? EDQUOT : ENOSPC;
    return -1;
}

/* Turns what SQLite said into one line that names the store. */
static int db_fail(const struct bough_store *store, sqlite3 *db, int rc, struct bough_err *err)
{
    int sys = db ? sqlite3_system_errno(db) : 0;
    const char *text = db ? sqlite3_errmsg(db) : sqlite3_errstr(rc);
    const char *home = store->home;
    switch (rc & 0xff) {
    case SQLITE_FULL:
        return db_no_space(store, sys, err);
    case SQLITE_IOERR:
        if (sys == ENOSPC || sys == EDQUOT)
            return db_no_space(store, sys, err);
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

int64_t bough_db_int(struct bough_store *store, enum bough_sql which, int column)
{
    return sqlite3_column_int64(store->stmts[which], column);
}

const char *bough_db_text(struct bough_store *store, enum bough_sql which, int column)
{
    return (const char *)sqlite3_column_text(store->stmts[which], column);
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

/* ---- opening: the directory ---- */

static int home_make(const char *home, struct bough_err *err)
{
    char *path BOUGH_CLEANUP_FREE = strdup(home);
    if (!path)
        return bough_err_sys(err, ENOMEM, "store %s", home);
    for (char *at = path + 1;; at++) {
        if (*at && *at != '/')
            continue;
        char kept = *at;
        *at = '\0';
        struct stat st;
        int sys = 0;
        if (stat(path, &st) == 0)
            sys = S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
        else if (errno != ENOENT || (mkdir(path, 0700) && errno != EEXIST))
            sys = errno;
        if (sys == ENOTDIR) {
            bough_err_set(err, BOUGH_ERR_invalid, "store %s: %s is not a directory", home, path);
            if (err)
                err->sys = sys;
            return -1;
        }
        if (sys)
            return bough_err_sys(err, sys, "store %s: cannot make %s", home, path);
        if (!kept)
            return 0;
        *at = kept;
    }
}

/* Nothing of anybody else's may be in a directory that becomes a store. */
static int home_check_empty(const struct bough_store *store, struct bough_err *err)
{
    static const char *const ours[] = {".", "..", "layers", "tmp", "commit.lock", "bough.db"};
    int fd = openat(store->home_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int sys = errno;
        if (fd >= 0)
            close(fd);
        return bough_err_sys(err, sys, "store %s", store->home);
    }
    int result = 0;
    for (struct dirent *entry; result == 0 && (entry = readdir(dir));) {
        bool known =
            strncmp(entry->d_name, "format", 6) == 0 || strncmp(entry->d_name, "bough.db-", 9) == 0;
        for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
            known = known || strcmp(entry->d_name, ours[i]) == 0;
        if (!known)
            result = bough_err_set(err, BOUGH_ERR_invalid,
                                   "store %s: not a store, and not empty (%s is in it)",
                                   store->home, entry->d_name);
    }
    closedir(dir);
    return result;
}

/* Reads home/format: 1 read, 0 not there. */
static int format_read(const struct bough_store *store, char *text, size_t size,
                       struct bough_err *err)
{
    int fd BOUGH_CLEANUP_FD = openat(store->home_fd, "format", O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return 0;
    long got = fd < 0 ? -1 : BOUGH_RETRY(read(fd, text, size - 1));
    if (got < 0)
        return bough_err_sys(err, errno, "store %s/format", store->home);
    text[got] = '\0';
    return 1;
}

static int format_write(const struct bough_store *store, const char *xattr, struct bough_err *err)
{
    char text[64];
    int size = snprintf(text, sizeof text, "bough store 1\nxattr %s\n", xattr);
    int fd BOUGH_CLEANUP_FD =
        openat(store->home_fd, "format.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || BOUGH_RETRY(write(fd, text, (size_t)size)) != size || fsync(fd) ||
        renameat(store->home_fd, "format.new", store->home_fd, "format")) {
        int sys = errno == 0 ? EIO : errno;
        return sys == ENOSPC || sys == EDQUOT
                   ? db_no_space(store, sys, err)
                   : bough_err_sys(err, sys, "store %s: cannot write format", store->home);
    }
    return 0;
}

static int format_check(const struct bough_store *store, const char *text, const char *xattr,
                        struct bough_err *err)
{
    long version;
    char kind[16];
    if (sscanf(text, "bough store %ld\n", &version) != 1)
        return bough_err_set(err, BOUGH_ERR_corrupt, "store %s/format: not written by bough",
                             store->home);
    if (version != 1)
        return bough_err_set(err, BOUGH_ERR_unsupported,
                             "store %s: format %ld, made by a newer bough", store->home, version);
    if (sscanf(text, "bough store 1\nxattr %15s\n", kind) != 1 ||
        (strcmp(kind, "trusted") != 0 && strcmp(kind, "user") != 0))
        return bough_err_set(err, BOUGH_ERR_corrupt, "store %s/format: damaged", store->home);
    if (strcmp(kind, xattr) == 0)
        return 0;
    bool by_root = strcmp(kind, "trusted") == 0;
    return bough_err_set(err, BOUGH_ERR_denied,
                         "store %s: made by %s (xattr %s), of no use to %s; set BOUGH_HOME to"
                         " another directory",
                         store->home, by_root ? "root" : "an ordinary user", kind,
                         by_root ? "an ordinary user" : "root");
}

static int home_format(struct bough_store *store, const char *xattr, struct bough_err *err)
{
    char text[256];
    int found = format_read(store, text, sizeof text, err);
    if (found == 0) {
        if (home_check_empty(store, err))
            return -1;
        if (fchmod(store->home_fd, 0700))
            return bough_err_sys(err, errno, "store %s: chmod 700", store->home);
        /* Two processes may be making the store at this moment. */
        if (bough_commit_lock(store, LOCK_EX, err))
            return -1;
        found = format_read(store, text, sizeof text, err);
        if (found == 0 && format_write(store, xattr, err) == 0)
            found = format_read(store, text, sizeof text, err);
        else if (found == 0)
            found = -1;
        bough_commit_unlock(store);
    }
    struct stat st;
    if (found > 0 && fstat(store->home_fd, &st) == 0 && st.st_mode & 0022)
        return bough_err_set(err, BOUGH_ERR_denied,
                             "store %s: others may write to it; chmod 700 it first", store->home);
    return found < 0 ? -1 : format_check(store, text, xattr, err);
}

static int home_subdir(const struct bough_store *store, const char *name, struct bough_err *err)
{
    if (mkdirat(store->home_fd, name, 0700) && errno != EEXIST)
        return bough_err_sys(err, errno, "store %s: cannot make %s", store->home, name);
    int fd = openat(store->home_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd >= 0 ? fd : bough_err_sys(err, errno, "store %s/%s", store->home, name);
}

static int home_open(struct bough_store *store, const char *xattr, struct bough_err *err)
{
    if (strcmp(xattr, "trusted") != 0 && strcmp(xattr, "user") != 0)
        return bough_err_set(err, BOUGH_ERR_invalid, "store %s: xattr \"%s\": no such kind",
                             store->home, xattr);
    struct stat st;
    if (home_make(store->home, err))
        return -1;
    if (stat(store->home, &st))
        return bough_err_sys(err, errno, "store %s", store->home);
    if (st.st_uid != geteuid())
        return bough_err_set(err, BOUGH_ERR_denied,
                             "store %s: belongs to uid %u, and we are uid %u; set BOUGH_HOME to a"
                             " directory of your own",
                             store->home, (unsigned)st.st_uid, (unsigned)geteuid());
    if (st.st_mode & S_ISVTX)
        return bough_err_set(err, BOUGH_ERR_invalid,
                             "store %s: a directory that everybody shares; name one inside it",
                             store->home);
    store->home_fd = open(store->home, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->home_fd < 0)
        return bough_err_sys(err, errno, "store %s", store->home);
    store->commit_fd =
        openat(store->home_fd, "commit.lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (store->commit_fd < 0)
        return errno == ENOSPC || errno == EDQUOT
                   ? db_no_space(store, errno, err)
                   : bough_err_sys(err, errno, "store %s: cannot write to it", store->home);
    if (home_format(store, xattr, err))
        return -1;
    store->layers_fd = home_subdir(store, "layers", err);
    if (store->layers_fd < 0)
        return -1;
    store->tmp_fd = home_subdir(store, "tmp", err);
    return store->tmp_fd < 0 ? -1 : 0;
}

/* ---- opening: the database ---- */

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

static bool layers_empty(const struct bough_store *store)
{
    int fd = openat(store->layers_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    bool empty = true;
    for (struct dirent *entry; dir && empty && (entry = readdir(dir));)
        empty = entry->d_name[0] == '.';
    if (dir)
        closedir(dir);
    return empty;
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
    if (version == 0 && !layers_empty(store)) {
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

/* Gives what SQLite says. */
static int db_open(const struct bough_store *store, sqlite3 **db)
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

static int store_start(struct bough_store *store, const char *xattr, struct bough_err *err)
{
    if (home_open(store, xattr, err) || bough_owner_make(store, err))
        return -1;
    int rc = db_open(store, &store->db);
    if (rc != SQLITE_OK)
        return db_fail(store, store->db, rc, err);
    sqlite3_busy_handler(store->db, db_wait, store);
    if (db_make_wal(store, err))
        return -1;
    rc = sqlite3_exec(store->db, "PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON", NULL, NULL,
                      NULL);
    if (rc != SQLITE_OK)
        return db_fail(store, store->db, rc, err);
    sqlite3_wal_hook(store->db, db_wal_grew, store);
    if (db_migrate(store, err) || bough_db_begin(store, err))
        return -1;
    if (bough_db_query(store, BOUGH_SQL_owner_add, err, "s", store->owner) == 1)
        store->owner_id = bough_db_int(store, BOUGH_SQL_owner_add, 0);
    bough_db_end(store, BOUGH_SQL_owner_add);
    if (store->owner_id && bough_db_commit(store, err) == 0)
        return 0;
    bough_db_rollback(store);
    store->owner_id = 0;
    return -1;
}

static char *home_absolute(const char *home)
{
    size_t size = strlen(home);
    while (size > 1 && home[size - 1] == '/')
        size--;
    char *here BOUGH_CLEANUP_FREE = NULL, *path = NULL;
    if (home[0] == '/')
        return strndup(home, size);
    here = getcwd(NULL, 0);
    if (!here || asprintf(&path, "%s/%.*s", here, (int)size, home) < 0)
        return NULL;
    return path;
}

struct bough_store *bough_store_open(const char *home, const char *xattr, struct bough_err *err)
{
    if (!home || !*home) {
        bough_err_set(err, BOUGH_ERR_invalid, "store: no directory named for it");
        return NULL;
    }
    struct bough_store *store = calloc(1, sizeof *store);
    if (!store || !(store->home = home_absolute(home))) {
        bough_err_sys(err, errno, "store %s", home);
        free(store);
        return NULL;
    }
    store->pid = getpid();
    store->home_fd = store->layers_fd = store->tmp_fd = -1;
    store->owner_fd = store->lock_fd = store->commit_fd = -1;
    pthread_mutex_init(&store->mutex, NULL);
    pthread_mutex_init(&store->checkpoint_mutex, NULL);
    if (store_start(store, xattr, err)) {
        bough_store_close(store);
        return NULL;
    }
    return store;
}

void bough_store_close(struct bough_store *store)
{
    if (!store)
        return;
    int *const fds[] = {&store->home_fd,  &store->layers_fd, &store->tmp_fd,
                        &store->owner_fd, &store->lock_fd,   &store->commit_fd};
    bool ours = store->pid == getpid();
    if (ours) {
        if (store->owner_id)
            bough_db_run(store, BOUGH_SQL_owner_del, NULL, "i", store->owner_id);
        for (int i = 0; i < BOUGH_SQL_COUNT; i++)
            sqlite3_finalize(store->stmts[i]);
        sqlite3_close(store->checkpoint_db);
        /* The last one to close would copy a log of any size, with two fsyncs; a small one may as
         * well wait for the next opening. */
        if (store->db && atomic_load(&store->wal_pages) < CHECKPOINT_PAGES)
            sqlite3_db_config(store->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
        sqlite3_close(store->db);
        bough_owner_drop(store);
        pthread_mutex_destroy(&store->mutex);
        pthread_mutex_destroy(&store->checkpoint_mutex);
    }
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        bough_fd_close(fds[i]);
    /* In a forked child database and directory are the parent's, and the mutex may have been locked
     * at the fork: SQLite must not be called, and the memory is left alone. */
    if (!ours)
        return;
    bough_cache_clear(store);
    bough_idmap_clear(&store->leased);
    bough_idmap_clear(&store->handed);
    free(store->recent);
    free(store->steps);
    free(store->home);
    free(store);
}

const char *bough_store_home(const struct bough_store *store)
{
    return store->home;
}

const char *bough_store_owner(const struct bough_store *store)
{
    return store->owner;
}

int bough_store_checkpoint(struct bough_store *store, struct bough_err *err)
{
    if (store->pid != getpid() || atomic_load(&store->wal_pages) < CHECKPOINT_PAGES)
        return 0;
    pthread_mutex_lock(&store->checkpoint_mutex);
    int result = 0;
    int rc = store->checkpoint_db ? SQLITE_OK : db_open(store, &store->checkpoint_db);
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

/* ---- uuids, tags, images in memory ---- */

void bough_image_clear(struct bough_image *image)
{
    free(image->tag);
    free(image->command);
    free(image->result.stdout_data);
    free(image->result.stderr_data);
    *image = (struct bough_image){0};
}

void bough_uuid_make(char uuid[BOUGH_UUID_SIZE])
{
    unsigned char b[16];
    while (getrandom(b, sizeof b, 0) != (ssize_t)sizeof b)
        continue; /* EINTR only: 16 bytes are never given in part */
    b[6] = (unsigned char)((b[6] & 0x0f) | 0x40);
    b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
    static const char hex[] = "0123456789abcdef";
    char *at = uuid;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *at++ = '-';
        *at++ = hex[b[i] >> 4];
        *at++ = hex[b[i] & 15];
    }
    *at = '\0';
}

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

bool bough_uuid_valid(const char *text)
{
    for (int i = 0; i < BOUGH_UUID_SIZE - 1; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash ? text[i] != '-' : !is_hex(text[i]))
            return false;
    }
    return text[BOUGH_UUID_SIZE - 1] == '\0';
}

/* The stored form; any other text becomes one that is no uuid. */
static const char *uuid_lower(char uuid[BOUGH_UUID_SIZE], const char *text)
{
    bool valid = text && bough_uuid_valid(text); /* `text` may be `uuid` itself */
    for (int i = 0; valid && i < BOUGH_UUID_SIZE; i++)
        uuid[i] = (char)(text[i] >= 'A' && text[i] <= 'F' ? text[i] + 32 : text[i]);
    if (!valid)
        uuid[0] = '\0';
    return uuid;
}

static int tag_check(const char *tag, struct bough_err *err)
{
    size_t size = strlen(tag);
    if (size == 0)
        return bough_err_set(err, BOUGH_ERR_invalid, "tag: must not be empty");
    if (size > BOUGH_TAG_MAX)
        return bough_err_set(err, BOUGH_ERR_invalid, "tag \"%.40s...\": longer than %d bytes", tag,
                             BOUGH_TAG_MAX);
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)tag[i] < 0x20 || tag[i] == 0x7f)
            return bough_err_set(err, BOUGH_ERR_invalid, "tag: has a control character in it");
    if (bough_uuid_valid(tag))
        return bough_err_set(err, BOUGH_ERR_invalid,
                             "tag \"%s\": looks like a uuid and could never be found", tag);
    return 0;
}

/* ---- committing ---- */

enum {
    FLAG_RESULT = 1,
    FLAG_TIMED_OUT = 2,
    FLAG_OOM = 4,
};

static int64_t clock_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static int image_insert(struct bough_store *store, const struct bough_image *image,
                        int64_t parent_seq, int64_t *seq, struct bough_err *err)
{
    const struct bough_result *r = &image->result;
    int64_t flags = (r->present ? FLAG_RESULT : 0) | (r->timed_out ? FLAG_TIMED_OUT : 0) |
                    (r->oom ? FLAG_OOM : 0);
    /* An empty blob is not NULL, which means "not captured". */
    const void *out = r->has_stdout ? (r->stdout_size ? r->stdout_data : "") : NULL;
    const void *errout = r->has_stderr ? (r->stderr_size ? r->stderr_data : "") : NULL;
    int step = bough_db_query(store, BOUGH_SQL_image_add, err, "szzssiiiiiidddiiibb", image->uuid,
                              parent_seq, image->layer, image->origin, image->command, image->size,
                              image->created_us, store->owner_id, flags, (int64_t)r->exit_code,
                              (int64_t)r->signal, r->elapsed_time, r->user_time, r->system_time,
                              r->max_rss, r->stdout_dropped, r->stderr_dropped, out, r->stdout_size,
                              errout, r->stderr_size);
    if (step == 1)
        *seq = bough_db_int(store, BOUGH_SQL_image_add, 0);
    bough_db_end(store, BOUGH_SQL_image_add);
    return step == 1 ? 0 : -1;
}

/* Says what a refused foreign key or a double uuid means. */
static int insert_explain(struct bough_store *store, const struct bough_image *image,
                          int64_t new_layer, int64_t below, struct bough_err *err)
{
    switch (sqlite3_extended_errcode(store->db)) {
    case SQLITE_CONSTRAINT_FOREIGNKEY:
        return bough_err_set(err, BOUGH_ERR_state, "store %s: image %s: layer %lld is gone",
                             store->home, image->uuid, (long long)below);
    case SQLITE_CONSTRAINT_UNIQUE:
        return bough_err_set(err, BOUGH_ERR_exists, "store %s: image %s: there already",
                             store->home, image->uuid);
    case SQLITE_CONSTRAINT_PRIMARYKEY:
    case SQLITE_CONSTRAINT_ROWID:
        return bough_err_set(err, BOUGH_ERR_exists, "store %s: layer %lld: there already",
                             store->home, (long long)new_layer);
    default:
        return -1;
    }
}

static int commit_rows(struct bough_store *store, const struct bough_image *image,
                       const struct bough_node *node, int64_t bytes, int64_t files, int64_t *seq,
                       struct bough_err *err)
{
    int64_t parent_seq = 0;
    if (image->parent[0]) {
        int step = bough_db_query(store, BOUGH_SQL_image_seq, err, "s", image->parent);
        if (step == 1)
            parent_seq = bough_db_int(store, BOUGH_SQL_image_seq, 0);
        bough_db_end(store, BOUGH_SQL_image_seq);
        if (step == 0)
            bough_err_set(err, BOUGH_ERR_state, "store %s: image %s: its parent %s is gone",
                          store->home, image->uuid, image->parent);
        if (step != 1)
            return -1;
    }
    int step = 0;
    if (node->id)
        step = bough_db_run(store, BOUGH_SQL_layer_add, err, "iziiii", node->id, node->parent,
                            (int64_t)node->level, bytes, files, image->created_us);
    if (step < 0)
        return insert_explain(store, image, node->id, node->parent, err);
    if (image_insert(store, image, parent_seq, seq, err))
        return insert_explain(store, image, node->id, image->layer, err);
    if (image->tag)
        return bough_db_run(store, BOUGH_SQL_tag_add, err, "si", image->tag, *seq) < 0 ? -1 : 0;
    return 0;
}

static int commit_all(struct bough_store *store, const struct bough_image *image,
                      const struct bough_node *node, int64_t bytes, int64_t files,
                      struct bough_err *err)
{
    int64_t seq = 0;
    if (bough_db_begin(store, err))
        return -1;
    if (commit_rows(store, image, node, bytes, files, &seq, err) ||
        (node->id && bough_store_seal(store, node->id, err))) {
        bough_db_rollback(store);
        return -1;
    }
    if (bough_db_commit(store, err)) {
        bough_db_rollback(store);
        if (node->id) {
            char name[BOUGH_NAME_SIZE];
            snprintf(name, sizeof name, "%lld", (long long)node->id);
            renameat(store->layers_fd, name, store->owner_fd, name);
        }
        return -1;
    }
    if (node->id)
        bough_cache_add(store, node);
    bough_store_note(store, seq);
    return 0;
}

static int commit_check(struct bough_image *image, int64_t new_layer, int64_t parent_layer,
                        struct bough_err *err)
{
    if (!image->uuid[0])
        bough_uuid_make(image->uuid);
    if (!bough_uuid_valid(image->uuid))
        return bough_err_set(err, BOUGH_ERR_invalid, "image \"%.40s\": not a uuid", image->uuid);
    if (image->parent[0] && !bough_uuid_valid(image->parent))
        return bough_err_set(err, BOUGH_ERR_invalid, "image %s: parent \"%.40s\": not a uuid",
                             image->uuid, image->parent);
    if (image->disposable)
        return bough_err_set(err, BOUGH_ERR_invalid, "image %s: disposable ones are never stored",
                             image->uuid);
    if (new_layer < 0 || parent_layer < 0 || (new_layer > 0 && image->layer != new_layer))
        return bough_err_set(err, BOUGH_ERR_invalid,
                             "image %s: layer %lld is not the new layer %lld", image->uuid,
                             (long long)image->layer, (long long)new_layer);
    uuid_lower(image->uuid, image->uuid);
    uuid_lower(image->parent, image->parent);
    return image->tag ? tag_check(image->tag, err) : 0;
}

int bough_store_commit(struct bough_store *store, struct bough_image *image, int64_t new_layer,
                       int64_t parent_layer, int64_t bytes, int64_t files, struct bough_err *err)
{
    if (commit_check(image, new_layer, parent_layer, err) || bough_store_enter(store, err))
        return -1;
    if (image->created_us == 0) {
        int64_t now = clock_us();
        image->created_us = now > store->last_us ? now : store->last_us + 1;
    }
    if (image->created_us > store->last_us)
        store->last_us = image->created_us;
    bool base = parent_layer == 0 && strcmp(image->origin, "run") != 0;
    struct bough_node node = {
        .id = new_layer, .parent = parent_layer, .level = base ? BOUGH_LEVEL_BASE : 0};
    if (new_layer > 0)
        image->size = bytes;
    /* Without a new directory there is nothing that a sweep could take for an orphan. */
    int result = new_layer > 0 ? bough_commit_lock(store, LOCK_SH, err) : 0;
    if (result == 0) {
        result = commit_all(store, image, &node, bytes, files, err);
        if (new_layer > 0)
            bough_commit_unlock(store);
    }
    bough_store_leave(store);
    return result;
}

/* ---- finding ---- */

enum {
    COLUMN_SEQ,
    COLUMN_OWNER,
    COLUMN_UUID,
    COLUMN_PARENT,
    COLUMN_ORIGIN,
    COLUMN_COMMAND,
    COLUMN_LAYER,
    COLUMN_SIZE,
    COLUMN_CREATED,
    COLUMN_FLAGS,
    COLUMN_EXIT_CODE,
    COLUMN_SIGNAL,
    COLUMN_ELAPSED,
    COLUMN_USER_TIME,
    COLUMN_SYSTEM_TIME,
    COLUMN_MAX_RSS,
    COLUMN_OUT_DROPPED,
    COLUMN_ERR_DROPPED,
    COLUMN_OUT_SIZE,
    COLUMN_ERR_SIZE,
    COLUMN_OUT,
    COLUMN_ERR,
    COLUMN_TAG,
};

static void column_copy(sqlite3_stmt *stmt, int column, char *to, size_t size)
{
    const char *text = (const char *)sqlite3_column_text(stmt, column);
    snprintf(to, size, "%s", text ? text : "");
}

static int column_dup(sqlite3_stmt *stmt, int column, char **to)
{
    const char *text = (const char *)sqlite3_column_text(stmt, column);
    *to = text ? strdup(text) : NULL;
    return text && !*to ? -1 : 0;
}

/* Output always ends in a NUL that is not counted. */
static int column_output(sqlite3_stmt *stmt, int column, int size_column, bool *has, char **data,
                         size_t *size)
{
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

static int image_read(sqlite3_stmt *stmt, struct bough_image *image)
{
    *image = (struct bough_image){0};
    column_copy(stmt, COLUMN_UUID, image->uuid, sizeof image->uuid);
    column_copy(stmt, COLUMN_PARENT, image->parent, sizeof image->parent);
    column_copy(stmt, COLUMN_ORIGIN, image->origin, sizeof image->origin);
    image->layer = sqlite3_column_int64(stmt, COLUMN_LAYER);
    image->size = sqlite3_column_int64(stmt, COLUMN_SIZE);
    image->created_us = sqlite3_column_int64(stmt, COLUMN_CREATED);
    int64_t flags = sqlite3_column_int64(stmt, COLUMN_FLAGS);
    struct bough_result *r = &image->result;
    r->present = (flags & FLAG_RESULT) != 0;
    r->timed_out = (flags & FLAG_TIMED_OUT) != 0;
    r->oom = (flags & FLAG_OOM) != 0;
    r->exit_code = sqlite3_column_int(stmt, COLUMN_EXIT_CODE);
    r->signal = sqlite3_column_int(stmt, COLUMN_SIGNAL);
    r->elapsed_time = sqlite3_column_double(stmt, COLUMN_ELAPSED);
    r->user_time = sqlite3_column_double(stmt, COLUMN_USER_TIME);
    r->system_time = sqlite3_column_double(stmt, COLUMN_SYSTEM_TIME);
    r->max_rss = sqlite3_column_int64(stmt, COLUMN_MAX_RSS);
    r->stdout_dropped = sqlite3_column_int64(stmt, COLUMN_OUT_DROPPED);
    r->stderr_dropped = sqlite3_column_int64(stmt, COLUMN_ERR_DROPPED);
    if (column_dup(stmt, COLUMN_COMMAND, &image->command) == 0 &&
        column_dup(stmt, COLUMN_TAG, &image->tag) == 0 &&
        column_output(stmt, COLUMN_OUT, COLUMN_OUT_SIZE, &r->has_stdout, &r->stdout_data,
                      &r->stdout_size) == 0 &&
        column_output(stmt, COLUMN_ERR, COLUMN_ERR_SIZE, &r->has_stderr, &r->stderr_data,
                      &r->stderr_size) == 0)
        return 0;
    bough_image_clear(image);
    return -1;
}

/* Makes sure that gc of another process leaves the image alone: 1 it is there, 0 gone, -1. */
static int image_lease(struct bough_store *store, int64_t seq, int64_t owner, const char *uuid,
                       struct bough_err *err)
{
    if (owner != store->owner_id && !bough_idmap_get(&store->leased, seq)) {
        if (bough_db_begin(store, err))
            return -1;
        int there = bough_db_query(store, BOUGH_SQL_image_live, err, "s", uuid);
        bough_db_end(store, BOUGH_SQL_image_live);
        int step = 0;
        if (there == 1)
            step = bough_db_run(store, BOUGH_SQL_lease_add, err, "ii", seq, store->owner_id);
        if (there != 1 || step < 0 || bough_db_commit(store, err)) {
            bough_db_rollback(store);
            return there == 0 ? 0 : -1;
        }
        bough_idmap_put(&store->leased, seq, 1); /* without memory: a lease written twice */
    }
    bough_store_note(store, seq);
    return 1;
}

/* Looks a uuid or a tag up and leases what it finds: 1, 0 or -1. */
static int find_take(struct bough_store *store, const char *ref, int64_t *seq, char *uuid,
                     int64_t *layer, struct bough_err *err)
{
    bool by_uuid = bough_uuid_valid(ref);
    enum bough_sql which = by_uuid ? BOUGH_SQL_find_uuid : BOUGH_SQL_find_tag;
    char lower[BOUGH_UUID_SIZE];
    int step = bough_db_query(store, which, err, "s", by_uuid ? uuid_lower(lower, ref) : ref);
    if (step != 1)
        return step;
    *seq = bough_db_int(store, which, 0);
    int64_t owner = bough_db_int(store, which, 1);
    snprintf(uuid, BOUGH_UUID_SIZE, "%s", bough_db_text(store, which, 2));
    *layer = bough_db_int(store, which, 3);
    bough_db_end(store, which);
    return image_lease(store, *seq, owner, uuid, err);
}

int bough_store_find(struct bough_store *store, const char *ref, char uuid[BOUGH_UUID_SIZE],
                     int64_t *layer, struct bough_err *err)
{
    if (bough_store_enter(store, err))
        return -1;
    int64_t seq;
    int found = find_take(store, ref, &seq, uuid, layer, err);
    bough_store_leave(store);
    return found;
}

static bool quick(struct bough_store *store, const char *uuid, int64_t *layer, int64_t **stack,
                  int64_t *count, int64_t *fresh)
{
    struct bough_err err;
    char lower[BOUGH_UUID_SIZE];
    if (store->next_id >= store->end_id ||
        bough_db_query(store, BOUGH_SQL_find_uuid, &err, "s", uuid_lower(lower, uuid)) != 1)
        return false;
    int64_t seq = bough_db_int(store, BOUGH_SQL_find_uuid, 0);
    int64_t owner = bough_db_int(store, BOUGH_SQL_find_uuid, 1);
    *layer = bough_db_int(store, BOUGH_SQL_find_uuid, 3);
    bough_db_end(store, BOUGH_SQL_find_uuid);
    if (owner != store->owner_id && !bough_idmap_get(&store->leased, seq))
        return false; /* a lease would have to be written */
    bough_store_note(store, seq);
    *count = bough_stack_take(store, *layer, stack, &err);
    if (*count < 0)
        return false;
    *fresh = store->next_id++;
    return true;
}

bool bough_store_quick(struct bough_store *store, const char *uuid, int64_t *layer, int64_t **stack,
                       int64_t *count, int64_t *fresh)
{
    if (store->pid != getpid() || pthread_mutex_trylock(&store->mutex) != 0)
        return false;
    bool done = quick(store, uuid, layer, stack, count, fresh);
    bough_store_leave(store);
    return done;
}

static int image_get(struct bough_store *store, const char *ref, struct bough_image *out,
                     struct bough_err *err)
{
    int64_t seq, layer;
    char uuid[BOUGH_UUID_SIZE];
    int found = find_take(store, ref, &seq, uuid, &layer, err);
    if (found != 1)
        return found;
    /* Leased now, so the row cannot go. */
    int step = bough_db_query(store, BOUGH_SQL_image_get, err, "is", seq, ref);
    if (step == 1 && image_read(store->stmts[BOUGH_SQL_image_get], out))
        step = bough_err_sys(err, ENOMEM, "image %s", uuid);
    bough_db_end(store, BOUGH_SQL_image_get);
    return step;
}

int bough_store_get(struct bough_store *store, const char *ref, struct bough_image *out,
                    struct bough_err *err)
{
    *out = (struct bough_image){0};
    if (bough_store_enter(store, err))
        return -1;
    int found = image_get(store, ref, out, err);
    bough_store_leave(store);
    return found;
}

/* ---- listing ---- */

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
    sql_add(sql, " ORDER BY t.seq DESC LIMIT 1)" BOUGH_IMAGE_FROM " WHERE i.gone=0");
    if (f->tag || f->tag_glob || f->tagged) {
        sql_add(sql, " AND i.seq IN (SELECT t.image FROM tags t WHERE 1");
        sql_add(sql, f->tag ? " AND t.tag=?1" : "");
        sql_add(sql, f->tag_glob ? " AND t.tag GLOB ?2" : "");
        sql_add(sql, ")");
    }
    if (f->parent)
        sql_add(sql, " AND i.parent=(SELECT seq FROM images WHERE uuid=?3)");
    sql_add(sql, f->since_us ? " AND i.created>=?4" : "");
    sql_add(sql, f->before_us ? " AND i.created<?5" : "");
    sql_add(sql,
            f->oldest_first ? " ORDER BY i.created,i.seq" : " ORDER BY i.created DESC,i.seq DESC");
    sql_add(sql, " LIMIT ?6 OFFSET ?7");
}

static int list_bind(sqlite3_stmt *stmt, const struct bough_filter *f, char *parent)
{
    int rc = SQLITE_OK;
    if (f->tag)
        rc = sqlite3_bind_text(stmt, 1, f->tag, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK && f->tag_glob)
        rc = sqlite3_bind_text(stmt, 2, f->tag_glob, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK && f->parent)
        rc = sqlite3_bind_text(stmt, 3, uuid_lower(parent, f->parent), -1, SQLITE_STATIC);
    if (rc == SQLITE_OK && f->since_us)
        rc = sqlite3_bind_int64(stmt, 4, f->since_us);
    if (rc == SQLITE_OK && f->before_us)
        rc = sqlite3_bind_int64(stmt, 5, f->before_us);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_int64(stmt, 6, f->limit > 0 ? f->limit : -1);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_int64(stmt, 7, f->offset > 0 ? f->offset : 0);
    return rc;
}

static void images_free(struct bough_image *list, long count)
{
    for (long i = 0; i < count; i++)
        bough_image_clear(&list[i]);
    free(list);
}

static long list_read(struct bough_store *store, sqlite3_stmt *stmt, struct bough_image **out,
                      struct bough_err *err)
{
    long count = 0, size = 0;
    struct bough_image *list = NULL;
    int rc;
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        if (count == size) {
            size = size ? size * 2 : 16;
            struct bough_image *grown = reallocarray(list, (size_t)size, sizeof *list);
            if (!grown) {
                rc = SQLITE_NOMEM;
                break;
            }
            list = grown;
        }
        if (image_read(stmt, &list[count])) {
            rc = SQLITE_NOMEM;
            break;
        }
        count++;
    }
    if (rc != SQLITE_DONE) {
        images_free(list, count);
        return db_fail(store, store->db, rc, err);
    }
    *out = list;
    return count;
}

long bough_store_list(struct bough_store *store, const struct bough_filter *filter,
                      struct bough_image **out, struct bough_err *err)
{
    static const struct bough_filter everything;
    struct sql_buffer sql = {.size = 0};
    char parent[BOUGH_UUID_SIZE];
    *out = NULL;
    if (!filter)
        filter = &everything;
    list_sql(filter, &sql);
    if (bough_store_enter(store, err))
        return -1;
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(store->db, sql.text, -1, &stmt, NULL);
    if (rc == SQLITE_OK)
        rc = list_bind(stmt, filter, parent);
    long count =
        rc == SQLITE_OK ? list_read(store, stmt, out, err) : db_fail(store, store->db, rc, err);
    sqlite3_finalize(stmt);
    bough_store_leave(store);
    return count;
}

/* ---- tags, removal, numbers ---- */

/* The row number of an image that is not removed; 0 and kind not_found when there is none. */
static int64_t image_seq(struct bough_store *store, const char *uuid, struct bough_err *err)
{
    char lower[BOUGH_UUID_SIZE];
    int step = bough_db_query(store, BOUGH_SQL_image_live, err, "s", uuid_lower(lower, uuid));
    int64_t seq = step == 1 ? bough_db_int(store, BOUGH_SQL_image_live, 0) : 0;
    bough_db_end(store, BOUGH_SQL_image_live);
    if (step == 0)
        bough_err_set(err, BOUGH_ERR_not_found, "image %.80s: not in the store", uuid);
    return seq;
}

/* One write transaction around a change to one image. */
static int image_change(struct bough_store *store, const char *uuid, const char *text,
                        int (*change)(struct bough_store *, int64_t, const char *, const char *,
                                      struct bough_err *),
                        struct bough_err *err)
{
    if (bough_store_enter(store, err))
        return -1;
    int result = bough_db_begin(store, err);
    if (result == 0) {
        int64_t seq = image_seq(store, uuid, err);
        result = seq ? change(store, seq, uuid, text, err) : -1;
        if (result == 0)
            result = bough_db_commit(store, err);
        if (result)
            bough_db_rollback(store);
    }
    bough_store_leave(store);
    return result;
}

static int change_tag(struct bough_store *store, int64_t seq, const char *uuid, const char *tag,
                      struct bough_err *err)
{
    (void)uuid;
    return bough_db_run(store, BOUGH_SQL_tag_add, err, "si", tag, seq) < 0 ? -1 : 0;
}

static int change_untag(struct bough_store *store, int64_t seq, const char *uuid,
                        const char *unused, struct bough_err *err)
{
    (void)uuid, (void)unused;
    return bough_db_run(store, BOUGH_SQL_tag_del, err, "i", seq) < 0 ? -1 : 0;
}

static int change_remove(struct bough_store *store, int64_t seq, const char *uuid,
                         const char *unused, struct bough_err *err)
{
    (void)unused;
    int step = bough_db_run(store, BOUGH_SQL_tag_has, err, "i", seq);
    if (step == 1)
        return bough_err_set(err, BOUGH_ERR_state, "image %s: has a tag; untag it first", uuid);
    if (step == 0)
        step = bough_db_run(store, BOUGH_SQL_image_child, err, "i", seq);
    if (step == 1)
        return bough_err_set(err, BOUGH_ERR_state, "image %s: other images were made from it",
                             uuid);
    if (step == 0)
        step = bough_db_run(store, BOUGH_SQL_image_hide, err, "i", seq);
    return step < 0 ? -1 : 0;
}

int bough_store_tag(struct bough_store *store, const char *uuid, const char *tag,
                    struct bough_err *err)
{
    return tag_check(tag, err) ? -1 : image_change(store, uuid, tag, change_tag, err);
}

int bough_store_untag(struct bough_store *store, const char *uuid, struct bough_err *err)
{
    return image_change(store, uuid, NULL, change_untag, err);
}

int bough_store_remove(struct bough_store *store, const char *uuid, struct bough_err *err)
{
    return image_change(store, uuid, NULL, change_remove, err);
}

int bough_store_info(struct bough_store *store, struct bough_store_info *out, struct bough_err *err)
{
    *out = (struct bough_store_info){0};
    if (bough_store_enter(store, err))
        return -1;
    int step = bough_db_query(store, BOUGH_SQL_counts, err, "");
    if (step == 1) {
        out->images = (long)bough_db_int(store, BOUGH_SQL_counts, 0);
        out->tags = (long)bough_db_int(store, BOUGH_SQL_counts, 1);
        out->layers = (long)bough_db_int(store, BOUGH_SQL_counts, 2);
        out->stand_ins = (long)bough_db_int(store, BOUGH_SQL_counts, 3);
        out->bytes = bough_db_int(store, BOUGH_SQL_counts, 4);
    }
    bough_db_end(store, BOUGH_SQL_counts);
    bough_store_leave(store);
    return step < 0 ? -1 : 0;
}
