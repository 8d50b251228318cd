/* SPDX-License-Identifier: Apache-2.0 */
/* The table: entries and the free list. How flows are made, age and end. */
#include "fault.h"
#include "flow_private.h"

#define SWEEP_MAX 8192u         /* entries looked at in one call: 64 bytes each, one after the other */
#define SWEEPS_PER_IDLE 4u      /* the whole table is looked at this often within the idle time */
#define GIVE_WAY_MAX 64u        /* entries looked at for one to give way when the table is full */
#define DUE_MIN_NS 10000000ull  /* an idle worker wakes for the sweep at most this often, */
#define DUE_MAX_NS 250000000ull /* and at least this often */

size_t coven_flow_table_bytes(uint32_t capacity)
{
    if (capacity == 0)
        return 0;
    return sizeof(struct coven_flow_table) + (size_t)capacity * sizeof(struct flow_entry) +
           FRAGMENTS * sizeof(struct fragment) + (size_t)coven_flow_buckets_for(capacity) * sizeof(struct flow_bucket);
}

static void set_state(struct flow_entry *entry, uint8_t state)
{
    /* Release: after a kill the entry is believed when its state says so. */
    __atomic_store_n(&entry->state, state, __ATOMIC_RELEASE);
}

/* The free list is rebuilt on recovery, so the order of stores does not matter here. */
static void free_push(struct coven_flow_table *table, uint32_t flow)
{
    coven_flow_entries(table)[flow].last_ns = table->free_head;
    COVEN_FAULT("worker-flow-index");
    table->free_head = flow;
}

static void index_remove(struct coven_flow_table *table, uint32_t flow)
{
    coven_flow_index_remove(table, flow, coven_flow_hash_of(table, &coven_flow_entries(table)[flow].key));
}

/* ---- lifecycle ---------------------------------------------------------------------------------- */
static void reset(struct coven_flow_table *table, const struct coven_flow_config *config)
{
    memset(table, 0, sizeof(*table));
    table->seed[0] = config->seed[0];
    table->seed[1] = config->seed[1];
    table->idle_ns = config->idle_ns;
    table->capacity = config->capacity;
    table->when_full = config->when_full;
    table->n_buckets = coven_flow_buckets_for(config->capacity);
    table->free_head = COVEN_FLOW_NONE;
    table->room = UINT32_MAX;
}

void coven_flow_table_init(struct coven_flow_table *table, const struct coven_flow_config *config)
{
    if (config->capacity > 0)
        reset(table, config);
}

/* Put the used ones of a few entries back into the index; one that cannot be right is freed. The index is far
 * larger than a cache: the lines are asked for before the first of them is needed. */
static void readopt(struct coven_flow_table *table, uint32_t first, uint32_t n)
{
    struct flow_entry *entries = &coven_flow_entries(table)[first];
    uint64_t hash[COVEN_BURST];

    for (uint32_t i = 0; i < n; i++) {
        if (entries[i].state != ENTRY_USED)
            continue;
        hash[i] = coven_flow_hash_of(table, &entries[i].key);
        __builtin_prefetch(coven_flow_home(table, hash[i]), 1);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (entries[i].state != ENTRY_USED)
            continue;
        if (entries[i].epoch == 0 || coven_flow_find(table, &entries[i].key, hash[i]) != COVEN_FLOW_NONE)
            set_state(&entries[i], ENTRY_FREE);
        else
            coven_flow_index_insert(table, first + i, hash[i]);
    }
}

static void recover_entry(struct coven_flow_table *table, uint32_t flow)
{
    struct flow_entry *entry = &coven_flow_entries(table)[flow];

    if (entry->state == ENTRY_ENDED || entry->state == ENTRY_UNREPORTED) {
        set_state(entry, ENTRY_UNREPORTED);
        table->unreported++;
    } else if (entry->state != ENTRY_USED) {
        set_state(entry, ENTRY_FREE);
        free_push(table, flow);
        return;
    }
    table->count++;
}

void coven_flow_table_recover(struct coven_flow_table *table, const struct coven_flow_config *config)
{
    uint32_t fresh = table->fresh < config->capacity ? table->fresh : config->capacity;

    if (config->capacity == 0)
        return;
    reset(table, config);
    table->fresh = fresh;
    memset(coven_flow_buckets(table), 0, (size_t)table->n_buckets * sizeof(struct flow_bucket));
    for (uint32_t end = fresh; end > 0;) {
        uint32_t first = end > COVEN_BURST ? end - COVEN_BURST : 0;

        readopt(table, first, end - first);
        while (end > first)
            recover_entry(table, --end);
    }
}

/* ---- making and ending flows -------------------------------------------------------------------- */
static bool is_idle(const struct coven_flow_table *table, const struct flow_entry *entry, uint64_t now_ns)
{
    return now_ns > entry->last_ns && now_ns - entry->last_ns >= table->idle_ns;
}

/* Whether a flow that is not idle yet may give way. Those with packets in this burst never: some of them may have
 * been told their flow already. */
static bool may_give_way(const struct coven_flow_table *table, const struct flow_entry *entry, uint64_t now_ns)
{
    if (entry->last_ns >= now_ns)
        return false;
    if (table->when_full == COVEN_WHEN_FULL_ONE_WAY)
        return entry->sequence[0] == 0 || entry->sequence[1] == 0;
    return table->when_full == COVEN_WHEN_FULL_OLDEST;
}

/* The flow to give way to a new one in a full table, or COVEN_FLOW_NONE: an idle one, else the oldest of those that
 * may, among the next few. The entries are looked at in a circle, in which they were also made, so the oldest of the
 * next few is seldom much younger than the oldest of all. */
static uint32_t choose_to_give_way(struct coven_flow_table *table, uint64_t now_ns)
{
    uint32_t chosen = COVEN_FLOW_NONE;
    uint32_t most = table->capacity < GIVE_WAY_MAX ? table->capacity : GIVE_WAY_MAX;

    if (table->when_full == COVEN_WHEN_FULL_REFUSE || table->room == 0 || table->n_gave_way == COVEN_BURST)
        return COVEN_FLOW_NONE;
    for (uint32_t looked = 0; looked < most; looked++) {
        uint32_t flow = table->cursor < table->capacity ? table->cursor : 0;
        const struct flow_entry *entry = &coven_flow_entries(table)[flow];

        table->cursor = flow + 1;
        if (entry->state != ENTRY_USED)
            continue;
        if (is_idle(table, entry, now_ns))
            return flow;
        if (may_give_way(table, entry, now_ns) &&
            (chosen == COVEN_FLOW_NONE || entry->last_ns < coven_flow_entries(table)[chosen].last_ns))
            chosen = flow;
    }
    return chosen;
}

/* An entry for a new flow, or COVEN_FLOW_NONE. In a full table another one may give way at once. */
static uint32_t take_entry(struct coven_flow_table *table, uint64_t now_ns)
{
    uint32_t flow = table->free_head;
    struct flow_entry *entry;

    if (flow != COVEN_FLOW_NONE) {
        table->free_head = (uint32_t)coven_flow_entries(table)[flow].last_ns;
        return flow;
    }
    if (table->fresh < table->capacity)
        return table->fresh++;
    flow = choose_to_give_way(table, now_ns);
    if (flow == COVEN_FLOW_NONE)
        return COVEN_FLOW_NONE;
    entry = &coven_flow_entries(table)[flow];
    index_remove(table, flow);
    set_state(entry, ENTRY_FREE);
    table->count--;
    table->removed++;
    table->room--;
    table->gave_way[table->n_gave_way] = flow;
    table->gave_way_epoch[table->n_gave_way++] = entry->epoch;
    return flow;
}

uint32_t coven_flow_make(struct coven_flow_table *table, const struct flow_key *key, uint64_t hash, uint8_t flags,
                         uint64_t now_ns)
{
    uint32_t flow = take_entry(table, now_ns);
    struct flow_entry *entry;

    if (flow == COVEN_FLOW_NONE)
        return COVEN_FLOW_NONE;
    entry = &coven_flow_entries(table)[flow];
    entry->key = *key;
    entry->last_ns = now_ns;
    entry->sequence[0] = 0;
    entry->sequence[1] = 0;
    entry->flags = flags;
    entry->epoch = (uint16_t)(entry->epoch == UINT16_MAX ? 1 : entry->epoch + 1); /* 0: no flow at all */
    COVEN_FAULT("worker-flow-index");
    set_state(entry, ENTRY_USED);
    COVEN_FAULT("worker-flow-index");
    coven_flow_index_insert(table, flow, hash);
    table->count++;
    table->created++;
    return flow;
}

/* ---- ageing ------------------------------------------------------------------------------------- */
static uint64_t round_ns(const struct coven_flow_table *table)
{
    return table->idle_ns / SWEEPS_PER_IDLE + 1;
}

/* Entries that the sweep may look at now, so that it goes around SWEEPS_PER_IDLE times in the idle time. */
static uint32_t sweep_budget(struct coven_flow_table *table, uint64_t now_ns)
{
    uint64_t passed, entries_due;

    if (table->swept_ns == 0 || now_ns < table->swept_ns) {
        table->swept_ns = now_ns;
        return 0;
    }
    passed = now_ns - table->swept_ns;
    passed = passed < round_ns(table) ? passed : round_ns(table);
    entries_due = (uint64_t)((unsigned __int128)passed * table->fresh / round_ns(table));
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
    budget = table->unreported != 0 || budget > SWEEP_MAX - table->owed ? SWEEP_MAX : budget + table->owed;
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
    table->owed = budget;
    return n;
}

uint64_t coven_flow_due(const struct coven_flow_table *table, uint64_t now_ns)
{
    uint64_t wait_ns;

    if (table->count == 0)
        return UINT64_MAX;
    wait_ns = round_ns(table) / (table->fresh / (SWEEP_MAX / 2) + 1);
    wait_ns = wait_ns < DUE_MAX_NS ? wait_ns : DUE_MAX_NS;
    return now_ns + (wait_ns > DUE_MIN_NS ? wait_ns : DUE_MIN_NS);
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

void coven_flow_let_give_way(struct coven_flow_table *table, uint32_t room)
{
    table->room = room;
}

bool coven_flow_gave_way(struct coven_flow_table *table, uint32_t *flow, uint16_t *epoch)
{
    if (table->gave_way_next >= table->n_gave_way)
        return false;
    *flow = table->gave_way[table->gave_way_next];
    *epoch = table->gave_way_epoch[table->gave_way_next++];
    return true;
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
