/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a capture file, read whole, then through the port by several workers one after another. */
#define _GNU_SOURCE /* memfd_create */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "capture.h"
#include "port.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define BUFFER_BYTES 2048u

static uint64_t through_port(int fd, int nothing)
{
    static uint8_t pool[COVEN_BURST * BUFFER_BYTES];
    struct coven_port_position position = {{0}, {0}};
    struct coven_plan_port plan = {.tool = COVEN_PORT_PCAP};
    struct coven_port port = {
        .ops = &coven_port_pcap, .plan = &plan, .position = &position, .rx_fd = fd, .tx_fd = nothing};
    uint32_t handles[COVEN_BURST];
    static struct coven_rx rx;
    uint64_t frames = 0;
    char why[200];
    bool done = false;

    for (uint32_t i = 0; i < COVEN_BURST; i++)
        handles[i] = i;
    rx.pool_data = pool;
    rx.buffer_bytes = BUFFER_BYTES;
    rx.headroom = 256;
    rx.handles = handles;
    rx.room = UINT32_MAX;
    for (int worker = 0; !done; worker++) {
        if (port.ops->attach(&port, why, sizeof(why)) != 0)
            break;
        rx.n_handles = worker < 8 ? 3 : COVEN_BURST;
        do {
            port.ops->rx_burst(&port, &rx);
            frames += rx.frames;
            memcpy(position.rx, rx.position, sizeof(rx.position));
            done = port.ops->rx_done(&port);
        } while (worker >= 8 && !done);
        port.ops->detach(&port);
    }
    return frames;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1, nothing = -1;
    char why[200];
    int64_t packets;

    if (fd < 0) {
        fd = memfd_create("capture", 0);
        nothing = open("/dev/null", O_RDWR);
    }
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size)
        return 0;
    lseek(fd, 4711, SEEK_SET);
    packets = coven_capture_check(fd, why, sizeof(why));
    if (packets >= 0 && through_port(fd, nothing) != (uint64_t)packets)
        abort(); /* several readers together must see what one sees */
    if (packets < 0)
        through_port(fd, nothing);
    return 0;
}
