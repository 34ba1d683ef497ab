#define _GNU_SOURCE
#include "loop.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys.h"

struct bough_loop {
    uv_loop_t uv;
    struct bough_waiter *ready;        /* circular, the first one */
    size_t ready_count, service_count; /* of all, and of the services among them */
    unsigned places;                   /* bits of 0, 1, 2: standard descriptors that we hold */
    uint64_t wakes;                    /* how often somebody got ready, ever */
    struct bough_loop_end *ends;
    struct bough_timer *armed; /* handed out */
    struct bough_timer *spare; /* given back: a wait costs neither malloc nor uv_close */
};

struct bough_timer {
    uv_timer_t handle; /* first: the close callback frees by it */
    struct bough_loop *loop;
    struct bough_cond *cond;     /* what it fires, or */
    struct bough_waiter *waiter; /* whom it wakes */
    struct bough_timer *next, *prev;
};

/* Lists of waiters are circular, so that the head alone gives first in, first out. */

static void list_append(struct bough_waiter **head, struct bough_waiter *waiter)
{
    if (!*head) {
        waiter->next = waiter->prev = waiter;
        *head = waiter;
        return;
    }
    waiter->next = *head;
    waiter->prev = (*head)->prev;
    waiter->prev->next = waiter;
    (*head)->prev = waiter;
}

static void list_remove(struct bough_waiter **head, struct bough_waiter *waiter)
{
    if (waiter->next == waiter) {
        *head = NULL;
    } else {
        waiter->next->prev = waiter->prev;
        waiter->prev->next = waiter->next;
        if (*head == waiter)
            *head = waiter->next;
    }
    waiter->next = waiter->prev = NULL;
}

/* What the host prints must not go into a descriptor of ours, and libuv aborts when it closes one
 * below 3. Where the host has closed its own, /dev/null keeps the place while the loop lives. */
static void places_take(struct bough_loop *loop)
{
    for (int fd = 0; fd < 3; fd++) {
        if (fcntl(fd, F_GETFD) >= 0)
            continue;
        int got = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (got == fd)
            loop->places |= 1u << fd;
        else if (got >= 0)
            close(got);
    }
}

static void places_give_back(const struct bough_loop *loop)
{
    struct stat null, st;
    if (loop->places == 0 || stat("/dev/null", &null) < 0)
        return;
    for (int fd = 0; fd < 3; fd++)
        if ((loop->places & 1u << fd) && fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) &&
            st.st_rdev == null.st_rdev)
            close(fd);
}

struct bough_loop *bough_loop_new(void)
{
    struct bough_loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return NULL;
    places_take(loop);
    if (uv_loop_init(&loop->uv) != 0) {
        places_give_back(loop);
        free(loop);
        return NULL;
    }
    return loop;
}

static void timer_closed(uv_handle_t *handle)
{
    free(handle);
}

static void timer_list_close(struct bough_timer *timer)
{
    while (timer) {
        struct bough_timer *next = timer->next;
        uv_close((uv_handle_t *)&timer->handle, timer_closed);
        timer = next;
    }
}

static void handle_close(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

void bough_loop_at_end(struct bough_loop *loop, struct bough_loop_end *end)
{
    end->next = loop->ends;
    end->link = &loop->ends;
    if (end->next)
        end->next->link = &end->next;
    loop->ends = end;
}

void bough_loop_end_drop(struct bough_loop_end *end)
{
    if (!end->link)
        return;
    *end->link = end->next;
    if (end->next)
        end->next->link = end->link;
    end->link = NULL;
}

void bough_loop_free(struct bough_loop *loop)
{
    if (!loop)
        return;
    while (loop->ends) {
        struct bough_loop_end *end = loop->ends;
        bough_loop_end_drop(end);
        end->run(end);
    }
    timer_list_close(loop->armed);
    timer_list_close(loop->spare);
    /* Work on libuv's threads ends by itself, soon; its callbacks want their handles as they were. */
    while (loop->uv.active_reqs.count > 0)
        uv_run(&loop->uv, UV_RUN_ONCE);
    uv_walk(&loop->uv, handle_close, NULL);
    while (uv_run(&loop->uv, UV_RUN_DEFAULT) != 0)
        ;
    uv_loop_close(&loop->uv);
    places_give_back(loop);
    free(loop);
}

uv_loop_t *bough_loop_uv(struct bough_loop *loop)
{
    return &loop->uv;
}

int bough_loop_fd(const struct bough_loop *loop)
{
    return uv_backend_fd(&loop->uv);
}

void bough_cond_init(struct bough_cond *cond, struct bough_loop *loop)
{
    *cond = (struct bough_cond){.loop = loop};
}

void bough_cond_fire(struct bough_cond *cond)
{
    cond->fired++;
    while (cond->waiters)
        bough_loop_ready(cond->loop, cond->waiters);
}

void bough_cond_destroy(struct bough_cond *cond)
{
    bough_cond_fire(cond);
}

void bough_loop_forget(struct bough_loop *loop, struct bough_waiter *waiter)
{
    if (waiter->queued) {
        list_remove(&loop->ready, waiter);
        loop->ready_count--;
        loop->service_count -= waiter->service;
        waiter->queued = false;
    } else if (waiter->cond) {
        list_remove(&waiter->cond->waiters, waiter);
        waiter->cond = NULL;
    }
}

void bough_loop_park(struct bough_loop *loop, struct bough_waiter *waiter, struct bough_cond *cond)
{
    bough_loop_forget(loop, waiter);
    waiter->cond = cond;
    if (cond)
        list_append(&cond->waiters, waiter);
}

void bough_loop_ready(struct bough_loop *loop, struct bough_waiter *waiter)
{
    if (waiter->queued)
        return;
    bough_loop_forget(loop, waiter);
    list_append(&loop->ready, waiter);
    waiter->queued = true;
    loop->ready_count++;
    loop->service_count += waiter->service;
    loop->wakes++;
}

struct bough_waiter *bough_loop_next(struct bough_loop *loop)
{
    struct bough_waiter *waiter = loop->ready;
    if (waiter)
        bough_loop_forget(loop, waiter);
    return waiter;
}

struct bough_waiter *bough_loop_next_service(struct bough_loop *loop)
{
    if (loop->service_count == 0)
        return NULL;
    struct bough_waiter *waiter = loop->ready;
    while (!waiter->service)
        waiter = waiter->next;
    bough_loop_forget(loop, waiter);
    return waiter;
}

size_t bough_loop_service_count(const struct bough_loop *loop)
{
    return loop->service_count;
}

bool bough_loop_has_ready(const struct bough_loop *loop)
{
    return loop->ready != NULL;
}

size_t bough_loop_ready_count(const struct bough_loop *loop)
{
    return loop->ready_count;
}

bool bough_loop_alive(const struct bough_loop *loop)
{
    return uv_loop_alive(&loop->uv) != 0;
}

/* poll(2) on the backend rather than UV_RUN_ONCE, for two reasons: uv goes on sleeping when a
 * signal comes, so that Ctrl-C would not reach a waiting Lua; and after a timer fired it sleeps
 * until the next event although somebody is ready by then. */
bool bough_loop_turn(struct bough_loop *loop, int timeout_ms)
{
    uint64_t wakes = loop->wakes;
    uv_run(&loop->uv, UV_RUN_NOWAIT);
    if (timeout_ms == 0 || loop->wakes != wakes)
        return true;
    int wait_ms = timeout_ms;
    if (uv_loop_alive(&loop->uv)) {
        uv_update_time(&loop->uv);
        int uv_ms = uv_backend_timeout(&loop->uv);
        if (wait_ms < 0 || (uv_ms >= 0 && uv_ms < wait_ms))
            wait_ms = uv_ms;
    } else if (wait_ms < 0) {
        return true; /* nothing will ever come: the caller's to notice */
    }
    struct pollfd backend = {.fd = uv_backend_fd(&loop->uv), .events = POLLIN};
    if (poll(&backend, 1, wait_ms) < 0 && errno == EINTR)
        return false;
    uv_run(&loop->uv, UV_RUN_NOWAIT);
    return true;
}

bool bough_loop_poll(struct bough_loop *loop, int timeout_ms)
{
    return bough_loop_turn(loop, loop->ready ? 0 : timeout_ms);
}

int bough_loop_timeout(struct bough_loop *loop)
{
    bough_loop_poll(loop, 0);
    if (loop->ready)
        return 0;
    if (!uv_loop_alive(&loop->uv))
        return -1; /* uv says 0 here: "do not wait for nothing" */
    uv_update_time(&loop->uv);
    return uv_backend_timeout(&loop->uv);
}

static void free_handle(uv_handle_t *handle)
{
    free(handle);
}

int bough_poll_open(uv_poll_t **poll, struct bough_loop *loop, int fd, void *data)
{
    *poll = calloc(1, sizeof **poll);
    int rc = *poll ? uv_poll_init(&loop->uv, *poll, fd) : UV_ENOMEM;
    if (rc < 0) {
        free(*poll);
        *poll = NULL;
        return rc;
    }
    (*poll)->data = data;
    return 0;
}

void bough_poll_close(uv_poll_t **poll)
{
    if (*poll && !uv_is_closing((uv_handle_t *)*poll)) {
        uv_poll_stop(*poll);
        uv_close((uv_handle_t *)*poll, free_handle);
    }
    *poll = NULL;
}

static void timer_link(struct bough_timer **head, struct bough_timer *timer)
{
    timer->prev = NULL;
    timer->next = *head;
    if (*head)
        (*head)->prev = timer;
    *head = timer;
}

static void timer_unlink(struct bough_timer **head, struct bough_timer *timer)
{
    if (timer->prev)
        timer->prev->next = timer->next;
    else
        *head = timer->next;
    if (timer->next)
        timer->next->prev = timer->prev;
}

static void timer_fired(uv_timer_t *handle)
{
    struct bough_timer *timer = (struct bough_timer *)handle;
    if (timer->cond)
        bough_cond_fire(timer->cond);
    else
        bough_loop_ready(timer->loop, timer->waiter);
}

static struct bough_timer *timer_arm(struct bough_loop *loop, int64_t due_ns)
{
    struct bough_timer *timer = loop->spare;
    if (timer) {
        timer_unlink(&loop->spare, timer);
    } else {
        timer = calloc(1, sizeof *timer);
        if (!timer)
            return NULL;
        timer->loop = loop;
        uv_timer_init(&loop->uv, &timer->handle);
    }
    timer_link(&loop->armed, timer);
    /* uv's clock is a whole number of milliseconds, rounded down and perhaps stale. */
    uv_update_time(&loop->uv);
    int64_t delay_ms = due_ns / 1000000 + (due_ns % 1000000 != 0) - (int64_t)uv_now(&loop->uv);
    delay_ms = delay_ms > 0 ? delay_ms : 0;
    uv_timer_start(&timer->handle, timer_fired, (uint64_t)delay_ms, 0);
    return timer;
}

struct bough_timer *bough_timer_start(struct bough_loop *loop, int64_t delay_ms,
                                      struct bough_cond *cond)
{
    struct bough_timer *timer = timer_arm(loop, bough_now_ns() + delay_ms * 1000000);
    if (timer) {
        timer->cond = cond;
        timer->waiter = NULL;
    }
    return timer;
}

struct bough_timer *bough_timer_wake(struct bough_loop *loop, int64_t due_ns,
                                     struct bough_waiter *waiter)
{
    struct bough_timer *timer = timer_arm(loop, due_ns);
    if (timer) {
        timer->cond = NULL;
        timer->waiter = waiter;
    }
    return timer;
}

void bough_timer_stop(struct bough_timer *timer)
{
    if (!timer)
        return;
    uv_timer_stop(&timer->handle);
    timer_unlink(&timer->loop->armed, timer);
    timer_link(&timer->loop->spare, timer);
}
