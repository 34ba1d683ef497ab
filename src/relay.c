#define _GNU_SOURCE
#include "relay.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>

#include "sys.h"

#define ROUNDS 16 /* reads or writes in one turn of the loop, so that a torrent starves nobody */
#define TERMINAL_BIT 256 /* what a terminal takes that says it has room for something */

static void fail(struct bough_relay *relay, const struct bough_err *err)
{
    if (relay->failed)
        return;
    relay->failed = true;
    relay->err = *err;
    bough_cond_fire(relay->changed);
}

static void fail_sys(struct bough_relay *relay, int sys, const char *what)
{
    struct bough_err err;
    bough_err_sys(&err, sys, "%s", what);
    fail(relay, &err);
}

static void fail_closed(struct bough_relay *relay, const char *text)
{
    struct bough_err err;
    bough_err_set(&err, BOUGH_ERR_closed, "%s", text);
    fail(relay, &err);
}

/* The window was closed, or the line cut: whoever sat there cannot say anything any more. */
static bool is_gone(struct bough_relay *relay)
{
    if (!relay->terminal || !bough_terminal_is_gone())
        return false;
    fail_closed(relay, "the terminal is gone: it was closed or hung up");
    return true;
}

/* --- watching --------------------------------------------------------------------------------- */

/* All descriptors are watched through one epoll, and libuv sees only that: it would make them non-blocking, for
 * everybody who shares them, and takes each number once. */
static void watch(struct bough_relay *relay, int place, uint32_t events)
{
    struct bough_spot *spot = &relay->spots[place];
    if (spot->fd < 0 || spot->ready || spot->events == events)
        return;
    struct epoll_event ev = {.events = events, .data.u32 = (uint32_t)place};
    int op = events == 0 ? EPOLL_CTL_DEL : spot->events == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    if (epoll_ctl(relay->epoll, op, spot->fd, &ev) == 0)
        spot->events = events;
    else if (errno == EPERM)
        spot->ready = true;
    else
        fail_sys(relay, errno, "watching a stream");
}

static void drop(struct bough_relay *relay, int place)
{
    struct bough_spot *spot = &relay->spots[place];
    watch(relay, place, 0);
    if (spot->owned)
        bough_fd_close(&spot->fd);
    spot->fd = -1;
}

/* Under a number of our own: the stream may close its at any time, and an epoll goes on telling of one that was closed
 * where somebody else has the same thing open. */
static void watch_stream(struct bough_relay *relay, int place, int fd, uint32_t events)
{
    struct bough_spot *spot = &relay->spots[place];
    if (spot->fd < 0 && fd >= 0) {
        spot->owned = true;
        spot->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        if (spot->fd < 0)
            fail_sys(relay, errno, "watching a stream");
    }
    watch(relay, place, events);
}

static bool is_ready(int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};
    return poll(&p, 1, 0) != 0;
}

/* --- input ------------------------------------------------------------------------------------ */

static void end_input(struct bough_relay *relay)
{
    drop(relay, BOUGH_SPOT_SOURCE);
    drop(relay, BOUGH_SPOT_WRITER);
    relay->eof = true;
    relay->at = relay->size = 0;
}

/* The next bytes of the source: how many, 0 at its end, -1 with EAGAIN when there are none now. */
static ssize_t read_source(struct bough_relay *relay, char *to, size_t room)
{
    const struct bough_spot *spot = &relay->spots[BOUGH_SPOT_SOURCE];
    size_t left = relay->ahead_size - relay->ahead_at;
    if (left > 0) {
        left = left < room ? left : room;
        memcpy(to, relay->ahead + relay->ahead_at, left);
        relay->ahead_at += left;
        return (ssize_t)left;
    }
    if (relay->paused || (!spot->owned && !is_ready(spot->fd, POLLIN))) {
        errno = EAGAIN;
        return -1;
    }
    return bough_terminal_read(spot->fd, to, room);
}

/* Where to go on in the detach keys when `size` of them have come and the next is another. */
static size_t border(const char *keys, size_t size)
{
    for (size_t n = size - 1; n > 0; n--)
        if (memcmp(keys, keys + size - n, n) == 0)
            return n;
    return 0;
}

static void give_up_held(struct bough_relay *relay, size_t count)
{
    memcpy(relay->data + relay->size, relay->detach, count);
    relay->size += count;
    relay->matched -= count;
}

static void take_key(struct bough_relay *relay, char key)
{
    while (relay->matched > 0 && relay->detach[relay->matched] != key)
        give_up_held(relay, relay->matched - border(relay->detach, relay->matched));
    if (relay->detach[relay->matched] != key)
        relay->data[relay->size++] = key;
    else if (++relay->matched == relay->detach_size)
        relay->detached = true;
}

/* One byte at a time, so that what is typed after the detach keys stays in the terminal, for the host. As
 * read_source, except that there may be bytes in `data` whatever it returns. */
static ssize_t read_keys(struct bough_relay *relay)
{
    ssize_t n = 1;
    while (!relay->detached && relay->size + 2 * BOUGH_RELAY_DETACH < BOUGH_RELAY_CHUNK) {
        char key;
        n = read_source(relay, &key, 1);
        if (n <= 0)
            break;
        take_key(relay, key);
    }
    if (n == 0)
        give_up_held(relay, relay->matched);
    if (relay->detached)
        bough_cond_fire(relay->changed);
    return n;
}

/* Fills the empty buffer: whether there is something in it now. */
static bool refill(struct bough_relay *relay)
{
    ssize_t n;
    relay->at = relay->size = 0;
    if (relay->detach_size > 0) {
        n = read_keys(relay);
    } else {
        n = read_source(relay, relay->data, BOUGH_RELAY_CHUNK);
        relay->size = n > 0 ? (size_t)n : 0;
    }
    if (n > 0 || (n < 0 && errno == EAGAIN))
        return relay->size > 0;
    if (n < 0 && errno == EIO && isatty(STDIN_FILENO) == 1) {
        bough_relay_pause(relay, true); /* another job has it by now */
        return relay->size > 0;
    }
    relay->eof = true;
    if (is_gone(relay))
        end_input(relay);
    return relay->size > 0;
}

/* What to wait for. A source that is always ready is read when the process has room. */
static void watch_input(struct bough_relay *relay)
{
    const struct bough_spot *source = &relay->spots[BOUGH_SPOT_SOURCE];
    bool wants = relay->size == 0 && !relay->eof && !relay->detached;
    bool ahead = relay->ahead_at < relay->ahead_size;
    watch(relay, BOUGH_SPOT_SOURCE, wants && !ahead && !relay->paused ? EPOLLIN : 0);
    bool room = relay->size > 0 || (wants && (ahead || (source->ready && !relay->paused)));
    watch_stream(relay, BOUGH_SPOT_WRITER, room ? relay->writer->fd : -1, room ? EPOLLOUT : 0);
}

static void pump_input(struct bough_relay *relay)
{
    struct bough_writer *writer = relay->writer;
    if (!writer || relay->spots[BOUGH_SPOT_SOURCE].fd < 0 || relay->failed)
        return;
    for (int round = 0; round < ROUNDS; round++) {
        if (writer->closed || writer->taken) {
            end_input(relay);
            return;
        }
        if (relay->size == 0 && (relay->eof || relay->detached || !refill(relay)))
            break;
        ssize_t n = bough_writer_put(writer, relay->data + relay->at, relay->size);
        if (n < 0) { /* the process wants no more */
            end_input(relay);
            return;
        }
        if (n == 0)
            break;
        relay->at += (size_t)n;
        relay->size -= (size_t)n;
    }
    if (relay->failed)
        return;
    if (relay->eof && relay->size == 0) {
        end_input(relay);
        if (writer->is_terminal)
            bough_relay_nudge(relay);
        else
            bough_writer_end(writer);
        return;
    }
    watch_input(relay);
}

/* A ^D while the command does something else, or just before it begins to read keys (a shell with line editing), is
 * not one for it: whoever reads at the end of a file finds it there, and so does who reads again. */
void bough_relay_nudge(struct bough_relay *relay)
{
    struct bough_writer *writer = relay->writer;
    struct termios mode;
    if (!writer || !relay->eof || relay->failed || !writer->is_terminal || writer->closed ||
        !bough_writer_is_empty(writer) || tcgetattr(writer->fd, &mode) < 0)
        return;
    char end = (char)mode.c_cc[VEOF];
    if (mode.c_cc[VEOF] != _POSIX_VDISABLE)
        bough_writer_put(writer, &end, 1);
}

/* --- output ----------------------------------------------------------------------------------- */

/* How many bytes the host's descriptor has taken, 0 when it has no room now, -1 with errno. */
static ssize_t write_sink(const struct bough_relay *relay, const struct bough_spot *spot,
                          const char *data, size_t size)
{
    if (!spot->owned && !spot->ready) {
        if (!is_ready(spot->fd, POLLOUT))
            return 0;
        size_t bit = relay->terminal ? TERMINAL_BIT : PIPE_BUF;
        size = size < bit ? size : bit;
    }
    ssize_t n = bough_terminal_write(spot->fd, data, size);
    return n < 0 && errno == EAGAIN ? 0 : n;
}

static void sink_failed(struct bough_relay *relay, int i)
{
    int sys = errno;
    if (is_gone(relay))
        return;
    if (sys == EPIPE)
        fail_closed(relay, i == 0 ? "nobody reads our standard output any more"
                                  : "nobody reads our standard error any more");
    else
        fail_sys(relay, sys, i == 0 ? "standard output" : "standard error");
}

/* Moves what there is: false when the host's descriptor has no room for the rest. */
static bool move_output(struct bough_relay *relay, int i)
{
    struct bough_reader *reader = relay->readers[i];
    const struct bough_spot *sink = &relay->spots[BOUGH_SPOT_SINK + i];
    for (int round = 0; round < ROUNDS; round++) {
        if (reader->size == 0 && bough_reader_pull(reader, BOUGH_READER_CHUNK) == 0)
            return true;
        ssize_t n = write_sink(relay, sink, reader->data + reader->at, reader->size);
        if (n < 0)
            sink_failed(relay, i);
        if (n <= 0)
            return false;
        bough_reader_take(reader, (size_t)n);
    }
    /* There may be more, which was read already and makes no descriptor ready: the owner pumps again. */
    bough_cond_fire(relay->changed);
    return true;
}

static void pump_output(struct bough_relay *relay, int i)
{
    struct bough_reader *reader = relay->readers[i];
    if (!reader || relay->failed || (relay->terminal && relay->paused))
        return;
    if (reader->closed) {
        fail_closed(relay, i == 0 ? "the process's stdout was closed meanwhile"
                                  : "the process's stderr was closed meanwhile");
        return;
    }
    bool moved = move_output(relay, i);
    if (reader->size == 0 && reader->err.msg[0])
        fail(relay, &reader->err);
    if (reader->size == 0 && bough_reader_at_end(reader)) {
        drop(relay, BOUGH_SPOT_READER + i);
        bough_cond_fire(relay->changed);
    }
    bool done = relay->failed || (reader->size == 0 && bough_reader_at_end(reader));
    watch(relay, BOUGH_SPOT_SINK + i, !done && !moved ? EPOLLOUT : 0);
    watch_stream(relay, BOUGH_SPOT_READER + i, done ? -1 : reader->fd,
                 !done && moved ? EPOLLIN : 0);
}

/* --- the whole -------------------------------------------------------------------------------- */

void bough_relay_pump(struct bough_relay *relay)
{
    pump_input(relay);
    pump_output(relay, 0);
    pump_output(relay, 1);
}

static void on_ready(uv_poll_t *handle, int status, int events)
{
    struct bough_relay *relay = handle->data;
    struct epoll_event seen[BOUGH_SPOT_COUNT];
    bool places[BOUGH_SPOT_COUNT] = {false};
    (void)status;
    (void)events;
    int count = epoll_wait(relay->epoll, seen, BOUGH_SPOT_COUNT, 0);
    for (int i = 0; i < count; i++)
        places[seen[i].data.u32] = true;
    if (places[BOUGH_SPOT_SOURCE] || places[BOUGH_SPOT_WRITER])
        pump_input(relay);
    for (int i = 0; i < 2; i++)
        if (places[BOUGH_SPOT_READER + i] || places[BOUGH_SPOT_SINK + i])
            pump_output(relay, i);
    if (relay->failed) /* nothing more moves; what is ready stays so */
        uv_poll_stop(relay->poll);
}

static void open_spot(struct bough_relay *relay, int place, int fd)
{
    struct bough_spot *spot = &relay->spots[place];
    bool to_write = fd != STDIN_FILENO;
    spot->fd = bough_terminal_view(fd, to_write);
    spot->owned = spot->fd >= 0;
    if (!spot->owned)
        spot->fd = fd;
    watch(relay, place, to_write ? EPOLLOUT : EPOLLIN); /* whether it can be watched at all */
    watch(relay, place, 0);
}

static int open_streams(struct bough_relay *relay, struct bough_writer *writer,
                        struct bough_reader *const readers[2], struct bough_err *err)
{
    if (writer) {
        relay->data = malloc(BOUGH_RELAY_CHUNK);
        if (!relay->data)
            return bough_err_sys(err, ENOMEM, "attach");
        relay->writer = writer;
        writer->refs++;
        open_spot(relay, BOUGH_SPOT_SOURCE, STDIN_FILENO);
    }
    for (int i = 0; i < 2; i++)
        if (readers[i]) {
            relay->readers[i] = readers[i];
            readers[i]->refs++;
            open_spot(relay, BOUGH_SPOT_SINK + i, STDOUT_FILENO + i);
        }
    return 0;
}

int bough_relay_open(struct bough_relay *relay, struct bough_loop *loop, struct bough_cond *changed,
                     struct bough_writer *writer, struct bough_reader *const readers[2],
                     struct bough_err *err)
{
    relay->loop = loop;
    relay->changed = changed;
    for (int i = 0; i < BOUGH_SPOT_COUNT; i++)
        relay->spots[i].fd = -1;
    relay->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (relay->epoll < 0)
        return bough_err_sys(err, errno, "attach");
    int rc = bough_poll_open(&relay->poll, loop, relay->epoll, relay);
    if (rc < 0)
        return bough_err_sys(err, -rc, "attach");
    if (open_streams(relay, writer, readers, err) < 0)
        return -1;
    uv_poll_start(relay->poll, UV_READABLE, on_ready);
    return 0;
}

void bough_relay_pause(struct bough_relay *relay, bool paused)
{
    relay->paused = paused;
    if (!paused)
        return;
    watch(relay, BOUGH_SPOT_SOURCE, 0);
    for (int i = BOUGH_SPOT_READER; i < BOUGH_SPOT_COUNT && relay->terminal; i++)
        watch(relay, i, 0);
}

void bough_relay_cut(struct bough_relay *relay)
{
    for (int i = 0; i < 2; i++)
        if (relay->readers[i] && !relay->readers[i]->closed)
            bough_reader_cut(relay->readers[i]);
}

bool bough_relay_is_drained(const struct bough_relay *relay)
{
    for (int i = 0; i < 2; i++) {
        const struct bough_reader *reader = relay->readers[i];
        if (reader && (reader->closed || reader->size > 0 || !bough_reader_at_end(reader)))
            return false;
    }
    return true;
}

void bough_relay_close(struct bough_relay *relay)
{
    if (!relay->loop)
        return;
    for (int i = 0; i < BOUGH_SPOT_COUNT; i++)
        drop(relay, i);
    bough_poll_close(&relay->poll);
    bough_fd_close(&relay->epoll);
    for (int i = 0; i < 2; i++) {
        if (relay->readers[i])
            bough_reader_unref(relay->readers[i]);
        relay->readers[i] = NULL;
    }
    if (relay->writer)
        bough_writer_unref(relay->writer);
    relay->writer = NULL;
    free(relay->data);
    free(relay->ahead);
    relay->data = relay->ahead = NULL;
    relay->loop = NULL;
}
