#define _GNU_SOURCE
#include "http.h"

#include <curl/curl.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sys.h"
#include "transfer.h"

#define STALL_LOOK_NS ((int64_t)20 * 1000000) /* all are looked at, so not more often than this */

struct bough_http_watch { /* a socket that libcurl is interested in */
    uv_poll_t poll;       /* first: the close callback frees by it */
    struct bough_http *http;
    curl_socket_t fd;
    struct bough_http_watch *next, *prev;
};

/* --- libcurl's sockets and timer on the loop ------------------------------------------------------- */

/* A name lookup that was given up goes on in a thread of libcurl's, so that its code has to stay in
 * memory even when the host closes its last Lua state and with it this module. */
static void curl_stay(void)
{
    Dl_info info;
    if (dladdr((void *)curl_easy_init, &info) && info.dli_fname)
        (void)dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
}

static void curl_start(void)
{
    curl_stay();
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

static bool ca_default(void)
{
    bool there = false;
#if LIBCURL_VERSION_NUM >= 0x075400
    char *path = NULL;
    CURL *easy = curl_easy_init();
    there = easy && curl_easy_getinfo(easy, CURLINFO_CAINFO, &path) == CURLE_OK && path &&
            access(path, R_OK) == 0;
    curl_easy_cleanup(easy);
#endif
    return there;
}

/* libcurl keeps a pair of sockets for waking itself up, and leaves them open for whatever the host executes.
 * They get the two lowest free numbers, unless another thread of the host is quicker. */
static CURLM *multi_open(void)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return NULL;
    close(pair[0]);
    close(pair[1]);
    CURLM *multi = curl_multi_init();
    for (int i = 0; multi && i < 2; i++) {
        int domain = 0;
        socklen_t size = sizeof domain;
        if (getsockopt(pair[i], SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX)
            fcntl(pair[i], F_SETFD, FD_CLOEXEC);
    }
    return multi;
}

static void handle_free(uv_handle_t *handle)
{
    free(handle);
}

void bough_http_admit(struct bough_http *http)
{
    if (http->closing)
        return;
    struct bough_transfer *t;
    while ((t = bough_origin_next(http)) != NULL)
        bough_transfer_admit(t);
}

/* Ends what libcurl has finished with, or everything when it gave up. */
static void http_collect(struct bough_http *http, CURLMcode mcode)
{
    int left;
    const CURLMsg *msg;
    while ((msg = curl_multi_info_read(http->multi, &left)) != NULL) {
        char *t = NULL;
        CURLcode code = msg->data.result;
        if (msg->msg == CURLMSG_DONE &&
            curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, &t) == CURLE_OK)
            bough_transfer_finish((struct bough_transfer *)t, code);
    }
    if (mcode != CURLM_OK)
        for (struct bough_transfer *t = http->transfers, *next; t; t = next) {
            next = t->next;
            if (t->phase == BOUGH_TRANSFER_STARTING || t->phase == BOUGH_TRANSFER_ACTIVE)
                bough_transfer_finish(t, CURLE_OUT_OF_MEMORY);
        }
    bough_http_admit(http);
}

static void on_socket(uv_poll_t *poll, int status, int events)
{
    const struct bough_http_watch *watch = (struct bough_http_watch *)poll;
    struct bough_http *http = watch->http;
    int flags = status < 0 ? CURL_CSELECT_ERR : 0;
    if (events & UV_READABLE)
        flags |= CURL_CSELECT_IN;
    if (events & UV_WRITABLE)
        flags |= CURL_CSELECT_OUT;
    int running;
    http_collect(http, curl_multi_socket_action(http->multi, watch->fd, flags, &running));
}

static void on_timer(uv_timer_t *timer)
{
    struct bough_http *http = timer->data;
    int running;
    http_collect(http, curl_multi_socket_action(http->multi, CURL_SOCKET_TIMEOUT, 0, &running));
}

static void watch_close(struct bough_http_watch *watch)
{
    if (watch->prev)
        watch->prev->next = watch->next;
    else
        watch->http->watches = watch->next;
    if (watch->next)
        watch->next->prev = watch->prev;
    uv_poll_stop(&watch->poll);
    uv_close((uv_handle_t *)&watch->poll, handle_free);
}

/* CURLMOPT_SOCKETFUNCTION */
static int want_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
    struct bough_http *http = arg;
    struct bough_http_watch *watch = socket_arg;
    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        if (watch) {
            curl_multi_assign(http->multi, fd, NULL);
            watch_close(watch);
        }
        return 0;
    }
    if (!watch) {
        watch = calloc(1, sizeof *watch);
        if (!watch || uv_poll_init(bough_loop_uv(http->loop), &watch->poll, fd) < 0) {
            free(watch);
            return -1;
        }
        watch->http = http;
        watch->fd = fd;
        watch->next = http->watches;
        if (watch->next)
            watch->next->prev = watch;
        http->watches = watch;
        curl_multi_assign(http->multi, fd, watch);
    }
    int events = 0;
    if (what & CURL_POLL_IN)
        events |= UV_READABLE;
    if (what & CURL_POLL_OUT)
        events |= UV_WRITABLE;
    return uv_poll_start(&watch->poll, events, on_socket) < 0 ? -1 : 0;
}

int bough_http_socket(const struct bough_http *http, int port)
{
    for (const struct bough_http_watch *watch = http->watches; watch; watch = watch->next) {
        struct sockaddr_storage addr = {0};
        socklen_t size = sizeof addr;
        if (getsockname(watch->fd, (struct sockaddr *)&addr, &size) < 0)
            continue;
        in_port_t there = addr.ss_family == AF_INET    ? ((struct sockaddr_in *)&addr)->sin_port
                          : addr.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&addr)->sin6_port
                                                       : 0;
        if (there == htons((uint16_t)port))
            return watch->fd;
    }
    return -1;
}

/* CURLMOPT_TIMERFUNCTION. Never calls back into libcurl: not even for 0, that is the next turn's. */
static int want_timer(CURLM *multi, long timeout_ms, void *arg)
{
    struct bough_http *http = arg;
    (void)multi;
    if (timeout_ms < 0)
        return uv_timer_stop(http->timer);
    uv_update_time(bough_loop_uv(http->loop)); /* it may be stale by any amount */
    return uv_timer_start(http->timer, on_timer, (uint64_t)timeout_ms, 0);
}

/* --- peers that have fallen silent ------------------------------------------------------------------ */

static void on_stall(uv_timer_t *timer);

void bough_http_stall_at(struct bough_http *http, int64_t due_ns)
{
    int64_t soonest_ns = http->looked_ns + STALL_LOOK_NS;
    int64_t left_ns = (due_ns > soonest_ns ? due_ns : soonest_ns) - bough_now_ns();
    uint64_t left_ms = left_ns > 0 ? (uint64_t)(left_ns / 1000000 + 1) : 0;
    uv_update_time(bough_loop_uv(http->loop));
    if (!uv_is_active((uv_handle_t *)http->stall) || uv_timer_get_due_in(http->stall) > left_ms)
        uv_timer_start(http->stall, on_stall, left_ms, 0);
}

static void on_stall(uv_timer_t *timer)
{
    struct bough_http *http = timer->data;
    int64_t now_ns = bough_now_ns(), first_ns = INT64_MAX;
    http->looked_ns = now_ns;
    bough_http_ref(http);
    for (struct bough_transfer *t = http->transfers, *next; t; t = next) {
        next = t->next;
        int64_t due_ns = bough_transfer_due(t);
        if (due_ns <= now_ns)
            bough_transfer_overdue(t);
        else if (due_ns < first_ns)
            first_ns = due_ns;
    }
    if (first_ns < INT64_MAX)
        bough_http_stall_at(http, first_ns);
    bough_http_admit(http);
    bough_http_unref(http);
}

/* --- the client --------------------------------------------------------------------------------------- */

static uv_timer_t *timer_open(struct bough_http *http)
{
    uv_timer_t *timer = calloc(1, sizeof *timer);
    if (timer) {
        uv_timer_init(bough_loop_uv(http->loop), timer);
        timer->data = http;
    }
    return timer;
}

static void timer_close(uv_timer_t **timer)
{
    if (*timer)
        uv_close((uv_handle_t *)*timer, handle_free);
    *timer = NULL;
}

/* False: no memory. */
static bool text_copy(char **to, const char *from)
{
    *to = from ? strdup(from) : NULL;
    return !from || *to;
}

/* As libcurl has it: without a scheme it is an HTTP proxy. What is wrong is not repeated, it may hold a password. */
static int proxy_check(const char *proxy, struct bough_err *err)
{
    static const char *const schemes[] = {"http",    "https",  "socks4",
                                          "socks4a", "socks5", "socks5h"};
    char *scheme = NULL;
    bool good = false;
    if (!proxy || !*proxy)
        return 0;
    CURLU *u = curl_url();
    if (u &&
        curl_url_set(u, CURLUPART_URL, proxy, CURLU_NON_SUPPORT_SCHEME | CURLU_GUESS_SCHEME) ==
            CURLUE_OK &&
        curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK)
        good = !strstr(proxy, "://");
    for (size_t i = 0; scheme && i < sizeof schemes / sizeof *schemes; i++)
        good = good || strcmp(scheme, schemes[i]) == 0;
    curl_free(scheme);
    curl_url_cleanup(u);
    if (good)
        return 0;
    return bough_err_set(err, BOUGH_ERR_invalid,
                         "proxy is no URL of a proxy: http://, https://, socks4://, socks4a://, "
                         "socks5:// or socks5h:// and host:port");
}

struct bough_http *bough_http_open(struct bough_loop *loop,
                                   const struct bough_http_options *options, struct bough_err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, curl_start);
    if (proxy_check(options->proxy, err) < 0)
        return NULL;
    struct bough_http *http = calloc(1, sizeof *http);
    if (!http) {
        bough_err_set(err, BOUGH_ERR_resource, "out of memory");
        return NULL;
    }
    http->refs = 1;
    http->loop = loop;
    http->trust_all = options->trust_all;
    http->outside = options->outside;
    http->ca_default = ca_default();
    http->max_connections = options->max_connections;
    http->timer = timer_open(http);
    http->stall = timer_open(http);
    http->multi = multi_open();
    if (!http->multi || !http->timer || !http->stall ||
        !text_copy(&http->user_agent, options->user_agent) ||
        !text_copy(&http->ca_file, options->ca_file) ||
        !text_copy(&http->ca_dir, options->ca_dir) || !text_copy(&http->proxy, options->proxy)) {
        bough_err_set(err, BOUGH_ERR_resource, "out of memory or descriptors");
        bough_http_unref(http);
        return NULL;
    }
    curl_multi_setopt(http->multi, CURLMOPT_SOCKETFUNCTION, want_socket);
    curl_multi_setopt(http->multi, CURLMOPT_SOCKETDATA, http);
    curl_multi_setopt(http->multi, CURLMOPT_TIMERFUNCTION, want_timer);
    curl_multi_setopt(http->multi, CURLMOPT_TIMERDATA, http);
    curl_multi_setopt(http->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, options->max_connections);
    return http;
}

void bough_http_ref(struct bough_http *http)
{
    http->refs++;
}

void bough_http_unref(struct bough_http *http)
{
    if (--http->refs > 0)
        return;
    http->refs = 1; /* while closing */
    bough_http_close(http);
    bough_origin_free_all(&http->origins);
    free(http->user_agent);
    free(http->ca_file);
    free(http->ca_dir);
    free(http->proxy);
    free(http);
}

void bough_http_close(struct bough_http *http)
{
    http->refs++; /* the transfers' references go */
    http->closing = true;
    while (http->transfers)
        bough_transfer_end(http->transfers, BOUGH_ERR_closed, "the client was closed");
    CURLM *multi = http->multi;
    if (multi)
        curl_multi_cleanup(multi); /* may still call want_socket and want_timer */
    http->multi = NULL;
    while (http->watches)
        watch_close(http->watches);
    timer_close(&http->timer);
    timer_close(&http->stall);
    http->refs--;
}
