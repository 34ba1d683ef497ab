/* search_test.c - what bough-look is made of: patterns, globs, records; as TAP.
 *
 * BOUGH_TEST_SEED and BOUGH_TEST_ROUNDS repeat or lengthen the random parts. */
#define _GNU_SOURCE
#include "../../src/look/search.h"

#include <stdio.h>
#include <string.h>

#include "../../src/look/glob.h"
#include "../../src/look/rewrite.h"
#include "../../src/record.h"
#include "../../src/sys.h"
#include "tap.h"

static struct bough_err err;
static uint64_t seed = 1;

static unsigned roll(unsigned below)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)(seed >> 33) % below;
}

/* ---- patterns ---- */

/* A random pattern, most often one that PCRE2 takes. No lookahead in front: PCRE2 10.42 does not find
 * "(?= )b* " in a lone " ". */
static void pattern_roll(char *pattern, size_t size)
{
    static const char *const atoms[] = {"a",
                                        "b",
                                        ".",
                                        "\\s",
                                        "\\S",
                                        "\\w",
                                        "\\W",
                                        "\\d",
                                        "\\D",
                                        "[^a]",
                                        "[^-a]",
                                        "[^\\s]",
                                        "[\\s,]",
                                        "[\\Wa]",
                                        "[\\D]",
                                        "[[:space:]a]",
                                        "[^[:alpha:]]",
                                        "^",
                                        "$",
                                        "\\b",
                                        "\\B",
                                        "\\x61",
                                        "[a-z]",
                                        " ",
                                        ",",
                                        "1",
                                        "\\.",
                                        "[^\\n]",
                                        "[\\w-]",
                                        "\\t",
                                        "[^a\\]]",
                                        "[[:^alpha:]]",
                                        "\\x0a",
                                        "\\n",
                                        "\\R",
                                        "\\H",
                                        "\\N",
                                        "\\Qa\\E",
                                        "[\\x00-\\x7f]",
                                        "[\\t-a]",
                                        "\\A",
                                        "\\z",
                                        "\\G"};
    /* "1" stands for an atom and the pattern so far, or the other way round, "2" for the other */
    static const char *const wraps[] = {"12",     "1*2",    "1+2",     "1?2",     "(?:1|2)",
                                        "(1)2",   "1(?=2)", "(?!1)2",  "(?<=1)2", "(?<!1)2",
                                        "(?>1)2", "1++2",   "(?i:1)2", "1{2}2",   "(?s)12"};
    *pattern = '\0';
    for (unsigned n = 1 + roll(3); n; n--) {
        char before[200];
        const char *atom = atoms[roll(sizeof atoms / sizeof *atoms)];
        bool swapped = roll(2);
        snprintf(before, sizeof before, "%.190s", pattern);
        size_t len = 0;
        for (const char *w = wraps[roll(sizeof wraps / sizeof *wraps)]; *w && len < size; w++) {
            const char *part = *w == '1' ? (swapped ? before : atom) : swapped ? atom : before;
            bool place = *w == '1' || (*w == '2' && w[-1] != '{');
            len += (size_t)snprintf(pattern + len, size - len, place ? "%s" : "%.1s",
                                    place ? part : w);
        }
    }
}

/* The lines that `s` finds, a bit each; UINT64_MAX for a failure or a place that is in no line. */
static uint64_t lines_found(struct bough_search *s, const char *text, size_t len)
{
    uint64_t found = 0;
    unsigned line = 0;
    size_t from = 0, at;
    int r;
    bough_search_begin(s, text, len);
    while ((r = bough_search_next(s, from, &at, NULL)) > 0) {
        if (at < from || at > len)
            return UINT64_MAX;
        for (; from < at; from++)
            line += text[from] == '\n';
        found |= UINT64_C(1) << line;
        const char *newline = memchr(text + at, '\n', len - at);
        if (!newline)
            break;
        from = (size_t)(newline - text) + 1;
        line++;
    }
    return r < 0 ? UINT64_MAX : found;
}

/* Whole texts and single lines must give the same: "(?#)" keeps a pattern from being rewritten. */
static void test_rewrite(void)
{
    static const char letters[] = "aAbB ,.1\n\n\t_";
    const char *rounds = getenv("BOUGH_TEST_ROUNDS");
    const char *preload = getenv("LD_PRELOAD");
    long compared = 0, rewritten = 0, wrong = 0;
    if (preload && strstr(preload, "vgpreload")) {
        printf("ok %d - search # SKIP valgrind takes code that PCRE2 makes for reading too far\n",
               ++tests);
        return;
    }
    for (long i = rounds ? atol(rounds) : 4000; i; i--) {
        char plain[600] = "(?#)", *pattern = plain + 4, text[60], *out = NULL;
        char *one_list[] = {pattern}, *lines_list[] = {plain};
        struct bough_search one = {0}, lines = {0};
        size_t len = roll(sizeof text);
        pattern_roll(pattern, sizeof plain - 4);
        for (size_t k = 0; k < len; k++)
            text[k] = letters[roll(sizeof letters - 1)];
        if (!bough_search_compile(&one, one_list, 1, false, i % 2, NULL) &&
            !bough_search_compile(&lines, lines_list, 1, false, i % 2, NULL)) {
            uint64_t a = lines_found(&one, text, len), b = lines_found(&lines, text, len);
            rewritten += bough_rewrite(pattern, &out) < BOUGH_REWRITE_NONE;
            compared++;
            if (a != b) {
                printf("# pattern %s: lines %#llx, one by one %#llx\n", pattern,
                       (unsigned long long)a, (unsigned long long)b);
                wrong++;
            }
        }
        free(out);
        bough_search_free(&one);
        bough_search_free(&lines);
    }
    check(!wrong && rewritten > compared / 10,
          "search: whole texts have the lines that lines have (%ld patterns, %ld at once)",
          compared, rewritten);
}

/* ---- globs ---- */

static bool glob_is(const char *pattern, const char *path, bool dir)
{
    struct bough_globs g = {0};
    const char *slash = strrchr(path, '/');
    if (bough_globs_add(&g, pattern, &err))
        return false;
    bool r = bough_globs_want(&g, path, slash ? slash + 1 : path, dir);
    bough_globs_free(&g);
    return r;
}

static void test_glob(void)
{
    static const struct {
        const char *pattern, *path;
        bool want;
    } cases[] = {
        {"*.c", "a/b/x.c", true},
        {"*.c", "x.cc", false},
        {"/*.c", "x.c", true},
        {"/*.c", "a/x.c", false},
        {"a/*.c", "a/x.c", true},
        {"a/*.c", "b/a/x.c", false},
        {"a/*.c", "a/b/x.c", false},
        {"a/**/*.c", "a/x.c", true},
        {"a/**/*.c", "a/b/c/x.c", true},
        {"**/x", "x", true},
        {"**/x", "a/b/x", true},
        {"**/x", "a/bx", false},
        {"a/**", "a/b/c", true},
        {"a/**", "a", false},
        {"**", "a/b", true},
        {"a**b", "axxb", true},
        {"x/a**b", "x/a/b", false},
        {"?", "a", true},
        {"?", "ab", false},
        {"[a-c]x", "bx", true},
        {"[!a-c]x", "bx", false},
        {"[^a-c]x", "dx", true},
        {"[]]", "]", true},
        {"[!]]", "x", true},
        {"[a-]", "-", true},
        {"\\*", "*", true},
        {"\\*", "a", false},
        {"{a,b}c", "bc", true},
        {"{a,b}c", "cc", false},
        {"{a,{b,c}d}e", "cde", true},
        {"{a,}b", "b", true},
        {"x{a/b,c}", "xa/b", true},
        {"{**/,}q", "z/q", true},
        {"*.{c,h}", "d/x.h", true},
        {"!*.c", "x.c", false},
        {"!*.c", "x.h", true},
        {"A", "a", false},
        {"*", ".hidden", true},
        {"\xff?", "\xff\xfe", true},
        {"a b", "x/a b", true},
        {"d/", "d", false},
        {"a,b}", "a,b}", true},
        {"**/a/**/b", "q/a/b", true},
        {"**/a/**/b", "a/x/y/b", true},
        {"**/a/**/b", "ab", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(glob_is(cases[i].pattern, cases[i].path, false) == cases[i].want, "glob: %s %s %s",
              cases[i].pattern, cases[i].want ? "takes" : "leaves", cases[i].path);
    check(glob_is("d/", "a/d", true), "glob: d/ takes a directory");
    static const char *const bad[] = {"",    "!",     "/",           "[a", "[",  "{a,b",
                                      "a\\", "[b-a]", "[[:alpha:]]", "[!", "[]", "{"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct bough_globs g = {0};
        err = (struct bough_err){0};
        check(bough_globs_add(&g, bad[i], &err) && err.kind == BOUGH_ERR_invalid,
              "glob: refuses \"%s\": %s", bad[i], err.msg);
        bough_globs_free(&g);
    }

    char pattern[1200] = "", path[4096];
    for (int i = 0; i < 100; i++)
        strcat(pattern, "{*a,**a}*");
    memset(path, 'a', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    path[sizeof path - 2] = 'b';
    int64_t began = bough_now_ns();
    check(!glob_is(pattern, path, false) || true, "glob: stars and braces without end");
    for (int i = 0; i < 200; i++)
        memcpy(pattern + i * 3, "*a*", 4);
    strcat(pattern, "c");
    check(!glob_is(pattern, path, false) && bough_now_ns() - began < 5000000000,
          "glob: stars do not explode");
    memset(pattern, '{', 1100);
    struct bough_globs g = {0};
    check(bough_globs_add(&g, pattern, &err), "glob: braces nested too deep");
    bough_globs_free(&g);

    check(!bough_globs_add(&g, "/usr/lib/*.so", &err) && bough_globs_enter(&g, "usr", "usr") &&
              bough_globs_enter(&g, "usr/lib", "lib") && !bough_globs_enter(&g, "etc", "etc") &&
              !bough_globs_enter(&g, "usr/lib/x", "x"),
          "glob: directories in which nothing can match are not entered");
    check(!bough_globs_add(&g, "!lib", &err) && !bough_globs_enter(&g, "usr/lib", "lib"),
          "glob: nor those that are excluded");
    bough_globs_free(&g);
}

/* ---- records, damaged ---- */

static int any_next(int kind, const char **cursor, const char *end)
{
    struct bough_match m;
    struct bough_change c;
    struct bough_entry e;
    return kind == 0   ? bough_match_next(cursor, end, &m)
           : kind == 1 ? bough_change_next(cursor, end, &c)
                       : bough_listed_next(cursor, end, &e);
}

static void test_damage(void)
{
    uint32_t subs[] = {1, 2, 3, 5};
    const struct bough_match m = {.type = 1,
                                  .line_number = 7,
                                  .path = "/a",
                                  .line = "hello",
                                  .path_len = 2,
                                  .line_len = 5,
                                  .whole_len = 9,
                                  .sub_count = 2,
                                  .subs = subs};
    const struct bough_change c = {.op = 'C', .what = 1, .path = "/p", .path_len = 2};
    const struct bough_entry e = {.name = "a/b", .name_len = 3, .target = "t", .target_len = 1};
    static const char *const names[] = {"match", "change", "listed"};
    for (int kind = 0; kind < 3; kind++) {
        size_t size = kind == 0   ? bough_match_size(&m)
                      : kind == 1 ? bough_change_size(&c)
                                  : bough_listed_size(&e);
        char *good = malloc(size);
        if (kind == 0)
            bough_match_put(good, &m);
        else if (kind == 1)
            bough_change_put(good, &c);
        else
            bough_listed_put(good, &e);
        const char *cursor = good;
        bool fine = any_next(kind, &cursor, good + size) == 1 && cursor == good + size &&
                    any_next(kind, &cursor, good + size) == 0;
        for (size_t cut = 0; cut < size; cut++) {
            /* memory of its own, so that reading too far is seen */
            char *copy = malloc(cut + 1);
            memcpy(copy, good, cut);
            cursor = copy;
            fine = fine && any_next(kind, &cursor, copy + cut) == 0 && cursor == copy;
            free(copy);
        }
        for (size_t i = 0; i < 20000; i++) {
            char *copy = malloc(size);
            memcpy(copy, good, size);
            copy[roll((unsigned)size)] = (char)roll(256);
            copy[roll((unsigned)size)] = (char)roll(256);
            cursor = copy;
            (void)any_next(kind, &cursor, copy + size);
            fine = fine && (cursor == copy || cursor == copy + size || cursor < copy + size);
            free(copy);
        }
        check(fine, "record: %s, cut short and damaged", names[kind]);
        free(good);
    }
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (getenv("BOUGH_TEST_SEED"))
        seed = strtoull(getenv("BOUGH_TEST_SEED"), NULL, 0);
    test_rewrite();
    test_glob();
    test_damage();
    printf("1..%d\n", tests);
    return failures > 0;
}
