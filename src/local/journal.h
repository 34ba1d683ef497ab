/* journal.h - a server's durable record: operations, their events, and the files that it was given.
 *
 * One SQLite database (WAL). It belongs to one process at a time: it is locked from opening to closing, and the kernel
 * lets go of the lock of a process that has died. All functions are synchronous; one thread at a time may be inside,
 * and a second one in bough_journal_checkpoint. What a transaction has committed survives the death of the process, but not always that of the machine: nothing here
 * waits for the disk. */
#ifndef BOUGH_JOURNAL_H
#define BOUGH_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../err.h"

#define BOUGH_JOURNAL_EVENTS_MAX (1 << 24) /* ids of one operation's events are below this */

struct bough_journal;

/* Opens, creating it at need, mode 0600. Kind `busy` when another process has it, `corrupt` for what is no such database
 * or is damaged, `unsupported` for one of a newer version; each names the path. */
struct bough_journal *bough_journal_open(const char *path, struct bough_err *err);
void bough_journal_close(struct bough_journal *journal); /* NULL is fine */

/* Moves the write-ahead log into the database, on a connection of its own, beside what another thread does. The fsyncs cost
 * milliseconds, which a commit has to pay itself when the log gets to 32 MB. */
bool bough_journal_wants_checkpoint(const struct bough_journal *journal);
void bough_journal_checkpoint(struct bough_journal *journal);

/* Around writes. Rollback is harmless when nothing has begun. */
int bough_journal_begin(struct bough_journal *journal, struct bough_err *err);
int bough_journal_commit(struct bough_journal *journal, struct bough_err *err);
void bough_journal_rollback(struct bough_journal *journal);

/* -- operations -------------------------------------------------------------------------------- */

/* Texts are owned (malloc), NULL where there is none. */
struct bough_operation {
    char *uuid, *kind, *status, *token, *image, *result_image;
    int64_t created_us, updated_us;    /* since the epoch */
    bool over;                         /* it will not change any more */
    char *summary, *metadata, *result; /* what the server says of it, opaque here */
};
void bough_operation_clear(struct bough_operation *operation);

/* Inserts it, or changes the one with this uuid: texts that are NULL and a `created_us` of 0 stay as they were. */
int bough_journal_put(struct bough_journal *journal, const struct bough_operation *operation,
                      struct bough_err *err);
/* 1 found, 0 not, -1. */
int bough_journal_get(struct bough_journal *journal, const char *uuid, struct bough_operation *out,
                      struct bough_err *err);

struct bough_operation_filter {
    const char *kind, *status;   /* NULL: any */
    int over;                    /* 1 or 0; -1: any */
    int64_t since_us, before_us; /* 0: no bound; since inclusive, before exclusive */
    int64_t limit, offset;       /* limit <= 0: all */
};
/* Newest first, without metadata and result. *out is malloc'ed, each to be cleared. The count, or -1. */
long bough_journal_list(struct bough_journal *journal, const struct bough_operation_filter *filter,
                        struct bough_operation **out, struct bough_err *err);
/* The uuid of the operation that made this image, the first of several. 1 found (*uuid malloc'ed), 0, -1. */
int bough_journal_maker(struct bough_journal *journal, const char *image, char **uuid,
                        struct bough_err *err);
/* Forgets operations that are over and have not been touched since, at most `most` of them: how many went, or -1. */
long bough_journal_prune(struct bough_journal *journal, int64_t before_us, int64_t most,
                         struct bough_err *err);

/* -- events ------------------------------------------------------------------------------------ */

struct bough_event {
    int64_t spid; /* -1: of no process */
    const char *frame;
    size_t size;
};
/* Appends events `first`, `first` + 1, ... of an operation; kind not_found without that operation. Again with the same
 * ids: the same once. */
int bough_journal_append(struct bough_journal *journal, const char *uuid, int64_t first,
                         const struct bough_event *events, size_t count, struct bough_err *err);

struct bough_events_page {
    char *text; /* owned; the frames one behind the other */
    size_t size;
    int64_t count, last; /* `last`: id of the last one; as asked for when there is none */
};
/* Events with ids above `after`, in order, of one process where `spid` is not negative: as many as fit `most` bytes, but at
 * least one. */
int bough_journal_events(struct bough_journal *journal, const char *uuid, int64_t after,
                         int64_t spid, size_t most, struct bough_events_page *out,
                         struct bough_err *err);
/* The id of the last event; -1 where there is none, -2 after an error. */
int64_t bough_journal_last(struct bough_journal *journal, const char *uuid, struct bough_err *err);

/* -- files ------------------------------------------------------------------------------------- */

struct bough_upload_row {
    char uuid[40], sha256[72];
    int64_t size, created_us, updated_us;
};
/* Inserts it; one with the same digest keeps its uuid and its creation, and *row says those. */
int bough_journal_put_file(struct bough_journal *journal, struct bough_upload_row *row,
                           struct bough_err *err);
/* By uuid or digest. 1 found, 0 not, -1. */
int bough_journal_file(struct bough_journal *journal, const char *key, struct bough_upload_row *out,
                       struct bough_err *err);
/* Newest first; kind, status and over of the filter count for nothing. */
long bough_journal_files(struct bough_journal *journal, const struct bough_operation_filter *filter,
                         struct bough_upload_row **out, struct bough_err *err);

#endif
