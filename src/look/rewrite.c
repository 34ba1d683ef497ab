#define _GNU_SOURCE
#include "rewrite.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* All of a class but the newline, in PCRE2's own tables for the C locale, as a part of [...]. */
#define SPACE "\\t\\x0b\\f\\r "
#define NOT_WORD "\\x00-\\x09\\x0b-\\x2f\\x3a-\\x40\\x5b-\\x5e\\x60\\x7b-\\xff"
#define NOT_DIGIT "\\x00-\\x09\\x0b-\\x2f\\x3a-\\xff"

struct rewriter {
    const char *at;
    FILE *out;
    bool numbered;
};

static void copy(struct rewriter *r, size_t n)
{
    fwrite(r->at, 1, n, r->out);
    r->at += n;
}

static void replace(struct rewriter *r, size_t n, const char *by)
{
    fputs(by, r->out);
    r->at += n;
}

static int hex(char c)
{
    return isdigit((unsigned char)c) ? c - '0' : tolower((unsigned char)c) - 'a' + 10;
}

/* "\xhh" for a byte that is no newline. */
static bool hex_good(const char *at)
{
    return isxdigit((unsigned char)at[2]) && isxdigit((unsigned char)at[3]) &&
           hex(at[2]) * 16 + hex(at[3]) != '\n';
}

/* At a backslash, outside of [...]. */
static bool escape_take(struct rewriter *r)
{
    unsigned char c = (unsigned char)r->at[1];
    switch (c) {
    case 's':
        replace(r, 2, "[^\\S\\n]");
        return true;
    case 'W':
        replace(r, 2, "[^\\w\\n]");
        return true;
    case 'D':
        replace(r, 2, "[^\\d\\n]");
        return true;
    case 'x':
        if (!hex_good(r->at))
            return false;
        copy(r, 4);
        return true;
    default:
        if (c >= '1' && c <= '9') {
            r->numbered = true;
            if (isdigit((unsigned char)r->at[2]))
                return false;
        } else if (!c || c >= 0x80 || (isalnum(c) && !strchr("wdSbBhtrfea", c))) {
            return false;
        }
        if (c == '\n')
            return false;
        copy(r, 2);
        return true;
    }
}

/* "[:name:]" inside of [...] */
static bool posix_take(struct rewriter *r)
{
    static const char *const good[] = {"[:alnum:]", "[:alpha:]", "[:blank:]", "[:digit:]",
                                       "[:graph:]", "[:lower:]", "[:print:]", "[:punct:]",
                                       "[:upper:]", "[:word:]",  "[:xdigit:]"};
    if (!strncmp(r->at, "[:space:]", 9)) {
        replace(r, 9, SPACE);
        return true;
    }
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (!strncmp(r->at, good[i], strlen(good[i]))) {
            copy(r, strlen(good[i]));
            return true;
        }
    return false;
}

/* One item of a [...] that is not negated. */
static bool item_take(struct rewriter *r)
{
    unsigned char c = (unsigned char)r->at[0], next = (unsigned char)r->at[1];
    if (c == '[' && (next == ':' || next == '.' || next == '='))
        return posix_take(r);
    if (c == '\\') {
        if (next == 's' || next == 'W' || next == 'D') {
            replace(r, 2, next == 's' ? SPACE : next == 'W' ? NOT_WORD : NOT_DIGIT);
            return true;
        }
        if (!next || next >= 0x80 || next == '\n' || (isalnum(next) && !strchr("wdShtrfe", next)))
            return false;
        /* a range may begin below the newline and end behind it */
        if (strchr("tfre", next) && r->at[2] == '-' && r->at[3] != ']')
            return false;
        copy(r, 2);
        return true;
    }
    if (c == '\n' || (c < 0x20 && next == '-'))
        return false;
    copy(r, 1);
    return true;
}

/* One item of a [^...]: what it says is taken out, whatever that is. */
static bool negated_take(struct rewriter *r)
{
    size_t n = 1;
    if (*r->at == '\\') {
        if (!r->at[1] || strchr("QEc", r->at[1]))
            return false;
        n = 2;
    } else if (*r->at == '[' && r->at[1] == ':') {
        n = 2 + strspn(r->at + 2, "^abcdefghijklmnopqrstuvwxyz");
        if (r->at[n] != ':' || r->at[n + 1] != ']')
            return false;
        n += 2;
    }
    copy(r, n);
    return true;
}

static bool class_take(struct rewriter *r)
{
    const char *s = r->at + 1;
    bool negated = *s == '^';
    s += negated;
    /* a "]" that stands for itself, and word boundaries */
    if (*s == ']' || !strncmp(r->at, "[[:<:]]", 7) || !strncmp(r->at, "[[:>:]]", 7))
        return false;
    fputs(negated ? "[^\\n" : "[", r->out);
    r->at = s;
    if (negated && *s == '-')
        replace(r, 1, "\\-"); /* else it would make a range with the newline in front */
    while (*r->at != ']')
        if (!*r->at || !(negated ? negated_take(r) : item_take(r)))
            return false;
    copy(r, 1);
    return true;
}

/* At "(". */
static bool group_take(struct rewriter *r)
{
    static const char *const good[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?i)"};
    if (r->at[1] == '*')
        return false;
    if (r->at[1] != '?') {
        copy(r, 1);
        return true;
    }
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (!strncmp(r->at, good[i], strlen(good[i]))) {
            copy(r, strlen(good[i]));
            return true;
        }
    return false;
}

static bool pattern_take(struct rewriter *r)
{
    bool good = true;
    while (good && *r->at)
        switch (*r->at) {
        case '\\':
            good = escape_take(r);
            break;
        case '[':
            good = class_take(r);
            break;
        case '(':
            good = group_take(r);
            break;
        case '\n':
            good = false;
            break;
        default:
            copy(r, 1);
        }
    return good;
}

enum bough_rewrite bough_rewrite(const char *pattern, char **out)
{
    size_t len = 0;
    struct rewriter r = {.at = pattern, .out = open_memstream(out, &len)};
    if (!r.out)
        return BOUGH_REWRITE_FAILED;
    bool good = pattern_take(&r);
    if (fclose(r.out))
        return BOUGH_REWRITE_FAILED;
    return !good ? BOUGH_REWRITE_NONE : r.numbered ? BOUGH_REWRITE_ALONE : BOUGH_REWRITE_FREE;
}
