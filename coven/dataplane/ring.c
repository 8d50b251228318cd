/* SPDX-License-Identifier: Apache-2.0 */
#include "ring.h"

#include <unistd.h>

void coven_ring_side_init(struct coven_ring_side *side, struct coven_ring *ring, struct coven_entry *entry,
                          struct coven_meta *meta, struct coven_meta_ext *ext, uint32_t size, uint32_t position,
                          int doorbell)
{
    *side = (struct coven_ring_side){
        .ring = ring,
        .entry = entry,
        .meta = meta,
        .ext = ext,
        .size = size,
        .position = position,
        .peer = position,
        .doorbell = doorbell,
    };
}

uint32_t coven_ring_room(struct coven_ring_side *side, uint32_t wanted)
{
    uint32_t used = side->position - side->peer;
    uint32_t head;

    if (side->size - used >= wanted && used <= side->size)
        return side->size - used;
    /* acquire: the consumer has read an entry before it moves its head beyond it */
    head = __atomic_load_n(&side->ring->head, __ATOMIC_ACQUIRE);
    used = side->position - head;
    if (used > side->size) {
        side->broken++;
        return 0;
    }
    side->peer = head;
    return side->size - used;
}

bool coven_ring_wake(const struct coven_ring *ring, int doorbell)
{
    const uint64_t one = 1;
    ssize_t rung;

    if (__atomic_load_n(&ring->sleeping, __ATOMIC_RELAXED) == 0 || doorbell < 0)
        return false;
    rung = write(doorbell, &one, sizeof(one));
    (void)rung; /* EAGAIN means that the doorbell was rung often and never heard: it is set anyway */
    return true;
}

void coven_ring_publish(struct coven_ring_side *side, uint32_t tail)
{
    coven_ring_show(side, tail);
    /* The consumer stores `sleeping` and then reads `tail`; we store `tail` and then read `sleeping`. Only a
     * full fence on both sides makes sure that one of the two sees the other. */
    coven_ring_fence();
    coven_ring_wake(side->ring, side->doorbell);
}

uint16_t coven_ring_enqueue_burst(struct coven_ring_side *side, const struct coven_meta *meta,
                                  const struct coven_meta_ext *ext, uint16_t n)
{
    uint32_t room = coven_ring_room(side, n);

    if (n > room)
        n = (uint16_t)room;
    if (n == 0)
        return 0;
    for (uint16_t i = 0; i < n; i++) {
        uint32_t position = side->position + i, slot = coven_ring_slot(side, position);

        side->entry[slot] =
            coven_entry_of(&meta[i], meta[i].handle, COVEN_ENTRY_CHANGED | coven_entry_lap(position, side->size));
        side->meta[slot] = meta[i];
        if (ext)
            side->ext[slot] = ext[i];
    }
    coven_ring_publish(side, side->position + n);
    return n;
}

uint32_t coven_ring_ready(struct coven_ring_side *side)
{
    /* acquire: see the entries that the tail shows */
    uint32_t tail = __atomic_load_n(&side->ring->tail, __ATOMIC_ACQUIRE);
    uint32_t ready = tail - side->position;

    if (ready > side->size) {
        side->broken++;
        return 0;
    }
    side->peer = tail;
    return ready;
}

void coven_ring_taken(struct coven_ring_side *side, uint32_t head)
{
    side->position = head;
    /* release: entries have been read before the producer may write over them */
    __atomic_store_n(&side->ring->head, head, __ATOMIC_RELEASE);
}

uint16_t coven_ring_dequeue_burst(struct coven_ring_side *side, struct coven_meta *meta, struct coven_meta_ext *ext,
                                  uint16_t max)
{
    uint32_t ready = coven_ring_ready(side);
    uint16_t n = ready < max ? (uint16_t)ready : max;

    for (uint16_t i = 0; i < n; i++) {
        uint32_t slot = coven_ring_slot(side, side->position + i);

        meta[i] = side->meta[slot];
        coven_entry_to_meta(&side->entry[slot], &meta[i]);
        if (ext)
            ext[i] = side->ext[slot];
    }
    if (n > 0)
        coven_ring_taken(side, side->position + n);
    return n;
}

bool coven_ring_sleep(struct coven_ring_side *side)
{
    __atomic_store_n(&side->ring->sleeping, 1, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the other half of the fence in coven_ring_publish() */
    if (__atomic_load_n(&side->ring->tail, __ATOMIC_ACQUIRE) == side->position)
        return true;
    coven_ring_awake(side);
    return false;
}

void coven_ring_awake(struct coven_ring_side *side)
{
    __atomic_store_n(&side->ring->sleeping, 0, __ATOMIC_RELAXED);
}

void coven_doorbell_clear(int doorbell)
{
    uint64_t rings[64]; /* of a pipe there may be many to read, of an eventfd their sum */
    ssize_t got = read(doorbell, rings, sizeof(rings)); /* EAGAIN: somebody else emptied it */

    (void)got;
}
