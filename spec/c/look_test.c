/* look_test.c - bough-look's list and grep, as TAP.
 *
 *   look_test [PROGRAM]       default: $BOUGH_LOOK, else ../../bough/bough-look from this program
 *
 * BOUGH_TEST_SEED makes other texts. Its parts have search_test.c. */
#define _GNU_SOURCE
#include "look_run.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include "../../src/look/jail.h"
#include "../../src/look/tree.h"

static uint64_t seed = 1;

static unsigned roll(unsigned below)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)(seed >> 33) % below;
}

/* ---- against grep ---- */

static const char *const words[] = {"foo", "bar",  "foobar", "Error", "return", "x", "  ", "\t",
                                    "(a)", "a.b",  "a*b",    "Foo",   "end",    "0", "17", "\r",
                                    "-",   "\xe9", "_",      "[z]",   "a\\b",   "é"};

/* Texts of some pieces' length, so that lines and context cross the buffer's borders. */
static void texts_make(int at)
{
    for (int i = 0; i < 40; i++) {
        char name[64], *text;
        size_t len;
        snprintf(name, sizeof name, "%s%d", i % 3 ? "f" : "sub/g", i);
        FILE *f = open_memstream(&text, &len);
        int lines = i < 2 ? 40000 : i == 2 ? 0 : (int)roll(60);
        for (int l = 0; l < lines; l++) {
            for (unsigned w = roll(6); w; w--)
                fputs(words[roll(sizeof words / sizeof *words)], f);
            if (l < lines - 1 || i % 2)
                fputc('\n', f);
        }
        fclose(f);
        file_write(at, name, text, len);
        free(text);
    }
}

static void grep_compared(int at, const char *theirs, const char *const *ours)
{
    char *text,
        *want = shell("cd %s/texts && LC_ALL=C grep -rnZa --no-group-separator %s . | sed "
                      "'s,^\\./,/,'",
                      base, theirs),
        *have, *sorted;
    look_args(at, ours);
    text = matches_text();
    have = lines_sorted(text);
    sorted = lines_sorted(want);
    check(status == 0 && reported("ok ") && same_text(have, sorted), "grep %s: as grep", theirs);
    free(text);
    free(have);
    free(want);
    free(sorted);
}
#define GREP(at, theirs, ...) \
    grep_compared(at, theirs, (const char *const[]){"grep", __VA_ARGS__, NULL})

static void test_grep(int dir)
{
    BOUGH_CLEANUP_FD int at = dir_make(dir, "texts");
    close(dir_make(at, "sub"));
    texts_make(at);
    static const char *const fixed[] = {"foo", "x",    "",   "a.b",     "a*b",
                                        "[z]", "a\\b", "\t", "nowhere", "\xe9"};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        char theirs[64];
        snprintf(theirs, sizeof theirs, "-F -e '%s'", fixed[i]);
        GREP(at, theirs, "--fixed", "-e", fixed[i]);
    }
    static const char *const regex[] = {
        "foo.*bar",  "^foo",  "bar$",      "^$",         "^",           "$",        "[^a-z]",
        "\\s+foo",   "\\S",   "\\W\\W",    "(foo|end)x", "(.)\\1x",     "o{2,}",    "[[:space:]]17",
        "\\bfoo\\b", "[^x]$", "^[^f]*foo", "x*",         "[[:upper:]]", "[\\(\\[]", "nowhere.*"};
    for (size_t i = 0; i < sizeof regex / sizeof *regex; i++) {
        char theirs[64];
        snprintf(theirs, sizeof theirs, "-P -e '%s'", regex[i]);
        GREP(at, theirs, "-e", regex[i]);
    }
    GREP(at, "-F -e foo -e 17 -e Error", "--fixed", "-e", "foo", "-e", "17", "-e", "Error");
    GREP(at, "-E -e '^foo' -e '17$' -e '(o)\\1b'", "-e", "^foo", "-e", "17$", "-e", "(o)\\1b");
    GREP(at, "-i -F -e FOO", "--fixed", "--ignore-case", "-e", "FOO");
    GREP(at, "-i -E -e 'foo|ERROR$'", "--ignore-case", "-e", "foo|ERROR$");
    GREP(at, "-P -e 'foo(?!\\s)'", "-e", "foo(?!\\s)");
    GREP(at, "-P -e '(?<=foo)bar'", "-e", "(?<=foo)bar");
    GREP(at, "-F -e Error -A2", "--fixed", "-e", "Error", "--after", "2");
    GREP(at, "-F -e Error -B3", "--fixed", "-e", "Error", "--before", "3");
    GREP(at, "-F -e endx -C40", "--fixed", "-e", "endx", "--before", "40", "--after", "40");
    GREP(at, "-F -e 17 -C1 -m3", "--fixed", "-e", "17", "--before", "1", "--after", "1",
         "--max-count", "3");
    GREP(at, "-F -e foobarfoo -C100000", "--fixed", "-e", "foobarfoo", "--before", "100000",
         "--after", "100000");
    GREP(at, "-F -e foo -m1", "--fixed", "-e", "foo", "--max-count", "1");
    GREP(at, "-F -e foo --include='g*'", "--fixed", "-e", "foo", "--glob", "g*");
    GREP(at, "-F -e foo --exclude-dir=sub", "--fixed", "-e", "foo", "--glob", "!sub");
}

/* ---- what grep's own records say ---- */

static void test_records(int dir)
{
    struct bough_match m = {0};
    uint32_t sub[6];
    BOUGH_CLEANUP_FD int at = dir_make(dir, "records");
    file_write(at, "f", "one\nfoo and foo\nthree\nfoo", 25);
    LOOK(at, "grep", "-e", "fo+", "--fixed");
    check(reported("ok 0 0 1") && !output_len, "grep: --fixed takes a pattern as it stands");
    LOOK(at, "grep", "-e", "fo+");
    memset(sub, 0, sizeof sub);
    if (first_match(&m) && m.sub_count == 2)
        memcpy(sub, m.subs, 16);
    check(reported("ok 2 0 1") && m.line_number == 2 && m.offset == 4 && m.line_len == 11 &&
              m.whole_len == 11 && sub[0] == 0 && sub[1] == 3 && sub[2] == 8 && sub[3] == 11 &&
              !strcmp(m.path, "/f"),
          "grep: line number, offset, submatches");
    LOOK(at, "grep", "-e", "f", "--path", "//f/../f", "--path", "f", "--max-total", "3");
    check(reported("err not_found"), "grep: a path that goes through a file is no path");
    LOOK(at, "grep", "-e", "foo", "--path", ".//f", "--path", "f", "--max-total", "3");
    check(reported("ok 3 1 2"), "grep: --max-total over two starts");
    LOOK(at, "grep", "-e", "and", "--max-line", "5");
    check(first_match(&m) && m.line_len == 5 && m.whole_len == 11 && m.sub_count == 1 &&
              memcpy(sub, m.subs, 8) && sub[0] == 4 && sub[1] == 5,
          "grep: --max-line cuts the line and the submatch");
    LOOK(at, "grep", "-e", "three", "--max-line", "1", "-e", "hree");
    check(first_match(&m) && m.sub_count == 1 && m.line_number == 3, "grep: none behind the cut");
    LOOK(at, "grep", "-e", "o*");
    check(reported("ok 4 0 1") && first_match(&m) && m.sub_count == 1,
          "grep: empty matches find lines and are no submatches");
    LOOK(at, "grep", "-e", "missing", "--path", "/nowhere");
    check(reported("err not_found 2 /nowhere"), "grep: a start must exist");
    LOOK(at, "grep", "-e", "a(b", "-e", "x");
    check(reported("err invalid 0 pattern a(b: missing closing parenthesis at offset 3"),
          "grep: says what is wrong with a pattern, and where");
    LOOK(at, "grep", "--fixed", "-e", "a\nb");
    check(reported("err invalid"), "grep: refuses a fixed newline");
    LOOK(at, "grep", "-e", "one\\nfoo");
    check(reported("ok 0"), "grep: nothing matches across a newline");
    LOOK(at, "grep");
    check(reported("err invalid"), "grep: wants a pattern");
    LOOK(at, "grep", "-e", "x", "--sideways");
    check(reported("err invalid 0 grep: unknown option --sideways"),
          "grep: names what it does not know");
    LOOK(at, "grep", "-e");
    check(reported("err invalid 0 -e: its value is missing"), "grep: an option without its value");
    LOOK(at, "grep", "-e", "x", "--max-count", "0");
    check(reported("err invalid 0 --max-count 0: give a number"), "grep: a number out of range");
    /* what looks like an option of the frame's is a pattern */
    LOOK(at, "grep", "-e", "--root-fd", "--path", "f");
    check(reported("ok 0 0 1"), "grep: a pattern like an option");
    file_write(at, "closed", "foo\n\nlast\n", 10);
    LOOK(at, "grep", "-e", "three", "--after", "1", "--path", "f");
    const char *cursor = output, *end = output + output_len;
    bool good = bough_match_next(&cursor, end, &m) == 1 && !m.unended;
    check(good && bough_match_next(&cursor, end, &m) == 1 && m.unended && m.type == 2,
          "grep: tells of the one line that no newline ends");
    LOOK(at, "grep", "-e", "$", "--path", "closed");
    int lines = 0;
    for (cursor = output, end = output + output_len;
         bough_match_next(&cursor, end, &m) == 1 && !m.unended;)
        lines++;
    check(lines == 3 && cursor == end, "grep: and of no other");
}

/* ---- long lines, binary files, holes ---- */

static void test_sizes(int dir)
{
    struct bough_match m = {0};
    BOUGH_CLEANUP_FD int at = dir_make(dir, "sizes");
    const size_t big = (size_t)9 << 20;
    BOUGH_CLEANUP_FREE char *text = malloc(big + 100);
    memset(text, 'a', big);
    memcpy(text, "first\nbegin", 11);
    memcpy(text + big, "needle\nnext line\nlast needle\n", 29);
    file_write(at, "long", text, big + 29);
    LOOK(at, "grep", "-e", "begin", "--after", "1");
    check(reported("ok 1 0 1") && first_match(&m) && m.line_number == 2 && m.line_len == 65536 &&
              m.whole_len == big, /* all but "first" and a newline, and "needle" */
          "grep: a line of 9 MiB, cut, with its length (%u)", m.whole_len);
    const char *cursor = output;
    bough_match_next(&cursor, output + output_len, &m);
    check(bough_match_next(&cursor, output + output_len, &m) == 1 && m.type == 2 &&
              m.line_number == 3 && m.offset == big + 7 && !strcmp(m.line, "next line"),
          "grep: and what comes behind it is in its place");
    LOOK(at, "grep", "-e", "needle", "--before", "5");
    check(reported("ok 1 0 1") && first_match(&m) && m.line_number == 3 && m.type == 2,
          "grep: is searched in its first 8 MiB, and no context");

    memset(text, 'x', 40000);
    text[40000] = '\0';
    memcpy(text + 40001, "\nfound\n", 7);
    file_write(at, "late", text, 40008);
    text[32767] = '\0';
    file_write(at, "early", text, 40008);
    LOOK(at, "grep", "-e", "found", "--path", "late", "--path", "early");
    check(reported("ok 1 0 1") && first_match(&m) && !strcmp(m.path, "/late") && m.line_number == 2,
          "grep: skips what has a NUL in its first 32 KiB only");

    memset(text, 'y', 40000);
    int fd = MUST(openat(at, "sparse", O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    MUST(write(fd, text, 40000));
    const off_t far = (off_t)1 << 40;
    MUST(pwrite(fd, "\nfound far\n", 11, far));
    close(fd);
    int64_t began = bough_now_ns();
    LOOK(at, "grep", "-e", "found far", "--path", "sparse");
    check(reported("ok 1 0 1") && first_match(&m) && m.offset == (uint64_t)far + 1 &&
              m.line_number == 2 && bough_now_ns() - began < 5000000000,
          "grep: a hole of a terabyte is not read");
    LOOK(at, "grep", "-e", "^y", "--path", "sparse");
    check(reported("ok 1 0 1") && first_match(&m) && m.whole_len == UINT32_MAX,
          "grep: a length of more than 32 bits says so");
    MUST(unlinkat(at, "sparse", 0));
}

/* ---- patterns that take for ever ---- */

static void test_hostile(int dir)
{
    BOUGH_CLEANUP_FD int at = dir_make(dir, "hostile");
    BOUGH_CLEANUP_FREE char *text = malloc(4 << 20);
    memset(text, 'a', 4 << 20);
    file_write(at, "a's", text, 4 << 20);
    file_write(at, "b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac\n", 44);
    LOOK(at, "grep", "-e", "(a|aa)+$", "--path", "b");
    check(reported("err resource 0 /b: pattern (a|aa)+$: takes more steps than allowed"),
          "grep: a pattern that explodes is an error with its name and the file's");
    int64_t began = bough_now_ns();
    LOOK(at, "grep", "-e", "a*a*a*[bc]");
    check(reported("err resource 0 /a's: pattern a*a*a*[bc]: takes") &&
              bough_now_ns() - began < 60000000000,
          "grep: one that is merely slow too (%.1f s)", (double)(bough_now_ns() - began) / 1e9);
    LOOK(at, "grep", "-e", "((a{1,200}){1,200}){1,200}");
    check(reported("err ") || reported("ok "), "grep: a pattern that grows");
    LOOK(at, "grep", "-e", "(?R)?a", "--path", "b");
    check(reported("err ") || reported("ok 1"), "grep: a pattern in itself");
}

/* ---- list ---- */

static void list_compared(int at, const char *name)
{
    /* the seconds of a time have a fraction in find's */
    char *want = shell("cd %s/odd && LC_ALL=C find . -mindepth 1 -printf '%%P %%s %%m %%U %%G %%n "
                       "%%y %%l %%T@\\n'",
                       base);
    char *text = NULL, *a, *b;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    LOOK(at, "list");
    const char *cursor = output, *last = NULL;
    struct bough_entry e;
    bool ordered = true;
    while (bough_listed_next(&cursor, output + output_len, &e) > 0) {
        const char *kind = bough_entry_kind(&e);
        fprintf(f, "%s %llu %o %u %u %llu %c %s %lld.%09u0\n", e.name, (unsigned long long)e.size,
                e.mode & 07777, e.uid, e.gid, (unsigned long long)e.nlink,
                !strcmp(kind, "symlink") ? 'l'
                : !strcmp(kind, "fifo")  ? 'p'
                : S_ISCHR(e.mode)        ? 'c'
                                         : *kind,
                e.target, (long long)e.mtime_sec, e.mtime_nsec);
        ordered = ordered && (!last || bough_tree_compare(last, e.name) < 0);
        last = e.name;
    }
    fclose(f);
    a = lines_sorted(text);
    b = lines_sorted(want);
    check(cursor == output + output_len && reported("ok ") && same_text(a, b),
          "list: %s, as find has it", name);
    check(ordered, "list: in order");
    free(a);
    free(b);
    free(want);
    free(text);
}

static void list_is(int at, const char *const *args, const char *want, const char *name)
{
    look_args(at, args);
    char *have = listed_text();
    check(reported("ok ") && same_text(have, want), "list: %s", name);
    free(have);
}
#define LIST(at, want, name, ...) \
    list_is(at, (const char *const[]){"list", __VA_ARGS__, NULL}, want, name)

static void test_list(int dir)
{
    BOUGH_CLEANUP_FD int at = dir_make(dir, "odd");
    close(dir_make(at, "d"));
    close(dir_make(at, "d/e"));
    close(dir_make(at, "d-"));
    file_write(at, "d/e/f", "foo\n", 4);
    file_write(at, "d-/x", "foo\n", 4);
    file_write(at, "d.c", "foo\n", 4);
    MUST(symlinkat("d/e", at, "link"));
    MUST(symlinkat("../../../../etc/passwd", at, "out"));
    MUST(symlinkat("loop2", at, "loop1"));
    MUST(symlinkat("loop1", at, "loop2"));
    MUST(symlinkat("..", at, "d/up"));
    MUST(mkfifoat(at, "fifo", 0644));
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/odd/socket", base);
    BOUGH_CLEANUP_FD int sock = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    MUST(bind(sock, (void *)&address, sizeof address));
    bool device = !mknodat(at, "null", S_IFCHR | 0666, makedev(1, 3));
    list_compared(at, "all types");
    if (device)
        MUST(unlinkat(at, "null", 0));
    LIST(at, "d\nd/e\nd/e/f\nd/up\nd-\nd-/x\nd.c\nfifo\nlink\nloop1\nloop2\nout\nsocket\n",
         "pre-order, bytewise", "--path", "/");
    LIST(at, "d\nd-\nd.c\nfifo\nlink\nloop1\nloop2\nout\nsocket\n", "--max-depth", "--max-depth",
         "1");
    LIST(at, "e\ne/f\nup\n", "from a directory", "--path", "d/");
    LIST(at, "f\n", "from a link to one", "--path", "/link");
    LIST(at, "\n", "a start that is a file", "--path", "/d/e/f");
    LIST(at, "\n", "a start that is a fifo", "--path", "/fifo");
    LIST(at, "d/e/f\nd-/x\nd.c\n", "--kind f", "--kind", "f");
    LIST(at, "d\nd/e\nd-\nfifo\nsocket\n", "--kind dps", "--kind", "dps");
    LIST(at, "d.c\n", "--glob", "--glob", "*.c");
    LIST(at, "d/e/f\n", "--glob with directories that do not match", "--glob", "/d/*/f");
    LIST(at, "d-\nd.c\nfifo\n", "--glob that excludes", "--glob", "!d", "--glob", "![!df]*");
    LIST(at, "d\nd/e\n", "--max-count", "--max-count", "2");
    check(reported("ok 2 1 0"), "list: says that it was cut short");
    LOOK(at, "list", "--kind", "d", "--max-count", "3");
    check(reported("ok 3 0 0"), "list: and that it was not");
    LOOK(at, "list", "--path", "/out");
    check(reported("err not_found 2 /out"), "list: a link that leads out leads nowhere");
    LOOK(at, "list", "--path", "loop1");
    check(reported("err invalid"), "list: links in a circle");
    LOOK(at, "list", "--kind", "x");
    check(reported("err invalid 0 --kind x"), "list: --kind takes known letters");
    LOOK(at, "grep", "-e", "foo");
    check(reported("ok 3 0 3"), "grep: regular files only");
    LOOK(at, "grep", "-e", "foo", "--path", "/fifo", "--path", "/socket", "--path", "/d.c");
    check(reported("ok 1 0 1"), "grep: also when others are asked for");
    LOOK(at, "grep", "-e", "root", "--path", "/../../../../etc/passwd");
    check(reported("err not_found"), "grep: \"..\" stays inside");
}

static void test_names(int dir)
{
    BOUGH_CLEANUP_FD int at = dir_make(dir, "names");
    static const char *const names[] = {"\x01", " ", "-e", "a\nb", "caf\xc3\xa9", "\xff\xfe", "*"};
    const size_t count = sizeof names / sizeof *names;
    static const size_t order[] = {0, 1, 6, 2, 3, 4, 5};
    for (size_t i = 0; i < count; i++)
        file_write(at, names[i], "find me", 7);
    LOOK(at, "list");
    const char *cursor = output;
    struct bough_entry e;
    size_t good = 0;
    while (bough_listed_next(&cursor, output + output_len, &e) > 0 && good < count)
        good += !strcmp(e.name, names[order[good]]);
    check(good == count && reported("ok 7 0 0"), "list: any name");
    LOOK(at, "grep", "-e", "find");
    struct bough_match m;
    cursor = output;
    good = 0;
    while (bough_match_next(&cursor, output + output_len, &m) > 0 && good < count)
        good += !strcmp(m.path + 1, names[order[good]]);
    check(good == count && reported("ok 7 0 7"), "grep: any name");
    MUST(fchmodat(at, "a\nb", 0, 0));
    if (geteuid() == 0) {
        LOOK(at, "grep", "-e", "find");
        check(reported("ok 7"), "grep: root reads what has no rights");
    }
}

static void test_deep(int dir)
{
    BOUGH_CLEANUP_FD int top = dir_make(dir, "deep");
    int at = dup(top);
    char name[201];
    memset(name, 'd', 200);
    name[200] = '\0';
    for (int i = 0; i < 3000; i++) {
        file_write(at, "after", "x", 1);
        int below = dir_make(at, name);
        close(at);
        at = below;
    }
    file_write(at, "zz", "bottom", 6);
    close(at);
    LOOK(top, "list", "--glob", "zz");
    const char *cursor = output;
    struct bough_entry e = {0};
    check(reported("ok 1 0 0") && bough_listed_next(&cursor, output + output_len, &e) == 1 &&
              e.name_len == 3000 * 201 + 2,
          "list: 3000 directories in one another");
    LOOK(top, "list", "--kind", "f", "--glob", "after", "--max-depth", "100");
    check(reported("ok 100 0 0"), "list: and not all of them");
    struct bough_match m = {0};
    LOOK(top, "grep", "-e", "bottom");
    check(reported("ok 1 0 3001") && first_match(&m) && m.path_len == 3000 * 201 + 3,
          "grep: at their bottom");
    /* rm -r knows how */
    free(shell("rm -rf %s/deep", base));
}

/* ---- the frame ---- */

static void test_frame(int dir)
{
    int out[2], rep[2];
    char line[200];
    MUST(pipe2(out, O_CLOEXEC));
    MUST(pipe2(rep, O_CLOEXEC));
    BOUGH_CLEANUP_FD int texts = MUST(openat(dir, "texts", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    MUST(fcntl(out[1], F_SETFL, O_NONBLOCK));
    static const char *const args[] = {"grep", "-e", "", NULL};
    pid_t pid = look_start(texts, out[1], rep[1], args);
    close(out[1]);
    close(rep[1]);
    /* it has filled the pipe when there is something to read */
    struct pollfd p = {.fd = out[0], .events = POLLIN};
    MUST(poll(&p, 1, 10000));
    close(out[0]);
    ssize_t n = read(rep[0], line, sizeof line - 1);
    line[n > 0 ? n - 1 : 0] = '\0';
    waitpid(pid, &status, 0);
    check(!strncmp(line, "ok ", 3) && WIFEXITED(status) && !WEXITSTATUS(status),
          "frame: ends well when nobody reads any more (%s)", line);
    close(rep[0]);

    LOOK(texts, "grep", "-e", "x", "--progress");
    check(reported("ok ") || reported("at "), "frame: shows progress");
    LOOK(texts, "sing");
    check(WEXITSTATUS(status) == 2, "frame: an unknown command");
    BOUGH_CLEANUP_FD int null = MUST(open("/dev/null", O_RDONLY | O_CLOEXEC));
    LOOK(null, "list");
    check(reported("err ") || reported("ok "), "frame: a root that is no directory");
}

/* What a process in the jail can still do: a bit for each thing that it must not. */
static int jail_try(int dir)
{
    int wrong = 0;
    struct bough_look look = {
        .root = {dir, -1}, .pool = -1, .hint_count = -1, .out = 1, .report = 2};
    bough_look_jail_roots(&look, false);
    if (bough_look_seal(NULL))
        return 128;
    wrong |= (openat(dir, "made", O_WRONLY | O_CREAT, 0600) >= 0) << 0;
    wrong |= (openat(dir, "f", O_RDWR) >= 0) << 1;
    wrong |= (socket(AF_UNIX, SOCK_STREAM, 0) >= 0) << 2;
    wrong |=
        (mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
        << 3;
    wrong |= (unlinkat(dir, "f", 0) == 0) << 4;
    wrong |= (openat(dir, ".", O_RDWR | O_TMPFILE, 0600) >= 0) << 5;
    wrong |= (openat(dir, "f", O_RDONLY) < 0) << 6;
    return wrong;
}

static void test_jail(int dir)
{
    BOUGH_CLEANUP_FD int at = dir_make(dir, "jail");
    file_write(at, "f", "x", 1);
    const char *preload = getenv("LD_PRELOAD");
    if (preload && strstr(preload, "vgpreload")) {
        printf("ok %d - jail # SKIP the filter would hold valgrind, too\n", ++tests);
        return;
    }
    pid_t pid = MUST(fork());
    if (!pid)
        _exit(jail_try(at));
    waitpid(pid, &status, 0);
    check(status == 0, "jail: reads below the root and does nothing else");
    pid = MUST(fork());
    if (!pid) {
        struct bough_look look = {
            .root = {at, -1}, .pool = -1, .hint_count = -1, .out = 1, .report = 2};
        bough_look_jail_roots(&look, false);
        if (bough_look_seal(NULL))
            _exit(128);
        _exit(open("/etc/passwd", O_RDONLY) >= 0 || openat(at, "..", O_RDONLY) >= 0);
    }
    waitpid(pid, &status, 0);
    if (status)
        printf("ok %d - jail # SKIP no Landlock here\n", ++tests);
    else
        check(true, "jail: and nothing outside");
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    if (getenv("BOUGH_TEST_SEED"))
        seed = strtoull(getenv("BOUGH_TEST_SEED"), NULL, 0);
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 40);
    const char *given = argc > 1 ? argv[1] : getenv("BOUGH_LOOK");
    program[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(program, '/');
    strcpy(slash ? slash + 1 : program, "../../bough/bough-look");
    if (given)
        snprintf(program, sizeof program, "%s", given);
    if (access(program, X_OK)) {
        printf("Bail out! %s: %s\n", program, strerror(errno));
        return 1;
    }
    MUST(mkdtemp(base) ? 0 : -1);
    BOUGH_CLEANUP_FD int dir = MUST(open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    test_grep(dir);
    test_records(dir);
    test_sizes(dir);
    test_list(dir);
    test_names(dir);
    test_deep(dir);
    test_frame(dir);
    test_jail(dir);
    test_hostile(dir);
    tree_remove(base);
    free(output);
    printf("1..%d\n", tests);
    return failures > 0;
}
