#define _GNU_SOURCE
#include "hasher.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

enum { STACK_BYTES = 256 * 1024 };

struct block {
    const void *data;
    size_t size;
};

struct bough_hasher {
    struct bough_sha256 *state;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool running, ended;
    size_t put, done; /* blocks; the last ones put are in `ring` */
    struct block ring[BOUGH_HASHER_BLOCKS];
};

struct bough_hasher *bough_hasher_new(struct bough_err *err)
{
    struct bough_hasher *h = calloc(1, sizeof *h);
    if (h && (h->state = bough_sha256_new())) {
        pthread_mutex_init(&h->lock, NULL);
        pthread_cond_init(&h->changed, NULL);
        return h;
    }
    free(h);
    bough_err_set(err, BOUGH_ERR_resource, "out of memory");
    return NULL;
}

static void *hasher_main(void *arg)
{
    struct bough_hasher *h = arg;
    pthread_mutex_lock(&h->lock);
    h->running = true;
    pthread_cond_broadcast(&h->changed);
    for (;;) {
        while (h->done == h->put && !h->ended)
            pthread_cond_wait(&h->changed, &h->lock);
        if (h->done == h->put)
            break;
        struct block block = h->ring[h->done % BOUGH_HASHER_BLOCKS];
        pthread_mutex_unlock(&h->lock);
        bough_sha256_update(h->state, block.data, block.size);
        pthread_mutex_lock(&h->lock);
        h->done++;
        pthread_cond_broadcast(&h->changed);
    }
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

int bough_hasher_start(struct bough_hasher *h, struct bough_err *err)
{
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    /* the address space is bounded */
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    int sys = pthread_create(&h->thread, &attr, hasher_main, h);
    pthread_attr_destroy(&attr);
    if (sys)
        return bough_err_sys(err, sys, "start a thread");
    /* a thread begins with calls that the filter does not know */
    pthread_mutex_lock(&h->lock);
    while (!h->running)
        pthread_cond_wait(&h->changed, &h->lock);
    pthread_mutex_unlock(&h->lock);
    return 0;
}

void bough_hasher_put(struct bough_hasher *h, const void *data, size_t size)
{
    bough_hasher_wait(h, BOUGH_HASHER_BLOCKS - 1);
    pthread_mutex_lock(&h->lock);
    h->ring[h->put % BOUGH_HASHER_BLOCKS] = (struct block){.data = data, .size = size};
    h->put++;
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->lock);
}

void bough_hasher_wait(struct bough_hasher *h, size_t pending)
{
    pthread_mutex_lock(&h->lock);
    while (h->put - h->done > pending)
        pthread_cond_wait(&h->changed, &h->lock);
    pthread_mutex_unlock(&h->lock);
}

void bough_hasher_hex(struct bough_hasher *h, char hex[BOUGH_SHA256_HEX])
{
    bough_hasher_wait(h, 0);
    bough_sha256_hex(h->state, hex);
}

void bough_hasher_free(struct bough_hasher *h)
{
    if (!h)
        return;
    if (h->running) {
        pthread_mutex_lock(&h->lock);
        h->ended = true;
        pthread_cond_broadcast(&h->changed);
        pthread_mutex_unlock(&h->lock);
        pthread_join(h->thread, NULL);
    }
    pthread_cond_destroy(&h->changed);
    pthread_mutex_destroy(&h->lock);
    bough_sha256_free(h->state);
    free(h);
}
