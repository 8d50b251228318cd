/* SPDX-License-Identifier: Apache-2.0 */
#include "parse.h"

#define IPV4_BYTES 20u
#define IPV6_BYTES 40u

static void parse_l4(const uint8_t *data, uint32_t end, uint32_t offset, struct coven_parsed *out)
{
    if (out->flags & COVEN_PARSED_LATER_FRAGMENT || out->protocol == COVEN_PROTO_NONE)
        return;
    if (offset >= end) {
        out->flags |= COVEN_PARSED_TRUNCATED;
        return;
    }
    out->l4_offset = (uint16_t)offset;
    switch (out->protocol) {
    case COVEN_PROTO_TCP:
    case COVEN_PROTO_UDP:
    case COVEN_PROTO_UDPLITE:
    case COVEN_PROTO_SCTP:
        if (end - offset < 4) {
            out->flags |= COVEN_PARSED_TRUNCATED;
            return;
        }
        out->src_port = coven_load_be16(data + offset);
        out->dst_port = coven_load_be16(data + offset + 2);
        out->flags |= COVEN_PARSED_PORTS;
    }
}

/* `units` is the offset in the 8-byte units of both headers. */
static void set_fragment(struct coven_parsed *out, uint32_t units, bool more, uint32_t id)
{
    if (units == 0 && !more)
        return; /* RFC 8200 section 4.5: an atomic fragment is a whole packet */
    out->flags |= COVEN_PARSED_FRAGMENT;
    if (units)
        out->flags |= COVEN_PARSED_LATER_FRAGMENT;
    out->fragment_offset = (uint16_t)(units * 8);
    out->fragment_more = more;
    out->fragment_id = id;
}

static void parse_ipv4(const uint8_t *data, uint32_t length, uint32_t offset, struct coven_parsed *out)
{
    const uint8_t *ip = data + offset;
    uint32_t header, total;

    if (length - offset < IPV4_BYTES) {
        out->flags |= COVEN_PARSED_TRUNCATED;
        return;
    }
    header = (ip[0] & 15u) * 4u;
    total = coven_load_be16(ip + 2);
    if (ip[0] >> 4 != 4 || header < IPV4_BYTES || total < header) {
        out->flags |= COVEN_PARSED_MALFORMED;
        return;
    }
    if (header > length - offset) {
        out->flags |= COVEN_PARSED_TRUNCATED;
        return;
    }
    if (total > length - offset) {
        out->flags |= COVEN_PARSED_TRUNCATED;
        total = length - offset;
    }
    out->ip_version = 4;
    out->l3_end = offset + total;
    out->protocol = ip[9];
    out->protocol_offset = (uint16_t)(offset + 9);
    set_fragment(out, coven_load_be16(ip + 6) & 0x1fffu, ip[6] & 0x20, coven_load_be16(ip + 4));
    parse_l4(data, out->l3_end, offset + header, out);
}

/* Bytes of the extension header at `p` (at least 8 of which are inside), by its type. */
static uint32_t extension_bytes(uint8_t type, const uint8_t *p)
{
    if (type == COVEN_PROTO_FRAGMENT)
        return 8;
    if (type == COVEN_PROTO_AH)
        return (p[1] + 2u) * 4u; /* RFC 4302 section 2.2: 4-byte words minus 2 */
    return (p[1] + 1u) * 8u;     /* RFC 8200 section 4.3: 8-byte units without the first */
}

static bool is_extension(uint8_t type)
{
    switch (type) {
    case COVEN_PROTO_HOPOPTS:
    case COVEN_PROTO_ROUTING:
    case COVEN_PROTO_FRAGMENT:
    case COVEN_PROTO_AH:
    case COVEN_PROTO_DSTOPTS:
    case 135: /* Mobility, RFC 6275 */
    case 139: /* Host Identity Protocol, RFC 7401 */
    case 140: /* Shim6, RFC 5533 */
        return true;
    }
    return false;
}

static void parse_ipv6(const uint8_t *data, uint32_t length, uint32_t offset, struct coven_parsed *out)
{
    const uint8_t *ip = data + offset;
    uint32_t payload, end, at, bytes;

    if (length - offset < IPV6_BYTES) {
        out->flags |= COVEN_PARSED_TRUNCATED;
        return;
    }
    if (ip[0] >> 4 != 6) {
        out->flags |= COVEN_PARSED_MALFORMED;
        return;
    }
    out->ip_version = 6;
    out->protocol = ip[6];
    out->protocol_offset = (uint16_t)(offset + 6);
    payload = coven_load_be16(ip + 4);
    end = length;
    if (payload > length - offset - IPV6_BYTES)
        out->flags |= COVEN_PARSED_TRUNCATED;
    else if (payload || ip[6] != COVEN_PROTO_HOPOPTS) /* RFC 2675: 0 with hop-by-hop is a jumbogram */
        end = offset + IPV6_BYTES + payload;
    out->l3_end = end;

    at = offset + IPV6_BYTES;
    while (is_extension(out->protocol)) {
        if (out->n_extensions == COVEN_PARSE_MAX_EXTENSIONS) {
            out->flags |= COVEN_PARSED_MALFORMED;
            return;
        }
        if (end - at < 8 || (bytes = extension_bytes(out->protocol, data + at)) > end - at) {
            out->flags |= COVEN_PARSED_TRUNCATED;
            return;
        }
        if (out->protocol == COVEN_PROTO_FRAGMENT) {
            uint16_t word = coven_load_be16(data + at + 2);

            set_fragment(out, word >> 3, word & 1, coven_load_be32(data + at + 4));
        }
        out->protocol = data[at];
        out->protocol_offset = (uint16_t)at;
        out->n_extensions++;
        at += bytes;
        if (out->flags & COVEN_PARSED_LATER_FRAGMENT)
            return; /* what follows is the middle of something */
    }
    parse_l4(data, end, at, out);
}

void coven_parse_ip(const uint8_t *data, uint32_t length, uint32_t offset, uint16_t ether_type,
                    struct coven_parsed *out)
{
    if (length > UINT16_MAX)
        length = UINT16_MAX;
    if (offset > length)
        return;
    if (ether_type == COVEN_ETHERTYPE_IPV4)
        parse_ipv4(data, length, offset, out);
    else if (ether_type == COVEN_ETHERTYPE_IPV6)
        parse_ipv6(data, length, offset, out);
}

void coven_parse(const uint8_t *data, uint32_t length, struct coven_parsed *out)
{
    uint32_t at = COVEN_ETH_BYTES;
    uint16_t type;

    memset(out, 0, sizeof(*out));
    if (length > UINT16_MAX)
        length = UINT16_MAX;
    if (length < COVEN_ETH_BYTES) {
        out->flags = COVEN_PARSED_TRUNCATED;
        return;
    }
    type = coven_load_be16(data + 12);
    while (coven_is_vlan(type)) {
        if (length - at < COVEN_VLAN_BYTES || out->n_vlans == COVEN_PARSE_MAX_VLANS) {
            out->flags = length - at < COVEN_VLAN_BYTES ? COVEN_PARSED_TRUNCATED : COVEN_PARSED_MALFORMED;
            break;
        }
        if (out->n_vlans < 2)
            out->vlan[out->n_vlans] = coven_load_be16(data + at);
        out->n_vlans++;
        type = coven_load_be16(data + at + 2);
        at += COVEN_VLAN_BYTES;
    }
    out->ether_type = type;
    out->l3_offset = (uint16_t)at;
    coven_parse_ip(data, length, at, type, out);
}
