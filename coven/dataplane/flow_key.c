/* SPDX-License-Identifier: Apache-2.0 */
/* What tells flows apart: VLAN, addresses, protocol and ports, in an order without direction; and the keyed hash. */
#include "flow_private.h"
#include "siphash.h"

/* ---- hash --------------------------------------------------------------------------------------- */
/* SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", section 2.4 for the rounds): senders
 * choose the keys of the table, so they must not be able to aim at one bucket. Little-endian words. */
uint64_t coven_flow_hash(const uint64_t seed[2], const void *data, size_t bytes)
{
    uint64_t v[4];
    const uint8_t *at = data;
    uint64_t last = (uint64_t)bytes << 56;
    size_t left = bytes;

    sip_begin(seed, v);
    for (; left >= 8; left -= 8, at += 8)
        sip_word(v, load_word(at));
    for (size_t i = 0; i < left; i++)
        last |= (uint64_t)at[i] << (8 * i);
    return sip_end(v, last);
}

/* The same function of the bytes of a key that can differ: of IPv4 addresses four each. The last word holds version
 * and length, so no two keys are the same text. A keyed sum of products would cost less, but it is linear: who finds
 * two addresses that meet, by their delay, has found any number. Of a pseudorandom function he learns nothing. */
uint64_t coven_flow_hash_of(const struct coven_flow_table *table, const struct flow_key *key)
{
    uint64_t v[4], low, high;
    uint64_t last = key->n_vlans | (uint64_t)key->version << 8 | (uint64_t)key->protocol << 16;

    sip_begin(table->seed, v);
    low = load_word(key->low);
    high = load_word(key->high);
    if (key->version == 4) {
        sip_word(v, (low & UINT32_MAX) | high << 32);
    } else {
        sip_word(v, low);
        sip_word(v, load_word(key->low + 8));
        sip_word(v, high);
        sip_word(v, load_word(key->high + 8));
    }
    sip_word(v, load_word(&key->low_port));
    return sip_end(v, last);
}

/* ---- keys --------------------------------------------------------------------------------------- */
void coven_flow_load_addresses(const uint8_t *data, const struct coven_parsed *parsed, uint8_t source[16],
                               uint8_t destination[16])
{
    const uint8_t *ip = data + parsed->l3_offset;

    memset(source, 0, 16);
    memset(destination, 0, 16);
    if (parsed->ip_version == 4) {
        memcpy(source, ip + 12, 4);
        memcpy(destination, ip + 16, 4);
    } else {
        memcpy(source, ip + 8, 16);
        memcpy(destination, ip + 24, 16);
    }
}

bool coven_flow_make_key(const uint8_t *data, const struct coven_parsed *parsed, const struct coven_parsed *tags,
                         struct flow_key *key)
{
    uint8_t source[16], destination[16];
    bool swapped;
    int order;

    coven_flow_load_addresses(data, parsed, source, destination);
    order = memcmp(source, destination, 16);
    swapped = order > 0 || (order == 0 && parsed->src_port > parsed->dst_port);
    memset(key, 0, sizeof(*key));
    memcpy(key->low, swapped ? destination : source, 16);
    memcpy(key->high, swapped ? source : destination, 16);
    key->low_port = swapped ? parsed->dst_port : parsed->src_port;
    key->high_port = swapped ? parsed->src_port : parsed->dst_port;
    key->vlan[0] = tags->vlan[0] & VID_BITS;
    key->vlan[1] = tags->vlan[1] & VID_BITS;
    key->n_vlans = tags->n_vlans;
    key->version = parsed->ip_version;
    key->protocol = parsed->protocol;
    return swapped;
}
