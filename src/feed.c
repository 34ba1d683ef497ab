#define _GNU_SOURCE
#include "feed.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "sys.h"

/* On libuv's threads. */
static int feed_open(struct bough_feed *feed)
{
    struct stat st;
    feed->fd = (int)BOUGH_RETRY(open(feed->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
    if (feed->fd < 0 || fstat(feed->fd, &st) < 0)
        return bough_err_sys(&feed->work_err, errno, "%s", feed->path);
    if (!S_ISREG(st.st_mode))
        return bough_err_set(&feed->work_err, BOUGH_ERR_invalid,
                             "%s is not a regular file: nothing else can be sent", feed->path);
    int64_t rest = st.st_size > feed->offset ? st.st_size - feed->offset : 0;
    if (feed->size > rest)
        return bough_err_set(&feed->work_err, BOUGH_ERR_invalid,
                             "%s holds %lld bytes from offset %lld, not %lld", feed->path,
                             (long long)rest, (long long)feed->offset, (long long)feed->size);
    if (feed->size < 0)
        feed->size = rest;
    feed->room = feed->size < (int64_t)BOUGH_FEED_BUFFER ? (size_t)feed->size : BOUGH_FEED_BUFFER;
    feed->out = malloc(feed->room + 1); /* nothing is no failure */
    feed->next = malloc(feed->room + 1);
    if (!feed->out || !feed->next)
        return bough_err_set(&feed->work_err, BOUGH_ERR_resource, "out of memory");
    return 0;
}

static void feed_work(uv_work_t *req)
{
    struct bough_feed *feed = (struct bough_feed *)req;
    if (feed->fd < 0 && feed_open(feed) < 0)
        return;
    feed->next_size = 0;
    int64_t rest = feed->size - feed->read_at;
    size_t want = rest < (int64_t)feed->room ? (size_t)rest : feed->room;
    while (feed->next_size < want) {
        ssize_t n =
            BOUGH_RETRY(pread(feed->fd, feed->next + feed->next_size, want - feed->next_size,
                              feed->offset + feed->read_at + (int64_t)feed->next_size));
        if (n < 0) {
            bough_err_sys(&feed->work_err, errno, "%s", feed->path);
            return;
        }
        if (n == 0) {
            bough_err_set(&feed->work_err, BOUGH_ERR_io,
                          "%s became shorter while it was sent: send it again", feed->path);
            return;
        }
        feed->next_size += (size_t)n;
    }
}

static void feed_read(struct bough_feed *feed);

static void feed_swap(struct bough_feed *feed)
{
    char *given = feed->out;
    feed->out = feed->next;
    feed->out_size = feed->next_size;
    feed->out_at = 0;
    feed->next = given;
    feed->next_size = 0;
    if (feed->read_at < feed->size)
        feed_read(feed);
}

static void feed_after(uv_work_t *req, int status)
{
    struct bough_feed *feed = (struct bough_feed *)req;
    (void)status;
    feed->busy = false;
    if (feed->work_err.msg[0]) {
        feed->err = feed->work_err;
    } else if (feed->seeking) {
        feed->seeking = false;
        feed->read_at = feed->at;
        feed->next_size = 0;
        if (feed->read_at < feed->size)
            feed_read(feed);
    } else {
        feed->read_at += (int64_t)feed->next_size;
        if (feed->out_at == feed->out_size)
            feed_swap(feed);
    }
    if (feed->on_ready)
        feed->on_ready(feed->arg);
    bough_feed_unref(feed);
}

static void feed_read(struct bough_feed *feed)
{
    feed->busy = true;
    feed->refs++;
    uv_queue_work(bough_loop_uv(feed->loop), &feed->req, feed_work, feed_after);
}

struct bough_feed *bough_feed_open(struct bough_loop *loop, const char *path, int64_t offset,
                                   int64_t size)
{
    struct bough_feed *feed = calloc(1, sizeof *feed);
    if (!feed)
        return NULL;
    feed->refs = 1;
    feed->loop = loop;
    feed->fd = -1;
    feed->offset = offset;
    feed->size = size;
    feed->path = strdup(path);
    if (!feed->path) {
        bough_feed_unref(feed);
        return NULL;
    }
    return feed;
}

void bough_feed_start(struct bough_feed *feed, void (*on_ready)(void *arg), void *arg)
{
    feed->on_ready = on_ready;
    feed->arg = arg;
    feed_read(feed);
}

void bough_feed_unref(struct bough_feed *feed)
{
    if (--feed->refs > 0)
        return;
    bough_fd_close(&feed->fd);
    free(feed->out);
    free(feed->next);
    free(feed->path);
    free(feed);
}

long bough_feed_take(struct bough_feed *feed, char *data, size_t size)
{
    if (feed->err.msg[0])
        return -2;
    if (feed->at == feed->size)
        return 0;
    if (feed->out_at == feed->out_size || feed->seeking)
        return -1;
    size_t there = feed->out_size - feed->out_at;
    size_t n = there < size ? there : size;
    memcpy(data, feed->out + feed->out_at, n);
    feed->out_at += n;
    feed->at += (int64_t)n;
    if (feed->out_at == feed->out_size && !feed->busy && feed->next_size > 0)
        feed_swap(feed);
    return (long)n;
}

void bough_feed_seek(struct bough_feed *feed, int64_t at)
{
    if (at == feed->at)
        return;
    feed->at = at;
    feed->out_size = feed->out_at = 0;
    if (feed->busy) {
        feed->seeking = true;
    } else {
        feed->next_size = 0;
        feed->read_at = at;
        if (at < feed->size)
            feed_read(feed);
    }
}
