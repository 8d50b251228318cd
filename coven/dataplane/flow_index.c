/* SPDX-License-Identifier: Apache-2.0 */
/* The index: from the hash of a key to its flow. Buckets of one cache line each, half full at most when the table is,
 * so nearly every search ends in the first one: with places for twice the flows, 2 of 100 buckets of a full table are
 * full. A kill between any two stores leaves nonsense behind, which nobody reads: the successor builds it anew. */
#include "fault.h"
#include "flow_private.h"

uint32_t coven_flow_buckets_for(uint32_t capacity)
{
    uint32_t n = 8;

    while ((uint64_t)n * BUCKET_PLACES < 2ull * capacity)
        n <<= 1;
    return n;
}

void coven_flow_index_insert(struct coven_flow_table *table, uint32_t flow, uint64_t hash)
{
    struct flow_bucket *buckets = coven_flow_buckets(table);
    uint32_t at = (uint32_t)hash & (table->n_buckets - 1);
    uint32_t empty;

    /* ends: there are places for more flows than there are entries */
    while ((empty = coven_flow_match(&buckets[at], 0)) == 0) {
        buckets[at].passed++;
        at = (at + 1) & (table->n_buckets - 1);
    }
    buckets[at].flow[__builtin_ctz(empty)] = flow;
    COVEN_FAULT("worker-flow-index");
    buckets[at].tag[__builtin_ctz(empty)] = coven_flow_tag(hash);
}

/* The place of a flow in a bucket, or BUCKET_PLACES. */
static uint32_t place_of(const struct flow_bucket *bucket, uint32_t flow, uint16_t tag)
{
    for (uint32_t found = coven_flow_match(bucket, tag); found != 0; found &= found - 1) {
        uint32_t place = (uint32_t)__builtin_ctz(found);

        if (bucket->flow[place] == flow)
            return place;
    }
    return BUCKET_PLACES;
}

void coven_flow_index_remove(struct coven_flow_table *table, uint32_t flow, uint64_t hash)
{
    struct flow_bucket *buckets = coven_flow_buckets(table);
    uint32_t home = (uint32_t)hash & (table->n_buckets - 1);
    uint32_t at = home, place;

    while ((place = place_of(&buckets[at], flow, coven_flow_tag(hash))) == BUCKET_PLACES) {
        if (buckets[at].passed == 0)
            return;
        at = (at + 1) & (table->n_buckets - 1);
        if (at == home)
            return;
    }
    buckets[at].tag[place] = 0;
    COVEN_FAULT("worker-flow-index");
    for (; home != at; home = (home + 1) & (table->n_buckets - 1))
        buckets[home].passed--;
}
