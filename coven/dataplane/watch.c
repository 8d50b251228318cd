/* SPDX-License-Identifier: Apache-2.0 */
/* Who does not move. An isolated replica is looked at only while it has packets that it has not taken: if neither its
 * positions nor its progress word move for its limit, it hangs; the supervisor is told, and packets meet what its
 * on_failure says. Time counts only as far as the worker itself was running (no look counts more than half a limit), so
 * that a machine that stood still accuses nobody.
 *
 * A fused component that does not return is found by a timer's signal. The timer is armed when the worker wakes and only
 * if it has fused components, and disarmed when it sleeps without having had work: an idle worker gets no signals, a
 * busy one a few a second and no system call. What counts are expiries that were handled one by one with nothing
 * moved in between: those missed while the process stood still are one. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "worker.h"

#define LOOKS 4u    /* at a replica, within its limit */
#define EXPIRIES 4u /* of the timer, within the shortest limit of a fused component */
#define LEAST_LIMIT_MS 40u

/* ---- isolated replicas --------------------------------------------------------------------------- */
static void told(struct coven_worker *worker, struct coven_replica_link *link, uint64_t notice, uint64_t times)
{
    coven_control_notify(worker, link->number, notice, times, 0);
}

static void set_hung(struct coven_worker *worker, struct coven_replica_link *link, bool hung)
{
    link->hung = hung;
    worker->halted = worker->halt_asked || coven_graph_is_halted(worker);
}

static void moves(struct coven_worker *worker, struct coven_replica_link *link)
{
    link->watch.stuck_ns = 0;
    if (link->watch.n_told == 0)
        return;
    link->watch.n_told = 0;
    if (link->hung)
        set_hung(worker, link, false);
    told(worker, link, COVEN_NOTICE_MOVING, 0);
}

static void look(struct coven_worker *worker, struct coven_replica_link *link)
{
    const struct coven_replica *replica = link->segment.base;
    struct coven_watch *watch = &link->watch;
    uint32_t head = __atomic_load_n(&link->in.ring->head, __ATOMIC_RELAXED);
    uint32_t tail = __atomic_load_n(&link->out.ring->tail, __ATOMIC_RELAXED);
    uint64_t progress = __atomic_load_n(&replica->progress, __ATOMIC_RELAXED);
    uint64_t limit = link->plan->hang_ms * COVEN_NS_PER_MS, gap = worker->now_ns - watch->looked_ns;
    bool has_moved = head != watch->head || tail != watch->tail || progress != watch->progress;

    watch->looked_ns = worker->now_ns;
    if (head == link->in.position || has_moved || !watch->is_waiting) {
        watch->head = head;
        watch->tail = tail;
        watch->progress = progress;
        watch->is_waiting = head != link->in.position;
        moves(worker, link);
        return;
    }
    watch->stuck_ns += gap < limit / 2 ? gap : limit / 2;
    if (watch->n_told == 0 && watch->stuck_ns >= limit / 2) {
        watch->n_told = 1;
        told(worker, link, COVEN_NOTICE_STILL, 0);
    }
    if (watch->stuck_ns >= watch->n_told * limit && watch->n_told > 0) {
        if (!link->hung)
            set_hung(worker, link, true);
        told(worker, link, COVEN_NOTICE_HUNG, watch->n_told++);
    }
}

void coven_watch_replica(struct coven_worker *worker, struct coven_replica_link *link)
{
    if (link->plan->hang_ms == 0)
        return;
    if (coven_replica_has(link) == 0) {
        link->watch.is_waiting = false;
        moves(worker, link);
    } else if (!link->watch.is_waiting ||
               worker->now_ns >= link->watch.looked_ns + link->plan->hang_ms * COVEN_NS_PER_MS / LOOKS) {
        look(worker, link);
    }
}

uint64_t coven_watch_due(const struct coven_worker *worker, const struct coven_replica_link *link)
{
    uint64_t every = link->plan->hang_ms * COVEN_NS_PER_MS / LOOKS;

    if (link->plan->hang_ms == 0)
        return UINT64_MAX;
    return link->watch.is_waiting ? link->watch.looked_ns + every : worker->now_ns + COVEN_NS_PER_MS;
}

/* ---- fused components ------------------------------------------------------------------------------ */
/* What the handler of the signal sees; one worker in a process, one thread. */
static struct {
    struct coven_worker *worker;
    timer_t timer;
    bool exists;
    volatile sig_atomic_t armed, asleep;
    bool has_worked; /* since it was armed */
    uint64_t period_ms;
    uint64_t loops; /* at the expiry before */
    uint32_t crumb, handle, still;
} watchdog;

static void set_timer(uint64_t ms)
{
    struct itimerspec at = {
        .it_interval = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000 * COVEN_NS_PER_MS)},
    };

    at.it_value = at.it_interval;
    timer_settime(watchdog.timer, 0, &at, NULL);
    watchdog.armed = ms > 0;
}

/* Nothing here but what a handler may call. The breadcrumb stays and says whose fault it was. */
static void end_hung(uint32_t component)
{
    static const char text[] = "coven-worker: a fused component does not return, the worker ends: ";
    const char *name = watchdog.worker->plan->components[component].name;

    (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
    (void)!write(STDERR_FILENO, name, strnlen(name, COVEN_NAME_BYTES));
    (void)!write(STDERR_FILENO, "\n", 1);
    coven_control_notify(watchdog.worker, component, COVEN_NOTICE_FUSED, 0, 0);
    _exit(COVEN_EXIT_HUNG);
}

static void on_expiry(int signal_number)
{
    struct coven_worker *worker = watchdog.worker;
    const volatile struct coven_breadcrumb *crumb = &worker->book.ledger->breadcrumb;
    uint32_t component = crumb->component, handle = crumb->handle[0];
    uint64_t loops = *(volatile uint64_t *)&worker->loops, limit_ms;

    (void)signal_number;
    if (component == 0 || loops != watchdog.loops || component != watchdog.crumb || handle != watchdog.handle) {
        if (watchdog.asleep && loops == watchdog.loops)
            set_timer(0);
        watchdog.still = 0;
        watchdog.loops = loops;
        watchdog.crumb = component;
        watchdog.handle = handle;
        return;
    }
    limit_ms = worker->plan->components[component - 1].hang_ms;
    if (limit_ms > 0 && ++watchdog.still * watchdog.period_ms >= limit_ms)
        end_hung(component - 1);
}

static bool make_timer(struct coven_worker *worker)
{
    struct sigaction action = {.sa_handler = on_expiry, .sa_flags = SA_RESTART};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    uint64_t shortest = UINT64_MAX;

    for (uint32_t c = 0; c < worker->plan->n_components; c++) {
        const struct coven_plan_component *plan = &worker->plan->components[c];

        if (plan->isolation == COVEN_FUSED && plan->hang_ms > 0 && plan->hang_ms < shortest)
            shortest = plan->hang_ms;
    }
    watchdog.worker = worker;
    watchdog.exists = true; /* or never */
    if (shortest == UINT64_MAX)
        return false;
    watchdog.period_ms = (shortest < LEAST_LIMIT_MS ? LEAST_LIMIT_MS : shortest) / EXPIRIES;
    if (sigaction(SIGRTMIN, &action, NULL) != 0 || timer_create(CLOCK_MONOTONIC, &event, &watchdog.timer) != 0) {
        fputs("coven-worker: no timer to watch fused components with\n", stderr);
        watchdog.period_ms = 0;
    }
    return watchdog.period_ms > 0;
}

void coven_watch_awake(struct coven_worker *worker)
{
    watchdog.asleep = 0;
    if (watchdog.armed || (watchdog.exists && watchdog.period_ms == 0) || (!watchdog.exists && !make_timer(worker)))
        return;
    watchdog.has_worked = false;
    set_timer(watchdog.period_ms);
}

void coven_watch_turn(struct coven_worker *worker, bool has_worked)
{
    watchdog.has_worked |= has_worked;
    if (!watchdog.armed)
        coven_watch_awake(worker);
}

void coven_watch_asleep(void)
{
    if (watchdog.armed && !watchdog.has_worked)
        set_timer(0);
    watchdog.asleep = 1;
}
