/* SPDX-License-Identifier: Apache-2.0 */
/* Any virtio-net header in front of any bytes: segments lie in the room that was told, and split super-frames
 * have as many payload bytes as came in. First byte: tag or none; then the header; then the frame. */
#include <stdlib.h>
#include <string.h>

#include "offload.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct coven_frame frame = {0};
    struct coven_split split;
    uint64_t payload = 0;
    uint8_t *copy;

    if (size < 1 + COVEN_VNET_BYTES)
        return 0;
    frame.has_tag = data[0] & 1;
    frame.tpid = 0x8100;
    frame.tci = data[0];
    coven_frame_set_vnet(&frame, data + 1);
    frame.length = (uint32_t)(size - 1 - COVEN_VNET_BYTES);
    copy = malloc(frame.length ? frame.length : 1);
    memcpy(copy, data + 1 + COVEN_VNET_BYTES, frame.length);
    frame.data = copy;
    if (coven_split_plan(&frame, &split) == 0) {
        for (uint32_t i = 0; i < split.segments; i++) {
            uint32_t bytes = coven_split_bytes(&frame, &split, i);
            uint8_t *out = malloc(bytes);

            coven_split_write(&frame, &split, i, out);
            payload += bytes - split.header_bytes - (frame.has_tag ? 4u : 0u);
            free(out);
        }
        if (payload != frame.length - split.header_bytes)
            abort();
    }
    free(copy);
    return 0;
}
