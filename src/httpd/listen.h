/* listen.h - a listener: the socket that clients connect to. */
#ifndef BOUGH_HTTPD_LISTEN_H
#define BOUGH_HTTPD_LISTEN_H

#include <stdbool.h>
#include <sys/socket.h>

#include "err.h"

enum { HTTPD_ADDRESS_MAX = 80 };

struct httpd_listener {
    int fd;
    bool ipv6;
    unsigned port;                   /* the actual one */
    char address[HTTPD_ADDRESS_MAX]; /* numeric, without brackets */
};

/* Listens on a numeric address ("127.0.0.1", "::1", "::", also in brackets) or "localhost". 0 or -1. */
int httpd_listen(struct httpd_listener *listener, const char *address, unsigned port, int backlog,
                 struct bough_err *err);

/* "127.0.0.1", "::1"; an IPv4 client of an IPv6 socket is told as IPv4. */
void httpd_address_text(const struct sockaddr *address, char text[HTTPD_ADDRESS_MAX]);

#endif
