/* lprogram.c - where our helper programs are: beside core.so, unless somebody says otherwise. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lhost.h"
#include "lwait.h"
#include "sys.h"

/* "<dir of core.so>/<name>" */
static void beside_us(char *path, size_t room, const char *name)
{
    Dl_info info;
    path[0] = '\0';
    if (!dladdr((void *)(uintptr_t)beside_us, &info) || !info.dli_fname)
        return;
    char real[PATH_MAX];
    const char *self = realpath(info.dli_fname, real) ? real : info.dli_fname;
    const char *slash = strrchr(self, '/');
    snprintf(path, room, "%.*s%s", slash ? (int)(slash - self) + 1 : 0, self, name);
}

void bough_lprogram_find(lua_State *L, const char *given, const char *variable, const char *name,
                         char *path, const char *op)
{
    if (!given)
        given = getenv(variable);
    if (given && *given)
        snprintf(path, PATH_MAX, "%s", given);
    else
        beside_us(path, PATH_MAX, name);
    if (access(path, X_OK) < 0)
        bough_lerr(L, BOUGH_ERR_not_found, op,
                   "%s: no program there; it belongs beside core.so, or where $%s says", path,
                   variable);
}
