/* origin.h - a host as the transfers of one client see it: scheme, name and port; and who waits to be let in.
 *
 * Left alone, libcurl looks the name up in a thread for each transfer, connects all of them at once, and opens far
 * more connections than it needs where HTTP/2 would share them. So few are being connected at a time; the others wait
 * here, first come, first served. */
#ifndef BOUGH_ORIGIN_H
#define BOUGH_ORIGIN_H

#include <stddef.h>
#include <stdint.h>

#define BOUGH_ORIGIN_PATIENCE_NS ((int64_t)1000000000)

struct bough_http;
struct bough_transfer;

struct bough_origin {
    struct bough_origin *next; /* in the client */
    char *name;                /* "https://example.org:443" */
    long version; /* of HTTP, when it had the choice: 1, 2, or 0 as long as that is not known */
    size_t users; /* transfers, in whatever phase */
    size_t starting,
        opening;        /* of those: without a connection; and making one, not waiting for one */
    size_t active;      /* connected */
    int64_t quiet_ns;   /* when the last of them ended */
    int64_t opening_ns; /* when the last connection was begun */
    struct bough_transfer *first, *last; /* waiting */
};

/* The one of that name, with a user more. NULL: no memory. */
struct bough_origin *bough_origin_join(struct bough_origin **list, const char *name);
/* A user less. What is known of a host is kept for a while when nobody uses it. */
void bough_origin_leave(struct bough_origin **list, struct bough_origin *origin);
void bough_origin_free_all(struct bough_origin **list);

void bough_origin_queue(struct bough_origin *origin, struct bough_transfer *t);
void bough_origin_unqueue(struct bough_origin *origin, struct bough_transfer *t);
/* The transfer that is to begin next, NULL when all have to wait: of those that may, the one that has waited longest. */
struct bough_transfer *bough_origin_next(const struct bough_http *http);

#endif
