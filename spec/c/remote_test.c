/* remote_test.c - the two sides of a command that runs elsewhere, without Lua: nothing is left, whichever goes first; as
 * TAP. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "../../src/remote.h"
#include "../../src/sys.h"
#include "tap.h"

static struct bough_err err;
static struct bough_loop *loop;
static const struct bough_result nothing = {.exit_code = 0};

/* --- support --------------------------------------------------------------------------------------- */

static void turn(int times)
{
    while (times-- > 0)
        bough_loop_poll(loop, 0);
}

static size_t open_descriptors(void)
{
    size_t count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* One whose outputs are captured, up to `limit` bytes each. */
static struct bough_remote *captured(size_t limit)
{
    struct bough_remote *remote = bough_remote_new(loop);
    for (int i = 0; i < 2; i++) {
        remote->streams.out[i].sink = BOUGH_SINK_CAPTURE;
        remote->streams.out[i].limit = limit;
    }
    return remote;
}

/* One whose streams its caller reads and writes himself. */
static struct bough_remote *piped(void)
{
    struct bough_remote *remote = bough_remote_new(loop);
    for (int i = 0; i < 3; i++)
        remote->streams.piped[i] = true;
    return remote;
}

static bool holds(const struct bough_reader *reader, const char *text)
{
    return reader->size == strlen(text) &&
           memcmp(reader->data + reader->at, text, reader->size) == 0;
}

/* --- the end --------------------------------------------------------------------------------------- */

static void test_capture(void)
{
    struct bough_remote *remote = captured(4);
    struct bough_result r = {0}, told = {.exit_code = 3, .max_rss = 7, .stdout_dropped = 10};
    bough_remote_open(remote, &err);
    check(remote->state == BOUGH_PROCESS_STARTING && remote->output[0] && !remote->input,
          "captured: it begins");
    bough_remote_started(remote, 12);
    bough_writer_put(remote->output[0], "abcdef", 6);
    bough_writer_put(remote->output[1], "x", 1);
    check(bough_remote_finish(remote, &told, &err) == 0 && !remote->failed &&
              bough_remote_state(remote) == BOUGH_PROCESS_OVER,
          "captured: what is in the pipes is taken at the end");
    bough_remote_result(remote, &r);
    check(r.exit_code == 3 && r.max_rss == 7 && r.stdout_size == 4 && r.stdout_dropped == 12 &&
              memcmp(r.stdout_data, "abcd", 4) == 0 && r.stderr_size == 1,
          "captured: the result has it, and counts what was dropped");
    free(r.stdout_data);
    free(r.stderr_data);
    bough_remote_unref(remote);
}

static void test_queued(void)
{
    static char much[3 * 1024 * 1024];
    struct bough_remote *remote = captured(10);
    remote->streams.out[0].sink = BOUGH_SINK_TAKE; /* and nobody takes it */
    bough_remote_open(remote, &err);
    while (bough_writer_put(remote->output[0], much, 60000) > 0)
        turn(1);
    bough_writer_put(remote->output[0], much, 100);
    check(bough_remote_finish(remote, &nothing, &err) < 0 && err.kind == BOUGH_ERR_state &&
              remote->state == BOUGH_PROCESS_STARTING,
          "queued: it cannot have ended yet");
    bough_remote_close(remote);
    check(bough_remote_finish(remote, &nothing, &err) == 0 && remote->output[0]->fd < 0,
          "queued: unless nobody wants it");
    bough_remote_unref(remote);
}

static void test_kept(void)
{
    struct bough_remote *remote = piped();
    bough_remote_open(remote, &err);
    struct bough_reader *reader = remote->streams.reader[0];
    bough_writer_put(remote->output[0], "one ", 4);
    bough_writer_end(remote->output[1]);
    bough_remote_finish(remote, &nothing, &err);
    uint64_t fired = remote->changed.fired;
    check(remote->state == BOUGH_PROCESS_OVER &&
              bough_remote_state(remote) == BOUGH_PROCESS_RUNNING,
          "kept: it is over when all is in the pipe");
    bough_writer_put(remote->output[0], "two", 3);
    bough_writer_end(remote->output[0]);
    check(bough_remote_state(remote) == BOUGH_PROCESS_OVER && remote->changed.fired > fired,
          "kept: which is told");
    bough_reader_pull(reader, 100);
    check(holds(reader, "one two"), "kept: nothing is lost");
    bough_remote_unref(remote);
}

static void test_cut(void)
{
    struct bough_remote *remote = piped();
    struct bough_err why;
    bough_err_set(&why, BOUGH_ERR_resource, "there was more");
    bough_remote_open(remote, &err);
    struct bough_reader *reader = remote->streams.reader[0];
    bough_writer_put(remote->output[0], "some", 4);
    check(bough_remote_cut(remote, 0, &why) && holds(reader, "some") &&
              !bough_reader_at_end(reader) && reader->err.kind == BOUGH_ERR_resource,
          "cut: the error comes after what there is");
    bough_reader_close(remote->streams.reader[1]);
    check(bough_remote_cut(remote, 1, &why) && remote->output[1]->fd < 0,
          "cut: harmless when the caller reads no more");
    bough_remote_unref(remote);
    remote = captured(10);
    bough_remote_open(remote, &err);
    check(!bough_remote_cut(remote, 0, &why), "cut: not where nobody reads");
    bough_remote_unref(remote);
}

static void test_failure(void)
{
    struct bough_remote *remote = piped();
    struct bough_err why;
    bough_err_set(&why, BOUGH_ERR_transport, "the line is dead");
    bough_remote_open(remote, &err);
    bough_writer_put(remote->output[0], "some", 4);
    bough_remote_fail(remote, &why);
    bough_remote_fail(remote, NULL);
    bough_remote_finish(remote, &nothing, &err);
    struct bough_reader *reader = remote->streams.reader[0];
    while (bough_reader_pull(reader, 100) > 0)
        continue;
    check(remote->failed && !remote->ran && remote->err.kind == BOUGH_ERR_transport &&
              holds(reader, "some") && bough_reader_at_end(reader),
          "failed: once, after what had come");
    bough_remote_unref(remote);
}

static void test_whole(void)
{
    char dir[3000], path[3100], temp[3100];
    struct stat st;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/bough-remote-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!check(mkdtemp(dir) != NULL, "a directory"))
        return;
    snprintf(path, sizeof path, "%s/out", dir);
    for (int kept = 0; kept < 2; kept++) {
        struct bough_remote *remote = captured(0);
        struct bough_out *out = &remote->streams.out[0];
        snprintf(temp, sizeof temp, "%s/out.XXXXXX", dir);
        out->sink = BOUGH_SINK_FD;
        out->sink_fd = mkostemp(temp, O_CLOEXEC);
        out->path = strdup(path);
        out->temp = strdup(temp);
        bough_remote_open(remote, &err);
        bough_writer_put(remote->output[0], "whole", 5);
        if (!kept)
            bough_remote_close(remote);
        bough_remote_finish(remote, &nothing, &err);
        check((stat(path, &st) == 0 && st.st_size == 5) == kept && stat(temp, &st) < 0,
              "a file is there whole, and only when it is wanted: %d", kept);
        bough_remote_unref(remote);
    }
    unlink(path);
    rmdir(dir);
}

/* --- wishes ---------------------------------------------------------------------------------------- */

static void test_wishes(void)
{
    struct bough_remote *remote = piped();
    struct bough_remote_signal signal = {0};
    bough_remote_open(remote, &err);
    check(bough_remote_next(remote, &signal) == BOUGH_WISH_NONE, "nothing is wished");
    for (int round = 0; round < 3; round++)
        for (int number = 0; number <= 64; number++) {
            bough_remote_signal(remote, number, BOUGH_SCOPE_GROUP);
            bough_remote_signal(remote, number, BOUGH_SCOPE_TREE);
        }
    int count = 0;
    bool good = true;
    while (bough_remote_next(remote, &signal) == BOUGH_WISH_SIGNAL) {
        good = good && signal.number == 1 + count / 2 &&
               signal.scope == (count % 2 ? BOUGH_SCOPE_TREE : BOUGH_SCOPE_GROUP);
        count++;
    }
    check(good && count == BOUGH_REMOTE_SIGNALS, "signals come in their order, each once");
    bough_remote_signal(remote, SIGINT, BOUGH_SCOPE_GROUP);
    bough_remote_close(remote);
    bough_remote_signal(remote, SIGTERM, BOUGH_SCOPE_GROUP);
    enum bough_wish first = bough_remote_next(remote, &signal);
    check(first == BOUGH_WISH_CLOSE && bough_remote_next(remote, &signal) == BOUGH_WISH_NONE,
          "given up: told once, and nothing after it");
    bough_remote_unref(remote);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    loop = bough_loop_new();
    size_t before = open_descriptors();
    test_capture();
    test_queued();
    test_kept();
    test_cut();
    test_failure();
    test_whole();
    test_wishes();
    turn(2);
    check(!bough_loop_alive(loop), "nothing is left in the loop");
    check(open_descriptors() == before, "no descriptor is left");
    bough_loop_free(loop);
    printf("1..%d\n", tests);
    return failures > 0;
}
