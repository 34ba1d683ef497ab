/* fault_xattr - "set PATH NAME VALUE" or "get PATH NAME": extended attributes where no attr(1) tools are. */
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

int main(int argc, char **argv)
{
    char value[4096];
    if (argc == 5 && strcmp(argv[1], "set") == 0)
        return lsetxattr(argv[2], argv[3], argv[4], strlen(argv[4]), 0) < 0 ? (perror(argv[2]), 1) : 0;
    if (argc != 4 || strcmp(argv[1], "get") != 0)
        return 2;
    ssize_t n = lgetxattr(argv[2], argv[3], value, sizeof value);
    if (n < 0)
        return perror(argv[2]), 1;
    return fwrite(value, 1, (size_t)n, stdout) == (size_t)n ? 0 : 1;
}
