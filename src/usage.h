/* usage.h - what the kernel counts of a process beside time and memory. */
#ifndef BOUGH_USAGE_H
#define BOUGH_USAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>

struct bough_usage {
    bool known;
    int64_t minor_faults, major_faults; /* pages that were there, and that had to be read */
    int64_t blocks_in, blocks_out;      /* of 512 bytes, from and to a disk */
    int64_t waits, preemptions;         /* how often it left the processor, by itself or not */
};

static inline struct bough_usage bough_usage_of(const struct rusage *r)
{
    return (struct bough_usage){
        .known = true,
        .minor_faults = r->ru_minflt,
        .major_faults = r->ru_majflt,
        .blocks_in = r->ru_inblock,
        .blocks_out = r->ru_oublock,
        .waits = r->ru_nvcsw,
        .preemptions = r->ru_nivcsw,
    };
}

#endif
