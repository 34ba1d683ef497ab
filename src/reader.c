#define _GNU_SOURCE
#include "reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "stream.h"
#include "sys.h"

#define TAKE_WEIGHT 256 /* what a read counts besides its bytes towards a turn for the others */

#define PIPE_SIZE \
    (1024 * 1024) /* what an ordinary user may ask for, unless the machine says less */
#define KEEP_ROOM (1024 * 1024)  /* a larger buffer goes back when it is empty */
#define TURN_BYTES (1024 * 1024) /* put aside in one turn of the loop */

/* --- the life of a reader -------------------------------------------------------------------------- */

static void close_poll(struct bough_reader *reader)
{
    bough_poll_close(&reader->poll);
    reader->polling = false;
}

/* No more bytes come. The poll first: a descriptor that somebody shares would stay in the loop's epoll. */
static void shut(struct bough_reader *reader)
{
    close_poll(reader);
    bough_fd_close(&reader->fd);
    bough_cond_fire(&reader->changed);
}

static void let_go(struct bough_loop_end *end)
{
    bough_reader_close(
        (struct bough_reader *)((char *)end - offsetof(struct bough_reader, at_end)));
}

struct bough_reader *bough_reader_new(struct bough_loop *loop, int fd, bool is_terminal,
                                      struct bough_err *err)
{
    struct bough_reader *reader = calloc(1, sizeof *reader);
    int flags = fcntl(fd, F_GETFL);
    if (!reader || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        bough_err_sys(err, reader ? errno : ENOMEM, "stream");
        free(reader);
        close(fd);
        return NULL;
    }
    reader->refs = 1;
    reader->fd = fd;
    reader->aside = -1;
    reader->loop = loop;
    reader->is_terminal = is_terminal;
    bough_cond_init(&reader->changed, loop);
    reader->at_end.run = let_go;
    bough_loop_at_end(loop, &reader->at_end);
    return reader;
}

void bough_reader_unref(struct bough_reader *reader)
{
    if (--reader->refs > 0)
        return;
    bough_reader_close(reader);
    bough_loop_end_drop(&reader->at_end);
    bough_cond_destroy(&reader->changed);
    if (reader->sibling)
        reader->sibling->sibling = NULL;
    free(reader);
}

void bough_reader_pair(struct bough_reader *a, struct bough_reader *b)
{
    a->sibling = b;
    b->sibling = a;
}

/* --- what has been read ---------------------------------------------------------------------------- */

/* Room for `more` bytes behind what is there. What is used up in front is given back first where that moves no more
 * than it frees; else the buffer doubles. Either way each byte moves a bounded number of times. */
static bool reserve(struct bough_reader *reader, size_t more)
{
    if (reader->at + reader->size + more <= reader->room)
        return true;
    if (reader->at > 0) {
        memmove(reader->data, reader->data + reader->at, reader->size);
        bool enough = reader->at >= reader->size && reader->size + more <= reader->room;
        reader->at = 0;
        if (enough)
            return true;
    }
    size_t room = reader->room * 2 > reader->size + more ? reader->room * 2 : reader->size + more;
    char *grown = realloc(reader->data, room);
    if (!grown) {
        bough_err_sys(&reader->err, ENOMEM, "stream");
        return false;
    }
    reader->data = grown;
    reader->room = room;
    return true;
}

static size_t came(struct bough_reader *reader, size_t size)
{
    reader->size += size;
    reader->streak += size;
    if (reader->changed.waiters) /* others, who may want no more than this */
        bough_cond_fire(&reader->changed);
    return size;
}

/* read(2) of the pipe: as there, but 0 when there is nothing now too. */
static size_t read_pipe(struct bough_reader *reader, char *to, size_t size)
{
    ssize_t n = BOUGH_RETRY(read(reader->fd, to, size));
    reader->ready = false;
    if (n > 0) {
        /* It was full: who wrote that much is slowed down by the switching more than by us. */
        if ((size_t)n >= BOUGH_READER_CHUNK && !reader->grown) {
            reader->grown = true;
            fcntl(reader->fd, F_SETPIPE_SZ, PIPE_SIZE);
        }
        return (size_t)n;
    }
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n == 0 || (errno == EIO && reader->is_terminal))
        reader->eof = true;
    else
        bough_err_sys(&reader->err, errno, "stream");
    shut(reader);
    return 0;
}

static size_t read_aside(struct bough_reader *reader, size_t want)
{
    off_t left = reader->aside_end - reader->aside_at;
    if ((off_t)want > left)
        want = (size_t)left;
    if (!reserve(reader, want))
        return 0;
    ssize_t n = BOUGH_RETRY(
        pread(reader->aside, reader->data + reader->at + reader->size, want, reader->aside_at));
    if (n <= 0) {
        bough_err_sys(&reader->err, n < 0 ? errno : EIO, "output put aside");
        return 0;
    }
    reader->aside_at += n;
    if (reader->aside_at == reader->aside_end)
        bough_fd_close(&reader->aside);
    return came(reader, (size_t)n);
}

size_t bough_reader_pull(struct bough_reader *reader, size_t want)
{
    reader->reads++;
    if (reader->closed)
        return 0;
    if (reader->aside >= 0)
        return read_aside(reader, want);
    if (reader->fd < 0 || reader->err.msg[0] || !reserve(reader, want))
        return 0;
    size_t n = read_pipe(reader, reader->data + reader->at + reader->size, want);
    return n > 0 ? came(reader, n) : 0;
}

bool bough_reader_at_end(const struct bough_reader *reader)
{
    return reader->eof && reader->aside < 0;
}

void bough_reader_take(struct bough_reader *reader, size_t size)
{
    reader->reads++;
    reader->streak += size + TAKE_WEIGHT;
    reader->used += size;
    reader->at += size;
    reader->size -= size;
    if (reader->size > 0)
        return;
    reader->at = 0;
    if (reader->room > KEEP_ROOM || reader->fd < 0) {
        free(reader->data);
        reader->data = NULL;
        reader->room = 0;
    }
}

/* --- putting aside --------------------------------------------------------------------------------- */

static const char *dir(void)
{
    const char *named = getenv("TMPDIR");
    return named && *named ? named : "/tmp";
}

static int unnamed_file(void)
{
    char path[4096];
    int fd = open(dir(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && (size_t)snprintf(path, sizeof path, "%s/bough-XXXXXX", dir()) < sizeof path) {
        fd = mkostemp(path, O_CLOEXEC);
        if (fd >= 0)
            unlink(path);
    }
    if (fd < 0 || fd > 2)
        return fd;
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    bough_fd_close(&fd);
    return moved;
}

static int write_aside(struct bough_reader *reader, const char *data, size_t size)
{
    if (reader->aside < 0) {
        reader->aside = unnamed_file();
        reader->aside_at = reader->aside_end = 0;
    }
    while (reader->aside >= 0 && size > 0) {
        ssize_t n = BOUGH_RETRY(pwrite(reader->aside, data, size, reader->aside_end));
        if (n <= 0) {
            errno = n < 0 ? errno : ENOSPC;
            break;
        }
        reader->aside_end += n;
        data += n;
        size -= (size_t)n;
    }
    if (size == 0)
        return 0;
    bough_err_sys(&reader->err, errno, "output that nobody read cannot be put aside in %s", dir());
    if (reader->err.kind != BOUGH_ERR_resource)
        reader->err.kind = BOUGH_ERR_io; /* whatever it was, it is not what the caller has done */
    if (reader->aside_at == reader->aside_end)
        bough_fd_close(&reader->aside);
    /* The command hears of it at its next write, as it would with a full disk of its own. */
    shut(reader);
    return -1;
}

/* How many bytes, 0 when there are none now or any more. */
static size_t put_chunk_aside(struct bough_reader *reader)
{
    char chunk[BOUGH_READER_CHUNK];
    size_t n;
    if (reader->aside < 0 && reader->size < BOUGH_READER_ASIDE) {
        if (!reserve(reader, sizeof chunk)) {
            shut(reader);
            return 0;
        }
        n = read_pipe(reader, reader->data + reader->at + reader->size, sizeof chunk);
        reader->size += n;
        return n;
    }
    n = read_pipe(reader, chunk, sizeof chunk);
    return n > 0 && write_aside(reader, chunk, n) < 0 ? 0 : n;
}

/* Reads ahead of need, about `limit` bytes at most. */
static void put_aside(struct bough_reader *reader, size_t limit)
{
    for (size_t done = 0, n = 1; done < limit && reader->fd >= 0 && n > 0; done += n)
        n = put_chunk_aside(reader);
}

static bool is_neglected(const struct bough_reader *reader)
{
    if (reader->changed.waiters)
        return false;
    return (reader->unattended > 0 && reader->reads == reader->reads_before) ||
           (reader->sibling && reader->sibling->changed.waiters);
}

/* --- the loop --------------------------------------------------------------------------------------- */

static int start_polling(struct bough_reader *reader);

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct bough_reader *reader = poll->data;
    (void)events;
    if (status < 0)
        reader->polling = false; /* libuv has stopped it; read(2) will say why */
    if (is_neglected(reader)) {
        put_aside(reader, TURN_BYTES);
        start_polling(reader);
        return;
    }
    if (reader->ready && reader->polling) {
        uv_poll_stop(reader->poll);
        reader->polling = false;
    }
    reader->ready = true;
    bough_cond_fire(&reader->changed);
}

static int fail(struct bough_reader *reader, int sys)
{
    bough_err_sys(&reader->err, sys, "stream");
    shut(reader);
    return -1;
}

static int start_polling(struct bough_reader *reader)
{
    if (reader->polling || reader->fd < 0)
        return reader->err.msg[0] ? -1 : 0;
    int rc = reader->poll ? 0 : bough_poll_open(&reader->poll, reader->loop, reader->fd, reader);
    if (rc == 0)
        rc = uv_poll_start(reader->poll, UV_READABLE, on_readable);
    if (rc < 0)
        return fail(reader, -rc);
    reader->polling = true;
    reader->ready = false;
    return 0;
}

int bough_reader_watch(struct bough_reader *reader)
{
    if (reader->sibling) /* while somebody waits here, that one may have to be put aside */
        start_polling(reader->sibling);
    return start_polling(reader);
}

void bough_reader_unattend(struct bough_reader *reader, int change)
{
    if (reader->unattended == 0)
        reader->reads_before = reader->reads;
    reader->unattended += change;
    if (reader->unattended > 0)
        start_polling(reader);
}

/* --- the end ---------------------------------------------------------------------------------------- */

void bough_reader_cut(struct bough_reader *reader)
{
    if (reader->fd < 0)
        return;
    int capacity = fcntl(reader->fd, F_GETPIPE_SZ); /* a terminal has none, and holds less */
    put_aside(reader, capacity > 0 ? (size_t)capacity : 2 * BOUGH_READER_CHUNK);
    reader->eof = true;
    shut(reader);
}

void bough_reader_close(struct bough_reader *reader)
{
    reader->closed = true;
    bough_fd_close(&reader->aside);
    free(reader->data);
    reader->data = NULL;
    reader->at = reader->size = reader->room = 0;
    shut(reader);
}

static int refuse(const struct bough_reader *reader, struct bough_err *err)
{
    if (reader->taken)
        return bough_err_set(err, BOUGH_ERR_closed, "the stream %s", reader->taken);
    if (reader->closed)
        return bough_err_set(err, BOUGH_ERR_closed, "the stream is closed");
    if (reader->err.msg[0]) {
        *err = reader->err;
        return -1;
    }
    if (reader->is_terminal)
        return bough_err_set(err, BOUGH_ERR_unsupported,
                             "a terminal cannot be handed to another command");
    if (reader->changed.waiters)
        return bough_err_set(err, BOUGH_ERR_busy, "somebody is reading the stream");
    return 0;
}

/* All that was read ahead, in one piece. */
static int gather(struct bough_reader *reader, struct bough_err *err)
{
    while (reader->aside >= 0)
        if (read_aside(reader, (size_t)(reader->aside_end - reader->aside_at)) == 0) {
            *err = reader->err;
            return -1;
        }
    if (reader->at > 0)
        memmove(reader->data, reader->data + reader->at, reader->size);
    reader->at = 0;
    return 0;
}

int bough_reader_hand_over(struct bough_reader *reader, char **head, size_t *head_size,
                           struct bough_err *err)
{
    *head = NULL;
    *head_size = 0;
    if (refuse(reader, err) < 0 || gather(reader, err) < 0)
        return -1;
    if (reader->fd < 0) { /* at its end: one that is there too */
        int ends[2];
        if (bough_pipe_open(ends, -1, err) < 0)
            return -1;
        close(ends[1]);
        reader->fd = ends[0];
    }
    close_poll(reader);
    /* The flag is that of the open file, which is the other process's from now on. */
    int fd = bough_steal_fd(&reader->fd);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    if (reader->size > 0) {
        *head = reader->data;
        *head_size = reader->size;
        reader->data = NULL;
    }
    reader->taken = "was handed to another command, which reads it";
    bough_reader_close(reader);
    return fd;
}
