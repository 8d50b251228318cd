/* SPDX-License-Identifier: Apache-2.0 */
/* NIC tool pcap: packets from one capture file, at full speed or at the recorded pace, to another.
 *
 * position.rx[0] and tx[0] are file offsets, so a crash gives neither loss nor duplicates: what was read but not
 * booked is read again, what was written but not booked is cut off. position.rx[1] and tx[1] hold the number
 * that whoever opened the file has put in the descriptor's offset: a place of an earlier opening is none. */
#define _GNU_SOURCE /* pwritev */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "capture.h"
#include "port_rx.h"

struct pcap {
    bool has_rx, has_tx, done;
    uint64_t rx_identity, tx_identity;
    uint64_t pace_from_ns; /* CLOCK_MONOTONIC of the packet recorded at pace_first_ns; 0: not begun */
    uint64_t pace_first_ns;
    uint64_t due_ns; /* of the next packet; 0: at once */
    struct coven_capture capture;
};

static uint64_t rx_offset(const struct coven_port *port)
{
    const struct pcap *self = port->state;

    return port->position->rx[1] == self->rx_identity ? port->position->rx[0] : self->capture.first;
}

static uint64_t tx_offset(const struct coven_port *port)
{
    const struct pcap *self = port->state;

    return port->position->tx[1] == self->tx_identity ? port->position->tx[0] : COVEN_CAPTURE_HEADER_BYTES;
}

/* A pcapng reader must have seen the interfaces described before the place where it goes on. */
static int catch_up(struct pcap *self, uint64_t target)
{
    struct coven_captured packet;
    uint64_t offset = self->capture.first;
    int result = 1;

    while (self->capture.is_ng && offset < target && result == 1)
        result = coven_capture_next(&self->capture, &offset, &packet);
    return result < 0 ? -EINVAL : 0;
}

static int attach_files(struct coven_port *port, char *why, size_t why_bytes)
{
    struct pcap *self = port->state;

    self->done = !self->has_rx;
    if (self->has_rx) {
        self->rx_identity = (uint64_t)lseek(port->rx_fd, 0, SEEK_CUR);
        if (coven_capture_open(&self->capture, port->rx_fd) != 0 || catch_up(self, rx_offset(port)) != 0) {
            snprintf(why, why_bytes, "the input cannot be used: %s", self->capture.why);
            return -EINVAL;
        }
    }
    if (self->has_tx) {
        struct stat status;

        self->tx_identity = (uint64_t)lseek(port->tx_fd, 0, SEEK_CUR);
        if (fstat(port->tx_fd, &status) != 0 || status.st_size < (off_t)COVEN_CAPTURE_HEADER_BYTES) {
            snprintf(why, why_bytes, "the output has no file header");
            return -EINVAL;
        }
    }
    return 0;
}

static int attach(struct coven_port *port, char *why, size_t why_bytes)
{
    struct pcap *self = calloc(1, sizeof(*self));
    int result;

    if (!self)
        return -ENOMEM;
    self->has_rx = !coven_port_is_nothing(port->rx_fd);
    self->has_tx = !coven_port_is_nothing(port->tx_fd);
    port->state = self;
    result = attach_files(port, why, why_bytes);
    if (result != 0) {
        free(self);
        port->state = NULL;
    }
    return result;
}

static void detach(struct coven_port *port)
{
    free(port->state);
    port->state = NULL;
}

/* ---- receive ---- */

/* True if a packet recorded at this time is to come later; due_ns is set then. */
static bool too_early(struct coven_port *port, uint64_t recorded_ns)
{
    struct pcap *self = port->state;

    self->due_ns = 0;
    if (!(port->plan->flags & COVEN_PORT_PACED))
        return false;
    if (self->pace_from_ns == 0) {
        self->pace_from_ns = coven_port_clock_ns();
        self->pace_first_ns = recorded_ns;
    }
    if (recorded_ns <= self->pace_first_ns)
        return false; /* captures are not always in order */
    self->due_ns = self->pace_from_ns + (recorded_ns - self->pace_first_ns);
    return self->due_ns > coven_port_clock_ns();
}

static void put_packet(struct coven_port *port, struct coven_rx *rx, const struct coven_captured *packet)
{
    uint32_t cut = packet->original - packet->captured;

    rx->frames++;
    rx->bytes += packet->captured;
    if (packet->captured == 0 || (cut && port->plan->flags & COVEN_PORT_SKIP_CUT)) {
        coven_rx_drop(rx, COVEN_DROP_TRUNCATED, 1);
    } else if (packet->captured > coven_rx_room(rx) || packet->captured > UINT16_MAX) {
        coven_rx_drop(rx, COVEN_DROP_OVERSIZE, 1);
    } else if (coven_rx_admit(rx, packet->data, packet->captured)) {
        memcpy(coven_rx_take(rx, packet->captured, packet->timestamp_ns), packet->data, packet->captured);
        rx->cut[rx->n - 1] = cut;
    }
}

static void rx_burst(struct coven_port *port, struct coven_rx *rx)
{
    struct pcap *self = port->state;
    struct coven_captured packet;
    uint64_t offset, next;

    coven_rx_begin(rx, port->position);
    if (self->done)
        return;
    offset = rx_offset(port);
    while (rx->n < rx->n_handles && rx->frames < 2 * COVEN_BURST) {
        int result;

        next = offset;
        result = coven_capture_next(&self->capture, &next, &packet);
        if (result == 0 && port->plan->flags & COVEN_PORT_LOOP && offset > self->capture.first) {
            offset = self->capture.first;
            self->pace_from_ns = 0;
            break; /* at most once in a burst: a file without packets must not hold the worker */
        }
        if (result != 1) {
            self->done = true; /* a fault ends the file: it was whole when it was opened */
            break;
        }
        if (too_early(port, packet.timestamp_ns))
            break;
        put_packet(port, rx, &packet);
        offset = next;
    }
    rx->position[0] = offset;
    rx->position[1] = self->rx_identity;
}

static int wait_fd(struct coven_port *port, uint64_t *due_ns)
{
    const struct pcap *self = port->state;

    *due_ns = self->done ? UINT64_MAX : self->due_ns;
    return -1;
}

static bool rx_done(struct coven_port *port)
{
    const struct pcap *self = port->state;

    return self->done;
}

/* ---- send ---- */

static int write_all(int fd, struct iovec *parts, int n, uint64_t offset)
{
    while (n > 0) {
        ssize_t written = pwritev(fd, parts, n, (off_t)offset);

        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return written < 0 ? -errno : -EIO;
        offset += (uint64_t)written;
        while (n > 0 && (size_t)written >= parts->iov_len) {
            written -= (ssize_t)parts->iov_len;
            parts++;
            n--;
        }
        if (n > 0) {
            parts->iov_base = (uint8_t *)parts->iov_base + written;
            parts->iov_len -= (size_t)written;
        }
    }
    return 0;
}

static void tx_burst(struct coven_port *port, const struct coven_tx_packet *pkts, uint16_t n, uint8_t *results,
                     uint64_t tx[2])
{
    struct pcap *self = port->state;
    uint32_t heads[COVEN_BURST][4];
    struct iovec parts[2 * COVEN_BURST];
    uint64_t bytes = 0, offset = tx_offset(port);
    uint64_t unit = port->plan->flags & COVEN_PORT_NANOSECOND ? 1 : 1000;
    uint8_t result = COVEN_TX_SENT;

    for (uint16_t i = 0; i < n; i++) {
        heads[i][0] = (uint32_t)(pkts[i].timestamp_ns / 1000000000u);
        heads[i][1] = (uint32_t)(pkts[i].timestamp_ns % 1000000000u / unit);
        heads[i][2] = pkts[i].length;
        heads[i][3] = pkts[i].length + pkts[i].cut;
        parts[2 * i] = (struct iovec){heads[i], COVEN_CAPTURE_RECORD_BYTES};
        parts[2 * i + 1] = (struct iovec){(void *)(uintptr_t)pkts[i].data, pkts[i].length};
        bytes += COVEN_CAPTURE_RECORD_BYTES + pkts[i].length;
    }
    if (!self->has_tx) {
        result = COVEN_DROP_PORT_DOWN;
    } else if (write_all(port->tx_fd, parts, 2 * n, offset) != 0) {
        result = COVEN_DROP_TX_ERROR;
        if (ftruncate(port->tx_fd, (off_t)offset) != 0) /* a full disk must not leave half a record */
            self->has_tx = false;
    } else {
        offset += bytes;
    }
    memset(results, result, n);
    tx[0] = offset;
    tx[1] = self->tx_identity;
}

static bool tx_undo(struct coven_port *port)
{
    const struct pcap *self = port->state;

    return !self->has_tx || ftruncate(port->tx_fd, (off_t)tx_offset(port)) == 0;
}

const struct coven_port_ops coven_port_pcap = {
    .name = "pcap",
    .attach = attach,
    .detach = detach,
    .rx_burst = rx_burst,
    .rx_release = coven_port_release_nothing,
    .tx_burst = tx_burst,
    .tx_undo = tx_undo,
    .wait = wait_fd,
    .rx_missed = coven_port_missed_nothing,
    .rx_done = rx_done,
};
