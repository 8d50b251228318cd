/* SPDX-License-Identifier: Apache-2.0 */
/* The table: entries, the index that finds them, the free list. How flows are made, age and end. */
#include "fault.h"
#include "flow_private.h"

#define SWEEP_MAX 256u     /* entries looked at in one call */
#define SWEEPS_PER_IDLE 4u /* the whole table is looked at this often within the idle time */
#define RECLAIM_MAX 512u   /* entries looked at for one to reclaim when the table is full */

static uint32_t buckets_of(uint32_t capacity)
{
    uint32_t n = 64;

    while (n < capacity && n < 1u << 31)
        n <<= 1;
    return n;
}

size_t coven_flow_table_bytes(uint32_t capacity)
{
    if (capacity == 0)
        return 0;
    return coven_flow_aligned(sizeof(struct coven_flow_table)) +
           coven_flow_aligned((size_t)capacity * sizeof(struct flow_entry)) + FRAGMENTS * sizeof(struct fragment) +
           coven_flow_aligned((size_t)buckets_of(capacity) * sizeof(uint32_t));
}

/* ---- index and free list: rebuilt on recovery, so the order of stores does not matter here -------- */
static void index_insert(struct coven_flow_table *table, uint32_t flow)
{
    struct flow_entry *entry = &coven_flow_entries(table)[flow];
    uint32_t *bucket = &coven_flow_buckets(table)[entry->hash & (table->n_buckets - 1)];

    entry->next = *bucket;
    COVEN_FAULT("worker-flow-index");
    *bucket = flow;
}

static void index_remove(struct coven_flow_table *table, uint32_t flow)
{
    struct flow_entry *entry = &coven_flow_entries(table)[flow];
    uint32_t *link = &coven_flow_buckets(table)[entry->hash & (table->n_buckets - 1)];

    while (*link != flow && *link != COVEN_FLOW_NONE)
        link = &coven_flow_entries(table)[*link].next;
    if (*link == flow)
        *link = entry->next;
    COVEN_FAULT("worker-flow-index");
}

static void set_state(struct flow_entry *entry, uint8_t state)
{
    /* Release: after a kill the entry is believed when its state says so. */
    __atomic_store_n(&entry->state, state, __ATOMIC_RELEASE);
}

static void free_push(struct coven_flow_table *table, uint32_t flow)
{
    coven_flow_entries(table)[flow].next = table->free_head;
    COVEN_FAULT("worker-flow-index");
    table->free_head = flow;
}

/* ---- lifecycle ---------------------------------------------------------------------------------- */
static void reset(struct coven_flow_table *table, uint32_t capacity, const uint64_t seed[2], uint64_t idle_ns)
{
    memset(table, 0, sizeof(*table));
    table->seed[0] = seed[0];
    table->seed[1] = seed[1];
    table->idle_ns = idle_ns;
    table->capacity = capacity;
    table->n_buckets = buckets_of(capacity);
    table->free_head = COVEN_FLOW_NONE;
    table->gave_way = COVEN_FLOW_NONE;
    table->may_give_way = 1;
    memset(coven_flow_buckets(table), 0xff, (size_t)table->n_buckets * sizeof(uint32_t));
}

void coven_flow_table_init(struct coven_flow_table *table, uint32_t capacity, const uint64_t seed[2], uint64_t idle_ns)
{
    if (capacity == 0)
        return;
    reset(table, capacity, seed, idle_ns);
    for (uint32_t i = 0; i < FRAGMENTS; i++)
        coven_flow_fragments(table)[i].flow = COVEN_FLOW_NONE;
}

/* Put a used entry back into the index; one that cannot be right is freed. */
static void readopt(struct coven_flow_table *table, uint32_t flow)
{
    struct flow_entry *entry = &coven_flow_entries(table)[flow];

    entry->hash = coven_flow_hash_of(table, &entry->key);
    if (entry->epoch == 0 || coven_flow_find(table, &entry->key, entry->hash) != COVEN_FLOW_NONE) {
        set_state(entry, ENTRY_FREE);
        return;
    }
    index_insert(table, flow);
}

void coven_flow_table_recover(struct coven_flow_table *table, uint32_t capacity, const uint64_t seed[2],
                              uint64_t idle_ns)
{
    struct flow_entry *all;

    if (capacity == 0)
        return;
    reset(table, capacity, seed, idle_ns);
    all = coven_flow_entries(table);
    table->fresh = capacity;
    for (uint32_t flow = capacity; flow-- > 0;) {
        if (all[flow].state == ENTRY_USED)
            readopt(table, flow);
        else if (all[flow].state == ENTRY_ENDED || all[flow].state == ENTRY_UNREPORTED)
            set_state(&all[flow], ENTRY_UNREPORTED);
        else
            set_state(&all[flow], ENTRY_FREE);
        if (all[flow].state == ENTRY_FREE)
            free_push(table, flow);
        else
            table->count++;
        table->unreported += all[flow].state == ENTRY_UNREPORTED;
    }
}

/* ---- making and ending flows -------------------------------------------------------------------- */
static bool is_idle(const struct coven_flow_table *table, const struct flow_entry *entry, uint64_t now_ns)
{
    return now_ns > entry->last_ns && now_ns - entry->last_ns >= table->idle_ns;
}

/* An entry for a new flow, or COVEN_FLOW_NONE. In a full table one that is idle already gives way at once. */
static uint32_t take_entry(struct coven_flow_table *table, uint64_t now_ns)
{
    uint32_t flow = table->free_head;

    if (flow != COVEN_FLOW_NONE) {
        table->free_head = coven_flow_entries(table)[flow].next;
        return flow;
    }
    if (table->fresh < table->capacity)
        return table->fresh++;
    for (uint32_t looked = 0; table->may_give_way && looked < RECLAIM_MAX && looked < table->capacity; looked++) {
        struct flow_entry *entry;

        flow = table->cursor < table->capacity ? table->cursor : 0;
        table->cursor = flow + 1;
        entry = &coven_flow_entries(table)[flow];
        if (entry->state == ENTRY_USED && is_idle(table, entry, now_ns)) {
            index_remove(table, flow);
            set_state(entry, ENTRY_FREE);
            table->count--;
            table->removed++;
            table->gave_way = flow;
            table->gave_way_epoch = entry->epoch;
            return flow;
        }
    }
    return COVEN_FLOW_NONE;
}

uint32_t coven_flow_make(struct coven_flow_table *table, const struct flow_key *key, uint32_t hash, bool swapped,
                         uint64_t now_ns)
{
    uint32_t flow = take_entry(table, now_ns);
    struct flow_entry *entry;

    if (flow == COVEN_FLOW_NONE)
        return COVEN_FLOW_NONE;
    entry = &coven_flow_entries(table)[flow];
    entry->key = *key;
    entry->hash = hash;
    entry->last_ns = now_ns;
    entry->sequence[0] = 0;
    entry->sequence[1] = 0;
    entry->swapped = swapped;
    entry->owner = 0;
    entry->epoch = (uint16_t)(entry->epoch == UINT16_MAX ? 1 : entry->epoch + 1); /* 0: no flow at all */
    COVEN_FAULT("worker-flow-index");
    set_state(entry, ENTRY_USED);
    COVEN_FAULT("worker-flow-index");
    index_insert(table, flow);
    table->count++;
    table->created++;
    return flow;
}

/* ---- ageing ------------------------------------------------------------------------------------- */
/* Entries that the sweep may look at now, so that it goes around SWEEPS_PER_IDLE times in the idle time. */
static uint32_t sweep_budget(struct coven_flow_table *table, uint64_t now_ns)
{
    uint64_t round_ns = table->idle_ns / SWEEPS_PER_IDLE + 1;
    uint64_t passed, entries_due;

    if (table->swept_ns == 0 || now_ns < table->swept_ns) {
        table->swept_ns = now_ns;
        return 0;
    }
    passed = now_ns - table->swept_ns;
    passed = passed < round_ns ? passed : round_ns;
    entries_due = (uint64_t)((unsigned __int128)passed * table->fresh / round_ns);
    if (entries_due == 0)
        return 0;
    table->swept_ns = now_ns;
    return entries_due < SWEEP_MAX ? (uint32_t)entries_due : SWEEP_MAX;
}

uint16_t coven_flow_expire(struct coven_flow_table *table, uint64_t now_ns, uint32_t *flows, uint16_t max)
{
    struct flow_entry *all;
    uint32_t budget;
    uint16_t n = 0;

    if (table->capacity == 0 || table->fresh == 0)
        return 0;
    all = coven_flow_entries(table);
    budget = sweep_budget(table, now_ns);
    if (table->unreported != 0)
        budget = SWEEP_MAX;
    budget = budget < table->fresh ? budget : table->fresh;
    for (; budget != 0 && n < max; budget--) {
        uint32_t flow = table->cursor < table->fresh ? table->cursor : 0;
        struct flow_entry *entry = &all[flow];

        table->cursor = flow + 1;
        if (entry->state == ENTRY_UNREPORTED) {
            table->unreported--;
        } else if (entry->state == ENTRY_USED && is_idle(table, entry, now_ns)) {
            index_remove(table, flow);
        } else {
            continue;
        }
        set_state(entry, ENTRY_ENDED);
        flows[n++] = flow;
    }
    return n;
}

void coven_flow_release(struct coven_flow_table *table, uint32_t flow)
{
    if (flow >= table->capacity || coven_flow_entries(table)[flow].state != ENTRY_ENDED)
        return;
    set_state(&coven_flow_entries(table)[flow], ENTRY_FREE);
    free_push(table, flow);
    table->count--;
    table->removed++;
}

/* ---- inspection --------------------------------------------------------------------------------- */
uint32_t coven_flow_count(const struct coven_flow_table *table)
{
    return table->count;
}

uint64_t coven_flow_created(const struct coven_flow_table *table)
{
    return table->created;
}

uint64_t coven_flow_removed(const struct coven_flow_table *table)
{
    return table->removed;
}

uint16_t coven_flow_epoch(const struct coven_flow_table *table, uint32_t flow)
{
    return flow < table->capacity ? coven_flow_entries(table)[flow].epoch : 0;
}
