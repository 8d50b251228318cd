/* SPDX-License-Identifier: Apache-2.0 */
/* The service graph. At most one burst is walked at a time, so no hop ever has more than COVEN_BURST packets
 * waiting, and since next[] only points forward (the plan is in topological order), one pass over the hops in
 * ascending order takes every packet to its end: no recursion, and branches that meet again are one burst again. A
 * burst that does not part travels on as it is; only one that does is put into the lists of the hops. */
#include <string.h>

#include "worker.h"

bool coven_graph_is_halted(const struct coven_worker *worker)
{
    const struct coven_plan *plan = worker->plan;

    for (uint32_t c = 0; c < plan->n_components; c++) {
        const struct coven_plan_component *component = &plan->components[c];

        if (component->on_failure != COVEN_ON_FAILURE_STOP)
            continue;
        if (component->isolation == COVEN_FUSED && !worker->component[c].fused.runtime)
            return true;
        for (uint32_t r = 0; component->isolation != COVEN_FUSED && r < component->n_replicas; r++)
            if (!coven_replica_is_up(&worker->replica[component->first_replica + r]))
                return true;
    }
    return false;
}

/* With on_failure stop the ports are not read any more, but what was inside already still comes here. */
void coven_graph_component_down(struct coven_worker *worker, uint16_t hop, const uint32_t *handles, uint16_t n)
{
    const struct coven_plan_hop *place = &worker->plan->hops[hop];
    const struct coven_plan_component *component = &worker->plan->components[place->component];

    for (uint16_t i = 0; i < n; i++) {
        if (component->on_failure == COVEN_ON_FAILURE_BYPASS)
            coven_graph_put(worker, handles[i], &place->next[0], COVEN_SCOPE_COMPONENT(place->component));
        else
            coven_book_drop(&worker->book, handles[i], COVEN_SCOPE_COMPONENT(place->component),
                            COVEN_DROP_COMPONENT_DOWN);
    }
}

void coven_graph_put_all(struct coven_worker *worker, const uint32_t *handles, uint16_t n,
                         const struct coven_plan_next *next, uint32_t scope)
{
    struct coven_graph *graph = &worker->graph;
    uint16_t hop = next->hop;

    if (n == 0)
        return;
    if (hop != COVEN_NO_HOP) {
        memcpy(&graph->handle[hop][graph->n[hop]], handles, sizeof(handles[0]) * n);
        graph->n[hop] = (uint16_t)(graph->n[hop] + n);
        graph->waiting[hop / 64] |= 1ull << (hop % 64);
    } else if (next->port != COVEN_NO_PORT) {
        coven_egress_put(worker, next->port, handles, n);
    } else {
        for (uint16_t i = 0; i < n; i++)
            coven_book_drop(&worker->book, handles[i], scope, COVEN_DROP_NO_OUTPUT);
    }
}

static bool is_anything_waiting(const struct coven_graph *graph)
{
    uint64_t any = 0;

    for (uint16_t word = 0; word < COVEN_MAX_HOPS / 64; word++)
        any |= graph->waiting[word];
    return any != 0;
}

/* Take the packets of a hop as far as they stay together and nobody waits whom they might join. */
static void travel(struct coven_worker *worker, uint16_t hop)
{
    struct coven_graph *graph = &worker->graph;
    struct coven_burst *burst = &graph->burst;
    const struct coven_plan_next *next;
    uint16_t component;

    burst->handle = graph->handle[hop];
    burst->n = graph->n[hop];
    burst->is_shown = false;
    graph->n[hop] = 0;
    for (;;) {
        component = worker->plan->hops[hop].component;
        if ((worker->poisoned >> component & 1) != 0) {
            coven_poison_travel(worker, hop, burst->handle, burst->n);
            return;
        }
        if (worker->plan->components[component].isolation != COVEN_FUSED) {
            coven_replica_give(worker, hop, burst->handle, burst->n);
            return;
        }
        next = coven_fused_process(worker, hop, burst);
        if (!next)
            return;
        if (next->hop == COVEN_NO_HOP || is_anything_waiting(graph))
            break;
        hop = next->hop;
    }
    coven_graph_put_all(worker, burst->handle, burst->n, next, COVEN_SCOPE_COMPONENT(component));
}

void coven_graph_walk(struct coven_worker *worker)
{
    struct coven_graph *graph = &worker->graph;

    for (uint16_t word = 0; word < COVEN_MAX_HOPS / 64; word++) {
        while (graph->waiting[word] != 0) {
            uint16_t bit = (uint16_t)__builtin_ctzll(graph->waiting[word]);

            graph->waiting[word] &= ~(1ull << bit);
            travel(worker, (uint16_t)(word * 64u + bit));
        }
    }
}
