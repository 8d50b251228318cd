/* SPDX-License-Identifier: Apache-2.0 */
/* NIC tool afxdp: AF_XDP sockets, one for each queue, whose memory is the packet pool.
 *
 * The supervisor made and bound the sockets; here their four rings are mapped. They live in the kernel and outlast the
 * worker, as the ledger does, which has the place in each ring that is booked:
 *   fill        free buffers lent to the kernel; `fill` moves in the intent that makes them the NIC's, then they are
 *               placed and shown. Places booked but not shown are found by their owners' positions.
 *   rx          packets; `rx` moves in the intent that makes them the worker's, then the entries are given back
 *   tx          a burst is placed and shown while the tx record names it; position.tx moves when it is counted
 *   completion  sent buffers; `completion` moves in the intent that makes them free, then the entries are given back
 * Written to the kernel is always what is booked, so saying it twice, or by a successor, changes nothing. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_xdp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "partial.h"
#include "port_afxdp.h"
#include "port_rx.h"

#define LEAST_FRAME 14u
#define MORE_FOLLOWS 1u   /* XDP_PKT_CONTD, which older headers lack: the socket was not opened for that */
#define PENDING_NS 50000u /* look again so soon while something is unsent */
#define WANT_AT_LEAST 32u /* lend in bursts */

/* ---- lifecycle ---- */
static int map_ring(int fd, struct coven_xdp_ring *ring, const struct xdp_ring_offset *offset, uint32_t entries,
                    size_t entry_bytes, off_t page)
{
    uint8_t *base;

    ring->map_bytes = (size_t)offset->desc + entries * entry_bytes;
    base = mmap(NULL, ring->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, page);
    if (base == MAP_FAILED)
        return -errno;
    ring->map = base;
    ring->producer = (uint32_t *)(void *)(base + offset->producer);
    ring->consumer = (uint32_t *)(void *)(base + offset->consumer);
    ring->flags = (uint32_t *)(void *)(base + offset->flags);
    ring->entries = base + offset->desc;
    ring->mask = entries - 1;
    return 0;
}

static int open_queue(struct coven_xdp_queue *queue, int fd, const struct coven_plan_port *plan)
{
    struct xdp_mmap_offsets offsets;
    socklen_t bytes = sizeof(offsets);
    int error;

    queue->fd = fd;
    if (getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &bytes) != 0)
        return -errno;
    if (bytes != sizeof(offsets))
        return -EINVAL;
    error = map_ring(fd, &queue->rx, &offsets.rx, plan->ring_frames, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING);
    if (!error)
        error =
            map_ring(fd, &queue->tx, &offsets.tx, plan->ring_frame_bytes, sizeof(struct xdp_desc), XDP_PGOFF_TX_RING);
    if (!error)
        error = map_ring(fd, &queue->fill, &offsets.fr, plan->ring_frames, sizeof(uint64_t),
                         (off_t)XDP_UMEM_PGOFF_FILL_RING);
    if (!error)
        error = map_ring(fd, &queue->completion, &offsets.cr, plan->ring_frame_bytes, sizeof(uint64_t),
                         (off_t)XDP_UMEM_PGOFF_COMPLETION_RING);
    return error;
}

static void unmap(struct coven_xdp_ring *ring)
{
    if (ring->map)
        munmap(ring->map, ring->map_bytes);
}

static void detach(struct coven_port *port)
{
    struct coven_afxdp *self = port->state;

    if (!self)
        return;
    for (uint16_t q = 0; q < COVEN_PORT_QUEUES; q++) {
        unmap(&self->queue[q].rx);
        unmap(&self->queue[q].tx);
        unmap(&self->queue[q].fill);
        unmap(&self->queue[q].completion);
    }
    if (self->epoll_fd >= 0)
        close(self->epoll_fd);
    free(self);
    port->state = NULL;
}

/* One descriptor to wait on for all queues. */
static int watch_queues(struct coven_afxdp *self)
{
    struct epoll_event event = {.events = EPOLLIN};

    if (self->n_queues == 1)
        return 0;
    self->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (self->epoll_fd < 0)
        return -errno;
    for (uint16_t q = 0; q < self->n_queues; q++)
        if (epoll_ctl(self->epoll_fd, EPOLL_CTL_ADD, self->queue[q].fd, &event) != 0)
            return -errno;
    return 0;
}

static bool is_power_of_two(uint32_t n)
{
    return n > 0 && (n & (n - 1)) == 0;
}

static int check(const struct coven_port *port, struct stat *status, char *why, size_t why_bytes)
{
    const struct coven_plan_port *plan = port->plan;
    int domain = 0;
    socklen_t bytes = sizeof(domain);

    bool is_xdp = port->n_queues > 0 && port->n_queues <= COVEN_PORT_QUEUES;

    for (uint16_t q = 0; q < port->n_queues && is_xdp; q++)
        is_xdp = getsockopt(port->queue_fd[q], SOL_SOCKET, SO_DOMAIN, &domain, &bytes) == 0 && domain == AF_XDP;
    if (!is_xdp || fstat(port->queue_fd[0], status) != 0) {
        snprintf(why, why_bytes, "a descriptor is no AF_XDP socket");
        return -EINVAL;
    }
    if (!is_power_of_two(plan->ring_frames) || !is_power_of_two(plan->ring_frame_bytes) ||
        plan->ring_frames > 1u << 20 || plan->ring_frame_bytes > 1u << 20 || plan->ring_frame_bytes < COVEN_BURST) {
        snprintf(why, why_bytes, "the plan asks for rings of %u and %u entries", plan->ring_frames,
                 plan->ring_frame_bytes);
        return -EINVAL;
    }
    return 0;
}

static int attach(struct coven_port *port, char *why, size_t why_bytes)
{
    struct xdp_options options = {0};
    socklen_t bytes = sizeof(options);
    struct coven_afxdp *self;
    struct stat status;
    int error = check(port, &status, why, why_bytes);

    if (error)
        return error;
    self = calloc(1, sizeof(*self));
    if (!self)
        return -ENOMEM;
    self->epoll_fd = -1;
    self->n_queues = port->n_queues;
    self->identity = (uint64_t)status.st_ino;
    self->is_partial = port->plan->flags & COVEN_PORT_PARTIAL;
    self->polls_busily = port->plan->flags & COVEN_PORT_BUSY_POLL;
    if (getsockopt(port->queue_fd[0], SOL_XDP, XDP_OPTIONS, &options, &bytes) == 0)
        self->is_zero_copy = options.flags & XDP_OPTIONS_ZEROCOPY;
    port->state = self;
    for (uint16_t q = 0; q < self->n_queues && !error; q++)
        error = open_queue(&self->queue[q], port->queue_fd[q], port->plan);
    if (!error)
        error = watch_queues(self);
    if (error) {
        snprintf(why, why_bytes, "the rings cannot be mapped: %s", strerror(-error));
        detach(port);
        return error;
    }
    port->is_renewed = port->position->rx[1] != self->identity;
    self->missed_before = port->is_renewed ? 0 : port->position->rx[0];
    return 0;
}

static void show(struct coven_port *port)
{
    struct coven_afxdp *self = port->state;

    for (uint16_t q = 0; q < self->n_queues; q++) {
        struct coven_xdp_queue *queue = &self->queue[q];

        coven_xdp_store(queue->rx.consumer, (uint32_t)port->queue[q].rx);
        coven_xdp_store(queue->completion.consumer, (uint32_t)port->queue[q].completion);
        if (coven_xdp_load(queue->fill.producer) == (uint32_t)port->queue[q].fill)
            continue;
        coven_xdp_store(queue->fill.producer, (uint32_t)port->queue[q].fill);
        if (coven_xdp_load(queue->fill.flags) & XDP_RING_NEED_WAKEUP)
            (void)!recvfrom(queue->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
    }
}

static void begin(struct coven_port *port)
{
    struct coven_afxdp *self = port->state;

    for (uint16_t q = 0; q < self->n_queues && port->is_renewed; q++)
        port->queue[q] = (struct coven_port_queue){
            .rx = coven_xdp_load(self->queue[q].rx.consumer),
            .completion = coven_xdp_load(self->queue[q].completion.consumer),
            .fill = coven_xdp_load(self->queue[q].fill.producer),
        };
    if (port->is_renewed) {
        port->position->rx[0] = 0;
        coven_afxdp_settle_tx(port);
    }
    port->position->rx[1] = self->identity;
    show(port);
}

/* ---- lending ---- */
static void place(struct coven_port *port, uint16_t q, const uint32_t *handles, uint16_t n)
{
    struct coven_afxdp *self = port->state;
    const struct coven_xdp_ring *ring = &self->queue[q].fill;

    for (uint16_t i = 0; i < n; i++)
        ((uint64_t *)ring->entries)[((uint32_t)port->queue[q].fill + i) & ring->mask] =
            (uint64_t)handles[i] * port->buffer_bytes;
}

/* What a queue has: places in the fill ring that the kernel has not taken, and packets that we have not. */
static uint32_t lent(const struct coven_port *port, uint16_t q)
{
    const struct coven_afxdp *self = port->state;
    const struct coven_xdp_queue *queue = &self->queue[q];

    return (uint32_t)port->queue[q].fill - coven_xdp_load(queue->fill.consumer) + coven_xdp_load(queue->rx.producer) -
           (uint32_t)port->queue[q].rx;
}

static uint32_t wants(struct coven_port *port, uint16_t *q)
{
    struct coven_afxdp *self = port->state;

    for (uint16_t i = 0; i < self->n_queues; i++) {
        uint32_t have = lent(port, i), most = port->share;

        if (most > self->queue[i].fill.mask + 1)
            most = self->queue[i].fill.mask + 1;
        if (have + WANT_AT_LEAST <= most) {
            *q = i;
            return most - have;
        }
    }
    return 0;
}

static uint16_t reap(struct coven_port *port, uint32_t *handles, uint16_t max, uint16_t *q, uint64_t *position)
{
    struct coven_afxdp *self = port->state;

    for (uint16_t i = 0; i < self->n_queues; i++) {
        const struct coven_xdp_ring *ring = &self->queue[i].completion;
        uint32_t at = (uint32_t)port->queue[i].completion, ready = coven_xdp_load(ring->producer) - at;
        uint16_t n = 0;

        if (ready == 0)
            continue;
        for (*position = port->queue[i].completion; ready > 0 && n < max; ready--, ++*position) {
            uint64_t address = ((const uint64_t *)ring->entries)[at++ & ring->mask];

            if (address / port->buffer_bytes < port->n_buffers)
                handles[n++] = (uint32_t)(address / port->buffer_bytes);
        }
        *q = i;
        return n;
    }
    return 0;
}

/* ---- receive ---- */
static void take(struct coven_port *port, struct coven_rx *rx, const struct xdp_desc *entry)
{
    struct coven_afxdp *self = port->state;
    uint64_t handle = entry->addr / port->buffer_bytes;
    uint32_t offset = (uint32_t)(entry->addr % port->buffer_bytes);

    rx->frames++;
    rx->bytes += entry->len;
    if (handle >= port->n_buffers || entry->len < LEAST_FRAME || entry->len > port->buffer_bytes - offset ||
        entry->options & MORE_FOLLOWS) {
        coven_rx_drop(rx, COVEN_DROP_TRUNCATED, 1);
        if (handle < port->n_buffers)
            rx->returned[rx->n_returned++] = (uint32_t)handle;
        return;
    }
    if (!coven_rx_admit(rx, port->pool_data + entry->addr, entry->len)) {
        rx->returned[rx->n_returned++] = (uint32_t)handle;
        return;
    }
    if (rx->n_rules > 0)
        rx->urgent[rx->n] = rx->is_urgent;
    if (self->is_partial)
        coven_partial_complete(port->pool_data + entry->addr, entry->len);
    rx->brought[rx->n] = (uint32_t)handle;
    rx->meta[rx->n].offset = (uint16_t)offset;
    rx->meta[rx->n].length = (uint16_t)entry->len;
    rx->meta[rx->n].timestamp_ns = rx->now_ns;
    rx->cut[rx->n] = 0;
    rx->n++;
}

static void rx_burst(struct coven_port *port, struct coven_rx *rx)
{
    struct coven_afxdp *self = port->state;

    coven_rx_begin(rx, port->position);
    rx->n_returned = 0;
    for (uint16_t i = 0; i < self->n_queues; i++) {
        uint16_t q = (uint16_t)((self->next + i) % self->n_queues);
        const struct coven_xdp_ring *ring = &self->queue[q].rx;
        const struct xdp_desc *entries = ring->entries;
        uint32_t at = (uint32_t)port->queue[q].rx, ready = coven_xdp_load(ring->producer) - at;

        if (ready == 0) {
            if (self->polls_busily)
                (void)!recvfrom(self->queue[q].fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
            continue;
        }
        if (ready > rx->n_handles)
            ready = rx->n_handles;
        for (uint32_t n = 0; n < ready; n++)
            __builtin_prefetch(port->pool_data + entries[(at + n) & ring->mask].addr);
        for (uint32_t n = 0; n < ready; n++)
            take(port, rx, &entries[(at + n) & ring->mask]);
        rx->queue = q;
        rx->queue_rx = port->queue[q].rx + ready;
        self->next = (uint16_t)(q + 1);
        return;
    }
}

static int wait_fd(struct coven_port *port, uint64_t *due_ns)
{
    struct coven_afxdp *self = port->state;
    bool is_pending = false;

    for (uint16_t q = 0; q < self->n_queues; q++)
        is_pending |= coven_xdp_load(self->queue[q].tx.producer) != coven_xdp_load(self->queue[q].tx.consumer);
    *due_ns = is_pending && !self->is_down ? coven_port_clock_ns() + PENDING_NS : UINT64_MAX;
    return self->epoll_fd >= 0 ? self->epoll_fd : self->queue[0].fd;
}

static uint64_t rx_missed(struct coven_port *port)
{
    struct coven_afxdp *self = port->state;
    uint64_t missed = 0;

    for (uint16_t q = 0; q < self->n_queues; q++) {
        struct xdp_statistics statistics = {0};
        socklen_t bytes = sizeof(statistics);

        if (getsockopt(self->queue[q].fd, SOL_XDP, XDP_STATISTICS, &statistics, &bytes) == 0)
            missed += statistics.rx_dropped + statistics.rx_ring_full;
    }
    port->position->rx[0] = missed; /* for a successor: the kernel counts from the opening on */
    return missed - self->missed_before;
}

static const struct coven_lending lending = {
    .begin = begin,
    .wants = wants,
    .place = place,
    .reap = reap,
    .show = show,
    .settle_tx = coven_afxdp_settle_tx,
    .kick = coven_afxdp_kick,
};

const struct coven_port_ops coven_port_afxdp = {
    .name = "afxdp",
    .attach = attach,
    .detach = detach,
    .rx_burst = rx_burst,
    .rx_release = show,
    .tx_burst = coven_afxdp_tx_burst,
    .tx_undo = coven_afxdp_tx_undo,
    .wait = wait_fd,
    .rx_missed = rx_missed,
    .rx_done = coven_port_never_done,
    .lending = &lending,
};
