/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's side of an isolated component: whatever that writes into its segment, the worker stays inside its memory,
 * and every packet is accounted for, every buffer in one place. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "worker.h"

#define BUFFERS 128u
#define COPIES 40u
#define RING 64u
#define REPLICA_BYTES ((1u << 15) + COPIES * 2048u)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void *memory(struct coven_segment *segment, size_t bytes, uint32_t kind)
{
    struct coven_segment_header *header;

    segment->bytes = (bytes + 4095) & ~(size_t)4095;
    segment->base = mmap(NULL, segment->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (segment->base == MAP_FAILED)
        abort();
    header = segment->base;
    header->magic = COVEN_MAGIC;
    header->abi_version = COVEN_ABI_VERSION;
    header->kind = kind;
    header->bytes = segment->bytes;
    return segment->base;
}

static void fill_plan(struct coven_plan *plan, uint8_t options)
{
    struct coven_plan_component *component = &plan->components[0];

    plan->n_ports = 2;
    plan->n_components = plan->n_replicas = plan->n_hops = plan->n_paths = 1;
    plan->n_buffers = BUFFERS;
    plan->buffer_bytes = 2048;
    plan->headroom = 256;
    plan->n_flows = 64;
    plan->flow_idle_ms = 1000;
    for (uint32_t p = 0; p < 2; p++) {
        plan->ports[p].tool = COVEN_PORT_GEN;
        plan->ports[p].gen_packets = p == 0 ? UINT64_MAX : 0;
        plan->ports[p].gen_bytes = 64;
        plan->ports[p].gen_flows = 3;
        plan->ports[p].first_hop = p == 0 ? 0 : COVEN_NO_HOP;
        plan->ports[p].first_port = COVEN_NO_PORT;
        plan->ports[p].path = p == 0 ? 0 : COVEN_MAX_PATHS;
    }
    strcpy(component->name, "fuzzed");
    component->isolation = options & 1 ? COVEN_COPY : COVEN_SHARED;
    component->on_failure = options >> 1 & 1 ? COVEN_ON_FAILURE_BYPASS : COVEN_ON_FAILURE_DROP;
    component->outputs = 2;
    component->n_replicas = 1;
    component->state_bytes = options & 4 ? 24 : 0;
    component->state_version = 1;
    component->ring_size = RING;
    component->hold_limit = 8;
    component->hold_ms = 1000;
    component->n_buffers = COPIES;
    for (uint32_t o = 0; o < COVEN_MAX_OUTPUTS; o++)
        plan->hops[0].next[o] = (struct coven_plan_next){COVEN_NO_HOP, o == 0 ? 1 : COVEN_NO_PORT};
    plan->ledger_bytes = coven_ledger_bytes(plan);
}

static void attach(struct coven_worker *worker, uint8_t **replica)
{
    int doorbell[2][2], fds[3];
    char why[256];

    if (*replica != NULL)
        munmap(*replica, REPLICA_BYTES);
    fds[0] = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fds[0] < 0 || ftruncate(fds[0], REPLICA_BYTES) != 0 ||
        fcntl(fds[0], F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0 ||
        pipe2(doorbell[0], O_NONBLOCK | O_CLOEXEC) != 0 || pipe2(doorbell[1], O_NONBLOCK | O_CLOEXEC) != 0)
        abort();
    *replica = mmap(NULL, REPLICA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
    fds[1] = doorbell[0][1];
    fds[2] = doorbell[1][0];
    if (*replica == MAP_FAILED || coven_replica_attach(worker, 0, fds, why, sizeof(why)) != 0)
        abort();
    close(fds[0]);
    close(doorbell[0][0]);
    close(doorbell[1][1]);
}

static struct coven_worker *start(uint8_t options)
{
    struct coven_worker *worker = coven_worker_new(-1);
    struct coven_plan *plan;
    char why[256];

    if (worker == NULL)
        abort();
    plan = memory(&worker->plan_segment, sizeof(*plan), COVEN_SEGMENT_PLAN);
    fill_plan(plan, options);
    memory(&worker->pool_segment, COVEN_POOL_DATA_OFFSET + (size_t)BUFFERS * 2048, COVEN_SEGMENT_POOL);
    memory(&worker->ledger_segment, plan->ledger_bytes, COVEN_SEGMENT_LEDGER);
    memory(&worker->stats_segment, 1u << 20, COVEN_SEGMENT_STATS);
    memory(&worker->component[0].state_segment, 1u << 16, COVEN_SEGMENT_STATE);
    worker->port[0].given = worker->port[1].given = true;
    if (coven_worker_ready(worker, why, sizeof(why)) != 0) {
        fprintf(stderr, "%s\n", why);
        abort();
    }
    worker->running = worker->receiving = true;
    return worker;
}

static void check(struct coven_worker *worker)
{
    static struct coven_snapshot now;

    coven_worker_settle(worker);
    coven_snapshot_take(worker, &now);
    if (now.rx + now.created != now.tx + now.consumed + now.drops + now.held)
        abort();
    if (now.free_buffers + now.held + now.held_by_kind[COVEN_OWNER_QUARANTINE] + now.held_by_kind[COVEN_OWNER_NIC] !=
            BUFFERS ||
        now.held_by_kind[COVEN_OWNER_WORKER] != 0)
        abort();
}

/* As an obedient component would: n entries go from the in-ring to the out-ring, with this verdict. */
static void give_back(uint8_t *segment, const struct coven_replica_link *link, uint8_t n, uint8_t verdict)
{
    struct coven_replica *replica = (struct coven_replica *)(void *)segment;
    uint8_t *theirs = link->segment.base;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t from = (replica->in.head + i) % RING, to = (replica->out.tail + i) % RING;

        memcpy(segment + ((uint8_t *)&link->out.entry[to] - theirs), &link->in.entry[from], sizeof(link->in.entry[0]));
        memcpy(segment + ((uint8_t *)&link->out.meta[to] - theirs), &link->in.meta[from], sizeof(link->in.meta[0]));
        ((struct coven_meta *)(void *)(segment + ((uint8_t *)&link->out.meta[to] - theirs)))->verdict = verdict;
    }
    replica->out.tail += n;
    replica->in.head += n;
}

/* Input: options, then steps of four bytes: what, and three it needs. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct coven_worker *worker;
    uint8_t *replica = NULL;
    uint64_t dropped, staged;

    if (size < 1)
        return 0;
    signal(SIGPIPE, SIG_IGN); /* as coven-worker has it */
    worker = start(data[0]);
    attach(worker, &replica);
    for (data++, size--; size >= 4; data += 4, size -= 4) {
        uint32_t place = (uint32_t)(data[1] | data[2] << 8) % (REPLICA_BYTES / 4);

        switch (data[0] % 8) {
        case 0:
            coven_ingress_burst(worker, 0);
            break;
        case 1: /* a word anywhere */
            replica[place * 4 + data[3] % 4] = data[3];
            break;
        case 2:
            ((struct coven_replica *)(void *)replica)->out.tail += data[1] % (2 * RING);
            break;
        case 3:
            ((struct coven_replica *)(void *)replica)->in.head += data[1] % (2 * RING);
            break;
        case 4:
        case 5:
            give_back(replica, &worker->replica[0], data[1] % (COVEN_BURST + 1), data[2] % 6);
            break;
        case 6:
            coven_replica_take(worker, &worker->replica[0]);
            break;
        default:
            worker->now_ns += data[1] * 20 * COVEN_NS_PER_MS;
            if (data[2] & 1)
                coven_replica_hold_check(worker, &worker->replica[0]);
            if (data[2] & 2) {
                coven_replica_sweep(worker, 0, COVEN_DROP_COMPONENT_CRASH, &dropped, &staged);
                attach(worker, &replica);
            }
            coven_removal_turn(worker);
        }
        check(worker);
    }
    coven_replica_sweep(worker, 0, COVEN_DROP_STOPPED, &dropped, &staged);
    check(worker);
    munmap(replica, REPLICA_BYTES);
    coven_worker_free(worker);
    return 0;
}
