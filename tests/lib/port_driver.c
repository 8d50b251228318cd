/* SPDX-License-Identifier: Apache-2.0 */
/* Drives ports without a worker: one pool of its own, books each burst at once, forwards between two ports. */
#include "port_driver.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "port.h"

#define DRIVER_BOOK_ONLY 2 /* killed between the booking and the release */

struct driver {
    struct coven_port port;
    struct coven_plan_port plan;
    struct driver_shared *shared;
    struct coven_rx rx;
    uint32_t handles[COVEN_BURST];
    uint32_t buffer_bytes;
    uint8_t *pool;
};

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct driver *driver_open(const struct driver_plan *plan, struct driver_shared *shared, char *why)
{
    struct driver *self = calloc(1, sizeof(*self));

    why[0] = 0;
    self->plan.tool = plan->tool;
    self->plan.ring_frames = plan->ring_frames;
    self->plan.ring_frame_bytes = plan->ring_frame_bytes;
    self->plan.flags = plan->flags;
    self->plan.gen_packets = plan->gen_packets;
    self->plan.gen_rate = plan->gen_rate;
    self->plan.gen_bytes = plan->gen_bytes;
    self->plan.gen_flows = plan->gen_flows;
    self->shared = shared;
    self->buffer_bytes = plan->buffer_bytes;
    self->pool = calloc(COVEN_BURST, plan->buffer_bytes);
    self->port.plan = &self->plan;
    self->port.position = (struct coven_port_position *)shared->position;
    self->port.rx_fd = plan->rx_fd;
    self->port.tx_fd = plan->tx_fd;
    self->port.ops = coven_port_ops_of(plan->tool);
    for (uint32_t i = 0; i < COVEN_BURST; i++)
        self->handles[i] = COVEN_BURST - 1 - i; /* handles are in no order */
    if (!self->port.ops || self->port.ops->attach(&self->port, why, 200) != 0) {
        free(self->pool);
        free(self);
        return NULL;
    }
    return self;
}

void driver_close(struct driver *self)
{
    self->port.ops->detach(&self->port);
    free(self->pool);
    free(self);
}

uint16_t driver_rx(struct driver *self, uint16_t max, int book)
{
    struct driver_shared *shared = self->shared;
    struct coven_rx *rx = &self->rx;

    rx->pool_data = self->pool;
    rx->buffer_bytes = self->buffer_bytes;
    rx->headroom = 256;
    rx->handles = self->handles;
    rx->n_handles = max;
    rx->room = UINT32_MAX;
    rx->now_ns = clock_ns(CLOCK_REALTIME);
    self->port.ops->rx_burst(&self->port, rx);
    if (!book)
        return rx->n;
    shared->frames += rx->frames;
    shared->bytes += rx->bytes;
    shared->created += rx->created;
    shared->received += rx->n;
    for (uint16_t i = 0; i < rx->n_drops; i++)
        shared->rx_drops[rx->drops[i].reason] += rx->drops[i].n;
    memcpy(self->port.position->rx, rx->position, sizeof(rx->position));
    if (book != DRIVER_BOOK_ONLY)
        self->port.ops->rx_release(&self->port);
    return rx->n;
}

const uint8_t *driver_data(const struct driver *self, uint16_t i)
{
    return self->pool + (size_t)self->handles[i] * self->buffer_bytes + self->rx.meta[i].offset;
}

uint32_t driver_length(const struct driver *self, uint16_t i)
{
    return self->rx.meta[i].length;
}

uint32_t driver_cut(const struct driver *self, uint16_t i)
{
    return self->rx.cut[i];
}

uint64_t driver_timestamp(const struct driver *self, uint16_t i)
{
    return self->rx.meta[i].timestamp_ns;
}

static void send_packets(struct driver *self, const struct coven_tx_packet *packets, uint16_t n, uint8_t *results,
                         int book)
{
    uint64_t tx[2];

    self->port.ops->tx_burst(&self->port, packets, n, results, tx);
    if (!book)
        return;
    for (uint16_t i = 0; i < n; i++) {
        if (results[i] == COVEN_TX_SENT)
            self->shared->sent++;
        else
            self->shared->tx_drops[results[i]]++;
    }
    memcpy(self->port.position->tx, tx, sizeof(tx));
}

uint8_t driver_tx(struct driver *self, const uint8_t *data, uint32_t length, uint32_t cut, uint64_t timestamp_ns,
                  int book)
{
    struct coven_tx_packet packet = {data, length, timestamp_ns, cut};
    uint8_t result;

    send_packets(self, &packet, 1, &result, book);
    return result;
}

uint16_t driver_pump(struct driver *from, struct driver *to, uint16_t max)
{
    struct coven_tx_packet packets[COVEN_BURST];
    uint8_t results[COVEN_BURST];
    uint16_t n = driver_rx(from, max, 1);

    for (uint16_t i = 0; i < n; i++)
        packets[i] = (struct coven_tx_packet){driver_data(from, i), driver_length(from, i), driver_timestamp(from, i),
                                              driver_cut(from, i)};
    if (n)
        send_packets(to, packets, n, results, 1);
    return n;
}

int driver_wait(struct driver *self, uint64_t *due_ns)
{
    return self->port.ops->wait(&self->port, due_ns);
}

int driver_undo(struct driver *self)
{
    return self->port.ops->tx_undo(&self->port);
}

uint64_t driver_missed(struct driver *self)
{
    return self->port.ops->rx_missed(&self->port);
}

int driver_done(struct driver *self)
{
    return self->port.ops->rx_done(&self->port);
}

void driver_forward(struct driver *a, struct driver *b, const int *stop)
{
    while (!__atomic_load_n(stop, __ATOMIC_ACQUIRE)) {
        struct pollfd fds[2];
        uint64_t due[2];

        if (driver_pump(a, b, COVEN_BURST) + driver_pump(b, a, COVEN_BURST))
            continue;
        fds[0] = (struct pollfd){driver_wait(a, &due[0]), POLLIN, 0};
        fds[1] = (struct pollfd){driver_wait(b, &due[1]), POLLIN, 0};
        a->shared->sleeps++;
        poll(fds, 2, 20);
    }
}
