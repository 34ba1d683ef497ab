/* tree_random.h - random layers made by overlayfs itself, and what it shows of them.
 *
 * Part of tree_test.c. A round makes a stack of layers by random operations inside a
 * real mount, prints the tree that overlayfs shows to text, merges every range of
 * layers, and wants the same text from a mount in which the merged layer stands
 * for the range. */
#ifndef TREE_RANDOM_H
#define TREE_RANDOM_H

#include "tree_support.h"

static uint64_t random_state;

static unsigned rnd(unsigned below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state >> 16) % below;
}

static void random_seed(void)
{
    const char *seed = getenv("BOUGH_TEST_SEED");
    random_state = seed ? strtoull(seed, NULL, 0) : (uint64_t)bough_now_ns();
    random_state += !random_state; /* zero would stay zero */
    printf("# BOUGH_TEST_SEED=%ju\n", (uintmax_t)random_state);
}

/* ---- random operations ---- */

/* A path of up to four components from a small set, so that layers collide often. */
static void random_path(char *path)
{
    int depth = 1 + (int)rnd(4), n = 0;
    for (int i = 0; i < depth; i++)
        n += sprintf(path + n, "%s%c", i ? "/" : "", 'a' + (char)rnd(3));
}

static void random_xattr(const char *path)
{
    char value[8];
    snprintf(value, sizeof value, "%u", rnd(1000));
    lsetxattr(path, rnd(2) ? "user.one" : "user.two", value, strlen(value), 0);
}

/* The current directory is the mount. Most of these may fail; then nothing happened. */
static void random_operation(void)
{
    char path[64], other[64], text[32];
    random_path(path);
    random_path(other);
    snprintf(text, sizeof text, "%u", rnd(1u << 30));
    switch (rnd(20)) {
    case 0:
    case 1:
    case 2:
        mkdir(path, 0700 | rnd(0100));
        break;
    case 3:
    case 4:
    case 5: {
        int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
        int fd = open(path, flags, 0644);
        if (fd >= 0) {
            (void)!write(fd, text, strlen(text));
            close(fd);
        }
        break;
    }
    case 6:
        unlink(path);
        break;
    case 7:
    case 8:
        bough_tree_remove(AT_FDCWD, path, NULL);
        break;
    case 9:
    case 10: /* a directory over whatever was there: opaque */
        bough_tree_remove(AT_FDCWD, path, NULL);
        mkdir(path, 0755);
        strcat(path, "/x");
        close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
        break;
    case 11: /* a file over whatever was there */
        bough_tree_remove(AT_FDCWD, path, NULL);
        close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
        break;
    case 12:
        (void)!symlink(other, path);
        break;
    case 13:
        chmod(path, rnd(010000));
        break;
    case 14:
        (void)!lchown(path, rnd(4), rnd(4));
        break;
    case 15:
        random_xattr(path);
        break;
    case 16:
    case 17:
        rename(path, other);
        break;
    case 18:
        (void)!link(path, other);
        break;
    default:
        if (rnd(2))
            mkfifo(path, 0600);
        else
            lremovexattr(path, "user.one");
    }
}

/* ---- mounts: paths are relative to the scratch directory ---- */

/* The layers of `name`[0..n) from the top down; layer i is "L<i>". */
static int stack_mount(const char *lower, int upper, bool user)
{
    char options[2000], up[100] = "";
    if (upper >= 0)
        snprintf(up, sizeof up, ",upperdir=L%d,workdir=W%d", upper, upper);
    snprintf(options, sizeof options, "lowerdir=%s%s,volatile,redirect_dir=nofollow,metacopy=off%s",
             lower, up, user ? ",userxattr" : ",index=off");
    /* Without an upper directory there is nothing to be volatile about, and it is refused. */
    if (upper < 0) {
        char *v = strstr(options, ",volatile");
        memmove(v, v + 9, strlen(v + 9) + 1);
    }
    return mount("overlay", "mnt", "overlay", 0, options);
}

static void lower_add(char *lower, char kind, int i)
{
    size_t n = strlen(lower);
    sprintf(lower + n, "%s%c%d", n ? ":" : "", kind, i);
}

static char *stack_dump(const char *lower, bool user)
{
    if (stack_mount(lower, -1, user))
        return NULL;
    int fd = MUST(open("mnt", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    char *text = dump_text(fd, 0, NULL);
    close(fd);
    MUST(umount2("mnt", MNT_DETACH));
    return text;
}

static int layer_fill(int at, int i, bool user)
{
    char name[16], lower[400] = "empty";
    snprintf(name, sizeof name, "L%d", i);
    MUST(mkdirat(at, name, 0755));
    snprintf(name, sizeof name, "W%d", i);
    MUST(mkdirat(at, name, 0755));
    for (int j = i - 1; j >= 0; j--)
        lower_add(lower, 'L', j);
    if (stack_mount(lower, i, user))
        return -1;
    MUST(chdir("mnt"));
    for (int ops = 8 + (int)rnd(40); ops > 0; ops--)
        random_operation();
    MUST(chdir(".."));
    MUST(umount2("mnt", MNT_DETACH));
    return 0;
}

/* Merges layers `first` (top) down to `last` and compares. */
static bool range_same(int at, int count, int first, int last, bool user, const char *want)
{
    struct bough_tree_size size, measured;
    const char *opaque = user ? "user.overlay.opaque" : "trusted.overlay.opaque";
    int layers[16], n = 0;
    char lower[400] = "empty", name[16];
    for (int i = count - 1; i > first; i--)
        lower_add(lower, 'L', i);
    lower_add(lower, 'M', 0);
    for (int i = last - 1; i >= 0; i--)
        lower_add(lower, 'L', i);
    for (int i = first; i >= last; i--) {
        snprintf(name, sizeof name, "L%d", i);
        layers[n++] = dir_open(at, name);
    }
    int out = dir_make(at, "M0");
    bool same = !bough_tree_merge(layers, n, out, opaque, &size, &err);
    while (n > 0)
        close(layers[--n]);
    close(out);
    if (!same)
        printf("# merge: %s\n", err.msg);
    char *got = same ? stack_dump(lower, user) : NULL;
    same = got && texts_same(want, got);
    free(got);
    if (same && (bough_tree_measure(at, "M0", &measured, &err) || measured.files != size.files ||
                 measured.bytes != size.bytes)) {
        printf("# size: %jd files %jd bytes, measured %jd, %jd %s\n", (intmax_t)size.files,
               (intmax_t)size.bytes, (intmax_t)measured.files, (intmax_t)measured.bytes, err.msg);
        same = false;
    }
    MUST(bough_tree_remove(at, "M0", &err));
    return same;
}

static bool round_run(int at, bool user, int *ranges)
{
    char lower[400] = "empty";
    int count = 2 + (int)rnd(4);
    for (int i = 0; i < count; i++)
        if (layer_fill(at, i, user))
            return printf("# mount: %s\n", strerror(errno)), false;
    for (int i = count - 1; i >= 0; i--)
        lower_add(lower, 'L', i);
    char *want = stack_dump(lower, user);
    bool same = want != NULL;
    for (int first = count - 1; same && first >= 0; first--)
        for (int last = first; same && last >= 0; last--, ++*ranges)
            if (!(same = range_same(at, count, first, last, user, want)))
                printf("# layers %d..%d of %d\n", first, last, count);
    free(want);
    for (int i = 0; i < count; i++) {
        char name[16];
        snprintf(name, sizeof name, "L%d", i);
        MUST(bough_tree_remove(at, name, NULL));
        snprintf(name, sizeof name, "W%d", i);
        MUST(bough_tree_remove(at, name, NULL));
    }
    return same;
}

static void test_random(int at, bool user, int rounds, const char *where)
{
    int ranges = 0, done = 0;
    bool same = true;
    if (fchdir(at) || (mkdirat(at, "mnt", 0755) && errno != EEXIST) ||
        (mkdirat(at, "empty", 0755) && errno != EEXIST))
        same = false;
    uint64_t seed = random_state;
    for (; same && done < rounds; done++) {
        seed = random_state;
        same = round_run(at, user, &ranges);
    }
    if (!same)
        printf("# round %d began with BOUGH_TEST_SEED=%ju\n", done, (uintmax_t)seed);
    check(same, "merge: as overlayfs shows it, %s xattrs, %s (%d stacks, %d ranges)",
          user ? "user" : "trusted", where, done, ranges);
    MUST(chdir("/"));
}

static void test_random_all(int at, int memory)
{
    const char *want = getenv("BOUGH_TEST_ROUNDS");
    int rounds = want ? atoi(want) : 400;
    bool trusted = privileged(); /* in a user namespace only user xattrs can be set */
    test_random(at, true, rounds / 10, "disk");
    test_random(memory >= 0 ? memory : at, true, rounds, "memory");
    if (trusted) {
        test_random(at, false, rounds / 10, "disk");
        test_random(memory >= 0 ? memory : at, false, rounds, "memory");
    } else {
        skip("merge: trusted xattrs", "needs root outside of a user namespace");
    }
}

#endif
