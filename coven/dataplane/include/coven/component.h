/* SPDX-License-Identifier: Apache-2.0 */
/* API for components in C. Include this, fill in a `struct coven_component_ops`, end with COVEN_COMPONENT.
 *
 * The same source runs fused (inside the worker) or isolated (in a process of its own), unchanged: no
 * threads, no global that is not constant, everything else in the memory given by coven_private().
 *
 * Either write process_burst (no flow state), or the four calls of per-flow state, named as in NFActor:
 * allocate_new_fs, deallocate_fs, process_pkt and get_migration_target. Flow state lies in the platform's
 * flow table (component.yaml declares its size); a crash of the component does not lose it.
 *
 * Metrics and operations are declared in component.yaml and only there.
 */
#ifndef COVEN_COMPONENT_H
#define COVEN_COMPONENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <coven/abi.h>

struct coven_component; /* one running copy of a component; opaque */

/* The part of a packet's metadata that is always there; coven_meta() gives all of it, in the same place. */
struct __attribute__((may_alias)) coven_meta_head {
    uint32_t handle;
    uint16_t offset;
    uint16_t length;
    uint8_t more[6];
    uint8_t verdict;
    uint8_t output;
};

_Static_assert(offsetof(struct coven_meta_head, length) == offsetof(struct coven_meta, length) &&
                   offsetof(struct coven_meta_head, verdict) == offsetof(struct coven_meta, verdict) &&
                   offsetof(struct coven_meta_head, output) == offsetof(struct coven_meta, output),
               "the head is the beginning of the metadata");

/* A packet as a component sees it. The component owns it during the call; afterwards only if it said
 * coven_hold(). `data` points at the first byte (meta->offset within the buffer) and is bounded by
 * meta->length. Change length or offset only through coven_packet_resize(). */
struct coven_packet {
    uint8_t *data;
    struct coven_meta_head *meta;
    struct coven_meta_ext *ext;              /* there after coven_meta() */
    void (*fetch)(struct coven_packet *pkt); /* the platform's: NULL once the whole metadata is there */
    uint32_t room_front;                     /* bytes before data that belong to the packet's buffer */
    uint32_t room_back;                      /* bytes behind data + length that belong to it */
};

/* What an operation answers. Written with coven_answer(). */
struct coven_answer;

/* One operation of component.yaml and the function behind it. `arguments` are asked for with
 * coven_argument(). Returns 0, or a negative errno after coven_answer(answer, "error", "..."). */
struct coven_operation {
    const char *name;
    int (*call)(struct coven_component *self, struct coven_answer *answer);
};

struct coven_component_ops {
    uint32_t abi_version;   /* COVEN_ABI_VERSION; filled in by COVEN_COMPONENT */
    uint32_t private_bytes; /* zeroed memory that coven_private() returns */
    /* Called once before the first packet; options are final. Returns 0 or a negative errno after
     * coven_log() said why: the component then counts as failed to start. May be NULL. */
    int (*init)(struct coven_component *self);
    /* Called once at an orderly end. May be NULL. */
    void (*fini)(struct coven_component *self);
    /* Stateless form: n packets, 1..COVEN_BURST, possibly of several flows and paths. Set a verdict on
     * each (untouched means forward to output 0). */
    void (*process_burst)(struct coven_component *self, struct coven_packet *pkts, uint16_t n);
    /* Per-flow form. `fs` is zeroed memory of state.bytes; 0 or a negative errno (the packet is dropped). */
    int (*allocate_new_fs)(struct coven_component *self, const struct coven_packet *pkt, void *fs);
    /* The flow ended: it was idle, or gave way to a new one in a full table. May be NULL. Not called at the end of the
     * function, nor for a flow that ended while the component was down or, giving way, while its ring was full:
     * what lies outside `fs` must not depend on it. */
    void (*deallocate_fs)(struct coven_component *self, void *fs);
    /* One packet and its flow's state. What is written to `fs` becomes visible together with the packet,
     * or not at all if the process dies first. fs is NULL for packets that belong to no flow. */
    void (*process_pkt)(struct coven_component *self, struct coven_packet *pkt, void *fs);
    /* Where the flow should move to when this appliance gives it up: an opaque number of the component's
     * own, 0 for wherever the platform likes. May be NULL. Not called by this version of COVEN yet. */
    uint32_t (*get_migration_target)(struct coven_component *self, const void *fs);
    /* Called about every millisecond while the component holds packets, and at least every second
     * otherwise when `wants_tick` is set. The place to release held packets. May be NULL. */
    void (*tick)(struct coven_component *self, uint64_t now_ns);
    bool wants_tick;
    const struct coven_operation *operations; /* ended by a row whose name is NULL; NULL for none */
};

/* The platform's side, reached through these inline calls; filled in by whoever runs the component. */
struct coven_services {
    void *(*private_data)(struct coven_component *self);
    const char *(*option)(struct coven_component *self, const char *name);
    uint64_t *(*metric)(struct coven_component *self, const char *name);
    const char *(*argument)(struct coven_component *self, const char *name);
    void (*answer)(struct coven_answer *answer, const char *name, const char *value);
    void (*log)(struct coven_component *self, const char *text);
    /* Give a held packet back: to `output` (verdict COVEN_FORWARD) or dropped, consumed. */
    int (*release)(struct coven_component *self, uint32_t handle, uint8_t verdict, uint8_t output);
    /* The held packet behind a handle, or -ENOENT. */
    int (*held)(struct coven_component *self, uint32_t handle, struct coven_packet *pkt);
};

struct coven_component {
    const struct coven_services *services;
};

/* All metadata of the packet: mark, flow, user words, time stamp and so on. Ask for it only when you need it: in an
 * isolated component it is a cache line that has to come from another core. */
static inline struct coven_meta *coven_meta(const struct coven_packet *pkt)
{
    if (pkt->fetch)
        pkt->fetch((struct coven_packet *)pkt); /* notes that it is there */
    return (struct coven_meta *)pkt->meta;
}

/* ---- verdicts ---------------------------------------------------------------------------------- */
static inline void coven_forward(struct coven_packet *pkt, uint8_t output)
{
    pkt->meta->verdict = COVEN_FORWARD;
    pkt->meta->output = output;
}

static inline void coven_drop(struct coven_packet *pkt)
{
    pkt->meta->verdict = COVEN_DROP;
}

/* Keep the packet. Remember pkt->meta->handle; give it back with coven_release(). */
static inline void coven_hold(struct coven_packet *pkt)
{
    pkt->meta->verdict = COVEN_HOLD;
}

/* The function took the packet for itself (a probe it answered, an export it collected). */
static inline void coven_consume(struct coven_packet *pkt)
{
    pkt->meta->verdict = COVEN_CONSUME;
}

/* Move the packet's first byte by `front` (negative: grow into the headroom) and its end by `back`.
 * Returns 0, or -1 with nothing changed when there is no room. */
static inline int coven_packet_resize(struct coven_packet *pkt, int front, int back)
{
    int64_t length = (int64_t)pkt->meta->length - front + back;

    if (-(int64_t)front > (int64_t)pkt->room_front || (int64_t)back > (int64_t)pkt->room_back || length < 1 ||
        length > UINT16_MAX || (int64_t)front > (int64_t)pkt->meta->length)
        return -1;
    pkt->data += front;
    pkt->meta->offset = (uint16_t)(pkt->meta->offset + front);
    pkt->meta->length = (uint16_t)length;
    pkt->room_front = (uint32_t)((int64_t)pkt->room_front + front);
    pkt->room_back = (uint32_t)((int64_t)pkt->room_back - back);
    return 0;
}

/* ---- platform ---------------------------------------------------------------------------------- */
static inline void *coven_private(struct coven_component *self)
{
    return self->services->private_data(self);
}

/* Option from the descriptor (or its default in component.yaml) as text; NULL when not declared. */
static inline const char *coven_option(struct coven_component *self, const char *name)
{
    return self->services->option(self, name);
}

/* Cell of a metric declared in component.yaml, in shared memory; NULL when not declared. Add to it with
 * coven_count(); the platform reads it without asking the component. */
static inline uint64_t *coven_metric(struct coven_component *self, const char *name)
{
    return self->services->metric(self, name);
}

static inline void coven_count(uint64_t *metric, uint64_t n)
{
    __atomic_store_n(metric, __atomic_load_n(metric, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

static inline void coven_gauge(uint64_t *metric, double value)
{
    union {
        double d;
        uint64_t u;
    } bits = {.d = value};
    __atomic_store_n(metric, bits.u, __ATOMIC_RELAXED);
}

/* Argument of the operation being called, as text; NULL when it was left out. */
static inline const char *coven_argument(struct coven_component *self, const char *name)
{
    return self->services->argument(self, name);
}

static inline void coven_answer(struct coven_answer *answer, struct coven_component *self, const char *name,
                                const char *value)
{
    self->services->answer(answer, name, value);
}

static inline void coven_log(struct coven_component *self, const char *text)
{
    self->services->log(self, text);
}

/* Give a held packet back. Returns 0 or -ENOENT when it is not held (any more). */
static inline int coven_release(struct coven_component *self, uint32_t handle, uint8_t verdict, uint8_t output)
{
    return self->services->release(self, handle, verdict, output);
}

#define COVEN_COMPONENT(...)                                                                                           \
    __attribute__((visibility("default")))                                                                             \
    const struct coven_component_ops coven_component_entry = {.abi_version = COVEN_ABI_VERSION, __VA_ARGS__}

extern const struct coven_component_ops coven_component_entry;

#endif
