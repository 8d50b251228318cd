/* SPDX-License-Identifier: Apache-2.0 */
/* What an isolated replica gives back. Everything the component can write (ring words, entries, with `shared`
 * the packets, with `copy` its own buffers) is copied once, checked against what the worker knows, and only then
 * used. What is wrong is counted as a violation; a packet that can be told apart is dropped for it. */
#include <string.h>

#include "fault.h"
#include "replica_private.h"
#include "violation.h"

/* One violation for each time the component's ring words were impossible since we last looked. */
static void count_broken(struct coven_worker *worker, struct coven_replica_link *link)
{
    uint32_t broken = link->in.broken + link->out.broken;

    if (broken != link->seen_broken) {
        coven_book_room(&worker->book, 0, 1, 0);
        coven_violation(worker, &link->violations, link->component, link->number, COVEN_VIOLATION_RING_WORDS,
                        broken - link->seen_broken);
        link->seen_broken = broken;
    }
}

/* ---- the queue of what it was given ------------------------------------------------------------- */
static const struct coven_given *queue_front(const struct coven_replica_link *link)
{
    return link->given_head != link->in.position ? &link->given[link->given_head & link->given_mask] : NULL;
}

/* The queue begins with a packet: ends of flows leave it. */
static void queue_skip(struct coven_replica_link *link)
{
    while (link->given_head != link->in.position &&
           link->given[link->given_head & link->given_mask].handle == COVEN_NO_HANDLE)
        link->given_head++;
}

static void queue_pop(struct coven_replica_link *link)
{
    link->given_head++;
    queue_skip(link);
}

/* The first packet of the queue is kept by the component. */
static void queue_keep(struct coven_worker *worker, struct coven_replica_link *link)
{
    const struct coven_given *given = queue_front(link);

    worker->book.meta[given->handle].hop = given->hop;
    coven_track_append(worker, &link->kept, given->handle, COVEN_HOLDER(COVEN_OWNER_REPLICA, link->number));
    coven_book_own(&worker->book, given->handle,
                   coven_owner(COVEN_OWNER_REPLICA, link->number, given->copy, link->given_head));
    queue_pop(link);
}

static void book_queue(struct coven_worker *worker, struct coven_replica_link *link)
{
    coven_book_word(&worker->book, &worker->book.ledger->replica[link->number].given_head, link->given_head);
}

void coven_replica_spill(struct coven_worker *worker, struct coven_replica_link *link, uint32_t end)
{
    while (queue_front(link) && (int32_t)(end - link->given_head) > 0) {
        coven_book_room(&worker->book, 1, 0, 1);
        queue_keep(worker, link);
        book_queue(worker, link);
    }
    coven_book_commit(&worker->book);
}

/* ---- from the component ------------------------------------------------------------------------ */
static void release_copy(struct coven_replica_link *link, uint32_t copy)
{
    link->packet_of[copy] = COVEN_COPY_BACK;
    link->free_copies[link->n_free_copies++] = copy;
}

/* The packet an entry speaks of, or COVEN_NO_HANDLE when the replica has no such packet. */
static uint32_t find_packet(struct coven_worker *worker, struct coven_replica_link *link, uint32_t named)
{
    uint32_t handle = named;

    if (link->buffers) {
        if (named >= link->plan->n_buffers || link->packet_of[named] == COVEN_COPY_NONE ||
            link->packet_of[named] == COVEN_COPY_BACK)
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
static bool is_kept(const struct coven_worker *worker, const struct coven_replica_link *link, uint32_t handle,
                    uint32_t kind)
{
    return worker->track[handle].holder == COVEN_HOLDER(kind, link->number);
}

/* Whether an entry names the first packet of the queue, as it should. */
static inline bool is_in_order(const struct coven_replica_link *link, const struct coven_given *front, uint32_t named)
{
    return front && (link->buffers ? front->copy : front->handle) == named;
}

static inline bool is_whole(const struct coven_entry *entry, uint32_t buffer_bytes)
{
    return entry->length != 0 && (uint32_t)entry->offset + entry->length <= buffer_bytes;
}

/* Take back what a component may change of any packet. */
static inline void take_bounds(struct coven_worker *worker, struct coven_replica_link *link, uint32_t handle,
                               const struct coven_entry *entry)
{
    struct coven_meta *meta = &worker->book.meta[handle];

    if (__builtin_expect(meta->offset != entry->offset || meta->length != entry->length, 0)) {
        meta->offset = entry->offset;
        meta->length = entry->length;
    }
    if (link->buffers)
        coven_replica_copy(coven_worker_buffer(worker, handle) + entry->offset,
                           link->buffers + (size_t)entry->handle * worker->plan->buffer_bytes + entry->offset,
                           entry->length);
}

/* Take back what it says it changed of the line. */
static void take_line(struct coven_worker *worker, uint32_t handle, const struct coven_returned *entry)
{
    struct coven_meta *meta = &worker->book.meta[handle];

    meta->mark = entry->meta.mark;
    meta->nsh_path = entry->meta.nsh_path;
    memcpy(meta->user, entry->meta.user, sizeof(meta->user));
    if (entry->meta.nsh_path != 0)
        memcpy(worker->book.ext[handle].nsh_context, entry->ext.nsh_context, sizeof(entry->ext.nsh_context));
}

static enum coven_judgement violation(struct coven_worker *worker, struct coven_replica_link *link,
                                      enum coven_violation kind)
{
    coven_violation(worker, &link->violations, link->component, link->number, kind, 1);
    return COVEN_JUDGED_DONE;
}

/* What is wrong with naming a packet that it does not have. */
static enum coven_violation wrong_handle(const struct coven_worker *worker, const struct coven_replica_link *link,
                                         uint32_t named)
{
    if (named >= (link->buffers ? link->plan->n_buffers : worker->book.n_buffers))
        return COVEN_VIOLATION_HANDLE_RANGE;
    if (link->buffers && link->packet_of[named] == COVEN_COPY_BACK)
        return COVEN_VIOLATION_HANDLE_TWICE;
    return COVEN_VIOLATION_HANDLE_FOREIGN;
}

/* Book which copy buffers around this one are late, as the worker knows it: with the rest of the intent, because a
 * successor must think a buffer free or late exactly as positions and owners say. */
static void book_late(struct coven_worker *worker, struct coven_replica_link *link, uint32_t copy)
{
    uint8_t late[sizeof(uint64_t)] = {0};
    uint32_t first = copy - copy % (uint32_t)sizeof(late);
    uint64_t value;

    for (uint32_t i = 0; i < sizeof(late) && first + i < link->plan->n_buffers; i++)
        late[i] = link->packet_of[first + i] == COVEN_COPY_LATE;
    memcpy(&value, late, sizeof(value));
    coven_book_word(&worker->book, (uint64_t *)(void *)(link->late + first), value);
}

/* A packet that was taken away comes back at last: its buffer is nobody's now. */
static bool is_late(struct coven_worker *worker, struct coven_replica_link *link, uint32_t handle, uint32_t named,
                    uint8_t verdict)
{
    if (link->buffers) {
        if (handle != COVEN_COPY_LATE)
            return false;
        if (verdict != COVEN_HOLD) {
            release_copy(link, named);
            book_late(worker, link, named);
        }
        return true;
    }
    if (!is_kept(worker, link, handle, COVEN_OWNER_QUARANTINE))
        return false;
    if (verdict != COVEN_HOLD) {
        worker->track[handle].holder = 0;
        link->n_quarantine--;
        coven_book_own(&worker->book, handle, 0);
    }
    return true;
}

/* The packet comes back for good: out of the queue or from those that were kept, to its new owner. */
static void take_back(struct coven_worker *worker, struct coven_replica_link *link, uint32_t handle, uint32_t copy,
                      bool in_order, uint64_t owner)
{
    if (in_order)
        queue_pop(link);
    else
        coven_track_remove(worker, &link->kept, handle);
    if (link->buffers)
        release_copy(link, copy);
    coven_book_own(&worker->book, handle, owner);
}

/* Carry the verdict on a packet that the replica has out. */
static enum coven_judgement follow(struct coven_worker *worker, struct coven_replica_link *link, uint32_t handle,
                                   bool in_order, const struct coven_returned *returned,
                                   struct coven_forwards *forwards)
{
    const struct coven_entry *entry = &returned->entry;
    enum coven_violation wrong = COVEN_VIOLATION_VERDICT;
    uint32_t hop = in_order ? queue_front(link)->hop : worker->book.meta[handle].hop;

    switch (entry->verdict) {
    case COVEN_FORWARD:
        wrong = entry->output >= link->plan->outputs ? COVEN_VIOLATION_OUTPUT : COVEN_VIOLATION_BOUNDS;
        if (entry->output >= link->plan->outputs || !is_whole(entry, worker->plan->buffer_bytes))
            break;
        take_bounds(worker, link, handle, entry);
        if (entry->flags & COVEN_ENTRY_CHANGED)
            take_line(worker, handle, returned);
        take_back(worker, link, handle, entry->handle, in_order, coven_owner(COVEN_OWNER_WORKER, 0, 0, 0));
        coven_replica_count(worker, link, COVEN_COMPONENT_OUT_PKTS, 1);
        forwards->handle[forwards->n] = handle;
        forwards->next[forwards->n++] = &worker->plan->hops[hop].next[entry->output];
        return COVEN_JUDGED_DONE;
    case COVEN_DROP:
        take_back(worker, link, handle, entry->handle, in_order, 0);
        coven_book_count(&worker->book, COVEN_CELL_DROP(coven_replica_scope(link), COVEN_DROP_COMPONENT_VERDICT), 1);
        return COVEN_JUDGED_DONE;
    case COVEN_HOLD: /* the limits are looked at separately */
        if (in_order)
            queue_keep(worker, link);
        return COVEN_JUDGED_DONE;
    case COVEN_CONSUME:
        take_back(worker, link, handle, entry->handle, in_order, 0);
        coven_replica_count(worker, link, COVEN_COMPONENT_CONSUMED, 1);
        return COVEN_JUDGED_DONE;
    default:
        break;
    }
    take_back(worker, link, handle, entry->handle, in_order, 0);
    coven_book_count(&worker->book, COVEN_CELL_DROP(coven_replica_scope(link), COVEN_DROP_COMPONENT_VIOLATION), 1);
    return violation(worker, link, wrong);
}

enum coven_judgement coven_replica_judge(struct coven_worker *worker, struct coven_replica_link *link,
                                         const struct coven_returned *returned, struct coven_forwards *forwards)
{
    const struct coven_entry *entry = &returned->entry;
    const struct coven_given *front = queue_front(link);
    uint32_t handle;

    if (entry->kind == COVEN_ENTRY_FLOW_REMOVED) {
        if ((entry->flags & COVEN_ENTRY_CHANGED) == 0 ||
            !coven_removal_answer(worker, link->component, returned->meta.flow, returned->meta.flow_epoch))
            return violation(worker, link, COVEN_VIOLATION_FLOW_ANSWER);
        return COVEN_JUDGED_DONE;
    }
    if (is_in_order(link, front, entry->handle))
        return follow(worker, link, front->handle, true, returned, forwards);
    handle = find_packet(worker, link, entry->handle);
    if (handle == COVEN_NO_HANDLE)
        return violation(worker, link, wrong_handle(worker, link, entry->handle));
    if (is_late(worker, link, handle, entry->handle, entry->verdict))
        return COVEN_JUDGED_DONE;
    if (is_kept(worker, link, handle, COVEN_OWNER_REPLICA))
        return follow(worker, link, handle, false, returned, forwards);
    return front ? COVEN_JUDGED_UNKNOWN : violation(worker, link, COVEN_VIOLATION_HANDLE_FOREIGN);
}

void coven_replica_take_away(struct coven_worker *worker, struct coven_replica_link *link, uint32_t handle,
                             uint32_t reason)
{
    uint32_t copy = coven_owner_copy_buffer(worker->book.owner[handle]);

    coven_book_room(&worker->book, 1, 1, 1);
    coven_track_remove(worker, &link->kept, handle);
    coven_book_count(&worker->book, COVEN_CELL_DROP(coven_replica_scope(link), reason), 1);
    if (link->packet_of) {
        link->packet_of[copy] = COVEN_COPY_LATE;
        book_late(worker, link, copy);
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
     * saw this head, it keeps everything that lies before the head. */
    uint32_t head = __atomic_load_n(&link->in.ring->head, __ATOMIC_ACQUIRE);
    uint64_t hold_ns = link->plan->hold_ms * COVEN_NS_PER_MS;

    if (!link->attached || link->in.position - head > link->in.size || coven_ring_ready(&link->out) > 0)
        return;
    coven_replica_spill(worker, link, head); /* commits: taking away goes by the owner words */
    while (link->kept.n > 0) {
        uint32_t handle = link->kept.first;
        bool too_old = worker->track[handle].since_ns + hold_ns < worker->now_ns;

        if (link->kept.n <= link->plan->hold_limit && !too_old)
            break;
        coven_replica_take_away(worker, link, handle, too_old ? COVEN_DROP_HOLD_TIMEOUT : COVEN_DROP_HOLD_LIMIT);
    }
}

/* Copy an entry that the component can still write to, and its line if it counts: the copies are judged and used. */
static inline void copy_entry(const struct coven_replica_link *link, uint32_t position, struct coven_returned *returned)
{
    uint32_t slot = coven_ring_slot(&link->out, position);

    coven_entry_read(&returned->entry, &link->out.entry[slot]);
    if ((returned->entry.flags & COVEN_ENTRY_CHANGED) == 0)
        return;
    returned->meta = link->out.meta[slot];
    __asm__ volatile("" ::: "memory");
    if (returned->meta.nsh_path != 0)
        returned->ext = link->out.ext[slot];
    __asm__ volatile("" ::: "memory");
}

/* Take what nearly all entries are: the first packet of the queue, whole, forwarded, its line as it was. Its owner word says
 * `worker` all the time, so nothing is noted for each. Returns how many; the next entry is something else. What is the
 * same for all is loaded once: the compiler must otherwise expect that each store changed it. */
static uint16_t take_plain(struct coven_worker *worker, struct coven_replica_link *link, uint32_t position, uint16_t n,
                           struct coven_forwards *forwards)
{
    const struct coven_plan_hop *hops = worker->plan->hops;
    const struct coven_given *queue = link->given;
    uint32_t buffer_bytes = worker->plan->buffer_bytes, outputs = link->plan->outputs;
    uint32_t given_mask = link->given_mask, head = link->given_head, tail = link->in.position;
    bool copies = link->buffers != NULL;
    uint16_t i;

    for (i = 0; i < n && head != tail; i++, head++) {
        const struct coven_given *given = &queue[head & given_mask];
        struct coven_entry entry;

        coven_entry_read(&entry, &link->out.entry[coven_ring_slot(&link->out, position + i)]);
        if (entry.handle != (copies ? given->copy : given->handle) || given->handle == COVEN_NO_HANDLE ||
            entry.kind != COVEN_ENTRY_PACKET || entry.verdict != COVEN_FORWARD ||
            (entry.flags & COVEN_ENTRY_CHANGED) != 0 || entry.output >= outputs || !is_whole(&entry, buffer_bytes))
            break;
        take_bounds(worker, link, given->handle, &entry);
        if (copies)
            release_copy(link, entry.handle);
        forwards->handle[forwards->n] = given->handle;
        forwards->next[forwards->n++] = &hops[given->hop].next[entry.output];
    }
    link->given_head = head;
    queue_skip(link);
    if (i > 0)
        coven_replica_count(worker, link, COVEN_COMPONENT_OUT_PKTS, i);
    return i;
}

/* Copy and judge up to n entries. Returns how many; less if one may name a packet in the queue, out of turn. */
static uint16_t judge_burst(struct coven_worker *worker, struct coven_replica_link *link, uint16_t n,
                            struct coven_forwards *forwards)
{
    uint16_t i = 0;

    for (;;) {
        struct coven_returned returned;

        i = (uint16_t)(i + take_plain(worker, link, link->out.position + i, n - i, forwards));
        if (i == n)
            return n;
        copy_entry(link, link->out.position + i, &returned);
        if (coven_replica_judge(worker, link, &returned, forwards) == COVEN_JUDGED_UNKNOWN)
            return i;
        i++;
    }
}

static uint16_t take_burst(struct coven_worker *worker, struct coven_replica_link *link, uint16_t n)
{
    struct coven_ledger_replica *known = &worker->book.ledger->replica[link->number];
    struct coven_forwards forwards;

    forwards.n = 0;
    coven_book_room(&worker->book, COVEN_BURST, 8, 2 + COVEN_BURST); /* each entry may be of a late packet */
    n = judge_burst(worker, link, n, &forwards);
    if (n == 0)
        return 0;
    coven_book_word(&worker->book, &known->out_head, link->out.position + n);
    book_queue(worker, link);
    COVEN_FAULT("worker-ring-taken");
    coven_book_commit(&worker->book);
    coven_ring_taken(&link->out, link->out.position + n);
    coven_replica_pass_on(worker, link, &forwards);
    return n;
}

uint32_t coven_replica_take(struct coven_worker *worker, struct coven_replica_link *link)
{
    uint32_t ready = coven_ring_known(&link->out, COVEN_BURST);
    uint16_t n = ready < COVEN_BURST ? (uint16_t)ready : COVEN_BURST, taken;

    count_broken(worker, link);
    coven_ring_expect_reads(link->out.entry, link->out.size, link->out.position, ready < 64 ? ready : 64);
    if (n == 0) {
        if (link->kept.n > link->plan->hold_limit)
            coven_replica_hold_check(worker, link);
        return 0;
    }
    taken = take_burst(worker, link, n);
    if (taken < n) { /* out of turn: with an empty queue every entry can be judged */
        coven_replica_spill(worker, link, link->in.position);
        take_burst(worker, link, n - taken);
    }
    return n;
}

void coven_replica_pass_on(struct coven_worker *worker, struct coven_replica_link *link,
                           const struct coven_forwards *forwards)
{
    uintptr_t different = 0;

    if (forwards->n == 0)
        return;
    for (uint16_t i = 0; i < forwards->n; i++)
        different |= (uintptr_t)forwards->next[i] ^ (uintptr_t)forwards->next[0];
    if (different == 0) /* mostly */
        coven_graph_put_all(worker, forwards->handle, forwards->n, forwards->next[0], coven_replica_scope(link));
    for (uint16_t i = 0; different != 0 && i < forwards->n; i++)
        coven_graph_put(worker, forwards->handle[i], forwards->next[i], coven_replica_scope(link));
    coven_graph_walk(worker);
}
