/* pack.h - a press: it makes gzip of answers, whole ones and streams.
 *
 * A stream of events is silent most of the time, and there may be thousands: each keeps only the last few
 * KiB of what it sent, and the press, of which there is one, continues from those. A bulk stream has a
 * compressor of its own, which costs some 260 KiB while it lasts. */
#ifndef BOUGH_HTTPD_PACK_H
#define BOUGH_HTTPD_PACK_H

#include <stdbool.h>
#include <stddef.h>

#include "httpd/queue.h"

struct httpd_press;
struct httpd_pack; /* one stream */

enum httpd_pack_kind { HTTPD_PACK_EVENTS, HTTPD_PACK_BULK };

struct httpd_press *httpd_press_new(void); /* NULL when out of memory */
void httpd_press_free(struct httpd_press *press);

/* A whole body: fresh memory for free(), NULL when it got no smaller or there is no memory. */
void *httpd_press_whole(struct httpd_press *press, const void *data, size_t size, size_t *packed);

struct httpd_pack *httpd_pack_new(enum httpd_pack_kind kind);
void httpd_pack_free(struct httpd_pack *pack);
/* Appends `data`. With `flush`, what was appended can be read at the other end at once; events always are. */
bool httpd_pack_put(struct httpd_press *press, struct httpd_pack *pack, const void *data,
                    size_t size, bool flush, struct httpd_queue *out);
bool httpd_pack_end(struct httpd_press *press, struct httpd_pack *pack, struct httpd_queue *out);

#endif
