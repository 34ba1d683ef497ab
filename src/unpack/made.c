#define _GNU_SOURCE
#include "made.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

/* A polynomial in the key modulo this prime: for two paths of at most 4095 bytes to meet, the key must be
 * one of 4095 out of 2^61. */
#define PRIME (((uint64_t)1 << 61) - 1)

__extension__ typedef unsigned __int128 wide;

int bough_made_init(struct bough_made *made, struct bough_err *err)
{
    *made = (struct bough_made){.room = 1024};
    if (getrandom(&made->key, sizeof made->key, 0) != sizeof made->key)
        return bough_err_sys(err, EIO, "getrandom");
    made->key = made->key % (PRIME - 2) + 2;
    made->slots = calloc(made->room, sizeof *made->slots);
    return made->slots ? 0 : bough_err_set(err, BOUGH_ERR_resource, "out of memory");
}

void bough_made_close(struct bough_made *made)
{
    free(made->slots);
    *made = (struct bough_made){0};
}

static uint64_t print_step(const struct bough_made *made, uint64_t print, unsigned char c)
{
    wide product = (wide)print * made->key + c + 1;
    uint64_t r = (uint64_t)(product & PRIME) + (uint64_t)(product >> 61);
    return r >= PRIME ? r - PRIME : r;
}

uint64_t bough_made_below(const struct bough_made *made, uint64_t dir, const char *name, size_t len)
{
    if (dir != BOUGH_MADE_ROOT && len)
        dir = print_step(made, dir, '/');
    for (size_t i = 0; i < len; i++)
        dir = print_step(made, dir, (unsigned char)name[i]);
    return dir;
}

/* Where `print` is, or the free slot where it would go. */
static uint64_t *slot_find(const struct bough_made *made, uint64_t print)
{
    size_t at = (size_t)(print * 0x9e3779b97f4a7c15u >> 20) & (made->room - 1);
    while (made->slots[at] && made->slots[at] != print)
        at = (at + 1) & (made->room - 1);
    return &made->slots[at];
}

bool bough_made_has(const struct bough_made *made, uint64_t print)
{
    return *slot_find(made, print) != 0;
}

static int table_grow(struct bough_made *made, struct bough_err *err)
{
    struct bough_made grown = {.key = made->key, .room = made->room * 2};
    grown.slots = calloc(grown.room, sizeof *grown.slots);
    if (!grown.slots)
        return bough_err_set(err, BOUGH_ERR_resource, "out of memory: too many files");
    for (size_t i = 0; i < made->room; i++)
        if (made->slots[i])
            *slot_find(&grown, made->slots[i]) = made->slots[i];
    grown.count = made->count;
    free(made->slots);
    *made = grown;
    return 0;
}

static int print_add(struct bough_made *made, uint64_t print, struct bough_err *err)
{
    uint64_t *slot = slot_find(made, print);
    if (*slot)
        return 0;
    *slot = print;
    return ++made->count * 4 > made->room * 3 ? table_grow(made, err) : 0;
}

int bough_made_add(struct bough_made *made, const char *path, struct bough_err *err)
{
    uint64_t print = BOUGH_MADE_ROOT;
    for (; *path; path++) {
        if (*path == '/' && print_add(made, print, err) < 0)
            return -1;
        print = print_step(made, print, (unsigned char)*path);
    }
    return print_add(made, print, err);
}
