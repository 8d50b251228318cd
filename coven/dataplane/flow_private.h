/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the flow table: its memory, and what its files need of each other. flow.h is for everybody else.
 *
 *   flow.c           entries, index, free list: how flows are made, age and end
 *   flow_key.c       the key of a packet and its hash
 *   flow_fragment.c  which flow the later fragments of a datagram follow
 *   flow_lookup.c    from a packet to its flow */
#ifndef COVEN_FLOW_PRIVATE_H
#define COVEN_FLOW_PRIVATE_H

#include <stdbool.h>
#include <string.h>

#include "flow.h"
#include "parse.h"

#define FRAGMENTS 1024u /* datagrams whose later fragments are awaited, power of two */
#define COVEN_FLOW_NONE UINT32_MAX
#define VID_BITS 0x0fffu /* IEEE 802.1Q: the VLAN; priority may differ within a flow */

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
    uint32_t next; /* in the chain of its bucket, or in the free list */
    uint16_t epoch;
    uint8_t state;   /* enum entry_state; stored last when an entry is made */
    uint8_t swapped; /* the first packet came from `high` */
    uint8_t reserved[4];
};

/* Datagram whose first fragment had ports. `flow` is COVEN_FLOW_NONE while the rest is written. */
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
    uint64_t swept_ns; /* when the sweep was last allowed to go on */
    uint32_t capacity;
    uint32_t n_buckets; /* power of two */
    uint32_t count;     /* entries not free */
    uint32_t free_head; /* released entries */
    uint32_t fresh;     /* entries from here on were never used in this life of the table */
    uint32_t cursor;    /* of the sweep */
    uint32_t unreported;
    uint32_t gave_way; /* in the last lookup, with gave_way_epoch; COVEN_FLOW_NONE: none did */
    uint64_t created;  /* in this life of the table */
    uint64_t removed;
    uint16_t gave_way_epoch;
    uint8_t may_give_way;
    uint8_t reserved[5];
};

_Static_assert(sizeof(struct flow_key) == 48, "hashed as six words");
_Static_assert(sizeof(struct flow_entry) == 88, "entry");
_Static_assert(sizeof(struct fragment) == 64, "fragment");
_Static_assert(sizeof(struct coven_flow_table) == 88, "table");

/* ---- places in the table's memory --------------------------------------------------------------- */
static inline size_t coven_flow_aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static inline struct flow_entry *coven_flow_entries(const struct coven_flow_table *table)
{
    return (struct flow_entry *)((uint8_t *)(uintptr_t)table + coven_flow_aligned(sizeof(*table)));
}

static inline struct fragment *coven_flow_fragments(const struct coven_flow_table *table)
{
    return (struct fragment *)((uint8_t *)coven_flow_entries(table) +
                               coven_flow_aligned((size_t)table->capacity * sizeof(struct flow_entry)));
}

static inline uint32_t *coven_flow_buckets(const struct coven_flow_table *table)
{
    return (uint32_t *)(coven_flow_fragments(table) + FRAGMENTS);
}

/* ---- flow_key.c --------------------------------------------------------------------------------- */
void coven_flow_load_addresses(const uint8_t *data, const struct coven_parsed *parsed, uint8_t source[16],
                               uint8_t destination[16]);
/* Key of a packet that has ports; returns whether source and destination changed places. `tags` is the packet
 * that carries the VLAN tags (the outer one for a quoted header). */
bool coven_flow_make_key(const uint8_t *data, const struct coven_parsed *parsed, const struct coven_parsed *tags,
                         struct flow_key *key);

static inline uint32_t coven_flow_hash_of(const struct coven_flow_table *table, const struct flow_key *key)
{
    return (uint32_t)coven_flow_hash(table->seed, key, sizeof(*key));
}

/* ---- flow.c ------------------------------------------------------------------------------------- */
/* A new flow, or COVEN_FLOW_NONE: the table is full. */
uint32_t coven_flow_make(struct coven_flow_table *table, const struct flow_key *key, uint32_t hash, bool swapped,
                         uint64_t now_ns);

static inline uint32_t coven_flow_find(const struct coven_flow_table *table, const struct flow_key *key, uint32_t hash)
{
    uint32_t flow = coven_flow_buckets(table)[hash & (table->n_buckets - 1)];

    while (flow != COVEN_FLOW_NONE) {
        const struct flow_entry *entry = &coven_flow_entries(table)[flow];

        if (entry->hash == hash && memcmp(&entry->key, key, sizeof(*key)) == 0)
            return flow;
        flow = entry->next;
    }
    return COVEN_FLOW_NONE;
}

/* ---- flow_fragment.c ---------------------------------------------------------------------------- */
/* Remember where the later fragments of a first one go. */
void coven_flow_fragment_learn(struct coven_flow_table *table, const uint8_t *data, const struct coven_parsed *parsed,
                               uint32_t flow, uint8_t direction, uint64_t now_ns);
/* Flow of a later fragment: that of the first, when it came. COVEN_FLOW_NONE otherwise. */
uint32_t coven_flow_fragment_follow(struct coven_flow_table *table, const uint8_t *data,
                                    const struct coven_parsed *parsed, const struct coven_parsed *tags, uint64_t now_ns,
                                    uint8_t *direction);

#endif
