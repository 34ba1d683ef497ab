/* blob.h - the pool of file contents: home/blobs, files by their SHA-256.
 *
 * A pooled file is one inode, named by its content and by the metadata that an inode carries, and hard-linked
 * from every layer that holds it: "ab/<digest>-<mode>-<uid>-<gid>-<mtime_ns>", "ab" the digest's first two digits. What
 * was uploaded is "ab/<digest>", a file of its own or a second name of a pooled one. The link count says whether
 * anybody uses it: a file without a name outside is rubbish for bough_blobs_sweep; an upload is kept for a day
 * after it was last asked for.
 * The keeper's worker makes the pooled files (put.c); the host makes uploads, looks and sweeps. */
#ifndef BOUGH_BLOB_H
#define BOUGH_BLOB_H

#include <stdbool.h>
#include <stdint.h>

#include "../err.h"

#define BOUGH_BLOB_NAME 160

/* Opens home/blobs, making it and its 256 directories at need. A directory descriptor or -1. */
int bough_blobs_open(const char *home, struct bough_err *err);
void bough_blob_name(char name[BOUGH_BLOB_NAME], const char *digest, int64_t mode, int64_t uid,
                     int64_t gid, int64_t mtime_ns);
void bough_blob_upload_name(char name[BOUGH_BLOB_NAME], const char *digest);
bool bough_blob_has(int blobs, const char *name);
bool bough_blob_digest_valid(const char *text); /* 64 hexadecimal digits, lower case */
/* Any pooled file or upload of that content that we may read: 1 and its name, 0, -1. Reads one directory. */
int bough_blob_find(int blobs, const char *digest, char name[BOUGH_BLOB_NAME],
                    struct bough_err *err);
/* Held shared by whoever puts files in place, from the look into the pool to the last link; the sweep takes it
 * exclusively, directory by directory, and stops where it cannot. home/blobs/lock. A descriptor to close, -1;
 * waits at most 10 s. */
int bough_blobs_lock(int blobs, struct bough_err *err);
/* Removes what nobody links to, and uploads that nobody has touched for a day. Counts files and the bytes on
 * disk that they held; 0, also when somebody has the lock (what was done until then is counted), -1. With
 * `dry` only counts. */
int bough_blobs_sweep(int blobs, bool dry, int64_t *count, int64_t *bytes, struct bough_err *err);

#endif
