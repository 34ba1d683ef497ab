#define _GNU_SOURCE
#include "crew.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>

#include "process.h"
#include "sys.h"

static void loop_ends(struct bough_loop_end *end)
{
    struct bough_err why;
    struct bough_crew *crew =
        (struct bough_crew *)((char *)end - offsetof(struct bough_crew, at_end));
    bough_err_set(&why, BOUGH_ERR_closed, "the Lua state is closing");
    bough_crew_hang_up(crew, &why);
}

static void on_socket(uv_poll_t *poll, int status, int events)
{
    struct bough_crew *crew = poll->data;
    (void)status;
    (void)events;
    crew->refs++;
    if (bough_client_pump(crew->client)) {
        bough_crew_kick(crew);
    } else {
        bough_poll_close(&crew->poll);
        struct bough_err why;
        bough_err_set(&why, BOUGH_ERR_closed, "%s", crew->ended);
        if (crew->gone)
            crew->gone(crew);
        else
            bough_crew_hang_up(crew, &why);
    }
    bough_crew_unref(crew);
}

struct bough_crew *bough_crew_new(struct bough_loop *loop, int sock, const char *ended,
                                  struct bough_err *err)
{
    struct bough_crew *crew = calloc(1, sizeof *crew);
    if (crew)
        crew->client = bough_client_over(sock, ended);
    if (!crew || !crew->client) {
        bough_fd_close(&sock);
        free(crew);
        bough_err_sys(err, ENOMEM, "processes");
        return NULL;
    }
    crew->refs = 1;
    crew->loop = loop;
    crew->ended = ended;
    int flags = fcntl(sock, F_GETFL);
    fcntl(sock, F_SETFL, flags | O_NONBLOCK);
    int rc = bough_poll_open(&crew->poll, loop, sock, crew);
    if (rc < 0) {
        bough_err_sys(err, -rc, "processes");
        bough_crew_unref(crew);
        return NULL;
    }
    crew->at_end.run = loop_ends;
    bough_loop_at_end(loop, &crew->at_end);
    bough_crew_kick(crew);
    return crew;
}

void bough_crew_unref(struct bough_crew *crew)
{
    if (--crew->refs > 0)
        return;
    bough_loop_end_drop(&crew->at_end);
    bough_poll_close(&crew->poll);
    bough_client_free(crew->client);
    free(crew);
}

void bough_crew_kick(struct bough_crew *crew)
{
    if (!crew->poll)
        return;
    /* A crew with nothing to do does not keep the loop alive: so a wait that nothing can end is found out. */
    if (bough_client_outstanding(crew->client) > 0)
        uv_ref((uv_handle_t *)crew->poll);
    else
        uv_unref((uv_handle_t *)crew->poll);
    uv_poll_start(crew->poll,
                  UV_READABLE | (bough_client_wants_write(crew->client) ? UV_WRITABLE : 0),
                  on_socket);
}

void bough_crew_drain(struct bough_crew *crew)
{
    crew->refs++;
    if (crew->poll && !bough_client_pump(crew->client))
        bough_poll_close(&crew->poll);
    bough_crew_unref(crew);
}

void bough_crew_hang_up(struct bough_crew *crew, const struct bough_err *why)
{
    crew->refs++;
    bough_poll_close(&crew->poll);
    crew->hung_up = true;
    while (crew->all)
        bough_process_lose(crew->all, why);
    bough_client_hang_up(crew->client);
    bough_crew_unref(crew);
}
