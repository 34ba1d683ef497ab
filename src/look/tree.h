/* tree.h - a walk over a tree, for all commands of bough-look.
 *
 * Pre-order, the names of each directory sorted bytewise; symbolic links are entries and never
 * followed. The names of the directories on the way down are held in memory, nothing else. The
 * descriptors of the first levels stay open; a deeper directory is closed while the walk is
 * below it and found again through "..", and must be the same one then. */
#ifndef BOUGH_LOOK_TREE_H
#define BOUGH_LOOK_TREE_H

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../err.h"

/* Most descriptors that a walk has open at once, besides the start. */
#define BOUGH_TREE_FDS 50
/* Longest path; names nested deeper are an error of kind resource. */
#define BOUGH_TREE_PATH_MAX ((size_t)4 << 20)

/* Valid until the next call for its tree. */
struct bough_tree_entry {
    const char *path; /* relative to the start: "etc/passwd"; never empty, any byte but NUL */
    size_t path_len;
    const char *name;   /* its last component, inside path */
    int dir;            /* the directory that it is in, for openat, fstatat, ... with `name` */
    unsigned depth;     /* 1: in the start itself */
    unsigned char type; /* DT_REG, DT_DIR, DT_LNK, ...; never DT_UNKNOWN */
};

struct bough_tree_level;
struct bough_tree_name;
struct bough_tree {
    struct bough_tree_level *levels;
    size_t depth, levels_room;
    struct bough_tree_name *names; /* of all levels, one level after the other */
    size_t name_count, names_room;
    char *bytes; /* what the names point into */
    size_t bytes_len, bytes_room;
    char *path;
    size_t path_len, path_room;
    char *scan;  /* what getdents64 fills */
    bool inside; /* the entry handed out last is a directory to enter */
};

/* Starts at the directory `fd`, which stays the caller's and open until bough_tree_free. */
int bough_tree_start(struct bough_tree *t, int fd, struct bough_err *err);
/* 1 and an entry, 0 at the end, -1. After a directory come its entries. */
int bough_tree_next(struct bough_tree *t, struct bough_tree_entry *out, struct bough_err *err);
/* The directory handed out last is not entered. */
void bough_tree_skip(struct bough_tree *t);
/* Fine on a zeroed tree and after a failed start. */
void bough_tree_free(struct bough_tree *t);

/* Opens an entry that is a regular file or a directory for reading; never blocks. -1 with errno:
 * EINVAL for the other types. */
int bough_tree_open(const struct bough_tree_entry *e);

/* The order in which a walk hands out two paths: as strcmp, with "/" before any other byte. */
int bough_tree_compare(const char *a, const char *b);

/* A path made fit for a message: one line, printable, its end when it is long. */
struct bough_tree_quoted {
    char text[200];
};
const char *bough_tree_quote(struct bough_tree_quoted *q, const char *path);
#define BOUGH_TREE_QUOTE(path) bough_tree_quote(&(struct bough_tree_quoted){{0}}, (path))

#endif
