/* limport.c - images from a directory, an archive, or the machine's busybox. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lask.h"
#include "sys.h"

static void work_commit(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    bough_uuid_make(q->image.uuid);
    strcpy(q->image.origin, "import");
    q->image.tag = q->tag;
    q->tag = NULL;
    q->image.layer = q->layer;
    q->image.size = q->bytes;
    q->rc =
        bough_store_commit(q->engine->store, &q->image, q->layer, 0, q->bytes, q->files, &q->err);
}

static void import_committed(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    if (q->rc < 0)
        bough_engine_drop_staged(q->engine, q->layer);
    bough_question_answered(q);
}

static bool heard_import(void *arg, struct bough_message *msg, const struct bough_err *err)
{
    struct bough_question *q = arg;
    struct bough_err closed;
    if (msg && q->engine->closed) {
        bough_err_set(&closed, BOUGH_ERR_closed, "the engine was closed");
        err = &closed;
        msg = NULL;
    }
    if (!msg) {
        q->rc = -1;
        q->err = *err;
        bough_question_answered(q);
        return false;
    }
    q->bytes = bough_get_i64(&msg->body);
    q->files = bough_get_i64(&msg->body);
    q->skipped = bough_get_i64(&msg->body);
    bough_job_start(q->engine, &q->job, work_commit, import_committed);
    return false;
}

static void work_layer_id(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    q->layer = bough_store_layer_ids(q->engine->store, 1, &q->err);
    q->rc = q->layer < 0 ? -1 : 0;
}

static void import_numbered(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    struct bough_wbuf body = {0};
    bough_put_i64(&body, q->layer);
    bough_put_i64(&body, q->max_bytes);
    bough_put_i64(&body, 0);
    if (q->rc < 0 || bough_client_ask(q->engine->client, q->request, &body, &q->source_fd, 1,
                                      heard_import, q, &q->err) < 0) {
        q->rc = -1;
        bough_question_answered(q);
    }
    bough_wbuf_free(&body);
    bough_engine_kick(q->engine);
}

/* The machine's busybox as a tree: itself, a shell, and the places that programs expect. Its other
 * names are made by running it once (lua/bough/images.lua). */
static int copy_program(int from, int dir, const char *name, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int to = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
    BOUGH_CLEANUP_FREE char *block =
        NULL; /* for two file systems between which the kernel does not copy */
    const size_t room = 256 * 1024;
    struct stat st;
    if (to < 0 || fstat(from, &st) < 0 || fchmod(to, 0755) < 0)
        return bough_err_sys(err, errno, "busybox");
    off_t at = 0;
    while (at < st.st_size) {
        off_t source = at;
        ssize_t n = block ? 0
                          : BOUGH_RETRY(copy_file_range(from, &source, to, NULL,
                                                        (size_t)(st.st_size - at), 0));
        if (n <= 0) {
            if (!block && !(block = malloc(room)))
                return bough_err_sys(err, ENOMEM, "busybox");
            n = BOUGH_RETRY(pread(from, block, room, at));
            if (n > 0)
                n = BOUGH_RETRY(write(to, block, (size_t)n));
        }
        if (n <= 0)
            return bough_err_sys(err, n < 0 ? errno : EIO, "busybox");
        at += n;
    }
    return 0;
}

static int write_text(int dir, const char *name, const char *text, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0 || fchmod(fd, 0644) < 0 || BOUGH_RETRY(write(fd, text, strlen(text))) < 0)
        return bough_err_sys(err, errno, "busybox image: %s", name);
    return 0;
}

static int make_busybox_tree(struct bough_question *q)
{
    char path[4300];
    struct bough_err *err = &q->err;
    snprintf(path, sizeof path, "%s/tmp/%s/%lld", bough_store_home(q->engine->store),
             bough_store_owner(q->engine->store), (long long)q->layer);
    if (mkdir(path, 0700) < 0)
        return bough_err_sys(err, errno, "layer %s", path);
    strcat(path, "/fs");
    if (mkdir(path, 0755) < 0)
        return bough_err_sys(err, errno, "layer %s", path);
    BOUGH_CLEANUP_FD int fs = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    static const struct {
        const char *name;
        mode_t mode;
    } dirs[] = {{"bin", 0755},      {"sbin", 0755}, {"usr", 0755},      {"usr/bin", 0755},
                {"usr/sbin", 0755}, {"etc", 0755},  {"root", 0700},     {"home", 0755},
                {"tmp", 01777},     {"var", 0755},  {"var/tmp", 01777}, {"proc", 0555},
                {"sys", 0555},      {"dev", 0755},  {"run", 0755}};
    if (fs < 0 || fchmod(fs, 0755) < 0)
        return bough_err_sys(err, errno, "layer %s", path);
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
        if (mkdirat(fs, dirs[i].name, 0755) < 0 || fchmodat(fs, dirs[i].name, dirs[i].mode, 0) < 0)
            return bough_err_sys(err, errno, "busybox image: %s", dirs[i].name);
    if (copy_program(q->source_fd, fs, "bin/busybox", err) < 0)
        return -1;
    if (symlinkat("busybox", fs, "bin/sh") < 0)
        return bough_err_sys(err, errno, "busybox image: bin/sh");
    if (write_text(fs, "etc/passwd",
                   "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
                   err) < 0 ||
        write_text(fs, "etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n", err) < 0 ||
        write_text(fs, "etc/hosts", "", err) < 0 || write_text(fs, "etc/hostname", "", err) < 0 ||
        write_text(fs, "etc/resolv.conf", "", err) < 0)
        return -1;
    struct stat st;
    q->bytes = fstat(q->source_fd, &st) == 0 ? st.st_size : 0;
    q->files = (int64_t)(sizeof dirs / sizeof *dirs) + 7;
    return 0;
}

static void work_busybox(struct bough_job *job)
{
    struct bough_question *q = (struct bough_question *)job;
    work_layer_id(job);
    if (q->rc == 0)
        q->rc = make_busybox_tree(q);
    if (q->rc == 0)
        work_commit(job);
}

/* A dynamically linked busybox would need libraries that an image of its own does not have. */
static bool is_static(int fd)
{
    unsigned char head[4096];
    ssize_t n = pread(fd, head, sizeof head, 0);
    if (n < 64 || memcmp(head, "\177ELF", 4) != 0)
        return false;
    return memmem(head, (size_t)n, "/ld", 3) == NULL;
}

static int open_busybox(lua_State *L)
{
    const char *named = getenv("BOUGH_BUSYBOX");
    const char *const places[] = {named ? named : "/bin/busybox", "/usr/bin/busybox",
                                  "/bin/busybox.static", "/usr/bin/busybox-static",
                                  "/usr/local/bin/busybox"};
    bool dynamic = false;
    for (size_t i = 0; i < (named ? 1 : sizeof places / sizeof *places); i++) {
        int fd = open(places[i], O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        if (is_static(fd))
            return fd;
        dynamic = true;
        close(fd);
    }
    return bough_lerr(
        L, BOUGH_ERR_not_found, "import",
        dynamic
            ? "busybox: the one on this machine is not statically linked; install busybox-static"
            : "busybox: none on this machine; install busybox-static, or name one in "
              "$BOUGH_BUSYBOX");
}

static int import_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct bough_question *q = bough_question_top(L);
    BOUGH_NOT_YET(L, q, import_k);
    bough_lrow_push(L, &q->image);
    return 1;
}

int bough_ask_import(lua_State *L)
{
    static const char *const kinds[] = {"busybox", "directory", "archive", NULL};
    lua_settop(L, 4);
    int kind = luaL_checkoption(L, 2, NULL, kinds);
    struct bough_question *q = bough_question_ask(L, "import");
    if (lua_istable(L, 4)) {
        if (lua_getfield(L, 4, "tag") == LUA_TSTRING)
            q->tag = bough_arg_copy(L, -1);
        lua_getfield(L, 4, "max_bytes");
        q->max_bytes = (int64_t)lua_tointeger(L, -1);
        lua_pop(L, 2);
    }
    if (kind == 0) {
        q->source_fd = open_busybox(L);
        q->refs++;
        bough_job_start(q->engine, &q->job, work_busybox, import_committed);
        return import_k(L, LUA_OK, 0);
    }
    const char *path = luaL_checkstring(L, 3);
    q->source_fd =
        open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | (kind == 1 ? O_DIRECTORY : O_NONBLOCK));
    struct stat st;
    if (q->source_fd < 0 || fstat(q->source_fd, &st) < 0) {
        bough_err_sys(&q->err, errno, "%s", path);
        return bough_lerr_raise(L, &q->err, "import");
    }
    if (kind == 2 && !S_ISREG(st.st_mode))
        return bough_lerr(L, BOUGH_ERR_invalid, "import", "%s: it is not a regular file", path);
    q->request = kind == 1 ? BOUGH_MSG_COPY : BOUGH_MSG_UNPACK;
    q->refs++;
    bough_job_start(q->engine, &q->job, work_layer_id, import_numbered);
    return import_k(L, LUA_OK, 0);
}
