#define _GNU_SOURCE
/* home.c - the directory that a store lives in: making it, its format file, commit.lock.
 *
 * Nothing here knows the database. An owner's own directory below tmp/ is gc.c's. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "store_priv.h"

/* ---- errors ---- */

int bough_home_no_space(const struct bough_store *store, int sys, struct bough_err *err)
{
    bough_err_set(err, BOUGH_ERR_resource, "store %s: %s", store->home,
                  sys == EDQUOT ? "disk quota used up" : "no space left on the device");
    if (err)
        err->sys = sys == EDQUOT ? EDQUOT : ENOSPC;
    return -1;
}

/* ---- commit.lock ---- */

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

/* ---- the directory ---- */

char *bough_home_absolute(const char *home)
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
    static const char *const ours[] = {".",     "..",          "layers",  "tmp",
                                       "blobs", "commit.lock", "bough.db"};
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

/* ---- the format file ---- */

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
                   ? bough_home_no_space(store, sys, err)
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

/* ---- opening ---- */

static int home_subdir(const struct bough_store *store, const char *name, struct bough_err *err)
{
    if (mkdirat(store->home_fd, name, 0700) && errno != EEXIST)
        return bough_err_sys(err, errno, "store %s: cannot make %s", store->home, name);
    int fd = openat(store->home_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd >= 0 ? fd : bough_err_sys(err, errno, "store %s/%s", store->home, name);
}

int bough_home_open(struct bough_store *store, const char *xattr, struct bough_err *err)
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
                   ? bough_home_no_space(store, errno, err)
                   : bough_err_sys(err, errno, "store %s: cannot write to it", store->home);
    if (home_format(store, xattr, err))
        return -1;
    store->layers_fd = home_subdir(store, "layers", err);
    if (store->layers_fd < 0)
        return -1;
    store->tmp_fd = home_subdir(store, "tmp", err);
    return store->tmp_fd < 0 ? -1 : 0;
}

bool bough_home_layers_empty(const struct bough_store *store)
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
