#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../sys.h"
#include "mountapi.h"
#include "root.h"

#define SKELETON "0/fs"
#define NOTHING "0/none"

static int set(int fs, const char *key, const char *value)
{
    return bough_fsconfig(fs, value ? BOUGH_FSCONFIG_SET_STRING : BOUGH_FSCONFIG_SET_FLAG, key,
                          value);
}

/* The kernel's own words for a refused mount, from the context's log. */
static int log_error(int fs, int sys, const char *step, struct bough_err *err)
{
    char text[256];
    ssize_t n = read(fs, text, sizeof text - 1);
    if (n > 2) {
        text[n] = '\0';
        text[strcspn(text, "\n")] = '\0';
        bough_err_sys(err, sys, "overlay mount, %s: %s", step, text + 2);
    } else {
        bough_err_sys(err, sys, "overlay mount, %s", step);
    }
    errno = sys;
    return -1;
}

static int mount_by_parts(const struct bough_overlay *o, const char *bottom, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int fs = bough_fsopen("overlay");
    if (fs < 0)
        return bough_err_sys(err, errno, "overlay mount");
    char path[40];
    set(fs, "source", "bough");
    for (int64_t i = 0; i < o->stack_count; i++) {
        snprintf(path, sizeof path, "%lld/fs", (long long)o->stack[i]);
        if (set(fs, "lowerdir+", path) < 0)
            return log_error(fs, errno, "layer", err);
    }
    if (bottom && set(fs, "lowerdir+", bottom) < 0)
        return log_error(fs, errno, "layer", err);
    if (o->upper) {
        if (set(fs, "upperdir", o->upper) < 0 || set(fs, "workdir", o->work) < 0)
            return log_error(fs, errno, "upper layer", err);
        /* Unmounting would flush the whole file system under us otherwise; a run's files need not survive a
         * power cut before its image is announced. */
        set(fs, "volatile", NULL);
    }
    if (!o->site->root)
        set(fs, "userxattr", NULL);
    /* Layers are merged, moved and read one by one: whatever ties one to another stays off, also where the
     * kernel was built to turn it on. */
    set(fs, "index", "off");
    set(fs, "redirect_dir", "nofollow");
    set(fs, "metacopy", "off");
    if (bough_fsconfig(fs, BOUGH_FSCONFIG_CMD_CREATE, NULL, NULL) < 0)
        return log_error(fs, errno, "create", err);
    int fd = bough_fsmount(fs, BOUGH_MOUNT_NODEV | BOUGH_MOUNT_NOSUID);
    return fd < 0 ? bough_err_sys(err, errno, "overlay mount, fsmount") : fd;
}

/* Before Linux 6.8 layers come as one string, which fsconfig cuts at 256 bytes: the old call takes a page. */
static int mount_by_string(const struct bough_overlay *o, const char *bottom, struct bough_err *err)
{
    char text[4096];
    size_t n = (size_t)snprintf(text, sizeof text,
                                "index=off,redirect_dir=nofollow,metacopy=off%s,lowerdir=",
                                o->site->root ? "" : ",userxattr");
    for (int64_t i = 0; i < o->stack_count && n < sizeof text; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%lld/fs", i ? ":" : "",
                              (long long)o->stack[i]);
    if (n < sizeof text && bottom)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s", o->stack_count ? ":" : "", bottom);
    if (n < sizeof text && o->upper)
        n += (size_t)snprintf(text + n, sizeof text - n, ",upperdir=%s,workdir=%s,volatile",
                              o->upper, o->work);
    if (n >= sizeof text)
        return bough_err_set(err, BOUGH_ERR_resource,
                             "overlay mount: %lld layers are too many for this kernel",
                             (long long)o->stack_count);
    if (mount("bough", NOTHING, "overlay", MS_NODEV | MS_NOSUID, text) < 0)
        return bough_err_sys(err, errno, "overlay mount");
    int fd = bough_open_tree(AT_FDCWD, NOTHING, BOUGH_OPEN_TREE_CLONE);
    int sys = errno;
    umount2(NOTHING, MNT_DETACH);
    return fd < 0 ? bough_err_sys(err, sys, "overlay mount, open_tree") : fd;
}

int bough_overlay_mount(const struct bough_overlay *o, struct bough_err *err)
{
    if (!o->upper && !o->skeleton &&
        !o->stack_count) { /* the empty image: nothing to lay over anything */
        int fd = bough_open_tree(AT_FDCWD, NOTHING, BOUGH_OPEN_TREE_CLONE);
        return fd < 0 ? bough_err_sys(err, errno, "empty image") : fd;
    }
    /* Two lower layers at least, or the kernel takes a mount without an upper one for a mistake. */
    const char *bottom = o->skeleton ? SKELETON : o->upper && o->stack_count ? NULL : NOTHING;
    if (o->site->lowerdir_plus)
        return mount_by_parts(o, bottom, err);
    return mount_by_string(o, bottom, err);
}
