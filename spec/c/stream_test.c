/* stream_test.c - readers and writers without Lua: what is put aside, handed over, and never signalled; as TAP. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <pty.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "../../src/reader.h"
#include "../../src/stream.h"
#include "../../src/sys.h"
#include "../../src/writer.h"
#include "tap.h"

#define KIB 1024
#define MIB (1024 * 1024)

static struct bough_err err;
static struct bough_loop *loop;

/* ---- support ---- */

/* Byte `at` of an endless text whose period is no power of two. */
static char text_at(size_t at)
{
    return (char)(at % 251);
}

static bool is_text(const char *data, size_t size, size_t from)
{
    for (size_t i = 0; i < size; i++)
        if (data[i] != text_at(from + i))
            return false;
    return true;
}

/* Fills the pipe with what comes next, until it takes no more or `size` is there. */
static size_t fill(int fd, size_t from, size_t size)
{
    size_t done = 0;
    while (done < size) {
        char chunk[4096];
        size_t part = size - done < sizeof chunk ? size - done : sizeof chunk;
        for (size_t i = 0; i < part; i++)
            chunk[i] = text_at(from + done + i);
        ssize_t n = write(fd, chunk, part);
        if (n <= 0)
            break;
        done += (size_t)n;
    }
    return done;
}

static void turn(int times)
{
    while (times-- > 0)
        bough_loop_poll(loop, 0);
}

static struct bough_reader *reader_open(int *other)
{
    int ends[2];
    bough_pipe_open(ends, 1, &err);
    *other = ends[1];
    return bough_reader_new(loop, ends[0], false, &err);
}

static struct bough_writer *writer_open(int *other)
{
    int ends[2];
    bough_pipe_open(ends, 0, &err);
    *other = ends[0];
    return bough_writer_new(loop, ends[1], false, &err);
}

/* Reads to the end and compares. */
static bool drains_to(struct bough_reader *reader, size_t size)
{
    size_t seen = 0;
    bool good = true;
    do {
        good = good && is_text(reader->data + reader->at, reader->size, seen);
        seen += reader->size;
        bough_reader_take(reader, reader->size);
    } while (bough_reader_pull(reader, 50000) > 0);
    if (seen != size)
        printf("# %zu bytes rather than %zu\n", seen, size);
    return good && seen == size && bough_reader_at_end(reader);
}

static size_t open_descriptors(void)
{
    size_t count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* ---- putting aside ---- */

static void test_unattended(void)
{
    int pipe;
    struct bough_reader *reader = reader_open(&pipe);
    size_t before = open_descriptors(), done = 0;
    done += fill(pipe, done, 100);
    turn(3);
    check(reader->size == 0 && !reader->polling, "nothing is read ahead of need");
    bough_reader_unattend(reader, 1);
    for (int i = 0; i < 200; i++) {
        done += fill(pipe, done, 40000);
        turn(1);
    }
    turn(20);
    check(done == 100 + 200 * 40000, "unattended: the other side never has to wait");
    check(reader->size >= BOUGH_READER_ASIDE && reader->size < 2 * MIB && reader->aside >= 0,
          "unattended: a part is in memory, the rest in a file");
    bough_reader_unattend(reader, -1);
    size_t more = fill(pipe, done, 40000);
    turn(5);
    check(!reader->polling && more == 40000, "when nobody waits any more, it is left in the pipe");
    done += more;
    close(pipe);
    check(drains_to(reader, done), "unattended: memory, file and pipe come in their order");
    bough_reader_unref(reader);
    turn(1);
    check(open_descriptors() == before - 2, "unattended: no descriptor is left");
}

static void test_alternating(void)
{
    int pipe;
    struct bough_reader *reader = reader_open(&pipe);
    size_t done = 0, seen = 0;
    bool good = true;
    unsigned seed = 1;
    for (int round = 0; round < 400; round++) {
        bough_reader_unattend(reader, 1);
        for (int i = rand_r(&seed) % 6; i > 0; i--) {
            done += fill(pipe, done, (size_t)(rand_r(&seed) % 60000));
            turn(2);
        }
        bough_reader_unattend(reader, -1);
        done += fill(pipe, done, (size_t)(rand_r(&seed) % 1000));
        for (int i = rand_r(&seed) % 6; i > 0; i--) {
            bough_reader_pull(reader, (size_t)(rand_r(&seed) % 70000) + 1);
            size_t part = reader->size / (size_t)(rand_r(&seed) % 3 + 1);
            good = good && is_text(reader->data + reader->at, part, seen);
            seen += part;
            bough_reader_take(reader, part);
        }
    }
    close(pipe);
    check(good, "reading and putting aside in turns keeps the order");
    while (bough_reader_pull(reader, 100000) > 0)
        continue;
    good = is_text(reader->data + reader->at, reader->size, seen);
    check(good && seen + reader->size == done && bough_reader_at_end(reader), "and loses nothing");
    bough_reader_unref(reader);
}

static void test_attended(void)
{
    int pipe;
    struct bough_reader *reader = reader_open(&pipe);
    bough_reader_unattend(reader, 1);
    size_t done = fill(pipe, 0, 1000);
    bough_reader_pull(reader, 10);
    turn(5);
    check(reader->size == 10 && !reader->polling,
          "a stream that was read since somebody waits is left alone");
    bough_reader_unattend(reader, 1);
    turn(5);
    check(reader->size == 10, "also when a second one waits");
    bough_reader_unattend(reader, -2);
    bough_reader_unattend(reader, 1);
    turn(5);
    check(reader->size == done, "the next one who waits counts anew");

    struct bough_waiter waiter = {0};
    bough_reader_watch(reader);
    bough_loop_park(loop, &waiter, &reader->changed);
    fill(pipe, done, 1000);
    turn(1);
    check(waiter.queued && reader->size == done, "whoever waits for it reads it himself");
    bough_loop_forget(loop, &waiter);
    close(pipe);
    bough_reader_unref(reader);
}

static void test_sibling(void)
{
    int pipes[2];
    struct bough_reader *out = reader_open(&pipes[0]), *errors = reader_open(&pipes[1]);
    struct bough_waiter waiter = {0};
    size_t done = 0;
    bough_reader_pair(out, errors);
    bough_reader_watch(out);
    bough_loop_park(loop, &waiter, &out->changed);
    for (int i = 0; i < 60; i++) {
        done += fill(pipes[1], done, 60000);
        turn(1);
    }
    check(done == 60 * 60000 && !waiter.queued, "sibling: put aside while somebody waits");
    fill(pipes[0], 0, 10);
    turn(1);
    check(waiter.queued, "sibling: who waits hears of his own stream");
    bough_loop_forget(loop, &waiter);
    done += fill(pipes[1], done, 60000);
    turn(5);
    check(!errors->polling && !out->polling,
          "sibling: when nobody waits any more, both are left alone");

    bough_reader_take(out, bough_reader_pull(out, 100));
    struct bough_waiter other = {0};
    bough_reader_watch(out);
    bough_reader_watch(errors);
    bough_loop_park(loop, &waiter, &out->changed);
    bough_loop_park(loop, &other, &errors->changed);
    size_t size = errors->size;
    turn(2);
    check(other.queued && errors->size == size, "sibling: not while somebody waits for it too");
    bough_loop_forget(loop, &waiter);
    bough_loop_forget(loop, &other);
    close(pipes[1]);
    check(drains_to(errors, done), "sibling: all is there, in its order");
    bough_reader_unref(errors);
    check(out->sibling == NULL, "sibling: one goes before the other");
    close(pipes[0]);
    bough_reader_watch(out);
    turn(2);
    bough_reader_unref(out);
}

static void test_aside_failure(void)
{
    int pipe;
    struct bough_reader *reader = reader_open(&pipe);
    char *before = getenv("TMPDIR") ? strdup(getenv("TMPDIR")) : NULL;
    setenv("TMPDIR", "/proc/nowhere", 1);
    bough_reader_unattend(reader, 1);
    size_t done = 0;
    for (int i = 0; i < 50; i++) {
        done += fill(pipe, done, 60000);
        turn(1);
    }
    check(reader->err.kind == BOUGH_ERR_io && strstr(reader->err.msg, "/proc/nowhere"),
          "no file: %s", reader->err.msg);
    check(reader->fd < 0 && !bough_reader_at_end(reader) && reader->size >= BOUGH_READER_ASIDE &&
              is_text(reader->data + reader->at, reader->size, 0),
          "no file: what is there can be read, and it is not the end");
    check(bough_write_quietly(pipe, "x", 1) < 0 && errno == EPIPE,
          "no file: the other side hears of it");
    if (before)
        setenv("TMPDIR", before, 1);
    else
        unsetenv("TMPDIR");
    free(before);
    close(pipe);
    bough_reader_unref(reader);
}

static void test_cut(void)
{
    int pipe;
    struct bough_reader *reader = reader_open(&pipe);
    size_t done = fill(pipe, 0, 50000);
    bough_reader_cut(reader);
    check(reader->eof && reader->fd < 0, "cut: what is in the pipe is all, though it is open");
    check(drains_to(reader, done), "cut: and all of it is there");
    close(pipe);
    bough_reader_cut(reader);
    bough_reader_unref(reader);

    reader = reader_open(&pipe);
    bough_reader_unattend(reader, 1);
    for (done = 0; done < 3 * MIB;) {
        done += fill(pipe, done, 60000);
        turn(2);
    }
    done += fill(pipe, done, 60000);
    bough_reader_cut(reader);
    check(drains_to(reader, done), "cut: behind what was put aside");
    close(pipe);
    bough_reader_unref(reader);
}

/* ---- handing over ---- */

static void test_reader_hand_over(void)
{
    char buffer[200], *head;
    size_t size;
    int pipe;
    struct bough_reader *reader = reader_open(&pipe);
    fill(pipe, 0, 100);
    bough_reader_watch(reader);
    turn(1);
    int fd = bough_reader_hand_over(reader, &head, &size, &err);
    check(fd > 2 && !head && !(fcntl(fd, F_GETFL) & O_NONBLOCK) &&
              read(fd, buffer, sizeof buffer) == 100 && is_text(buffer, 100, 0),
          "a reader is handed over as it is, and blocks");
    check(bough_reader_hand_over(reader, &head, &size, &err) < 0 && err.kind == BOUGH_ERR_closed &&
              reader->taken,
          "once: %s", err.msg);
    turn(2);
    close(fd);
    close(pipe);
    bough_reader_unref(reader);

    reader = reader_open(&pipe);
    bough_reader_unattend(reader, 1);
    size_t done = 0;
    while (done < 2 * MIB) {
        done += fill(pipe, done, 60000);
        turn(2);
    }
    fill(pipe, done, 100);
    fd = bough_reader_hand_over(reader, &head, &size, &err);
    check(fd > 2 && head && size == done && is_text(head, size, 0) &&
              read(fd, buffer, sizeof buffer) == 100 && is_text(buffer, 100, done),
          "what was read ahead and put aside comes with it");
    free(head);
    close(fd);
    close(pipe);
    bough_reader_unref(reader);

    reader = reader_open(&pipe);
    fill(pipe, 0, 100);
    close(pipe);
    while (!reader->eof)
        bough_reader_pull(reader, 60);
    fd = bough_reader_hand_over(reader, &head, &size, &err);
    check(fd > 2 && size == 100 && read(fd, buffer, sizeof buffer) == 0,
          "one at its end is an empty one");
    free(head);
    close(fd);
    bough_reader_unref(reader);

    struct bough_waiter waiter = {0};
    reader = reader_open(&pipe);
    bough_loop_park(loop, &waiter, &reader->changed);
    check(bough_reader_hand_over(reader, &head, &size, &err) < 0 && err.kind == BOUGH_ERR_busy,
          "not while somebody reads it: %s", err.msg);
    bough_reader_close(reader);
    check(waiter.queued && reader->fd < 0, "whoever waits hears of the close");
    bough_loop_forget(loop, &waiter);
    check(bough_reader_hand_over(reader, &head, &size, &err) < 0 && err.kind == BOUGH_ERR_closed,
          "nor after it: %s", err.msg);
    close(pipe);
    bough_reader_unref(reader);
}

static void test_writer_hand_over(void)
{
    int pipe;
    char buffer[10];
    struct bough_writer *writer = writer_open(&pipe);
    bough_writer_put(writer, "before", 6);
    int fd = bough_writer_hand_over(writer, &err);
    check(fd > 2 && !(fcntl(fd, F_GETFL) & O_NONBLOCK) && read(pipe, buffer, 10) == 6,
          "a writer is handed over as it is, and blocks");
    check(bough_writer_hand_over(writer, &err) < 0 && err.kind == BOUGH_ERR_closed && writer->taken,
          "once: %s", err.msg);
    bough_writer_unref(writer);
    check(write(fd, "x", 1) == 1, "and lives on without us");
    close(fd);
    close(pipe);

    writer = writer_open(&pipe);
    static char much[100000];
    while (bough_writer_is_empty(writer))
        bough_writer_put(writer, much, 30000);
    check(bough_writer_hand_over(writer, &err) < 0 && err.kind == BOUGH_ERR_state,
          "not while something is queued: %s", err.msg);
    close(pipe);
    turn(3);
    check(writer->err.kind == BOUGH_ERR_closed && writer->err.sys == EPIPE && writer->fd < 0,
          "that nobody reads any more is seen while something is queued");
    check(bough_writer_hand_over(writer, &err) < 0 && err.kind == BOUGH_ERR_closed,
          "nor when nobody reads it: %s", err.msg);
    bough_writer_unref(writer);

    struct bough_writer_turn first = {0};
    writer = writer_open(&pipe);
    bough_writer_turn_take(writer, &first);
    check(bough_writer_hand_over(writer, &err) < 0 && err.kind == BOUGH_ERR_state,
          "nor while somebody writes");
    bough_writer_turn_leave(&first);
    bough_writer_turn_leave(&first);
    close(pipe);
    bough_writer_unref(writer);
}

/* ---- the queue ---- */

static void test_queue(void)
{
    int pipe;
    static char text[400 * KIB], got[400 * KIB];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = text_at(i);
    struct bough_writer *writer = writer_open(&pipe);
    size_t put = 0;
    ssize_t n;
    while ((n = bough_writer_put(writer, text + put, 3000)) > 0)
        put += (size_t)n;
    check(n == 0 && writer->size <= BOUGH_WRITER_QUEUE && writer->written <= 64 * KIB &&
              writer->size > 50 * KIB && put == writer->written + writer->size,
          "the queue takes what the pipe does not, up to its size");
    turn(5);
    check(writer->polling, "while something is queued, the loop watches");
    bough_writer_unref(writer); /* and it goes on by itself */
    size_t seen = 0;
    while (seen < sizeof got && (n = read(pipe, got + seen, sizeof got - seen)) != 0) {
        if (n > 0)
            seen += (size_t)n;
        turn(1);
    }
    check(seen == put && is_text(got, seen, 0), "what is queued goes after the last reference");
    turn(2);
    check(!bough_loop_alive(loop), "and then nothing is left in the loop");
    close(pipe);

    writer = writer_open(&pipe);
    bough_writer_watch(writer);
    turn(3);
    check(!writer->polling, "room that nobody waits for is not watched");
    struct bough_waiter waiter = {0};
    bough_writer_watch(writer);
    bough_loop_park(loop, &waiter, &writer->changed);
    turn(1);
    check(waiter.queued, "room wakes who waits for it");
    bough_loop_forget(loop, &waiter);
    close(pipe);
    bough_writer_end(writer);
    bough_writer_unref(writer);
}

/* ---- no signal ---- */

static volatile sig_atomic_t signals;

static void on_pipe(int number)
{
    (void)number;
    signals++;
}

static bool breaks_quietly(void)
{
    int ends[2];
    bough_pipe_open(ends, -1, &err);
    close(ends[0]);
    errno = 0;
    bool good = bough_write_quietly(ends[1], "x", 1) == -1 && errno == EPIPE;
    close(ends[1]);
    return good;
}

static bool is_pending(void)
{
    sigset_t pending;
    sigpending(&pending);
    return sigismember(&pending, SIGPIPE) == 1;
}

static void *break_in_thread(void *arg)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    if (arg)
        pthread_sigmask(SIG_BLOCK, &set, NULL);
    return breaks_quietly() && !is_pending() ? (void *)&tests : NULL;
}

static void test_signal(const char *how)
{
    sigset_t set, none;
    sigemptyset(&none);
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGPIPE, SIG_DFL);
        _exit(breaks_quietly() ? 7 : 8);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 7, "%s: default disposition", how);

    signal(SIGPIPE, on_pipe);
    signals = 0;
    check(breaks_quietly() && signals == 0 && !is_pending(), "%s: a handler of the host's", how);
    sigprocmask(SIG_BLOCK, &set, NULL);
    check(breaks_quietly() && !is_pending(), "%s: blocked", how);
    raise(SIGPIPE);
    check(breaks_quietly() && is_pending() && signals == 0, "%s: one of the host's pending", how);
    sigprocmask(SIG_SETMASK, &none, NULL);
    check(signals == 1, "%s: stays what it was", how);
    for (int blocked = 0; blocked < 2; blocked++) {
        pthread_t thread;
        void *good = NULL;
        pthread_create(&thread, NULL, break_in_thread, blocked ? &tests : NULL);
        pthread_join(thread, &good);
        check(good && signals == 1, "%s: in a thread, %sblocked", how, blocked ? "" : "not ");
    }
    sigset_t now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    check(sigismember(&now, SIGPIPE) == 0, "%s: the mask is as it was", how);
    signal(SIGPIPE, SIG_IGN);
    check(breaks_quietly() && !is_pending(), "%s: ignored", how);
}

/* Kernels before 6.18 know no other way. */
static void test_signal_plain(void)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    bool good =
        filter && seccomp_rule_add(filter, SCMP_ACT_ERRNO(EOPNOTSUPP), SCMP_SYS(pwritev2), 0) == 0;
    good = good && seccomp_load(filter) == 0;
    seccomp_release(filter);
    if (good)
        test_signal("old kernel");
    else
        check(true, "old kernel # SKIP no filter can be loaded");
}

/* ---- terminals ---- */

static void set_local_modes(int fd, bool lines)
{
    struct termios mode;
    tcgetattr(fd, &mode);
    mode.c_oflag &= (tcflag_t)~OPOST;
    mode.c_lflag &= (tcflag_t)~ECHO;
    if (!lines)
        cfmakeraw(&mode);
    tcsetattr(fd, TCSANOW, &mode);
}

/* Whether reads of a terminal give these sizes, one after the other. */
static bool reads_as(int fd, int count, const ssize_t *sizes)
{
    char buffer[100];
    for (int i = 0; i < count; i++)
        if (read(fd, buffer, sizeof buffer) != sizes[i])
            return false;
    return true;
}

static void test_terminal(void)
{
    int master, slave;
    if (openpty(&master, &slave, NULL, NULL, NULL) < 0) {
        check(true, "terminals # SKIP there are none");
        return;
    }
    fcntl(master, F_SETFD, FD_CLOEXEC);
    set_local_modes(slave, true);
    struct bough_reader *reader = bough_reader_new(loop, dup(master), true, &err);
    struct bough_writer *writer = bough_writer_new(loop, dup(master), true, &err);
    bough_writer_put(writer, "one\ntwo", 7);
    bough_writer_end(writer);
    check(reads_as(slave, 3, (ssize_t[]){4, 3, 0}),
          "terminal: the end comes after an unfinished line");
    bough_writer_unref(writer);
    writer = bough_writer_new(loop, dup(master), true, &err);
    bough_writer_put(writer, "three\n", 6);
    bough_writer_end(writer);
    check(reads_as(slave, 2, (ssize_t[]){6, 0}), "terminal: the end comes after a line");
    bough_writer_unref(writer);

    set_local_modes(slave, false);
    writer = bough_writer_new(loop, dup(master), true, &err);
    bough_writer_put(writer, "keys", 4);
    check(bough_writer_hand_over(writer, &err) < 0 && err.kind == BOUGH_ERR_unsupported,
          "terminal: is not handed over: %s", err.msg);
    bough_writer_end(writer);
    check(reads_as(slave, 1, (ssize_t[]){4}), "terminal: no ^D where keys are read");
    bough_writer_unref(writer);

    check(write(slave, "output", 6) == 6 && bough_reader_pull(reader, 100) == 6 &&
              bough_reader_pull(reader, 100) == 0 && !reader->eof,
          "terminal: output comes");
    check(write(slave, "last", 4) == 4, "terminal: more of it");
    close(slave);
    close(master);
    size_t last = bough_reader_pull(reader, 100), more = bough_reader_pull(reader, 100);
    check(last == 4 && more == 0 && bough_reader_at_end(reader) && !reader->err.msg[0],
          "terminal: its end is an end");
    bough_reader_unref(reader);
}

static void test_end_of_loop(void)
{
    int pipes[2];
    struct bough_reader *reader = reader_open(&pipes[0]);
    struct bough_writer *writer = writer_open(&pipes[1]);
    static char much[200000];
    while (bough_writer_put(writer, much, 30000) > 0)
        continue;
    bough_reader_watch(reader);
    turn(1);
    writer->refs++;
    bough_writer_unref(writer);
    bough_writer_end(writer);
    bough_loop_free(loop);
    check(reader->fd < 0 && writer->fd < 0 && writer->refs == 1,
          "the loop may go first, with something queued");
    bough_reader_unref(reader);
    bough_writer_unref(writer);
    close(pipes[0]);
    close(pipes[1]);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    loop = bough_loop_new();
    test_unattended();
    test_alternating();
    test_attended();
    test_sibling();
    test_aside_failure();
    test_cut();
    test_reader_hand_over();
    test_writer_hand_over();
    test_queue();
    test_terminal();
    turn(2);
    check(!bough_loop_alive(loop), "nothing is left in the loop");
    test_end_of_loop();
    test_signal("this kernel");
    test_signal_plain();
    printf("1..%d\n", tests);
    return failures > 0;
}
