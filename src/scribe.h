/* scribe.h - what is written to and read from a journal, in order, on a thread of libuv's.
 *
 * Knows libuv, knows no Lua. Notes are carried out one after the other; those that came while others were under way
 * share a transaction. A read sees every write before it. What cannot be written fails alone. */
#ifndef BOUGH_SCRIBE_H
#define BOUGH_SCRIBE_H

#include "local/journal.h"
#include "loop.h"

/* One thing to do. Embedded first in a struct of its own. */
struct bough_note {
    int refs; /* whoever asked, and the scribe until it is done */
    struct bough_note *next;
    bool writes;
    size_t weight; /* bytes that it holds meanwhile, about */
    /* On the thread; a second time when something that was carried out together with it could not be written. -1, or
     * whatever else is the asker's to read. */
    int (*carry_out)(struct bough_journal *journal, struct bough_note *note, struct bough_err *err);
    void (*clear)(struct bough_note *note); /* frees what it holds */
    int rc;
    struct bough_err err;
    bool done;
    struct bough_cond done_cond;
};

struct bough_scribe {
    int refs;
    struct bough_loop *loop;
    uv_work_t req, checkpoint_req;
    bool working, closing; /* on the thread; for the last time */
    bool checkpointing;    /* on another one */
    struct bough_loop_end at_end;
    bool closed; /* takes no more; the journal is closed when all is done */
    struct bough_note *first, **last;
    struct bough_note *batch;
    size_t pending; /* weight of what is not done */
    char *path;
    struct bough_journal *journal; /* NULL before it is open, and after */
    struct bough_err trouble;      /* why it could not be opened; kind and text */
    bool failed;
    struct bough_cond changed; /* fires when notes are done, and on its end */
};

/* Begins to open the journal: notes that cannot be carried out because of that fail with its error. NULL: no memory. */
struct bough_scribe *bough_scribe_new(struct bough_loop *loop, const char *path);
void bough_scribe_ref(struct bough_scribe *scribe);
void bough_scribe_unref(struct bough_scribe *scribe);
/* Takes one reference of the note over. Fails it at once when the scribe is closed. */
void bough_scribe_give(struct bough_scribe *scribe, struct bough_note *note);
void bough_scribe_close(struct bough_scribe *scribe); /* what was given is still done */
bool bough_scribe_is_over(const struct bough_scribe *scribe);

void bough_note_init(struct bough_note *note, struct bough_loop *loop); /* one reference */
void bough_note_unref(struct bough_note *note);                         /* frees it with the last */

#endif
