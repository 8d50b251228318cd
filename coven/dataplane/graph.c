/* SPDX-License-Identifier: Apache-2.0 */
/* The service graph. At most one burst is walked at a time, so no hop ever has more than COVEN_BURST packets
 * waiting, and since next[] only points forward (the plan is in topological order), one pass over the hops in
 * ascending order takes every packet to its end: no recursion, and branches that meet again are one burst again. */
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
            if (!worker->replica[component->first_replica + r].attached)
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

static void visit(struct coven_worker *worker, uint16_t hop)
{
    struct coven_graph *graph = &worker->graph;
    const struct coven_plan_component *component = &worker->plan->components[worker->plan->hops[hop].component];
    uint16_t n = graph->n[hop];

    graph->n[hop] = 0;
    if (component->isolation == COVEN_FUSED)
        coven_fused_process(worker, hop, graph->handle[hop], n);
    else
        coven_replica_give(worker, hop, graph->handle[hop], n);
}

void coven_graph_walk(struct coven_worker *worker)
{
    struct coven_graph *graph = &worker->graph;

    for (uint16_t word = 0; word < COVEN_MAX_HOPS / 64; word++) {
        while (graph->waiting[word] != 0) {
            uint16_t bit = (uint16_t)__builtin_ctzll(graph->waiting[word]);

            graph->waiting[word] &= ~(1ull << bit);
            visit(worker, (uint16_t)(word * 64u + bit));
        }
    }
}
