/* listen.c - the socket that clients connect to. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "httpd/listen.h"

enum { NOT_SENT_MOST = 256 << 10 };

union place {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_storage room;
};

void httpd_address_text(const struct sockaddr *address, char text[HTTPD_ADDRESS_MAX])
{
    text[0] = '\0';
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)address;
        inet_ntop(AF_INET, &v4->sin_addr, text, HTTPD_ADDRESS_MAX);
    } else if (address->sa_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const void *)address;
        if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr))
            inet_ntop(AF_INET, v6->sin6_addr.s6_addr + 12, text, HTTPD_ADDRESS_MAX);
        else
            inet_ntop(AF_INET6, &v6->sin6_addr, text, HTTPD_ADDRESS_MAX);
    }
}

static bool resolve(union place *place, socklen_t *size, const char *address, unsigned port)
{
    char bare[HTTPD_ADDRESS_MAX];
    size_t length = strlen(address);
    if (length >= 2 && address[0] == '[' && address[length - 1] == ']') {
        if (length - 2 >= sizeof bare)
            return false;
        memcpy(bare, address + 1, length - 2);
        bare[length - 2] = '\0';
        address = bare;
    } else if (strcmp(address, "localhost") == 0) {
        address = "127.0.0.1";
    }
    *place = (union place){0};
    if (inet_pton(AF_INET, address, &place->v4.sin_addr) == 1) {
        place->v4.sin_family = AF_INET;
        place->v4.sin_port = htons((uint16_t)port);
        *size = sizeof place->v4;
        return true;
    }
    if (inet_pton(AF_INET6, address, &place->v6.sin6_addr) == 1) {
        place->v6.sin6_family = AF_INET6;
        place->v6.sin6_port = htons((uint16_t)port);
        *size = sizeof place->v6;
        return true;
    }
    return false;
}

static int set(int fd, int level, int option, int value)
{
    return setsockopt(fd, level, option, &value, sizeof value);
}

/* Accepted sockets inherit these. A client whose machine has vanished is noticed within a minute, and one that does
 * not read costs a part of a megabyte of the kernel's memory, not four. */
static void prepare(int fd)
{
    set(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOT_SENT_MOST);
    set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 30);
    set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
    set(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
    set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 60000);
}

int httpd_listen(struct httpd_listener *listener, const char *address, unsigned port, int backlog,
                 struct bough_err *err)
{
    union place place;
    socklen_t size;
    if (!resolve(&place, &size, address, port))
        return bough_err_set(err, BOUGH_ERR_invalid,
                             "\"%.60s\" is not a numeric IPv4 or IPv6 address", address);
    int fd = socket(place.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
    if (fd < 0)
        return bough_err_sys(err, errno, "socket");
    bool any = place.any.sa_family == AF_INET6 &&
               IN6_IS_ADDR_UNSPECIFIED(&place.v6.sin6_addr); /* "::" means every address */
    if (place.any.sa_family == AF_INET6)
        set(fd, IPPROTO_IPV6, IPV6_V6ONLY, !any);
    prepare(fd);
    if (set(fd, SOL_SOCKET, SO_REUSEADDR, 1) < 0 || bind(fd, &place.any, size) < 0 ||
        listen(fd, backlog) < 0) {
        int sys = errno;
        close(fd);
        return bough_err_sys(err, sys, "cannot listen on %s port %u", address, port);
    }
    size = sizeof place;
    if (getsockname(fd, &place.any, &size) < 0) {
        int sys = errno;
        close(fd);
        return bough_err_sys(err, sys, "getsockname");
    }
    *listener = (struct httpd_listener){.fd = fd, .ipv6 = place.any.sa_family == AF_INET6};
    listener->port = ntohs(listener->ipv6 ? place.v6.sin6_port : place.v4.sin_port);
    httpd_address_text(&place.any, listener->address);
    return 0;
}
