/* SPDX-License-Identifier: Apache-2.0 */
/* An exported flow from anywhere. Half of the inputs get a right sum, as who means harm would make one; what is taken
 * in must be there and come out as it went in. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "flow_export.h"

#define CAPACITY 16u
#define STATE 24u
#define DATA_AT (sizeof(struct coven_flow_blob) + sizeof(struct coven_flow_blob_state))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t memory[(4096 + CAPACITY * 128) / 8];

static void sum(uint8_t *blob, size_t size)
{
    struct coven_flow_blob head;
    uint64_t seed[2] = {0, 0};

    memcpy(&head, blob, sizeof(head));
    head.magic = COVEN_FLOW_BLOB_MAGIC;
    head.format = COVEN_FLOW_BLOB_FORMAT;
    head.bytes = (uint32_t)size;
    head.check = 0;
    seed[0] = coven_flow_hash(seed, &head, sizeof(head));
    head.check = coven_flow_hash(seed, blob + sizeof(head), size - sizeof(head));
    memcpy(blob, &head, sizeof(head));
}

/* Input: one byte, whether a sum is made; then the blob. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t again[4096];
    struct coven_flow_config config = {.capacity = CAPACITY, .seed = {1, 2}, .idle_ns = 1000};
    struct coven_flow_table *table = calloc(1, coven_flow_table_bytes(CAPACITY));
    struct coven_state_view view = {.base = (uint8_t *)memory, .slots_offset = 4096, .n_slots = CAPACITY};
    struct coven_flow_keeper keeper = {"counter", &view, STATE, 1};
    uint8_t *blob = malloc(size); /* exactly as long, for the sanitizer */
    char why[256];
    int64_t flow;

    if (size < 1 || table == NULL || blob == NULL) {
        free(table);
        free(blob);
        return 0;
    }
    memset(memory, 0, sizeof(memory));
    view.slot_bytes = coven_state_slot_bytes(STATE);
    view.half_bytes = coven_state_half_bytes(STATE);
    view.version = 1;
    memcpy(blob, data + 1, size - 1);
    if ((data[0] & 1) && size - 1 >= sizeof(struct coven_flow_blob))
        sum(blob, size - 1);
    coven_flow_table_init(table, &config);
    flow = coven_flow_import(table, &keeper, 1, blob, size - 1, 5, why, sizeof(why));
    if (coven_flow_count(table) != (flow >= 0 ? 1u : 0u))
        abort();
    if (flow >= 0) {
        struct coven_flow_blob head;
        int64_t bytes = coven_flow_export(table, (uint32_t)flow, &keeper, 1, again, sizeof(again));

        memcpy(&head, blob, sizeof(head));
        if (bytes < (int64_t)sizeof(head) || coven_flow_blob_check(again, (size_t)bytes, why, sizeof(why)) != 0 ||
            coven_flow_by_name(table, &head.name) != flow)
            abort();
        if (head.n_states == 1 && ((size_t)bytes != size - 1 || memcmp(again + DATA_AT, blob + DATA_AT, STATE) != 0))
            abort();
    }
    free(blob);
    free(table);
    return 0;
}
