/* SPDX-License-Identifier: Apache-2.0 */
/* Only the first fragment of a datagram has ports: where it went, the others go. A small cache of sets. */
#include "flow_private.h"

#define FRAGMENT_WAYS 4u           /* places a datagram may have */
#define FRAGMENT_NS 60000000000ull /* RFC 8200 section 4.5: reassembly gives up after 60 seconds */

static void make_fragment(const uint8_t *data, const struct coven_parsed *parsed, const struct coven_parsed *tags,
                          struct fragment *fragment)
{
    memset(fragment, 0, sizeof(*fragment));
    coven_flow_load_addresses(data, parsed, fragment->source, fragment->destination);
    fragment->id = parsed->fragment_id;
    fragment->vlan[0] = tags->vlan[0] & VID_BITS;
    fragment->vlan[1] = tags->vlan[1] & VID_BITS;
    fragment->n_vlans = tags->n_vlans;
    fragment->version = parsed->ip_version;
    /* RFC 8200 section 4.5: the first fragment alone decides what follows the fragment header, so IPv6 datagrams
     * are told apart without the protocol. RFC 791 section 3.2 counts it in. */
    fragment->protocol = parsed->ip_version == 4 ? parsed->protocol : 0;
}

static bool is_same_datagram(const struct fragment *a, const struct fragment *b)
{
    return a->id == b->id && memcmp(a->source, b->source, 16) == 0 && memcmp(a->destination, b->destination, 16) == 0 &&
           a->vlan[0] == b->vlan[0] && a->vlan[1] == b->vlan[1] && a->n_vlans == b->n_vlans &&
           a->version == b->version && a->protocol == b->protocol;
}

static struct fragment *fragment_set(struct coven_flow_table *table, const struct fragment *wanted)
{
    uint8_t words[48] = {0};
    uint64_t hash;

    memcpy(words, wanted->source, 16);
    memcpy(words + 16, wanted->destination, 16);
    memcpy(words + 32, &wanted->id, 4);
    memcpy(words + 36, wanted->vlan, 4);
    hash = coven_flow_hash(table->seed, words, sizeof(words));
    return &coven_flow_fragments(table)[(hash & (FRAGMENTS / FRAGMENT_WAYS - 1)) * FRAGMENT_WAYS];
}

static struct fragment *fragment_find(struct coven_flow_table *table, const struct fragment *wanted, uint64_t now_ns)
{
    struct fragment *set = fragment_set(table, wanted);

    for (uint32_t way = 0; way < FRAGMENT_WAYS; way++) {
        if (set[way].next - 1u < table->capacity && is_same_datagram(&set[way], wanted) &&
            now_ns - set[way].last_ns < FRAGMENT_NS)
            return &set[way];
    }
    return NULL;
}

/* Remember where the later fragments of a first one go, in place of the oldest of its set. */
void coven_flow_fragment_learn(struct coven_flow_table *table, const uint8_t *data, const struct coven_parsed *parsed,
                               uint32_t flow, uint8_t direction, uint64_t now_ns)
{
    struct fragment wanted, *set, *place;

    make_fragment(data, parsed, parsed, &wanted);
    set = fragment_set(table, &wanted);
    place = fragment_find(table, &wanted, now_ns);
    for (uint32_t way = 0; place == NULL && way < FRAGMENT_WAYS; way++) {
        if (set[way].next == 0)
            place = &set[way];
    }
    if (place == NULL) {
        place = set;
        for (uint32_t way = 1; way < FRAGMENT_WAYS; way++)
            place = set[way].last_ns < place->last_ns ? &set[way] : place;
    }
    __atomic_store_n(&place->next, 0, __ATOMIC_RELEASE);
    wanted.epoch = coven_flow_entries(table)[flow].epoch;
    wanted.direction = direction;
    wanted.last_ns = now_ns;
    *place = wanted;
    __atomic_store_n(&place->next, flow + 1, __ATOMIC_RELEASE);
}

uint32_t coven_flow_fragment_follow(struct coven_flow_table *table, const uint8_t *data,
                                    const struct coven_parsed *parsed, const struct coven_parsed *tags, uint64_t now_ns,
                                    uint8_t *direction)
{
    struct fragment wanted;
    const struct fragment *found;

    make_fragment(data, parsed, tags, &wanted);
    found = fragment_find(table, &wanted, now_ns);
    if (found == NULL || coven_flow_entries(table)[found->next - 1].state != ENTRY_USED ||
        coven_flow_entries(table)[found->next - 1].epoch != found->epoch)
        return COVEN_FLOW_NONE;
    *direction = found->direction & 1;
    return found->next - 1;
}
