/* SPDX-License-Identifier: Apache-2.0 */
/* The component's side of its segments: headers and ring entries of any content are refused or stay inside. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client.h"

#define REPLICA_BYTES 32768u
#define STATE_BYTES 8192u
#define RING 4u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int make_segment(size_t bytes, void **memory)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0)
        abort();
    *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (*memory == MAP_FAILED || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        abort();
    return fd;
}

static void header(struct coven_segment_header *head, uint32_t kind, uint64_t bytes)
{
    head->magic = COVEN_MAGIC;
    head->abi_version = COVEN_ABI_VERSION;
    head->kind = kind;
    head->bytes = bytes;
}

/* A valid replica and state; the input is then laid over both, two bytes of place, one of value each. */
static void fill(struct coven_replica *replica, struct coven_state *state)
{
    memset(replica, 0, REPLICA_BYTES);
    memset(state, 0, STATE_BYTES);
    header(&replica->header, COVEN_SEGMENT_REPLICA, REPLICA_BYTES);
    replica->isolation = COVEN_COPY;
    replica->ring_size = RING;
    replica->n_buffers = 4;
    replica->buffer_bytes = 2048;
    replica->data_offset = 8192;
    replica->in_entry = 1024;
    replica->in_meta = replica->in_entry + RING * 16;
    replica->in_ext = replica->in_meta + RING * 64;
    replica->out_entry = replica->in_ext + RING * 64;
    replica->out_meta = replica->out_entry + RING * 16;
    replica->out_ext = replica->out_meta + RING * 64;
    replica->in.tail = 3;
    header(&state->header, COVEN_SEGMENT_STATE, STATE_BYTES);
    state->n_slots = 4;
    state->half_bytes = 16;
    state->slot_bytes = 64;
    state->version = 1;
    state->metrics_offset = 128;
    state->slots_offset = 128 + 8 * COVEN_MAX_METRICS;
    state->n_replicas = 1;
}

static void use(struct coven_client *client)
{
    struct coven_client_burst *burst = coven_client_burst(client);
    volatile uint8_t sum = 0;

    while (coven_client_receive(client, COVEN_BURST) > 0) {
        for (uint32_t i = 0; i < burst->n; i++) {
            uint8_t *bytes = coven_client_data(client, i);
            uint8_t *state = coven_client_state(client, i);

            for (uint32_t k = 0; bytes != NULL && k < burst->meta[i].length; k++)
                sum = (uint8_t)(sum + bytes[k]);
            if (state != NULL)
                memset(state, 7, 16);
            if (i % 2)
                burst->meta[i].verdict = COVEN_HOLD;
        }
        coven_client_finish(client);
        for (uint32_t handle = 0; handle < 8; handle++)
            (void)coven_client_release(client, handle, COVEN_DROP, 0);
        coven_client_flush(client);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void *replica, *state;
    static int replica_fd = -1, state_fd, doorbell, worker;
    struct coven_client *client;
    char why[256];

    if (replica_fd < 0) {
        replica_fd = make_segment(REPLICA_BYTES, &replica);
        state_fd = make_segment(STATE_BYTES, &state);
        doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        worker = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
    fill(replica, state);
    for (; size >= 3; size -= 3, data += 3) {
        unsigned int at = (unsigned int)(data[0] << 8 | data[1]);

        if (at & 0x8000)
            ((uint8_t *)state)[at % 1024] = data[2];
        else
            ((uint8_t *)replica)[at % 4096] = data[2];
    }
    client = coven_client_open(replica_fd, state_fd, -1, doorbell, worker, -1, why, sizeof(why));
    if (client != NULL)
        use(client);
    coven_client_close(client);
    return 0;
}
