/* args.h - the options of list, grep and pack, and the place in the tree where they start. */
#ifndef BOUGH_LOOK_ARGS_H
#define BOUGH_LOOK_ARGS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "../err.h"

/* The value of the option that **args is at; moves on to it. NULL with err when there is none. */
const char *bough_args_value(char ***args, struct bough_err *err);
int bough_args_number(char ***args, int64_t least, int64_t most, int64_t *out,
                      struct bough_err *err);
/* For what no command knows. Returns -1. */
int bough_args_unknown(const char *command, const char *option, struct bough_err *err);

/* A file of any type, found below a root as if that were "/": links are followed inside of it, also the
 * last. The caller closes fd. */
struct bough_start {
    int fd; /* to read from, for regular files and directories; else O_PATH */
    struct stat st;
};
int bough_start_open(struct bough_start *start, int root, const char *path, struct bough_err *err);

#endif
