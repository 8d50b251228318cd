/* SPDX-License-Identifier: Apache-2.0 */
/* What both directions of an isolated replica share. */
#ifndef COVEN_REPLICA_PRIVATE_H
#define COVEN_REPLICA_PRIVATE_H

#include <stdint.h>
#include <string.h>

#include "worker.h"

static inline uint32_t coven_replica_scope(const struct coven_replica_link *link)
{
    return COVEN_SCOPE_COMPONENT(link->component);
}

static inline void coven_replica_count(struct coven_worker *worker, const struct coven_replica_link *link,
                                       uint32_t counter, uint64_t n)
{
    coven_book_count(&worker->book, COVEN_CELL_COMPONENT(link->component, counter), n);
}

/* Short packets are most packets, and for them a call of memcpy() is most of the copy. */
static inline void coven_replica_copy(uint8_t *to, const uint8_t *from, uint32_t length)
{
    if (length < 32 || length > 64) {
        memcpy(to, from, length);
        return;
    }
    memcpy(to, from, 32);
    memcpy(to + length - 32, from + length - 32, 32);
}

#endif
