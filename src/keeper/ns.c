#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pwd.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "../sys.h"
#include "root.h"
#include "site.h"

struct id_range {
    unsigned long first, count;
};

/* The first range of subuid(5) or subgid(5) for this user, by name or number. */
static bool find_range(const char *path, const char *user, uid_t uid, struct id_range *range)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    char line[512], number[24];
    snprintf(number, sizeof number, "%lu", (unsigned long)uid);
    bool found = false;
    while (!found && fgets(line, sizeof line, f)) {
        char *first = strchr(line, ':');
        if (!first)
            continue;
        *first++ = '\0';
        if (strcmp(line, number) != 0 && (!user || strcmp(line, user) != 0))
            continue;
        found = sscanf(first, "%lu:%lu", &range->first, &range->count) == 2 && range->count > 0;
    }
    fclose(f);
    return found;
}

static int write_file(const char *path, const char *text)
{
    BOUGH_CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    return BOUGH_RETRY(write(fd, text, strlen(text))) < 0 ? -1 : 0;
}

static int run_map_tool(const char *tool, pid_t pid, unsigned long own,
                        const struct id_range *range)
{
    char p[24], o[24], first[24], count[24];
    snprintf(p, sizeof p, "%d", (int)pid);
    snprintf(o, sizeof o, "%lu", own);
    snprintf(first, sizeof first, "%lu", range->first);
    snprintf(count, sizeof count, "%lu", range->count);
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        dup2(null, 1);
        dup2(null, 2);
        execlp(tool, tool, p, "0", o, "1", "1", first, count, (char *)NULL);
        _exit(127);
    }
    int status = -1;
    if (child > 0)
        BOUGH_RETRY(waitpid(child, &status, 0));
    return status == 0 ? 0 : WIFEXITED(status) && WEXITSTATUS(status) == 127 ? 127 : 1;
}

/* A helper outside of the new namespace: newuidmap(1) has to be run there. Its exit status is the answer. */
static pid_t start_mapper(int *go, uid_t uid, gid_t gid, const struct id_range *uids,
                          const struct id_range *gids)
{
    int pipefd[2];
    if (pipe2(pipefd, O_CLOEXEC) < 0)
        return -1;
    pid_t keeper = getpid();
    pid_t pid = fork();
    if (pid == 0) {
        char c;
        close(pipefd[1]);
        if (BOUGH_RETRY(read(pipefd[0], &c, 1)) != 1)
            _exit(1);
        int rc = run_map_tool("newuidmap", keeper, uid, uids);
        if (rc == 0)
            rc = run_map_tool("newgidmap", keeper, gid, gids);
        _exit(rc);
    }
    close(pipefd[0]);
    *go = pipefd[1];
    if (pid < 0)
        bough_fd_close(go);
    return pid;
}

static int map_one(uid_t uid, gid_t gid, struct bough_err *err)
{
    char text[64];
    write_file("/proc/self/setgroups", "deny");
    snprintf(text, sizeof text, "0 %lu 1\n", (unsigned long)uid);
    if (write_file("/proc/self/uid_map", text) < 0)
        return bough_err_sys(err, errno, "user namespace: uid map");
    snprintf(text, sizeof text, "0 %lu 1\n", (unsigned long)gid);
    if (write_file("/proc/self/gid_map", text) < 0)
        return bough_err_sys(err, errno, "user namespace: gid map");
    return 0;
}

static int enter_user(struct bough_site *site, struct bough_err *err)
{
    uid_t uid = geteuid();
    gid_t gid = getegid();
    struct passwd *pw = getpwuid(uid);
    const char *name = pw ? pw->pw_name : NULL;
    struct id_range uids, gids;
    BOUGH_CLEANUP_FD int go = -1;
    pid_t mapper = -1;
    if (!find_range("/etc/subuid", name, uid, &uids) ||
        !find_range("/etc/subgid", name, uid, &gids))
        snprintf(site->uid_why, sizeof site->uid_why,
                 "no range of uids for this user in /etc/subuid and /etc/subgid");
    else
        mapper = start_mapper(&go, uid, gid, &uids, &gids);
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0) {
        int sys = errno;
        bough_fd_close(&go);
        if (mapper > 0)
            waitpid(mapper, NULL, 0);
        return bough_err_set(
            err, sys == ENOSPC || sys == EMFILE ? BOUGH_ERR_resource : BOUGH_ERR_unsupported,
            "user namespaces: this system refuses them to an ordinary user (%s); allow them "
            "(sysctl "
            "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, "
            "user.max_user_namespaces) or run as root",
            strerror(sys));
    }
    if (mapper > 0) {
        int status = -1;
        if (BOUGH_RETRY(write(go, "g", 1)) == 1)
            BOUGH_RETRY(waitpid(mapper, &status, 0));
        if (status == 0) {
            site->range = true;
            site->uid_count = 1 + (long)(uids.count < gids.count ? uids.count : gids.count);
        } else {
            snprintf(site->uid_why, sizeof site->uid_why, "%s",
                     WIFEXITED(status) && WEXITSTATUS(status) == 127
                         ? "newuidmap and newgidmap are not installed (package uidmap)"
                         : "newuidmap refused the range of this user");
        }
    }
    if (!site->range) {
        site->uid_count = 1;
        if (map_one(uid, gid, err) < 0)
            return -1;
    }
    /* Ids inside are fixed from here on; becoming 0 there also makes files we create belong to it. */
    if (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
        return bough_err_sys(err, errno, "user namespace: becoming root inside");
    return 0;
}

int bough_site_open_store(struct bough_site *site, struct bough_err *err)
{
    char path[4096];
    snprintf(path, sizeof path, "tmp/%s", site->owner);
    site->home_fd = open(site->home, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    site->layers_fd = openat(site->home_fd, "layers", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    site->owner_fd = openat(site->home_fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (site->home_fd < 0 || site->layers_fd < 0 || site->owner_fd < 0)
        return bough_err_sys(err, errno, "store %s", site->home);
    return 0;
}

int bough_site_enter(struct bough_site *site, struct bough_err *err)
{
    if (site->root) {
        site->uid_count = -1;
        if (unshare(CLONE_NEWNS) < 0)
            return bough_err_sys(err, errno, "mount namespace (root without CAP_SYS_ADMIN?)");
    } else if (enter_user(site, err) < 0) {
        return -1;
    }
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return bough_err_sys(err, errno, "mount namespace: making it private");
    return bough_site_open_store(site, err);
}

int bough_site_probe(struct bough_site *site, struct bough_err *err)
{
    if (fchdir(site->layers_fd) < 0)
        return bough_err_sys(err, errno, "store %s", site->home);
    static const char *const dirs[] = {"0",        "0/fs",     "0/none",   "0/fs/proc",
                                       "0/fs/dev", "0/fs/sys", "0/fs/etc", "0/fs/tmp"};
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
        if (mkdir(dirs[i], 0755) < 0 && errno != EEXIST)
            return bough_err_sys(err, errno, "store %s", site->home);
    chmod("0/fs/tmp", 01777);
    /* Who is root of a user namespace only, as in a rootless container, may not make what root's layers are made of. */
    if (site->root && setxattr("0/none", "trusted.bough", "", 0, 0) < 0 && errno == EPERM)
        return bough_err_set(
            err, BOUGH_ERR_unsupported,
            "this root has not the rights of the machine's root (uid 0 of a user namespace?); "
            "run as an ordinary user instead");
    removexattr("0/none", "trusted.bough");
    static const char *const files[] = {"0/fs/etc/hosts", "0/fs/etc/hostname",
                                        "0/fs/etc/resolv.conf"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        int fd = open(files[i], O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0)
            return bough_err_sys(err, errno, "store %s", site->home);
        close(fd);
    }
    /* What the kernel can do is asked by doing it: with layers one by one, and without. */
    struct bough_overlay o = {.site = site, .stack = (int64_t[]){0}, .stack_count = 1};
    site->lowerdir_plus = true;
    struct bough_err first;
    int fd = bough_overlay_mount(&o, &first);
    if (fd < 0) {
        site->lowerdir_plus = false;
        fd = bough_overlay_mount(&o, err);
        if (fd < 0)
            return bough_err_set(
                err, BOUGH_ERR_unsupported,
                "overlay file system: %s (ordinary users need Linux 5.11 or later)", first.msg);
    }
    close(fd);
    return 0;
}
