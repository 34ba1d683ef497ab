/* lsave.c - out of an image onto the host's file system: save a file, extract a tree. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lask.h"
#include "ljob.h"
#include "sys.h"

#define STEP (8 * 1024 * 1024) /* copied between two looks at whether to stop */

struct save_errand {
    struct bough_errand errand;
    char *ref, *path, *destination;
    int64_t *stack, stack_count, bytes, files, skipped;
    int from, to;
    bool made; /* the destination is ours to remove */
    atomic_llong copied, size;
    atomic_bool stop;
};

static void save_clear(struct bough_errand *e)
{
    struct save_errand *s = (struct save_errand *)e;
    free(s->ref);
    free(s->path);
    free(s->destination);
    free(s->stack);
    bough_fd_close(&s->from);
    bough_fd_close(&s->to);
}

static void save_cancel(struct bough_errand *e)
{
    atomic_store(&((struct save_errand *)e)->stop, true);
}

static void save_progress(struct bough_errand *e, int64_t *done, int64_t *total)
{
    struct save_errand *s = (struct save_errand *)e;
    *done = atomic_load(&s->copied);
    *total = atomic_load(&s->size);
}

static void save_look_up(struct bough_job *job)
{
    struct save_errand *s = (struct save_errand *)job;
    s->stack_count =
        bough_store_find_stack(job->engine->store, s->ref, NULL, &s->stack, &s->errand.err);
    s->errand.rc = s->stack_count < 0 ? -1 : 0;
}

/* One stretch of data; the kernel copies it where it can. */
static int copy_stretch(struct save_errand *s, off_t from, off_t end)
{
    struct bough_err *err = &s->errand.err;
    BOUGH_CLEANUP_FREE char *block = NULL;
    const size_t room = 1024 * 1024;
    while (from < end) {
        if (atomic_load(&s->stop))
            return bough_err_set(err, BOUGH_ERR_cancelled, "closed before it was done");
        size_t wanted = (size_t)(end - from < STEP ? end - from : STEP);
        off_t in = from, out = from;
        ssize_t n = block ? -1 : BOUGH_RETRY(copy_file_range(s->from, &in, s->to, &out, wanted, 0));
        if (n <= 0) {
            if (!block && !(block = malloc(room)))
                return bough_err_sys(err, ENOMEM, "%s", s->destination);
            n = BOUGH_RETRY(pread(s->from, block, wanted < room ? wanted : room, from));
            if (n <= 0)
                return bough_err_sys(err, n < 0 ? errno : EIO, "%s", s->path);
            ssize_t put = 0;
            while (put < n) {
                ssize_t w = BOUGH_RETRY(pwrite(s->to, block + put, (size_t)(n - put), from + put));
                if (w < 0)
                    return bough_err_sys(err, errno, "%s", s->destination);
                put += w;
            }
        }
        from += n;
        atomic_fetch_add(&s->copied, n);
    }
    return 0;
}

static int save_copy_all(struct save_errand *s)
{
    struct bough_err *err = &s->errand.err;
    struct stat st;
    if (fstat(s->from, &st) < 0)
        return bough_err_sys(err, errno, "%s", s->path);
    atomic_store(&s->size, st.st_size);
    s->to = open(s->destination, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (s->to < 0)
        return bough_err_sys(err, errno, "%s", s->destination);
    s->made = true;
    off_t at = 0;
    while (at < st.st_size) {
        off_t data = lseek(s->from, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break; /* a hole up to the end */
        off_t hole = data < 0 ? -1 : lseek(s->from, data, SEEK_HOLE);
        if (hole < 0) {
            data = at;
            hole = st.st_size;
        }
        atomic_fetch_add(&s->copied, data - at);
        if (copy_stretch(s, data, hole) < 0)
            return -1;
        at = hole;
    }
    if (ftruncate(s->to, st.st_size) < 0 || fchmod(s->to, st.st_mode & 0777) < 0)
        return bough_err_sys(err, errno, "%s", s->destination);
    int to = bough_steal_fd(&s->to);
    if (close(to) < 0)
        return bough_err_sys(err, errno, "%s", s->destination);
    s->bytes = st.st_size;
    atomic_store(&s->copied, st.st_size);
    return 0;
}

static void save_copy(struct bough_job *job)
{
    struct save_errand *s = (struct save_errand *)job;
    s->errand.rc = save_copy_all(s);
    if (s->errand.rc < 0 && s->made)
        unlink(s->destination);
}

static void save_opened(struct bough_errand *e, struct bough_message *msg)
{
    struct save_errand *s = (struct save_errand *)e;
    struct bough_err err;
    if (msg->fd_count < 1) {
        bough_err_set(&err, BOUGH_ERR_protocol, "keeper: an answer without its file");
        bough_errand_fail(e, &err);
        return;
    }
    s->from = bough_steal_fd(&msg->fds[0]);
    bough_errand_work(e, save_copy, NULL);
}

static void save_ask(struct bough_errand *e, enum bough_msg type, const int *fds, int fd_count,
                     void (*heard)(struct bough_errand *, struct bough_message *))
{
    struct save_errand *s = (struct save_errand *)e;
    struct bough_wbuf body = {0};
    bough_stack_put(&body, s->stack, s->stack_count);
    bough_put_str(&body, s->path);
    bough_errand_ask(e, type, &body, fds, fd_count, heard);
    bough_wbuf_free(&body);
}

static void save_open(struct bough_errand *e)
{
    save_ask(e, BOUGH_MSG_OPEN, NULL, 0, save_opened);
}

static void extract_heard(struct bough_errand *e, struct bough_message *msg)
{
    struct save_errand *s = (struct save_errand *)e;
    s->bytes = bough_get_i64(&msg->body);
    s->files = bough_get_i64(&msg->body);
    s->skipped = bough_get_i64(&msg->body);
    bough_errand_over(e);
}

static void extract_ask(struct bough_errand *e)
{
    save_ask(e, BOUGH_MSG_EXTRACT, &((struct save_errand *)e)->to, 1, extract_heard);
}

static void save_push(lua_State *L, struct bough_errand *e)
{
    const struct save_errand *s = (struct save_errand *)e;
    lua_createtable(L, 0, 3);
    bough_set_integer(L, "bytes", s->bytes);
    bough_set_integer(L, "files", s->files);
    bough_set_integer(L, "skipped", s->skipped);
}

static struct save_errand *save_errand(lua_State *L)
{
    lua_settop(L, 4);
    struct save_errand *s = bough_errand_new(L, sizeof *s, "download", save_push, NULL);
    s->from = s->to = -1;
    s->errand.clear = save_clear;
    s->ref = bough_arg_copy(L, 2);
    s->path = bough_arg_copy(L, 3);
    s->destination = bough_arg_copy(L, 4);
    return s;
}

/* engine:save(uuid, path, destination) -> job */
int bough_ask_save(lua_State *L)
{
    struct save_errand *s = save_errand(L);
    s->errand.cancel = save_cancel;
    s->errand.progress = save_progress;
    bough_errand_work(&s->errand, save_look_up, save_open);
    return 1;
}

/* engine:extract(uuid, path, directory) -> job */
int bough_ask_extract(lua_State *L)
{
    struct save_errand *s = save_errand(L);
    s->to = open(s->destination, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->to < 0) {
        bough_err_sys(&s->errand.err, errno, "%s", s->destination);
        return bough_lerr_raise(L, &s->errand.err, "download");
    }
    bough_errand_work(&s->errand, save_look_up, extract_ask);
    return 1;
}
