/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's side of an isolated replica. Everything the component can write (ring words, entries, with `shared`
 * the packets, with `copy` its own buffers) is copied once, checked against what the worker knows, and only then
 * used. What is wrong is counted as a violation; a packet that can be told apart is dropped for it. */
#include <string.h>

#include "fault.h"
#include "worker.h"

static uint32_t scope_of(const struct coven_replica_link *link)
{
    return COVEN_SCOPE_COMPONENT(link->component);
}

static void count(struct coven_worker *worker, const struct coven_replica_link *link, uint32_t counter, uint64_t n)
{
    coven_book_count(&worker->book, COVEN_CELL_COMPONENT(link->component, counter), n);
}

/* One violation for each time the component's ring words were impossible since we last looked. */
static void count_broken(struct coven_worker *worker, struct coven_replica_link *link)
{
    uint32_t broken = link->in.broken + link->out.broken;

    if (broken != link->seen_broken) {
        coven_book_room(&worker->book, 0, 1, 0);
        count(worker, link, COVEN_COMPONENT_VIOLATIONS, broken - link->seen_broken);
        link->seen_broken = broken;
    }
}

/* ---- to the component -------------------------------------------------------------------------- */
/* Packets of one flow always meet the same one, which is the one writer of its state. */
struct coven_replica_link *coven_replica_choose(struct coven_worker *worker, uint32_t component, uint32_t flow)
{
    const struct coven_plan_component *plan = &worker->plan->components[component];
    uint32_t n = flow != COVEN_NO_FLOW && plan->n_replicas > 1 ? flow % plan->n_replicas : 0;

    return &worker->replica[plan->first_replica + n];
}

/* Write one entry beyond the tail; it is shown with coven_replica_publish(). */
static void put_entry(struct coven_worker *worker, struct coven_replica_link *link, uint32_t handle, uint32_t copy)
{
    uint32_t slot = coven_ring_slot(&link->in, link->in.position);
    const struct coven_meta *meta = &worker->book.meta[handle];
    struct coven_meta *entry = &link->in.meta[slot];

    *entry = *meta;
    entry->handle = link->buffers ? copy : handle;
    entry->verdict = COVEN_FORWARD;
    entry->output = 0;
    if (meta->nsh_path != 0) {
        link->in.ext[slot] = worker->book.ext[handle];
        link->in.ext[slot].cut = 0;
    }
    if (link->buffers)
        memcpy(link->buffers + (size_t)copy * worker->plan->buffer_bytes + meta->offset,
               coven_worker_buffer(worker, handle) + meta->offset, meta->length);
}

/* The caller has made room in the intent: nothing may be committed before the ring's position is in it too. */
static void give_one(struct coven_worker *worker, struct coven_replica_link *link, uint32_t handle)
{
    uint32_t copy = 0;

    if (link->given.n + link->n_quarantine >= link->most || coven_ring_room(&link->in, 1) == 0 ||
        (link->buffers && link->n_free_copies == 0)) {
        coven_book_count(&worker->book, COVEN_CELL_DROP(scope_of(link), COVEN_DROP_RING_FULL), 1);
        coven_book_own(&worker->book, handle, 0);
        return;
    }
    if (link->buffers) {
        copy = link->free_copies[--link->n_free_copies];
        link->packet_of[copy] = handle;
    }
    put_entry(worker, link, handle, copy);
    coven_book_own(&worker->book, handle, coven_owner(COVEN_OWNER_REPLICA, link->number, copy, link->in.position));
    count(worker, link, COVEN_COMPONENT_IN_PKTS, 1);
    coven_track_append(worker, &link->given, handle, COVEN_HOLDER(COVEN_OWNER_REPLICA, link->number));
    link->in.position++;
    link->unpublished = true;
    coven_book_word(&worker->book, &worker->book.ledger->replica[link->number].in_tail, link->in.position);
}

void coven_replica_give(struct coven_worker *worker, uint16_t hop, const uint32_t *handles, uint16_t n)
{
    uint32_t component = worker->plan->hops[hop].component;
    uint32_t down[COVEN_BURST];
    uint16_t n_down = 0;

    coven_book_room(&worker->book, n, 2, n);
    /* Before the loop that copies the lines: a wide load right behind a narrow store must wait for it, which was
     * measured as 10 ns for each packet. */
    for (uint16_t i = 0; i < n; i++)
        worker->book.meta[handles[i]].hop = hop;
    for (uint16_t i = 0; i < n; i++) {
        struct coven_replica_link *link = coven_replica_choose(worker, component, worker->book.meta[handles[i]].flow);

        if (link->attached)
            give_one(worker, link, handles[i]);
        else
            down[n_down++] = handles[i];
    }
    if (n_down > 0)
        coven_graph_component_down(worker, hop, down, n_down);
}

bool coven_replica_tell(struct coven_worker *worker, struct coven_replica_link *link, uint32_t flow, uint16_t epoch)
{
    struct coven_meta *entry = &link->in.meta[coven_ring_slot(&link->in, link->in.position)];

    if (coven_ring_room(&link->in, 1) == 0)
        return false;
    *entry = (struct coven_meta){
        .handle = COVEN_NO_HANDLE,
        .port = COVEN_NO_PORT,
        .hop = COVEN_NO_HOP,
        .flow = flow,
        .flow_epoch = epoch,
        .kind = COVEN_ENTRY_FLOW_REMOVED,
        .timestamp_ns = worker->wall_ns,
    };
    coven_book_room(&worker->book, 0, 0, 1);
    link->in.position++;
    link->unpublished = true;
    coven_book_word(&worker->book, &worker->book.ledger->replica[link->number].in_tail, link->in.position);
    return true;
}

void coven_replica_publish(struct coven_worker *worker)
{
    for (uint32_t r = 0; r < worker->plan->n_replicas; r++) {
        struct coven_replica_link *link = &worker->replica[r];

        if (!link->unpublished)
            continue;
        COVEN_FAULT("worker-ring-publish");
        link->unpublished = false;
        if (link->attached)
            coven_ring_publish(&link->in, link->in.position);
    }
}

/* ---- from the component ------------------------------------------------------------------------ */
static void release_copy(struct coven_replica_link *link, uint32_t copy)
{
    link->packet_of[copy] = COVEN_COPY_NONE;
    link->free_copies[link->n_free_copies++] = copy;
}

/* The packet an entry speaks of, or COVEN_NO_HANDLE when the replica has no such packet. */
static uint32_t find_packet(struct coven_worker *worker, struct coven_replica_link *link, uint32_t named)
{
    uint32_t handle = named;

    if (link->buffers) {
        if (named >= link->plan->n_buffers || link->packet_of[named] == COVEN_COPY_NONE)
            return COVEN_NO_HANDLE;
        handle = link->packet_of[named];
        if (handle == COVEN_COPY_LATE)
            return handle;
    }
    if (handle >= worker->book.n_buffers)
        return COVEN_NO_HANDLE;
    return handle;
}

/* Not the owner word: that is stored with the intent, and a packet may come back twice in one burst. */
static bool is_given(const struct coven_worker *worker, const struct coven_replica_link *link, uint32_t handle,
                     uint32_t kind)
{
    return worker->track[handle].holder == COVEN_HOLDER(kind, link->number);
}

/* Take back what a component may change of a packet it forwards. */
static void take_changes(struct coven_worker *worker, struct coven_replica_link *link, uint32_t handle, uint32_t copy,
                         const struct coven_meta *entry, const struct coven_meta_ext *ext)
{
    struct coven_meta *meta = &worker->book.meta[handle];

    meta->offset = entry->offset;
    meta->length = entry->length;
    meta->mark = entry->mark;
    meta->nsh_path = entry->nsh_path;
    memcpy(meta->user, entry->user, sizeof(meta->user));
    if (entry->nsh_path != 0)
        memcpy(worker->book.ext[handle].nsh_context, ext->nsh_context, sizeof(ext->nsh_context));
    if (link->buffers)
        memcpy(coven_worker_buffer(worker, handle) + entry->offset,
               link->buffers + (size_t)copy * worker->plan->buffer_bytes + entry->offset, entry->length);
}

/* The packet comes back: out of the list, to its new owner. */
static void take_back(struct coven_worker *worker, struct coven_replica_link *link, uint32_t handle, uint32_t copy,
                      uint64_t owner)
{
    coven_track_remove(worker, &link->given, handle);
    if (link->buffers)
        release_copy(link, copy);
    coven_book_own(&worker->book, handle, owner);
}

static uint32_t violation(struct coven_worker *worker, struct coven_replica_link *link)
{
    count(worker, link, COVEN_COMPONENT_VIOLATIONS, 1);
    return COVEN_NO_HANDLE;
}

/* A packet that was taken away comes back at last: its buffer is nobody's now. */
static bool is_late(struct coven_worker *worker, struct coven_replica_link *link, uint32_t handle, uint32_t named,
                    uint8_t verdict)
{
    if (link->buffers) {
        if (handle != COVEN_COPY_LATE)
            return false;
        if (verdict != COVEN_HOLD) {
            link->late[named] = 0;
            release_copy(link, named);
        }
        return true;
    }
    if (!is_given(worker, link, handle, COVEN_OWNER_QUARANTINE))
        return false;
    if (verdict != COVEN_HOLD) {
        worker->track[handle].holder = 0;
        link->n_quarantine--;
        coven_book_own(&worker->book, handle, 0);
    }
    return true;
}

uint32_t coven_replica_judge(struct coven_worker *worker, struct coven_replica_link *link,
                             const struct coven_meta *entry, const struct coven_meta_ext *ext)
{
    const struct coven_plan_component *plan = link->plan;
    uint32_t handle;

    if (entry->kind == COVEN_ENTRY_FLOW_REMOVED) {
        if (!coven_removal_answer(worker, link->component, entry->flow, entry->flow_epoch))
            return violation(worker, link);
        return COVEN_NO_HANDLE;
    }
    handle = find_packet(worker, link, entry->handle);
    if (handle == COVEN_NO_HANDLE)
        return violation(worker, link);
    if (is_late(worker, link, handle, entry->handle, entry->verdict))
        return COVEN_NO_HANDLE;
    if (!is_given(worker, link, handle, COVEN_OWNER_REPLICA))
        return violation(worker, link);
    switch (entry->verdict) {
    case COVEN_FORWARD:
        if (entry->output >= plan->outputs || entry->length == 0 ||
            (uint32_t)entry->offset + entry->length > worker->plan->buffer_bytes)
            break;
        take_changes(worker, link, handle, entry->handle, entry, ext);
        worker->book.meta[handle].output = entry->output;
        take_back(worker, link, handle, entry->handle, coven_owner(COVEN_OWNER_WORKER, 0, 0, 0));
        count(worker, link, COVEN_COMPONENT_OUT_PKTS, 1);
        return handle;
    case COVEN_DROP:
        take_back(worker, link, handle, entry->handle, 0);
        coven_book_count(&worker->book, COVEN_CELL_DROP(scope_of(link), COVEN_DROP_COMPONENT_VERDICT), 1);
        return COVEN_NO_HANDLE;
    case COVEN_HOLD:
        return COVEN_NO_HANDLE; /* stays where it is; the limits are looked at separately */
    case COVEN_CONSUME:
        take_back(worker, link, handle, entry->handle, 0);
        count(worker, link, COVEN_COMPONENT_CONSUMED, 1);
        return COVEN_NO_HANDLE;
    default:
        break;
    }
    take_back(worker, link, handle, entry->handle, 0);
    coven_book_count(&worker->book, COVEN_CELL_DROP(scope_of(link), COVEN_DROP_COMPONENT_VIOLATION), 1);
    return violation(worker, link);
}

void coven_replica_take_away(struct coven_worker *worker, struct coven_replica_link *link, uint32_t handle,
                             uint32_t reason)
{
    uint32_t copy = coven_owner_copy_buffer(worker->book.owner[handle]);

    coven_book_room(&worker->book, 1, 1, 0);
    coven_track_remove(worker, &link->given, handle);
    coven_book_count(&worker->book, COVEN_CELL_DROP(scope_of(link), reason), 1);
    if (link->packet_of) {
        /* before the intent: a successor must not think that the component's buffer is free */
        link->late[copy] = 1;
        link->packet_of[copy] = COVEN_COPY_LATE;
        coven_book_own(&worker->book, handle, 0);
    } else {
        worker->track[handle].holder = COVEN_HOLDER(COVEN_OWNER_QUARANTINE, link->number);
        link->n_quarantine++;
        coven_book_own(&worker->book, handle, coven_owner(COVEN_OWNER_QUARANTINE, link->number, 0, 0));
    }
}

void coven_replica_hold_check(struct coven_worker *worker, struct coven_replica_link *link)
{
    /* The component publishes what it gives back before it moves its head. So if its out-ring is empty after we
     * saw this head, it keeps everything that lies before the head and is still in the list. */
    uint32_t head = __atomic_load_n(&link->in.ring->head, __ATOMIC_ACQUIRE);
    uint32_t queued = link->in.position - head;
    uint64_t hold_ns = link->plan->hold_ms * COVEN_NS_PER_MS;
    uint32_t held;

    if (!link->attached || queued > link->in.size || coven_ring_ready(&link->out) > 0)
        return;
    held = link->given.n > queued ? link->given.n - queued : 0;
    coven_book_commit(&worker->book); /* taking away goes by the owner words */
    while (held > 0) {
        uint32_t handle = link->given.first;
        bool too_old = worker->track[handle].since_ns + hold_ns < worker->now_ns;

        if (held <= link->plan->hold_limit && !too_old)
            break;
        coven_replica_take_away(worker, link, handle, too_old ? COVEN_DROP_HOLD_TIMEOUT : COVEN_DROP_HOLD_LIMIT);
        held--;
    }
}

/* Copy and judge a burst of entries; the handles to forward go to `forward`. */
static uint16_t judge_burst(struct coven_worker *worker, struct coven_replica_link *link, uint16_t n, uint32_t *forward)
{
    uint16_t n_forward = 0;

    for (uint16_t i = 0; i < n; i++) {
        uint32_t slot = coven_ring_slot(&link->out, link->out.position + i);
        struct coven_meta entry = link->out.meta[slot];
        struct coven_meta_ext ext = {0};
        uint32_t handle;

        if (entry.nsh_path != 0)
            ext = link->out.ext[slot];
        __asm__ volatile("" ::: "memory"); /* judge the copies, never the shared entry again */
        handle = coven_replica_judge(worker, link, &entry, &ext);
        if (handle != COVEN_NO_HANDLE)
            forward[n_forward++] = handle;
    }
    return n_forward;
}

uint32_t coven_replica_take(struct coven_worker *worker, struct coven_replica_link *link)
{
    uint32_t forward[COVEN_BURST];
    uint32_t ready = coven_ring_ready(&link->out);
    uint16_t n = ready < COVEN_BURST ? (uint16_t)ready : COVEN_BURST;
    uint16_t n_forward;

    count_broken(worker, link);
    if (n == 0) {
        if (link->given.n > link->plan->hold_limit)
            coven_replica_hold_check(worker, link);
        return 0;
    }
    coven_book_room(&worker->book, COVEN_BURST, 8, 1);
    n_forward = judge_burst(worker, link, n, forward);
    coven_book_word(&worker->book, &worker->book.ledger->replica[link->number].out_head, link->out.position + n);
    COVEN_FAULT("worker-ring-taken");
    coven_book_commit(&worker->book);
    coven_ring_taken(&link->out, link->out.position + n);
    coven_replica_pass_on(worker, link, forward, n_forward);
    return n;
}

void coven_replica_pass_on(struct coven_worker *worker, struct coven_replica_link *link, const uint32_t *handles,
                           uint16_t n)
{
    for (uint16_t i = 0; i < n; i++) {
        const struct coven_meta *meta = &worker->book.meta[handles[i]];

        coven_graph_put(worker, handles[i], &worker->plan->hops[meta->hop].next[meta->output], scope_of(link));
    }
    coven_graph_walk(worker);
}
