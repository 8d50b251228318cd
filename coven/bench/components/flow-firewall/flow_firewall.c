/* SPDX-License-Identifier: Apache-2.0 */
/* A stateful firewall for measuring: the first packet of a flow decides by destination port and protocol, and 64 bytes
 * of flow state remember it and count. Packets of no flow are dropped. */
#include <coven/component.h>
#include <string.h>

struct flow {
    uint64_t packets[2], bytes[2]; /* by direction */
    uint64_t first_ns, last_ns;
    uint32_t allowed;
    uint32_t reserved[3];
};

_Static_assert(sizeof(struct flow) == 64, "state of component.yaml");

static int allocate_new_fs(struct coven_component *self, const struct coven_packet *pkt, void *fs)
{
    struct flow *flow = fs;
    const uint8_t *ip = pkt->data + 14;

    (void)self;
    if (pkt->meta->length < 14 + 20 + 4)
        return 0;
    flow->allowed = ip[9] == 17 || ip[9] == 6;
    flow->first_ns = coven_meta(pkt)->timestamp_ns;
    return 0;
}

static void process_pkt(struct coven_component *self, struct coven_packet *pkt, void *fs)
{
    struct flow *flow = fs;

    (void)self;
    if (flow == NULL || !flow->allowed) {
        coven_drop(pkt);
        return;
    }
    flow->packets[coven_meta(pkt)->direction & 1]++;
    flow->bytes[coven_meta(pkt)->direction & 1] += pkt->meta->length;
    flow->last_ns = coven_meta(pkt)->timestamp_ns;
}

COVEN_COMPONENT(.allocate_new_fs = allocate_new_fs, .process_pkt = process_pkt);
