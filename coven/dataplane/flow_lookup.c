/* SPDX-License-Identifier: Apache-2.0 */
/* From packets to their flows: by their own key, by the first fragment of their datagram, by the header they quote.
 *
 * A burst goes through three stages, so that the misses of its packets are waited for together and not one after the
 * other: keys and hashes of all, asking for the buckets; candidates of all, asking for entries and state; then, packet
 * by packet and in order, what each of them finds or makes. */
#include "drop_reasons.h"
#include "flow_private.h"

/* What the stages of one packet hand on. */
struct wanted {
    struct coven_parsed parsed;
    struct flow_key key;
    uint64_t hash;
    uint32_t candidate; /* a flow whose tag fits, or COVEN_FLOW_NONE */
    bool swapped;
};

static uint8_t direction_of(const struct flow_entry *entry, bool swapped)
{
    return swapped != ((entry->flags & ENTRY_SWAPPED) != 0);
}

static int assign(struct coven_flow_table *table, uint32_t flow, uint8_t direction, struct coven_meta *meta,
                  uint64_t now_ns)
{
    struct flow_entry *entry = &coven_flow_entries(table)[flow];

    if (entry->flags & ENTRY_MOVED)
        return COVEN_DROP_FLOW_MOVED + 1;
    entry->last_ns = now_ns;
    meta->flow = flow;
    meta->flow_epoch = entry->epoch;
    meta->direction = direction;
    meta->flow_seq = entry->sequence[direction]++;
    return 0;
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
        *direction = (uint8_t)(direction_of(&coven_flow_entries(table)[flow], swapped) ^ 1);
    return flow;
}

static bool has_key(const struct wanted *wanted)
{
    return wanted->parsed.ip_version != 0 && (wanted->parsed.flags & COVEN_PARSED_PORTS) != 0 &&
           (wanted->parsed.flags & COVEN_PARSED_LATER_FRAGMENT) == 0;
}

static void prepare(struct coven_flow_table *table, const struct coven_flow_packet *packet, struct wanted *wanted)
{
    packet->meta->flow = COVEN_NO_FLOW;
    packet->meta->flow_epoch = 0;
    packet->meta->flow_seq = 0;
    packet->meta->direction = 0;
    coven_parse(packet->data, packet->length, &wanted->parsed);
    if (!has_key(wanted))
        return;
    wanted->swapped = coven_flow_make_key(packet->data, &wanted->parsed, &wanted->parsed, &wanted->key);
    wanted->hash = coven_flow_hash_of(table, &wanted->key);
    __builtin_prefetch(coven_flow_home(table, wanted->hash), 1);
}

static void guess(struct coven_flow_table *table, struct wanted *wanted, const struct coven_state_view *const *states,
                  uint16_t n_states)
{
    const struct flow_bucket *home;
    uint32_t found;

    wanted->candidate = COVEN_FLOW_NONE;
    if (!has_key(wanted))
        return;
    home = coven_flow_home(table, wanted->hash);
    found = coven_flow_match(home, coven_flow_tag(wanted->hash));
    if (found == 0)
        return;
    wanted->candidate = home->flow[__builtin_ctz(found)];
    __builtin_prefetch(&coven_flow_entries(table)[wanted->candidate], 1);
    for (uint16_t s = 0; s < n_states; s++)
        coven_state_prefetch(states[s], wanted->candidate);
}

/* Only now, in the order of the packets: one before may have made this flow, or had the candidate give way. */
static uint32_t find_or_make(struct coven_flow_table *table, const struct wanted *wanted, uint64_t now_ns)
{
    uint32_t flow = wanted->candidate;

    if (flow != COVEN_FLOW_NONE && coven_flow_entries(table)[flow].state == ENTRY_USED &&
        coven_flow_same_key(&coven_flow_entries(table)[flow].key, &wanted->key))
        return flow;
    flow = coven_flow_find(table, &wanted->key, wanted->hash);
    if (flow == COVEN_FLOW_NONE)
        flow = coven_flow_make(table, &wanted->key, wanted->hash, wanted->swapped ? ENTRY_SWAPPED : 0, now_ns);
    return flow;
}

static int settle(struct coven_flow_table *table, const struct coven_flow_packet *packet, const struct wanted *wanted,
                  uint64_t now_ns)
{
    const struct coven_parsed *parsed = &wanted->parsed;
    uint32_t flow = COVEN_FLOW_NONE;
    uint8_t direction = 0;

    if (has_key(wanted)) {
        flow = find_or_make(table, wanted, now_ns);
        if (flow == COVEN_FLOW_NONE)
            return COVEN_DROP_FLOW_TABLE_FULL + 1;
        direction = direction_of(&coven_flow_entries(table)[flow], wanted->swapped);
        if (parsed->flags & COVEN_PARSED_FRAGMENT)
            coven_flow_fragment_learn(table, packet->data, parsed, flow, direction, now_ns);
    } else if (parsed->ip_version == 0) {
        return 0;
    } else if (parsed->flags & COVEN_PARSED_LATER_FRAGMENT) {
        flow = coven_flow_fragment_follow(table, packet->data, parsed, parsed, now_ns, &direction);
    } else {
        flow = follow_quote(table, packet->data, parsed, now_ns, &direction);
    }
    return flow == COVEN_FLOW_NONE ? 0 : assign(table, flow, direction, packet->meta, now_ns);
}

void coven_flow_lookup_burst(struct coven_flow_table *table, struct coven_flow_packet *packets, uint16_t n,
                             uint64_t now_ns, const struct coven_state_view *const *states, uint16_t n_states)
{
    struct wanted wanted[COVEN_BURST];

    table->n_gave_way = 0;
    table->gave_way_next = 0;
    for (uint16_t i = 0; i < n; i++)
        prepare(table, &packets[i], &wanted[i]);
    for (uint16_t i = 0; i < n; i++)
        guess(table, &wanted[i], states, n_states);
    for (uint16_t i = 0; i < n; i++)
        packets[i].refused = settle(table, &packets[i], &wanted[i], now_ns);
}

int coven_flow_lookup(struct coven_flow_table *table, const uint8_t *data, uint32_t length, struct coven_meta *meta,
                      uint64_t now_ns)
{
    struct coven_flow_packet packet = {.data = data, .length = length, .meta = meta};

    coven_flow_lookup_burst(table, &packet, 1, now_ns, NULL, 0);
    return packet.refused;
}
