/* transfer_priv.h - what the parts of a transfer share. */
#ifndef BOUGH_TRANSFER_PRIV_H
#define BOUGH_TRANSFER_PRIV_H

#include <curl/curl.h>

#include "transfer.h"

/* transfer_ask.c */
/* "example.org:5000" of a URL that may be fetched; its origin too, unless that is NULL. NULL: *why. */
char *bough_transfer_host(const char *url, char **origin, CURLUcode *why);
/* The handle and what is to be sent by it, but for the callbacks. False: no memory. */
bool bough_transfer_ask(struct bough_transfer *t, const struct bough_request *request);
/* What remains of the headers when they go to another host. False: no memory. */
bool bough_transfer_bare(struct bough_transfer *t);

/* transfer_fault.c */
/* Where it is now: redirects may have led elsewhere. */
void bough_transfer_locate(struct bough_transfer *t);
void bough_transfer_explain(struct bough_transfer *t, CURLcode code);
void bough_transfer_unanswered(struct bough_transfer *t);

#endif
