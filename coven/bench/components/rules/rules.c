/* SPDX-License-Identifier: Apache-2.0 */
/* A list of rules looked through one after the other, of which the measured packets match only the last: what a
 * component without a better structure pays for each rule. What matches none is dropped. */
#include <coven/component.h>
#include <errno.h>
#include <stdlib.h>

#define MOST 65536u

struct rule {
    uint32_t target, mask;
};

struct list {
    uint32_t n;
    struct rule rules[MOST];
};

static int init(struct coven_component *self)
{
    struct list *list = coven_private(self);
    const char *text = coven_option(self, "count");

    list->n = text ? (uint32_t)strtoul(text, NULL, 10) : 0;
    if (list->n < 1 || list->n > MOST) {
        coven_log(self, "option count must be 1 to 65536");
        return -EINVAL;
    }
    for (uint32_t i = 0; i < list->n; i++)
        list->rules[i] = (struct rule){0x0a000000u + i, 0xffffffffu};
    list->rules[list->n - 1] = (struct rule){0xc6130000u, 0xffff0000u}; /* 198.19.0.0/16 (RFC 2544 C.2.2) */
    return 0;
}

static bool is_allowed(const struct list *list, uint32_t target)
{
    for (uint32_t i = 0; i < list->n; i++)
        if ((target & list->rules[i].mask) == list->rules[i].target)
            return true;
    return false;
}

static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    const struct list *list = coven_private(self);

    for (uint16_t i = 0; i < n; i++) {
        const uint8_t *at = pkts[i].data + 30;

        if (pkts[i].meta->length < 34 ||
            !is_allowed(list, (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3]))
            coven_drop(&pkts[i]);
    }
}

COVEN_COMPONENT(.private_bytes = sizeof(struct list), .init = init, .process_burst = process_burst);
