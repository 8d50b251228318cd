/* SPDX-License-Identifier: Apache-2.0 */
/* NIC tools: what the worker asks of a port. One struct of functions for each tool (afpacket, pcap, tap, gen, afxdp).
 *
 * A port never touches owners, free list or counters: it fills buffers it is given and tells what it did;
 * the worker books that in one intent and then calls rx_release. Where a port has read up to lies in
 * `position`, in the ledger, and survives the worker.
 *
 * A tool with `lending` has its buffers from the kernel: the worker lends it free ones, a received packet is in one
 * of those (rx.brought), and a buffer that was sent stays with the kernel until it is reaped (lending.c). */
#ifndef COVEN_PORT_H
#define COVEN_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <coven/abi.h>

#define COVEN_TX_SENT 0xffu /* result of tx_burst: sent; any other value is a drop reason */
#define COVEN_RX_DROPS 8u
#define COVEN_PORT_QUEUES 8u

/* Persistent place of a port in its input and output. Meaning is the tool's own (frame index and segment
 * within a super-frame; file offset). Each tool keeps the identity of the descriptor in it, so a place that
 * belongs to an earlier opening of the port counts as the beginning; nobody needs to clear it. */
struct coven_port_position {
    uint64_t rx[2];
    uint64_t tx[2];
};

/* Places in the rings of one queue, as they are booked; they run freely over 32 bits. What is sent by a port all goes
 * by its first queue, and that place is in position.tx. */
struct coven_port_queue {
    uint64_t rx, completion; /* entries taken */
    uint64_t fill;           /* entries given */
};

/* One receive burst. The worker sets the first group, the port the second. */
struct coven_rx {
    uint8_t *pool_data; /* buffer h begins at pool_data + h * buffer_bytes */
    uint32_t buffer_bytes;
    uint32_t headroom;       /* offset at which a packet is put */
    const uint32_t *handles; /* free buffers that the port may fill, in this order */
    uint16_t n_handles;      /* at most COVEN_BURST */
    uint64_t now_ns;         /* CLOCK_REALTIME */
    /* admission: coven_rx_admit() (port_rx.h) */
    uint32_t room;         /* packets that there is room for behind the port; counts down */
    uint32_t reserve;      /* of these, for packets with priority */
    uint32_t n_rules;      /* 0: no packet has priority */
    uint32_t refused_cell; /* counter of what is refused */
    const struct coven_plan_priority *rules;

    uint16_t n;                          /* buffers filled: handles[0..n-1] */
    struct coven_meta meta[COVEN_BURST]; /* offset, length and timestamp_ns of each; the rest untouched */
    uint32_t cut[COVEN_BURST];           /* bytes a capture file's frame is shorter than it was on the wire, else 0:
                                  stays with the packet (coven_tx_packet.cut), so that a written file keeps
                                  the original length */
    uint32_t frames;                     /* received from outside, also those dropped below */
    uint64_t bytes;
    uint32_t created; /* segments beyond the first of super-frames (also over several bursts) */
    struct {
        uint16_t reason;
        uint16_t n;
    } drops[COVEN_RX_DROPS]; /* frames (or created segments) that did not get into a buffer */
    uint16_t n_drops;
    uint16_t n_refused;       /* frames for which there was no room; counted by coven_rx_admit() */
    bool is_urgent;           /* the frame that was admitted last has priority; stays 0 without rules */
    bool urgent[COVEN_BURST]; /* by packet */
    uint64_t position[2];     /* port->position->rx once this burst is booked */

    /* set by ports that lend: */
    uint32_t brought[COVEN_BURST];  /* `handles` points here: the buffers that packets came in */
    uint32_t returned[COVEN_BURST]; /* buffers of frames that were dropped or refused */
    uint16_t n_returned;
    uint16_t queue;    /* that the burst came from */
    uint64_t queue_rx; /* port->queue[queue].rx once this burst is booked */
};

struct coven_tx_packet {
    const uint8_t *data;
    uint32_t length;
    uint64_t timestamp_ns; /* of reception; pcap writes it */
    uint32_t cut;          /* as given at rx; ports that send on a wire drop such a packet as `truncated` */
};

struct coven_port {
    const struct coven_port_ops *ops;
    const struct coven_plan_port *plan;
    struct coven_port_position *position; /* in the ledger; written by the worker only */
    int rx_fd, tx_fd;                     /* -1: none */
    uint16_t index;
    void *state; /* the tool's own, heap of the worker */
    /* for tools that lend: */
    int queue_fd[COVEN_PORT_QUEUES]; /* one socket for each queue; the first one is also rx_fd */
    uint16_t n_queues;
    struct coven_port_queue *queue; /* in the ledger; written by the worker and by `begin` only */
    uint8_t *pool_data;             /* buffer h begins at pool_data + h * buffer_bytes */
    uint32_t buffer_bytes, n_buffers;
    uint32_t share;  /* buffers that one queue may have for receiving */
    bool is_renewed; /* set by attach: what the ledger says is of an earlier opening of the port */
};

/* What a tool does that lends buffers to the kernel. Nothing here blocks. */
struct coven_lending {
    /* After attach, with buffers of an earlier opening taken back: agree with the ledger on all places. */
    void (*begin)(struct coven_port *port);
    /* Buffers that the kernel should get now, and for which queue. */
    uint32_t (*wants)(struct coven_port *port, uint16_t *queue);
    /* Place buffers from port->queue[queue].fill on; the kernel sees them by `show` once that is booked to have moved. */
    void (*place)(struct coven_port *port, uint16_t queue, const uint32_t *handles, uint16_t n);
    /* Sent buffers that the kernel is done with; *position becomes port->queue[*queue].completion. */
    uint16_t (*reap)(struct coven_port *port, uint32_t *handles, uint16_t max, uint16_t *queue, uint64_t *position);
    /* All places are booked: show them to the kernel. */
    void (*show)(struct coven_port *port);
    /* What was sent before a worker died is booked, be it as uncertain: port->position->tx is where the ring is. */
    void (*settle_tx)(struct coven_port *port);
    /* Have the kernel look at what it left unsent. True: something is still with it. */
    bool (*kick)(struct coven_port *port);
};

struct coven_port_ops {
    const char *name;
    /* Map and check what the descriptors offer. 0 or negative errno with a sentence in `why`. */
    int (*attach)(struct coven_port *port, char *why, size_t why_bytes);
    void (*detach)(struct coven_port *port);
    /* Fill at most rx->n_handles buffers from position on. Never blocks. */
    void (*rx_burst)(struct coven_port *port, struct coven_rx *rx);
    /* The burst is booked and port->position->rx updated: give back to the kernel what lies before it. */
    void (*rx_release)(struct coven_port *port);
    /* Send n packets (at most COVEN_BURST). results[i] becomes COVEN_TX_SENT or a drop reason for every i.
     * Never blocks. tx[2] becomes port->position->tx once this burst is booked. */
    void (*tx_burst)(struct coven_port *port, const struct coven_tx_packet *pkts, uint16_t n, uint8_t *results,
                     uint64_t tx[2]);
    /* After a worker died with a tx burst of these packets unbooked: undo what can be undone and return true
     * if it is certain that none is outside (they may then be dropped as worker-crash); false: uncertain. */
    bool (*tx_undo)(struct coven_port *port);
    /* Descriptor to poll for reading, or -1; *due_ns becomes the CLOCK_MONOTONIC time at which the port has
     * something to do by itself (UINT64_MAX: never). */
    int (*wait)(struct coven_port *port, uint64_t *due_ns);
    /* Frames the kernel lost before COVEN saw them since attach of the descriptor; grows only. */
    uint64_t (*rx_missed)(struct coven_port *port);
    /* True when the port will never receive again (pcap at its end, gen that made all). */
    bool (*rx_done)(struct coven_port *port);
    const struct coven_lending *lending; /* NULL: received packets are copied into buffers of the pool */
};

/* NULL for a tool this build does not have. */
const struct coven_port_ops *coven_port_ops_of(uint32_t tool);

extern const struct coven_port_ops coven_port_afpacket;
extern const struct coven_port_ops coven_port_pcap;
extern const struct coven_port_ops coven_port_tap;
extern const struct coven_port_ops coven_port_gen;
extern const struct coven_port_ops coven_port_afxdp;

#endif
