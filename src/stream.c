#define _GNU_SOURCE
#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <termios.h>
#include <unistd.h>

#include "sys.h"
#include "writer.h"

static int open_poll(uv_poll_t **poll, struct bough_loop *loop, int fd, void *data,
                     struct bough_err *err)
{
    int rc = bough_poll_open(poll, loop, fd, data);
    return rc < 0 ? bough_err_sys(err, -rc, "stream") : 0;
}

int bough_pipe_open(int ends[2], int ours, struct bough_err *err)
{
    if (pipe2(ends, O_CLOEXEC) < 0)
        return bough_err_sys(err, errno, "stream");
    for (int i = 0; i < 2; i++)
        if (ends[i] < 3) {
            int moved = fcntl(ends[i], F_DUPFD_CLOEXEC, 3);
            int sys = errno;
            close(ends[i]);
            ends[i] = moved;
            if (moved < 0) {
                close(ends[1 - i]);
                return bough_err_sys(err, sys, "stream");
            }
        }
    if (ours >= 0)
        fcntl(ends[ours], F_SETFL, O_NONBLOCK);
    return 0;
}

/* --- output --------------------------------------------------------------------------------------- */

static bool reserve(struct bough_out *out, size_t more)
{
    if (out->size + more <= out->room)
        return true;
    size_t room = out->room ? out->room : 1024;
    while (room < out->size + more)
        room *= 2;
    char *grown = realloc(out->data, room);
    if (!grown)
        return false;
    out->data = grown;
    out->room = room;
    return true;
}

static void write_sink(struct bough_out *out, const char *data, size_t size)
{
    while (size > 0 && !out->err.msg[0]) {
        ssize_t n = bough_write_quietly(out->sink_fd, data, size);
        if (n < 0 && errno == EAGAIN) {
            /* Somebody's non-blocking terminal or pipe: a short wait is all that keeps the bytes whole. */
            struct pollfd p = {.fd = out->sink_fd, .events = POLLOUT};
            poll(&p, 1, 1000);
            continue;
        }
        if (n < 0) {
            bough_err_sys(&out->err, errno, "output%s%s", out->path ? " " : "",
                          out->path ? out->path : "");
            return;
        }
        data += n;
        size -= (size_t)n;
    }
}

static void consume(struct bough_out *out, const char *data, size_t size)
{
    switch (out->sink) {
    case BOUGH_SINK_DISCARD:
        break;
    case BOUGH_SINK_FD:
        write_sink(out, data, size);
        break;
    case BOUGH_SINK_CAPTURE: {
        size_t take = out->limit - out->size < size ? out->limit - out->size : size;
        if (take && !reserve(out, take))
            take = 0;
        if (take)
            memcpy(out->data + out->size, data, take);
        out->size += take;
        out->dropped += (int64_t)(size - take);
        break;
    }
    case BOUGH_SINK_TAKE:
        if (reserve(out, size)) {
            memcpy(out->data + out->size, data, size);
            out->size += size;
        } else {
            out->dropped += (int64_t)size;
        }
        break;
    }
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    bough_out_drain(poll->data);
}

void bough_out_drain(struct bough_out *out)
{
    char chunk[BOUGH_STREAM_CHUNK];
    /* One loop turn reads at most a megabyte, so that a torrent does not starve the others. */
    for (int i = 0; out->fd >= 0 && !out->eof && i < 16; i++) {
        if (out->sink == BOUGH_SINK_TAKE && out->size >= BOUGH_STREAM_CHUNK) {
            uv_poll_stop(out->poll);
            break;
        }
        ssize_t n = BOUGH_RETRY(read(out->fd, chunk, sizeof chunk));
        if (n < 0 && errno == EAGAIN)
            break;
        if (n <= 0)
            out->eof = true;
        else
            consume(out, chunk, (size_t)n);
    }
    if (out->eof) {
        bough_poll_close(&out->poll);
        bough_fd_close(&out->fd);
    }
    if (out->eof || (out->sink == BOUGH_SINK_TAKE && out->size))
        bough_cond_fire(out->changed);
}

void bough_out_finish(struct bough_out *out)
{
    char chunk[BOUGH_STREAM_CHUNK];
    ssize_t n;
    /* No more than can have been written before the end: others may hold the other end and go on writing. */
    int capacity = out->fd >= 0 ? fcntl(out->fd, F_GETPIPE_SZ) : 0;
    size_t left = capacity > 0 ? (size_t)capacity : 2 * BOUGH_STREAM_CHUNK;
    while (out->fd >= 0 && left > 0 &&
           (n = BOUGH_RETRY(read(out->fd, chunk, left < sizeof chunk ? left : sizeof chunk))) > 0) {
        consume(out, chunk, (size_t)n);
        left -= (size_t)n;
    }
    bough_poll_close(&out->poll);
    bough_fd_close(&out->fd);
    out->eof = true;
    bough_cond_fire(out->changed);
}

static int start_output(struct bough_out *out, struct bough_loop *loop, struct bough_err *err)
{
    if (open_poll(&out->poll, loop, out->fd, out, err) < 0)
        return -1;
    uv_poll_start(out->poll, UV_READABLE, on_readable);
    return 0;
}

int bough_out_open(struct bough_out *out, struct bough_loop *loop, struct bough_cond *changed,
                   int *theirs, struct bough_err *err)
{
    int ends[2];
    out->changed = changed;
    if (out->sink == BOUGH_SINK_DISCARD) {
        out->eof = true;
        return 0;
    }
    if (bough_pipe_open(ends, 0, err) < 0)
        return -1;
    out->fd = ends[0];
    *theirs = ends[1];
    return start_output(out, loop, err);
}

int bough_out_over(struct bough_out *out, struct bough_loop *loop, struct bough_cond *changed,
                   int terminal, struct bough_err *err)
{
    out->changed = changed;
    out->fd = terminal;
    return start_output(out, loop, err);
}

void bough_out_taken(struct bough_out *out)
{
    out->size = 0;
    if (out->poll)
        uv_poll_start(out->poll, UV_READABLE, on_readable);
}

int bough_out_settle(struct bough_out *out, bool keep)
{
    if (!out->temp)
        return 0;
    if (!keep || out->err.msg[0])
        unlink(out->temp);
    else if (rename(out->temp, out->path) < 0) {
        bough_err_sys(&out->err, errno, "output %s", out->path);
        unlink(out->temp);
    }
    free(out->temp);
    out->temp = NULL;
    return out->err.msg[0] ? -1 : 0;
}

void bough_out_close(struct bough_out *out)
{
    bough_out_settle(out, false);
    bough_poll_close(&out->poll);
    bough_fd_close(&out->fd);
    bough_fd_close(&out->sink_fd);
    free(out->path);
    out->path = NULL;
    free(out->data);
    out->data = NULL;
    out->size = out->room = 0;
    out->eof = true;
}

/* --- input ---------------------------------------------------------------------------------------- */

static void finish_input(struct bough_in *in)
{
    bough_poll_close(&in->source_poll);
    bough_poll_close(&in->poll);
    bough_fd_close(&in->source_epoll);
    bough_fd_close(&in->fd);
    bough_fd_close(&in->source_fd);
    in->ended = true;
    in->wants = false;
}

/* Nothing more comes. Closing a terminal's master would be a hang-up: there the end is a character, which ends what was
 * typed when it is not at the start of a line, and the input when it is. */
static void end_input(struct bough_in *in)
{
    struct termios how;
    if (in->terminal && in->fd >= 0 && tcgetattr(in->fd, &how) == 0 && how.c_lflag & ICANON)
        bough_write_quietly(in->fd, "\4\4", in->last == '\n' ? 1 : 2);
    finish_input(in);
}

static void on_writable(uv_poll_t *poll, int status, int events);

static void on_source(uv_poll_t *poll, int status, int events)
{
    struct bough_in *in = poll->data;
    (void)status;
    (void)events;
    uv_poll_stop(in->source_poll);
    uv_poll_start(in->poll, UV_WRITABLE, on_writable);
}

/* Whether the source can be read without waiting; if not, on_source goes on. */
static bool source_is_ready(struct bough_in *in)
{
    struct pollfd p = {.fd = in->source_epoll, .events = POLLIN};
    if (!in->source_poll || poll(&p, 1, 0) != 0)
        return true;
    uv_poll_stop(in->poll);
    uv_poll_start(in->source_poll, UV_READABLE, on_source);
    return false;
}

/* A terminal or a pipe of the host's must not hold up its loop. libuv would make the descriptor non-blocking,
 * for everybody who shares it; so it is watched through an epoll of its own. */
static int watch_source(struct bough_in *in, struct bough_loop *loop, struct bough_err *err)
{
    struct epoll_event ev = {.events = EPOLLIN};
    in->source_epoll = epoll_create1(EPOLL_CLOEXEC);
    if (in->source_epoll < 0)
        return bough_err_sys(err, errno, "stdin");
    if (epoll_ctl(in->source_epoll, EPOLL_CTL_ADD, in->source_fd, &ev) < 0) {
        bough_fd_close(&in->source_epoll); /* a regular file */
        return 0;
    }
    return open_poll(&in->source_poll, loop, in->source_epoll, in, err);
}

static bool refill(struct bough_in *in)
{
    if (in->source == BOUGH_SOURCE_DATA) {
        end_input(in);
        return false;
    }
    if (in->source == BOUGH_SOURCE_GIVE) {
        uv_poll_stop(in->poll);
        in->wants = true;
        bough_cond_fire(in->changed);
        return false;
    }
    if (!in->data && !(in->data = malloc(BOUGH_STREAM_CHUNK))) {
        bough_err_sys(&in->err, ENOMEM, "stdin");
        return false;
    }
    if (!source_is_ready(in))
        return false;
    ssize_t n = BOUGH_RETRY(read(in->source_fd, in->data, BOUGH_STREAM_CHUNK));
    if (n < 0)
        bough_err_sys(&in->err, errno, "stdin");
    if (n <= 0) {
        end_input(in);
        return false;
    }
    in->at = 0;
    in->size = (size_t)n;
    return true;
}

static void on_writable(uv_poll_t *poll, int status, int events)
{
    struct bough_in *in = poll->data;
    (void)status;
    (void)events;
    for (int i = 0; i < 16; i++) {
        if (in->at == in->size && !refill(in))
            return;
        ssize_t n = bough_write_quietly(in->fd, in->data + in->at, in->size - in->at);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0) { /* the command does not want it */
            finish_input(in);
            bough_cond_fire(in->changed);
            return;
        }
        in->at += (size_t)n;
        in->last = in->data[in->at - 1];
    }
}

/* Data that is there already needs no pump: a file in memory that the command reads by itself. */
static int data_file(struct bough_in *in, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int fd = memfd_create("stdin", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    size_t done = 0;
    while (fd >= 0 && done < in->size) {
        ssize_t n = BOUGH_RETRY(write(fd, in->data + done, in->size - done));
        if (n <= 0)
            return bough_err_sys(err, errno, "stdin");
        done += (size_t)n;
    }
    if (fd < 0 || lseek(fd, 0, SEEK_SET) < 0)
        return bough_err_sys(err, errno, "stdin");
    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
    return bough_steal_fd(&fd);
}

static int start_input(struct bough_in *in, struct bough_loop *loop, struct bough_err *err)
{
    if (open_poll(&in->poll, loop, in->fd, in, err) < 0 ||
        (in->source == BOUGH_SOURCE_FD && watch_source(in, loop, err) < 0))
        return -1;
    uv_poll_start(in->poll, UV_WRITABLE, on_writable);
    return 0;
}

int bough_in_open(struct bough_in *in, struct bough_loop *loop, struct bough_cond *changed,
                  int *theirs, struct bough_err *err)
{
    int ends[2];
    in->changed = changed;
    if (in->source == BOUGH_SOURCE_NONE) {
        in->ended = true;
        return 0;
    }
    if (in->source == BOUGH_SOURCE_DATA) {
        *theirs = data_file(in, err);
        in->ended = true;
        return *theirs < 0 ? -1 : 0;
    }
    if (bough_pipe_open(ends, 1, err) < 0)
        return -1;
    in->fd = ends[1];
    *theirs = ends[0];
    return start_input(in, loop, err);
}

int bough_in_over(struct bough_in *in, struct bough_loop *loop, struct bough_cond *changed,
                  int terminal, struct bough_err *err)
{
    in->changed = changed;
    in->fd = terminal;
    in->terminal = true;
    in->last = '\n';
    return start_input(in, loop, err);
}

int bough_in_give(struct bough_in *in, const char *data, size_t size)
{
    in->wants = false;
    if (in->ended)
        return 0;
    if (size == 0) {
        end_input(in);
        return 0;
    }
    char *copy = realloc(in->data, size);
    if (!copy)
        return -1;
    memcpy(copy, data, size);
    in->data = copy;
    in->size = size;
    in->at = 0;
    uv_poll_start(in->poll, UV_WRITABLE, on_writable);
    return 0;
}

void bough_in_close(struct bough_in *in)
{
    finish_input(in);
    free(in->data);
    in->data = NULL;
}
