/* SPDX-License-Identifier: Apache-2.0 */
/* The smallest component: says nothing about any packet, so all are forwarded, and counts them. */
#include <coven/component.h>

struct forward {
    uint64_t *pkts;
    uint64_t *bytes;
};

static int forward_init(struct coven_component *self)
{
    struct forward *forward = coven_private(self);

    forward->pkts = coven_metric(self, "forwarded_pkts");
    forward->bytes = coven_metric(self, "forwarded_bytes");
    return 0;
}

static void forward_process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    struct forward *forward = coven_private(self);
    uint64_t bytes = 0;

    for (uint16_t i = 0; i < n; i++)
        bytes += pkts[i].meta->length;
    coven_count(forward->pkts, n);
    coven_count(forward->bytes, bytes);
}

COVEN_COMPONENT(.private_bytes = sizeof(struct forward), .init = forward_init, .process_burst = forward_process_burst);
