/* SPDX-License-Identifier: Apache-2.0 */
/* How much may come in at a port. Where every way from a port leads through an isolated component, that component is a
 * gate of the port: what it has no room for is dropped with the frame still in the kernel's hands, and counted at the
 * component as if it had come that far. Nothing is spent on such a packet but a look at the frame's length, and, where
 * kinds of packets have priority, at its headers. */
#include "worker.h"

/* Components that every way from each hop leads through, that of the hop included. */
static void find_musts(const struct coven_plan *plan, uint64_t musts[COVEN_MAX_HOPS])
{
    for (uint32_t h = plan->n_hops; h-- > 0;) {
        const struct coven_plan_hop *hop = &plan->hops[h];
        const struct coven_plan_component *component = &plan->components[hop->component];
        uint64_t behind = UINT64_MAX;

        for (uint32_t o = 0; o < component->outputs; o++)
            behind &= hop->next[o].hop != COVEN_NO_HOP ? musts[hop->next[o].hop] : 0;
        musts[h] = component->outputs > 0 ? behind : 0;
        if (component->isolation != COVEN_FUSED)
            musts[h] |= 1ull << hop->component;
    }
}

static bool is_on_one_path(const struct coven_plan *plan, uint16_t component)
{
    uint32_t path = UINT32_MAX;

    for (uint32_t h = 0; h < plan->n_hops; h++) {
        if (plan->hops[h].component != component)
            continue;
        if (path != UINT32_MAX && plan->hops[h].path != path)
            return false;
        path = plan->hops[h].path;
    }
    return true;
}

void coven_admit_prepare(struct coven_worker *worker, uint16_t port)
{
    const struct coven_plan *plan = worker->plan;
    struct coven_port_link *link = &worker->port[port];
    uint64_t musts[COVEN_MAX_HOPS], left;

    link->n_gates = 0;
    if (plan->ports[port].first_hop == COVEN_NO_HOP)
        return;
    find_musts(plan, musts);
    left = musts[plan->ports[port].first_hop];
    for (uint32_t h = 0; h < plan->n_hops && left != 0; h++) {
        uint16_t c = plan->hops[h].component;

        if (plan->hops[h].path != plan->ports[port].path || (left >> c & 1) == 0)
            continue;
        left &= ~(1ull << c);
        link->gate[link->n_gates].component = c;
        link->gate[link->n_gates].is_exclusive = is_on_one_path(plan, c);
        link->n_gates++;
    }
}

/* Packets that a component has room for, those for which it keeps room included. False: it is down. */
static bool room_of(struct coven_worker *worker, const struct coven_plan_component *component, uint32_t *room)
{
    bool is_up = false;

    *room = 0;
    for (uint32_t r = 0; r < component->n_replicas; r++) {
        struct coven_replica_link *link = &worker->replica[component->first_replica + r];

        if (!coven_replica_is_up(link))
            continue;
        is_up = true;
        *room += coven_replica_room(link, 2 * COVEN_BURST + link->reserve);
    }
    return is_up;
}

void coven_admit_begin(struct coven_worker *worker, uint16_t port, struct coven_rx *rx)
{
    const struct coven_port_link *link = &worker->port[port];
    uint32_t before = 0; /* packets that may still come to a gate from those before it */

    rx->room = UINT32_MAX;
    rx->reserve = 0;
    rx->n_refused = 0;
    rx->n_rules = 0;
    if (link->n_gates == 0 || link->window != 0)
        return;
    rx->rules = worker->plan->priorities;
    rx->n_rules = worker->plan->n_priorities;
    for (uint32_t g = 0; g < link->n_gates; g++) {
        uint16_t c = link->gate[g].component;
        const struct coven_plan_component *component = &worker->plan->components[c];
        const struct coven_replica_link *first = &worker->replica[component->first_replica];
        bool is_up;
        uint32_t room;

        is_up = room_of(worker, component, &room);
        if (!is_up && component->on_failure == COVEN_ON_FAILURE_BYPASS)
            continue;
        room = room > before ? room - before : 0;
        if (room < rx->room) {
            rx->room = room;
            rx->reserve = is_up ? first->reserve : 0;
            rx->refused_cell =
                COVEN_CELL_DROP(COVEN_SCOPE_COMPONENT(c), is_up ? COVEN_DROP_RING_FULL : COVEN_DROP_COMPONENT_DOWN);
        }
        for (uint32_t r = 0; link->gate[g].is_exclusive && r < component->n_replicas; r++)
            before += coven_replica_has(&first[r]);
    }
}
