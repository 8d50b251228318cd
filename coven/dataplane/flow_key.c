/* SPDX-License-Identifier: Apache-2.0 */
/* What tells flows apart: VLAN, addresses, protocol and ports, in an order without direction; and the keyed hash. */
#include "flow_private.h"

#include <endian.h>

/* ---- hash --------------------------------------------------------------------------------------- */
static inline uint64_t rotate(uint64_t x, unsigned bits)
{
    return x << bits | x >> (64 - bits);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

/* SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", section 2.4 for the rounds): senders
 * choose the keys of the table, so they must not be able to aim at one bucket. Little-endian words. */
uint64_t coven_flow_hash(const uint64_t seed[2], const void *data, size_t bytes)
{
    uint64_t v[4] = {seed[0] ^ 0x736f6d6570736575ull, seed[1] ^ 0x646f72616e646f6dull, seed[0] ^ 0x6c7967656e657261ull,
                     seed[1] ^ 0x7465646279746573ull};
    const uint8_t *at = data;
    uint64_t word;
    size_t left = bytes;

    for (; left >= 8; left -= 8, at += 8) {
        memcpy(&word, at, 8);
        word = le64toh(word);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    word = (uint64_t)bytes << 56;
    for (size_t i = 0; i < left; i++)
        word |= (uint64_t)at[i] << (8 * i);
    v[3] ^= word;
    sip_round(v);
    v[0] ^= word;
    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
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
