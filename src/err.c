#define _GNU_SOURCE
#include "err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int bough_err_set(struct bough_err *err, enum bough_err_kind kind, const char *fmt, ...)
{
    int saved = errno;
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err->kind = kind;
        err->sys = 0;
        vsnprintf(err->msg, sizeof err->msg, fmt, ap);
        va_end(ap);
    }
    errno = saved;
    return -1;
}

int bough_err_sys(struct bough_err *err, int sys, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err->kind = bough_err_kind_of(sys);
        err->sys = sys;
        int n = vsnprintf(err->msg, sizeof err->msg, fmt, ap);
        va_end(ap);
        if (n >= 0 && (size_t)n < sizeof err->msg)
            snprintf(err->msg + n, sizeof err->msg - (size_t)n, ": %s", strerror(sys));
    }
    errno = sys;
    return -1;
}

int bough_err_wrap(struct bough_err *err, const char *fmt, ...)
{
    int saved = errno;
    if (err) {
        char inner[sizeof err->msg];
        memcpy(inner, err->msg, sizeof inner);
        va_list ap;
        va_start(ap, fmt);
        int n = vsnprintf(err->msg, sizeof err->msg, fmt, ap);
        va_end(ap);
        /* What does not fit is cut, by a precision that says so. */
        int room = (int)sizeof err->msg - n - 3;
        if (n >= 0 && room > 0)
            snprintf(err->msg + n, sizeof err->msg - (size_t)n, ": %.*s", room, inner);
    }
    errno = saved;
    return -1;
}

const char *bough_err_kind_name(enum bough_err_kind kind)
{
    static const char *const names[] = {
#define BOUGH_ERR_NAME(name) #name,
        BOUGH_ERR_KINDS(BOUGH_ERR_NAME)
#undef BOUGH_ERR_NAME
    };
    if ((unsigned)kind >= BOUGH_ERR_KIND_COUNT)
        return "io";
    return names[kind];
}

enum bough_err_kind bough_err_kind_of(int sys)
{
    switch (sys) {
    case ENOENT:
    case ENOTDIR:
    case ESRCH:
        return BOUGH_ERR_not_found;
    case EEXIST:
    case ENOTEMPTY:
        return BOUGH_ERR_exists;
    case EACCES:
    case EPERM:
    case EROFS:
        return BOUGH_ERR_denied;
    case ENOMEM:
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case EAGAIN:
        return BOUGH_ERR_resource;
    case EBUSY:
        return BOUGH_ERR_busy;
    case EINVAL:
    case ENAMETOOLONG:
    case E2BIG:
    case ELOOP:
    case EISDIR:
        return BOUGH_ERR_invalid;
    case EPIPE:
    case ECONNRESET:
        return BOUGH_ERR_closed;
    case ENOSYS:
    case EOPNOTSUPP:
        return BOUGH_ERR_unsupported;
    default:
        return BOUGH_ERR_io;
    }
}

const char *bough_err_code(int sys)
{
    /* strerrorname_np(3) would do, but is the GNU library's alone. */
    static const struct {
        int sys;
        const char *name;
    } codes[] = {
#define CODE(name) {name, #name}
        CODE(EPERM),        CODE(ENOENT),       CODE(ESRCH),        CODE(EINTR),
        CODE(EIO),          CODE(ENXIO),        CODE(E2BIG),        CODE(ENOEXEC),
        CODE(EBADF),        CODE(ECHILD),       CODE(EAGAIN),       CODE(ENOMEM),
        CODE(EACCES),       CODE(EFAULT),       CODE(ENOTBLK),      CODE(EBUSY),
        CODE(EEXIST),       CODE(EXDEV),        CODE(ENODEV),       CODE(ENOTDIR),
        CODE(EISDIR),       CODE(EINVAL),       CODE(ENFILE),       CODE(EMFILE),
        CODE(ENOTTY),       CODE(ETXTBSY),      CODE(EFBIG),        CODE(ENOSPC),
        CODE(ESPIPE),       CODE(EROFS),        CODE(EMLINK),       CODE(EPIPE),
        CODE(ENAMETOOLONG), CODE(ENOSYS),       CODE(ENOTEMPTY),    CODE(ELOOP),
        CODE(EOVERFLOW),    CODE(EILSEQ),       CODE(EUSERS),       CODE(ENOTSOCK),
        CODE(EMSGSIZE),     CODE(EOPNOTSUPP),   CODE(EADDRINUSE),   CODE(EADDRNOTAVAIL),
        CODE(ENETDOWN),     CODE(ENETUNREACH),  CODE(ECONNABORTED), CODE(ECONNRESET),
        CODE(ENOBUFS),      CODE(EISCONN),      CODE(ENOTCONN),     CODE(ETIMEDOUT),
        CODE(ECONNREFUSED), CODE(EHOSTUNREACH), CODE(EALREADY),     CODE(EINPROGRESS),
        CODE(ESTALE),       CODE(EDQUOT),       CODE(ECANCELED),
#undef CODE
    };
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (codes[i].sys == sys)
            return codes[i].name;
    return NULL;
}
