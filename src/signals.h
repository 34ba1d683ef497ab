/* signals.h - signals by name: "TERM", "sigterm", "RTMIN+1". */
#ifndef BOUGH_SIGNALS_H
#define BOUGH_SIGNALS_H

#include <stddef.h>

int bough_signal_number(const char *name, size_t size); /* 0: there is none of that name */
const char *bough_signal_nearest(const char *name);     /* what was meant, perhaps */

#endif
