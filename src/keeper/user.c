#define _GNU_SOURCE
#include "user.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../sys.h"
#include "mountapi.h"

#define DATABASE_MAX (1 << 20)

/* The image is not ours to trust: a fifo or a device under this name must not hold us up, nor a link into
 * /proc/self/fd show what init has open. */
static char *read_database(const char *path)
{
    BOUGH_CLEANUP_FD int fd =
        bough_openat2(AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, RESOLVE_NO_MAGICLINKS);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return NULL;
    size_t room = st.st_size < DATABASE_MAX ? (size_t)st.st_size : DATABASE_MAX;
    char *text = malloc(room + 1);
    if (!text)
        return NULL;
    ssize_t n = BOUGH_RETRY(read(fd, text, room));
    text[n > 0 ? n : 0] = '\0';
    return text;
}

/* Cuts the next line into at most `max` fields at colons; returns their count, 0 at the end. */
static int next_record(char **cursor, char **fields, int max)
{
    while (*cursor && **cursor) {
        char *line = *cursor;
        char *end = strchr(line, '\n');
        *cursor = end ? end + 1 : NULL;
        if (end)
            *end = '\0';
        int n = 0;
        for (char *at = line; at && n < max; n++) {
            fields[n] = at;
            at = n + 1 < max ? strchr(at, ':') : NULL;
            if (at)
                *at++ = '\0';
        }
        if (n >= 4)
            return n;
    }
    return 0;
}

static bool parse_id(const char *text, unsigned *id)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || value >= UINT_MAX)
        return false;
    *id = (unsigned)value;
    return true;
}

static bool find_passwd(const char *who, struct bough_user *user)
{
    char *text = read_database("/etc/passwd");
    char *cursor = text, *f[7];
    unsigned wanted, id;
    bool by_id = parse_id(who, &wanted), found = false;
    int fields;
    while (!found && (fields = next_record(&cursor, f, 7)) > 0) {
        if (fields != 7 || !parse_id(f[2], &id) || (by_id ? id != wanted : strcmp(f[0], who) != 0))
            continue;
        found = true;
        user->uid = id;
        user->gid = parse_id(f[3], &id) ? id : 0;
        snprintf(user->name, sizeof user->name, "%s", f[0]);
        snprintf(user->home, sizeof user->home, "%s", f[5][0] ? f[5] : "/");
    }
    free(text);
    return found;
}

static bool is_member(char *members, const char *name)
{
    char *save = NULL;
    for (char *m = strtok_r(members, ",", &save); m; m = strtok_r(NULL, ",", &save))
        if (strcmp(m, name) == 0)
            return true;
    return false;
}

/* Looks up a group by name (NULL: none is asked for), collects those that `user` is a member of. */
static bool scan_groups(struct bough_user *user, const char *group, bool collect)
{
    char *text = read_database("/etc/group");
    char *cursor = text, *f[4];
    unsigned id;
    bool found = false;
    while (next_record(&cursor, f, 4) == 4) {
        if (!parse_id(f[2], &id))
            continue;
        if (group && !found && strcmp(f[0], group) == 0) {
            user->gid = id;
            found = true;
        }
        if (collect && user->group_count < BOUGH_GROUPS_MAX && is_member(f[3], user->name))
            user->groups[user->group_count++] = id;
    }
    free(text);
    return found;
}

int bough_user_find(const char *text, struct bough_user *user, struct bough_err *err)
{
    *user = (struct bough_user){.home = "/"};
    char who[64];
    snprintf(who, sizeof who, "%s", *text ? text : "0");
    char *group = strchr(who, ':');
    if (group)
        *group++ = '\0';
    unsigned id;
    bool known = find_passwd(who, user);
    if (!known) {
        if (!parse_id(who, &id))
            return bough_err_set(err, BOUGH_ERR_not_found,
                                 "user \"%s\": not in the image's /etc/passwd", who);
        user->uid = id;
        snprintf(user->name, sizeof user->name, "%s", who);
        if (id == 0)
            snprintf(user->home, sizeof user->home, "/root");
    }
    if (group && parse_id(group, &id))
        user->gid = id;
    else if (group && !scan_groups(user, group, false))
        return bough_err_set(err, BOUGH_ERR_not_found,
                             "group \"%s\": not in the image's /etc/group", group);
    if (known && user->uid != 0)
        scan_groups(user, NULL, true);
    return 0;
}
