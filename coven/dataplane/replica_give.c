/* SPDX-License-Identifier: Apache-2.0 */
/* What the worker gives to an isolated replica: packets and ends of flows, shown when they are booked. Nothing here
 * is read back from memory that the component can write, but for the ring words (ring.h). */
#include <string.h>

#include "fault.h"
#include "replica_private.h"

/* Packets of one flow always meet the same one, which is the one writer of its state. */
struct coven_replica_link *coven_replica_choose(struct coven_worker *worker, uint32_t component, uint32_t flow)
{
    const struct coven_plan_component *plan = &worker->plan->components[component];
    uint32_t n = flow != COVEN_NO_FLOW && plan->n_replicas > 1 ? flow % plan->n_replicas : 0;

    return &worker->replica[plan->first_replica + n];
}

/* Copy a packet into a buffer of the replica's own. Returns its number. */
static uint32_t put_copy(struct coven_worker *worker, struct coven_replica_link *link, uint32_t handle,
                         const struct coven_meta *meta)
{
    uint32_t copy = link->free_copies[--link->n_free_copies];

    link->packet_of[copy] = handle;
    coven_replica_copy(link->buffers + (size_t)copy * worker->plan->buffer_bytes + meta->offset,
                       coven_worker_buffer(worker, handle) + meta->offset, meta->length);
    return copy;
}

/* Write entries from in.position on, with their lines beside them; shown with coven_replica_publish(). */
static void put_entries(struct coven_worker *worker, struct coven_replica_link *link, uint16_t hop,
                        const uint32_t *handles, uint32_t n)
{
    struct coven_entry *entries = link->in.entry;
    struct coven_meta *lines = link->in.meta;
    struct coven_given *queue = link->given;
    const struct coven_meta *metas = worker->book.meta;
    uint32_t mask = link->in.size - 1u, given_mask = link->given_mask, position = link->in.position;
    bool copies = link->buffers != NULL;

    for (uint32_t i = 0; i < n; i++, position++) {
        uint32_t handle = handles[i], slot = position & mask, copy = 0;
        const struct coven_meta *meta = &metas[handle];
        struct coven_entry entry = {
            .offset = meta->offset, .length = meta->length, .verdict = worker->alone, .kind = COVEN_ENTRY_PACKET};

        if (copies)
            copy = put_copy(worker, link, handle, meta);
        entry.handle = copies ? copy : handle;
        queue[position & given_mask] = (struct coven_given){handle, (uint16_t)copy, hop};
        coven_entry_write(&entries[slot], &entry);
        lines[slot] = *meta;
        lines[slot].hop = hop;
        if (meta->nsh_path != 0) {
            link->in.ext[slot] = worker->book.ext[handle];
            link->in.ext[slot].cut = 0;
        }
    }
}

/* Choose the packets that there is room for, in their order; for those with priority there may be more. */
static uint32_t choose(const struct coven_worker *worker, const struct coven_replica_link *link, uint32_t room,
                       uint32_t *handles, uint16_t n)
{
    uint32_t refused[COVEN_BURST], chosen = 0, n_refused = 0;

    for (uint16_t i = 0; i < n; i++) {
        uint32_t keep = worker->urgent[handles[i]] ? 0 : link->reserve;

        if (room - chosen > keep)
            handles[chosen++] = handles[i];
        else
            refused[n_refused++] = handles[i];
    }
    memcpy(handles + chosen, refused, sizeof(handles[0]) * n_refused);
    return chosen;
}

/* Everything beyond in.position is scratch until the position is in the ledger. */
static void give(struct coven_worker *worker, struct coven_replica_link *link, uint16_t hop, const uint32_t *handles,
                 uint16_t n)
{
    uint32_t room = coven_replica_room(link, n + link->reserve), sorted[COVEN_BURST];

    if (room < n + link->reserve && worker->urgent) {
        memcpy(sorted, handles, sizeof(sorted[0]) * n);
        handles = sorted;
        room = choose(worker, link, room, sorted, n);
    } else if (room > n) {
        room = n;
    }
    coven_book_room(&worker->book, n, 2, 1);
    put_entries(worker, link, hop, handles, room);
    if (room < n)
        coven_book_count(&worker->book, COVEN_CELL_DROP(coven_replica_scope(link), COVEN_DROP_RING_FULL), n - room);
    for (uint32_t i = room; i < n; i++)
        coven_book_own(&worker->book, handles[i], 0);
    if (room == 0)
        return;
    coven_replica_count(worker, link, COVEN_COMPONENT_IN_PKTS, room);
    link->in.position += room;
    link->unpublished = true;
    coven_book_word(&worker->book, &worker->book.ledger->replica[link->number].in_tail, link->in.position);
    coven_ring_expect_writes(link->in.entry, link->in.size, link->in.position); /* of the next burst */
}

static void give_or_down(struct coven_worker *worker, struct coven_replica_link *link, uint16_t hop,
                         const uint32_t *handles, uint16_t n)
{
    if (coven_replica_is_up(link))
        give(worker, link, hop, handles, n);
    else
        coven_graph_component_down(worker, hop, handles, n);
}

void coven_replica_give(struct coven_worker *worker, uint16_t hop, const uint32_t *handles, uint16_t n)
{
    uint32_t component = worker->plan->hops[hop].component;
    const struct coven_plan_component *plan = &worker->plan->components[component];
    uint16_t first = 0;

    if (plan->n_replicas == 1) {
        give_or_down(worker, &worker->replica[plan->first_replica], hop, handles, n);
        return;
    }
    while (first < n) { /* what follows each other to one replica goes together */
        struct coven_replica_link *link =
            coven_replica_choose(worker, component, worker->book.meta[handles[first]].flow);
        uint16_t end = first + 1;

        while (end < n && coven_replica_choose(worker, component, worker->book.meta[handles[end]].flow) == link)
            end++;
        give_or_down(worker, link, hop, handles + first, (uint16_t)(end - first));
        first = end;
    }
}

bool coven_replica_tell(struct coven_worker *worker, struct coven_replica_link *link, uint32_t flow, uint16_t epoch)
{
    struct coven_ledger_replica *known = &worker->book.ledger->replica[link->number];
    uint32_t position = link->in.position, slot = coven_ring_slot(&link->in, position);

    if (coven_ring_room(&link->in, 1) == 0 || position - link->given_head > link->given_mask)
        return false;
    link->in.entry[slot] = (struct coven_entry){.handle = COVEN_NO_HANDLE, .kind = COVEN_ENTRY_FLOW_REMOVED};
    link->in.meta[slot] = (struct coven_meta){
        .handle = COVEN_NO_HANDLE,
        .port = COVEN_NO_PORT,
        .hop = COVEN_NO_HOP,
        .flow = flow,
        .flow_epoch = epoch,
        .kind = COVEN_ENTRY_FLOW_REMOVED,
        .timestamp_ns = worker->wall_ns,
    };
    link->given[position & link->given_mask] = (struct coven_given){.handle = COVEN_NO_HANDLE};
    coven_book_room(&worker->book, 0, 0, 2);
    link->in.position++;
    link->unpublished = true;
    coven_book_word(&worker->book, &known->in_tail, link->in.position);
    if (link->given_head == position) { /* the queue begins with a packet or is empty */
        link->given_head++;
        coven_book_word(&worker->book, &known->given_head, link->given_head);
    }
    return true;
}

static void wake(struct coven_replica_link *link)
{
    if (coven_ring_wake(link->in.ring, link->in.doorbell))
        link->unheard = false;
}

void coven_replica_publish(struct coven_worker *worker)
{
    for (uint32_t r = 0; r < worker->plan->n_replicas; r++) {
        struct coven_replica_link *link = &worker->replica[r];

        if (link->unpublished) {
            COVEN_FAULT("worker-ring-publish");
            link->unpublished = false;
            if (link->attached)
                coven_ring_show(&link->in, link->in.position);
            link->unheard = link->attached;
        }
        if (link->unheard)
            wake(link);
    }
}

void coven_replica_wake(struct coven_worker *worker)
{
    bool fenced = false;

    for (uint32_t r = 0; r < worker->plan->n_replicas; r++) {
        struct coven_replica_link *link = &worker->replica[r];

        if (!link->unheard)
            continue;
        if (!fenced)
            coven_ring_fence();
        fenced = true;
        wake(link);
        link->unheard = false;
    }
}
