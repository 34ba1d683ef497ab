/* content.h - one content on its way into the pool: read once, hashed, and copied where it is to go.
 *
 * For stage.c. A content is a local file or bytes in memory; small ones (up to BOUGH_CONTENT_SMALL) are read into
 * memory first, so that nothing is written when the pool has them; larger ones are hashed while they are copied. */
#ifndef BOUGH_CONTENT_H
#define BOUGH_CONTENT_H

#include <sys/stat.h>

#include "stage.h"

#define BOUGH_CONTENT_SMALL (1024 * 1024)

struct bough_content {
    const char *name; /* the local path, for messages; borrowed */
    int fd;           /* -1 for bytes */
    struct stat st;   /* of the file, before it is read */
    const char *data; /* the bytes: borrowed, or in the buffer it was read to */
    int64_t size;
    char hex[BOUGH_SHA256_HEX];
    bool
        verified; /* the caller compares digests: whether the file's times change is of no interest */
};

/* Follows symbolic links. What is no regular file is one clear error; nothing blocks. */
int bough_content_stat(const char *path, struct stat *st, struct bough_err *err);
/* `path` as for openat(2). The caller closes content->fd. */
int bough_content_open(struct bough_content *content, int dir, const char *path,
                       struct bough_err *err);
void bough_content_bytes(struct bough_content *content, const char *name, const char *data,
                         size_t size);
bool bough_content_is_small(const struct bough_content *content);
/* A small one: reads it into `buffer` (BOUGH_CONTENT_SMALL + 1 bytes) if need be, and hashes it. */
int bough_content_load(struct bough_content *content, char *buffer, struct bough_err *err);
/* A large one: hashes it, and writes it to `out` unless that is -1, holes kept. Progress and cancelling are the
 * stage's; `where` is what it is copied into, for messages. */
int bough_content_copy(struct bough_content *content, int out, const char *where, char *buffer,
                       struct bough_stage *stage, struct bough_err *err);
/* Writes a loaded one. */
int bough_content_write(const struct bough_content *content, int out, const char *where,
                        struct bough_err *err);
/* What bough_hashes knows it by. */
void bough_content_key(const struct stat *st, struct bough_hash_key *key);

void bough_content_remember(const struct bough_content *content, struct bough_hashes *hashes);

#endif
