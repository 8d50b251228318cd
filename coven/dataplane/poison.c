/* SPDX-License-Identifier: Apache-2.0 */
#include "poison.h"

#include <string.h>

#include "worker.h"

#define SUSPECT_NS (300 * COVEN_NS_PER_S) /* for so long a suspect stays one */
#define POISON_NS (3600 * COVEN_NS_PER_S) /* and a poison packet in the list after it came last */

static struct coven_poison *list_of(const struct coven_worker *worker)
{
    return &worker->book.ledger->poison;
}

static uint64_t print_of(const struct coven_worker *worker, uint32_t handle)
{
    const struct coven_meta *meta = &worker->book.meta[handle];

    if ((uint32_t)meta->offset + meta->length > worker->plan->buffer_bytes)
        return 1; /* a component that died left nonsense there */
    return coven_poison_fingerprint(worker->plan->flow_seed, coven_worker_buffer(worker, handle) + meta->offset,
                                    meta->length);
}

/* ---- the list -------------------------------------------------------------------------------------- */
static struct coven_poison_entry *find(const struct coven_worker *worker, uint32_t component, uint64_t fingerprint)
{
    struct coven_poison *list = list_of(worker);

    for (uint32_t i = 0; i < COVEN_POISON_ENTRIES; i++)
        if (list->entry[i].fingerprint == fingerprint && list->entry[i].component == component)
            return &list->entry[i];
    return NULL;
}

void coven_poison_age(struct coven_worker *worker)
{
    struct coven_poison *list = list_of(worker);

    worker->poisoned = 0;
    for (uint32_t i = 0; i < COVEN_POISON_ENTRIES; i++) {
        struct coven_poison_entry *entry = &list->entry[i];

        if (entry->fingerprint == 0 || entry->component >= COVEN_MAX_COMPONENTS)
            continue;
        if (entry->seen_ns + (entry->deaths > 1 ? POISON_NS : SUSPECT_NS) < worker->now_ns)
            entry->fingerprint = 0;
        else
            worker->poisoned |= 1ull << entry->component;
    }
}

void coven_poison_clear(struct coven_worker *worker, uint32_t component)
{
    struct coven_poison *list = list_of(worker);

    for (uint32_t i = 0; i < COVEN_POISON_ENTRIES; i++)
        if (list->entry[i].component == component)
            list->entry[i].fingerprint = 0;
    coven_poison_age(worker);
}

/* A free place; else that of the oldest suspect, else of the oldest of all. */
static struct coven_poison_entry *place(struct coven_worker *worker)
{
    struct coven_poison_entry *entry = list_of(worker)->entry, *oldest = &entry[0];

    for (uint32_t i = 0; i < COVEN_POISON_ENTRIES; i++) {
        if (entry[i].fingerprint == 0)
            return &entry[i];
        if ((entry[i].deaths > 1) < (oldest->deaths > 1) ||
            ((entry[i].deaths > 1) == (oldest->deaths > 1) && entry[i].seen_ns < oldest->seen_ns))
            oldest = &entry[i];
    }
    return oldest;
}

static void keep_bytes(struct coven_worker *worker, struct coven_poison_entry *entry, uint32_t handle)
{
    const struct coven_meta *meta = &worker->book.meta[handle];

    if ((uint32_t)meta->offset + meta->length > worker->plan->buffer_bytes)
        return;
    entry->length = meta->length;
    entry->kept = meta->length < COVEN_POISON_BYTES ? meta->length : COVEN_POISON_BYTES;
    entry->timestamp_ns = meta->timestamp_ns;
    memcpy(entry->bytes, coven_worker_buffer(worker, handle) + meta->offset, entry->kept);
}

static void suspect(struct coven_worker *worker, uint32_t component, uint32_t handle, uint64_t fingerprint)
{
    struct coven_poison_entry *entry = find(worker, component, fingerprint);

    if (!entry) {
        entry = place(worker);
        entry->fingerprint = 0; /* nobody's while it is being written, in case that we die here */
        __asm__ volatile("" ::: "memory");
        entry->component = component;
        entry->deaths = 1;
        entry->dropped = 0;
        entry->number = 0;
        keep_bytes(worker, entry, handle);
        __asm__ volatile("" ::: "memory");
        entry->fingerprint = fingerprint;
    }
    entry->is_pending = 0;
    entry->seen_ns = worker->now_ns;
}

/* A suspect was alone in the hands of a component that died. Returns false if the packet is none. */
static bool convict(struct coven_worker *worker, uint32_t component, uint64_t fingerprint)
{
    struct coven_poison_entry *entry = find(worker, component, fingerprint);

    if (!entry)
        return false;
    entry->is_pending = 0;
    entry->seen_ns = worker->now_ns;
    if (entry->deaths < 2)
        entry->number = ++list_of(worker)->n_marked;
    entry->deaths++;
    return true;
}

/* ---- deaths ------------------------------------------------------------------------------------------ */
/* As it was given, if that is known: it may have been changed since. */
static uint64_t print_given(const struct coven_worker *worker, uint32_t component, uint32_t handle)
{
    if ((worker->poisoned >> component & 1) != 0 && worker->given_print[handle].component == component + 1)
        return worker->given_print[handle].fingerprint;
    return print_of(worker, handle);
}

/* Where in its in-ring a replica was: what it tells, as far as that can be. */
static uint32_t place_of(const struct coven_replica_link *link)
{
    const struct coven_replica *replica = link->segment.base;
    uint32_t head = __atomic_load_n(&link->in.ring->head, __ATOMIC_RELAXED);
    uint32_t current = __atomic_load_n(&replica->current, __ATOMIC_RELAXED);
    uint32_t at = current - head < link->in.size ? current : head;

    return at - link->given_head <= link->in.position - link->given_head ? at : link->given_head;
}

void coven_poison_replica_died(struct coven_worker *worker, uint32_t number)
{
    struct coven_replica_link *link = &worker->replica[number];
    uint32_t n = 0;

    if (!link->attached)
        return;
    for (uint32_t at = place_of(link); at != link->in.position && n < COVEN_BURST; at++) {
        uint32_t handle = link->given[at & link->given_mask].handle;
        uint64_t fingerprint;

        if (handle >= worker->book.n_buffers)
            continue;
        fingerprint = print_given(worker, link->component, handle);
        if (find(worker, link->component, fingerprint)) { /* it is given alone */
            if (n == 0)
                convict(worker, link->component, fingerprint);
            break;
        }
        suspect(worker, link->component, handle, fingerprint);
        n++;
    }
    coven_poison_age(worker);
}

void coven_poison_fused_died(struct coven_worker *worker, uint32_t component)
{
    const struct coven_breadcrumb *crumb = &worker->book.ledger->breadcrumb;
    struct coven_poison *list = list_of(worker);
    uint32_t n = crumb->n < COVEN_BURST ? crumb->n : COVEN_BURST;
    bool is_known = list->n_given == n && list->given_component == component + 1;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t handle = crumb->handle[i];
        uint64_t fingerprint;

        if (handle >= worker->book.n_buffers)
            continue;
        fingerprint = is_known ? list->given[i] : print_of(worker, handle);
        if (n > 1 || !convict(worker, component, fingerprint))
            suspect(worker, component, handle, fingerprint);
    }
}

/* ---- on the way --------------------------------------------------------------------------------------- */
struct run {
    uint32_t handle[COVEN_BURST];
    uint64_t fingerprint[COVEN_BURST];
    uint16_t n;
};

static void give_fused(struct coven_worker *worker, uint16_t hop, uint16_t component, struct run *run)
{
    struct coven_poison *list = list_of(worker);
    struct coven_burst *burst = &worker->graph.burst;
    const struct coven_plan_next *next;

    memcpy(list->given, run->fingerprint, sizeof(run->fingerprint[0]) * run->n);
    list->n_given = run->n;
    list->given_component = component + 1u;
    burst->handle = run->handle;
    burst->n = run->n;
    burst->is_shown = false;
    next = coven_fused_process(worker, hop, burst);
    list->n_given = 0;
    if (next)
        coven_graph_put_all(worker, run->handle, run->n, next, COVEN_SCOPE_COMPONENT(component));
}

static void give_isolated(struct coven_worker *worker, uint16_t hop, uint16_t component, struct run *run, bool alone)
{
    for (uint16_t i = 0; i < run->n; i++)
        worker->given_print[run->handle[i]] = (struct coven_given_print){run->fingerprint[i], component + 1u};
    worker->alone = alone ? COVEN_ALONE : 0;
    coven_replica_give(worker, hop, run->handle, run->n);
    worker->alone = 0;
}

static void give(struct coven_worker *worker, uint16_t hop, struct run *run, bool alone)
{
    uint16_t component = worker->plan->hops[hop].component;

    if (run->n > 0 && worker->plan->components[component].isolation == COVEN_FUSED)
        give_fused(worker, hop, component, run);
    else if (run->n > 0)
        give_isolated(worker, hop, component, run, alone);
    run->n = 0;
}

static void add(struct run *run, uint32_t handle, uint64_t fingerprint)
{
    run->handle[run->n] = handle;
    run->fingerprint[run->n++] = fingerprint;
}

/* A suspect that was given before and came back did no harm: it is none any more. */
static bool is_cleared(const struct coven_worker *worker, uint16_t component, const struct coven_poison_entry *entry)
{
    const struct coven_plan_component *plan = &worker->plan->components[component];
    const struct coven_replica_link *link = &worker->replica[plan->first_replica];

    return plan->isolation != COVEN_FUSED && plan->n_replicas == 1 && entry->is_pending &&
           (int32_t)(link->given_head - entry->position) > 0;
}

static void give_suspect(struct coven_worker *worker, uint16_t hop, struct coven_poison_entry *entry, uint32_t handle,
                         uint64_t fingerprint)
{
    uint16_t component = worker->plan->hops[hop].component;
    const struct coven_plan_component *plan = &worker->plan->components[component];
    struct run run = {.n = 0};

    keep_bytes(worker, entry, handle); /* as they are given */
    if (plan->isolation != COVEN_FUSED) {
        entry->position = worker->replica[plan->first_replica].in.position;
        entry->is_pending = 1;
    }
    add(&run, handle, fingerprint);
    give(worker, hop, &run, true);
    if (plan->isolation == COVEN_FUSED)
        entry->fingerprint = 0; /* it came back */
}

void coven_poison_travel(struct coven_worker *worker, uint16_t hop, const uint32_t *handles, uint16_t n)
{
    uint16_t component = worker->plan->hops[hop].component;
    uint32_t scope = COVEN_SCOPE_COMPONENT(component), packets[COVEN_BURST];
    struct run run = {.n = 0};

    memcpy(packets, handles, sizeof(packets[0]) * n);
    for (uint16_t i = 0; i < n; i++) {
        uint64_t fingerprint = print_of(worker, packets[i]);
        struct coven_poison_entry *entry = find(worker, component, fingerprint);

        if (entry && entry->deaths < 2 && is_cleared(worker, component, entry)) {
            entry->fingerprint = 0;
            entry = NULL;
        }
        if (!entry) {
            add(&run, packets[i], fingerprint);
            continue;
        }
        give(worker, hop, &run, false);
        if (entry->deaths < 2) {
            give_suspect(worker, hop, entry, packets[i], fingerprint);
            continue;
        }
        entry->dropped++;
        entry->seen_ns = worker->now_ns;
        coven_book_drop(&worker->book, packets[i], scope, COVEN_DROP_POISON_PACKET);
    }
    give(worker, hop, &run, false);
}
