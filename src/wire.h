/* wire.h - messages between the host, the keeper and the inits.
 *
 * SOCK_SEQPACKET, one message a packet, descriptors as SCM_RIGHTS. Both ends are
 * built from the same source, so integers travel in host order and there is no
 * version negotiation beyond the hello. A payload that is too large for a packet
 * travels in a sealed memfd, passed as the first descriptor. */
#ifndef BOUGH_WIRE_H
#define BOUGH_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

#define BOUGH_WIRE_VERSION 3
#define BOUGH_WIRE_FDS 8              /* at most this many descriptors a message */
#define BOUGH_WIRE_INLINE (32 * 1024) /* larger payloads go into a memfd */
#define BOUGH_WIRE_PAYLOAD_MAX (256 * 1024 * 1024)

enum bough_msg {
    /* host to keeper; `id` is chosen by the host */
    BOUGH_MSG_RUN = 1, /* a plan; fds: stdin (or /dev/null's), stdout, stderr */
    BOUGH_MSG_KILL,    /* kill the sandbox or the worker `id` */
    BOUGH_MSG_OPEN,    /* stack, path: answers DONE with one fd */
    BOUGH_MSG_LIST,    /* stack, path: answers DONE with a memfd of entries */
    BOUGH_MSG_REMOVE,  /* names below home: answers DONE */
    BOUGH_MSG_MERGE,   /* new id, layers: answers DONE bytes files */
    BOUGH_MSG_UNPACK,  /* bough_unpack_order; fds: archive, and with layer 0 the directory to fill.
                        * Answers DONE bytes files skipped, digest of the unpacked bytes or "" */
    BOUGH_MSG_COPY,    /* new id, max bytes, max files; fd: directory. DONE bytes files skipped */
    BOUGH_MSG_PUT,     /* new id, stack, items (put.h). DONE bytes files */
    BOUGH_MSG_EXTRACT, /* stack, path; fd: empty directory to copy it into. DONE bytes files skipped */
    BOUGH_MSG_LOOK,    /* bough_look_order; fds: output, and with the source `given` the directory.
                        * DONE three numbers and a text, as bough-look reports them */
    BOUGH_MSG_COMMIT, /* sandbox (the id of its RUN), new id: copies what a booted sandbox has changed into a
                        * layer, while all in it stands still. DONE bytes files changed; without a change there is no layer */
    BOUGH_MSG_OOM, /* sandbox (the id of its RUN): DONE how many processes its memory limit has killed, whether its
                    * time is over; -1 where there is none */
    BOUGH_MSG_BYE, /* end in order */
    /* keeper to host */
    BOUGH_MSG_HELLO,    /* version, facts as key, value pairs; fd: pidfd of the keeper */
    BOUGH_MSG_STARTED,  /* the command of `id` is running: pid as the host sees it */
    BOUGH_MSG_EXITED,   /* an ending */
    BOUGH_MSG_DONE,     /* numbers */
    BOUGH_MSG_PROGRESS, /* done so far, in all or 0: bytes of a request under way */
    BOUGH_MSG_FAILED,   /* an error record; `id` has ended */
    /* keeper to nursery and init, and back */
    BOUGH_MSG_BLANK,  /* make one (bool: host network); answer: pid, fds: control socket, pidfd */
    BOUGH_MSG_READY,  /* a blank is prepared */
    BOUGH_MSG_FREEZE, /* to an init: stop all processes of the sandbox; answers FROZEN or FAILED */
    BOUGH_MSG_FROZEN, /* they stand still; fd: the upper directory */
    BOUGH_MSG_THAW,   /* let them go on */
    /* host to a crew (the init of a booted sandbox, or bough-spawn), over a socket of their own; `id` names
     * a process and is chosen by the host */
    BOUGH_MSG_EXEC, /* a bough_command; fds: its streams. Answers STARTED (pid; fd: the terminal's master when
                       * there is one) and later ENDED, or FAILED alone */
    BOUGH_MSG_SIGNAL, /* number, bough_scope; id 0: all processes of the sandbox. No answer */
    BOUGH_MSG_FINISH, /* bool keep: end the sandbox, with a layer of what changed or without. What the keeper
                       * says of its end (EXITED) is the answer. Closing the socket is a FINISH without */
    BOUGH_MSG_GUARD, /* to bough-spawn: a terminal's saved settings (struct termios as bytes); fd: the terminal. They
                       * are put back when the host dies. Without a descriptor: forget it. No answer */
    BOUGH_MSG_ENDED, /* crew to host: a bough_end */
};

/* A growing buffer to write into. Errors stick in `failed`; check once at the end. */
struct bough_wbuf {
    uint8_t *data;
    size_t size, room;
    bool failed;
};

void bough_wbuf_free(struct bough_wbuf *buf);
void bough_put_i64(struct bough_wbuf *buf, int64_t value);
void bough_put_f64(struct bough_wbuf *buf, double value);
void bough_put_bytes(struct bough_wbuf *buf, const void *data, size_t size);
void bough_put_str(struct bough_wbuf *buf, const char *text); /* NULL travels as NULL */
void bough_put_strv(struct bough_wbuf *buf,
                    char *const *texts); /* NULL-terminated; NULL is an empty one */
void bough_put_err(struct bough_wbuf *buf, const struct bough_err *err);

/* A cursor to read from. Strings point into the message. Errors stick in `failed`. */
struct bough_rbuf {
    const uint8_t *at, *end;
    bool failed;
};

int64_t bough_get_i64(struct bough_rbuf *buf);
double bough_get_f64(struct bough_rbuf *buf);
const char *bough_get_str(struct bough_rbuf *buf); /* NULL for NULL and when failed */
void bough_strv_free(char **texts); /* a vector whose strings are owned as well; NULL is fine */
char **bough_get_strv(struct bough_rbuf *buf); /* malloc'ed vector of pointers into the message */
void bough_get_err(struct bough_rbuf *buf, struct bough_err *err);

/* A received message. `bough_msg_clear` closes descriptors that were not taken (set to -1). */
struct bough_message {
    enum bough_msg type;
    int64_t id;
    struct bough_rbuf body;
    int fds[BOUGH_WIRE_FDS];
    int fd_count;
    uint8_t *data; /* owned */
    size_t size;
};

void bough_msg_clear(struct bough_message *msg);

/* Sends one message; `body` may be NULL. Descriptors stay the caller's. 0, or -1 with errno in err->sys
 * (EAGAIN when `sock` is non-blocking and full). */
int bough_send(int sock, enum bough_msg type, int64_t id, const struct bough_wbuf *body,
               const int *fds, int fd_count, struct bough_err *err);

/* Receives one: 1 a message, 0 the other end is gone, -1 an error (EAGAIN: nothing there now). */
int bough_recv(int sock, struct bough_message *msg, struct bough_err *err);

#endif
