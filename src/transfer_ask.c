/* transfer_ask.c - a request as options of libcurl's: the URL, the headers, the method, what may be trusted. */
#define _GNU_SOURCE
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base64.h"
#include "sys.h"
#include "transfer_priv.h"

/* Addresses of this machine, as no_proxy has them. */
#define HERE "localhost,127.0.0.0/8,::1"

char *bough_transfer_host(const char *url, char **origin, CURLUcode *why)
{
    char *host = NULL, *port = NULL, *scheme = NULL, *both = NULL, *real_port = NULL;
    CURLU *u = curl_url();
    *why = u ? curl_url_set(u, CURLUPART_URL, url, CURLU_DISALLOW_USER) : CURLUE_OUT_OF_MEMORY;
    if (*why == CURLUE_OK)
        *why = curl_url_get(u, CURLUPART_SCHEME, &scheme, 0);
    if (*why == CURLUE_OK && strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0)
        *why = CURLUE_UNSUPPORTED_SCHEME;
    if (*why == CURLUE_OK)
        *why = curl_url_get(u, CURLUPART_HOST, &host, 0);
    if (*why == CURLUE_OK)
        *why = curl_url_get(u, CURLUPART_PORT, &real_port, CURLU_DEFAULT_PORT);
    if (*why == CURLUE_OK) {
        bool with_port = curl_url_get(u, CURLUPART_PORT, &port, 0) == CURLUE_OK;
        if (asprintf(&both, "%s%s%s", host, with_port ? ":" : "", with_port ? port : "") < 0)
            both = NULL;
        if (both && origin && asprintf(origin, "%s://%s:%s", scheme, host, real_port) < 0) {
            free(both);
            both = NULL;
        }
        if (both && origin)
            for (char *c = *origin; *c; c++)
                *c = (char)tolower((unsigned char)*c);
        if (!both)
            *why = CURLUE_OUT_OF_MEMORY;
    }
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    curl_free(real_port);
    curl_url_cleanup(u);
    return both;
}

/* --- headers ---------------------------------------------------------------------------------------- */

static bool add_line(struct curl_slist **list, const char *line)
{
    struct curl_slist *grown = curl_slist_append(*list, line);
    if (grown)
        *list = grown;
    return grown != NULL;
}

static bool header_put(struct bough_transfer *t, const char *line)
{
    struct curl_slist *list = t->header_list;
    bool good = add_line(&list, line);
    t->header_list = list;
    return good;
}

/* As a header: libcurl would put a user name that it is given into the URL when it is sent on. */
static bool header_login(struct bough_transfer *t, const struct bough_request *request)
{
    char *line = NULL, *both = NULL, *basic = NULL;
    if (request->bearer) {
        if (asprintf(&line, "Authorization: Bearer %s", request->bearer) < 0)
            line = NULL;
    } else {
        if (asprintf(&both, "%s:%s", request->username, request->password) < 0)
            both = NULL;
        size_t size = both ? strlen(both) : 0;
        basic = both ? calloc(1, bough_base64_size(size) + 1) : NULL;
        if (basic)
            bough_base64_encode(basic, both, size);
        if (!basic || asprintf(&line, "Authorization: Basic %s", basic) < 0)
            line = NULL;
    }
    bool good = line && header_put(t, line);
    free(line);
    free(basic);
    free(both);
    return good;
}

static bool given(const struct bough_request *request, const char *name)
{
    size_t size = strlen(name);
    for (char **h = request->headers; h && *h; h++)
        if (strncasecmp(*h, name, size) == 0 && ((*h)[size] == ':' || (*h)[size] == ';'))
            return true;
    return false;
}

static bool set_headers(struct bough_transfer *t, const struct bough_request *request)
{
    bool good = true;
    for (char **h = request->headers; h && *h && good; h++)
        good = header_put(t, *h);
    if (request->body && !given(request, "content-type"))
        good = good && header_put(t, "Content-Type:"); /* not what an HTML form would send */
    /* a server that does not know it lets us wait for a second */
    if (request->body || request->feed)
        good = good && header_put(t, "Expect:");
    if (t->compressed && !given(request, "accept-encoding"))
        good = good && header_put(t, "Accept-Encoding: gzip");
    if (request->username || request->bearer)
        good = good && header_login(t, request);
    if (t->resume_at > 0) {
        char line[64];
        snprintf(line, sizeof line, "Range: bytes=%lld-", (long long)t->resume_at);
        good = good && header_put(t, line);
    }
    return good;
}

/* Nothing that says who asks. */
static bool is_bare(const char *line)
{
    static const char *const names[] = {"accept",       "accept-encoding", "accept-language",
                                        "content-type", "expect",          "range"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t size = strlen(names[i]);
        if (strncasecmp(line, names[i], size) == 0 && (line[size] == ':' || line[size] == ';'))
            return true;
    }
    return false;
}

bool bough_transfer_bare(struct bough_transfer *t)
{
    struct curl_slist *bare = NULL;
    bool good = true;
    for (const struct curl_slist *line = t->header_list; line && good; line = line->next)
        if (is_bare(line->data))
            good = add_line(&bare, line->data);
    if (good && curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER, bare) == CURLE_OK) {
        curl_slist_free_all(t->header_list);
        t->header_list = bare;
        return true;
    }
    curl_slist_free_all(bare);
    return false;
}

/* --- the rest ---------------------------------------------------------------------------------------- */

static void set_method(struct bough_transfer *t)
{
    CURL *easy = t->easy;
    const char *natural = "GET"; /* what the options below stand for */
    if (t->feed) {
        curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
        natural = "PUT";
    } else if (t->body) {
        curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)t->body_size);
        curl_easy_setopt(easy, CURLOPT_POSTFIELDS, t->body);
        natural = "POST";
    } else if (strcmp(t->method, "HEAD") == 0) {
        curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
        natural = "HEAD";
    }
    if (strcmp(t->method, natural) != 0)
        curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, t->method);
}

static bool is_here(const char *host)
{
    size_t size = strcspn(host, ":");
    return (size == 9 && strncasecmp(host, "localhost", 9) == 0) || strncmp(host, "127.", 4) == 0 ||
           strncmp(host, "[::1]", 5) == 0;
}

/* What stays on this machine is no business of the environment's proxy: it may be without encryption for that
 * reason. One that the caller names is for everything. */
static bool set_proxy(struct bough_transfer *t)
{
    if (t->http->proxy) {
        curl_easy_setopt(t->easy, CURLOPT_NOPROXY, "");
        return curl_easy_setopt(t->easy, CURLOPT_PROXY, t->http->proxy) == CURLE_OK;
    }
    if (is_here(t->host))
        curl_easy_setopt(t->easy, CURLOPT_PROXY, "");
    /* redirects may lead here */
    const char *without = getenv("no_proxy");
    char *both = NULL;
    if (!without || !*without)
        without = getenv("NO_PROXY");
    if (without && strcmp(without, "*") == 0)
        return true;
    if (asprintf(&both, "%s%s" HERE, without ? without : "", without ? "," : "") < 0)
        return false;
    bool good = curl_easy_setopt(t->easy, CURLOPT_NOPROXY, both) == CURLE_OK;
    free(both);
    return good;
}

static void set_security(const struct bough_transfer *t, const struct bough_request *request)
{
    CURL *easy = t->easy;
    const struct bough_http *http = t->http;
    bool secure = strncasecmp(request->url, "https:", 6) == 0;
#if LIBCURL_VERSION_NUM >= 0x075500
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS_STR, secure ? "https" : "http,https");
#else
    long both = CURLPROTO_HTTP | CURLPROTO_HTTPS;
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS, both);
    curl_easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS, secure ? (long)CURLPROTO_HTTPS : both);
#endif
    curl_easy_setopt(easy, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
    if (http->ca_file) {
        curl_easy_setopt(easy, CURLOPT_CAINFO, http->ca_file);
        curl_easy_setopt(easy, CURLOPT_PROXY_CAINFO, http->ca_file);
    }
    /* libcurl keeps the certificates of a file for all connections. Where there is a directory as well, and Debian's
     * build has one by default, it reads all anew for each: a megabyte, and longer than everything else takes. */
    if (http->ca_file || http->ca_dir || http->ca_default) {
        curl_easy_setopt(easy, CURLOPT_CAPATH, http->ca_dir);
        curl_easy_setopt(easy, CURLOPT_PROXY_CAPATH, http->ca_dir);
    }
    if (http->trust_all) {
        curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 0L);
        curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 0L);
        curl_easy_setopt(easy, CURLOPT_CAINFO, NULL);
        curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
    }
}

bool bough_transfer_ask(struct bough_transfer *t, const struct bough_request *request)
{
    CURL *easy = t->easy = curl_easy_init();
    if (!easy || !set_headers(t, request))
        return false;
    curl_easy_setopt(easy, CURLOPT_PRIVATE, t);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, t->reason);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_USERAGENT, t->http->user_agent ? t->http->user_agent : "bough");
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, t->header_list);
    curl_easy_setopt(easy, CURLOPT_HEADEROPT, (long)CURLHEADER_SEPARATE); /* no proxy's either */
    curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)request->connect_ms);
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, t->follow > 0 ? 1L : 0L);
    curl_easy_setopt(easy, CURLOPT_MAXREDIRS, t->follow);
    /* a connection that has died without a word is found out while nobody uses it */
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPIDLE, 30L);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPINTVL, 10L);
    if (t->spool)
        curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, 256L << 10);
#if LIBCURL_VERSION_NUM >= 0x075700
    /* Giving up a name lookup does not wait for it: the loop must not stand still. */
    curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
#endif
    set_security(t, request);
    set_method(t);
    return curl_easy_setopt(easy, CURLOPT_URL, request->url) == CURLE_OK && set_proxy(t);
}
