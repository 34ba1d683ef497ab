/* bough-unpack: turns a tar archive that nobody vouches for into a directory tree.
 *
 *   bough-unpack --out-fd N --in-fd M --report-fd R [--layer | --plain] [--digest] [--squash]
 *                [--progress] [--max-bytes N] [--max-files N]
 *
 * Started by the keeper as root of the host or of a user namespace; works for an ordinary user
 * too. Descriptor N is the directory to fill (an empty one, or with --layer the root of a mounted
 * overlay with the layers below), M the archive, a file or a pipe. --layer and --plain are the modes of
 * extract.h. R gets one line at the end,
 *
 *   ok BYTES FILES SKIPPED                 exit code 0
 *   ok BYTES FILES SKIPPED sha256:HEX      the same with --digest: of the archive to its last byte, after
 *                                          decompression
 *   err KIND ERRNO MESSAGE                 exit code 1; KIND is one of err.h
 *
 * and before it, with --progress, about ten times a second as long as it moves,
 *
 *   at BYTES                               of the archive that have been read, compressed as they are
 *
 * No line at all means that it was killed; by SIGSYS, that the archive got the better of a library
 * and the filter of the jail held. Wrong arguments: exit code 2. */
#define _GNU_SOURCE
#include <getopt.h>
#include <iconv.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#include "../err.h"
#include "../sys.h"
#include "extract.h"
#include "jail.h"
#include "source.h"

struct options {
    int out_fd, in_fd, report_fd;
    bool squash, progress, digest;
    enum bough_extract_mode mode;
    int64_t max_bytes, max_files;
};

struct progress {
    const struct bough_source *source;
    int64_t shown_bytes, shown_ns;
};

enum { PROGRESS_NS = 100 * 1000 * 1000 };

static int number_parse(const char *text, int64_t most, int64_t *out)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || end == text || *end || value < 0 || value > most)
        return -1;
    *out = value;
    return 0;
}

static int option_take(struct options *o, int option, const char *value)
{
    int64_t fd = -1;
    switch (option) {
    case 'o':
    case 'i':
    case 'r':
        if (number_parse(value, INT32_MAX, &fd) < 0)
            return -1;
        *(option == 'o' ? &o->out_fd : option == 'i' ? &o->in_fd : &o->report_fd) = (int)fd;
        return 0;
    case 's':
        o->squash = true;
        return 0;
    case 'p':
        o->progress = true;
        return 0;
    case 'b':
        return number_parse(value, INT64_MAX, &o->max_bytes);
    case 'f':
        return number_parse(value, INT64_MAX, &o->max_files);
    case 'd':
        o->digest = true;
        return 0;
    case 'l':
    case 'n':
        if (o->mode != BOUGH_EXTRACT_TREE)
            return -1;
        o->mode = option == 'l' ? BOUGH_EXTRACT_LAYER : BOUGH_EXTRACT_PLAIN;
        return 0;
    default:
        return -1;
    }
}

static int options_parse(struct options *o, int argc, char **argv)
{
    static const struct option known[] = {
        {"out-fd", required_argument, NULL, 'o'},
        {"in-fd", required_argument, NULL, 'i'},
        {"report-fd", required_argument, NULL, 'r'},
        {"layer", no_argument, NULL, 'l'},
        {"plain", no_argument, NULL, 'n'},
        {"digest", no_argument, NULL, 'd'},
        {"squash", no_argument, NULL, 's'},
        {"progress", no_argument, NULL, 'p'},
        {"max-bytes", required_argument, NULL, 'b'},
        {"max-files", required_argument, NULL, 'f'},
        {0},
    };
    int option;
    *o = (struct options){.out_fd = -1, .in_fd = -1, .report_fd = -1};
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1)
        if (option_take(o, option, optarg) < 0)
            return -1;
    return optind == argc && o->out_fd >= 0 && o->in_fd >= 0 && o->report_fd >= 0 ? 0 : -1;
}

/* Writes a whole line. Nothing can be done when nobody listens. */
static void line_write(int fd, const char *line)
{
    size_t left = strlen(line);
    while (left) {
        ssize_t n = BOUGH_RETRY(write(fd, line, left));
        if (n < 0 && errno != EAGAIN)
            return;
        if (n < 0) {
            struct pollfd p = {.fd = fd, .events = POLLOUT};
            (void)poll(&p, 1, -1);
            continue;
        }
        line += n;
        left -= (size_t)n;
    }
}

static int failure_report(int fd, const struct bough_err *err)
{
    char line[sizeof err->msg + 64];
    int n = snprintf(line, sizeof line - 1, "err %s %d %s", bough_err_kind_name(err->kind),
                     err->sys, err->msg);
    size_t len = n < 0 ? 0 : (size_t)n < sizeof line - 1 ? (size_t)n : sizeof line - 2;
    /* a library may have put the archive's bytes into its message */
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[len] = '\n';
    line[len + 1] = '\0';
    line_write(fd, line);
    return 1;
}

static void progress_show(void *arg)
{
    struct progress *p = arg;
    int64_t bytes = bough_source_position(p->source);
    int64_t now = bytes == p->shown_bytes ? p->shown_ns : bough_now_ns();
    if (now - p->shown_ns < PROGRESS_NS)
        return;
    p->shown_bytes = bytes;
    p->shown_ns = now;
    char line[64];
    snprintf(line, sizeof line, "at %lld\n", (long long)bytes);
    line_write(BOUGH_JAIL_REPORT, line);
}

/* Makes the C library read its table of character sets now. libarchive converts names in pax
 * headers, and the first conversion would look for the table below the new root, which is the
 * archive's to fill. */
static void libraries_warm(void)
{
    iconv_t converter = iconv_open("ANSI_X3.4-1968", "UTF-8");
    if (converter != (iconv_t)-1)
        iconv_close(converter);
}

static int unpack(const struct options *o, struct bough_source *source, struct bough_extract *how,
                  struct bough_err *err)
{
    struct progress progress = {.source = source};
    struct bough_jail jail;
    libraries_warm();
    if (o->digest && !(source->hasher = bough_hasher_new(err)))
        return -1;
    if (bough_jail_enter(&jail, err) < 0)
        return -1;
    /* the keeper is our parent, and nobody else would want the result */
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (bough_source_open(source, BOUGH_JAIL_IN, err) < 0 || bough_source_start(source, err) < 0 ||
        bough_jail_seal_writer(o->mode == BOUGH_EXTRACT_LAYER, err) < 0)
        return -1;
    *how = (struct bough_extract){
        .root = BOUGH_JAIL_OUT,
        .mode = o->mode,
        .squash = o->squash,
        .may_chown = jail.may_chown,
        .max_bytes = o->max_bytes,
        .max_files = o->max_files,
        .progress = o->progress ? progress_show : NULL,
        .progress_arg = &progress,
    };
    return bough_extract_tar(how, source, err);
}

int main(int argc, char **argv)
{
    struct options o;
    struct bough_err err = {.kind = BOUGH_ERR_io};
    struct bough_source source = {.fd = -1, .pidfd = -1};
    struct bough_extract how;
    if (options_parse(&o, argc, argv) < 0) {
        fputs(
            "usage: bough-unpack --out-fd N --in-fd N --report-fd N [--layer | --plain] [--digest] "
            "[--squash] [--progress] [--max-bytes N] [--max-files N]\n",
            stderr);
        return 2;
    }
    if (bough_jail_close(o.in_fd, o.out_fd, o.report_fd, &err) < 0)
        return failure_report(o.report_fd, &err);
    int r = unpack(&o, &source, &how, &err);
    char digest[BOUGH_SHA256_HEX + 8] = " sha256:";
    if (r == 0 && source.hasher)
        bough_hasher_hex(source.hasher, digest + 8);
    bough_source_close(&source);
    if (r < 0)
        return failure_report(BOUGH_JAIL_REPORT, &err);
    char line[192];
    snprintf(line, sizeof line, "ok %lld %lld %lld%s\n", (long long)how.bytes, (long long)how.files,
             (long long)how.skipped, o.digest ? digest : "");
    line_write(BOUGH_JAIL_REPORT, line);
    return 0;
}
