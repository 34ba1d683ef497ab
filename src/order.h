/* order.h - what the host asks the keeper's workers to do with trees, as data.
 *
 * Like plan.h: the host encodes, the keeper decodes; a decoded order points into the message
 * it came from, and only the vectors are its own (the _clear functions free them). */
#ifndef BOUGH_ORDER_H
#define BOUGH_ORDER_H

#include <stdbool.h>
#include <stdint.h>

#include "wire.h"

/* Unpack an archive: into the new layer `layer`, laid over `stack`; or, with layer 0, into the
 * directory that came along. */
struct bough_unpack_order {
    int64_t layer;
    int64_t *stack; /* layers below, top first; what the archive says of them (whiteouts,
                     * hard links, parents it does not name) is honoured */
    int64_t stack_count;
    int64_t max_bytes, max_files; /* 0: no limit */
    bool whiteouts;               /* an OCI layer: ".wh." names remove what is below */
    bool digest;                  /* report the SHA-256 of the archive after decompression */
    bool plain; /* only names, types, content and permission bits without setuid: for a
                                   * directory of the host's */
};

void bough_unpack_order_put(struct bough_wbuf *buf, const struct bough_unpack_order *order);
int bough_unpack_order_get(struct bough_rbuf *buf, struct bough_unpack_order *order,
                           struct bough_err *err);
void bough_unpack_order_clear(struct bough_unpack_order *order);

/* Run bough-look over trees. */
enum bough_look_source {
    BOUGH_LOOK_VIEW,  /* the merged tree of `stack` */
    BOUGH_LOOK_LAYER, /* the directory of the single layer stack[0], overlay's marks and all */
    BOUGH_LOOK_GIVEN, /* the directory that came along as the second descriptor */
};
struct bough_look_order {
    enum bough_look_source source;
    int64_t *stack, stack_count;
    int64_t *other, other_count; /* diff: the tree to compare with; count -1 for none */
    int64_t *hints, hint_count;  /* diff: layers in which all differences lie; -1: not known */
    char **args;                 /* NULL-terminated: the command and its options (look/look.h),
                                     * without the descriptors, which the keeper adds */
};

void bough_look_order_put(struct bough_wbuf *buf, const struct bough_look_order *order);
int bough_look_order_get(struct bough_rbuf *buf, struct bough_look_order *order,
                         struct bough_err *err);
void bough_look_order_clear(struct bough_look_order *order);

/* One object to put in place: part of a PUT's body, which is: new layer id, stack, number of items, the
 * items sorted bytewise by path. */
enum bough_put_kind { BOUGH_PUT_FILE, BOUGH_PUT_DIR, BOUGH_PUT_SYMLINK };
struct bough_put_item {
    const char *path; /* absolute in the image, normalised, never "/" */
    enum bough_put_kind kind;
    int64_t mode, uid, gid; /* permission bits; a directory that is there already keeps its own */
    int64_t mtime_ns;
    const char
        *blob; /* file: name below home/blobs, "ab/<digest>-<meta>"; "" for none (not pooled) */
    const char *staged; /* file: name below home/tmp/<owner> of the content with the caller's
                         * owner and mode 0600, to become the blob; "" when the blob is there */
    const char *target; /* symbolic link */
};
/* Whether a path is such a one. */
bool bough_put_path_valid(const char *path);
void bough_put_item_put(struct bough_wbuf *buf, const struct bough_put_item *item);
int bough_put_item_get(struct bough_rbuf *buf, struct bough_put_item *item, struct bough_err *err);

#endif
