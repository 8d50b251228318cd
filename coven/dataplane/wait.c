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
#define WAKE_NS 6000u                        /* packets that come sooner than this are not worth a sleep and a wake */
#define NAP_NS 50000u                        /* balanced, at its limit: some 30 packets gather */
#define NAP_BURST (COVEN_BURST / 2)          /* what is less is left to gather */
#define NAP_PKTS 200u                        /* in a window of a millisecond: below, a nap gathers too few */
#define NAP_SPELL_NS (128 * COVEN_NS_PER_MS) /* then one window without, to see whether it still pays */

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

/* ---- what the ports bring ------------------------------------------------------------------------ */
/* A window of a millisecond or more is over: how soon packets follow each other, and whether the worker is at its
 * limit only because it takes them one by one. Then naps begin, for as long as the rate stays. */
static void see_rate(struct coven_worker *worker)
{
    struct coven_rate *rate = &worker->rate;
    uint64_t window = worker->now_ns - rate->since_ns, pkts = worker->received - rate->received;

    if (rate->idle_from_ns != 0) {
        rate->idle_ns += worker->now_ns - rate->idle_from_ns;
        rate->idle_from_ns = worker->now_ns;
    }
    rate->gap_ns = pkts > 0 ? window / pkts : COVEN_NS_PER_S;
    if (rate->nap_until_ns != 0) {
        if (worker->now_ns >= rate->nap_until_ns || rate->gap_ns > rate->nap_gap_ns)
            rate->nap_until_ns = 0;
    } else if (rate->idle_ns < window / 8 && rate->gap_ns < COVEN_NS_PER_MS / NAP_PKTS &&
               pkts < NAP_BURST * rate->turns) {
        rate->nap_until_ns = worker->now_ns + NAP_SPELL_NS;
        rate->nap_gap_ns = 2 * rate->gap_ns;
    }
    rate->since_ns = worker->now_ns;
    rate->received = worker->received;
    rate->idle_ns = 0;
    rate->turns = 0;
}

static void count_turn(struct coven_rate *rate, uint64_t now_ns, bool has_worked)
{
    if (has_worked && rate->idle_from_ns != 0) {
        rate->idle_ns += now_ns - rate->idle_from_ns;
        rate->idle_from_ns = 0;
    } else if (!has_worked && rate->idle_from_ns == 0) {
        rate->idle_from_ns = now_ns;
    }
    rate->turns += has_worked;
}

/* ---- timers ------------------------------------------------------------------------------------ */
static void tick(struct coven_worker *worker)
{
    worker->tick_ns = worker->now_ns + COVEN_NS_PER_MS;
    see_rate(worker);
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

/* Let packets come for a while, whether there are any or not; a message is not kept waiting. */
static void nap(struct coven_worker *worker, long ns)
{
    struct pollfd control = {.fd = worker->control_fd, .events = POLLIN};
    struct timespec length = {.tv_nsec = ns};

    add(worker, COVEN_CELL_WORKER(COVEN_WORKER_SLEEPS));
    (void)ppoll(&control, 1, &length, NULL);
    coven_wait_clock(worker);
}

/* power-save: packets have come. Let more come, so that one wake-up is for many. */
static void gather(struct coven_worker *worker, const struct sleeper *s)
{
    bool have_come = worker->now_ns >= s->port_due_ns;

    for (nfds_t i = 1; i < s->n; i++)
        have_come |= (s->fds[i].revents & POLLIN) != 0;
    if (have_come && s->fds[0].revents == 0)
        nap(worker, GATHER_NS);
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

/* Whether an isolated component has packets: it gives them back within microseconds, so to look again pays. */
static bool is_waiting_for_components(const struct coven_worker *worker)
{
    for (uint32_t r = 0; r < worker->plan->n_replicas; r++)
        if (worker->replica[r].attached && coven_replica_has(&worker->replica[r]) > 0)
            return true;
    return false;
}

/* Whether to look once more before sleeping: low-latency always, power-save never; balanced if something will come
 * before a sleep and a wake are over. */
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
        if (worker->rate.gap_ns > WAKE_NS && !is_waiting_for_components(worker))
            return false;
        worker->idle_loops++;
        sched_yield();
        return true;
    }
}

/* balanced, at the limit of what the worker can take one by one: it costs a system call for each few packets, so many
 * are let gather. They wait for that, but at this rate others would wait for them. */
static bool naps(struct coven_worker *worker, uint32_t done)
{
    if (worker->rate.nap_until_ns == 0 || done >= NAP_BURST || worker->plan->profile != COVEN_PROFILE_BALANCED ||
        worker->leaving || worker->pause.active || is_waiting_for_components(worker))
        return false;
    nap(worker, NAP_NS);
    return true;
}

void coven_wait_turn(struct coven_worker *worker, uint32_t done)
{
    worker->loops++;
    count_turn(&worker->rate, worker->now_ns, done > 0);
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
    } else {
        coven_replica_wake(worker);
    }
    if (naps(worker, done) || done > 0)
        return;
    if (!stays_awake(worker) && !worker->leaving)
        sleep_now(worker);
}
