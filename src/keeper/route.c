#define _GNU_SOURCE
#include "route.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "../sys.h"
#include "node.h"
#include "walk.h"

#define LINKS_MAX 40
#define DIR_FLAGS (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
#define STUCK 1 /* on something that is no directory */

void bough_route_start(struct bough_route *r, int view, int out, const char *skip)
{
    r->skip = skip;
    r->depth = 1;
    r->parts = 0;
    r->level[0] = (struct bough_route_level){.view = view, .out = out};
}

/* Back to the first `depth` levels. */
static void cut(struct bough_route *r, int depth)
{
    while (r->depth > depth) {
        struct bough_route_level *l = bough_route_here(r);
        bough_fd_close(&l->view);
        bough_fd_close(&l->out);
        r->depth--;
    }
    for (int i = 0; i < r->parts; i++)
        if (r->part[i].depth > depth)
            r->part[i].depth = 0;
}

void bough_route_end(struct bough_route *r)
{
    cut(r, 1);
}

void bough_route_forget(struct bough_route *r)
{
    r->parts = 0;
}

static int push(struct bough_route *r, const char *name, size_t length, int view, int out,
                struct bough_err *err)
{
    size_t end = bough_route_here(r)->end;
    if (r->depth == BOUGH_ROUTE_DEPTH || end + 1 + length >= sizeof r->real)
        return bough_err_sys(err, ENAMETOOLONG, "%s", BOUGH_QUOTE(r->text));
    r->real[end] = '/';
    memcpy(r->real + end + 1, name, length);
    r->level[r->depth++] =
        (struct bough_route_level){.view = view, .out = out, .end = end + 1 + length};
    return 0;
}

static int enter(struct bough_route *r, const char *name, size_t length, struct bough_err *err);

static int follow(struct bough_route *r, const char *target, struct bough_err *err)
{
    if (++r->links > LINKS_MAX)
        return bough_err_set(err, BOUGH_ERR_invalid, "%s: too many symbolic links on the way",
                             BOUGH_QUOTE(r->text));
    if (*target == '/')
        cut(r, 1);
    int rc = 0;
    while (rc == 0 && *target) {
        size_t n = strcspn(target, "/");
        if (n == 2 && target[0] == '.' && target[1] == '.')
            cut(r, r->depth > 1 ? r->depth - 1 : 1);
        else if (n > 1 || (n == 1 && *target != '.'))
            rc = enter(r, target, n, err);
        target += n;
        target += strspn(target, "/");
    }
    return rc;
}

/* `name` could not be opened as a directory. */
static int enter_other(struct bough_route *r, int dir, const char *name, struct bough_err *err)
{
    char target[PATH_MAX];
    if (errno != ENOTDIR && errno != ELOOP)
        return bough_err_sys(err, errno, "%s: open directory %s", BOUGH_QUOTE(r->text),
                             BOUGH_QUOTE(name));
    ssize_t n = readlinkat(dir, name, target, sizeof target - 1);
    if (n < 0)
        return errno == EINVAL ? STUCK
                               : bough_err_sys(err, errno, "%s: read link %s", BOUGH_QUOTE(r->text),
                                               BOUGH_QUOTE(name));
    target[n] = '\0';
    return follow(r, target, err);
}

static int enter(struct bough_route *r, const char *text, size_t length, struct bough_err *err)
{
    char name[NAME_MAX + 1];
    if (length > NAME_MAX)
        return bough_err_sys(err, ENAMETOOLONG, "%s", BOUGH_QUOTE(r->text));
    memcpy(name, text, length);
    name[length] = '\0';
    struct bough_route_level *up = bough_route_here(r);
    BOUGH_CLEANUP_FD int out = up->out < 0 ? -1 : openat(up->out, name, DIR_FLAGS);
    if (up->out >= 0 && out < 0 && errno != ENOENT)
        return enter_other(r, up->out, name, err);
    BOUGH_CLEANUP_FD int view = up->view < 0 ? -1 : openat(up->view, name, DIR_FLAGS);
    if (up->view >= 0 && view < 0 && errno != ENOENT && out < 0)
        return enter_other(r, up->view, name, err);
    if (push(r, name, length, view, out, err) < 0)
        return -1;
    view = out = -1; /* the level's now */
    return 0;
}

/* How many components of the last way this one has in common, as far as they are still held. */
static int common(const struct bough_route *r, const char *path, size_t length)
{
    int n = 0;
    for (size_t at = 0; n < r->parts; n++) {
        size_t end = r->part[n].end;
        if (end > length || (end < length && path[end] != '/') ||
            memcmp(r->text + at, path + at, end - at) != 0)
            break;
        at = end;
    }
    while (n > 0 && !r->part[n - 1].depth)
        n--;
    return n;
}

int bough_route_go(struct bough_route *r, const char *path, size_t length, struct bough_err *err)
{
    if (length >= sizeof r->text)
        return bough_err_sys(err, ENAMETOOLONG, "%s", BOUGH_QUOTE(path));
    r->parts = common(r, path, length);
    size_t at = r->parts ? r->part[r->parts - 1].end : 0;
    cut(r, r->parts ? r->part[r->parts - 1].depth : 1);
    memcpy(r->text, path, length);
    r->text[length] = '\0';
    r->links = 0;
    while (at < length) {
        size_t n = strcspn(r->text + at + 1, "/");
        int rc = enter(r, r->text + at + 1, n, err);
        at += 1 + n;
        if (rc == STUCK) {
            /* A link may have led away from where the components so far had led. */
            cut(r, r->parts && r->part[r->parts - 1].depth ? r->part[r->parts - 1].depth : 1);
            return (int)at;
        }
        if (rc < 0)
            return -1;
        r->part[r->parts++] = (struct bough_route_part){.end = at, .depth = r->depth};
    }
    return 0;
}

static int make_level(struct bough_route *r, int i, struct bough_err *err)
{
    char name[NAME_MAX + 1];
    struct bough_route_level *l = &r->level[i], *up = l - 1;
    struct stat st;
    size_t length = l->end - up->end - 1;
    memcpy(name, r->real + up->end + 1, length);
    name[length] = '\0';
    BOUGH_CLEANUP_FD int out = -1;
    if (mkdirat(up->out, name, 0700) < 0 || (out = openat(up->out, name, DIR_FLAGS)) < 0)
        return bough_err_sys(err, errno, "create directory %s", BOUGH_QUOTE(name));
    if (bough_node_blank(out, err) < 0)
        return -1;
    if (l->view < 0) {
        if (fchown(out, 0, 0) < 0 || fchmod(out, 0755) < 0)
            return bough_err_sys(err, errno, "create directory %s", BOUGH_QUOTE(name));
    } else {
        if (fstat(l->view, &st) < 0)
            return bough_err_sys(err, errno, "stat directory %s", BOUGH_QUOTE(name));
        if (bough_node_like(l->view, &st, out, r->skip, false, err) < 0)
            return bough_err_wrap(err, "create directory %s", BOUGH_QUOTE(name));
    }
    l->out = bough_steal_fd(&out);
    return 0;
}

int bough_route_make(struct bough_route *r, struct bough_err *err)
{
    int made = r->depth - 1;
    while (r->level[made].out < 0)
        made--;
    while (++made < r->depth)
        if (make_level(r, made, err) < 0)
            return -1;
    return bough_route_here(r)->out;
}
