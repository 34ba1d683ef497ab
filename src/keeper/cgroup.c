#define _GNU_SOURCE
#include "cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../sys.h"

static const char *const controller_names[BOUGH_CONTROLLERS] = {"memory", "pids", "cpu"};

static int write_at(int dir, const char *group, const char *file, const char *value)
{
    char path[128];
    snprintf(path, sizeof path, "%s%s%s", group, *group ? "/" : "", file);
    BOUGH_CLEANUP_FD int fd = openat(dir, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    return BOUGH_RETRY(write(fd, value, strlen(value))) < 0 ? -1 : 0;
}

static ssize_t read_at(int dir, const char *group, const char *file, char *text, size_t room)
{
    char path[128];
    snprintf(path, sizeof path, "%s%s%s", group, *group ? "/" : "", file);
    BOUGH_CLEANUP_FD int fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = BOUGH_RETRY(read(fd, text, room - 1));
    text[n > 0 ? n : 0] = '\0';
    return n;
}

static bool has_word(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = list; (p = strstr(p, word)) != NULL; p += n) {
        bool starts = p == list || strchr(" ,\n", p[-1]);
        bool ends = p[n] == '\0' || strchr(" ,\n", p[n]);
        if (starts && ends)
            return true;
    }
    return false;
}

/* Where the hierarchy with `controller` (NULL: version 2) is mounted, cgroups(7). */
static bool find_mount(const char *controller, char *point, char *root)
{
    FILE *f = fopen("/proc/self/mountinfo", "re");
    if (!f)
        return false;
    char *line = NULL;
    size_t room = 0;
    bool found = false;
    while (!found && getline(&line, &room, f) > 0) {
        char type[32], super[512];
        char *dash = strstr(line, " - ");
        if (!dash || sscanf(dash + 3, "%31s %*s %511s", type, super) != 2 ||
            sscanf(line, "%*s %*s %*s %4095s %4095s", root, point) != 2)
            continue;
        if (controller ? strcmp(type, "cgroup") == 0 && has_word(super, controller)
                       : strcmp(type, "cgroup2") == 0)
            found = true;
    }
    free(line);
    fclose(f);
    return found;
}

/* Our own group in the hierarchy with `controller` (NULL: version 2). */
static bool find_own(const char *controller, char *path)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f)
        return false;
    char *line = NULL;
    size_t room = 0;
    bool found = false;
    while (!found && getline(&line, &room, f) > 0) {
        line[strcspn(line, "\n")] = '\0';
        char *names = strchr(line, ':');
        char *own = names ? strchr(names + 1, ':') : NULL;
        if (!own)
            continue;
        *own++ = '\0';
        names++;
        if (controller ? has_word(names, controller) : *names == '\0') {
            snprintf(path, PATH_MAX, "%s", own);
            found = true;
        }
    }
    free(line);
    fclose(f);
    return found;
}

/* The directory of our own group, honouring a mount that shows only a part of the hierarchy. */
static bool own_dir(const char *controller, char *dir, char *point)
{
    char root[PATH_MAX], own[PATH_MAX];
    if (!find_mount(controller, point, root) || !find_own(controller, own))
        return false;
    const char *rest = own;
    size_t n = strlen(root);
    if (strcmp(root, "/") != 0 && strncmp(own, root, n) == 0)
        rest = own + n;
    int len = snprintf(dir, PATH_MAX, "%s%s", point, strcmp(rest, "/") == 0 ? "" : rest);
    return len > 0 && len < PATH_MAX;
}

/* The kernel lets go of a group a moment after its last process: for so long it is busy. */
static int remove_group(int parent, const char *name)
{
    struct timespec moment = {.tv_nsec = 2000000};
    for (int tries = 0; tries < 250; tries++) {
        if (unlinkat(parent, name, AT_REMOVEDIR) == 0)
            return 0;
        if (errno != EBUSY)
            break;
        nanosleep(&moment, NULL);
    }
    return -1;
}

static void sweep_stale(int parent)
{
    DIR *d = fdopendir(openat(parent, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!d)
        return;
    struct dirent *e;
    while ((e = readdir(d)) != NULL) {
        if (strncmp(e->d_name, "bough-", 6) != 0)
            continue;
        BOUGH_CLEANUP_FD int fd = openat(parent, e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
            continue;
        DIR *in = fdopendir(dup(fd));
        struct dirent *g;
        while (in && (g = readdir(in)) != NULL)
            if (g->d_type == DT_DIR && g->d_name[0] != '.')
                remove_group(fd, g->d_name);
        if (in)
            closedir(in);
        remove_group(parent, e->d_name);
    }
    closedir(d);
}

/* Makes the group and locks it, which tells others that it is not stale. They may come in between, take it for
 * stale and remove it: then once more. */
static int make_locked(int parent, const char *name)
{
    for (int tries = 0; tries < 100; tries++) {
        if (mkdirat(parent, name, 0755) < 0 && errno != EEXIST)
            return -1;
        int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        struct stat ours, there;
        if (fd >= 0 && BOUGH_RETRY(flock(fd, LOCK_EX)) == 0 && fstat(fd, &ours) == 0 &&
            fstatat(parent, name, &there, AT_SYMLINK_NOFOLLOW) == 0 && ours.st_ino == there.st_ino)
            return fd;
        bough_fd_close(&fd);
    }
    return -1;
}

static int make_ours(struct bough_cgroups *groups, enum bough_controller which, const char *dir)
{
    BOUGH_CLEANUP_FD int parent = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (parent < 0)
        return -1;
    sweep_stale(parent);
    int fd = make_locked(parent, groups->name);
    if (fd < 0)
        return -1;
    groups->dirs[which] = fd;
    groups->parents[which] = bough_steal_fd(&parent);
    return 0;
}

static bool v2_controllers_here(int dir)
{
    char have[256];
    if (read_at(dir, "", "cgroup.controllers", have, sizeof have) < 0)
        return false;
    return has_word(have, "memory") && has_word(have, "pids");
}

/* In version 2 a group with processes cannot hand controllers down, so ours lies beside an ancestor's
 * other children: the nearest directory upwards that we may write and that enables them. */
static bool open_v2(struct bough_cgroups *groups)
{
    char dir[PATH_MAX], point[PATH_MAX];
    if (!own_dir(NULL, dir, point))
        return false;
    size_t base = strlen(point);
    for (;;) {
        BOUGH_CLEANUP_FD int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        char enabled[256] = "";
        if (fd >= 0) {
            if (!v2_controllers_here(fd) && strlen(dir) <= base)
                return false;
            write_at(fd, "", "cgroup.subtree_control", "+memory +pids +cpu");
            read_at(fd, "", "cgroup.subtree_control", enabled, sizeof enabled);
        }
        if (has_word(enabled, "memory") && has_word(enabled, "pids") &&
            faccessat(fd, "cgroup.procs", W_OK, 0) == 0 &&
            make_ours(groups, BOUGH_MEMORY, dir) == 0) {
            int ours = groups->dirs[BOUGH_MEMORY];
            write_at(ours, "", "cgroup.subtree_control", "+memory +pids +cpu");
            read_at(ours, "", "cgroup.subtree_control", enabled, sizeof enabled);
            if (has_word(enabled, "memory") && has_word(enabled, "pids")) {
                groups->dirs[BOUGH_PIDS] = fcntl(ours, F_DUPFD_CLOEXEC, 3);
                if (has_word(enabled, "cpu"))
                    groups->dirs[BOUGH_CPU] = fcntl(ours, F_DUPFD_CLOEXEC, 3);
                return true;
            }
        }
        char *slash = strrchr(dir, '/');
        if (strlen(dir) <= base || !slash)
            return false;
        *slash = '\0';
    }
}

static bool open_v1(struct bough_cgroups *groups)
{
    bool any = false;
    for (int i = 0; i < BOUGH_CONTROLLERS; i++) {
        char dir[PATH_MAX], point[PATH_MAX];
        if (own_dir(controller_names[i], dir, point) &&
            make_ours(groups, (enum bough_controller)i, dir) == 0)
            any = true;
    }
    return any;
}

/* A group that we may not move processes into is of no use: try it with a process that exits at once. */
static void drop_unusable(struct bough_cgroups *groups)
{
    for (int i = 0; i < BOUGH_CONTROLLERS; i++) {
        if (groups->dirs[i] < 0)
            continue;
        const char *group = "probe";
        mkdirat(groups->dirs[i], group, 0755);
        pid_t pid = fork();
        if (pid == 0)
            _exit(write_at(groups->dirs[i], group, "cgroup.procs", "0") < 0 ? errno & 0x7f : 0);
        int status = 1;
        if (pid > 0)
            BOUGH_RETRY(waitpid(pid, &status, 0));
        unlinkat(groups->dirs[i], group, AT_REMOVEDIR);
        if (status == 0)
            continue;
        snprintf(groups->why, sizeof groups->why, "processes may not be moved into a %s group: %s",
                 controller_names[i], strerror(WEXITSTATUS(status)));
        if (groups->parents[i] >= 0)
            unlinkat(groups->parents[i], groups->name, AT_REMOVEDIR);
        bough_fd_close(&groups->dirs[i]);
    }
}

void bough_cgroups_open(struct bough_cgroups *groups)
{
    *groups = (struct bough_cgroups){.dirs = {-1, -1, -1}, .parents = {-1, -1, -1}};
    snprintf(groups->name, sizeof groups->name, "bough-%d", (int)getpid());
    if (open_v2(groups))
        groups->version = 2;
    else if (open_v1(groups))
        groups->version = 1;
    drop_unusable(groups);
    bool none = true;
    for (int i = 0; i < BOUGH_CONTROLLERS; i++)
        none = none && groups->dirs[i] < 0;
    if (none) {
        groups->version = 0;
        if (!groups->why[0])
            snprintf(groups->why, sizeof groups->why, "no control group that this user may write");
    }
}

void bough_cgroups_close(struct bough_cgroups *groups)
{
    for (int i = 0; i < BOUGH_CONTROLLERS; i++)
        if (groups->parents[i] >= 0)
            remove_group(groups->parents[i], groups->name);
    for (int i = 0; i < BOUGH_CONTROLLERS; i++) {
        bough_fd_close(&groups->dirs[i]);
        bough_fd_close(&groups->parents[i]);
    }
}

static int set_limits(const struct bough_cgroups *groups, enum bough_controller which,
                      const char *name, const struct bough_limits *limits)
{
    int dir = groups->dirs[which];
    bool v2 = groups->version == 2;
    char value[64];
    switch (which) {
    case BOUGH_MEMORY:
        /* Files under a disk limit live in memory, so their room comes on top. */
        snprintf(value, sizeof value, "%lld", (long long)(limits->memory + limits->disk));
        if (write_at(dir, name, v2 ? "memory.max" : "memory.limit_in_bytes", value) < 0)
            return -1;
        /* Without swap accounting these files do not exist: nothing to forbid then. */
        if (write_at(dir, name, v2 ? "memory.swap.max" : "memory.memsw.limit_in_bytes",
                     v2 ? "0" : value) < 0 &&
            errno != ENOENT)
            return -1;
        return 0;
    case BOUGH_PIDS:
        /* init is one of them, the limit is the command's. */
        snprintf(value, sizeof value, "%lld", (long long)limits->pids + 1);
        return write_at(dir, name, "pids.max", value);
    case BOUGH_CPU: {
        long quota = (long)(limits->cpu * 100000);
        if (quota < 1000)
            quota = 1000;
        if (v2) {
            snprintf(value, sizeof value, "%ld 100000", quota);
            return write_at(dir, name, "cpu.max", value);
        }
        snprintf(value, sizeof value, "%ld", quota);
        return write_at(dir, name, "cpu.cfs_quota_us", value);
    }
    case BOUGH_CONTROLLERS:
        break;
    }
    return 0;
}

static int move_all(int dir, const char *name, const pid_t *pids, int count)
{
    char text[24];
    for (int i = 0; i < count; i++) {
        snprintf(text, sizeof text, "%d", (int)pids[i]);
        if (write_at(dir, name, "cgroup.procs", text) < 0)
            return -1;
    }
    return 0;
}

int bough_cgroup_place(struct bough_cgroups *groups, const char *name, const pid_t *pids, int count,
                       const struct bough_limits *limits, struct bough_err *err)
{
    const bool wanted[BOUGH_CONTROLLERS] = {limits->memory > 0, limits->pids > 0, limits->cpu > 0};
    bool placed = false;
    for (int i = 0; i < BOUGH_CONTROLLERS; i++) {
        if (!wanted[i] || groups->dirs[i] < 0)
            continue;
        if (groups->version == 2) {
            if (!placed && mkdirat(groups->dirs[i], name, 0755) < 0 && errno != EEXIST)
                return bough_err_sys(err, errno, "control group for %s", controller_names[i]);
        } else if (mkdirat(groups->dirs[i], name, 0755) < 0 && errno != EEXIST) {
            return bough_err_sys(err, errno, "control group for %s", controller_names[i]);
        }
        if (set_limits(groups, (enum bough_controller)i, name, limits) < 0)
            return bough_err_sys(err, errno, "limit of %s", controller_names[i]);
        if ((groups->version == 1 || !placed) && move_all(groups->dirs[i], name, pids, count) < 0)
            return bough_err_sys(err, errno, "control group for %s", controller_names[i]);
        placed = true;
    }
    return 0;
}

long bough_cgroup_oom(const struct bough_cgroups *groups, const char *name)
{
    char text[512];
    const char *file = groups->version == 2 ? "memory.events" : "memory.oom_control";
    if (groups->dirs[BOUGH_MEMORY] < 0 ||
        read_at(groups->dirs[BOUGH_MEMORY], name, file, text, sizeof text) < 0)
        return 0;
    const char *at = strstr(text, "oom_kill ");
    return at ? strtol(at + 9, NULL, 10) : 0;
}

bool bough_cgroup_remove(const struct bough_cgroups *groups, const char *name)
{
    bool gone = true;
    for (int i = 0; i < BOUGH_CONTROLLERS; i++)
        if (groups->dirs[i] >= 0 && unlinkat(groups->dirs[i], name, AT_REMOVEDIR) < 0 &&
            errno != ENOENT)
            gone = false;
    return gone;
}
