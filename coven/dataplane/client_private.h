/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the component's side of its replica: what its files share. client.h is for everybody else.
 *
 *   client.c        segments mapped and checked
 *   client_burst.c  a burst's way: received, staged, committed, published; packets that are held
 *   client_wait.c   sleeping when there is nothing to do */
#ifndef COVEN_CLIENT_PRIVATE_H
#define COVEN_CLIENT_PRIVATE_H

#include <stdbool.h>
#include <stdint.h>

#include "client.h"
#include "segment.h"
#include "state.h"

/* A packet that the component keeps. */
struct held_packet {
    struct coven_meta meta;
    struct coven_meta_ext ext;
    bool held;
};

struct coven_client {
    struct coven_segment replica_segment, state_segment, pool_segment;
    struct coven_replica *replica;
    uint8_t *state_base;
    struct coven_state_view view;
    uint8_t *memory; /* buffer 0 */
    /* copied from the replica's header, checked */
    uint32_t isolation, ring_size, n_buffers, buffer_bytes, component, number, outputs;
    char name[COVEN_NAME_BYTES];
    const struct coven_entry *in_entry;
    const struct coven_meta *in_meta;
    const struct coven_meta_ext *in_ext;
    struct coven_entry *out_entry;
    struct coven_meta *out_meta;
    struct coven_meta_ext *out_ext;
    int doorbell_fd, worker_fd, agent_fd;
    /* positions */
    uint32_t in_head;          /* entries of the in-ring that are finished */
    uint32_t out_next;         /* where the next entry is staged; the ring's tail lags behind it */
    uint32_t shown;            /* the ring's tail */
    uint32_t in_tail;          /* of the in-ring, as last seen */
    uint32_t out_head;         /* of the out-ring, as last seen */
    uint32_t waits;            /* calls of coven_client_wait() */
    uint64_t crowded_until_ns; /* until then yielding the core is to lose it for long */
    /* the burst */
    struct coven_client_burst burst;
    struct coven_state_burst state;
    bool expected;                 /* the lines of the burst were asked for */
    uint32_t handles[COVEN_BURST]; /* as received: what a component writes to meta.handle is not believed */
    uint8_t kinds[COVEN_BURST];
    uint32_t words[COVEN_BURST]; /* commit words to stage */
    uint8_t ending[COVEN_BURST]; /* the flow's end is in `state` */
    struct held_packet *held;    /* by handle, made at the first hold */
    uint32_t n_held;
};

/* Packets that may still be staged beside the unfinished burst. More than the ring size: the head is a lie. Looks at the
 * worker's word only when there seem to be fewer than `wanted`: it is a line from another core. */
static inline uint32_t coven_client_out_room(struct coven_client *client, uint32_t wanted)
{
    uint32_t used = client->out_next - client->out_head;

    if (used + client->burst.n + wanted > client->ring_size) {
        client->out_head = __atomic_load_n(&client->replica->out.head, __ATOMIC_ACQUIRE);
        used = client->out_next - client->out_head;
    }
    if (used + client->burst.n > client->ring_size)
        return 0;
    return client->ring_size - used - client->burst.n;
}

static inline void coven_client_progress(struct coven_client *client)
{
    __atomic_store_n(&client->replica->progress, client->replica->progress + 1, __ATOMIC_RELAXED);
}

#endif
