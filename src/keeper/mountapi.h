/* mountapi.h - the mount system calls of Linux 5.2 and later, which older C libraries do not wrap.
 * Numbers and flags as in linux/mount.h; see fsopen(2), fsconfig(2), fsmount(2), move_mount(2),
 * open_tree(2), mount_setattr(2), openat2(2). */
#ifndef BOUGH_MOUNTAPI_H
#define BOUGH_MOUNTAPI_H

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

enum {
    BOUGH_FSCONFIG_SET_FLAG = 0,
    BOUGH_FSCONFIG_SET_STRING = 1,
    BOUGH_FSCONFIG_CMD_CREATE = 6,
    BOUGH_MOUNT_RDONLY = 1,
    BOUGH_MOUNT_NOSUID = 2,
    BOUGH_MOUNT_NODEV = 4,
    BOUGH_MOUNT_NOEXEC = 8,
    BOUGH_OPEN_TREE_CLONE = 1,
    BOUGH_AT_RECURSIVE = 0x8000,
    BOUGH_MOVE_F_EMPTY = 4,
    BOUGH_MOVE_T_EMPTY = 0x40,
};

static inline int bough_fsopen(const char *type)
{
    return (int)syscall(SYS_fsopen, type, 1 /* FSOPEN_CLOEXEC */);
}

static inline int bough_fsconfig(int fs, unsigned cmd, const char *key, const char *value)
{
    return (int)syscall(SYS_fsconfig, fs, cmd, key, value, 0);
}

static inline int bough_fsmount(int fs, unsigned attrs)
{
    return (int)syscall(SYS_fsmount, fs, 1 /* FSMOUNT_CLOEXEC */, attrs);
}

static inline int bough_open_tree(int dir, const char *path, unsigned flags)
{
    return (int)syscall(SYS_open_tree, dir, path, flags | O_CLOEXEC | (*path ? 0 : AT_EMPTY_PATH));
}

/* Attaches the mount `tree` on the directory or file `at` (both descriptors). */
static inline int bough_attach(int tree, int at)
{
    return (int)syscall(SYS_move_mount, tree, "", at, "", BOUGH_MOVE_F_EMPTY | BOUGH_MOVE_T_EMPTY);
}

static inline int bough_mount_readonly(const char *path)
{
    struct {
        uint64_t set, clear, propagation, userns;
    } attr = {.set = BOUGH_MOUNT_RDONLY};
    return (int)syscall(SYS_mount_setattr, AT_FDCWD, path, BOUGH_AT_RECURSIVE, &attr, sizeof attr);
}

static inline int bough_openat2(int dir, const char *path, uint64_t flags, uint64_t resolve)
{
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve};
    int fd = -1;
    /* A ".." cannot be vouched for while mounts are made elsewhere: the kernel asks to try again. */
    for (int i = 0; i < 1000; i++) {
        fd = (int)syscall(SYS_openat2, dir, path, &how, sizeof how);
        if (fd >= 0 || errno != EAGAIN)
            break;
    }
    return fd;
}

#endif
