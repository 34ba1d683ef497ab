#define _GNU_SOURCE
#include "source.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../sys.h"
#include "decode.h"
#include "jail.h"

enum {
    BLOCK_BYTES = 256 * 1024,
    BLOCKS = BOUGH_HASHER_BLOCKS,
    PIPE_BYTES = 1024 * 1024,
    /* tar pads to its record size, by default 10 KiB; whoever adds more gets no checksum */
    TAIL_BYTES = 16 * 1024 * 1024,
    /* a digest is of all or of nothing: beyond this it is refused */
    DIGEST_TAIL_BYTES = 256 * 1024 * 1024,
    TAR_MAGIC_AT = 257,
};

static enum bough_codec codec_of(const char *head, size_t len)
{
    static const struct {
        enum bough_codec codec;
        unsigned len;
        char magic[6];
    } codecs[] = {
        {BOUGH_CODEC_GZIP, 2, "\x1f\x8b"},
        {BOUGH_CODEC_BZIP2, 3, "BZh"},
        {BOUGH_CODEC_XZ, 6, {'\xfd', '7', 'z', 'X', 'Z', '\0'}},
        {BOUGH_CODEC_ZSTD, 4, "\x28\xb5\x2f\xfd"},
        {BOUGH_CODEC_LZ4, 4, "\x04\x22\x4d\x18"},
        {BOUGH_CODEC_LZ4, 4, "\x02\x21\x4c\x18"},
    };
    /* the first file of a plain archive may well be called "BZh" */
    if (len >= TAR_MAGIC_AT + 5 && !memcmp(head + TAR_MAGIC_AT, "ustar", 5))
        return BOUGH_CODEC_PLAIN;
    for (size_t i = 0; i < sizeof codecs / sizeof codecs[0]; i++)
        if (len >= codecs[i].len && !memcmp(head, codecs[i].magic, codecs[i].len))
            return codecs[i].codec;
    return BOUGH_CODEC_PLAIN;
}

int bough_source_open(struct bough_source *source, int fd, struct bough_err *err)
{
    source->fd = fd;
    source->buffer = malloc((size_t)BLOCK_BYTES * BLOCKS);
    if (!source->buffer)
        return bough_err_set(err, BOUGH_ERR_resource, "out of memory");
    while (source->peeked < 512) {
        ssize_t n =
            bough_read_wait(fd, source->buffer + source->peeked, BLOCK_BYTES - source->peeked);
        if (n < 0)
            return bough_err_sys(err, errno, "read the archive");
        if (n == 0)
            break;
        source->peeked += (size_t)n;
    }
    source->codec = codec_of(source->buffer, source->peeked);
    return 0;
}

/* The decoder's life; never returns. */
__attribute__((noreturn)) static void decoder_main(struct bough_source *source, int out_fd,
                                                   pid_t parent)
{
    struct bough_decoded *decoded = source->decoded;
    struct bough_err err = {.kind = BOUGH_ERR_io};
    int r = -1;
    close(BOUGH_JAIL_OUT);
    close(BOUGH_JAIL_REPORT);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        bough_err_sys(&err, errno, "prctl");
    else if (getppid() != parent)
        _exit(1);
    else if (bough_jail_seal_decoder(&err) == 0)
        r = bough_decode(source->codec, source->buffer, source->peeked, source->fd, out_fd, decoded,
                         &err);
    if (r < 0) {
        decoded->err = err;
        decoded->failed = 1;
    }
    _exit(r < 0);
}

static int decoder_start(struct bough_source *source, struct bough_err *err)
{
    source->decoded = mmap(NULL, sizeof *source->decoded, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (source->decoded == MAP_FAILED) {
        source->decoded = NULL;
        return bough_err_sys(err, errno, "mmap");
    }
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return bough_err_sys(err, errno, "pipe");
    BOUGH_CLEANUP_FD int ours = ends[0];
    BOUGH_CLEANUP_FD int theirs = ends[1];
    (void)fcntl(theirs, F_SETPIPE_SZ, PIPE_BYTES);
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid < 0)
        return bough_err_sys(err, errno, "fork");
    if (pid == 0) {
        close(ours);
        decoder_main(source, theirs, parent);
    }
    source->decoder = pid;
    source->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (source->pidfd < 0)
        return bough_err_sys(err, errno, "pidfd_open");
    /* the compressed bytes are no longer our business */
    close(source->fd);
    source->fd = bough_steal_fd(&ours);
    source->peeked = 0;
    return 0;
}

int bough_source_start(struct bough_source *source, struct bough_err *err)
{
    if (source->codec != BOUGH_CODEC_PLAIN && decoder_start(source, err) < 0)
        return -1;
    return source->hasher ? bough_hasher_start(source->hasher, err) : 0;
}

/* Takes the decoder's last words. */
static int decoder_reap(struct bough_source *source, struct bough_err *err)
{
    int status = 0;
    pid_t pid = source->decoder;
    source->decoder = 0;
    if (pid <= 0)
        return 0;
    if (BOUGH_RETRY(waitpid(pid, &status, 0)) < 0)
        return bough_err_sys(err, errno, "wait for the decompressor");
    if (WIFSIGNALED(status))
        return bough_err_set(err, BOUGH_ERR_corrupt, "the decompressor died of signal %d",
                             WTERMSIG(status));
    if (!source->decoded->failed)
        return WEXITSTATUS(status) ? bough_err_set(err, BOUGH_ERR_io, "the decompressor failed")
                                   : 0;
    if (err) {
        *err = source->decoded->err;
        err->msg[sizeof err->msg - 1] = '\0';
        if ((unsigned)err->kind >= BOUGH_ERR_KIND_COUNT)
            err->kind = BOUGH_ERR_corrupt;
    }
    return -1;
}

ssize_t bough_source_read(struct bough_source *source, const void **data, struct bough_err *err)
{
    ssize_t n = (ssize_t)source->peeked;
    char *block = source->buffer + source->block * BLOCK_BYTES;
    *data = block;
    source->peeked = 0;
    if (source->ended)
        return 0;
    if (n == 0) {
        if (source->hasher)
            bough_hasher_wait(source->hasher, BLOCKS - 1);
        n = bough_read_wait(source->fd, block, BLOCK_BYTES);
        if (n < 0)
            return bough_err_sys(err, errno, "read the archive");
    }
    if (n == 0) {
        source->ended = true;
        return decoder_reap(source, err);
    }
    if (source->codec == BOUGH_CODEC_PLAIN)
        source->in_bytes += n;
    source->out_bytes += n;
    if (source->hasher) {
        bough_hasher_put(source->hasher, block, (size_t)n);
        source->block = (source->block + 1) % BLOCKS;
    }
    return n;
}

int bough_source_finish(struct bough_source *source, bool whole, struct bough_err *err)
{
    whole = whole && source->hasher;
    if (source->codec == BOUGH_CODEC_PLAIN && !whole)
        return 0;
    int64_t limit = source->out_bytes + (whole ? DIGEST_TAIL_BYTES : TAIL_BYTES);
    while (source->out_bytes < limit) {
        const void *data;
        ssize_t n = bough_source_read(source, &data, err);
        if (n <= 0)
            return (int)n;
    }
    if (whole)
        return bough_err_set(err, BOUGH_ERR_resource,
                             "more than %d MiB follow the end of the archive",
                             DIGEST_TAIL_BYTES >> 20);
    return 0;
}

int64_t bough_source_position(const struct bough_source *source)
{
    return source->decoded ? source->decoded->in_bytes : source->in_bytes;
}

void bough_source_close(struct bough_source *source)
{
    if (source->decoder > 0) {
        /* through the pidfd: the filter allows no other kill */
        if (source->pidfd >= 0)
            (void)syscall(SYS_pidfd_send_signal, source->pidfd, SIGKILL, NULL, 0);
        bough_fd_close(&source->fd);
        (void)BOUGH_RETRY(waitpid(source->decoder, NULL, 0));
        source->decoder = 0;
    }
    if (source->codec != BOUGH_CODEC_PLAIN)
        bough_fd_close(&source->fd);
    bough_fd_close(&source->pidfd);
    if (source->decoded)
        munmap(source->decoded, sizeof *source->decoded);
    source->decoded = NULL;
    bough_hasher_free(source->hasher);
    source->hasher = NULL;
    free(source->buffer);
    source->buffer = NULL;
}
