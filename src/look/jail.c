#define _GNU_SOURCE
#include "jail.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "../sys.h"

/* The sanitizers map terabytes and write to stderr. */
#if defined(__SANITIZE_ADDRESS__)
#define JAIL_SANITIZED 1
#else
#define JAIL_SANITIZED 0
#endif

/* Two walks, the hints, and some. */
enum { OPEN_FILES = 512 };
/* For names, lines and inodes: all of them grow with what the image holds. */
#define MEMORY_BYTES ((rlim_t)4 << 30)

static const struct bough_look *jail_look;
static bool jail_trusted;

void bough_look_jail_roots(const struct bough_look *look, bool trusted)
{
    jail_look = look;
    jail_trusted = trusted;
}

/* ---- descriptors ---- */

static int number_compare(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

static int others_close(const struct bough_look *look, struct bough_err *err)
{
    int keep[BOUGH_LOOK_ROOTS + BOUGH_LOOK_HINTS + 4], count = 0, first = 3;
    for (int i = 0; i < BOUGH_LOOK_ROOTS; i++)
        keep[count++] = look->root[i];
    for (int i = 0; i < look->hint_count; i++)
        keep[count++] = look->hints[i];
    keep[count++] = look->pool;
    keep[count++] = look->out;
    keep[count++] = look->report;
    qsort(keep, (size_t)count, sizeof *keep, number_compare);
    for (int i = 0; i < count; i++) {
        if (keep[i] > first && close_range((unsigned)first, (unsigned)keep[i] - 1, 0))
            return bough_err_sys(err, errno, "close_range");
        if (keep[i] >= first)
            first = keep[i] + 1;
    }
    if (close_range((unsigned)first, ~0u, 0))
        return bough_err_sys(err, errno, "close_range");
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        return bough_err_sys(err, errno, "open /dev/null");
    for (int fd = 0; fd <= 2; fd++) {
        bool kept = JAIL_SANITIZED && fd == 2;
        for (int i = 0; i < count; i++)
            kept |= keep[i] == fd;
        if (!kept && null != fd && dup2(null, fd) < 0)
            return bough_err_sys(err, errno, "dup2");
    }
    if (null > 2)
        close(null);
    return 0;
}

int bough_look_jail_enter(const struct bough_look *look, struct bough_err *err)
{
    /* a reader that went away is something to notice, not to die of */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    /* the keeper is our parent, and nobody else would want the result */
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return bough_err_sys(err, errno, "no_new_privs");
    return others_close(look, err);
}

/* ---- limits, files, capabilities ---- */

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

static int tree_allow(int set, int fd, struct bough_err *err)
{
    struct landlock_path_beneath_attr beneath = {
        .allowed_access = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR,
        .parent_fd = fd,
    };
    if (fd < 0 || !syscall(SYS_landlock_add_rule, set, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0))
        return 0;
    return bough_err_sys(err, errno, "landlock");
}

/* Nothing can be opened to be written or run, and only what is below the roots to be read. Best
 * effort: not every kernel has it. */
static int landlock_enter(struct bough_err *err)
{
    long abi =
        syscall(SYS_landlock_create_ruleset, NULL, (size_t)0, LANDLOCK_CREATE_RULESET_VERSION);
    if (abi < 1)
        return 0;
    /* the rights of version 1, which the others add to: with these and the filter of calls nothing is left */
    struct landlock_ruleset_attr rules = {.handled_access_fs =
                                              (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1};
    if (!jail_look)
        rules.handled_access_fs &=
            ~(__u64)(LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR);
    BOUGH_CLEANUP_FD int set =
        (int)syscall(SYS_landlock_create_ruleset, &rules, sizeof rules.handled_access_fs, 0);
    if (set < 0)
        return bough_err_sys(err, errno, "landlock");
    for (int i = 0; jail_look && i < BOUGH_LOOK_ROOTS; i++)
        if (tree_allow(set, jail_look->root[i], err))
            return -1;
    if (jail_look && tree_allow(set, jail_look->pool, err))
        return -1;
    for (int i = 0; jail_look && i < jail_look->hint_count; i++)
        if (tree_allow(set, jail_look->hints[i], err))
            return -1;
    if (syscall(SYS_landlock_restrict_self, set, 0) < 0)
        return bough_err_sys(err, errno, "landlock");
    return 0;
}

/* What is left reads files of any owner, as root of the host or of a user namespace. */
static int caps_drop(struct bough_err *err)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    const __u32 keep = 1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH |
                       (jail_trusted ? 1u << CAP_SYS_ADMIN : 0);
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
    return 0;
}

/* ---- system calls ---- */

/* Memory may never become code: what PCRE2 compiles is compiled before. openat2 is not among
 * them, because a filter does not see its flags. */
static const int calls[] = {
    SCMP_SYS(brk),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(close),
    SCMP_SYS(dup),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(fadvise64),
    SCMP_SYS(fgetxattr),
    SCMP_SYS(flistxattr),
    SCMP_SYS(fstat),
    SCMP_SYS(fstatfs),
    SCMP_SYS(futex),
    SCMP_SYS(getdents64),
    SCMP_SYS(getegid),
    SCMP_SYS(geteuid),
    SCMP_SYS(getgid),
    SCMP_SYS(getpid),
    SCMP_SYS(getrandom),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(getuid),
    SCMP_SYS(lseek),
    SCMP_SYS(madvise),
    SCMP_SYS(mremap),
    SCMP_SYS(munmap),
    SCMP_SYS(newfstatat),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(pread64),
    SCMP_SYS(read),
    SCMP_SYS(readlinkat),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(statx),
    SCMP_SYS(sysinfo),
    SCMP_SYS(write),
    SCMP_SYS(writev),
};

static int filter_fill(scmp_filter_ctx filter)
{
    int r;
    if ((r = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS)) < 0)
        return r;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        /* EDOM, EINVAL: a call that this architecture does not have */
        if ((r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, calls[i], 0)) < 0 && r != -EDOM &&
            r != -EINVAL)
            return r;
    const unsigned writes = O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND | (O_TMPFILE & ~O_DIRECTORY);
    const struct scmp_arg_cmp no_write = SCMP_A2(SCMP_CMP_MASKED_EQ, writes, 0);
    const struct scmp_arg_cmp no_code = SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0);
    if ((r = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(openat), 1, &no_write)) < 0 ||
        (r = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, &no_code)) < 0 ||
        (r = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, &no_code)) < 0)
        return r;
    static const int commands[] = {F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL};
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        const struct scmp_arg_cmp command =
            SCMP_A1(SCMP_CMP_MASKED_EQ, UINT32_MAX, (scmp_datum_t)commands[i]);
        r = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1, &command);
        if (r < 0)
            return r;
    }
    return 0;
}

int bough_look_seal(struct bough_err *err)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return bough_err_sys(err, errno, "no_new_privs");
    if (limit_set(RLIMIT_CORE, 0, "core", err))
        return -1;
    if (!JAIL_SANITIZED && (limit_set(RLIMIT_NOFILE, OPEN_FILES, "nofile", err) ||
                            limit_set(RLIMIT_AS, MEMORY_BYTES, "as", err)))
        return -1;
    if ((!JAIL_SANITIZED && landlock_enter(err)) || caps_drop(err))
        return -1;
    if (!JAIL_SANITIZED && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return bough_err_sys(err, errno, "dumpable");
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (!filter)
        return bough_err_set(err, BOUGH_ERR_resource, "seccomp: out of memory");
    int r = filter_fill(filter);
    if (r >= 0)
        r = seccomp_load(filter);
    seccomp_release(filter);
    return r < 0 ? bough_err_sys(err, -r, "seccomp") : 0;
}
