/* spawn_test.c - bough-spawn over its socket, and what helps it, as TAP. */
#define _GNU_SOURCE
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "../../src/minder.h"
#include "../../src/process.h"
#include "../../src/spawner.h"
#include "spawn_host.h"

static volatile sig_atomic_t children_seen;

static void on_child(int sig)
{
    (void)sig;
    children_seen++;
}

/* A check on what a command has printed, which is told when it is not that. */
static void check_text(bool passed, const char *text, const char *name)
{
    if (!check(passed, "%s", name))
        for (size_t i = 0, n; text[i]; i += n + (text[i + n] == '\n')) {
            n = strcspn(text + i, "\n");
            printf("# %.*s\n", (int)n, text + i);
        }
}

static void test_plain(int sock)
{
    char text[1024];
    struct bough_command command = command_of(SHELL("exit 3"));
    struct story s = host_run(sock, &command, NULL);
    check(ended_with(&s, EXITED(3)) && s.pid > 1, "plain: an exit code");
    check(s.end.elapsed_ns > 0 && s.end.max_rss > 100000, "plain: what it used");
    command.argv = SHELL("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done");
    s = host_run(sock, &command, NULL);
    check(ended_with(&s, 0) && s.end.user_us + s.end.system_us > 1000 &&
              s.end.elapsed_ns / 1000 > s.end.user_us / 2,
          "plain: processor time");
    command.argv = SHELL("kill -9 $$");
    s = host_run(sock, &command, NULL);
    check(ended_with(&s, SIGKILL), "plain: killed by itself");

    int in[2], out[2], errors[2];
    MUST(pipe2(in, O_CLOEXEC));
    MUST(pipe2(out, O_CLOEXEC));
    MUST(pipe2(errors, O_CLOEXEC));
    command.argv =
        SHELL("read x; echo \"got $x\"; echo wrong >&2; pwd; echo \"$A-$PATH-$B\"; env | wc -l");
    command.cwd = "/usr";
    command.env = ARGV("A=1 2", "PATH=/usr/bin:/bin", "B");
    command.streams = 7;
    struct story t = host_begin(sock, &command, (int[]){in[0], out[1], errors[1]});
    close(in[0]);
    close(out[1]);
    close(errors[1]);
    MUST(write(in[1], "hello\n", 6));
    close(in[1]);
    host_finish(sock, &t);
    read_all(out[0], text, sizeof text);
    check_text(ended_with(&t, 0) && !strcmp(text, "got hello\n/usr\n1 2-/usr/bin:/bin-\n3\n"), text,
               "plain: streams, cwd and environment");
    read_all(errors[0], text, sizeof text);
    check_text(!strcmp(text, "wrong\n"), text, "plain: stderr is another");
    close(out[0]);
    close(errors[0]);

    MUST(pipe2(out, O_CLOEXEC));
    command = command_of(SHELL("echo \"$(readlink /proc/$$/fd/0 /proc/$$/fd/1)\" >&2; echo lost; "
                               "ulimit -n >&2; ulimit -Hn >&2"));
    command.streams = 4;
    command.files = 77;
    t = host_begin(sock, &command, &out[1]);
    close(out[1]);
    host_finish(sock, &t);
    read_all(out[0], text, sizeof text);
    close(out[0]);
    check_text(ended_with(&t, 0) && !strcmp(text, "/dev/null\n/dev/null\n77\n77\n"), text,
               "plain: streams that were not given are /dev/null; files");
}

static bool fails(int sock, struct bough_command *command, enum bough_err_kind kind,
                  const char *message)
{
    struct story s = host_run(sock, command, NULL);
    bool as_said = s.failed && s.why.kind == kind && !strcmp(s.why.msg, message);
    if (!as_said)
        printf("# %d %d: %s\n", s.failed, s.why.kind, s.why.msg);
    return as_said;
}

static void program_make(int at, const char *name, const char *text)
{
    file_make(at, name, text);
    MUST(fchmodat(at, name, 0755, 0));
}

static void test_failures(int sock, int at)
{
    char path[3100], message[3200];
    struct bough_command c = command_of(ARGV("nosuch"));
    check(fails(sock, &c, BOUGH_ERR_not_found, "program \"nosuch\": not found on this machine"),
          "failures: no such program");
    c.argv = ARGV("ls -l /");
    check(fails(sock, &c, BOUGH_ERR_not_found,
                "program \"ls -l /\": not found on this machine (a whole command line goes into "
                "`shell`)"),
          "failures: a command line");
    c.argv = ARGV("/nosuch/sh");
    check(fails(sock, &c, BOUGH_ERR_not_found, "program \"/nosuch/sh\": not found on this machine"),
          "failures: no such path");
    c.argv = ARGV("");
    check(fails(sock, &c, BOUGH_ERR_not_found, "program \"\": not found on this machine"),
          "failures: an empty name");
    c.argv = ARGV("/etc");
    check(fails(sock, &c, BOUGH_ERR_denied, "program \"/etc\": Permission denied"),
          "failures: not a program");
    c.argv = ARGV("ls");
    c.cwd = "/nosuch";
    check(fails(sock, &c, BOUGH_ERR_not_found, "cwd \"/nosuch\": No such file or directory"),
          "failures: no such directory");
    c.cwd = "tmp";
    check(fails(sock, &c, BOUGH_ERR_invalid, "cwd \"tmp\": it must be absolute"),
          "failures: a directory of whose?");
    c.cwd = "/";
    c.user = "root";
    check(fails(sock, &c, BOUGH_ERR_unsupported,
                "user \"root\": a command of the host runs as the host's own user"),
          "failures: another user");
    c.user = "";
    c.env = ARGV("PATH=/nosuch:/etc/passwd");
    check(fails(sock, &c, BOUGH_ERR_not_found, "program \"ls\": not found on this machine"),
          "failures: the PATH is the command's own");
    c.env = ARGV("PATH");
    struct story s = host_run(sock, &c, NULL);
    check(ended_with(&s, 0), "failures: without one there is a usual one");

    program_make(at, "dangling", "#!/nosuch/interpreter\n");
    program_make(at, "bare", "echo\n");
    file_make(at, "unmarked", "#!/bin/sh\nexit 7\n");
    c = command_of(ARGV("./dangling"));
    c.cwd = scratch;
    check(
        fails(
            sock, &c, BOUGH_ERR_not_found,
            "program \"./dangling\": it is there, but the interpreter or loader it names is not on "
            "this machine"),
        "failures: no interpreter");
    snprintf(path, sizeof path, "PATH=/nosuch:%s", scratch);
    c.argv = ARGV("dangling");
    c.env = ARGV(path);
    check(fails(sock, &c, BOUGH_ERR_not_found,
                "program \"dangling\": it is there, but the interpreter or loader it names is not "
                "on this "
                "machine"),
          "failures: nor for one that was searched");
    c.argv = ARGV("bare");
    check(fails(sock, &c, BOUGH_ERR_invalid,
                "program \"bare\": not a program for this machine (a script without #!?)"),
          "failures: a script that does not say whose");
    c.argv = ARGV("unmarked");
    check(fails(sock, &c, BOUGH_ERR_denied, "program \"unmarked\": Permission denied"),
          "failures: not executable");
    snprintf(path, sizeof path, "%s/unmarked", scratch);
    snprintf(message, sizeof message, "program \"%s\": Permission denied", path);
    c.argv = ARGV(path);
    check(fails(sock, &c, BOUGH_ERR_denied, message), "failures: nor by its path");
    c.env = ARGV("PATH=");
    c.argv = ARGV("unmarked");
    MUST(fchmodat(at, "unmarked", 0755, 0));
    s = host_run(sock, &c, NULL);
    check(ended_with(&s, EXITED(7)), "failures: an empty part of PATH is the cwd");

    c = command_of(ARGV("ls"));
    c.streams = 2;
    struct bough_wbuf body = {0};
    bough_command_put(&body, &c);
    MUST(bough_send(sock, BOUGH_MSG_EXEC, 1, &body, NULL, 0, &err));
    MUST(bough_send(sock, BOUGH_MSG_EXEC, 2, NULL, NULL, 0, &err));
    MUST(bough_send(sock, BOUGH_MSG_RUN, 3, NULL, NULL, 0, &err));
    bough_wbuf_free(&body);
    struct story three[3] = {{0}};
    while (!three[2].failed && host_turn(sock, three, 3))
        continue;
    check(three[0].failed && three[1].failed && three[0].why.kind == BOUGH_ERR_protocol &&
              three[1].why.kind == BOUGH_ERR_protocol && three[2].why.kind == BOUGH_ERR_protocol,
          "failures: messages that are wrong");
}

static void test_large(int sock)
{
    enum { SIZE = 100 * 1000 };
    char *large = malloc(SIZE + 1);
    memset(large, 'x', SIZE);
    memcpy(large, "A=", 2);
    large[SIZE] = '\0';
    struct bough_command command = command_of(SHELL("[ ${#A} -eq 99998 ]"));
    command.env = ARGV("PATH=/usr/bin:/bin", large);
    struct story s = host_run(sock, &command, NULL);
    check(ended_with(&s, 0), "an environment that is larger than a packet");
    free(large);
}

static void test_signals(int sock)
{
    char text[64];
    struct bough_command command = command_of(ARGV("sleep", "1000"));
    struct story s = host_begin(sock, &command, NULL);
    host_signal(sock, 77, SIGTERM, BOUGH_SCOPE_GROUP);
    host_signal(sock, 1, 0, BOUGH_SCOPE_GROUP);
    host_signal(sock, 1, 1000, BOUGH_SCOPE_GROUP);
    host_signal(sock, 1, SIGTERM, BOUGH_SCOPE_GROUP);
    host_finish(sock, &s);
    check(ended_with(&s, SIGTERM), "signals: one for a command");
    host_signal(sock, 1, SIGTERM, BOUGH_SCOPE_GROUP);

    int out[2];
    MUST(pipe2(out, O_CLOEXEC));
    command =
        command_of(SHELL("trap 'echo hup; kill $!; exit 4' HUP; sleep 1000 & echo ready; wait"));
    command.streams = 2;
    s = host_begin(sock, &command, &out[1]);
    close(out[1]);
    read_line(out[0], text, sizeof text);
    host_signal(sock, 1, SIGHUP, BOUGH_SCOPE_GROUP);
    host_finish(sock, &s);
    read_line(out[0], text, sizeof text);
    check(ended_with(&s, EXITED(4)) && !strcmp(text, "hup"), "signals: it may handle them");
    read_all(out[0], text, sizeof text);
    close(out[0]);
}

/* A tree whose processes all hold the pipe. Returns its reading end when it has grown. */
static struct story tree_start(int sock, int64_t timeout_ms, int *reading)
{
    char text[64];
    int out[2];
    MUST(pipe2(out, O_CLOEXEC));
    struct bough_command command =
        command_of(SHELL("sh -c 'sleep 1000 & setsid sleep 1000 & "
                         "sh -c \"sleep 1000 & echo ready; wait; wait\"' & "
                         "sleep 1000 & echo ready; wait; wait; wait"));
    command.streams = 2;
    command.timeout_ms = timeout_ms;
    struct story s = host_begin(sock, &command, &out[1]);
    close(out[1]);
    *reading = out[0];
    for (int i = 0; i < 2; i++)
        read_line(out[0], text, sizeof text);
    return s;
}

static void test_trees(int sock)
{
    char text[64];
    int reading;
    struct story s = tree_start(sock, 0, &reading);
    host_signal(sock, 1, SIGKILL, BOUGH_SCOPE_TREE);
    host_finish(sock, &s);
    read_all(reading, text, sizeof text);
    close(reading);
    check(ended_with(&s, SIGKILL), "trees: killed to the last leaf");

    s = tree_start(sock, 0, &reading);
    host_signal(sock, 1, SIGTERM, BOUGH_SCOPE_TREE);
    host_finish(sock, &s);
    read_all(reading, text, sizeof text);
    close(reading);
    check(ended_with(&s, SIGTERM), "trees: another signal goes to all");

    s = tree_start(sock, 400, &reading);
    host_finish(sock, &s);
    read_all(reading, text, sizeof text);
    close(reading);
    check(s.ended && s.end.status == SIGKILL && s.end.timed_out &&
              s.end.elapsed_ns >= 400 * INT64_C(1000000) &&
              s.end.elapsed_ns < 20000 * INT64_C(1000000),
          "trees: timed out");

    /* One that grows faster than it is looked at. */
    int out[2];
    MUST(pipe2(out, O_CLOEXEC));
    struct bough_command command =
        command_of(SHELL("n=0; grow() { n=$((n+1)); [ $n -gt 300 ] && exec sleep 1000; "
                         "[ $n = 5 ] && echo ready; sleep 1000 & grow & wait; }; grow"));
    command.streams = 2;
    s = host_begin(sock, &command, &out[1]);
    close(out[1]);
    read_line(out[0], text, sizeof text);
    host_signal(sock, 1, SIGKILL, BOUGH_SCOPE_TREE);
    host_finish(sock, &s);
    read_all(out[0], text, sizeof text);
    close(out[0]);
    check(ended_with(&s, SIGKILL), "trees: one that grows");

    command = command_of(SHELL("exit 5"));
    command.timeout_ms = INT64_MAX;
    s = host_run(sock, &command, NULL);
    check(ended_with(&s, EXITED(5)), "trees: a time limit beyond all times");
}

static void test_many(int sock)
{
    enum { COUNT = 200 };
    struct story *stories = calloc(COUNT, sizeof *stories);
    int64_t start = bough_now_ns();
    for (int i = 0; i < COUNT; i++) {
        char code[32];
        snprintf(code, sizeof code, "exit %d", i % 100);
        struct bough_command command = command_of(SHELL(code));
        host_exec(sock, i + 1, &command, NULL);
    }
    int ended = 0;
    while (ended < COUNT) {
        int64_t id = host_turn(sock, stories, COUNT);
        if (!id)
            break;
        ended += stories[id - 1].ended;
    }
    printf("# %d commands: %.1f ms\n", COUNT, (double)(bough_now_ns() - start) / 1e6);
    bool right = ended == COUNT;
    for (int i = 0; i < COUNT; i++)
        right = right && ended_with(&stories[i], EXITED(i % 100));
    check(right, "many: each with its own end");

    for (int i = 0; i < COUNT; i++) {
        stories[i] = (struct story){0};
        struct bough_command command = command_of(ARGV("sleep", "1000"));
        command.timeout_ms = i % 2 ? 300 : 0;
        host_exec(sock, i + 1, &command, NULL);
    }
    for (ended = 0; ended < COUNT / 2;) {
        int64_t id = host_turn(sock, stories, COUNT);
        if (!id)
            break;
        ended += stories[id - 1].ended;
    }
    right = ended == COUNT / 2;
    for (int i = 0; i < COUNT; i++)
        right = right && stories[i].started && stories[i].ended == i % 2 &&
                (!(i % 2) || (stories[i].end.timed_out && stories[i].end.status == SIGKILL));
    check(right, "many: those whose time was over");
    host_signal(sock, 0, SIGTERM, BOUGH_SCOPE_GROUP);
    for (; ended < COUNT;) {
        int64_t id = host_turn(sock, stories, COUNT);
        if (!id)
            break;
        ended += stories[id - 1].ended;
    }
    right = ended == COUNT;
    for (int i = 0; i < COUNT; i += 2)
        right = right && ended_with(&stories[i], SIGTERM);
    check(right, "many: a signal for all");
    free(stories);
}

/* What a command inherits. */
static void test_clean(int sock)
{
    char text[2048], expected[128];
    shell_run(sock, "ls -l /proc/self/fd | awk 'NF > 8 { print $9 }' | sort -n | tr '\\n' ' '",
              text, sizeof text);
    check_text(!strcmp(text, "0 1 2 3 "), text, "clean: no descriptors but its own");
    shell_run(sock, "exec sed -En '/^Sig(Blk|Ign|Cgt|Pnd)/p' /proc/self/status", text, sizeof text);
    bool none = true;
    /* 32 and 33 are the C library's own, which it does not let anybody set. */
    for (const char *line = text; *line; line = strchr(line, '\n') + 1)
        none = none && (strtoull(line + 7, NULL, 16) & ~0x180000000ULL) == 0;
    check_text(none && strlen(text) > 20, text, "clean: signals at their defaults");
    shell_run(sock, "set -- $(cat /proc/self/stat); echo $5 $6", text, sizeof text);
    snprintf(expected, sizeof expected, "%d %d\n", getpgrp(), getsid(0));
    check_text(!strcmp(text, expected), text, "clean: of our session and our process group");
    snprintf(text, sizeof text, "/proc/%d/fd", host_pid_of(sock));
    int count = 0;
    DIR *dir = opendir(text);
    while (dir && readdir(dir))
        count++;
    if (dir)
        closedir(dir);
    check(count == 2 + 6, "clean: bough-spawn holds nothing of the host's (%d)", count);
}

static void test_calm(int sock)
{
    static const int typed[] = {SIGINT, SIGQUIT, SIGTSTP, SIGHUP, SIGTERM, SIGTTIN, SIGTTOU};
    pid_t pid = host_pid_of(sock);
    for (size_t i = 0; i < sizeof typed / sizeof *typed; i++)
        MUST(kill(pid, typed[i]));
    struct bough_command command = command_of(ARGV("true"));
    struct story s = host_run(sock, &command, NULL);
    check(ended_with(&s, 0) && host_pid_of(sock) == pid,
          "calm: what is typed at the host's terminal is not for it");
}

static void test_terminal(int sock)
{
    char text[1024], path[64];
    struct bough_command command =
        command_of(SHELL("stty size; tty; read x; echo \"<$x>\"; set -- $(cat /proc/self/stat); "
                         "[ $6 = $$ ] && [ $8 = $$ ] && echo leads; exec cat </dev/tty"));
    command.pty = true;
    command.rows = 31;
    command.cols = 97;
    struct story s = host_begin(sock, &command, NULL);
    if (!check(s.started && s.master >= 0, "terminal: its master comes with the start"))
        return;
    int number = -1;
    MUST(ioctl(s.master, TIOCGPTN, &number));
    MUST(write(s.master, "hello\n\4", 7));
    read_all(s.master, text, sizeof text);
    host_finish(sock, &s);
    close(s.master);
    snprintf(path, sizeof path, "/dev/pts/%d\r\n", number);
    check_text(strstr(text, "31 97\r\n") && strstr(text, path) && strstr(text, "<hello>\r\n") &&
                   strstr(text, "leads\r\n"),
               text, "terminal: its size and name, and who leads there");
    check(ended_with(&s, 0), "terminal: an end of input");
    command.argv = ARGV("sleep", "1000");
    s = host_begin(sock, &command, NULL);
    MUST(write(s.master, "\3", 1));
    host_finish(sock, &s);
    close(s.master);
    check(ended_with(&s, SIGINT), "terminal: an interrupt is for who is in it");
    command.argv = ARGV("nosuch");
    s = host_run(sock, &command, NULL);
    check(s.failed && s.why.kind == BOUGH_ERR_not_found, "terminal: no program for it");
    command.argv = SHELL("trap '' HUP; sleep 1000");
    s = host_begin(sock, &command, NULL);
    host_signal(sock, 1, SIGKILL, BOUGH_SCOPE_TREE);
    read_all(s.master, text, sizeof text);
    host_finish(sock, &s);
    close(s.master);
    check(ended_with(&s, SIGKILL), "terminal: all in it are killed");
}

static void say_guard(int sock, int tty, const struct termios *settings)
{
    struct bough_wbuf body = {0};
    bough_put_bytes(&body, settings, sizeof *settings);
    MUST(bough_send(sock, BOUGH_MSG_GUARD, 0, &body, &tty, tty >= 0, &err));
    bough_wbuf_free(&body);
}

static bool is_raw(int tty)
{
    struct termios now;
    return tcgetattr(tty, &now) == 0 && !(now.c_lflag & (ICANON | ECHO));
}

static void make_raw(int tty)
{
    struct termios raw;
    MUST(tcgetattr(tty, &raw));
    cfmakeraw(&raw);
    MUST(tcsetattr(tty, TCSANOW, &raw));
}

/* A host of its own: three commands that hold the pipe, a larger tree, and two terminals, of which the second is
 * guarded in the place of the first. It closes its connection when it is told to. */
static _Noreturn void be_host(int holding, int told, const int *ttys, const struct termios *before)
{
    int sock = host_start(), reading;
    char go;
    for (int i = 0; i < 2; i++) {
        say_guard(sock, ttys[i], &before[i]);
        make_raw(ttys[i]);
    }
    for (int i = 0; i < 3; i++) {
        struct bough_command c =
            command_of(SHELL("sleep 1000 & sh -c 'sleep 1000 & echo ready; wait' & wait; wait"));
        c.streams = 2;
        host_begin(sock, &c, &holding);
    }
    close(holding);
    tree_start(sock, 0, &reading);
    pid_t pid = host_pid_of(sock);
    MUST(write(told, &pid, sizeof pid));
    MUST(read(told, &go, 1));
    close(sock);
    for (;;)
        pause();
}

static void test_death(bool dies)
{
    const char *name = dies ? "the host dies" : "the socket closes";
    char text[64];
    int masters[2], ttys[2], out[2], told[2];
    struct termios before[2], now;
    for (int i = 0; i < 2; i++) {
        MUST(openpty(&masters[i], &ttys[i], NULL, NULL, NULL));
        MUST(tcgetattr(ttys[i], &before[i]));
    }
    MUST(pipe2(out, O_CLOEXEC));
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, told));
    fflush(stdout);
    pid_t host = MUST(fork());
    if (host == 0)
        be_host(out[1], told[1], ttys, before);
    close(out[1]);
    pid_t pid = 0;
    MUST(read(told[0], &pid, sizeof pid) == sizeof pid ? 0 : -1);
    for (int i = 0; i < 3; i++)
        read_line(out[0], text, sizeof text);
    int pidfd = MUST(syscall(SYS_pidfd_open, pid, 0));
    check(is_raw(ttys[0]) && is_raw(ttys[1]), "%s: not yet", name);
    if (dies)
        MUST(kill(host, SIGKILL));
    else
        MUST(write(told[0], "", 1));
    read_all(out[0], text, sizeof text);
    check(gone(pidfd), "%s: so do all commands and bough-spawn", name);
    check(is_raw(ttys[0]) && tcgetattr(ttys[1], &now) == 0 && now.c_lflag == before[1].c_lflag &&
              now.c_iflag == before[1].c_iflag && now.c_oflag == before[1].c_oflag,
          "%s: the guarded terminal is as it was, the one before it is not", name);
    kill(host, SIGKILL);
    MUST(waitpid(host, NULL, 0));
    for (int i = 0; i < 2; i++) {
        close(masters[i]);
        close(ttys[i]);
        close(told[i]);
    }
    close(out[0]);
    close(pidfd);
}

/* A host in the foreground of a terminal. It hears what is typed there, as its commands do. */
static _Noreturn void be_foreground(int told, int tty)
{
    struct termios before;
    pid_t mine[2] = {getpid()};
    while (tcgetpgrp(tty) != getpid())
        sched_yield();
    signal(SIGINT, SIG_IGN);
    MUST(tcgetattr(tty, &before));
    int sock = host_start();
    mine[1] = host_pid_of(sock);
    struct bough_command command = command_of(ARGV("sleep", "1000"));
    struct story s = host_begin(sock, &command, NULL);
    MUST(write(told, "", 1));
    host_finish(sock, &s);
    if (!ended_with(&s, SIGINT))
        _exit(1);
    say_guard(sock, tty, &before);
    make_raw(tty);
    host_pid_of(sock); /* the guard has arrived */
    MUST(write(told, mine, sizeof mine));
    for (;;)
        pause();
}

/* The shell that started it. Its own end is the verdict. */
static _Noreturn void be_shell(int master, int tty)
{
    int told[2];
    pid_t of[2];
    struct termios before, now;
    char go;
    signal(SIGTTOU, SIG_IGN);
    MUST(setsid());
    MUST(ioctl(tty, TIOCSCTTY, 0));
    MUST(tcgetattr(tty, &before));
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, told));
    pid_t host = MUST(fork());
    if (host == 0) {
        setpgid(0, 0);
        close(told[0]);
        be_foreground(told[1], tty);
    }
    close(told[1]);
    setpgid(host, host);
    MUST(tcsetpgrp(tty, host));
    if (read(told[0], &go, 1) != 1)
        _exit(2);
    MUST(write(master, "\3", 1));
    if (read(told[0], of, sizeof of) != sizeof of)
        _exit(3);
    int pidfd = MUST(syscall(SYS_pidfd_open, of[1], 0));
    MUST(tcsetpgrp(tty, getpgrp()));
    MUST(kill(host, SIGKILL));
    if (!gone(pidfd) || tcgetattr(tty, &now) < 0)
        _exit(4);
    _exit(now.c_lflag == before.c_lflag && now.c_iflag == before.c_iflag ? 0 : 5);
}

static void test_foreground(void)
{
    int master, tty, status = 0;
    MUST(openpty(&master, &tty, NULL, NULL, NULL));
    fflush(stdout);
    pid_t shell = MUST(fork());
    if (shell == 0)
        be_shell(master, tty);
    MUST(waitpid(shell, &status, 0));
    check(status == 0,
          "foreground: an interrupt ends the command; the terminal is put right from behind (%x)",
          (unsigned)status);
    close(master);
    close(tty);
}

static void test_unguard(void)
{
    int master, tty;
    struct termios before;
    MUST(openpty(&master, &tty, NULL, NULL, NULL));
    MUST(tcgetattr(tty, &before));
    int sock = host_start();
    int pidfd = MUST(syscall(SYS_pidfd_open, host_pid_of(sock), 0));
    say_guard(sock, tty, &before);
    make_raw(tty);
    MUST(bough_send(sock, BOUGH_MSG_GUARD, 0, NULL, NULL, 0, &err));
    close(sock);
    check(gone(pidfd) && is_raw(tty), "unguarded: left as it is");
    close(pidfd);
    close(master);
    close(tty);
}

/* A minder whose children lead sessions, as an init's do. */
static void test_sessions(void)
{
    char text[64];
    int out[2];
    MUST(pipe2(out, O_CLOEXEC));
    fflush(stdout);
    pid_t child = MUST(fork());
    if (child == 0) {
        setsid();
        dup2(out[1], 1);
        execl("/bin/sh", "sh", "-c",
              "(sleep 1000 & (sleep 1000 & echo ready) & ) ; exec sleep 1000", NULL);
        _exit(127);
    }
    pid_t bystander = MUST(fork());
    if (bystander == 0) {
        close(out[1]);
        for (;;)
            pause();
    }
    close(out[1]);
    read_line(out[0], text, sizeof text);
    bough_minder_kill_tree(child);
    int status = 0;
    MUST(waitpid(child, &status, 0));
    read_all(out[0], text, sizeof text);
    close(out[0]);
    check(status == SIGKILL && !kill(bystander, 0) && !waitpid(bystander, NULL, WNOHANG),
          "sessions: who lost a parent is found by it");
    MUST(kill(bystander, SIGKILL));
    MUST(waitpid(bystander, NULL, 0));
}

/* The host's end with a loop. */
static void test_spawner(void)
{
    struct bough_loop *loop = bough_loop_new();
    check(!bough_spawner_new(loop, "/nosuch/bough-spawn", &err) &&
              err.kind == BOUGH_ERR_not_found &&
              !strcmp(err.msg, "spawner /nosuch/bough-spawn: No such file or directory"),
          "spawner: no such program");
    struct bough_spawner *spawner = bough_spawner_new(loop, getenv("BOUGH_SPAWN"), &err);
    int master, tty;
    struct termios before;
    MUST(openpty(&master, &tty, NULL, NULL, NULL));
    MUST(tcgetattr(tty, &before));
    check(spawner && bough_spawner_alive(spawner) && !bough_loop_alive(loop),
          "spawner: does not keep the loop alive");
    check(!bough_spawner_guard(spawner, tty, &before, &err), "spawner: a guarded terminal");
    make_raw(tty);
    bough_loop_poll(loop, 0);

    struct bough_process *p = bough_process_new(bough_spawner_crew(spawner));
    char **argv = calloc(3, sizeof *argv), **env = calloc(1, sizeof *env);
    argv[0] = strdup("sleep");
    argv[1] = strdup("1000");
    p->command =
        (struct bough_command){.argv = argv, .env = env, .cwd = strdup("/"), .user = strdup("")};
    bough_process_start(p);
    check(bough_loop_alive(loop), "spawner: a command does");
    while (p->state == BOUGH_PROCESS_STARTING)
        bough_loop_poll(loop, -1);
    check(p->state == BOUGH_PROCESS_RUNNING && p->pid > 1, "spawner: a command runs");
    int pidfd = MUST(syscall(SYS_pidfd_open, (pid_t)p->pid, 0));
    bough_spawner_free(spawner);
    check(p->state == BOUGH_PROCESS_OVER && p->failed && p->err.kind == BOUGH_ERR_closed &&
              !strcmp(p->err.msg, "bough-spawn, which runs commands of the host, has ended"),
          "spawner: freed, its commands have failed (%s)", p->err.msg);
    check(gone(pidfd) && !is_raw(tty), "spawner: and ended; the terminal is as it was");
    close(pidfd);
    bough_process_unref(p);

    spawner = bough_spawner_new(loop, getenv("BOUGH_SPAWN"), &err);
    bough_spawner_unguard(spawner);
    close(master);
    close(tty);
    bough_spawner_free(spawner);
    bough_loop_free(loop);
}

int main(void)
{
    const char *tmp = getenv("TMPDIR");
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    if (syscall(SYS_pidfd_open, getpid(), 0) < 0) {
        printf("1..0 # SKIP needs pidfd_open(2), which is not in valgrind 3.19\n");
        return 0;
    }
    snprintf(scratch, sizeof scratch, "%s/bough-spawn-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(scratch))
        return printf("Bail out! %s: %s\n", scratch, strerror(errno)), 1;
    int at = dir_open(AT_FDCWD, scratch);
    /* A host with habits: a leaking descriptor, signals that it blocks, ignores and handles. */
    int leak = MUST(dup(at));
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    signal(SIGCHLD, on_child);
    signal(SIGWINCH, SIG_IGN);
    int sock = host_start();
    test_plain(sock);
    test_failures(sock, at);
    test_large(sock);
    test_signals(sock);
    test_trees(sock);
    test_many(sock);
    test_clean(sock);
    test_calm(sock);
    test_terminal(sock);
    check(children_seen == 0 && waitpid(-1, NULL, WNOHANG | __WALL) == -1 && errno == ECHILD,
          "the host has no children, and saw none end");
    signal(SIGCHLD, SIG_DFL);
    close(leak);
    close(sock);
    test_death(true);
    test_death(false);
    test_foreground();
    test_unguard();
    test_sessions();
    test_spawner();
    close(at);
    bough_tree_remove(AT_FDCWD, scratch, NULL);
    printf("1..%d\n", tests);
    return failures != 0;
}
