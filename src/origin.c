#include "origin.h"

#include <stdlib.h>
#include <string.h>

#include "sys.h"
#include "transfer.h"

#define KEPT 32          /* hosts without users at most that are remembered */
#define STARTING_MOST 64 /* one connection each */
#define SHARING_MOST 8 /* that may find a place in a connection; when all are full each opens one */

struct bough_origin *bough_origin_join(struct bough_origin **list, const char *name)
{
    struct bough_origin *origin = *list;
    while (origin && strcmp(origin->name, name) != 0)
        origin = origin->next;
    if (!origin) {
        origin = calloc(1, sizeof *origin);
        if (!origin || !(origin->name = strdup(name))) {
            free(origin);
            return NULL;
        }
        origin->next = *list;
        *list = origin;
    }
    origin->users++;
    return origin;
}

static void origin_free(struct bough_origin *origin)
{
    free(origin->name);
    free(origin);
}

void bough_origin_leave(struct bough_origin **list, struct bough_origin *origin)
{
    size_t kept = 0;
    if (--origin->users > 0)
        return;
    for (struct bough_origin **link = list; *link;) {
        struct bough_origin *one = *link;
        if (one->users == 0 && ++kept > KEPT) {
            *link = one->next;
            origin_free(one);
        } else {
            link = &one->next;
        }
    }
}

void bough_origin_free_all(struct bough_origin **list)
{
    while (*list) {
        struct bough_origin *origin = *list;
        *list = origin->next;
        origin_free(origin);
    }
}

void bough_origin_queue(struct bough_origin *origin, struct bough_transfer *t)
{
    t->after = NULL;
    t->before = origin->last;
    if (origin->last)
        origin->last->after = t;
    else
        origin->first = t;
    origin->last = t;
}

void bough_origin_unqueue(struct bough_origin *origin, struct bough_transfer *t)
{
    if (t->before)
        t->before->after = t->after;
    else
        origin->first = t->after;
    if (t->after)
        t->after->before = t->before;
    else
        origin->last = t->before;
    t->before = t->after = NULL;
}

/* A connection more is on its way, so that for a while it is better to wait than to open yet another. */
static bool awaits_place(const struct bough_origin *origin)
{
    return origin->version == 2 && origin->opening > 0 &&
           bough_now_ns() - origin->opening_ns < BOUGH_ORIGIN_PATIENCE_NS;
}

static bool admits(const struct bough_http *http, const struct bough_origin *origin)
{
    const struct bough_transfer *t = origin->first;
    if (!t)
        return false;
    if (t->http2 && origin->version != 1)
        return origin->starting < SHARING_MOST && !awaits_place(origin);
    /* where no connection can be had libcurl would have it wait, and not in the order of coming */
    return origin->starting < STARTING_MOST &&
           (http->max_connections == 0 || http->alone < (size_t)http->max_connections);
}

struct bough_transfer *bough_origin_next(const struct bough_http *http)
{
    struct bough_transfer *next = NULL;
    for (const struct bough_origin *origin = http->origins; origin; origin = origin->next)
        if (admits(http, origin) && (!next || origin->first->start_ns < next->start_ns))
            next = origin->first;
    return next;
}
