/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting: spin briefly, then sleep on everything that can bring work. An idle worker uses next to no CPU, a busy
 * one makes no system call but a look at its control socket every 64 turns. */
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "worker.h"

#define CONTROL_EVERY 64u
#define HEARTBEAT_EVERY 1024u
#define BALANCED_YIELDS 64u
#define GATHER_NS (COVEN_NS_PER_MS / 2)
#define MUTE_NS (100 * COVEN_NS_PER_MS)

static uint64_t clock_ns(clockid_t id)
{
    struct timespec now;

    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * COVEN_NS_PER_S + (uint64_t)now.tv_nsec;
}

uint64_t coven_wait_wall_ns(void)
{
    return clock_ns(CLOCK_REALTIME);
}

/* One clock a turn: how far the other is ahead is looked at with each tick. */
void coven_wait_clock(struct coven_worker *worker)
{
    worker->now_ns = clock_ns(CLOCK_MONOTONIC);
    if (worker->now_ns >= worker->tick_ns)
        worker->wall_ahead_ns = clock_ns(CLOCK_REALTIME) - worker->now_ns;
    worker->wall_ns = worker->now_ns + worker->wall_ahead_ns;
}

static void add(struct coven_worker *worker, uint32_t cell)
{
    uint64_t *at = &worker->stats->cell[cell];

    __atomic_store_n(at, *at + 1, __ATOMIC_RELAXED);
}

static void heartbeat(struct coven_worker *worker)
{
    __atomic_store_n(&worker->stats->heartbeat_ns, worker->now_ns, __ATOMIC_RELAXED);
}

/* ---- timers ------------------------------------------------------------------------------------ */
static void tick(struct coven_worker *worker)
{
    worker->tick_ns = worker->now_ns + COVEN_NS_PER_MS;
    coven_fused_tick(worker);
    for (uint32_t r = 0; worker->running && r < worker->plan->n_replicas; r++)
        if (worker->replica[r].attached && coven_replica_has(&worker->replica[r]) > 0)
            coven_replica_hold_check(worker, &worker->replica[r]);
    for (uint32_t r = 0; worker->running && r < worker->plan->n_replicas; r++)
        if (worker->replica[r].attached)
            coven_watch_replica(worker, &worker->replica[r]);
    coven_removal_turn(worker);
    if (worker->now_ns >= worker->gauges_ns) {
        worker->gauges_ns = worker->now_ns + MUTE_NS;
        coven_snapshot_gauges(worker);
        if (worker->poisoned != 0)
            coven_poison_age(worker);
    }
    coven_worker_settle(worker);
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* When the worker has something to do by itself, ports not counted. */
static uint64_t next_timer(const struct coven_worker *worker)
{
    uint64_t soon = worker->now_ns + COVEN_NS_PER_MS;
    uint64_t due = worker->now_ns + COVEN_NS_PER_S;

    if (worker->pause.active)
        due = earlier(worker->pause.deadline_ns, due);
    if (worker->fused_holding != 0)
        return soon;
    for (uint32_t r = 0; r < worker->plan->n_replicas; r++) {
        const struct coven_replica_link *link = &worker->replica[r];
        uint64_t timeout;

        if (!link->attached || coven_replica_has(link) == 0)
            continue;
        due = earlier(due, coven_watch_due(worker, link));
        /* what it took and does not give back begins to be held when that is seen */
        if (link->given_head != link->in.position || link->kept.n > link->plan->hold_limit)
            due = earlier(due, worker->now_ns + 10 * COVEN_NS_PER_MS);
        if (link->kept.n == 0)
            continue;
        timeout = worker->track[link->kept.first].since_ns + link->plan->hold_ms * COVEN_NS_PER_MS;
        due = earlier(due, timeout > soon ? timeout : soon);
    }
    if (worker->n_removals > 0)
        due = earlier(due, worker->now_ns + 10 * COVEN_NS_PER_MS);
    if (worker->flows)
        due = earlier(due, worker->removals_wait ? soon : coven_flow_due(worker->flows, worker->now_ns));
    return due;
}

/* ---- sleep ------------------------------------------------------------------------------------- */
/* Say to all replicas that their doorbell must be rung. False: one has something for us. */
static bool announce_sleep(struct coven_worker *worker)
{
    for (uint32_t r = 0; worker->running && r < worker->plan->n_replicas; r++)
        if (worker->replica[r].attached && !coven_ring_sleep(&worker->replica[r].out))
            return false;
    return true;
}

static void announce_awake(struct coven_worker *worker)
{
    for (uint32_t r = 0; r < worker->plan->n_replicas; r++)
        if (worker->replica[r].attached)
            coven_ring_awake(&worker->replica[r].out);
}

struct sleeper {
    struct pollfd fds[1 + COVEN_MAX_PORTS + COVEN_MAX_REPLICAS];
    uint16_t port[COVEN_MAX_PORTS];       /* behind fds[1 + i] */
    uint16_t replica[COVEN_MAX_REPLICAS]; /* behind fds[1 + n_ports + i] */
    nfds_t n, n_ports;
    uint64_t port_due_ns; /* when a port has something to do by itself */
};

static void add_fd(struct sleeper *s, int fd)
{
    s->fds[s->n++] = (struct pollfd){.fd = fd, .events = POLLIN};
}

static uint64_t collect_fds(struct coven_worker *worker, struct sleeper *s)
{
    uint64_t due = next_timer(worker);
    /* without free buffers nothing can be received: wait until a component gives one back */
    bool has_room = worker->book.ledger->n_free > 0;

    s->n = 0;
    s->n_ports = 0;
    s->port_due_ns = UINT64_MAX;
    add_fd(s, worker->control_fd); /* -1 is ignored by poll */
    for (uint16_t p = 0; p < worker->plan->n_ports && worker->receiving && !worker->halted; p++) {
        struct coven_port_link *link = &worker->port[p];
        uint64_t port_due = UINT64_MAX;
        int fd;

        if (!link->attached || coven_ingress_room(worker, p) == 0 || (!has_room && !link->port.ops->lending))
            continue;
        fd = link->port.ops->wait(&link->port, &port_due);
        s->port_due_ns = earlier(s->port_due_ns, port_due);
        if (fd < 0)
            continue;
        if (link->muted_ns > worker->now_ns) {
            due = earlier(due, link->muted_ns);
            continue;
        }
        s->port[s->n_ports++] = p;
        add_fd(s, fd);
    }
    for (uint16_t r = 0; worker->running && r < worker->plan->n_replicas; r++) {
        if (!worker->replica[r].attached)
            continue;
        s->replica[s->n - 1 - s->n_ports] = r;
        add_fd(s, worker->replica[r].out.doorbell);
    }
    return earlier(due, s->port_due_ns);
}

/* Nobody has the other end any more, so nobody will ring; it would be readable for ever. */
static void silence(struct coven_replica_link *link)
{
    close(link->out.doorbell);
    link->out.doorbell = -1;
}

static void after_sleep(struct coven_worker *worker, const struct sleeper *s)
{
    for (nfds_t i = 0; i < s->n_ports; i++) {
        short events = s->fds[1 + i].revents;

        /* an interface that is down is in error until it is up again: do not spin on it */
        if ((events & (POLLERR | POLLHUP | POLLNVAL)) != 0 && (events & POLLIN) == 0)
            worker->port[s->port[i]].muted_ns = worker->now_ns + MUTE_NS;
    }
    for (nfds_t i = 1 + s->n_ports; i < s->n; i++) {
        if ((s->fds[i].revents & POLLIN) != 0)
            coven_doorbell_clear(s->fds[i].fd);
        else if (s->fds[i].revents != 0)
            silence(&worker->replica[s->replica[i - 1 - s->n_ports]]);
    }
    if (s->fds[0].revents != 0)
        coven_control_poll(worker);
}

/* power-save: packets have come. Let more come, so that one wake-up is for many; a message is not kept waiting. */
static void gather(struct coven_worker *worker, const struct sleeper *s)
{
    struct pollfd control = {.fd = worker->control_fd, .events = POLLIN};
    struct timespec nap = {.tv_nsec = GATHER_NS};
    bool have_come = worker->now_ns >= s->port_due_ns;

    for (nfds_t i = 1; i < s->n; i++)
        have_come |= (s->fds[i].revents & POLLIN) != 0;
    if (!have_come || s->fds[0].revents != 0)
        return;
    add(worker, COVEN_CELL_WORKER(COVEN_WORKER_SLEEPS));
    (void)ppoll(&control, 1, &nap, NULL);
    coven_wait_clock(worker);
}

static void sleep_now(struct coven_worker *worker)
{
    struct sleeper sleeper;
    struct timespec timeout = {0};
    uint64_t due;

    if (!announce_sleep(worker)) {
        announce_awake(worker);
        return;
    }
    due = collect_fds(worker, &sleeper);
    if (due > worker->now_ns) {
        timeout.tv_sec = (time_t)((due - worker->now_ns) / COVEN_NS_PER_S);
        timeout.tv_nsec = (long)((due - worker->now_ns) % COVEN_NS_PER_S);
        add(worker, COVEN_CELL_WORKER(COVEN_WORKER_SLEEPS));
    }
    coven_watch_asleep();
    if (ppoll(sleeper.fds, sleeper.n, &timeout, NULL) < 0)
        for (nfds_t i = 0; i < sleeper.n; i++)
            sleeper.fds[i].revents = 0; /* a signal: look at everything in the next turn */
    coven_watch_awake(worker);
    announce_awake(worker);
    coven_wait_clock(worker);
    if (worker->plan->profile == COVEN_PROFILE_POWER_SAVE)
        gather(worker, &sleeper);
    heartbeat(worker);
    after_sleep(worker, &sleeper);
}

/* Whether to look once more before sleeping: low-latency always, power-save never. */
static bool stays_awake(struct coven_worker *worker)
{
    switch (worker->plan->profile) {
    case COVEN_PROFILE_LOW_LATENCY:
        return true;
    case COVEN_PROFILE_POWER_SAVE:
        return false;
    default:
        if (worker->idle_loops >= BALANCED_YIELDS)
            return false;
        worker->idle_loops++;
        sched_yield();
        return true;
    }
}

void coven_wait_turn(struct coven_worker *worker, uint32_t done)
{
    worker->loops++;
    coven_watch_turn(worker, done > 0);
    add(worker, COVEN_CELL_WORKER(COVEN_WORKER_LOOPS));
    if (worker->loops % HEARTBEAT_EVERY == 0)
        heartbeat(worker);
    if (worker->now_ns >= worker->tick_ns)
        tick(worker);
    if (worker->pause.active)
        coven_control_pause_turn(worker);
    if (worker->loops % CONTROL_EVERY == 0)
        coven_control_poll(worker);
    if (done > 0) {
        add(worker, COVEN_CELL_WORKER(COVEN_WORKER_BUSY_LOOPS));
        worker->idle_loops = 0;
        return;
    }
    coven_replica_wake(worker);
    if (!stays_awake(worker) && !worker->leaving)
        sleep_now(worker);
}
