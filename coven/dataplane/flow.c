/* SPDX-License-Identifier: Apache-2.0 */
#include "flow.h"

#include <endian.h>
#include <stdbool.h>
#include <string.h>

#include "drop_reasons.h"
#include "fault.h"
#include "parse.h"

#define FRAGMENTS 1024u              /* datagrams whose later fragments are awaited, power of two */
#define FRAGMENT_WAYS 4u             /* places a datagram may have */
#define FRAGMENT_NS 60000000000ull   /* RFC 8200 section 4.5: reassembly gives up after 60 seconds */
#define SWEEP_MAX 256u               /* entries looked at in one call */
#define SWEEPS_PER_IDLE 4u           /* the whole table is looked at this often within the idle time */
#define RECLAIM_MAX 512u             /* entries looked at for one to reclaim when the table is full */
#define NONE UINT32_MAX
#define VID_BITS 0x0fffu             /* IEEE 802.1Q: the VLAN; priority may differ within a flow */

/* Zero from the first to the last byte before it is filled: it is hashed and compared as bytes. */
struct flow_key {
    uint8_t low[16], high[16]; /* the smaller of (address, port) first; IPv4 in the first four bytes */
    uint16_t low_port, high_port;
    uint16_t vlan[2];
    uint8_t n_vlans;
    uint8_t version;
    uint8_t protocol;
    uint8_t zero[5];
};

enum entry_state {
    ENTRY_FREE = 0,
    ENTRY_USED = 1,
    ENTRY_ENDED = 2,     /* reported by expire, waits for release */
    ENTRY_UNREPORTED = 3 /* ended for a worker that died; to be reported again */
};

struct flow_entry {
    struct flow_key key;
    uint64_t last_ns;
    uint64_t owner;       /* reserved for migration */
    uint32_t sequence[2]; /* next number for each direction */
    uint32_t hash;
    uint32_t next;        /* in the chain of its bucket, or in the free list */
    uint16_t epoch;
    uint8_t state;        /* enum entry_state; stored last when an entry is made */
    uint8_t swapped;      /* the first packet came from `high` */
    uint8_t reserved[4];
};

/* Datagram whose first fragment had ports. `flow` is NONE while the rest is written. */
struct fragment {
    uint8_t source[16], destination[16];
    uint64_t last_ns;
    uint32_t id;
    uint32_t flow;
    uint16_t vlan[2];
    uint16_t epoch;
    uint8_t n_vlans, version, protocol, direction;
    uint8_t reserved[2];
};

struct coven_flow_table {
    uint64_t seed[2];
    uint64_t idle_ns;
    uint64_t swept_ns;    /* when the sweep was last allowed to go on */
    uint32_t capacity;
    uint32_t n_buckets;   /* power of two */
    uint32_t count;       /* entries not free */
    uint32_t free_head;   /* released entries */
    uint32_t fresh;       /* entries from here on were never used in this life of the table */
    uint32_t cursor;      /* of the sweep */
    uint32_t unreported;
    uint32_t gave_way;    /* in the last lookup, with gave_way_epoch; NONE: none did */
    uint64_t created;     /* in this life of the table */
    uint64_t removed;
    uint16_t gave_way_epoch;
    uint8_t may_give_way;
    uint8_t reserved[5];
};

_Static_assert(sizeof(struct flow_key) == 48, "hashed as six words");
_Static_assert(sizeof(struct flow_entry) == 88, "entry");
_Static_assert(sizeof(struct fragment) == 64, "fragment");
_Static_assert(sizeof(struct coven_flow_table) == 88, "table");

/* ---- places ------------------------------------------------------------------------------------- */
static uint32_t buckets_of(uint32_t capacity)
{
    uint32_t n = 64;

    while (n < capacity && n < 1u << 31)
        n <<= 1;
    return n;
}

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static struct flow_entry *entries(const struct coven_flow_table *table)
{
    return (struct flow_entry *)((uint8_t *)(uintptr_t)table + aligned(sizeof(*table)));
}

static struct fragment *fragments(const struct coven_flow_table *table)
{
    return (struct fragment *)((uint8_t *)entries(table) +
                               aligned((size_t)table->capacity * sizeof(struct flow_entry)));
}

static uint32_t *buckets(const struct coven_flow_table *table)
{
    return (uint32_t *)(fragments(table) + FRAGMENTS);
}

size_t coven_flow_table_bytes(uint32_t capacity)
{
    if (capacity == 0)
        return 0;
    return aligned(sizeof(struct coven_flow_table)) +
           aligned((size_t)capacity * sizeof(struct flow_entry)) + FRAGMENTS * sizeof(struct fragment) +
           aligned((size_t)buckets_of(capacity) * sizeof(uint32_t));
}

/* ---- hash --------------------------------------------------------------------------------------- */
static inline uint64_t rotate(uint64_t x, unsigned bits)
{
    return x << bits | x >> (64 - bits);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

/* SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", section 2.4 for the rounds): senders
 * choose the keys of the table, so they must not be able to aim at one bucket. Little-endian words. */
uint64_t coven_flow_hash(const uint64_t seed[2], const void *data, size_t bytes)
{
    uint64_t v[4] = {seed[0] ^ 0x736f6d6570736575ull, seed[1] ^ 0x646f72616e646f6dull,
                     seed[0] ^ 0x6c7967656e657261ull, seed[1] ^ 0x7465646279746573ull};
    const uint8_t *at = data;
    uint64_t word;
    size_t left = bytes;

    for (; left >= 8; left -= 8, at += 8) {
        memcpy(&word, at, 8);
        word = le64toh(word);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    word = (uint64_t)bytes << 56;
    for (size_t i = 0; i < left; i++)
        word |= (uint64_t)at[i] << (8 * i);
    v[3] ^= word;
    sip_round(v);
    v[0] ^= word;
    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static uint32_t hash_of(const struct coven_flow_table *table, const struct flow_key *key)
{
    return (uint32_t)coven_flow_hash(table->seed, key, sizeof(*key));
}

/* ---- index and free list: rebuilt on recovery, so the order of stores does not matter here -------- */
static void index_insert(struct coven_flow_table *table, uint32_t flow)
{
    struct flow_entry *entry = &entries(table)[flow];
    uint32_t *bucket = &buckets(table)[entry->hash & (table->n_buckets - 1)];

    entry->next = *bucket;
    COVEN_FAULT("worker-flow-index");
    *bucket = flow;
}

static void index_remove(struct coven_flow_table *table, uint32_t flow)
{
    struct flow_entry *entry = &entries(table)[flow];
    uint32_t *link = &buckets(table)[entry->hash & (table->n_buckets - 1)];

    while (*link != flow && *link != NONE)
        link = &entries(table)[*link].next;
    if (*link == flow)
        *link = entry->next;
    COVEN_FAULT("worker-flow-index");
}

static uint32_t index_find(const struct coven_flow_table *table, const struct flow_key *key, uint32_t hash)
{
    uint32_t flow = buckets(table)[hash & (table->n_buckets - 1)];

    while (flow != NONE) {
        const struct flow_entry *entry = &entries(table)[flow];

        if (entry->hash == hash && memcmp(&entry->key, key, sizeof(*key)) == 0)
            return flow;
        flow = entry->next;
    }
    return NONE;
}

static void set_state(struct flow_entry *entry, uint8_t state)
{
    /* Release: after a kill the entry is believed when its state says so. */
    __atomic_store_n(&entry->state, state, __ATOMIC_RELEASE);
}

static void free_push(struct coven_flow_table *table, uint32_t flow)
{
    entries(table)[flow].next = table->free_head;
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
    table->free_head = NONE;
    table->gave_way = NONE;
    table->may_give_way = 1;
    memset(buckets(table), 0xff, (size_t)table->n_buckets * sizeof(uint32_t));
}

void coven_flow_table_init(struct coven_flow_table *table, uint32_t capacity, const uint64_t seed[2],
                           uint64_t idle_ns)
{
    if (capacity == 0)
        return;
    reset(table, capacity, seed, idle_ns);
    for (uint32_t i = 0; i < FRAGMENTS; i++)
        fragments(table)[i].flow = NONE;
}

/* Put a used entry back into the index; one that cannot be right is freed. */
static void readopt(struct coven_flow_table *table, uint32_t flow)
{
    struct flow_entry *entry = &entries(table)[flow];

    entry->hash = hash_of(table, &entry->key);
    if (entry->epoch == 0 || index_find(table, &entry->key, entry->hash) != NONE) {
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
    all = entries(table);
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

/* An entry for a new flow, or NONE. In a full table one that is idle already gives way at once. */
static uint32_t take_entry(struct coven_flow_table *table, uint64_t now_ns)
{
    uint32_t flow = table->free_head;

    if (flow != NONE) {
        table->free_head = entries(table)[flow].next;
        return flow;
    }
    if (table->fresh < table->capacity)
        return table->fresh++;
    for (uint32_t looked = 0; table->may_give_way && looked < RECLAIM_MAX && looked < table->capacity; looked++) {
        struct flow_entry *entry;

        flow = table->cursor < table->capacity ? table->cursor : 0;
        table->cursor = flow + 1;
        entry = &entries(table)[flow];
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
    return NONE;
}

static uint32_t make_flow(struct coven_flow_table *table, const struct flow_key *key, uint32_t hash,
                          bool swapped, uint64_t now_ns)
{
    uint32_t flow = take_entry(table, now_ns);
    struct flow_entry *entry;

    if (flow == NONE)
        return NONE;
    entry = &entries(table)[flow];
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

/* ---- keys --------------------------------------------------------------------------------------- */
static void load_addresses(const uint8_t *data, const struct coven_parsed *parsed, uint8_t source[16],
                           uint8_t destination[16])
{
    const uint8_t *ip = data + parsed->l3_offset;

    memset(source, 0, 16);
    memset(destination, 0, 16);
    if (parsed->ip_version == 4) {
        memcpy(source, ip + 12, 4);
        memcpy(destination, ip + 16, 4);
    } else {
        memcpy(source, ip + 8, 16);
        memcpy(destination, ip + 24, 16);
    }
}

/* Key of a packet that has ports; returns whether source and destination changed places. `tags` is the packet
 * that carries the VLAN tags (the outer one for a quoted header). */
static bool make_key(const uint8_t *data, const struct coven_parsed *parsed, const struct coven_parsed *tags,
                     struct flow_key *key)
{
    uint8_t source[16], destination[16];
    bool swapped;
    int order;

    load_addresses(data, parsed, source, destination);
    order = memcmp(source, destination, 16);
    swapped = order > 0 || (order == 0 && parsed->src_port > parsed->dst_port);
    memset(key, 0, sizeof(*key));
    memcpy(key->low, swapped ? destination : source, 16);
    memcpy(key->high, swapped ? source : destination, 16);
    key->low_port = swapped ? parsed->dst_port : parsed->src_port;
    key->high_port = swapped ? parsed->src_port : parsed->dst_port;
    key->vlan[0] = tags->vlan[0] & VID_BITS;
    key->vlan[1] = tags->vlan[1] & VID_BITS;
    key->n_vlans = tags->n_vlans;
    key->version = parsed->ip_version;
    key->protocol = parsed->protocol;
    return swapped;
}

/* ---- fragments ---------------------------------------------------------------------------------- */
static void make_fragment(const uint8_t *data, const struct coven_parsed *parsed,
                          const struct coven_parsed *tags, struct fragment *fragment)
{
    memset(fragment, 0, sizeof(*fragment));
    load_addresses(data, parsed, fragment->source, fragment->destination);
    fragment->id = parsed->fragment_id;
    fragment->vlan[0] = tags->vlan[0] & VID_BITS;
    fragment->vlan[1] = tags->vlan[1] & VID_BITS;
    fragment->n_vlans = tags->n_vlans;
    fragment->version = parsed->ip_version;
    /* RFC 8200 section 4.5: the first fragment alone decides what follows the fragment header, so IPv6 datagrams
     * are told apart without the protocol. RFC 791 section 3.2 counts it in. */
    fragment->protocol = parsed->ip_version == 4 ? parsed->protocol : 0;
}

static bool is_same_datagram(const struct fragment *a, const struct fragment *b)
{
    return a->id == b->id && memcmp(a->source, b->source, 16) == 0 &&
           memcmp(a->destination, b->destination, 16) == 0 && a->vlan[0] == b->vlan[0] &&
           a->vlan[1] == b->vlan[1] && a->n_vlans == b->n_vlans && a->version == b->version &&
           a->protocol == b->protocol;
}

static struct fragment *fragment_set(struct coven_flow_table *table, const struct fragment *wanted)
{
    uint8_t words[48] = {0};
    uint64_t hash;

    memcpy(words, wanted->source, 16);
    memcpy(words + 16, wanted->destination, 16);
    memcpy(words + 32, &wanted->id, 4);
    memcpy(words + 36, wanted->vlan, 4);
    hash = coven_flow_hash(table->seed, words, sizeof(words));
    return &fragments(table)[(hash & (FRAGMENTS / FRAGMENT_WAYS - 1)) * FRAGMENT_WAYS];
}

static struct fragment *fragment_find(struct coven_flow_table *table, const struct fragment *wanted,
                                      uint64_t now_ns)
{
    struct fragment *set = fragment_set(table, wanted);

    for (uint32_t way = 0; way < FRAGMENT_WAYS; way++) {
        if (set[way].flow < table->capacity && is_same_datagram(&set[way], wanted) &&
            now_ns - set[way].last_ns < FRAGMENT_NS)
            return &set[way];
    }
    return NULL;
}

/* Remember where the later fragments of a first one go, in place of the oldest of its set. */
static void fragment_learn(struct coven_flow_table *table, struct fragment *wanted, uint32_t flow,
                           uint8_t direction, uint64_t now_ns)
{
    struct fragment *set = fragment_set(table, wanted);
    struct fragment *place = fragment_find(table, wanted, now_ns);

    for (uint32_t way = 0; place == NULL && way < FRAGMENT_WAYS; way++) {
        if (set[way].flow == NONE)
            place = &set[way];
    }
    if (place == NULL) {
        place = set;
        for (uint32_t way = 1; way < FRAGMENT_WAYS; way++)
            place = set[way].last_ns < place->last_ns ? &set[way] : place;
    }
    __atomic_store_n(&place->flow, NONE, __ATOMIC_RELEASE);
    wanted->flow = NONE;
    wanted->epoch = entries(table)[flow].epoch;
    wanted->direction = direction;
    wanted->last_ns = now_ns;
    *place = *wanted;
    __atomic_store_n(&place->flow, flow, __ATOMIC_RELEASE);
}

/* ---- data path ---------------------------------------------------------------------------------- */
static void assign(struct coven_flow_table *table, uint32_t flow, uint8_t direction, struct coven_meta *meta,
                   uint64_t now_ns)
{
    struct flow_entry *entry = &entries(table)[flow];

    entry->last_ns = now_ns;
    meta->flow = flow;
    meta->flow_epoch = entry->epoch;
    meta->direction = direction;
    meta->flow_seq = entry->sequence[direction]++;
}

/* Flow of a later fragment: that of the first, when it came. NONE otherwise. */
static uint32_t follow_fragment(struct coven_flow_table *table, const uint8_t *data,
                                const struct coven_parsed *parsed, const struct coven_parsed *tags,
                                uint64_t now_ns, uint8_t *direction)
{
    struct fragment wanted;
    const struct fragment *found;

    make_fragment(data, parsed, tags, &wanted);
    found = fragment_find(table, &wanted, now_ns);
    if (found == NULL || entries(table)[found->flow].state != ENTRY_USED ||
        entries(table)[found->flow].epoch != found->epoch)
        return NONE;
    *direction = found->direction & 1;
    return found->flow;
}

static bool is_icmp_error(uint8_t protocol, uint8_t type)
{
    if (protocol == COVEN_PROTO_ICMPV6)
        return type >= 1 && type <= 4; /* RFC 4443 section 2.1: below 128 are errors, four are defined */
    return protocol == COVEN_PROTO_ICMP &&
           (type == 3 || type == 4 || type == 5 || type == 11 || type == 12); /* RFC 1122 section 3.2.2 */
}

/* Flow of the packet that an ICMP error quotes. The error travels against it. */
static uint32_t follow_quote(struct coven_flow_table *table, const uint8_t *data,
                             const struct coven_parsed *outer, uint64_t now_ns, uint8_t *direction)
{
    struct coven_parsed quoted = {0};
    struct flow_key key;
    uint32_t at = outer->l4_offset + 8u; /* RFC 792, RFC 4443 section 3: the quote follows 8 bytes */
    uint32_t flow;
    bool swapped;

    if (outer->l4_offset == 0 || at >= outer->l3_end || !is_icmp_error(outer->protocol, data[outer->l4_offset]))
        return NONE;
    coven_parse_ip(data, outer->l3_end, at, outer->ether_type, &quoted);
    if (quoted.ip_version == 0)
        return NONE;
    quoted.l3_offset = (uint16_t)at;
    if (quoted.flags & COVEN_PARSED_LATER_FRAGMENT) {
        flow = follow_fragment(table, data, &quoted, outer, now_ns, direction);
        *direction ^= 1;
        return flow;
    }
    if (!(quoted.flags & COVEN_PARSED_PORTS))
        return NONE;
    swapped = make_key(data, &quoted, outer, &key);
    flow = index_find(table, &key, hash_of(table, &key));
    if (flow != NONE)
        *direction = (uint8_t)((swapped != (entries(table)[flow].swapped & 1)) ^ 1);
    return flow;
}

int coven_flow_lookup(struct coven_flow_table *table, const uint8_t *data, uint32_t length,
                      struct coven_meta *meta, uint64_t now_ns)
{
    struct coven_parsed parsed;
    struct flow_key key;
    uint32_t flow = NONE, hash;
    uint8_t direction = 0;
    bool swapped;

    meta->flow = COVEN_NO_FLOW;
    meta->flow_epoch = 0;
    meta->flow_seq = 0;
    meta->direction = 0;
    table->gave_way = NONE;
    if (table->capacity == 0)
        return 0;
    coven_parse(data, length, &parsed);
    if (parsed.ip_version == 0)
        return 0;
    if (parsed.flags & COVEN_PARSED_LATER_FRAGMENT) {
        flow = follow_fragment(table, data, &parsed, &parsed, now_ns, &direction);
    } else if (parsed.flags & COVEN_PARSED_PORTS) {
        swapped = make_key(data, &parsed, &parsed, &key);
        hash = hash_of(table, &key);
        flow = index_find(table, &key, hash);
        if (flow == NONE)
            flow = make_flow(table, &key, hash, swapped, now_ns);
        if (flow == NONE)
            return COVEN_DROP_FLOW_TABLE_FULL + 1;
        direction = swapped != (entries(table)[flow].swapped & 1);
        if (parsed.flags & COVEN_PARSED_FRAGMENT) {
            struct fragment wanted;

            make_fragment(data, &parsed, &parsed, &wanted);
            fragment_learn(table, &wanted, flow, direction, now_ns);
        }
    } else {
        flow = follow_quote(table, data, &parsed, now_ns, &direction);
    }
    if (flow != NONE)
        assign(table, flow, direction, meta, now_ns);
    return 0;
}

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
    all = entries(table);
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
    if (flow >= table->capacity || entries(table)[flow].state != ENTRY_ENDED)
        return;
    set_state(&entries(table)[flow], ENTRY_FREE);
    free_push(table, flow);
    table->count--;
    table->removed++;
}

void coven_flow_let_give_way(struct coven_flow_table *table, bool may)
{
    table->may_give_way = may;
}

bool coven_flow_gave_way(struct coven_flow_table *table, uint32_t *flow, uint16_t *epoch)
{
    if (table->gave_way == NONE)
        return false;
    *flow = table->gave_way;
    *epoch = table->gave_way_epoch;
    table->gave_way = NONE;
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
    return flow < table->capacity ? entries(table)[flow].epoch : 0;
}
