/* SPDX-License-Identifier: Apache-2.0 */
/* The shared-memory contract of COVEN: every segment, every offset, for every language.
 *
 * Segments are memfds created by the supervisor, sealed against shrink and grow. Everything inside is
 * addressed by offsets and 32-bit handles, never by pointers. Integers are in host byte order unless
 * their name ends in _be. Whoever maps a segment checks magic, abi_version, kind and bytes first.
 *
 *   segment   who maps it                               what is in it
 *   plan      worker (read only)                        ports, components, hops, paths, geometry
 *   pool      worker, `shared` components               packet buffers
 *   replica   worker, one isolated replica              two rings with metadata; in `copy` its own buffers
 *   state     worker, all replicas of one component     metric cells, flow state slots
 *   ledger    worker (and the supervisor, to count)     owner and metadata of each buffer, free list,
 *                                                       intent record, flow index, port positions
 *   stats     worker (writes), anybody granted (reads)  counters; has a POSIX shared memory name
 *
 * A worker that reads memory a component can write (pool, replica, state) copies a value once, checks it,
 * and uses the copy. Geometry is always taken from the plan, never from a segment a component can write.
 */
#ifndef COVEN_ABI_H
#define COVEN_ABI_H

#include <stdint.h>

#define COVEN_ABI_VERSION 2u

/* ---- limits ------------------------------------------------------------------------------------ */
#define COVEN_CACHE_LINE 64u
#define COVEN_BURST 32u /* packets handled at once */
#define COVEN_MAX_PORTS 16u
#define COVEN_MAX_COMPONENTS 64u
#define COVEN_MAX_REPLICAS 128u /* isolated replicas of one worker, numbered through all components */
#define COVEN_MAX_HOPS 256u
#define COVEN_MAX_PATHS 128u
#define COVEN_MAX_OUTPUTS 8u  /* outputs of one component */
#define COVEN_MAX_METRICS 64u /* metric cells of one replica */
#define COVEN_MAX_REASONS 64u
#define COVEN_MAX_PRIORITIES 32u     /* kinds of packets with priority */
#define COVEN_POOL_DATA_OFFSET 4096u /* of buffer 0 in the pool */
#define COVEN_NAME_BYTES 32u         /* NUL included: ^[a-z][a-z0-9-]{0,30}$ */
#define COVEN_USER_WORDS 4u
#define COVEN_NO_HANDLE 0xffffffffu
#define COVEN_NO_FLOW 0xffffffffu
#define COVEN_NO_HOP 0xffffu
#define COVEN_NO_PORT 0xffffu
#define COVEN_NO_REPLICA 0xffffu

/* ---- segments ---------------------------------------------------------------------------------- */
enum coven_segment_kind {
    COVEN_SEGMENT_PLAN = 1,
    COVEN_SEGMENT_POOL = 2,
    COVEN_SEGMENT_REPLICA = 3,
    COVEN_SEGMENT_STATE = 4,
    COVEN_SEGMENT_LEDGER = 5,
    COVEN_SEGMENT_STATS = 6,
};

#define COVEN_MAGIC 0x314e45564f43ull /* "COVEN1", first byte first on a little-endian host */

struct coven_segment_header {
    uint64_t magic;
    uint32_t abi_version;
    uint32_t kind;       /* enum coven_segment_kind */
    uint64_t bytes;      /* of the whole segment */
    uint32_t index;      /* of the component, replica or worker it belongs to */
    uint32_t generation; /* starts of its writer so far; 0 means never attached */
    uint64_t created_ns; /* CLOCK_MONOTONIC */
    uint8_t reserved[24];
};

/* ---- packet metadata --------------------------------------------------------------------------- */
enum coven_entry_kind {
    COVEN_ENTRY_PACKET = 0,
    COVEN_ENTRY_FLOW_REMOVED = 1, /* the flow in `flow` ends: deallocate its state, return the entry */
};

enum coven_verdict {
    COVEN_FORWARD = 0, /* to `output`; what a component that says nothing means */
    COVEN_DROP = 1,
    COVEN_HOLD = 2,    /* the component keeps the packet and gives it back in a later burst */
    COVEN_CONSUME = 3, /* the function took the packet for itself: not a drop, not a loss */
};

/* In the in-ring, beside the verdict: take this entry in a burst of its own, so that `current` names it. Set for packets
 * that were there when the component died before. */
#define COVEN_ALONE 0x80u

/* One line for each packet. [rw]: the component may change it and the worker takes it back after checking;
 * everything else is told to the component and ignored on return. In a ring it lies beside the packet's entry
 * (struct coven_entry), and what both have is valid in the entry only. */
struct coven_meta {
    uint32_t handle;                 /* buffer number in the pool (`shared`, fused) or in the replica's own (`copy`) */
    uint16_t offset;                 /* [rw] of the first byte of the packet within its buffer */
    uint16_t length;                 /* [rw] bytes of the packet, Ethernet header first, without FCS */
    uint16_t port;                   /* ingress port */
    uint16_t path;                   /* service path */
    uint16_t hop;                    /* place in the plan's hop table */
    uint8_t verdict;                 /* [rw] enum coven_verdict */
    uint8_t output;                  /* [rw] of the component, 0 first */
    uint32_t mark;                   /* [rw] */
    uint32_t flow;                   /* slot in the state segments, or COVEN_NO_FLOW */
    uint32_t flow_seq;               /* number of this packet within flow and direction, from 0 */
    uint16_t flow_epoch;             /* changes each time the slot is given to another flow */
    uint8_t direction;               /* 0: as the flow's first packet, 1: the other way */
    uint8_t kind;                    /* enum coven_entry_kind */
    uint64_t timestamp_ns;           /* CLOCK_REALTIME at rx; the recorded time for pcap ports */
    uint32_t random;                 /* drawn at rx, so that a replay decides alike */
    uint32_t nsh_path;               /* [rw] SPI << 8 | SI (RFC 8300 section 2.3); 0 without NSH */
    uint32_t user[COVEN_USER_WORDS]; /* [rw] words that components pass to each other */
};

/* What few packets need; a ring carries it beside the line above. Reached only where NSH is in use. */
struct coven_meta_ext {
    uint32_t nsh_context[4]; /* [rw] MD type 1 words (RFC 8300 section 2.4) */
    uint8_t nsh_flags;       /* bit 0: O bit */
    uint8_t nsh_ttl;
    uint8_t nsh_md_type;
    uint8_t nsh_next_protocol;
    uint16_t md2_offset; /* [rw] MD type 2 TLVs within the buffer (section 2.5), 0 for none */
    uint16_t md2_length;
    uint32_t attached; /* [rw] handle of a buffer with a larger message, or COVEN_NO_HANDLE */
    uint32_t attached_length;
    uint32_t cut; /* bytes a capture cut off the frame (port.h); the worker's own, 0 in a ring */
    uint8_t reserved[28];
};

/* ---- rings ------------------------------------------------------------------------------------- */
enum coven_entry_flag {
    COVEN_ENTRY_CHANGED =
        1,               /* out-ring: a [rw] word of the line (or ext) beside the entry was changed, or the entry is no
                                packet. Without it the worker does not read the line. */
    COVEN_ENTRY_LAP = 2, /* out-ring: coven_entry_lap() of the entry's position */
};

/* What goes through a ring for each packet: four to a cache line. The line of metadata beside it travels only
 * when somebody looks at it. */
struct coven_entry {
    uint32_t handle; /* buffer number in the pool (`shared`) or in the replica's own (`copy`) */
    uint16_t offset; /* [rw] as in struct coven_meta */
    uint16_t length; /* [rw] */
    uint8_t verdict; /* [rw] enum coven_verdict */
    uint8_t output;  /* [rw] */
    uint8_t kind;    /* enum coven_entry_kind */
    uint8_t flags;   /* enum coven_entry_flag */
    uint32_t commit; /* out-ring: commit word of the flow slot that makes a staged entry valid; 0: none */
};

/* Flag of the entry at a position of a ring: it changes with each lap, so whoever sweeps after a kill knows the
 * entries that were written beyond the tail (memory begins as zeros, so lap 0 is 1). */
#define coven_entry_lap(position, size) ((position) & (size) ? 0u : (unsigned int)COVEN_ENTRY_LAP)

/* Single producer, single consumer. Positions run freely over 32 bits; entry = position & (size - 1).
 * The size is in the plan (worker) or in the replica header (component), a power of two. */
struct coven_ring {
    uint32_t tail; /* producer: entries published so far */
    uint8_t pad0[COVEN_CACHE_LINE - 4];
    uint32_t head; /* consumer: entries taken so far */
    uint8_t pad1[COVEN_CACHE_LINE - 4];
    uint32_t sleeping; /* consumer: 1 while it blocks on its doorbell */
    uint8_t pad2[COVEN_CACHE_LINE - 4];
};

/* ---- pool -------------------------------------------------------------------------------------- */
struct coven_pool {
    struct coven_segment_header header;
    uint32_t n_buffers;
    uint32_t buffer_bytes; /* power of two, 2048 and more */
    uint32_t headroom;     /* offset of a received packet */
    uint32_t data_offset;  /* COVEN_POOL_DATA_OFFSET */
    uint8_t reserved[48];
};

/* ---- replica ----------------------------------------------------------------------------------- */
enum coven_isolation {
    COVEN_FUSED = 0,
    COVEN_SHARED = 1,
    COVEN_COPY = 2,
};

struct coven_replica {
    struct coven_segment_header header;
    /* written by the supervisor before the component starts */
    uint32_t isolation; /* enum coven_isolation */
    uint32_t ring_size; /* entries of each ring */
    uint32_t n_buffers; /* that a handle may name: of the pool (shared) or of this segment (copy) */
    uint32_t buffer_bytes;
    uint32_t data_offset; /* of buffer 0: in the pool (shared) or in this segment (copy) */
    uint32_t component;   /* index, also of the state segment */
    uint32_t replica;     /* number within the component, selects the metric cells */
    uint32_t outputs;
    uint64_t in_entry, in_meta, in_ext;    /* offsets of the arrays of the worker -> component ring */
    uint64_t out_entry, out_meta, out_ext; /* of the component -> worker ring */
    char name[COVEN_NAME_BYTES];
    uint8_t reserved0[16];
    /* written by the component */
    uint64_t progress;    /* grows with each burst and each wake-up */
    uint32_t current;     /* position in the in-ring of the entry being processed (the breadcrumb) */
    uint32_t held;        /* packets it holds back; told, not trusted */
    char last_words[128]; /* reason of an orderly failure, NUL terminated */
    uint8_t reserved[48];
    struct coven_ring in;  /* worker -> component */
    struct coven_ring out; /* component -> worker */
};

/* ---- state ------------------------------------------------------------------------------------- */
/* One slot for each flow: this header, then two halves of `half_bytes`. The current half is
 * commit & 1. Write the other half, stage the output, then store commit + 1 with release: a kill at any
 * point leaves one consistent state. */
struct coven_slot {
    uint32_t flow; /* own number */
    uint32_t commit;
    uint16_t epoch;   /* of the flow this state belongs to; differs from the packet's: not allocated yet */
    uint16_t version; /* of the component's state layout */
    uint32_t schema;  /* reserved: owner and migration use it later */
    uint64_t owner;   /* reserved */
    uint8_t reserved[8];
};

struct coven_state {
    struct coven_segment_header header;
    uint32_t n_slots;    /* 0: the component keeps no flow state */
    uint32_t slot_bytes; /* header and both halves, multiple of 64 */
    uint32_t half_bytes; /* usable bytes of a flow's state, multiple of 8 */
    uint32_t version;
    uint64_t slots_offset;
    uint64_t metrics_offset; /* cells[replica][COVEN_MAX_METRICS], 8 bytes each */
    uint32_t n_replicas;
    uint32_t n_metrics;
    uint8_t reserved[24];
};
/* A metric cell is a uint64_t for a counter and an IEEE 754 double for a gauge. One replica, one writer. */

/* ---- plan -------------------------------------------------------------------------------------- */
enum coven_port_tool {
    COVEN_PORT_AFPACKET = 1,
    COVEN_PORT_PCAP = 2,
    COVEN_PORT_TAP = 3,
    COVEN_PORT_GEN = 4,
    COVEN_PORT_AFXDP = 5,
};

enum coven_on_failure {
    COVEN_ON_FAILURE_DROP = 0,
    COVEN_ON_FAILURE_BYPASS = 1, /* to output 0 */
    COVEN_ON_FAILURE_STOP = 2,   /* dropped, and no port is read until the component is there again */
};

struct coven_plan_port {
    char name[COVEN_NAME_BYTES];
    uint32_t tool;       /* enum coven_port_tool */
    uint32_t mtu;        /* payload bytes behind the Ethernet header and up to two VLAN tags; 0: no limit */
    uint32_t first_hop;  /* hop a packet without NSH enters at, or COVEN_NO_HOP */
    uint32_t first_port; /* egress port if the path has no component, else COVEN_NO_PORT */
    uint32_t path;       /* path of a packet that enters here */
    /* afpacket: frames and frame bytes of the rx ring. afxdp: entries of the rx and fill rings (ring_frames) and of the
     * tx and completion rings (ring_frame_bytes). gen: see coven_plan_gen. pcap: flags */
    uint32_t ring_frames;
    uint32_t ring_frame_bytes;
    uint32_t flags; /* COVEN_PORT_* below */
    /* gen: source */
    uint64_t gen_packets; /* to make; 0 makes none, UINT64_MAX never ends */
    uint64_t gen_rate;    /* packets a second; 0: as fast as they are taken */
    uint32_t gen_bytes;   /* packet length; 0: simple IMIX, 7 x 64, 4 x 594, 1 x 1518 (incl. 4 bytes FCS) */
    uint32_t gen_flows;   /* UDP flows to walk through, 1 and more */
    /* of one of several workers: its flows and packets are numbered from here */
    uint64_t gen_first_packet;
    uint32_t gen_first_flow;
    uint8_t reserved[28];
};
#define COVEN_PORT_PACED 1u      /* pcap: at recorded pace */
#define COVEN_PORT_NANOSECOND 2u /* pcap: write nanosecond time stamps */
#define COVEN_PORT_LOOP 4u       /* pcap: start again at the end */
#define COVEN_PORT_PARTIAL 16u   /* afxdp: senders on this machine leave checksums to be completed */
#define COVEN_PORT_BUSY_POLL 32u /* afxdp: the worker drives the driver's queue itself */
#define COVEN_PORT_SKIP_CUT 8u   /* pcap: drop frames that the capture cut short (`truncated`) at once */

struct coven_plan_component {
    char name[COVEN_NAME_BYTES];
    uint32_t isolation;  /* granted: enum coven_isolation */
    uint32_t on_failure; /* enum coven_on_failure */
    uint32_t outputs;
    uint32_t first_replica; /* number of its first isolated replica */
    uint32_t n_replicas;    /* 1 and more; a fused component has exactly one and no replica segment */
    uint32_t state_bytes;   /* of one flow, 0: none */
    uint32_t state_version;
    uint32_t ring_size;  /* of its replicas */
    uint32_t hold_limit; /* packets a replica may hold */
    uint32_t hold_ms;    /* and for how long */
    uint32_t split;      /* reserved: key for replicas */
    uint32_t n_buffers;  /* packets a replica may have at once; copy: buffers of its own */
    uint32_t hang_ms;    /* it hangs when it moves nothing so long with packets waiting; 0: nobody looks */
    uint8_t reserved[44];
};

/* Where a packet goes next: hop if not COVEN_NO_HOP, else port if not COVEN_NO_PORT, else nowhere
 * (dropped: no-output). */
struct coven_plan_next {
    uint16_t hop;
    uint16_t port;
};

struct coven_plan_hop {
    uint16_t component;
    uint16_t path;
    struct coven_plan_next next[COVEN_MAX_OUTPUTS];
    uint8_t reserved[28];
};

struct coven_plan_path {
    char name[COVEN_NAME_BYTES];
    uint32_t spi; /* 0: without NSH */
    uint8_t reserved[28];
};

/* Packets that still come in when there is no room for others. */
enum coven_priority_kind {
    COVEN_PRIORITY_ETHER = 1, /* value: EtherType behind all tags */
    COVEN_PRIORITY_IP = 2,    /* protocol number; IPv6: behind the extension headers */
    COVEN_PRIORITY_UDP = 3,   /* port, source or destination */
    COVEN_PRIORITY_TCP = 4,
    COVEN_PRIORITY_ND = 5, /* ICMPv6 types 133 to 137; value: 0 */
};

struct coven_plan_priority {
    uint16_t kind; /* enum coven_priority_kind */
    uint16_t value;
};

/* Which flow gives its slot to a new one when the table is full. A flow whose idle time is over does but with the second. */
enum coven_flow_when_full {
    COVEN_WHEN_FULL_IDLE = 0,    /* no other */
    COVEN_WHEN_FULL_REFUSE = 1,  /* none at all */
    COVEN_WHEN_FULL_ONE_WAY = 2, /* the oldest of those that had packets in one direction only */
    COVEN_WHEN_FULL_OLDEST = 3,  /* the oldest */
};

enum coven_profile {
    COVEN_PROFILE_BALANCED = 0,
    COVEN_PROFILE_LOW_LATENCY = 1,
    COVEN_PROFILE_POWER_SAVE = 2,
};

struct coven_plan {
    struct coven_segment_header header;
    char instance[64];
    uint32_t n_ports, n_components, n_replicas, n_hops, n_paths;
    uint32_t n_buffers, buffer_bytes, headroom;
    uint32_t n_flows; /* capacity of the flow table; 0: no component keeps flow state */
    uint32_t flow_idle_ms;
    uint32_t profile; /* enum coven_profile */
    uint32_t n_priorities;
    uint64_t flow_seed[2]; /* secret key of the flow hash */
    uint64_t ledger_bytes;
    uint32_t flow_when_full; /* enum coven_flow_when_full */
    uint32_t reserved0;
    struct coven_plan_port ports[COVEN_MAX_PORTS];
    struct coven_plan_component components[COVEN_MAX_COMPONENTS];
    /* hops are in topological order: next[].hop is always greater than the hop's own number */
    struct coven_plan_hop hops[COVEN_MAX_HOPS];
    struct coven_plan_path paths[COVEN_MAX_PATHS];
    struct coven_plan_priority priorities[COVEN_MAX_PRIORITIES];
};

/* ---- stats: counters --------------------------------------------------------------------------- */
/* All counters are one array of uint64_t after the header; a counter is named by its cell number, so the
 * intent record in the ledger can name any of them. One worker writes; anybody may read at any time. */
enum coven_port_counter {
    COVEN_PORT_RX_PKTS,
    COVEN_PORT_RX_BYTES,
    COVEN_PORT_TX_PKTS,
    COVEN_PORT_TX_BYTES,
    COVEN_PORT_CREATED,   /* further segments of split super-frames */
    COVEN_PORT_RX_MISSED, /* lost by the kernel before COVEN saw it; outside the accounting */
    COVEN_PORT_COUNTERS = 8,
};

enum coven_component_counter {
    COVEN_COMPONENT_IN_PKTS,
    COVEN_COMPONENT_OUT_PKTS,
    COVEN_COMPONENT_CREATED,
    COVEN_COMPONENT_CONSUMED,
    COVEN_COMPONENT_VIOLATIONS, /* entries refused because the component may not say that */
    COVEN_COMPONENT_CYCLES, /* time stamp counter spent in it, fused only; taken from a random eighth of all bursts */
    COVEN_COMPONENT_RESTARTS,
    COVEN_COMPONENT_COUNTERS = 8,
};

enum coven_path_counter {
    COVEN_PATH_RX_PKTS,
    COVEN_PATH_RX_BYTES,
    COVEN_PATH_TX_PKTS,
    COVEN_PATH_TX_BYTES,
    COVEN_PATH_COUNTERS = 4,
};

enum coven_worker_counter {
    COVEN_WORKER_LOOPS,
    COVEN_WORKER_BUSY_LOOPS,
    COVEN_WORKER_SLEEPS,
    COVEN_WORKER_RECOVERIES, /* starts that found another worker's ledger */
    COVEN_WORKER_FLOWS,      /* in the flow table now */
    COVEN_WORKER_FLOWS_CREATED,
    COVEN_WORKER_FLOWS_REMOVED,
    COVEN_WORKER_COUNTERS = 8,
};

/* Who dropped it: component 0..63, port 64..79, the worker itself 80. */
#define COVEN_SCOPE_COMPONENT(c) (c)
#define COVEN_SCOPE_PORT(p) (COVEN_MAX_COMPONENTS + (p))
#define COVEN_SCOPE_WORKER (COVEN_MAX_COMPONENTS + COVEN_MAX_PORTS)
#define COVEN_SCOPES (COVEN_SCOPE_WORKER + 1u)

#define COVEN_CELL_WORKER(k) (k)
#define COVEN_CELL_PORT(p, k) (8u + (p)*8u + (k))
#define COVEN_CELL_COMPONENT(c, k) (8u + 8u * COVEN_MAX_PORTS + (c)*8u + (k))
#define COVEN_CELL_PATH(p, k) (8u + 8u * COVEN_MAX_PORTS + 8u * COVEN_MAX_COMPONENTS + (p)*4u + (k))
#define COVEN_CELL_DROP(scope, reason)                                                                                 \
    (8u + 8u * COVEN_MAX_PORTS + 8u * COVEN_MAX_COMPONENTS + 4u * COVEN_MAX_PATHS + (scope)*COVEN_MAX_REASONS +        \
     (reason))
#define COVEN_CELLS COVEN_CELL_DROP(COVEN_SCOPES, 0)

/* Behind the cells, and in no snapshot: how long packets took from rx to tx, by the path that they came in on. Not all
 * are looked at: those sent in one moment every COVEN_LATENCY_EVERY_NS. Buckets are a quarter of a power of two wide:
 * bucket 0 is up to 64 ns, bucket b begins at (4 + (b - 1) % 4) << (4 + (b - 1) / 4) ns, the last has no end. */
#define COVEN_LATENCY_BUCKETS 96u
#define COVEN_LATENCY_EVERY_NS 10000u
#define COVEN_LATENCY(path, bucket) (COVEN_CELLS + (path)*COVEN_LATENCY_BUCKETS + (bucket))

/* Behind those, and in no snapshot either: violations of each component by kind. Their sum is in its counter. */
enum coven_violation {
    COVEN_VIOLATION_HANDLE_RANGE,   /* handle that is none */
    COVEN_VIOLATION_HANDLE_FOREIGN, /* handle it was not given; in `shared` also one that it gave back before */
    COVEN_VIOLATION_HANDLE_TWICE,   /* `copy`: a packet that it gave back before */
    COVEN_VIOLATION_BOUNDS,         /* length or offset beyond the buffer, or no length */
    COVEN_VIOLATION_OUTPUT,         /* output that it does not have */
    COVEN_VIOLATION_VERDICT,        /* verdict that does not exist */
    COVEN_VIOLATION_RING_WORDS,     /* position in a ring that cannot be */
    COVEN_VIOLATION_FLOW_ANSWER,    /* the end of a flow that nobody told it of */
    COVEN_VIOLATION_FLOW_SILENCE,   /* no answer to the end of a flow for 2 s */
    COVEN_VIOLATION_KINDS,
};
#define COVEN_VIOLATION_CELLS 12u /* for each component */
#define COVEN_VIOLATION(component, kind)                                                                               \
    (COVEN_LATENCY(COVEN_MAX_PATHS, 0) + (component)*COVEN_VIOLATION_CELLS + (kind))
#define COVEN_STATS_WORDS COVEN_VIOLATION(COVEN_MAX_COMPONENTS, 0)

struct coven_stats {
    struct coven_segment_header header;
    char instance[64];
    uint64_t heartbeat_ns; /* CLOCK_MONOTONIC, stored when the worker wakes and every 1024 loops */
    uint64_t reserved[7];
    uint64_t cell[]; /* COVEN_STATS_WORDS */
};

_Static_assert(sizeof(struct coven_segment_header) == 64, "segment header");
_Static_assert(sizeof(struct coven_meta) == 64, "one line a packet");
_Static_assert(sizeof(struct coven_meta_ext) == 64, "one line beside it");
_Static_assert(sizeof(struct coven_entry) == 16, "four entries a line");
_Static_assert(sizeof(struct coven_ring) == 192, "tail, head and sleeping on lines of their own");
_Static_assert(sizeof(struct coven_replica) == 768, "replica");
_Static_assert(sizeof(struct coven_slot) == 32, "slot header");
_Static_assert(sizeof(struct coven_state) == 128, "state");
_Static_assert(sizeof(struct coven_plan_port) == 128, "plan port");
_Static_assert(sizeof(struct coven_plan_component) == 128, "plan component");
_Static_assert(sizeof(struct coven_plan_hop) == 64, "plan hop");
_Static_assert(sizeof(struct coven_plan_path) == 64, "plan path");
_Static_assert(sizeof(struct coven_stats) == 192, "stats");

/* ---- launch contract: descriptors of a component process ---------------------------------------- */
#define COVEN_FD_DOORBELL 0 /* read and thrown away when the in-ring is empty; fd 0 so that every language can */
/* 1 and 2: standard output and error, read by the supervisor as the component's log */
#define COVEN_FD_AGENT 3 /* SOCK_SEQPACKET: Extended Agent protocol, see docs/extended_agent.md */
#define COVEN_FD_REPLICA 4
#define COVEN_FD_STATE 5
#define COVEN_FD_WORKER 6 /* 8 bytes are written to it when the worker sleeps on the out-ring */
#define COVEN_FD_POOL 7   /* `shared` only */

#endif
