/* SPDX-License-Identifier: Apache-2.0 */
#include "state.h"

#include <errno.h>
#include <string.h>

#include "fault.h"
#include "segment.h"

#define SLOT_ALIGN 64u
#define HALF_ALIGN 8u
#define MAX_STATE_BYTES (1u << 20)

uint32_t coven_state_half_bytes(uint32_t state_bytes)
{
    return (state_bytes + HALF_ALIGN - 1) / HALF_ALIGN * HALF_ALIGN;
}

uint32_t coven_state_slot_bytes(uint32_t state_bytes)
{
    uint32_t bytes = (uint32_t)sizeof(struct coven_slot) + 2 * coven_state_half_bytes(state_bytes);

    return (bytes + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
}

/* Whether `n` things of `each` bytes at `offset` lie within `mapped` bytes, behind the header. */
static bool fits(uint64_t offset, uint64_t n, uint64_t each, uint64_t mapped)
{
    return offset >= sizeof(struct coven_state) && offset % 8 == 0 && coven_segment_holds(mapped, offset, n, each);
}

int coven_state_view_open(struct coven_state_view *view, void *base, uint64_t mapped)
{
    struct coven_state header;

    memset(view, 0, sizeof(*view));
    if (base == NULL || mapped < sizeof(header))
        return -ERANGE;
    memcpy(&header, base, sizeof(header));
    if (header.header.magic != COVEN_MAGIC || header.header.abi_version != COVEN_ABI_VERSION ||
        header.header.kind != COVEN_SEGMENT_STATE)
        return -EPROTO;
    if (header.header.bytes > mapped || header.n_metrics > COVEN_MAX_METRICS || header.version > UINT16_MAX ||
        !fits(header.metrics_offset, header.n_replicas, COVEN_MAX_METRICS * sizeof(uint64_t), mapped))
        return -ERANGE;
    if (header.n_slots != 0 &&
        (header.half_bytes == 0 || header.half_bytes > MAX_STATE_BYTES || header.half_bytes % HALF_ALIGN ||
         header.slot_bytes < sizeof(struct coven_slot) + 2ull * header.half_bytes || header.slot_bytes % SLOT_ALIGN ||
         header.n_slots == COVEN_NO_FLOW || !fits(header.slots_offset, header.n_slots, header.slot_bytes, mapped)))
        return -ERANGE;
    view->base = base;
    view->slots_offset = header.slots_offset;
    view->metrics_offset = header.metrics_offset;
    view->n_slots = header.n_slots;
    view->slot_bytes = header.slot_bytes;
    view->half_bytes = header.half_bytes;
    view->n_replicas = header.n_replicas;
    view->n_metrics = header.n_metrics;
    view->version = (uint16_t)header.version;
    return 0;
}

static uint64_t round_to(uint64_t value, uint64_t to)
{
    return (value + to - 1) / to * to;
}

int coven_state_view_plan(struct coven_state_view *view, void *base, uint64_t mapped, const struct coven_plan *plan,
                          const struct coven_plan_component *component)
{
    memset(view, 0, sizeof(*view));
    if (component->state_bytes > MAX_STATE_BYTES)
        return -ERANGE;
    view->base = base;
    view->n_replicas = component->n_replicas;
    view->n_metrics = COVEN_MAX_METRICS;
    view->version = (uint16_t)component->state_version;
    view->metrics_offset = round_to(sizeof(struct coven_state), COVEN_CACHE_LINE);
    view->slots_offset =
        round_to(view->metrics_offset + (uint64_t)component->n_replicas * COVEN_MAX_METRICS * sizeof(uint64_t),
                 COVEN_CACHE_LINE);
    if (component->state_bytes > 0) {
        view->n_slots = plan->n_flows;
        view->half_bytes = coven_state_half_bytes(component->state_bytes);
        view->slot_bytes = coven_state_slot_bytes(component->state_bytes);
    }
    return fits(view->slots_offset, view->n_slots, view->slot_bytes, mapped) ? 0 : -ERANGE;
}

static struct coven_slot *slot_of(const struct coven_state_view *view, uint32_t flow)
{
    if (flow >= view->n_slots)
        return NULL;
    return (struct coven_slot *)(view->base + view->slots_offset + (uint64_t)flow * view->slot_bytes);
}

/* The half that is current when the slot's commit word is `commit`. */
static uint8_t *half_of(const struct coven_state_view *view, struct coven_slot *slot, uint32_t commit)
{
    return (uint8_t *)(slot + 1) + (commit & 1u) * (size_t)view->half_bytes;
}

static bool is_allocated(const struct coven_state_view *view, const struct coven_slot *slot, uint16_t epoch)
{
    return epoch != 0 && __atomic_load_n(&slot->epoch, __ATOMIC_ACQUIRE) == epoch && slot->version == view->version;
}

/* The word behind `commit`: never 0, which means "not valid", and always of the other parity. */
static uint32_t next_word(uint32_t commit)
{
    return commit == UINT32_MAX ? 2 : commit + 1;
}

static uint8_t *chain_of(struct coven_state_burst *burst, uint32_t flow)
{
    return &burst->chain[flow % COVEN_STATE_CHAINS];
}

static struct coven_state_open *find_open(struct coven_state_burst *burst, uint32_t flow, uint16_t epoch)
{
    for (uint32_t at = *chain_of(burst, flow); at != 0 && at <= burst->n; at = burst->open[at - 1].next) {
        struct coven_state_open *open = &burst->open[at - 1];

        if (open->flow == flow && open->epoch == epoch)
            return open;
    }
    return NULL;
}

void *coven_state_begin(const struct coven_state_view *view, struct coven_state_burst *burst, uint32_t flow,
                        uint16_t epoch, uint16_t *index)
{
    struct coven_slot *slot = slot_of(view, flow);
    struct coven_state_open *open;
    uint32_t commit;
    uint8_t *shadow;

    if (slot == NULL || epoch == 0)
        return NULL;
    open = find_open(burst, flow, epoch);
    if (open != NULL) {
        *index = (uint16_t)(open - burst->open);
        return half_of(view, slot, open->word);
    }
    if (burst->n == COVEN_BURST)
        return NULL;
    commit = __atomic_load_n(&slot->commit, __ATOMIC_ACQUIRE);
    open = &burst->open[burst->n];
    open->flow = flow;
    open->epoch = epoch;
    open->word = next_word(commit);
    open->fresh = !is_allocated(view, slot, epoch);
    shadow = half_of(view, slot, open->word);
    if (open->fresh)
        memset(shadow, 0, view->half_bytes);
    else
        memcpy(shadow, half_of(view, slot, commit), view->half_bytes);
    open->next = *chain_of(burst, flow);
    *index = burst->n++;
    *chain_of(burst, flow) = (uint8_t)burst->n;
    return shadow;
}

void coven_state_abandon(struct coven_state_burst *burst, uint16_t index)
{
    if (burst->n == 0 || index != burst->n - 1)
        return;
    *chain_of(burst, burst->open[index].flow) = burst->open[index].next;
    burst->n--;
}

void coven_state_commit(const struct coven_state_view *view, struct coven_state_burst *burst)
{
    for (uint16_t i = 0; i < burst->n; i++) {
        const struct coven_state_open *open = &burst->open[i];
        struct coven_slot *slot = slot_of(view, open->flow);

        if (open->fresh) {
            /* What is left of another flow or another layout must not pass for this flow's state. */
            __atomic_store_n(&slot->epoch, 0, __ATOMIC_RELEASE);
            COVEN_FAULT("within-commit");
            slot->flow = open->flow;
            slot->version = view->version;
            COVEN_FAULT("within-commit");
        }
        /* Release: the half is written before the word that makes it current. */
        __atomic_store_n(&slot->commit, open->word, __ATOMIC_RELEASE);
        COVEN_FAULT("within-commit");
        if (open->fresh)
            __atomic_store_n(&slot->epoch, open->epoch, __ATOMIC_RELEASE);
        COVEN_FAULT("after-commit");
    }
    for (uint16_t i = 0; i < burst->n_ended; i++) {
        struct coven_slot *slot = slot_of(view, burst->ended[i].flow);

        if (slot->epoch == burst->ended[i].epoch)
            __atomic_store_n(&slot->epoch, 0, __ATOMIC_RELEASE);
    }
    if (burst->n > 0)
        memset(burst->chain, 0, sizeof(burst->chain));
    burst->n = 0;
    burst->n_ended = 0;
}

void *coven_state_end(const struct coven_state_view *view, struct coven_state_burst *burst, uint32_t flow,
                      uint16_t epoch)
{
    struct coven_slot *slot = slot_of(view, flow);
    const struct coven_state_open *open;

    if (slot == NULL || epoch == 0 || burst->n_ended == COVEN_BURST)
        return NULL;
    burst->ended[burst->n_ended].flow = flow;
    burst->ended[burst->n_ended++].epoch = epoch;
    open = find_open(burst, flow, epoch);
    return open != NULL ? half_of(view, slot, open->word) : coven_state_current(view, flow, epoch);
}

void *coven_state_current(const struct coven_state_view *view, uint32_t flow, uint16_t epoch)
{
    struct coven_slot *slot = slot_of(view, flow);

    if (slot == NULL || !is_allocated(view, slot, epoch))
        return NULL;
    return half_of(view, slot, __atomic_load_n(&slot->commit, __ATOMIC_ACQUIRE));
}

bool coven_state_committed(const struct coven_state_view *view, uint32_t flow, uint16_t epoch, uint32_t word)
{
    struct coven_slot *slot = slot_of(view, flow);

    if (slot == NULL || word == 0 || !is_allocated(view, slot, epoch))
        return false;
    return (int32_t)(__atomic_load_n(&slot->commit, __ATOMIC_ACQUIRE) - word) >= 0;
}

uint64_t *coven_state_metrics(const struct coven_state_view *view, uint32_t replica)
{
    if (replica >= view->n_replicas)
        return NULL;
    return (uint64_t *)(view->base + view->metrics_offset) + (uint64_t)replica * COVEN_MAX_METRICS;
}
