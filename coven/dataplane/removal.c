/* SPDX-License-Identifier: Apache-2.0 */
/* Flows end. Their slot is given to another flow only after every component that may keep state of them has
 * deallocated it (or is gone, or had its time): an entry of kind flow-removed goes to each and comes back. A flow that gave way in a
 * full table is told of in the same way, ahead of the first packet of the flow that has its slot: the epochs differ. */
#include "violation.h"
#include "worker.h"

#define ROUNDS 8u /* of COVEN_MAX_REMOVALS flows in one turn, where components are fused and forget at once */
#define ANSWER_NS (2 * COVEN_NS_PER_S) /* a component that has not answered by then is not waited for */
/* When half of the places are taken: flows of all paths wait for them, so one slow component must not keep them. */
#define HURRY_NS (10 * COVEN_NS_PER_MS)

static bool keeps_state(const struct coven_worker *worker, uint16_t component)
{
    return worker->plan->components[component].state_bytes > 0;
}

/* Tell one component; false when it has to be tried again. */
static bool tell(struct coven_worker *worker, struct coven_removal *removal, uint16_t component)
{
    uint64_t bit = 1ull << component;

    if (worker->plan->components[component].isolation == COVEN_FUSED) {
        struct coven_meta meta = {
            .handle = COVEN_NO_HANDLE,
            .flow = removal->flow,
            .flow_epoch = removal->epoch,
            .kind = COVEN_ENTRY_FLOW_REMOVED,
        };

        if (worker->component[component].fused.runtime) {
            coven_fused_enter(worker, component, 0);
            coven_runtime_flow_removed(worker->component[component].fused.runtime, &meta);
            coven_fused_leave(worker);
        }
        removal->to_answer &= ~bit;
    } else {
        struct coven_replica_link *link = coven_replica_choose(worker, component, removal->flow);

        if (!link->attached)
            removal->to_answer &= ~bit; /* another epoch tells its successor that the state is not this flow's */
        else if (!coven_replica_tell(worker, link, removal->flow, removal->epoch))
            return false;
    }
    removal->to_tell &= ~bit;
    return true;
}

static struct coven_removal *begin(struct coven_worker *worker, uint32_t flow, uint16_t epoch)
{
    struct coven_removal *removal = &worker->removal[worker->n_removals++];

    *removal = (struct coven_removal){
        .flow = flow,
        .epoch = epoch,
        .deadline_ns = worker->now_ns + ANSWER_NS,
    };
    for (uint16_t c = 0; c < worker->plan->n_components; c++)
        if (keeps_state(worker, c))
            removal->to_tell |= 1ull << c;
    removal->to_answer = removal->to_tell;
    return removal;
}

/* Components that were told and let the time pass: each has broken a rule. */
static void count_silent(struct coven_worker *worker, const struct coven_removal *removal)
{
    uint64_t silent = removal->to_answer & ~removal->to_tell;

    for (uint16_t c = 0; silent != 0 && c < worker->plan->n_components; c++) {
        if ((silent >> c & 1) == 0)
            continue;
        coven_book_room(&worker->book, 0, 1, 0);
        coven_violation(worker, &worker->component[c].violations, c, COVEN_NO_REPLICA, COVEN_VIOLATION_FLOW_SILENCE, 1);
    }
}

/* Components that were told may answer when they like from now on: that breaks no rule, or is counted already. */
static void wait_no_longer(struct coven_worker *worker, const struct coven_removal *removal)
{
    for (uint64_t left = removal->to_answer & ~removal->to_tell; left != 0; left &= left - 1)
        worker->component[__builtin_ctzll(left)].answers_owed++;
}

static bool is_hurried(const struct coven_worker *worker, const struct coven_removal *removal)
{
    return worker->n_removals > COVEN_MAX_REMOVALS / 2 && worker->now_ns + ANSWER_NS >= removal->deadline_ns + HURRY_NS;
}

/* Tell whom there is room to tell. Returns whether the removal is over. */
static bool go_on(struct coven_worker *worker, struct coven_removal *removal)
{
    for (uint16_t c = 0; c < worker->plan->n_components && removal->to_tell != 0; c++)
        if ((removal->to_tell >> c & 1) != 0)
            (void)tell(worker, removal, c);
    if ((removal->to_tell | removal->to_answer) != 0) {
        if (worker->now_ns >= removal->deadline_ns)
            count_silent(worker, removal);
        else if (!is_hurried(worker, removal))
            return false;
        wait_no_longer(worker, removal);
    }
    if (!removal->is_reused)
        coven_flow_release(worker->flows, removal->flow);
    return true;
}

static void go_on_all(struct coven_worker *worker)
{
    for (uint32_t i = 0; i < worker->n_removals;) {
        if (go_on(worker, &worker->removal[i]))
            worker->removal[i] = worker->removal[--worker->n_removals];
        else
            i++;
    }
}

void coven_removal_turn(struct coven_worker *worker)
{
    uint32_t ended[COVEN_MAX_REMOVALS];

    if (!worker->flows)
        return;
    worker->removals_wait = false;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t room = coven_removal_room(worker);
        uint16_t n = room > 0 ? coven_flow_expire(worker->flows, worker->now_ns, ended, (uint16_t)room) : 0;

        for (uint16_t i = 0; i < n; i++)
            begin(worker, ended[i], coven_flow_epoch(worker->flows, ended[i]));
        go_on_all(worker);
        worker->removals_wait = room > 0 && n == room;
        if (!worker->removals_wait)
            break;
    }
}

uint32_t coven_removal_room(const struct coven_worker *worker)
{
    return COVEN_MAX_REMOVALS - worker->n_removals;
}

void coven_removal_gave_way(struct coven_worker *worker, uint32_t flow, uint16_t epoch)
{
    struct coven_removal *removal = begin(worker, flow, epoch);

    removal->is_reused = true;
    if (go_on(worker, removal))
        worker->n_removals--;
}

bool coven_removal_answer(struct coven_worker *worker, uint16_t component, uint32_t flow, uint16_t epoch)
{
    uint64_t bit = 1ull << component;

    for (uint32_t i = 0; i < worker->n_removals; i++) {
        struct coven_removal *removal = &worker->removal[i];

        if (removal->flow != flow || removal->epoch != epoch)
            continue;
        if ((removal->to_answer & bit) == 0 || (removal->to_tell & bit) != 0)
            return false;
        removal->to_answer &= ~bit;
        return true;
    }
    if (worker->component[component].answers_owed == 0)
        return false;
    worker->component[component].answers_owed--;
    return true;
}

void coven_removal_component_gone(struct coven_worker *worker, uint16_t component)
{
    worker->component[component].answers_owed = 0;
    for (uint32_t i = 0; i < worker->n_removals; i++) {
        worker->removal[i].to_tell &= ~(1ull << component);
        worker->removal[i].to_answer &= ~(1ull << component);
    }
}
