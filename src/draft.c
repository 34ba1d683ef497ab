#define _GNU_SOURCE
#include "draft.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "local/blob.h"
#include "sys.h"

/* ---- places ---- */

int bough_draft_pool(struct bough_stage *stage, struct bough_err *err)
{
    if (stage->blobs < 0)
        stage->blobs = bough_blobs_open(stage->home, err);
    return stage->blobs < 0 ? -1 : 0;
}

int bough_draft_ready(struct bough_stage *stage, struct bough_err *err)
{
    char *path BOUGH_CLEANUP_FREE = NULL;
    if (bough_draft_pool(stage, err))
        return -1;
    if (stage->lock < 0 && (stage->lock = bough_blobs_lock(stage->blobs, err)) < 0)
        return -1;
    if (stage->tmp > 0)
        return 0;
    if (asprintf(&path, "%s/tmp/%s", stage->home, stage->owner) < 0) {
        path = NULL;
        return bough_err_sys(err, ENOMEM, "files");
    }
    int fd BOUGH_CLEANUP_FD = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* 0 says that there is none, and a host may have closed its standard input. */
    int tmp = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (tmp < 0)
        return bough_err_sys(err, errno, "store %s", path);
    stage->tmp = tmp;
    stage->direct = access("/proc/self/fd", X_OK) == 0; /* by which such a file gets its name */
    return 0;
}

/* ---- drafts ---- */

/* The keeper's namespaces give an ordinary user's own ids to the image's root, and root's ids as they are. */
static bool draft_direct(const struct bough_stage *stage, int64_t uid, int64_t gid, int64_t mode,
                         struct bough_draft *draft)
{
    bool root = geteuid() == 0;
    if (!stage->direct || (!root && (uid || gid)))
        return false;
    int fd BOUGH_CLEANUP_FD =
        openat(stage->blobs, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, (mode_t)mode & 0777);
    struct stat st;
    if (fd < 0 || fstat(fd, &st))
        return false;
    uid_t to_uid = root ? (uid_t)uid : geteuid();
    gid_t to_gid = root ? (gid_t)gid : getegid();
    if ((st.st_uid != to_uid || st.st_gid != to_gid) && fchown(fd, to_uid, to_gid))
        return false;
    draft->fd = bough_steal_fd(&fd);
    draft->name[0] = '\0';
    draft->mode = st.st_mode & 07777;
    return true;
}

int bough_draft_open(struct bough_stage *stage, int64_t uid, int64_t gid, int64_t mode,
                     struct bough_draft *draft, struct bough_err *err)
{
    /* What hinders the one way, a full disk say, the other one will tell. */
    if (draft_direct(stage, uid, gid, mode, draft))
        return 0;
    for (;;) {
        uint64_t random = 0;
        while (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
            continue;
        snprintf(draft->name, sizeof draft->name, "b%llu", (unsigned long long)random >> 8);
        draft->fd = openat(stage->tmp, draft->name,
                           O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (draft->fd >= 0)
            return 0;
        if (errno != EEXIST) {
            draft->name[0] = '\0';
            return bough_err_sys(err, errno, "store %s: cannot make a file in tmp", stage->home);
        }
    }
}

static int draft_failed(const struct bough_stage *stage, const char *blob, struct bough_err *err)
{
    return bough_err_sys(err, errno, "store %s: cannot add blobs/%.12s...", stage->home, blob);
}

static int draft_link(struct bough_stage *stage, struct bough_draft *draft, const char *blob,
                      struct bough_err *err)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", draft->fd);
    if (linkat(AT_FDCWD, path, stage->blobs, blob, AT_SYMLINK_FOLLOW) && errno != EEXIST)
        return draft_failed(stage, blob, err);
    bough_fd_close(&draft->fd);
    return 0;
}

int bough_draft_finish(struct bough_stage *stage, struct bough_draft *draft, const char *blob,
                       int64_t mode, int64_t mtime_ns, char staged[32], struct bough_err *err)
{
    if (draft->name[0]) {
        bough_fd_close(&draft->fd);
        snprintf(staged, 32, "%s", draft->name);
        draft->name[0] = '\0';
        return 0;
    }
    int64_t seconds = mtime_ns / 1000000000, rest = mtime_ns % 1000000000;
    if (rest < 0) {
        seconds--;
        rest += 1000000000;
    }
    struct timespec time = {.tv_sec = seconds, .tv_nsec = rest};
    /* Each change is one to the journal: the mode is mostly right from the start. */
    if ((draft->mode != mode && fchmod(draft->fd, (mode_t)mode)) ||
        futimens(draft->fd, (struct timespec[]){time, time}))
        return draft_failed(stage, blob, err);
    return draft_link(stage, draft, blob, err);
}

int bough_draft_upload(struct bough_stage *stage, struct bough_draft *draft, const char *blob,
                       struct bough_err *err)
{
    if (!draft->name[0])
        return draft_link(stage, draft, blob, err);
    if (renameat(stage->tmp, draft->name, stage->blobs, blob))
        return draft_failed(stage, blob, err);
    draft->name[0] = '\0';
    return 0;
}

void bough_draft_drop(struct bough_stage *stage, struct bough_draft *draft)
{
    bough_fd_close(&draft->fd);
    if (draft->name[0])
        unlinkat(stage->tmp, draft->name, 0);
    draft->name[0] = '\0';
}
