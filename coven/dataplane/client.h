/* SPDX-License-Identifier: Apache-2.0 */
/* The component's side of a replica segment (docs/internals.md section 4): for coven-component-host and, through
 * cffi, for the Python runtime. One thread.
 *
 *     while (running) {
 *         n = coven_client_receive(client, COVEN_BURST);
 *         if (n == 0) { woke = coven_client_wait(client, 1000); ...; continue; }
 *         work on coven_client_burst(client); coven_client_state(client, i) gives flow state
 *         coven_client_finish(client);
 *     }
 *
 * Every received entry comes back as one entry, also a held one (verdict COVEN_HOLD: the worker then knows that
 * the component keeps it); coven_client_release() gives a held packet back as a further entry of the same handle.
 * Flow state and output of a burst become visible together: entries are staged, slots committed, tail published. */
#ifndef COVEN_CLIENT_H
#define COVEN_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <coven/abi.h>

struct coven_client;

/* The burst being worked on. Lies in the component's own memory; meta is what the worker gets back. */
struct coven_client_burst {
    uint32_t n;                             /* entries, 0 between bursts */
    uint32_t first;                         /* in-ring position of entry 0 */
    struct coven_meta meta[COVEN_BURST];    /* verdict preset to COVEN_FORWARD, output 0. Until an entry is fetched only
                                               handle, offset, length, verdict, output and kind are valid */
    struct coven_meta_ext ext[COVEN_BURST]; /* of fetched entries: zero where nsh_path is 0 */
    uint8_t fetched[COVEN_BURST];           /* 1: the whole line is here (coven_client_meta()) */
    uint64_t buffer[COVEN_BURST];           /* offset of the packet's buffer in the memory of coven_client_memory();
                                                the packet begins meta.offset further. UINT64_MAX: no packet */
    uint64_t state[COVEN_BURST];            /* offset of the shadow half in the state segment once
                                                coven_client_state() was called for the entry; 0: none */
    uint8_t fresh[COVEN_BURST];             /* 1: the state was allocated in this burst (zeroed) */
};

struct coven_client_geometry {
    uint32_t isolation, ring_size, n_buffers, buffer_bytes;
    uint32_t component, replica, outputs, state_bytes; /* state_bytes: usable bytes of a half, 0 without state */
    uint64_t memory_bytes, state_segment_bytes;
    char name[COVEN_NAME_BYTES];
};

#define COVEN_WOKE_PACKETS 1 /* the in-ring has entries */
#define COVEN_WOKE_AGENT 2   /* the agent descriptor is readable (or closed by the other side) */

/* ---- lifecycle ---- */
/* Map and check what the launch contract gives. pool_fd is -1 unless the replica is `shared`, agent_fd may be
 * -1 (then wait does not look at it). The descriptors stay the caller's. NULL with a sentence in `why`. */
struct coven_client *coven_client_open(int replica_fd, int state_fd, int pool_fd, int doorbell_fd, int worker_fd,
                                       int agent_fd, char *why, size_t why_bytes);
void coven_client_close(struct coven_client *client);
void coven_client_geometry(const struct coven_client *client, struct coven_client_geometry *geometry);
/* Where the packet buffers are mapped (geometry.memory_bytes of them, from buffer 0 on), and the state segment. */
uint8_t *coven_client_memory(struct coven_client *client);
uint8_t *coven_client_state_segment(struct coven_client *client);
/* The metric cells of this replica, COVEN_MAX_METRICS of them. */
uint64_t *coven_client_metrics(struct coven_client *client);
/* Leave a sentence for whoever looks at the segment after the process is gone. */
void coven_client_last_words(struct coven_client *client, const char *text);

/* ---- data path ---- */
/* Take up to `max` entries of the in-ring into the burst; the last burst must be finished. Returns how many, 0 when
 * there is nothing (or no room to give it back), -EBUSY with an unfinished burst, -EPROTO when the worker
 * wrote an entry that points outside. */
int coven_client_receive(struct coven_client *client, uint32_t max);
struct coven_client_burst *coven_client_burst(struct coven_client *client);
/* The whole metadata of entry i. It is a cache line of its own in the ring, which comes from another core only when it is
 * asked for, and goes back only when it was changed. */
struct coven_meta *coven_client_meta(struct coven_client *client, uint32_t i);
/* The same for all entries of the burst, whose lines then come at the same time. */
void coven_client_fetch(struct coven_client *client);
/* Bytes at the packet's first byte, or NULL when entry i has no packet. */
uint8_t *coven_client_data(struct coven_client *client, uint32_t i);
/* Shadow half of entry i's flow, to be changed freely until finish; NULL when it has none. */
void *coven_client_state(struct coven_client *client, uint32_t i);
/* The flow of entry i (COVEN_ENTRY_FLOW_REMOVED) ends: its current half, NULL when it has none. Finish frees
 * the slot of every such entry, whether this was called or not. */
void *coven_client_state_ending(struct coven_client *client, uint32_t i);
/* Stage all entries, commit the state, publish, ring the worker's doorbell when it sleeps. */
void coven_client_finish(struct coven_client *client);
/* The three steps of finish for a caller that commits state itself: words[i] is the commit word of entry i's
 * state, 0 for none; `words` may be NULL. */
void coven_client_stage(struct coven_client *client, const uint32_t *words);
void coven_client_commit(struct coven_client *client);
void coven_client_publish(struct coven_client *client);

/* Give a held packet back; it is staged at once and published with the next publish or flush.
 * 0, -ENOENT (not held), -EAGAIN (no room in the ring now). */
int coven_client_release(struct coven_client *client, uint32_t handle, uint8_t verdict, uint8_t output);
/* Metadata of a held packet, changeable, and its first byte; NULL when it is not held. */
struct coven_meta *coven_client_held(struct coven_client *client, uint32_t handle);
struct coven_meta_ext *coven_client_held_ext(struct coven_client *client, uint32_t handle);
uint8_t *coven_client_held_data(struct coven_client *client, uint32_t handle);
uint32_t coven_client_held_count(const struct coven_client *client);
/* Publish staged releases outside a burst. */
void coven_client_flush(struct coven_client *client);

/* Yield, then sleep until packets or an agent message come, at most timeout_ms (negative: for ever). Returns
 * COVEN_WOKE_* bits, 0 after the time or a signal, or a negative errno. */
int coven_client_wait(struct coven_client *client, int timeout_ms);

#endif
