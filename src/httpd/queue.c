/* queue.c - a queue of bytes. */
#include <stdlib.h>
#include <string.h>

#include "httpd/queue.h"

enum { SMALLEST = 1024 - 4 * sizeof(size_t) };

struct httpd_piece {
    struct httpd_piece *next;
    size_t start, end, size;
    unsigned char bytes[];
};

bool httpd_queue_put(struct httpd_queue *queue, const void *data, size_t size)
{
    struct httpd_piece *last = queue->last;
    size_t fits = last ? last->size - last->end : 0;
    if (fits > size)
        fits = size;
    struct httpd_piece *piece = NULL;
    size_t rest = size - fits;
    if (rest) { /* before anything is changed: all goes in, or nothing */
        size_t room = rest < SMALLEST ? SMALLEST : rest;
        piece = malloc(sizeof *piece + room);
        if (!piece)
            return false;
        *piece = (struct httpd_piece){.end = rest, .size = room};
        memcpy(piece->bytes, (const unsigned char *)data + fits, rest);
    }
    if (fits) {
        memcpy(last->bytes + last->end, data, fits);
        last->end += fits;
    }
    if (piece) {
        if (last)
            last->next = piece;
        else
            queue->first = piece;
        queue->last = piece;
    }
    queue->length += size;
    return true;
}

const void *httpd_queue_front(const struct httpd_queue *queue, size_t *size)
{
    const struct httpd_piece *piece = queue->first;
    *size = piece ? piece->end - piece->start : 0;
    return piece ? piece->bytes + piece->start : NULL;
}

void httpd_queue_drop(struct httpd_queue *queue, size_t size)
{
    struct httpd_piece *piece = queue->first;
    if (!piece)
        return;
    piece->start += size;
    queue->length -= size;
    if (piece->start < piece->end)
        return;
    queue->first = piece->next;
    if (!queue->first)
        queue->last = NULL;
    free(piece);
}

size_t httpd_queue_take(struct httpd_queue *queue, void *into, size_t size)
{
    size_t taken = 0;
    while (taken < size) {
        size_t part;
        const void *front = httpd_queue_front(queue, &part);
        if (!front)
            break;
        if (part > size - taken)
            part = size - taken;
        memcpy((unsigned char *)into + taken, front, part);
        httpd_queue_drop(queue, part);
        taken += part;
    }
    return taken;
}

void httpd_queue_clear(struct httpd_queue *queue)
{
    for (struct httpd_piece *piece = queue->first, *next; piece; piece = next) {
        next = piece->next;
        free(piece);
    }
    *queue = (struct httpd_queue){0};
}
