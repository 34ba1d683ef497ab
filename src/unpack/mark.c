#include "mark.h"

#include <string.h>

#include "prune.h"

#define PREFIX ".wh."
#define AUFS ".wh..wh."
#define OPAQUE ".wh..wh..opq"

enum { PREFIX_LEN = sizeof PREFIX - 1 };

int bough_mark_read(const struct bough_path *path, enum bough_mark *mark, struct bough_err *err)
{
    const char *name = bough_path_name(path), *meant = name + PREFIX_LEN;
    bool below = false;
    *mark = BOUGH_MARK_NONE;
    for (const char *at = path->text; at < name; at = strchr(at, '/') + 1) {
        if (!strncmp(at, AUFS, sizeof AUFS - 1)) {
            *mark = BOUGH_MARK_IGNORED;
            return 0;
        }
        below = below || !strncmp(at, PREFIX, PREFIX_LEN);
    }
    if (below)
        return bough_err_set(err, BOUGH_ERR_invalid, "lies below a whiteout");
    if (strncmp(name, PREFIX, PREFIX_LEN) != 0)
        return 0;
    if (!strncmp(name, AUFS, sizeof AUFS - 1)) {
        *mark = strcmp(name, OPAQUE) ? BOUGH_MARK_IGNORED : BOUGH_MARK_OPAQUE;
        return 0;
    }
    if (!*meant || !strcmp(meant, ".") || !strcmp(meant, ".."))
        return bough_err_set(err, BOUGH_ERR_invalid, "is a whiteout of no possible name");
    *mark = BOUGH_MARK_WHITEOUT;
    return 0;
}

int bough_mark_apply(struct bough_extraction *x, enum bough_mark mark)
{
    struct bough_place_slot *slot = &x->place.entry;
    int dir = bough_place_parent(&x->place, slot, &x->path, true, x->err);
    if (dir < 0 || bough_place_real(slot, &x->path, x->real, x->err) < 0)
        return -1;
    bough_place_forget(&x->place);
    char *name = strrchr(x->real, '/');
    if (mark == BOUGH_MARK_OPAQUE) {
        *(name ? name : x->real) = '\0';
        return bough_prune_inside(&x->made, dir, x->real, x->err);
    }
    name = name ? name + 1 : x->real;
    memmove(name, name + PREFIX_LEN, strlen(name + PREFIX_LEN) + 1);
    return bough_prune_name(&x->made, dir, x->real, x->err);
}
