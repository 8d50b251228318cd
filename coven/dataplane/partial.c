/* SPDX-License-Identifier: Apache-2.0 */
/* Over a virtual interface packets come with partial checksums, and XDP hands them over without saying so. But what
 * Linux leaves in the field is known: the sum of the pseudo-header (TCP, UDP), or nothing at all (SCTP). A field
 * that holds just that and is wrong is completed; one packet in 65536 that was damaged on its way would be taken for
 * such a one, and on a link without a wire none is damaged. */
#include "partial.h"

#include <stdbool.h>
#include <string.h>

#include "offload.h"
#include "parse.h"

#define TCP_CSUM 16u
#define UDP_CSUM 6u
#define SCTP_CSUM 8u

/* Sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1). */
static uint64_t pseudo_sum(const uint8_t *ip, bool is_v6, uint8_t protocol, uint32_t l4_bytes)
{
    uint8_t tail[4] = {0, protocol, (uint8_t)(l4_bytes >> 8), (uint8_t)l4_bytes};
    uint64_t sum = coven_csum_add(0, tail, 4);

    return is_v6 ? coven_csum_add(sum, ip + 8, 32) : coven_csum_add(sum, ip + 12, 8);
}

void coven_partial_complete(uint8_t *data, uint32_t length)
{
    struct coven_parsed parsed;
    uint32_t l4, l4_bytes, offset;
    uint16_t found;
    uint64_t pseudo;

    coven_parse(data, length, &parsed);
    if (parsed.l4_offset == 0 || (parsed.flags & (COVEN_PARSED_FRAGMENT | COVEN_PARSED_TRUNCATED)) != 0)
        return;
    l4 = parsed.l4_offset;
    l4_bytes = parsed.l3_end - l4;
    if (parsed.protocol == COVEN_PROTO_SCTP) {
        static const uint8_t empty[4];

        if (l4_bytes >= SCTP_CSUM + 4 && memcmp(data + l4 + SCTP_CSUM, empty, 4) == 0)
            coven_csum_complete(data, parsed.l3_end, l4, SCTP_CSUM, true);
        return;
    }
    if (parsed.protocol != COVEN_PROTO_TCP && parsed.protocol != COVEN_PROTO_UDP)
        return;
    offset = parsed.protocol == COVEN_PROTO_TCP ? TCP_CSUM : UDP_CSUM;
    if (l4_bytes < offset + 2)
        return;
    memcpy(&found, data + l4 + offset, 2);
    pseudo = pseudo_sum(data + parsed.l3_offset, parsed.ip_version == 6, parsed.protocol, l4_bytes);
    if (found == 0 || found != coven_csum_fold(pseudo))
        return;
    /* complete already, and by chance of this value? */
    if (coven_csum_fold(coven_csum_add(pseudo, data + l4, l4_bytes)) != 0xffff)
        coven_csum_complete(data, parsed.l3_end, l4, offset, false);
}
