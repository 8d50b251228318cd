/* SPDX-License-Identifier: Apache-2.0 */
/* From a packet to its flow: by its own key, by the first fragment of its datagram, by the header it quotes. */
#include "drop_reasons.h"
#include "flow_private.h"

static void assign(struct coven_flow_table *table, uint32_t flow, uint8_t direction, struct coven_meta *meta,
                   uint64_t now_ns)
{
    struct flow_entry *entry = &coven_flow_entries(table)[flow];

    entry->last_ns = now_ns;
    meta->flow = flow;
    meta->flow_epoch = entry->epoch;
    meta->direction = direction;
    meta->flow_seq = entry->sequence[direction]++;
}

static bool is_icmp_error(uint8_t protocol, uint8_t type)
{
    if (protocol == COVEN_PROTO_ICMPV6)
        return type >= 1 && type <= 4; /* RFC 4443 section 2.1: below 128 are errors, four are defined */
    return protocol == COVEN_PROTO_ICMP &&
           (type == 3 || type == 4 || type == 5 || type == 11 || type == 12); /* RFC 1122 section 3.2.2 */
}

/* Flow of the packet that an ICMP error quotes. The error travels against it. */
static uint32_t follow_quote(struct coven_flow_table *table, const uint8_t *data, const struct coven_parsed *outer,
                             uint64_t now_ns, uint8_t *direction)
{
    struct coven_parsed quoted = {0};
    struct flow_key key;
    uint32_t at = outer->l4_offset + 8u; /* RFC 792, RFC 4443 section 3: the quote follows 8 bytes */
    uint32_t flow;
    bool swapped;

    if (outer->l4_offset == 0 || at >= outer->l3_end || !is_icmp_error(outer->protocol, data[outer->l4_offset]))
        return COVEN_FLOW_NONE;
    coven_parse_ip(data, outer->l3_end, at, outer->ether_type, &quoted);
    if (quoted.ip_version == 0)
        return COVEN_FLOW_NONE;
    quoted.l3_offset = (uint16_t)at;
    if (quoted.flags & COVEN_PARSED_LATER_FRAGMENT) {
        flow = coven_flow_fragment_follow(table, data, &quoted, outer, now_ns, direction);
        *direction ^= 1;
        return flow;
    }
    if (!(quoted.flags & COVEN_PARSED_PORTS))
        return COVEN_FLOW_NONE;
    swapped = coven_flow_make_key(data, &quoted, outer, &key);
    flow = coven_flow_find(table, &key, coven_flow_hash_of(table, &key));
    if (flow != COVEN_FLOW_NONE)
        *direction = (uint8_t)((swapped != (coven_flow_entries(table)[flow].swapped & 1)) ^ 1);
    return flow;
}

int coven_flow_lookup(struct coven_flow_table *table, const uint8_t *data, uint32_t length, struct coven_meta *meta,
                      uint64_t now_ns)
{
    struct coven_parsed parsed;
    struct flow_key key;
    uint32_t flow = COVEN_FLOW_NONE, hash;
    uint8_t direction = 0;
    bool swapped;

    meta->flow = COVEN_NO_FLOW;
    meta->flow_epoch = 0;
    meta->flow_seq = 0;
    meta->direction = 0;
    table->gave_way = COVEN_FLOW_NONE;
    if (table->capacity == 0)
        return 0;
    coven_parse(data, length, &parsed);
    if (parsed.ip_version == 0)
        return 0;
    if (parsed.flags & COVEN_PARSED_LATER_FRAGMENT) {
        flow = coven_flow_fragment_follow(table, data, &parsed, &parsed, now_ns, &direction);
    } else if (parsed.flags & COVEN_PARSED_PORTS) {
        swapped = coven_flow_make_key(data, &parsed, &parsed, &key);
        hash = coven_flow_hash_of(table, &key);
        flow = coven_flow_find(table, &key, hash);
        if (flow == COVEN_FLOW_NONE)
            flow = coven_flow_make(table, &key, hash, swapped, now_ns);
        if (flow == COVEN_FLOW_NONE)
            return COVEN_DROP_FLOW_TABLE_FULL + 1;
        direction = swapped != (coven_flow_entries(table)[flow].swapped & 1);
        if (parsed.flags & COVEN_PARSED_FRAGMENT)
            coven_flow_fragment_learn(table, data, &parsed, flow, direction, now_ns);
    } else {
        flow = follow_quote(table, data, &parsed, now_ns, &direction);
    }
    if (flow != COVEN_FLOW_NONE)
        assign(table, flow, direction, meta, now_ns);
    return 0;
}

void coven_flow_let_give_way(struct coven_flow_table *table, bool may)
{
    table->may_give_way = may;
}

bool coven_flow_gave_way(struct coven_flow_table *table, uint32_t *flow, uint16_t *epoch)
{
    if (table->gave_way == COVEN_FLOW_NONE)
        return false;
    *flow = table->gave_way;
    *epoch = table->gave_way_epoch;
    table->gave_way = COVEN_FLOW_NONE;
    return true;
}
