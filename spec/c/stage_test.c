#define _GNU_SOURCE
/* stage_test.c - src/stage.h and src/local/blob.h, tested for real, the keeper's part played by a few calls here.
 * Prints TAP; works in a directory of its own under $TMPDIR and removes it. With "bench" DIRECTORY it stages that
 * instead and says how long it took. */
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../../src/local/blob.h"
#include "../../src/local/store.h"
#include "../../src/stage.h"
#include "../../src/sys.h"

static int test_count, test_failed;
static char scratch[256], home[300];
static struct bough_store *store;
static struct bough_err err;

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

/* ---- files ---- */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

__attribute__((format(printf, 1, 2))) static const char *path_of(const char *fmt, ...)
{
    static char paths[8][600];
    static unsigned next;
    char *path = paths[next++ % 8];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(path, sizeof paths[0], fmt, ap);
    va_end(ap);
    return path;
}

static const char *local(const char *name)
{
    return path_of("%s/local/%s", scratch, name);
}

static const char *write_local(const char *name, const char *text)
{
    const char *path = local(name);
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file)) {
        printf("Bail out! cannot write %s\n", path);
        exit(1);
    }
    return path;
}

/* As if it had been written a while ago: only then is its digest remembered. */
static void settle(void)
{
    usleep(2100000);
}

static int count_staged(void)
{
    DIR *dir = opendir(path_of("%s/tmp/%s", home, bough_store_owner(store)));
    int count = 0;
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        count += entry->d_name[0] == 'b';
    if (dir)
        closedir(dir);
    return count;
}

static bool holds(int dir, const char *name, const char *text)
{
    char data[256];
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, data, sizeof data);
    bough_fd_close(&fd);
    return size == (ssize_t)strlen(text) && memcmp(data, text, (size_t)size) == 0;
}

/* ---- stages ---- */

static struct bough_stage new_stage(size_t room)
{
    return (struct bough_stage){.items = calloc(room + 1, sizeof(struct bough_stage_item)),
                                .home = home,
                                .owner = bough_store_owner(store),
                                .blobs = -1,
                                .lock = -1};
}

static struct bough_stage_item *add(struct bough_stage *stage, const char *path)
{
    struct bough_stage_item *item = &stage->items[stage->count++];
    *item = (struct bough_stage_item){.path = strdup(path), .mode = 0644, .mtime_ns = INT64_MIN};
    return item;
}

static struct bough_stage_item *add_data(struct bough_stage *stage, const char *path,
                                         const char *data)
{
    struct bough_stage_item *item = add(stage, path);
    item->data = strdup(data);
    item->data_size = strlen(data);
    return item;
}

static struct bough_stage_item *add_source(struct bough_stage *stage, const char *path,
                                           const char *source)
{
    struct bough_stage_item *item = add(stage, path);
    item->source = strdup(source);
    return item;
}

/* What a keeper's worker does with each file: into the pool, and linked where it belongs. */
static bool put_all(struct bough_stage *stage)
{
    mkdir(path_of("%s/layer", scratch), 0755);
    for (size_t i = 0; i < stage->count; i++) {
        const struct bough_stage_item *item = &stage->items[i];
        if (item->kind != BOUGH_PUT_FILE)
            continue;
        struct timespec time = {item->final_mtime_ns / 1000000000,
                                item->final_mtime_ns % 1000000000};
        if (item->staged[0] &&
            ((geteuid() == 0 &&
              fchownat(stage->tmp, item->staged, (uid_t)item->uid, (gid_t)item->gid, 0)) ||
             fchmodat(stage->tmp, item->staged, (mode_t)item->final_mode, 0) ||
             utimensat(stage->tmp, item->staged, (struct timespec[]){time, time}, 0) ||
             renameat(stage->tmp, item->staged, stage->blobs, item->blob)))
            return false;
        const char *to = path_of("%s/layer/%s", scratch, strrchr(item->path, '/') + 1);
        unlink(to);
        if (linkat(stage->blobs, item->blob, AT_FDCWD, to, 0))
            return false;
    }
    return true;
}

static bool put_is(const char *name, const char *text, mode_t mode)
{
    struct stat st;
    const char *path = path_of("%s/layer/%s", scratch, name);
    return holds(AT_FDCWD, path, text) && stat(path, &st) == 0 && (st.st_mode & 07777) == mode;
}

/* One item from a local path: the error's text, "" when there was none. */
static const char *refusal(const char *source, enum bough_err_kind kind)
{
    static char text[480];
    struct bough_stage stage = new_stage(1);
    add_source(&stage, "/x", source);
    int result = bough_stage_work(&stage, &err);
    snprintf(text, sizeof text, "%s", result && err.kind == kind ? err.msg : "");
    bough_stage_free(&stage);
    return text;
}

/* ---- tests ---- */

static void test_first(void)
{
    struct bough_stage stage = new_stage(8);
    write_local("script", "#!/bin/sh\n");
    chmod(local("script"), 0750);
    add_data(&stage, "/b/same", "same bytes");
    add_data(&stage, "/a/same", "same bytes");
    add_data(&stage, "/empty", "");
    add_data(&stage, "/old", "x")->mtime_ns = INT64_C(1000000000123456789);
    add_source(&stage, "/script", local("script"))->mode = -1;
    add_source(&stage, "/plain", local("script"));
    struct bough_stage_item *link = add(&stage, "/link"), *dir = add(&stage, "/dir");
    link->kind = BOUGH_PUT_SYMLINK;
    link->target = strdup("../else where");
    dir->kind = BOUGH_PUT_DIR;
    dir->mode = 01777;
    check(bough_stage_work(&stage, &err) == 0, "stages files, a link and a directory");
    bool sorted = true;
    for (size_t i = 1; i < stage.count; i++)
        sorted = sorted && strcmp(stage.items[i - 1].path, stage.items[i].path) < 0;
    check(sorted && stage.count == 8, "in the order of their paths");
    check(strcmp(stage.items[0].blob, stage.items[1].blob) == 0 && stage.copied_files == 5 &&
              stage.copied_bytes == 10 + 0 + 1 + 10 + 10,
          "the same bytes are copied once");
    check(atomic_load(&stage.done_bytes) == 41 && atomic_load(&stage.total_bytes) == 41,
          "progress ends where it should");
    struct stat st;
    stat(local("script"), &st);
    check(put_all(&stage) && put_is("same", "same bytes", 0644) && put_is("empty", "", 0644) &&
              put_is("script", "#!/bin/sh\n", 0750) && put_is("plain", "#!/bin/sh\n", 0644),
          "contents and modes are right");
    struct stat put;
    check(stat(path_of("%s/layer/plain", scratch), &put) == 0 &&
              put.st_mtim.tv_sec == st.st_mtim.tv_sec &&
              put.st_mtim.tv_nsec == st.st_mtim.tv_nsec &&
              stat(path_of("%s/layer/old", scratch), &put) == 0 &&
              put.st_mtim.tv_sec == 1000000000 && put.st_mtim.tv_nsec == 123456789,
          "so are times: the file's own, or what was asked for");
    check(strcmp(stage.items[2].path, "/dir") == 0 && stage.items[2].final_mode == 01777,
          "a directory keeps its bits");
    struct bough_wbuf buf = {0};
    bough_stage_put(&stage, &buf);
    struct bough_rbuf in = {.at = buf.data, .end = buf.data + buf.size};
    struct bough_put_item item = {0};
    bool good = bough_get_i64(&in) == 8;
    for (int i = 0; good && i < 8; i++)
        good = bough_put_item_get(&in, &item, &err) == 0 &&
               strcmp(item.path, stage.items[i].path) == 0 &&
               item.mtime_ns == stage.items[i].final_mtime_ns &&
               strcmp(item.blob, stage.items[i].blob) == 0;
    check(good && in.at == in.end, "a PUT carries all of it");
    bough_wbuf_free(&buf);
    bough_stage_free(&stage);
    check(count_staged() == 0, "nothing is left in tmp");
}

static void test_again(void)
{
    struct bough_stage stage = new_stage(4);
    stage.hashes = bough_hashes_new();
    write_local("first", "known content");
    settle();
    add_source(&stage, "/one", local("first"));
    add_source(&stage, "/two", local("first"))->mode = 0600;
    check(bough_stage_work(&stage, &err) == 0 && stage.copied_files == 2 && put_all(&stage),
          "a file with two modes is two files");
    bough_stage_free(&stage);

    struct bough_stage again = new_stage(4);
    again.hashes = stage.hashes;
    add_source(&again, "/three", local("first"));
    check(bough_stage_work(&again, &err) == 0 && again.copied_files == 0 &&
              again.copied_bytes == 0 && count_staged() == 0 && put_all(&again) &&
              put_is("three", "known content", 0644),
          "what the pool has is not copied");
    bough_stage_free(&again);

    /* The digest is known, its content gone from the pool. */
    struct bough_stage lost = new_stage(4);
    lost.hashes = stage.hashes;
    add_source(&lost, "/three", local("first"));
    add_source(&lost, "/four", local("first"))->mtime_ns = 5;
    check(bough_stage_work(&lost, &err) == 0 && lost.copied_files == 1 && put_all(&lost) &&
              put_is("four", "known content", 0644),
          "a known digest does not stand for a file that the pool lacks");
    bough_stage_free(&lost);

    write_local("first", "other content");
    struct bough_stage other = new_stage(4);
    other.hashes = stage.hashes;
    add_source(&other, "/three", local("first"));
    check(bough_stage_work(&other, &err) == 0 && other.copied_files == 1 && put_all(&other) &&
              put_is("three", "other content", 0644),
          "a file that has changed is read again");
    bough_stage_free(&other);
    bough_hashes_free(stage.hashes);
}

static void test_hashes(void)
{
    struct bough_hashes *hashes = bough_hashes_new();
    char hex[BOUGH_SHA256_HEX], zeros[BOUGH_SHA256_HEX];
    struct bough_hash_key key = {.device = 1, .inode = 2, .size = 3, .mtime_ns = 4, .ctime_ns = 5};
    memset(zeros, 'a', 64);
    zeros[64] = '\0';
    check(!bough_hashes_get(hashes, &key, hex), "an empty table knows nothing");
    bough_hashes_put(hashes, &key, zeros);
    check(bough_hashes_get(hashes, &key, hex) && strcmp(hex, zeros) == 0, "a digest comes back");
    key.ctime_ns = 6;
    check(!bough_hashes_get(hashes, &key, hex), "not for another time");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    key.ctime_ns = (int64_t)now.tv_sec * 1000000000 - 500000000;
    bough_hashes_put(hashes, &key, zeros);
    check(!bough_hashes_get(hashes, &key, hex), "what has just changed is not remembered");
    key.ctime_ns = 5;
    int known = 0;
    for (int i = 0; i < 300000; i++) {
        key.inode = (uint64_t)i;
        snprintf(zeros, sizeof zeros, "%064x", i);
        bough_hashes_put(hashes, &key, zeros);
        known += bough_hashes_get(hashes, &key, hex) && strcmp(hex, zeros) == 0;
    }
    key.inode = 10;
    check(known == 300000 && !bough_hashes_get(hashes, &key, hex),
          "a full table begins anew, and what is put in is found");
    check(!bough_hashes_get(NULL, &key, hex), "no table knows nothing");
    bough_hashes_put(NULL, &key, zeros);
    bough_hashes_free(hashes);
    bough_hashes_free(NULL);
}

/* A hole, data, a hole: `size` in all. */
static void make_sparse(const char *path, off_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || pwrite(fd, "in the middle", 13, size / 2) != 13 || ftruncate(fd, size))
        printf("# cannot make %s\n", path);
    bough_fd_close(&fd);
}

static void test_large(void)
{
    enum { SIZE = 48 * 1024 * 1024 };
    struct bough_stage stage = new_stage(2), twice = new_stage(2), hash = new_stage(2);
    make_sparse(local("sparse"), SIZE);
    add_source(&stage, "/sparse", local("sparse"));
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    check(bough_stage_work(&stage, &err) == 0 && stage.copied_files == 1 &&
              stage.copied_bytes == SIZE && atomic_load(&stage.done_bytes) == SIZE,
          "stages a large file");
    getrusage(RUSAGE_SELF, &after);
    printf("# %d MB: peak grew by %ld KB\n", SIZE >> 20, after.ru_maxrss - before.ru_maxrss);
    struct stat st;
    bool put = put_all(&stage) && stat(path_of("%s/layer/sparse", scratch), &st) == 0;
    check(put && st.st_size == SIZE && st.st_blocks * 512 < 1 << 20, "its holes stay holes");
    char middle[13] = "";
    int fd = open(path_of("%s/layer/sparse", scratch), O_RDONLY | O_CLOEXEC);
    check(pread(fd, middle, 13, SIZE / 2) == 13 && memcmp(middle, "in the middle", 13) == 0,
          "and its data data");
    bough_fd_close(&fd);
    add_source(&twice, "/again", local("sparse"));
    check(bough_stage_work(&twice, &err) == 0 && twice.copied_files == 0 && count_staged() == 0 &&
              strcmp(twice.items[0].hex, stage.items[0].hex) == 0,
          "the second time nothing is kept of the copy");
    add_source(&hash, "/sparse", local("sparse"));
    check(bough_stage_hash(&hash, &err) == 0 && strcmp(hash.digest, stage.digest) == 0 &&
              hash.blobs < 0 && hash.lock < 0,
          "the hash alone opens no pool");

    /* By its digest, in another form: out of the pool, holes and all. */
    struct bough_stage form = new_stage(2);
    struct bough_stage_item *item = add(&form, "/form");
    item->digest = strdup(stage.items[0].hex);
    item->mode = 0600;
    check(bough_stage_work(&form, &err) == 0 && form.copied_files == 0 && put_all(&form) &&
              stat(path_of("%s/layer/form", scratch), &st) == 0 && st.st_size == SIZE &&
              st.st_blocks * 512 < 1 << 20 && (st.st_mode & 07777) == 0600,
          "a digest is enough for another form of it");
    bough_stage_free(&form);
    bough_stage_free(&hash);
    bough_stage_free(&twice);
    bough_stage_free(&stage);
}

struct change {
    struct bough_stage *stage;
    const char *path;
    bool cancel;
};

/* Waits until it is under way. */
static void *change_main(void *arg)
{
    struct change *change = arg;
    while (atomic_load(&change->stage->done_bytes) < 2 << 20)
        usleep(100);
    if (change->cancel) {
        atomic_store(&change->stage->cancelled, true);
    } else {
        int fd = open(change->path, O_WRONLY | O_CLOEXEC);
        (void)!pwrite(fd, "changed", 7, 0);
        bough_fd_close(&fd);
    }
    return NULL;
}

static void make_full(const char *path, int megabytes)
{
    static char data[1 << 20];
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    for (int i = 0; i < megabytes; i++)
        if (write(fd, data, sizeof data) != sizeof data)
            printf("# cannot make %s\n", path);
    bough_fd_close(&fd);
}

static int work_disturbed(bool cancel)
{
    pthread_t thread;
    struct bough_stage stage = new_stage(1);
    add_source(&stage, "/moving", local("moving"));
    struct change change = {&stage, path_of("%s", local("moving")), cancel};
    pthread_create(&thread, NULL, change_main, &change);
    int result = bough_stage_work(&stage, &err);
    pthread_join(thread, NULL);
    bough_stage_free(&stage);
    return result;
}

static void test_disturbed(void)
{
    make_full(local("moving"), 48);
    int result = 0;
    for (int i = 0; result == 0 && i < 20; i++) /* the other thread may have been late */
        result = work_disturbed(false);
    check(result == -1 && err.kind == BOUGH_ERR_state &&
              strstr(err.msg, "moving: changed while it was read"),
          "%s", err.msg);
    check(count_staged() == 0, "nothing is left of it");
    int64_t start = bough_now_ns();
    result = 0;
    for (int i = 0; result == 0 && i < 20; i++)
        result = work_disturbed(true);
    check(result == -1 && err.kind == BOUGH_ERR_cancelled && count_staged() == 0, "cancelled: %s",
          err.msg);
    printf("# after %.0f ms\n", (double)(bough_now_ns() - start) / 1e6);
    struct bough_stage stage = new_stage(1);
    add_data(&stage, "/x", "x");
    atomic_store(&stage.cancelled, true);
    check(bough_stage_work(&stage, &err) == -1 && err.kind == BOUGH_ERR_cancelled,
          "before it began: %s", err.msg);
    bough_stage_free(&stage);
}

static void test_refused(void)
{
    const char *what = refusal(local("missing"), BOUGH_ERR_not_found);
    check(strstr(what, "/missing: No such file"), "%s", what);
    mkdir(local("directory"), 0755);
    what = refusal(local("directory"), BOUGH_ERR_invalid);
    check(strstr(what, "/directory: is a directory (bough.dir"), "%s", what);
    mkfifo(local("fifo"), 0644);
    what = refusal(local("fifo"), BOUGH_ERR_invalid);
    check(strstr(what, "/fifo: is a fifo"), "%s", what);
    check(!symlink("fifo", local("to-fifo")), "a link to a fifo");
    what = refusal(local("to-fifo"), BOUGH_ERR_invalid);
    check(strstr(what, "/to-fifo: is a fifo"), "%s", what);
    what = refusal("/dev/zero", BOUGH_ERR_invalid);
    check(strstr(what, "/dev/zero: is a character device"), "%s", what);
    mknod(local("socket"), S_IFSOCK | 0644, 0);
    what = refusal(local("socket"), BOUGH_ERR_invalid);
    check(strstr(what, "/socket: is a socket"), "%s", what);
    check(!symlink("to-itself", local("to-itself")), "a link to itself");
    what = refusal(local("to-itself"), BOUGH_ERR_invalid);
    check(strstr(what, "/to-itself"), "%s", what);
    struct bough_stage stage = new_stage(200);
    for (int i = 0; i < 199; i++)
        add_source(&stage, path_of("/%d", i), i % 50 == 7 ? local("nowhere") : local("script"));
    check(bough_stage_work(&stage, &err) == -1 && strstr(err.msg, "nowhere"),
          "one bad file of many: %s", err.msg);
    check(count_staged() == 0, "is found before anything is copied");
    bough_stage_free(&stage);
    stage = new_stage(2);
    add_data(&stage, "/x", "1");
    add_data(&stage, "/x", "2");
    check(bough_stage_work(&stage, &err) == -1 && err.kind == BOUGH_ERR_invalid, "%s", err.msg);
    bough_stage_free(&stage);
    stage = new_stage(2);
    add_data(&stage, "/x", "1")->uid = INT64_C(4294967295);
    check(bough_stage_work(&stage, &err) == -1 && err.kind == BOUGH_ERR_invalid, "%s", err.msg);
    bough_stage_free(&stage);
    stage = new_stage(2);
    add(&stage, "/x")->digest = strdup("../../../etc/passwd");
    check(bough_stage_work(&stage, &err) == -1 && err.kind == BOUGH_ERR_invalid, "%s", err.msg);
    bough_stage_free(&stage);
    stage = new_stage(2);
    add(&stage, "/x")->digest = strdup(path_of("%064d", 0));
    check(bough_stage_work(&stage, &err) == -1 && err.kind == BOUGH_ERR_not_found, "%s", err.msg);
    bough_stage_free(&stage);
    /* Files that are more than their size says. */
    stage = new_stage(2);
    add_source(&stage, "/status", "/proc/self/status");
    check(bough_stage_work(&stage, &err) == 0 && stage.items[0].size > 100,
          "a file of /proc goes in as it reads");
    bough_stage_free(&stage);
}

/* The digest of a stage with one thing changed. */
static const char *digest_with(int change, char digest[BOUGH_SHA256_HEX])
{
    struct bough_stage stage = new_stage(4);
    struct bough_stage_item *file =
        add_data(&stage, change == 1 ? "/f2" : "/f", change == 2 ? "other" : "data");
    struct bough_stage_item *link = add(&stage, "/l"), *dir = add(&stage, "/d");
    file->mode = change == 3 ? 0600 : 0644;
    file->uid = change == 4;
    file->gid = change == 5;
    file->mtime_ns = change == 6 ? 5 : INT64_MIN;
    link->kind = BOUGH_PUT_SYMLINK;
    link->target = strdup(change == 7 ? "there" : "here");
    dir->kind = BOUGH_PUT_DIR;
    if (change == 8)
        stage.now_ns = 5; /* of no influence */
    strcpy(digest, bough_stage_hash(&stage, &err) == 0 ? stage.digest : "failed");
    bough_stage_free(&stage);
    return digest;
}

static void test_digest(void)
{
    char plain[BOUGH_SHA256_HEX], changed[BOUGH_SHA256_HEX];
    digest_with(0, plain);
    check(strlen(plain) == 64 && strcmp(digest_with(0, changed), plain) == 0,
          "a stage's digest is the same each time");
    check(strcmp(digest_with(8, changed), plain) == 0, "whenever it is made");
    bool differ = true;
    for (int i = 1; i <= 7; i++)
        differ = differ && strcmp(digest_with(i, changed), plain) != 0;
    check(differ, "path, content, mode, owner, group, time given and target change it");
    struct bough_stage a = new_stage(2), b = new_stage(2);
    add_data(&a, "/1", "1");
    add_data(&a, "/2", "2");
    add_data(&b, "/2", "2");
    add_source(&b, "/1", write_local("one", "1"));
    check(bough_stage_hash(&a, &err) == 0 && bough_stage_work(&b, &err) == 0 &&
              strcmp(a.digest, b.digest) == 0,
          "neither the order nor where the bytes come from does");
    check(bough_stage_work(&a, &err) == 0 && strcmp(a.digest, b.digest) == 0 && put_all(&a) &&
              put_is("1", "1", 0644),
          "a stage can be hashed first and worked on later");
    bough_stage_free(&a);
    bough_stage_free(&b);
}

static int upload(const char *text, char hex[BOUGH_SHA256_HEX])
{
    struct bough_stage stage = new_stage(1);
    add_data(&stage, "/upload", text);
    int result = bough_stage_upload(&stage, &stage.items[0], &err);
    strcpy(hex, stage.items[0].hex);
    bough_stage_free(&stage);
    return result;
}

static int64_t sweep(bool dry)
{
    int64_t count = -1, bytes = -1;
    int blobs = bough_blobs_open(home, &err);
    if (bough_blobs_sweep(blobs, dry, &count, &bytes, &err))
        count = -1;
    close(blobs);
    return count;
}

static void test_uploads(void)
{
    char hex[BOUGH_SHA256_HEX], name[BOUGH_BLOB_NAME];
    int blobs = bough_blobs_open(home, &err);
    check(upload("an upload", hex) == 1 && bough_blob_find(blobs, hex, name, &err) == 1 &&
              holds(blobs, name, "an upload") && count_staged() == 0,
          "an upload is in the pool");
    check(upload("an upload", hex) == 0, "and there already when it comes again");
    struct bough_stage stage = new_stage(2);
    add(&stage, "/by-digest")->digest = strdup(hex);
    check(bough_stage_work(&stage, &err) == 0 && stage.copied_files == 0 && put_all(&stage) &&
              put_is("by-digest", "an upload", 0644),
          "a file can be made of it");
    struct bough_stage_item known = {.digest = hex}, unknown = {.digest = (char *)name};
    check(bough_stage_upload(&stage, &known, &err) == 0, "its digest alone is found");
    memset(name, '0', 64);
    name[64] = '\0';
    check(bough_stage_upload(&stage, &unknown, &err) == -1 && err.kind == BOUGH_ERR_not_found, "%s",
          err.msg);
    bough_stage_free(&stage);

    stage = new_stage(2);
    add_data(&stage, "/pooled", "only pooled");
    check(bough_stage_work(&stage, &err) == 0 && put_all(&stage) && upload("only pooled", hex) == 0,
          "what layers hold need not be uploaded");
    bough_blob_upload_name(name, hex);
    check(bough_blob_has(blobs, name), "but is kept as if it were");
    bough_stage_free(&stage);

    make_sparse(local("big-upload"), 20 << 20);
    stage = new_stage(2);
    struct bough_stage_item *item = add_source(&stage, "/upload", local("big-upload"));
    struct stat st;
    check(bough_stage_upload(&stage, item, &err) == 1 && item->size == 20 << 20 &&
              bough_blob_find(blobs, item->hex, name, &err) == 1 &&
              fstatat(blobs, name, &st, 0) == 0 && st.st_size == 20 << 20 &&
              st.st_blocks * 512 < 1 << 20 && atomic_load(&stage.done_bytes) == 20 << 20,
          "a large one keeps its holes");
    check(bough_stage_upload(&stage, item, &err) == 0 && count_staged() == 0, "and moves once");
    bough_stage_free(&stage);
    stage = new_stage(1);
    item = add_source(&stage, "/upload", local("missing"));
    check(bough_stage_upload(&stage, item, &err) == -1 && err.kind == BOUGH_ERR_not_found, "%s",
          err.msg);
    bough_stage_free(&stage);
    close(blobs);
}

static void test_sweep(void)
{
    char hex[BOUGH_SHA256_HEX], name[BOUGH_BLOB_NAME];
    int blobs = bough_blobs_open(home, &err);
    sweep(false);
    check(sweep(true) == 0 && put_is("by-digest", "an upload", 0644),
          "a sweep leaves layers alone");
    struct bough_stage stage = new_stage(2);
    add_data(&stage, "/short-lived", "rubbish soon")->mtime_ns = 7;
    check(bough_stage_work(&stage, &err) == 0 && put_all(&stage), "one more file");
    unlink(path_of("%s/layer/short-lived", scratch));
    strcpy(name, stage.items[0].blob);
    check(sweep(false) == 0 && bough_blob_has(blobs, name), "while somebody stages, nothing goes");
    bough_stage_free(&stage);
    check(sweep(true) == 1 && bough_blob_has(blobs, name), "a dry sweep counts what has no link");
    check(sweep(false) == 1 && !bough_blob_has(blobs, name) && sweep(false) == 0,
          "a sweep removes it, once");
    check(upload("kept a while", hex) == 1 && sweep(false) == 0 && upload("kept a while", hex) == 0,
          "an upload without a link stays");
    bough_blob_upload_name(name, hex);

    /* A pooled file that was uploaded, too. */
    stage = new_stage(2);
    add_data(&stage, "/also", "both")->mtime_ns = 7;
    check(bough_stage_work(&stage, &err) == 0 && put_all(&stage) && upload("both", hex) == 0,
          "a file of both kinds");
    unlink(path_of("%s/layer/also", scratch));
    bough_stage_free(&stage);
    check(sweep(false) == 0 && bough_blob_find(blobs, hex, name, &err) == 1 &&
              holds(blobs, name, "both"),
          "stays as long as an upload does");
    FILE *strange = fopen(path_of("%s/blobs/ab/something else", home), "w");
    fclose(strange);
    check(sweep(false) == 0 && access(path_of("%s/blobs/ab/something else", home), F_OK) == 0,
          "what has another kind of name is not touched");
    pid_t pid = fork();
    if (pid == 0) {
        int lock = open(path_of("%s/blobs/lock", home), O_RDWR | O_CLOEXEC);
        flock(lock, LOCK_EX);
        usleep(300000);
        _exit(0);
    }
    usleep(100000);
    int64_t start = bough_now_ns();
    int shared = bough_blobs_lock(blobs, &err);
    check(shared >= 0 && bough_now_ns() - start > 100000000, "whoever stages waits for a sweep");
    bough_fd_close(&shared);
    waitpid(pid, NULL, 0);
    close(blobs);
}

/* Where there are no files without a name, or an owner that is not ours to give. */
static void test_staged(void)
{
    struct bough_stage stage = new_stage(200);
    char text[32];
    for (int i = 0; i < 200; i++) {
        snprintf(text, sizeof text, "staged %d", i % 50);
        add_data(&stage, path_of("/%03d", i), text)->mtime_ns = 11;
    }
    /* An open descriptor for tmp says that it is ready, and direct stays false. */
    stage.blobs = bough_blobs_open(home, &err);
    stage.lock = bough_blobs_lock(stage.blobs, &err);
    int fd = open(path_of("%s/tmp/%s", home, bough_store_owner(store)), O_RDONLY | O_CLOEXEC);
    stage.tmp = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    close(fd);
    check(bough_stage_work(&stage, &err) == 0 && stage.copied_files == 50 && count_staged() == 50,
          "stages in tmp, each content once");
    bool first = true;
    for (size_t i = 0; i < stage.count; i++)
        first = first && (stage.items[i].staged[0] != '\0') == (i < 50);
    check(first, "at the first path that has it");
    check(put_all(&stage) && put_is("000", "staged 0", 0644) && put_is("199", "staged 49", 0644) &&
              count_staged() == 0,
          "from where it goes into the pool");
    bough_stage_free(&stage);
    stage = new_stage(2);
    add_data(&stage, "/x", "left behind")->mtime_ns = 12;
    stage.tmp = open(path_of("%s/tmp/%s", home, bough_store_owner(store)), O_RDONLY | O_CLOEXEC);
    check(bough_stage_work(&stage, &err) == 0 && count_staged() == 1, "one more");
    bough_stage_free(&stage);
    check(count_staged() == 0, "what nobody took is removed");
    if (geteuid() == 0)
        return;
    stage = new_stage(2);
    add_data(&stage, "/x", "another's")->uid = 1;
    check(bough_stage_work(&stage, &err) == 0 && count_staged() == 1,
          "an owner that is not ours to give is left to the keeper");
    bough_stage_free(&stage);
}

/* ---- measuring ---- */

static struct bough_stage bench_stage;
static size_t bench_room;

static int bench_add(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)ftw;
    if (bench_stage.count + 1 >= bench_room) {
        bench_room = bench_room ? bench_room * 2 : 1024;
        bench_stage.items = reallocarray(bench_stage.items, bench_room, sizeof *bench_stage.items);
        if (!bench_stage.items)
            return -1;
    }
    struct bough_stage_item *item = add(&bench_stage, path);
    item->kind = type == FTW_D ? BOUGH_PUT_DIR : BOUGH_PUT_FILE;
    item->mode = -1;
    item->source = strdup(path);
    return 0;
}

static void bench(const char *tree)
{
    struct bough_hashes *hashes = bough_hashes_new();
    for (int i = 0; i < 2; i++) {
        bench_room = 0;
        bench_stage = new_stage(0);
        bench_stage.hashes = hashes;
        nftw(tree, bench_add, 16, FTW_PHYS);
        int64_t start = bough_now_ns();
        int result = bough_stage_work(&bench_stage, &err);
        printf("# %s: %zu items, %lld files copied in %.1f ms%s%s\n", i ? "again" : "first",
               bench_stage.count, (long long)bench_stage.copied_files,
               (double)(bough_now_ns() - start) / 1e6, result ? ": " : "", result ? err.msg : "");
        put_all(&bench_stage);
        bough_stage_free(&bench_stage);
    }
    bough_hashes_free(hashes);
}

int main(int argc, char **argv)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(scratch, sizeof scratch, "%s/bough-stage-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(scratch)) {
        printf("Bail out! cannot make %s\n", scratch);
        return 1;
    }
    snprintf(home, sizeof home, "%s/store", scratch);
    mkdir(path_of("%s/local", scratch), 0755);
    store = bough_store_open(home, geteuid() == 0 ? "trusted" : "user", &err);
    if (!store) {
        printf("Bail out! %s\n", err.msg);
    } else if (argc > 2 && strcmp(argv[1], "bench") == 0) {
        bench(argv[2]);
    } else {
        test_first();
        test_again();
        test_hashes();
        test_large();
        test_disturbed();
        test_refused();
        test_digest();
        test_uploads();
        test_sweep();
        test_staged();
        printf("1..%d\n", test_count);
    }
    bough_store_close(store);
    nftw(scratch, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return test_failed || !store ? 1 : 0;
}
