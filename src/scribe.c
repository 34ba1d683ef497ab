#define _GNU_SOURCE
#include "scribe.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "sys.h"

#define BATCH_WEIGHT (4 << 20) /* what is begun together is done before anybody hears of it */

void bough_note_init(struct bough_note *note, struct bough_loop *loop)
{
    note->refs = 1;
    bough_cond_init(&note->done_cond, loop);
}

void bough_note_unref(struct bough_note *note)
{
    if (--note->refs > 0)
        return;
    if (note->clear)
        note->clear(note);
    bough_cond_destroy(&note->done_cond);
    free(note);
}

static void finish(struct bough_note *note)
{
    note->done = true;
    bough_cond_fire(&note->done_cond);
    bough_note_unref(note);
}

/* -- on the thread ----------------------------------------------------------------------------- */

static void fail_writes(struct bough_note *batch, const struct bough_err *err)
{
    for (struct bough_note *note = batch; note; note = note->next)
        if (note->writes) {
            note->rc = -1;
            note->err = *err;
        }
}

/* All of them in one transaction. False: nothing was written, and why, unless that was one note's own failure. */
static bool carry_out_together(struct bough_journal *journal, struct bough_note *batch)
{
    struct bough_err err;
    bool begun = false, good = true;
    for (struct bough_note *note = batch; note && good; note = note->next) {
        if (note->writes && !begun) {
            if (bough_journal_begin(journal, &err) < 0) {
                fail_writes(batch, &err);
                good = false;
                break;
            }
            begun = true;
        }
        note->rc = note->carry_out(journal, note, &note->err);
        good = note->rc >= 0 || !note->writes;
    }
    if (good && begun && bough_journal_commit(journal, &err) < 0) {
        fail_writes(batch, &err);
        good = false;
    }
    if (!good)
        bough_journal_rollback(journal);
    return good;
}

/* Reads that came behind a write that failed have not been done yet, and no write has lasted. */
static void carry_out_alone(struct bough_journal *journal, struct bough_note *batch)
{
    for (struct bough_note *note = batch; note; note = note->next) {
        struct bough_note *next = note->next;
        note->next = NULL;
        carry_out_together(journal, note);
        note->next = next;
    }
}

static void work(uv_work_t *req)
{
    struct bough_scribe *scribe = req->data;
    if (!scribe->journal && !scribe->failed) {
        scribe->journal = bough_journal_open(scribe->path, &scribe->trouble);
        scribe->failed = !scribe->journal;
    }
    if (scribe->failed) {
        for (struct bough_note *note = scribe->batch; note; note = note->next) {
            note->rc = -1;
            note->err = scribe->trouble;
        }
    } else if (scribe->batch && !carry_out_together(scribe->journal, scribe->batch)) {
        carry_out_alone(scribe->journal, scribe->batch);
    }
    if (scribe->closing) {
        bough_journal_close(scribe->journal);
        scribe->journal = NULL;
    }
}

/* -- on the loop ------------------------------------------------------------------------------- */

static void begin(struct bough_scribe *scribe);

static void checkpoint(uv_work_t *req)
{
    bough_journal_checkpoint(((struct bough_scribe *)req->data)->journal);
}

static void checkpointed(uv_work_t *req, int status)
{
    struct bough_scribe *scribe = req->data;
    (void)status;
    scribe->checkpointing = false;
    if (scribe->closed && !scribe->closing)
        begin(scribe);
    bough_scribe_unref(scribe);
}

static void begin_checkpoint(struct bough_scribe *scribe)
{
    if (scribe->closed || scribe->checkpointing || !scribe->journal ||
        !bough_journal_wants_checkpoint(scribe->journal))
        return;
    scribe->checkpointing = true;
    scribe->refs++;
    scribe->checkpoint_req.data = scribe;
    uv_queue_work(bough_loop_uv(scribe->loop), &scribe->checkpoint_req, checkpoint, checkpointed);
}

static void after(uv_work_t *req, int status)
{
    struct bough_scribe *scribe = req->data;
    struct bough_note *note = scribe->batch;
    (void)status;
    scribe->batch = NULL;
    scribe->working = false;
    while (note) {
        struct bough_note *next = note->next;
        scribe->pending -= note->weight;
        finish(note);
        note = next;
    }
    if (scribe->first || (scribe->closed && !scribe->closing))
        begin(scribe);
    begin_checkpoint(scribe);
    bough_cond_fire(&scribe->changed);
    bough_scribe_unref(scribe);
}

/* Takes what there is, up to a size, to the thread. */
static void begin(struct bough_scribe *scribe)
{
    struct bough_note *last = NULL, *next = scribe->first;
    size_t weight = 0;
    /* the journal is not closed under a checkpoint */
    if (scribe->working || (scribe->closed && !next && scribe->checkpointing))
        return;
    for (; next && weight < BATCH_WEIGHT; next = next->next) {
        weight += next->weight;
        last = next;
    }
    scribe->batch = last ? scribe->first : NULL;
    if (last)
        last->next = NULL;
    scribe->first = next;
    if (!next)
        scribe->last = &scribe->first;
    scribe->closing = scribe->closed && !next && !scribe->checkpointing;
    scribe->working = true;
    scribe->refs++;
    scribe->req.data = scribe;
    uv_queue_work(bough_loop_uv(scribe->loop), &scribe->req, work, after);
}

/* What was given is still written: the loop waits for what is on its threads. */
static void loop_ends(struct bough_loop_end *end)
{
    bough_scribe_close(
        (struct bough_scribe *)((char *)end - offsetof(struct bough_scribe, at_end)));
}

struct bough_scribe *bough_scribe_new(struct bough_loop *loop, const char *path)
{
    struct bough_scribe *scribe = calloc(1, sizeof *scribe);
    if (!scribe || !(scribe->path = strdup(path))) {
        free(scribe);
        return NULL;
    }
    scribe->refs = 1;
    scribe->loop = loop;
    scribe->last = &scribe->first;
    bough_cond_init(&scribe->changed, loop);
    scribe->at_end.run = loop_ends;
    bough_loop_at_end(loop, &scribe->at_end);
    begin(scribe);
    return scribe;
}

void bough_scribe_ref(struct bough_scribe *scribe)
{
    scribe->refs++;
}

void bough_scribe_unref(struct bough_scribe *scribe)
{
    if (--scribe->refs > 0)
        return;
    bough_loop_end_drop(&scribe->at_end);
    bough_journal_close(scribe->journal);
    bough_cond_destroy(&scribe->changed);
    free(scribe->path);
    free(scribe);
}

void bough_scribe_give(struct bough_scribe *scribe, struct bough_note *note)
{
    if (scribe->closed) {
        note->rc = bough_err_set(&note->err, BOUGH_ERR_closed, "%s: closed", scribe->path);
        finish(note);
        return;
    }
    note->next = NULL;
    *scribe->last = note;
    scribe->last = &note->next;
    scribe->pending += note->weight;
    begin(scribe);
}

void bough_scribe_close(struct bough_scribe *scribe)
{
    if (scribe->closed)
        return;
    scribe->closed = true;
    begin(scribe);
}

bool bough_scribe_is_over(const struct bough_scribe *scribe)
{
    return scribe->closing && !scribe->working;
}
