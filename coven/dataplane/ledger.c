/* SPDX-License-Identifier: Apache-2.0 */
#include "ledger.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "fault.h"
#include "flow.h"

/* Stores before the barrier are carried out before stores after it; see the header. */
#define BARRIER() __asm__ volatile("" ::: "memory")

static uint64_t line(uint64_t bytes)
{
    return (bytes + COVEN_CACHE_LINE - 1) & ~(uint64_t)(COVEN_CACHE_LINE - 1);
}

/* ---- layout ------------------------------------------------------------------------------------ */
/* Place everything behind the fixed part; returns the size of the whole. */
static uint64_t place(const struct coven_plan *plan, struct coven_ledger *ledger)
{
    uint64_t at = line(sizeof(struct coven_ledger));
    uint64_t flow_bytes = plan->n_flows > 0 ? coven_flow_table_bytes(plan->n_flows) : 0;

    ledger->n_buffers = plan->n_buffers;
    ledger->owner_offset = at;
    at += line(sizeof(uint64_t) * plan->n_buffers);
    ledger->meta_offset = at;
    at += sizeof(struct coven_meta) * plan->n_buffers;
    ledger->ext_offset = at;
    at += sizeof(struct coven_meta_ext) * plan->n_buffers;
    ledger->free_offset = at;
    at += line(sizeof(uint32_t) * plan->n_buffers);
    ledger->flow_offset = flow_bytes > 0 ? at : 0;
    at += line(flow_bytes);
    for (uint32_t c = 0; c < plan->n_components && c < COVEN_MAX_COMPONENTS; c++) {
        const struct coven_plan_component *component = &plan->components[c];

        for (uint32_t r = 0; component->isolation != COVEN_FUSED && r < component->n_replicas; r++) {
            struct coven_ledger_replica *replica;

            if (component->first_replica + r >= COVEN_MAX_REPLICAS)
                break;
            replica = &ledger->replica[component->first_replica + r];
            replica->given_offset = at;
            at += line(sizeof(struct coven_given) * coven_given_size(component));
            if (component->isolation != COVEN_COPY)
                continue;
            replica->late_offset = at;
            at += line(component->n_buffers);
        }
    }
    return at;
}

uint64_t coven_ledger_bytes(const struct coven_plan *plan)
{
    struct coven_ledger scratch = {0};

    return place(plan, &scratch);
}

uint64_t coven_ledger_breadcrumb_offset(void)
{
    return offsetof(struct coven_ledger, breadcrumb) + offsetof(struct coven_breadcrumb, component);
}

uint64_t coven_ledger_poison_offset(void)
{
    return offsetof(struct coven_ledger, poison);
}

void coven_ledger_format(struct coven_ledger *ledger, const struct coven_plan *plan)
{
    place(plan, ledger);
}

int coven_ledger_check(const struct coven_ledger *ledger, const struct coven_plan *plan)
{
    struct coven_ledger wanted = {0};

    if (place(plan, &wanted) > ledger->header.bytes || ledger->n_buffers != wanted.n_buffers ||
        ledger->owner_offset != wanted.owner_offset || ledger->meta_offset != wanted.meta_offset ||
        ledger->ext_offset != wanted.ext_offset || ledger->free_offset != wanted.free_offset ||
        ledger->flow_offset != wanted.flow_offset)
        return -EINVAL;
    for (uint32_t r = 0; r < COVEN_MAX_REPLICAS; r++)
        if (ledger->replica[r].given_offset != wanted.replica[r].given_offset ||
            ledger->replica[r].late_offset != wanted.replica[r].late_offset)
            return -EINVAL;
    return 0;
}

/* ---- intents ----------------------------------------------------------------------------------- */
void coven_book_open(struct coven_book *book, struct coven_ledger *ledger, uint64_t *cells)
{
    uint8_t *base = (uint8_t *)ledger;

    book->ledger = ledger;
    book->n_buffers = ledger->n_buffers;
    book->owner = (uint64_t *)(base + ledger->owner_offset);
    book->meta = (struct coven_meta *)(base + ledger->meta_offset);
    book->ext = (struct coven_meta_ext *)(base + ledger->ext_offset);
    book->free = (uint32_t *)(base + ledger->free_offset);
    book->cell = cells;
    memset(book->place, 0xff, sizeof(book->place));
}

/* Carry the stores out. Values are absolute: any number of times is as good as once. */
static void apply(struct coven_book *book)
{
    struct coven_intent *intent = &book->ledger->intent;
    uint8_t *base = (uint8_t *)book->ledger;

    for (uint32_t i = 0; i < intent->n_owners; i++)
        book->owner[intent->handle[i]] = intent->owner[i];
    COVEN_FAULT("worker-intent-half");
    for (uint32_t i = 0; i < intent->n_cells; i++)
        __atomic_store_n(&book->cell[intent->cell[i]], intent->value[i], __ATOMIC_RELAXED);
    for (uint32_t i = 0; i < intent->n_words; i++)
        *(uint64_t *)(base + intent->word[i].offset) = intent->word[i].value;
}

static void close_intent(struct coven_intent *intent)
{
    BARRIER();
    intent->valid = 0;
    BARRIER();
    intent->n_owners = 0;
    intent->n_cells = 0;
    intent->n_words = 0;
}

int coven_book_replay(struct coven_book *book)
{
    struct coven_intent *intent = &book->ledger->intent;
    int found = intent->valid == 1;

    if (found)
        apply(book);
    close_intent(intent);
    return found;
}

void coven_book_rebuild_free(struct coven_book *book)
{
    uint32_t n = 0;

    /* downwards, so that the lowest numbers lie on top and are used first */
    for (uint32_t handle = book->n_buffers; handle-- > 0;)
        if (book->owner[handle] == 0)
            book->free[n++] = handle;
    book->ledger->n_free = n;
}

void coven_book_commit(struct coven_book *book)
{
    struct coven_intent *intent = &book->ledger->intent;
    uint32_t n_owners = intent->n_owners;
    uint32_t n_free = book->ledger->n_free;

    if (n_owners == 0 && intent->n_cells == 0 && intent->n_words == 0)
        return;
    for (uint32_t i = 0; i < intent->n_cells; i++)
        book->place[intent->cell[i]] = -1;
    BARRIER();
    intent->valid = 1;
    BARRIER();
    COVEN_FAULT("worker-intent-valid");
    apply(book);
    COVEN_FAULT("worker-intent-applied");
    close_intent(intent);
    for (uint32_t i = 0; i < n_owners; i++) {
        book->free[n_free] = intent->handle[i]; /* one more than is free has room: this one is not */
        n_free += intent->owner[i] == 0;
        COVEN_FAULT("worker-free-list");
    }
    book->ledger->n_free = n_free;
}

void coven_book_drop(struct coven_book *book, uint32_t handle, uint32_t scope, uint32_t reason)
{
    coven_book_room(book, 1, 1, 0);
    coven_book_count(book, COVEN_CELL_DROP(scope, reason), 1);
    coven_book_own(book, handle, 0);
}

/* ---- free list --------------------------------------------------------------------------------- */
uint16_t coven_book_peek_free(const struct coven_book *book, uint32_t *handles, uint16_t max)
{
    uint32_t n_free = book->ledger->n_free;
    uint16_t n = n_free < max ? (uint16_t)n_free : max;

    memcpy(handles, &book->free[n_free - n], sizeof(handles[0]) * n);
    return n;
}

void coven_book_take_free(struct coven_book *book, uint16_t peeked, uint16_t n)
{
    uint32_t *first = &book->free[book->ledger->n_free - peeked];

    memmove(first, first + n, sizeof(first[0]) * (peeked - n));
    book->ledger->n_free -= n;
}
