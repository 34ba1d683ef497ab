#define _GNU_SOURCE
#include "spool.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "sys.h"

/* --- on libuv's threads --------------------------------------------------------------------------- */

static int hash_what_is_there(struct bough_spool *spool)
{
    int64_t at = 0;
    for (;;) {
        ssize_t n = BOUGH_RETRY(pread(spool->fd, spool->out, BOUGH_SPOOL_BUFFER, at));
        if (n < 0)
            return bough_err_sys(&spool->work_err, errno, "%s", spool->path);
        if (n == 0)
            break;
        bough_sha256_update(spool->hash, spool->out, (size_t)n);
        at += n;
    }
    spool->size = at;
    return 0;
}

static int work_open(struct bough_spool *spool)
{
    int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    spool->hash = bough_sha256_new();
    if (!spool->hash)
        return bough_err_set(&spool->work_err, BOUGH_ERR_resource, "out of memory");
    spool->fd = (int)BOUGH_RETRY(open(spool->path, flags, 0644));
    struct stat st;
    if (spool->fd < 0 || fstat(spool->fd, &st) < 0)
        return bough_err_sys(&spool->work_err, errno, "%s", spool->path);
    if (!S_ISREG(st.st_mode))
        return bough_err_set(&spool->work_err, BOUGH_ERR_invalid,
                             "%s is not a regular file: give another path", spool->path);
    if (spool->resume)
        return hash_what_is_there(spool);
    if (st.st_size > 0 && ftruncate(spool->fd, 0) < 0)
        return bough_err_sys(&spool->work_err, errno, "%s", spool->path);
    return 0;
}

static int work_write(struct bough_spool *spool)
{
    for (size_t done = 0; done < spool->out_size;) {
        ssize_t n = BOUGH_RETRY(pwrite(spool->fd, spool->out + done, spool->out_size - done,
                                       spool->out_at + (int64_t)done));
        if (n < 0)
            return bough_err_sys(&spool->work_err, errno, "%s", spool->path);
        done += (size_t)n;
    }
    bough_sha256_update(spool->hash, spool->out, spool->out_size);
    return 0;
}

static int work_reset(struct bough_spool *spool)
{
    bough_sha256_free(spool->hash);
    spool->hash = bough_sha256_new();
    if (!spool->hash)
        return bough_err_set(&spool->work_err, BOUGH_ERR_resource, "out of memory");
    if (ftruncate(spool->fd, 0) < 0)
        return bough_err_sys(&spool->work_err, errno, "%s", spool->path);
    return 0;
}

static void spool_work(uv_work_t *req)
{
    static int (*const works[])(struct bough_spool *) = {work_open, work_write, work_reset};
    struct bough_spool *spool = (struct bough_spool *)req;
    works[spool->work](spool);
}

/* --- on the loop's thread ------------------------------------------------------------------------- */

static void spool_after(uv_work_t *req, int status);

static void spool_start(struct bough_spool *spool, enum bough_spool_work work)
{
    spool->work = work;
    spool->work_err.msg[0] = '\0';
    spool->busy = true;
    spool->refs++;
    uv_queue_work(bough_loop_uv(spool->loop), &spool->req, spool_work, spool_after);
}

static void spool_write(struct bough_spool *spool)
{
    char *empty = spool->out;
    spool->out = spool->in;
    spool->out_size = spool->in_size;
    spool->out_at = spool->size - (int64_t)spool->in_size;
    spool->in = empty;
    spool->in_size = 0;
    spool_start(spool, BOUGH_SPOOL_WRITE);
}

static void spool_begin_reset(struct bough_spool *spool)
{
    spool->reset_due = false;
    spool->in_size = 0;
    spool->size = 0;
    spool->err.msg[0] = '\0';
    spool_start(spool, BOUGH_SPOOL_RESET);
}

static void spool_after(uv_work_t *req, int status)
{
    struct bough_spool *spool = (struct bough_spool *)req;
    (void)status; /* nobody cancels it */
    spool->busy = false;
    if (spool->work_err.msg[0]) {
        spool->err = spool->work_err;
        spool->in_size = 0;
    }
    if (spool->closed)
        spool->in_size = 0;
    else if (spool->reset_due && spool->fd >= 0)
        spool_begin_reset(spool);
    else if (spool->in_size > 0)
        spool_write(spool);
    if (!spool->busy && !spool->on_room) {
        free(spool->in);
        free(spool->out);
        spool->in = spool->out = NULL;
    }
    bough_cond_fire(&spool->changed);
    if (spool->on_room)
        spool->on_room(spool->arg);
    bough_spool_unref(spool);
}

struct bough_spool *bough_spool_open(struct bough_loop *loop, const char *path, bool resume,
                                     int64_t max_bytes)
{
    struct bough_spool *spool = calloc(1, sizeof *spool);
    if (!spool)
        return NULL;
    spool->refs = 1;
    spool->loop = loop;
    spool->fd = -1;
    spool->resume = resume;
    spool->max_bytes = max_bytes;
    bough_cond_init(&spool->changed, loop);
    spool->path = strdup(path);
    spool->out = malloc(BOUGH_SPOOL_BUFFER);
    if (!spool->path || !spool->out) {
        bough_spool_unref(spool);
        return NULL;
    }
    spool_start(spool, BOUGH_SPOOL_OPEN);
    return spool;
}

void bough_spool_ref(struct bough_spool *spool)
{
    spool->refs++;
}

void bough_spool_unref(struct bough_spool *spool)
{
    if (--spool->refs > 0)
        return;
    bough_cond_destroy(&spool->changed);
    bough_fd_close(&spool->fd);
    bough_sha256_free(spool->hash);
    free(spool->in);
    free(spool->out);
    free(spool->path);
    free(spool);
}

int bough_spool_put(struct bough_spool *spool, const char *data, size_t size)
{
    if (spool->err.msg[0])
        return -1;
    if (spool->closed)
        return bough_err_set(&spool->err, BOUGH_ERR_closed, "%s: the sink is closed", spool->path);
    if (spool->reset_due || (spool->busy && spool->work != BOUGH_SPOOL_WRITE))
        return 0;
    if (spool->max_bytes >= 0 && (int64_t)size > spool->max_bytes - spool->size)
        return bough_err_set(&spool->err, BOUGH_ERR_resource,
                             "more than the %lld bytes that %s may hold have come",
                             (long long)spool->max_bytes, spool->path);
    if (spool->in_size + size > BOUGH_SPOOL_BUFFER)
        return 0;
    if (!spool->in && !(spool->in = malloc(BOUGH_SPOOL_BUFFER)))
        return bough_err_set(&spool->err, BOUGH_ERR_resource, "out of memory");
    memcpy(spool->in + spool->in_size, data, size);
    spool->in_size += size;
    spool->size += (int64_t)size;
    if (!spool->busy)
        spool_write(spool);
    return 1;
}

void bough_spool_reset(struct bough_spool *spool)
{
    if (spool->closed || spool->fd < 0)
        return;
    if (spool->busy)
        spool->reset_due = true;
    else
        spool_begin_reset(spool);
}

void bough_spool_hex(const struct bough_spool *spool, char hex[BOUGH_SHA256_HEX])
{
    bough_sha256_hex(spool->hash, hex);
}

void bough_spool_close(struct bough_spool *spool)
{
    spool->closed = true;
    spool->in_size = 0;
}
