/* SPDX-License-Identifier: Apache-2.0 */
/* Counts packets and bytes of each flow. The counts lie in the platform's flow table, so they outlive this code;
 * the number of packets so far goes with each packet in user word 0. */
#include <coven/component.h>
#include <stdio.h>
#include <string.h>

struct counter {
    uint64_t *packets, *bytes, *flows_begun, *flows_ended, *without_flow, *period_cell;
    uint32_t period;
};

/* State of one flow: component.yaml declares its size. */
struct flow {
    uint64_t packets;
    uint64_t bytes;
    uint32_t period; /* in which these were counted */
    uint32_t reserved;
};

static int init(struct coven_component *self)
{
    struct counter *counter = coven_private(self);
    double period;

    counter->packets = coven_metric(self, "packets");
    counter->bytes = coven_metric(self, "bytes");
    counter->flows_begun = coven_metric(self, "flows_begun");
    counter->flows_ended = coven_metric(self, "flows_ended");
    counter->without_flow = coven_metric(self, "without_flow");
    counter->period_cell = coven_metric(self, "period");
    /* The cell outlives a crash as the flows do. */
    memcpy(&period, counter->period_cell, sizeof(period));
    counter->period = period >= 0 && period < UINT32_MAX ? (uint32_t)period : 0;
    return 0;
}

static int allocate_new_fs(struct coven_component *self, const struct coven_packet *pkt, void *fs)
{
    struct counter *counter = coven_private(self);
    struct flow *flow = fs;

    (void)pkt;
    flow->period = counter->period;
    coven_count(counter->flows_begun, 1);
    return 0;
}

static void deallocate_fs(struct coven_component *self, void *fs)
{
    struct counter *counter = coven_private(self);

    (void)fs;
    coven_count(counter->flows_ended, 1);
}

static void process_pkt(struct coven_component *self, struct coven_packet *pkt, void *fs)
{
    struct counter *counter = coven_private(self);
    struct flow *flow = fs;

    coven_count(counter->packets, 1);
    coven_count(counter->bytes, pkt->meta->length);
    if (flow == NULL) {
        coven_count(counter->without_flow, 1);
        return;
    }
    if (flow->period != counter->period)
        *flow = (struct flow){.period = counter->period};
    flow->packets++;
    flow->bytes += pkt->meta->length;
    coven_meta(pkt)->user[0] = (uint32_t)flow->packets;
}

static int reset(struct coven_component *self, struct coven_answer *answer)
{
    struct counter *counter = coven_private(self);
    char text[16];

    counter->period++;
    coven_gauge(counter->period_cell, counter->period);
    snprintf(text, sizeof(text), "%u", counter->period);
    coven_answer(answer, self, "period", text);
    return 0;
}

static const struct coven_operation operations[] = {{"reset", reset}, {NULL, NULL}};

COVEN_COMPONENT(.private_bytes = sizeof(struct counter), .init = init, .allocate_new_fs = allocate_new_fs,
                .deallocate_fs = deallocate_fs, .process_pkt = process_pkt, .operations = operations);
