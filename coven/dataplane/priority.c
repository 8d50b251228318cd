/* SPDX-License-Identifier: Apache-2.0 */
#include "priority.h"

#include "parse.h"

#define ND_FIRST 133u /* router solicitation (RFC 4861 section 4.1) */
#define ND_LAST 137u  /* redirect (section 4.5) */

static bool has_port(const struct coven_parsed *parsed, uint8_t protocol, uint16_t port)
{
    return parsed->protocol == protocol && (parsed->flags & COVEN_PARSED_PORTS) != 0 &&
           (parsed->src_port == port || parsed->dst_port == port);
}

static bool is_nd(const struct coven_parsed *parsed, const uint8_t *data)
{
    if (parsed->ip_version != 6 || parsed->protocol != COVEN_PROTO_ICMPV6 || parsed->l4_offset == 0)
        return false;
    return data[parsed->l4_offset] >= ND_FIRST && data[parsed->l4_offset] <= ND_LAST;
}

static bool fits(const struct coven_plan_priority *rule, const struct coven_parsed *parsed, const uint8_t *data)
{
    switch (rule->kind) {
    case COVEN_PRIORITY_ETHER:
        return parsed->ether_type == rule->value;
    case COVEN_PRIORITY_IP:
        return parsed->ip_version != 0 && parsed->protocol == rule->value;
    case COVEN_PRIORITY_UDP:
        return has_port(parsed, COVEN_PROTO_UDP, rule->value);
    case COVEN_PRIORITY_TCP:
        return has_port(parsed, COVEN_PROTO_TCP, rule->value);
    case COVEN_PRIORITY_ND:
        return is_nd(parsed, data);
    default:
        return false;
    }
}

bool coven_priority_match(const struct coven_plan_priority *rules, uint32_t n_rules, const uint8_t *data,
                          uint32_t length)
{
    struct coven_parsed parsed;

    coven_parse(data, length, &parsed);
    for (uint32_t i = 0; i < n_rules; i++)
        if (fits(&rules[i], &parsed, data))
            return true;
    return false;
}
