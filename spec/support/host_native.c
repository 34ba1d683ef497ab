/* host_native.c - what a host in C may have beside us: a SIGCHLD handler, children, threads that start children.
 *
 * A Lua module that is compiled by spec/host_spec.lua. Of Lua it declares what it uses, so that no header is needed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct lua_State lua_State;
typedef int (*lua_CFunction)(lua_State *L);
void lua_createtable(lua_State *L, int narr, int nrec);
void lua_pushcclosure(lua_State *L, lua_CFunction fn, int n);
void lua_pushinteger(lua_State *L, long long n);
void lua_setfield(lua_State *L, int idx, const char *k);
long long luaL_checkinteger(lua_State *L, int arg);
int luaL_error(lua_State *L, const char *fmt, ...);

#define THREADS 4

extern char **environ;

static volatile sig_atomic_t heard;
static atomic_int stop, good, bad;
static pthread_t threads[THREADS];

static void on_child(int number)
{
    (void)number;
    heard++;
}

/* watch(): from now on SIGCHLDs are counted */
static int watch(lua_State *L)
{
    (void)L;
    signal(SIGCHLD, on_child);
    return 0;
}

/* count() -> how many have come */
static int count(lua_State *L)
{
    lua_pushinteger(L, heard);
    return 1;
}

/* begin() -> pid, descriptor: a child of the host's own, which ends when that is closed */
static int begin(lua_State *L)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return luaL_error(L, "pipe");
    pid_t pid = fork();
    if (pid == 0) {
        char c;
        close(ends[1]);
        _exit(read(ends[0], &c, 1) == 0 ? 7 : 8);
    }
    close(ends[0]);
    lua_pushinteger(L, pid);
    lua_pushinteger(L, ends[1]);
    return 2;
}

/* finish(pid, descriptor) -> its exit code, -1 when somebody else has taken it */
static int finish(lua_State *L)
{
    int status = 0;
    pid_t pid = (pid_t)luaL_checkinteger(L, 1), ended;
    close((int)luaL_checkinteger(L, 2));
    while ((ended = waitpid(pid, &status, 0)) < 0 && errno == EINTR)
        continue;
    lua_pushinteger(L, ended < 0 ? -1 : WEXITSTATUS(status));
    return 1;
}

static void *work(void *arg)
{
    (void)arg;
    char *argv[] = {"sh", "-c", "exit 5", NULL};
    while (!stop) {
        pid_t pid;
        int status;
        if (posix_spawn(&pid, "/bin/sh", NULL, NULL, argv, environ) != 0)
            continue;
        if (waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 5)
            good++;
        else
            bad++;
    }
    return NULL;
}

/* begin_threads(): each starts children and waits for them, again and again */
static int begin_threads(lua_State *L)
{
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, work, NULL) != 0)
            return luaL_error(L, "pthread_create");
    return 0;
}

/* finish_threads() -> how many of their children ended as they should, how many did not */
static int finish_threads(lua_State *L)
{
    stop = 1;
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    lua_pushinteger(L, good);
    lua_pushinteger(L, bad);
    return 2;
}

int luaopen_host_native(lua_State *L)
{
    static const struct {
        const char *name;
        lua_CFunction fn;
    } functions[] = {
        {"watch", watch},
        {"count", count},
        {"begin", begin},
        {"finish", finish},
        {"begin_threads", begin_threads},
        {"finish_threads", finish_threads},
    };
    lua_createtable(L, 0, 6);
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        lua_pushcclosure(L, functions[i].fn, 0);
        lua_setfield(L, -2, functions[i].name);
    }
    return 1;
}
