/* SPDX-License-Identifier: Apache-2.0 */
/* Messages between supervisor and worker (docs/internals.md section 3). Included by cffi as well: only
 * fixed-width members, and constants written as plain numbers. */
#ifndef COVEN_CONTROL_H
#define COVEN_CONTROL_H

#include <stdint.h>

#include <coven/abi.h>

#define COVEN_CONTROL_FD 3
#define COVEN_CONTROL_REPLY 0x80000000
#define COVEN_CONTROL_PAYLOAD 65472 /* with the 64 bytes before it, a datagram of 64 KiB */
#define COVEN_CONTROL_FDS 8

enum coven_control_op {
    COVEN_CONTROL_SEGMENT = 1,
    COVEN_CONTROL_PORT = 2,
    COVEN_CONTROL_CODE = 3,
    COVEN_CONTROL_READY = 4,
    COVEN_CONTROL_RUN = 5,
    COVEN_CONTROL_PAUSE = 6,
    COVEN_CONTROL_ATTACH = 7,
    COVEN_CONTROL_DETACH = 8,
    COVEN_CONTROL_SNAPSHOT = 9,
    COVEN_CONTROL_AGENT = 10,
    COVEN_CONTROL_EXIT = 11,
    COVEN_CONTROL_ATTENTION = 12,
    COVEN_CONTROL_POISON_CLEAR = 13,
    COVEN_CONTROL_HALT = 14,
    COVEN_CONTROL_FLOWS = 16,
    COVEN_CONTROL_FLOW_EXPORT = 17,
    COVEN_CONTROL_FLOW_IMPORT = 18,
    COVEN_CONTROL_NOTIFY = 64, /* worker to supervisor, not asked for and not answered; arg[0] says what */
};

/* Packets under suspicion and poison packets of all components: in the ledger, read by the supervisor (poison.h). */
#define COVEN_POISON_ENTRIES 64
#define COVEN_POISON_BYTES 1984

struct coven_poison_entry {
    uint64_t fingerprint; /* 0: no entry */
    uint64_t seen_ns;     /* CLOCK_MONOTONIC, of the last death or packet */
    uint64_t dropped;
    uint64_t timestamp_ns; /* CLOCK_REALTIME, when the packet was received */
    uint32_t component;
    uint32_t deaths; /* 1: a suspect, more: poison */
    uint32_t number; /* of poison packets, from 1 */
    uint32_t length; /* of the packet, */
    uint32_t kept;   /* and how much of it lies in `bytes` */
    uint32_t position;
    uint32_t is_pending; /* it was given alone at in-ring position `position` */
    uint32_t reserved;
    uint8_t bytes[1984];
};

struct coven_poison {
    uint32_t n_marked; /* poison packets so far */
    uint32_t n_given;  /* packets in the hands of the fused component given_component - 1, as they were given */
    uint32_t given_component;
    uint32_t reserved;
    uint64_t given[32];
    struct coven_poison_entry entry[64];
};

/* What a NOTIFY tells: arg[0]. One that does not fit the socket is lost; what must not be lost lies in memory. */
enum coven_notice {
    COVEN_NOTICE_STILL = 1,     /* replica `index` has packets and has not moved for half its limit */
    COVEN_NOTICE_HUNG = 2,      /* ... for arg[1] times its limit; told again each limit */
    COVEN_NOTICE_MOVING = 3,    /* ... it moves again */
    COVEN_NOTICE_FUSED = 4,     /* fused component `index` does not return: the worker ends with status 4 */
    COVEN_NOTICE_VIOLATION = 5, /* component `index` broke a rule: arg[1] replica or COVEN_NO_REPLICA, arg[2] times */
};

/* arg[0] of FLOW_EXPORT. */
enum coven_flow_export_mode {
    COVEN_FLOW_EXPORT_COPY = 0, /* the flow goes on here */
    COVEN_FLOW_EXPORT_MOVE = 1, /* its packets are refused from now on */
    COVEN_FLOW_EXPORT_BACK = 2, /* nothing is exported, its packets are taken again */
};

struct coven_control {
    uint32_t op;
    uint32_t seq;
    uint32_t index;
    int32_t result;
    uint64_t arg[6];
};

/* Who has a buffer: index of coven_snapshot.held_by_kind and kind of an owner word. */
enum coven_owner_kind {
    COVEN_OWNER_FREE = 0,
    COVEN_OWNER_WORKER = 1,     /* between rx and tx, in one turn of the loop */
    COVEN_OWNER_FUSED = 2,      /* held back by a fused component */
    COVEN_OWNER_REPLICA = 3,    /* in the rings or the hands of an isolated replica */
    COVEN_OWNER_QUARANTINE = 4, /* packet taken away and counted as dropped, buffer still within a component's reach */
    COVEN_OWNER_NIC = 5,        /* lent to a NIC: to receive into, or sent and not given back; no packet of ours */
    COVEN_OWNER_KINDS = 6,
};

struct coven_snapshot {
    uint64_t time_ns; /* CLOCK_REALTIME */
    uint64_t rx, created, tx, consumed, drops;
    uint64_t held; /* owners neither free nor in quarantine */
    uint64_t free_buffers;
    uint64_t held_by_kind[8];
    uint64_t held_by_component[64]; /* fused and isolated */
    uint64_t held_by_replica[128];
    uint64_t n_cells;
    uint64_t cell[6344]; /* COVEN_CELLS */
};

#endif
