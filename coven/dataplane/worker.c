/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "worker.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

/* Bursts of one source in one turn, if it has that many: what a turn costs, and what travels between cores for it, is
 * shared by more packets when there are many. */
#define TURN_BURSTS 4

static uint32_t receive(struct coven_worker *worker, uint16_t port)
{
    /* a wire has others waiting for it; a source that can wait has not */
    int bursts = worker->port[port].window != 0 ? TURN_BURSTS : 1;
    uint32_t done = 0, n;

    do {
        n = coven_ingress_burst(worker, port);
        done += n;
    } while (n > COVEN_BURST && --bursts > 0);
    return done;
}

static uint32_t take(struct coven_worker *worker, struct coven_replica_link *link)
{
    uint32_t done = 0, n;
    int bursts = TURN_BURSTS;

    do {
        n = coven_replica_take(worker, link);
        done += n;
    } while (n == COVEN_BURST && --bursts > 0);
    return done;
}

/* The life of a packet: received from a port and booked (ingress), walked along the hops of its path (graph) through
 * fused components (fused) and, by ring, isolated ones (replica), collected for a port and sent in bursts (egress).
 * Whatever a turn changed is in the ledger before the components are shown their part of it. */
int coven_worker_run(struct coven_worker *worker)
{
    while (!worker->leaving) {
        uint32_t done = 0;

        if (!worker->ready) {
            coven_control_poll(worker);
            continue;
        }
        coven_wait_clock(worker);

        /* rx -> graph -> fused components, rings, tx queues */
        for (uint16_t p = 0; p < worker->plan->n_ports; p++) {
            if (!worker->port[p].attached)
                continue;
            if (worker->receiving && !worker->halted)
                done += receive(worker, p);
            else if (worker->port[p].port.ops->lending)
                coven_lending_turn(worker, p);
        }

        /* isolated components give packets back -> graph */
        for (uint32_t r = 0; worker->running && r < worker->plan->n_replicas; r++)
            if (worker->replica[r].attached)
                done += take(worker, &worker->replica[r]);

        /* fused components release held packets -> graph */
        done += coven_fused_collect(worker);

        /* tx -> book -> show the isolated components what is theirs now */
        coven_worker_settle(worker);

        coven_wait_turn(worker, done);
    }
    return worker->exit_status;
}

void coven_worker_settle(struct coven_worker *worker)
{
    for (uint16_t p = 0; p < worker->plan->n_ports; p++)
        coven_egress_flush(worker, p);
    coven_book_commit(&worker->book);
    coven_replica_publish(worker);
}

uint32_t coven_worker_inside(const struct coven_worker *worker)
{
    uint32_t inside = 0;

    for (uint32_t c = 0; c < worker->plan->n_components; c++)
        inside += worker->component[c].fused.held.n;
    for (uint32_t r = 0; r < worker->plan->n_replicas; r++)
        inside += coven_replica_has(&worker->replica[r]);
    return inside;
}

/* ---- start ------------------------------------------------------------------------------------- */
struct coven_worker *coven_worker_new(int control_fd)
{
    struct coven_worker *worker = calloc(1, sizeof(*worker));

    if (!worker)
        return NULL;
    worker->control_fd = control_fd;
    for (uint32_t p = 0; p < COVEN_MAX_PORTS; p++) {
        worker->port[p].port.rx_fd = -1;
        worker->port[p].port.tx_fd = -1;
    }
    for (uint32_t c = 0; c < COVEN_MAX_COMPONENTS; c++) {
        worker->component[c].fused.code_fd = -1;
        coven_track_clear(&worker->component[c].fused.held);
    }
    if (getrandom(&worker->random, sizeof(worker->random), 0) < 0)
        worker->random = (uint64_t)getpid();
    return worker;
}

void coven_worker_free(struct coven_worker *worker)
{
    for (uint32_t p = 0; p < COVEN_MAX_PORTS; p++)
        if (worker->port[p].attached)
            worker->port[p].port.ops->detach(&worker->port[p].port);
    for (uint32_t r = 0; r < COVEN_MAX_REPLICAS; r++) {
        coven_segment_unmap(&worker->replica[r].segment);
        free(worker->replica[r].packet_of);
        free(worker->replica[r].free_copies);
    }
    for (uint32_t c = 0; c < COVEN_MAX_COMPONENTS; c++) {
        coven_segment_unmap(&worker->component[c].state_segment);
        free(worker->component[c].fused.start);
    }
    coven_segment_unmap(&worker->plan_segment);
    coven_segment_unmap(&worker->pool_segment);
    coven_segment_unmap(&worker->ledger_segment);
    coven_segment_unmap(&worker->stats_segment);
    free(worker->track);
    free(worker->urgent);
    free(worker->given_print);
    free(worker);
}

static int refuse(char *why, size_t why_bytes, const char *what, uint32_t index)
{
    snprintf(why, why_bytes, "plan segment: %s %u is out of range", what, index);
    return -EINVAL;
}

static int check_next(const struct coven_plan *plan, const struct coven_plan_next *next, uint32_t after)
{
    if (next->hop != COVEN_NO_HOP && (next->hop >= plan->n_hops || next->hop <= after))
        return -EINVAL;
    if (next->port != COVEN_NO_PORT && next->port >= plan->n_ports)
        return -EINVAL;
    return 0;
}

static int check_component(const struct coven_plan *plan, const struct coven_plan_component *component)
{
    bool isolated = component->isolation != COVEN_FUSED;

    if (component->isolation > COVEN_COPY || component->outputs > COVEN_MAX_OUTPUTS || component->n_replicas == 0)
        return -EINVAL;
    if (isolated && (component->first_replica > plan->n_replicas ||
                     component->n_replicas > plan->n_replicas - component->first_replica))
        return -EINVAL;
    if (isolated && (component->ring_size < COVEN_BURST || component->ring_size > 1u << 20 ||
                     (component->ring_size & (component->ring_size - 1)) != 0))
        return -EINVAL;
    if (component->isolation == COVEN_COPY &&
        (component->n_buffers == 0 || component->n_buffers > COVEN_MAX_COPY_BUFFERS))
        return -EINVAL;
    return 0;
}

/* The plan is the supervisor's, not a component's; but an index that is wrong must not become a wild store. */
static int check_plan(const struct coven_plan *plan, char *why, size_t why_bytes)
{
    if (plan->n_ports > COVEN_MAX_PORTS || plan->n_components > COVEN_MAX_COMPONENTS ||
        plan->n_replicas > COVEN_MAX_REPLICAS || plan->n_hops > COVEN_MAX_HOPS || plan->n_paths > COVEN_MAX_PATHS ||
        plan->n_priorities > COVEN_MAX_PRIORITIES || plan->n_buffers == 0 || plan->buffer_bytes < 2048 ||
        plan->buffer_bytes > 1u << 16 || (plan->buffer_bytes & (plan->buffer_bytes - 1)) != 0 ||
        plan->headroom >= plan->buffer_bytes)
        return refuse(why, why_bytes, "a number of its", 0);
    for (uint32_t c = 0; c < plan->n_components; c++)
        if (check_component(plan, &plan->components[c]))
            return refuse(why, why_bytes, "component", c);
    for (uint32_t p = 0; p < plan->n_ports; p++)
        if ((plan->ports[p].first_hop != COVEN_NO_HOP && plan->ports[p].first_hop >= plan->n_hops) ||
            (plan->ports[p].first_port != COVEN_NO_PORT && plan->ports[p].first_port >= plan->n_ports))
            return refuse(why, why_bytes, "port", p);
    for (uint32_t h = 0; h < plan->n_hops; h++) {
        if (plan->hops[h].component >= plan->n_components)
            return refuse(why, why_bytes, "hop", h);
        for (uint32_t o = 0; o < COVEN_MAX_OUTPUTS; o++)
            if (check_next(plan, &plan->hops[h].next[o], h))
                return refuse(why, why_bytes, "next of hop", h);
    }
    return 0;
}

static int check_segments(struct coven_worker *worker, char *why, size_t why_bytes)
{
    int error;

    if (!worker->plan_segment.base || !worker->pool_segment.base || !worker->ledger_segment.base ||
        !worker->stats_segment.base) {
        snprintf(why, why_bytes, "plan, pool, ledger and stats segments are needed before READY");
        return -EBADMSG;
    }
    error = check_plan(worker->plan_segment.base, why, why_bytes);
    if (error)
        return error;
    worker->plan = worker->plan_segment.base;
    if (worker->stats_segment.bytes < sizeof(struct coven_stats) + 8ull * COVEN_STATS_WORDS ||
        worker->ledger_segment.bytes < coven_ledger_bytes(worker->plan) ||
        worker->pool_segment.bytes <
            COVEN_POOL_DATA_OFFSET + (uint64_t)worker->plan->n_buffers * worker->plan->buffer_bytes) {
        snprintf(why, why_bytes, "a segment is smaller than the plan needs");
        return -EMSGSIZE;
    }
    worker->pool = (uint8_t *)worker->pool_segment.base + COVEN_POOL_DATA_OFFSET;
    worker->rx.pool_data = worker->pool;
    worker->rx.buffer_bytes = worker->plan->buffer_bytes;
    worker->rx.headroom = worker->plan->headroom;
    worker->stats = worker->stats_segment.base;
    return 0;
}

static int prepare_components(struct coven_worker *worker, char *why, size_t why_bytes)
{
    const struct coven_plan *plan = worker->plan;

    for (uint16_t c = 0; c < plan->n_components; c++) {
        struct coven_component_link *link = &worker->component[c];

        link->plan = &plan->components[c];
        if (!link->state_segment.base) {
            snprintf(why, why_bytes, "component %.31s has no state segment", plan->components[c].name);
            return -EBADMSG;
        }
        if (coven_state_view_plan(&link->state, link->state_segment.base, link->state_segment.bytes, plan,
                                  link->plan)) {
            snprintf(why, why_bytes, "component %.31s: state segment does not fit", plan->components[c].name);
            return -EINVAL;
        }
    }
    for (uint32_t h = 0; h < plan->n_hops; h++) {
        const struct coven_plan_component *component = &plan->components[plan->hops[h].component];

        if (plan->hops[h].path >= COVEN_MAX_PATHS || component->state_bytes == 0 || plan->n_flows == 0)
            continue;
        worker->path_has_flows[plan->hops[h].path] = true;
        if (component->isolation == COVEN_FUSED)
            worker->path_fused_states[plan->hops[h].path] |= 1ull << plan->hops[h].component;
    }
    return 0;
}

int coven_worker_open_port(struct coven_worker *worker, uint16_t port, char *why, size_t why_bytes)
{
    struct coven_port_link *link = &worker->port[port];
    const struct coven_plan_port *plan = &worker->plan->ports[port];
    char reason[160] = "";
    int error;

    link->port.plan = plan;
    link->port.index = port;
    link->port.position = &worker->book.ledger->port[port];
    link->port.ops = coven_port_ops_of(plan->tool);
    worker->may_be_cut |= plan->tool == COVEN_PORT_PCAP;
    if (!link->port.ops) {
        snprintf(why, why_bytes, "port %.31s: this build has no NIC tool %u", plan->name, plan->tool);
        return -ENOTSUP;
    }
    coven_lending_prepare(worker, port);
    error = link->port.ops->attach(&link->port, reason, sizeof(reason));
    if (error)
        snprintf(why, why_bytes, "port %.31s: %s", plan->name, reason[0] ? reason : strerror(-error));
    link->attached = error == 0;
    if (link->attached)
        coven_lending_adopt(worker, port);
    coven_ingress_prepare(worker, port);
    return error;
}

static int open_ports(struct coven_worker *worker, char *why, size_t why_bytes)
{
    for (uint16_t p = 0; p < worker->plan->n_ports; p++) {
        int error = worker->port[p].given ? coven_worker_open_port(worker, p, why, why_bytes) : 0;

        if (error)
            return error;
    }
    return 0;
}

int coven_worker_ready(struct coven_worker *worker, char *why, size_t why_bytes)
{
    int error;

    coven_wait_clock(worker);
    error = check_segments(worker, why, why_bytes);
    if (!error)
        error = coven_recovery_run(worker, why, why_bytes);
    if (!error)
        error = prepare_components(worker, why, why_bytes);
    if (error) {
        worker->exit_status = 3;
        return error;
    }
    worker->track = calloc(worker->plan->n_buffers, sizeof(worker->track[0]));
    if (worker->plan->n_priorities > 0)
        worker->urgent = calloc(worker->plan->n_buffers, sizeof(worker->urgent[0]));
    if (worker->plan->n_priorities > 0 && !worker->urgent)
        return -ENOMEM;
    error = worker->track ? coven_replica_prepare(worker) : -ENOMEM;
    if (!error)
        error = open_ports(worker, why, why_bytes);
    if (error)
        return error;
    coven_replica_mark_given(worker);
    worker->given_print = calloc(worker->plan->n_buffers, sizeof(worker->given_print[0]));
    if (!worker->given_print)
        return -ENOMEM;
    coven_recovery_sweep(worker);
    coven_poison_age(worker);
    error = coven_replica_rebuild(worker);
    for (uint16_t c = 0; c < worker->plan->n_components && !error; c++)
        error = coven_fused_start(worker, c, why, why_bytes);
    for (uint16_t p = 0; p < worker->plan->n_ports && !error; p++)
        if (worker->port[p].attached && worker->port[p].port.ops->lending)
            coven_lending_turn(worker, p); /* what comes from now on is received, once RUN says so */
    worker->ready = error == 0;
    return error;
}
