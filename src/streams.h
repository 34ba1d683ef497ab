/* streams.h - stdin, stdout and stderr of a command together, as a spec asked for them.
 *
 * What is pumped by us (data, files, functions, captured output) is in `in` and `out` (stream.h); what the caller
 * reads and writes himself is a reader or a writer; what comes from or goes to another process is a descriptor
 * that goes to the command as it is. */
#ifndef BOUGH_STREAMS_H
#define BOUGH_STREAMS_H

#include "local/store.h"
#include "reader.h"
#include "stream.h"
#include "writer.h"

struct bough_streams {
    struct bough_in in;
    struct bough_out out[2]; /* stdout, stderr; the second may be joined to the first */
    bool joined;
    bool piped[3];                  /* the caller gets a reader or a writer for this one */
    int given[3];                   /* a descriptor for the command itself, owned; -1 */
    struct bough_writer *writer;    /* piped stdin, once opened; counted */
    struct bough_reader *reader[2]; /* piped stdout and stderr */
};

void bough_streams_init(struct bough_streams *streams);
/* Makes the pipes and starts what pumps. fds: the command's ends, -1 where it gets /dev/null (two may be the same);
 * the caller closes them by bough_streams_close_ends, also after a failure. */
int bough_streams_open(struct bough_streams *streams, struct bough_loop *loop,
                       struct bough_cond *changed, int fds[3], struct bough_err *err);
void bough_streams_close_ends(int fds[3]);
/* In place of that, once the command runs: a terminal's master (taken over) for all three. */
int bough_streams_open_terminal(struct bough_streams *streams, struct bough_loop *loop,
                                struct bough_cond *changed, int master, struct bough_err *err);
void bough_streams_finish(
    struct bough_streams *streams); /* the command is over: takes what is left to capture */
/* After that: files written whole get their names if `keep`. -1: what went wrong with any stream that we pump. */
int bough_streams_settle(struct bough_streams *streams, bool keep, struct bough_err *err);
/* What a status as waitpid gives it and what was captured (moved out of `streams`) come to; times are the caller's. */
void bough_streams_result(struct bough_streams *streams, int status, bool timed_out,
                          struct bough_result *result);
void bough_streams_discard(
    struct bough_streams *streams); /* nobody calls the functions any more: let them run dry */
void bough_streams_stop(
    struct bough_streams *streams); /* closes all but what the caller reads and writes himself */
void bough_streams_close(struct bough_streams *streams);

#endif
