/* SPDX-License-Identifier: Apache-2.0 */
/* The way of a burst through a component's process (docs/internals.md section 4), and the packets it holds back. */
#include "client_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault.h"
#include "ring.h"

static bool is_packet(const struct coven_client *client, const struct coven_meta *meta)
{
    return meta->handle < client->n_buffers && (uint32_t)meta->offset + meta->length <= client->buffer_bytes;
}

static const struct coven_meta *told(const struct coven_client *client, uint32_t i)
{
    return &client->in_meta[(client->burst.first + i) & (client->ring_size - 1)];
}

/* Take the rest of entry i's line over, whatever was changed already of what came with the entry. */
static void fetch(struct coven_client *client, uint32_t i)
{
    struct coven_client_burst *burst = &client->burst;
    struct coven_entry entry = coven_entry_of(&burst->meta[i], burst->meta[i].handle, 0);

    burst->meta[i] = *told(client, i);
    coven_entry_to_meta(&entry, &burst->meta[i]);
    if (burst->meta[i].nsh_path != 0)
        burst->ext[i] = client->in_ext[(burst->first + i) & (client->ring_size - 1)];
    else
        memset(&burst->ext[i], 0, sizeof(burst->ext[i]));
    burst->fetched[i] = 1;
}

/* Whoever looks at one packet's metadata looks at the others' too: their lines come at the same time. */
static void expect_lines(struct coven_client *client)
{
    for (uint32_t i = 0; i < client->burst.n; i++)
        __builtin_prefetch(told(client, i));
    client->expected = true;
}

void coven_client_fetch(struct coven_client *client)
{
    for (uint32_t i = 0; i < client->burst.n; i++)
        coven_client_meta(client, i);
}

struct coven_meta *coven_client_meta(struct coven_client *client, uint32_t i)
{
    if (!client->expected)
        expect_lines(client);
    if (!client->burst.fetched[i])
        fetch(client, i);
    return &client->burst.meta[i];
}

/* What is the same for each entry of a new burst. */
static void reset(struct coven_client *client, uint32_t n)
{
    struct coven_client_burst *burst = &client->burst;

    burst->first = client->in_head;
    memset(burst->state, 0, sizeof(burst->state[0]) * n);
    memset(burst->fresh, 0, n);
    memset(burst->fetched, 0, n);
    memset(client->words, 0, sizeof(client->words[0]) * n);
    memset(client->ending, 0, n);
    client->expected = false;
}

int coven_client_receive(struct coven_client *client, uint32_t max)
{
    struct coven_client_burst *burst = &client->burst;
    uint32_t available, room, n;

    if (burst->n != 0)
        return -EBUSY;
    if (client->in_tail - client->in_head < max) /* else what was seen before is enough */
        client->in_tail = __atomic_load_n(&client->replica->in.tail, __ATOMIC_ACQUIRE);
    available = client->in_tail - client->in_head;
    if (available > client->ring_size)
        return -EPROTO;
    n = available < max ? available : max;
    n = n < COVEN_BURST ? n : COVEN_BURST;
    if (n == 0)
        return 0;
    room = coven_client_out_room(client, n);
    n = n < room ? n : room;
    reset(client, n);
    coven_ring_expect_reads(client->in_entry, client->ring_size, client->in_head, available < 64 ? available : 64);
    for (uint32_t i = 0; i < n; i++) {
        struct coven_entry entry = client->in_entry[(client->in_head + i) & (client->ring_size - 1)];

        if ((entry.verdict & COVEN_ALONE) != 0) {
            if (i > 0) {
                n = i;
                break;
            }
            n = 1;
        }
        entry.verdict = COVEN_FORWARD;
        entry.output = 0;
        coven_entry_to_meta(&entry, &burst->meta[i]);
        client->handles[i] = entry.handle;
        client->kinds[i] = entry.kind;
        burst->buffer[i] = UINT64_MAX;
        if (entry.kind == COVEN_ENTRY_PACKET) {
            if (!is_packet(client, &burst->meta[i]))
                return -EPROTO;
            burst->buffer[i] = (uint64_t)entry.handle * client->buffer_bytes;
        } else {
            fetch(client, i); /* nothing else says which flow it is */
        }
        COVEN_FAULT("after-dequeue");
    }
    burst->n = n;
    __atomic_store_n(&client->replica->current, client->in_head, __ATOMIC_RELAXED);
    coven_client_progress(client);
    return (int)n;
}

struct coven_client_burst *coven_client_burst(struct coven_client *client)
{
    return &client->burst;
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

    if (i >= burst->n || client->kinds[i] != COVEN_ENTRY_PACKET || coven_client_meta(client, i)->flow == COVEN_NO_FLOW)
        return NULL;
    shadow = coven_state_begin(&client->view, &client->state, burst->meta[i].flow, burst->meta[i].flow_epoch, &index);
    if (shadow == NULL)
        return NULL;
    client->words[i] = client->state.open[index].word;
    burst->fresh[i] = client->state.open[index].fresh;
    burst->state[i] = (uint64_t)(shadow - client->state_base);
    return shadow;
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

/* Whether a component changed what the worker takes back of a line. */
static bool is_changed(const struct coven_meta *meta, const struct coven_meta *before)
{
    return meta->mark != before->mark || meta->nsh_path != 0 || before->nsh_path != 0 ||
           memcmp(meta->user, before->user, sizeof(meta->user)) != 0;
}

/* Write one entry beyond the ring's tail. Whoever sweeps after a kill believes it only with the flag of this lap,
 * so the half with flags and commit word comes last, in one store. */
static void write_entry(struct coven_client *client, const struct coven_meta *meta, const struct coven_meta_ext *ext,
                        bool changed, uint32_t word)
{
    uint32_t at = client->out_next & (client->ring_size - 1);
    unsigned int flags = coven_entry_lap(client->out_next, client->ring_size) | (changed ? COVEN_ENTRY_CHANGED : 0u);
    struct coven_entry entry = coven_entry_of(meta, meta->handle, flags);

    entry.commit = word;
    if (changed) {
        client->out_meta[at] = *meta;
        if (meta->nsh_path != 0)
            client->out_ext[at] = *ext;
    }
    coven_entry_write(&client->out_entry[at], &entry);
    client->out_next++;
}

void coven_client_stage(struct coven_client *client, const uint32_t *words)
{
    struct coven_client_burst *burst = &client->burst;

    for (uint32_t i = 0; i < burst->n; i++) {
        struct coven_meta *meta = &burst->meta[i];
        bool changed;

        COVEN_FAULT("after-state-write");
        meta->handle = client->handles[i];
        meta->kind = client->kinds[i];
        if (meta->kind == COVEN_ENTRY_FLOW_REMOVED && words == NULL)
            coven_client_state_ending(client, i);
        if (meta->kind == COVEN_ENTRY_PACKET && meta->verdict == COVEN_HOLD)
            keep(client, meta->handle, coven_client_meta(client, i), &burst->ext[i]);
        changed = meta->kind != COVEN_ENTRY_PACKET || (burst->fetched[i] && is_changed(meta, told(client, i)));
        write_entry(client, meta, &burst->ext[i], changed, words != NULL ? words[i] : client->words[i]);
        COVEN_FAULT("after-staging");
    }
    coven_ring_expect_writes(client->out_entry, client->ring_size, client->out_next);
}

void coven_client_commit(struct coven_client *client)
{
    coven_state_commit(&client->view, &client->state);
}

/* Show the worker what was staged. Returns whether there was anything. */
static bool show(struct coven_client *client)
{
    struct coven_ring *out = &client->replica->out;

    if (client->shown == client->out_next)
        return false;
    client->shown = client->out_next;
    /* Release: the entries before the number that shows them. */
    __atomic_store_n(&out->tail, client->out_next, __ATOMIC_RELEASE);
    return true;
}

void coven_client_flush(struct coven_client *client)
{
    if (!show(client))
        return;
    /* The tail must be visible before `sleeping` is read, as the worker does it the other way round. */
    coven_ring_fence();
    coven_ring_wake(&client->replica->out, client->worker_fd);
}

void coven_client_publish(struct coven_client *client)
{
    client->in_head += client->burst.n;
    client->burst.n = 0;
    show(client);
    __atomic_store_n(&client->replica->in.head, client->in_head, __ATOMIC_RELEASE);
    coven_client_progress(client);
    /* Without a fence, which would wait for all that was written to arrive: a worker that falls asleep just now is seen
     * after the next burst, or by coven_client_wait(). */
    coven_ring_wake(&client->replica->out, client->worker_fd);
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
    if (coven_client_out_room(client, 1) == 0)
        return -EAGAIN;
    packet->meta.handle = handle;
    packet->meta.kind = COVEN_ENTRY_PACKET;
    packet->meta.verdict = verdict;
    packet->meta.output = output;
    write_entry(client, &packet->meta, &packet->ext, true, 0);
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
