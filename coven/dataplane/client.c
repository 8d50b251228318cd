/* SPDX-License-Identifier: Apache-2.0 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault.h"
#include "segment.h"
#include "state.h"

#define YIELDS 64          /* before sleeping; docs/internals.md section 4 */
#define FULL_WAIT_MS 1     /* nobody rings when the out-ring gets room again */
#define MAX_RING 65536u

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
    uint8_t *memory;       /* buffer 0 */
    /* copied from the replica's header, checked */
    uint32_t isolation, ring_size, n_buffers, buffer_bytes, component, number, outputs;
    char name[COVEN_NAME_BYTES];
    const struct coven_meta *in_meta;
    const struct coven_meta_ext *in_ext;
    struct coven_meta *out_meta;
    struct coven_meta_ext *out_ext;
    int doorbell_fd, worker_fd, agent_fd;
    /* positions */
    uint32_t in_head;      /* entries of the in-ring that are finished */
    uint32_t out_next;     /* where the next entry is staged; the ring's tail lags behind it */
    /* the burst */
    struct coven_client_burst burst;
    struct coven_state_burst state;
    uint32_t handles[COVEN_BURST]; /* as received: what a component writes to meta.handle is not believed */
    uint8_t kinds[COVEN_BURST];
    uint32_t words[COVEN_BURST];   /* commit words to stage */
    uint8_t ending[COVEN_BURST];   /* the flow's end is in `state` */
    struct held_packet *held;      /* by handle, made at the first hold */
    uint32_t n_held;
};

static void say(char *why, size_t why_bytes, const char *what, const char *detail)
{
    snprintf(why, why_bytes, "%s: %s", what, detail);
}

/* Map a segment; `name` goes before the sentence when it does not work. */
static int map_segment(struct coven_segment *segment, int fd, uint32_t kind, size_t least, const char *name,
                       char *why, size_t why_bytes)
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
    if (!inside(header.in_meta, header.ring_size, sizeof(struct coven_meta), client->replica_segment.bytes) ||
        !inside(header.in_ext, header.ring_size, sizeof(struct coven_meta_ext), client->replica_segment.bytes) ||
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
    client->in_meta = (void *)((uint8_t *)client->replica + header.in_meta);
    client->in_ext = (void *)((uint8_t *)client->replica + header.in_ext);
    client->out_meta = (void *)((uint8_t *)client->replica + header.out_meta);
    client->out_ext = (void *)((uint8_t *)client->replica + header.out_ext);
    client->memory = (uint8_t *)(header.isolation == COVEN_SHARED ? client->pool_segment.base : client->replica) +
                     header.data_offset;
    client->in_head = header.in.head;
    client->out_next = header.out.tail;
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
        map_segment(&client->state_segment, state_fd, COVEN_SEGMENT_STATE, sizeof(struct coven_state), "state",
                    why, why_bytes) != 0)
        goto fail;
    if (pool_fd >= 0 && map_segment(&client->pool_segment, pool_fd, COVEN_SEGMENT_POOL,
                                    sizeof(struct coven_pool), "pool", why, why_bytes) != 0)
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

/* Packets that may still be staged beside the unfinished burst. More than the ring size: the head is a lie. */
static uint32_t out_room(const struct coven_client *client)
{
    uint32_t used = client->out_next - __atomic_load_n(&client->replica->out.head, __ATOMIC_ACQUIRE);

    if (used + client->burst.n > client->ring_size)
        return 0;
    return client->ring_size - used - client->burst.n;
}

static bool is_packet(const struct coven_client *client, const struct coven_meta *meta)
{
    return meta->handle < client->n_buffers &&
           (uint32_t)meta->offset + meta->length <= client->buffer_bytes;
}

static void progress(struct coven_client *client)
{
    __atomic_store_n(&client->replica->progress, client->replica->progress + 1, __ATOMIC_RELAXED);
}

int coven_client_receive(struct coven_client *client, uint32_t max)
{
    struct coven_client_burst *burst = &client->burst;
    uint32_t available, n;

    if (burst->n != 0)
        return -EBUSY;
    available = __atomic_load_n(&client->replica->in.tail, __ATOMIC_ACQUIRE) - client->in_head;
    if (available > client->ring_size)
        return -EPROTO;
    n = available < max ? available : max;
    n = n < COVEN_BURST ? n : COVEN_BURST;
    if (n == 0)
        return 0;
    if (n > out_room(client))
        n = out_room(client);
    burst->first = client->in_head;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = (client->in_head + i) & (client->ring_size - 1);
        struct coven_meta *meta = &burst->meta[i];

        *meta = client->in_meta[at];
        if (meta->nsh_path != 0)
            burst->ext[i] = client->in_ext[at];
        else
            memset(&burst->ext[i], 0, sizeof(burst->ext[i]));
        meta->verdict = COVEN_FORWARD;
        meta->output = 0;
        client->handles[i] = meta->handle;
        client->kinds[i] = meta->kind;
        client->words[i] = 0;
        client->ending[i] = 0;
        burst->state[i] = 0;
        burst->fresh[i] = 0;
        burst->buffer[i] = UINT64_MAX;
        if (meta->kind == COVEN_ENTRY_PACKET) {
            if (!is_packet(client, meta))
                return -EPROTO;
            burst->buffer[i] = (uint64_t)meta->handle * client->buffer_bytes;
        }
        COVEN_FAULT("after-dequeue");
    }
    burst->n = n;
    __atomic_store_n(&client->replica->current, client->in_head, __ATOMIC_RELAXED);
    progress(client);
    return (int)n;
}

struct coven_client_burst *coven_client_burst(struct coven_client *client)
{
    return &client->burst;
}

void coven_client_set_all(struct coven_client *client, uint8_t verdict, uint8_t output)
{
    for (uint32_t i = 0; i < client->burst.n; i++) {
        client->burst.meta[i].verdict = verdict;
        client->burst.meta[i].output = output;
    }
}

void coven_client_set(struct coven_client *client, const uint8_t *verdicts, const uint8_t *outputs)
{
    for (uint32_t i = 0; i < client->burst.n; i++) {
        client->burst.meta[i].verdict = verdicts[i];
        client->burst.meta[i].output = outputs[i];
    }
}

uint8_t *coven_client_data(struct coven_client *client, uint32_t i)
{
    const struct coven_client_burst *burst = &client->burst;

    if (i >= burst->n || burst->buffer[i] == UINT64_MAX)
        return NULL;
    return client->memory + (uint64_t)client->handles[i] * client->buffer_bytes + burst->meta[i].offset;
}

void *coven_client_state(struct coven_client *client, uint32_t i)
{
    struct coven_client_burst *burst = &client->burst;
    uint16_t index;
    uint8_t *shadow;

    if (i >= burst->n || client->kinds[i] != COVEN_ENTRY_PACKET || burst->meta[i].flow == COVEN_NO_FLOW)
        return NULL;
    shadow = coven_state_begin(&client->view, &client->state, burst->meta[i].flow, burst->meta[i].flow_epoch,
                               &index);
    if (shadow == NULL)
        return NULL;
    client->words[i] = client->state.open[index].word;
    burst->fresh[i] = client->state.open[index].fresh;
    burst->state[i] = (uint64_t)(shadow - client->state_base);
    return shadow;
}

uint32_t coven_client_state_all(struct coven_client *client)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < client->burst.n; i++)
        n += coven_client_state(client, i) != NULL;
    return n;
}

void *coven_client_state_ending(struct coven_client *client, uint32_t i)
{
    const struct coven_meta *meta = &client->burst.meta[i];

    if (i >= client->burst.n || client->kinds[i] != COVEN_ENTRY_FLOW_REMOVED || client->ending[i])
        return NULL;
    client->ending[i] = 1;
    return coven_state_end(&client->view, &client->state, meta->flow, meta->flow_epoch);
}

static void keep(struct coven_client *client, uint32_t handle, const struct coven_meta *meta,
                 const struct coven_meta_ext *ext)
{
    if (client->held == NULL)
        client->held = calloc(client->n_buffers, sizeof(*client->held));
    if (client->held == NULL)
        return; /* the worker takes the packet back after hold.ms */
    client->n_held += !client->held[handle].held;
    client->held[handle].meta = *meta;
    client->held[handle].ext = *ext;
    client->held[handle].held = true;
    __atomic_store_n(&client->replica->held, client->n_held, __ATOMIC_RELAXED);
}

/* Write one entry beyond the ring's tail. Whoever sweeps after a kill believes it only when position and word
 * are those of this entry, so the word comes after the entry and the position last. */
static void write_entry(struct coven_client *client, const struct coven_meta *meta,
                        const struct coven_meta_ext *ext, uint32_t word)
{
    uint32_t at = client->out_next & (client->ring_size - 1);
    struct coven_meta_ext *out = &client->out_ext[at];

    if (client->view.n_slots != 0) {
        __atomic_store_n(&out->staged_commit, 0, __ATOMIC_RELEASE);
        client->out_meta[at] = *meta;
        if (meta->nsh_path != 0)
            memcpy(out, ext, offsetof(struct coven_meta_ext, staged_position));
        __atomic_store_n(&out->staged_position, client->out_next, __ATOMIC_RELEASE);
        __atomic_store_n(&out->staged_commit, word, __ATOMIC_RELEASE);
    } else {
        client->out_meta[at] = *meta;
        if (meta->nsh_path != 0)
            *out = *ext;
    }
    client->out_next++;
}

void coven_client_stage(struct coven_client *client, const uint32_t *words)
{
    struct coven_client_burst *burst = &client->burst;

    for (uint32_t i = 0; i < burst->n; i++) {
        struct coven_meta *meta = &burst->meta[i];

        COVEN_FAULT("after-state-write");
        meta->handle = client->handles[i];
        meta->kind = client->kinds[i];
        if (meta->kind == COVEN_ENTRY_FLOW_REMOVED && words == NULL)
            coven_client_state_ending(client, i);
        if (meta->kind == COVEN_ENTRY_PACKET && meta->verdict == COVEN_HOLD)
            keep(client, meta->handle, meta, &burst->ext[i]);
        write_entry(client, meta, &burst->ext[i], words != NULL ? words[i] : client->words[i]);
        COVEN_FAULT("after-staging");
    }
}

void coven_client_commit(struct coven_client *client)
{
    coven_state_commit(&client->view, &client->state);
}

void coven_client_flush(struct coven_client *client)
{
    struct coven_ring *out = &client->replica->out;
    uint64_t one = 1;

    if (out->tail == client->out_next)
        return;
    /* Release: the entries before the number that shows them. */
    __atomic_store_n(&out->tail, client->out_next, __ATOMIC_RELEASE);
    /* The tail must be visible before `sleeping` is read, as the worker does it the other way round. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(&out->sleeping, __ATOMIC_RELAXED) &&
        write(client->worker_fd, &one, sizeof(one)) < 0)
        return; /* the counter is full: the worker has been rung often enough */
}

void coven_client_publish(struct coven_client *client)
{
    client->in_head += client->burst.n;
    client->burst.n = 0;
    coven_client_flush(client);
    __atomic_store_n(&client->replica->in.head, client->in_head, __ATOMIC_RELEASE);
    progress(client);
    COVEN_FAULT("after-counter");
}

void coven_client_finish(struct coven_client *client)
{
    if (client->burst.n == 0)
        return;
    coven_client_stage(client, NULL);
    coven_client_commit(client);
    coven_client_publish(client);
}

static struct held_packet *find_held(struct coven_client *client, uint32_t handle)
{
    if (client->held == NULL || handle >= client->n_buffers || !client->held[handle].held)
        return NULL;
    return &client->held[handle];
}

int coven_client_release(struct coven_client *client, uint32_t handle, uint8_t verdict, uint8_t output)
{
    struct held_packet *packet = find_held(client, handle);

    if (packet == NULL)
        return -ENOENT;
    if (out_room(client) == 0)
        return -EAGAIN;
    packet->meta.handle = handle;
    packet->meta.kind = COVEN_ENTRY_PACKET;
    packet->meta.verdict = verdict;
    packet->meta.output = output;
    write_entry(client, &packet->meta, &packet->ext, 0);
    packet->held = false;
    __atomic_store_n(&client->replica->held, --client->n_held, __ATOMIC_RELAXED);
    return 0;
}

struct coven_meta *coven_client_held(struct coven_client *client, uint32_t handle)
{
    struct held_packet *packet = find_held(client, handle);

    return packet == NULL ? NULL : &packet->meta;
}

struct coven_meta_ext *coven_client_held_ext(struct coven_client *client, uint32_t handle)
{
    struct held_packet *packet = find_held(client, handle);

    return packet == NULL ? NULL : &packet->ext;
}

uint8_t *coven_client_held_data(struct coven_client *client, uint32_t handle)
{
    struct held_packet *packet = find_held(client, handle);

    if (packet == NULL)
        return NULL;
    return client->memory + (uint64_t)handle * client->buffer_bytes + packet->meta.offset;
}

uint32_t coven_client_held_count(const struct coven_client *client)
{
    return client->n_held;
}

static bool has_entries(const struct coven_client *client)
{
    return __atomic_load_n(&client->replica->in.tail, __ATOMIC_ACQUIRE) != client->in_head;
}

static int agent_ready(struct coven_client *client)
{
    struct pollfd fd = {.fd = client->agent_fd, .events = POLLIN};

    return client->agent_fd >= 0 && poll(&fd, 1, 0) > 0 ? COVEN_WOKE_AGENT : 0;
}

/* Sleep on doorbell and agent. The caller has set `sleeping` and looked at the ring since. */
static int sleep_until(struct coven_client *client, int timeout_ms)
{
    struct pollfd fds[2] = {{.fd = client->doorbell_fd, .events = POLLIN},
                            {.fd = client->agent_fd, .events = POLLIN}};
    int woke = 0;
    uint64_t rings[64];

    if (poll(fds, 2, timeout_ms) < 0)
        return errno == EINTR ? 0 : -errno;
    if (fds[0].revents & (POLLERR | POLLNVAL))
        return -EBADF;
    if (fds[0].revents && read(client->doorbell_fd, rings, sizeof(rings)) < 0 && errno != EAGAIN)
        return -errno;
    if (fds[1].revents)
        woke |= COVEN_WOKE_AGENT;
    return woke;
}

int coven_client_wait(struct coven_client *client, int timeout_ms)
{
    struct coven_ring *in = &client->replica->in;
    int woke;

    progress(client);
    for (int i = 0; i < YIELDS && timeout_ms != 0; i++) {
        if (has_entries(client) && out_room(client) != 0)
            return COVEN_WOKE_PACKETS | agent_ready(client);
        sched_yield();
    }
    if (has_entries(client)) {
        /* The worker has not taken what was published. It rings for new entries, not for room. */
        woke = sleep_until(client, out_room(client) != 0 ? 0 : FULL_WAIT_MS);
        return woke < 0 ? woke : woke | COVEN_WOKE_PACKETS;
    }
    __atomic_store_n(&in->sleeping, 1, __ATOMIC_SEQ_CST);
    /* Either this sees the worker's new tail, or the worker sees `sleeping`. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    woke = sleep_until(client, has_entries(client) ? 0 : timeout_ms);
    __atomic_store_n(&in->sleeping, 0, __ATOMIC_RELAXED);
    if (woke < 0)
        return woke;
    return woke | (has_entries(client) ? COVEN_WOKE_PACKETS : 0);
}
