#include "order.h"

#include <stdlib.h>
#include <string.h>

#include "plan.h"

void bough_unpack_order_put(struct bough_wbuf *buf, const struct bough_unpack_order *order)
{
    bough_put_i64(buf, order->layer);
    bough_stack_put(buf, order->stack, order->stack_count);
    bough_put_i64(buf, order->max_bytes);
    bough_put_i64(buf, order->max_files);
    bough_put_i64(buf, order->whiteouts | order->digest << 1 | order->plain << 2);
}

int bough_unpack_order_get(struct bough_rbuf *buf, struct bough_unpack_order *order,
                           struct bough_err *err)
{
    memset(order, 0, sizeof *order);
    order->layer = bough_get_i64(buf);
    order->stack_count = bough_stack_get(buf, &order->stack);
    order->max_bytes = bough_get_i64(buf);
    order->max_files = bough_get_i64(buf);
    int64_t flags = bough_get_i64(buf);
    order->whiteouts = flags & 1;
    order->digest = flags & 2;
    order->plain = flags & 4;
    if (buf->failed || order->stack_count < 0 || order->layer < 0) {
        bough_unpack_order_clear(order);
        return bough_err_set(err, BOUGH_ERR_protocol, "unpack: malformed");
    }
    return 0;
}

void bough_unpack_order_clear(struct bough_unpack_order *order)
{
    free(order->stack);
    order->stack = NULL;
}

static void put_stack(struct bough_wbuf *buf, const int64_t *stack, int64_t count)
{
    bough_put_i64(buf, count >= 0);
    bough_stack_put(buf, stack, count >= 0 ? count : 0);
}

static int64_t get_stack(struct bough_rbuf *buf, int64_t **stack)
{
    int64_t present = bough_get_i64(buf);
    int64_t count = bough_stack_get(buf, stack);
    if (count < 0)
        buf->failed = true;
    return present ? count : -1;
}

void bough_look_order_put(struct bough_wbuf *buf, const struct bough_look_order *order)
{
    bough_put_i64(buf, order->source);
    put_stack(buf, order->stack, order->stack_count);
    put_stack(buf, order->other, order->other_count);
    put_stack(buf, order->hints, order->hint_count);
    bough_put_strv(buf, order->args);
}

int bough_look_order_get(struct bough_rbuf *buf, struct bough_look_order *order,
                         struct bough_err *err)
{
    memset(order, 0, sizeof *order);
    int64_t source = bough_get_i64(buf);
    order->source = (enum bough_look_source)source;
    order->stack_count = get_stack(buf, &order->stack);
    order->other_count = get_stack(buf, &order->other);
    order->hint_count = get_stack(buf, &order->hints);
    order->args = bough_get_strv(buf);
    if (buf->failed || !order->args || !order->args[0] || source < 0 || source > BOUGH_LOOK_GIVEN ||
        (source == BOUGH_LOOK_LAYER && order->stack_count != 1)) {
        bough_look_order_clear(order);
        return bough_err_set(err, BOUGH_ERR_protocol, "look: malformed");
    }
    return 0;
}

void bough_look_order_clear(struct bough_look_order *order)
{
    free(order->stack);
    free(order->other);
    free(order->hints);
    free(order->args);
    memset(order, 0, sizeof *order);
}

void bough_put_item_put(struct bough_wbuf *buf, const struct bough_put_item *item)
{
    bough_put_str(buf, item->path);
    bough_put_i64(buf, item->kind);
    bough_put_i64(buf, item->mode);
    bough_put_i64(buf, item->uid);
    bough_put_i64(buf, item->gid);
    bough_put_i64(buf, item->mtime_ns);
    bough_put_str(buf, item->blob);
    bough_put_str(buf, item->staged);
    bough_put_str(buf, item->target);
}

bool bough_put_path_valid(const char *path)
{
    if (path[0] != '/' || !path[1])
        return false;
    while (*path) {
        size_t len = strcspn(++path, "/");
        if (len == 0 || (len == 1 && path[0] == '.') ||
            (len == 2 && path[0] == '.' && path[1] == '.'))
            return false;
        path += len;
    }
    return true;
}

int bough_put_item_get(struct bough_rbuf *buf, struct bough_put_item *item, struct bough_err *err)
{
    const char *path = bough_get_str(buf);
    int64_t kind = bough_get_i64(buf);
    int64_t mode = bough_get_i64(buf), uid = bough_get_i64(buf), gid = bough_get_i64(buf);
    int64_t mtime = bough_get_i64(buf);
    const char *blob = bough_get_str(buf), *staged = bough_get_str(buf);
    const char *target = bough_get_str(buf);
    if (buf->failed || !path || !bough_put_path_valid(path) || kind < 0 || kind > BOUGH_PUT_SYMLINK)
        return bough_err_set(err, BOUGH_ERR_protocol, "put: malformed");
    *item = (struct bough_put_item){
        .path = path,
        .kind = (enum bough_put_kind)kind,
        .mode = mode,
        .uid = uid,
        .gid = gid,
        .mtime_ns = mtime,
        .blob = blob ? blob : "",
        .staged = staged ? staged : "",
        .target = target ? target : "",
    };
    return 0;
}
