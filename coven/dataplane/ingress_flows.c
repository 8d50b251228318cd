/* SPDX-License-Identifier: Apache-2.0 */
/* Packets that came in get their flows, a burst at a time. */
#include "worker.h"

#define STATES 4u /* as many as the first-level cache bears: 32 slots of each */

/* Flows whose slots were given to others: told of before any packet of the new ones is seen. */
static void tell_gave_way(struct coven_worker *worker)
{
    uint16_t epoch;
    uint32_t flow;

    while (coven_flow_gave_way(worker->flows, &flow, &epoch))
        coven_removal_gave_way(worker, flow, epoch);
}

/* The state segments of the fused components on a path, which are called right after. */
static uint16_t states_on(const struct coven_worker *worker, uint32_t path, const struct coven_state_view **states)
{
    uint16_t n = 0;

    for (uint64_t left = worker->path_fused_states[path]; left != 0 && n < STATES; left &= left - 1)
        states[n++] = &worker->component[__builtin_ctzll(left)].state;
    return n;
}

uint16_t coven_ingress_find_flows(struct coven_worker *worker, uint32_t path, uint32_t *handles, uint16_t n)
{
    const struct coven_state_view *states[STATES];
    struct coven_flow_packet packets[COVEN_BURST];
    uint16_t kept = 0;

    for (uint16_t i = 0; i < n; i++) {
        struct coven_meta *meta = &worker->book.meta[handles[i]];

        packets[i] = (struct coven_flow_packet){
            .data = coven_worker_buffer(worker, handles[i]) + meta->offset,
            .length = meta->length,
            .meta = meta,
        };
    }
    coven_flow_let_give_way(worker->flows, coven_removal_room(worker));
    coven_flow_lookup_burst(worker->flows, packets, n, worker->now_ns, states, states_on(worker, path, states));
    tell_gave_way(worker);
    for (uint16_t i = 0; i < n; i++) {
        if (packets[i].refused > 0)
            coven_book_drop(&worker->book, handles[i], COVEN_SCOPE_WORKER, (uint32_t)packets[i].refused - 1u);
        else
            handles[kept++] = handles[i];
    }
    return kept;
}
