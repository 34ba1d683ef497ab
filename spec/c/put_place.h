/* put_place.h - an image, a pool and layers to put files into, for put_test.c. */
#ifndef PUT_PLACE_H
#define PUT_PLACE_H

#include "../../src/keeper/put.h"

/* Some of it is for other tests. */
#pragma GCC diagnostic ignored "-Wunused-function"
#include "tree_support.h"

#define SKIP_OWN "user.overlay."
#define DAY_NS (INT64_C(86400) * 1000000000 + 5)

/* One image, pool and staging area; a new layer for each round. */
struct place {
    int at, view, blobs, staging, out;
    int layers;
    int64_t uid_count;
};

static void layer_new(struct place *p)
{
    char name[32];
    snprintf(name, sizeof name, "layer%d", ++p->layers);
    bough_fd_close(&p->out);
    p->out = dir_make(p->at, name);
}

static struct place place_make(int at, const char *name)
{
    struct place p = {.at = dir_make(at, name), .out = -1, .uid_count = -1};
    p.view = dir_make(p.at, "image");
    p.blobs = dir_make(p.at, "blobs");
    p.staging = dir_make(p.at, "staging");
    close(dir_make(p.blobs, "ab"));
    layer_new(&p);
    return p;
}

static void place_remove(struct place *p, int at, const char *name)
{
    bough_fd_close(&p->view);
    bough_fd_close(&p->blobs);
    bough_fd_close(&p->staging);
    bough_fd_close(&p->out);
    bough_fd_close(&p->at);
    bough_tree_remove(at, name, NULL);
}

static void staged_make(struct place *p, const char *name, const char *content)
{
    file_make(p->staging, name, content);
    MUST(fchmodat(p->staging, name, 0600, 0));
}

static int put(struct place *p, const struct bough_put_item *items, size_t count)
{
    struct bough_put order = {.view = p->view,
                              .out = p->out,
                              .blobs = p->blobs,
                              .staging = p->staging,
                              .items = items,
                              .count = count,
                              .skip = SKIP_OWN,
                              .uid_count = p->uid_count};
    int fds = open_fds(), rc = bough_put_tree(&order, &err);
    if (open_fds() != fds)
        check(false, "put: leaves %d descriptors open", open_fds() - fds);
    return rc;
}

#define PUT(p, items) put((p), (items), sizeof(items) / sizeof *(items))

static struct bough_put_item file_item(const char *path, const char *staged, const char *blob)
{
    return (struct bough_put_item){.path = path,
                                   .kind = BOUGH_PUT_FILE,
                                   .mode = 0640,
                                   .mtime_ns = DAY_NS,
                                   .staged = staged,
                                   .blob = blob,
                                   .target = ""};
}

static struct bough_put_item dir_item(const char *path, int64_t mode)
{
    return (struct bough_put_item){.path = path,
                                   .kind = BOUGH_PUT_DIR,
                                   .mode = mode,
                                   .mtime_ns = DAY_NS,
                                   .staged = "",
                                   .blob = "",
                                   .target = ""};
}

static struct bough_put_item link_item(const char *path, const char *target)
{
    return (struct bough_put_item){.path = path,
                                   .kind = BOUGH_PUT_SYMLINK,
                                   .mode = 0777,
                                   .mtime_ns = DAY_NS,
                                   .staged = "",
                                   .blob = "",
                                   .target = target};
}

static bool has_text(int at, const char *path, const char *text)
{
    char got[64] = "";
    BOUGH_CLEANUP_FD int fd = openat(at, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, got, sizeof got - 1);
    return n >= 0 && strcmp(got, text) == 0;
}

static bool has_mode(int at, const char *path, mode_t mode)
{
    struct stat st;
    return !fstatat(at, path, &st, AT_SYMLINK_NOFOLLOW) && st.st_mode == mode;
}

static bool has_day(int at, const char *path)
{
    struct stat st;
    return !fstatat(at, path, &st, AT_SYMLINK_NOFOLLOW) &&
           (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec == DAY_NS;
}

static int64_t count_of(struct place *p)
{
    struct bough_tree_size size;
    return bough_tree_measure(p->out, ".", &size, NULL) < 0 ? -1 : size.files;
}

#endif
