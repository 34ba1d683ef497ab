#define _GNU_SOURCE
#include "blob.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "../sys.h"

#define DIGEST_SIZE 64
#define UPLOAD_SECONDS (24 * 60 * 60)
#define LOCK_WAIT_NS 10000000000LL

/* ---- errors ---- */

/* Only the descriptor is passed around; its path comes from the kernel. */
static int blobs_fail(int blobs, int sys, const char *what, struct bough_err *err)
{
    char link[40], path[300] = "blobs";
    snprintf(link, sizeof link, "/proc/self/fd/%d", blobs);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size > 0)
        path[size] = '\0';
    return bough_err_sys(err, sys, "store: %s/%s", path, what);
}

/* ---- the directory ---- */

static int blobs_make(int blobs, struct bough_err *err)
{
    /* They are made in this order: with the last one there all are. */
    if (faccessat(blobs, "ff", F_OK, 0) == 0)
        return 0;
    for (unsigned i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof name, "%02x", i);
        if (mkdirat(blobs, name, 0700) && errno != EEXIST)
            return blobs_fail(blobs, errno, name, err);
    }
    return 0;
}

int bough_blobs_open(const char *home, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int top = open(home, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (top < 0)
        return bough_err_sys(err, errno, "store %s", home);
    if (mkdirat(top, "blobs", 0700) && errno != EEXIST)
        return bough_err_sys(err, errno, "store %s: cannot make blobs", home);
    BOUGH_CLEANUP_FD int blobs =
        openat(top, "blobs", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (blobs < 0)
        return bough_err_sys(err, errno, "store %s/blobs", home);
    return blobs_make(blobs, err) ? -1 : bough_steal_fd(&blobs);
}

int bough_blobs_lock(int blobs, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int fd =
        openat(blobs, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return blobs_fail(blobs, errno, "lock", err);
    int64_t start = bough_now_ns();
    for (unsigned pause_us = 20; BOUGH_RETRY(flock(fd, LOCK_SH | LOCK_NB));) {
        if (errno != EWOULDBLOCK)
            return blobs_fail(blobs, errno, "lock", err);
        if (bough_now_ns() - start > LOCK_WAIT_NS)
            return bough_err_set(err, BOUGH_ERR_busy,
                                 "store: another process has been sweeping blobs for 10 s");
        usleep(pause_us);
        pause_us = pause_us < 5000 ? pause_us * 2 : pause_us;
    }
    return bough_steal_fd(&fd);
}

/* ---- names ---- */

bool bough_blob_digest_valid(const char *text)
{
    return strspn(text, "0123456789abcdef") == DIGEST_SIZE && text[DIGEST_SIZE] == '\0';
}

void bough_blob_name(char name[BOUGH_BLOB_NAME], const char *digest, int64_t mode, int64_t uid,
                     int64_t gid, int64_t mtime_ns)
{
    snprintf(name, BOUGH_BLOB_NAME, "%.2s/%s-%llo-%lld-%lld-%lld", digest, digest,
             (unsigned long long)mode, (long long)uid, (long long)gid, (long long)mtime_ns);
}

void bough_blob_upload_name(char name[BOUGH_BLOB_NAME], const char *digest)
{
    snprintf(name, BOUGH_BLOB_NAME, "%.2s/%s", digest, digest);
}

bool bough_blob_has(int blobs, const char *name)
{
    return faccessat(blobs, name, F_OK, AT_EACCESS | AT_SYMLINK_NOFOLLOW) == 0;
}

/* Not every pooled file can be read: an ordinary user's store holds files of its other ids too. */
static bool blob_readable(int blobs, const char *name)
{
    return faccessat(blobs, name, R_OK, AT_EACCESS) == 0;
}

static DIR *blobs_dir(int blobs, const char *name)
{
    int fd = openat(blobs, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir)
        bough_fd_close(&fd);
    return dir;
}

int bough_blob_find(int blobs, const char *digest, char name[BOUGH_BLOB_NAME],
                    struct bough_err *err)
{
    if (!bough_blob_digest_valid(digest))
        return bough_err_set(err, BOUGH_ERR_invalid,
                             "digest \"%.80s\": not 64 hexadecimal digits in lower case", digest);
    bough_blob_upload_name(name, digest);
    if (blob_readable(blobs, name))
        return 1;
    char part[3] = {digest[0], digest[1], '\0'};
    DIR *dir = blobs_dir(blobs, part);
    if (!dir)
        return blobs_fail(blobs, errno, part, err);
    int found = 0;
    for (struct dirent *entry; !found && (entry = readdir(dir));) {
        if (strncmp(entry->d_name, digest, DIGEST_SIZE) != 0)
            continue;
        int size = snprintf(name, BOUGH_BLOB_NAME, "%s/%s", part, entry->d_name);
        found = size < BOUGH_BLOB_NAME && blob_readable(blobs, name);
    }
    closedir(dir);
    return found;
}

/* ---- sweeping ---- */

/* One name in a directory of the pool. A file may have two: its own, and that of an upload. */
struct pooled {
    ino_t inode;
    bool upload;
    char name[BOUGH_BLOB_NAME];
};

struct pooled_list {
    struct pooled *names;
    size_t count, size;
};

static int pooled_compare(const void *a, const void *b)
{
    const struct pooled *x = a, *y = b;
    return (x->inode > y->inode) - (x->inode < y->inode);
}

/* The names that are ours; whatever else is there is left alone. */
static int pooled_read(int dir_fd, struct pooled_list *list)
{
    DIR *dir = blobs_dir(dir_fd, ".");
    if (!dir)
        return -1;
    int result = 0;
    list->count = 0;
    for (struct dirent *entry; result == 0 && (entry = readdir(dir));) {
        const char *name = entry->d_name;
        bool ours = strspn(name, "0123456789abcdef") == DIGEST_SIZE &&
                    (name[DIGEST_SIZE] == '\0' || name[DIGEST_SIZE] == '-');
        if (!ours || strlen(name) >= sizeof list->names->name)
            continue;
        if (list->count == list->size) {
            size_t size = list->size ? list->size * 2 : 64;
            struct pooled *names = reallocarray(list->names, size, sizeof *names);
            if (!names) {
                result = -1;
                break;
            }
            list->names = names;
            list->size = size;
        }
        struct pooled *to = &list->names[list->count++];
        to->inode = entry->d_ino;
        to->upload = name[DIGEST_SIZE] == '\0';
        strcpy(to->name, name);
    }
    int sys = errno;
    closedir(dir);
    errno = sys;
    return result;
}

/* Looks at the `count` names of one file. */
static void pooled_judge(int dir_fd, const struct pooled *names, size_t count, bool dry,
                         int64_t *removed, int64_t *bytes)
{
    struct stat st;
    struct timespec now;
    if (fstatat(dir_fd, names[0].name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode) ||
        clock_gettime(CLOCK_REALTIME, &now))
        return;
    bool used = st.st_nlink > count;
    bool young = st.st_ctim.tv_sec > now.tv_sec - UPLOAD_SECONDS;
    bool upload = false;
    for (size_t i = 0; i < count; i++)
        upload = upload || names[i].upload;
    bool keep = used || (upload && young);
    for (size_t i = 0; i < count; i++)
        if (!dry && (!keep || (names[i].upload && !young)))
            unlinkat(dir_fd, names[i].name, 0);
    if (!keep) {
        ++*removed;
        *bytes += (int64_t)st.st_blocks * 512;
    }
}

static int sweep_part(int blobs, const char *part, struct pooled_list *list, bool dry,
                      int64_t *count, int64_t *bytes)
{
    BOUGH_CLEANUP_FD int fd = openat(blobs, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || pooled_read(fd, list))
        return -1;
    if (list->count)
        qsort(list->names, list->count, sizeof *list->names, pooled_compare);
    for (size_t i = 0, next; i < list->count; i = next) {
        for (next = i + 1; next < list->count; next++)
            if (list->names[next].inode != list->names[i].inode)
                break;
        pooled_judge(fd, &list->names[i], next - i, dry, count, bytes);
    }
    return 0;
}

int bough_blobs_sweep(int blobs, bool dry, int64_t *count, int64_t *bytes, struct bough_err *err)
{
    *count = *bytes = 0;
    BOUGH_CLEANUP_FD int lock =
        openat(blobs, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (lock < 0)
        return blobs_fail(blobs, errno, "lock", err);
    struct pooled_list list = {0};
    int result = 0;
    /* Locked anew for each directory, so that nobody waits long. */
    for (unsigned i = 0; result == 0 && i < 256; i++) {
        char part[8];
        snprintf(part, sizeof part, "%02x", i);
        if (BOUGH_RETRY(flock(lock, LOCK_EX | LOCK_NB))) {
            result = errno == EWOULDBLOCK ? 1 : blobs_fail(blobs, errno, "lock", err);
            break;
        }
        if (sweep_part(blobs, part, &list, dry, count, bytes))
            result = blobs_fail(blobs, errno, part, err);
        flock(lock, LOCK_UN);
    }
    free(list.names);
    return result < 0 ? -1 : 0;
}
