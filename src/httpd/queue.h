/* queue.h - a queue of bytes: put in at one end, taken out at the other, with no more memory than is in it. */
#ifndef BOUGH_HTTPD_QUEUE_H
#define BOUGH_HTTPD_QUEUE_H

#include <stdbool.h>
#include <stddef.h>

struct httpd_piece;

/* All zeros is an empty one. */
struct httpd_queue {
    struct httpd_piece *first, *last;
    size_t length; /* bytes in it */
};

bool httpd_queue_put(struct httpd_queue *queue, const void *data, size_t size);
/* Takes at most `size` bytes out; returns how many. */
size_t httpd_queue_take(struct httpd_queue *queue, void *into, size_t size);
/* What is in front, without taking it: NULL when the queue is empty. */
const void *httpd_queue_front(const struct httpd_queue *queue, size_t *size);
void httpd_queue_drop(struct httpd_queue *queue, size_t size); /* at most as many as are in front */
void httpd_queue_clear(struct httpd_queue *queue);

#endif
