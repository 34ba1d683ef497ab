/* floor.c - what the kernel alone takes for one sandbox: the floor of our figures.
 *
 *     floor [-n] [-l loops] LOWER DIR PROGRAM [ARG...]
 *
 * Each turn makes a fresh upper and work directory below DIR, clones into new
 * mount, pid, ipc and uts namespaces (-n: and net), mounts a volatile overlay on
 * LOWER, pivots into it, executes PROGRAM and waits. No limits, no filter, no
 * snapshot, no output kept. Prints the microseconds of each turn, one per line.
 * Needs root; DIR is left for the caller to remove. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char *step)
{
    perror(step);
    _exit(125);
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void child(const char *options, const char *mount_point, char **argv)
{
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        die("make / private");
    if (mount("overlay", mount_point, "overlay", 0, options) < 0)
        die("mount overlay");
    if (chdir(mount_point) < 0)
        die(mount_point);
    if (syscall(SYS_pivot_root, ".", ".") < 0)
        die("pivot_root");
    if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        die("leave the old root");
    execv(argv[0], argv);
    die(argv[0]);
}

static void make_dir(char *path, size_t size, const char *dir, int turn, const char *name)
{
    snprintf(path, size, "%s/%d-%s", dir, turn, name);
    if (mkdir(path, 0755) < 0)
        die(path);
}

static double one_turn(int turn, int flags, const char *lower, const char *dir, char **argv)
{
    char upper[1024], work[1024], point[1024], options[4096];
    double started = now_us();
    make_dir(upper, sizeof upper, dir, turn, "upper");
    make_dir(work, sizeof work, dir, turn, "work");
    make_dir(point, sizeof point, dir, turn, "root");
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s,volatile", lower, upper,
             work);
    /* The raw call with no stack of its own: a fork into new namespaces. */
    pid_t pid = (pid_t)syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, 0L);
    if (pid < 0)
        die("clone");
    if (pid == 0)
        child(options, point, argv);
    int status;
    if (waitpid(pid, &status, 0) < 0)
        die("waitpid");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "floor: %s ended with status %#x\n", argv[0], (unsigned)status);
        exit(1);
    }
    return now_us() - started;
}

int main(int argc, char **argv)
{
    int flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS;
    int loops = 1, opt;
    while ((opt = getopt(argc, argv, "+nl:")) != -1) {
        if (opt == 'n')
            flags |= CLONE_NEWNET;
        else if (opt == 'l')
            loops = (int)strtol(optarg, NULL, 10);
        else
            return 2;
    }
    if (argc - optind < 3) {
        fprintf(stderr, "usage: floor [-n] [-l loops] LOWER DIR PROGRAM [ARG...]\n");
        return 2;
    }
    const char *lower = argv[optind], *dir = argv[optind + 1];
    double *times = calloc((size_t)(loops > 0 ? loops : 1), sizeof *times);
    if (!times)
        die("calloc");
    for (int i = 0; i < loops; i++)
        times[i] = one_turn(i, flags, lower, dir, argv + optind + 2);
    for (int i = 0; i < loops; i++)
        printf("%.1f\n", times[i]);
    free(times);
    return 0;
}
