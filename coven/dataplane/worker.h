/* SPDX-License-Identifier: Apache-2.0 */
/* The worker: one process, one core, one loop that moves packets between ports and components. This header is the
 * worker's own memory; everything that must survive it lies in the ledger (ledger.h).
 *
 *   ingress.c   rx bursts of the ports, booked, put into the graph; ingress_flows.c: given their flows
 *   admit.c     how much of them there is room for; what is not is dropped at once
 *   graph.c     walks a burst along the hops of its path
 *   fused.c     components called inside the worker
 *   replica.c   components in processes of their own, behind two rings: what they give back; replica_give.c: what they
 *               are given; replica_life.c: attach and sweep
 *   egress.c    tx bursts of the ports
 *   lending.c   buffers that are with a NIC
 *   watch.c     who does not move any more
 *   removal.c   flows that end: told to every component that may keep state of them
 *   recovery.c  what a killed worker left behind
 *   control.c   the supervisor's messages; control_flows.c: those about flows; snapshot.c: all counters and owners at one moment
 *   wait.c      what the worker does when there is nothing to do */
#ifndef COVEN_WORKER_H
#define COVEN_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <coven/abi.h>

#include "control.h"
#include "flow.h"
#include "ledger.h"
#include "poison.h"
#include "port.h"
#include "ring.h"
#include "runtime.h"
#include "segment.h"
#include "state.h"

#define COVEN_NS_PER_MS 1000000ull
#define COVEN_NS_PER_S 1000000000ull
#define COVEN_MAX_REMOVALS 128u
#define COVEN_COPY_NONE 0xffffffffu /* copy buffer without a packet */
#define COVEN_COPY_BACK 0xfffffffdu /* the same; the component gave back the one that was there */
#define COVEN_COPY_LATE 0xfffffffeu /* its packet was taken away, the component has not given it back */

/* Packets outside the worker's hands, in the order in which they were given away. */
struct coven_track {
    uint32_t next, prev; /* COVEN_NO_HANDLE: end of the list */
    uint64_t since_ns;   /* CLOCK_MONOTONIC */
    uint32_t holder;     /* what the owner word will say once the open intent is committed; 0: nobody */
};

/* Values of coven_track.holder. */
#define COVEN_HOLDER(kind, number) ((uint32_t)(kind) << 8 | (number))

/* Violations of one replica, or fused component, since the supervisor was told of them last. */
struct coven_violation_count {
    uint64_t n;
    uint64_t told_ns;
};

struct coven_track_list {
    uint32_t first, last, n;
};

struct coven_fused {
    struct coven_runtime *runtime; /* NULL: not loaded; packets meet on_failure */
    int code_fd;                   /* -1: none given yet */
    char *start;                   /* text of the start request */
    size_t start_bytes;
    struct coven_track_list held;
    uint64_t tick_ns; /* when the next tick is due */
};

/* Whether a replica moves while it has packets (watch.c). */
struct coven_watch {
    uint32_t head, tail; /* of its rings, and its progress word, when it was looked at last */
    uint64_t progress;
    uint64_t looked_ns;
    uint64_t stuck_ns;
    uint32_t n_told; /* notices since it moved */
    bool is_waiting; /* it had packets then that it had not taken */
};

struct coven_replica_link {
    const struct coven_plan_component *plan;
    uint16_t component; /* index */
    uint16_t number;    /* through all components */
    bool attached;
    bool unpublished; /* entries were written that its in-ring does not show yet */
    bool unheard;     /* entries were shown, and whether it slept was not yet looked at behind a fence */
    struct coven_segment segment;
    struct coven_ring_side in;  /* worker -> component, we produce */
    struct coven_ring_side out; /* component -> worker, we consume */
    /* what it has: the queue in the ledger from given_head to in.position, and what left that order */
    struct coven_given *given;
    uint32_t given_mask, given_head;
    struct coven_track_list kept;
    uint32_t n_quarantine; /* `shared`: buffers taken away that it has not given back */
    uint32_t most;         /* buffers of the pool that it may have at once, those in quarantine included */
    uint32_t reserve;      /* room that only packets with priority may use; 0: there are none */
    bool hung;             /* it has packets and moves none: as if it were not there */
    struct coven_watch watch;
    struct coven_violation_count violations;
    uint32_t seen_broken; /* impossible ring words already counted as violations */
    /* copy: the replica's own buffers */
    uint8_t *buffers;
    uint32_t *packet_of; /* by copy buffer: pool handle, COVEN_COPY_NONE or COVEN_COPY_LATE */
    uint32_t *free_copies;
    uint32_t n_free_copies;
    uint8_t *late; /* in the ledger */
};

/* An entry of an out-ring, copied: what is judged and used. The line counts with COVEN_ENTRY_CHANGED. */
struct coven_returned {
    struct coven_entry entry;
    struct coven_meta meta;
    struct coven_meta_ext ext;
};

/* Packets that came back and go on. */
struct coven_forwards {
    uint16_t n;
    uint32_t handle[COVEN_BURST];
    const struct coven_plan_next *next[COVEN_BURST];
};

enum coven_judgement {
    COVEN_JUDGED_DONE,
    COVEN_JUDGED_UNKNOWN, /* nothing was done: it may name a packet in the queue (coven_replica_spill()) */
};

struct coven_component_link {
    const struct coven_plan_component *plan;
    struct coven_segment state_segment;
    struct coven_state_view state;
    struct coven_fused fused;
    struct coven_violation_count violations; /* fused, and what is not one replica's */
    uint32_t answers_owed; /* ends of flows it was told of, for whose answer nobody waits (removal.c) */
};

struct coven_port_link {
    struct coven_port port;
    bool given; /* a PORT message came */
    bool attached;
    uint64_t missed;   /* rx_missed when last asked */
    uint64_t muted_ns; /* not polled before this time, because its descriptor is in error */
    /* sources that can wait (files, generators without a rate) take no more in than fits behind them */
    uint32_t window; /* packets in the replicas behind it at most; 0: the source does not wait */
    uint32_t n_behind;
    uint16_t behind[COVEN_MAX_REPLICAS];
    /* isolated components that every way from here leads through, in the order of the path (admit.c) */
    uint32_t n_gates;
    struct {
        uint16_t component;
        bool is_exclusive; /* on no other path: what it has will come to the gates behind it */
    } gate[COVEN_MAX_COMPONENTS];
    uint16_t n; /* packets waiting for the next tx burst */
    uint32_t handle[COVEN_BURST];
};

/* A flow that ended and that some components have still to forget. */
struct coven_removal {
    uint32_t flow;
    uint16_t epoch;
    bool is_reused; /* it gave way in a full table: its slot has another flow already */
    uint64_t deadline_ns;
    uint64_t to_tell; /* bit for each component */
    uint64_t to_answer;
};

/* What the ports bring, seen each millisecond while the worker is awake (wait.c). */
struct coven_rate {
    uint64_t since_ns, received; /* at the begin of the window */
    uint64_t turns;              /* with work, in it */
    uint64_t idle_ns;            /* without, in it */
    uint64_t idle_from_ns;       /* since then there was no work; 0: there was just now */
    uint64_t gap_ns;             /* from packet to packet in the window before */
    uint64_t nap_until_ns;       /* packets are let gather; 0: they are not */
    uint64_t nap_gap_ns;         /* as long as they follow each other this fast */
};

/* Packets that travel together from hop to hop for as long as all go the same way. What components are shown of them is
 * made once, and made again only for what they changed. */
struct coven_burst {
    const uint32_t *handle;
    uint16_t n;
    bool is_shown; /* what follows is filled in, and the breadcrumb lists the packets */
    bool is_timed;
    uint64_t since;                        /* cycles when the last component was done, or the journey began */
    uint32_t shape[COVEN_BURST];           /* offset and length as in pkts */
    struct coven_packet pkts[COVEN_BURST]; /* components get a copy */
};

struct coven_graph {
    uint64_t waiting[COVEN_MAX_HOPS / 64]; /* hops that have packets */
    uint16_t n[COVEN_MAX_HOPS];
    uint32_t handle[COVEN_MAX_HOPS][COVEN_BURST];
    struct coven_burst burst; /* the one that travels */
};

struct coven_recovery {
    bool found; /* another worker's ledger */
    uint64_t worker_crash, component_crash, tx_uncertain;
    uint64_t held;      /* packets that stay with living replicas */
    uint32_t component; /* fused component it died in + 1; 0: none */
};

/* What a packet was like when it was given to a component with suspects. */
struct coven_given_print {
    uint64_t fingerprint;
    uint32_t component; /* index + 1 */
};

struct coven_worker {
    const struct coven_plan *plan;
    struct coven_book book;
    struct coven_stats *stats;
    uint8_t *pool; /* buffer 0 */
    struct coven_flow_table *flows;
    struct coven_track *track;             /* by handle */
    struct coven_given_print *given_print; /* by handle */
    uint64_t poisoned;                     /* a bit for each component that has suspects or poison packets */
    uint8_t alone;                         /* COVEN_ALONE while a suspect is given */
    bool is_blamed;                        /* the worker before died of its own code */
    bool *urgent;                          /* by handle: has priority; NULL: the plan gives none to any */
    struct coven_port_link port[COVEN_MAX_PORTS];
    struct coven_component_link component[COVEN_MAX_COMPONENTS];
    struct coven_replica_link replica[COVEN_MAX_REPLICAS];
    struct coven_graph graph;
    struct coven_rx rx;
    bool may_be_cut; /* a port reads capture files: only then packets have a meta_ext.cut, and somebody looks at it */
    bool path_has_flows[COVEN_MAX_PATHS + 1];        /* one more, for packets of no path */
    uint64_t path_fused_states[COVEN_MAX_PATHS + 1]; /* bit for each fused component on it that keeps flow state */
    struct coven_removal removal[COVEN_MAX_REMOVALS];
    uint32_t n_removals;
    uint64_t fused_holding;                /* bit for each fused component that may hold packets */
    bool removals_wait;                    /* more flows have ended than could be told of in one turn */
    uint64_t now_ns, wall_ns;              /* CLOCK_MONOTONIC, CLOCK_REALTIME of this turn */
    uint64_t wall_ahead_ns;                /* of the other */
    uint64_t measured_ns;                  /* when the latency of packets was looked at last */
    uint64_t tick_ns, gauges_ns;           /* when they are due */
    uint64_t flows_created, flows_removed; /* of the flow table when last asked */
    uint64_t random;
    uint64_t loops;
    uint32_t idle_loops;
    uint64_t received; /* packets, by all ports */
    struct coven_rate rate;
    /* segments and descriptors as given */
    struct coven_segment plan_segment, pool_segment, ledger_segment, stats_segment;
    int control_fd;  /* -1: the supervisor is gone */
    bool ready;      /* READY was answered */
    bool running;    /* RUN came: packets move; before, a successor waits until all replicas are attached again */
    bool receiving;  /* ports are read: not while pausing */
    bool halt_asked; /* by the supervisor: such a component is down in another worker of the instance */
    bool halted;     /* a component whose on_failure is stop is down: ports are not read either */
    bool leaving;
    int exit_status;
    struct {
        bool active;
        uint32_t seq;
        uint64_t deadline_ns;
    } pause;
    struct coven_recovery recovery;
};

/* ---- worker.c ---- */
struct coven_worker *coven_worker_new(int control_fd);
void coven_worker_free(struct coven_worker *worker);
/* The loop. Returns the exit status of the process. */
int coven_worker_run(struct coven_worker *worker);
/* Bring everything to a point between two bursts: send what waits, book it, show it to the components. */
void coven_worker_settle(struct coven_worker *worker);
/* Check what was given, take the ledger over, start ports and fused components. Returns 0 or a negative errno. */
int coven_worker_ready(struct coven_worker *worker, char *why, size_t why_bytes) __attribute__((warn_unused_result));
/* Take a port's descriptors into use once the worker is ready. */
int coven_worker_open_port(struct coven_worker *worker, uint16_t port, char *why, size_t why_bytes)
    __attribute__((warn_unused_result));
/* Packets inside: buffers neither free nor in quarantine. */
uint32_t coven_worker_inside(const struct coven_worker *worker);

/* ---- ingress.c, egress.c ---- */
/* Take one burst from a port through the graph. Returns how many packets. */
uint32_t coven_ingress_burst(struct coven_worker *worker, uint16_t port);
/* Packets a port may take in now, at most COVEN_BURST. */
uint16_t coven_ingress_room(const struct coven_worker *worker, uint16_t port);
/* Give packets their flows; those that are refused are dropped. Returns how many stay in `handles`. */
uint16_t coven_ingress_find_flows(struct coven_worker *worker, uint32_t path, uint32_t *handles, uint16_t n);
/* Find out which replicas lie behind a port. */
void coven_ingress_prepare(struct coven_worker *worker, uint16_t port);
/* Queue packets for a port, at most COVEN_BURST; the worker gives them away. */
void coven_egress_put(struct coven_worker *worker, uint32_t port, const uint32_t *handles, uint16_t n);
/* Send what is queued at a port and book the outcome. Returns how many packets. */
uint32_t coven_egress_flush(struct coven_worker *worker, uint16_t port);

/* ---- admit.c ---- */
/* Find out which components are gates of a port. */
void coven_admit_prepare(struct coven_worker *worker, uint16_t port);
/* Set what a burst of this port may bring in (coven_rx_admit()). */
void coven_admit_begin(struct coven_worker *worker, uint16_t port, struct coven_rx *rx);

/* ---- lending.c ---- */
#define COVEN_LENDING_OWNERS (2u * COVEN_BURST) /* that coven_lending_collect() may book, */
#define COVEN_LENDING_WORDS 2u                  /* and words */
/* Collect in the open intent: sent buffers that came back, and free ones to be lent. Then commit, then `show`. */
void coven_lending_collect(struct coven_worker *worker, uint16_t port);
/* The same when nothing was received or sent, and have the kernel go on sending. */
void coven_lending_turn(struct coven_worker *worker, uint16_t port);
/* Tell a port where the pool is, before it is attached. */
void coven_lending_prepare(struct coven_worker *worker, uint16_t port);
/* A port is attached: agree on who has which buffer. */
void coven_lending_adopt(struct coven_worker *worker, uint16_t port);

/* ---- graph.c ---- */
/* Put packets where `next` points, at most COVEN_BURST; `scope` is who chose it (for no-output). Follow with
 * coven_graph_walk(). */
void coven_graph_put_all(struct coven_worker *worker, const uint32_t *handles, uint16_t n,
                         const struct coven_plan_next *next, uint32_t scope);
/* Run all waiting packets to where they leave the worker's hands. */
void coven_graph_walk(struct coven_worker *worker);
/* Whether a component whose on_failure is stop is down. Changes only by messages of the supervisor. */
bool coven_graph_is_halted(const struct coven_worker *worker);
/* What the component's on_failure says for packets that it cannot get now. */
void coven_graph_component_down(struct coven_worker *worker, uint16_t hop, const uint32_t *handles, uint16_t n);

/* ---- fused.c ---- */
/* Around each call into a fused component's code: the breadcrumb in the ledger says whose it is and how many of the
 * packets that it lists are in its hands, for the case that the worker dies in it. */
void coven_fused_enter(struct coven_worker *worker, uint16_t component, uint16_t n);
void coven_fused_leave(struct coven_worker *worker);
int coven_fused_start(struct coven_worker *worker, uint16_t component, char *why, size_t why_bytes)
    __attribute__((warn_unused_result));
void coven_fused_stop(struct coven_worker *worker, uint16_t component);
/* Run a burst through the component of a hop. Returns where all of it goes next, or NULL when each packet was seen to. */
const struct coven_plan_next *coven_fused_process(struct coven_worker *worker, uint16_t hop, struct coven_burst *burst);
/* Take back what fused components released. Returns how many packets. */
uint32_t coven_fused_collect(struct coven_worker *worker);
/* Clock for fused components and their hold limits. */
void coven_fused_tick(struct coven_worker *worker);
/* Drop everything a fused component holds. Returns how many packets. */
uint32_t coven_fused_drop_held(struct coven_worker *worker, uint16_t component, uint32_t reason);

/* ---- replica_give.c ---- */
/* The replica of a component that packets of this flow go to. */
struct coven_replica_link *coven_replica_choose(struct coven_worker *worker, uint32_t component, uint32_t flow);
/* Give packets to the replica of a component, or drop them with the reason why not. */
void coven_replica_give(struct coven_worker *worker, uint16_t hop, const uint32_t *handles, uint16_t n);
/* Tell a replica that a flow ended. False: no room now. */
bool coven_replica_tell(struct coven_worker *worker, struct coven_replica_link *link, uint32_t flow, uint16_t epoch);
/* Show the replicas what was written for them; only after the intent is committed. */
void coven_replica_publish(struct coven_worker *worker);
/* Before the worker waits: nobody sleeps beside what was shown to him. */
void coven_replica_wake(struct coven_worker *worker);

/* ---- replica.c ---- */
/* Take one burst of what a replica gives back through the graph. Returns how many entries. */
uint32_t coven_replica_take(struct coven_worker *worker, struct coven_replica_link *link);
/* Hold limit and time of one replica, if it has given back everything it has taken from its in-ring so far. */
void coven_replica_hold_check(struct coven_worker *worker, struct coven_replica_link *link);
/* Judge one entry a component wrote, a copy of it with its line; collects in the open intent. A packet that goes on is
 * added to `forwards`. */
enum coven_judgement coven_replica_judge(struct coven_worker *worker, struct coven_replica_link *link,
                                         const struct coven_returned *entry, struct coven_forwards *forwards);
/* Put packets that came back where their chosen output leads. */
void coven_replica_pass_on(struct coven_worker *worker, struct coven_replica_link *link,
                           const struct coven_forwards *forwards);
/* Move what a replica was given before in-ring position `end` from the queue to `kept`: there each packet can be
 * found by its number. */
void coven_replica_spill(struct coven_worker *worker, struct coven_replica_link *link, uint32_t end);
/* Take a packet away from a replica that still lives: counted as dropped for `reason`. */
void coven_replica_take_away(struct coven_worker *worker, struct coven_replica_link *link, uint32_t handle,
                             uint32_t reason);

/* ---- replica_life.c ---- */
int coven_replica_attach(struct coven_worker *worker, uint32_t number, const int fds[3], char *why, size_t why_bytes)
    __attribute__((warn_unused_result));
/* The replica is gone: take what it published and what it staged and committed, drop the rest for `reason`. */
void coven_replica_sweep(struct coven_worker *worker, uint32_t number, uint32_t reason, uint64_t *dropped,
                         uint64_t *staged);
/* Memory for the packets of every replica of the plan. Returns 0 or -ENOMEM. */
int coven_replica_prepare(struct coven_worker *worker) __attribute__((warn_unused_result));
/* Say of each packet in a replica's queue that it is not the worker's, before a dead worker's packets are dropped. */
void coven_replica_mark_given(struct coven_worker *worker);
/* Rebuild lists and copy maps from owners and queues (READY). */
int coven_replica_rebuild(struct coven_worker *worker) __attribute__((warn_unused_result));

/* ---- removal.c ---- */
/* Collect flows that ended and tell the components. */
void coven_removal_turn(struct coven_worker *worker);
/* How many flows may give way in a full table: as many as there are places to note who has to forget them. */
uint32_t coven_removal_room(const struct coven_worker *worker);
/* A flow gave way: tell the components, before they see a packet of the flow that has its slot now. */
void coven_removal_gave_way(struct coven_worker *worker, uint32_t flow, uint16_t epoch);
/* A component has forgotten the flow. False: it was never asked to. */
bool coven_removal_answer(struct coven_worker *worker, uint16_t component, uint32_t flow, uint16_t epoch);
/* A component went away: whatever it was asked to forget counts as forgotten. */
void coven_removal_component_gone(struct coven_worker *worker, uint16_t component);

/* ---- recovery.c ---- */
/* Take the ledger over, new or another worker's: finish its intent, rebuild free list and flow index. */
int coven_recovery_run(struct coven_worker *worker, char *why, size_t why_bytes) __attribute__((warn_unused_result));
/* With the ports open: drop what the dead worker had in its hands. */
void coven_recovery_sweep(struct coven_worker *worker);

/* ---- watch.c ---- */
#define COVEN_EXIT_HUNG 4 /* exit status: a fused component does not return, the breadcrumb names it */
/* Look at an attached replica, if it is time to. */
void coven_watch_replica(struct coven_worker *worker, struct coven_replica_link *link);
/* When to look at a replica that has packets. */
uint64_t coven_watch_due(const struct coven_worker *worker, const struct coven_replica_link *link);
/* Around sleeping, and in each turn: the timer by which a fused component that does not return is found. */
void coven_watch_asleep(void);
void coven_watch_awake(struct coven_worker *worker);
void coven_watch_turn(struct coven_worker *worker, bool has_worked);

/* ---- control_flows.c: handlers of control.c; 0 or a negative errno ---- */
int coven_control_flows(struct coven_worker *worker, const struct coven_control *request, const void *payload,
                        size_t payload_bytes, struct coven_control *answer, void *records, char *why, size_t why_bytes);
int coven_control_flow_export(struct coven_worker *worker, const struct coven_control *request, const void *payload,
                              size_t payload_bytes, int fd, struct coven_control *answer, char *why, size_t why_bytes);
int coven_control_flow_import(struct coven_worker *worker, int fd, struct coven_control *answer, char *why,
                              size_t why_bytes);

/* ---- control.c, snapshot.c, wait.c ---- */
/* Tell the supervisor something it did not ask for; may be called in a signal's handler. Never waits; false when it
 * cannot be told just now. */
bool coven_control_notify(struct coven_worker *worker, uint32_t index, uint64_t notice, uint64_t value, uint64_t more);
/* Answer all messages that are there. */
void coven_control_poll(struct coven_worker *worker);
/* Send the answer to a PAUSE once it is complete. */
void coven_control_pause_turn(struct coven_worker *worker);
void coven_snapshot_take(struct coven_worker *worker, struct coven_snapshot *snapshot);
/* Counters that somebody else keeps: what the kernel lost, flows in the table. */
void coven_snapshot_gauges(struct coven_worker *worker);
/* Clocks of this turn. */
void coven_wait_clock(struct coven_worker *worker);
/* CLOCK_REALTIME just now, for what must be more exact than this turn's. */
uint64_t coven_wait_wall_ns(void);
/* After a turn that moved `done` packets: timers, control messages, and sleep if there is nothing to do. */
void coven_wait_turn(struct coven_worker *worker, uint32_t done);

/* Packets (and ends of flows among them) that a replica has. */
static inline uint32_t coven_replica_has(const struct coven_replica_link *link)
{
    return link->in.position - link->given_head + link->kept.n;
}

/* ---- track lists ---- */
static inline void coven_track_append(struct coven_worker *worker, struct coven_track_list *list, uint32_t handle,
                                      uint32_t holder)
{
    struct coven_track *track = &worker->track[handle];

    *track =
        (struct coven_track){.next = COVEN_NO_HANDLE, .prev = list->last, .since_ns = worker->now_ns, .holder = holder};
    if (list->last != COVEN_NO_HANDLE)
        worker->track[list->last].next = handle;
    else
        list->first = handle;
    list->last = handle;
    list->n++;
}

static inline void coven_track_remove(struct coven_worker *worker, struct coven_track_list *list, uint32_t handle)
{
    struct coven_track *track = &worker->track[handle];

    track->holder = 0;
    if (track->prev != COVEN_NO_HANDLE)
        worker->track[track->prev].next = track->next;
    else
        list->first = track->next;
    if (track->next != COVEN_NO_HANDLE)
        worker->track[track->next].prev = track->prev;
    else
        list->last = track->prev;
    list->n--;
}

static inline void coven_track_clear(struct coven_track_list *list)
{
    *list = (struct coven_track_list){COVEN_NO_HANDLE, COVEN_NO_HANDLE, 0};
}

/* ---- graph: called for each packet and hop ---- */
/* coven_graph_put_all() for one packet. */
static inline void coven_graph_put(struct coven_worker *worker, uint32_t handle, const struct coven_plan_next *next,
                                   uint32_t scope)
{
    struct coven_graph *graph = &worker->graph;

    if (next->hop == COVEN_NO_HOP) {
        coven_graph_put_all(worker, &handle, 1, next, scope);
        return;
    }
    graph->handle[next->hop][graph->n[next->hop]++] = handle;
    graph->waiting[next->hop / 64] |= 1ull << (next->hop % 64);
}

/* ---- replicas: asked for each packet or burst ---- */
static inline bool coven_replica_is_up(const struct coven_replica_link *link)
{
    return link->attached && !link->hung;
}

/* Packets that may be given to a replica now; looks at its ring only when that seems to be fewer than `wanted`. */
static inline uint32_t coven_replica_room(struct coven_replica_link *link, uint32_t wanted)
{
    uint32_t has = coven_replica_has(link) + link->n_quarantine;
    uint32_t room = has < link->most ? link->most - has : 0;
    uint32_t queue = link->given_mask + 1u - (link->in.position - link->given_head);
    uint32_t ring = coven_ring_room(&link->in, wanted);

    room = ring < room ? ring : room;
    room = queue < room ? queue : room;
    return link->buffers && link->n_free_copies < room ? link->n_free_copies : room;
}

static inline uint8_t *coven_worker_buffer(const struct coven_worker *worker, uint32_t handle)
{
    return worker->pool + (size_t)handle * worker->plan->buffer_bytes;
}

#endif
