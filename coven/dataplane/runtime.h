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

struct coven_runtime_release {
    uint32_t handle;
    uint8_t verdict;
    uint8_t output;
};

/* Load code (an open descriptor of a shared object; dlopen through /proc/self/fd) and start it with the
 * text of a `start` request. `state` is the component's mapped state segment. Returns NULL with a sentence in
 * `why` (error code `bad-code` or `failed` first). */
struct coven_runtime *coven_runtime_start(int code_fd, const char *start, size_t start_bytes,
                                          struct coven_state *state, uint32_t replica, char *why,
                                          size_t why_bytes);
/* Orderly end (fini), unload. */
void coven_runtime_stop(struct coven_runtime *runtime);

/* Run n packets (1..COVEN_BURST). meta verdicts are set on return. For components with state, the shadow
 * halves are written but not committed: commits[i] is the commit word that will make packet i's state valid
 * (0 for none). Packets of one flow within a burst: earlier ones are committed before later ones run. */
void coven_runtime_process(struct coven_runtime *runtime, struct coven_packet *pkts, uint16_t n);
/* A flow ended: deallocate. */
void coven_runtime_flow_removed(struct coven_runtime *runtime, const struct coven_meta *meta);
/* Called about every millisecond while packets are held, every second otherwise. */
void coven_runtime_tick(struct coven_runtime *runtime, uint64_t now_ns);

/* Held packets: the owner registers what a component held, and collects what it released. */
void coven_runtime_hold(struct coven_runtime *runtime, const struct coven_packet *pkt);
uint16_t coven_runtime_released(struct coven_runtime *runtime, struct coven_runtime_release *out, uint16_t max);
void coven_runtime_forget(struct coven_runtime *runtime, uint32_t handle);

/* Answer one Extended Agent request (docs/internals.md section 5) except `start` and `stop`.
 * Returns bytes written to `answer`. */
size_t coven_runtime_agent(struct coven_runtime *runtime, const char *request, size_t request_bytes,
                           char *answer, size_t answer_bytes);

#endif
