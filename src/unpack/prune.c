#define _GNU_SOURCE
#include "prune.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../sys.h"

enum { SCAN_BYTES = 32 * 1024 };

/* Memory for names and levels. */
#define PENDING_BYTES ((size_t)256 << 20)

/* A directory that has been entered. */
struct level {
    size_t floor; /* names beyond it are this directory's */
    uint64_t print;
    bool keep; /* has things of the archive in it */
};

struct prune {
    const struct bough_made *made;
    struct bough_err *err;
    int dir;
    /* directories to enter, each as its name, a NUL and the name's length in two bytes; that of a
     * directory we are in stays until we leave it */
    char *names;
    size_t used, room;
    struct level *levels;
    size_t depth, levels_room;
    char entries[SCAN_BYTES] __attribute__((aligned(8)));
};

static int memory_fail(struct prune *p)
{
    bough_err_set(p->err, BOUGH_ERR_resource, "out of memory: too many directories");
    return -1;
}

static int name_push(struct prune *p, const char *name)
{
    uint16_t len = (uint16_t)strnlen(name, NAME_MAX);
    size_t need = (size_t)len + 1 + sizeof len;
    if (p->used + need > p->room) {
        size_t room = p->room ? p->room * 2 : 4096;
        char *grown = room > PENDING_BYTES ? NULL : realloc(p->names, room);
        if (!grown)
            return memory_fail(p);
        p->names = grown;
        p->room = room;
    }
    memcpy(p->names + p->used, name, len);
    p->names[p->used + len] = '\0';
    memcpy(p->names + p->used + len + 1, &len, sizeof len);
    p->used += need;
    return 0;
}

/* Where the latest name begins. */
static size_t name_start(const struct prune *p)
{
    uint16_t len;
    memcpy(&len, p->names + p->used - sizeof len, sizeof len);
    return p->used - sizeof len - 1 - len;
}

static int level_push(struct prune *p, uint64_t print, bool keep)
{
    if (p->depth == p->levels_room) {
        size_t room = p->levels_room ? p->levels_room * 2 : 64;
        struct level *grown =
            room * sizeof *grown > PENDING_BYTES ? NULL : realloc(p->levels, room * sizeof *grown);
        if (!grown)
            return memory_fail(p);
        p->levels = grown;
        p->levels_room = room;
    }
    p->levels[p->depth++] = (struct level){.floor = p->used, .print = print, .keep = keep};
    return 0;
}

/* Gives us the rights in the directory where we are, which is about to go. */
static bool rights_take(struct prune *p)
{
    return errno == EACCES && !p->levels[p->depth - 1].keep && fchmod(p->dir, 0700) == 0;
}

static int entry_remove(struct prune *p, const char *name, int flags)
{
    int r = unlinkat(p->dir, name, flags);
    if (r < 0 && rights_take(p))
        r = unlinkat(p->dir, name, flags);
    return r < 0 && errno != ENOENT ? bough_err_sys(p->err, errno, "remove what is below") : 0;
}

static bool is_made(const struct prune *p, const struct level *level, const char *name)
{
    return bough_made_has(p->made, bough_made_below(p->made, level->print, name, strlen(name)));
}

static int entry_take(struct prune *p, const struct dirent64 *entry)
{
    const struct level *level = &p->levels[p->depth - 1];
    const char *name = entry->d_name;
    unsigned char type = entry->d_type;
    if (!strcmp(name, ".") || !strcmp(name, ".."))
        return 0;
    if (type == DT_UNKNOWN) {
        struct stat st;
        if (fstatat(p->dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            return bough_err_sys(p->err, errno, "remove what is below: stat");
        type = S_ISDIR(st.st_mode) ? DT_DIR : DT_REG;
    }
    if (type == DT_DIR)
        return name_push(p, name);
    if (level->keep && is_made(p, level, name))
        return 0;
    return entry_remove(p, name, 0);
}

/* Removes what is no directory, and puts the directories on the list. */
static int dir_scan(struct prune *p)
{
    ssize_t n;
    while ((n = getdents64(p->dir, p->entries, sizeof p->entries)) > 0)
        for (ssize_t at = 0; at < n;) {
            const struct dirent64 *entry = (const void *)(p->entries + at);
            if (entry_take(p, entry) < 0)
                return -1;
            at += entry->d_reclen;
        }
    return n < 0 ? bough_err_sys(p->err, errno, "remove what is below: read directory") : 0;
}

static int dir_open(int dir, const char *name)
{
    return openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* Into the latest name of the list. */
static int dir_enter(struct prune *p)
{
    const struct level *level = &p->levels[p->depth - 1];
    const char *name = p->names + name_start(p);
    uint64_t print = level->keep ? bough_made_below(p->made, level->print, name, strlen(name)) : 0;
    bool keep = level->keep && bough_made_has(p->made, print);
    int next = dir_open(p->dir, name);
    if (next < 0 && rights_take(p))
        next = dir_open(p->dir, name);
    /* EACCES is about a directory: a link or a file would have been told first */
    if (next < 0 && errno == EACCES && !keep && fchmodat(p->dir, name, 0700, 0) == 0)
        next = dir_open(p->dir, name);
    if (next < 0)
        return bough_err_sys(p->err, errno, "remove what is below: open directory");
    close(p->dir);
    p->dir = next;
    return level_push(p, print, keep) < 0 ? -1 : dir_scan(p);
}

/* Back up, and away with it. Nobody else moves directories here, and who did would find that the name
 * is not where "..", which the root bounds, has led. */
static int dir_leave(struct prune *p)
{
    bool keep = p->levels[p->depth - 1].keep;
    int up = dir_open(p->dir, "..");
    if (up < 0 && rights_take(p))
        up = dir_open(p->dir, "..");
    if (up < 0)
        return bough_err_sys(p->err, errno, "remove what is below: leave directory");
    close(p->dir);
    p->dir = up;
    p->depth--;
    p->used = name_start(p);
    return keep ? 0 : entry_remove(p, p->names + p->used, AT_REMOVEDIR);
}

/* `name` in `dir`, or without a name what is in it. */
static int prune_run(const struct bough_made *made, int dir, uint64_t print, const char *name,
                     struct bough_err *err)
{
    struct prune *p = calloc(1, sizeof *p);
    if (!p)
        return bough_err_set(err, BOUGH_ERR_resource, "out of memory");
    p->made = made;
    p->err = err;
    p->dir = dir_open(dir, ".");
    int r = -1;
    if (p->dir < 0)
        bough_err_sys(err, errno, "remove what is below: open directory");
    else
        r = level_push(p, print, true);
    if (r == 0)
        r = name ? name_push(p, name) : dir_scan(p);
    while (r == 0 && (p->depth > 1 || p->used))
        r = p->used > p->levels[p->depth - 1].floor ? dir_enter(p) : dir_leave(p);
    bough_fd_close(&p->dir);
    free(p->names);
    free(p->levels);
    free(p);
    return r;
}

int bough_prune_name(const struct bough_made *made, int dir, const char *real,
                     struct bough_err *err)
{
    struct stat st;
    const char *slash = strrchr(real, '/'), *name = slash ? slash + 1 : real;
    size_t parent_len = slash ? (size_t)(slash - real) : 0;
    uint64_t parent = bough_made_below(made, BOUGH_MADE_ROOT, real, parent_len);
    if (!bough_made_has(made, bough_made_below(made, parent, name, strlen(name)))) {
        if (unlinkat(dir, name, 0) == 0 || errno == ENOENT)
            return 0;
        if (errno != EISDIR)
            return bough_err_sys(err, errno, "remove what is below");
    } else if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(st.st_mode)) {
        return 0;
    }
    return prune_run(made, dir, parent, name, err);
}

int bough_prune_inside(const struct bough_made *made, int dir, const char *real,
                       struct bough_err *err)
{
    uint64_t print = bough_made_below(made, BOUGH_MADE_ROOT, real, strlen(real));
    return prune_run(made, dir, print, NULL, err);
}
