/* reach.h - the addresses that mean this machine, or what is on the same wire: loopback, unspecified, link-local, in
 * IPv6 and IPv4, and the one written as the other. Knows no client; remembers nothing. */
#ifndef BOUGH_REACH_H
#define BOUGH_REACH_H

#include <stdbool.h>
#include <sys/socket.h>

/* Of a whole sockaddr_in or sockaddr_in6. What is no internet address counts as inside. */
bool bough_reach_inside(const struct sockaddr *addr);
/* Whether a proxy listens at that port: this one (a URL; "": none), or with NULL one of the environment. */
bool bough_reach_proxy(const char *proxy, const struct sockaddr *addr);

#endif
