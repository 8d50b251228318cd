/* SPDX-License-Identifier: Apache-2.0 */
#include "offload.h"

#include <string.h>

#include "parse.h"

#define TCP_BYTES 20u
#define UDP_BYTES 8u
#define TCP_CSUM 16u
#define UDP_CSUM 6u
#define SCTP_CSUM 8u
#define TCP_FIN 0x01u
#define TCP_PSH 0x08u
#define TCP_CWR 0x80u

/* ---- checksums ---- */

/* In native byte order: RFC 1071 section 2 (B), the sum does not depend on it until it is stored. */
uint64_t coven_csum_add(uint64_t sum, const uint8_t *data, uint32_t length)
{
    uint32_t word;
    uint16_t half;

    while (length >= 4) {
        memcpy(&word, data, 4);
        sum += word;
        data += 4;
        length -= 4;
    }
    if (length >= 2) {
        memcpy(&half, data, 2);
        sum += half;
        data += 2;
        length -= 2;
    }
    if (length) {
        uint8_t last[2] = {*data, 0};

        memcpy(&half, last, 2);
        sum += half;
    }
    return sum;
}

uint16_t coven_csum_fold(uint64_t sum)
{
    sum = (sum & 0xffffffffu) + (sum >> 32);
    sum = (sum & 0xffffffffu) + (sum >> 32);
    sum = (sum & 0xffffu) + (sum >> 16);
    sum = (sum & 0xffffu) + (sum >> 16);
    return (uint16_t)sum;
}

/* Complement and store. 0 means "no checksum" in UDP (RFC 768) and is the same number as 0xffff elsewhere. */
static void store_csum(uint8_t *at, uint64_t sum)
{
    uint16_t value = (uint16_t)~coven_csum_fold(sum);

    if (value == 0)
        value = 0xffff;
    memcpy(at, &value, 2);
}

/* CRC32c, which SCTP uses (RFC 9260 appendix A); bit by bit, since it is rare. */
static uint32_t crc32c(const uint8_t *data, uint32_t length)
{
    uint32_t crc = 0xffffffffu;

    for (uint32_t i = 0; i < length; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0x82f63b78u & (0u - (crc & 1)));
    }
    return ~crc;
}

void coven_csum_complete(uint8_t *data, uint32_t end, uint32_t start, uint32_t offset, bool is_crc)
{
    uint8_t *field = data + start + offset;
    uint32_t crc;

    if (!is_crc) {
        store_csum(field, coven_csum_add(0, data + start, end - start));
        return;
    }
    memset(field, 0, 4);
    crc = crc32c(data + start, end - start);
    for (int n = 0; n < 4; n++)
        field[n] = (uint8_t)(crc >> (8 * n));
}

/* ---- planning ---- */

void coven_frame_set_vnet(struct coven_frame *frame, const uint8_t *vnet)
{
    frame->vnet_flags = vnet[0];
    frame->gso_type = vnet[1];
    memcpy(&frame->gso_size, vnet + 4, 2);
    memcpy(&frame->csum_start, vnet + 6, 2);
    memcpy(&frame->csum_offset, vnet + 8, 2);
}

static bool needs_csum(const struct coven_frame *frame)
{
    return frame->vnet_flags & COVEN_VNET_NEEDS_CSUM;
}

static int plan_single(const struct coven_frame *frame, struct coven_split *split)
{
    struct coven_parsed parsed;
    uint32_t bytes = 2;

    split->segments = 1;
    split->header_bytes = frame->length;
    if (!needs_csum(frame))
        return 0;
    coven_parse(frame->data, frame->length, &parsed);
    if (parsed.protocol == COVEN_PROTO_SCTP && parsed.l4_offset && parsed.l4_offset == frame->csum_start &&
        frame->csum_offset == SCTP_CSUM) {
        split->protocol = COVEN_PROTO_SCTP; /* the field is a CRC of four bytes */
        bytes = 4;
    }
    if (frame->csum_start < COVEN_ETH_BYTES || (uint32_t)frame->csum_start + frame->csum_offset + bytes > frame->length)
        return -1;
    return 0;
}

/* Protocol and IP version that a type of segmentation speaks of; 0 where the packet tells. */
static bool gso_wants(uint8_t gso_type, uint8_t *version, uint8_t *protocol)
{
    *version = 0;
    *protocol = COVEN_PROTO_TCP;
    switch (gso_type) {
    case COVEN_GSO_TCPV4:
    case COVEN_GSO_TCPV4 | COVEN_GSO_ECN:
        *version = 4;
        return true;
    case COVEN_GSO_TCPV6:
    case COVEN_GSO_TCPV6 | COVEN_GSO_ECN:
        *version = 6;
        return true;
    case COVEN_GSO_UDP_L4:
        *protocol = COVEN_PROTO_UDP;
        return true;
    }
    return false; /* tunnels, UDP fragmentation, what later kernels invent */
}

static uint64_t add_length(uint64_t sum, uint32_t l4_bytes)
{
    uint8_t word[4];

    coven_store_be32(word, l4_bytes);
    return coven_csum_add(sum, word, sizeof(word));
}

/* The pseudo-header's sum but for the length (RFC 9293 section 3.1, RFC 8200 section 8.1). With a routing header the
 * destination that counts is not the one in the IPv6 header, so behind extension headers it is taken from what
 * the sender has put into the field: everything, with the length of the whole. */
static uint64_t pseudo_header(const struct coven_frame *frame, const struct coven_parsed *parsed, uint32_t csum_offset)
{
    const uint8_t *ip = frame->data + parsed->l3_offset;
    uint8_t tail[2] = {0, parsed->protocol};
    uint64_t sum;

    if (parsed->n_extensions && needs_csum(frame)) {
        uint16_t length = (uint16_t)~coven_csum_fold(add_length(0, frame->length - parsed->l4_offset));

        return coven_csum_add(length, frame->data + parsed->l4_offset + csum_offset, 2);
    }
    sum = parsed->ip_version == 4 ? coven_csum_add(0, ip + 12, 8) : coven_csum_add(0, ip + 8, 32);
    return coven_csum_add(sum, tail, sizeof(tail));
}

int coven_split_plan(const struct coven_frame *frame, struct coven_split *split)
{
    struct coven_parsed parsed;
    uint32_t l4_bytes, csum_offset, payload;
    uint8_t version, protocol;

    memset(split, 0, sizeof(*split));
    if (frame->length < COVEN_ETH_BYTES)
        return -1;
    if (frame->gso_type == COVEN_GSO_NONE)
        return plan_single(frame, split);
    if (frame->gso_size == 0 || !gso_wants(frame->gso_type, &version, &protocol))
        return -1;
    coven_parse(frame->data, frame->length, &parsed);
    if (!parsed.l4_offset || parsed.protocol != protocol || (version && parsed.ip_version != version) ||
        parsed.flags & (COVEN_PARSED_FRAGMENT | COVEN_PARSED_MALFORMED))
        return -1;
    l4_bytes = protocol == COVEN_PROTO_UDP ? UDP_BYTES : TCP_BYTES;
    csum_offset = protocol == COVEN_PROTO_UDP ? UDP_CSUM : TCP_CSUM;
    if (frame->length - parsed.l4_offset < l4_bytes)
        return -1;
    if (protocol == COVEN_PROTO_TCP) {
        l4_bytes = (frame->data[parsed.l4_offset + 12] >> 4) * 4u;
        if (l4_bytes < TCP_BYTES || frame->length - parsed.l4_offset < l4_bytes)
            return -1;
    }
    /* A tunnel asks for the inner checksum: then the outer headers are not the ones to repeat. */
    if (needs_csum(frame) && (frame->csum_start != parsed.l4_offset || frame->csum_offset != csum_offset))
        return -1;
    split->l3_offset = parsed.l3_offset;
    split->l4_offset = parsed.l4_offset;
    split->ip_version = parsed.ip_version;
    split->protocol = protocol;
    split->header_bytes = parsed.l4_offset + l4_bytes;
    payload = frame->length - split->header_bytes;
    split->segment_payload = frame->gso_size;
    split->segments = payload ? (payload + frame->gso_size - 1u) / frame->gso_size : 1u;
    split->last_payload = payload - (split->segments - 1u) * frame->gso_size;
    split->zero_csum = protocol == COVEN_PROTO_UDP && !needs_csum(frame) && parsed.ip_version == 4 &&
                       coven_load_be16(frame->data + parsed.l4_offset + UDP_CSUM) == 0;
    split->pseudo = pseudo_header(frame, &parsed, csum_offset);
    /* Each segment says its own length in 16 bits. */
    if (split->header_bytes - split->l3_offset + (split->segments > 1 ? frame->gso_size : payload) > UINT16_MAX)
        return -1;
    return 0;
}

uint32_t coven_split_bytes(const struct coven_frame *frame, const struct coven_split *split, uint32_t i)
{
    uint32_t payload = i + 1 == split->segments ? split->last_payload : split->segment_payload;

    return split->header_bytes + payload + (frame->has_tag ? COVEN_VLAN_BYTES : 0u);
}

/* ---- writing ---- */

/* Copy `length` bytes of the frame from its beginning, the tag put back behind the addresses. Returns bytes by which
 * everything behind the tag has moved. */
static uint32_t copy_tagged(const struct coven_frame *frame, uint32_t length, uint8_t *out)
{
    if (!frame->has_tag) {
        memcpy(out, frame->data, length);
        return 0;
    }
    memcpy(out, frame->data, 12);
    coven_store_be16(out + 12, frame->tpid);
    coven_store_be16(out + 14, frame->tci);
    memcpy(out + 12 + COVEN_VLAN_BYTES, frame->data + 12, length - 12);
    return COVEN_VLAN_BYTES;
}

/* What differs between the IP headers of the segments; `l3_bytes` from the IP header to the segment's end. */
static void write_ip(uint8_t *ip, uint8_t version, uint32_t l3_bytes, uint32_t i)
{
    if (version == 4) {
        uint32_t header = (ip[0] & 15u) * 4u;
        uint16_t value;

        coven_store_be16(ip + 2, l3_bytes);
        coven_store_be16(ip + 4, coven_load_be16(ip + 4) + i);
        memset(ip + 10, 0, 2);
        value = (uint16_t)~coven_csum_fold(coven_csum_add(0, ip, header));
        memcpy(ip + 10, &value, 2);
    } else {
        coven_store_be16(ip + 4, l3_bytes - 40u);
    }
}

static void write_l4(const struct coven_split *split, uint8_t *l4, uint32_t l4_bytes, uint32_t i)
{
    if (split->protocol == COVEN_PROTO_UDP) {
        coven_store_be16(l4 + 4, l4_bytes);
        return;
    }
    coven_store_be32(l4 + 4, coven_load_be32(l4 + 4) + i * split->segment_payload);
    if (i > 0)
        l4[13] &= (uint8_t)~TCP_CWR; /* RFC 3168 section 6.1.2: once for a reduction of the window */
    if (i + 1 < split->segments)
        l4[13] &= (uint8_t) ~(TCP_FIN | TCP_PSH);
}

static void write_single(const struct coven_frame *frame, const struct coven_split *split, uint8_t *out)
{
    uint32_t moved = copy_tagged(frame, frame->length, out);
    uint32_t length = frame->length + moved, start = frame->csum_start + moved;

    if (!needs_csum(frame))
        return;
    coven_csum_complete(out, length, start, frame->csum_offset, split->protocol == COVEN_PROTO_SCTP);
}

void coven_split_write(const struct coven_frame *frame, const struct coven_split *split, uint32_t i, uint8_t *out)
{
    uint32_t moved, payload, l4_bytes;
    uint8_t *ip, *l4, *field;

    if (split->ip_version == 0) {
        write_single(frame, split, out);
        return;
    }
    moved = copy_tagged(frame, split->header_bytes, out);
    payload = i + 1 == split->segments ? split->last_payload : split->segment_payload;
    memcpy(out + moved + split->header_bytes, frame->data + split->header_bytes + (size_t)i * split->segment_payload,
           payload);
    ip = out + moved + split->l3_offset;
    l4 = out + moved + split->l4_offset;
    l4_bytes = split->header_bytes - split->l4_offset + payload;
    write_ip(ip, split->ip_version, split->header_bytes - split->l3_offset + payload, i);
    write_l4(split, l4, l4_bytes, i);
    field = l4 + (split->protocol == COVEN_PROTO_UDP ? UDP_CSUM : TCP_CSUM);
    memset(field, 0, 2);
    if (split->zero_csum)
        return;
    store_csum(field, coven_csum_add(add_length(split->pseudo, l4_bytes), l4, l4_bytes));
}
