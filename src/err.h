/* err.h - one error record for all C code below Lua.
 *
 * The contract: a function that can fail takes `struct bough_err *err` last and
 * returns -1 (or NULL). It fills `err` once, where the failure is first seen;
 * callers on the way up may put context in front with bough_err_wrap. A message
 * reads "step object: reason". Nothing prints, nothing exits. `err` may be NULL
 * for callers that do not want to know. No allocation: it works after a clone. */
#ifndef BOUGH_ERR_H
#define BOUGH_ERR_H

/* The kinds of the Lua error value, one list for C and Lua. */
#define BOUGH_ERR_KINDS(X) \
    X(invalid)             \
    X(not_found)           \
    X(exists)              \
    X(state)               \
    X(busy)                \
    X(disposed)            \
    X(exit)                \
    X(timeout)             \
    X(cancelled)           \
    X(closed)              \
    X(denied)              \
    X(unsupported)         \
    X(resource)            \
    X(io)                  \
    X(corrupt)             \
    X(auth)                \
    X(api)                 \
    X(transport)           \
    X(protocol)

enum bough_err_kind {
#define BOUGH_ERR_ENUM(name) BOUGH_ERR_##name,
    BOUGH_ERR_KINDS(BOUGH_ERR_ENUM)
#undef BOUGH_ERR_ENUM
        BOUGH_ERR_KIND_COUNT
};

struct bough_err {
    enum bough_err_kind kind;
    int sys;       /* errno, 0 when there is none */
    char msg[480]; /* one line, no trailing newline */
};

/* Sets `err` and returns -1. Keeps errno. */
int bough_err_set(struct bough_err *err, enum bough_err_kind kind, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The same for a failed system call: appends ": " and strerror(sys), remembers
 * `sys`, and picks the kind from it (ENOENT not_found, EACCES denied, ...). */
int bough_err_sys(struct bough_err *err, int sys, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "context: " in front of the message. Returns -1. */
int bough_err_wrap(struct bough_err *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* "not_found" for BOUGH_ERR_not_found; "io" for a value out of range. */
const char *bough_err_kind_name(enum bough_err_kind kind);

/* The kind that an errno stands for. */
enum bough_err_kind bough_err_kind_of(int sys);

/* "ENOENT" for ENOENT, NULL where the C library has no name for it. */
const char *bough_err_code(int sys);

#endif
