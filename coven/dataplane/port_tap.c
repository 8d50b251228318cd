/* SPDX-License-Identifier: Apache-2.0 */
/* NIC tool tap: the file side of a tap device with virtio-net headers (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).
 *
 * A frame that was read is no longer in the kernel, and a record made before read() could not say how many there will be:
 * what a worker had read and not booked when it was killed is in no counter of ours, nor is the part of a super-frame that
 * waits here for the next burst. The interface's own counters have them (docs/operate.md). Else it is as with afpacket. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "port_rx.h"

/* Frames that the full queue of a tap loses are drops of the host's interface, and seen there. */
#define FRAME_BYTES (COVEN_VNET_BYTES + 65536u + 256u)

struct tap {
    bool is_gone;     /* the interface was deleted */
    bool is_pending;  /* buffer holds a frame that is not done */
    uint32_t segment; /* of it to go on with */
    uint32_t bytes;   /* of it, with the virtio-net header */
    uint64_t arrived_ns;
    uint8_t buffer[FRAME_BYTES];
};

static int attach(struct coven_port *port, char *why, size_t why_bytes)
{
    if (port->rx_fd < 0 || port->tx_fd < 0) {
        snprintf(why, why_bytes, "a tap needs two descriptors");
        return -EINVAL;
    }
    port->state = calloc(1, sizeof(struct tap));
    return port->state ? 0 : -ENOMEM;
}

static void detach(struct coven_port *port)
{
    free(port->state);
    port->state = NULL;
}

/* Read the next frame. False if there is none. */
static bool read_frame(struct coven_port *port, uint64_t now_ns)
{
    struct tap *self = port->state;
    ssize_t n = read(port->rx_fd, self->buffer, FRAME_BYTES);

    if (n < 0 && (errno == EBADFD || errno == EIO || errno == EBADF))
        self->is_gone = true;
    if (n < (ssize_t)COVEN_VNET_BYTES)
        return false;
    self->bytes = (uint32_t)n;
    self->segment = 0;
    self->arrived_ns = now_ns;
    self->is_pending = true;
    return true;
}

static void rx_burst(struct coven_port *port, struct coven_rx *rx)
{
    struct tap *self = port->state;

    coven_rx_begin(rx, port->position);
    for (uint32_t taken = 0; taken < 2 * COVEN_BURST && rx->n < rx->n_handles; taken++) {
        struct coven_frame frame = {0};

        if (!self->is_pending && !read_frame(port, rx->now_ns))
            break;
        coven_frame_set_vnet(&frame, self->buffer);
        frame.data = self->buffer + COVEN_VNET_BYTES;
        frame.length = self->bytes - COVEN_VNET_BYTES;
        if (!coven_rx_frame(rx, &frame, self->arrived_ns, &self->segment))
            break;
        self->is_pending = false;
    }
}

static int wait_fd(struct coven_port *port, uint64_t *due_ns)
{
    const struct tap *self = port->state;

    *due_ns = self->is_pending ? 0 : UINT64_MAX;
    return self->is_gone ? -1 : port->rx_fd; /* a deleted tap is readable for ever */
}

static bool rx_done(struct coven_port *port)
{
    const struct tap *self = port->state;

    return self->is_gone && !self->is_pending;
}

static void tx_burst(struct coven_port *port, const struct coven_tx_packet *pkts, uint16_t n, uint8_t *results,
                     uint64_t tx[2])
{
    uint8_t vnet[COVEN_VNET_BYTES] = {0};

    for (uint16_t i = 0; i < n; i++) {
        struct iovec parts[2] = {
            {vnet, sizeof(vnet)},
            {(void *)(uintptr_t)pkts[i].data, pkts[i].length},
        };

        results[i] = coven_tx_refused(&pkts[i]);
        if (results[i] != COVEN_TX_SENT || writev(port->tx_fd, parts, 2) >= 0)
            continue;
        /* tun says EIO for an interface that is down and EBADFD for one that was deleted */
        results[i] = errno == EIO || errno == EBADFD ? COVEN_DROP_PORT_DOWN : coven_tx_reason(errno);
    }
    coven_port_keep_tx(port, tx);
}

const struct coven_port_ops coven_port_tap = {
    .name = "tap",
    .attach = attach,
    .detach = detach,
    .rx_burst = rx_burst,
    .rx_release = coven_port_release_nothing,
    .tx_burst = tx_burst,
    .tx_undo = coven_port_undo_unknown,
    .wait = wait_fd,
    .rx_missed = coven_port_missed_nothing,
    .rx_done = rx_done,
};
