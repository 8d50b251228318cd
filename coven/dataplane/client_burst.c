/* SPDX-License-Identifier: Apache-2.0 */
/* The way of a burst through a component's process (docs/internals.md section 4), and the packets it holds back. */
#include "client_private.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault.h"

static bool is_packet(const struct coven_client *client, const struct coven_meta *meta)
{
    return meta->handle < client->n_buffers && (uint32_t)meta->offset + meta->length <= client->buffer_bytes;
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
    if (n > coven_client_out_room(client))
        n = coven_client_out_room(client);
    burst->first = client->in_head;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = (client->in_head + i) & (client->ring_size - 1);
        struct coven_meta *meta = &burst->meta[i];

        *meta = client->in_meta[at];
        if ((meta->verdict & COVEN_ALONE) != 0) {
            if (i > 0) {
                n = i;
                break;
            }
            n = 1;
        }
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
    coven_client_progress(client);
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
    shadow = coven_state_begin(&client->view, &client->state, burst->meta[i].flow, burst->meta[i].flow_epoch, &index);
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
static void write_entry(struct coven_client *client, const struct coven_meta *meta, const struct coven_meta_ext *ext,
                        uint32_t word)
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
    if (__atomic_load_n(&out->sleeping, __ATOMIC_RELAXED) && write(client->worker_fd, &one, sizeof(one)) < 0)
        return; /* the counter is full: the worker has been rung often enough */
}

void coven_client_publish(struct coven_client *client)
{
    client->in_head += client->burst.n;
    client->burst.n = 0;
    coven_client_flush(client);
    __atomic_store_n(&client->replica->in.head, client->in_head, __ATOMIC_RELEASE);
    coven_client_progress(client);
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
    if (coven_client_out_room(client) == 0)
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
