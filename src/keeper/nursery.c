#define _GNU_SOURCE
#include "nursery.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../sys.h"
#include "child.h"
#include "init.h"
#include "root.h"

static int make_blank(const struct bough_site *site, int keeper, bool host_network, int netns,
                      struct bough_err *err)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return bough_err_sys(err, errno, "sandbox: socket");
    BOUGH_CLEANUP_FD int ours = ends[0];
    BOUGH_CLEANUP_FD int inits = ends[1];
    unsigned long flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS |
                          CLONE_NEWCGROUP | CLONE_PARENT | SIGCHLD;
    if (!host_network && netns < 0)
        flags |= CLONE_NEWNET;
    long pid = syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
    if (pid < 0)
        return bough_err_sys(err, errno, "sandbox: namespaces");
    if (pid == 0) {
        close(keeper);
        close(ours);
        bough_init_main(site, inits, host_network, netns);
    }
    struct bough_wbuf body = {0};
    bough_put_i64(&body, pid);
    int rc = bough_send(keeper, BOUGH_MSG_BLANK, host_network, &body, &ours, 1, err);
    bough_wbuf_free(&body);
    return rc;
}

static _Noreturn void nursery_main(struct bough_site *site, int keeper)
{
    struct bough_err err;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, "bough-nursery");
    bough_sched_slice(BOUGH_SLICE_PATIENT);
    bool ready = unshare(CLONE_NEWNS) == 0;
    if (!ready)
        bough_err_sys(&err, errno, "sandbox template: mount namespace");
    ready = ready && bough_site_open_store(site, &err) == 0 && bough_root_template(site, &err) == 0;
    keeper = bough_init_keep_only(keeper);
    for (;;) {
        struct bough_message msg;
        if (bough_recv(keeper, &msg, NULL) <= 0)
            _exit(0);
        bool host_network = msg.id != 0;
        int rc = ready
                     ? make_blank(site, keeper, host_network, msg.fd_count ? msg.fds[0] : -1, &err)
                     : -1;
        bough_msg_clear(&msg);
        if (rc == 0)
            continue;
        struct bough_wbuf body = {0};
        bough_put_err(&body, &err);
        if (bough_send(keeper, BOUGH_MSG_FAILED, host_network, &body, NULL, 0, NULL) < 0)
            _exit(0);
        bough_wbuf_free(&body);
    }
}

pid_t bough_nursery_start(struct bough_site *site, int *sock, struct bough_err *err)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return bough_err_sys(err, errno, "nursery: socket");
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        nursery_main(site, ends[1]);
    }
    close(ends[1]);
    *sock = ends[0];
    if (pid < 0) {
        bough_err_sys(err, errno, "nursery");
        bough_fd_close(sock);
        return -1;
    }
    return pid;
}
