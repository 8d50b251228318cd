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
/* The two halves of it. Between them there must be a full fence (coven_ring_fence()) for the consumer never to be missed:
 * a producer that has more to do looks without one, which costs nothing, and fences before it waits itself. coven_ring_wake()
 * returns whether the consumer was seen asleep. */
static inline void coven_ring_show(struct coven_ring_side *side, uint32_t tail)
{
    side->position = tail;
    /* release: entries are written before the tail that shows them */
    __atomic_store_n(&side->ring->tail, tail, __ATOMIC_RELEASE);
}

static inline void coven_ring_fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

bool coven_ring_wake(const struct coven_ring *ring, int doorbell);
/* Put up to `n` entries in, each with its whole line, and publish them. `ext` may be NULL. Returns how many were
 * taken: the ring owns the packets of those, the caller still owns the rest. For tools and tests. */
uint16_t coven_ring_enqueue_burst(struct coven_ring_side *side, const struct coven_meta *meta,
                                  const struct coven_meta_ext *ext, uint16_t n);

/* ---- consumer ---- */
/* Entries that may be read now, from side->position on. */
uint32_t coven_ring_ready(struct coven_ring_side *side);
/* The same, but looks at the producer only when fewer than `wanted` were known before: that is a line from another core. */
static inline uint32_t coven_ring_known(struct coven_ring_side *side, uint32_t wanted)
{
    uint32_t known = side->peer - side->position;

    return known >= wanted ? known : coven_ring_ready(side);
}

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

/* Write an entry: flags and commit word, which make a staged one count, after the rest. In two stores, since what
 * is stored in small pieces and read soon as a whole makes the reader wait. */
static inline void coven_entry_write(struct coven_entry *to, const struct coven_entry *entry)
{
    uint64_t packet = entry->handle | (uint64_t)entry->offset << 32 | (uint64_t)entry->length << 48;
    uint64_t answer = (uint64_t)entry->verdict | (uint64_t)entry->output << 8 | (uint64_t)entry->kind << 16 |
                      (uint64_t)entry->flags << 24 | (uint64_t)entry->commit << 32;

    _Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the halves are put together for such a host");
    __atomic_store_n((uint64_t *)to, packet, __ATOMIC_RELEASE);
    __atomic_store_n((uint64_t *)to + 1, answer, __ATOMIC_RELEASE);
}

/* Copy an entry that somebody else may still write to; every field is loaded once. */
static inline void coven_entry_read(struct coven_entry *to, const struct coven_entry *entry)
{
    uint64_t packet = __atomic_load_n((const uint64_t *)entry, __ATOMIC_RELAXED);
    uint64_t answer = __atomic_load_n((const uint64_t *)entry + 1, __ATOMIC_RELAXED);

    to->handle = (uint32_t)packet;
    to->offset = (uint16_t)(packet >> 32);
    to->length = (uint16_t)(packet >> 48);
    to->verdict = (uint8_t)answer;
    to->output = (uint8_t)(answer >> 8);
    to->kind = (uint8_t)(answer >> 16);
    to->flags = (uint8_t)(answer >> 24);
    to->commit = (uint32_t)(answer >> 32);
}

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

/* Ask for a line to be written. The compiler's own asks for reading only, unless it is told of a newer processor. */
static inline void coven_expect_write(const void *line)
{
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" : : "m"(*(const uint8_t *)line));
#else
    __builtin_prefetch(line, 1);
#endif
}

/* Ask for the entries of a burst before they are needed: to be written, or read. Lines come from another core at the same
 * time then, instead of one after the other. */
static inline void coven_ring_expect_writes(const struct coven_entry *entries, uint32_t size, uint32_t position)
{
    for (uint32_t i = 0; i < COVEN_BURST; i += COVEN_CACHE_LINE / sizeof(struct coven_entry))
        coven_expect_write(&entries[(position + i) & (size - 1u)]);
}

static inline void coven_ring_expect_reads(const struct coven_entry *entries, uint32_t size, uint32_t position,
                                           uint32_t n)
{
    for (uint32_t i = 0; i < n; i += COVEN_CACHE_LINE / sizeof(struct coven_entry))
        __builtin_prefetch(&entries[(position + i) & (size - 1u)]);
}

/* Place of a position in the arrays. */
static inline uint32_t coven_ring_slot(const struct coven_ring_side *side, uint32_t position)
{
    return position & (side->size - 1u);
}

#endif
