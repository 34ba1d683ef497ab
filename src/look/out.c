#define _GNU_SOURCE
#include "out.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "../sys.h"

enum { WAIT_NS = 50 * 1000 * 1000, SHOW_NS = 100 * 1000 * 1000, TICKS = 16 };

int bough_out_start(struct bough_out *o, int fd, int report, struct bough_err *err)
{
    *o = (struct bough_out){.fd = fd, .report = report, .room = BOUGH_OUT_BYTES};
    o->buf = malloc(o->room);
    if (!o->buf)
        return bough_err_sys(err, ENOMEM, "write output");
    o->flushed_ns = o->shown_ns = bough_now_ns();
    return 0;
}

void bough_out_free(struct bough_out *o)
{
    free(o->buf);
    *o = (struct bough_out){.fd = -1, .report = -1};
}

static void wait_writable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    (void)poll(&p, 1, -1);
}

static int write_all(struct bough_out *o, const char *data, size_t size, struct bough_err *err)
{
    while (size) {
        ssize_t n = BOUGH_RETRY(write(o->fd, data, size));
        if (n < 0 && errno == EAGAIN) {
            wait_writable(o->fd);
            continue;
        }
        if (n < 0)
            return bough_err_sys(err, errno, "write output");
        data += n;
        size -= (size_t)n;
        o->written += n;
    }
    return 0;
}

int bough_out_flush(struct bough_out *o, struct bough_err *err)
{
    size_t len = o->len;
    o->len = 0;
    return write_all(o, o->buf, len, err);
}

char *bough_out_room(struct bough_out *o, size_t size, struct bough_err *err)
{
    if (size > o->room - o->len && bough_out_flush(o, err))
        return NULL;
    if (size > o->room) {
        char *bigger = realloc(o->buf, size);
        if (!bigger) {
            bough_err_sys(err, ENOMEM, "write output");
            return NULL;
        }
        o->buf = bigger;
        o->room = size;
    }
    return o->buf + o->len;
}

void bough_out_took(struct bough_out *o, size_t size)
{
    o->len += size;
}

int bough_out_write(struct bough_out *o, const void *data, size_t size, struct bough_err *err)
{
    if (size > o->room - o->len && bough_out_flush(o, err))
        return -1;
    if (size >= o->room)
        return write_all(o, data, size, err);
    memcpy(o->buf + o->len, data, size);
    o->len += size;
    return 0;
}

static bool reader_gone(int fd)
{
    struct pollfd p = {.fd = fd};
    return poll(&p, 1, 0) > 0 && p.revents & (POLLERR | POLLNVAL);
}

static void progress_show(struct bough_out *o, int64_t done)
{
    struct pollfd p = {.fd = o->report, .events = POLLOUT};
    char line[32];
    /* a reader that is busy gets the next one */
    if (poll(&p, 1, 0) <= 0 || !(p.revents & POLLOUT))
        return;
    snprintf(line, sizeof line, "at %lld\n", (long long)done);
    bough_out_line(o->report, line);
}

int bough_out_tick(struct bough_out *o, int64_t done, struct bough_err *err)
{
    if (++o->ticks % TICKS)
        return 0;
    int64_t now = bough_now_ns();
    if (o->report >= 0 && now - o->shown_ns >= SHOW_NS) {
        o->shown_ns = now;
        progress_show(o, done);
    }
    if (now - o->flushed_ns < WAIT_NS)
        return 0;
    o->flushed_ns = now;
    if (o->len)
        return bough_out_flush(o, err);
    return reader_gone(o->fd) ? bough_err_sys(err, EPIPE, "write output") : 0;
}

void bough_out_line(int fd, const char *line)
{
    size_t left = strlen(line);
    while (left) {
        ssize_t n = BOUGH_RETRY(write(fd, line, left));
        if (n < 0 && errno != EAGAIN)
            return;
        if (n < 0) {
            wait_writable(fd);
            continue;
        }
        line += n;
        left -= (size_t)n;
    }
}

void bough_out_failure(int fd, const struct bough_err *err)
{
    char line[sizeof err->msg + 64];
    int n = snprintf(line, sizeof line - 1, "err %s %d %s", bough_err_kind_name(err->kind),
                     err->sys, err->msg);
    size_t len = n < 0 ? 0 : (size_t)n < sizeof line - 1 ? (size_t)n : sizeof line - 2;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[len] = '\n';
    line[len + 1] = '\0';
    bough_out_line(fd, line);
}
