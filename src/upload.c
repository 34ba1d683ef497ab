#define _GNU_SOURCE
/* upload.c - one content into the pool, before any file is made of it (bough_stage_upload). */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "content.h"
#include "draft.h"
#include "local/blob.h"
#include "sys.h"

/* Makes sure that the pool has the content for a day from now: 1 it has, 0 it lacks it, -1. */
static int upload_keep(struct bough_stage *stage, const char *hex, struct bough_err *err)
{
    char name[BOUGH_BLOB_NAME], upload[BOUGH_BLOB_NAME];
    int found = bough_blob_find(stage->blobs, hex, name, err);
    if (found != 1)
        return found;
    bough_blob_upload_name(upload, hex);
    /* Refused for what is not ours: then it gets a file of its own. */
    if (strcmp(name, upload) != 0)
        return linkat(stage->blobs, name, stage->blobs, upload, 0) == 0 || errno == EEXIST;
    /* To set a mode, even the same one, is a change: its day begins anew. */
    int fd BOUGH_CLEANUP_FD = openat(stage->blobs, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    if (fd >= 0 && fstat(fd, &st) == 0)
        (void)!fchmod(fd, st.st_mode & 07777);
    return 1;
}

static int upload_write(struct bough_stage *stage, struct bough_content *content, char *buffer,
                        struct bough_draft *draft, struct bough_err *err)
{
    if (bough_draft_open(stage, 0, 0, 0600, draft, err))
        return -1;
    return content->data ? bough_content_write(content, draft->fd, stage->home, err)
                         : bough_content_copy(content, draft->fd, stage->home, buffer, stage, err);
}

static int upload_content(struct bough_stage *stage, struct bough_stage_item *item,
                          struct bough_content *content, char *buffer, struct bough_draft *draft,
                          struct bough_err *err)
{
    bool small = bough_content_is_small(content);
    if (small ? bough_content_load(content, buffer, err)
              : upload_write(stage, content, buffer, draft, err))
        return -1;
    memcpy(item->hex, content->hex, sizeof item->hex);
    item->size = content->size;
    int kept = upload_keep(stage, item->hex, err);
    if (kept)
        return kept < 0 ? -1 : 0;
    char name[BOUGH_BLOB_NAME];
    bough_blob_upload_name(name, item->hex);
    if ((small && upload_write(stage, content, buffer, draft, err)) ||
        bough_draft_upload(stage, draft, name, err))
        return -1;
    stage->copied_files++;
    stage->copied_bytes += item->size;
    return 1;
}

static int upload_source(struct bough_stage *stage, struct bough_stage_item *item, char *buffer,
                         struct bough_draft *draft, struct bough_err *err)
{
    struct stat st;
    struct bough_hash_key key;
    struct bough_content content;
    if (bough_content_stat(item->source, &st, err))
        return -1;
    item->size = st.st_size;
    atomic_store(&stage->total_bytes, item->size);
    bough_content_key(&st, &key);
    if (bough_hashes_get(stage->hashes, &key, item->hex)) {
        int kept = upload_keep(stage, item->hex, err);
        if (kept)
            return kept < 0 ? -1 : 0;
    }
    if (bough_content_open(&content, AT_FDCWD, item->source, err))
        return -1;
    int result = upload_content(stage, item, &content, buffer, draft, err);
    bough_fd_close(&content.fd);
    if (result >= 0)
        bough_content_remember(&content, stage->hashes);
    return result;
}

static int upload_digest(struct bough_stage *stage, struct bough_stage_item *item,
                         struct bough_err *err)
{
    int kept = upload_keep(stage, item->digest, err);
    char name[BOUGH_BLOB_NAME];
    if (kept == 0 && bough_blob_find(stage->blobs, item->digest, name, err) == 1)
        kept = 1; /* it is there; only the link that would keep it for a day was refused */
    if (kept == 0)
        bough_err_set(err, BOUGH_ERR_not_found, "no content with the digest %s in the store",
                      item->digest);
    if (kept != 1)
        return -1;
    memcpy(item->hex, item->digest, sizeof item->hex);
    return 0;
}

int bough_stage_upload(struct bough_stage *stage, struct bough_stage_item *item,
                       struct bough_err *err)
{
    char *buffer BOUGH_CLEANUP_FREE = malloc(BOUGH_CONTENT_SMALL + 1);
    struct bough_draft draft = {.fd = -1};
    struct bough_content content;
    item->size = 0;
    if (!buffer)
        return bough_err_sys(err, ENOMEM, "upload");
    if (bough_draft_ready(stage, err))
        return -1;
    int result;
    if (item->source) {
        result = upload_source(stage, item, buffer, &draft, err);
    } else if (item->digest) {
        result = upload_digest(stage, item, err);
    } else {
        bough_content_bytes(&content, "upload", item->data ? item->data : "", item->data_size);
        result = upload_content(stage, item, &content, buffer, &draft, err);
    }
    bough_draft_drop(stage, &draft);
    if (result >= 0) {
        atomic_store(&stage->total_bytes, item->size);
        atomic_store(&stage->done_bytes, item->size);
    }
    return result;
}
