/* SPDX-License-Identifier: Apache-2.0 */
/* Sending by AF_XDP. A burst is placed in the tx ring and shown; in copy mode the kernel looks at the ring only when it
 * is called, and takes at most 32 packets a call. What it does not take at once stays in the ring, sent with a later call.
 *
 * Packets count as sent once they are in the ring, as with any NIC. A port that is down must not take them: the kernel
 * refuses the call before it looks, and then the burst is taken out of the ring again. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_xdp.h>
#include <sys/socket.h>

#include "fault.h"
#include "port_afxdp.h"
#include "port_rx.h"

#define IDLE_CALLS 2u /* calls in a row by which nothing moves before we give up */

/* The burst being sent: entry i of the ring, from `first` on, is packet which[i]. */
struct burst {
    uint32_t first;
    uint16_t n;
    uint16_t which[COVEN_BURST];
    uint8_t *results;
};

static bool refuses_all(int error)
{
    return error == ENETDOWN || error == ENXIO || error == ENODEV;
}

/* Call the kernel until it has taken everything or nothing moves. Returns 0, or the errno by which it refused. */
static int call_kernel(const struct coven_xdp_queue *queue, bool is_zero_copy, struct burst *burst)
{
    uint32_t idle = 0, shown = *queue->tx.producer, before = coven_xdp_load(queue->tx.consumer);

    while (before != shown && idle < IDLE_CALLS) {
        int error;

        if (is_zero_copy && (coven_xdp_load(queue->tx.flags) & XDP_RING_NEED_WAKEUP) == 0)
            return 0; /* the driver is at it */
        error = sendto(queue->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 ? errno : 0;
        if (refuses_all(error))
            return error;
        if (is_zero_copy)
            return 0;
        idle = coven_xdp_load(queue->tx.consumer) == before ? idle + 1 : 0;
        before = coven_xdp_load(queue->tx.consumer);
        /* EBUSY: the last one that it took, it threw away */
        if (error == EBUSY && idle == 0 && burst && before - 1 - burst->first < burst->n)
            burst->results[burst->which[before - 1 - burst->first]] = COVEN_DROP_TX_FULL;
    }
    return 0;
}

bool coven_afxdp_kick(struct coven_port *port)
{
    struct coven_afxdp *self = port->state;
    bool is_pending = false;

    for (uint16_t q = 0; q < self->n_queues; q++) {
        struct coven_xdp_queue *queue = &self->queue[q];

        if (coven_xdp_load(queue->tx.consumer) == *queue->tx.producer)
            continue;
        self->is_down = call_kernel(queue, self->is_zero_copy, NULL) != 0;
        is_pending |= coven_xdp_load(queue->tx.consumer) != *queue->tx.producer;
    }
    return is_pending;
}

/* Whether a port that was down still is: the kernel says so before it looks at its ring. */
static bool is_still_down(struct coven_afxdp *self)
{
    if (self->is_down)
        self->is_down = sendto(self->queue[0].fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && refuses_all(errno);
    return self->is_down;
}

/* Put what can be sent into the ring, not yet shown. Sets the results of all. */
static void place(struct coven_port *port, const struct coven_tx_packet *pkts, uint16_t n, struct burst *burst)
{
    const struct coven_afxdp *self = port->state;
    const struct coven_xdp_ring *ring = &self->queue[0].tx;
    uint32_t room = ring->mask + 1 - (burst->first - coven_xdp_load(ring->consumer));

    for (uint16_t i = 0; i < n; i++) {
        burst->results[i] = coven_tx_refused(&pkts[i]);
        if (burst->results[i] != COVEN_TX_SENT)
            continue;
        if (burst->n == room) {
            burst->results[i] = COVEN_DROP_TX_FULL;
            continue;
        }
        ((struct xdp_desc *)ring->entries)[(burst->first + burst->n) & ring->mask] = (struct xdp_desc){
            .addr = (uint64_t)(pkts[i].data - port->pool_data),
            .len = pkts[i].length,
        };
        burst->which[burst->n++] = i;
    }
}

void coven_afxdp_tx_burst(struct coven_port *port, const struct coven_tx_packet *pkts, uint16_t n, uint8_t *results,
                          uint64_t tx[2])
{
    struct coven_afxdp *self = port->state;
    struct coven_xdp_queue *queue = &self->queue[0];
    struct burst burst = {.first = *queue->tx.producer, .results = results};
    int error;

    coven_port_keep_tx(port, tx);
    if (is_still_down(self)) {
        for (uint16_t i = 0; i < n; i++)
            results[i] = COVEN_DROP_PORT_DOWN;
        return;
    }
    place(port, pkts, n, &burst);
    if (burst.n == 0)
        return;
    COVEN_FAULT("worker-nic-placed");
    coven_xdp_store(queue->tx.producer, burst.first + burst.n);
    COVEN_FAULT("worker-nic-shown");
    tx[0] = burst.first + burst.n;
    error = call_kernel(queue, self->is_zero_copy, &burst);
    self->is_down = error != 0;
    if (error == 0 || self->is_zero_copy || coven_xdp_load(queue->tx.consumer) != burst.first)
        return; /* what is left there goes with a later call */
    coven_xdp_store(queue->tx.producer, burst.first);
    tx[0] = burst.first;
    for (uint16_t i = 0; i < burst.n; i++)
        results[burst.which[i]] = COVEN_DROP_PORT_DOWN;
}

bool coven_afxdp_tx_undo(struct coven_port *port)
{
    const struct coven_afxdp *self = port->state;

    return !port->is_renewed && *self->queue[0].tx.producer == (uint32_t)port->position->tx[0];
}

void coven_afxdp_settle_tx(struct coven_port *port)
{
    const struct coven_afxdp *self = port->state;

    port->position->tx[0] = *self->queue[0].tx.producer;
}
