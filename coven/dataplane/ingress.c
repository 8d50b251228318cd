/* SPDX-License-Identifier: Apache-2.0 */
/* Packets come in: one burst of a port is received into free buffers, booked in one intent together with the port's
 * new position, and walked through the graph. A worker killed before the booking has received nothing: its
 * successor reads the same packets again. */
#include <string.h>

#include "fault.h"
#include "worker.h"

/* splitmix64: good enough to decide alike for every replay, not secret. */
static uint32_t random_of(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return (uint32_t)((x ^ (x >> 31)) >> 32);
}

static void fill_meta(struct coven_worker *worker, uint16_t port, const struct coven_rx *rx)
{
    struct coven_meta *metas = worker->book.meta;
    struct coven_meta_ext *exts = worker->book.ext;
    const uint32_t *handles = rx->handles;
    uint16_t path = (uint16_t)worker->plan->ports[port].path, n = rx->n;
    uint64_t random = worker->random;

    for (uint16_t i = 0; i < n; i++) {
        const struct coven_meta *received = &rx->meta[i];

        metas[handles[i]] = (struct coven_meta){
            .handle = handles[i],
            .offset = received->offset,
            .length = received->length,
            .port = port,
            .path = path,
            .hop = COVEN_NO_HOP,
            .flow = COVEN_NO_FLOW,
            .timestamp_ns = received->timestamp_ns,
            .random = random_of(random += 0x9e3779b97f4a7c15ull),
        };
    }
    worker->random = random;
    for (uint16_t i = 0; i < n && worker->may_be_cut; i++)
        exts[handles[i]].cut = rx->cut[i];
}

static void book(struct coven_worker *worker, uint16_t port, const struct coven_rx *rx)
{
    struct coven_book *b = &worker->book;
    struct coven_port *p = &worker->port[port].port;
    uint32_t path = worker->plan->ports[port].path;

    coven_book_count(b, COVEN_CELL_PORT(port, COVEN_PORT_RX_PKTS), rx->frames);
    coven_book_count(b, COVEN_CELL_PORT(port, COVEN_PORT_RX_BYTES), rx->bytes);
    if (rx->created > 0)
        coven_book_count(b, COVEN_CELL_PORT(port, COVEN_PORT_CREATED), rx->created);
    if (path < COVEN_MAX_PATHS) {
        coven_book_count(b, COVEN_CELL_PATH(path, COVEN_PATH_RX_PKTS), rx->frames);
        coven_book_count(b, COVEN_CELL_PATH(path, COVEN_PATH_RX_BYTES), rx->bytes);
    }
    if (rx->n_refused > 0)
        coven_book_count(b, rx->refused_cell, rx->n_refused);
    for (uint16_t i = 0; i < rx->n_drops; i++)
        coven_book_count(b, COVEN_CELL_DROP(COVEN_SCOPE_PORT(port), rx->drops[i].reason), rx->drops[i].n);
    coven_book_own_all(b, rx->handles, rx->n, coven_owner(COVEN_OWNER_WORKER, 0, 0, 0));
    coven_book_word(b, &p->position->rx[0], rx->position[0]);
    coven_book_word(b, &p->position->rx[1], rx->position[1]);
    if (p->ops->lending) {
        for (uint16_t i = 0; i < rx->n_returned; i++)
            coven_book_own(b, rx->returned[i], 0);
        coven_book_word(b, &p->queue[rx->queue].rx, rx->queue_rx);
        coven_lending_collect(worker, port);
    } else {
        /* before the commit: that puts buffers on top which became free meanwhile */
        coven_book_take_free(b, rx->n_handles, rx->n);
    }
    coven_book_commit(b);
}

static void enter(struct coven_worker *worker, uint16_t port, uint32_t *handles, uint16_t n)
{
    const struct coven_plan_port *plan = &worker->plan->ports[port];
    const struct coven_plan_next first = {(uint16_t)plan->first_hop, (uint16_t)plan->first_port};
    uint32_t path = plan->path < COVEN_MAX_PATHS ? plan->path : COVEN_MAX_PATHS;

    if (worker->path_has_flows[path])
        n = coven_ingress_find_flows(worker, path, handles, n);
    if (first.hop == COVEN_NO_HOP && first.port == COVEN_NO_PORT)
        for (uint16_t i = 0; i < n; i++)
            coven_book_drop(&worker->book, handles[i], COVEN_SCOPE_PORT(port), COVEN_DROP_NO_PATH);
    else
        coven_graph_put_all(worker, handles, n, &first, COVEN_SCOPE_PORT(port));
    coven_graph_walk(worker);
}

/* A wire brings packets whether there is room or not. A file can wait, and so can a generator without a rate: */
static bool can_wait(const struct coven_plan_port *plan)
{
    return (plan->tool == COVEN_PORT_PCAP && (plan->flags & COVEN_PORT_PACED) == 0) ||
           (plan->tool == COVEN_PORT_GEN && plan->gen_rate == 0);
}

void coven_ingress_prepare(struct coven_worker *worker, uint16_t port)
{
    const struct coven_plan *plan = worker->plan;
    struct coven_port_link *link = &worker->port[port];
    uint64_t seen = 0; /* components */

    link->window = 0;
    link->n_behind = 0;
    coven_admit_prepare(worker, port);
    if (!can_wait(&plan->ports[port]))
        return;
    for (uint32_t h = 0; h < plan->n_hops; h++) {
        uint16_t c = plan->hops[h].component;
        const struct coven_plan_component *component = &plan->components[c];
        /* a component moves its head after it gave a burst back: that much of its ring may seem taken still */
        uint32_t room =
            component->ring_size > 2 * COVEN_BURST ? component->ring_size - COVEN_BURST : component->ring_size / 2;

        if (plan->hops[h].path != plan->ports[port].path || component->isolation == COVEN_FUSED || (seen >> c & 1) != 0)
            continue;
        seen |= 1ull << c;
        if (worker->replica[component->first_replica].most < room)
            room = worker->replica[component->first_replica].most;
        if (link->window == 0 || room < link->window)
            link->window = room;
        for (uint32_t r = 0; r < component->n_replicas; r++)
            link->behind[link->n_behind++] = (uint16_t)(component->first_replica + r);
    }
}

uint16_t coven_ingress_room(const struct coven_worker *worker, uint16_t port)
{
    const struct coven_port_link *link = &worker->port[port];
    uint32_t inside = 0;

    if (link->window == 0)
        return COVEN_BURST;
    /* what is in one replica may all go to the next, so together they must fit the smallest */
    for (uint32_t i = 0; i < link->n_behind; i++)
        inside += coven_replica_has(&worker->replica[link->behind[i]]);
    if (inside >= link->window)
        return 0;
    return link->window - inside < COVEN_BURST ? (uint16_t)(link->window - inside) : COVEN_BURST;
}

uint32_t coven_ingress_burst(struct coven_worker *worker, uint16_t port)
{
    struct coven_port *p = &worker->port[port].port;
    struct coven_rx *rx = &worker->rx;
    uint32_t handles[COVEN_BURST];
    uint16_t room = coven_ingress_room(worker, port);

    /* commits what is open if it must, so nothing becomes free between the peek and the booking */
    coven_book_room(&worker->book, COVEN_BURST + COVEN_LENDING_OWNERS, 4 + COVEN_RX_DROPS + 5, 3 + COVEN_LENDING_WORDS);
    rx->handles = p->ops->lending ? rx->brought : handles;
    rx->n_handles = p->ops->lending ? room : coven_book_peek_free(&worker->book, handles, room);
    if (rx->n_handles == 0)
        return 0; /* the packets wait where they are until there is room */
    rx->now_ns = worker->wall_ns;
    rx->n = 0;
    rx->frames = 0;
    rx->bytes = 0;
    rx->created = 0;
    rx->n_drops = 0;
    coven_admit_begin(worker, port, rx);
    rx->position[0] = p->position->rx[0];
    rx->position[1] = p->position->rx[1];
    p->ops->rx_burst(p, rx);
    if (rx->n == 0 && rx->frames == 0 && rx->n_drops == 0 && rx->position[0] == p->position->rx[0] &&
        rx->position[1] == p->position->rx[1]) {
        if (p->ops->lending)
            coven_lending_turn(worker, port);
        return 0;
    }
    COVEN_FAULT("worker-after-rx");
    fill_meta(worker, port, rx);
    for (uint16_t i = 0; worker->urgent && i < rx->n; i++)
        worker->urgent[rx->handles[i]] = rx->n_rules > 0 && rx->urgent[i];
    book(worker, port, rx);
    p->ops->rx_release(p);
    if (p->ops->lending)
        memcpy(handles, rx->brought, sizeof(handles[0]) * rx->n);
    worker->received += rx->n;
    enter(worker, port, handles, rx->n);
    return rx->n + 1u;
}
