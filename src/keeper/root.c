#define _GNU_SOURCE
#include "root.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "../sys.h"
#include "mountapi.h"
#include "tree.h"

#define SCRATCH "/tmp"

static int fail(struct bough_err *err, const char *step, const char *object)
{
    return bough_err_sys(err, errno, "%s %s", step, object);
}

/* --- the template, once per engine ------------------------------------------------------------ */

struct device {
    const char *name;
    unsigned major, minor;
};

static const struct device devices[] = {
    {"null", 1, 3},   {"zero", 1, 5},    {"full", 1, 7},
    {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
};

static int make_devices(const struct bough_site *site, int host_dev, struct bough_err *err)
{
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        const struct device *d = &devices[i];
        char path[32];
        snprintf(path, sizeof path, "dev/%s", d->name);
        if (site->root) {
            if (mknod(path, S_IFCHR | 0666, makedev(d->major, d->minor)) < 0 ||
                chmod(path, 0666) < 0)
                return fail(err, "device", path);
            continue;
        }
        /* A user namespace may not make devices: the host's own are shown through instead. */
        BOUGH_CLEANUP_FD int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
        BOUGH_CLEANUP_FD int tree = bough_open_tree(host_dev, d->name, BOUGH_OPEN_TREE_CLONE);
        BOUGH_CLEANUP_FD int at = open(path, O_PATH | O_CLOEXEC);
        if (file < 0 || tree < 0 || at < 0 || bough_attach(tree, at) < 0)
            return fail(err, "device", path);
    }
    static const char *const links[][2] = {{"/proc/self/fd", "dev/fd"},
                                           {"/proc/self/fd/0", "dev/stdin"},
                                           {"/proc/self/fd/1", "dev/stdout"},
                                           {"/proc/self/fd/2", "dev/stderr"},
                                           {"pts/ptmx", "dev/ptmx"}};
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlink(links[i][0], links[i][1]) < 0)
            return fail(err, "device", links[i][1]);
    if (mkdir("dev/pts", 0755) < 0 || mkdir("dev/shm", 0755) < 0 || mkdir("dev/mqueue", 0755) < 0)
        return fail(err, "device", "dev");
    return 0;
}

int bough_root_template(const struct bough_site *site, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int store = bough_open_tree(site->home_fd, "", BOUGH_OPEN_TREE_CLONE);
    BOUGH_CLEANUP_FD int proc =
        site->root ? -1
                   : bough_open_tree(AT_FDCWD, "/proc", BOUGH_OPEN_TREE_CLONE | BOUGH_AT_RECURSIVE);
    BOUGH_CLEANUP_FD int sys =
        site->root ? -1
                   : bough_open_tree(AT_FDCWD, "/sys", BOUGH_OPEN_TREE_CLONE | BOUGH_AT_RECURSIVE);
    BOUGH_CLEANUP_FD int host_dev = open("/dev", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (store < 0)
        return fail(err, "sandbox template: store", site->home);
    /* The tmpfs lies over a directory of ours for a moment only, until it has become the root. */
    if (fchdir(site->owner_fd) < 0 ||
        mount("bough", ".", "tmpfs", MS_NOSUID, "mode=0755,size=1m") < 0)
        return fail(err, "sandbox template:", "tmpfs");
    char path[4096];
    snprintf(path, sizeof path, "%s/tmp/%s", site->home, site->owner);
    if (chdir(path) < 0)
        return fail(err, "sandbox template:", path);
    static const char *const dirs[] = {"store", "dev",   "proc",  "sys",      "new",
                                       "etc",   "upper", "empty", "hostproc", "hostsys"};
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
        if (mkdir(dirs[i], 0755) < 0)
            return fail(err, "sandbox template:", dirs[i]);
    BOUGH_CLEANUP_FD int at = open("store", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (at < 0 || bough_attach(store, at) < 0)
        return fail(err, "sandbox template: store", site->home);
    if (mount("bough-dev", "dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=64k") < 0)
        return fail(err, "sandbox template:", "dev");
    if (make_devices(site, host_dev, err) < 0)
        return -1;
    if (mount(NULL, "dev", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL) <
        0)
        return fail(err, "sandbox template:", "dev");
    /* A user namespace may mount a new proc or sysfs only where it can see a whole one. */
    BOUGH_CLEANUP_FD int at_proc = open("hostproc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    BOUGH_CLEANUP_FD int at_sys = open("hostsys", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (proc >= 0)
        bough_attach(proc, at_proc);
    if (sys >= 0)
        bough_attach(sys, at_sys);
    if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return fail(err, "sandbox template:", "pivot_root");
    return 0;
}

/* --- a blank ---------------------------------------------------------------------------------- */

/* What of /proc tells about the host or reaches it; a container's usual list. */
static const char *const masked[] = {
    "/proc/acpi",       "/proc/allocinfo",     "/proc/asound",
    "/proc/driver",     "/proc/dynamic_debug", "/proc/interrupts",
    "/proc/kallsyms",   "/proc/kcore",         "/proc/keys",
    "/proc/key-users",  "/proc/kmsg",          "/proc/kpagecgroup",
    "/proc/kpagecount", "/proc/kpageflags",    "/proc/latency_stats",
    "/proc/mtrr",       "/proc/pagetypeinfo",  "/proc/sched_debug",
    "/proc/scsi",       "/proc/slabinfo",      "/proc/sysrq-trigger",
    "/proc/timer_list", "/proc/timer_stats",   "/proc/vmallocinfo",
    "/proc/vmcore",     "/sys/firmware",       "/sys/devices/virtual/powercap",
};
static const char *const read_only[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/pressure",
                                        "/proc/sys"};

static int mask_proc(struct bough_err *err)
{
    for (size_t i = 0; i < sizeof masked / sizeof *masked; i++) {
        struct stat st;
        if (stat(masked[i], &st) < 0)
            continue;
        if (mount(S_ISDIR(st.st_mode) ? "/empty" : "/dev/null", masked[i], NULL, MS_BIND, NULL) < 0)
            return fail(err, "masking", masked[i]);
        if (S_ISDIR(st.st_mode) && bough_mount_readonly(masked[i]) < 0)
            return fail(err, "masking", masked[i]);
    }
    for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++) {
        if (mount(read_only[i], read_only[i], NULL, MS_BIND | MS_REC, NULL) < 0) {
            if (errno == ENOENT)
                continue;
            return fail(err, "read-only", read_only[i]);
        }
        if (bough_mount_readonly(read_only[i]) < 0)
            return fail(err, "read-only", read_only[i]);
    }
    return 0;
}

/* The loopback device of a new network namespace is down; ports below 1024 and pings are nobody's
 * business in a network of one's own. */
static void bring_up_network(void)
{
    BOUGH_CLEANUP_FD int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq lo = {.ifr_flags = IFF_UP | IFF_RUNNING};
    strcpy(lo.ifr_name, "lo");
    if (sock >= 0)
        ioctl(sock, SIOCSIFFLAGS, &lo);
    static const char *const knobs[][2] = {{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
                                           {"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"}};
    for (size_t i = 0; i < sizeof knobs / sizeof *knobs; i++) {
        BOUGH_CLEANUP_FD int fd = open(knobs[i][0], O_WRONLY | O_CLOEXEC);
        if (fd >= 0 && write(fd, knobs[i][1], strlen(knobs[i][1])) < 0 && i == 1)
            (void)!write(fd, "0 0", 3); /* one uid only: its group is all there is */
    }
}

int bough_root_blank(struct bough_root *root, const struct bough_site *site, bool host_network,
                     bool set_up_network, struct bough_err *err)
{
    *root = (struct bough_root){.site = site, .owner_fd = -1, .upper_fd = -1, .reused = -1};
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
        return bough_err_sys(
            err, errno, "sandbox: mounting /proc%s",
            site->root ? "" : " (is part of the host's /proc covered by other mounts?)");
    if (set_up_network)
        bring_up_network();
    /* With the host's network, or a partly covered /sys, there is none to be had. */
    if (host_network ||
        mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, NULL) < 0)
        mount("/empty", "/sys", NULL, MS_BIND, NULL);
    if (mask_proc(err) < 0)
        return -1;
    if (mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
              "newinstance,ptmxmode=0666,mode=0620,gid=5") < 0 &&
        mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
              "newinstance,ptmxmode=0666,mode=0620") < 0)
        return fail(err, "mounting", "/dev/pts");
    if (mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=64m") <
        0)
        return fail(err, "mounting", "/dev/shm");
    if (mount("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
        return fail(err, "mounting", "/dev/mqueue");
    if (mount("bough-etc", "/etc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=1m") <
        0)
        return fail(err, "mounting", "/etc");
    char path[256];
    snprintf(path, sizeof path, "/store/tmp/%s", site->owner);
    root->owner_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root->owner_fd < 0)
        return fail(err, "open", path);
    if (chdir("/store/layers") < 0)
        return fail(err, "chdir", "/store/layers");
    return 0;
}

/* --- a run ------------------------------------------------------------------------------------ */

static int make_staging(struct bough_root *root, const struct bough_plan *plan,
                        struct bough_err *err)
{
    char name[64];
    struct stat st = {.st_mode = 0755};
    if (plan->stack_count > 0) {
        snprintf(name, sizeof name, "%lld/fs", (long long)plan->stack[0]);
        if (stat(name, &st) < 0)
            return bough_err_sys(err, errno, "layer %lld", (long long)plan->stack[0]);
    }
    root->layer = plan->layer;
    int dir = root->owner_fd;
    BOUGH_CLEANUP_FD int tmpfs = -1;
    if (plan->limits.disk > 0) {
        char options[96];
        snprintf(options, sizeof options, "mode=0755,size=%lld,nr_inodes=%lld",
                 (long long)plan->limits.disk,
                 (long long)(plan->limits.disk / 4096 +
                             256)); /* a directory takes a block where it will lie */
        if (mount("bough-upper", "/upper", "tmpfs", MS_NOSUID | MS_NODEV, options) < 0)
            return fail(err, "disk limit: mounting", "tmpfs");
        tmpfs = open("/upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        dir = tmpfs;
        root->in_memory = true;
    }
    snprintf(name, sizeof name, "%lld", (long long)plan->layer);
    if (mkdirat(dir, name, 0700) < 0)
        return bough_err_sys(err, errno, "layer %s", name);
    snprintf(name, sizeof name, "%lld/fs", (long long)plan->layer);
    if (mkdirat(dir, name, 0700) < 0)
        return bough_err_sys(err, errno, "layer %s", name);
    root->upper_fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root->upper_fd < 0)
        return bough_err_sys(err, errno, "layer %s", name);
    /* The upper directory is the image's root directory: it has to look like the one below. */
    root->root_mode = st.st_mode & 07777;
    root->root_uid = st.st_uid;
    root->root_gid = st.st_gid;
    if (fchown(root->upper_fd, st.st_uid, st.st_gid) < 0 ||
        fchmod(root->upper_fd, root->root_mode) < 0)
        return bough_err_sys(err, errno, "layer %s", name);
    snprintf(name, sizeof name, "w%lld", (long long)plan->layer);
    if (mkdirat(dir, name, 0700) < 0)
        return bough_err_sys(err, errno, "layer %s", name);
    return 0;
}

static int mount_image(struct bough_root *root, const struct bough_plan *plan,
                       struct bough_err *err)
{
    char upper[300], work[300], base[200];
    if (root->in_memory)
        snprintf(base, sizeof base, "/upper");
    else
        snprintf(base, sizeof base, "../tmp/%s", root->site->owner);
    snprintf(upper, sizeof upper, "%s/%lld/fs", base, (long long)plan->layer);
    snprintf(work, sizeof work, "%s/w%lld", base, (long long)plan->layer);
    struct bough_overlay o = {.site = root->site,
                              .stack = plan->stack,
                              .stack_count = plan->stack_count,
                              .upper = upper,
                              .work = work,
                              .skeleton = true};
    BOUGH_CLEANUP_FD int tree = bough_overlay_mount(&o, err);
    BOUGH_CLEANUP_FD int at = open("/new", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (tree < 0)
        return -1;
    if (at < 0 || bough_attach(tree, at) < 0)
        return fail(err, "sandbox:", "attaching the image");
    return 0;
}

/* Moves a mount of the template below the image. The image's own links are not followed: a /proc that is
 * one would have its target covered (CVE-2019-19921). */
static int move_below(int image, const char *name, struct bough_err *err)
{
    char from[16];
    snprintf(from, sizeof from, "/%s", name);
    BOUGH_CLEANUP_FD int tree = open(from, O_PATH | O_DIRECTORY | O_CLOEXEC);
    BOUGH_CLEANUP_FD int at =
        bough_openat2(image, name, O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS);
    if (at < 0)
        return bough_err_set(err, BOUGH_ERR_unsupported,
                             "image: /%s is not a directory in it, nothing can be mounted there",
                             name);
    if (tree < 0 || bough_attach(tree, at) < 0)
        return fail(err, "sandbox: mounting", from);
    return 0;
}

static int write_etc(const char *name, const char *text)
{
    char path[32];
    snprintf(path, sizeof path, "/etc/%s", name);
    BOUGH_CLEANUP_FD int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        return -1;
    return fchmod(fd, 0644);
}

/* Covers a file of the image's /etc by ours. An image that has none, or a link there, keeps what it has. */
static void cover_etc(int image, const char *name, const char *text)
{
    char path[32];
    snprintf(path, sizeof path, "etc/%s", name);
    BOUGH_CLEANUP_FD int at =
        bough_openat2(image, path, O_PATH | O_NOFOLLOW, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS);
    struct stat st;
    if (at < 0 || fstat(at, &st) < 0 || !S_ISREG(st.st_mode) || write_etc(name, text) < 0)
        return;
    snprintf(path, sizeof path, "/etc/%s", name);
    BOUGH_CLEANUP_FD int tree = bough_open_tree(AT_FDCWD, path, BOUGH_OPEN_TREE_CLONE);
    if (tree >= 0)
        bough_attach(tree, at);
}

/* Whether the upper layer's root directory has xattrs that overlayfs did not put there. The image's "user.overlay.x"
 * is "user.overlay.overlay.x" below where "user.overlay." is overlayfs's own. */
static bool is_marked(const struct bough_root *root)
{
    const char *own = root->site->root ? "trusted.overlay." : "user.overlay.";
    size_t length = strlen(own);
    char names[2048];
    ssize_t n = flistxattr(root->upper_fd, names, sizeof names);
    if (n < 0)
        return errno == ERANGE;
    for (const char *name = names; name < names + n; name += strlen(name) + 1)
        if ((strncmp(name, own, length) != 0 || strncmp(name + length, "overlay.", 8) == 0) &&
            strcmp(name, "security.selinux") != 0)
            return true;
    return false;
}

void bough_root_reuse(struct bough_root *root, int reused, int upper, int64_t layer)
{
    root->reused = reused;
    root->upper_fd = upper;
    root->layer = layer;
}

static int attach_reused(struct bough_root *root, struct bough_err *err)
{
    struct stat st;
    BOUGH_CLEANUP_FD int tree = bough_steal_fd(&root->reused);
    BOUGH_CLEANUP_FD int at = open("/new", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (at < 0 || bough_attach(tree, at) < 0 || fstat(root->upper_fd, &st) < 0)
        return fail(err, "sandbox:", "attaching a kept overlay");
    root->root_mode = st.st_mode & 07777;
    root->root_uid = st.st_uid;
    root->root_gid = st.st_gid;
    futimens(root->upper_fd, NULL); /* the times are nobody's message to us */
    return 0;
}

int bough_root_enter(struct bough_root *root, const struct bough_plan *plan, struct bough_err *err)
{
    if (root->reused >= 0) {
        if (attach_reused(root, err) < 0)
            return -1;
    } else if (make_staging(root, plan, err) < 0 || mount_image(root, plan, err) < 0) {
        return -1;
    }
    root->root_marked = is_marked(root);
    BOUGH_CLEANUP_FD int image = open("/new", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (image < 0)
        return fail(err, "open", "/new");
    if (move_below(image, "proc", err) < 0 || move_below(image, "dev", err) < 0 ||
        move_below(image, "sys", err) < 0)
        return -1;
    char hosts[400], hostname[80];
    snprintf(hosts, sizeof hosts,
             "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.1.1\t%s\n", plan->hostname);
    snprintf(hostname, sizeof hostname, "%s\n", plan->hostname);
    cover_etc(image, "hosts", hosts);
    cover_etc(image, "hostname", hostname);
    cover_etc(image, "resolv.conf", plan->resolv ? plan->resolv : "");
    if (sethostname(plan->hostname, strlen(plan->hostname)) < 0 &&
        plan->network != BOUGH_NETWORK_HOST)
        return fail(err, "hostname", plan->hostname);
    if (chdir("/new") < 0 || syscall(SYS_pivot_root, ".", ".") < 0 ||
        umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return fail(err, "sandbox:", "pivot_root");
    return 0;
}

/* --- after it --------------------------------------------------------------------------------- */

bool bough_root_untouched(const struct bough_root *root)
{
    struct stat st;
    if (fstat(root->upper_fd, &st) < 0 || (st.st_mode & 07777) != root->root_mode ||
        st.st_uid != root->root_uid || st.st_gid != root->root_gid ||
        (is_marked(root) && !root->root_marked))
        return false;
    char entries[512];
    long n;
    int count = 0;
    lseek(root->upper_fd, 0, SEEK_SET);
    while ((n = syscall(SYS_getdents64, root->upper_fd, entries, sizeof entries)) > 0)
        for (long at = 0; at < n;) {
            unsigned short length;
            memcpy(&length, entries + at + 16,
                   sizeof length); /* linux_dirent64: ino, off, reclen, type, name */
            const char *name = entries + at + 19;
            if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0)
                count++;
            at += length;
        }
    return count == 0;
}

/* Makes the sandbox's /dev/mqueue the root, so that the overlay is gone when we say so: an upper layer still
 * mounted is no good lower one. Nobody else is left to notice. */
static int leave_image(struct bough_err *err)
{
    if (chdir("/dev/mqueue") < 0 || syscall(SYS_pivot_root, ".", ".") < 0 ||
        umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return fail(err, "sandbox:", "leaving the image");
    return 0;
}

static int copy_out(struct bough_root *root, struct bough_err *err)
{
    char name[64];
    snprintf(name, sizeof name, "%lld", (long long)root->layer);
    if (mkdirat(root->owner_fd, name, 0700) < 0)
        return bough_err_sys(err, errno, "layer %s", name);
    snprintf(name, sizeof name, "%lld/fs", (long long)root->layer);
    if (mkdirat(root->owner_fd, name, 0700) < 0)
        return bough_err_sys(err, errno, "layer %s", name);
    BOUGH_CLEANUP_FD int to = openat(root->owner_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct bough_tree_copy how = {.devices = true, .still = true};
    struct bough_tree_size size;
    if (to < 0)
        return bough_err_sys(err, errno, "layer %s", name);
    if (bough_tree_copy(root->upper_fd, to, &how, &size, err) < 0)
        return bough_err_wrap(err, "layer %s", name);
    return 0;
}

int bough_root_seal(struct bough_root *root, bool keep, bool shared, int *spare,
                    struct bough_ending *ending, struct bough_err *err)
{
    bool untouched = bough_root_untouched(root);
    *spare = -1;
    ending->layer = root->layer;
    ending->changed = keep && !untouched;
    if (untouched && !root->in_memory && !shared)
        *spare = bough_open_tree(AT_FDCWD, "/", BOUGH_OPEN_TREE_CLONE);
    if (!ending->changed)
        return 0;
    if (shared && mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0)
        return bough_err_set(err, BOUGH_ERR_busy,
                             "sandbox: a process outside holds one of its files open for writing");
    struct bough_tree_size size = {0};
    char name[64];
    snprintf(name, sizeof name, "%lld/fs", (long long)root->layer);
    /* A copy has nothing to do with the overlay that it was made from. */
    if ((root->in_memory ? copy_out(root, err) : leave_image(err)) < 0 ||
        bough_tree_measure(root->owner_fd, name, &size, err) < 0)
        return -1;
    ending->bytes = size.bytes;
    ending->files = size.files;
    return 0;
}

void bough_root_tidy(struct bough_root *root)
{
    char name[32];
    if (root->layer <= 0)
        return;
    snprintf(name, sizeof name, "w%lld", (long long)root->layer);
    bough_tree_remove(root->owner_fd, name, NULL);
    bough_tree_remove(root->owner_fd, name + 1, NULL);
}
