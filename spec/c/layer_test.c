/* layer_test: OCI layers, digests and plain archives against bough-unpack, as TAP.
 *
 *   layer_test [PROGRAM]       default: $BOUGH_UNPACK, else bough/bough-unpack
 *
 * Runs as the same users as unpack_test, over a directory that stands for the layers below; and as root
 * over a mounted overlay too. */
#define _GNU_SOURCE
#include <sys/mount.h>
#include <sys/xattr.h>

#include "../../src/sha256.h"
#include "tar_maker.h"
#include "unpack_run.h"

#define ADD(t, ...) tar_add(t, (struct tar_entry){__VA_ARGS__})

static bool overlay; /* `out` is a mount point */

static bool shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static bool shell(const char *fmt, ...)
{
    char command[2048];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(command, sizeof command, fmt, ap);
    va_end(ap);
    return system(command) == 0;
}

/* A new `out` that holds what the shell commands make, as from layers below. */
static void lower_make(const char *script)
{
    if (overlay && *out)
        (void)umount2(out, MNT_DETACH);
    out_renew();
    bool good = true;
    const char *at = out;
    char lower[64], options[256];
    if (overlay) {
        good = shell("cd %s && { chmod -R u+rwx lower up 2>/dev/null; rm -rf lower up work; "
                     "mkdir lower up work; }",
                     base);
        snprintf(lower, sizeof lower, "%s/lower", base);
        at = lower;
    }
    good = good && shell("set -e; umask 022; cd %s; %s", at, script);
    if (who != ROOT && getuid() == 0)
        good = good && shell("chown -hR nobody:nogroup %s", at);
    if (overlay) {
        snprintf(options, sizeof options, "lowerdir=%s/lower,upperdir=%s/up,workdir=%s/work", base,
                 base, base);
        good = good && mount("overlay", out, "overlay", 0, options) == 0;
    }
    if (!good) {
        printf("Bail out! cannot prepare: %s\n", script);
        exit(1);
    }
}

static bool run_with(struct tar *t, const char *const *options)
{
    tar_end(t);
    bool good = run_into(t->data, t->len, false, options);
    tar_free(t);
    return good;
}

static bool run_layer(struct tar *t)
{
    return run_with(t, (const char *const[]){"--layer", NULL});
}

static bool run_plain(struct tar *t)
{
    out_renew();
    return run_with(t, (const char *const[]){"--plain", NULL});
}

static bool is_gone(const char *name)
{
    return mode_of(name) == 0;
}

/* ---- whiteouts ---- */

static void whiteouts(void)
{
    struct tar t = {0};
    lower_make("mkdir -p a/b/c keep; echo >a/b/c/f; echo x >f; echo k >keep/k; ln -s keep l;"
               "ln -s nowhere dangling; mkfifo p; mkdir empty");
    ADD(&t, .name = ".wh.f");
    ADD(&t, .name = "./.wh.a", .type = '5');
    ADD(&t, .name = ".wh.l");
    ADD(&t, .name = ".wh.dangling");
    ADD(&t, .name = ".wh.p");
    ADD(&t, .name = ".wh.empty/");
    ADD(&t, .name = ".wh.never");
    ADD(&t, .name = "new", .data = "n");
    check(run_layer(&t) && !strcmp(report, "ok 1 1 0"), "takes whiteouts, and counts files only");
    check(is_gone("f") && is_gone("a") && is_gone("l") && is_gone("dangling") && is_gone("p") &&
              is_gone("empty") && is_gone(".wh.f"),
          "they remove files, trees, links and fifos");
    check(holds("keep/k", "k\n") && holds("new", "n"), "and nothing else, behind a link neither");

    lower_make("mkdir -p d/sub e; echo old >d/old; echo old >d/sub/old; echo old >f; echo x >e/x");
    ADD(&t, .name = "d/new", .data = "new");
    ADD(&t, .name = "d/sub/new", .data = "new");
    ADD(&t, .name = "f", .data = "new");
    ADD(&t, .name = ".wh.d");
    ADD(&t, .name = ".wh.f");
    ADD(&t, .name = ".wh.e");
    ADD(&t, .name = "e", .type = '5', .mode = 0700);
    ADD(&t, .name = "e/y", .data = "y");
    check(run_layer(&t) && holds("d/new", "new") && holds("d/sub/new", "new") && holds("f", "new"),
          "a whiteout leaves what its own layer has made");
    check(is_gone("d/old") && is_gone("d/sub/old"), "and takes the rest beside it");
    check(is_gone("e/x") && holds("e/y", "y"), "a directory is new after its whiteout");
    /* the name at the root is the layer's, the one further down is not */
    lower_make("mkdir -p a/d; echo old >a/d/x");
    ADD(&t, .name = "d/x", .data = "new");
    ADD(&t, .name = "a/.wh.d");
    check(run_layer(&t) && is_gone("a/d") && holds("d/x", "new"), "names are told by their paths");
}

static void opaque(void)
{
    struct tar t = {0};
    lower_make("mkdir -p d/sub d/gone/deep e r; echo old >d/old; echo old >d/sub/old; echo >e/x;"
               "echo >d/gone/deep/f; ln -s e link; echo >top; echo >r/x");
    ADD(&t, .name = "d/new", .data = "new");
    ADD(&t, .name = "d/sub/new", .data = "new");
    ADD(&t, .name = "d/.wh..wh..opq");
    ADD(&t, .name = "d/after", .data = "new");
    ADD(&t, .name = "link/y", .data = "y");
    ADD(&t, .name = "link/.wh..wh..opq");
    ADD(&t, .name = "fresh/.wh..wh..opq");
    check(run_layer(&t) && holds("d/new", "new") && holds("d/after", "new") &&
              holds("d/sub/new", "new"),
          "an opaque mark leaves what its own layer has made, before and after");
    check(is_gone("d/old") && is_gone("d/sub/old") && is_gone("d/gone"), "and empties the rest");
    check(S_ISLNK(mode_of("link")) && is_gone("e/x") && holds("e/y", "y"), "also behind a link");
    check(S_ISDIR(mode_of("fresh")) && !is_gone("top"), "a mark in a new directory makes it");
    ADD(&t, .name = "mine", .data = "m");
    ADD(&t, .name = ".wh..wh..opq");
    check(run_layer(&t) && is_gone("top") && is_gone("d") && is_gone("link") && holds("mine", "m"),
          "one at the root empties all");
}

static void marks_refused(void)
{
    static const struct {
        const char *name, *text;
    } cases[] = {
        {".wh.", "\".wh.\": is a whiteout of no possible name"},
        {".wh..", "is a whiteout of no possible name"},
        {".wh...", "is a whiteout of no possible name"},
        {"d/.wh...", "\"d/.wh...\": is a whiteout of no possible name"},
        {".wh.d/x", "\".wh.d/x\": lies below a whiteout"},
        {"../.wh.outside", "leads out of the archive"},
        {"d/../../.wh.outside", "leads out of the archive"},
        {"f/.wh.x", "lies below \"f\", which is no directory"},
        {"loop/.wh.x", "leads through too many symbolic links"},
    };
    struct tar t = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        lower_make("mkdir d; echo >f; ln -s loop loop");
        ADD(&t, .name = cases[i].name);
        run_layer(&t);
        check(refused("invalid", cases[i].text) && !is_gone("d") && !is_gone("f"), "refuses %s",
              cases[i].name);
    }
    lower_make("echo >.wh; echo >..x");
    ADD(&t, .name = ".wh..wh");
    ADD(&t, .name = ".wh...x");
    ADD(&t, .name = ".wh..wh.aufs", .data = "x");
    ADD(&t, .name = ".wh..wh.plnk", .type = '5', .mode = 0755);
    ADD(&t, .name = ".wh..wh.plnk/12.34", .data = "x");
    ADD(&t, .name = ".wh..wh..opqx", .data = "x");
    check(run_layer(&t) && is_gone(".wh") && is_gone("..x") && is_gone(".wh..wh.aufs") &&
              is_gone(".wh..wh.plnk") && is_gone(".wh..wh..opqx") && !strcmp(report, "ok 0 0 0"),
          "takes names that only look odd, and ignores those of aufs");
    ADD(&t, .name = ".wh.a");
    ADD(&t, .name = ".wh.b");
    ADD(&t, .name = "c");
    run_with(&t, (const char *const[]){"--layer", "--max-files", "2", NULL});
    check(refused("resource", "more than 2 files"), "whiteouts count against --max-files");
}

/* ---- links on the way ---- */

static void parents(void)
{
    struct tar t = {0};
    struct stat st;
    lower_make("mkdir -p usr/bin usr/lib d/e; ln -s usr/bin bin; ln -s /usr/lib lib; chmod 711 d;"
               "ln -s usr/opt opt; ln -s ../../../.. d/up; ln -s d/./e//../e/ e; touch -d @9 d");
    ADD(&t, .name = "./bin/x", .data = "x");
    ADD(&t, .name = "/lib/y", .data = "y");
    ADD(&t, .name = "//d/../opt/z", .data = "z");
    ADD(&t, .name = "d/up/top", .data = "t");
    ADD(&t, .name = "e/f", .data = "f");
    ADD(&t, .name = "m/n/o", .data = "o");
    ADD(&t, .name = "own", .type = '2', .link = "m");
    ADD(&t, .name = "own/p", .data = "p");
    ADD(&t, .name = "own", .type = '2', .link = "usr");
    ADD(&t, .name = "own/p", .data = "q");
    check(run_layer(&t), "leads through links of the layers below, and its own");
    check(holds("usr/bin/x", "x") && holds("usr/lib/y", "y") && holds("usr/opt/z", "z") &&
              holds("d/e/f", "f") && holds("m/n/o", "o"),
          "relative, absolute and dangling ones");
    check(holds("top", "t"), "those that lead up end at the root");
    check(holds("m/p", "p") && holds("usr/p", "q"), "a link that has changed counts as it is now");
    check((mode_of("d") & 07777) == 0711 && (mode_of("m") & 07777) == 0755 &&
              (mode_of("m/n") & 07777) == 0755,
          "directories below keep their mode, missing ones get 0755");
    lower_make("mkdir d; echo >d/x; chmod 750 d");
    ADD(&t, .name = "/", .type = '5', .mode = 0751);
    ADD(&t, .name = "d", .type = '5', .mode = 0705, .mtime = 77);
    ADD(&t, .name = "d/y", .data = "y");
    check(run_layer(&t) && lstat(in_out("d"), &st) == 0 && (st.st_mode & 07777) == 0705 &&
              st.st_mtime == 77 && !is_gone("d/x") && (mode_of("") & 07777) == 0751,
          "an entry of its own changes a directory, and what is in it stays");

    char outside[128], script[256];
    snprintf(outside, sizeof outside, "%s/outside", base);
    shell("mkdir -p %s; echo precious >%s/f; chmod -R a+rwX %s", outside, outside, outside);
    snprintf(script, sizeof script, "ln -s %s abs; ln -s ../outside rel", outside);
    lower_make(script);
    ADD(&t, .name = "abs/.wh.f");
    ADD(&t, .name = "rel/.wh.f");
    ADD(&t, .name = "rel/.wh..wh..opq");
    ADD(&t, .name = "abs/g", .data = "g");
    ADD(&t, .name = "rel/h", .data = "h");
    check(run_layer(&t) &&
              shell("test \"$(ls %s)\" = f && grep -q precious %s/f", outside, outside),
          "nothing outside is removed or made through a link");
    snprintf(script, sizeof script, "%s/g", outside + 1);
    check(holds("outside/h", "h"), "it happens inside");
    check(holds(script, "g"), "at the same path below the root");
}

static void groups(void)
{
    struct tar t = {0};
    struct stat st;
    if (who != ROOT)
        return;
    lower_make("mkdir local; chgrp 50 local; chmod 2775 local; ln -s local l");
    ADD(&t, .name = "l/file", .data = "f");
    ADD(&t, .name = "l/dir", .type = '5', .mode = 0755);
    ADD(&t, .name = "l/dir/file", .data = "f");
    ADD(&t, .name = "l/link", .type = '2', .link = "file");
    check(run_layer(&t) && lstat(in_out("local/file"), &st) == 0 && st.st_gid == 0 &&
              lstat(in_out("local/dir"), &st) == 0 && st.st_gid == 0 &&
              (st.st_mode & 07777) == 0755 && lstat(in_out("local/link"), &st) == 0 &&
              st.st_gid == 0 && lstat(in_out("local/dir/file"), &st) == 0 && st.st_gid == 0,
          "files in a setgid directory below have the group that the archive says");
}

static void loops_refused(void)
{
    struct tar t = {0};
    char name[4097];
    lower_make("ln -s b a; ln -s a b; echo >f");
    ADD(&t, .name = "a/x", .data = "x");
    run_layer(&t);
    check(refused("invalid", "\"a/x\": leads through too many symbolic links"), "refuses a loop");
    ADD(&t, .name = "f/x", .data = "x");
    run_layer(&t);
    check(refused("invalid", "lies below \"f\", which is no directory"), "and a file on the way");
    memset(name, 0, sizeof name);
    for (int i = 0; i < 1300; i++)
        memcpy(name + i * 3, "dd/", 3);
    tar_pax_text(&t, "linkpath", name);
    ADD(&t, .name = "long", .type = '2');
    ADD(&t, .name = "s", .type = '2', .link = "long/long");
    memset(name, 'n', 252);
    memcpy(name, "s/", 2);
    name[252] = '\0';
    tar_pax_text(&t, "path", name);
    ADD(&t, .name = "x", .data = "x");
    run_layer(&t);
    /* 3900 bytes, and missing: "long" below it, and then the name */
    check(refused("invalid", "path of more than 4095 bytes"), "and links that lead too far");
    shell("rm -rf %s/dd", out);
    for (const char *const *bad = (const char *const[]){"..", "a/../../b", "/../x", NULL}; *bad;
         bad++) {
        ADD(&t, .name = *bad, .data = "x");
        run_layer(&t);
        check(refused("invalid", "leads out of the archive (\"..\")"), "refuses %s", *bad);
    }
}

/* ---- in place of what is below ---- */

static void replaces(void)
{
    struct tar t = {0};
    lower_make("mkdir -p d1/x/y d2/x d3 d4/x; echo >d1/x/y/f; echo >d2/x/f; echo >f; echo r >d3/r;"
               "ln -s d3 l; mkdir d1/x/none; echo >d1/x/none/f; chmod 0 d1/x/none;"
               "chmod 500 d1/x/y; echo >d4/x/f; ln f f2");
    ADD(&t, .name = "d1", .data = "file");
    ADD(&t, .name = "d2", .type = '2', .link = "f");
    ADD(&t, .name = "f", .type = '5', .mode = 0711);
    ADD(&t, .name = "f/in", .data = "in");
    ADD(&t, .name = "l", .type = '5', .mode = 0755);
    ADD(&t, .name = "l/in", .data = "in");
    ADD(&t, .name = "d4", .type = '6', .mode = 0600);
    check(run_layer(&t), "replaces what layers below have");
    check(holds("d1", "file") && S_ISLNK(mode_of("d2")) && S_ISFIFO(mode_of("d4")),
          "full directories by other things");
    check(holds("f/in", "in") && holds("l/in", "in") && S_ISDIR(mode_of("l")),
          "files and links by directories");
    check(holds("d3/r", "r\n") && is_gone("d3/in") && holds("f2", "\n"),
          "and leaves what a link has led to");

    static const char script[] = "mkdir -p d; echo old >d/old; echo old >f";
    lower_make(script);
    ADD(&t, .name = "d/x", .data = "x");
    ADD(&t, .name = "d", .data = "file");
    run_layer(&t);
    check(refused("invalid", "would replace a directory that is not empty"),
          "but no directory into which it has put something");
    lower_make(script);
    ADD(&t, .name = "f", .data = "new");
    ADD(&t, .name = "f", .type = '5', .mode = 0755);
    run_layer(&t);
    check(refused("invalid", "an earlier entry of this name is not"), "nor a file of its own");
}

static void hard_links(void)
{
    struct tar t = {0};
    struct stat a, b;
    lower_make("mkdir -p usr/bin d; echo data >usr/bin/tool; ln -s usr/bin bin; echo o >d/old;"
               "chmod 4755 usr/bin/tool; touch -d @1234 usr/bin/tool");
    ADD(&t, .name = "bin/alias", .type = '1', .link = "/bin/tool");
    ADD(&t, .name = "d", .type = '1', .link = "./usr/bin/../bin/tool");
    ADD(&t, .name = "own", .data = "own");
    ADD(&t, .name = "usr/own", .type = '1', .link = "own");
    check(run_layer(&t) && lstat(in_out("usr/bin/alias"), &a) == 0 &&
              lstat(in_out("usr/bin/tool"), &b) == 0 && a.st_ino == b.st_ino && a.st_nlink == 3 &&
              a.st_mtime == 1234 && (who != ROOT || (a.st_mode & 07777) == 04755),
          "a hard link to a file from below");
    check(holds("d", "data\n") && holds("usr/own", "own"), "also in place of a directory");
    ADD(&t, .name = "x", .type = '1', .link = "usr/nothing");
    run_layer(&t);
    check(refused("invalid", "is a hard link to \"usr/nothing\", which is not there"),
          "refuses one to nothing");
    ADD(&t, .name = "x", .type = '1', .link = "../../etc/passwd");
    run_layer(&t);
    check(refused("invalid", "leads out of the archive"), "and one that leads out");
    /* the whiteout of one name must not spare it for the other's sake */
    lower_make("echo data >old");
    ADD(&t, .name = "new", .type = '1', .link = "old");
    ADD(&t, .name = ".wh.old");
    check(run_layer(&t) && holds("new", "data\n") && is_gone("old"),
          "renames by link and whiteout");
}

static void attributes(void)
{
    struct tar t = {0};
    char value[8] = "";
    lower_make("mkdir d e");
    bool xattrs = setxattr(in_out("d"), "user.old", "x", 1, 0) == 0;
    tar_pax_text(&t, "SCHILY.xattr.user.new", "blue");
    ADD(&t, .name = "d", .type = '5', .mode = 0755);
    ADD(&t, .name = "dev/null", .type = '3', .mode = 0666);
    check(run_layer(&t) && !strcmp(report + strlen(report) - 2, " 1") && is_gone("dev/null"),
          "skips and counts devices");
    check(!xattrs || (getxattr(in_out("d"), "user.new", value, sizeof value) == 4 &&
                      getxattr(in_out("d"), "user.old", value, sizeof value) < 0),
          "a directory has the attributes that its entry says");
    static const char *const keys[] = {"SCHILY.xattr.trusted.overlay.opaque",
                                       "SCHILY.xattr.trusted.overlay.redirect",
                                       "SCHILY.xattr.user.overlay.whiteout"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        tar_pax_text(&t, keys[i], "y");
        ADD(&t, .name = "e", .type = '5', .mode = 0755);
        run_layer(&t);
        check(refused("invalid", "which belongs to the overlay"), "refuses %s", keys[i]);
    }
}

/* ---- much to remove ---- */

static void removes_much(void)
{
    /* overlay and Landlock both walk up to the root at every step, so that depth counts squared */
    int deep = overlay || who == USER ? 2000 : 10000;
    struct tar t = {0};
    lower_make("mkdir wide; cd wide; seq 3000 | xargs touch; mkdir $(seq 3001 3500)");
    char home[256];
    bool made = getcwd(home, sizeof home) && chdir(overlay ? base : out) == 0 &&
                (!overlay || chdir("lower") == 0);
    for (int i = 0; made && i < deep; i++)
        made = mkdir("deep", 0777) == 0 &&
               chown("deep", who == ROOT ? 0 : NOBODY, (gid_t)-1) <= 0 && chdir("deep") == 0;
    int fd = open("bottom", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0)
        close(fd);
    if (chdir(home) < 0)
        abort();
    check(made, "makes %d levels", deep);
    ADD(&t, .name = "wide/mine", .data = "x");
    ADD(&t, .name = "wide/.wh..wh..opq");
    ADD(&t, .name = ".wh.deep");
    check(run_layer(&t) && is_gone("deep") && shell("test $(ls %s/wide) = mine", out),
          "removes %d levels, and 3500 names beside its own", deep);
    shell("cd %s && rm -rf out/deep lower/deep", base);
}

/* ---- the digest ---- */

static bool digest_is(const void *data, size_t len)
{
    char hex[BOUGH_SHA256_HEX];
    struct bough_sha256 *state = bough_sha256_new();
    bough_sha256_update(state, data, len);
    bough_sha256_hex(state, hex);
    bough_sha256_free(state);
    const char *said = strstr(report, " sha256:");
    return said && !strcmp(said + 8, hex) && !strncmp(report, "ok 1000000 1 0 sha256:", 22);
}

static void digests(void)
{
    enum { SIZE = 1000000, TAIL = 3000000 };
    static const int codecs[] = {ARCHIVE_FILTER_GZIP, ARCHIVE_FILTER_ZSTD, ARCHIVE_FILTER_XZ};
    const char *const digest[] = {"--digest", NULL};
    struct tar t = {0}, z = {0};
    char *noise = calloc(1, TAIL);
    if (!noise)
        abort();
    for (int i = 0; i < SIZE; i++)
        noise[i] = (char)(((unsigned)i * 7919u) >> 9);
    ADD(&t, .name = "f", .data = noise, .size = SIZE);
    tar_end(&t);
    memset(noise, 0, TAIL);
    tar_put(&t, noise, TAIL);
    tar_put(&t, "end", 3);
    free(noise);
    check(run_bytes(t.data, t.len, digest) && digest_is(t.data, t.len),
          "hashes a plain archive to its end");
    out_renew();
    check(run_into(t.data, t.len, true, digest) && digest_is(t.data, t.len), "also from a pipe");
    for (size_t i = 0; i < sizeof codecs / sizeof codecs[0]; i++) {
        tar_compress(&z, codecs[i], t.data, t.len);
        check(run_bytes(z.data, z.len, digest) && digest_is(t.data, t.len),
              "hashes what was compressed (%zu)", i);
        run_bytes(z.data, z.len / 2, digest);
        check(refused("corrupt", "") && !strstr(report, "sha256"), "but not when it is cut");
        tar_free(&z);
    }
    check(run_bytes(t.data, t.len, NULL) && !strcmp(report, "ok 1000000 1 0"), "only when asked");
    run_bytes(t.data, 700, digest);
    check(refused("corrupt", "runcated"), "tells a cut plain archive");
    tar_free(&t);
}

static void digest_bounded(void)
{
    enum { CHUNK = 16 << 20 };
    struct tar t = {0}, z = {0}, piece = {0};
    char *zeros = calloc(1, CHUNK);
    ADD(&t, .name = "f", .data = "x");
    tar_end(&t);
    tar_compress(&z, ARCHIVE_FILTER_ZSTD, t.data, t.len);
    tar_compress(&piece, ARCHIVE_FILTER_ZSTD, zeros, CHUNK);
    for (int i = 0; i < 17; i++)
        tar_put(&z, piece.data, piece.len);
    run_bytes(z.data, z.len, (const char *const[]){"--digest", NULL});
    check(refused("resource", "more than 256 MiB follow the end of the archive"),
          "does not hash without end");
    check(run_bytes(z.data, z.len, NULL), "who wants no digest need not read it all");
    free(zeros);
    tar_free(&t);
    tar_free(&z);
    tar_free(&piece);
}

/* ---- plain ---- */

static void plain(void)
{
    struct tar t = {0};
    struct stat st;
    char to[64] = "";
    ADD(&t, .name = "./", .type = '5', .mode = 0777);
    ADD(&t, .name = "abc", .type = '5', .mode = 07555, .uid = 77, .gid = 88);
    tar_pax_text(&t, "SCHILY.xattr.user.colour", "blue");
    ADD(&t, .name = "abc/layer.tar", .data = "data", .mode = 06444, .uid = 77, .mtime = 5);
    ADD(&t, .name = "def/layer.tar", .type = '2', .link = "../abc/layer.tar");
    ADD(&t, .name = "hard", .type = '1', .link = "abc/layer.tar");
    ADD(&t, .name = "fifo", .type = '6');
    ADD(&t, .name = "dev", .type = '4');
    tar_pax_text(&t, "SCHILY.xattr.trusted.overlay.opaque", "y");
    ADD(&t, .name = ".wh.x", .data = "w");
    check(run_plain(&t) && !strcmp(report, "ok 5 6 2"), "unpacks an archive of files");
    check(lstat(in_out("abc/layer.tar"), &st) == 0 && (st.st_mode & 07777) == 0644 &&
              st.st_uid == (who == ROOT ? getuid()
                            : getuid()  ? getuid()
                                        : NOBODY) &&
              st.st_mtime == 5 && st.st_nlink == 2 &&
              getxattr(in_out("abc/layer.tar"), "user.colour", to, sizeof to) < 0,
          "content, time and links come along; owner, attributes and setuid do not");
    check((mode_of("abc") & 07777) == 0755 && (mode_of("") & 07777) == 0755,
          "directories stay ours, and the one given as it was");
    check(readlink(in_out("def/layer.tar"), to, sizeof to) == 16, "links are made as they are");
    check(is_gone("fifo") && is_gone("dev") && holds(".wh.x", "w"),
          "fifos and devices are skipped, and .wh. means nothing");
    ADD(&t, .name = "out", .type = '2', .link = "/tmp");
    ADD(&t, .name = "out/bough-test-evil", .data = "x");
    run_plain(&t);
    check(refused("invalid", "leads through the symbolic link"), "nothing goes through a link");
    ADD(&t, .name = "/abs", .data = "x");
    run_plain(&t);
    check(refused("invalid", "absolute path"), "nor to an absolute name");
    out_renew();
    tar_end(&t);
    run_into(t.data, t.len, false, (const char *const[]){"--plain", "--layer", NULL});
    check(WIFEXITED(status) && WEXITSTATUS(status) == 2, "a layer is not plain");
    tar_free(&t);
}

static void layers(void)
{
    whiteouts();
    opaque();
    marks_refused();
    parents();
    groups();
    loops_refused();
    replaces();
    hard_links();
    attributes();
    removes_much();
}

int main(int argc, char **argv)
{
    const char *named = argc > 1 ? argv[1] : getenv("BOUGH_UNPACK");
    program = realpath(named ? named : "bough/bough-unpack", NULL);
    if (!program || !mkdtemp(base) || chmod(base, 0755) < 0) {
        printf("Bail out! no program or no place to work: %s\n", strerror(errno));
        return 1;
    }
    umask(022);
    for (who = getuid() == 0 ? ROOT : USER; who <= USER; who++) {
        layers();
        digests();
        plain();
    }
    who = USER;
    digest_bounded();
    /* mounts of our own, which go when we do */
    who = ROOT;
    if (getuid() == 0 && unshare(CLONE_NEWNS) == 0 &&
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0) {
        overlay = true;
        layers();
        (void)umount2(out, MNT_DETACH);
    }
    tree_remove(base);
    printf("1..%d\n", count);
    free((void *)(uintptr_t)program);
    return failures != 0;
}
