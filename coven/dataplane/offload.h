/* SPDX-License-Identifier: Apache-2.0 */
/* From what a virtual interface hands over to what a wire carries: partial checksums are completed, super-frames
 * split, a VLAN tag that the kernel moved aside is put back.
 *
 * Planning checks everything once; after it, writing any segment in any order is safe and has no memory of its own,
 * so a frame can be continued in another burst, or by another worker. */
#ifndef COVEN_OFFLOAD_H
#define COVEN_OFFLOAD_H

#include <stdbool.h>
#include <stdint.h>

#define COVEN_VNET_BYTES 10u

/* struct virtio_net_hdr (VIRTIO 1.2 section 5.1.6) without num_buffers, host order, and its values. */
#define COVEN_VNET_NEEDS_CSUM 1u
#define COVEN_GSO_NONE 0u
#define COVEN_GSO_TCPV4 1u
#define COVEN_GSO_UDP 3u /* fragments; no kernel makes it any more */
#define COVEN_GSO_TCPV6 4u
#define COVEN_GSO_UDP_L4 5u
#define COVEN_GSO_ECN 0x80u

struct coven_frame {
    const uint8_t *data; /* Ethernet header first, without the tag that was moved aside */
    uint32_t length;
    bool has_tag;
    uint16_t tpid, tci; /* of that tag, host order */
    uint8_t vnet_flags;
    uint8_t gso_type;
    uint16_t gso_size;
    uint16_t csum_start;  /* from the beginning of data */
    uint16_t csum_offset; /* from csum_start */
};

struct coven_split {
    uint32_t segments;        /* 1 for a frame that is none to be split */
    uint32_t header_bytes;    /* repeated in each segment; without the tag */
    uint32_t segment_payload; /* of all but the last */
    uint32_t last_payload;
    uint16_t l3_offset, l4_offset;
    uint8_t ip_version; /* 0: nothing to be split */
    uint8_t protocol;
    bool zero_csum;  /* UDP over IPv4 that carries no checksum */
    uint64_t pseudo; /* sum of the pseudo-header but for the length */
};

/* Read a virtio-net header of COVEN_VNET_BYTES into the frame. */
void coven_frame_set_vnet(struct coven_frame *frame, const uint8_t *vnet);

/* Check a frame and plan how it is split. Returns 0, or -1 if its request contradicts its headers. */
int coven_split_plan(const struct coven_frame *frame, struct coven_split *split);

/* Bytes of segment i with its tag. */
uint32_t coven_split_bytes(const struct coven_frame *frame, const struct coven_split *split, uint32_t i);

/* Write segment i, complete with checksums, to `out`, which has room for coven_split_bytes(). */
void coven_split_write(const struct coven_frame *frame, const struct coven_split *split, uint32_t i, uint8_t *out);

/* Add bytes to a checksum; fold gives the 16 bits to be complemented (RFC 1071). Sums of pieces at odd offsets
 * cannot be added: begin each at an even one. */
uint64_t coven_csum_add(uint64_t sum, const uint8_t *data, uint32_t length);
uint16_t coven_csum_fold(uint64_t sum);

/* Complete the checksum of the bytes from `start` to `end`, whose field, `offset` behind the start, holds the sum of the
 * pseudo-header; or the CRC of SCTP, which has none. */
void coven_csum_complete(uint8_t *data, uint32_t end, uint32_t start, uint32_t offset, bool is_crc);

#endif
