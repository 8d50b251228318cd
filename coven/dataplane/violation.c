/* SPDX-License-Identifier: Apache-2.0 */
#include "violation.h"

void coven_violation(struct coven_worker *worker, struct coven_violation_count *teller, uint32_t component,
                     uint32_t replica, enum coven_violation kind, uint64_t n)
{
    uint64_t *cell = &worker->stats->cell[COVEN_VIOLATION(component, kind)];

    coven_book_count(&worker->book, COVEN_CELL_COMPONENT(component, COVEN_COMPONENT_VIOLATIONS), n);
    __atomic_store_n(cell, *cell + n, __ATOMIC_RELAXED);
    teller->n += n;
    if (teller->told_ns != 0 && worker->now_ns - teller->told_ns < COVEN_VIOLATION_TELL_NS)
        return;
    if (coven_control_notify(worker, component, COVEN_NOTICE_VIOLATION, replica, teller->n))
        teller->n = 0; /* else the next time tells of these as well */
    teller->told_ns = worker->now_ns;
}
