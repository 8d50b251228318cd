/* SPDX-License-Identifier: Apache-2.0 */
/* The flow table: packets, expiry, releases and recoveries in any order; what a packet is told is within the table. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "flow.h"

#define CAPACITY 16u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct coven_flow_config config = {.capacity = CAPACITY, .seed = {1, 2}, .idle_ns = 1000};

static void lookup(struct coven_flow_table *table, const uint8_t *data, uint32_t length, uint64_t now)
{
    struct coven_meta meta;
    uint8_t *copy = malloc(length + 1u); /* exactly as long as the packet, for the sanitizer */

    if (copy == NULL)
        return;
    memcpy(copy, data, length);
    memset(&meta, 0xee, sizeof(meta));
    if (coven_flow_lookup(table, copy, length, &meta, now) == 0 && meta.flow != COVEN_NO_FLOW &&
        (meta.flow >= CAPACITY || meta.flow_epoch == 0 || meta.direction > 1 ||
         meta.flow_epoch != coven_flow_epoch(table, meta.flow)))
        abort();
    free(copy);
}

/* Input: one byte what to do, one byte how long, then that many bytes. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct coven_flow_table *table = calloc(1, coven_flow_table_bytes(CAPACITY));
    uint32_t flows[8];
    uint64_t now = 1;

    if (table == NULL)
        return 0;
    config.when_full = size > 0 ? data[0] >> 6 : 0;
    coven_flow_table_init(table, &config);
    while (size >= 2) {
        uint8_t what = data[0], length = data[1];

        data += 2;
        size -= 2;
        if (length > size)
            length = (uint8_t)size;
        switch (what & 7) {
        case 0:
            now += length;
            for (uint16_t i = coven_flow_expire(table, now, flows, 8); i-- > 0;) {
                if (flows[i] >= CAPACITY)
                    abort();
                if (what & 8)
                    coven_flow_release(table, flows[i]);
            }
            break;
        case 1:
            coven_flow_release(table, length);
            break;
        case 2:
            coven_flow_table_recover(table, &config);
            break;
        default:
            lookup(table, data, length, now);
            data += length;
            size -= length;
        }
        if (coven_flow_count(table) > CAPACITY)
            abort();
    }
    free(table);
    return 0;
}
