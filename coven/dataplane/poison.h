/* SPDX-License-Identifier: Apache-2.0 */
/* Packets that kill: a component that dies of its own code, or hangs, leaves what was in its hands under suspicion. A
 * suspect is from then on given to the component alone; if it dies again with it, the packet is poison, and is dropped in front
 * of the component. The list lies in the ledger (struct coven_poison in control.h), so it survives the worker. */
#ifndef COVEN_POISON_H
#define COVEN_POISON_H

#include <stdint.h>

struct coven_worker;

/* Keyed hash of a packet without what a retransmission or another hop changes: IPv4 identification, TTL and checksum,
 * IPv6 hop limit, TCP acknowledgement, window, checksum and timestamps, UDP checksum. Never 0. */
uint64_t coven_poison_fingerprint(const uint64_t seed[2], const uint8_t *data, uint32_t length);

/* An isolated replica died of its own code or hangs; before it is swept. */
void coven_poison_replica_died(struct coven_worker *worker, uint32_t number);
/* The worker before died in the code of a fused component; before its packets are dropped. */
void coven_poison_fused_died(struct coven_worker *worker, uint32_t component);
/* Take packets to a component that has suspects or poison packets; what goes on is put into the graph. */
void coven_poison_travel(struct coven_worker *worker, uint16_t hop, const uint32_t *handles, uint16_t n);
/* Forget what is old, and find out which components have any. */
void coven_poison_age(struct coven_worker *worker);
/* Forget all of one component. */
void coven_poison_clear(struct coven_worker *worker, uint32_t component);

#endif
