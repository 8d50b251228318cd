/* SPDX-License-Identifier: Apache-2.0 */
/* The supervisor's messages (docs/internals.md section 3). Handled between two turns of the loop, when everything
 * that counts is booked. The worker never blocks on the socket, and goes on when its other end is gone. */
#define _GNU_SOURCE
#include "control.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "flow_export.h"
#include "worker.h"

/* One request, and the answer to it. Descriptors that a handler keeps are set to -1. */
struct request {
    struct coven_control message;
    size_t payload_bytes;
    int fds[COVEN_CONTROL_FDS];
    uint32_t n_fds;
    bool deferred; /* the answer is sent later */
    struct coven_control answer;
    size_t answer_bytes;
};

/* One thread, one message at a time. */
static _Alignas(8) char request_payload[COVEN_CONTROL_PAYLOAD + 1];
static _Alignas(8) char answer_payload[COVEN_CONTROL_PAYLOAD];

static void send_answer(struct coven_worker *worker, const struct coven_control *answer, size_t payload_bytes)
{
    struct iovec parts[2] = {
        {.iov_base = (void *)answer, .iov_len = sizeof(*answer)},
        {.iov_base = answer_payload, .iov_len = payload_bytes},
    };
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

    /* a supervisor that does not read loses its answer and asks again */
    (void)!sendmsg(worker->control_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

bool coven_control_notify(struct coven_worker *worker, uint32_t index, uint64_t notice, uint64_t value, uint64_t more)
{
    struct coven_control message = {.op = COVEN_CONTROL_NOTIFY, .index = index, .arg = {notice, value, more}};

    return worker->control_fd >= 0 &&
           send(worker->control_fd, &message, sizeof(message), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(message);
}

/* ---- what is given before READY ------------------------------------------------------------------ */
static int take_segment(struct coven_worker *worker, struct request *request, char *why, size_t why_bytes)
{
    struct coven_segment *target = NULL;
    uint64_t kind = request->message.arg[0];
    size_t min_bytes = 0;
    int error;

    if (worker->ready || request->n_fds != 1)
        return -EINVAL;
    if (kind == COVEN_SEGMENT_PLAN) {
        target = &worker->plan_segment;
        min_bytes = sizeof(struct coven_plan);
    } else if (kind == COVEN_SEGMENT_POOL) {
        target = &worker->pool_segment;
        min_bytes = sizeof(struct coven_pool);
    } else if (kind == COVEN_SEGMENT_LEDGER) {
        target = &worker->ledger_segment;
        min_bytes = sizeof(struct coven_ledger);
    } else if (kind == COVEN_SEGMENT_STATS) {
        target = &worker->stats_segment;
        min_bytes = sizeof(struct coven_stats);
    } else if (kind == COVEN_SEGMENT_STATE && request->message.index < COVEN_MAX_COMPONENTS) {
        target = &worker->component[request->message.index].state_segment;
        min_bytes = sizeof(struct coven_state);
    } else {
        return -EINVAL;
    }
    coven_segment_unmap(target);
    if (kind == COVEN_SEGMENT_POOL || kind == COVEN_SEGMENT_STATE)
        error = coven_segment_map_unread(target, request->fds[0], (uint32_t)kind, min_bytes, true, why, why_bytes);
    else
        error = coven_segment_map(target, request->fds[0], (uint32_t)kind, min_bytes, kind != COVEN_SEGMENT_PLAN, why,
                                  why_bytes);
    if (!error)
        coven_segment_prefer_huge(target);
    return error;
}

static int take_port(struct coven_worker *worker, struct request *request, char *why, size_t why_bytes)
{
    struct coven_port_link *link;
    uint32_t index = request->message.index;

    if (index >= COVEN_MAX_PORTS || request->n_fds > COVEN_PORT_QUEUES || worker->port[index].attached ||
        (worker->ready && index >= worker->plan->n_ports))
        return -EINVAL;
    link = &worker->port[index];
    link->given = true;
    if (request->n_fds > 0) {
        link->port.rx_fd = request->fds[0];
        link->port.tx_fd = request->n_fds > 1 ? request->fds[1] : request->fds[0];
        link->port.n_queues = (uint16_t)request->n_fds;
        memcpy(link->port.queue_fd, request->fds, request->n_fds * sizeof(request->fds[0]));
        request->n_fds = 0; /* kept */
    }
    return worker->ready ? coven_worker_open_port(worker, (uint16_t)index, why, why_bytes) : 0;
}

static int take_code(struct coven_worker *worker, struct request *request, char *why, size_t why_bytes)
{
    struct coven_fused *fused;

    if (request->message.index >= COVEN_MAX_COMPONENTS || request->n_fds != 1)
        return -EINVAL;
    fused = &worker->component[request->message.index].fused;
    if (fused->runtime || fused->code_fd >= 0)
        return -EBUSY;
    fused->start = malloc(request->payload_bytes + 1);
    if (!fused->start)
        return -ENOMEM;
    memcpy(fused->start, request_payload, request->payload_bytes);
    fused->start[request->payload_bytes] = '\0';
    fused->start_bytes = request->payload_bytes;
    fused->code_fd = request->fds[0];
    request->n_fds = 0; /* kept */
    return worker->ready ? coven_fused_start(worker, (uint16_t)request->message.index, why, why_bytes) : 0;
}

static int become_ready(struct coven_worker *worker, struct request *request, char *why, size_t why_bytes)
{
    const struct coven_recovery *found = &worker->recovery;
    int error;

    worker->is_blamed = request->message.arg[0] == 1;
    error = worker->ready ? -EALREADY : coven_worker_ready(worker, why, why_bytes);

    if (error) {
        /* half prepared: better a new process than a second try */
        if (!worker->ready && worker->exit_status == 0)
            worker->exit_status = 1;
        return error;
    }
    request->answer.arg[0] = found->found;
    request->answer.arg[1] = found->worker_crash;
    request->answer.arg[2] = found->component_crash;
    request->answer.arg[3] = found->tx_uncertain;
    request->answer.arg[4] = found->held;
    request->answer.arg[5] = found->component;
    if (found->found)
        snprintf(
            why, why_bytes,
            "took over: %llu packets stay with components, dropped %llu worker-crash, %llu component-crash%s%.31s, "
            "%llu tx-uncertain",
            (unsigned long long)found->held, (unsigned long long)found->worker_crash,
            (unsigned long long)found->component_crash, found->component ? " in " : "",
            found->component ? worker->plan->components[found->component - 1].name : "",
            (unsigned long long)found->tx_uncertain);
    return 0;
}

/* ---- running ----------------------------------------------------------------------------------- */
static int attach(struct coven_worker *worker, struct request *request, char *why, size_t why_bytes)
{
    int error;

    if (request->n_fds != 3)
        return -EINVAL;
    error = coven_replica_attach(worker, request->message.index, request->fds, why, why_bytes);
    if (!error) {
        close(request->fds[0]); /* mapped; the doorbells are kept */
        request->n_fds = 0;
    }
    return error;
}

static int detach(struct coven_worker *worker, struct request *request)
{
    uint32_t reason = request->message.arg[0] == 1 ? COVEN_DROP_COMPONENT_CRASH : COVEN_DROP_STOPPED;

    if (request->message.index >= worker->plan->n_replicas)
        return -EINVAL;
    if (request->message.arg[1] == 1)
        coven_poison_replica_died(worker, request->message.index);
    coven_replica_sweep(worker, request->message.index, reason, &request->answer.arg[0], &request->answer.arg[1]);
    return 0;
}

static int begin_pause(struct coven_worker *worker, struct request *request)
{
    if (worker->pause.active)
        return -EBUSY;
    worker->receiving = false;
    worker->pause.active = true;
    worker->pause.seq = request->message.seq;
    worker->pause.deadline_ns = worker->now_ns + request->message.arg[0] * COVEN_NS_PER_MS;
    request->deferred = true;
    return 0;
}

static uint64_t drop_inside(struct coven_worker *worker)
{
    uint64_t n = 0;

    for (uint16_t c = 0; c < worker->plan->n_components; c++)
        if (worker->component[c].fused.held.n > 0)
            n += coven_fused_drop_held(worker, c, COVEN_DROP_STOPPED);
    for (uint32_t r = 0; r < worker->plan->n_replicas; r++) {
        struct coven_replica_link *link = &worker->replica[r];

        coven_replica_spill(worker, link, link->in.position);
        while (link->kept.first != COVEN_NO_HANDLE) {
            coven_replica_take_away(worker, link, link->kept.first, COVEN_DROP_STOPPED);
            n++;
        }
    }
    return n;
}

void coven_control_pause_turn(struct coven_worker *worker)
{
    struct coven_control answer = {.op = COVEN_CONTROL_PAUSE | COVEN_CONTROL_REPLY, .seq = worker->pause.seq};

    if (coven_worker_inside(worker) > 0 && worker->now_ns < worker->pause.deadline_ns)
        return;
    answer.arg[0] = drop_inside(worker);
    coven_worker_settle(worker);
    worker->pause.active = false;
    send_answer(worker, &answer, 0);
}

static int ask_agent(struct coven_worker *worker, struct request *request)
{
    uint32_t index = request->message.index;

    if (index >= worker->plan->n_components || !worker->component[index].fused.runtime)
        return -ENOENT;
    coven_fused_enter(worker, (uint16_t)index, 0);
    request->answer_bytes = coven_runtime_agent(worker->component[index].fused.runtime, request_payload,
                                                request->payload_bytes, answer_payload, sizeof(answer_payload));
    coven_fused_leave(worker);
    return 0;
}

static int leave(struct coven_worker *worker)
{
    for (uint16_t c = 0; worker->ready && c < worker->plan->n_components; c++)
        coven_fused_stop(worker, c);
    if (worker->ready)
        coven_worker_settle(worker);
    worker->leaving = true;
    return 0;
}

static int handle_flows(struct coven_worker *worker, struct request *request, char *why, size_t why_bytes)
{
    int error;

    if (request->message.op != COVEN_CONTROL_FLOWS && request->n_fds != 1)
        return -EINVAL;
    if (request->message.op == COVEN_CONTROL_FLOW_IMPORT)
        return coven_control_flow_import(worker, request->fds[0], &request->answer, why, why_bytes);
    if (request->message.op == COVEN_CONTROL_FLOW_EXPORT)
        return coven_control_flow_export(worker, &request->message, request_payload, request->payload_bytes,
                                         request->fds[0], &request->answer, why, why_bytes);
    error = coven_control_flows(worker, &request->message, request_payload, request->payload_bytes, &request->answer,
                                answer_payload, why, why_bytes);
    if (!error)
        request->answer_bytes = (size_t)request->answer.arg[1] * sizeof(struct coven_flow_record);
    return error;
}

/* ---- dispatch ---------------------------------------------------------------------------------- */
static int handle_running(struct coven_worker *worker, struct request *request, char *why, size_t why_bytes)
{
    if (!worker->ready)
        return -EAGAIN;
    switch (request->message.op) {
    case COVEN_CONTROL_RUN:
        worker->running = true;
        worker->receiving = true;
        coven_watch_awake(worker);
        return 0;
    case COVEN_CONTROL_PAUSE:
        return begin_pause(worker, request);
    case COVEN_CONTROL_HALT:
        worker->halt_asked = request->message.arg[0] != 0;
        return 0;
    case COVEN_CONTROL_ATTACH:
        return attach(worker, request, why, why_bytes);
    case COVEN_CONTROL_DETACH:
        return detach(worker, request);
    case COVEN_CONTROL_SNAPSHOT:
        coven_snapshot_take(worker, (struct coven_snapshot *)(void *)answer_payload);
        request->answer_bytes = sizeof(struct coven_snapshot);
        return 0;
    case COVEN_CONTROL_POISON_CLEAR:
        coven_poison_clear(worker, request->message.index);
        return 0;
    case COVEN_CONTROL_AGENT:
        return ask_agent(worker, request);
    case COVEN_CONTROL_FLOWS:
    case COVEN_CONTROL_FLOW_EXPORT:
    case COVEN_CONTROL_FLOW_IMPORT:
        return handle_flows(worker, request, why, why_bytes);
    default:
        return -ENOSYS;
    }
}

static int handle(struct coven_worker *worker, struct request *request, char *why, size_t why_bytes)
{
    switch (request->message.op) {
    case COVEN_CONTROL_SEGMENT:
        return take_segment(worker, request, why, why_bytes);
    case COVEN_CONTROL_PORT:
        return take_port(worker, request, why, why_bytes);
    case COVEN_CONTROL_CODE:
        return take_code(worker, request, why, why_bytes);
    case COVEN_CONTROL_READY:
        return become_ready(worker, request, why, why_bytes);
    case COVEN_CONTROL_EXIT:
        return leave(worker);
    case COVEN_CONTROL_ATTENTION:
        return 0;
    default:
        return handle_running(worker, request, why, why_bytes);
    }
}

static void answer(struct coven_worker *worker, struct request *request)
{
    char why[256] = "";
    int result;

    request->answer.op = request->message.op | COVEN_CONTROL_REPLY;
    request->answer.seq = request->message.seq;
    request->answer.index = request->message.index;
    result = handle(worker, request, why, sizeof(why));
    if (worker->ready && !worker->leaving) {
        coven_worker_settle(worker); /* a sweep may have sent packets on */
        worker->halted = worker->halt_asked || coven_graph_is_halted(worker);
    }
    if (request->deferred && result == 0)
        return;
    request->answer.result = result;
    if (request->answer_bytes == 0 && why[0] != '\0') {
        request->answer_bytes = strlen(why);
        memcpy(answer_payload, why, request->answer_bytes);
    }
    send_answer(worker, &request->answer, request->answer_bytes);
    if (result < 0 && worker->exit_status != 0)
        worker->leaving = true;
}

static void collect_fds(struct request *request, struct msghdr *message)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        size_t bytes = c->cmsg_len - CMSG_LEN(0);

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || bytes > sizeof(request->fds))
            continue;
        memcpy(request->fds, CMSG_DATA(c), bytes);
        request->n_fds = (uint32_t)(bytes / sizeof(int));
    }
}

/* Receive and answer one message. Returns false when there is none. */
static bool receive(struct coven_worker *worker)
{
    struct request request = {0};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(request.fds))];
    } control;
    struct iovec parts[2] = {
        {.iov_base = &request.message, .iov_len = sizeof(request.message)},
        {.iov_base = request_payload, .iov_len = COVEN_CONTROL_PAYLOAD},
    };
    struct msghdr message = {
        .msg_iov = parts, .msg_iovlen = 2, .msg_control = control.space, .msg_controllen = sizeof(control.space)};
    ssize_t got = recvmsg(worker->control_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (got < 0)
        return errno == EINTR;
    if (got == 0) {
        close(worker->control_fd);
        worker->control_fd = -1;
        return false;
    }
    collect_fds(&request, &message);
    if ((size_t)got >= sizeof(request.message)) {
        request.payload_bytes = (size_t)got - sizeof(request.message);
        request_payload[request.payload_bytes] = '\0';
        answer(worker, &request);
    }
    for (uint32_t i = 0; i < request.n_fds; i++)
        close(request.fds[i]);
    return !worker->leaving;
}

void coven_control_poll(struct coven_worker *worker)
{
    if (!worker->ready && worker->control_fd >= 0) {
        struct pollfd fd = {.fd = worker->control_fd, .events = POLLIN};

        (void)!poll(&fd, 1, -1); /* nothing else can happen before READY */
    }
    while (worker->control_fd >= 0 && receive(worker))
        ;
    /* nobody is left who could ever make this worker run */
    if (!worker->ready && worker->control_fd < 0)
        worker->leaving = true;
}
