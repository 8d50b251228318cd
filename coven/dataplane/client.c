/* SPDX-License-Identifier: Apache-2.0 */
/* The segments of a replica, mapped by its component; everything in their headers is checked before it is used. */
#include "client_private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_RING 65536u

static void say(char *why, size_t why_bytes, const char *what, const char *detail)
{
    snprintf(why, why_bytes, "%s: %s", what, detail);
}

/* Map a segment; `name` goes before the sentence when it does not work. */
static int map_segment(struct coven_segment *segment, int fd, uint32_t kind, size_t least, const char *name, char *why,
                       size_t why_bytes)
{
    char fault[200] = "";
    int status = coven_segment_map(segment, fd, kind, least, true, fault, sizeof(fault));

    if (status != 0)
        say(why, why_bytes, name, fault);
    return status;
}

static bool inside(uint64_t offset, uint64_t n, uint64_t each, uint64_t bytes)
{
    return offset >= sizeof(struct coven_segment_header) && offset % 64 == 0 &&
           coven_segment_holds(bytes, offset, n, each);
}

/* Copy the geometry out of the replica's header and check that all of it lies inside. */
static const char *read_geometry(struct coven_client *client)
{
    struct coven_replica header;
    uint64_t memory_bytes;

    memcpy(&header, client->replica, sizeof(header));
    if (header.isolation != COVEN_SHARED && header.isolation != COVEN_COPY)
        return "the isolation is neither shared nor copy";
    if (header.ring_size == 0 || header.ring_size > MAX_RING || (header.ring_size & (header.ring_size - 1)))
        return "the ring size is no power of two";
    if (!inside(header.in_entry, header.ring_size, sizeof(struct coven_entry), client->replica_segment.bytes) ||
        !inside(header.in_meta, header.ring_size, sizeof(struct coven_meta), client->replica_segment.bytes) ||
        !inside(header.in_ext, header.ring_size, sizeof(struct coven_meta_ext), client->replica_segment.bytes) ||
        !inside(header.out_entry, header.ring_size, sizeof(struct coven_entry), client->replica_segment.bytes) ||
        !inside(header.out_meta, header.ring_size, sizeof(struct coven_meta), client->replica_segment.bytes) ||
        !inside(header.out_ext, header.ring_size, sizeof(struct coven_meta_ext), client->replica_segment.bytes))
        return "a ring lies outside the segment";
    if (header.isolation == COVEN_SHARED && client->pool_segment.base == NULL)
        return "the replica is shared, but no pool was given";
    memory_bytes = header.isolation == COVEN_SHARED ? client->pool_segment.bytes : client->replica_segment.bytes;
    if (header.buffer_bytes == 0 || header.buffer_bytes > 65536 ||
        !inside(header.data_offset, header.n_buffers, header.buffer_bytes, memory_bytes))
        return "the packet buffers lie outside the segment";
    client->isolation = header.isolation;
    client->ring_size = header.ring_size;
    client->n_buffers = header.n_buffers;
    client->buffer_bytes = header.buffer_bytes;
    client->component = header.component;
    client->number = header.replica;
    client->outputs = header.outputs;
    memcpy(client->name, header.name, sizeof(client->name));
    client->name[sizeof(client->name) - 1] = '\0';
    client->in_entry = (void *)((uint8_t *)client->replica + header.in_entry);
    client->in_meta = (void *)((uint8_t *)client->replica + header.in_meta);
    client->in_ext = (void *)((uint8_t *)client->replica + header.in_ext);
    client->out_entry = (void *)((uint8_t *)client->replica + header.out_entry);
    client->out_meta = (void *)((uint8_t *)client->replica + header.out_meta);
    client->out_ext = (void *)((uint8_t *)client->replica + header.out_ext);
    client->memory = (uint8_t *)(header.isolation == COVEN_SHARED ? client->pool_segment.base : client->replica) +
                     header.data_offset;
    client->in_head = header.in.head;
    client->out_next = header.out.tail;
    client->shown = header.out.tail;
    client->in_tail = header.in.head;
    client->out_head = header.out.head;
    return NULL;
}

struct coven_client *coven_client_open(int replica_fd, int state_fd, int pool_fd, int doorbell_fd, int worker_fd,
                                       int agent_fd, char *why, size_t why_bytes)
{
    struct coven_client *client = calloc(1, sizeof(*client));
    const char *fault;
    int flags;

    if (client == NULL) {
        say(why, why_bytes, "client", strerror(ENOMEM));
        return NULL;
    }
    client->doorbell_fd = doorbell_fd;
    client->worker_fd = worker_fd;
    client->agent_fd = agent_fd;
    if (map_segment(&client->replica_segment, replica_fd, COVEN_SEGMENT_REPLICA, sizeof(struct coven_replica),
                    "replica", why, why_bytes) != 0 ||
        map_segment(&client->state_segment, state_fd, COVEN_SEGMENT_STATE, sizeof(struct coven_state), "state", why,
                    why_bytes) != 0)
        goto fail;
    if (pool_fd >= 0 && map_segment(&client->pool_segment, pool_fd, COVEN_SEGMENT_POOL, sizeof(struct coven_pool),
                                    "pool", why, why_bytes) != 0)
        goto fail;
    client->replica = client->replica_segment.base;
    client->state_base = client->state_segment.base;
    fault = read_geometry(client);
    if (fault != NULL) {
        say(why, why_bytes, "replica", fault);
        goto fail;
    }
    if (coven_state_view_open(&client->view, client->state_base, client->state_segment.bytes) != 0 ||
        coven_state_metrics(&client->view, client->number) == NULL) {
        say(why, why_bytes, "state", "the header does not fit the segment");
        goto fail;
    }
    /* The doorbell is drained after poll() said it is readable; a second reader must not make that block. */
    flags = fcntl(doorbell_fd, F_GETFL);
    if (flags < 0 || fcntl(doorbell_fd, F_SETFL, flags | O_NONBLOCK) != 0) {
        say(why, why_bytes, "doorbell", strerror(errno));
        goto fail;
    }
    return client;
fail:
    coven_client_close(client);
    return NULL;
}

void coven_client_close(struct coven_client *client)
{
    if (client == NULL)
        return;
    coven_segment_unmap(&client->replica_segment);
    coven_segment_unmap(&client->state_segment);
    coven_segment_unmap(&client->pool_segment);
    free(client->held);
    free(client);
}

void coven_client_geometry(const struct coven_client *client, struct coven_client_geometry *geometry)
{
    memset(geometry, 0, sizeof(*geometry));
    geometry->isolation = client->isolation;
    geometry->ring_size = client->ring_size;
    geometry->n_buffers = client->n_buffers;
    geometry->buffer_bytes = client->buffer_bytes;
    geometry->component = client->component;
    geometry->replica = client->number;
    geometry->outputs = client->outputs;
    geometry->state_bytes = client->view.n_slots != 0 ? client->view.half_bytes : 0;
    geometry->memory_bytes = (uint64_t)client->n_buffers * client->buffer_bytes;
    geometry->state_segment_bytes = client->state_segment.bytes;
    memcpy(geometry->name, client->name, sizeof(geometry->name));
}

uint8_t *coven_client_memory(struct coven_client *client)
{
    return client->memory;
}

uint8_t *coven_client_state_segment(struct coven_client *client)
{
    return client->state_base;
}

uint64_t *coven_client_metrics(struct coven_client *client)
{
    return coven_state_metrics(&client->view, client->number);
}

void coven_client_last_words(struct coven_client *client, const char *text)
{
    snprintf(client->replica->last_words, sizeof(client->replica->last_words), "%s", text);
}
