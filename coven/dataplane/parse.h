/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds-checked offsets into a packet: Ethernet, stacked VLAN tags, IPv4, IPv6 with its extension headers,
 * fragments, and where the L4 header begins. Reads never go beyond `length`; nothing is kept.
 *
 * A field is only set when the bytes that give it are inside the packet, so a caller may use every offset
 * that is not 0 without a further check of its own up to what the field promises. */
#ifndef COVEN_PARSE_H
#define COVEN_PARSE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define COVEN_PARSE_MAX_VLANS 8u       /* tags that are walked over */
#define COVEN_PARSE_MAX_EXTENSIONS 16u /* IPv6 headers that are walked over */

#define COVEN_ETH_BYTES 14u
#define COVEN_VLAN_BYTES 4u

/* EtherTypes and protocols that the data plane knows; host order. */
#define COVEN_ETHERTYPE_IPV4 0x0800u
#define COVEN_ETHERTYPE_ARP 0x0806u
#define COVEN_ETHERTYPE_IPV6 0x86ddu
#define COVEN_ETHERTYPE_VLAN 0x8100u /* IEEE 802.1Q C-tag */
#define COVEN_ETHERTYPE_QINQ 0x88a8u /* IEEE 802.1ad S-tag */
#define COVEN_ETHERTYPE_QINQ_OLD 0x9100u
#define COVEN_PROTO_HOPOPTS 0u
#define COVEN_PROTO_ICMP 1u
#define COVEN_PROTO_TCP 6u
#define COVEN_PROTO_UDP 17u
#define COVEN_PROTO_ROUTING 43u
#define COVEN_PROTO_FRAGMENT 44u
#define COVEN_PROTO_ESP 50u
#define COVEN_PROTO_AH 51u
#define COVEN_PROTO_ICMPV6 58u
#define COVEN_PROTO_NONE 59u
#define COVEN_PROTO_DSTOPTS 60u
#define COVEN_PROTO_SCTP 132u
#define COVEN_PROTO_UDPLITE 136u

enum coven_parsed_flag {
    COVEN_PARSED_TRUNCATED = 1,      /* a header goes beyond the packet's end */
    COVEN_PARSED_MALFORMED = 2,      /* a length or version that cannot be */
    COVEN_PARSED_FRAGMENT = 4,       /* part of a fragmented datagram; fragment_* are set */
    COVEN_PARSED_LATER_FRAGMENT = 8, /* a part other than the first: it has no L4 header */
    COVEN_PARSED_PORTS = 16,         /* src_port and dst_port are set (TCP, UDP, UDP-Lite, SCTP) */
};

struct coven_parsed {
    uint16_t ether_type;         /* behind all tags, host order; 0 for a runt */
    uint16_t l3_offset;          /* of what follows the EtherType; 0 for a runt */
    uint16_t l4_offset;          /* of the L4 header, at least one byte of which is inside; 0: none */
    uint16_t protocol_offset;    /* of the byte that names `protocol`; 0 without IP */
    uint32_t l3_end;             /* end of the IP packet by its own length, at most `length`; 0 without IP */
    uint8_t ip_version;          /* 4, 6, or 0 when there is no whole IP header */
    uint8_t protocol;            /* of the L4 header, or of the last header that could be read */
    uint8_t n_vlans;             /* tags walked over */
    uint8_t n_extensions;        /* IPv6 extension headers walked over */
    uint8_t flags;               /* enum coven_parsed_flag */
    uint8_t fragment_more;       /* more fragments follow */
    uint16_t vlan[2];            /* TCI of the two outermost tags, host order */
    uint16_t fragment_offset;    /* in bytes */
    uint32_t fragment_id;        /* host order */
    uint16_t src_port, dst_port; /* host order */
};

static inline uint16_t coven_load_be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t coven_load_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline void coven_store_be16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static inline void coven_store_be32(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 24);
    p[1] = (uint8_t)(value >> 16);
    p[2] = (uint8_t)(value >> 8);
    p[3] = (uint8_t)value;
}

static inline bool coven_is_vlan(uint16_t ether_type)
{
    return ether_type == COVEN_ETHERTYPE_VLAN || ether_type == COVEN_ETHERTYPE_QINQ ||
           ether_type == COVEN_ETHERTYPE_QINQ_OLD;
}

/* Parse a packet, Ethernet header first. Only the first 65535 bytes are looked at. */
void coven_parse(const uint8_t *data, uint32_t length, struct coven_parsed *out);

/* Parse from an IP header on, at `offset` of `data` (the header an ICMP error quotes, say): sets everything
 * but ether_type and the tags. `ether_type` tells the version; another one sets nothing further. A quoted
 * packet is cut short by nature: l3_end is then `length`. `out` must be zeroed before. */
void coven_parse_ip(const uint8_t *data, uint32_t length, uint32_t offset, uint16_t ether_type,
                    struct coven_parsed *out);

#endif
