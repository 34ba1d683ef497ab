/* limport.c - images from a directory, an archive, or the machine's busybox. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lask.h"
#include "ljob.h"
#include "order.h"
#include "sys.h"

struct import_errand {
    struct bough_errand errand;
    struct bough_image image;
    int source;
    enum bough_msg request;
    int64_t layer, max_bytes, max_files, bytes, files;
};

static void import_clear(struct bough_errand *e)
{
    struct import_errand *i = (struct import_errand *)e;
    bough_image_clear(&i->image);
    bough_fd_close(&i->source);
}

static void import_push(lua_State *L, struct bough_errand *e)
{
    bough_lrow_push(L, &((struct import_errand *)e)->image);
}

static void import_commit(struct bough_job *job)
{
    struct import_errand *i = (struct import_errand *)job;
    strcpy(i->image.origin, "import");
    i->image.layer = i->layer;
    i->image.size = i->bytes;
    i->errand.rc = bough_store_commit(job->engine->store, &i->image, i->layer, 0, i->bytes,
                                      i->files, &i->errand.err);
}

static void import_heard(struct bough_errand *e, struct bough_message *msg)
{
    struct import_errand *i = (struct import_errand *)e;
    i->bytes = bough_get_i64(&msg->body);
    i->files = bough_get_i64(&msg->body);
    bough_errand_work(e, import_commit, NULL);
}

static void import_number(struct bough_job *job)
{
    struct import_errand *i = (struct import_errand *)job;
    i->layer = bough_store_layer_ids(job->engine->store, 1, &i->errand.err);
    i->errand.rc = i->layer < 0 ? -1 : 0;
}

static void import_ask(struct bough_errand *e)
{
    struct import_errand *i = (struct import_errand *)e;
    struct bough_wbuf body = {0};
    e->staged = i->layer;
    if (i->request == BOUGH_MSG_UNPACK) {
        struct bough_unpack_order order = {
            .layer = i->layer, .max_bytes = i->max_bytes, .max_files = i->max_files};
        bough_unpack_order_put(&body, &order);
    } else {
        bough_put_i64(&body, i->layer);
        bough_put_i64(&body, i->max_bytes);
        bough_put_i64(&body, i->max_files);
    }
    bough_errand_ask(e, i->request, &body, &i->source, 1, import_heard);
    bough_wbuf_free(&body);
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

static int make_busybox_tree(struct import_errand *q)
{
    char path[4300];
    struct bough_err *err = &q->errand.err;
    struct bough_store *store = q->errand.engine->store;
    snprintf(path, sizeof path, "%s/tmp/%s/%lld", bough_store_home(store), bough_store_owner(store),
             (long long)q->layer);
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
    if (copy_program(q->source, fs, "bin/busybox", err) < 0)
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
    q->bytes = fstat(q->source, &st) == 0 ? st.st_size : 0;
    q->files = (int64_t)(sizeof dirs / sizeof *dirs) + 7;
    return 0;
}

static void import_busybox(struct bough_job *job)
{
    struct import_errand *i = (struct import_errand *)job;
    import_number(job);
    i->errand.staged = i->layer;
    if (i->errand.rc == 0)
        i->errand.rc = make_busybox_tree(i);
    if (i->errand.rc == 0)
        import_commit(job);
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

/* engine:import(kind, source, { tag =, max_bytes =, max_files = }) -> job */
int bough_ask_import(lua_State *L)
{
    static const char *const kinds[] = {"busybox", "directory", "archive", NULL};
    lua_settop(L, 4);
    int kind = luaL_checkoption(L, 2, NULL, kinds);
    struct import_errand *i = bough_errand_new(L, sizeof *i, "import", import_push, NULL);
    i->source = -1;
    i->errand.clear = import_clear;
    bough_uuid_make(i->image.uuid);
    bough_hold_add(i->errand.engine, &i->errand.hold, i->image.uuid);
    if (lua_istable(L, 4)) {
        if (lua_getfield(L, 4, "tag") == LUA_TSTRING)
            i->image.tag = bough_arg_copy(L, -1);
        lua_getfield(L, 4, "max_bytes");
        i->max_bytes = (int64_t)lua_tointeger(L, -1);
        lua_getfield(L, 4, "max_files");
        i->max_files = (int64_t)lua_tointeger(L, -1);
        lua_pop(L, 3);
    }
    if (kind == 0) {
        i->source = open_busybox(L);
        bough_errand_work(&i->errand, import_busybox, NULL);
        return 1;
    }
    const char *path = luaL_checkstring(L, 3);
    i->source =
        open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | (kind == 1 ? O_DIRECTORY : O_NONBLOCK));
    struct stat st;
    if (i->source < 0 || fstat(i->source, &st) < 0) {
        bough_err_sys(&i->errand.err, errno, "%s", path);
        return bough_lerr_raise(L, &i->errand.err, "import");
    }
    if (kind == 2 && !S_ISREG(st.st_mode))
        return bough_lerr(L, BOUGH_ERR_invalid, "import", "%s: it is not a regular file", path);
    i->request = kind == 1 ? BOUGH_MSG_COPY : BOUGH_MSG_UNPACK;
    bough_errand_work(&i->errand, import_number, import_ask);
    return 1;
}
