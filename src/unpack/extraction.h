/* extraction.h - what the parts of the extractor share while one archive is unpacked. */
#ifndef BOUGH_UNPACK_EXTRACTION_H
#define BOUGH_UNPACK_EXTRACTION_H

#include <archive.h>
#include <archive_entry.h>

#include "extract.h"
#include "made.h"
#include "place.h"

struct bough_extraction {
    struct bough_extract *how;
    struct bough_source *source;
    struct bough_err *err;
    struct archive *reader;
    struct archive_entry *entry; /* owned by `reader` */
    struct bough_place place;
    struct bough_made made;         /* of a layer */
    struct bough_path path, target; /* the entry's, and what it is a hard link to */
    char real[PATH_MAX];            /* `path` without links on its way */
    struct bough_err source_err;    /* why the source stopped; outranks what libarchive says */
    bool source_failed;
    bool primed;
    char primer[512];
    uid_t uid;
    gid_t gid;
    int64_t whiteouts;
};

/* Why libarchive could not go on. */
int bough_reader_fail(struct bough_extraction *x);

#endif
