/* SPDX-License-Identifier: Apache-2.0 */
/* Kinds of packets that have priority: read from the packet alone, with no memory of others. */
#ifndef COVEN_PRIORITY_H
#define COVEN_PRIORITY_H

#include <stdbool.h>
#include <stdint.h>

#include <coven/abi.h>

/* Whether one of the rules fits a packet, Ethernet header first. A packet that is cut short fits what can be read. */
bool coven_priority_match(const struct coven_plan_priority *rules, uint32_t n_rules, const uint8_t *data,
                          uint32_t length);

#endif
