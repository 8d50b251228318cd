/* SPDX-License-Identifier: Apache-2.0 */
/* Flow state slots of a state segment: two halves and a commit word (abi.h, `struct coven_slot`).
 *
 * A burst of packets is one transaction: begin() copies a flow's current half to the shadow half once, all
 * packets of that flow in the burst share the shadow, commit() makes all of it valid. Between the two the
 * caller stages the packets' entries, each with the word that begin() gave for it. A kill at any store leaves the
 * old state, or the new state with every packet that led to it staged.
 *
 * Geometry is copied out of the segment's header once, checked, and only the copy is used. */
#ifndef COVEN_STATE_H
#define COVEN_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <coven/abi.h>

#define COVEN_STATE_PREFETCH_BYTES                                                                                     \
    512u /* of a slot; what lies behind follows in order, which the machine sees by itself */

#define COVEN_STATE_CHAINS 64u

/* A mapped state segment. */
struct coven_state_view {
    uint8_t *base;
    uint64_t slots_offset;
    uint64_t metrics_offset;
    uint32_t n_slots;
    uint32_t slot_bytes;
    uint32_t half_bytes;
    uint32_t n_replicas;
    uint32_t n_metrics;
    uint16_t version;
};

/* One flow that a burst has begun to change. */
struct coven_state_open {
    uint32_t flow;
    uint32_t word; /* commit word that makes it valid */
    uint16_t epoch;
    bool fresh;   /* allocated in this burst */
    uint8_t next; /* in its chain, as above */
};

struct coven_state_burst {
    struct coven_state_open open[COVEN_BURST];
    uint8_t chain[COVEN_STATE_CHAINS]; /* by flow: place in `open` + 1 of the last one begun; 0: none */
    struct {
        uint32_t flow;
        uint16_t epoch;
    } ended[COVEN_BURST]; /* flows whose slots commit() frees */
    uint16_t n;
    uint16_t n_ended;
};

/* ---- lifecycle ---- */
/* Bytes of a slot for `state_bytes` of flow state, and of the usable half. */
uint32_t coven_state_slot_bytes(uint32_t state_bytes);
uint32_t coven_state_half_bytes(uint32_t state_bytes);
/* Look at a mapped segment of `mapped` bytes and copy its geometry. 0, -EPROTO (not a state segment of this
 * version) or -ERANGE (something would lie outside). */
int coven_state_view_open(struct coven_state_view *view, void *base, uint64_t mapped)
    __attribute__((warn_unused_result));
/* The same from the plan, for the worker: what the header says is not looked at. 0 or -ERANGE. */
int coven_state_view_plan(struct coven_state_view *view, void *base, uint64_t mapped, const struct coven_plan *plan,
                          const struct coven_plan_component *component) __attribute__((warn_unused_result));

/* ---- data path ---- */
/* Shadow half of a flow, ready to be changed, or NULL when the number is out of range, the component keeps
 * no state, or the burst has COVEN_BURST flows open. `index` becomes the place in burst->open: the word to stage
 * and whether the state is new (then zeroed). The same flow again in one burst gives the same half. */
void *coven_state_begin(const struct coven_state_view *view, struct coven_state_burst *burst, uint32_t flow,
                        uint16_t epoch, uint16_t *index);
/* Take a flow back out of the burst (its allocation failed): nothing of it will be committed. Only for the flow
 * begun last. */
void coven_state_abandon(struct coven_state_burst *burst, uint16_t index);
/* The flow ends: its last state (also when this burst began it), or NULL when it has none. commit() frees its
 * slot. At most COVEN_BURST flows in one burst. */
void *coven_state_end(const struct coven_state_view *view, struct coven_state_burst *burst, uint32_t flow,
                      uint16_t epoch);
/* Make every flow of the burst valid, free what ended, and empty the burst. */
void coven_state_commit(const struct coven_state_view *view, struct coven_state_burst *burst);
/* Current half of a flow, or NULL when it has no state. */
void *coven_state_current(const struct coven_state_view *view, uint32_t flow, uint16_t epoch);
/* Whether a commit has reached `word`: what a sweep asks about an entry that was staged and not published.
 * Word 0 was never committed. */
bool coven_state_committed(const struct coven_state_view *view, uint32_t flow, uint16_t epoch, uint32_t word);

/* Ask for what begin() will touch of a flow, some time before. */
static inline void coven_state_prefetch(const struct coven_state_view *view, uint32_t flow)
{
    const uint8_t *slot = view->base + view->slots_offset + (uint64_t)flow * view->slot_bytes;

    if (flow >= view->n_slots)
        return;
    for (uint32_t at = 0; at < view->slot_bytes && at < COVEN_STATE_PREFETCH_BYTES; at += COVEN_CACHE_LINE)
        __builtin_prefetch(slot + at, 1);
}

/* ---- metrics ---- */
/* The COVEN_MAX_METRICS cells of a replica, or NULL. */
uint64_t *coven_state_metrics(const struct coven_state_view *view, uint32_t replica);

#endif
