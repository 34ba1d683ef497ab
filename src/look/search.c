#define _GNU_SOURCE
#define PCRE2_CODE_UNIT_WIDTH 8
#include "search.h"

#include <ctype.h>
#include <pcre2.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>

#include "../sys.h"
#include "literal.h"
#include "rewrite.h"

enum {
    MATCH_LIMIT = 10 * 1000 * 1000,
    HEAP_KIB = 64 * 1024, /* for the interpreter */
    JIT_STACK_BYTES = 4 * 1024 * 1024,
    PATIENCE = 5, /* seconds */
};

struct bough_search_code {
    pcre2_code *code;
    const char *pattern; /* for messages; NULL for several in one */
    bool by_line;
    /* what is known about this text: the first match at or behind what was asked for last */
    bool known;
    size_t next; /* SIZE_MAX: none */
};

struct bough_search_tools {
    pcre2_compile_context *compile;
    pcre2_match_context *match;
    pcre2_match_data *data;
    pcre2_jit_stack *stack;
};

/* ---- patience ---- */

/* Odd while a search is on. */
static volatile unsigned search_serial;
static void (*search_too_long)(void);

static void search_second(int signal)
{
    static unsigned seen, seconds;
    (void)signal;
    if (!(search_serial & 1) || search_serial != seen) {
        seen = search_serial;
        seconds = 0;
    } else if (++seconds >= PATIENCE) {
        search_too_long();
    }
}

int bough_search_watch(void (*too_long)(void), struct bough_err *err)
{
    struct sigaction action = {.sa_handler = search_second, .sa_flags = SA_RESTART};
    struct itimerval second = {.it_interval = {.tv_sec = 1}, .it_value = {.tv_sec = 1}};
    search_too_long = too_long;
    if (sigaction(SIGVTALRM, &action, NULL) || setitimer(ITIMER_VIRTUAL, &second, NULL))
        return bough_err_sys(err, errno, "setitimer");
    return 0;
}

/* ---- compiling ---- */

static int tools_make(struct bough_search *s, struct bough_err *err)
{
    struct bough_search_tools *t = s->tools = calloc(1, sizeof *t);
    if (!t)
        return bough_err_sys(err, ENOMEM, "pattern");
    t->compile = pcre2_compile_context_create(NULL);
    t->match = pcre2_match_context_create(NULL);
    t->data = pcre2_match_data_create(1, NULL);
    t->stack = pcre2_jit_stack_create(32 * 1024, JIT_STACK_BYTES, NULL);
    if (!t->compile || !t->match || !t->data)
        return bough_err_sys(err, ENOMEM, "pattern");
    pcre2_set_newline(t->compile, PCRE2_NEWLINE_LF);
    pcre2_set_match_limit(t->match, MATCH_LIMIT);
    pcre2_set_heap_limit(t->match, HEAP_KIB);
    if (t->stack) /* NULL where there is no JIT */
        pcre2_jit_stack_assign(t->match, NULL, t->stack);
    return 0;
}

static pcre2_code *code_compile(struct bough_search *s, const char *text, uint32_t options,
                                const char *pattern, struct bough_err *err)
{
    int error;
    PCRE2_SIZE offset;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED,
                                     options | PCRE2_NEVER_UTF | PCRE2_NEVER_UCP, &error, &offset,
                                     s->tools->compile);
    if (!code) {
        unsigned char why[256];
        pcre2_get_error_message(error, why, sizeof why);
        if (pattern)
            bough_err_set(err, BOUGH_ERR_invalid, "pattern %.150s: %s at offset %zu", pattern,
                          (char *)why, (size_t)offset);
        else
            bough_err_set(err, BOUGH_ERR_invalid, "patterns: together: %s", (char *)why);
    }
    return code;
}

static int code_add(struct bough_search *s, const char *text, bool by_line, uint32_t options,
                    const char *pattern, struct bough_err *err)
{
    struct bough_search_code *more = realloc(s->codes, (s->count + 1) * sizeof *more);
    if (!more)
        return bough_err_sys(err, ENOMEM, "pattern");
    s->codes = more;
    pcre2_code *code =
        code_compile(s, text, options | (by_line ? 0 : PCRE2_MULTILINE), pattern, err);
    if (!code)
        return -1;
    /* what it cannot do (no memory that may be run, a construct it does not know) is interpreted */
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    s->codes[s->count++] =
        (struct bough_search_code){.code = code, .pattern = pattern, .by_line = by_line};
    return 0;
}

static void literal_put(FILE *out, const char *pattern)
{
    for (; *pattern; pattern++) {
        if ((unsigned char)*pattern < 0x80 && !isalnum((unsigned char)*pattern))
            fputc('\\', out);
        fputc(*pattern, out);
    }
}

/* One pattern: into `all`, which holds those that can be put together, or as a code of its own. */
static int pattern_take(struct bough_search *s, FILE *all, const char *pattern, bool fixed,
                        uint32_t options, struct bough_err *err)
{
    if (fixed) {
        if (strchr(pattern, '\n'))
            return bough_err_set(err, BOUGH_ERR_invalid,
                                 "pattern %.150s: a newline never matches: give each line as a "
                                 "pattern",
                                 pattern);
        fputs("|(?:", all);
        literal_put(all, pattern);
        fputc(')', all);
        return 0;
    }
    /* as it was given, for its mistakes and their places */
    pcre2_code *code = code_compile(s, pattern, options, pattern, err);
    if (!code)
        return -1;
    pcre2_code_free(code);
    BOUGH_CLEANUP_FREE char *text = NULL;
    switch (bough_rewrite(pattern, &text)) {
    case BOUGH_REWRITE_FAILED:
        return bough_err_sys(err, ENOMEM, "pattern");
    case BOUGH_REWRITE_FREE:
        fprintf(all, "|(?:%s)", text);
        return 0;
    case BOUGH_REWRITE_ALONE:
        return code_add(s, text, false, options, pattern, err);
    default:
        return code_add(s, pattern, true, options, pattern, err);
    }
}

int bough_search_compile(struct bough_search *s, char *const *patterns, size_t count, bool fixed,
                         bool ignore_case, struct bough_err *err)
{
    uint32_t options = ignore_case ? PCRE2_CASELESS : 0;
    BOUGH_CLEANUP_FREE char *text = NULL;
    size_t len = 0;
    *s = (struct bough_search){0};
    if (tools_make(s, err))
        return -1;
    FILE *all = open_memstream(&text, &len);
    if (!all)
        return bough_err_sys(err, errno, "pattern");
    int r = 0;
    for (size_t i = 0; !r && i < count; i++)
        r = pattern_take(s, all, patterns[i], fixed, options, err);
    if (fclose(all) && !r)
        r = bough_err_sys(err, ENOMEM, "pattern");
    if (!r && len)
        r = code_add(s, text + 1, false, options, count == 1 ? patterns[0] : NULL, err);
    if (!r && count == 1 && !fixed && !ignore_case)
        s->needle = bough_literal_required(patterns[0]);
    return r;
}

void bough_search_free(struct bough_search *s)
{
    for (size_t i = 0; i < s->count; i++)
        pcre2_code_free(s->codes[i].code);
    free(s->codes);
    free(s->needle);
    if (s->tools) {
        pcre2_compile_context_free(s->tools->compile);
        pcre2_match_context_free(s->tools->match);
        pcre2_match_data_free(s->tools->data);
        pcre2_jit_stack_free(s->tools->stack);
        free(s->tools);
    }
    *s = (struct bough_search){0};
}

/* ---- searching ---- */

/* 1 with the match's begin and end, 0, -1. */
static int code_match(struct bough_search *s, const struct bough_search_code *c, const char *text,
                      size_t len, size_t from, uint32_t options, size_t *begin, size_t *end,
                      struct bough_err *err)
{
    search_serial++;
    int r =
        pcre2_match(c->code, (PCRE2_SPTR)text, len, from, options, s->tools->data, s->tools->match);
    search_serial++;
    if (r == PCRE2_ERROR_NOMATCH)
        return 0;
    if (r >= 0) {
        const PCRE2_SIZE *found = pcre2_get_ovector_pointer(s->tools->data);
        *begin = found[0];
        *end = found[1];
        return 1;
    }
    const char *pattern = c->pattern ? c->pattern : "(one of several)";
    if (r == PCRE2_ERROR_MATCHLIMIT || r == PCRE2_ERROR_DEPTHLIMIT)
        return bough_err_set(err, BOUGH_ERR_resource,
                             "pattern %.150s: takes more steps than allowed: make it simpler",
                             pattern);
    if (r == PCRE2_ERROR_HEAPLIMIT || r == PCRE2_ERROR_JIT_STACKLIMIT || r == PCRE2_ERROR_NOMEMORY)
        return bough_err_set(err, BOUGH_ERR_resource,
                             "pattern %.150s: takes more memory than allowed: make it simpler",
                             pattern);
    unsigned char why[256];
    pcre2_get_error_message(r, why, sizeof why);
    return bough_err_set(err, BOUGH_ERR_invalid, "pattern %.150s: %s", pattern, (char *)why);
}

void bough_search_begin(struct bough_search *s, const char *text, size_t len)
{
    s->text = text;
    s->len = len;
    for (size_t i = 0; i < s->count; i++)
        s->codes[i].known = false;
}

static int next_by_line(struct bough_search *s, const struct bough_search_code *c, size_t from,
                        size_t *at, struct bough_err *err)
{
    while (from < s->len) {
        size_t begin, end;
        const char *line = s->text + from, *newline = memchr(line, '\n', s->len - from);
        size_t len = newline ? (size_t)(newline - line) : s->len - from;
        int r = code_match(s, c, line, len, 0, 0, &begin, &end, err);
        if (r) {
            *at = from;
            return r;
        }
        from += len + 1;
    }
    return 0;
}

/* Only lines that hold the needle are tried. */
static int next_by_needle(struct bough_search *s, const struct bough_search_code *c, size_t from,
                          size_t *at, struct bough_err *err)
{
    size_t needle_len = strlen(s->needle);
    while (from < s->len) {
        const char *found = memmem(s->text + from, s->len - from, s->needle, needle_len);
        if (!found)
            return 0;
        const char *before = memrchr(s->text + from, '\n', (size_t)(found - s->text) - from);
        const char *line = before ? before + 1 : s->text + from;
        const char *newline = memchr(found, '\n', (size_t)(s->text + s->len - found));
        size_t len = (size_t)((newline ? newline : s->text + s->len) - line), begin, end;
        int r = code_match(s, c, line, len, 0, 0, &begin, &end, err);
        if (r) {
            *at = (size_t)(line - s->text);
            return r;
        }
        from = (size_t)(line - s->text) + len + 1;
    }
    return 0;
}

/* Makes c->next good for `from`. */
static int code_next(struct bough_search *s, struct bough_search_code *c, size_t from,
                     struct bough_err *err)
{
    size_t end;
    if (c->known && (c->next >= from || c->next == SIZE_MAX))
        return 0;
    int r = s->needle    ? next_by_needle(s, c, from, &c->next, err)
            : c->by_line ? next_by_line(s, c, from, &c->next, err)
                         : code_match(s, c, s->text, s->len, from, 0, &c->next, &end, err);
    if (r < 0)
        return -1;
    /* behind the last newline there is no line, but a place where nothing can be found */
    if (!r || (c->next == s->len && s->len && s->text[s->len - 1] == '\n'))
        c->next = SIZE_MAX;
    c->known = true;
    return 0;
}

int bough_search_next(struct bough_search *s, size_t from, size_t *at, struct bough_err *err)
{
    size_t first = SIZE_MAX;
    if (from >= s->len)
        return 0;
    for (size_t i = 0; i < s->count; i++) {
        if (code_next(s, &s->codes[i], from, err))
            return -1;
        if (s->codes[i].next < first)
            first = s->codes[i].next;
    }
    if (first == SIZE_MAX)
        return 0;
    *at = first;
    return 1;
}

int bough_search_in_line(struct bough_search *s, const char *line, size_t len, size_t from,
                         size_t *begin, size_t *end, struct bough_err *err)
{
    size_t first = SIZE_MAX, b = 0, e = 0;
    for (size_t i = 0; i < s->count; i++) {
        int r = code_match(s, &s->codes[i], line, len, from, PCRE2_NOTEMPTY, &b, &e, err);
        if (r < 0)
            return -1;
        if (r && b < e && b >= from && b < first) {
            first = b;
            *begin = b;
            *end = e;
        }
    }
    return first != SIZE_MAX;
}
