/* SPDX-License-Identifier: Apache-2.0 */
/* NIC tool afpacket: a TPACKET_V2 receive ring and a second packet socket to send by.
 *
 * A frame stays in its slot until the burst it came in is booked: position.rx[0] counts frames taken since the ring was
 * made (slot = count % slots), position.rx[1] holds the segment to go on with, beside the identity of the socket. A frame that does not fit
 * its slot (a super-frame, mostly) waits as a copy in the socket's queue, one for each slot marked so and in their
 * order; it is only looked at (MSG_PEEK) until its slot is given back, so a successor finds it there.
 *
 * To give back is two steps (take the copy, clear the slot), and a worker can die between them. Slots that are
 * taken therefore carry a mark in tp_padding, which the kernel clears with each new frame; a successor gives
 * marked slots before its position back, and takes a copy from the queue only if it is that slot's. */
#define _GNU_SOURCE /* sendmmsg */
#include <errno.h>
#include <linux/if_packet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "parse.h"
#include "port_rx.h"

#define MAX_TAKEN 64u /* frames of one burst, also those that are dropped */
#define MARK_TAKEN 0xc0u
#define SEGMENT_BITS 20u
#define SUPER_BYTES (COVEN_VNET_BYTES + 65536u + 256u) /* the largest frame, its headers beyond the IP packet */

struct afpacket {
    uint8_t *ring;
    size_t ring_bytes;
    uint32_t slots, slot_bytes;
    uint64_t identity; /* inode of the socket: a position of another one is none */
    uint64_t released; /* frames given back, as position.rx[0] counts them */
    uint64_t missed;
    uint64_t super_frame; /* frame whose copy is in `super`, plus 1; 0: none */
    uint32_t super_bytes; /* its length without the virtio-net header */
    uint8_t super[SUPER_BYTES];
};

static struct tpacket2_hdr *slot_of(const struct afpacket *self, uint64_t frame)
{
    return (struct tpacket2_hdr *)(self->ring + (size_t)(frame % self->slots) * self->slot_bytes);
}

static uint32_t status_of(const struct tpacket2_hdr *slot)
{
    return __atomic_load_n(&slot->tp_status, __ATOMIC_ACQUIRE);
}

static void load_position(const struct coven_port *port, uint64_t *frame, uint32_t *segment)
{
    const struct afpacket *self = port->state;
    const uint64_t *rx = port->position->rx;

    *frame = 0;
    *segment = 0;
    if (rx[1] >> SEGMENT_BITS == self->identity) {
        *frame = rx[0];
        *segment = (uint32_t)(rx[1] & ((1u << SEGMENT_BITS) - 1));
    }
}

/* ---- the queue of copies ---- */

/* recv(), past an error that the interface left on the socket: such an error is told once, instead of data. */
static ssize_t queue_recv(const struct coven_port *port, uint8_t *buffer, size_t bytes, int flags)
{
    ssize_t n = -1;

    for (int tries = 0; tries < 3; tries++) {
        n = recv(port->rx_fd, buffer, bytes, flags | MSG_TRUNC | MSG_DONTWAIT);
        if (n >= 0 || errno == EAGAIN)
            break;
    }
    return n;
}

/* Look at the first copy in the queue. Returns its length without the virtio-net header, or -1 if there is none. */
static int64_t peek_copy(const struct coven_port *port, uint8_t *buffer, size_t bytes)
{
    ssize_t n = queue_recv(port, buffer, bytes, MSG_PEEK);

    return n < (ssize_t)COVEN_VNET_BYTES ? -1 : n - (ssize_t)COVEN_VNET_BYTES;
}

static void pop_copy(const struct coven_port *port)
{
    uint8_t buffer[COVEN_VNET_BYTES + 1];

    (void)queue_recv(port, buffer, sizeof(buffer), 0);
}

/* Whether a copy of `length` bytes is the one of this slot: the slot holds the same frame, cut. */
static bool copy_matches(const struct tpacket2_hdr *slot, const uint8_t *copy, int64_t length)
{
    return length == (int64_t)slot->tp_len && slot->tp_snaplen <= length &&
           memcmp(copy + COVEN_VNET_BYTES, (const uint8_t *)slot + slot->tp_mac, slot->tp_snaplen) == 0;
}

/* Have the copy that belongs to a slot in self->super. False if it is not in the queue. */
static bool load_copy(struct coven_port *port, const struct tpacket2_hdr *slot, uint64_t frame)
{
    struct afpacket *self = port->state;
    int64_t length;

    if (self->super_frame == frame + 1)
        return true;
    self->super_frame = 0;
    while ((length = peek_copy(port, self->super, SUPER_BYTES)) >= 0) {
        if (copy_matches(slot, self->super, length)) {
            self->super_frame = frame + 1;
            self->super_bytes = (uint32_t)length;
            return true;
        }
        pop_copy(port); /* of no slot that is still there */
    }
    return false;
}

/* ---- giving slots back ---- */

static void release_slot(struct coven_port *port, uint64_t frame, bool after_crash)
{
    struct afpacket *self = port->state;
    struct tpacket2_hdr *slot = slot_of(self, frame);

    if (status_of(slot) & TP_STATUS_COPY) {
        /* Whether the dead worker had taken this slot's copy already, the queue tells. */
        if (!after_crash || copy_matches(slot, self->super, peek_copy(port, self->super, SUPER_BYTES)))
            pop_copy(port);
    }
    __atomic_store_n(&slot->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
}

static void rx_release(struct coven_port *port)
{
    struct afpacket *self = port->state;
    uint64_t frame;
    uint32_t segment;

    load_position(port, &frame, &segment);
    while (self->released < frame)
        release_slot(port, self->released++, false);
}

/* After a crash: slots before the position that are taken and not given back. */
static void recover(struct coven_port *port)
{
    struct afpacket *self = port->state;
    uint64_t frame, first;
    uint32_t segment;

    load_position(port, &frame, &segment);
    for (first = frame; first > 0 && frame - first < MAX_TAKEN && frame - first < self->slots; first--) {
        const struct tpacket2_hdr *slot = slot_of(self, first - 1);

        if (!(status_of(slot) & TP_STATUS_USER) || slot->tp_padding[0] != MARK_TAKEN)
            break;
    }
    for (; first < frame; first++)
        release_slot(port, first, true);
    self->released = frame;
    self->super_frame = 0;
}

/* ---- lifecycle ---- */

static int attach(struct coven_port *port, char *why, size_t why_bytes)
{
    const struct coven_plan_port *plan = port->plan;
    struct afpacket *self;
    struct stat status;
    int version = -1, vnet = 0;
    socklen_t bytes = sizeof(version);

    if (fstat(port->rx_fd, &status) != 0 ||
        getsockopt(port->rx_fd, SOL_PACKET, PACKET_VERSION, &version, &bytes) != 0 || version != TPACKET_V2 ||
        getsockopt(port->rx_fd, SOL_PACKET, PACKET_VNET_HDR, &vnet, &bytes) != 0 || !vnet) {
        snprintf(why, why_bytes, "the descriptor is no packet socket with a TPACKET_V2 ring");
        return -EINVAL;
    }
    if (plan->ring_frames == 0 || plan->ring_frame_bytes < 1024 || plan->ring_frames > 1u << 20 ||
        plan->ring_frame_bytes > 1u << 17) {
        snprintf(why, why_bytes, "the plan asks for %u slots of %u bytes", plan->ring_frames, plan->ring_frame_bytes);
        return -EINVAL;
    }
    self = calloc(1, sizeof(*self));
    if (!self)
        return -ENOMEM;
    self->slots = plan->ring_frames;
    self->slot_bytes = plan->ring_frame_bytes;
    self->ring_bytes = (size_t)self->slots * self->slot_bytes;
    self->identity = (uint64_t)status.st_ino;
    self->ring = mmap(NULL, self->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, port->rx_fd, 0);
    if (self->ring == MAP_FAILED) {
        int error = errno;

        snprintf(why, why_bytes, "the receive ring cannot be mapped: %s", strerror(error));
        free(self);
        return -error;
    }
    port->state = self;
    recover(port);
    return 0;
}

static void detach(struct coven_port *port)
{
    struct afpacket *self = port->state;

    if (!self)
        return;
    munmap(self->ring, self->ring_bytes);
    free(self);
    port->state = NULL;
}

/* ---- receive ---- */

/* Make a frame out of a slot. Returns false if the frame is not whole. */
static bool frame_of(struct coven_port *port, const struct tpacket2_hdr *slot, uint32_t status, uint64_t number,
                     struct coven_frame *frame)
{
    struct afpacket *self = port->state;

    memset(frame, 0, sizeof(*frame));
    if (slot->tp_mac < COVEN_VNET_BYTES || slot->tp_snaplen > self->slot_bytes ||
        slot->tp_mac > self->slot_bytes - slot->tp_snaplen)
        return false;
    frame->data = (const uint8_t *)slot + slot->tp_mac;
    frame->length = slot->tp_len;
    if (status & TP_STATUS_VLAN_VALID) {
        frame->has_tag = true;
        frame->tci = slot->tp_vlan_tci;
        frame->tpid = status & TP_STATUS_VLAN_TPID_VALID ? slot->tp_vlan_tpid : COVEN_ETHERTYPE_VLAN;
    }
    if (slot->tp_len == slot->tp_snaplen) {
        coven_frame_set_vnet(frame, frame->data - COVEN_VNET_BYTES);
        return true;
    }
    if (!(status & TP_STATUS_COPY) || !load_copy(port, slot, number))
        return false;
    frame->data = self->super + COVEN_VNET_BYTES;
    coven_frame_set_vnet(frame, self->super);
    return true;
}

static void rx_burst(struct coven_port *port, struct coven_rx *rx)
{
    struct afpacket *self = port->state;
    uint64_t number;
    uint32_t segment;

    bool has_copy = false;

    coven_rx_begin(rx, port->position);
    load_position(port, &number, &segment);
    for (uint32_t taken = 0; taken < MAX_TAKEN && rx->n < rx->n_handles; taken++) {
        struct tpacket2_hdr *slot = slot_of(self, number);
        uint32_t status = status_of(slot);
        uint64_t timestamp_ns = (uint64_t)slot->tp_sec * 1000000000u + slot->tp_nsec;
        struct coven_frame frame;

        if (!(status & TP_STATUS_USER) || number - self->released >= self->slots)
            break;
        /* Only the first copy in the queue can be looked at, and it stays there until it is booked. */
        if (status & TP_STATUS_COPY && has_copy)
            break;
        has_copy |= (status & TP_STATUS_COPY) != 0;
        if (!frame_of(port, slot, status, number, &frame)) {
            rx->frames += segment == 0;
            rx->bytes += segment == 0 ? slot->tp_len : 0;
            if (segment == 0) /* else what is missing was never made */
                coven_rx_drop(rx, COVEN_DROP_TRUNCATED, 1);
        } else if (frame.length > SUPER_BYTES - COVEN_VNET_BYTES) {
            rx->frames++;
            rx->bytes += frame.length;
            coven_rx_drop(rx, COVEN_DROP_OVERSIZE, 1);
        } else if (!coven_rx_frame(rx, &frame, timestamp_ns, &segment)) {
            break;
        }
        slot->tp_padding[0] = MARK_TAKEN;
        segment = 0;
        number++;
    }
    rx->position[0] = number;
    rx->position[1] = self->identity << SEGMENT_BITS | segment;
}

static int wait_fd(struct coven_port *port, uint64_t *due_ns)
{
    int error;
    socklen_t bytes = sizeof(error);

    *due_ns = UINT64_MAX;
    /* An interface that went down leaves its error on the socket, and poll() would return at once for ever. */
    getsockopt(port->rx_fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
    return port->rx_fd;
}

static uint64_t rx_missed(struct coven_port *port)
{
    struct afpacket *self = port->state;
    struct tpacket_stats stats;
    socklen_t bytes = sizeof(stats);

    /* The kernel clears what it tells. */
    if (getsockopt(port->rx_fd, SOL_PACKET, PACKET_STATISTICS, &stats, &bytes) == 0)
        self->missed += stats.tp_drops;
    return self->missed;
}

/* ---- send ---- */

static void tx_burst(struct coven_port *port, const struct coven_tx_packet *pkts, uint16_t n, uint8_t *results,
                     uint64_t tx[2])
{
    struct mmsghdr messages[COVEN_BURST];
    struct iovec parts[COVEN_BURST];
    uint16_t which[COVEN_BURST];
    unsigned int count = 0, done = 0;

    coven_port_keep_tx(port, tx);
    memset(messages, 0, sizeof(messages));
    for (uint16_t i = 0; i < n && i < COVEN_BURST; i++) {
        results[i] = coven_tx_refused(&pkts[i]);
        if (results[i] != COVEN_TX_SENT)
            continue;
        parts[count].iov_base = (void *)(uintptr_t)pkts[i].data;
        parts[count].iov_len = pkts[i].length;
        messages[count].msg_hdr.msg_iov = &parts[count];
        messages[count].msg_hdr.msg_iovlen = 1;
        which[count++] = i;
    }
    while (done < count) {
        int sent = sendmmsg(port->tx_fd, messages + done, count - done, MSG_DONTWAIT);
        uint8_t reason;

        if (sent > 0) {
            done += (unsigned int)sent;
            continue;
        }
        if (sent < 0 && errno == EINTR)
            continue;
        /* The error is of the first of the rest; others may go, unless the port as a whole does not take any. */
        reason = coven_tx_reason(sent < 0 ? errno : EAGAIN);
        results[which[done++]] = reason;
        if (reason == COVEN_DROP_PORT_DOWN || sent == 0 || errno == EAGAIN)
            while (done < count)
                results[which[done++]] = reason;
    }
}

const struct coven_port_ops coven_port_afpacket = {
    .name = "afpacket",
    .attach = attach,
    .detach = detach,
    .rx_burst = rx_burst,
    .rx_release = rx_release,
    .tx_burst = tx_burst,
    .tx_undo = coven_port_undo_unknown,
    .wait = wait_fd,
    .rx_missed = rx_missed,
    .rx_done = coven_port_never_done,
};
