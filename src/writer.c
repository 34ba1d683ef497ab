#define _GNU_SOURCE
#include "writer.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "sys.h"

#define CALL_WEIGHT 256 /* what a write counts besides its bytes towards a turn for the others */

#define PIPE_SIZE \
    (1024 * 1024) /* what an ordinary user may ask for, unless the machine says less */

#ifndef RWF_NOSIGNAL
#define RWF_NOSIGNAL 0x00000100 /* Linux 6.18 */
#endif

/* --- write(2) without a signal -------------------------------------------------------------------- */

/* The signal is held back for the time of the call, and taken out of the queue when it was ours. It comes to this
 * thread, so one that was pending before can only have been so where it was blocked before. */
static ssize_t write_masked(int fd, const char *data, size_t size)
{
    sigset_t pipe_only, before, pending;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_only, &before);
    bool was_blocked = sigismember(&before, SIGPIPE) == 1;
    bool was_pending =
        was_blocked && sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 1;
    ssize_t n = BOUGH_RETRY(write(fd, data, size));
    int sys = errno;
    if (n < 0 && sys == EPIPE && !was_pending) {
        struct timespec none = {0};
        while (sigtimedwait(&pipe_only, NULL, &none) < 0 && errno == EINTR)
            continue;
    }
    if (!was_blocked)
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = sys;
    return n;
}

ssize_t bough_write_quietly(int fd, const char *data, size_t size)
{
    /* A fact about the kernel (or about a filter that knows no such call), the same for all in this process. */
    static bool refused;
    if (!__atomic_load_n(&refused, __ATOMIC_RELAXED)) {
        struct iovec piece = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
        ssize_t n = BOUGH_RETRY(pwritev2(fd, &piece, 1, -1, RWF_NOSIGNAL));
        if (n >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EPERM))
            return n;
        __atomic_store_n(&refused, true, __ATOMIC_RELAXED);
    }
    return write_masked(fd, data, size);
}

/* --- the life of a writer -------------------------------------------------------------------------- */

static void close_poll(struct bough_writer *writer)
{
    bough_poll_close(&writer->poll);
    writer->polling = false;
}

/* No more bytes go. The poll first: a descriptor that somebody shares stays in the loop's epoll. */
static void shut(struct bough_writer *writer)
{
    close_poll(writer);
    bough_fd_close(&writer->fd);
    free(writer->data);
    writer->data = NULL;
    writer->at = writer->size = writer->room = 0;
    bough_cond_fire(&writer->changed);
    bough_cond_fire(&writer->moved);
    if (writer->shut)
        bough_cond_fire(writer->shut);
    if (writer->ending) {
        writer->ending = false;
        bough_writer_unref(writer);
    }
}

/* The Lua state is closing: what the kernel does not take now is lost. */
static void let_go(struct bough_loop_end *end)
{
    struct bough_writer *writer =
        (struct bough_writer *)((char *)end - offsetof(struct bough_writer, at_end));
    if (writer->size > 0)
        (void)!bough_write_quietly(writer->fd, writer->data + writer->at, writer->size);
    bough_writer_close(writer);
}

struct bough_writer *bough_writer_new(struct bough_loop *loop, int fd, bool is_terminal,
                                      struct bough_err *err)
{
    struct bough_writer *writer = calloc(1, sizeof *writer);
    int flags = fcntl(fd, F_GETFL);
    if (!writer || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        bough_err_sys(err, writer ? errno : ENOMEM, "stream");
        free(writer);
        close(fd);
        return NULL;
    }
    writer->refs = 1;
    writer->fd = fd;
    writer->loop = loop;
    writer->is_terminal = is_terminal;
    bough_cond_init(&writer->changed, loop);
    bough_cond_init(&writer->moved, loop);
    writer->at_end.run = let_go;
    bough_loop_at_end(loop, &writer->at_end);
    return writer;
}

void bough_writer_unref(struct bough_writer *writer)
{
    if (--writer->refs > 0)
        return;
    writer->refs = 1; /* while what is queued goes, and while closing */
    bough_writer_end(writer);
    if (--writer->refs > 0)
        return;
    bough_loop_end_drop(&writer->at_end);
    bough_cond_destroy(&writer->changed);
    bough_cond_destroy(&writer->moved);
    free(writer);
}

/* --- writing --------------------------------------------------------------------------------------- */

static int fail(struct bough_writer *writer, int sys)
{
    /* EIO is how a terminal says that nobody is at its other side. */
    if (sys == EPIPE || (sys == EIO && writer->is_terminal)) {
        bough_err_set(&writer->err, BOUGH_ERR_closed, "nobody reads it any more");
        writer->err.sys = EPIPE;
    } else {
        bough_err_sys(&writer->err, sys, "stream");
    }
    shut(writer);
    return -1;
}

/* How many bytes the kernel has taken, 0 when it has no room, -1: err. */
static ssize_t write_some(struct bough_writer *writer, const char *data, size_t size)
{
    ssize_t n = bough_write_quietly(writer->fd, data, size);
    writer->ready = false;
    if (n < 0)
        return errno == EAGAIN ? 0 : fail(writer, errno);
    writer->written += (uint64_t)n;
    /* Who sends much saves itself and the other side many wake-ups; where it is not allowed, all goes on as it was. */
    if ((size_t)n < size && n >= BOUGH_WRITER_QUEUE && !writer->grown) {
        writer->grown = true;
        if (fcntl(writer->fd, F_SETPIPE_SZ, PIPE_SIZE) >= 0) {
            ssize_t more = bough_write_quietly(writer->fd, data + n, size - (size_t)n);
            if (more > 0) {
                writer->written += (uint64_t)more;
                n += more;
            }
        }
    }
    return n;
}

static bool enqueue(struct bough_writer *writer, const char *data, size_t size)
{
    if (writer->at > 0 && writer->at + writer->size + size > writer->room) {
        memmove(writer->data, writer->data + writer->at, writer->size);
        writer->at = 0;
    }
    if (writer->at + writer->size + size > writer->room) {
        size_t room = writer->room ? writer->room : 1024;
        while (room < writer->size + size)
            room *= 2;
        char *grown = realloc(writer->data, room);
        if (!grown)
            return false;
        writer->data = grown;
        writer->room = room;
    }
    memcpy(writer->data + writer->at + writer->size, data, size);
    writer->size += size;
    return true;
}

ssize_t bough_writer_put(struct bough_writer *writer, const char *data, size_t size)
{
    if (writer->err.msg[0])
        return -1;
    if (writer->fd < 0 || writer->ending || writer->closed)
        return bough_err_set(&writer->err, BOUGH_ERR_closed, "it is closed");
    if (size == 0)
        return 0;
    ssize_t done = writer->size == 0 ? write_some(writer, data, size) : 0;
    if (done < 0)
        return -1;
    size_t left = size - (size_t)done;
    if (left > 0 && left <= BOUGH_WRITER_QUEUE - writer->size) {
        if (!enqueue(writer, data + done, left))
            return fail(writer, ENOMEM);
        done = (ssize_t)size;
        if (bough_writer_watch(writer) < 0)
            return -1;
    }
    if (done > 0)
        writer->last = data[done - 1];
    writer->streak += (size_t)done + CALL_WEIGHT;
    return done;
}

bool bough_writer_is_empty(const struct bough_writer *writer)
{
    return writer->size == 0;
}

static void stop_polling(struct bough_writer *writer)
{
    if (writer->polling)
        uv_poll_stop(writer->poll);
    writer->polling = false;
}

static void on_writable(uv_poll_t *poll, int status, int events)
{
    struct bough_writer *writer = poll->data;
    (void)events;
    if (status < 0)
        writer->polling =
            false; /* libuv has stopped it: the other end is closed, as write(2) will say */
    if (writer->size > 0) {
        ssize_t n = write_some(writer, writer->data + writer->at, writer->size);
        if (n < 0)
            return;
        writer->at += (size_t)n;
        writer->size -= (size_t)n;
        if (writer->size > 0) {
            if (status < 0)
                bough_writer_watch(writer);
            return;
        }
        writer->at = 0;
        if (writer->ending) {
            shut(writer); /* and perhaps the last that held it */
            return;
        }
    }
    /* There is nearly always room: where nobody has used it since the last time, nobody needs to know. */
    if (writer->ready || !writer->changed.waiters)
        stop_polling(writer);
    writer->ready = true;
    bough_cond_fire(&writer->changed);
}

int bough_writer_watch(struct bough_writer *writer)
{
    if (writer->polling || writer->fd < 0)
        return writer->err.msg[0] ? -1 : 0;
    int rc = writer->poll ? 0 : bough_poll_open(&writer->poll, writer->loop, writer->fd, writer);
    if (rc == 0)
        rc = uv_poll_start(writer->poll, UV_WRITABLE, on_writable);
    if (rc < 0)
        return fail(writer, -rc);
    writer->polling = true;
    writer->ready = false;
    return 0;
}

/* --- turns ------------------------------------------------------------------------------------------ */

void bough_writer_turn_take(struct bough_writer *writer, struct bough_writer_turn *turn)
{
    turn->writer = writer;
    turn->next = NULL;
    turn->prev = writer->last_turn;
    if (turn->prev)
        turn->prev->next = turn;
    else
        writer->first = turn;
    writer->last_turn = turn;
}

void bough_writer_turn_leave(struct bough_writer_turn *turn)
{
    struct bough_writer *writer = turn->writer;
    if (!writer)
        return;
    if (turn->prev)
        turn->prev->next = turn->next;
    else
        writer->first = turn->next;
    if (turn->next)
        turn->next->prev = turn->prev;
    else
        writer->last_turn = turn->prev;
    turn->writer = NULL;
    bough_cond_fire(&writer->moved);
}

/* --- the end ---------------------------------------------------------------------------------------- */

/* ^D ends what was typed when it is not at the start of a line, and the input when it is. Where the command reads keys
 * rather than lines it would be a key like any other. */
static void put_end(struct bough_writer *writer)
{
    struct termios mode;
    if (tcgetattr(writer->fd, &mode) < 0 || !(mode.c_lflag & ICANON) ||
        mode.c_cc[VEOF] == _POSIX_VDISABLE)
        return;
    char end[2] = {(char)mode.c_cc[VEOF], (char)mode.c_cc[VEOF]};
    size_t size = writer->last == '\0' || writer->last == '\n' ? 1 : 2;
    ssize_t n = writer->size == 0 ? write_some(writer, end, size) : 0;
    if (n >= 0 && (size_t)n < size)
        enqueue(writer, end + n, size - (size_t)n);
}

void bough_writer_end(struct bough_writer *writer)
{
    if (writer->closed)
        return;
    if (writer->is_terminal && writer->fd >= 0)
        put_end(writer);
    writer->closed = true;
    if (writer->size > 0 && bough_writer_watch(writer) == 0) {
        writer->ending = true;
        writer->refs++;
        bough_cond_fire(&writer->changed);
    } else {
        shut(writer);
    }
}

void bough_writer_close(struct bough_writer *writer)
{
    writer->closed = true;
    shut(writer);
}

static int refuse(const struct bough_writer *writer, struct bough_err *err)
{
    if (writer->taken)
        return bough_err_set(err, BOUGH_ERR_closed, "the stream %s", writer->taken);
    if (writer->err.msg[0]) {
        *err = writer->err;
        return -1;
    }
    if (writer->closed)
        return bough_err_set(err, BOUGH_ERR_closed, "the stream is closed");
    if (writer->is_terminal)
        return bough_err_set(err, BOUGH_ERR_unsupported,
                             "a terminal cannot be handed to another command");
    if (writer->size > 0 || writer->first)
        return bough_err_set(err, BOUGH_ERR_state,
                             "something is still being written to the stream: flush() it first");
    return 0;
}

int bough_writer_hand_over(struct bough_writer *writer, struct bough_err *err)
{
    if (refuse(writer, err) < 0)
        return -1;
    close_poll(writer);
    /* The flag is that of the open file, which is the other process's from now on. */
    int fd = bough_steal_fd(&writer->fd);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    writer->taken = "was handed to another command, which writes to it";
    bough_writer_close(writer);
    return fd;
}
