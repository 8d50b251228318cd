/* SPDX-License-Identifier: Apache-2.0 */
/* Replicas come and go: attaching their segments, and sweeping up what a dead one had. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker.h"

static uint64_t round_to(uint64_t value, uint64_t to)
{
    return (value + to - 1) / to * to;
}

/* The same geometry as layout.py writes into the header; the header itself is the component's to write. */
struct geometry {
    uint64_t in_entry, in_meta, in_ext, out_entry, out_meta, out_ext, data, bytes;
};

static void geometry_of(const struct coven_plan *plan, const struct coven_plan_component *component, struct geometry *g)
{
    uint64_t entries = (uint64_t)component->ring_size * sizeof(struct coven_entry);
    uint64_t lines = (uint64_t)component->ring_size * sizeof(struct coven_meta);

    g->in_entry = sizeof(struct coven_replica);
    g->in_meta = g->in_entry + entries;
    g->in_ext = g->in_meta + lines;
    g->out_entry = g->in_ext + lines;
    g->out_meta = g->out_entry + entries;
    g->out_ext = g->out_meta + lines;
    g->data = round_to(g->out_ext + lines, 4096);
    g->bytes = g->data;
    if (component->isolation == COVEN_COPY)
        g->bytes += (uint64_t)component->n_buffers * plan->buffer_bytes;
}

/* ---- attach ------------------------------------------------------------------------------------ */
static void close_link(struct coven_replica_link *link)
{
    if (link->in.doorbell >= 0)
        close(link->in.doorbell);
    if (link->out.doorbell >= 0)
        close(link->out.doorbell);
    link->in.doorbell = -1;
    link->out.doorbell = -1;
    coven_segment_unmap(&link->segment);
    link->attached = false;
    link->unpublished = false;
    link->unheard = false;
    link->hung = false;
    link->watch = (struct coven_watch){0};
    link->seen_broken = 0;
}

static void open_rings(struct coven_worker *worker, struct coven_replica_link *link, int to_component, int to_worker)
{
    const struct coven_ledger_replica *known = &worker->book.ledger->replica[link->number];
    struct coven_replica *replica = link->segment.base;
    uint8_t *base = link->segment.base;
    uint32_t size = link->plan->ring_size;
    struct geometry g;

    geometry_of(worker->plan, link->plan, &g);
    coven_ring_side_init(&link->in, &replica->in, (struct coven_entry *)(base + g.in_entry),
                         (struct coven_meta *)(base + g.in_meta), (struct coven_meta_ext *)(base + g.in_ext), size,
                         (uint32_t)known->in_tail, to_component);
    link->given_head = (uint32_t)known->given_head;
    link->in.peer = link->in.position - size; /* full until the component's head is read */
    coven_ring_side_init(&link->out, &replica->out, (struct coven_entry *)(base + g.out_entry),
                         (struct coven_meta *)(base + g.out_meta), (struct coven_meta_ext *)(base + g.out_ext), size,
                         (uint32_t)known->out_head, to_worker);
    link->buffers = link->plan->isolation == COVEN_COPY ? base + g.data : NULL;
    /* a predecessor may have died between the ledger's positions and the ring's */
    coven_ring_taken(&link->out, link->out.position);
    coven_ring_publish(&link->in, link->in.position);
    coven_ring_awake(&link->out);
}

/* A segment's rings begin at position 0; `segment` 0: there is none. */
static void begin_positions(struct coven_worker *worker, uint32_t number, uint64_t segment)
{
    struct coven_ledger_replica *known = &worker->book.ledger->replica[number];

    coven_book_room(&worker->book, 0, 0, 4);
    coven_book_word(&worker->book, &known->segment, segment);
    coven_book_word(&worker->book, &known->in_tail, 0);
    coven_book_word(&worker->book, &known->out_head, 0);
    coven_book_word(&worker->book, &known->given_head, 0);
}

int coven_replica_attach(struct coven_worker *worker, uint32_t number, const int fds[3], char *why, size_t why_bytes)
{
    struct coven_replica_link *link;
    struct coven_ledger_replica *known;
    struct coven_segment segment;
    struct geometry g;
    uint64_t dropped, staged;
    int error;

    if (number >= worker->plan->n_replicas) {
        snprintf(why, why_bytes, "replica %u: the plan has %u", number, worker->plan->n_replicas);
        return -EINVAL;
    }
    link = &worker->replica[number];
    known = &worker->book.ledger->replica[number];
    geometry_of(worker->plan, link->plan, &g);
    error = coven_segment_map_unread(&segment, fds[0], COVEN_SEGMENT_REPLICA, g.bytes, true, why, why_bytes);
    if (error)
        return error;
    if (link->attached || (known->segment != 0 && known->segment != segment.identity)) {
        coven_replica_sweep(worker, number, COVEN_DROP_COMPONENT_CRASH, &dropped, &staged);
        coven_book_room(&worker->book, 0, 1, 0);
        coven_book_count(&worker->book, COVEN_CELL_COMPONENT(link->component, COVEN_COMPONENT_RESTARTS), 1);
    }
    if (known->segment != segment.identity)
        begin_positions(worker, number, segment.identity);
    coven_book_commit(&worker->book);
    link->segment = segment;
    open_rings(worker, link, fds[1], fds[2]);
    link->attached = true;
    return 0;
}

/* ---- sweep ------------------------------------------------------------------------------------- */
/* Outputs that were staged, and whose flow state is committed: the component had done its work, only the ring did
 * not show it yet. Returns how many were forwarded. */
static uint64_t take_staged(struct coven_worker *worker, struct coven_replica_link *link)
{
    const struct coven_state_view *state = &worker->component[link->component].state;
    uint64_t taken = 0;

    if (link->plan->state_bytes == 0)
        return 0;
    for (uint32_t i = 0; i < link->out.size; i++) {
        uint32_t position = link->out.position + i;
        uint32_t slot = coven_ring_slot(&link->out, position);
        struct coven_returned returned = {link->out.entry[slot], link->out.meta[slot], link->out.ext[slot]};
        struct coven_forwards forwards = {.n = 0};
        uint32_t named = returned.entry.handle;

        __asm__ volatile("" ::: "memory"); /* judge the copies, never the shared entry again */
        if ((returned.entry.flags & COVEN_ENTRY_LAP) != coven_entry_lap(position, link->out.size))
            break;
        if (returned.entry.commit == 0 || returned.entry.kind != COVEN_ENTRY_PACKET)
            continue;
        if (link->buffers)
            named = named < link->plan->n_buffers ? link->packet_of[named] : COVEN_NO_HANDLE;
        if (named >= worker->book.n_buffers ||
            worker->track[named].holder != COVEN_HOLDER(COVEN_OWNER_REPLICA, link->number))
            continue;
        if (!coven_state_committed(state, worker->book.meta[named].flow, worker->book.meta[named].flow_epoch,
                                   returned.entry.commit))
            continue;
        coven_book_room(&worker->book, 1, 8, 0);
        (void)coven_replica_judge(worker, link, &returned, &forwards); /* known: the queue is empty */
        coven_book_commit(&worker->book);
        coven_replica_pass_on(worker, link, &forwards);
        taken += forwards.n;
    }
    return taken;
}

/* What its out-ring showed at its end. No more than a ring has: a child that it left behind may still write there. */
static void take_published(struct coven_worker *worker, struct coven_replica_link *link)
{
    uint32_t taken = 0, n;

    do {
        n = coven_replica_take(worker, link);
        taken += n;
    } while (n > 0 && taken < link->out.size);
}

/* No component will touch these buffers any more: those in quarantine are free, late copies are none. */
static void end_quarantine(struct coven_worker *worker, struct coven_replica_link *link)
{
    for (uint32_t handle = 0; handle < worker->book.n_buffers; handle++) {
        if (worker->track[handle].holder != COVEN_HOLDER(COVEN_OWNER_QUARANTINE, link->number))
            continue;
        worker->track[handle].holder = 0;
        coven_book_room(&worker->book, 1, 0, 0);
        coven_book_own(&worker->book, handle, 0);
    }
    link->n_quarantine = 0;
    if (!link->packet_of)
        return;
    coven_book_commit(&worker->book); /* it may name these bytes */
    memset(link->late, 0, link->plan->n_buffers);
    link->n_free_copies = 0;
    for (uint32_t copy = link->plan->n_buffers; copy-- > 0;) {
        link->packet_of[copy] = COVEN_COPY_NONE;
        link->free_copies[link->n_free_copies++] = copy;
    }
}

void coven_replica_sweep(struct coven_worker *worker, uint32_t number, uint32_t reason, uint64_t *dropped,
                         uint64_t *staged)
{
    struct coven_replica_link *link = &worker->replica[number];

    *dropped = 0;
    *staged = 0;
    if (link->attached) {
        /* nothing new goes in while its packets run on through the graph */
        link->attached = false;
        take_published(worker, link);
        coven_replica_spill(worker, link, link->in.position);
        *staged = take_staged(worker, link);
    }
    coven_replica_spill(worker, link, link->in.position);
    while (link->kept.first != COVEN_NO_HANDLE) {
        uint32_t handle = link->kept.first;

        coven_track_remove(worker, &link->kept, handle);
        coven_book_drop(&worker->book, handle, COVEN_SCOPE_COMPONENT(link->component), reason);
        ++*dropped;
    }
    end_quarantine(worker, link);
    begin_positions(worker, number, 0);
    coven_book_commit(&worker->book);
    link->in.position = 0;
    link->given_head = 0;
    close_link(link);
    coven_removal_component_gone(worker, link->component);
}

/* ---- start of a worker --------------------------------------------------------------------------- */
/* One replica that gives nothing back must leave buffers for all others and for the ports. */
static uint32_t most_of(const struct coven_plan *plan, const struct coven_plan_component *component)
{
    uint32_t share = plan->n_buffers / (plan->n_replicas + 1u);

    return component->n_buffers < share ? component->n_buffers : share;
}

/* Room for packets with priority. */
static uint32_t reserve_of(uint32_t most, const struct coven_plan_component *component)
{
    uint32_t share = (most < component->ring_size ? most : component->ring_size) / 8u;

    return share < 2 * COVEN_BURST ? share : 2 * COVEN_BURST;
}

int coven_replica_prepare(struct coven_worker *worker)
{
    const struct coven_plan *plan = worker->plan;

    for (uint16_t c = 0; c < plan->n_components; c++) {
        const struct coven_plan_component *component = &plan->components[c];

        for (uint32_t r = 0; component->isolation != COVEN_FUSED && r < component->n_replicas; r++) {
            uint32_t number = component->first_replica + r;
            struct coven_replica_link *link = &worker->replica[number];

            link->plan = component;
            link->component = c;
            link->number = (uint16_t)number;
            link->most = most_of(plan, component);
            link->reserve = plan->n_priorities > 0 ? reserve_of(link->most, component) : 0;
            link->in.doorbell = -1;
            link->out.doorbell = -1;
            coven_track_clear(&link->kept);
            link->given = (struct coven_given *)((uint8_t *)worker->book.ledger +
                                                 worker->book.ledger->replica[number].given_offset);
            link->given_mask = coven_given_size(component) - 1u;
            link->given_head = (uint32_t)worker->book.ledger->replica[number].given_head;
            link->in.position = (uint32_t)worker->book.ledger->replica[number].in_tail;
            if (component->isolation != COVEN_COPY)
                continue;
            link->packet_of = calloc(component->n_buffers, sizeof(link->packet_of[0]));
            link->free_copies = calloc(component->n_buffers, sizeof(link->free_copies[0]));
            link->late = (uint8_t *)worker->book.ledger + worker->book.ledger->replica[number].late_offset;
            if (!link->packet_of || !link->free_copies)
                return -ENOMEM;
        }
    }
    return 0;
}

/* Which packets the queues name: only until the lists are rebuilt. */
#define IN_QUEUE COVEN_HOLDER(COVEN_OWNER_WORKER, 0)

static void mark_queue(struct coven_worker *worker, const struct coven_replica_link *link, uint32_t holder)
{
    for (uint32_t position = link->given_head; position != link->in.position; position++) {
        uint32_t handle = link->given[position & link->given_mask].handle;

        if (handle < worker->book.n_buffers)
            worker->track[handle].holder = holder;
    }
}

void coven_replica_mark_given(struct coven_worker *worker)
{
    for (uint32_t r = 0; r < worker->plan->n_replicas; r++)
        mark_queue(worker, &worker->replica[r], IN_QUEUE);
}

struct kept {
    uint32_t position, handle;
};

/* Positions run over 32 bits: what counts is the distance to the tail, and all lie behind it. */
static int by_distance(const void *a, const void *b, void *tail)
{
    uint32_t x = *(const uint32_t *)tail - ((const struct kept *)a)->position;
    uint32_t y = *(const uint32_t *)tail - ((const struct kept *)b)->position;

    return x < y ? 1 : x > y ? -1 : 0;
}

static void rebuild_kept(struct coven_worker *worker, struct coven_replica_link *link, struct kept *scratch)
{
    uint32_t tail = (uint32_t)worker->book.ledger->replica[link->number].in_tail;
    size_t n = 0;

    for (uint32_t handle = 0; handle < worker->book.n_buffers; handle++) {
        uint64_t owner = worker->book.owner[handle];

        if (coven_owner_number(owner) != link->number)
            continue;
        if (coven_owner_kind(owner) == COVEN_OWNER_QUARANTINE) {
            worker->track[handle].holder = COVEN_HOLDER(COVEN_OWNER_QUARANTINE, link->number);
            link->n_quarantine++;
        }
        if (coven_owner_kind(owner) != COVEN_OWNER_REPLICA)
            continue;
        scratch[n++] = (struct kept){coven_owner_position(owner), handle};
        if (link->packet_of)
            link->packet_of[coven_owner_copy_buffer(owner)] = handle;
    }
    qsort_r(scratch, n, sizeof(scratch[0]), by_distance, &tail);
    for (size_t i = 0; i < n; i++)
        coven_track_append(worker, &link->kept, scratch[i].handle, COVEN_HOLDER(COVEN_OWNER_REPLICA, link->number));
}

static void rebuild_copies(struct coven_worker *worker, struct coven_replica_link *link)
{
    uint32_t n = link->plan->n_buffers;

    for (uint32_t position = link->given_head; position != link->in.position; position++) {
        const struct coven_given *given = &link->given[position & link->given_mask];

        if (given->handle != COVEN_NO_HANDLE)
            link->packet_of[given->copy] = given->handle;
    }
    link->n_free_copies = 0;
    for (uint32_t copy = n; copy-- > 0;) {
        if (link->packet_of[copy] < worker->book.n_buffers)
            continue;
        if (link->late[copy] != 0)
            link->packet_of[copy] = COVEN_COPY_LATE;
        else
            link->free_copies[link->n_free_copies++] = copy;
    }
}

int coven_replica_rebuild(struct coven_worker *worker)
{
    struct kept *scratch = calloc(worker->book.n_buffers, sizeof(*scratch));

    if (!scratch)
        return -ENOMEM;
    for (uint32_t r = 0; r < worker->plan->n_replicas; r++) {
        struct coven_replica_link *link = &worker->replica[r];

        if (link->packet_of)
            memset(link->packet_of, 0xff, sizeof(link->packet_of[0]) * link->plan->n_buffers);
        mark_queue(worker, link, 0);
        rebuild_kept(worker, link, scratch);
        if (link->packet_of)
            rebuild_copies(worker, link);
    }
    free(scratch);
    return 0;
}
