/* user.h - who a command runs as, looked up in the image's own passwd(5) and group(5). */
#ifndef BOUGH_USER_H
#define BOUGH_USER_H

#include <sys/types.h>

#include "../err.h"

#define BOUGH_GROUPS_MAX 64

struct bough_user {
    uid_t uid;
    gid_t gid;
    gid_t groups[BOUGH_GROUPS_MAX]; /* supplementary, from group(5), for a user with an entry */
    int group_count;
    char home[256]; /* "/" without an entry */
    char name[64];  /* the number in decimal without an entry */
};

/* `text`: "" (root), "uid", "uid:gid", "name" or "name:group". Reads below the current root. */
int bough_user_find(const char *text, struct bough_user *user, struct bough_err *err);

#endif
