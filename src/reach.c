/* reach.c - the addresses that mean this machine, or what is on the same wire. */
#include <curl/curl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "reach.h"

static bool inside_v4(const uint8_t *octet)
{
    return octet[0] == 0 || octet[0] == 127 || (octet[0] == 169 && octet[1] == 254);
}

static bool inside_v6(const uint8_t *octet)
{
    static const uint8_t zero[10];
    if (octet[0] == 0xfe && (octet[1] & 0xc0) == 0x80)
        return true;
    if (memcmp(octet, zero, sizeof zero) != 0)
        return false;
    /* :: and ::1 are addresses of 0.0.0.0/8 in the old notation; ::ffff:a.b.c.d is the one in use */
    bool old = octet[10] == 0 && octet[11] == 0, mapped = octet[10] == 0xff && octet[11] == 0xff;
    return (old || mapped) && inside_v4(octet + 12);
}

bool bough_reach_inside(const struct sockaddr *addr)
{
    if (addr->sa_family == AF_INET)
        return inside_v4(
            (const uint8_t *)&((const struct sockaddr_in *)(const void *)addr)->sin_addr);
    if (addr->sa_family == AF_INET6)
        return inside_v6(((const struct sockaddr_in6 *)(const void *)addr)->sin6_addr.s6_addr);
    return true;
}

/* 0: it has none. */
static unsigned port_of(const char *url)
{
    CURLU *parts = curl_url();
    char *text = NULL, *scheme = NULL;
    unsigned port = 0;
    if (parts && curl_url_set(parts, CURLUPART_URL, url,
                              CURLU_NON_SUPPORT_SCHEME | CURLU_GUESS_SCHEME) == CURLUE_OK) {
        if (curl_url_get(parts, CURLUPART_PORT, &text, 0) == CURLUE_OK)
            port = (unsigned)strtoul(text, NULL, 10);
        else if (curl_url_get(parts, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK)
            port = strcmp(scheme, "https") == 0 ? 443 : 1080; /* as libcurl has it */
    }
    curl_free(text);
    curl_free(scheme);
    curl_url_cleanup(parts);
    return port;
}

bool bough_reach_proxy(const char *proxy, const struct sockaddr *addr)
{
    /* those that libcurl looks at */
    static const char *const names[] = {"http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy",
                                        "ALL_PROXY"};
    unsigned port = 0;
    if (addr->sa_family == AF_INET)
        port = ntohs(((const struct sockaddr_in *)(const void *)addr)->sin_port);
    else if (addr->sa_family == AF_INET6)
        port = ntohs(((const struct sockaddr_in6 *)(const void *)addr)->sin6_port);
    if (port == 0)
        return false;
    if (proxy)
        return *proxy && port_of(proxy) == port;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *url = getenv(names[i]);
        if (url && *url && port_of(url) == port)
            return true;
    }
    return false;
}
