/* SPDX-License-Identifier: Apache-2.0 */
/* Mapping and checking of shared-memory segments. */
#ifndef COVEN_SEGMENT_H
#define COVEN_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <coven/abi.h>

struct coven_segment {
    void *base; /* NULL: not mapped */
    size_t bytes;
    uint64_t identity; /* inode of the memfd: tells one segment from the next, and nobody can forge it */
};

/* Map a segment. It must be (but for stats) a memfd sealed against shrinking, growing and further seals (else another holder could
 * make every access a SIGBUS), of at least `min_bytes`, and say the right magic, ABI version, kind and size.
 * Returns 0 or a negative errno with a sentence in `why`. The descriptor stays the caller's. */
int coven_segment_map(struct coven_segment *segment, int fd, uint32_t kind, size_t min_bytes, bool writable, char *why,
                      size_t why_bytes) __attribute__((warn_unused_result));
/* The same without a look at the header. For the worker, and what components can write: such a header proves nothing, and what
 * a component wrote into it must not keep a worker from starting. */
int coven_segment_map_unread(struct coven_segment *segment, int fd, uint32_t kind, size_t min_bytes, bool writable,
                             char *why, size_t why_bytes) __attribute__((warn_unused_result));
/* Ask for huge pages, if the segment is large enough for any. */
void coven_segment_prefer_huge(const struct coven_segment *segment);
void coven_segment_unmap(struct coven_segment *segment);

/* Whether `n` things of `each` bytes at `offset` lie within `bytes`. */
static inline bool coven_segment_holds(uint64_t bytes, uint64_t offset, uint64_t n, uint64_t each)
{
    uint64_t total;

    return !__builtin_mul_overflow(n, each, &total) && offset <= bytes && total <= bytes - offset;
}

#endif
