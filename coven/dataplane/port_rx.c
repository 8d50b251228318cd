/* SPDX-License-Identifier: Apache-2.0 */
#include "port_rx.h"

#include <errno.h>
#include <sys/stat.h>
#include <time.h>

void coven_rx_begin(struct coven_rx *rx, const struct coven_port_position *position)
{
    rx->n = 0;
    rx->frames = 0;
    rx->bytes = 0;
    rx->created = 0;
    rx->n_drops = 0;
    rx->n_refused = 0;
    rx->is_urgent = false;
    rx->position[0] = position->rx[0];
    rx->position[1] = position->rx[1];
}

void coven_rx_drop(struct coven_rx *rx, uint16_t reason, uint16_t n)
{
    uint16_t i = 0;

    while (i < rx->n_drops && rx->drops[i].reason != reason)
        i++;
    if (i == COVEN_RX_DROPS)
        return; /* there are fewer reasons at rx than places */
    if (i == rx->n_drops) {
        rx->drops[i].reason = reason;
        rx->drops[i].n = 0;
        rx->n_drops++;
    }
    rx->drops[i].n = (uint16_t)(rx->drops[i].n + n);
}

bool coven_rx_frame(struct coven_rx *rx, const struct coven_frame *frame, uint64_t timestamp_ns, uint32_t *segment)
{
    struct coven_split split;
    uint32_t length;

    if (*segment == 0) {
        rx->frames++;
        rx->bytes += frame->length + (frame->has_tag ? 4u : 0u);
        if (!coven_rx_admit(rx, frame->data, frame->length))
            return true;
    } else if (rx->n_rules > 0) {
        rx->is_urgent = coven_priority_match(rx->rules, rx->n_rules, frame->data, frame->length);
    }
    if (coven_split_plan(frame, &split) != 0) {
        coven_rx_drop(rx, COVEN_DROP_OFFLOAD_MALFORMED, 1);
        return true;
    }
    /* The first segment is the longest, so the whole frame fits or none of it. */
    length = coven_split_bytes(frame, &split, 0);
    if (length > coven_rx_room(rx) || length > UINT16_MAX) {
        coven_rx_drop(rx, COVEN_DROP_OVERSIZE, 1);
        return true;
    }
    for (; *segment < split.segments; ++*segment) {
        if (rx->n == rx->n_handles)
            return false;
        length = coven_split_bytes(frame, &split, *segment);
        coven_split_write(frame, &split, *segment, coven_rx_take(rx, length, timestamp_ns));
        if (*segment > 0) {
            rx->created++;
            rx->room -= rx->room > 0;
        }
    }
    return true;
}

uint8_t coven_tx_reason(int error)
{
    switch (error) {
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
        return COVEN_DROP_TX_FULL;
    case ENETDOWN:
    case ENXIO:
    case ENODEV:
        return COVEN_DROP_PORT_DOWN;
    case EMSGSIZE:
        return COVEN_DROP_MTU_EXCEEDED;
    }
    return COVEN_DROP_TX_ERROR;
}

bool coven_port_is_nothing(int fd)
{
    struct stat status;

    return fd < 0 || fstat(fd, &status) != 0 || S_ISCHR(status.st_mode);
}

uint64_t coven_port_clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void coven_port_release_nothing(struct coven_port *port)
{
    (void)port;
}

uint64_t coven_port_missed_nothing(struct coven_port *port)
{
    (void)port;
    return 0;
}

bool coven_port_never_done(struct coven_port *port)
{
    (void)port;
    return false;
}

bool coven_port_undo_unknown(struct coven_port *port)
{
    (void)port;
    return false;
}

void coven_port_keep_tx(const struct coven_port *port, uint64_t tx[2])
{
    tx[0] = port->position->tx[0];
    tx[1] = port->position->tx[1];
}
