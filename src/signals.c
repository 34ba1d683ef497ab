/* signals.c - the names of signals, as signal(7) lists them. */
#define _GNU_SOURCE
#include "signals.h"

#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Those of signal(7), without SIG. */
static const struct {
    const char *name;
    int number;
} signals[] = {
    {"ABRT", SIGABRT},     {"ALRM", SIGALRM}, {"BUS", SIGBUS},   {"CHLD", SIGCHLD},
    {"CLD", SIGCHLD},      {"CONT", SIGCONT}, {"FPE", SIGFPE},   {"HUP", SIGHUP},
    {"ILL", SIGILL},       {"INFO", SIGPWR},  {"INT", SIGINT},   {"IO", SIGIO},
    {"IOT", SIGABRT},      {"KILL", SIGKILL}, {"PIPE", SIGPIPE}, {"POLL", SIGPOLL},
    {"PROF", SIGPROF},     {"PWR", SIGPWR},   {"QUIT", SIGQUIT}, {"SEGV", SIGSEGV},
    {"STOP", SIGSTOP},     {"SYS", SIGSYS},   {"TERM", SIGTERM}, {"TRAP", SIGTRAP},
    {"TSTP", SIGTSTP},     {"TTIN", SIGTTIN}, {"TTOU", SIGTTOU}, {"UNUSED", SIGSYS},
    {"URG", SIGURG},       {"USR1", SIGUSR1}, {"USR2", SIGUSR2}, {"VTALRM", SIGVTALRM},
    {"WINCH", SIGWINCH},   {"XCPU", SIGXCPU}, {"XFSZ", SIGXFSZ},
#ifdef SIGSTKFLT
    {"STKFLT", SIGSTKFLT},
#endif
#ifdef SIGEMT
    {"EMT", SIGEMT},
#endif
#ifdef SIGLOST
    {"LOST", SIGLOST},
#endif
};

enum { SIGNAL_SIZE = 16 }; /* of a name, more than any has */

/* How many letters have to be changed, put in or left out to get from one name to the other. */
static int name_distance(const char *a, const char *b)
{
    int row[SIGNAL_SIZE + 1];
    int width = (int)strlen(b);
    for (int j = 0; j <= width; j++)
        row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int corner = row[0];
        row[0] = i;
        for (int j = 1; j <= width; j++) {
            int cost = corner + (a[i - 1] != b[j - 1]);
            corner = row[j];
            int shorter = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            row[j] = cost < shorter ? cost : shorter;
        }
    }
    return row[width];
}

/* "RTMIN+3", "RTMAX": its number, or 0. */
static int signal_realtime(const char *name)
{
    bool low = strncmp(name, "RTMIN", 5) == 0;
    if (!low && strncmp(name, "RTMAX", 5) != 0)
        return 0;
    int number = low ? SIGRTMIN : SIGRTMAX;
    if (name[5] != '\0') {
        char *end;
        if (name[5] != (low ? '+' : '-') || name[6] < '0' || name[6] > '9')
            return 0;
        long offset = strtol(name + 6, &end, 10);
        if (*end || offset > SIGRTMAX - SIGRTMIN)
            return 0;
        number += low ? (int)offset : -(int)offset;
    }
    return number;
}

/* In capitals and without SIG. False when something of it is lost: it is too long, or has a NUL inside. */
static bool name_fold(const char *given, size_t size, char name[SIGNAL_SIZE])
{
    const char *bare = strncasecmp(given, "SIG", 3) == 0 ? given + 3 : given;
    memset(name, 0, SIGNAL_SIZE);
    for (size_t i = 0; i < SIGNAL_SIZE - 1 && bare[i]; i++)
        name[i] = (char)(bare[i] >= 'a' && bare[i] <= 'z' ? bare[i] - 32 : bare[i]);
    return (size_t)(bare - given) + strlen(name) == size;
}

int bough_signal_number(const char *given, size_t size)
{
    char name[SIGNAL_SIZE];
    if (!name_fold(given, size, name))
        return 0;
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        if (strcmp(name, signals[i].name) == 0)
            return signals[i].number;
    return signal_realtime(name);
}

const char *bough_signal_nearest(const char *given)
{
    char name[SIGNAL_SIZE];
    const char *nearest = "TERM";
    int best = SIGNAL_SIZE;
    name_fold(given, 0, name);
    if (strncmp(name, "RT", 2) == 0)
        return strncmp(name, "RTMA", 4) == 0 ? "RTMAX-n" : "RTMIN+n";
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        int cost = name_distance(name, signals[i].name);
        if (cost < best) {
            best = cost;
            nearest = signals[i].name;
        }
    }
    return nearest;
}
