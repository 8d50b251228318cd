/* SPDX-License-Identifier: Apache-2.0 */
/* Flow table: which slot of the state segments a packet belongs to. Lies in the ledger, one worker writes.
 *
 * The key has no direction: VLAN, addresses, protocol, ports in a canonical order with a direction bit beside
 * it. Later fragments follow the first, ICMP errors the header they quote; other packets have no flow.
 * The hash is keyed (plan->flow_seed). The index is rebuilt from the entries on recovery. */
#ifndef COVEN_FLOW_H
#define COVEN_FLOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <coven/abi.h>

#include "state.h"

struct coven_flow_table;

struct coven_flow_config {
    uint32_t capacity;
    uint32_t when_full; /* enum coven_flow_when_full */
    uint64_t seed[2];   /* secret */
    uint64_t idle_ns;
};

/* A packet whose flow is wanted, and what came of it. */
struct coven_flow_packet {
    const uint8_t *data;
    struct coven_meta *meta; /* flow, flow_epoch, direction and flow_seq are filled; COVEN_NO_FLOW: it has none */
    uint32_t length;
    int32_t refused; /* 0, or a drop reason + 1 (flow-table-full, flow-moved) */
};

/* ---- lifecycle ---- */
/* Bytes for `capacity` flows, 0 for none. */
size_t coven_flow_table_bytes(uint32_t capacity);
/* Make an empty table in zeroed memory. */
void coven_flow_table_init(struct coven_flow_table *table, const struct coven_flow_config *config);
/* Take over a dead worker's table: check the entries, rebuild index and free list. */
void coven_flow_table_recover(struct coven_flow_table *table, const struct coven_flow_config *config);

/* ---- data path ---- */
/* Find or make the flows of at most COVEN_BURST packets, in their order. `now_ns` is CLOCK_MONOTONIC. The slots of
 * the flows in `states`, whose components are called next, are asked for meanwhile. */
void coven_flow_lookup_burst(struct coven_flow_table *table, struct coven_flow_packet *packets, uint16_t n,
                             uint64_t now_ns, const struct coven_state_view *const *states, uint16_t n_states);
/* The same for one packet. Returns what `refused` says. */
int coven_flow_lookup(struct coven_flow_table *table, const uint8_t *data, uint32_t length, struct coven_meta *meta,
                      uint64_t now_ns);
/* Collect at most `max` flows that ended. They keep their slot, and no packet finds them any more, until
 * coven_flow_release(). The work is bounded and goes by the time that passed, so it may be called every loop.
 * In a full table a flow may give its slot to a new one without having been collected: coven_flow_gave_way().
 * Flows that a dead worker collected and did not release are collected again. */
uint16_t coven_flow_expire(struct coven_flow_table *table, uint64_t now_ns, uint32_t *flows, uint16_t max);
/* When to call coven_flow_expire() next so that it keeps pace; UINT64_MAX when there is nothing that could end. */
uint64_t coven_flow_due(const struct coven_flow_table *table, uint64_t now_ns);
void coven_flow_release(struct coven_flow_table *table, uint32_t flow);
/* How many flows may give way from now on; without room for more, new ones find no place in a full table. */
void coven_flow_let_give_way(struct coven_flow_table *table, uint32_t room);
/* The next of the flows that gave way in the last lookup: its slot has the new flow already. False: no more. */
bool coven_flow_gave_way(struct coven_flow_table *table, uint32_t *flow, uint16_t *epoch);

/* ---- inspection ---- */
/* Flows in the table now, those that wait for coven_flow_release() among them. */
uint32_t coven_flow_count(const struct coven_flow_table *table);
/* Made and removed (released, or given way in a full table) since init or recover. */
uint64_t coven_flow_created(const struct coven_flow_table *table);
uint64_t coven_flow_removed(const struct coven_flow_table *table);
/* Epoch of a slot's present or last flow: what the entry that announces its end must carry. */
uint16_t coven_flow_epoch(const struct coven_flow_table *table, uint32_t flow);
/* The table's hash, SipHash-1-3. */
uint64_t coven_flow_hash(const uint64_t seed[2], const void *data, size_t bytes);

#endif
