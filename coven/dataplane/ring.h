/* SPDX-License-Identifier: Apache-2.0 */
/* Burst rings: single producer, single consumer, in shared memory (abi.h: struct coven_ring and three arrays).
 *
 * A side of a ring keeps its own position and its geometry in private memory; the shared words are only told
 * to the other side. So a peer that writes nonsense into them can make a side find "nothing there" or "no
 * room" and raise `broken`, never an index outside the arrays. */
#ifndef COVEN_RING_H
#define COVEN_RING_H

#include <stdbool.h>
#include <stdint.h>

#include <coven/abi.h>

struct coven_ring_side {
    struct coven_ring *ring;
    struct coven_entry *entry;
    struct coven_meta *meta;
    struct coven_meta_ext *ext;
    uint32_t size;     /* entries, a power of two */
    uint32_t position; /* own: tail of the producer, head of the consumer */
    uint32_t peer;     /* the other side's position as last seen and found possible */
    int doorbell;      /* producer writes, consumer blocks on it; -1: none */
    uint32_t broken;   /* times the peer's word was impossible */
};

/* ---- lifecycle ---- */
/* Take one side of a ring at the position where its owner knows it to be. */
void coven_ring_side_init(struct coven_ring_side *side, struct coven_ring *ring, struct coven_entry *entry,
                          struct coven_meta *meta, struct coven_meta_ext *ext, uint32_t size, uint32_t position,
                          int doorbell);

/* ---- producer ---- */
/* Entries that may be written now; looks at the consumer only when it seems to be fewer than `wanted`. */
uint32_t coven_ring_room(struct coven_ring_side *side, uint32_t wanted);
/* Make everything before `tail` visible to the consumer; wake it if it sleeps. */
void coven_ring_publish(struct coven_ring_side *side, uint32_t tail);
/* Put up to `n` entries in, each with its whole line, and publish them. `ext` may be NULL. Returns how many were
 * taken: the ring owns the packets of those, the caller still owns the rest. For tools and tests. */
uint16_t coven_ring_enqueue_burst(struct coven_ring_side *side, const struct coven_meta *meta,
                                  const struct coven_meta_ext *ext, uint16_t n);

/* ---- consumer ---- */
/* Entries that may be read now, from side->position on. */
uint32_t coven_ring_ready(struct coven_ring_side *side);
/* Give the entries before `head` back to the producer. */
void coven_ring_taken(struct coven_ring_side *side, uint32_t head);
/* Copy up to `max` entries with their lines out (`ext` may be NULL) and take them. Never blocks. Returns how many;
 * the caller owns their packets. The rest of a line is what the producer left there. For tools and tests. */
uint16_t coven_ring_dequeue_burst(struct coven_ring_side *side, struct coven_meta *meta, struct coven_meta_ext *ext,
                                  uint16_t max);
/* Say that the consumer goes to sleep. Returns false (and takes it back) when there is something to read. */
bool coven_ring_sleep(struct coven_ring_side *side);
void coven_ring_awake(struct coven_ring_side *side);
/* Empty the doorbell after it woke its reader. */
void coven_doorbell_clear(int doorbell);

/* What an entry and a line both have. */
static inline struct coven_entry coven_entry_of(const struct coven_meta *meta, uint32_t handle, unsigned int flags)
{
    return (struct coven_entry){
        .handle = handle,
        .offset = meta->offset,
        .length = meta->length,
        .verdict = meta->verdict,
        .output = meta->output,
        .kind = meta->kind,
        .flags = (uint8_t)flags,
    };
}

static inline void coven_entry_to_meta(const struct coven_entry *entry, struct coven_meta *meta)
{
    meta->handle = entry->handle;
    meta->offset = entry->offset;
    meta->length = entry->length;
    meta->verdict = entry->verdict;
    meta->output = entry->output;
    meta->kind = entry->kind;
}

/* Place of a position in the arrays. */
static inline uint32_t coven_ring_slot(const struct coven_ring_side *side, uint32_t position)
{
    return position & (side->size - 1u);
}

#endif
