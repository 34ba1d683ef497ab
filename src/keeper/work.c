#define _GNU_SOURCE
#include "work.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../sys.h"
#include "list.h"
#include "tree.h"

struct work {
    const struct bough_site *site;
    struct bough_views *views;
    struct bough_message *msg;
    struct bough_wbuf answer;
    int answer_fd;
};

static const char *opaque_name(const struct bough_site *site)
{
    return site->root ? "trusted.overlay.opaque" : "user.overlay.opaque";
}

/* home/tmp/<owner>/<id>/fs, new and empty. */
static int make_layer(struct work *w, int64_t id, struct bough_err *err)
{
    char name[48];
    snprintf(name, sizeof name, "%lld", (long long)id);
    if (mkdirat(w->site->owner_fd, name, 0700) < 0)
        return bough_err_sys(err, errno, "layer %s", name);
    snprintf(name, sizeof name, "%lld/fs", (long long)id);
    if (mkdirat(w->site->owner_fd, name, 0755) < 0)
        return bough_err_sys(err, errno, "layer %s", name);
    int fd = openat(w->site->owner_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? bough_err_sys(err, errno, "layer %s", name) : fd;
}

static void drop_layer(struct work *w, int64_t id)
{
    char name[48];
    snprintf(name, sizeof name, "%lld", (long long)id);
    bough_tree_remove(w->site->owner_fd, name, NULL);
}

static void put_size(struct work *w, const struct bough_tree_size *size, int64_t skipped)
{
    bough_put_i64(&w->answer, size->bytes);
    bough_put_i64(&w->answer, size->files);
    bough_put_i64(&w->answer, skipped);
}

static int do_remove(struct work *w, struct bough_err *err)
{
    char **names = bough_get_strv(&w->msg->body);
    if (!names)
        return bough_err_set(err, BOUGH_ERR_protocol, "remove: malformed");
    int rc = 0;
    for (char **n = names; *n; n++) {
        /* Only what lies directly in a directory of tmp: the store hands out no other names. */
        if (strncmp(*n, "tmp/", 4) != 0 || strstr(*n, ".."))
            rc = bough_err_set(err, BOUGH_ERR_invalid,
                               "remove %s: not a temporary directory of the store", *n);
        else if (bough_tree_remove(w->site->home_fd, *n, err) < 0)
            rc = bough_err_wrap(err, "remove %s", *n);
    }
    free(names);
    return rc;
}

static int do_merge(struct work *w, struct bough_err *err)
{
    int64_t id = bough_get_i64(&w->msg->body), *layers = NULL;
    int64_t count = bough_stack_get(&w->msg->body, &layers);
    if (count < 2 || count > 64)
        return bough_err_set(err, BOUGH_ERR_protocol, "merge: malformed");
    int fds[64];
    struct bough_tree_size size = {0};
    for (int64_t i = 0; i < count; i++) {
        char name[48];
        snprintf(name, sizeof name, "%lld/fs", (long long)layers[i]);
        fds[i] = openat(w->site->layers_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fds[i] < 0)
            return bough_err_sys(err, errno, "layer %s", name);
    }
    BOUGH_CLEANUP_FD int out = make_layer(w, id, err);
    if (out < 0)
        return -1;
    if (bough_tree_merge(fds, (int)count, out, opaque_name(w->site), &size, err) < 0) {
        drop_layer(w, id);
        return -1;
    }
    put_size(w, &size, 0);
    return 0;
}

static int do_copy(struct work *w, struct bough_err *err)
{
    int64_t id = bough_get_i64(&w->msg->body);
    int64_t max_bytes = bough_get_i64(&w->msg->body);
    if (w->msg->body.failed || w->msg->fd_count < 1)
        return bough_err_set(err, BOUGH_ERR_protocol, "copy: malformed");
    BOUGH_CLEANUP_FD int out = make_layer(w, id, err);
    if (out < 0)
        return -1;
    struct bough_tree_copy how = {.squash = !w->site->root, .one_fs = true, .max_bytes = max_bytes};
    struct bough_tree_size size = {0};
    if (bough_tree_copy(w->msg->fds[0], out, &how, &size, err) < 0) {
        drop_layer(w, id);
        return -1;
    }
    put_size(w, &size, how.skipped);
    return 0;
}

/* Reads the unpacker's report: "ok <bytes> <files> <skipped>" or "err <kind> <errno> <message>". */
static int read_report(int fd, struct bough_tree_size *size, int64_t *skipped,
                       struct bough_err *err)
{
    char text[1024];
    size_t n = 0;
    ssize_t got;
    while (n < sizeof text - 1 && (got = BOUGH_RETRY(read(fd, text + n, sizeof text - 1 - n))) > 0)
        n += (size_t)got;
    text[n] = '\0';
    text[strcspn(text, "\n")] = '\0';
    long long bytes, files, left;
    if (sscanf(text, "ok %lld %lld %lld", &bytes, &files, &left) == 3) {
        *size = (struct bough_tree_size){.bytes = bytes, .files = files};
        *skipped = left;
        return 0;
    }
    char kind[24];
    int sys, at = 0;
    if (sscanf(text, "err %23s %d %n", kind, &sys, &at) == 2 && at > 0) {
        bough_err_set(err, BOUGH_ERR_io, "%s", text + at);
        for (int k = 0; k < BOUGH_ERR_KIND_COUNT; k++)
            if (strcmp(kind, bough_err_kind_name((enum bough_err_kind)k)) == 0)
                err->kind = (enum bough_err_kind)k;
        err->sys = sys;
        return -1;
    }
    return bough_err_set(err, BOUGH_ERR_io, "unpacking: the unpacker ended without a word");
}

static void exec_unpacker(struct work *w, int out, int report, int64_t max_bytes, int64_t max_files)
{
    char bytes[24], files[24];
    snprintf(bytes, sizeof bytes, "%lld", (long long)max_bytes);
    snprintf(files, sizeof files, "%lld", (long long)max_files);
    /* Descriptors to fixed numbers; they are moved out of each other's way first. */
    int in = fcntl(w->msg->fds[0], F_DUPFD, 20);
    int o = fcntl(out, F_DUPFD, 20);
    int r = fcntl(report, F_DUPFD, 20);
    if (in < 0 || o < 0 || r < 0 || dup2(o, 10) < 0 || dup2(in, 11) < 0 || dup2(r, 12) < 0)
        return;
    close(in);
    close(o);
    close(r);
    const char *argv[20] = {"bough-unpack", "--out-fd", "10",       "--in-fd",           "11",
                            "--report-fd",  "12",       "--opaque", opaque_name(w->site)};
    int n = 9;
    if (max_bytes > 0) {
        argv[n++] = "--max-bytes";
        argv[n++] = bytes;
    }
    if (max_files > 0) {
        argv[n++] = "--max-files";
        argv[n++] = files;
    }
    if (!w->site->root)
        argv[n++] = "--squash";
    char *none[] = {NULL};
    execve(w->site->unpacker, (char *const *)(uintptr_t)argv, none);
    dprintf(12, "err %s %d unpacker %s: %s\n", bough_err_kind_name(bough_err_kind_of(errno)), errno,
            w->site->unpacker, strerror(errno));
}

static int do_unpack(struct work *w, struct bough_err *err)
{
    int64_t id = bough_get_i64(&w->msg->body);
    int64_t max_bytes = bough_get_i64(&w->msg->body), max_files = bough_get_i64(&w->msg->body);
    int report[2];
    if (w->msg->body.failed || w->msg->fd_count < 1)
        return bough_err_set(err, BOUGH_ERR_protocol, "unpack: malformed");
    BOUGH_CLEANUP_FD int out = make_layer(w, id, err);
    if (out < 0)
        return -1;
    if (pipe2(report, O_CLOEXEC) < 0)
        return bough_err_sys(err, errno, "unpack: pipe");
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        exec_unpacker(w, out, report[1], max_bytes, max_files);
        _exit(1);
    }
    close(report[1]);
    struct bough_tree_size size = {0};
    int64_t skipped = 0;
    int rc = pid < 0 ? bough_err_sys(err, errno, "unpack: fork")
                     : read_report(report[0], &size, &skipped, err);
    close(report[0]);
    int status = 0;
    if (pid > 0)
        BOUGH_RETRY(waitpid(pid, &status, 0));
    if (rc == 0 && status != 0)
        rc = bough_err_set(err, BOUGH_ERR_io, "unpacking: the unpacker was killed (signal %d)",
                           WTERMSIG(status));
    if (rc < 0)
        drop_layer(w, id);
    else
        put_size(w, &size, skipped);
    return rc;
}

static int do_list(struct work *w, struct bough_err *err)
{
    int64_t *stack = NULL;
    int64_t count = bough_stack_get(&w->msg->body, &stack);
    const char *path = bough_get_str(&w->msg->body);
    if (count < 0 || !path)
        return bough_err_set(err, BOUGH_ERR_protocol, "list: malformed");
    BOUGH_CLEANUP_FD int dir = bough_view_open(w->views, stack, count, path, true, err);
    free(stack);
    if (dir < 0)
        return -1;
    w->answer_fd = memfd_create("bough-list", MFD_CLOEXEC);
    if (w->answer_fd < 0)
        return bough_err_sys(err, errno, "list");
    return bough_list_dir(dir, w->answer_fd, err);
}

static const struct {
    enum bough_msg type;
    int (*run)(struct work *, struct bough_err *);
} jobs[] = {
    {BOUGH_MSG_REMOVE, do_remove}, {BOUGH_MSG_MERGE, do_merge}, {BOUGH_MSG_COPY, do_copy},
    {BOUGH_MSG_UNPACK, do_unpack}, {BOUGH_MSG_LIST, do_list},
};

bool bough_work_is(enum bough_msg type)
{
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++)
        if (jobs[i].type == type)
            return true;
    return false;
}

static _Noreturn void work_main(struct work *w, int host)
{
    struct bough_err err = {.kind = BOUGH_ERR_protocol, .msg = "unknown request"};
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, "bough-worker");
    int rc = -1;
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++)
        if (jobs[i].type == w->msg->type)
            rc = jobs[i].run(w, &err);
    enum bough_msg type = BOUGH_MSG_DONE;
    if (rc < 0) {
        bough_wbuf_free(&w->answer);
        bough_put_err(&w->answer, &err);
        type = BOUGH_MSG_FAILED;
    }
    bool with_fd = rc == 0 && w->answer_fd >= 0;
    rc = bough_send(host, type, w->msg->id, &w->answer, &w->answer_fd, with_fd, NULL);
    _exit(rc < 0 ? 1 : 0);
}

pid_t bough_work_start(const struct bough_site *site, struct bough_views *views, int host,
                       struct bough_message *msg, struct bough_err *err)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct work w = {.site = site, .views = views, .msg = msg, .answer_fd = -1};
        work_main(&w, host);
    }
    return pid < 0 ? (pid_t)bough_err_sys(err, errno, "keeper: worker") : pid;
}
