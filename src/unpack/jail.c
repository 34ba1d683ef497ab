#define _GNU_SOURCE
#include "jail.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "../sys.h"

/* The sanitizers map terabytes, read /proc and write to stderr. */
#if defined(__SANITIZE_ADDRESS__)
#define JAIL_SANITIZED 1
/* The leak checker forks and traces its parent, which the jail is there to prevent. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
#else
#define JAIL_SANITIZED 0
#endif

enum {
    OPEN_FILES = 32,
    FIRST_FREE_FD = BOUGH_JAIL_REPORT + 1,
};

/* Bounds what a dictionary size in a header can make a decompressor ask for. */
#define MEMORY_BYTES ((rlim_t)2 << 30)

int bough_jail_close(int in_fd, int out_fd, int report_fd, struct bough_err *err)
{
    const int from[] = {in_fd, out_fd, report_fd};
    int high[3];
    /* first out of the way: the places may be taken by one another */
    for (int i = 0; i < 3; i++)
        if ((high[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 16)) < 0)
            return bough_err_sys(err, errno, "descriptor %d", from[i]);
    for (int i = 0; i < 3; i++)
        if (dup3(high[i], BOUGH_JAIL_IN + i, O_CLOEXEC) < 0)
            return bough_err_sys(err, errno, "dup3");
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        return bough_err_sys(err, errno, "open /dev/null");
    for (int fd = 0; fd <= 2; fd++)
        if (!(JAIL_SANITIZED && fd == 2) && null != fd && dup2(null, fd) < 0)
            return bough_err_sys(err, errno, "dup2");
    if (close_range(FIRST_FREE_FD, ~0u, 0) < 0)
        return bough_err_sys(err, errno, "close_range");
    return 0;
}

static int limit_set(int which, rlim_t value, const char *name, struct bough_err *err)
{
    struct rlimit old;
    if (getrlimit((__rlimit_resource_t)which, &old) < 0)
        return bough_err_sys(err, errno, "getrlimit %s", name);
    if (value > old.rlim_max)
        value = old.rlim_max;
    struct rlimit new = {.rlim_cur = value, .rlim_max = value};
    if (setrlimit((__rlimit_resource_t)which, &new) < 0)
        return bough_err_sys(err, errno, "setrlimit %s", name);
    return 0;
}

/* For a process that may not chroot. Files can be made and changed below the output directory
 * and nowhere else. Best effort: kernels before 5.19 cannot link across directories under it. */
static int landlock_enter(struct bough_err *err)
{
#ifdef LANDLOCK_ACCESS_FS_REFER
    long abi =
        syscall(SYS_landlock_create_ruleset, NULL, (size_t)0, LANDLOCK_CREATE_RULESET_VERSION);
    if (abi < 2)
        return 0;
    const __u64 handled = (LANDLOCK_ACCESS_FS_REFER << 1) - 1;
    const __u64 refused = LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_MAKE_CHAR |
                          LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SOCK;
    struct landlock_ruleset_attr rules = {.handled_access_fs = handled};
    BOUGH_CLEANUP_FD int set = (int)syscall(SYS_landlock_create_ruleset, &rules, sizeof rules, 0);
    struct landlock_path_beneath_attr beneath = {
        .allowed_access = handled & ~refused,
        .parent_fd = BOUGH_JAIL_OUT,
    };
    if (set < 0 ||
        syscall(SYS_landlock_add_rule, set, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0) < 0 ||
        syscall(SYS_landlock_restrict_self, set, 0) < 0)
        return bough_err_sys(err, errno, "landlock");
#endif
    (void)err;
    return 0;
}

/* Keeps what giving files their owner, mode and capabilities needs; device nodes are never made. */
static int caps_drop(struct bough_jail *jail, struct bough_err *err)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    const __u32 keep = 1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_FOWNER |
                       1u << CAP_FSETID | 1u << CAP_SETFCAP;
    if (syscall(SYS_capget, &head, data) < 0)
        return bough_err_sys(err, errno, "capget");
    /* needs CAP_SETPCAP, and matters only to an exec that the filter forbids anyway */
    for (int cap = 0; cap <= CAP_LAST_CAP; cap++)
        if (cap > 31 || !(keep & 1u << cap))
            (void)prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    data[0].permitted &= keep;
    data[0].effective = data[0].permitted;
    data[1].permitted = data[1].effective = 0;
    data[0].inheritable = data[1].inheritable = 0;
    if (syscall(SYS_capset, &head, data) < 0)
        return bough_err_sys(err, errno, "capset");
    jail->may_chown = data[0].effective & 1u << CAP_CHOWN;
    return 0;
}

int bough_jail_enter(struct bough_jail *jail, struct bough_err *err)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return bough_err_sys(err, errno, "no_new_privs");
    /* a reader that went away and a file size limit are errors to report, not deaths */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    umask(0);
    if (limit_set(RLIMIT_CORE, 0, "core", err) < 0)
        return -1;
    if (!JAIL_SANITIZED && (limit_set(RLIMIT_NOFILE, OPEN_FILES, "nofile", err) < 0 ||
                            limit_set(RLIMIT_AS, MEMORY_BYTES, "as", err) < 0))
        return -1;
    /* one by one: what one of them lacks the others need not */
    (void)unshare(CLONE_NEWNET);
    (void)unshare(CLONE_NEWIPC);
    (void)unshare(CLONE_NEWUTS);
    if (fchdir(BOUGH_JAIL_OUT) < 0)
        return bough_err_sys(err, errno, "enter the output directory");
    jail->chrooted = chroot(".") == 0;
    if (!jail->chrooted && errno != EPERM)
        return bough_err_sys(err, errno, "chroot");
    if (!jail->chrooted && landlock_enter(err) < 0)
        return -1;
    if (caps_drop(jail, err) < 0)
        return -1;
    if (!JAIL_SANITIZED && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return bough_err_sys(err, errno, "dumpable");
    return 0;
}

/* Both processes need these; memory may never become code. */
static const int common_calls[] = {
    SCMP_SYS(brk),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(close),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(futex),
    SCMP_SYS(getrandom),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(madvise),
    SCMP_SYS(mremap),
    SCMP_SYS(munmap),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(read),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(sysinfo),
    SCMP_SYS(write),
};

static const int writer_calls[] = {
    SCMP_SYS(fchmod),     SCMP_SYS(fchown),    SCMP_SYS(fchownat),          SCMP_SYS(fsetxattr),
    SCMP_SYS(fstat),      SCMP_SYS(ftruncate), SCMP_SYS(getegid),           SCMP_SYS(geteuid),
    SCMP_SYS(linkat),     SCMP_SYS(lseek),     SCMP_SYS(mkdirat),           SCMP_SYS(newfstatat),
    SCMP_SYS(openat),     SCMP_SYS(openat2),   SCMP_SYS(pidfd_send_signal), SCMP_SYS(pwrite64),
    SCMP_SYS(readlinkat), SCMP_SYS(statx),     SCMP_SYS(symlinkat),         SCMP_SYS(unlinkat),
    SCMP_SYS(utimensat),  SCMP_SYS(wait4),
};

static const int layer_calls[] = {
    SCMP_SYS(fchmodat),
    SCMP_SYS(flistxattr),
    SCMP_SYS(fremovexattr),
    SCMP_SYS(getdents64),
};

/* No decoder calls these by accident: whoever does is not us any more. */
static const int deadly_calls[] = {
    SCMP_SYS(add_key),
    SCMP_SYS(bpf),
    SCMP_SYS(chroot),
    SCMP_SYS(clone),
    SCMP_SYS(clone3),
    SCMP_SYS(connect),
    SCMP_SYS(execve),
    SCMP_SYS(execveat),
    SCMP_SYS(fork),
    SCMP_SYS(fsopen),
    SCMP_SYS(init_module),
    SCMP_SYS(io_uring_setup),
    SCMP_SYS(keyctl),
    SCMP_SYS(kill),
    SCMP_SYS(mount),
    SCMP_SYS(move_mount),
    SCMP_SYS(open_by_handle_at),
    SCMP_SYS(open_tree),
    SCMP_SYS(perf_event_open),
    SCMP_SYS(pivot_root),
    SCMP_SYS(process_vm_readv),
    SCMP_SYS(process_vm_writev),
    SCMP_SYS(ptrace),
    SCMP_SYS(setns),
    SCMP_SYS(socket),
    SCMP_SYS(tkill),
    SCMP_SYS(umount2),
    SCMP_SYS(unshare),
    SCMP_SYS(userfaultfd),
    SCMP_SYS(vfork),
};

static int calls_add(scmp_filter_ctx filter, uint32_t action, const int *calls, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        int r = seccomp_rule_add(filter, action, calls[i], 0);
        /* a call that this architecture does not have */
        if (r < 0 && r != -EDOM && r != -EINVAL)
            return r;
    }
    return 0;
}

#define CALLS_ADD(filter, action, list) \
    calls_add(filter, action, list, sizeof(list) / sizeof((list)[0]))

static int filter_fill(scmp_filter_ctx filter, bool writer, bool layer)
{
    int r;
    if ((r = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS)) < 0 ||
        (r = CALLS_ADD(filter, SCMP_ACT_ALLOW, common_calls)) < 0 ||
        (writer && (r = CALLS_ADD(filter, SCMP_ACT_ALLOW, writer_calls)) < 0) ||
        (layer && (r = CALLS_ADD(filter, SCMP_ACT_ALLOW, layer_calls)) < 0))
        return r;
    /* the sanitizers' runtime starts a symbolizer when it has something to report */
    if (!JAIL_SANITIZED && (r = CALLS_ADD(filter, SCMP_ACT_KILL_PROCESS, deadly_calls)) < 0)
        return r;
    const struct scmp_arg_cmp no_code = SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0);
    const struct scmp_arg_cmp fifo = SCMP_A2(SCMP_CMP_MASKED_EQ, S_IFMT, S_IFIFO);
    if ((r = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, &no_code)) < 0 ||
        (r = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, &no_code)) < 0)
        return r;
    if (writer)
        r = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(mknodat), 1, &fifo);
    return r;
}

static int filter_load(bool writer, bool layer, struct bough_err *err)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (!filter)
        return bough_err_set(err, BOUGH_ERR_resource, "seccomp: out of memory");
    int r = filter_fill(filter, writer, layer);
    /* of all threads: the hasher is one */
    if (r >= 0)
        r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    if (r >= 0)
        r = seccomp_load(filter);
    seccomp_release(filter);
    return r < 0 ? bough_err_sys(err, -r, "seccomp") : 0;
}

int bough_jail_seal_writer(bool layer, struct bough_err *err)
{
    return filter_load(true, layer, err);
}

int bough_jail_seal_decoder(struct bough_err *err)
{
    return filter_load(false, false, err);
}
