/* SPDX-License-Identifier: Apache-2.0 */
/* What the NIC tools share: filling a receive burst, and refusing packets that no wire can carry. */
#ifndef COVEN_PORT_RX_H
#define COVEN_PORT_RX_H

#include <stdbool.h>
#include <stdint.h>

#include "drop_reasons.h"
#include "offload.h"
#include "port.h"
#include "priority.h"

/* Forget the last burst: everything that the port sets is empty, the position as it is booked. */
void coven_rx_begin(struct coven_rx *rx, const struct coven_port_position *position);

/* Count n frames (or segments) that do not get into a buffer. */
void coven_rx_drop(struct coven_rx *rx, uint16_t reason, uint16_t n);

/* Bytes that a packet may have. */
static inline uint32_t coven_rx_room(const struct coven_rx *rx)
{
    return rx->buffer_bytes > rx->headroom ? rx->buffer_bytes - rx->headroom : 0;
}

/* Whether a frame may come in; asked with the frame still where the kernel put it, once for each that is counted in
 * rx->frames, before anything else is spent on it. False: it is counted as dropped, and the port goes on to the next.
 * A port that does not fill its packets with coven_rx_take() copies rx->is_urgent to rx->urgent[] itself if there are
 * rules. */
static inline bool coven_rx_admit(struct coven_rx *rx, const uint8_t *data, uint32_t length)
{
    if (rx->n_rules > 0)
        rx->is_urgent = coven_priority_match(rx->rules, rx->n_rules, data, length);
    if (rx->room > (rx->is_urgent ? 0 : rx->reserve)) {
        rx->room--;
        return true;
    }
    rx->n_refused++;
    return false;
}

/* The next buffer, for a packet of `length` bytes (at most coven_rx_room()): the caller writes it. */
static inline uint8_t *coven_rx_take(struct coven_rx *rx, uint32_t length, uint64_t timestamp_ns)
{
    struct coven_meta *meta = &rx->meta[rx->n];
    uint32_t handle = rx->handles[rx->n];

    meta->offset = (uint16_t)rx->headroom;
    meta->length = (uint16_t)length;
    meta->timestamp_ns = timestamp_ns;
    rx->cut[rx->n] = 0;
    if (rx->n_rules > 0)
        rx->urgent[rx->n] = rx->is_urgent;
    rx->n++;
    return rx->pool_data + (uint64_t)handle * rx->buffer_bytes + rx->headroom;
}

/* Put what a frame becomes into buffers, from *segment on, and count it. Returns true when the frame is done
 * (also dropped), false when the buffers ran out: *segment is then where to go on in another burst. */
bool coven_rx_frame(struct coven_rx *rx, const struct coven_frame *frame, uint64_t timestamp_ns, uint32_t *segment);

/* Drop reason of a packet that must not be sent on a wire, or COVEN_TX_SENT if it may. */
static inline uint8_t coven_tx_refused(const struct coven_tx_packet *pkt)
{
    return pkt->cut ? (uint8_t)COVEN_DROP_TRUNCATED : (uint8_t)COVEN_TX_SENT;
}

/* CLOCK_MONOTONIC. */
uint64_t coven_port_clock_ns(void);

/* Operations of tools that have nothing to do there: nothing to give back, nothing lost before us, no end
 * of the input, no place in the output. */
void coven_port_release_nothing(struct coven_port *port);
uint64_t coven_port_missed_nothing(struct coven_port *port);
bool coven_port_never_done(struct coven_port *port);
/* What is outside cannot be told. */
bool coven_port_undo_unknown(struct coven_port *port);
void coven_port_keep_tx(const struct coven_port *port, uint64_t tx[2]);

/* Drop reason for an errno of sending. */
uint8_t coven_tx_reason(int error);

/* True for the descriptor that stands for a direction the port does not have. */
bool coven_port_is_nothing(int fd);

#endif
