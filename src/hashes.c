/* hashes.c - the digests of local files that have been hashed before (see stage.h).
 *
 * One table with open addressing; when it is full it is emptied, which costs no more than
 * hashing again what is asked for next. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "stage.h"

#define HASHES_MAX 200000
#define SETTLED_NS 2000000000LL

struct slot {
    struct bough_hash_key key;
    uint8_t digest[32];
    bool used;
};

struct bough_hashes {
    pthread_mutex_t mutex;
    struct slot *slots;
    size_t size, used; /* size: 0 or a power of two */
};

struct bough_hashes *bough_hashes_new(void)
{
    struct bough_hashes *hashes = calloc(1, sizeof *hashes);
    if (hashes)
        pthread_mutex_init(&hashes->mutex, NULL);
    return hashes;
}

void bough_hashes_free(struct bough_hashes *hashes)
{
    if (!hashes)
        return;
    pthread_mutex_destroy(&hashes->mutex);
    free(hashes->slots);
    free(hashes);
}

static bool key_same(const struct bough_hash_key *a, const struct bough_hash_key *b)
{
    return a->inode == b->inode && a->device == b->device && a->size == b->size &&
           a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns;
}

/* The slot of the key, or the free one where it belongs. */
static struct slot *slot_of(const struct bough_hashes *hashes, const struct bough_hash_key *key)
{
    uint64_t mixed =
        (key->inode ^ key->device << 32 ^ (uint64_t)key->ctime_ns) * UINT64_C(0x9E3779B97F4A7C15);
    size_t at = (size_t)(mixed >> 32) & (hashes->size - 1);
    while (hashes->slots[at].used && !key_same(&hashes->slots[at].key, key))
        at = (at + 1) & (hashes->size - 1);
    return &hashes->slots[at];
}

bool bough_hashes_get(struct bough_hashes *hashes, const struct bough_hash_key *key,
                      char hex[BOUGH_SHA256_HEX])
{
    static const char digits[] = "0123456789abcdef";
    if (!hashes)
        return false;
    pthread_mutex_lock(&hashes->mutex);
    const struct slot *slot = hashes->size ? slot_of(hashes, key) : NULL;
    bool known = slot && slot->used;
    for (int i = 0; known && i < 32; i++) {
        hex[2 * i] = digits[slot->digest[i] >> 4];
        hex[2 * i + 1] = digits[slot->digest[i] & 15];
    }
    if (known)
        hex[64] = '\0';
    pthread_mutex_unlock(&hashes->mutex);
    return known;
}

/* Room for one more; without memory for a larger table it stays as it is and is emptied. */
static bool slots_room(struct bough_hashes *hashes)
{
    if ((hashes->used + 1) * 3 <= hashes->size * 2 && hashes->used < HASHES_MAX)
        return true;
    struct bough_hashes wide = {.size = hashes->size ? hashes->size * 2 : 256};
    if (hashes->used < HASHES_MAX)
        wide.slots = calloc(wide.size, sizeof *wide.slots);
    if (!wide.slots) {
        if (hashes->size)
            memset(hashes->slots, 0, hashes->size * sizeof *hashes->slots);
        hashes->used = 0;
        return hashes->size > 0;
    }
    for (size_t i = 0; i < hashes->size; i++)
        if (hashes->slots[i].used)
            *slot_of(&wide, &hashes->slots[i].key) = hashes->slots[i];
    free(hashes->slots);
    hashes->slots = wide.slots;
    hashes->size = wide.size;
    return true;
}

static uint8_t nibble(char digit)
{
    return (uint8_t)(digit <= '9' ? digit - '0' : digit - 'a' + 10);
}

void bough_hashes_put(struct bough_hashes *hashes, const struct bough_hash_key *key,
                      const char hex[BOUGH_SHA256_HEX])
{
    struct timespec now;
    /* What changed just now may change again without its times telling. */
    if (!hashes || clock_gettime(CLOCK_REALTIME, &now) ||
        key->ctime_ns > (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - SETTLED_NS)
        return;
    pthread_mutex_lock(&hashes->mutex);
    if (slots_room(hashes)) {
        struct slot *slot = slot_of(hashes, key);
        hashes->used += !slot->used;
        slot->used = true;
        slot->key = *key;
        for (int i = 0; i < 32; i++)
            slot->digest[i] = (uint8_t)(nibble(hex[2 * i]) << 4 | nibble(hex[2 * i + 1]));
    }
    pthread_mutex_unlock(&hashes->mutex);
}
