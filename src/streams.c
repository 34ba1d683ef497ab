#define _GNU_SOURCE
#include "streams.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys.h"

void bough_streams_init(struct bough_streams *streams)
{
    memset(streams, 0, sizeof *streams);
    streams->in.fd = streams->in.source_fd = streams->in.source_epoll = -1;
    for (int i = 0; i < 2; i++)
        streams->out[i].fd = streams->out[i].sink_fd = -1;
    for (int i = 0; i < 3; i++)
        streams->given[i] = -1;
}

static int open_writer(struct bough_streams *s, struct bough_loop *loop, int *theirs,
                       struct bough_err *err)
{
    int ends[2];
    s->in.ended = true;
    if (bough_pipe_open(ends, 1, err) < 0)
        return -1;
    *theirs = ends[0];
    s->writer = bough_writer_new(loop, ends[1], false, err);
    return s->writer ? 0 : -1;
}

static int open_reader(struct bough_streams *s, int which, struct bough_loop *loop, int *theirs,
                       struct bough_err *err)
{
    int ends[2];
    s->out[which].eof = true;
    if (bough_pipe_open(ends, 0, err) < 0)
        return -1;
    *theirs = ends[1];
    s->reader[which] = bough_reader_new(loop, ends[0], false, err);
    return s->reader[which] ? 0 : -1;
}

static int open_output(struct bough_streams *s, int which, struct bough_loop *loop,
                       struct bough_cond *changed, int *theirs, struct bough_err *err)
{
    s->out[which].changed = changed;
    if (s->given[which + 1] >= 0) {
        *theirs = bough_steal_fd(&s->given[which + 1]);
        s->out[which].eof = true;
        return 0;
    }
    if (s->piped[which + 1])
        return open_reader(s, which, loop, theirs, err);
    return bough_out_open(&s->out[which], loop, changed, theirs, err);
}

int bough_streams_open(struct bough_streams *s, struct bough_loop *loop, struct bough_cond *changed,
                       int fds[3], struct bough_err *err)
{
    int rc;
    fds[0] = fds[1] = fds[2] = -1;
    s->in.changed = changed;
    if (s->given[0] >= 0) {
        fds[0] = bough_steal_fd(&s->given[0]);
        s->in.ended = true;
        rc = 0;
    } else if (s->piped[0]) {
        rc = open_writer(s, loop, &fds[0], err);
    } else {
        rc = bough_in_open(&s->in, loop, changed, &fds[0], err);
    }
    if (rc < 0 || open_output(s, 0, loop, changed, &fds[1], err) < 0)
        return -1;
    if (s->joined) {
        s->out[1].sink = BOUGH_SINK_DISCARD;
        s->out[1].eof = true;
        fds[2] = fds[1];
        return 0;
    }
    if (open_output(s, 1, loop, changed, &fds[2], err) < 0)
        return -1;
    if (s->reader[0] && s->reader[1])
        bough_reader_pair(s->reader[0], s->reader[1]);
    return 0;
}

int bough_streams_open_terminal(struct bough_streams *s, struct bough_loop *loop,
                                struct bough_cond *changed, int master, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int reading = master;
    BOUGH_CLEANUP_FD int writing = fcntl(master, F_DUPFD_CLOEXEC, 3);
    if (writing < 0)
        return bough_err_sys(err, errno, "terminal");
    fcntl(master, F_SETFL, O_RDWR | O_NONBLOCK);
    s->joined = true;
    s->out[1].sink = BOUGH_SINK_DISCARD;
    s->out[1].eof = true;
    if (s->piped[0]) {
        s->in.ended = true;
        s->writer = bough_writer_new(loop, bough_steal_fd(&writing), true, err);
        if (!s->writer)
            return -1;
    } else if (s->in.source == BOUGH_SOURCE_NONE) {
        s->in.ended = true;
    } else if (bough_in_over(&s->in, loop, changed, bough_steal_fd(&writing), err) < 0) {
        return -1;
    }
    if (!s->piped[1])
        return bough_out_over(&s->out[0], loop, changed, bough_steal_fd(&reading), err);
    s->out[0].eof = true;
    s->reader[0] = bough_reader_new(loop, bough_steal_fd(&reading), true, err);
    return s->reader[0] ? 0 : -1;
}

void bough_streams_close_ends(int fds[3])
{
    bough_fd_close(&fds[0]);
    if (fds[2] != fds[1])
        bough_fd_close(&fds[2]);
    bough_fd_close(&fds[1]);
    fds[2] = -1;
}

void bough_streams_finish(struct bough_streams *s)
{
    for (int i = 0; i < 2; i++)
        if (s->out[i].changed && !s->out[i].eof) /* one that was opened */
            bough_out_finish(&s->out[i]);
}

int bough_streams_settle(struct bough_streams *s, bool keep, struct bough_err *err)
{
    int rc = 0;
    if (s->in.err.msg[0]) {
        *err = s->in.err;
        rc = -1;
    }
    for (int i = 0; i < 2; i++) {
        bool failed = s->out[i].err.msg[0] != '\0';
        if (bough_out_settle(&s->out[i], keep && rc == 0) < 0)
            failed = true;
        if (failed && rc == 0) {
            *err = s->out[i].err;
            rc = -1;
        }
    }
    bough_in_close(&s->in);
    return rc;
}

void bough_streams_result(struct bough_streams *s, int status, bool timed_out,
                          struct bough_result *r)
{
    r->present = true;
    r->timed_out = timed_out;
    r->signal = timed_out ? SIGKILL : WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    r->exit_code = r->signal ? 128 + r->signal : WEXITSTATUS(status);
    r->stdout_dropped = s->out[0].dropped;
    r->stderr_dropped = s->out[1].dropped;
    if (s->out[0].sink == BOUGH_SINK_CAPTURE) {
        r->has_stdout = true;
        r->stdout_data = s->out[0].data;
        r->stdout_size = s->out[0].size;
        s->out[0].data = NULL;
    }
    if (s->out[1].sink == BOUGH_SINK_CAPTURE && !s->joined) {
        r->has_stderr = true;
        r->stderr_data = s->out[1].data;
        r->stderr_size = s->out[1].size;
        s->out[1].data = NULL;
    }
}

void bough_streams_discard(struct bough_streams *s)
{
    for (int i = 0; i < 2; i++)
        if (s->out[i].sink == BOUGH_SINK_TAKE) {
            s->out[i].sink = BOUGH_SINK_DISCARD;
            bough_out_taken(&s->out[i]);
        }
}

void bough_streams_stop(struct bough_streams *s)
{
    bough_in_close(&s->in);
    bough_out_close(&s->out[0]);
    bough_out_close(&s->out[1]);
    for (int i = 0; i < 3; i++)
        bough_fd_close(&s->given[i]);
}

void bough_streams_close(struct bough_streams *s)
{
    bough_streams_stop(s);
    if (s->writer)
        bough_writer_unref(s->writer);
    for (int i = 0; i < 2; i++)
        if (s->reader[i])
            bough_reader_unref(s->reader[i]);
    s->writer = NULL;
    s->reader[0] = s->reader[1] = NULL;
}
