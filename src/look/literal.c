#include "literal.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Behind a class "[...]", or NULL. */
static const char *class_end(const char *p)
{
    p++;
    if (*p == '^')
        p++;
    if (*p == ']')
        p++;
    for (; *p && *p != ']'; p++) {
        if (*p == '\\' && !*++p)
            return NULL;
        if (*p == '[' && (p[1] == ':' || p[1] == '.' || p[1] == '='))
            return NULL; /* not worth it */
    }
    return *p ? p + 1 : NULL;
}

/* Behind a group "(...)", or NULL for what might change the meaning of the rest. */
static const char *group_end(const char *p)
{
    int depth = 0;
    while (*p) {
        if (*p == '\\') {
            if (!p[1] || p[1] == 'Q' || p[1] == 'E')
                return NULL;
            p += 2;
        } else if (*p == '[') {
            p = class_end(p);
            if (!p)
                return NULL;
        } else if (*p == '(') {
            depth++;
            if (p[1] == '*' || (p[1] == '?' && !strchr(":=!", p[2])))
                return NULL;
            p++;
        } else if (*p++ == ')' && --depth == 0) {
            return p;
        }
    }
    return NULL;
}

/* Whether "{" begins a quantifier, and what is behind it. */
static const char *braces_end(const char *p)
{
    const char *end = p + 1;
    while (isdigit((unsigned char)*end) || *end == ',' || *end == ' ')
        end++;
    return *end == '}' && end > p + 1 ? end + 1 : NULL;
}

struct run {
    char *text, *best;
    size_t len, best_len;
};

static void run_end(struct run *r)
{
    if (r->len > r->best_len) {
        memcpy(r->best, r->text, r->len);
        r->best_len = r->len;
    }
    r->len = 0;
}

/* One element at p; behind it, NULL for an end of all. */
static const char *element(struct run *r, const char *p)
{
    switch (*p) {
    case '|':
        return NULL;
    case '(':
        run_end(r);
        return group_end(p);
    case '[':
        run_end(r);
        return class_end(p);
    case '.':
    case '^':
    case '$':
        run_end(r);
        return p + 1;
    case '\\':
        if (!p[1] || (unsigned char)p[1] >= 0x80)
            return NULL;
        if (isalnum((unsigned char)p[1])) {
            if (!strchr("dDwWsSbB", p[1]))
                return NULL;
            run_end(r);
            return p + 2;
        }
        r->text[r->len++] = p[1];
        return p + 2;
    default:
        r->text[r->len++] = *p;
        return p + 1;
    }
}

/* A quantifier behind an element of the run; behind it, or NULL. */
static const char *quantified(struct run *r, const char *p)
{
    const char *end = *p == '{' ? braces_end(p) : p + 1;
    if (!end)
        return p; /* a brace like any other character */
    if (*p == '+') {
        run_end(r); /* once at least */
    } else {
        if (r->len)
            r->len--; /* perhaps not at all */
        run_end(r);
    }
    if (*end == '?' || *end == '+')
        end++;
    return strchr("*+?", *end) && *end ? NULL : end;
}

char *bough_literal_required(const char *pattern)
{
    size_t room = strlen(pattern) + 1;
    struct run r = {.text = malloc(room), .best = malloc(room)};
    const char *p = pattern;
    while (r.text && r.best && p && *p) {
        p = element(&r, p);
        if (p && (*p == '*' || *p == '+' || *p == '?' || *p == '{'))
            p = quantified(&r, p);
    }
    bool found = r.text && r.best && p;
    if (found) {
        run_end(&r);
        r.best[r.best_len] = '\0';
    }
    free(r.text);
    if (found && r.best_len >= BOUGH_LITERAL_MIN)
        return r.best;
    free(r.best);
    return NULL;
}
