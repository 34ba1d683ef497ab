#include "tarlink.h"

#include <string.h>

#include "../sys.h"

/* Open addressing, a power of two, at most 3/4 full. */
struct bough_tar_link {
    dev_t dev;
    ino_t ino;
    size_t path; /* one more than where it is; 0: free */
};

static size_t slot_of(const struct bough_tar_links *l, dev_t dev, ino_t ino)
{
    uint64_t h = ((uint64_t)ino ^ ((uint64_t)dev << 40)) * UINT64_C(0x9e3779b97f4a7c15);
    size_t i = (size_t)(h >> 32) & (l->size - 1);
    while (l->slots[i].path && (l->slots[i].ino != ino || l->slots[i].dev != dev))
        i = (i + 1) & (l->size - 1);
    return i;
}

static int slots_grow(struct bough_tar_links *l)
{
    struct bough_tar_links bigger = {.size = l->size ? l->size * 2 : 256};
    bigger.slots = calloc(bigger.size, sizeof *bigger.slots);
    if (!bigger.slots)
        return -1;
    for (size_t i = 0; i < l->size; i++)
        if (l->slots[i].path)
            bigger.slots[slot_of(&bigger, l->slots[i].dev, l->slots[i].ino)] = l->slots[i];
    free(l->slots);
    l->slots = bigger.slots;
    l->size = bigger.size;
    return 0;
}

static int path_add(struct bough_tar_links *l, const char *path)
{
    size_t size = strlen(path) + 1;
    if (l->paths_len + size > l->paths_room) {
        size_t room = l->paths_room * 2 + size + 4096;
        char *bigger = realloc(l->paths, room);
        if (!bigger)
            return -1;
        l->paths = bigger;
        l->paths_room = room;
    }
    memcpy(l->paths + l->paths_len, path, size);
    l->paths_len += size;
    return 0;
}

const char *bough_tar_links_meet(struct bough_tar_links *l, dev_t dev, ino_t ino, const char *path,
                                 struct bough_err *err)
{
    if (l->used * 4 >= l->size * 3 && slots_grow(l)) {
        bough_err_sys(err, ENOMEM, "remember hard link");
        return NULL;
    }
    struct bough_tar_link *slot = &l->slots[slot_of(l, dev, ino)];
    if (slot->path)
        return l->paths + slot->path - 1;
    *slot = (struct bough_tar_link){.dev = dev, .ino = ino, .path = l->paths_len + 1};
    if (path_add(l, path)) {
        slot->path = 0;
        bough_err_sys(err, ENOMEM, "remember hard link");
        return NULL;
    }
    l->used++;
    return "";
}

void bough_tar_links_free(struct bough_tar_links *l)
{
    free(l->slots);
    free(l->paths);
    *l = (struct bough_tar_links){0};
}
