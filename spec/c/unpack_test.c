/* unpack_test: hostile and ordinary archives against bough-unpack, as TAP.
 *
 *   unpack_test [PROGRAM]       default: $BOUGH_UNPACK, else bough/bough-unpack
 *
 * Started as root it runs everything three times: as root, as root of a user namespace with
 * one id, and as an ordinary user. Otherwise only as the user that it is. */
#define _GNU_SOURCE
#include <sys/xattr.h>

#include "tar_maker.h"
#include "unpack_run.h"

#define ADD(t, ...) tar_add(t, (struct tar_entry){__VA_ARGS__})

/* Ends and unpacks `t`, and frees it. */
static bool run_tar(struct tar *t)
{
    tar_end(t);
    bool good = run_bytes(t->data, t->len, NULL);
    tar_free(t);
    return good;
}

/* ---- names ---- */

static void names_refused(void)
{
    static const struct {
        const char *name, *text;
    } cases[] = {
        {"/etc/passwd", "\"/etc/passwd\": leads out of the archive (absolute path)"},
        {"../../etc/passwd", "\"../../etc/passwd\": leads out of the archive (\"..\")"},
        {"a/../../b", "leads out of the archive (\"..\")"},
        {"a/..", "leads out of the archive (\"..\")"},
        {"./../b", "leads out of the archive (\"..\")"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tar t = {0};
        ADD(&t, .name = "before", .data = "x");
        ADD(&t, .name = cases[i].name, .data = "x");
        run_tar(&t);
        check(refused("invalid", cases[i].text), "refuses the name %s", cases[i].name);
    }
    char name[6001];
    memset(name, 'n', 256);
    name[256] = '\0';
    struct tar t = {0};
    tar_pax_text(&t, "path", name);
    ADD(&t, .name = "short", .data = "x");
    run_tar(&t);
    check(refused("invalid", "256 bytes"), "refuses a component of 256 bytes");
    for (int i = 0; i < 3000; i++)
        memcpy(name + i * 2, "d/", 3);
    tar_long(&t, name);
    ADD(&t, .name = "short", .type = '5');
    run_tar(&t);
    check(refused("invalid", "more than 4095 bytes"), "refuses a path of 6000 bytes");
    tar_pax_text(&t, "path", "evil\nok 1 1 1\x1b[2J");
    ADD(&t, .name = "x", .type = '1', .link = "gone");
    run_tar(&t);
    check(refused("invalid", "evil\\x0aok 1 1 1\\x1b[2J"), "escapes a name in its message");
}

static void names_kept(void)
{
    struct tar t = {0};
    char name[256];
    ADD(&t, .name = "latin-\xe9\xff", .data = "1");
    tar_pax_text(&t, "path", "snow-\xe2\x98\x83");
    ADD(&t, .name = "x", .data = "2");
    tar_pax_text(&t, "path", "pax-\xe9\xff");
    ADD(&t, .name = "x", .data = "3");
    tar_pax_text(&t, "path", "nfd-e\xcc\x81");
    ADD(&t, .name = "x", .data = "4");
    tar_pax_text(&t, "linkpath", "to-e\xcc\x81-\xff");
    ADD(&t, .name = "link", .type = '2');
    ADD(&t, .name = ".wh.plain", .data = "5");
    ADD(&t, .name = "./a//b/./c", .data = "6");
    memset(name, 'p', 255);
    name[255] = '\0';
    tar_pax_text(&t, "path", name);
    ADD(&t, .name = "x", .data = "7");
    memset(name, 'g', 255);
    tar_long(&t, name);
    ADD(&t, .name = "x", .data = "8");
    check(run_tar(&t), "takes names of every encoding and length");
    char target[64] = "";
    ssize_t n = readlink(in_out("link"), target, sizeof target - 1);
    check(holds("latin-\xe9\xff", "1") && holds("snow-\xe2\x98\x83", "2") &&
              holds("pax-\xe9\xff", "3") && holds("nfd-e\xcc\x81", "4") && n == 8 &&
              !strcmp(target, "to-e\xcc\x81-\xff"),
          "keeps names to the byte");
    check(holds(".wh.plain", "5") && holds("a/b/c", "6"), "treats .wh. as ordinary, makes parents");
    check(holds(name, "8") && (memset(name, 'p', 255), holds(name, "7")),
          "takes 255 bytes by pax and by GNU");
}

static void names_deep(void)
{
    char name[4096];
    for (int i = 0; i < 2000; i++)
        memcpy(name + i * 2, "d/", 3);
    memcpy(name + 4000, "f", 2);
    struct tar t = {0};
    tar_long(&t, name);
    ADD(&t, .name = "x", .data = "deep");
    check(run_tar(&t) && !strncmp(report, "ok 4 2001 0", 11), "makes 2000 levels");
    /* paths of the test's own prefix would be too long */
    char home[256];
    bool found = getcwd(home, sizeof home) && chdir(out) == 0;
    for (int i = 0; found && i < 2000; i++)
        found = chdir("d") == 0;
    check(found && access("f", F_OK) == 0, "puts the file 2000 levels down");
    if (chdir(home) < 0)
        abort();
    tree_remove(out);
    if (access(out, F_OK) == 0 && system("rm -rf /tmp/unpack-test-*/out") < 0)
        abort();
}

/* ---- links ---- */

static void links_refused(void)
{
    struct tar t = {0};
    char outside[128], to[160];
    snprintf(outside, sizeof outside, "%s/outside", base);
    ADD(&t, .name = "link", .type = '2', .link = base);
    ADD(&t, .name = "link/outside", .data = "pwned");
    run_tar(&t);
    snprintf(to, sizeof to, "\"link/outside\": leads through the symbolic link \"link\" -> \"%s\"",
             base);
    check(refused("invalid", to) && access(outside, F_OK) < 0,
          "does not write through a link out of the tree");
    ADD(&t, .name = "d", .type = '5', .mode = 0755);
    ADD(&t, .name = "d/up", .type = '2', .link = "..");
    ADD(&t, .name = "d/up/sub/file", .data = "x");
    run_tar(&t);
    check(refused("invalid", "symbolic link \"d/up\" -> \"..\""), "nor through one inside it");
    ADD(&t, .name = "link", .type = '2', .link = outside);
    ADD(&t, .name = "link", .data = "mine");
    check(run_tar(&t) && holds("link", "mine") && access(outside, F_OK) < 0,
          "replaces a link by a file of its name");
    ADD(&t, .name = "file", .data = "x");
    ADD(&t, .name = "file/below", .data = "x");
    run_tar(&t);
    check(refused("invalid", "lies below \"file\", which is no directory"),
          "refuses an entry below a file");
    ADD(&t, .name = "lib", .type = '2', .link = "usr/lib");
    ADD(&t, .name = "usr/lib/x", .data = "merged");
    check(run_tar(&t) && holds("usr/lib/x", "merged"), "takes a merged /usr");

    static const struct {
        const char *link, *text;
    } cases[] = {
        {"/etc/passwd", "hard link to \"/etc/passwd\": leads out"},
        {"../../../etc/passwd", "leads out of the archive (\"..\")"},
        {"missing", "\"hard\": is a hard link to \"missing\", which is not in the archive"},
        {"no/such", "is a hard link to \"no/such\", which is not in the archive"},
        {"dir", "hard link to \"dir\": Is a directory"},
        {".", "hard link to \".\": Is a directory"},
        {"out/passwd", "hard link to \"out/passwd\": leads through the symbolic link \"out\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ADD(&t, .name = "dir", .type = '5', .mode = 0755);
        ADD(&t, .name = "out", .type = '2', .link = "/etc");
        ADD(&t, .name = "hard", .type = '1', .link = cases[i].link);
        run_tar(&t);
        check(refused("invalid", cases[i].text), "refuses a hard link to %s", cases[i].link);
    }
}

static void links_made(void)
{
    struct tar t = {0};
    struct stat a, b;
    ADD(&t, .name = "d/one", .data = "data");
    ADD(&t, .name = "two", .type = '1', .link = "./d/one");
    ADD(&t, .name = "sym", .type = '2', .link = "/etc/passwd");
    ADD(&t, .name = "symhard", .type = '1', .link = "sym");
    ADD(&t, .name = "two", .type = '1', .link = "two");
    ADD(&t, .name = "old", .data = "old");
    ADD(&t, .name = "old", .type = '1', .link = "two");
    check(run_tar(&t) && holds("old", "data"), "makes hard links, also to itself and over a file");
    check(stat(in_out("d/one"), &a) == 0 && stat(in_out("old"), &b) == 0 && a.st_ino == b.st_ino &&
              a.st_nlink == 3,
          "links to the same file");
    check(S_ISLNK(mode_of("symhard")), "links to a symbolic link itself");
}

/* ---- several entries of one name ---- */

static void duplicates(void)
{
    struct tar t = {0};
    ADD(&t, .name = "f", .data = "first", .mode = 0600);
    ADD(&t, .name = "g", .type = '1', .link = "f");
    ADD(&t, .name = "f", .data = "second", .mode = 0640);
    ADD(&t, .name = "l", .type = '2', .link = "f");
    ADD(&t, .name = "l", .type = '2', .link = "g");
    ADD(&t, .name = "p", .type = '6', .mode = 0600);
    ADD(&t, .name = "p", .data = "no pipe");
    ADD(&t, .name = "d", .type = '5', .mode = 0700, .mtime = 5);
    ADD(&t, .name = "d/x", .data = "x");
    ADD(&t, .name = "d", .type = '5', .mode = 0750, .mtime = 7);
    ADD(&t, .name = "e", .type = '5', .mode = 0700);
    ADD(&t, .name = "e", .data = "no directory");
    struct stat st;
    check(run_tar(&t) && holds("f", "second") && holds("g", "first") && holds("p", "no pipe") &&
              holds("e", "no directory") && (mode_of("f") & 07777) == 0640,
          "a later entry replaces an earlier one");
    check(stat(in_out("d"), &st) == 0 && (st.st_mode & 07777) == 0750 && st.st_mtime == 7 &&
              holds("d/x", "x"),
          "a directory keeps its children and takes the later mode and time");
    ADD(&t, .name = "f", .data = "x");
    ADD(&t, .name = "f", .type = '5', .mode = 0755);
    run_tar(&t);
    check(refused("invalid", "an earlier entry of this name is not"), "no directory over a file");
    ADD(&t, .name = "f", .type = '2', .link = "/tmp");
    ADD(&t, .name = "f", .type = '5', .mode = 0755);
    run_tar(&t);
    check(refused("invalid", "an earlier entry of this name is not"), "nor over a link");
    ADD(&t, .name = "d/x", .data = "x");
    ADD(&t, .name = "d", .data = "x");
    run_tar(&t);
    check(refused("invalid", "would replace a directory that is not empty"),
          "no file over a full directory");
    ADD(&t, .name = "d/e", .type = '5', .mode = 0755);
    ADD(&t, .name = "d/e/x", .type = '3');
    ADD(&t, .name = "d/e", .type = '2', .link = "/tmp");
    ADD(&t, .name = "d/e/y", .data = "x");
    run_tar(&t);
    check(refused("invalid", "symbolic link \"d/e\" -> \"/tmp\""),
          "a directory that became a link is not entered");
}

/* ---- metadata ---- */

static void metadata(void)
{
    struct tar t = {0};
    struct stat st;
    char value[8] = "";
    static const char caps[20] = "\1\0\0\2\0\x20";
    ADD(&t, .name = ".", .type = '5', .mode = 0711, .mtime = 42);
    ADD(&t, .name = "none", .type = '5', .mode = TAR_MODE_NONE, .mtime = 77);
    ADD(&t, .name = "none/child", .data = "c", .mode = TAR_MODE_NONE);
    ADD(&t, .name = "ro", .type = '5', .mode = 0555);
    ADD(&t, .name = "ro/sub", .type = '5', .mode = 02555);
    ADD(&t, .name = "ro/sub/f", .data = "f");
    ADD(&t, .name = "sticky", .type = '5', .mode = 01777);
    ADD(&t, .name = "suid", .data = "s", .mode = 06755);
    tar_pax_text(&t, "mtime", "123.456789012");
    ADD(&t, .name = "when", .data = "w");
    tar_pax_text(&t, "SCHILY.xattr.user.colour", "blue");
    ADD(&t, .name = "attr", .data = "a", .mode = 0444);
    tar_pax(&t, "SCHILY.xattr.security.capability", caps, sizeof caps);
    ADD(&t, .name = "caps", .data = "a", .mode = 0755);
    ADD(&t, .name = "fifo", .type = '6', .mode = 0622);
    ADD(&t, .name = "dev/null", .type = '3', .mode = 0666);
    ADD(&t, .name = "dev/sda", .type = '4', .mode = 0660);
    bool good = run_tar(&t);
    check(good && strstr(report, " 2") == report + strlen(report) - 2,
          "skips and counts device nodes");
    check(access(in_out("dev/null"), F_OK) < 0 && access(in_out("dev/sda"), F_OK) < 0 &&
              S_ISFIFO(mode_of("fifo")) && (mode_of("fifo") & 07777) == 0622,
          "makes a fifo and no device");
    check(lstat(out, &st) == 0 && (st.st_mode & 07777) == 0711 && st.st_mtime == 42,
          "gives the root its metadata");
    check(lstat(in_out("none"), &st) == 0 && (st.st_mode & 07777) == 0 && st.st_mtime == 77,
          "a directory of mode 0 took its child");
    check((mode_of("ro") & 07777) == 0555 && (mode_of("sticky") & 07777) == 01777 &&
              ((mode_of("ro/sub") & 07777) == 02555 || (who != ROOT && getuid() != 0)),
          "read-only directories took theirs");
    check((mode_of("suid") & 07777) == 06755, "keeps setuid bits");
    check(lstat(in_out("when"), &st) == 0 && st.st_mtim.tv_sec == 123 &&
              st.st_mtim.tv_nsec == 456789012,
          "keeps nanoseconds");
    bool no_xattrs = setxattr(out, "user.probe", "x", 1, 0) < 0 && errno == ENOTSUP;
    check(no_xattrs || (getxattr(in_out("attr"), "user.colour", value, sizeof value) == 4 &&
                        !memcmp(value, "blue", 4)),
          "keeps user attributes of a read-only file");
    check(who == USER || getxattr(in_out("caps"), "security.capability", NULL, 0) > 0,
          "keeps file capabilities");
}

static void owners(void)
{
    struct tar t = {0};
    struct stat st;
    ADD(&t, .name = "f", .data = "x", .uid = 1234, .gid = 567, .mode = 06755);
    ADD(&t, .name = "l", .type = '2', .link = "f", .uid = 1234, .gid = 567);
    ADD(&t, .name = "d", .type = '5', .uid = 1234, .gid = 567, .mode = 0700);
    ADD(&t, .name = "d/g", .data = "y", .uid = 1234, .gid = 567);
    ADD(&t, .name = "e", .type = '5', .uid = 1234, .gid = 567, .mode = 0700);
    ADD(&t, .name = "e", .type = '5', .uid = 0, .gid = 0, .mode = 0700);
    check(run_tar(&t), "takes foreign owners");
    if (who == ROOT) {
        check(lstat(in_out("f"), &st) == 0 && st.st_uid == 1234 && st.st_gid == 567 &&
                  (st.st_mode & 07777) == 06755 && lstat(in_out("l"), &st) == 0 &&
                  st.st_uid == 1234 && lstat(in_out("d"), &st) == 0 && st.st_gid == 567 &&
                  lstat(in_out("d/g"), &st) == 0 && st.st_uid == 1234,
              "gives everything its owner");
        check(lstat(in_out("e"), &st) == 0 && st.st_uid == 0 && st.st_gid == 0,
              "the later owner of a directory counts");
        tar_pax_text(&t, "uid", "4294967295");
        ADD(&t, .name = "f", .data = "x");
        run_tar(&t);
        check(refused("invalid", "owner 4294967295:0 cannot be mapped here"),
              "refuses an owner that means none");
    } else {
        check((mode_of("f") & 07777) == 0755, "a squashed owner takes setuid with it");
    }
}

static void attributes_refused(void)
{
    static const char *const keys[] = {
        "SCHILY.xattr.trusted.overlay.opaque",
        "SCHILY.xattr.user.overlay.redirect",
        "LIBARCHIVE.xattr.user%2eoverlay.opaque",
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        struct tar t = {0};
        tar_pax_text(&t, keys[i], "eQ==");
        ADD(&t, .name = "d", .type = '5', .mode = 0755);
        run_tar(&t);
        check(refused("invalid", "which belongs to the overlay"), "refuses %s", keys[i]);
    }
}

static void sparse(void)
{
    struct tar t = {0};
    struct stat st;
    char map[512] = "2\n0\n4\n1073741824\n4\n";
    tar_pax_text(&t, "GNU.sparse.major", "1");
    tar_pax_text(&t, "GNU.sparse.minor", "0");
    tar_free(&t);
    /* the three records belong into one header */
    const char *records = "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
                          "30 GNU.sparse.name=the/sparse\n34 GNU.sparse.realsize=2147483648\n";
    tar_header(&t,
               &(struct tar_entry){.name = "pax", .type = 'x', .size = (long long)strlen(records)});
    tar_put(&t, records, strlen(records));
    tar_pad(&t);
    tar_header(&t, &(struct tar_entry){.name = "x", .mode = 0644, .size = 512 + 8});
    tar_put(&t, map, sizeof map);
    tar_put(&t, "headtail", 8);
    tar_pad(&t);
    bool good = run_tar(&t);
    check(good && lstat(in_out("the/sparse"), &st) == 0 && st.st_size == 2147483648LL &&
              st.st_blocks < 1000,
          "a sparse file stays sparse");
    char tail[5] = "";
    int fd = open(in_out("the/sparse"), O_RDONLY);
    check(fd >= 0 && pread(fd, tail, 4, 1073741824) == 4 && !strcmp(tail, "tail"),
          "its data lies where it belongs");
    if (fd >= 0)
        close(fd);
}

/* ---- damage ---- */

static const struct {
    const char *name;
    int filter;
} filters[] = {
    {"gzip", ARCHIVE_FILTER_GZIP}, {"bzip2", ARCHIVE_FILTER_BZIP2}, {"xz", ARCHIVE_FILTER_XZ},
    {"zstd", ARCHIVE_FILTER_ZSTD}, {"lz4", ARCHIVE_FILTER_LZ4},
};

/* 1 MiB that does not compress, in one file. */
static void noise_add(struct tar *t)
{
    enum { SIZE = 1024 * 1024 };
    char *noise = malloc(SIZE);
    uint32_t state = 12345;
    for (int i = 0; noise && i < SIZE; i++) {
        state = state * 1664525 + 1013904223;
        noise[i] = (char)(state >> 24);
    }
    ADD(t, .name = "noise", .data = noise, .size = SIZE);
    tar_end(t);
    free(noise);
}

static void damage(void)
{
    struct tar t = {0};
    noise_add(&t);
    run_bytes(t.data, t.len / 2, NULL);
    check(refused("corrupt", "archive entry \"noise\": Truncated"), "tells a truncated plain tar");
    run_bytes(t.data, 700, NULL);
    check(refused("corrupt", "runcated"), "tells one cut in a file's first block");
    t.data[5] ^= 1;
    run_bytes(t.data, t.len, NULL);
    check(refused("invalid", "not a tar archive"), "a broken first header is no tar");
    t.data[5] ^= 1;
    for (size_t i = 0; i < sizeof filters / sizeof filters[0]; i++) {
        struct tar c = {0};
        tar_compress(&c, filters[i].filter, t.data, t.len);
        check(run_bytes(c.data, c.len, NULL), "reads %s", filters[i].name);
        out_renew();
        check(run_into(c.data, c.len, true, NULL), "reads %s from a pipe", filters[i].name);
        run_bytes(c.data, c.len / 2, NULL);
        check(refused("corrupt", ""), "tells a truncated %s", filters[i].name);
        /* libarchive writes zstd without checksums */
        c.data[c.len / 2] ^= 0x10;
        run_bytes(c.data, c.len, NULL);
        check(refused("corrupt", "") || filters[i].filter == ARCHIVE_FILTER_ZSTD,
              "tells a flipped bit in %s", filters[i].name);
        tar_free(&c);
    }
    struct tar z = {0}, zz = {0};
    tar_compress(&z, ARCHIVE_FILTER_XZ, t.data, t.len);
    tar_compress(&zz, ARCHIVE_FILTER_XZ, z.data, z.len);
    run_bytes(zz.data, zz.len, NULL);
    check(refused("invalid", "compressed more than once"), "takes one compression off, not two");
    tar_free(&z);
    tar_free(&zz);
    tar_put(&t, "garbage", 7);
    check(run_bytes(t.data, t.len, NULL), "tolerates garbage after the end");
    tar_compress(&z, ARCHIVE_FILTER_GZIP, t.data, t.len);
    tar_put(&z, "garbage", 7);
    check(run_bytes(z.data, z.len, NULL), "also after gzip");
    tar_free(&z);
    tar_free(&t);
}

static void no_tar(void)
{
    static const char zip[] = "PK\3\4\24\0\0\0\0\0", text[] = "#!/bin/sh\necho hello\n";
    char zeros[10240] = {0};
    struct tar z = {0};
    run_bytes("", 0, NULL);
    check(refused("invalid", "not a tar archive"), "an empty file is no tar");
    run_bytes(text, sizeof text - 1, NULL);
    check(refused("invalid", "not a tar archive"), "nor is a script");
    memcpy(zeros, zip, sizeof zip);
    run_bytes(zeros, sizeof zeros, NULL);
    check(refused("invalid", "not a tar archive"), "nor is a zip");
    memcpy(zeros, "070701", 6);
    run_bytes(zeros, sizeof zeros, NULL);
    check(refused("invalid", "not a tar archive"), "nor is a cpio");
    tar_compress(&z, ARCHIVE_FILTER_GZIP, text, sizeof text - 1);
    run_bytes(z.data, z.len, NULL);
    check(refused("invalid", "not a tar archive"), "nor is a compressed script");
    tar_free(&z);
    memset(zeros, 0, sizeof zeros);
    check(run_bytes(zeros, sizeof zeros, NULL) && !strcmp(report, "ok 0 0 0"),
          "an archive without entries is one");
}

/* ---- limits ---- */

static void limits(void)
{
    enum { CHUNK = 16 * 1024 * 1024 };
    struct tar t = {0}, z = {0}, piece = {0};
    char *zeros = calloc(1, CHUNK);
    /* 3 GiB, compressed once and repeated */
    tar_header(&t, &(struct tar_entry){.name = "bomb", .mode = 0644, .size = 3LL << 30});
    tar_compress(&z, ARCHIVE_FILTER_GZIP, t.data, t.len);
    tar_compress(&piece, ARCHIVE_FILTER_GZIP, zeros, CHUNK);
    for (int i = 0; i < 192; i++)
        tar_put(&z, piece.data, piece.len);
    run_bytes(z.data, z.len, (const char *const[]){"--max-bytes", "20000000", NULL});
    struct stat st;
    check(refused("resource", "\"bomb\": the archive holds more than 20000000 bytes"),
          "stops at --max-bytes");
    check(lstat(in_out("bomb"), &st) == 0 && st.st_size <= 20000000, "and writes no more");
    tar_free(&z);
    tar_free(&piece);
    tar_free(&t);
    /* data of a hard link is not written, so this costs no disk */
    ADD(&t, .name = "f", .data = "x");
    tar_pax_text(&t, "size", "3221225472");
    tar_header(&t, &(struct tar_entry){.name = "g", .type = '1', .link = "f", .mode = 0644});
    tar_compress(&z, ARCHIVE_FILTER_ZSTD, t.data, t.len);
    tar_compress(&piece, ARCHIVE_FILTER_ZSTD, zeros, CHUNK);
    for (int i = 0; i < 192; i++)
        tar_put(&z, piece.data, piece.len);
    run_bytes(z.data, z.len, NULL);
    check(refused("resource", "looks like a decompression bomb"), "recognizes a bomb");
    tar_free(&z);
    tar_free(&piece);
    tar_free(&t);
    free(zeros);
    for (int i = 0; i < 11; i++) {
        char name[16];
        snprintf(name, sizeof name, "f%d", i);
        ADD(&t, .name = name, .data = "x");
    }
    tar_end(&t);
    run_bytes(t.data, t.len, (const char *const[]){"--max-files", "10", NULL});
    check(refused("resource", "more than 10 files"), "stops at --max-files");
    check(run_bytes(t.data, t.len, (const char *const[]){"--max-files", "11", NULL}),
          "and not before");
    tar_free(&t);
    ADD(&t, .name = "a/b/c/d/e/f/g/h/i/j/k", .data = "x");
    ADD(&t, .name = "x", .data = "x");
    tar_end(&t);
    run_bytes(t.data, t.len, (const char *const[]){"--max-files", "10", NULL});
    check(refused("resource", "more than 10 files"), "counts implied directories");
    tar_free(&t);
}

/* ---- an ordinary tree, against GNU tar ---- */

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

static void round_trip(void)
{
    static const char *const formats[] = {"gnu", "pax", "oldgnu"};
    bool made = shell("set -e; cd %s; rm -rf tree; mkdir -p tree/a/b/c tree/empty; cd tree;"
                      "head -c 3000000 /dev/urandom >a/big; echo hi >a/b/c/hi; ln a/big a/hard;"
                      "ln -s ../a/big a/b/sym; ln -s /nowhere dangling; mkfifo pipe;"
                      "for i in $(seq 300); do echo $i >a/b/c/file-$i; done;"
                      "truncate -s 10M a/sparse; echo end >>a/sparse; chmod 4750 a/b/c/hi;"
                      "touch -d @1234567.125 a/b/c; chmod 555 a/b; : >empty/nothing",
                      base);
    check(made, "makes a tree to compare");
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        shell("cd %s && tar -S --format=%s --owner=0 --group=0 -cf t.tar -C tree .", base,
              formats[i]);
        char path[64];
        snprintf(path, sizeof path, "%s/t.tar", base);
        int fd = open(path, O_RDONLY);
        struct stat st;
        void *map = fd >= 0 && fstat(fd, &st) == 0
                        ? mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0)
                        : MAP_FAILED;
        bool good = map != MAP_FAILED && run_bytes(map, (size_t)st.st_size, NULL);
        /* an ordinary user's files are not root's, whatever the archive says */
        const char *filter = who == ROOT ? "" : "| grep -v 'Uid differs\\|Gid differs'";
        check(good && shell("cd %s && test -z \"$(tar -df t.tar -C out 2>&1 %s)\"", base, filter),
              "GNU tar finds no difference (%s)", formats[i]);
        bool same = shell("cd %s && diff -r --no-dereference -x pipe tree out", base);
        check(same, "nor does diff (%s)", formats[i]);
        check(mode_of("a/sparse") && lstat(in_out("a/sparse"), &st) == 0 && st.st_blocks < 100,
              "and holes are still holes (%s)", formats[i]);
        if (map != MAP_FAILED)
            munmap(map, (size_t)lseek(fd, 0, SEEK_END));
        if (fd >= 0)
            close(fd);
    }
}

static void progress(void)
{
    struct tar t = {0};
    noise_add(&t);
    t.len -= 1024;
    ADD(&t, .name = "more", .data = "x");
    noise_add(&t);
    bool good = run_bytes(t.data, t.len, (const char *const[]){"--progress", NULL});
    check(good && !strncmp(report, "at ", 3) && strstr(report, "\nok "), "reports progress");
    tar_free(&t);
}

/* ---- the jail, seen from outside while the program waits for more of its archive ---- */

static bool proc_says(pid_t pid, const char *line)
{
    char path[64], text[4096] = "";
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    return n > 0 && strstr(text, line);
}

static int open_files(pid_t pid)
{
    char path[64];
    int found = 0;
    for (int fd = 0; fd < 64; fd++) {
        struct stat st;
        snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)pid, fd);
        found += lstat(path, &st) == 0;
    }
    return found;
}

static void jail(void)
{
    enum { HALF = 3 * 512 * 1024 };
    struct tar t = {0};
    int ends[2], from;
    char *zeros = calloc(1, HALF), path[64], root[128] = "", line[64] = "";
    if (getuid() != 0 || !zeros || pipe2(ends, O_CLOEXEC) < 0) {
        free(zeros);
        return;
    }
    tar_header(&t, &(struct tar_entry){.name = "f", .size = 2 * HALF});
    tar_put(&t, zeros, HALF);
    out_renew();
    pid_t pid = program_start(ends[0], &from, (const char *const[]){"--progress", NULL});
    bool fed = write(ends[1], t.data, t.len) == (ssize_t)t.len && read(from, line, 63) > 0;
    snprintf(path, sizeof path, "/proc/%d/root", (int)pid);
    check(fed && proc_says(pid, "NoNewPrivs:\t1\n") && proc_says(pid, "Seccomp:\t2\n"),
          "runs under a filter and no_new_privs");
    /* CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP */
    check(
        proc_says(pid, who == USER ? "CapPrm:\t0000000000000000\n" : "CapPrm:\t000000008000001b\n"),
        "holds no capability but those that files need");
    check(readlink(path, root, sizeof root - 1) > 0 && !strcmp(root, who == USER ? "/" : out),
          "has the output directory as its root");
    /* 0, 1, 2, archive, directory, report, the file in the making */
    check(open_files(pid) == 7, "keeps no other descriptor");
    close(ends[1]);
    report_read(from);
    close(from);
    waitpid(pid, &status, 0);
    check(refused("corrupt", "Truncated"), "and notices that the rest does not come");
    tar_free(&t);
    free(zeros);
}

static void everything(void)
{
    names_refused();
    names_kept();
    names_deep();
    links_refused();
    links_made();
    duplicates();
    metadata();
    owners();
    attributes_refused();
    sparse();
    damage();
    no_tar();
    limits();
    round_trip();
    progress();
    jail();
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
    if (getuid() == 0)
        for (who = ROOT; who < USER; who++)
            everything();
    who = USER;
    everything();
    tree_remove(base);
    printf("1..%d\n", count);
    free((void *)(uintptr_t)program);
    return failures != 0;
}
