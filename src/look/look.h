/* look.h - bough-look: reads trees for the host. List, search, compare, pack.
 *
 * A program of its own that the keeper's worker starts with the tree's root as a descriptor. It locks
 * itself up first (system calls to read files below the roots and to write to its two outputs are all that is
 * left) and then meets whatever the image holds: it opens only what is a regular file or a directory, never follows a link out
 * of the root, and never blocks on a fifo or device.
 *
 *   bough-look <list|grep|diff|pack> --root-fd N --out-fd N --report-fd N [options]
 *
 * Records go to the output as they are found (record.h), so memory is flat. At the end one line goes to the
 * report: "ok <a> <b> <c> <text>" or "err <kind> <errno> <message>", as bough-unpack's. When nobody
 * reads the output any more (EPIPE) it ends quietly with "ok" and the numbers so far. */
#ifndef BOUGH_LOOK_H
#define BOUGH_LOOK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "../err.h"

#define BOUGH_LOOK_ROOTS 2
#define BOUGH_LOOK_HINTS 256

struct bough_look {
    int root[BOUGH_LOOK_ROOTS]; /* --root-fd, and for diff --other-fd; -1 */
    int pool; /* --pool-fd, for pack: home/blobs. Inodes below it are shared by the store, so no hard links are
               * made of them; -1: none are */
    int hints[BOUGH_LOOK_HINTS]; /* --hint-fd, repeatable: raw layer directories (diff) */
    int hint_count;              /* -1: none given */
    int out, report;
    char **args; /* what follows the descriptors' options, NULL-terminated: the command's own */
    int64_t numbers[3]; /* for the report */
    char text[300];     /* for the report; no newline */
};

/* The commands. Each parses look->args itself (unknown option: kind invalid naming it), fills numbers and
 * text, returns 0 or -1 with err. Called before the jail is sealed; each calls bough_look_seal() once it has
 * parsed its arguments, compiled its patterns and opened what it needs. */
int bough_look_list(struct bough_look *look, struct bough_err *err);
int bough_look_grep(struct bough_look *look, struct bough_err *err);
int bough_look_diff(struct bough_look *look, struct bough_err *err);
int bough_look_pack(struct bough_look *look, struct bough_err *err);

/* jail.c: from here on only reads below descriptors, writes to open ones, memory and exit. */
int bough_look_seal(struct bough_err *err);

/* --- options ---
 *
 * list  --path P           start directory or file, resolved inside the root (default "/")
 *       --glob G           repeatable; keep what matches any; "!G" drops (glob.h). On paths relative to --path
 *       --kind LETTERS     of f d l p s o (file dir symlink fifo socket other): keep these kinds
 *       --max-depth N      1: the directory's own entries; 0: the start itself
 *       --max-count N      stop after N records; the walk goes on to see whether there are more
 *   Pre-order, each directory's names sorted bytewise; links are not followed. A start that is a file gives that one record.
 *   Record: entry.h, with the path relative to --path in place of the name ("" for a start that is no directory).
 *   numbers: records, 1 when --max-count cut it short, 0.
 *
 * grep  -e PATTERN         repeatable, at least one; matches of any
 *       --fixed            patterns are fixed strings; else PCRE2 (bytes, not UTF; each line stands alone; JIT where it works)
 *       --ignore-case      ASCII and, for regexes, PCRE2's caseless
 *       --path P           repeatable (default "/"); each must exist; a directory is searched as a tree
 *       --glob G           as for list
 *       --before N --after N   context lines
 *       --max-count N      matching lines per file    --max-total N   over all files
 *       --max-line N       longer lines are cut to N bytes in the record (default 65536)
 *   Files with a NUL in the first 32 KiB are binary and skipped whole; regular files only.
 *   Record: record.h. numbers: matching lines, 1 when cut short by a limit, files searched.
 *
 * diff  root = ours, other = the one compared with. A record for each path that other has and root has not ('D'),
 *       root has and other has not ('A'), or both have differently ('C' with what differs). What lies below an added or
 *       deleted directory is listed too. Order: as list. mtimes alone are no difference.
 *       With --hint-fd's, directories that are in none of the hint layers are not entered.
 *   numbers: added, changed, deleted.
 *
 * pack  Writes a tar (pax, ustar where it suffices) of the root to --out-fd, which is a file or a pipe.
 *       --path P           only what is at P, a file or a directory: an archive to be unpacked by people, not a layer. Names
 *                          are those below the root, "etc/hosts"; the root has no entry; names with .wh. are as good as others
 *       --layer            root is a raw overlay layer: char device 0:0 becomes ".wh.<name>", an opaque directory gets
 *                          ".wh..wh..opq", and overlay's own xattrs stay out
 *       --opaque NAME      the xattr that marks opaque directories
 *       --compress none|gzip|zstd   (default none)
 *       --sparse           holes as GNU.sparse entries; else they are written out, as readers of layers want it
 *       --plain            regular files and directories alone, all 0:0, 0644 and 0755, time 0: an archive of files
 *       Hard links, nanosecond mtimes, uid and gid, and the xattrs user.* and security.capability (SCHILY.xattr.) are kept;
 *       sockets are left out. The root itself is the entry "./", but with --plain.
 *   numbers: bytes written to out, entries, bytes of the tar before compression.
 *   text: "<sha256 of the uncompressed tar> <sha256 of what was written>".
 *
 * all   --progress: every 100 ms or so a line "at <done>" on the report: bytes or records so far. */

#endif
