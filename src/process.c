#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "sys.h"

struct bough_process *bough_process_new(struct bough_crew *crew)
{
    struct bough_process *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->refs = 1;
    p->crew = crew;
    crew->refs++;
    p->terminal = -1;
    bough_cond_init(&p->changed, crew->loop);
    bough_streams_init(&p->streams);
    return p;
}

void bough_process_unref(struct bough_process *p)
{
    if (--p->refs > 0)
        return;
    bough_streams_close(&p->streams);
    bough_fd_close(&p->terminal);
    bough_cond_destroy(&p->changed);
    bough_strv_free(p->command.argv);
    bough_strv_free(p->command.env);
    free((char *)p->command.cwd);
    free((char *)p->command.user);
    free(p->label);
    bough_crew_unref(p->crew);
    free(p);
}

static char *copy_of(const char *data, size_t size)
{
    char *copy = data ? malloc(size + 1) : NULL;
    if (copy)
        memcpy(copy, data, size);
    return copy;
}

void bough_process_result(struct bough_process *p, struct bough_result *r, bool copy)
{
    char *held[2] = {p->streams.out[0].data, p->streams.out[1].data};
    bough_streams_result(&p->streams, (int)p->end.status, p->end.timed_out, r);
    if (copy) {
        p->streams.out[0].data = held[0];
        p->streams.out[1].data = held[1];
        r->stdout_data = copy_of(r->stdout_data, r->stdout_size);
        r->stderr_data = copy_of(r->stderr_data, r->stderr_size);
        r->stdout_size = r->stdout_data ? r->stdout_size : 0;
        r->stderr_size = r->stderr_data ? r->stderr_size : 0;
    }
    r->oom = p->oom;
    r->elapsed_time = (double)p->end.elapsed_ns / 1e9;
    r->user_time = (double)p->end.user_us / 1e6;
    r->system_time = (double)p->end.system_us / 1e6;
    r->max_rss = p->end.max_rss;
    r->usage = p->end.usage;
    r->core_dump = WIFSIGNALED((int)p->end.status) && WCOREDUMP((int)p->end.status);
}

/* Out of the crew's list, and everybody is told. The reference is the crew's. */
static void leave(struct bough_process *p)
{
    struct bough_crew *crew = p->crew;
    p->state = BOUGH_PROCESS_OVER;
    if (p->link) {
        *p->link = p->next;
        if (p->next)
            p->next->link = p->link;
        p->link = NULL;
        if (p->id > 0)
            bough_client_forget(crew->client, p->id);
        crew->live--;
        if (crew->left)
            crew->left(crew, p);
        bough_cond_fire(&p->changed);
        bough_process_unref(p);
    } else {
        bough_cond_fire(&p->changed);
    }
}

static void fail(struct bough_process *p, const struct bough_err *err)
{
    if (p->state == BOUGH_PROCESS_OVER)
        return;
    p->failed = true;
    p->err = *err;
    bough_streams_stop(&p->streams);
    leave(p);
}

void bough_process_lose(struct bough_process *p, const struct bough_err *why)
{
    if (p->ended)
        bough_process_conclude(p);
    else
        fail(p, why);
}

static void started(struct bough_process *p, struct bough_message *msg)
{
    struct bough_err err;
    p->pid = bough_get_i64(&msg->body);
    if (p->command.pty) {
        int master = msg->fd_count > 0 ? bough_steal_fd(&msg->fds[0]) : -1;
        p->terminal = master < 0 ? -1 : fcntl(master, F_DUPFD_CLOEXEC, 3);
        if (p->terminal < 0) {
            bough_fd_close(&master);
            p->failed = true;
            bough_err_sys(&err, EMFILE, "terminal");
        } else {
            p->failed = bough_streams_open_terminal(&p->streams, p->crew->loop, &p->changed, master,
                                                    &err) < 0;
        }
        if (p->failed) {
            bough_process_signal(p, SIGKILL, BOUGH_SCOPE_TREE);
            p->err = err; /* it ends soon, and this is why */
        }
    }
    p->state = BOUGH_PROCESS_RUNNING;
    bough_cond_fire(&p->changed);
}

void bough_process_conclude(struct bough_process *p)
{
    if (p->state == BOUGH_PROCESS_OVER) /* lost meanwhile */
        return;
    bough_streams_finish(&p->streams);
    if (!p->failed && bough_streams_settle(&p->streams, !p->given_up, &p->err) < 0)
        p->failed = true;
    leave(p);
}

static bool on_message(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    struct bough_process *p = arg;
    if (!msg) {
        /* With the connection: the owner of the crew knows why, and tells. */
        if (err->kind == BOUGH_ERR_closed && p->crew->gone && !p->crew->hung_up)
            return false;
        /* Its terminal found no room in our table of descriptors, and we shall not hear of it again. */
        if (err->sys == EMFILE)
            bough_process_signal(p, SIGKILL, BOUGH_SCOPE_TREE);
        fail(p, err);
        return false;
    }
    if (msg->type == BOUGH_MSG_STARTED) {
        started(p, msg);
        return true;
    }
    if (msg->type != BOUGH_MSG_ENDED)
        return true;
    struct bough_err bad;
    if (bough_end_get(&msg->body, &p->end, &bad) < 0) {
        fail(p, &bad);
        return false;
    }
    p->ended = true;
    int status = (int)p->end.status; /* a shell tells what killed its child by its own exit code */
    bool was_killed =
        WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 128 + SIGKILL;
    if (!was_killed || p->end.timed_out || p->given_up || !p->crew->ask_why ||
        !p->crew->ask_why(p->crew, p))
        bough_process_conclude(p);
    return false;
}

void bough_process_start(struct bough_process *p)
{
    struct bough_crew *crew = p->crew;
    struct bough_err err;
    struct bough_wbuf body = {0};
    int fds[3] = {-1, -1, -1}, sent[3], count = 0, rc = 0;
    p->refs++; /* the crew's */
    p->next = crew->all;
    p->link = &crew->all;
    if (p->next)
        p->next->link = &p->next;
    crew->all = p;
    crew->live++;
    if (!p->command.pty)
        rc = bough_streams_open(&p->streams, crew->loop, &p->changed, fds, &err);
    p->command.streams = 0;
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0) {
            p->command.streams |= 1 << i;
            sent[count++] = fds[i];
        }
    bough_command_put(&body, &p->command);
    if (rc == 0) {
        p->id =
            bough_client_ask(crew->client, BOUGH_MSG_EXEC, &body, sent, count, on_message, p, &err);
        rc = p->id < 0 ? -1 : 0;
    }
    bough_wbuf_free(&body);
    bough_streams_close_ends(fds);
    if (rc < 0) {
        p->id = 0;
        fail(p, &err);
    } else {
        bough_crew_kick(crew);
    }
}

void bough_process_signal(struct bough_process *p, int number, enum bough_scope scope)
{
    struct bough_wbuf body = {0};
    if (p->state == BOUGH_PROCESS_OVER || p->id <= 0)
        return;
    bough_put_i64(&body, number);
    bough_put_i64(&body, scope);
    bough_client_tell(p->crew->client, BOUGH_MSG_SIGNAL, p->id, &body, NULL, 0, NULL);
    bough_wbuf_free(&body);
    bough_crew_kick(p->crew);
}

int bough_process_resize(struct bough_process *p, int rows, int cols, struct bough_err *err)
{
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)cols};
    if (p->terminal < 0)
        return bough_err_set(err, BOUGH_ERR_state,
                             "the process has no terminal: start it with pty = true");
    if (ioctl(p->terminal, TIOCSWINSZ, &size) < 0)
        return bough_err_sys(err, errno, "terminal");
    return 0;
}

void bough_process_close(struct bough_process *p)
{
    if (p->given_up || p->state == BOUGH_PROCESS_OVER)
        return;
    p->given_up = true;
    bough_process_signal(p, SIGKILL, BOUGH_SCOPE_TREE);
    bough_streams_discard(&p->streams);
}
