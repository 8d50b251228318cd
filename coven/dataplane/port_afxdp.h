/* SPDX-License-Identifier: Apache-2.0 */
/* NIC tool afxdp, its own: port_afxdp.c receives and lends, port_afxdp_tx.c sends. */
#ifndef COVEN_PORT_AFXDP_H
#define COVEN_PORT_AFXDP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "port.h"

struct coven_xdp_ring {
    uint32_t *producer, *consumer, *flags;
    void *entries;
    uint32_t mask;
    void *map;
    size_t map_bytes;
};

struct coven_xdp_queue {
    int fd;
    struct coven_xdp_ring rx, tx, fill, completion;
};

struct coven_afxdp {
    uint64_t identity; /* inode of the first socket: positions of another one are none */
    uint64_t missed_before;
    struct coven_xdp_queue queue[COVEN_PORT_QUEUES];
    uint16_t n_queues, next;
    bool is_zero_copy, is_partial, polls_busily;
    bool is_down; /* the kernel refused to send: no further packets until it does not */
    int epoll_fd; /* of all queues; -1: there is only one */
};

static inline uint32_t coven_xdp_load(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void coven_xdp_store(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/* ---- port_afxdp_tx.c: operations of coven_port_ops and coven_lending ---- */
void coven_afxdp_tx_burst(struct coven_port *port, const struct coven_tx_packet *pkts, uint16_t n, uint8_t *results,
                          uint64_t tx[2]);
bool coven_afxdp_tx_undo(struct coven_port *port);
void coven_afxdp_settle_tx(struct coven_port *port);
bool coven_afxdp_kick(struct coven_port *port);

#endif
