#define _GNU_SOURCE
#include "remote.h"

#include <signal.h>
#include <string.h>

#include "sys.h"

static const char *const names[] = {"stdout", "stderr"};

struct bough_remote *bough_remote_new(struct bough_loop *loop)
{
    struct bough_remote *remote = calloc(1, sizeof *remote);
    if (!remote)
        return NULL;
    remote->refs = 1;
    remote->loop = loop;
    bough_cond_init(&remote->changed, loop);
    bough_cond_init(&remote->wished, loop);
    bough_streams_init(&remote->streams);
    return remote;
}

void bough_remote_unref(struct bough_remote *remote)
{
    if (--remote->refs > 0)
        return;
    bough_streams_close(&remote->streams);
    if (remote->input)
        bough_reader_unref(remote->input);
    for (int i = 0; i < 2; i++) {
        if (remote->output[i]) {
            remote->output[i]->shut = NULL; /* it may still have to be written */
            bough_writer_unref(remote->output[i]);
        }
        if (remote->kept[i])
            bough_reader_unref(remote->kept[i]);
    }
    bough_cond_destroy(&remote->changed);
    bough_cond_destroy(&remote->wished);
    free(remote);
}

/* The command's ends are ours. */
static int take_ends(struct bough_remote *remote, int fds[3], struct bough_err *err)
{
    if (fds[2] == fds[1])
        fds[2] = -1;
    if (fds[0] >= 0) {
        remote->input = bough_reader_new(remote->loop, bough_steal_fd(&fds[0]), false, err);
        if (!remote->input)
            return -1;
    }
    for (int i = 0; i < 2; i++) {
        if (fds[i + 1] < 0)
            continue;
        int fd = bough_steal_fd(&fds[i + 1]);
        remote->output[i] = bough_writer_new(remote->loop, fd, false, err);
        if (!remote->output[i])
            return -1;
        remote->output[i]->shut = &remote->changed;
    }
    return 0;
}

int bough_remote_open(struct bough_remote *remote, struct bough_err *err)
{
    struct bough_streams *streams = &remote->streams;
    int fds[3];
    int rc = bough_streams_open(streams, remote->loop, &remote->changed, fds, err);
    if (rc == 0)
        rc = take_ends(remote, fds, err);
    bough_streams_close_ends(fds);
    for (int i = 0; i < 2; i++) {
        remote->kept[i] = streams->reader[i];
        if (remote->kept[i])
            remote->kept[i]->refs++;
    }
    return rc;
}

/* --- the child's side ------------------------------------------------------------------------------ */

static bool is_kept(const struct bough_remote *remote, int which)
{
    return remote->kept[which] != NULL;
}

enum bough_process_state bough_remote_state(const struct bough_remote *remote)
{
    if (remote->state == BOUGH_PROCESS_OVER && !remote->failed && !remote->given_up)
        for (int i = 0; i < 2; i++)
            if (is_kept(remote, i) && remote->output[i] && remote->output[i]->fd >= 0)
                return BOUGH_PROCESS_RUNNING;
    return remote->state;
}

/* As the kernel has it: a signal that is pending already is not sent twice. */
void bough_remote_signal(struct bough_remote *remote, int number, enum bough_scope scope)
{
    if (remote->state == BOUGH_PROCESS_OVER || remote->given_up || number == 0)
        return;
    for (int i = 0; i < remote->signal_count; i++)
        if (remote->signals[i].number == number && remote->signals[i].scope == scope)
            return;
    if (remote->signal_count == BOUGH_REMOTE_SIGNALS)
        return; /* no room for a number that is none */
    remote->signals[remote->signal_count++] = (struct bough_remote_signal){number, scope};
    bough_cond_fire(&remote->wished);
}

void bough_remote_close(struct bough_remote *remote)
{
    if (remote->given_up || bough_remote_state(remote) == BOUGH_PROCESS_OVER)
        return;
    remote->given_up = true;
    remote->signal_count = 0;
    bough_streams_discard(&remote->streams);
    bough_cond_fire(&remote->wished);
    bough_cond_fire(&remote->changed);
}

void bough_remote_result(struct bough_remote *remote, struct bough_result *r)
{
    const struct bough_result *told = &remote->result;
    bough_streams_result(&remote->streams, 0, false, r);
    r->exit_code = told->exit_code;
    r->signal = told->signal;
    r->timed_out = told->timed_out;
    r->oom = told->oom;
    r->elapsed_time = told->elapsed_time;
    r->user_time = told->user_time;
    r->system_time = told->system_time;
    r->max_rss = told->max_rss;
    r->stdout_dropped += told->stdout_dropped;
    r->stderr_dropped += told->stderr_dropped;
}

/* --- the peer's side ------------------------------------------------------------------------------- */

enum bough_wish bough_remote_next(struct bough_remote *remote, struct bough_remote_signal *signal)
{
    if (remote->state == BOUGH_PROCESS_OVER)
        return BOUGH_WISH_NONE;
    if (remote->given_up) {
        bool is_news = !remote->told;
        remote->told = true;
        return is_news ? BOUGH_WISH_CLOSE : BOUGH_WISH_NONE;
    }
    if (remote->signal_count == 0)
        return BOUGH_WISH_NONE;
    *signal = remote->signals[0];
    remote->signal_count--;
    memmove(remote->signals, remote->signals + 1,
            (size_t)remote->signal_count * sizeof *remote->signals);
    return BOUGH_WISH_SIGNAL;
}

void bough_remote_started(struct bough_remote *remote, int64_t pid)
{
    if (remote->state != BOUGH_PROCESS_STARTING)
        return;
    remote->state = BOUGH_PROCESS_RUNNING;
    remote->ran = true;
    remote->pid = pid;
    bough_cond_fire(&remote->changed);
}

static void leave(struct bough_remote *remote)
{
    remote->state = BOUGH_PROCESS_OVER;
    remote->signal_count = 0;
    bough_cond_fire(&remote->changed);
    bough_cond_fire(&remote->wished);
}

static bool is_writing(const struct bough_writer *writer)
{
    return writer->size > 0 || writer->first;
}

static int refuse_queued(int which, struct bough_err *err)
{
    return bough_err_set(err, BOUGH_ERR_state,
                         "something is still being written to %s: flush() it first", names[which]);
}

int bough_remote_finish(struct bough_remote *remote, const struct bough_result *result,
                        struct bough_err *err)
{
    if (remote->state == BOUGH_PROCESS_OVER)
        return 0;
    for (int i = 0; i < 2; i++)
        if (remote->output[i] && !is_kept(remote, i) && !remote->given_up &&
            is_writing(remote->output[i]))
            return refuse_queued(i, err);
    if (remote->input)
        bough_reader_close(remote->input);
    for (int i = 0; i < 2; i++)
        if (remote->output[i] && !is_kept(remote, i))
            bough_writer_close(remote->output[i]);
    bough_streams_finish(&remote->streams);
    if (bough_streams_settle(&remote->streams, !remote->given_up, &remote->err) < 0)
        remote->failed = true;
    remote->ran = true;
    remote->result = *result;
    leave(remote);
    return 0;
}

void bough_remote_fail(struct bough_remote *remote, const struct bough_err *err)
{
    if (remote->state == BOUGH_PROCESS_OVER)
        return;
    remote->failed = true;
    if (err)
        remote->err = *err;
    bough_streams_stop(&remote->streams);
    if (remote->input)
        bough_reader_close(remote->input);
    for (int i = 0; i < 2; i++)
        if (remote->output[i])
            bough_writer_end(remote->output[i]);
    leave(remote);
}

bool bough_remote_cut(struct bough_remote *remote, int which, const struct bough_err *why)
{
    struct bough_reader *reader = remote->kept[which];
    struct bough_writer *writer = remote->output[which];
    if (!reader || !writer || reader->taken)
        return false;
    if (reader->fd >= 0) {
        bough_reader_cut(reader);
        if (!reader->err.msg[0])
            reader->err = *why;
        reader->eof = false;
    }
    bough_writer_close(writer);
    return true;
}
