#define _GNU_SOURCE
#include "pty.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "../sys.h"
#include "mountapi.h"

static int make(struct bough_pty *pty, const struct bough_user *user, int rows, int cols)
{
    int locked = 0;
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)cols};
    struct termios settings;
    pty->master = bough_openat2(AT_FDCWD, "/dev/pts/ptmx", O_RDWR | O_NOCTTY, RESOLVE_NO_SYMLINKS);
    if (pty->master < 0 || ioctl(pty->master, TIOCSPTLCK, &locked) < 0)
        return -1;
    /* The other end by its own end: its name would be looked up among mounts that are the sandbox's. */
    pty->slave = ioctl(pty->master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (pty->slave < 0)
        return -1;
    /* The group is tty(5)'s already, where there is one. A uid that is not to be had is told when the process is to
     * take it. */
    (void)!fchown(pty->slave, user->uid, (gid_t)-1);
    if (ioctl(pty->slave, TIOCSWINSZ, &size) < 0 || tcgetattr(pty->slave, &settings) < 0)
        return -1;
    settings.c_iflag |= IUTF8;
    return tcsetattr(pty->slave, TCSANOW, &settings);
}

int bough_pty_open(struct bough_pty *pty, const struct bough_user *user, int rows, int cols,
                   struct bough_err *err)
{
    *pty = (struct bough_pty){.master = -1, .slave = -1};
    if (make(pty, user, rows, cols) == 0)
        return 0;
    bough_err_sys(err, errno, "pty");
    bough_pty_close(pty);
    return -1;
}

void bough_pty_close(struct bough_pty *pty)
{
    bough_fd_close(&pty->master);
    bough_fd_close(&pty->slave);
}
