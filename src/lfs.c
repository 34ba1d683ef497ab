/* lfs.c - `core.fs`: the host's own files, on worker threads, so that a slow disk never holds up the loop; and
 * digests of them.
 *
 * A request is a malloc'ed record that the thread fills in, held by a userdata while somebody waits. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <lauxlib.h>

#include "lask.h"
#include "lcore.h"
#include "lwait.h"
#include "sha256.h"
#include "sys.h"

#define REQUEST "bough.fs_request"
#define READ_MAX (256 * 1024 * 1024)

struct fs_item {
    char *name, *target; /* owned */
    struct stat st;
};

struct fs_request {
    uv_work_t req;
    int refs; /* the userdata, and the thread */
    struct bough_cond done_cond;
    bool done;
    void (*work)(struct fs_request *r);
    void (*push)(lua_State *L, struct fs_request *r); /* pushes the one result */
    const char *op;
    char *path, *other, *data; /* owned */
    size_t size;
    int64_t number;
    bool flag;
    int rc;
    struct bough_err err;
    struct fs_item *items;
    size_t count;
    char hex[BOUGH_SHA256_HEX];
};

static void request_unref(struct fs_request *r)
{
    if (--r->refs > 0)
        return;
    for (size_t i = 0; i < r->count; i++) {
        free(r->items[i].name);
        free(r->items[i].target);
    }
    free(r->items);
    free(r->path);
    free(r->other);
    free(r->data);
    bough_cond_destroy(&r->done_cond);
    free(r);
}

static int request_gc(lua_State *L)
{
    struct fs_request **box = luaL_checkudata(L, 1, REQUEST);
    if (*box)
        request_unref(*box);
    *box = NULL;
    return 0;
}

static char *path_copy(lua_State *L, int index, const char *op)
{
    size_t size;
    const char *text = luaL_checklstring(L, index, &size);
    if (size == 0 || strlen(text) != size)
        bough_lerr(L, BOUGH_ERR_invalid, op,
                   size ? "the path holds a NUL byte" : "the path is empty");
    char *copy = strdup(text);
    if (!copy)
        luaL_error(L, "not enough memory");
    return copy;
}

/* Pushes a new request for the path at index 1. */
static struct fs_request *request_new(lua_State *L, const char *op)
{
    struct fs_request **box = lua_newuserdatauv(L, sizeof *box, 0);
    *box = NULL;
    luaL_setmetatable(L, REQUEST);
    struct fs_request *r = calloc(1, sizeof *r);
    if (!r)
        luaL_error(L, "not enough memory");
    r->refs = 1;
    r->op = op;
    bough_cond_init(&r->done_cond, bough_core_loop(bough_core(L)));
    *box = r;
    r->path = path_copy(L, 1, op);
    return r;
}

static void on_work(uv_work_t *req)
{
    struct fs_request *r = req->data;
    r->work(r);
}

static void on_done(uv_work_t *req, int status)
{
    struct fs_request *r = req->data;
    (void)status;
    r->done = true;
    bough_cond_fire(&r->done_cond);
    request_unref(r);
}

static int request_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)status;
    (void)ctx;
    struct fs_request *r = *(struct fs_request **)luaL_checkudata(L, -1, REQUEST);
    if (!r->done)
        return bough_wait(L, &r->done_cond, 0, request_k);
    if (r->rc < 0)
        return bough_lerr_raise(L, &r->err, r->op);
    if (!r->push)
        return 0;
    int top = lua_gettop(L);
    r->push(L, r);
    return lua_gettop(L) - top;
}

static int request_wait(lua_State *L, struct fs_request *r, void (*work)(struct fs_request *),
                        void (*push)(lua_State *, struct fs_request *))
{
    r->work = work;
    r->push = push;
    r->req.data = r;
    r->refs++;
    uv_queue_work(bough_loop_uv(r->done_cond.loop), &r->req, on_work, on_done);
    return request_k(L, LUA_OK, 0);
}

/* -- looking ------------------------------------------------------------------------------------- */

static char *link_target(int dir, const char *name)
{
    char text[PATH_MAX];
    ssize_t n = readlinkat(dir, name, text, sizeof text - 1);
    if (n < 0)
        return NULL;
    text[n] = '\0';
    return strdup(text);
}

static void stat_work(struct fs_request *r)
{
    r->items = calloc(1, sizeof *r->items);
    if (!r->items) {
        r->rc = bough_err_sys(&r->err, ENOMEM, "%s", r->path);
        return;
    }
    r->count = 1;
    struct fs_item *item = &r->items[0];
    if (fstatat(AT_FDCWD, r->path, &item->st, r->flag ? AT_SYMLINK_NOFOLLOW : 0) < 0)
        r->rc = bough_err_sys(&r->err, errno, "%s", r->path);
    else if (S_ISLNK(item->st.st_mode))
        item->target = link_target(AT_FDCWD, r->path);
}

static const char *kind_of(mode_t mode)
{
    return S_ISREG(mode)    ? "file"
           : S_ISDIR(mode)  ? "dir"
           : S_ISLNK(mode)  ? "symlink"
           : S_ISFIFO(mode) ? "fifo"
           : S_ISSOCK(mode) ? "socket"
                            : "other";
}

static void item_push(lua_State *L, const struct fs_item *item)
{
    const struct stat *st = &item->st;
    lua_createtable(L, 0, 9);
    bough_set_text(L, "name", item->name);
    bough_set_text(L, "kind", kind_of(st->st_mode));
    bough_set_integer(L, "size", st->st_size);
    bough_set_integer(L, "mode", st->st_mode & 07777);
    bough_set_integer(L, "uid", st->st_uid);
    bough_set_integer(L, "gid", st->st_gid);
    bough_set_number(L, "mtime", (double)st->st_mtim.tv_sec + (double)st->st_mtim.tv_nsec / 1e9);
    bough_set_text(L, "symlink_to", item->target);
}

static void stat_push(lua_State *L, struct fs_request *r)
{
    const struct stat *st = &r->items[0].st;
    char version[160];
    item_push(L, &r->items[0]);
    /* nobody writes to a file without moving its ctime on */
    snprintf(version, sizeof version, "%llx:%llx:%lld:%lld.%09ld:%lld.%09ld",
             (unsigned long long)st->st_dev, (unsigned long long)st->st_ino, (long long)st->st_size,
             (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec, (long long)st->st_ctim.tv_sec,
             st->st_ctim.tv_nsec);
    bough_set_text(L, "version", version);
    bough_set_number(L, "ctime", (double)st->st_ctim.tv_sec + (double)st->st_ctim.tv_nsec / 1e9);
}

static int stat_k(lua_State *L, int status, lua_KContext ctx)
{
    (void)ctx;
    struct fs_request *r = *(struct fs_request **)luaL_checkudata(L, -1, REQUEST);
    if (!r->done)
        return bough_wait(L, &r->done_cond, 0, stat_k);
    if (r->rc == 0)
        return request_k(L, status, 0);
    lua_pushnil(L);
    lua_pushstring(L, r->err.msg);
    lua_pushinteger(L, r->err.sys);
    return 3;
}

/* fs.stat(path, nofollow?) -> table, or nil, message, errno */
static int fs_stat(lua_State *L)
{
    lua_settop(L, 2);
    struct fs_request *r = request_new(L, "stat");
    r->flag = lua_toboolean(L, 2);
    r->work = stat_work;
    r->push = stat_push;
    r->req.data = r;
    r->refs++;
    uv_queue_work(bough_loop_uv(r->done_cond.loop), &r->req, on_work, on_done);
    return stat_k(L, LUA_OK, 0);
}

static int item_order(const void *a, const void *b)
{
    return strcmp(((const struct fs_item *)a)->name, ((const struct fs_item *)b)->name);
}

static int list_add(struct fs_request *r, size_t *room, int dir, const char *name)
{
    if (r->count == *room) {
        size_t more = *room ? *room * 2 : 64;
        struct fs_item *grown = realloc(r->items, more * sizeof *grown);
        if (!grown)
            return bough_err_sys(&r->err, ENOMEM, "%s", r->path);
        r->items = grown;
        *room = more;
    }
    struct fs_item item = {0};
    if (fstatat(dir, name, &item.st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : bough_err_sys(&r->err, errno, "%s/%s", r->path, name);
    item.name = strdup(name);
    if (S_ISLNK(item.st.st_mode))
        item.target = link_target(dir, name);
    if (!item.name) {
        free(item.target);
        return bough_err_sys(&r->err, ENOMEM, "%s", r->path);
    }
    r->items[r->count++] = item;
    return 0;
}

static void list_work(struct fs_request *r)
{
    DIR *dir = opendir(r->path);
    size_t room = 0;
    if (!dir) {
        r->rc = bough_err_sys(&r->err, errno, "%s", r->path);
        return;
    }
    for (;;) {
        errno = 0;
        struct dirent *d = readdir(dir);
        if (!d) {
            if (errno)
                r->rc = bough_err_sys(&r->err, errno, "%s", r->path);
            break;
        }
        if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0)
            continue;
        r->rc = list_add(r, &room, dirfd(dir), d->d_name);
        if (r->rc < 0)
            break;
    }
    closedir(dir);
    if (r->count > 1)
        qsort(r->items, r->count, sizeof *r->items, item_order);
}

static void list_push(lua_State *L, struct fs_request *r)
{
    lua_createtable(L, (int)r->count, 0);
    for (size_t i = 0; i < r->count; i++) {
        item_push(L, &r->items[i]);
        lua_rawseti(L, -2, (lua_Integer)i + 1);
    }
}

/* fs.list(directory) -> array, sorted by name; links are not followed */
static int fs_list(lua_State *L)
{
    lua_settop(L, 1);
    return request_wait(L, request_new(L, "list"), list_work, list_push);
}

static void read_work(struct fs_request *r)
{
    struct stat st;
    BOUGH_CLEANUP_FD int fd = open(r->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0) {
        r->rc = bough_err_sys(&r->err, errno, "%s", r->path);
        return;
    }
    if (!S_ISREG(st.st_mode)) {
        r->rc = bough_err_set(&r->err, BOUGH_ERR_invalid, "%s: it is not a regular file", r->path);
        return;
    }
    size_t room = (size_t)(st.st_size < r->number ? st.st_size : r->number);
    r->data = malloc(room + 1);
    if (!r->data) {
        r->rc = bough_err_sys(&r->err, ENOMEM, "%s", r->path);
        return;
    }
    while (r->size < room) {
        ssize_t n = BOUGH_RETRY(read(fd, r->data + r->size, room - r->size));
        if (n < 0)
            r->rc = bough_err_sys(&r->err, errno, "%s", r->path);
        if (n <= 0)
            return;
        r->size += (size_t)n;
    }
}

static void read_push(lua_State *L, struct fs_request *r)
{
    lua_pushlstring(L, r->data, r->size);
}

/* fs.read(path, max?) -> at most so many bytes of its beginning; by default all, up to 256 MiB */
static int fs_read(lua_State *L)
{
    lua_Integer most = luaL_optinteger(L, 2, READ_MAX);
    luaL_argcheck(L, most >= 0 && most <= READ_MAX, 2, "out of range");
    lua_settop(L, 2);
    struct fs_request *r = request_new(L, "read");
    r->number = most;
    return request_wait(L, r, read_work, read_push);
}

static void sha256_work(struct fs_request *r)
{
    BOUGH_CLEANUP_FD int fd = open(r->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    BOUGH_CLEANUP_FREE char *block = malloc(1024 * 1024);
    struct bough_sha256 *state = bough_sha256_new();
    struct stat st;
    ssize_t n = 0;
    if (fd < 0 || fstat(fd, &st) < 0)
        r->rc = bough_err_sys(&r->err, errno, "%s", r->path);
    else if (!S_ISREG(st.st_mode))
        r->rc = bough_err_set(&r->err, BOUGH_ERR_invalid, "%s: it is not a regular file", r->path);
    else if (!block || !state)
        r->rc = bough_err_sys(&r->err, ENOMEM, "%s", r->path);
    else
        while ((n = BOUGH_RETRY(read(fd, block, 1024 * 1024))) > 0) {
            bough_sha256_update(state, block, (size_t)n);
            r->number += n;
        }
    if (n < 0)
        r->rc = bough_err_sys(&r->err, errno, "%s", r->path);
    if (r->rc == 0)
        bough_sha256_hex(state, r->hex);
    bough_sha256_free(state);
}

static void sha256_push(lua_State *L, struct fs_request *r)
{
    lua_pushstring(L, r->hex);
    lua_pushinteger(L, r->number);
}

/* core.sha256_file(path) -> 64 hex digits, bytes */
static int sha256_file(lua_State *L)
{
    lua_settop(L, 1);
    return request_wait(L, request_new(L, "sha256"), sha256_work, sha256_push);
}

/* core.sha256(text) -> 64 hex digits; does not wait */
static int sha256_text(lua_State *L)
{
    size_t size;
    const char *text = luaL_checklstring(L, 1, &size);
    char hex[BOUGH_SHA256_HEX];
    struct bough_sha256 *state = bough_sha256_new();
    if (!state)
        return luaL_error(L, "not enough memory");
    bough_sha256_update(state, text, size);
    bough_sha256_hex(state, hex);
    bough_sha256_free(state);
    lua_pushstring(L, hex);
    return 1;
}

/* -- changing -------------------------------------------------------------------------------------- */

static void mkdir_work(struct fs_request *r)
{
    if (mkdir(r->path, (mode_t)r->number) < 0)
        r->rc = bough_err_sys(&r->err, errno, "%s", r->path);
}

/* fs.mkdir(path, mode?) */
static int fs_mkdir(lua_State *L)
{
    lua_Integer mode = luaL_optinteger(L, 2, 0777);
    lua_settop(L, 2);
    struct fs_request *r = request_new(L, "mkdir");
    r->number = mode;
    return request_wait(L, r, mkdir_work, NULL);
}

/* fs.temp_dir(prefix) -> path: a new directory, mode 0700, of that name and six characters more. Does not
 * wait: a caller who was cancelled in the middle would not know what to remove. */
static int fs_temp_dir(lua_State *L)
{
    lua_settop(L, 1);
    char *path = path_copy(L, 1, "temp_dir"), *made = NULL;
    struct bough_err err;
    int rc = asprintf(&made, "%s.XXXXXX", path) < 0 ? bough_err_sys(&err, ENOMEM, "%s", path)
             : mkdtemp(made)                        ? 0
                                                    : bough_err_sys(&err, errno, "%s", path);
    free(path);
    if (rc == 0)
        lua_pushstring(L, made);
    free(made);
    return rc < 0 ? bough_lerr_raise(L, &err, "temp_dir") : 1;
}

static int remove_one(const char *path, const struct stat *st, int what, struct FTW *place)
{
    (void)st;
    (void)place;
    int rc = what == FTW_DP || what == FTW_D || what == FTW_DNR ? rmdir(path) : unlink(path);
    return rc < 0 && errno != ENOENT ? errno : 0;
}

/* nftw(3) hands nothing through to its function. */
static _Thread_local int opened_up;

static int open_up(const char *path, const struct stat *st, int what, struct FTW *place)
{
    (void)place;
    if ((what == FTW_DNR || (what == FTW_D && (st->st_mode & 0700) != 0700)) &&
        chmod(path, (st->st_mode & 07777) | 0700) == 0)
        opened_up++;
    return 0;
}

static void remove_work(struct fs_request *r)
{
    struct stat st;
    if (lstat(r->path, &st) < 0) {
        if (errno != ENOENT)
            r->rc = bough_err_sys(&r->err, errno, "%s", r->path);
        return;
    }
    int sys = nftw(r->path, remove_one, 32, FTW_PHYS | FTW_DEPTH);
    /* Directories that their owner may not search or write to, as images have them, are opened up level by level. */
    while (sys == EACCES || sys == EPERM || sys == ENOTEMPTY) {
        opened_up = 0;
        nftw(r->path, open_up, 32, FTW_PHYS);
        if (opened_up == 0)
            break;
        sys = nftw(r->path, remove_one, 32, FTW_PHYS | FTW_DEPTH);
    }
    /* What somebody who was cancelled had begun may still come in. */
    for (int i = 0; sys == ENOTEMPTY && i < 5; i++)
        sys = nftw(r->path, remove_one, 32, FTW_PHYS | FTW_DEPTH);
    if (sys != 0)
        r->rc = bough_err_sys(&r->err, sys > 0 ? sys : errno, "%s", r->path);
}

/* fs.remove(path): a file, or a tree without following links; what is not there is fine */
static int fs_remove(lua_State *L)
{
    lua_settop(L, 1);
    return request_wait(L, request_new(L, "remove"), remove_work, NULL);
}

static void rename_work(struct fs_request *r)
{
    unsigned flags = r->flag ? RENAME_NOREPLACE : 0;
    int rc = renameat2(AT_FDCWD, r->path, AT_FDCWD, r->other, flags);
    if (rc < 0 && errno == EINVAL && flags &&
        access(r->other, F_OK) < 0) /* a file system without it */
        rc = rename(r->path, r->other);
    if (rc < 0)
        r->rc = bough_err_sys(&r->err, errno, "%s", r->other);
}

/* fs.rename(from, to, no_replace?) */
static int fs_rename(lua_State *L)
{
    lua_settop(L, 3);
    struct fs_request *r = request_new(L, "rename");
    r->other = path_copy(L, 2, "rename");
    r->flag = lua_toboolean(L, 3);
    return request_wait(L, r, rename_work, NULL);
}

static void write_work(struct fs_request *r)
{
    BOUGH_CLEANUP_FD int fd = open(r->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) {
        r->rc = bough_err_sys(&r->err, errno, "%s", r->path);
        return;
    }
    for (size_t at = 0; at < r->size;) {
        ssize_t n = BOUGH_RETRY(write(fd, r->data + at, r->size - at));
        if (n < 0) {
            r->rc = bough_err_sys(&r->err, errno, "%s", r->path);
            return;
        }
        at += (size_t)n;
    }
    int sealed = bough_steal_fd(&fd);
    if (close(sealed) < 0)
        r->rc = bough_err_sys(&r->err, errno, "%s", r->path);
}

/* fs.write(path, data): a new file, mode 0644; one that is there is kind `exists` */
static int fs_write(lua_State *L)
{
    size_t size;
    const char *data = luaL_checklstring(L, 2, &size);
    lua_settop(L, 2);
    struct fs_request *r = request_new(L, "write");
    r->data = malloc(size + 1);
    if (!r->data)
        return luaL_error(L, "not enough memory");
    memcpy(r->data, data, size);
    r->size = size;
    return request_wait(L, r, write_work, NULL);
}

/* -- the machine ------------------------------------------------------------------------------------ */

/* core.machine() -> "x86_64", as uname(2) has it */
static int machine(lua_State *L)
{
    struct utsname name;
    lua_pushstring(L, uname(&name) == 0 ? name.machine : "unknown");
    return 1;
}

/* core.now() -> seconds of a clock that only goes on, from some time in the past */
static int now(lua_State *L)
{
    lua_pushnumber(L, (double)bough_now_ns() / 1e9);
    return 1;
}

/* core.is_terminal(fd) -> boolean */
static int is_terminal(lua_State *L)
{
    lua_pushboolean(L, isatty((int)luaL_checkinteger(L, 1)));
    return 1;
}

void bough_open_fs(lua_State *L)
{
    static const luaL_Reg meta[] = {{"__gc", request_gc}, {NULL, NULL}};
    static const luaL_Reg fs[] = {
        {"stat", fs_stat},     {"list", fs_list},     {"read", fs_read},
        {"write", fs_write},   {"mkdir", fs_mkdir},   {"temp_dir", fs_temp_dir},
        {"remove", fs_remove}, {"rename", fs_rename}, {NULL, NULL}};
    static const luaL_Reg others[] = {{"sha256", sha256_text},      {"sha256_file", sha256_file},
                                      {"machine", machine},         {"now", now},
                                      {"is_terminal", is_terminal}, {NULL, NULL}};
    if (luaL_newmetatable(L, REQUEST))
        luaL_setfuncs(L, meta, 0);
    lua_pop(L, 1);
    luaL_newlib(L, fs);
    lua_setfield(L, -2, "fs");
    luaL_setfuncs(L, others, 0);
}
