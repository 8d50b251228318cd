/* SPDX-License-Identifier: Apache-2.0 */
/* A small stateless firewall for measuring: eight rules over addresses, protocol and destination port, looked through
 * one after the other; the measured packets match the last. What matches no rule, and what is no IPv4, is dropped. */
#include <coven/component.h>
#include <string.h>

#define ETH_BYTES 14u
#define IPV4_BYTES 20u

struct rule {
    uint32_t source, source_mask, target, target_mask;
    uint16_t first_port, last_port;
    uint8_t protocol; /* 0: any */
};

static const struct rule rules[8] = {
    {0x0a000000, 0xff000000, 0x0a000000, 0xff000000, 0, 65535, 0},
    {0xac100000, 0xfff00000, 0x00000000, 0x00000000, 22, 22, 6},
    {0xc0a80000, 0xffff0000, 0x00000000, 0x00000000, 80, 80, 6},
    {0xc0a80000, 0xffff0000, 0x00000000, 0x00000000, 443, 443, 6},
    {0x00000000, 0x00000000, 0xc6130001, 0xffffffff, 53, 53, 17},
    {0x00000000, 0x00000000, 0xc6130001, 0xffffffff, 123, 123, 17},
    {0xcb007100, 0xffffff00, 0x00000000, 0x00000000, 0, 65535, 0},
    {0xc6120000, 0xffff0000, 0xc6130000, 0xffff0000, 1, 1023, 17},
};

static uint32_t load_be16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static uint32_t load_be32(const uint8_t *p)
{
    return load_be16(p) << 16 | load_be16(p + 2);
}

static bool is_allowed(const uint8_t *data, uint32_t length)
{
    const uint8_t *ip = data + ETH_BYTES;
    uint32_t source, target, port, at;

    if (length < ETH_BYTES + IPV4_BYTES || load_be16(data + 12) != 0x0800 || ip[0] >> 4 != 4)
        return false;
    at = ETH_BYTES + (ip[0] & 15u) * 4;
    if (at < ETH_BYTES + IPV4_BYTES || length < at + 4 || (load_be16(ip + 6) & 0x1fff) != 0)
        return false;
    source = load_be32(ip + 12);
    target = load_be32(ip + 16);
    port = load_be16(data + at + 2);
    for (uint32_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        const struct rule *rule = &rules[i];

        if ((source & rule->source_mask) == rule->source && (target & rule->target_mask) == rule->target &&
            (rule->protocol == 0 || rule->protocol == ip[9]) && port >= rule->first_port && port <= rule->last_port)
            return true;
    }
    return false;
}

static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    (void)self;
    for (uint16_t i = 0; i < n; i++)
        if (!is_allowed(pkts[i].data, pkts[i].meta->length))
            coven_drop(&pkts[i]);
}

COVEN_COMPONENT(.process_burst = process_burst);
