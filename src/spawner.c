#define _GNU_SOURCE
#include "spawner.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "launch.h"

#define ENDED "bough-spawn, which runs commands of the host, has ended"

struct bough_spawner {
    struct bough_crew *crew;
};

struct bough_spawner *bough_spawner_new(struct bough_loop *loop, const char *path,
                                        struct bough_err *err)
{
    struct bough_spawner *spawner = calloc(1, sizeof *spawner);
    if (!spawner) {
        bough_err_sys(err, ENOMEM, "starting the spawner");
        return NULL;
    }
    const char *argv[] = {"bough-spawn", NULL};
    int sock = bough_launch("spawner", path, (char *const *)(uintptr_t)argv, err);
    if (sock >= 0)
        spawner->crew = bough_crew_new(loop, sock, ENDED, err); /* takes it over */
    if (!spawner->crew) {
        free(spawner);
        return NULL;
    }
    return spawner;
}

void bough_spawner_free(struct bough_spawner *spawner)
{
    if (!spawner)
        return;
    struct bough_err why;
    bough_err_set(&why, BOUGH_ERR_closed, "%s", ENDED);
    bough_crew_hang_up(spawner->crew, &why);
    bough_crew_unref(spawner->crew);
    free(spawner);
}

bool bough_spawner_alive(const struct bough_spawner *spawner)
{
    struct pollfd sock = {.fd = bough_client_fd(spawner->crew->client)};
    /* It may have ended since the loop was last run. */
    return sock.fd >= 0 && !(poll(&sock, 1, 0) > 0 && (sock.revents & (POLLHUP | POLLERR)));
}

struct bough_crew *bough_spawner_crew(struct bough_spawner *spawner)
{
    return spawner->crew;
}

static int say_guard(struct bough_spawner *spawner, const struct bough_wbuf *body, const int *tty,
                     int count, struct bough_err *err)
{
    int rc = bough_client_tell(spawner->crew->client, BOUGH_MSG_GUARD, 0, body, tty, count, err);
    bough_crew_kick(spawner->crew);
    return rc;
}

int bough_spawner_guard(struct bough_spawner *spawner, int tty, const struct termios *settings,
                        struct bough_err *err)
{
    struct bough_wbuf body = {0};
    bough_put_bytes(&body, settings, sizeof *settings);
    int rc = say_guard(spawner, &body, &tty, 1, err);
    bough_wbuf_free(&body);
    return rc;
}

void bough_spawner_unguard(struct bough_spawner *spawner)
{
    say_guard(spawner, NULL, NULL, 0, NULL);
}
