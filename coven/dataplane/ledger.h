/* SPDX-License-Identifier: Apache-2.0 */
/* The ledger: who owns each packet buffer, and the record that makes a burst's book-keeping all or nothing.
 * Only the worker (and the supervisor, to count) maps it; no component can.
 *
 * Everything that counts is changed through the intent record: stores are collected there (coven_book_*), then
 * coven_book_commit() marks the record valid, carries the stores out and marks it done. All stores are
 * absolute, so a successor that finds a valid record carries it out again and twice is as good as once. A kill is
 * no power loss: what the dead worker stored is in memory in program order as far as we can see it, so compiler
 * barriers are enough. */
#ifndef COVEN_LEDGER_H
#define COVEN_LEDGER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <coven/abi.h>

#include "control.h"
#include "port.h"

#define COVEN_INTENT_OWNERS 256u
#define COVEN_INTENT_CELLS 256u
#define COVEN_INTENT_WORDS 64u
#define COVEN_MAX_COPY_BUFFERS 65535u /* a copy buffer's number has 16 bits in an owner word */

/* ---- owner words: kind, number of replica or component, copy buffer, ring position --------------- */
static inline uint64_t coven_owner(uint32_t kind, uint32_t number, uint32_t copy_buffer, uint32_t position)
{
    return (uint64_t)kind << 56 | (uint64_t)number << 48 | (uint64_t)copy_buffer << 32 | position;
}

static inline uint32_t coven_owner_kind(uint64_t owner)
{
    return (uint32_t)(owner >> 56);
}

static inline uint32_t coven_owner_number(uint64_t owner)
{
    return (uint32_t)(owner >> 48) & 0xffu;
}

static inline uint32_t coven_owner_copy_buffer(uint64_t owner)
{
    return (uint32_t)(owner >> 32) & 0xffffu;
}

static inline uint32_t coven_owner_position(uint64_t owner)
{
    return (uint32_t)owner;
}

/* ---- layout ------------------------------------------------------------------------------------ */
struct coven_intent {
    uint64_t valid;
    uint32_t n_owners, n_cells, n_words, reserved;
    uint64_t owner[COVEN_INTENT_OWNERS];
    uint32_t handle[COVEN_INTENT_OWNERS];
    uint64_t value[COVEN_INTENT_CELLS];
    uint32_t cell[COVEN_INTENT_CELLS];
    struct {
        uint64_t offset; /* in the ledger */
        uint64_t value;
    } word[COVEN_INTENT_WORDS];
};

/* A burst that is being handed to the kernel: until it is booked nobody knows whether it is outside. */
struct coven_tx_record {
    uint64_t n; /* 0: none */
    uint32_t port;
    uint32_t handle[COVEN_BURST];
};

/* The fused component that has packets in its hands just now. */
struct coven_breadcrumb {
    uint32_t component; /* index + 1; 0: none */
    uint32_t n;
    uint32_t handle[COVEN_BURST];
};

/* A packet in the rings or the hands of a replica. */
struct coven_given {
    uint32_t handle; /* COVEN_NO_HANDLE: no packet, the end of a flow */
    uint16_t copy;   /* number of its copy buffer, 0 with `shared` */
    uint16_t hop;    /* where it was given away */
};

/* What the worker believes of a replica's rings; the words in the replica segment are only told to the other side.
 * Packets come back in the order in which they were given, so those outside are a queue by in-ring position, from
 * given_head to in_tail; their owner word goes on saying `worker`. What leaves that order (held back, or returned out
 * of turn) gets an owner word of its own: kind replica. */
struct coven_ledger_replica {
    uint64_t segment;      /* identity of the segment the positions belong to; 0: none yet */
    uint64_t in_tail;      /* entries given to it */
    uint64_t out_head;     /* entries taken from it */
    uint64_t given_head;   /* first entry of the queue */
    uint64_t given_offset; /* struct coven_given [coven_given_size()]: the queue */
    uint64_t late_offset;  /* copy: a byte for each of its buffers, 1: taken away but not given back yet */
};

/* Entries of a replica's queue: as many as both its rings have. */
static inline uint32_t coven_given_size(const struct coven_plan_component *component)
{
    return 2 * component->ring_size;
}

struct coven_ledger {
    struct coven_segment_header header;
    uint32_t n_buffers;
    uint32_t n_free;       /* entries of the free list */
    uint64_t owner_offset; /* uint64_t [n_buffers] */
    uint64_t meta_offset;  /* struct coven_meta [n_buffers] */
    uint64_t ext_offset;   /* struct coven_meta_ext [n_buffers] */
    uint64_t free_offset;  /* uint32_t [n_buffers], a stack */
    uint64_t flow_offset;  /* struct coven_flow_table; 0: no component keeps flow state */
    uint8_t reserved[24];
    struct coven_port_position port[COVEN_MAX_PORTS];
    struct coven_port_queue queue[COVEN_MAX_PORTS][COVEN_PORT_QUEUES];
    struct coven_ledger_replica replica[COVEN_MAX_REPLICAS];
    struct coven_tx_record tx;
    struct coven_breadcrumb breadcrumb;
    struct coven_poison poison;
    struct coven_intent intent;
};

/* ---- book: the worker's hands on ledger and counters -------------------------------------------- */
struct coven_book {
    struct coven_ledger *ledger;
    uint32_t n_buffers;
    uint64_t *owner;
    struct coven_meta *meta;
    struct coven_meta_ext *ext;
    uint32_t *free;
    uint64_t *cell;             /* of the stats segment */
    int16_t place[COVEN_CELLS]; /* of a cell in the open intent, -1: not in it */
};

/* Bytes of a ledger for this plan. */
uint64_t coven_ledger_bytes(const struct coven_plan *plan);
/* Where the ledger has breadcrumb.component, for whoever wants to know in whose code a worker died. */
uint64_t coven_ledger_breadcrumb_offset(void);
/* Where the ledger has its struct coven_poison. */
uint64_t coven_ledger_poison_offset(void);
/* Fill in the offsets of a new ledger in zeroed memory: zero means free, empty, nothing under way. */
void coven_ledger_format(struct coven_ledger *ledger, const struct coven_plan *plan);
/* Check that the ledger has the layout that the plan asks for. Returns 0 or -EINVAL. */
int coven_ledger_check(const struct coven_ledger *ledger, const struct coven_plan *plan)
    __attribute__((warn_unused_result));

void coven_book_open(struct coven_book *book, struct coven_ledger *ledger, uint64_t *cells);
/* Carry out an intent that a dead worker left valid. Returns 1 if there was one, 0 if not. */
int coven_book_replay(struct coven_book *book);
/* Rebuild the free list from the owners. */
void coven_book_rebuild_free(struct coven_book *book);

/* Carry out what was collected; buffers that became free go to the free list. */
void coven_book_commit(struct coven_book *book);

/* Inline: these are called for each packet. */
/* Make sure that what follows up to the next call goes into one intent. */
static inline void coven_book_room(struct coven_book *book, uint32_t owners, uint32_t cells, uint32_t words)
{
    const struct coven_intent *intent = &book->ledger->intent;

    if (intent->n_owners + owners > COVEN_INTENT_OWNERS || intent->n_cells + cells > COVEN_INTENT_CELLS ||
        intent->n_words + words > COVEN_INTENT_WORDS)
        coven_book_commit(book);
}

/* Collect stores. The caller has made room; what belongs together must be in one coven_book_room(). */
static inline void coven_book_count(struct coven_book *book, uint32_t cell, uint64_t n)
{
    struct coven_intent *intent = &book->ledger->intent;
    int16_t at = book->place[cell];

    if (at < 0) {
        at = (int16_t)intent->n_cells++;
        book->place[cell] = at;
        intent->cell[at] = cell;
        intent->value[at] = book->cell[cell];
    }
    intent->value[at] += n;
}

static inline void coven_book_own(struct coven_book *book, uint32_t handle, uint64_t owner)
{
    struct coven_intent *intent = &book->ledger->intent;
    uint32_t at = intent->n_owners++;

    intent->handle[at] = handle;
    intent->owner[at] = owner;
}

/* The same owner for several. */
static inline void coven_book_own_all(struct coven_book *book, const uint32_t *handles, uint32_t n, uint64_t owner)
{
    struct coven_intent *intent = &book->ledger->intent;
    uint32_t at = intent->n_owners;

    intent->n_owners += n;
    memcpy(&intent->handle[at], handles, sizeof(handles[0]) * n);
    for (uint32_t i = 0; i < n; i++)
        intent->owner[at + i] = owner;
}

static inline void coven_book_word(struct coven_book *book, uint64_t *word, uint64_t value)
{
    struct coven_intent *intent = &book->ledger->intent;
    uint32_t at = intent->n_words++;

    intent->word[at].offset = (uint64_t)((uint8_t *)word - (uint8_t *)book->ledger);
    intent->word[at].value = value;
}

/* Drop a packet the worker owns: counter and owner together. Makes room itself. */
void coven_book_drop(struct coven_book *book, uint32_t handle, uint32_t scope, uint32_t reason);
/* Free buffers in the order in which they would be taken; taken by booking another owner for the first ones. */
uint16_t coven_book_peek_free(const struct coven_book *book, uint32_t *handles, uint16_t max);
/* The first n of the buffers that were peeked just now are no longer free: their new owner is in the open intent. */
void coven_book_take_free(struct coven_book *book, uint16_t peeked, uint16_t n);

/* ---- drop reasons ------------------------------------------------------------------------------ */
#include "drop_reasons.h"

#endif
