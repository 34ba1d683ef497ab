/* archive: any bytes as an archive, for libFuzzer.
 *
 * The first byte chooses the mode (tree, layer, plain), the rest is the archive, compressed or not. It is
 * unpacked in this process and without the jail, so that a way out of the directory is not caught by
 * anything but our own code; and then nothing beside the directory may have changed, and
 * all that is in it can be removed. Run it as an ordinary user.
 *
 * Works below $FUZZ_DIR, by default /dev/shm, in a directory that stays behind after a crash. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "../src/sys.h"
#include "../src/unpack/decode.h"
#include "../src/unpack/extract.h"
#include "../src/unpack/prune.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);

enum { DECODED_BYTES = 4 << 20, MAX_BYTES = 1 << 20, MAX_FILES = 300 };

static char base[256];
static int base_fd, out_fd;
static struct bough_made nothing; /* no path is in it, so that all goes */

/* What must stay as it is: beside the directory, and one level up. */
static const char *const watched[] = {".", "canary", "canary/f", "canary/sub", "canary/sub/g"};
enum { WATCHED = sizeof watched / sizeof watched[0] };
static struct stat before[WATCHED];

#define CHECK(condition, ...)                          \
    do                                                 \
        if (!(condition)) {                            \
            fprintf(stderr, "archive: in %s: ", base); \
            fprintf(stderr, __VA_ARGS__);              \
            fputc('\n', stderr);                       \
            abort();                                   \
        }                                              \
    while (0)

static void file_put(int dir, const char *name, const char *text)
{
    BOUGH_CLEANUP_FD int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), "make %s", name);
}

static void dir_put(int dir, const char *name)
{
    CHECK(mkdirat(dir, name, 0755) == 0, "make %s", name);
}

static void base_remove(void)
{
    (void)bough_prune_inside(&nothing, base_fd, "", NULL);
    (void)rmdir(base);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    const char *where = getenv("FUZZ_DIR");
    snprintf(base, sizeof base, "%s/bough-fuzz-XXXXXX", where ? where : "/dev/shm");
    CHECK(mkdtemp(base), "make it");
    base_fd = open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    dir_put(base_fd, "out");
    dir_put(base_fd, "canary");
    dir_put(base_fd, "canary/sub");
    file_put(base_fd, "canary/f", "precious");
    file_put(base_fd, "canary/sub/g", "precious");
    out_fd = openat(base_fd, "out", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct bough_err err;
    CHECK(out_fd >= 0 && bough_made_init(&nothing, &err) == 0, "open it");
    for (int i = 0; i < WATCHED; i++)
        CHECK(fstatat(base_fd, watched[i], &before[i], AT_SYMLINK_NOFOLLOW) == 0, "stat");
    signal(SIGPIPE, SIG_IGN);
    umask(0);
    return atexit(base_remove);
}

static bool is_unchanged(const char *name, const struct stat *a)
{
    struct stat b;
    return fstatat(base_fd, name, &b, AT_SYMLINK_NOFOLLOW) == 0 && a->st_ino == b.st_ino &&
           a->st_mode == b.st_mode && a->st_uid == b.st_uid && a->st_nlink == b.st_nlink &&
           a->st_size == b.st_size && a->st_mtim.tv_sec == b.st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b.st_mtim.tv_nsec && a->st_ctim.tv_sec == b.st_ctim.tv_sec &&
           a->st_ctim.tv_nsec == b.st_ctim.tv_nsec;
}

/* A tree with what layers like to trip over: links in and out of it, in circles, and full directories. */
static void lower_put(void)
{
    char canary[sizeof base + 16];
    snprintf(canary, sizeof canary, "%s/canary", base);
    dir_put(out_fd, "d");
    dir_put(out_fd, "d/sub");
    dir_put(out_fd, "e");
    file_put(out_fd, "f", "old");
    file_put(out_fd, "d/old", "old");
    file_put(out_fd, "d/sub/old", "old");
    CHECK(symlinkat("d", out_fd, "l") == 0 && symlinkat(canary, out_fd, "abs") == 0 &&
              symlinkat("../canary", out_fd, "rel") == 0 &&
              symlinkat("loop", out_fd, "loop") == 0 && symlinkat("e/none", out_fd, "gone") == 0 &&
              symlinkat("../..", out_fd, "d/up") == 0,
          "make links");
}

static void out_clear(void)
{
    struct bough_err err = {.msg = ""};
    CHECK(fchmod(out_fd, 0755) == 0, "chmod");
    CHECK(bough_prune_inside(&nothing, out_fd, "", &err) == 0, "cannot remove: %s", err.msg);
    BOUGH_CLEANUP_FD int fd = openat(base_fd, "out", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    char entries[256];
    ssize_t n = getdents64(fd, entries, sizeof entries);
    CHECK(n >= 0 && n <= 48, "something is left in it"); /* "." and ".." */
}

static int memory_file(const void *data, size_t size)
{
    int fd = memfd_create("archive", MFD_CLOEXEC);
    CHECK(fd >= 0 && write(fd, data, size) == (ssize_t)size && lseek(fd, 0, SEEK_SET) == 0,
          "memory file");
    return fd;
}

/* In place of the decoder's process. What does not fit is cut. */
static int decoded_file(struct bough_source *source)
{
    struct bough_decoded decoded = {0};
    int out = memfd_create("decoded", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(out >= 0 && ftruncate(out, DECODED_BYTES) == 0 &&
              fcntl(out, F_ADD_SEALS, F_SEAL_GROW) == 0,
          "memory file");
    (void)bough_decode(source->codec, source->buffer, source->peeked, source->fd, out, &decoded,
                       &decoded.err);
    CHECK(ftruncate(out, lseek(out, 0, SEEK_CUR)) == 0 && lseek(out, 0, SEEK_SET) == 0, "truncate");
    source->fd = out;
    source->peeked = 0;
    source->codec = BOUGH_CODEC_PLAIN;
    return out;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const enum bough_extract_mode modes[] = {BOUGH_EXTRACT_TREE, BOUGH_EXTRACT_LAYER,
                                                    BOUGH_EXTRACT_PLAIN};
    if (size < 1)
        return 0;
    struct bough_extract how = {
        .root = out_fd,
        .mode = modes[data[0] % 3],
        .squash = true,
        .max_bytes = MAX_BYTES,
        .max_files = MAX_FILES,
    };
    struct bough_err err = {.kind = BOUGH_ERR_KIND_COUNT};
    struct bough_source source = {.fd = -1, .pidfd = -1};
    BOUGH_CLEANUP_FD int in = memory_file(data + 1, size - 1);
    BOUGH_CLEANUP_FD int decoded = -1;
    if (how.mode == BOUGH_EXTRACT_LAYER)
        lower_put();
    CHECK(bough_source_open(&source, in, &err) == 0, "%s", err.msg);
    if (source.codec != BOUGH_CODEC_PLAIN)
        decoded = decoded_file(&source);
    if (bough_extract_tar(&how, &source, &err) < 0)
        CHECK(err.kind < BOUGH_ERR_KIND_COUNT && err.msg[0] && !strchr(err.msg, '\n'),
              "a failure without a reason");
    else
        CHECK(how.bytes <= MAX_BYTES && how.files + how.skipped <= MAX_FILES, "beyond the limits");
    bough_source_close(&source);
    for (int i = 0; i < WATCHED; i++)
        CHECK(is_unchanged(watched[i], &before[i]), "%s has changed", watched[i]);
    out_clear();
    return 0;
}

/* Without a right checksum in every header no change would get far. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    enum { BLOCK = 512, MAGIC_AT = 257, SUM_AT = 148, SUM_BYTES = 8 };
    size = LLVMFuzzerMutate(data, size, room);
    for (size_t at = 1; seed % 16 && at + BLOCK <= size; at += BLOCK) {
        uint8_t *header = data + at;
        unsigned sum = 0;
        if (memcmp(header + MAGIC_AT, "ustar", 5) != 0)
            continue;
        memset(header + SUM_AT, ' ', SUM_BYTES);
        for (size_t i = 0; i < BLOCK; i++)
            sum += header[i];
        snprintf((char *)header + SUM_AT, SUM_BYTES, "%06o", sum & 0777777);
    }
    return size;
}
