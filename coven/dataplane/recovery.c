/* SPDX-License-Identifier: Apache-2.0 */
/* A worker begins: with a new ledger, or with what a killed one left. Every step can be done again from the
 * beginning, because a worker may die here too. */
#include <errno.h>
#include <stdio.h>

#include "worker.h"

static void drop(struct coven_worker *worker, uint32_t handle, uint32_t scope, uint32_t reason, uint64_t *n)
{
    coven_book_drop(&worker->book, handle, scope, reason);
    ++*n;
}

static bool is_workers(const struct coven_worker *worker, uint32_t handle)
{
    return handle < worker->book.n_buffers && coven_owner_kind(worker->book.owner[handle]) == COVEN_OWNER_WORKER &&
           worker->track[handle].holder == 0;
}

/* Whether it was sent nobody knows; a port that lends has the buffer until the kernel gives it back. */
static void drop_uncertain(struct coven_worker *worker, uint16_t port, uint32_t handle)
{
    const struct coven_port_link *link = &worker->port[port];
    bool is_lent = link->attached && link->port.ops->lending && !link->port.is_renewed;

    coven_book_room(&worker->book, 1, 1, 0);
    coven_book_count(&worker->book, COVEN_CELL_DROP(COVEN_SCOPE_PORT(port), COVEN_DROP_TX_UNCERTAIN), 1);
    coven_book_own(&worker->book, handle, is_lent ? coven_owner(COVEN_OWNER_NIC, port, 0, 0) : 0);
    worker->recovery.tx_uncertain++;
}

/* Packets that were being handed to the kernel: outside or not, only the port can tell. */
static void recover_tx(struct coven_worker *worker)
{
    struct coven_tx_record *record = &worker->book.ledger->tx;
    struct coven_port_link *link;
    bool undone;

    if (record->n == 0)
        return;
    if (record->n <= COVEN_BURST && record->port < worker->plan->n_ports) {
        link = &worker->port[record->port];
        undone = link->attached && link->port.ops->tx_undo(&link->port);
        for (uint32_t i = 0; i < record->n; i++) {
            if (!is_workers(worker, record->handle[i]))
                continue;
            if (undone)
                drop(worker, record->handle[i], COVEN_SCOPE_WORKER, COVEN_DROP_WORKER_CRASH,
                     &worker->recovery.worker_crash);
            else
                drop_uncertain(worker, (uint16_t)record->port, record->handle[i]);
        }
        coven_book_commit(&worker->book);
        if (!undone && link->attached && link->port.ops->lending)
            link->port.ops->lending->settle_tx(&link->port);
    }
    record->n = 0;
}

/* Packets in the hands of the fused component that the breadcrumb names. */
static void recover_breadcrumb(struct coven_worker *worker)
{
    struct coven_breadcrumb *crumb = &worker->book.ledger->breadcrumb;
    uint32_t component = crumb->component - 1u;

    if (crumb->component == 0 || component >= worker->plan->n_components)
        return;
    worker->recovery.component = crumb->component;
    if (worker->is_blamed)
        coven_poison_fused_died(worker, component);
    for (uint32_t i = 0; i < crumb->n && i < COVEN_BURST; i++) {
        if (!is_workers(worker, crumb->handle[i]))
            continue;
        coven_book_room(&worker->book, 1, 2, 0);
        coven_book_count(&worker->book, COVEN_CELL_COMPONENT(component, COVEN_COMPONENT_IN_PKTS), 1);
        drop(worker, crumb->handle[i], COVEN_SCOPE_COMPONENT(component), COVEN_DROP_COMPONENT_CRASH,
             &worker->recovery.component_crash);
    }
    coven_book_commit(&worker->book);
}

/* Everything else that nobody has any more. What replicas have stays with them. */
static void recover_owners(struct coven_worker *worker)
{
    struct coven_recovery *found = &worker->recovery;

    for (uint32_t handle = 0; handle < worker->book.n_buffers; handle++) {
        uint64_t owner = worker->book.owner[handle];
        uint32_t number = coven_owner_number(owner);

        switch (coven_owner_kind(owner)) {
        case COVEN_OWNER_FREE:
            break;
        case COVEN_OWNER_REPLICA:
            found->held++;
            break;
        case COVEN_OWNER_QUARANTINE:
        case COVEN_OWNER_NIC:
            break;
        case COVEN_OWNER_FUSED:
            if (number + 1 == found->component)
                drop(worker, handle, COVEN_SCOPE_COMPONENT(number), COVEN_DROP_COMPONENT_CRASH,
                     &found->component_crash);
            else
                drop(worker, handle, COVEN_SCOPE_WORKER, COVEN_DROP_WORKER_CRASH, &found->worker_crash);
            break;
        default:
            if (worker->track[handle].holder != 0) /* in a replica's queue */
                found->held++;
            else
                drop(worker, handle, COVEN_SCOPE_WORKER, COVEN_DROP_WORKER_CRASH, &found->worker_crash);
        }
    }
    coven_book_room(&worker->book, 0, 1, 0);
    coven_book_count(&worker->book, COVEN_CELL_WORKER(COVEN_WORKER_RECOVERIES), 1);
    coven_book_commit(&worker->book);
}

int coven_recovery_run(struct coven_worker *worker, char *why, size_t why_bytes)
{
    const struct coven_plan *plan = worker->plan;
    struct coven_ledger *ledger = worker->ledger_segment.base;
    struct coven_flow_config flows = {
        .capacity = plan->n_flows,
        .when_full = plan->flow_when_full,
        .seed = {plan->flow_seed[0], plan->flow_seed[1]},
        .idle_ns = plan->flow_idle_ms * COVEN_NS_PER_MS,
    };

    worker->recovery.found = ledger->header.generation != 0;
    if (!worker->recovery.found)
        coven_ledger_format(ledger, plan);
    if (coven_ledger_check(ledger, plan)) {
        snprintf(why, why_bytes, "ledger segment: its layout is not that of the plan");
        return -EINVAL;
    }
    coven_book_open(&worker->book, ledger, worker->stats->cell);
    if (ledger->flow_offset != 0)
        worker->flows = (struct coven_flow_table *)((uint8_t *)ledger + ledger->flow_offset);
    if (worker->recovery.found) {
        coven_book_replay(&worker->book);
        coven_book_rebuild_free(&worker->book);
        if (worker->flows)
            coven_flow_table_recover(worker->flows, &flows);
    } else {
        coven_book_rebuild_free(&worker->book);
        if (worker->flows)
            coven_flow_table_init(worker->flows, &flows);
    }
    return 0;
}

void coven_recovery_sweep(struct coven_worker *worker)
{
    struct coven_ledger *ledger = worker->book.ledger;

    if (worker->recovery.found) {
        recover_tx(worker);
        recover_breadcrumb(worker);
        recover_owners(worker);
        ledger->breadcrumb.component = 0;
        ledger->poison.n_given = 0;
    }
    ledger->header.generation++;
}
