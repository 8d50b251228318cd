/* SPDX-License-Identifier: Apache-2.0 */
/* Packets go out: collected for each port, sent in bursts. A burst is named in the ledger's tx record before the
 * kernel gets it, because between that and the booking nobody could tell whether it is outside. */
#include <string.h>

#include "fault.h"
#include "worker.h"

/* Bytes that the port's MTU counts: without Ethernet header and up to two VLAN tags (802.1Q, 802.1ad). */
static uint32_t payload_bytes(const uint8_t *data, uint32_t length)
{
    uint32_t header = 14;

    for (int tags = 0; tags < 2 && header + 4 <= length; tags++) {
        uint16_t type = (uint16_t)(data[header - 2] << 8 | data[header - 1]);

        if (type != 0x8100 && type != 0x88a8)
            break;
        header += 4;
    }
    return length > header ? length - header : 0;
}

static bool fits(const struct coven_worker *worker, uint32_t port, uint32_t handle)
{
    const struct coven_meta *meta = &worker->book.meta[handle];
    uint32_t mtu = worker->plan->ports[port].mtu;

    return mtu == 0 || meta->length <= mtu + 14u ||
           payload_bytes(coven_worker_buffer(worker, handle) + meta->offset, meta->length) <= mtu;
}

static void queue(struct coven_worker *worker, uint16_t port, const uint32_t *handles, uint16_t n)
{
    struct coven_port_link *link = &worker->port[port];

    while (n > 0) {
        uint16_t now = (uint16_t)(COVEN_BURST - link->n) < n ? (uint16_t)(COVEN_BURST - link->n) : n;

        memcpy(&link->handle[link->n], handles, sizeof(handles[0]) * now);
        link->n = (uint16_t)(link->n + now);
        handles += now;
        n = (uint16_t)(n - now);
        if (n > 0)
            coven_egress_flush(worker, port);
    }
}

void coven_egress_put(struct coven_worker *worker, uint32_t port, const uint32_t *handles, uint16_t n)
{
    struct coven_port_link *link = &worker->port[port];
    uint32_t reason = link->attached ? COVEN_DROP_MTU_EXCEEDED : COVEN_DROP_PORT_DOWN;
    uint32_t kept[COVEN_BURST];
    uint16_t n_kept = 0;

    for (uint16_t i = 0; i < n; i++) {
        if (link->attached && fits(worker, port, handles[i]))
            kept[n_kept++] = handles[i];
        else
            coven_book_drop(&worker->book, handles[i], COVEN_SCOPE_PORT(port), reason);
    }
    queue(worker, (uint16_t)port, kept, n_kept);
}

static void count_path(struct coven_book *b, uint32_t path, uint64_t pkts, uint64_t bytes)
{
    if (path >= COVEN_MAX_PATHS || pkts == 0)
        return;
    coven_book_count(b, COVEN_CELL_PATH(path, COVEN_PATH_TX_PKTS), pkts);
    coven_book_count(b, COVEN_CELL_PATH(path, COVEN_PATH_TX_BYTES), bytes);
}

static void book(struct coven_worker *worker, uint16_t port, const uint32_t *handles, uint16_t n,
                 const uint8_t *results, const uint64_t position[2])
{
    struct coven_book *b = &worker->book;
    struct coven_port *p = &worker->port[port].port;
    const struct coven_meta *metas = b->meta;
    uint64_t pkts = 0, bytes = 0, path_pkts = 0, path_bytes = 0;
    uint32_t path = COVEN_MAX_PATHS;
    uint64_t sent = coven_owner(COVEN_OWNER_NIC, port, 0, 0); /* until the kernel gives it back */

    /* each packet may be of another path and fail for another reason */
    coven_book_room(b, n + COVEN_LENDING_OWNERS, 2u + 3u * n, 3 + COVEN_LENDING_WORDS);
    if (!p->ops->lending)
        coven_book_own_all(b, handles, n, 0);
    for (uint16_t i = 0; i < n; i++) {
        const struct coven_meta *meta = &metas[handles[i]];

        if (p->ops->lending)
            coven_book_own(b, handles[i], results[i] == COVEN_TX_SENT ? sent : 0);
        if (results[i] != COVEN_TX_SENT) {
            coven_book_count(b, COVEN_CELL_DROP(COVEN_SCOPE_PORT(port), results[i] % COVEN_MAX_REASONS), 1);
            continue;
        }
        pkts++;
        bytes += meta->length;
        if (meta->path != path) { /* mostly a burst is of one path: counted once */
            count_path(b, path, path_pkts, path_bytes);
            path = meta->path;
            path_pkts = 0;
            path_bytes = 0;
        }
        path_pkts++;
        path_bytes += meta->length;
    }
    count_path(b, path, path_pkts, path_bytes);
    coven_book_count(b, COVEN_CELL_PORT(port, COVEN_PORT_TX_PKTS), pkts);
    coven_book_count(b, COVEN_CELL_PORT(port, COVEN_PORT_TX_BYTES), bytes);
    coven_book_word(b, &p->position->tx[0], position[0]);
    coven_book_word(b, &p->position->tx[1], position[1]);
    coven_book_word(b, &b->ledger->tx.n, 0);
    if (p->ops->lending)
        coven_lending_collect(worker, port); /* after the owners above: what was sent just now may be back */
    coven_book_commit(b);
    if (p->ops->lending)
        p->ops->lending->show(p);
}

static uint32_t latency_bucket(uint64_t ns)
{
    uint32_t power, bucket;

    if (ns < 64)
        return 0;
    power = 63u - (uint32_t)__builtin_clzll(ns);
    bucket = 1u + (power - 6u) * 4u + (uint32_t)(ns >> (power - 2u) & 3u);
    return bucket < COVEN_LATENCY_BUCKETS ? bucket : COVEN_LATENCY_BUCKETS - 1u;
}

/* A clock is read for it, so only now and then; that of the turn stands still while the packets move. The time in a
 * capture file tells when a packet was recorded: those are left out. */
static void measure_latency(struct coven_worker *worker, const uint32_t *handles, uint16_t n)
{
    const struct coven_plan *plan = worker->plan;
    uint64_t now = coven_wait_wall_ns();

    worker->measured_ns = worker->now_ns;
    for (uint16_t i = 0; i < n; i++) {
        const struct coven_meta *meta = &worker->book.meta[handles[i]];
        uint64_t *count;

        if (meta->port >= plan->n_ports || plan->ports[meta->port].tool == COVEN_PORT_PCAP ||
            meta->path >= COVEN_MAX_PATHS || meta->timestamp_ns > now)
            continue;
        count = &worker->stats->cell[COVEN_LATENCY(meta->path, latency_bucket(now - meta->timestamp_ns))];
        __atomic_store_n(count, *count + 1, __ATOMIC_RELAXED);
    }
}

uint32_t coven_egress_flush(struct coven_worker *worker, uint16_t port)
{
    struct coven_port_link *link = &worker->port[port];
    struct coven_tx_record *record = &worker->book.ledger->tx;
    struct coven_tx_packet pkts[COVEN_BURST];
    uint8_t results[COVEN_BURST];
    uint64_t position[2];
    uint16_t n = link->n;

    if (n == 0)
        return 0;
    for (uint16_t i = 0; i < n; i++) {
        const struct coven_meta *meta = &worker->book.meta[link->handle[i]];

        pkts[i] = (struct coven_tx_packet){
            .data = coven_worker_buffer(worker, link->handle[i]) + meta->offset,
            .length = meta->length,
            .timestamp_ns = meta->timestamp_ns,
            .cut = worker->may_be_cut ? worker->book.ext[link->handle[i]].cut : 0,
        };
    }
    record->port = port;
    memcpy(record->handle, link->handle, sizeof(record->handle[0]) * n);
    __asm__ volatile("" ::: "memory"); /* the list before the number that makes it count */
    record->n = n;
    __asm__ volatile("" ::: "memory");
    memcpy(position, link->port.position->tx, sizeof(position));
    COVEN_FAULT("worker-before-tx");
    link->port.ops->tx_burst(&link->port, pkts, n, results, position);
    COVEN_FAULT("worker-after-tx");
    if (worker->now_ns - worker->measured_ns >= COVEN_LATENCY_EVERY_NS)
        measure_latency(worker, record->handle, n);
    link->n = 0;
    book(worker, port, record->handle, n, results, position);
    return n;
}
