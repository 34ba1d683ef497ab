/* pack.c - bough-look pack: a tree as a tar archive.
 *
 *   walk -> tar -> digest of the tar -> compressor -> digest of what is written -> output */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "../sha256.h"
#include "../sys.h"
#include "args.h"
#include "codec.h"
#include "look.h"
#include "out.h"
#include "pooled.h"
#include "tar.h"
#include "tarfile.h"
#include "tarlink.h"
#include "tree.h"
#include "xattrs.h"

/* Of the OCI image layer specification. */
#define WHITEOUT ".wh."
#define WHITEOUT_OPAQUE ".wh..wh..opq"

struct pack {
    struct bough_look *look;
    bool layer, plain, sparse, progress;
    const char *opaque, *compress;
    const char *from; /* of --path; NULL: the whole tree, as a layer */
    char *base;       /* the name of what is there, "" for the root */
    struct bough_start start;
    struct bough_out out;
    struct bough_codec codec;
    struct bough_tar tar;
    struct bough_tree tree;
    struct bough_tar_links links;
    struct bough_pooled_inodes pooled;
    struct bough_xattrs xattrs;
    struct bough_sha256 *tar_sum, *out_sum; /* out_sum: only when something is compressed */
    int64_t tar_bytes, out_bytes;
    char *path; /* of a whiteout, or below `base` */
    size_t path_room;
};

/* ---- bytes on their way ---- */

static int out_put(void *arg, const void *data, size_t size, struct bough_err *err)
{
    struct pack *p = arg;
    if (p->out_sum)
        bough_sha256_update(p->out_sum, data, size);
    p->out_bytes += (int64_t)size;
    return bough_out_write(&p->out, data, size, err);
}

static int tar_put(void *arg, const void *data, size_t size, struct bough_err *err)
{
    struct pack *p = arg;
    bough_sha256_update(p->tar_sum, data, size);
    p->tar_bytes += (int64_t)size;
    if (bough_codec_write(&p->codec, data, size, err))
        return -1;
    return bough_out_tick(&p->out, p->tar_bytes, err);
}

/* ---- attributes ---- */

static bool xattr_kept(const char *name)
{
    if (!strncmp(name, "user.", 5))
        return strncmp(name, "user.overlay.", 13) != 0;
    return !strcmp(name, "security.capability");
}

/* GNU tar's way to have "=" in a keyword: it reads "%3D" as "=" and "%25" as "%". */
static void keyword_make(char *to, size_t size, const char *name)
{
    size_t n = 0;
    for (; *name && n + 4 < size; name++)
        if (*name == '=' || !strncmp(name, "%25", 3) || !strncmp(name, "%3D", 3))
            n += (size_t)sprintf(to + n, "%%%02X", (unsigned char)*name);
        else
            to[n++] = *name;
    to[n] = '\0';
}

static int xattrs_add(struct pack *p, int fd, struct bough_err *err)
{
    if (bough_xattrs_list(&p->xattrs, fd, err))
        return -1;
    for (size_t i = 0; i < p->xattrs.count; i++) {
        const char *name = p->xattrs.names[i];
        char keyword[3 * XATTR_NAME_MAX + 8];
        if (!xattr_kept(name))
            continue;
        ssize_t n = bough_xattrs_get(&p->xattrs, fd, name);
        if (n < 0 && (errno == ENODATA || errno == EOVERFLOW))
            continue; /* EOVERFLOW: a capability of a user namespace that is not ours */
        if (n < 0)
            return bough_err_sys(err, errno, "read xattr %s", BOUGH_TREE_QUOTE(name));
        keyword_make(keyword, sizeof keyword, name);
        if (bough_tar_record(&p->tar, "SCHILY.xattr.", keyword, p->xattrs.value, (size_t)n, err))
            return -1;
    }
    return 0;
}

static struct bough_tar_entry entry_of(const char *path, const struct stat *st)
{
    return (struct bough_tar_entry){
        .path = path,
        .mode = st->st_mode & 07777,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .mtime = st->st_mtim,
        .device = st->st_rdev,
    };
}

/* ---- layers ---- */

/* "dir/prefixname", or "prefixname" where dir is empty. Valid until the next call. */
static char *path_make(struct pack *p, const char *dir, size_t dir_len, const char *prefix,
                       const char *name, struct bough_err *err)
{
    size_t want = dir_len + 1 + strlen(prefix) + strlen(name) + 1;
    if (want > p->path_room) {
        char *bigger = realloc(p->path, want * 2);
        if (!bigger) {
            bough_err_sys(err, ENOMEM, "pack");
            return NULL;
        }
        p->path = bigger;
        p->path_room = want * 2;
    }
    memcpy(p->path, dir, dir_len);
    sprintf(p->path + dir_len, "%s%s%s", dir_len ? "/" : "", prefix, name);
    return p->path;
}

/* What the archive calls an entry. */
static const char *name_make(struct pack *p, const struct bough_tree_entry *e,
                             struct bough_err *err)
{
    return p->from && *p->base ? path_make(p, p->base, strlen(p->base), "", e->path, err) : e->path;
}

static int mark_put(struct pack *p, const char *path, struct bough_err *err)
{
    struct bough_tar_entry mark = {.type = BOUGH_TAR_FILE, .path = path, .mode = 0600};
    return bough_tar_header(&p->tar, &mark, err);
}

static int whiteout_put(struct pack *p, const struct bough_tree_entry *e, struct bough_err *err)
{
    size_t dir_len = e->path_len - strlen(e->name);
    const char *path = path_make(p, e->path, dir_len ? dir_len - 1 : 0, WHITEOUT, e->name, err);
    return path ? mark_put(p, path, err) : -1;
}

/* For a directory that is open and whose own entry is there by now. */
static int opaque_put(struct pack *p, int fd, const char *dir, size_t dir_len,
                      struct bough_err *err)
{
    if (!p->layer)
        return 0;
    ssize_t n = bough_xattrs_get(&p->xattrs, fd, p->opaque);
    if (n < 0 && errno != ENODATA && errno != EOPNOTSUPP)
        return bough_err_sys(err, errno, "read xattr %s", BOUGH_TREE_QUOTE(p->opaque));
    if (n <= 0 || *p->xattrs.value != 'y')
        return 0;
    const char *path = path_make(p, dir, dir_len, WHITEOUT_OPAQUE, "", err);
    return path ? mark_put(p, path, err) : -1;
}

/* ---- entries ---- */

/* 1 when the object is in the archive by an earlier name, to which `tar` is made a link. */
static int link_find(struct pack *p, struct bough_tar_entry *tar, const struct stat *st,
                     struct bough_err *err)
{
    if (st->st_nlink < 2 || p->plain || bough_pooled_has(&p->pooled, st->st_ino))
        return 0;
    const char *first = bough_tar_links_meet(&p->links, st->st_dev, st->st_ino, tar->path, err);
    if (!first)
        return -1;
    if (!*first)
        return 0;
    tar->type = BOUGH_TAR_LINK;
    tar->link = first;
    return 1;
}

static int entry_open(const struct bough_tree_entry *e, struct stat *st, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int fd = bough_tree_open(e);
    if (fd < 0 || fstat(fd, st))
        bough_err_sys(err, errno, "open");
    else if (IFTODT(st->st_mode) != e->type)
        bough_err_set(err, BOUGH_ERR_io, "has changed while it was read");
    else
        return bough_steal_fd(&fd);
    return -1;
}

/* Attributes go with each name of a file: Docker and its kin chown a link after they have made it, which
 * takes the file's capabilities away, and then set what the link's entry says. */
static int file_add(struct pack *p, const char *name, int fd, const struct stat *st,
                    struct bough_err *err)
{
    struct bough_tar_entry tar = entry_of(name, st);
    tar.type = BOUGH_TAR_FILE;
    if (p->plain) {
        tar.mode = 0644;
        tar.uid = tar.gid = 0;
        tar.mtime = (struct timespec){0};
        return bough_tar_file(&p->tar, &tar, fd, st, false, err);
    }
    int linked = xattrs_add(p, fd, err) ? -1 : link_find(p, &tar, st, err);
    if (linked)
        return linked < 0 ? -1 : bough_tar_header(&p->tar, &tar, err);
    return bough_tar_file(&p->tar, &tar, fd, st, p->sparse, err);
}

static int dir_add(struct pack *p, const char *name, int fd, const struct stat *st,
                   struct bough_err *err)
{
    struct bough_tar_entry tar = entry_of(name, st);
    tar.type = BOUGH_TAR_DIR;
    if (p->plain) {
        /* skopeo of an ordinary user fails where it has to make a directory that the archive does not have */
        tar.mode = 0755;
        tar.uid = tar.gid = 0;
        tar.mtime = (struct timespec){0};
        return bough_tar_header(&p->tar, &tar, err);
    }
    return xattrs_add(p, fd, err) ? -1 : bough_tar_header(&p->tar, &tar, err);
}

static int opened_put(struct pack *p, const struct bough_tree_entry *e, const char *name,
                      struct bough_err *err)
{
    struct stat st;
    BOUGH_CLEANUP_FD int fd = entry_open(e, &st, err);
    if (fd < 0)
        return -1;
    if (e->type == DT_REG)
        return file_add(p, name, fd, &st, err);
    if (dir_add(p, name, fd, &st, err))
        return -1;
    return p->plain ? 0 : opaque_put(p, fd, e->path, e->path_len, err);
}

static int special_put(struct pack *p, const struct bough_tree_entry *e, const char *name,
                       struct bough_err *err)
{
    char target[PATH_MAX];
    struct stat st;
    if (fstatat(e->dir, e->name, &st, AT_SYMLINK_NOFOLLOW))
        return bough_err_sys(err, errno, "stat");
    struct bough_tar_entry tar = entry_of(name, &st);
    switch (st.st_mode & S_IFMT) {
    case S_IFLNK: {
        ssize_t n = readlinkat(e->dir, e->name, target, sizeof target);
        if (n < 0 || n == sizeof target)
            return bough_err_sys(err, n < 0 ? errno : ENAMETOOLONG, "read symbolic link");
        target[n] = '\0';
        tar.type = BOUGH_TAR_SYMLINK;
        tar.link = target;
        break;
    }
    case S_IFCHR:
        if (p->layer && st.st_rdev == makedev(0, 0))
            return whiteout_put(p, e, err);
        tar.type = BOUGH_TAR_CHAR;
        break;
    case S_IFBLK:
        tar.type = BOUGH_TAR_BLOCK;
        break;
    case S_IFIFO:
        tar.type = BOUGH_TAR_FIFO;
        break;
    case S_IFSOCK:
        return 0;
    default:
        return bough_err_set(err, BOUGH_ERR_io, "has changed while it was read");
    }
    return link_find(p, &tar, &st, err) < 0 ? -1 : bough_tar_header(&p->tar, &tar, err);
}

static int entry_put(struct pack *p, const struct bough_tree_entry *e, struct bough_err *err)
{
    if (p->plain && e->type != DT_REG && e->type != DT_DIR)
        return 0;
    if (!p->plain && !p->from && !strncmp(e->name, WHITEOUT, strlen(WHITEOUT)))
        return bough_err_set(err, BOUGH_ERR_unsupported,
                             "names that begin with .wh. mean deleted files in an image's layer");
    const char *name = name_make(p, e, err);
    if (!name)
        return -1;
    return e->type == DT_REG || e->type == DT_DIR ? opened_put(p, e, name, err)
                                                  : special_put(p, e, name, err);
}

static int root_put(struct pack *p, struct bough_err *err)
{
    int fd = p->look->root[0];
    struct stat st;
    if (p->plain || p->from)
        return 0;
    if (fstat(fd, &st))
        return bough_err_sys(err, errno, "stat /");
    struct bough_tar_entry tar = entry_of(".", &st);
    tar.type = BOUGH_TAR_DIR;
    if (xattrs_add(p, fd, err) || bough_tar_header(&p->tar, &tar, err) ||
        opaque_put(p, fd, "", 0, err))
        return bough_err_wrap(err, "pack /");
    return 0;
}

/* What --path names, by itself. */
static int start_put(struct pack *p, struct bough_err *err)
{
    const struct stat *st = &p->start.st;
    int rc = 0;
    if (S_ISREG(st->st_mode))
        rc = file_add(p, p->base, p->start.fd, st, err);
    else if (*p->base)
        rc = dir_add(p, p->base, p->start.fd, st, err);
    return rc ? bough_err_wrap(err, "pack %s", BOUGH_TREE_QUOTE(p->base)) : 0;
}

static int entries_put(struct pack *p, int fd, struct bough_err *err)
{
    struct bough_tree_entry e;
    int rc = bough_tree_start(&p->tree, fd, err);
    if (rc)
        return -1;
    while ((rc = bough_tree_next(&p->tree, &e, err)) > 0) {
        if (entry_put(p, &e, err))
            return bough_err_wrap(err, "pack %s", BOUGH_TREE_QUOTE(e.path));
        if (bough_out_tick(&p->out, p->tar_bytes, err))
            return -1;
    }
    return rc;
}

static int tree_put(struct pack *p, struct bough_err *err)
{
    if (p->from ? start_put(p, err) : root_put(p, err))
        return -1;
    bool file = p->from && S_ISREG(p->start.st.st_mode);
    if (!file && entries_put(p, p->from ? p->start.fd : p->look->root[0], err))
        return -1;
    if (bough_tar_end(&p->tar, err) || bough_codec_end(&p->codec, err))
        return -1;
    return bough_out_flush(&p->out, err);
}

/* ---- set-up ---- */

/* The path without what has no meaning in it. Names that lead up have none in an archive. */
static int base_make(struct pack *p, struct bough_err *err)
{
    p->base = calloc(1, strlen(p->from) + 1);
    if (!p->base)
        return bough_err_sys(err, ENOMEM, "pack");
    size_t used = 0;
    for (const char *at = p->from; *at;) {
        size_t len = strcspn(at, "/");
        if (len == 2 && !strncmp(at, "..", 2))
            return bough_err_set(err, BOUGH_ERR_invalid, "--path %s: it must not hold \"..\"",
                                 BOUGH_TREE_QUOTE(p->from));
        if (len && !(len == 1 && *at == '.')) {
            used += (size_t)sprintf(p->base + used, "%s%.*s", used ? "/" : "", (int)len, at);
        }
        at += len + (at[len] == '/');
    }
    return 0;
}

static int start_open(struct pack *p, struct bough_err *err)
{
    if (!p->from)
        return 0;
    if (base_make(p, err) || bough_start_open(&p->start, p->look->root[0], p->from, err))
        return -1;
    mode_t mode = p->start.st.st_mode;
    return S_ISREG(mode) || S_ISDIR(mode)
               ? 0
               : bough_err_set(err, BOUGH_ERR_invalid, "%s: it is neither a file nor a directory",
                               BOUGH_TREE_QUOTE(p->from));
}

/* Without it the kernel says of each directory that it has no such mark. */
static int opaque_readable(const char *name, struct bough_err *err)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct caps[2] = {{0}};
    if (strncmp(name, "trusted.", 8) != 0 ||
        (!syscall(SYS_capget, &head, caps) && caps[0].effective & 1u << CAP_SYS_ADMIN))
        return 0;
    return bough_err_set(err, BOUGH_ERR_denied, "--opaque %.60s: only root can read it", name);
}

static int pack_parse(struct pack *p, struct bough_err *err)
{
    for (char **arg = p->look->args; *arg; arg++) {
        const char **value = NULL;
        if (!strcmp(*arg, "--layer"))
            p->layer = true;
        else if (!strcmp(*arg, "--plain"))
            p->plain = true;
        else if (!strcmp(*arg, "--sparse"))
            p->sparse = true;
        else if (!strcmp(*arg, "--progress"))
            p->progress = true;
        else if (!strcmp(*arg, "--opaque"))
            value = &p->opaque;
        else if (!strcmp(*arg, "--compress"))
            value = &p->compress;
        else if (!strcmp(*arg, "--path"))
            value = &p->from;
        else
            return bough_args_unknown("pack", *arg, err);
        if (value && !(*value = bough_args_value(&arg, err)))
            return -1;
    }
    if (p->from && (p->layer || p->plain))
        return bough_err_set(err, BOUGH_ERR_invalid,
                             "pack: --path goes with neither --layer nor --plain");
    if (p->layer && p->plain)
        return bough_err_set(err, BOUGH_ERR_invalid,
                             "pack: --layer and --plain exclude each other");
    if (p->layer && !p->opaque)
        return bough_err_set(err, BOUGH_ERR_invalid, "pack: --layer needs --opaque");
    return p->layer ? opaque_readable(p->opaque, err) : 0;
}

static int pack_start(struct pack *p, struct bough_err *err)
{
    struct bough_look *look = p->look;
    if (pack_parse(p, err) || start_open(p, err) ||
        bough_out_start(&p->out, look->out, p->progress ? look->report : -1, err))
        return -1;
    p->codec.put = out_put;
    p->codec.arg = p->tar.arg = p;
    p->tar.put = tar_put;
    p->tar_sum = bough_sha256_new();
    if (strcmp(p->compress, "none") != 0)
        p->out_sum = bough_sha256_new();
    if (!p->tar_sum || (strcmp(p->compress, "none") != 0 && !p->out_sum))
        return bough_err_sys(err, ENOMEM, "pack");
    if (bough_codec_start(&p->codec, p->compress, err) || bough_tar_start(&p->tar, err))
        return -1;
    return bough_look_seal(err);
}

static void pack_sums(struct pack *p)
{
    char tar[BOUGH_SHA256_HEX], out[BOUGH_SHA256_HEX];
    bough_sha256_hex(p->tar_sum, tar);
    bough_sha256_hex(p->out_sum ? p->out_sum : p->tar_sum, out);
    snprintf(p->look->text, sizeof p->look->text, "%s %s", tar, out);
}

int bough_look_pack(struct bough_look *look, struct bough_err *err)
{
    struct pack p = {.look = look, .compress = "none", .pooled.fd = look->pool, .start.fd = -1};
    int rc = pack_start(&p, err) || tree_put(&p, err) ? -1 : 0;
    look->numbers[0] = p.out_bytes;
    look->numbers[1] = p.tar.entries;
    look->numbers[2] = p.tar_bytes;
    if (!rc)
        pack_sums(&p);
    bough_tree_free(&p.tree);
    bough_tar_links_free(&p.links);
    bough_pooled_free(&p.pooled);
    bough_xattrs_free(&p.xattrs);
    bough_tar_free(&p.tar);
    bough_codec_free(&p.codec);
    bough_sha256_free(p.tar_sum);
    bough_sha256_free(p.out_sum);
    bough_out_free(&p.out);
    bough_fd_close(&p.start.fd);
    free(p.base);
    free(p.path);
    return rc;
}
