#define _GNU_SOURCE
#include "glob.h"

#include <stdint.h>
#include <string.h>

#include "../sys.h"

/* Braces in braces; "*" makes three steps. */
enum { DEPTH_MAX = 32, STEPS_PER_BYTE = 3 };

enum op {
    BYTE,  /* the byte `a` */
    ANY,   /* any byte but "/" */
    ALL,   /* any byte */
    SET,   /* a byte of set `a` */
    SPLIT, /* go on at `a` and at `b` */
    JUMP,  /* go on at `a` */
    MATCH,
};

struct step {
    enum op op;
    unsigned a, b;
};

struct set {
    uint32_t bits[8];
};

/* The steps that are live after some bytes of the path. */
struct states {
    unsigned *steps;
    size_t count;
};

struct bough_glob {
    struct step *steps;
    size_t count;
    struct set *sets;
    size_t set_count;
    bool drop, whole, dirs_only;
    /* for running */
    struct states now, then;
    unsigned *marks; /* the round in which a step was last made live */
    unsigned round;
    unsigned *todo;
};

/* ---- compiling ---- */

struct parser {
    struct bough_glob *glob;
    const char *pattern, *at, *end;
    unsigned depth;
    struct bough_err *err;
};

static int refuse(struct parser *p, const char *why)
{
    return bough_err_set(p->err, BOUGH_ERR_invalid, "glob %.200s: %s", p->pattern, why);
}

/* There is room: no byte of a pattern makes more than STEPS_PER_BYTE. */
static void step_add(struct parser *p, enum op op, unsigned a, unsigned b)
{
    p->glob->steps[p->glob->count++] = (struct step){op, a, b};
}

/* `op` any number of times. */
static void loop_add(struct parser *p, enum op op)
{
    unsigned at = (unsigned)p->glob->count;
    step_add(p, SPLIT, at + 1, at + 3);
    step_add(p, op, 0, 0);
    step_add(p, JUMP, at, 0);
}

static void bit_put(struct set *set, unsigned char c)
{
    set->bits[c / 32] |= UINT32_C(1) << c % 32;
}

static int set_parse(struct parser *p)
{
    struct bough_glob *g = p->glob;
    struct set set = {{0}};
    const char *s = p->at + 1;
    bool negated = *s == '!' || *s == '^';
    s += negated;
    for (bool first = true; first || *s != ']'; first = false) {
        if (s < p->end && s[0] == '[' && s[1] == ':')
            return refuse(p, "classes like [:alpha:] are not known: give the range");
        if (*s == '\\')
            s++;
        if (s >= p->end)
            return refuse(p, "[ without ]");
        unsigned from = (unsigned char)*s++, to = from;
        if (s[0] == '-' && s[1] != ']' && s + 1 < p->end) {
            s += s[1] == '\\' ? 2 : 1;
            if (s >= p->end)
                return refuse(p, "[ without ]");
            to = (unsigned char)*s++;
        }
        if (to < from)
            return refuse(p, "a range in [] goes backwards");
        for (unsigned c = from; c <= to; c++)
            bit_put(&set, (unsigned char)c);
    }
    p->at = s + 1;
    for (int i = 0; negated && i < 8; i++)
        set.bits[i] = ~set.bits[i];
    set.bits['/' / 32] &= ~(UINT32_C(1) << '/' % 32);
    struct set *more = realloc(g->sets, (g->set_count + 1) * sizeof *more);
    if (!more)
        return bough_err_sys(p->err, ENOMEM, "glob");
    g->sets = more;
    g->sets[g->set_count] = set;
    step_add(p, SET, (unsigned)g->set_count++, 0);
    return 0;
}

static void stars_parse(struct parser *p)
{
    const char *s = p->at;
    bool first = s == p->pattern || s[-1] == '/' || (p->depth && (s[-1] == '{' || s[-1] == ','));
    while (*s == '*')
        s++;
    bool last = s == p->end || *s == '/' || (p->depth && (*s == '}' || *s == ','));
    bool across = s - p->at == 2 && first && last;
    p->at = s;
    if (!across) {
        loop_add(p, ANY);
    } else if (s == p->end || *s != '/') {
        step_add(p, ALL, 0, 0);
        loop_add(p, ALL);
    } else {
        /* nothing, or anything and a slash */
        p->at++;
        unsigned at = (unsigned)p->glob->count;
        step_add(p, SPLIT, at + 1, at + 5);
        loop_add(p, ALL);
        step_add(p, BYTE, '/', 0);
    }
}

static int sequence_parse(struct parser *p);

/* {a,b,c}: a split in front of each branch but the last, and a jump to the end behind each. The jumps
 * are chained through their targets until the end is known. */
static int braces_parse(struct parser *p)
{
    struct bough_glob *g = p->glob;
    unsigned chain = 0; /* a jump is never step 0 */
    if (++p->depth > DEPTH_MAX)
        return refuse(p, "braces nested too deep");
    do {
        p->at++;
        size_t split = g->count;
        step_add(p, SPLIT, (unsigned)split + 1, 0);
        if (sequence_parse(p))
            return -1;
        if (p->at == p->end)
            return refuse(p, "{ without }");
        step_add(p, JUMP, chain, 0);
        chain = (unsigned)g->count - 1;
        if (*p->at == ',')
            g->steps[split].b = (unsigned)g->count;
        else
            g->steps[split].op = JUMP;
    } while (*p->at == ',');
    p->at++;
    p->depth--;
    while (chain) {
        unsigned before = g->steps[chain].a;
        g->steps[chain].a = (unsigned)g->count;
        chain = before;
    }
    return 0;
}

/* Up to the end, or inside of braces to the "," or "}". */
static int sequence_parse(struct parser *p)
{
    while (p->at < p->end) {
        int r = 0;
        switch (*p->at) {
        case '*':
            stars_parse(p);
            break;
        case '?':
            p->at++;
            step_add(p, ANY, 0, 0);
            break;
        case '[':
            r = set_parse(p);
            break;
        case '{':
            r = braces_parse(p);
            break;
        case ',':
        case '}':
            if (p->depth)
                return 0;
            step_add(p, BYTE, (unsigned char)*p->at++, 0);
            break;
        case '\\':
            if (++p->at == p->end)
                return refuse(p, "\\ at its end");
            /* fallthrough */
        default:
            step_add(p, BYTE, (unsigned char)*p->at++, 0);
        }
        if (r)
            return -1;
    }
    return 0;
}

static void glob_free(struct bough_glob *g)
{
    free(g->steps);
    free(g->sets);
    free(g->marks);
}

static int glob_compile(struct bough_glob *g, const char *pattern, struct bough_err *err)
{
    size_t len = strlen(pattern);
    struct parser p = {.glob = g, .pattern = pattern, .err = err};
    if (len > BOUGH_GLOB_MAX)
        return refuse(&p, "too long");
    g->drop = *pattern == '!';
    pattern += g->drop;
    len -= g->drop;
    if (len > 1 && pattern[len - 1] == '/') {
        g->dirs_only = true;
        len--;
    }
    g->whole = memchr(pattern, '/', len) != NULL;
    while (len && *pattern == '/')
        pattern++, len--;
    if (!len)
        return refuse(&p, "empty");
    p.pattern = p.at = pattern;
    p.end = pattern + len;
    g->steps = calloc(len * STEPS_PER_BYTE + 1, sizeof *g->steps);
    if (!g->steps)
        return bough_err_sys(err, ENOMEM, "glob");
    if (sequence_parse(&p))
        return -1;
    step_add(&p, MATCH, 0, 0);
    /* four arrays in one piece */
    g->marks = calloc(g->count * 4, sizeof *g->marks);
    if (!g->marks)
        return bough_err_sys(err, ENOMEM, "glob");
    g->todo = g->marks + g->count;
    g->now.steps = g->todo + g->count;
    g->then.steps = g->now.steps + g->count;
    return 0;
}

int bough_globs_add(struct bough_globs *globs, const char *pattern, struct bough_err *err)
{
    struct bough_glob g = {0};
    struct bough_glob *more = realloc(globs->all, (globs->count + 1) * sizeof *more);
    if (!more)
        return bough_err_sys(err, ENOMEM, "glob");
    globs->all = more;
    if (glob_compile(&g, pattern, err)) {
        glob_free(&g);
        return -1;
    }
    globs->all[globs->count++] = g;
    globs->keeps |= !g.drop;
    return 0;
}

void bough_globs_free(struct bough_globs *globs)
{
    for (size_t i = 0; i < globs->count; i++)
        glob_free(&globs->all[i]);
    free(globs->all);
    *globs = (struct bough_globs){0};
}

/* ---- running ---- */

/* Makes `at` live in `to`, and what follows from it without another byte. */
static void state_add(struct bough_glob *g, struct states *to, unsigned at)
{
    size_t left = 0;
    g->todo[left++] = at;
    while (left) {
        at = g->todo[--left];
        const struct step *s = &g->steps[at];
        if (g->marks[at] == g->round)
            continue;
        g->marks[at] = g->round;
        if (s->op != SPLIT && s->op != JUMP) {
            to->steps[to->count++] = at;
            continue;
        }
        if (s->op == SPLIT && g->marks[s->b] != g->round)
            g->todo[left++] = s->b;
        g->todo[left++] = s->a;
    }
}

static void round_begin(struct bough_glob *g, struct states *to)
{
    to->count = 0;
    if (!++g->round) {
        memset(g->marks, 0, g->count * sizeof *g->marks);
        g->round = 1;
    }
}

static bool step_takes(const struct bough_glob *g, const struct step *s, unsigned char c)
{
    switch (s->op) {
    case BYTE:
        return c == s->a;
    case ANY:
        return c != '/';
    case ALL:
        return true;
    case SET:
        return g->sets[s->a].bits[c / 32] >> c % 32 & 1;
    default:
        return false;
    }
}

/* Runs on one more byte. false: nothing that begins like this matches. */
static bool run_byte(struct bough_glob *g, unsigned char c)
{
    round_begin(g, &g->then);
    for (size_t i = 0; i < g->now.count; i++)
        if (step_takes(g, &g->steps[g->now.steps[i]], c))
            state_add(g, &g->then, g->now.steps[i] + 1);
    struct states swap = g->now;
    g->now = g->then;
    g->then = swap;
    return g->now.count > 0;
}

static bool run(struct bough_glob *g, const char *text)
{
    round_begin(g, &g->now);
    state_add(g, &g->now, 0);
    for (; *text; text++)
        if (!run_byte(g, (unsigned char)*text))
            return false;
    return true;
}

static bool matches(struct bough_glob *g, const char *path, const char *name, bool dir)
{
    if ((g->dirs_only && !dir) || !run(g, g->whole ? path : name))
        return false;
    for (size_t i = 0; i < g->now.count; i++)
        if (g->steps[g->now.steps[i]].op == MATCH)
            return true;
    return false;
}

bool bough_globs_want(struct bough_globs *globs, const char *path, const char *name, bool dir)
{
    bool wanted = !globs->keeps;
    for (size_t i = 0; i < globs->count; i++) {
        struct bough_glob *g = &globs->all[i];
        if ((g->drop || !wanted) && matches(g, path, name, dir)) {
            if (g->drop)
                return false;
            wanted = true;
        }
    }
    return wanted;
}

bool bough_globs_enter(struct bough_globs *globs, const char *path, const char *name)
{
    bool hope = !globs->keeps;
    for (size_t i = 0; i < globs->count; i++) {
        struct bough_glob *g = &globs->all[i];
        if (g->drop && matches(g, path, name, true))
            return false;
        if (!g->drop && !hope)
            hope = !g->whole || (run(g, path) && run_byte(g, '/'));
    }
    return hope;
}
