/* crew_test.c - booted sandboxes, as TAP: processes started in them over the wire, their ends, terminals, clocks, and
 * layers made while they run. As root, and as an ordinary user when root calls. */
#define _GNU_SOURCE
#include <grp.h>
#include <pwd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "crew_run.h"

#define ARGV(...) ((char *[]){__VA_ARGS__, NULL})

/* ---- processes ---- */

static void test_exec(void)
{
    struct box *box = box_boot((struct bough_plan){0});
    check(box->run.type == BOUGH_MSG_STARTED && box->run.pid == 1, "boot: is announced");
    struct proc *p = box_exec(box, (struct bough_command){.argv = ARGV("true")}, NULL);
    check(proc_await(box, p) == 0 && p->started && p->pid > 1, "exec: a program by its name");
    check(proc_await(box, box_shell(box, "exit 7")) == 7, "exec: an exit code");
    check(proc_await(box, box_shell(box, "kill -9 $$")) == 137, "exec: a signal");
    check(box_run(box, "echo $HOME; pwd; id -u; cat; hostname; ulimit -n") == 0 &&
              strncmp(said, "/root\n/\n0\ncrew\n", 15) == 0,
          "exec: home, directory, user, no stdin");
    check(box_capture(box, (struct bough_command){.argv = ARGV("/bin/sh", "-c",
                                                               "echo $HOME $X; pwd; id -u; "
                                                               "ulimit -n"),
                                                  .env = ARGV("PATH=/bin", "X=y", "HOME"),
                                                  .cwd = "/tmp",
                                                  .files = 77}) == 0 &&
              strcmp(said, "y\n/tmp\n0\n77\n") == 0,
          "exec: environment, directory, files as asked for");
    int in[2], out[2];
    MUST(pipe2(in, O_CLOEXEC));
    MUST(pipe2(out, O_CLOEXEC));
    p = box_exec(box, (struct bough_command){.argv = ARGV("cat"), .streams = 3},
                 (int[]){in[0], out[1]});
    close(in[0]);
    close(out[1]);
    MUST(write(in[1], "hello", 5));
    close(in[1]);
    check(proc_await(box, p) == 0 && read(out[0], said, sizeof said) == 5 &&
              memcmp(said, "hello", 5) == 0,
          "exec: pipes");
    close(out[0]);
    box_finish(box, false);
    check(box->run.type == BOUGH_MSG_EXITED && box->run.ending.status == 0 &&
              !box->run.ending.changed && !box->run.ending.killed,
          "finish: exited");
    box_free(box);
}

/* All that comes before the sandbox has entered waits for it. */
static void test_queue(void)
{
    struct box *box = box_ask((struct bough_plan){0});
    struct proc *p = box_shell(box, "exit 3");
    check(proc_await(box, p) == 3, "queue: a process asked for before the sandbox was there");
    box_free(box);
}

static void test_failures(void)
{
    struct box *box = box_boot((struct bough_plan){0});
    const struct {
        struct bough_command command;
        enum bough_err_kind kind;
        const char *text;
    } cases[] = {
        {{.argv = (char *[]){"nonesuch", NULL}}, BOUGH_ERR_not_found, "program \"nonesuch\""},
        {{.argv = (char *[]){"/bin/none", NULL}}, BOUGH_ERR_not_found, "program \"/bin/none\""},
        {{.argv = (char *[]){"/etc/passwd", NULL}}, BOUGH_ERR_denied, "program \"/etc/passwd\""},
        {{.argv = (char *[]){"/etc/noint", NULL}}, BOUGH_ERR_not_found, "interpreter"},
        {{.argv = (char *[]){"/etc/nomagic", NULL}}, BOUGH_ERR_invalid, "without #!"},
        {{.argv = (char *[]){"true", NULL}, .cwd = "/none"}, BOUGH_ERR_not_found, "cwd \"/none\""},
        {{.argv = (char *[]){"true", NULL}, .user = "who"}, BOUGH_ERR_not_found, "user \"who\""},
        {{.argv = (char *[]){"nonesuch", NULL}, .pty = true}, BOUGH_ERR_not_found, "nonesuch"},
        {{.argv = (char *[]){"true", NULL}, .streams = 1}, BOUGH_ERR_protocol, "streams"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bough_command command = cases[i].command;
        int null = MUST(open("/dev/null", O_RDONLY | O_CLOEXEC));
        struct proc *p;
        if (command.streams) { /* claims one and sends none */
            struct bough_wbuf body = {0};
            p = &box->procs[box->count++];
            *p = (struct proc){.id = box->count, .master = -1};
            command.env = ARGV("PATH=/bin");
            command.cwd = "/";
            command.user = "";
            bough_command_put(&body, &command);
            bough_send(box->sock, BOUGH_MSG_EXEC, p->id, &body, NULL, 0, NULL);
            bough_wbuf_free(&body);
        } else {
            p = box_exec(box, command, NULL);
        }
        close(null);
        proc_await(box, p);
        check(p->failed && !p->started && err.kind == cases[i].kind &&
                  strstr(err.msg, cases[i].text),
              "start failures: %s", err.msg);
    }
    check(proc_await(box, box_shell(box, "exit 4")) == 4,
          "start failures: others are not affected");
    box_free(box);
}

/* The host's number of the only process that was started as `sleep SECONDS`, and its parent's: init. */
static pid_t find_init(const char *seconds)
{
    DIR *d = opendir("/proc");
    struct dirent *e;
    char path[300], text[64];
    pid_t parent = -1;
    while (d && parent < 0 && (e = readdir(d))) {
        snprintf(path, sizeof path, "/proc/%s/cmdline", e->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
        if (fd >= 0)
            close(fd);
        text[n > 0 ? n : 0] = '\0';
        if (n < 8 || strcmp(text, "sleep") != 0 || strcmp(text + 6, seconds) != 0)
            continue;
        snprintf(path, sizeof path, "/proc/%s/stat", e->d_name);
        FILE *f = fopen(path, "re");
        if (!f || fscanf(f, "%*d (%*[^)]) %*c %d", &parent) != 1)
            parent = -1;
        if (f)
            fclose(f);
    }
    if (d)
        closedir(d);
    return parent;
}

static int fds_of(pid_t pid)
{
    char path[64];
    int n = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *d = opendir(path);
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

static long size_of(pid_t pid)
{
    char path[64];
    long pages = -1;
    snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%ld", &pages) != 1)
        pages = -1;
    if (f)
        fclose(f);
    return pages;
}

static void test_many(void)
{
    struct box *box = box_boot((struct bough_plan){0});
    bool good = true;
    struct proc *sleeper =
        box_exec(box, (struct bough_command){.argv = ARGV("sleep", "424242")}, NULL);
    AWAIT(box, sleeper->started);
    pid_t init = -1; /* a program that has just started does not show its arguments yet */
    while (init < 0)
        init = find_init("424242");
    for (int i = 0; i < 20; i++)
        good = good && proc_await(box, box_exec(box, (struct bough_command){.argv = ARGV("true")},
                                                NULL)) == 0;
    int fds = fds_of(init);
    long size = size_of(init);
    int64_t began_ns = bough_now_ns();
    for (int i = 0; i < 1000; i++)
        good = good && proc_await(box, box_exec(box, (struct bough_command){.argv = ARGV("true")},
                                                NULL)) == 0;
    int64_t each_us = (bough_now_ns() - began_ns) / 1000000;
    check(good, "many: 1000 in sequence");
    began_ns = bough_now_ns();
    for (int i = 0; i < 200; i++)
        pclose(popen("true", "r"));
    printf("# true in a sandbox: %lld us, by popen(3): %lld us\n", (long long)each_us,
           (long long)(bough_now_ns() - began_ns) / 200000);
    check(init > 1 && fds_of(init) == fds && size_of(init) == size,
          "many: init has grown nothing (%d %d, %ld %ld)", fds, fds_of(init), size, size_of(init));
    struct proc *all[50];
    for (int i = 0; i < 50; i++) {
        char line[64];
        snprintf(line, sizeof line, "sleep 0.0%d; exit %d", i % 10, i);
        all[i] = box_shell(box, line);
    }
    for (int i = 0; i < 50; i++)
        good = good && proc_await(box, all[i]) == i;
    check(good, "many: 50 at once, each with its own code");
    box_finish(box, false);
    check(sleeper->ended && proc_code(sleeper) == 137 && box->run.over,
          "many: what still runs is ended with the sandbox, and told");
    box_free(box);
}

/* ---- signals and clocks ---- */

static void test_signals(void)
{
    struct box *box = box_boot((struct bough_plan){0});
    struct proc *a = box_ready(box, "trap 'exit 5' TERM; echo; while :; do sleep 0.05; done");
    struct proc *b = box_ready(box, "echo; sleep 1000; exit 6");
    box_signal(box, a, SIGTERM, BOUGH_SCOPE_GROUP);
    check(proc_await(box, a) == 5 && !b->ended, "signals: to the group of one");
    box_signal(box, b, SIGINT, BOUGH_SCOPE_GROUP);
    check(proc_await(box, b) == 130, "signals: to all in the group");
    box_signal(box, b, SIGINT, BOUGH_SCOPE_GROUP);
    b = box_ready(box, "setsid sh -c 'setsid sh -c \"echo; sleep 4711\" & sleep 4711' & wait");
    box_signal(box, b, SIGKILL, BOUGH_SCOPE_TREE);
    check(proc_await(box, b) == 137 &&
              box_run(box, "while ps | grep -q '[s]leep 4711'; do :; done") == 0,
          "signals: to a tree with sessions of its own");
    a = box_ready(box, "echo; sleep 1000");
    b = box_ready(box, "echo; sleep 1000");
    box_signal(box, NULL, SIGTERM, BOUGH_SCOPE_GROUP);
    check(proc_await(box, a) == 143 && proc_await(box, b) == 143, "signals: to all");
    check(proc_await(box, box_shell(box, "exit 8")) == 8, "signals: and it goes on");
    a = box_ready(box, "echo; sleep 1000");
    check(box_run(box, "kill -9 -1; exit 9") == 9 && proc_await(box, a) == 137 &&
              proc_await(box, box_shell(box, "exit 10")) == 10,
          "signals: a process that kills all others does not hold it up");
    check(box_run(box, "kill -STOP -1; exit 11") == 11 &&
              proc_await(box, box_shell(box, "exit 12")) == 12,
          "signals: nor one that stops all others");
    a = box_ready(box, "trap '' TERM; echo; while :; do kill -9 -1; done");
    int killed = 0, went = 0, failed = 0;
    for (int i = 0; i < 200; i++) {
        b = box_shell(box, "exit 13");
        int code = proc_await(box, b);
        went += code == 13;
        killed += code == 137;
        failed += b->failed;
    }
    check(went + killed + failed == 200, "signals: nor one that does so all the time (%d, %d, %d)",
          went, killed, failed);
    box_signal(box, a, SIGKILL, BOUGH_SCOPE_GROUP);
    check(proc_await(box, a) == 137 && proc_await(box, box_shell(box, "exit 14")) == 14,
          "signals: and it goes on");
    box_free(box);
}

static void test_timeout(void)
{
    struct box *box = box_boot((struct bough_plan){0});
    struct proc *other = box_ready(box, "echo; sleep 1000");
    struct proc *p =
        box_exec(box,
                 (struct bough_command){
                     .argv = ARGV("/bin/sh", "-c", "setsid sleep 4712 & sleep 4712; exit 0"),
                     .timeout_ms = 300},
                 NULL);
    check(proc_await(box, p) == 137 && p->end.timed_out && p->end.elapsed_ns >= 300000000,
          "timeout: kills and tells");
    check(box_run(box, "while ps | grep -q '[s]leep 4712'; do :; done") == 0 && !other->ended,
          "timeout: its tree, and no other");
    p = box_exec(box, (struct bough_command){.argv = ARGV("true"), .timeout_ms = 60000}, NULL);
    check(proc_await(box, p) == 0 && !p->end.timed_out, "timeout: who is in time is not hurt");
    box_free(box);

    box = box_boot((struct bough_plan){.timeout_ms = 300});
    p = box_shell(box, "sleep 1000");
    box_await_end(box);
    check(box->run.type == BOUGH_MSG_EXITED && box->run.ending.timed_out &&
              box->run.ending.status == SIGKILL && proc_code(p) == 137 && !p->end.timed_out,
          "timeout: of the sandbox");
    box_free(box);
}

/* ---- the sandbox's end ---- */

static void test_end(void)
{
    struct box *box = box_boot((struct bough_plan){0});
    box_run(box, "echo one >/one");
    struct proc *p = box_shell(box, "sleep 1000");
    AWAIT(box, p->started);
    box_finish(box, true);
    check(proc_code(p) == 137 && box->run.ending.changed && box->run.ending.files == 1 &&
              box->run.ending.status == 0 &&
              !strcmp(layer_text(box->run.ending.layer, "one"), "one"),
          "end: a layer is kept");
    box_free(box);

    box = box_boot((struct bough_plan){.keep = true});
    box_run(box, "echo one >/one");
    box_finish(box, false);
    check(!box->run.ending.changed, "end: or not");
    box_free(box);

    box = box_boot((struct bough_plan){0});
    box_finish(box, true);
    check(!box->run.ending.changed, "end: nothing was changed");
    box_free(box);

    box = box_boot((struct bough_plan){.keep = true});
    box_run(box, "echo two >/two");
    p = box_shell(box, "sleep 1000");
    AWAIT(box, p->started);
    bough_client_tell(keeper, BOUGH_MSG_KILL, box->run.id, NULL, NULL, 0, &err);
    box_await_end(box);
    check(proc_code(p) == 137 && box->run.ending.killed && box->run.ending.status == SIGKILL &&
              box->run.ending.changed && !strcmp(layer_text(box->run.ending.layer, "two"), "two"),
          "end: killed, and kept as the plan says");
    box_free(box);

    box = box_boot((struct bough_plan){.keep = true});
    box_run(box, "echo two >/two");
    bough_fd_close(&box->sock);
    AWAIT(box, box->run.over);
    check(box->run.type == BOUGH_MSG_EXITED && !box->run.ending.changed,
          "end: when the host hangs up");
    box_free(box);
}

/* ---- terminals ---- */

static void test_terminal(void)
{
    struct box *box = box_boot((struct bough_plan){0});
    struct proc *p = box_exec(box,
                              (struct bough_command){.argv = ARGV("/bin/sh"),
                                                     .env = ARGV("PATH=/bin", "PS1=$ "),
                                                     .pty = true,
                                                     .rows = 33,
                                                     .cols = 111},
                              NULL);
    check(expect(box, p, "$ ") && p->master >= 0, "terminal: a prompt");
    MUST(write(p->master, "stty size; tty; stat -c %a:%u $(tty); echo e'n'd\n", 49));
    check(expect(box, p, "end\r\n$ ") && strstr(said, "33 111\r\n/dev/pts/0\r\n620:0\r\n"),
          "terminal: its size and name");
    MUST(write(p->master, "(exec </dev/tty && [ -t 0 ] && echo y'e's); stty -a; echo e'n'd\n", 64));
    check(expect(box, p, "end\r\n$ ") && strstr(said, "\r\nyes\r\n") && strstr(said, " iutf8"),
          "terminal: it is the controlling one");
    struct winsize size = {.ws_row = 20, .ws_col = 40};
    MUST(ioctl(p->master, TIOCSWINSZ, &size));
    MUST(write(p->master, "stty size; echo e'n'd\n", 22));
    check(expect(box, p, "end\r\n$ ") && strstr(said, "20 40\r\n"), "terminal: another size");
    MUST(write(p->master, "sh -c 'echo on; sleep 1000'\n", 28));
    check(expect(box, p, "\r\non\r\n"), "terminal: a program in the foreground");
    MUST(write(p->master, "\003", 1));
    check(expect(box, p, "$ "), "terminal: ^C");
    MUST(write(p->master, "exit 6\n", 7));
    check(proc_await(box, p) == 6, "terminal: exit");
    p = box_exec(box,
                 (struct bough_command){.argv = ARGV("/bin/sh", "-c",
                                                     "stat -c %u:%g $(tty); echo x >$(tty); "
                                                     "stty size"),
                                        .user = geteuid() == 0 ? "daemon" : "",
                                        .pty = true,
                                        .rows = 24,
                                        .cols = 80},
                 NULL);
    check(expect(box, p, "24 80\r\n") &&
              strncmp(said, geteuid() == 0 ? "1:5\r\nx\r\n" : "0:", geteuid() == 0 ? 8 : 2) == 0,
          "terminal: it is the user's");
    check(proc_await(box, p) == 0, "terminal: of another user");
    p = box_exec(box, (struct bough_command){.argv = ARGV("sleep", "1000"), .pty = true}, NULL);
    AWAIT(box, p->started);
    bough_fd_close(&p->master);
    check(proc_await(box, p) == 129, "terminal: hung up with its master");
    box_free(box);
}

/* ---- limits ---- */

static void test_limits(void)
{
    struct box *box = box_boot((struct bough_plan){.limits = {.files = 55, .pids = 6}});
    check(box_run(box, "ulimit -n") == 0 && atoi(said) == 55, "limits: files of the sandbox");
    struct proc *all[5];
    for (int i = 0; i < 5; i++)
        all[i] = box_exec(box, (struct bough_command){.argv = ARGV("sleep", "1000")}, NULL);
    AWAIT(box, all[4]->started);
    check(box_run(box, "echo alone; (echo child); :") != 0 && strstr(said, "alone") &&
              !strstr(said, "child\n"),
          "limits: as many processes as asked for");
    struct proc *sixth = box_exec(box, (struct bough_command){.argv = ARGV("sleep", "1000")}, NULL);
    AWAIT(box, sixth->started);
    struct proc *p = box_shell(box, "exit 0");
    proc_await(box, p);
    check(p->failed && p->err.kind == BOUGH_ERR_resource && strstr(p->err.msg, "limits.pids"),
          "limits: one more cannot be started");
    box_signal(box, sixth, SIGKILL, BOUGH_SCOPE_GROUP);
    proc_await(box, sixth);
    check(proc_await(box, box_shell(box, "exit 2")) == 2, "limits: when one has ended it can");
    box_free(box);

    box = box_boot((struct bough_plan){.limits = {.memory = 48 << 20}});
    check(box_run(box, "x=$(dd if=/dev/zero bs=1M count=100 | tr '\\0' x); echo ${#x}") != 0 &&
              !strstr(said, "104857600") && proc_await(box, box_shell(box, "exit 3")) == 3,
          "limits: who takes too much memory goes, the sandbox stays");
    box_finish(box, false);
    check(box->run.type == BOUGH_MSG_EXITED && box->run.ending.status == 0, "limits: to its end");
    box_free(box);
}

/* ---- commits ---- */

static void test_commit(void)
{
    struct answer a, b;
    struct box *box = box_boot((struct bough_plan){0});
    commit(&a, box);
    check(a.type == BOUGH_MSG_DONE && !a.numbers[0] && !a.numbers[1] && !a.numbers[2],
          "commit: of nothing");
    check(!layer_there(next_layer - 1), "commit: of nothing leaves nothing");
    box_run(box, "mkdir /d; echo text >/d/f; ln /d/f /d/g; ln -s f /d/l; rm /etc/passwd; "
                 "mkfifo /d/p");
    int64_t layer = commit(&a, box);
    check(a.type == BOUGH_MSG_DONE && a.numbers[1] == 7 && a.numbers[2] == 1 &&
              !strcmp(layer_text(layer, "d/g"), "text"),
          "commit: what was changed (%lld files)", (long long)a.numbers[1]);
    check(proc_await(box, box_shell(box, "test -p /d/p; exit $?")) == 0, "commit: and it goes on");

    struct proc *writer = box_shell(box, "i=0; while :; do i=$((i+1)); echo $i >/a; echo $i >/b; "
                                         "done");
    struct proc *stopped = box_ready(box, "echo; exec sleep 4713");
    box_signal(box, stopped, SIGSTOP, BOUGH_SCOPE_GROUP);
    AWAIT(box, stopped->started);
    char line[200];
    snprintf(line, sizeof line, "until [ -s /b ] && grep -q ') T ' /proc/%d/stat; do :; done",
             (int)stopped->pid);
    box_run(box, line);
    bool good = true;
    for (int i = 0; i < 20; i++) {
        layer = commit(&a, box);
        long x = atol(layer_text(layer, "a")), y = atol(layer_text(layer, "b"));
        /* A file just truncated reads as 0. */
        good = good && a.type == BOUGH_MSG_DONE && (x == y || x == y + 1 || x == 0 || y == 0);
    }
    check(good && !writer->ended, "commit: a writer stands still meanwhile");
    check(box_run(box, "x=$(cat /a); while [ \"$(cat /a)\" = \"$x\" ]; do :; done") == 0,
          "commit: and goes on");
    check(box_run(box, line) == 0, "commit: who was stopped stays so");
    char told[64];
    snprintf(told, sizeof told, "grep -q ') T ' /proc/%d/stat", (int)stopped->pid);
    good = true;
    for (int i = 0; i < 50; i++) {
        box_signal(box, stopped, SIGCONT, BOUGH_SCOPE_GROUP);
        box_signal(box, stopped, SIGSTOP, BOUGH_SCOPE_GROUP);
        commit(&a, box);
        good = good && box_run(box, told) == 0;
    }
    check(good, "commit: so does who is just about to be");
    box_signal(box, stopped, SIGKILL, BOUGH_SCOPE_GROUP);
    check(proc_await(box, stopped) == 137, "commit: and can be killed");
    box_signal(box, writer, SIGKILL, BOUGH_SCOPE_GROUP);

    struct proc *p = box_exec(box,
                              (struct bough_command){.argv = ARGV("/bin/sh", "-i"),
                                                     .env = ARGV("PATH=/bin", "PS1=$ "),
                                                     .pty = true},
                              NULL);
    expect(box, p, "$ ");
    MUST(write(p->master, "(echo on; while :; do sleep 0.001; done)\n", 41));
    expect(box, p, "\r\non\r\n");
    for (int i = 0; i < 20; i++)
        commit(&a, box);
    MUST(write(p->master, "\003", 1));
    check(a.type == BOUGH_MSG_DONE && expect(box, p, "$ ") && !strstr(said, "topped"),
          "commit: a shell does not see its job stopped");
    MUST(write(p->master, "jobs; echo e'n'd\n", 17));
    check(expect(box, p, "end\r\n$ ") && !strstr(said, "topped"), "commit: nor later");

    struct answer many[5];
    for (int i = 0; i < 5; i++)
        commit_ask(&many[i], box->run.id);
    bough_client_tell(keeper, BOUGH_MSG_KILL, many[2].id, NULL, NULL, 0, &err);
    good = true;
    for (int i = 0; i < 5; i++) {
        AWAIT(box, many[i].over);
        good = good && (many[i].type == BOUGH_MSG_DONE ||
                        (i == 2 && many[i].err.kind == BOUGH_ERR_cancelled));
    }
    check(good, "commit: one after the other");
    commit_ask(&b, 99999);
    AWAIT(box, b.over);
    check(b.type == BOUGH_MSG_FAILED && b.err.kind == BOUGH_ERR_state, "commit: no such sandbox");
    box_finish(box, false);
    commit(&b, box);
    check(b.type == BOUGH_MSG_FAILED && b.err.kind == BOUGH_ERR_state, "commit: one that is over");
    box_free(box);
}

/* Whatever happens meanwhile, a commit is answered once and the sandbox goes on or ends. */
static void test_commit_cut(void)
{
    struct answer a;
    struct box *box = box_boot((struct bough_plan){0});
    box_run(box, "for i in $(seq 300); do echo $i >/f$i; done; mkdir /d; "
                 "dd if=/dev/zero of=/big bs=1M count=8 2>&1");
    int64_t layer = 0;
    bool good = true;
    for (int i = 0; i < 30; i++) {
        layer = commit_ask(&a, box->run.id);
        int64_t until_ns = bough_now_ns() + i * 300000;
        while (bough_now_ns() < until_ns)
            bough_client_pump(keeper);
        bough_client_tell(keeper, BOUGH_MSG_KILL, a.id, NULL, NULL, 0, &err);
        AWAIT(box, a.over);
        good = good && (a.type == BOUGH_MSG_DONE
                            ? !strcmp(layer_text(layer, "f300"), "300")
                            : a.err.kind == BOUGH_ERR_cancelled && !layer_there(layer));
        good = good && proc_await(box, box_shell(box, "exit 3")) == 3;
    }
    check(good, "cut: a commit is cancelled or done, and the sandbox goes on");
    box_free(box);

    static const char *const ways[] = {"the host hangs up", "it is killed", "it is finished"};
    for (int way = 0; way < 3; way++) {
        int done = 0;
        good = true;
        for (int i = 0; i < 12; i++) {
            box = box_boot((struct bough_plan){0});
            box_run(box, "for i in $(seq 300); do echo $i >/f$i; done");
            struct proc *p = box_shell(box, "while :; do :; done");
            AWAIT(box, p->started);
            layer = commit_ask(&a, box->run.id);
            int64_t until_ns = bough_now_ns() + i * 500000;
            while (bough_now_ns() < until_ns)
                bough_client_pump(keeper);
            if (way == 0)
                bough_fd_close(&box->sock);
            else if (way == 1)
                bough_client_tell(keeper, BOUGH_MSG_KILL, box->run.id, NULL, NULL, 0, &err);
            else
                box_say(box, BOUGH_MSG_FINISH, 0, i % 2, 0);
            AWAIT(box, a.over && box->run.over);
            good = good && box->run.type == BOUGH_MSG_EXITED;
            if (a.type == BOUGH_MSG_DONE) {
                done++;
                good = good && a.numbers[1] == 300 && !strcmp(layer_text(layer, "f300"), "300") &&
                       !strcmp(layer_text(layer, "f1"), "1");
            } else {
                good = good && a.err.kind == BOUGH_ERR_state && !layer_there(layer);
                err = a.err;
            }
            box_free(box);
        }
        check(good, "cut: %s (%d of 12 commits done)", ways[way], done);
    }
}

static void test_commit_disk(void)
{
    struct answer a;
    struct box *box = box_ask((struct bough_plan){.limits = {.disk = 4 << 20}});
    AWAIT(box, box->run.type);
    if (box->run.type == BOUGH_MSG_FAILED) {
        skip("commit: a disk limit", box->run.err.msg);
        box_free(box);
        return;
    }
    box_run(box, "echo text >/f; rm /etc/passwd");
    int64_t layer = commit(&a, box);
    check(a.type == BOUGH_MSG_DONE && a.numbers[2] && !strcmp(layer_text(layer, "f"), "text"),
          "commit: a disk limit");
    box_finish(box, true);
    check(box->run.ending.changed && !strcmp(layer_text(box->run.ending.layer, "f"), "text"),
          "end: a disk limit");
    box_free(box);
}

static void test_host_network(void)
{
    struct answer a;
    struct box *box = box_boot((struct bough_plan){.network = BOUGH_NETWORK_HOST});
    box_run(box, "echo text >/f");
    int64_t layer = commit(&a, box);
    check(a.type == BOUGH_MSG_DONE && !strcmp(layer_text(layer, "f"), "text"),
          "commit: host network");
    box_finish(box, true);
    check(box->run.ending.changed && !strcmp(layer_text(box->run.ending.layer, "f"), "text"),
          "end: host network");
    box_free(box);
}

/* ---- who, and where ---- */

static bool store_make(const char *name)
{
    char line[16000];
    snprintf(home, sizeof home, "%s/%s", scratch, name);
    snprintf(line, sizeof line,
             "set -e; mkdir -p %s/layers/%d/fs %s/tmp/%s; cd %s/layers/%d/fs; "
             "mkdir bin etc tmp; cp \"$(command -v busybox)\" bin/busybox; chmod 1777 tmp; "
             "for a in $(./bin/busybox --list); do [ $a = busybox ] || ln -s busybox bin/$a; done; "
             "printf 'root:x:0:0::/root:/bin/sh\\ndaemon:x:1:1::/:/bin/sh\\n' >etc/passwd; "
             "printf '#!/none\\n' >etc/noint; printf 'echo\\n' >etc/nomagic; "
             "chmod 755 etc/noint etc/nomagic",
             home, IMAGE, home, keeper_owner, home, IMAGE);
    return system(line) == 0;
}

static void test_all(const char *who)
{
    if (!store_make(who)) {
        skip(who, "no busybox to make an image of");
        return;
    }
    printf("# as %s\n", who);
    keeper_start();
    test_exec();
    test_queue();
    test_failures();
    test_many();
    test_signals();
    test_timeout();
    test_end();
    test_terminal();
    test_limits();
    test_commit();
    test_commit_cut();
    test_commit_disk();
    test_host_network();
    struct answer bye;
    ask(&bye, BOUGH_MSG_BYE, NULL, NULL, 0);
    while (!bye.over) {
        struct pollfd fd = {.fd = bough_client_fd(keeper), .events = POLLIN};
        poll(&fd, 1, -1);
        bough_client_pump(keeper);
    }
    check(bye.type == BOUGH_MSG_DONE, "the keeper ends in order");
    bough_client_free(keeper);
}

/* In a process of its own, with what the counts have become. */
static void test_as(const struct passwd *who)
{
    int *counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char program[8000];
    /* This user need not be able to read where it was built. */
    snprintf(program, sizeof program, "cp '%s' '%s/bough-keeper' && chmod 755 '%s/bough-keeper'",
             getenv("BOUGH_KEEPER"), scratch, scratch);
    if (counts == MAP_FAILED || system(program) != 0)
        bail("copying the keeper");
    snprintf(program, sizeof program, "%s/bough-keeper", scratch);
    fflush(stdout);
    pid_t child = MUST(fork());
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setenv("BOUGH_KEEPER", program, 1);
        MUST(initgroups(who->pw_name, who->pw_gid));
        MUST(setresgid(who->pw_gid, who->pw_gid, who->pw_gid));
        MUST(setresuid(who->pw_uid, who->pw_uid, who->pw_uid));
        prctl(PR_SET_DUMPABLE, 1); /* or the keeper's user namespace could not be mapped */
        test_all(who->pw_name);
        counts[0] = tests;
        counts[1] = failures;
        fflush(stdout);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (status != 0)
        exit(1); /* it has told why */
    tests = counts[0];
    failures = counts[1];
}

int main(void)
{
    const char *tmp = getenv("TMPDIR");
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    umask(022);
    snprintf(scratch, sizeof scratch, "%s/bough-crew-XXXXXX", tmp ? tmp : "/tmp");
    if (!getenv("BOUGH_KEEPER") || !mkdtemp(scratch))
        bail("no keeper, or no scratch directory");
    MUST(chmod(scratch, 01777));
    struct passwd *user = geteuid() == 0 ? getpwnam("bough-test") : NULL;
    test_all(geteuid() == 0 ? "root" : "user");
    if (user)
        test_as(user);
    else if (geteuid() == 0)
        skip("an ordinary user", "there is no user bough-test");
    bough_tree_remove(AT_FDCWD, scratch, NULL);
    printf("1..%d\n", tests);
    return failures != 0;
}
