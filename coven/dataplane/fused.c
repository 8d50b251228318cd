/* SPDX-License-Identifier: Apache-2.0 */
/* Components that run inside the worker: one call for each burst, packets in place. Before each call a breadcrumb
 * in the ledger names the component and the packets, so that a crash is booked on who caused it. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "violation.h"
#include "worker.h"

#define TIMED_BURSTS                                                                                                   \
    8u /* one of so many, at random, is timed for all: reading the counter costs as much as a component */

/* Time stamp counter: what CPU time cost is counted in. */
static inline uint64_t cycles(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t now;

    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(now));
    return now;
#else
    return 0;
#endif
}

void coven_fused_enter(struct coven_worker *worker, uint16_t component, uint16_t n)
{
    struct coven_breadcrumb *crumb = &worker->book.ledger->breadcrumb;

    crumb->n = n;
    __asm__ volatile("" ::: "memory"); /* the list before the number that makes it count */
    crumb->component = component + 1u;
    __asm__ volatile("" ::: "memory");
}

void coven_fused_leave(struct coven_worker *worker)
{
    __asm__ volatile("" ::: "memory");
    worker->book.ledger->breadcrumb.component = 0;
}

int coven_fused_start(struct coven_worker *worker, uint16_t component, char *why, size_t why_bytes)
{
    struct coven_component_link *link = &worker->component[component];
    struct coven_fused *fused = &link->fused;

    if (fused->runtime || fused->code_fd < 0)
        return 0;
    coven_fused_enter(worker, component, 0);
    fused->runtime = coven_runtime_start(fused->code_fd, fused->start, fused->start_bytes, link->state_segment.base, 0,
                                         why, why_bytes);
    /* a worker that cannot become ready because of it ends: the breadcrumb stays, to say why */
    if (fused->runtime || worker->ready)
        coven_fused_leave(worker);
    close(fused->code_fd);
    fused->code_fd = -1;
    free(fused->start);
    fused->start = NULL;
    return fused->runtime ? 0 : -ENOEXEC;
}

void coven_fused_stop(struct coven_worker *worker, uint16_t component)
{
    struct coven_fused *fused = &worker->component[component].fused;

    if (fused->runtime) {
        coven_fused_drop_held(worker, component, COVEN_DROP_STOPPED);
        coven_fused_enter(worker, component, 0);
        coven_runtime_stop(fused->runtime);
        coven_fused_leave(worker);
        fused->runtime = NULL;
    }
}

/* ---- what a component is told and what it answers, as one word for each packet ------------------ */
struct answer {
    uint16_t hop;
    uint8_t verdict, output;
};

_Static_assert(offsetof(struct coven_meta, verdict) == offsetof(struct coven_meta, hop) + 2 &&
                   offsetof(struct coven_meta, output) == offsetof(struct coven_meta, hop) + 3,
               "hop, verdict and output lie together");
_Static_assert(offsetof(struct coven_meta, length) == offsetof(struct coven_meta, offset) + 2,
               "offset and length lie together");

static inline uint32_t word_at(const struct coven_meta *meta, size_t offset)
{
    uint32_t word;

    memcpy(&word, (const uint8_t *)meta + offset, sizeof(word));
    return word;
}

static inline uint32_t answer_of(const struct coven_meta *meta)
{
    return word_at(meta, offsetof(struct coven_meta, hop));
}

static inline uint32_t shape_of(const struct coven_meta *meta)
{
    return word_at(meta, offsetof(struct coven_meta, offset));
}

/* A fused component is trusted not to write elsewhere, but not to be free of mistakes. */
static inline bool is_whole(const struct coven_meta *meta, uint32_t buffer_bytes)
{
    return meta->length != 0 && (uint32_t)meta->offset + meta->length <= buffer_bytes;
}

/* Make what components see of a burst. Returns whether all packets are whole. What is the same for all packets is
 * loaded once: the compiler must otherwise expect that each store changed it. */
static bool show(struct coven_worker *worker, struct coven_burst *burst)
{
    struct coven_meta *metas = worker->book.meta;
    struct coven_meta_ext *exts = worker->book.ext;
    uint8_t *pool = worker->pool;
    uint32_t buffer_bytes = worker->plan->buffer_bytes;
    const uint32_t *handles = burst->handle;
    bool whole = true;

    for (uint16_t i = 0; i < burst->n; i++) {
        struct coven_meta *meta = &metas[handles[i]];

        whole &= is_whole(meta, buffer_bytes);
        burst->shape[i] = shape_of(meta);
        burst->pkts[i] = (struct coven_packet){
            .data = pool + (size_t)handles[i] * buffer_bytes + meta->offset,
            .meta = (struct coven_meta_head *)meta,
            .ext = &exts[handles[i]],
            .room_front = meta->offset,
            .room_back = buffer_bytes - meta->offset - meta->length,
        };
    }
    return whole;
}

static void hold(struct coven_worker *worker, uint16_t component, const struct coven_packet *pkt, uint32_t handle)
{
    struct coven_fused *fused = &worker->component[component].fused;

    if (fused->held.n >= worker->plan->components[component].hold_limit) {
        coven_book_drop(&worker->book, handle, COVEN_SCOPE_COMPONENT(component), COVEN_DROP_HOLD_LIMIT);
        return;
    }
    coven_runtime_hold(fused->runtime, pkt);
    coven_track_append(worker, &fused->held, handle, COVEN_HOLDER(COVEN_OWNER_FUSED, component));
    worker->fused_holding |= 1ull << component;
    coven_book_room(&worker->book, 1, 0, 0);
    coven_book_own(&worker->book, handle, coven_owner(COVEN_OWNER_FUSED, component, 0, 0));
}

/* Carry a verdict out. Returns whether the packet goes on; the caller counts those, once for a burst. */
static bool follow_verdict(struct coven_worker *worker, uint16_t hop, const struct coven_packet *pkt, uint32_t handle,
                           uint8_t verdict, uint8_t output)
{
    const struct coven_plan_hop *place = &worker->plan->hops[hop];
    const struct coven_plan_component *plan = &worker->plan->components[place->component];
    uint32_t scope = COVEN_SCOPE_COMPONENT(place->component);
    struct coven_book *book = &worker->book;

    if (!is_whole(&book->meta[handle], worker->plan->buffer_bytes) || verdict > COVEN_CONSUME ||
        (verdict == COVEN_FORWARD && output >= plan->outputs)) {
        coven_book_room(book, 1, 2, 0);
        coven_violation(worker, &worker->component[place->component].violations, place->component, COVEN_NO_REPLICA,
                        verdict > COVEN_CONSUME                               ? COVEN_VIOLATION_VERDICT
                        : verdict == COVEN_FORWARD && output >= plan->outputs ? COVEN_VIOLATION_OUTPUT
                                                                              : COVEN_VIOLATION_BOUNDS,
                        1);
        coven_book_drop(book, handle, scope, COVEN_DROP_COMPONENT_VIOLATION);
    } else if (verdict == COVEN_FORWARD) {
        coven_graph_put(worker, handle, &place->next[output], scope);
        return true;
    } else if (verdict == COVEN_DROP) {
        coven_book_drop(book, handle, scope, COVEN_DROP_COMPONENT_VERDICT);
    } else if (verdict == COVEN_HOLD) {
        hold(worker, place->component, pkt, handle);
    } else {
        coven_book_room(book, 1, 1, 0);
        coven_book_count(book, COVEN_CELL_COMPONENT(place->component, COVEN_COMPONENT_CONSUMED), 1);
        coven_book_own(book, handle, 0);
    }
    return false;
}

/* Where a burst goes as a whole: what nearly all do, for which nothing needs to be done for each packet but to see that
 * it is so. NULL: the packets part, or one is not whole. */
static const struct coven_plan_next *agreed(struct coven_worker *worker, uint16_t hop, struct coven_burst *burst)
{
    const struct coven_plan_hop *place = &worker->plan->hops[hop];
    uint32_t first = answer_of(coven_line_of(&burst->pkts[0])), different = 0, changed = 0;
    struct answer answer;
    uint16_t n = burst->n;

#pragma GCC unroll 4
    for (uint16_t i = 0; i < n; i++) {
        const struct coven_meta *meta = coven_line_of(&burst->pkts[i]);

        different |= answer_of(meta) ^ first;
        changed |= shape_of(meta) ^ burst->shape[i];
    }
    memcpy(&answer, &first, sizeof(answer));
    if (different != 0 || answer.verdict != COVEN_FORWARD ||
        answer.output >= worker->plan->components[place->component].outputs)
        return NULL;
    return changed == 0 || show(worker, burst) ? &place->next[answer.output] : NULL;
}

/* Carry each packet's verdict out. Returns how many go on. */
static uint16_t follow_verdicts(struct coven_worker *worker, uint16_t hop, const struct coven_burst *burst,
                                const struct coven_packet *pkts)
{
    uint16_t out = 0;

    for (uint16_t i = 0; i < burst->n; i++) {
        const struct coven_meta *meta = coven_line_of(&burst->pkts[i]);

        out += follow_verdict(worker, hop, &pkts[i], burst->handle[i], meta->verdict, meta->output);
    }
    return out;
}

/* Begin a burst's journey through fused components. */
static void prepare(struct coven_worker *worker, struct coven_burst *burst)
{
    show(worker, burst);
    memcpy(worker->book.ledger->breadcrumb.handle, burst->handle, sizeof(burst->handle[0]) * burst->n);
    burst->is_shown = true;
    burst->is_timed = (worker->random >> 32) % TIMED_BURSTS == 0;
    if (burst->is_timed)
        burst->since = cycles();
}

/* Count what went by since the burst came to the component. */
static void count_time(struct coven_worker *worker, uint16_t component, struct coven_burst *burst)
{
    uint64_t now = cycles();

    coven_book_room(&worker->book, 0, 1, 0);
    coven_book_count(&worker->book, COVEN_CELL_COMPONENT(component, COVEN_COMPONENT_CYCLES),
                     (now - burst->since) * TIMED_BURSTS);
    burst->since = now;
}

static void count(struct coven_worker *worker, uint16_t component, uint16_t in, uint16_t out)
{
    coven_book_room(&worker->book, 0, 2, 0);
    coven_book_count(&worker->book, COVEN_CELL_COMPONENT(component, COVEN_COMPONENT_IN_PKTS), in);
    coven_book_count(&worker->book, COVEN_CELL_COMPONENT(component, COVEN_COMPONENT_OUT_PKTS), out);
}

const struct coven_plan_next *coven_fused_process(struct coven_worker *worker, uint16_t hop, struct coven_burst *burst)
{
    const struct answer undecided = {.hop = hop, .verdict = COVEN_FORWARD, .output = 0};
    uint16_t component = worker->plan->hops[hop].component;
    struct coven_fused *fused = &worker->component[component].fused;
    struct coven_packet pkts[COVEN_BURST]; /* what the component does to them stays its own */
    const struct coven_plan_next *next;
    uint16_t n = burst->n;

    if (!fused->runtime) {
        coven_graph_component_down(worker, hop, burst->handle, burst->n);
        return NULL;
    }
    if (!burst->is_shown)
        prepare(worker, burst);
#pragma GCC unroll 4
    for (uint16_t i = 0; i < n; i++)
        memcpy((uint8_t *)burst->pkts[i].meta + offsetof(struct coven_meta, hop), &undecided, sizeof(undecided));
    memcpy(pkts, burst->pkts, sizeof(pkts[0]) * n);
    coven_fused_enter(worker, component, n);
    coven_runtime_process(fused->runtime, pkts, n);
    coven_fused_leave(worker);
    if (burst->is_timed)
        count_time(worker, component, burst);
    next = agreed(worker, hop, burst);
    count(worker, component, n, next ? n : follow_verdicts(worker, hop, burst, pkts));
    return next;
}

/* ---- held packets ------------------------------------------------------------------------------ */
static uint32_t collect(struct coven_worker *worker, uint16_t component)
{
    struct coven_fused *fused = &worker->component[component].fused;
    struct coven_runtime_release released[COVEN_BURST];
    uint16_t n = coven_runtime_released(fused->runtime, released, COVEN_BURST);
    uint32_t out = 0;

    coven_book_room(&worker->book, COVEN_BURST, 8, 0);
    for (uint16_t i = 0; i < n; i++) {
        uint32_t handle = released[i].handle;

        if (handle >= worker->book.n_buffers ||
            worker->track[handle].holder != COVEN_HOLDER(COVEN_OWNER_FUSED, component))
            continue;
        coven_track_remove(worker, &fused->held, handle);
        coven_book_own(&worker->book, handle, coven_owner(COVEN_OWNER_WORKER, 0, 0, 0));
        /* a packet that was just released cannot be held again by the same call */
        if (released[i].verdict == COVEN_HOLD)
            released[i].verdict = COVEN_DROP;
        out += follow_verdict(worker, worker->book.meta[handle].hop, NULL, handle, released[i].verdict,
                              released[i].output);
    }
    coven_book_room(&worker->book, 0, 1, 0);
    coven_book_count(&worker->book, COVEN_CELL_COMPONENT(component, COVEN_COMPONENT_OUT_PKTS), out);
    coven_book_commit(&worker->book);
    coven_graph_walk(worker);
    return n;
}

uint32_t coven_fused_collect(struct coven_worker *worker)
{
    uint32_t done = 0;

    for (uint64_t left = worker->fused_holding; left != 0; left &= left - 1) {
        uint16_t c = (uint16_t)__builtin_ctzll(left);

        if (worker->component[c].fused.held.n == 0)
            worker->fused_holding &= ~(1ull << c);
        else if (worker->component[c].fused.runtime)
            done += collect(worker, c);
    }
    return done;
}

uint32_t coven_fused_drop_held(struct coven_worker *worker, uint16_t component, uint32_t reason)
{
    struct coven_fused *fused = &worker->component[component].fused;
    uint32_t n = 0;

    while (fused->held.first != COVEN_NO_HANDLE) {
        uint32_t handle = fused->held.first;

        coven_runtime_forget(fused->runtime, handle);
        coven_track_remove(worker, &fused->held, handle);
        coven_book_drop(&worker->book, handle, COVEN_SCOPE_COMPONENT(component), reason);
        n++;
    }
    return n;
}

void coven_fused_tick(struct coven_worker *worker)
{
    for (uint16_t c = 0; c < worker->plan->n_components; c++) {
        struct coven_fused *fused = &worker->component[c].fused;
        uint64_t hold_ns = worker->plan->components[c].hold_ms * COVEN_NS_PER_MS;

        if (!fused->runtime)
            continue;
        if (worker->now_ns >= fused->tick_ns || fused->held.n > 0) {
            coven_fused_enter(worker, c, 0);
            coven_runtime_tick(fused->runtime, worker->now_ns);
            coven_fused_leave(worker);
            fused->tick_ns = worker->now_ns + COVEN_NS_PER_S;
        }
        coven_fused_collect(worker);
        while (fused->held.first != COVEN_NO_HANDLE &&
               worker->track[fused->held.first].since_ns + hold_ns < worker->now_ns) {
            uint32_t handle = fused->held.first;

            coven_runtime_forget(fused->runtime, handle);
            coven_track_remove(worker, &fused->held, handle);
            coven_book_drop(&worker->book, handle, COVEN_SCOPE_COMPONENT(c), COVEN_DROP_HOLD_TIMEOUT);
        }
    }
}
