/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the flow table: its memory, and what its files need of each other. flow.h is for everybody else.
 *
 *   flow.c           entries and free list: how flows are made, age and end
 *   flow_index.c     the index that finds them
 *   flow_key.c       the key of a packet and its hash
 *   flow_fragment.c  which flow the later fragments of a datagram follow
 *   flow_lookup.c    from packets to their flows
 *   flow_export.c    flows listed, exported and imported
 *
 * What a packet touches is laid out by cache lines, because with a million flows each one touched is a miss: one of
 * the index (a bucket), one of the entry. */
#ifndef COVEN_FLOW_PRIVATE_H
#define COVEN_FLOW_PRIVATE_H

#include <stdbool.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "flow.h"
#include "parse.h"

#define FRAGMENTS 1024u /* datagrams whose later fragments are awaited, power of two */
#define COVEN_FLOW_NONE UINT32_MAX
#define VID_BITS 0x0fffu /* IEEE 802.1Q: the VLAN; priority may differ within a flow */
#define BUCKET_PLACES 8u

/* Zero from the first to the last byte before it is filled: it is compared as bytes. */
struct flow_key {
    uint8_t low[16], high[16]; /* the smaller of (address, port) first; IPv4 in the first four bytes */
    uint16_t low_port, high_port;
    uint16_t vlan[2];
    uint8_t n_vlans;
    uint8_t version;
    uint8_t protocol;
    uint8_t zero;
};

enum entry_state {
    ENTRY_FREE = 0,
    ENTRY_USED = 1,
    ENTRY_ENDED = 2,     /* reported by expire, waits for release */
    ENTRY_UNREPORTED = 3 /* ended for a worker that died; to be reported again */
};

enum entry_flag {
    ENTRY_SWAPPED = 1, /* the first packet came from `high` */
    ENTRY_MOVED = 2,   /* its state was taken away, or is not whole yet: packets of it are refused */
};

struct flow_entry {
    struct flow_key key;
    uint16_t epoch;
    uint8_t state;        /* enum entry_state; stored last when an entry is made */
    uint8_t flags;        /* enum entry_flag */
    uint64_t last_ns;     /* of a free entry: the next one in the free list */
    uint32_t sequence[2]; /* next number for each direction */
};

/* One line of the index. A key belongs into the bucket its hash says, or, while that is full, into one of those
 * behind it; `passed` counts the flows that went on from here, so a search goes on only as far as it must. */
struct flow_bucket {
    uint16_t tag[BUCKET_PLACES]; /* bits of the hash that do not choose the bucket; 0: free place */
    uint32_t flow[BUCKET_PLACES];
    uint32_t passed;
    uint8_t reserved[12];
};

/* Datagram whose first fragment had ports. `next` is the flow + 1, and 0 while the rest is written or there is none. */
struct fragment {
    uint8_t source[16], destination[16];
    uint64_t last_ns;
    uint32_t id;
    uint32_t next;
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
    uint32_t fresh;     /* entries from here on were never used; survives the worker, never shrinks */
    uint32_t cursor;    /* of the sweep, and of the search for one to give way */
    uint32_t unreported;
    uint32_t when_full; /* enum coven_flow_when_full */
    uint64_t created;   /* in this life of the table */
    uint64_t removed;
    uint32_t room; /* flows that may still give way */
    uint16_t n_gave_way, gave_way_next;
    uint32_t owed; /* entries the last call of expire might have looked at, had it had room for more flows */
    uint32_t reserved[9];
    uint32_t gave_way[COVEN_BURST]; /* in the last lookup */
    uint16_t gave_way_epoch[COVEN_BURST];
};

_Static_assert(sizeof(struct flow_key) == 44, "compared as bytes");
_Static_assert(sizeof(struct flow_entry) == COVEN_CACHE_LINE, "one line");
_Static_assert(sizeof(struct flow_bucket) == COVEN_CACHE_LINE, "one line");
_Static_assert(sizeof(struct fragment) == 64, "fragment");
_Static_assert(sizeof(struct coven_flow_table) == 320, "table");

/* ---- places in the table's memory --------------------------------------------------------------- */
static inline struct flow_entry *coven_flow_entries(const struct coven_flow_table *table)
{
    return (struct flow_entry *)((uint8_t *)(uintptr_t)table + sizeof(*table));
}

static inline struct fragment *coven_flow_fragments(const struct coven_flow_table *table)
{
    return (struct fragment *)(coven_flow_entries(table) + table->capacity);
}

static inline struct flow_bucket *coven_flow_buckets(const struct coven_flow_table *table)
{
    return (struct flow_bucket *)(coven_flow_fragments(table) + FRAGMENTS);
}

/* ---- flow_key.c --------------------------------------------------------------------------------- */
void coven_flow_load_addresses(const uint8_t *data, const struct coven_parsed *parsed, uint8_t source[16],
                               uint8_t destination[16]);
/* Key of a packet that has ports; returns whether source and destination changed places. `tags` is the packet
 * that carries the VLAN tags (the outer one for a quoted header). */
bool coven_flow_make_key(const uint8_t *data, const struct coven_parsed *parsed, const struct coven_parsed *tags,
                         struct flow_key *key);
uint64_t coven_flow_hash_of(const struct coven_flow_table *table, const struct flow_key *key);

/* ---- flow_index.c ------------------------------------------------------------------------------- */
uint32_t coven_flow_buckets_for(uint32_t capacity);
/* The key must not be in the index yet. */
void coven_flow_index_insert(struct coven_flow_table *table, uint32_t flow, uint64_t hash);
void coven_flow_index_remove(struct coven_flow_table *table, uint32_t flow, uint64_t hash);

static inline struct flow_bucket *coven_flow_home(const struct coven_flow_table *table, uint64_t hash)
{
    return &coven_flow_buckets(table)[hash & (table->n_buckets - 1)];
}

static inline uint16_t coven_flow_tag(uint64_t hash)
{
    uint16_t tag = (uint16_t)(hash >> 48);

    return tag ? tag : 1;
}

/* Bit i: place i of the bucket has this tag. */
static inline uint32_t coven_flow_match(const struct flow_bucket *bucket, uint16_t tag)
{
#if defined(__SSE2__)
    __m128i tags = _mm_load_si128((const __m128i *)(const void *)bucket->tag);
    __m128i equal = _mm_cmpeq_epi16(tags, _mm_set1_epi16((short)tag));

    return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128()));
#else
    uint32_t found = 0;

    for (uint32_t i = 0; i < BUCKET_PLACES; i++)
        found |= (uint32_t)(bucket->tag[i] == tag) << i;
    return found;
#endif
}

static inline bool coven_flow_same_key(const struct flow_key *a, const struct flow_key *b)
{
    return memcmp(a, b, sizeof(*a)) == 0;
}

/* The flow of a key, or COVEN_FLOW_NONE. */
static inline uint32_t coven_flow_find(const struct coven_flow_table *table, const struct flow_key *key, uint64_t hash)
{
    const struct flow_bucket *buckets = coven_flow_buckets(table);
    uint32_t at = (uint32_t)hash & (table->n_buckets - 1);
    uint16_t tag = coven_flow_tag(hash);

    for (uint32_t seen = 0; seen < table->n_buckets; seen++) {
        const struct flow_bucket *bucket = &buckets[at];

        for (uint32_t found = coven_flow_match(bucket, tag); found != 0; found &= found - 1) {
            uint32_t flow = bucket->flow[__builtin_ctz(found)];

            if (coven_flow_same_key(&coven_flow_entries(table)[flow].key, key))
                return flow;
        }
        if (bucket->passed == 0)
            break;
        at = (at + 1) & (table->n_buckets - 1);
    }
    return COVEN_FLOW_NONE;
}

/* ---- flow.c ------------------------------------------------------------------------------------- */
/* A new flow, or COVEN_FLOW_NONE: the table is full. */
uint32_t coven_flow_make(struct coven_flow_table *table, const struct flow_key *key, uint64_t hash, uint8_t flags,
                         uint64_t now_ns);

/* ---- flow_fragment.c ---------------------------------------------------------------------------- */
/* Remember where the later fragments of a first one go. */
void coven_flow_fragment_learn(struct coven_flow_table *table, const uint8_t *data, const struct coven_parsed *parsed,
                               uint32_t flow, uint8_t direction, uint64_t now_ns);
/* Flow of a later fragment: that of the first, when it came. COVEN_FLOW_NONE otherwise. */
uint32_t coven_flow_fragment_follow(struct coven_flow_table *table, const uint8_t *data,
                                    const struct coven_parsed *parsed, const struct coven_parsed *tags, uint64_t now_ns,
                                    uint8_t *direction);

#endif
