/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a packet: offsets that are told lie inside it. */
#include <stdlib.h>
#include <string.h>

#include "parse.h"
#include "priority.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct coven_parsed *parsed, uint32_t length)
{
    if (parsed->l3_offset > length || parsed->l3_end > length)
        abort();
    if (parsed->l4_offset && parsed->l4_offset >= parsed->l3_end)
        abort();
    if (parsed->ip_version && parsed->protocol_offset >= length)
        abort();
    if (parsed->flags & COVEN_PARSED_PORTS && parsed->l4_offset + 4u > parsed->l3_end)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct coven_parsed parsed;
    uint8_t *copy = malloc(size ? size : 1); /* exactly as long, so that a read beyond is seen */

    memcpy(copy, data, size);
    coven_parse(copy, (uint32_t)size, &parsed);
    check(&parsed, (uint32_t)size);
    for (uint32_t offset = 0; offset <= size && offset < 64; offset += 7) {
        memset(&parsed, 0, sizeof(parsed));
        coven_parse_ip(copy, (uint32_t)size, offset, COVEN_ETHERTYPE_IPV4, &parsed);
        check(&parsed, (uint32_t)size);
        memset(&parsed, 0, sizeof(parsed));
        coven_parse_ip(copy, (uint32_t)size, offset, COVEN_ETHERTYPE_IPV6, &parsed);
        check(&parsed, (uint32_t)size);
    }
    free(copy);
    return 0;
}
