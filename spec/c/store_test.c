#define _GNU_SOURCE
/* store_test.c - src/local/store.h, tested for real: several processes, threads, kill -9,
 * full and read-only file systems. Prints TAP; works in a directory of its own under
 * $TMPDIR and removes it. With "bench" it measures a commit instead. */
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../../src/local/store.h"
#include "../../src/sys.h"

static int test_count, test_failed;
static char scratch[256];
static _Thread_local struct bough_err err;

#define check(condition, ...) check_line((condition), __LINE__, __VA_ARGS__)

__attribute__((format(printf, 3, 4))) static bool check_line(bool good, int line, const char *fmt,
                                                             ...)
{
    va_list ap;
    va_start(ap, fmt);
    printf("%s %d - ", good ? "ok" : "not ok", ++test_count);
    vprintf(fmt, ap);
    va_end(ap);
    if (!good) {
        test_failed++;
        printf(" (line %d; last error: %s)", line, err.msg);
    }
    printf("\n");
    fflush(stdout);
    return good;
}

static void skip(const char *what, const char *why)
{
    bool must = getenv("BOUGH_MUST_RUN") != NULL;
    test_failed += must;
    printf("%s %d - %s # SKIP %s\n", must ? "not ok" : "ok", ++test_count, what, why);
}

/* ---- files ---- */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

__attribute__((format(printf, 1, 2))) static const char *path_of(const char *fmt, ...)
{
    static _Thread_local char paths[4][512];
    static _Thread_local unsigned next;
    char *path = paths[next++ % 4];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(path, sizeof paths[0], fmt, ap);
    va_end(ap);
    return path;
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static bool write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    return file && fputs(text, file) >= 0 && fclose(file) == 0;
}

static int count_entries(const char *path)
{
    DIR *dir = opendir(path);
    int count = 0;
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        count += entry->d_name[0] != '.' || strncmp(entry->d_name, ".new-", 5) == 0;
    if (dir)
        closedir(dir);
    return count;
}

/* ---- stores ---- */

static const char *fresh_home(void)
{
    static char homes[32][320];
    static int number;
    char *home = homes[number];
    snprintf(home, sizeof homes[0], "%s/store-%d", scratch, ++number);
    return home;
}

static struct bough_store *open_store(const char *home)
{
    struct bough_store *store = bough_store_open(home, "trusted", &err);
    if (!store)
        check(false, "opens %s", home);
    return store;
}

/* Stages a layer directory, as a keeper would. */
static int64_t stage(struct bough_store *s)
{
    int64_t id = bough_store_layer_ids(s, 1, &err);
    const char *dir =
        path_of("%s/tmp/%s/%lld", bough_store_home(s), bough_store_owner(s), (long long)id);
    if (id < 0 || mkdir(dir, 0700) || mkdir(path_of("%s/fs", dir), 0755))
        return -1;
    return id;
}

/* A run on `parent` (NULL: an import) that changed something: a new image with a new layer. */
static int add_image(struct bough_store *s, const struct bough_image *parent, const char *tag,
                     struct bough_image *out)
{
    *out = (struct bough_image){0};
    bough_uuid_make(out->uuid);
    strcpy(out->origin, parent ? "run" : "import");
    if (parent)
        strcpy(out->parent, parent->uuid);
    out->tag = tag ? strdup(tag) : NULL;
    out->result = (struct bough_result){.present = parent != NULL, .has_stdout = true};
    out->result.stdout_data = strdup("hello\n");
    out->result.stdout_size = 6;
    out->layer = stage(s);
    if (out->layer < 0)
        return -1;
    return bough_store_commit(s, out, out->layer, parent ? parent->layer : 0, 100, 1, &err);
}

static bool layer_there(struct bough_store *s, int64_t id)
{
    return exists(path_of("%s/layers/%lld/fs", bough_store_home(s), (long long)id));
}

/* Every directory of the image's stack is in place. */
static bool image_whole(struct bough_store *s, int64_t layer)
{
    int64_t *ids;
    int count = bough_store_stack(s, layer, &ids, &err);
    bool whole = count >= 0;
    for (int i = 0; i < count; i++)
        whole = whole && layer_there(s, ids[i]);
    free(ids);
    return whole;
}

static bool found(struct bough_store *s, const char *ref)
{
    char uuid[BOUGH_UUID_SIZE];
    int64_t layer;
    return bough_store_find(s, ref, uuid, &layer, &err) == 1;
}

static void drop_trash(struct bough_store *s, const int64_t *ids, long count)
{
    for (long i = 0; i < count; i++)
        remove_tree(path_of("%s/tmp/%s/trash-%lld", bough_store_home(s), bough_store_owner(s),
                            (long long)ids[i]));
}

static int gc(struct bough_store *s, const char *const *keep, long count, struct bough_gc *out)
{
    struct bough_gc own;
    int result = bough_store_gc(s, keep, count, false, &own, &err);
    drop_trash(s, own.trash, own.trash_count);
    free(own.trash);
    own.trash = NULL;
    if (out)
        *out = own;
    return result;
}

static int sweep(struct bough_store *s, long *dead, long *orphans)
{
    struct bough_sweep out;
    int result = bough_store_sweep(s, &out, &err);
    for (long i = 0; i < out.dead_count; i++)
        remove_tree(path_of("%s/%s", bough_store_home(s), out.dead[i]));
    drop_trash(s, out.trash, out.orphans);
    if (dead)
        *dead = out.dead_count;
    if (orphans)
        *orphans = out.orphans;
    bough_sweep_clear(&out);
    return result;
}

static bool integrity_good(const char *home)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *stmt = NULL;
    bool good = sqlite3_open(path_of("%s/bough.db", home), &db) == SQLITE_OK;
    if (good && sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &stmt, NULL) == SQLITE_OK &&
        sqlite3_step(stmt) == SQLITE_ROW)
        good = strcmp((const char *)sqlite3_column_text(stmt, 0), "ok") == 0;
    else
        good = false;
    sqlite3_finalize(stmt);
    stmt = NULL;
    if (sqlite3_prepare_v2(db, "PRAGMA foreign_key_check", -1, &stmt, NULL) == SQLITE_OK)
        good = good && sqlite3_step(stmt) == SQLITE_DONE;
    sqlite3_finalize(stmt);
    sqlite3_close(db);
    return good;
}

/* Runs every due merge the way a keeper would, without content; returns how many. */
static int merge_all(struct bough_store *s, int64_t layer, long *links)
{
    struct bough_merge plan;
    int merges = 0, due;
    while ((due = bough_store_merge_plan(s, layer, &plan, &err)) == 1) {
        const char *dir = path_of("%s/tmp/%s/%lld", bough_store_home(s), bough_store_owner(s),
                                  (long long)plan.id);
        if (mkdir(dir, 0700) || mkdir(path_of("%s/fs", dir), 0755) ||
            bough_store_merge_done(s, &plan, 10, &err) < 0)
            return -1;
        merges++;
        if (links)
            *links += plan.count;
    }
    return due < 0 ? -1 : merges;
}

/* ---- tests ---- */

static void test_uuid(void)
{
    char a[BOUGH_UUID_SIZE], b[BOUGH_UUID_SIZE];
    bough_uuid_make(a);
    bough_uuid_make(b);
    check(bough_uuid_valid(a) && a[14] == '4' && strchr("89ab", a[19]), "uuids are version 4");
    check(strcmp(a, b) != 0, "uuids differ");
    check(bough_uuid_valid("0123ABCD-0123-4123-8123-0123456789ab"), "upper case is accepted");
    check(!bough_uuid_valid("busybox") && !bough_uuid_valid("") &&
              !bough_uuid_valid("0123abcd-0123-4123-8123-0123456789ab0") &&
              !bough_uuid_valid("0123abcd-0123-4123-8123-0123456789ag"),
          "other texts are not uuids");
}

static void test_images(void)
{
    struct bough_store *s = open_store(fresh_home());
    struct bough_image base, got, run = {0};
    struct stat st;
    check(stat(bough_store_home(s), &st) == 0 && (st.st_mode & 07777) == 0700,
          "home has mode 0700");
    check(add_image(s, NULL, "base", &base) == 0 && base.created_us > 0, "commits an import");
    check(layer_there(s, base.layer), "its layer is sealed");
    check(bough_store_get(s, "base", &got, &err) == 1 && strcmp(got.uuid, base.uuid) == 0 &&
              strcmp(got.tag, "base") == 0 && got.size == 100 && got.layer == base.layer &&
              strcmp(got.origin, "import") == 0 && !got.parent[0],
          "finds it by tag");
    bough_image_clear(&got);

    bough_uuid_make(run.uuid);
    strcpy(run.parent, base.uuid);
    strcpy(run.origin, "run");
    run.command = strdup("sh -c 'x'");
    run.layer = base.layer;
    run.result = (struct bough_result){.present = true,
                                       .exit_code = 137,
                                       .signal = 9,
                                       .timed_out = true,
                                       .oom = true,
                                       .elapsed_time = 1.5,
                                       .user_time = 0.25,
                                       .system_time = 0.125,
                                       .max_rss = 1 << 20,
                                       .has_stdout = true,
                                       .stdout_data = memcpy(malloc(5), "a\0b\n\0", 5),
                                       .stdout_size = 5,
                                       .has_stderr = true,
                                       .stdout_dropped = 7};
    check(bough_store_commit(s, &run, 0, 0, 0, 0, &err) == 0, "commits a run without a layer");
    char upper[BOUGH_UUID_SIZE];
    for (int i = 0; i < BOUGH_UUID_SIZE; i++)
        upper[i] = (char)(run.uuid[i] >= 'a' ? run.uuid[i] - 32 : run.uuid[i]);
    check(bough_store_get(s, upper, &got, &err) == 1, "finds it by uuid, in upper case");
    const struct bough_result *r = &got.result;
    check(strcmp(got.parent, base.uuid) == 0 && strcmp(got.command, "sh -c 'x'") == 0 && !got.tag &&
              got.size == 0 && got.created_us == run.created_us,
          "its fields come back");
    check(r->present && r->exit_code == 137 && r->signal == 9 && r->timed_out && r->oom &&
              r->elapsed_time == 1.5 && r->user_time == 0.25 && r->system_time == 0.125 &&
              r->max_rss == 1 << 20 && r->stdout_dropped == 7 && r->stderr_dropped == 0,
          "its result comes back");
    check(r->has_stdout && r->stdout_size == 5 && memcmp(r->stdout_data, "a\0b\n\0", 5) == 0 &&
              r->has_stderr && r->stderr_size == 0 && r->stderr_data && !r->stderr_data[0],
          "output comes back, with its NULs; empty is not the same as none");
    bough_image_clear(&got);
    check(bough_store_get(s, "nothing", &got, &err) == 0, "an unknown tag is not found");
    check(bough_store_get(s, "00000000-0000-4000-8000-000000000000", &got, &err) == 0,
          "an unknown uuid is not found");

    struct bough_image bad = {.layer = 999999, .origin = "run"};
    check(bough_store_commit(s, &bad, 0, 0, 0, 0, &err) == -1 && err.kind == BOUGH_ERR_state,
          "refuses a layer that is not there: %s", err.msg);
    bad = (struct bough_image){.origin = "run"};
    bough_uuid_make(bad.parent);
    bad.layer = stage(s);
    check(bough_store_commit(s, &bad, bad.layer, base.layer, 1, 1, &err) == -1 &&
              err.kind == BOUGH_ERR_state && !layer_there(s, bad.layer) &&
              exists(path_of("%s/tmp/%s/%lld/fs", bough_store_home(s), bough_store_owner(s),
                             (long long)bad.layer)),
          "a refused parent leaves just the staging directory");
    bad.parent[0] = '\0';
    bad.layer = base.layer + 50;
    check(bough_store_commit(s, &bad, bad.layer, base.layer, 1, 1, &err) == -1 &&
              err.kind == BOUGH_ERR_not_found,
          "a layer that was never staged: %s", err.msg);
    strcpy(bad.uuid, base.uuid);
    bad.layer = base.layer;
    check(bough_store_commit(s, &bad, 0, 0, 0, 0, &err) == -1 && err.kind == BOUGH_ERR_exists,
          "refuses a uuid that is there");
    bough_image_clear(&base);
    bough_image_clear(&run);
    bough_store_close(s);
}

static void test_tags(void)
{
    struct bough_store *s = open_store(fresh_home());
    struct bough_image a, b, got;
    add_image(s, NULL, "v1", &a);
    add_image(s, &a, NULL, &b);
    check(bough_store_tag(s, b.uuid, "v1", &err) == 0 &&
              bough_store_get(s, "v1", &got, &err) == 1 && strcmp(got.uuid, b.uuid) == 0,
          "a tag moves");
    bough_image_clear(&got);
    bough_store_tag(s, b.uuid, "v2", &err);
    bough_store_get(s, b.uuid, &got, &err);
    check(got.tag && strcmp(got.tag, "v2") == 0, "the newest tag is shown");
    bough_image_clear(&got);
    bough_store_get(s, "v1", &got, &err);
    check(got.tag && strcmp(got.tag, "v1") == 0, "found by an older tag it shows that");
    bough_image_clear(&got);
    check(bough_store_remove(s, b.uuid, &err) == -1 && err.kind == BOUGH_ERR_state,
          "a tagged image is not removed: %s", err.msg);
    check(bough_store_untag(s, b.uuid, &err) == 0 && !found(s, "v1") && !found(s, "v2"),
          "untag takes all of them");
    check(bough_store_remove(s, a.uuid, &err) == -1 && err.kind == BOUGH_ERR_state,
          "an image with children is not removed: %s", err.msg);
    check(bough_store_remove(s, b.uuid, &err) == 0 && !found(s, b.uuid), "removes an image");
    check(bough_store_remove(s, b.uuid, &err) == -1 && err.kind == BOUGH_ERR_not_found,
          "and only once: %s", err.msg);
    check(bough_store_tag(s, b.uuid, "x", &err) == -1 && err.kind == BOUGH_ERR_not_found,
          "a removed image takes no tag");
    char longer[BOUGH_TAG_MAX + 2];
    memset(longer, 'x', sizeof longer);
    longer[BOUGH_TAG_MAX + 1] = '\0';
    check(bough_store_tag(s, a.uuid, longer, &err) == -1 && err.kind == BOUGH_ERR_invalid,
          "a long tag is refused: %s", err.msg);
    longer[BOUGH_TAG_MAX] = '\0';
    check(bough_store_tag(s, a.uuid, longer, &err) == 0, "255 bytes are fine");
    check(bough_store_tag(s, a.uuid, "", &err) == -1 && bough_store_tag(s, a.uuid, "a\nb", &err) &&
              bough_store_tag(s, a.uuid, b.uuid, &err) == -1 && err.kind == BOUGH_ERR_invalid,
          "empty, control characters and uuids are no tags: %s", err.msg);
    bough_image_clear(&a);
    bough_image_clear(&b);
    bough_store_close(s);
}

static long list_count(struct bough_store *s, struct bough_filter f, char *first)
{
    struct bough_image *list;
    long count = bough_store_list(s, &f, &list, &err);
    if (first)
        snprintf(first, BOUGH_UUID_SIZE, "%s", count > 0 ? list[0].uuid : "");
    for (long i = 0; i < count; i++)
        bough_image_clear(&list[i]);
    free(list);
    return count;
}

static void test_list(void)
{
    struct bough_store *s = open_store(fresh_home());
    struct bough_image images[10];
    char first[BOUGH_UUID_SIZE];
    bool increasing = true;
    for (int i = 0; i < 10; i++) {
        add_image(s, i ? &images[i / 2] : NULL, i % 2 ? path_of("odd/%d", i) : NULL, &images[i]);
        increasing = increasing && (i == 0 || images[i].created_us > images[i - 1].created_us);
    }
    check(increasing, "created_us is strictly increasing");
    check(list_count(s, (struct bough_filter){0}, first) == 10 &&
              strcmp(first, images[9].uuid) == 0,
          "lists all, newest first");
    check(list_count(s, (struct bough_filter){.oldest_first = true, .limit = 3, .offset = 2},
                     first) == 3 &&
              strcmp(first, images[2].uuid) == 0,
          "oldest first, limit, offset");
    check(list_count(s, (struct bough_filter){.tagged = true}, NULL) == 5, "tagged only");
    check(list_count(s, (struct bough_filter){.tag = "odd/3"}, first) == 1 &&
              strcmp(first, images[3].uuid) == 0,
          "by tag");
    check(list_count(s, (struct bough_filter){.tag_glob = "odd/[1-5]"}, NULL) == 3, "by glob");
    check(list_count(s, (struct bough_filter){.parent = images[1].uuid}, NULL) == 2, "by parent");
    check(list_count(s,
                     (struct bough_filter){.since_us = images[4].created_us,
                                           .before_us = images[7].created_us},
                     NULL) == 3,
          "since is inclusive, before is exclusive");
    check(list_count(s,
                     (struct bough_filter){.tag_glob = "odd*",
                                           .tagged = true,
                                           .parent = images[1].uuid,
                                           .since_us = 1,
                                           .before_us = INT64_MAX,
                                           .limit = 9,
                                           .brief = true},
                     NULL) == 1,
          "all filters together");
    struct bough_image *list;
    long count = bough_store_list(s, &(struct bough_filter){.brief = true}, &list, &err);
    check(count == 10 && list[0].result.has_stdout && list[0].result.stdout_size == 6 &&
              !list[0].result.stdout_data && !list[0].result.has_stderr,
          "brief leaves the output out but tells its size");
    for (long i = 0; i < count; i++)
        bough_image_clear(&list[i]);
    free(list);
    struct bough_store_info info;
    check(bough_store_info(s, &info, &err) == 0 && info.images == 10 && info.tags == 5 &&
              info.layers == 10 && info.stand_ins == 0 && info.bytes == 1000,
          "info counts");
    for (int i = 0; i < 10; i++)
        bough_image_clear(&images[i]);
    bough_store_close(s);
}

static void test_ids(void)
{
    const char *home = fresh_home();
    struct bough_store *a = open_store(home), *b = open_store(home);
    char *seen = calloc(10000, 1);
    bool unique = true;
    for (int i = 0; i < 300; i++) {
        int count = i % 100 == 7 ? 100 : 1 + i % 3;
        int64_t id = bough_store_layer_ids(i % 2 ? a : b, count, &err);
        for (int j = 0; j < count; j++) {
            unique = unique && id > 0 && id + j < 10000 && !seen[id + j];
            if (id > 0 && id + j < 10000)
                seen[id + j] = 1;
        }
    }
    check(unique, "layer ids are consecutive and unique across openings");
    check(bough_store_layer_ids(a, 0, &err) == -1 && err.kind == BOUGH_ERR_invalid,
          "zero ids are refused");
    free(seen);
    bough_store_close(a);
    bough_store_close(b);
}

static void test_descriptors(void)
{
    bool before[64];
    for (int fd = 0; fd < 64; fd++)
        before[fd] = fcntl(fd, F_GETFD) >= 0;
    struct bough_store *s = open_store(fresh_home());
    struct bough_image base;
    add_image(s, NULL, NULL, &base);
    bough_image_clear(&base);
    int opened = 0, closing = 0;
    for (int fd = 0; fd < 64; fd++) {
        int flags = before[fd] ? -1 : fcntl(fd, F_GETFD);
        opened += flags >= 0;
        closing += flags >= 0 && flags & FD_CLOEXEC;
    }
    check(opened >= 8 && opened == closing, "all %d descriptors are close-on-exec", opened);
    pid_t pid = fork();
    if (pid == 0) {
        static struct bough_store *volatile inherited; /* what close leaves there is no leak */
        inherited = s;
        struct bough_image got;
        int good = bough_store_get(s, "x", &got, &err) == -1 && err.kind == BOUGH_ERR_state;
        bough_store_close(inherited);
        _exit(good ? 0 : 1);
    }
    int status;
    waitpid(pid, &status, 0);
    check(status == 0, "a forked child is told to open its own");
    check(add_image(s, NULL, NULL, &base) == 0, "and has not hurt the parent's by closing");
    bough_image_clear(&base);
    char *owner = strdup(path_of("%s/tmp/%s", bough_store_home(s), bough_store_owner(s)));
    bough_store_close(s);
    check(!exists(owner), "close removes the owner's directory");
    free(owner);
    int fds = count_entries("/proc/self/fd");
    for (int i = 0; i < 3; i++)
        bough_store_close(open_store(path_of("%s/store-again", scratch)));
    check(count_entries("/proc/self/fd") == fds, "no descriptor is left behind");
}

/* ---- stacks ---- */

enum { CHAIN = 1000 };

struct cover {
    int high, low; /* depths that a directory holds */
};

static void test_chain(void)
{
    const char *home = fresh_home();
    struct bough_store *s = open_store(home);
    struct bough_image *chain = calloc(CHAIN + 1, sizeof *chain);
    struct cover *covers = calloc(20000, sizeof *covers);
    int *merged = calloc(CHAIN + 1, sizeof *merged);
    int longest = 0, merges = 0, most = 0, worst_level = 0;
    long links = 0;
    bool whole = true;
    add_image(s, NULL, NULL, &chain[0]);
    for (int depth = 1; depth <= CHAIN && whole; depth++) {
        whole = add_image(s, &chain[depth - 1], NULL, &chain[depth]) == 0;
        covers[chain[depth].layer] = (struct cover){depth, depth};
        int64_t *ids;
        int count = bough_store_stack(s, chain[depth].layer, &ids, &err);
        longest = count > longest ? count : longest;
        int next = depth;
        for (int i = 0; i < count && next > 0; i++) {
            whole = whole && covers[ids[i]].high == next && layer_there(s, ids[i]);
            next = covers[ids[i]].low - 1;
        }
        whole = whole && next == 0 && ids[count - 1] == chain[0].layer;
        free(ids);
        struct bough_merge plan;
        while (whole && bough_store_merge_plan(s, chain[depth].layer, &plan, &err) == 1) {
            const char *dir =
                path_of("%s/tmp/%s/%lld", home, bough_store_owner(s), (long long)plan.id);
            mkdir(dir, 0700);
            mkdir(path_of("%s/fs", dir), 0755);
            struct cover c = {covers[plan.layers[0]].high, covers[plan.layers[plan.count - 1]].low};
            whole = whole && c.high == covers[plan.top].high && c.low == covers[plan.bottom].low &&
                    bough_store_merge_done(s, &plan, 0, &err) == 0;
            covers[plan.id] = c;
            for (int d = c.low; d <= c.high; d++)
                most = ++merged[d] > most ? merged[d] : most;
            worst_level = plan.level > worst_level ? plan.level : worst_level;
            merges++;
            links += plan.count;
        }
    }
    check(whole, "a chain of 1000: every stack covers every layer once, in order");
    check(longest <= 30, "its stack is never longer than 30 (%d)", longest);
    check(most <= 4, "no layer is merged more often than log8(1000) times (%d)", most);
    printf("# chain of %d: longest stack %d, %d merges, %ld links, level %d\n", CHAIN, longest,
           merges, links, worst_level);

    struct bough_store *other = open_store(home);
    int64_t *ids, *theirs;
    int count = bough_store_stack(s, chain[CHAIN].layer, &ids, &err);
    int same = bough_store_stack(other, chain[CHAIN].layer, &theirs, &err);
    check(count == same && memcmp(ids, theirs, (size_t)count * sizeof *ids) == 0,
          "another opening sees the same stack");
    free(ids);
    free(theirs);

    struct bough_image branch = chain[500], next;
    int branch_merges = 0, branch_longest = 0;
    for (int i = 0; i < 40; i++) {
        add_image(s, &branch, NULL, &next);
        if (i)
            bough_image_clear(&branch);
        branch = next;
        count = bough_store_stack(s, branch.layer, &ids, &err);
        branch_longest = count > branch_longest ? count : branch_longest;
        free(ids);
        branch_merges += merge_all(s, branch.layer, NULL);
    }
    bough_image_clear(&branch);
    check(branch_merges == 7 && branch_longest <= 30,
          "a branch of 40 from the middle shares what is below (%d merges, stack %d)",
          branch_merges, branch_longest);

    bough_store_close(other);
    struct bough_store_info before, after;
    bough_store_info(s, &before, &err);
    bough_store_tag(s, chain[CHAIN].uuid, "tip", &err);
    bough_store_close(s);
    s = open_store(home);
    check(gc(s, NULL, 0, NULL) == 0 && bough_store_info(s, &after, &err) == 0, "gc of a chain");
    check(after.images == CHAIN + 1 && after.layers == CHAIN + 1,
          "keeps the history of a tagged tip, drops the branch");
    check(after.stand_ins < before.stand_ins - branch_merges && after.stand_ins > 100,
          "drops the stand-ins that wider ones replaced (%ld of %ld left)", after.stand_ins,
          before.stand_ins);
    check(count_entries(path_of("%s/layers", home)) == after.layers + after.stand_ins,
          "and their directories");
    whole = true;
    for (int depth = 0; depth <= CHAIN; depth++) {
        count = bough_store_stack(s, chain[depth].layer, &ids, &err);
        whole = whole && count > 0 && count <= 30 && image_whole(s, chain[depth].layer);
        free(ids);
    }
    check(whole, "every image on the way still has a whole and short stack");
    int64_t start = bough_now_ns();
    for (int i = 0; i < 10000; i++) {
        bough_store_stack(s, chain[CHAIN - 1].layer, &ids, &err);
        free(ids);
    }
    printf("# stack of depth %d from memory: %.2f us\n", CHAIN,
           (double)(bough_now_ns() - start) / 1e7);
    for (int depth = 0; depth <= CHAIN; depth++)
        bough_image_clear(&chain[depth]);
    free(chain);
    free(covers);
    free(merged);
    bough_store_close(s);
}

static void test_merges(void)
{
    const char *home = fresh_home();
    struct bough_store *a = open_store(home), *b = open_store(home);
    struct bough_image tip, next;
    int64_t *ids;
    add_image(a, NULL, "tip", &tip);
    for (int i = 0; i < 9; i++) {
        add_image(a, &tip, "tip", &next);
        bough_image_clear(&tip);
        tip = next;
    }
    check(bough_store_stack(b, tip.layer, &ids, &err) == 10, "ten directories before a merge");
    free(ids);
    struct bough_merge mine, theirs;
    check(bough_store_merge_plan(a, tip.layer, &mine, &err) == 1 && mine.count == 8 &&
              mine.level == 1,
          "eight neighbours are due");
    check(bough_store_merge_plan(b, tip.layer, &theirs, &err) == 1 && theirs.top == mine.top &&
              theirs.bottom == mine.bottom && theirs.id != mine.id,
          "another process plans the same");
    const char *dir = path_of("%s/tmp/%s/%lld", home, bough_store_owner(a), (long long)mine.id);
    mkdir(dir, 0700);
    check(bough_store_merge_done(a, &mine, 1, &err) == 0, "the first one counts");
    dir = path_of("%s/tmp/%s/%lld", home, bough_store_owner(b), (long long)theirs.id);
    mkdir(dir, 0700);
    check(bough_store_merge_done(b, &theirs, 1, &err) == 1 && exists(dir),
          "the second one is told, and keeps its staging");
    check(bough_store_stack(b, tip.layer, &ids, &err) == 3 && ids[1] == mine.id,
          "and uses the other's from then on");
    free(ids);
    for (int i = 0; i < 8; i++) {
        add_image(a, &tip, "tip", &next);
        bough_image_clear(&tip);
        tip = next;
    }
    bough_store_stack(b, tip.layer, &ids, &err);
    free(ids);
    check(merge_all(a, tip.layer, NULL) == 1, "eight more, one more merge");
    check(bough_store_stack(b, tip.layer, &ids, &err) == 11, "not seen at once elsewhere");
    free(ids);
    check(bough_store_merge_plan(b, tip.layer, &theirs, &err) == 0 &&
              bough_store_stack(b, tip.layer, &ids, &err) == 4,
          "but found when it would be planned there");
    free(ids);

    for (int i = 0; i < 8; i++) {
        add_image(a, &tip, NULL, &next);
        bough_image_clear(&tip);
        tip = next;
    }
    check(bough_store_merge_plan(a, tip.layer, &mine, &err) == 1, "a third plan");
    gc(a, NULL, 0, NULL);
    mkdir(path_of("%s/tmp/%s/%lld", home, bough_store_owner(a), (long long)mine.id), 0700);
    check(bough_store_merge_done(a, &mine, 1, &err) == -1 && err.kind == BOUGH_ERR_state,
          "whose layers gc takes meanwhile, is refused: %s", err.msg);
    mine.count = 0;
    check(bough_store_merge_done(a, &mine, 1, &err) == -1 && err.kind == BOUGH_ERR_invalid,
          "a plan that is none is refused");
    check(bough_store_stack(a, 424242, &ids, &err) == -1 && err.kind == BOUGH_ERR_not_found,
          "no stack of an unknown layer: %s", err.msg);
    check(bough_store_stack(a, 0, &ids, &err) == 0, "layer 0 is an empty stack");
    free(ids);
    bough_image_clear(&tip);
    bough_store_close(a);
    bough_store_close(b);
}

/* ---- gc ---- */

static void test_gc(void)
{
    const char *home = fresh_home();
    struct bough_store *s = open_store(home);
    struct bough_image base, kept, lost, child;
    struct bough_gc out;
    add_image(s, NULL, "base", &base);
    add_image(s, &base, NULL, &kept);
    add_image(s, &base, NULL, &lost);
    add_image(s, &kept, NULL, &child);
    const char *keep[] = {child.uuid, "no uuid at all"};
    check(bough_store_gc(s, keep, 2, true, &out, &err) == 0 && out.images == 1 && out.layers == 1 &&
              out.bytes == 100 && !out.trash && found(s, lost.uuid),
          "a dry gc only counts");
    check(bough_store_gc(s, keep, 2, false, &out, &err) == 0 && out.images == 1 &&
              out.layers == 1 && out.trash_count == 1 && out.trash[0] == lost.layer,
          "gc drops what nobody needs");
    check(exists(
              path_of("%s/tmp/%s/trash-%lld", home, bough_store_owner(s), (long long)lost.layer)) &&
              !layer_there(s, lost.layer),
          "its layer is in the trash");
    drop_trash(s, out.trash, out.trash_count);
    free(out.trash);
    check(!found(s, lost.uuid) && found(s, kept.uuid) && image_whole(s, child.layer),
          "the parents of what is kept stay");
    bough_store_untag(s, base.uuid, &err);
    check(bough_store_remove(s, child.uuid, &err) == 0 && gc(s, keep, 1, &out) == 0 &&
              out.images == 0 && layer_there(s, child.layer),
          "a removed image in use keeps its layers");
    check(!found(s, child.uuid), "but stays hidden");
    check(gc(s, NULL, 0, &out) == 0 && out.images == 3 && out.layers == 3,
          "everything goes when nothing is kept");
    check(count_entries(path_of("%s/layers", home)) == 0, "no directory is left");
    bough_image_clear(&base);
    bough_image_clear(&kept);
    bough_image_clear(&lost);
    bough_image_clear(&child);

    add_image(s, NULL, NULL, &base);
    bough_store_gc_mark(s);
    add_image(s, NULL, NULL, &kept);
    check(gc(s, NULL, 0, &out) == 0 && out.images == 1 && found(s, kept.uuid),
          "what comes after gc_mark is kept");
    check(gc(s, NULL, 0, &out) == 0 && out.images == 1, "once");
    bough_image_clear(&base);
    bough_image_clear(&kept);
    bough_store_close(s);
}

static void test_leases(void)
{
    const char *home = fresh_home();
    struct bough_store *a = open_store(home), *b = open_store(home);
    struct bough_image base, tip, next;
    struct bough_gc out;
    add_image(a, NULL, NULL, &base);
    add_image(a, &base, NULL, &tip);
    check(gc(b, NULL, 0, &out) == 0 && out.images == 0 && found(b, tip.uuid),
          "gc leaves alone what a live owner made");
    check(gc(a, NULL, 0, &out) == 0 && out.images == 0 && image_whole(a, tip.layer),
          "and what a live owner got");
    bough_store_close(b);
    check(gc(a, NULL, 0, &out) == 0 && out.images == 2, "until it closes");
    bough_image_clear(&base);
    bough_image_clear(&tip);

    /* A stand-in that another process may have mounted. */
    add_image(a, NULL, NULL, &tip);
    for (int i = 0; i < 8; i++) {
        add_image(a, &tip, NULL, &next);
        bough_image_clear(&tip);
        tip = next;
    }
    merge_all(a, tip.layer, NULL);
    b = open_store(home);
    int64_t *ids;
    found(b, tip.uuid);
    check(bough_store_stack(b, tip.layer, &ids, &err) == 2, "another process has a stand-in");
    check(gc(a, NULL, 0, &out) == 0 && layer_there(b, ids[0]) && layer_there(b, ids[1]),
          "which stays");
    free(ids);
    bough_store_close(b);
    bough_store_close(a);

    int pipes[2];
    if (pipe(pipes))
        return;
    pid_t pid = fork();
    if (pid == 0) {
        b = bough_store_open(home, "trusted", &err);
        char good = b && found(b, tip.uuid) ? 'y' : 'n';
        if (write(pipes[1], &good, 1) == 1)
            pause();
        _exit(1);
    }
    char good = 'n';
    check(read(pipes[0], &good, 1) == 1 && good == 'y', "a process leases an image");
    close(pipes[0]);
    close(pipes[1]);
    long dead = -1;
    a = open_store(home);
    check(sweep(a, &dead, NULL) == 0 && dead == 0, "its directory is not swept while it lives");
    check(gc(a, NULL, 0, &out) == 0 && out.images == 0 && found(a, tip.uuid),
          "its image is not collected");
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    check(sweep(a, &dead, NULL) == 0 && dead == 1, "killed, it is swept");
    check(gc(a, NULL, 0, &out) == 0 && out.images == 9 && out.layers == 9, "and its lease is gone");
    check(count_entries(path_of("%s/tmp", home)) == 1, "only the living are left in tmp");
    bough_image_clear(&tip);
    bough_store_close(a);
}

static void test_sweep(void)
{
    const char *home = fresh_home();
    struct bough_store *s = open_store(home), *other = open_store(home);
    struct bough_image base, tip, next;
    long dead, orphans;
    add_image(s, NULL, NULL, &base);
    tip = base;
    for (int i = 0; i < 8; i++) {
        add_image(s, &tip, NULL, &next);
        if (i)
            bough_image_clear(&tip);
        tip = next;
    }
    merge_all(s, tip.layer, NULL);
    check(sweep(s, &dead, &orphans) == 0 && dead == 0 && orphans == 0,
          "sweep finds nothing in a clean store, stand-ins included");
    mkdir(path_of("%s/layers/777777", home), 0700);
    mkdir(path_of("%s/layers/not-a-layer", home), 0700);
    mkdir(path_of("%s/tmp/123-0123456789abcdef", home), 0700);
    mkdir(path_of("%s/tmp/.new-124-0123456789abcdef", home), 0700);
    mkdir(path_of("%s/tmp/somebody-elses", home), 0700);
    int lock = open(path_of("%s/commit.lock", home), O_RDWR | O_CLOEXEC);
    check(lock >= 0 && flock(lock, LOCK_SH) == 0 && sweep(s, &dead, &orphans) == 0 &&
              orphans == 0 && dead == 1 && exists(path_of("%s/layers/777777", home)),
          "while somebody seals a layer, orphans are left alone");
    close(lock);
    check(sweep(s, &dead, &orphans) == 0 && orphans == 1 && dead == 1,
          "after it, the orphan and the stillborn go");
    check(exists(path_of("%s/layers/not-a-layer", home)) &&
              exists(path_of("%s/tmp/somebody-elses", home)),
          "what does not look like ours stays");
    check(exists(path_of("%s/tmp/%s/lock", home, bough_store_owner(other))),
          "so does a live owner's directory");
    check(image_whole(s, tip.layer), "and every layer with a row");
    bough_image_clear(&base);
    bough_image_clear(&tip);
    bough_store_close(other);
    bough_store_close(s);
}

/* ---- layers without an image ---- */

static int64_t add_layer(struct bough_store *s, int64_t parent, const char *chain, int *result)
{
    int64_t id = stage(s);
    int rc = bough_store_layer_add(s, &id, parent, 7, 1, chain, &err);
    if (result)
        *result = rc;
    return rc < 0 ? -1 : id;
}

/* Makes the image a name for a layer that is there. */
static int name_layer(struct bough_store *s, int64_t layer, const char *parent, const char *tag,
                      struct bough_image *out)
{
    *out = (struct bough_image){.origin = "files", .layer = layer, .tag = tag ? strdup(tag) : NULL};
    if (parent)
        strcpy(out->parent, parent);
    return bough_store_commit(s, out, 0, 0, 0, 0, &err);
}

static void test_layers(void)
{
    const char *home = fresh_home();
    struct bough_store *a = open_store(home), *b = open_store(home);
    struct bough_image image;
    struct bough_gc out;
    int rc;
    int64_t found_id = 0, *ids;
    int64_t below = add_layer(a, 0, "sha256:aa", &rc);
    check(below > 0 && rc == 0 && layer_there(a, below), "a layer without an image is sealed");
    int64_t plain = add_layer(a, below, NULL, &rc);
    check(plain > 0 && bough_store_stack(a, plain, &ids, &err) == 2 && ids[0] == plain &&
              ids[1] == below,
          "and has a stack");
    free(ids);
    check(bough_store_layer_find(b, "sha256:aa", &found_id, &err) == 1 && found_id == below,
          "another opening finds it by its chain");
    check(bough_store_layer_find(b, "sha256:bb", &found_id, &err) == 0, "and no other");
    int64_t mine = stage(b), kept = mine;
    check(bough_store_layer_add(b, &kept, 0, 7, 1, "sha256:aa", &err) == 1 && kept == below &&
              !layer_there(b, mine) &&
              exists(path_of("%s/tmp/%s/%lld/fs", home, bough_store_owner(b), (long long)mine)),
          "a chain that is there wins, and leaves the staged one to the caller");
    int64_t bad = stage(b);
    check(bough_store_layer_add(b, &bad, 999999, 0, 0, NULL, &err) == -1 &&
              err.kind == BOUGH_ERR_state && !layer_there(b, bad),
          "refuses to lie on a layer that is not there: %s", err.msg);
    bad = 424242;
    check(bough_store_layer_add(b, &bad, 0, 0, 0, NULL, &err) == -1 &&
              err.kind == BOUGH_ERR_not_found,
          "or to seal one that was never staged: %s", err.msg);
    bad = 0;
    check(bough_store_layer_add(b, &bad, 0, 0, 0, NULL, &err) == -1 &&
              err.kind == BOUGH_ERR_invalid,
          "%s", err.msg);

    check(gc(a, NULL, 0, &out) == 0 && out.layers == 0 && gc(b, NULL, 0, &out) == 0 &&
              out.layers == 0 && image_whole(a, plain),
          "no gc takes what somebody holds, nor what is below it");
    bough_store_layer_release(a, plain);
    check(gc(b, NULL, 0, &out) == 0 && out.layers == 1 && out.bytes == 7 && !layer_there(a, plain),
          "released, it goes");
    bough_store_layer_release(a, below);
    bough_store_layer_release(b, below);
    check(gc(a, NULL, 0, &out) == 0 && out.layers == 0, "leases are counted");
    bough_store_layer_release(b, below);
    bough_store_layer_release(b, below);
    check(gc(a, NULL, 0, &out) == 0 && out.layers == 1 && !layer_there(a, below),
          "the last one decides");
    check(bough_store_layer_find(a, "sha256:aa", &found_id, &err) == 0, "its chain goes with it");
    check(bough_store_stack(a, below, &ids, &err) == -1, "so does its stack");

    below = add_layer(a, 0, "sha256:aa", &rc);
    check(rc == 0 && name_layer(a, below, NULL, "base", &image) == 0, "an image takes it over");
    bough_store_layer_release(a, below);
    check(gc(b, NULL, 0, &out) == 0 && out.layers == 0 && image_whole(b, image.layer),
          "and needs no lease then");
    int64_t layer, fresh, count;
    struct bough_image run;
    check(bough_store_layer_ids(a, 1, &err) > 0 &&
              bough_store_quick(a, image.uuid, &layer, &ids, &count, &fresh) && count == 1 &&
              layer == below,
          "a run on it starts at once");
    free(ids);
    int64_t files = add_layer(a, below, NULL, &rc);
    run = (struct bough_image){.origin = "run", .layer = stage(a)};
    strcpy(run.parent, image.uuid);
    check(bough_store_commit(a, &run, run.layer, files, 1, 1, &err) == 0 &&
              bough_store_stack(a, run.layer, &ids, &err) == 3 && ids[1] == files,
          "a run may lie on files that were put over its parent");
    free(ids);
    bough_store_layer_release(a, files);
    const char *keep[] = {run.uuid};
    check(gc(a, keep, 1, &out) == 0 && out.layers == 0 && image_whole(a, run.layer),
          "which stay with it");
    bough_image_clear(&run);
    bough_image_clear(&image);

    /* Whoever dies lets go. */
    int pipes[2];
    char good = 'n';
    if (pipe(pipes))
        return;
    pid_t pid = fork();
    if (pid == 0) {
        struct bough_store *c = bough_store_open(home, "trusted", &err);
        good = c && add_layer(c, below, "sha256:cc", NULL) > 0 ? 'y' : 'n';
        if (write(pipes[1], &good, 1) == 1)
            pause();
        _exit(1);
    }
    bool told = read(pipes[0], &good, 1) == 1;
    close(pipes[0]);
    close(pipes[1]);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    long dead;
    check(told && good == 'y' && sweep(a, &dead, NULL) == 0 && dead == 1 &&
              bough_store_layer_find(a, "sha256:cc", &found_id, &err) == 1,
          "a layer survives its maker");
    bough_store_layer_release(a, found_id);
    check(gc(a, NULL, 0, &out) == 0 && !layer_there(a, found_id), "its lease does not");
    bough_store_close(b);
    bough_store_close(a);
    check(integrity_good(home), "the database is sound");
}

static void test_layer_merges(void)
{
    struct bough_store *s = open_store(fresh_home());
    int64_t named = 0, plain = 0, *ids;
    for (int i = 0; i < 10; i++)
        named = add_layer(s, named, path_of("sha256:%d", i), NULL);
    check(merge_all(s, named, NULL) == 0, "layers with a chain are not merged");
    plain = named;
    for (int i = 0; i < 8; i++)
        plain = add_layer(s, plain, NULL, NULL);
    check(merge_all(s, plain, NULL) == 1 && bough_store_stack(s, plain, &ids, &err) == 11,
          "those without are");
    free(ids);
    bough_store_close(s);
}

/* ---- configs and the run cache ---- */

static bool config_is(struct bough_store *s, const char *ref, const char *config)
{
    struct bough_image image;
    if (bough_store_get(s, ref, &image, &err) != 1)
        return false;
    bool same = config ? image.config && strcmp(image.config, config) == 0 : !image.config;
    bough_image_clear(&image);
    return same;
}

static int commit_run(struct bough_store *s, const char *parent, struct bough_image *out)
{
    strcpy(out->origin, "run");
    strcpy(out->parent, parent);
    return bough_store_commit(s, out, 0, 0, 0, 0, &err);
}

static long config_rows(const char *home)
{
    sqlite3 *db;
    sqlite3_stmt *stmt = NULL;
    long rows = -1;
    sqlite3_open(path_of("%s/bough.db", home), &db);
    if (sqlite3_prepare_v2(db, "SELECT count(*) FROM configs", -1, &stmt, NULL) == SQLITE_OK &&
        sqlite3_step(stmt) == SQLITE_ROW)
        rows = (long)sqlite3_column_int64(stmt, 0);
    sqlite3_finalize(stmt);
    sqlite3_close(db);
    return rows;
}

static void test_configs(void)
{
    const char *home = fresh_home();
    struct bough_store *s = open_store(home);
    struct bough_image base = {.origin = "import", .tag = strdup("base")}, other = {0};
    struct bough_image child = {0}, grandchild = {0}, none = {0}, own = {0};
    base.config = strdup("{\"cwd\":\"/src\"}");
    other.tag = strdup("other");
    other.config = strdup("{}");
    strcpy(other.origin, "import");
    strcpy(none.origin, "import");
    check(bough_store_commit(s, &base, 0, 0, 0, 0, &err) == 0 &&
              bough_store_commit(s, &other, 0, 0, 0, 0, &err) == 0 &&
              config_is(s, "base", "{\"cwd\":\"/src\"}") && config_is(s, "other", "{}"),
          "an image brings its config along");
    check(commit_run(s, base.uuid, &child) == 0 && child.config &&
              strcmp(child.config, base.config) == 0 && config_is(s, child.uuid, base.config),
          "a run has its parent's");
    check(commit_run(s, child.uuid, &grandchild) == 0 && config_is(s, grandchild.uuid, base.config),
          "and so on");
    own.config = strdup("{}");
    check(commit_run(s, child.uuid, &own) == 0 && config_is(s, own.uuid, "{}"),
          "unless it has one of its own");
    check(bough_store_commit(s, &none, 0, 0, 0, 0, &err) == 0 && !none.config &&
              config_is(s, none.uuid, NULL),
          "without one there is none");
    struct bough_image *list;
    long with = 0, count = bough_store_list(s, &(struct bough_filter){.brief = true}, &list, &err);
    for (long i = 0; i < count; i++) {
        with += list[i].config != NULL;
        bough_image_clear(&list[i]);
    }
    free(list);
    check(count == 6 && with == 5, "a list tells them");
    check(config_rows(home) == 2, "every text is there once");
    struct bough_store *t = open_store(home);
    struct bough_image late = {0};
    check(commit_run(t, other.uuid, &late) == 0 && config_is(t, late.uuid, "{}"),
          "another opening inherits too");
    bough_store_close(t);
    bough_store_untag(s, "base", &err);
    bough_store_untag(s, base.uuid, &err);
    check(gc(s, NULL, 0, NULL) == 0 && config_rows(home) == 1 && config_is(s, "other", "{}"),
          "gc drops the texts that no image has");
    bough_image_clear(&base);
    bough_image_clear(&other);
    bough_image_clear(&child);
    bough_image_clear(&grandchild);
    bough_image_clear(&none);
    bough_image_clear(&own);
    bough_image_clear(&late);
    bough_store_close(s);
}

/* What the run cache knows for `key`: the image's uuid, "" for none. */
static const char *cached(struct bough_store *s, const char *key)
{
    static char uuid[BOUGH_UUID_SIZE];
    struct bough_image image;
    if (bough_store_cached(s, key, &image, &err) == 1)
        strcpy(uuid, image.uuid);
    else
        uuid[0] = '\0';
    bough_image_clear(&image);
    return uuid;
}

static void cache_run(struct bough_store *s, const char *parent, const char *key,
                      struct bough_result result, char uuid[BOUGH_UUID_SIZE])
{
    struct bough_image image = {.cache_key = strdup(key), .result = result};
    if (commit_run(s, parent, &image))
        check(false, "commits a run to remember");
    strcpy(uuid, image.uuid);
    bough_image_clear(&image);
}

static void test_cache(void)
{
    const char *home = fresh_home();
    struct bough_store *s = open_store(home), *other = open_store(home);
    struct bough_image base;
    char first[BOUGH_UUID_SIZE], second[BOUGH_UUID_SIZE], unused[BOUGH_UUID_SIZE];
    const struct bough_result good = {.present = true};
    struct bough_result bad[6];
    add_image(s, NULL, "base", &base);
    check(!*cached(s, "k"), "an unknown key is no hit");
    cache_run(s, base.uuid, "k", good, first);
    check(strcmp(cached(s, "k"), first) == 0 && strcmp(cached(other, "k"), first) == 0,
          "a good run is remembered, for everybody");
    cache_run(s, base.uuid, "k", good, second);
    check(strcmp(cached(other, "k"), second) == 0, "a later one takes its place");
    for (int i = 0; i < 6; i++)
        bad[i] = good;
    bad[0].exit_code = 1;
    bad[1].timed_out = true;
    bad[2].oom = true;
    bad[3].stdout_dropped = 1;
    bad[4].stderr_dropped = 1;
    bad[5].present = false;
    for (int i = 0; i < 6; i++)
        cache_run(s, base.uuid, "bad", bad[i], unused);
    check(!*cached(s, "bad"), "no run that failed or was cut is");
    check(gc(s, NULL, 0, NULL) == 0 && strcmp(cached(s, "k"), second) == 0,
          "what another process was given stays");
    bough_store_close(other);
    check(bough_store_remove(s, second, &err) == 0 && !*cached(s, "k"),
          "a removed image is no hit");
    cache_run(s, base.uuid, "k", good, first);
    cache_run(s, base.uuid, "k2", good, second);
    bough_store_tag(s, second, "kept", &err);
    check(gc(s, NULL, 0, NULL) == 0 && !*cached(s, "k") && strcmp(cached(s, "k2"), second) == 0,
          "nor is one that gc has taken");
    check(integrity_good(home), "the database is sound");
    bough_image_clear(&base);
    bough_store_close(s);
}

/* ---- a store of the first schema ---- */

static const char first_schema[] =
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;"
    "INSERT INTO meta VALUES('next_layer',1);"
    "CREATE TABLE owners(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);"
    "CREATE TABLE layers(id INTEGER PRIMARY KEY, parent INTEGER REFERENCES layers(id),"
    " level INTEGER NOT NULL, bytes INTEGER NOT NULL, files INTEGER NOT NULL,"
    " created INTEGER NOT NULL);"
    "CREATE INDEX layers_parent ON layers(parent);"
    "CREATE TABLE stand_ins(id INTEGER PRIMARY KEY, top INTEGER NOT NULL REFERENCES layers(id),"
    " bottom INTEGER NOT NULL REFERENCES layers(id), level INTEGER NOT NULL,"
    " bytes INTEGER NOT NULL, UNIQUE(top,bottom));"
    "CREATE INDEX stand_ins_bottom ON stand_ins(bottom);"
    "CREATE TABLE images(seq INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE,"
    " parent INTEGER REFERENCES images(seq), layer INTEGER REFERENCES layers(id),"
    " origin TEXT NOT NULL, command TEXT, size INTEGER NOT NULL, created INTEGER NOT NULL,"
    " owner INTEGER NOT NULL, gone INTEGER NOT NULL DEFAULT 0, flags INTEGER NOT NULL,"
    " exit_code INTEGER, signal INTEGER, elapsed REAL, user_time REAL, system_time REAL,"
    " max_rss INTEGER, out_dropped INTEGER, err_dropped INTEGER, out BLOB, err BLOB);"
    "CREATE INDEX images_parent ON images(parent);"
    "CREATE INDEX images_layer ON images(layer);"
    "CREATE INDEX images_created ON images(created);"
    "CREATE TABLE tags(seq INTEGER PRIMARY KEY, tag TEXT NOT NULL UNIQUE,"
    " image INTEGER NOT NULL REFERENCES images(seq) ON DELETE CASCADE);"
    "CREATE INDEX tags_image ON tags(image);"
    "CREATE TABLE leases(image INTEGER NOT NULL REFERENCES images(seq) ON DELETE CASCADE,"
    " owner INTEGER NOT NULL REFERENCES owners(id) ON DELETE CASCADE,"
    " PRIMARY KEY(image,owner)) WITHOUT ROWID;"
    "PRAGMA user_version=1;"
    "UPDATE meta SET value=65;"
    "INSERT INTO owners VALUES(7,'123-0123456789abcdef');"
    "INSERT INTO layers VALUES(1,NULL,100,100,1,1),(2,1,0,50,1,2),(3,2,0,5,1,3);"
    "INSERT INTO images VALUES"
    " (3,'00000000-0000-4000-8000-000000000001',NULL,1,'import',NULL,100,10,7,0,0,"
    "  0,0,0,0,0,0,0,0,NULL,NULL),"
    " (5,'00000000-0000-4000-8000-000000000002',3,2,'run','make',50,20,7,0,1,"
    "  2,0,1.5,0.5,0.25,4096,9,0,x'6100620a',x''),"
    " (6,'00000000-0000-4000-8000-000000000003',5,3,'run',NULL,5,30,7,1,1,"
    "  0,0,0,0,0,0,0,0,zeroblob(100000),NULL);"
    "INSERT INTO tags(tag,image) VALUES('base',3),('built',5);"
    "INSERT INTO leases VALUES(5,7);";

static void test_upgrade(void)
{
    static const char built[] = "00000000-0000-4000-8000-000000000002";
    const char *home = fresh_home();
    struct bough_image got, run = {0};
    struct bough_store_info info;
    bough_store_close(open_store(home));
    remove(path_of("%s/bough.db-wal", home));
    remove(path_of("%s/bough.db-shm", home));
    remove(path_of("%s/bough.db", home));
    sqlite3 *db;
    sqlite3_open(path_of("%s/bough.db", home), &db);
    bool made = sqlite3_exec(db, first_schema, NULL, NULL, NULL) == SQLITE_OK;
    sqlite3_close(db);
    for (int i = 1; i <= 3; i++) {
        mkdir(path_of("%s/layers/%d", home, i), 0700);
        mkdir(path_of("%s/layers/%d/fs", home, i), 0755);
    }
    struct bough_store *s = open_store(home);
    check(made && s, "a store of the first schema opens");
    check(bough_store_get(s, "built", &got, &err) == 1 && strcmp(got.uuid, built) == 0 &&
              strcmp(got.parent, "00000000-0000-4000-8000-000000000001") == 0 && got.layer == 2 &&
              got.size == 50 && got.created_us == 20 && strcmp(got.command, "make") == 0 &&
              !got.config,
          "its images are all there");
    const struct bough_result *r = &got.result;
    check(r->present && r->exit_code == 2 && r->elapsed_time == 1.5 && r->user_time == 0.5 &&
              r->system_time == 0.25 && r->max_rss == 4096 && r->stdout_dropped == 9 &&
              r->stdout_size == 4 && memcmp(r->stdout_data, "a\0b\n", 4) == 0 && r->has_stderr &&
              r->stderr_size == 0,
          "with their results");
    bough_image_clear(&got);
    check(!found(s, "00000000-0000-4000-8000-000000000003") &&
              bough_store_info(s, &info, &err) == 0 && info.images == 2 && info.tags == 2 &&
              info.layers == 3,
          "what was removed stays so");
    run.cache_key = strdup("k");
    run.config = strdup("{}");
    run.result.present = true;
    check(commit_run(s, built, &run) == 0 && config_is(s, run.uuid, "{}") &&
              strcmp(cached(s, "k"), run.uuid) == 0,
          "the new columns and tables work");
    check(stage(s) == 65, "no layer id comes twice");
    bough_store_tag(s, run.uuid, "tip", &err);
    struct bough_gc out;
    check(sweep(s, NULL, NULL) == 0 && gc(s, NULL, 0, &out) == 0 && out.images == 1 &&
              out.layers == 1 && image_whole(s, 2),
          "sweep and gc know what is needed");
    bough_image_clear(&run);
    bough_store_close(s);
    check(integrity_good(home), "the database is sound");
    s = open_store(home);
    check(s && found(s, "tip") && found(s, "base"), "and opens again");
    bough_store_close(s);
}

/* ---- several processes, kills, threads ---- */

static unsigned random_below(unsigned *seed, unsigned limit)
{
    return (unsigned)rand_r(seed) % limit;
}

/* One writer: grows a chain of its own, tags, merges, collects. Never returns; `rounds` 0: for
 * ever. Exit status 0 when nothing failed. */
static void writer(const char *home, int number, int rounds)
{
    struct bough_store *s = bough_store_open(home, "trusted", &err);
    if (!s || sweep(s, NULL, NULL)) {
        fprintf(stderr, "# writer %d: %s\n", number, err.msg);
        _exit(1);
    }
    unsigned seed = (unsigned)getpid();
    struct bough_image tip, next;
    bool good = bough_store_get(s, "base", &tip, &err) == 1;
    for (int i = 0; good && (!rounds || i < rounds); i++) {
        char tag[32];
        snprintf(tag, sizeof tag, "w%d-%d", number, i);
        good = add_image(s, &tip, i % 10 == 0 ? tag : NULL, &next) == 0;
        if (!good)
            break;
        if (random_below(&seed, 5) == 0) { /* a branch that is thrown away */
            bough_image_clear(&next);
        } else {
            bough_image_clear(&tip);
            tip = next;
        }
        const char *keep[] = {tip.uuid};
        switch (random_below(&seed, 20)) {
        case 0:
            good = gc(s, keep, 1, NULL) == 0;
            break;
        case 1:
            good = sweep(s, NULL, NULL) == 0;
            break;
        case 2:
            good = bough_store_checkpoint(s, &err) == 0;
            break;
        case 3:
        case 4:
            good = merge_all(s, tip.layer, NULL) >= 0;
            break;
        default:
            break;
        }
        good = good && found(s, tip.uuid) && image_whole(s, tip.layer);
    }
    if (!good)
        fprintf(stderr, "# writer %d: %s\n", number, err.msg);
    bough_image_clear(&tip);
    bough_store_close(s);
    _exit(good ? 0 : 1);
}

static bool all_whole(struct bough_store *s, long *count)
{
    struct bough_image *list;
    *count = bough_store_list(s, &(struct bough_filter){.brief = true}, &list, &err);
    bool whole = *count >= 0;
    for (long i = 0; i < *count; i++) {
        whole = whole && image_whole(s, list[i].layer) &&
                (!list[i].parent[0] || found(s, list[i].parent));
        bough_image_clear(&list[i]);
    }
    free(list);
    return whole;
}

static void make_base(const char *home)
{
    struct bough_store *s = open_store(home);
    struct bough_image base;
    add_image(s, NULL, "base", &base);
    bough_image_clear(&base);
    bough_store_close(s);
}

static void test_hammer(void)
{
    enum { WRITERS = 3, ROUNDS = 200 };
    const char *home = fresh_home();
    pid_t pids[WRITERS];
    make_base(home);
    for (int i = 0; i < WRITERS; i++)
        if ((pids[i] = fork()) == 0)
            writer(home, i, ROUNDS);
    bool good = true;
    for (int i = 0; i < WRITERS; i++) {
        int status;
        waitpid(pids[i], &status, 0);
        good = good && status == 0;
    }
    check(good, "three processes commit, tag, merge, sweep and collect in one store");
    struct bough_store *s = open_store(home);
    bool all = true;
    for (int i = 0; i < WRITERS; i++)
        for (int j = 0; j < ROUNDS; j += 10)
            all = all && found(s, path_of("w%d-%d", i, j));
    long count;
    check(all, "no tagged image is lost");
    bool whole = all_whole(s, &count);
    check(whole, "every image is whole (%ld)", count);
    struct bough_store_info info;
    bough_store_info(s, &info, &err);
    check(count_entries(path_of("%s/layers", home)) == info.layers + info.stand_ins,
          "directories and rows agree");
    check(integrity_good(home), "the database is sound");
    bough_store_close(s);
}

static void test_kills(void)
{
    enum { KILLS = 50 };
    const char *home = fresh_home();
    unsigned seed = 42;
    bool whole = true, agree = true, sound = true;
    long count = 0, swept = 0, all_orphans = 0;
    make_base(home);
    for (int i = 0; i < KILLS && whole && agree && sound; i++) {
        pid_t pid = fork();
        if (pid == 0)
            writer(home, i, 0);
        usleep(500 + random_below(&seed, 30000));
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        struct bough_store *s = open_store(home);
        if (!s)
            return;
        whole = all_whole(s, &count);
        long dead = 0, orphans = 0;
        whole = whole && sweep(s, &dead, &orphans) == 0 && all_whole(s, &count);
        swept += dead;
        all_orphans += orphans;
        struct bough_store_info info;
        bough_store_info(s, &info, &err);
        agree = count_entries(path_of("%s/layers", home)) == info.layers + info.stand_ins &&
                count_entries(path_of("%s/tmp", home)) == 1;
        sound = i % 10 || integrity_good(home);
        bough_store_close(s);
    }
    check(whole, "kill -9 at %d instants: every listed image is whole (%ld)", KILLS, count);
    check(agree, "the sweep leaves no directory without a row (%ld owners, %ld orphans)", swept,
          all_orphans);
    check(sound && integrity_good(home), "the database is sound");
}

enum { THREADS = 4, THREAD_ROUNDS = 150 };

struct threads {
    struct bough_store *store;
    pthread_mutex_t mutex;
    char tips[THREADS * 2][BOUGH_UUID_SIZE]; /* of each thread: where it is, what it is making */
    bool failed;
};

struct thread {
    struct threads *all;
    pthread_t id;
    int number;
};

static void thread_tip(struct thread *self, int which, const char *uuid)
{
    pthread_mutex_lock(&self->all->mutex);
    strcpy(self->all->tips[self->number * 2 + which], uuid);
    pthread_mutex_unlock(&self->all->mutex);
}

/* gc_mark first, then the list: what the others finish in between must not go. */
static int thread_gc(struct threads *all)
{
    char copies[THREADS * 2][BOUGH_UUID_SIZE];
    const char *keep[THREADS * 2];
    bough_store_gc_mark(all->store);
    pthread_mutex_lock(&all->mutex);
    memcpy(copies, all->tips, sizeof copies);
    pthread_mutex_unlock(&all->mutex);
    for (int i = 0; i < THREADS * 2; i++)
        keep[i] = copies[i];
    struct bough_gc out;
    int result = bough_store_gc(all->store, keep, THREADS * 2, false, &out, NULL);
    free(out.trash);
    return result;
}

static void *thread_main(void *arg)
{
    struct thread *self = arg;
    struct threads *all = self->all;
    struct bough_store *s = all->store;
    struct bough_image tip, next;
    struct bough_err local = {0};
    bool good = bough_store_get(s, "base", &tip, &local) == 1;
    for (int i = 0; good && i < THREAD_ROUNDS; i++) {
        next = (struct bough_image){.origin = "run"};
        bough_uuid_make(next.uuid);
        strcpy(next.parent, tip.uuid);
        thread_tip(self, 1, next.uuid);
        next.layer = stage(s);
        good = next.layer > 0 &&
               bough_store_commit(s, &next, next.layer, tip.layer, 100, 1, &local) == 0;
        if (!good)
            break;
        thread_tip(self, 0, next.uuid);
        bough_image_clear(&tip);
        tip = next;
        if (self->number == 0 && i % 10 == 0)
            good = thread_gc(all) == 0;
        if (self->number == 1 && i % 10 == 0)
            good = bough_store_checkpoint(s, NULL) == 0;
        if (self->number != 0 && i % 20 == 0)
            good = merge_all(s, tip.layer, NULL) >= 0;
        good = good && image_whole(s, tip.layer);
    }
    bough_image_clear(&tip);
    if (!good) {
        printf("# thread %d: %s\n", self->number, local.msg);
        pthread_mutex_lock(&all->mutex);
        all->failed = true;
        pthread_mutex_unlock(&all->mutex);
    }
    return NULL;
}

static void test_threads(void)
{
    struct threads all = {.store = open_store(fresh_home()), .mutex = PTHREAD_MUTEX_INITIALIZER};
    struct thread threads[THREADS];
    struct bough_image base;
    add_image(all.store, NULL, "base", &base);
    bough_image_clear(&base);
    for (int i = 0; i < THREADS; i++) {
        threads[i] = (struct thread){.all = &all, .number = i};
        pthread_create(&threads[i].id, NULL, thread_main, &threads[i]);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i].id, NULL);
    check(!all.failed, "four threads on one opening, one of them collecting");
    long count;
    bool whole = all_whole(all.store, &count);
    check(whole && count >= 1 + THREADS && integrity_good(bough_store_home(all.store)),
          "nothing is lost (%ld)", count);
    bough_store_close(all.store);
}

/* ---- what can be wrong with a home ---- */

static bool refused(const char *home, const char *xattr, enum bough_err_kind kind, const char *text)
{
    err = (struct bough_err){0};
    struct bough_store *s = bough_store_open(home, xattr, &err);
    bool good = !s && err.kind == kind && strstr(err.msg, text) && strstr(err.msg, home) &&
                !strchr(err.msg, '\n');
    bough_store_close(s);
    return good;
}

static void test_homes(void)
{
    const char *home = fresh_home();
    make_base(home);
    check(refused(home, "user", BOUGH_ERR_denied, "made by root"), "%s", err.msg);
    check(refused(home, "wrong", BOUGH_ERR_invalid, "no such kind"), "%s", err.msg);
    check(bough_store_open("", "user", &err) == NULL && err.kind == BOUGH_ERR_invalid, "%s",
          err.msg);
    write_file(path_of("%s/a-file", scratch), "x");
    check(refused(path_of("%s/a-file/store", scratch), "user", BOUGH_ERR_invalid,
                  "a-file is not a directory"),
          "%s", err.msg);
    const char *full = path_of("%s/not-empty", scratch);
    mkdir(full, 0755);
    write_file(path_of("%s/letter.txt", full), "x");
    check(refused(full, "user", BOUGH_ERR_invalid, "letter.txt"), "%s", err.msg);
    check(!exists(path_of("%s/tmp", full)), "and nothing is made in it");
    struct bough_store *s = bough_store_open(path_of("%s/deep/er/store/", scratch), "user", &err);
    check(s != NULL, "missing parents are made, a slash at the end is fine");
    bough_store_close(s);
    check(refused(path_of("%s/deep/er/store", scratch), "trusted", BOUGH_ERR_denied,
                  "an ordinary user"),
          "%s", err.msg);

    char *kept = strdup(home);
    write_file(path_of("%s/format", kept), "bough store 2\nxattr trusted\n");
    check(refused(kept, "trusted", BOUGH_ERR_unsupported, "newer"), "%s", err.msg);
    write_file(path_of("%s/format", kept), "what?\n");
    check(refused(kept, "trusted", BOUGH_ERR_corrupt, "format"), "%s", err.msg);
    write_file(path_of("%s/format", kept), "bough store 1\nxattr trusted\n");
    chmod(kept, 0777);
    check(refused(kept, "trusted", BOUGH_ERR_denied, "others may write"), "%s", err.msg);
    chmod(kept, 0700);
    chmod(path_of("%s/deep", scratch), 01777);
    check(refused(path_of("%s/deep", scratch), "user", BOUGH_ERR_invalid, "shares"), "%s", err.msg);

    char *database = strdup(path_of("%s/bough.db", kept));
    char *aside = strdup(path_of("%s/aside", scratch));
    rename(database, aside);
    check(refused(kept, "trusted", BOUGH_ERR_corrupt, "yet there are layers"), "%s", err.msg);
    write_file(database, "this is certainly not an SQLite database, whatever else it may be....");
    check(refused(kept, "trusted", BOUGH_ERR_corrupt, "damaged"), "%s", err.msg);
    rename(aside, database);
    sqlite3 *db;
    sqlite3_open(database, &db);
    sqlite3_exec(db, "PRAGMA user_version=99", NULL, NULL, NULL);
    sqlite3_close(db);
    check(refused(kept, "trusted", BOUGH_ERR_unsupported, "schema 99"), "%s", err.msg);
    check(count_entries(path_of("%s/tmp", kept)) == 0, "a refused opening leaves nothing in tmp");
    free(database);
    free(aside);
    free(kept);
}

static int child_result(int (*fn)(const char *), const char *arg)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        int result = fn(arg);
        fflush(stdout);
        _exit(result);
    }
    int status;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

/* The children below print their own lines: the parent carries the numbers on. */
static void run_as_child(int (*fn)(const char *), const char *arg, int tests)
{
    int failed = child_result(fn, arg);
    test_count += tests;
    test_failed += failed;
}

static int child_other_user(const char *home)
{
    test_failed = 0;
    if (setgid(65534) || setuid(65534))
        return 1;
    check(refused(home, "user", BOUGH_ERR_denied, "belongs to uid 0"), "%s", err.msg);
    check(refused("/root/some/store", "user", BOUGH_ERR_denied, "/root") ||
              refused("/proc/some/store", "user", BOUGH_ERR_not_found, "/proc/some"),
          "%s", err.msg);
    return test_failed;
}

static int child_read_only(const char *home)
{
    test_failed = 0;
    if (unshare(CLONE_NEWNS) || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) ||
        mount(home, home, "none", MS_BIND, NULL) ||
        mount("none", home, "none", MS_REMOUNT | MS_BIND | MS_RDONLY, NULL)) {
        skip("a read-only store", "no mounts here");
        skip("a store to be made on a read-only file system", "no mounts here");
        return test_failed;
    }
    check(refused(home, "trusted", BOUGH_ERR_denied, "Read-only file system"), "%s", err.msg);
    check(refused(path_of("%s/new/store", home), "trusted", BOUGH_ERR_denied, "Read-only"), "%s",
          err.msg);
    return test_failed;
}

static int child_full_disk(const char *home)
{
    test_failed = 0;
    if (unshare(CLONE_NEWNS) || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) ||
        mkdir(home, 0700) || mount("none", home, "tmpfs", 0, "size=3m,mode=700")) {
        for (int i = 0; i < 6; i++)
            skip("a full disk", "no mounts here");
        return test_failed;
    }
    struct bough_store *s = open_store(home);
    struct bough_image base, next;
    add_image(s, NULL, "base", &base);
    int commits = 0;
    err = (struct bough_err){0};
    for (;; commits++) {
        next = (struct bough_image){.origin = "run"};
        strcpy(next.parent, base.uuid);
        next.layer = stage(s);
        next.result = (struct bough_result){.present = true, .has_stdout = true};
        next.result.stdout_data = calloc(1, 100000);
        next.result.stdout_size = 100000;
        int result =
            next.layer < 0 ? -1 : bough_store_commit(s, &next, next.layer, base.layer, 1, 1, &err);
        int64_t layer = next.layer;
        bough_image_clear(&next);
        if (result) {
            check(commits > 2 && err.kind == BOUGH_ERR_resource && strstr(err.msg, home) &&
                      strstr(err.msg, "no space left"),
                  "%s", err.msg);
            check(layer < 0 || !layer_there(s, layer), "the layer is not sealed");
            break;
        }
    }
    long count;
    bool whole = all_whole(s, &count);
    check(whole && count == commits + 1, "every image is whole (%ld)", count);
    bough_store_close(s);
    check(integrity_good(home), "the database is sound");
    int fd = open(path_of("%s/padding", home), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    static const char zeros[4096];
    while (write(fd, zeros, sizeof zeros) > 0)
        continue;
    close(fd);
    check(refused(path_of("%s/new", home), "trusted", BOUGH_ERR_resource, "no space left"), "%s",
          err.msg);
    mount("none", home, "tmpfs", MS_REMOUNT, "size=8m,mode=700");
    s = open_store(home);
    whole = s && all_whole(s, &count);
    check(whole && count == commits + 1, "with room again all is there");
    bough_store_close(s);
    bough_image_clear(&base);
    return test_failed;
}

static void test_disks(void)
{
    if (geteuid() != 0) {
        skip("unwritable, read-only and full stores", "needs root");
        return;
    }
    char *home = strdup(fresh_home());
    chmod(scratch, 0755);
    make_base(home);
    run_as_child(child_other_user, home, 2);
    run_as_child(child_read_only, home, 2);
    free(home);
    home = strdup(fresh_home());
    run_as_child(child_full_disk, home, 6);
    free(home);
}

/* ---- measuring ---- */

static int compare_ns(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void bench(bool background)
{
    enum { COUNT = 5000, MIDDLE = COUNT / 2, LATE = COUNT * 99 / 100 };
    static int64_t times[COUNT];
    struct bough_store *s = open_store(fresh_home());
    struct bough_image base, next;
    int64_t total = 0;
    add_image(s, NULL, "base", &base);
    for (int i = 0; i < COUNT; i++) {
        next = (struct bough_image){.origin = "run", .command = strdup("true")};
        strcpy(next.parent, base.uuid);
        next.layer = stage(s);
        next.result =
            (struct bough_result){.present = true, .has_stdout = true, .has_stderr = true};
        int64_t start = bough_now_ns();
        int result = bough_store_commit(s, &next, next.layer, base.layer, 100, 1, &err);
        times[i] = bough_now_ns() - start;
        total += times[i];
        if (result)
            printf("# %s\n", err.msg);
        bough_image_clear(&next);
        if (background && i % 50 == 0)
            bough_store_checkpoint(s, &err);
    }
    qsort(times, COUNT, sizeof *times, compare_ns);
    printf("# commit, checkpoints %s: mean %.1f us, median %.1f, 99%% %.1f, worst %.1f\n",
           background ? "apart" : "inside", (double)total / COUNT / 1e3,
           (double)times[MIDDLE] / 1e3, (double)times[LATE] / 1e3, (double)times[COUNT - 1] / 1e3);
    int64_t start = bough_now_ns();
    for (int i = 0; i < COUNT; i++)
        found(s, base.uuid);
    printf("# find: %.1f us\n", (double)(bough_now_ns() - start) / COUNT / 1e3);
    start = bough_now_ns();
    gc(s, NULL, 0, NULL);
    printf("# gc of %d images: %.1f ms with the removal\n", COUNT,
           (double)(bough_now_ns() - start) / 1e6);
    char *home = strdup(bough_store_home(s));
    start = bough_now_ns();
    bough_store_close(s);
    int64_t middle = bough_now_ns();
    s = open_store(home);
    printf("# close %.1f ms, open %.1f ms\n", (double)(middle - start) / 1e6,
           (double)(bough_now_ns() - middle) / 1e6);
    bough_store_close(s);
    free(home);
    bough_image_clear(&base);
}

int main(int argc, char **argv)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(scratch, sizeof scratch, "%s/bough-store-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(scratch)) {
        printf("Bail out! cannot make %s\n", scratch);
        return 1;
    }
    pid_t pid = getpid();
    if (argc > 1 && strcmp(argv[1], "bench") == 0) {
        bench(false);
        bench(true);
    } else {
        test_uuid();
        test_images();
        test_tags();
        test_list();
        test_ids();
        test_descriptors();
        test_chain();
        test_merges();
        test_gc();
        test_leases();
        test_sweep();
        test_layers();
        test_layer_merges();
        test_configs();
        test_cache();
        test_upgrade();
        test_hammer();
        test_kills();
        test_threads();
        test_homes();
        test_disks();
        printf("1..%d\n", test_count);
    }
    if (getpid() == pid)
        remove_tree(scratch);
    return test_failed ? 1 : 0;
}
