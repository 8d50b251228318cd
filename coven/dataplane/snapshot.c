/* SPDX-License-Identifier: Apache-2.0 */
/* All counters and owners at one moment, between two bursts. */
#include <string.h>

#include "worker.h"

_Static_assert(sizeof(((struct coven_snapshot *)0)->cell) == 8u * COVEN_CELLS, "a snapshot has every cell");
_Static_assert(sizeof(((struct coven_snapshot *)0)->held_by_component) == 8u * COVEN_MAX_COMPONENTS, "components");
_Static_assert(sizeof(((struct coven_snapshot *)0)->held_by_replica) == 8u * COVEN_MAX_REPLICAS, "replicas");
_Static_assert(sizeof(struct coven_snapshot) <= COVEN_CONTROL_PAYLOAD, "a snapshot fits one message");

static void add_up_cells(struct coven_snapshot *s)
{
    for (uint32_t p = 0; p < COVEN_MAX_PORTS; p++) {
        s->rx += s->cell[COVEN_CELL_PORT(p, COVEN_PORT_RX_PKTS)];
        s->tx += s->cell[COVEN_CELL_PORT(p, COVEN_PORT_TX_PKTS)];
        s->created += s->cell[COVEN_CELL_PORT(p, COVEN_PORT_CREATED)];
    }
    for (uint32_t c = 0; c < COVEN_MAX_COMPONENTS; c++) {
        s->created += s->cell[COVEN_CELL_COMPONENT(c, COVEN_COMPONENT_CREATED)];
        s->consumed += s->cell[COVEN_CELL_COMPONENT(c, COVEN_COMPONENT_CONSUMED)];
    }
    for (uint32_t i = COVEN_CELL_DROP(0, 0); i < COVEN_CELLS; i++)
        s->drops += s->cell[i];
}

/* What a replica has in its queue: the owner words say it is the worker's. */
static void count_queue(const struct coven_replica_link *link, struct coven_snapshot *s)
{
    uint64_t n = 0;

    for (uint32_t position = link->given_head; position != link->in.position; position++)
        n += link->given[position & link->given_mask].handle != COVEN_NO_HANDLE;
    s->held_by_kind[COVEN_OWNER_WORKER] -= n;
    s->held_by_kind[COVEN_OWNER_REPLICA] += n;
    s->held_by_replica[link->number] += n;
    s->held_by_component[link->component] += n;
}

static void count_owners(const struct coven_worker *worker, struct coven_snapshot *s)
{
    for (uint32_t handle = 0; handle < worker->book.n_buffers; handle++) {
        uint64_t owner = worker->book.owner[handle];
        uint32_t kind = coven_owner_kind(owner), number = coven_owner_number(owner);

        s->held_by_kind[kind & 7]++;
        if (kind != COVEN_OWNER_FREE && kind != COVEN_OWNER_QUARANTINE && kind != COVEN_OWNER_NIC)
            s->held++;
        if (kind == COVEN_OWNER_FUSED && number < COVEN_MAX_COMPONENTS)
            s->held_by_component[number]++;
        if (kind == COVEN_OWNER_REPLICA && number < worker->plan->n_replicas) {
            s->held_by_replica[number]++;
            s->held_by_component[worker->replica[number].component]++;
        }
    }
    for (uint32_t r = 0; r < worker->plan->n_replicas; r++)
        count_queue(&worker->replica[r], s);
    s->free_buffers = s->held_by_kind[COVEN_OWNER_FREE];
}

/* One writer, and nothing here is part of the sum of the accounting rule: plain stores. */
static void store(struct coven_worker *worker, uint32_t cell, uint64_t value)
{
    __atomic_store_n(&worker->stats->cell[cell], value, __ATOMIC_RELAXED);
}

void coven_snapshot_gauges(struct coven_worker *worker)
{
    uint64_t *cell = worker->stats->cell;

    for (uint16_t p = 0; p < worker->plan->n_ports; p++) {
        struct coven_port_link *link = &worker->port[p];
        uint32_t index = COVEN_CELL_PORT(p, COVEN_PORT_RX_MISSED);
        uint64_t missed;

        if (!link->attached || !link->port.ops->rx_missed)
            continue;
        missed = link->port.ops->rx_missed(&link->port);
        store(worker, index, cell[index] + missed - link->missed);
        link->missed = missed;
    }
    if (worker->flows) {
        uint64_t created = coven_flow_created(worker->flows), removed = coven_flow_removed(worker->flows);

        store(worker, COVEN_CELL_WORKER(COVEN_WORKER_FLOWS), coven_flow_count(worker->flows));
        store(worker, COVEN_CELL_WORKER(COVEN_WORKER_FLOWS_CREATED),
              cell[COVEN_WORKER_FLOWS_CREATED] + created - worker->flows_created);
        store(worker, COVEN_CELL_WORKER(COVEN_WORKER_FLOWS_REMOVED),
              cell[COVEN_WORKER_FLOWS_REMOVED] + removed - worker->flows_removed);
        worker->flows_created = created;
        worker->flows_removed = removed;
    }
}

void coven_snapshot_take(struct coven_worker *worker, struct coven_snapshot *snapshot)
{
    coven_snapshot_gauges(worker);
    memset(snapshot, 0, sizeof(*snapshot));
    snapshot->time_ns = worker->wall_ns;
    snapshot->n_cells = COVEN_CELLS;
    memcpy(snapshot->cell, worker->stats->cell, sizeof(snapshot->cell));
    add_up_cells(snapshot);
    count_owners(worker, snapshot);
}
