/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of a running C component, shared by runtime.c and runtime_agent.c. */
#ifndef COVEN_RUNTIME_PRIVATE_H
#define COVEN_RUNTIME_PRIVATE_H

#include "declaration.h"
#include "runtime.h"
#include "state.h"

#define COVEN_HELD_BUCKETS 256u

struct coven_held_node {
    struct coven_held_node *next;
    struct coven_packet pkt;
    uint32_t handle;
    uint8_t verdict, output; /* once released */
};

struct coven_runtime {
    struct coven_component self; /* what the component gets; first, so that it leads back here */
    void *code;
    const struct coven_component_ops *ops;
    bool is_stateless; /* bursts go to process_burst */
    void *private_data;
    struct coven_declaration declaration;
    struct coven_state_view view;
    struct coven_state_burst burst;
    uint64_t *cells;
    uint64_t started_ns;
    uint64_t bursts;
    char last_log[256];
    struct coven_held_node *held[COVEN_HELD_BUCKETS];
    struct coven_held_node *released, **released_end;
    uint32_t n_held;
    struct coven_call *call; /* the operation being called */
};

extern const struct coven_services coven_runtime_services;

/* Compare what component.yaml declares with what the code handles. NULL when they agree. */
const char *coven_runtime_check_operations(struct coven_runtime *runtime, char *why, size_t why_bytes);
uint64_t coven_runtime_now_ns(void);
const char *coven_runtime_argument(struct coven_component *self, const char *name);
void coven_runtime_answer(struct coven_answer *answer, const char *name, const char *value);

#endif
