#define _GNU_SOURCE
#include "args.h"

#include <stdlib.h>
#include <string.h>

#include "../keeper/mountapi.h"
#include "../sys.h"
#include "tree.h"

const char *bough_args_value(char ***args, struct bough_err *err)
{
    const char *option = **args;
    if (!(*args)[1]) {
        bough_err_set(err, BOUGH_ERR_invalid, "%s: its value is missing", option);
        return NULL;
    }
    return *++*args;
}

int bough_args_number(char ***args, int64_t least, int64_t most, int64_t *out,
                      struct bough_err *err)
{
    const char *option = **args, *text = bough_args_value(args, err);
    if (!text)
        return -1;
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || end == text || *end || value < least || value > most)
        return bough_err_set(err, BOUGH_ERR_invalid, "%s %.40s: give a number from %lld to %lld",
                             option, text, (long long)least, (long long)most);
    *out = value;
    return 0;
}

int bough_args_unknown(const char *command, const char *option, struct bough_err *err)
{
    return bough_err_set(err, BOUGH_ERR_invalid, "%s: unknown option %.100s", command, option);
}

int bough_start_open(struct bough_start *start, int root, const char *path, struct bough_err *err)
{
    uint64_t resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    if (!*path)
        path = "/";
    BOUGH_CLEANUP_FD int found = bough_openat2(root, path, O_PATH, resolve);
    if (found < 0 || fstat(found, &start->st))
        return bough_err_sys(err, errno, "%s", BOUGH_TREE_QUOTE(path));
    if (S_ISREG(start->st.st_mode) || S_ISDIR(start->st.st_mode)) {
        /* a second look, because a descriptor for paths cannot be made one to read without /proc */
        int fd = bough_openat2(root, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, resolve);
        struct stat st;
        if (fd < 0 || fstat(fd, &st)) {
            bough_fd_close(&fd);
            return bough_err_sys(err, errno, "%s", BOUGH_TREE_QUOTE(path));
        }
        if (st.st_dev != start->st.st_dev || st.st_ino != start->st.st_ino) {
            close(fd);
            return bough_err_set(err, BOUGH_ERR_io, "%s: changed while it was opened",
                                 BOUGH_TREE_QUOTE(path));
        }
        start->fd = fd;
    } else {
        start->fd = bough_steal_fd(&found);
    }
    return 0;
}
