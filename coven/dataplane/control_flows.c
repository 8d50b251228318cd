/* SPDX-License-Identifier: Apache-2.0 */
/* What the supervisor asks of flows: list, export, import. Between two turns of the loop, as everything in control.c. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "flow_export.h"
#include "worker.h"

_Static_assert(COVEN_FLOW_LIST_MAX * sizeof(struct coven_flow_record) <= COVEN_CONTROL_PAYLOAD,
               "a list fits an answer");

static _Alignas(8) uint8_t blob[COVEN_FLOW_BLOB_MAX];

static uint32_t keepers_of(const struct coven_worker *worker, struct coven_flow_keeper *keepers)
{
    uint32_t n = 0;

    for (uint32_t c = 0; c < worker->plan->n_components; c++) {
        const struct coven_plan_component *plan = &worker->plan->components[c];

        if (plan->state_bytes == 0)
            continue;
        keepers[n++] = (struct coven_flow_keeper){
            .component = plan->name,
            .state = &worker->component[c].state,
            .bytes = plan->state_bytes,
            .version = plan->state_version,
        };
    }
    return n;
}

/* Whether a component has packets of the flow in its hands or its rings: its state is not the last one yet. Between two
 * turns the worker itself has none: what its owner word says to be the worker's is in a replica's queue. */
static bool is_under_way(const struct coven_worker *worker, uint32_t flow)
{
    for (uint32_t handle = 0; handle < worker->book.n_buffers; handle++) {
        uint32_t kind = coven_owner_kind(worker->book.owner[handle]);

        if ((kind == COVEN_OWNER_WORKER || kind == COVEN_OWNER_FUSED || kind == COVEN_OWNER_REPLICA) &&
            worker->book.meta[handle].flow == flow)
            return true;
    }
    return false;
}

static int no_table(char *why, size_t why_bytes)
{
    snprintf(why, why_bytes, "no component keeps flow state here");
    return -ENOENT;
}

int coven_control_flows(struct coven_worker *worker, const struct coven_control *request, const void *payload,
                        size_t payload_bytes, struct coven_control *answer, void *records, char *why, size_t why_bytes)
{
    uint64_t wanted = request->arg[1];
    uint32_t next = (uint32_t)request->arg[0];
    struct coven_flow_filter filter;

    if (!worker->flows)
        return no_table(why, why_bytes);
    if (payload_bytes != sizeof(filter))
        return -EINVAL;
    memcpy(&filter, payload, sizeof(filter));
    answer->arg[1] = coven_flow_list(worker->flows, &filter, worker->now_ns, &next, records,
                                     wanted < COVEN_FLOW_LIST_MAX ? (uint32_t)wanted : COVEN_FLOW_LIST_MAX);
    answer->arg[0] = next;
    return 0;
}

int coven_control_flow_export(struct coven_worker *worker, const struct coven_control *request, const void *payload,
                              size_t payload_bytes, int fd, struct coven_control *answer, char *why, size_t why_bytes)
{
    struct coven_flow_keeper keepers[COVEN_MAX_COMPONENTS];
    struct coven_flow_name name;
    int64_t bytes;
    uint32_t flow;

    if (!worker->flows)
        return no_table(why, why_bytes);
    if (payload_bytes != sizeof(name))
        return -EINVAL;
    memcpy(&name, payload, sizeof(name));
    flow = coven_flow_by_name(worker->flows, &name);
    if (flow == COVEN_NO_FLOW) {
        snprintf(why, why_bytes, "there is no such flow");
        return -ESRCH;
    }
    if (request->arg[0] == COVEN_FLOW_EXPORT_MOVE || request->arg[0] == COVEN_FLOW_EXPORT_BACK)
        coven_flow_set_moved(worker->flows, flow, request->arg[0] == COVEN_FLOW_EXPORT_MOVE);
    if (request->arg[0] == COVEN_FLOW_EXPORT_BACK)
        return 0;
    if (request->arg[0] == COVEN_FLOW_EXPORT_MOVE && is_under_way(worker, flow)) {
        snprintf(why, why_bytes, "a component has packets of the flow still");
        return -EAGAIN;
    }
    bytes = coven_flow_export(worker->flows, flow, keepers, keepers_of(worker, keepers), blob, sizeof(blob));
    if (bytes < 0)
        return (int)bytes;
    if (pwrite(fd, blob, (size_t)bytes, 0) != bytes)
        return -EIO;
    answer->arg[0] = (uint64_t)bytes;
    return 0;
}

int coven_control_flow_import(struct coven_worker *worker, int fd, struct coven_control *answer, char *why,
                              size_t why_bytes)
{
    struct coven_flow_keeper keepers[COVEN_MAX_COMPONENTS];
    ssize_t bytes = pread(fd, blob, sizeof(blob), 0);
    int64_t flow;

    if (!worker->flows)
        return no_table(why, why_bytes);
    if (bytes < 0)
        return -EIO;
    flow = coven_flow_import(worker->flows, keepers, keepers_of(worker, keepers), blob, (size_t)bytes, worker->now_ns,
                             why, why_bytes);
    if (flow < 0)
        return (int)flow;
    answer->arg[0] = (uint64_t)flow;
    return 0;
}
