/* tar.h - writes a tar archive: ustar headers, with pax records for what they cannot hold.
 *
 * Made for readers of all kinds (GNU tar, libarchive, Go's archive/tar): names are written as the bytes they
 * are, in whatever encoding, and nothing depends on the clock, the locale or the machine. Memory is one
 * buffer and the records of one entry.
 *
 * An entry is its records (bough_tar_record), its header, and then as many bytes as the header
 * says, ended by bough_tar_pad. */
#ifndef BOUGH_LOOK_TAR_H
#define BOUGH_LOOK_TAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "../err.h"

#define BOUGH_TAR_BYTES ((size_t)256 << 10)
/* Readers refuse more for one entry: libarchive and Go's archive/tar draw the line here. */
#define BOUGH_TAR_RECORDS_MAX ((size_t)1 << 20)

enum bough_tar_type {
    BOUGH_TAR_FILE = '0',
    BOUGH_TAR_LINK = '1', /* a further name of an entry before it */
    BOUGH_TAR_SYMLINK = '2',
    BOUGH_TAR_CHAR = '3',
    BOUGH_TAR_BLOCK = '4',
    BOUGH_TAR_DIR = '5',
    BOUGH_TAR_FIFO = '6'
};

struct bough_tar_entry {
    enum bough_tar_type type;
    const char *path; /* without a '/' at its end */
    const char *link; /* of both kinds of links, else NULL */
    uint32_t mode, uid, gid;
    struct timespec mtime;
    dev_t device;
    int64_t size;      /* bytes that follow */
    int64_t real_size; /* with `sparse` */
    bool sparse;       /* what follows is a map and the data between the holes (GNU's format 1.0) */
};

struct bough_tar {
    /* takes the archive, piece by piece; -1 with err */
    int (*put)(void *arg, const void *data, size_t size, struct bough_err *err);
    void *arg;
    char *buf;
    size_t len;
    char *records;
    size_t records_len, records_room;
    int64_t entries;
};

/* Fill in `put` and `arg` of a zeroed one first. */
int bough_tar_start(struct bough_tar *t, struct bough_err *err);
void bough_tar_free(struct bough_tar *t);

/* A pax record for the next header; its keyword is both strings in a row. */
int bough_tar_record(struct bough_tar *t, const char *space, const char *key, const void *value,
                     size_t size, struct bough_err *err);
int bough_tar_header(struct bough_tar *t, const struct bough_tar_entry *e, struct bough_err *err);

/* Where the next bytes go, at least one; *room gets how many fit. NULL with err. */
char *bough_tar_room(struct bough_tar *t, size_t *room, struct bough_err *err);
void bough_tar_took(struct bough_tar *t, size_t size);
int bough_tar_write(struct bough_tar *t, const void *data, size_t size, struct bough_err *err);
/* Fills the last block up. */
int bough_tar_pad(struct bough_tar *t, struct bough_err *err);
/* Ends the archive and hands out the rest. */
int bough_tar_end(struct bough_tar *t, struct bough_err *err);

#endif
