/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers that are with a NIC: lent to receive into, or sent and not given back yet. Both are owned by the kind NIC,
 * which is no packet of ours: the one has none yet, the other is counted as sent.
 *
 * Whatever changes hands is booked in one intent with the port's place in the ring concerned, and shown to the kernel
 * after that. Buffers to be lent lie in the ring before they are booked, so a successor of a worker that died in between
 * has only to show what is booked. */
#include "worker.h"

void coven_lending_collect(struct coven_worker *worker, uint16_t port)
{
    struct coven_port *p = &worker->port[port].port;
    const struct coven_lending *lending = p->ops->lending;
    struct coven_book *b = &worker->book;
    uint32_t handles[COVEN_BURST], wanted;
    uint16_t n, queue;
    uint64_t position;

    n = lending->reap(p, handles, COVEN_BURST, &queue, &position);
    for (uint16_t i = 0; i < n; i++)
        coven_book_own(b, handles[i], 0);
    if (n > 0)
        coven_book_word(b, &p->queue[queue].completion, position);
    wanted = lending->wants(p, &queue);
    n = wanted > 0 ? coven_book_peek_free(b, handles, wanted < COVEN_BURST ? (uint16_t)wanted : COVEN_BURST) : 0;
    if (n == 0)
        return;
    lending->place(p, queue, handles, n);
    for (uint16_t i = 0; i < n; i++)
        coven_book_own(b, handles[i], coven_owner(COVEN_OWNER_NIC, port, 0, 0));
    coven_book_word(b, &p->queue[queue].fill, p->queue[queue].fill + n);
    /* before the commit: that puts buffers on top which became free meanwhile */
    coven_book_take_free(b, n, n);
}

void coven_lending_turn(struct coven_worker *worker, uint16_t port)
{
    struct coven_port *p = &worker->port[port].port;
    const struct coven_intent *intent = &worker->book.ledger->intent;
    uint32_t n_words;

    p->ops->lending->kick(p);
    /* as long as there is something: at the beginning the whole ring is filled */
    do {
        coven_book_room(&worker->book, COVEN_LENDING_OWNERS, 0, COVEN_LENDING_WORDS);
        n_words = intent->n_words;
        coven_lending_collect(worker, port);
        if (intent->n_words == n_words)
            return;
        coven_book_commit(&worker->book);
        p->ops->lending->show(p);
    } while (true);
}

/* Buffers that an earlier opening of the port had: its sockets are closed, the kernel has let go of them. */
static void take_back(struct coven_worker *worker, uint16_t port)
{
    struct coven_book *b = &worker->book;
    uint64_t lent = coven_owner(COVEN_OWNER_NIC, port, 0, 0);

    for (uint32_t handle = 0; handle < b->n_buffers; handle++) {
        if (b->owner[handle] != lent)
            continue;
        coven_book_room(b, 1, 0, 0);
        coven_book_own(b, handle, 0);
    }
    coven_book_commit(b);
}

void coven_lending_adopt(struct coven_worker *worker, uint16_t port)
{
    struct coven_port *p = &worker->port[port].port;

    if (!p->ops->lending || p->is_renewed)
        take_back(worker, port);
    if (p->ops->lending)
        p->ops->lending->begin(p);
}

void coven_lending_prepare(struct coven_worker *worker, uint16_t port)
{
    const struct coven_plan *plan = worker->plan;
    struct coven_port *p = &worker->port[port].port;
    uint32_t n_queues = 0;

    p->pool_data = worker->pool;
    p->buffer_bytes = plan->buffer_bytes;
    p->n_buffers = plan->n_buffers;
    p->queue = worker->book.ledger->queue[port];
    for (uint16_t i = 0; i < plan->n_ports; i++)
        if (plan->ports[i].tool == COVEN_PORT_AFXDP)
            n_queues += worker->port[i].port.n_queues > 0 ? worker->port[i].port.n_queues : 1;
    /* a quarter stays for packets on their way */
    p->share = n_queues > 0 ? plan->n_buffers / 4 * 3 / n_queues : 0;
}
