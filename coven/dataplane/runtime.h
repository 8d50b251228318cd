/* SPDX-License-Identifier: Apache-2.0 */
/* What runs one C component: used inside the worker (fused) and by coven-component-host (isolated).
 * Loads the shared object, answers Extended Agent requests, keeps metric cells and flow-state halves. */
#ifndef COVEN_RUNTIME_H
#define COVEN_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <coven/abi.h>
#include <coven/component.h>

struct coven_runtime;

/* The metadata of a packet whose whole line is there, or of which only the head is looked at. */
static inline struct coven_meta *coven_line_of(const struct coven_packet *pkt)
{
    return (struct coven_meta *)pkt->meta;
}

struct coven_runtime_release {
    uint32_t handle;
    uint8_t verdict;
    uint8_t output;
};

/* Load code (an open descriptor of a shared object; dlopen through /proc/self/fd) and start it with the
 * text of a `start` request. `state` is the component's mapped state segment, whose header.bytes the caller has
 * checked. Returns NULL with `<error code>: <sentence>` in `why`; the code is bad-code (what is in the object does
 * not fit), failed (init refused) or malformed (the request). */
struct coven_runtime *coven_runtime_start(int code_fd, const char *start, size_t start_bytes, struct coven_state *state,
                                          uint32_t replica, char *why, size_t why_bytes);
/* Orderly end (fini), unload. */
void coven_runtime_stop(struct coven_runtime *runtime);

/* Run n packets (1..COVEN_BURST) whose verdicts are COVEN_FORWARD to output 0, then commit their flow state. Packets
 * of one flow share the shadow half within a burst. For fused components. */
void coven_runtime_process(struct coven_runtime *runtime, struct coven_packet *pkts, uint16_t n);
/* A flow ended: deallocate, then free its slot. For fused components. */
void coven_runtime_flow_removed(struct coven_runtime *runtime, const struct coven_meta *meta);

/* The same in steps, for whoever stages the output between them: words[i] becomes the commit word of packet
 * i's state, 0 for none. At most COVEN_BURST packets and ended flows between two commits. */
void coven_runtime_run(struct coven_runtime *runtime, struct coven_packet *pkts, uint16_t n, uint32_t *words);
void coven_runtime_end_flow(struct coven_runtime *runtime, const struct coven_meta *meta);
void coven_runtime_commit(struct coven_runtime *runtime);

/* Called about every millisecond while packets are held, every second otherwise. */
void coven_runtime_tick(struct coven_runtime *runtime, uint64_t now_ns);

/* Held packets: the owner registers what a component held (the packet's meta and ext must stay where they are until it
 * is released or forgotten), and collects what it released. */
void coven_runtime_hold(struct coven_runtime *runtime, const struct coven_packet *pkt);
uint16_t coven_runtime_released(struct coven_runtime *runtime, struct coven_runtime_release *out, uint16_t max);
void coven_runtime_forget(struct coven_runtime *runtime, uint32_t handle);

/* Whether the component must get its tick about every millisecond: it has one and holds packets. */
bool coven_runtime_is_holding(const struct coven_runtime *runtime);

/* Answer one Extended Agent request (docs/internals.md section 5) except `start` and `stop`.
 * Returns bytes written to `answer`. */
size_t coven_runtime_agent(struct coven_runtime *runtime, const char *request, size_t request_bytes, char *answer,
                           size_t answer_bytes);

#endif
