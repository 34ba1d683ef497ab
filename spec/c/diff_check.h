/* diff_check.h - bough-look diff: by hand, and against a slow comparison on random stacks.
 *
 * Part of pack_test.c. Differences are lines of text: "op what mode old-mode size old-size path". */
#ifndef DIFF_CHECK_H
#define DIFF_CHECK_H

#include <inttypes.h>
#include <sys/sysmacros.h>

#include "../../src/record.h"
#include "pack_run.h"
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* its own test is not run here */
#include "tree_random.h"
#pragma GCC diagnostic pop

/* ---- what bough-look says ---- */

/* NULL when it fails. To be freed. */
static char *diff_text(int ours, int other, const int *hints, int count)
{
    const char *options[3 + HINTS_MAX] = {"--root-fd", "--other-fd", "--out-fd"};
    BOUGH_CLEANUP_FD int out = MUST(memfd_create("diff", MFD_CLOEXEC));
    int fds[3 + HINTS_MAX] = {ours, other, out};
    struct stat st;
    for (int i = 0; i < count; i++) {
        options[3 + i] = "--hint-fd";
        fds[3 + i] = hints[i];
    }
    if (!program_run(look_program, "diff", options, fds, 3 + count, NULL))
        return NULL;
    MUST(fstat(out, &st));
    BOUGH_CLEANUP_FREE char *bytes = malloc((size_t)st.st_size + 1);
    MUST(pread(out, bytes, (size_t)st.st_size, 0));
    const char *cursor = bytes, *end = bytes + st.st_size;
    char *text = NULL;
    size_t size = 0;
    long long seen[3] = {0};
    struct bough_change c;
    FILE *to = open_memstream(&text, &size);
    while (cursor < end && bough_change_next(&cursor, end, &c) > 0) {
        fprintf(to, "%c %x %o %o %" PRIu64 " %" PRIu64 " %.*s\n", (char)c.op, c.what, c.mode,
                c.old_mode, c.size, c.old_size, (int)c.path_len, c.path);
        seen[c.op == 'A' ? 0 : c.op == 'C' ? 1 : 2]++;
    }
    fclose(to);
    if (cursor == end && !memcmp(seen, numbers, sizeof seen))
        return text;
    free(text);
    return strdup("damaged records, or they are not as many as it says\n");
}

/* ---- what is to be said ---- */

struct seen_entry {
    char *path, *xattrs, target[256];
    struct stat st;
    uint64_t sum;
};
struct seen_tree {
    struct seen_entry *entry;
    int count;
};

static void seen_add(struct seen_tree *t, int dir, const char *name, const char *path)
{
    char proc[400];
    size_t size;
    t->entry = realloc(t->entry, (size_t)(t->count + 1) * sizeof *t->entry);
    struct seen_entry *e = &t->entry[t->count++];
    *e = (struct seen_entry){.path = strdup(path)};
    MUST(fstatat(dir, name, &e->st, AT_SYMLINK_NOFOLLOW));
    if (S_ISREG(e->st.st_mode))
        e->sum = dump_sum(dir, name);
    if (S_ISLNK(e->st.st_mode))
        MUST(readlinkat(dir, name, e->target, sizeof e->target - 1));
    FILE *to = open_memstream(&e->xattrs, &size);
    snprintf(proc, sizeof proc, "/proc/self/fd/%d/%s", dir, name);
    if (S_ISREG(e->st.st_mode) || S_ISDIR(e->st.st_mode))
        dump_xattrs(to, proc);
    fclose(to);
}

static void seen_walk(struct seen_tree *t, int dir, const char *path)
{
    struct dirent **list;
    int n = MUST(scandirat(dir, ".", &list, NULL, dump_order));
    for (int i = 0; i < n; i++) {
        const char *name = list[i]->d_name;
        char below[1024];
        if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0) {
            snprintf(below, sizeof below, "%s/%s", path, name);
            seen_add(t, dir, name, below);
            if (S_ISDIR(t->entry[t->count - 1].st.st_mode)) {
                BOUGH_CLEANUP_FD int sub = dir_open(dir, name);
                seen_walk(t, sub, below);
            }
        }
        free(list[i]);
    }
    free(list);
}

static struct seen_tree seen_make(int dir)
{
    struct seen_tree t = {0};
    seen_add(&t, dir, ".", "/");
    seen_walk(&t, dir, "");
    return t;
}

static void seen_free(struct seen_tree *t)
{
    for (int i = 0; i < t->count; i++) {
        free(t->entry[i].path);
        free(t->entry[i].xattrs);
    }
    free(t->entry);
}

static uint32_t seen_differ(const struct seen_entry *a, const struct seen_entry *b)
{
    mode_t x = a->st.st_mode, y = b->st.st_mode;
    uint32_t what = a->st.st_uid != b->st.st_uid || a->st.st_gid != b->st.st_gid ? 4 : 0;
    if (!S_ISLNK(x) && !S_ISLNK(y) && (x & 07777) != (y & 07777))
        what |= 2;
    if ((x & S_IFMT) != (y & S_IFMT))
        return what | 8;
    if (S_ISREG(x) && (a->st.st_size != b->st.st_size || a->sum != b->sum))
        what |= 1;
    if (S_ISLNK(x) && strcmp(a->target, b->target) != 0)
        what |= 1 | 16;
    if ((S_ISCHR(x) || S_ISBLK(x)) && a->st.st_rdev != b->st.st_rdev)
        what |= 64;
    return what | (strcmp(a->xattrs, b->xattrs) ? 32 : 0);
}

/* "/" comes before any other byte: a directory's content follows it. */
static int seen_order(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b ? 0 : !*a ? -1 : !*b ? 1 : *a == '/' ? -1 : *b == '/' ? 1 : *a < *b ? -1 : 1;
}

static char *want_text(int ours, int other)
{
    struct seen_tree x = seen_make(ours), y = seen_make(other);
    char *text = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&text, &size);
    for (int i = 0, j = 0; i < x.count || j < y.count;) {
        struct seen_entry *a = &x.entry[i], *b = &y.entry[j];
        int order = i == x.count ? 1 : j == y.count ? -1 : seen_order(a->path, b->path);
        uint32_t what = order ? 0 : seen_differ(a, b);
        if (order || what)
            fprintf(to, "%c %x %o %o %jd %jd %s\n",
                    order < 0 ? 'A'
                    : order   ? 'D'
                              : 'C',
                    what, order > 0 ? 0 : a->st.st_mode, order < 0 ? 0 : b->st.st_mode,
                    order > 0 ? 0 : (intmax_t)a->st.st_size,
                    order < 0 ? 0 : (intmax_t)b->st.st_size, order > 0 ? b->path : a->path);
        i += order <= 0;
        j += order >= 0;
    }
    fclose(to);
    seen_free(&x);
    seen_free(&y);
    return text;
}

static bool diff_right(int ours, int other, const int *hints, int count)
{
    char *want = want_text(ours, other), *got = diff_text(ours, other, hints, count);
    bool same = got && texts_same(want, got);
    free(want);
    free(got);
    return same;
}

/* ---- by hand ---- */

static void diff_pair(int ours, int other, const char *name, const char *here, const char *there)
{
    if (here)
        file_make(ours, name, here);
    if (there)
        file_make(other, name, there);
}

static void diff_value(int at, const char *name, const char *key, const char *value)
{
    BOUGH_CLEANUP_FD int fd = MUST(openat(at, name, O_RDONLY | O_CLOEXEC));
    MUST(fsetxattr(fd, key, value, strlen(value), 0));
}

static void diff_fill(int a, int b)
{
    static const char *const both[] = {"chmod",   "xattr", "xattr more", "xattr less",
                                       "overlay", "touch", "same inode", "same"};
    diff_pair(a, b, "added", "1", NULL);
    diff_pair(a, b, "deleted", NULL, "22");
    diff_pair(a, b, "size", "1", "22");
    diff_pair(a, b, "bytes", "abcdef", "abcdeF");
    for (size_t i = 0; i < sizeof both / sizeof *both; i++)
        diff_pair(a, b, both[i], "content", "content");
    for (int i = 0; i < 2; i++) {
        MUST(mkdirat(i ? b : a, "chmod dir", 0755));
        MUST(mkdirat(i ? b : a, "xattr dir", 0755));
    }
    diff_value(b, "xattr dir", "user.d", "1");
    MUST(fchmodat(a, "chmod", 04755, 0));
    MUST(fchmodat(b, "chmod dir", 0700, 0));
    diff_value(a, "xattr", "user.a", "1");
    diff_value(b, "xattr", "user.a", "2");
    diff_value(a, "xattr more", "user.a", "1");
    diff_value(b, "xattr less", "user.a", "1");
    diff_value(b, "xattr", "user.b", "1");
    diff_value(b, "xattr", "user.overlay.origin", "1");
    diff_value(a, "overlay", "user.overlay.origin", "1");
    MUST(utimensat(a, "touch", (struct timespec[2]){{0}, {.tv_sec = 5}}, 0));
    MUST(unlinkat(b, "same inode", 0));
    MUST(linkat(a, "same inode", b, "same inode", 0));
    MUST(linkat(a, "same", a, "zz", 0)); /* another link count */
    MUST(linkat(b, "same", b, "zz", 0));
    MUST(linkat(b, "same", b, "zzz", 0));
    MUST(symlinkat("here", a, "link"));
    MUST(symlinkat("there", b, "link"));
    MUST(symlinkat("x", a, "same link"));
    MUST(symlinkat("x", b, "same link"));
    MUST(mkdirat(a, "to dir", 0755));
    file_make(a, "to dir/in", "1");
    file_make(b, "to dir", "1");
    file_make(a, "to file", "1");
    MUST(mkdirat(b, "to file", 0755));
    file_make(b, "to file/was", "1");
    file_make(a, "to file!", "sorts behind what was in the directory");
    MUST(symlinkat("x", a, "to link"));
    MUST(mkfifoat(b, "to link", 0644));
    MUST(mkdirat(a, "new", 0755));
    MUST(mkdirat(a, "new/er", 0755));
    file_make(a, "new/er/f", "");
}

/* Sizes of directories are the file system's own: they are "-" here, and so is the mode of links. */
static void test_diff_kinds(int at)
{
    static const char want[] =
        "/added A 0\n/bytes C 1\n/chmod C 2\n/chmod dir C 2\n/deleted D 0\n/link C 11\n/new A 0\n"
        "/new/er A 0\n/new/er/f A 0\n/size C 1\n/to dir C a\n/to dir/in A 0\n/to file C a\n"
        "/to file/was D 0\n/to file! A 0\n/to link C 8\n/xattr C 20\n/xattr dir C 20\n/xattr less "
        "C 20\n"
        "/xattr more C 20\n/zzz D 0\n";
    BOUGH_CLEANUP_FD int a = dir_make(at, "a"), b = dir_make(at, "b");
    char got[4096] = "", *text, *rest = NULL;
    diff_fill(a, b);
    check(diff_right(a, a, NULL, 0), "diff: a tree with itself");
    text = diff_text(a, b, NULL, 0);
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char op = 0;
        unsigned what = 0;
        int path = 0;
        sscanf(line, "%c %x %*o %*o %*u %*u %n", &op, &what, &path);
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s %c %x\n", line + path, op, what);
    }
    free(text);
    check(texts_same(want, got), "diff: every kind of difference, in order");
    check(numbers[0] == 6 && numbers[1] == 12 && numbers[2] == 3, "diff: counts them");
    if (privileged()) {
        MUST(unlinkat(a, "overlay", 0));
        MUST(unlinkat(b, "overlay", 0));
        MUST(unlinkat(b, "xattr", 0)); /* the slow one knows no exceptions */
        MUST(fchownat(a, "touch", 1, 0, 0));
        MUST(fchownat(a, "same link", 0, 1, AT_SYMLINK_NOFOLLOW));
        MUST(mknodat(a, "device", S_IFCHR | 0600, makedev(1, 3)));
        MUST(mknodat(b, "device", S_IFCHR | 0600, makedev(1, 5)));
        MUST(fchmod(b, 0700));
        check(diff_right(a, b, NULL, 0), "diff: owners, devices, the root itself");
        check((text = diff_text(b, a, NULL, 0)) && strstr(text, "/touch") &&
                  strstr(text, "/same link") && strstr(text, "C 40 ") && !strncmp(text, "C 2 ", 4),
              "diff: and the other way round");
        free(text);
    } else {
        skip("diff: owners, devices", "needs root");
    }
}

static void test_diff_holes(int at)
{
    BOUGH_CLEANUP_FD int a = dir_make(at, "ha"), b = dir_make(at, "hb");
    const int64_t size = INT64_C(4) << 30;
    int x = MUST(openat(a, "f", O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    int y = MUST(openat(b, "f", O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    MUST(ftruncate(x, size));
    MUST(ftruncate(y, size));
    MUST(pwrite(x, "\0\0\0", 3, 1 << 20)); /* data here, a hole there, the same bytes */
    MUST(pwrite(x, "data", 4, size - 100));
    MUST(pwrite(y, "data", 4, size - 100));
    int64_t before = bough_now_ns();
    char *text = diff_text(a, b, NULL, 0);
    check(text && !*text && bough_now_ns() - before < INT64_C(2000000000),
          "diff: holes of 4 GiB are not read");
    free(text);
    MUST(pwrite(x, "!", 1, 3 << 20));
    text = diff_text(a, b, NULL, 0);
    check(text && !strncmp(text, "C 1 ", 4), "diff: but a byte in one is found");
    free(text);
    close(x);
    close(y);
    check(!diff_text(a, -1, NULL, 0), "diff: a missing root is refused");
}

/* ---- random stacks ---- */

/* ctimes count in ticks of the clock, and one layer's files shall not be as old as the next one's. */
static void tick_wait(void)
{
    struct timespec first, now;
    clock_gettime(CLOCK_REALTIME_COARSE, &first);
    do
        clock_gettime(CLOCK_REALTIME_COARSE, &now);
    while (now.tv_sec == first.tv_sec && now.tv_nsec == first.tv_nsec);
}

/* Fills layer `i` over those in `lower`. The scratch directory is the current one. */
static bool branch_fill(const char *lower, int i, bool user)
{
    char name[16];
    snprintf(name, sizeof name, "L%d", i);
    MUST(mkdir(name, 0755));
    snprintf(name, sizeof name, "W%d", i);
    MUST(mkdir(name, 0755));
    tick_wait();
    if (stack_mount(lower, i, user))
        return false;
    MUST(chdir("mnt"));
    for (int ops = 8 + (int)rnd(30); ops > 0; ops--)
        random_operation();
    MUST(chdir(".."));
    MUST(umount2("mnt", MNT_DETACH));
    return true;
}

/* A mount of its own that only the descriptor holds, as the keeper makes them. */
static int branch_open(const char *lower, bool user)
{
    if (stack_mount(lower, -1, user))
        return -1;
    int fd = MUST(open("mnt", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    MUST(umount2("mnt", MNT_DETACH));
    return fd;
}

static void lower_make(char *lower, const int *layers, int count)
{
    *lower = '\0';
    for (int i = 0; i < count; i++)
        lower_add(lower, 'L', layers[i]);
    strcat(lower, *lower ? ":empty" : "empty");
}

struct branches {
    int ours[8], other[8], hints[8]; /* numbers of layers, top first */
    int ours_count, other_count, hint_count, made;
};

static bool layer_on(struct branches *b, int *stack, int *count, bool user)
{
    char lower[200];
    lower_make(lower, stack, *count);
    memmove(stack + 1, stack, (size_t)*count * sizeof *stack);
    stack[0] = b->made++;
    ++*count;
    return branch_fill(lower, stack[0], user);
}

/* Two stacks over shared layers; or, `between`, a stack and the same without a layer in its middle. */
static bool branches_make(struct branches *b, bool between, bool user)
{
    bool good = true;
    for (int n = 1 + (int)rnd(2); n > 0; n--)
        good = good && layer_on(b, b->ours, &b->ours_count, user);
    memcpy(b->other, b->ours, sizeof b->ours);
    b->other_count = b->ours_count;
    for (int n = 1 + (int)rnd(2); n > 0; n--) {
        good = good && layer_on(b, b->ours, &b->ours_count, user);
        b->hints[b->hint_count++] = b->ours[0];
    }
    if (between) {
        good = good && layer_on(b, b->ours, &b->ours_count, user);
        memmove(b->other + 1, b->other, (size_t)b->other_count * sizeof *b->other);
        b->other[0] = b->ours[0];
        b->other_count++;
    }
    for (int n = between ? 0 : (int)rnd(3); n > 0; n--) {
        good = good && layer_on(b, b->other, &b->other_count, user);
        b->hints[b->hint_count++] = b->other[0];
    }
    return good;
}

static bool diff_round(bool between, bool user)
{
    struct branches b = {0};
    char lower[200], name[16];
    int hints[8];
    bool good = branches_make(&b, between, user);
    lower_make(lower, b.ours, b.ours_count);
    BOUGH_CLEANUP_FD int ours = branch_open(lower, user);
    lower_make(lower, b.other, b.other_count);
    BOUGH_CLEANUP_FD int other = branch_open(lower, user);
    for (int i = 0; i < b.hint_count; i++) {
        snprintf(name, sizeof name, "L%d", b.hints[i]);
        hints[i] = dir_open(AT_FDCWD, name);
    }
    if (!good || ours < 0 || other < 0)
        printf("# mount: %s\n", strerror(errno));
    else
        good = diff_right(ours, other, NULL, 0) && diff_right(ours, other, hints, b.hint_count) &&
               diff_right(other, ours, hints, b.hint_count);
    for (int i = 0; i < b.hint_count; i++)
        close(hints[i]);
    for (int i = 0; i < b.made; i++) {
        snprintf(name, sizeof name, "L%d", i);
        MUST(bough_tree_remove(AT_FDCWD, name, NULL));
        snprintf(name, sizeof name, "W%d", i);
        MUST(bough_tree_remove(AT_FDCWD, name, NULL));
    }
    return good;
}

static void test_diff_random(int at, bool between, bool user, int rounds, const char *what)
{
    bool same = true;
    uint64_t seed = random_state;
    int done = 0;
    MUST(fchdir(at));
    if ((mkdir("mnt", 0755) && errno != EEXIST) || (mkdir("empty", 0755) && errno != EEXIST))
        same = false;
    for (; same && done < rounds; done++) {
        seed = random_state;
        same = diff_round(between, user);
    }
    if (!same)
        printf("# round %d began with BOUGH_TEST_SEED=%ju\n", done, (uintmax_t)seed);
    check(same, "diff: random stacks, %s, with and without hints (%d pairs)", what, done);
    MUST(chdir("/"));
}

static void test_diff_random_all(int at)
{
    const char *want = getenv("BOUGH_TEST_ROUNDS");
    int rounds = want ? atoi(want) / 4 : 25;
    int memory = memory_mount(at), where = memory >= 0 ? memory : at;
    random_seed();
    test_diff_random(where, false, true, rounds, "user xattrs");
    /* marks of the trusted kind cannot be read by whom diff runs as: its hints are the tops of stacks */
    test_diff_random(where, true, true, rounds, "a layer between");
    if (privileged())
        test_diff_random(where, false, false, rounds, "trusted xattrs");
    memory_unmount(at, memory);
}

#endif
