#define _GNU_SOURCE
#include "terminal.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "sys.h"
#include "writer.h"

/* Where this thread has them blocked, the kernel lets a background job set (and write to) its terminal, and fails
 * its reads with EIO, instead of stopping all of the job. */
static void hold_job_signals(sigset_t *before)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTTIN);
    sigaddset(&set, SIGTTOU);
    pthread_sigmask(SIG_BLOCK, &set, before);
}

static void release_job_signals(const sigset_t *before)
{
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

bool bough_terminal_is_there(void)
{
    return isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1;
}

bool bough_terminal_size(int *rows, int *cols)
{
    for (int fd = 0; fd < 3; fd++) {
        struct winsize size;
        if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0) {
            *rows = size.ws_row;
            *cols = size.ws_col;
            return true;
        }
    }
    return false;
}

bool bough_terminal_is_ours(void)
{
    pid_t group = tcgetpgrp(STDIN_FILENO);
    if (group < 0)
        return errno == ENOTTY; /* not of our session: no job control for us */
    return group == 0 || group == getpgrp();
}

bool bough_terminal_is_gone(void)
{
    struct termios now;
    return tcgetattr(STDIN_FILENO, &now) < 0;
}

static bool same_settings(const struct termios *a, const struct termios *b)
{
    return a->c_iflag == b->c_iflag && a->c_oflag == b->c_oflag && a->c_cflag == b->c_cflag &&
           a->c_lflag == b->c_lflag && memcmp(a->c_cc, b->c_cc, sizeof a->c_cc) == 0;
}

/* Never TCSAFLUSH: what was typed ahead stays. */
static int apply(int when, const struct termios *settings)
{
    sigset_t before;
    hold_job_signals(&before);
    int rc = (int)BOUGH_RETRY(tcsetattr(STDIN_FILENO, when, settings));
    int sys = errno;
    release_job_signals(&before);
    errno = sys;
    return rc;
}

int bough_terminal_take(struct bough_terminal *terminal, struct bough_err *err)
{
    if (tcgetattr(STDIN_FILENO, &terminal->saved) < 0)
        return bough_err_sys(err, errno, "terminal");
    terminal->raw = terminal->saved;
    cfmakeraw(&terminal->raw);
    terminal->raw.c_cc[VMIN] = 1;
    terminal->raw.c_cc[VTIME] = 0;
    terminal->taken = true;
    return 0;
}

void bough_terminal_tend(struct bough_terminal *terminal)
{
    struct termios now;
    if (!terminal->taken || tcgetattr(STDIN_FILENO, &now) < 0 ||
        same_settings(&now, &terminal->raw))
        return;
    /* After what the host has written (on a serial line the byte format changes too). A line that has more to send
     * may be stopped, and waiting for it would stop the host. */
    int unsent = 0;
    bool idle = ioctl(STDOUT_FILENO, TIOCOUTQ, &unsent) == 0 && unsent == 0;
    if (apply(idle ? TCSADRAIN : TCSANOW, &terminal->raw) == 0)
        tcgetattr(STDIN_FILENO, &terminal->raw); /* what a driver cannot do is not asked again */
}

void bough_terminal_restore(struct bough_terminal *terminal)
{
    struct termios now;
    if (!terminal->taken)
        return;
    terminal->taken = false;
    /* In another job's hands, with settings that are not ours: the shell has its own by now. */
    if (tcgetattr(STDIN_FILENO, &now) == 0 &&
        (bough_terminal_is_ours() || same_settings(&now, &terminal->raw)))
        apply(TCSANOW, &terminal->saved);
}

int bough_terminal_view(int fd, bool to_write)
{
    struct stat st;
    unsigned number;
    char path[32];
    if (fstat(fd, &st) < 0)
        return -1;
    /* To open a master anew is to make another terminal; a named pipe opened anew does not tell of writers that
     * have gone before; a socket cannot be opened. */
    bool terminal = S_ISCHR(st.st_mode) && isatty(fd) == 1 && ioctl(fd, TIOCGPTN, &number) < 0;
    if (!terminal && !(to_write && S_ISFIFO(st.st_mode)))
        return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int mode = (to_write ? O_WRONLY : O_RDONLY) | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    BOUGH_CLEANUP_FD int view = (int)BOUGH_RETRY(open(path, mode));
    if (view >= 0 && view < 3) /* the host has closed one of its own */
        return fcntl(view, F_DUPFD_CLOEXEC, 3);
    return bough_steal_fd(&view);
}

ssize_t bough_terminal_read(int fd, char *data, size_t size)
{
    sigset_t before;
    hold_job_signals(&before);
    ssize_t n = BOUGH_RETRY(read(fd, data, size));
    int sys = errno;
    release_job_signals(&before);
    errno = sys;
    return n;
}

ssize_t bough_terminal_write(int fd, const char *data, size_t size)
{
    sigset_t before;
    hold_job_signals(&before);
    ssize_t n = bough_write_quietly(fd, data, size);
    int sys = errno;
    release_job_signals(&before);
    errno = sys;
    return n;
}

size_t bough_terminal_ahead(char **data)
{
    size_t size = 0;
    *data = NULL;
#ifdef __GLIBC__
    /* No portable call tells; elsewhere these bytes stay with stdio. A thread that waits in a read of it has the lock. */
    if (ftrylockfile(stdin) != 0)
        return 0;
    if (stdin->_IO_read_end > stdin->_IO_read_ptr) {
        size = (size_t)(stdin->_IO_read_end - stdin->_IO_read_ptr);
        *data = malloc(size);
        size = *data ? fread_unlocked(*data, 1, size, stdin) : 0;
    }
    funlockfile(stdin);
#endif
    return size;
}
