/* same.h - in what two file system objects differ: content, mode, owner, type, target, xattrs, device.
 *
 * Exact: what is called the same has been compared, or is the same inode. The two roots are mounts over
 * layers on one file system, where a number names one inode whatever mount shows it; their device
 * numbers differ and say nothing. */
#ifndef BOUGH_LOOK_SAME_H
#define BOUGH_LOOK_SAME_H

#include <stdint.h>
#include <sys/stat.h>

#include "../err.h"
#include "xattrs.h"

struct bough_tree_entry;

struct bough_same {
    struct bough_xattrs xattrs[2];
    char *buf[2];
    /* Called now and then while a long file is read; NULL: nobody asks. */
    int (*tick)(void *arg, struct bough_err *err);
    void *arg;
};

int bough_same_start(struct bough_same *s, struct bough_err *err);
void bough_same_free(struct bough_same *s);

/* *what gets BOUGH_DIFF_... bits (record.h), 0 when they are the same. Neither mtimes nor link counts
 * count, and of objects of different types only owner and mode are compared besides. Xattrs are
 * those of files and directories, without what overlayfs and SELinux keep for themselves. */
int bough_same_entries(struct bough_same *s, const struct bough_tree_entry *a,
                       const struct stat *sa, const struct bough_tree_entry *b,
                       const struct stat *sb, uint32_t *what, struct bough_err *err);
/* The same for two open directories. */
int bough_same_dirs(struct bough_same *s, int a, int b, uint32_t *what, struct bough_err *err);

#endif
