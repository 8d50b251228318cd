/* SPDX-License-Identifier: Apache-2.0 */
#include "flow_export.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>

#include "fault.h"
#include "flow_private.h"

#define TRIES 8u /* to copy a state that its component changes meanwhile */

_Static_assert(sizeof(struct coven_flow_name) == 44, "name");
_Static_assert(sizeof(struct coven_flow_record) == 64, "record");
_Static_assert(sizeof(struct coven_flow_filter) == 32, "filter");
_Static_assert(sizeof(struct coven_flow_blob) == 80, "blob");
_Static_assert(sizeof(struct coven_flow_blob_state) == 40, "state of a blob");

static size_t padded(size_t bytes)
{
    return (bytes + 7) / 8 * 8;
}

/* ---- names -------------------------------------------------------------------------------------- */
static void name_of(const struct flow_entry *entry, struct coven_flow_name *name)
{
    const struct flow_key *key = &entry->key;
    bool swapped = (entry->flags & ENTRY_SWAPPED) != 0;

    memset(name, 0, sizeof(*name));
    memcpy(name->source, swapped ? key->high : key->low, 16);
    memcpy(name->destination, swapped ? key->low : key->high, 16);
    name->source_port = htole16(swapped ? key->high_port : key->low_port);
    name->destination_port = htole16(swapped ? key->low_port : key->high_port);
    name->vlan[0] = htole16(key->vlan[0]);
    name->vlan[1] = htole16(key->vlan[1]);
    name->n_vlans = key->n_vlans;
    name->version = key->version;
    name->protocol = key->protocol;
    name->moved = (entry->flags & ENTRY_MOVED) != 0;
}

/* Returns whether source and destination changed places. */
static bool key_of(const struct coven_flow_name *name, struct flow_key *key)
{
    int order = memcmp(name->source, name->destination, 16);
    uint16_t from = le16toh(name->source_port), to = le16toh(name->destination_port);
    bool swapped = order > 0 || (order == 0 && from > to);

    memset(key, 0, sizeof(*key));
    memcpy(key->low, swapped ? name->destination : name->source, 16);
    memcpy(key->high, swapped ? name->source : name->destination, 16);
    key->low_port = swapped ? to : from;
    key->high_port = swapped ? from : to;
    key->vlan[0] = le16toh(name->vlan[0]);
    key->vlan[1] = le16toh(name->vlan[1]);
    key->n_vlans = name->n_vlans;
    key->version = name->version;
    key->protocol = name->protocol;
    return swapped;
}

/* Whether a packet could have this name: what no packet can would never be found again, and never age by one. */
static bool is_possible(const struct coven_flow_name *name)
{
    static const uint8_t zeros[12];

    if (name->version == 4)
        return memcmp(name->source + 4, zeros, 12) == 0 && memcmp(name->destination + 4, zeros, 12) == 0;
    return name->version == 6;
}

uint32_t coven_flow_by_name(const struct coven_flow_table *table, const struct coven_flow_name *name)
{
    struct flow_key key;

    key_of(name, &key);
    return coven_flow_find(table, &key, coven_flow_hash_of(table, &key));
}

void coven_flow_set_moved(struct coven_flow_table *table, uint32_t flow, bool moved)
{
    struct flow_entry *entry = &coven_flow_entries(table)[flow];
    uint8_t flags = (uint8_t)(moved ? entry->flags | ENTRY_MOVED : entry->flags & ~ENTRY_MOVED);

    /* Release: the state is whole before its packets may reach it. */
    __atomic_store_n(&entry->flags, flags, __ATOMIC_RELEASE);
}

/* ---- list --------------------------------------------------------------------------------------- */
static bool in_prefix(const uint8_t address[16], const uint8_t wanted[16], uint32_t bits)
{
    uint32_t whole = bits / 8, rest = bits % 8;

    if (memcmp(address, wanted, whole) != 0)
        return false;
    return rest == 0 || ((address[whole] ^ wanted[whole]) >> (8 - rest)) == 0;
}

static bool is_wanted(const struct flow_key *key, const struct coven_flow_filter *filter)
{
    uint32_t bits = filter->prefix_bits < 128 ? filter->prefix_bits : 128;

    if ((filter->version != 0 && key->version != filter->version) ||
        (filter->protocol != 0 && key->protocol != filter->protocol) ||
        (filter->port != 0 && key->low_port != filter->port && key->high_port != filter->port))
        return false;
    if (filter->vlan != 0 && (key->n_vlans == 0 || key->vlan[0] != filter->vlan - 1u))
        return false;
    return in_prefix(key->low, filter->address, bits) || in_prefix(key->high, filter->address, bits);
}

uint32_t coven_flow_list(const struct coven_flow_table *table, const struct coven_flow_filter *filter, uint64_t now_ns,
                         uint32_t *next, struct coven_flow_record *records, uint32_t max)
{
    uint32_t n = 0, flow = *next;

    for (uint32_t looked = 0; flow < table->fresh && n < max && looked < COVEN_FLOW_LIST_SCAN; looked++, flow++) {
        const struct flow_entry *entry = &coven_flow_entries(table)[flow];

        if (entry->state != ENTRY_USED || !is_wanted(&entry->key, filter))
            continue;
        memset(&records[n], 0, sizeof(records[n]));
        name_of(entry, &records[n].name);
        records[n].flow = flow;
        records[n].packets[0] = entry->sequence[0];
        records[n].packets[1] = entry->sequence[1];
        records[n++].idle_ns = now_ns > entry->last_ns ? now_ns - entry->last_ns : 0;
    }
    *next = flow < table->fresh ? flow : COVEN_NO_FLOW;
    return n;
}

/* ---- export ------------------------------------------------------------------------------------- */
/* Copy the current half. While its component runs it may commit another one, but it writes to this one only after that,
 * so a copy is whole when it is the current half still. */
static int copy_state(const struct coven_state_view *view, uint32_t flow, uint16_t epoch, void *to, uint32_t bytes)
{
    for (uint32_t i = 0; i < TRIES; i++) {
        const void *half = coven_state_current(view, flow, epoch);

        if (half == NULL)
            return 0;
        memcpy(to, half, bytes);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (coven_state_current(view, flow, epoch) == half)
            return 1;
    }
    return -EAGAIN;
}

/* Sum of all bytes but those of the sum itself: the seed for what follows the head is the head's. */
static uint64_t check_of(const void *blob, size_t bytes)
{
    struct coven_flow_blob head;
    uint64_t seed[2] = {0, 0};

    memcpy(&head, blob, sizeof(head));
    head.check = 0;
    seed[0] = coven_flow_hash(seed, &head, sizeof(head));
    return htole64(coven_flow_hash(seed, (const uint8_t *)blob + sizeof(head), bytes - sizeof(head)));
}

int64_t coven_flow_export(const struct coven_flow_table *table, uint32_t flow, const struct coven_flow_keeper *keepers,
                          uint32_t n_keepers, void *blob, size_t room)
{
    const struct flow_entry *entry = &coven_flow_entries(table)[flow];
    struct coven_flow_blob head = {.magic = htole64(COVEN_FLOW_BLOB_MAGIC), .format = htole16(COVEN_FLOW_BLOB_FORMAT)};
    uint8_t *at = (uint8_t *)blob + sizeof(head);
    uint16_t n_states = 0;

    if (room < sizeof(head))
        return -ENOSPC;
    for (uint32_t k = 0; k < n_keepers; k++) {
        struct coven_flow_blob_state state = {0};
        size_t bytes = sizeof(state) + padded(keepers[k].bytes);
        int got;

        if (bytes > room - (size_t)(at - (uint8_t *)blob))
            return -ENOSPC;
        memset(at, 0, bytes);
        got = copy_state(keepers[k].state, flow, entry->epoch, at + sizeof(state), keepers[k].bytes);
        if (got < 0)
            return got;
        if (got == 0)
            continue; /* the component has not seen the flow yet */
        snprintf(state.component, sizeof(state.component), "%s", keepers[k].component);
        state.version = htole32(keepers[k].version);
        state.bytes = htole32(keepers[k].bytes);
        memcpy(at, &state, sizeof(state));
        at += bytes;
        n_states++;
    }
    name_of(entry, &head.name);
    head.name.moved = 0;
    head.packets[0] = htole32(entry->sequence[0]);
    head.packets[1] = htole32(entry->sequence[1]);
    head.n_states = htole16(n_states);
    head.bytes = htole32((uint32_t)(at - (uint8_t *)blob));
    memcpy(blob, &head, sizeof(head));
    head.check = check_of(blob, (size_t)(at - (uint8_t *)blob));
    memcpy(blob, &head, sizeof(head));
    return at - (uint8_t *)blob;
}

/* ---- import ------------------------------------------------------------------------------------- */
/* The `n`th state of a checked blob. */
static const uint8_t *state_at(const void *blob, uint32_t n, struct coven_flow_blob_state *state)
{
    const uint8_t *at = (const uint8_t *)blob + sizeof(struct coven_flow_blob);

    for (;; n--) {
        memcpy(state, at, sizeof(*state));
        at += sizeof(*state);
        if (n == 0)
            return at;
        at += padded(le32toh(state->bytes));
    }
}

static int check_states(const uint8_t *at, size_t left, uint32_t n)
{
    for (; n > 0; n--) {
        struct coven_flow_blob_state state;
        size_t bytes;

        if (left < sizeof(state))
            return -EBADMSG;
        memcpy(&state, at, sizeof(state));
        bytes = padded(le32toh(state.bytes));
        if (bytes > left - sizeof(state) || memchr(state.component, 0, sizeof(state.component)) == NULL)
            return -EBADMSG;
        at += sizeof(state) + bytes;
        left -= sizeof(state) + bytes;
    }
    return left == 0 ? 0 : -EBADMSG;
}

static int refuse(int error, char *why, size_t why_bytes, const char *text)
{
    snprintf(why, why_bytes, "%s", text);
    return error;
}

int coven_flow_blob_check(const void *blob, size_t bytes, char *why, size_t why_bytes)
{
    struct coven_flow_blob head;

    if (bytes < sizeof(head) || bytes > COVEN_FLOW_BLOB_MAX)
        return refuse(-EBADMSG, why, why_bytes, "this is no exported flow: its length cannot be");
    memcpy(&head, blob, sizeof(head));
    if (le64toh(head.magic) != COVEN_FLOW_BLOB_MAGIC)
        return refuse(-EBADMSG, why, why_bytes, "this is no exported flow: it does not begin like one");
    if (le16toh(head.format) != COVEN_FLOW_BLOB_FORMAT)
        return refuse(-EBADMSG, why, why_bytes, "the exported flow has a format that this version does not know");
    if (le32toh(head.bytes) != bytes || head.check != check_of(blob, bytes))
        return refuse(-EBADMSG, why, why_bytes, "the exported flow is damaged or cut short");
    if (le16toh(head.n_states) > COVEN_MAX_COMPONENTS || !is_possible(&head.name) || head.name.n_vlans > 16 ||
        head.reserved != 0 ||
        check_states((const uint8_t *)blob + sizeof(head), bytes - sizeof(head), le16toh(head.n_states)))
        return refuse(-EBADMSG, why, why_bytes, "the exported flow contradicts itself");
    return 0;
}

static const struct coven_flow_keeper *keeper_of(const struct coven_flow_keeper *keepers, uint32_t n_keepers,
                                                 const char *component)
{
    for (uint32_t k = 0; k < n_keepers; k++)
        if (strcmp(keepers[k].component, component) == 0)
            return &keepers[k];
    return NULL;
}

/* Whether every state of the blob has its place here, each component once. */
static int check_places(const struct coven_flow_keeper *keepers, uint32_t n_keepers, const void *blob, uint32_t n,
                        char *why, size_t why_bytes)
{
    uint64_t seen = 0;

    for (uint32_t i = 0; i < n; i++) {
        const struct coven_flow_keeper *keeper;
        struct coven_flow_blob_state state;

        state_at(blob, i, &state);
        keeper = keeper_of(keepers, n_keepers, state.component);
        if (keeper == NULL) {
            snprintf(why, why_bytes, "there is no component %.31s with flow state here", state.component);
            return -ENOENT;
        }
        if (le32toh(state.version) != keeper->version || le32toh(state.bytes) != keeper->bytes) {
            snprintf(why, why_bytes,
                     "component %.31s: state of version %u with %u bytes was exported, %u with %u is kept here",
                     state.component, le32toh(state.version), le32toh(state.bytes), keeper->version, keeper->bytes);
            return -EPROTO;
        }
        if (seen >> (keeper - keepers) & 1)
            return refuse(-EBADMSG, why, why_bytes, "the exported flow names a component twice");
        seen |= 1ull << (keeper - keepers);
    }
    return 0;
}

static void put_states(struct coven_flow_table *table, uint32_t flow, const struct coven_flow_keeper *keepers,
                       uint32_t n_keepers, const void *blob, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct coven_state_burst burst = {0};
        struct coven_flow_blob_state state;
        const uint8_t *data = state_at(blob, i, &state);
        const struct coven_flow_keeper *keeper = keeper_of(keepers, n_keepers, state.component);
        uint16_t index;
        void *half = coven_state_begin(keeper->state, &burst, flow, coven_flow_entries(table)[flow].epoch, &index);

        if (half == NULL)
            continue;
        memcpy(half, data, keeper->bytes);
        coven_state_commit(keeper->state, &burst);
    }
}

/* The entry for an imported flow, marked as moved. Nothing gives way for it. */
static int64_t place_for(struct coven_flow_table *table, const struct coven_flow_name *name, uint64_t now_ns, char *why,
                         size_t why_bytes)
{
    uint32_t flow, room = table->room;
    struct flow_key key;
    bool swapped = key_of(name, &key);
    uint8_t flags = swapped ? ENTRY_MOVED | ENTRY_SWAPPED : ENTRY_MOVED;
    uint64_t hash = coven_flow_hash_of(table, &key);

    flow = coven_flow_find(table, &key, hash);
    if (flow != COVEN_FLOW_NONE) {
        if ((coven_flow_entries(table)[flow].flags & ENTRY_MOVED) == 0)
            return refuse(-EEXIST, why, why_bytes, "the flow is here already");
        coven_flow_entries(table)[flow].flags = flags;
        return flow;
    }
    table->room = 0;
    flow = coven_flow_make(table, &key, hash, flags, now_ns);
    table->room = room;
    if (flow == COVEN_FLOW_NONE)
        return refuse(-ENOSPC, why, why_bytes, "the flow table is full");
    return flow;
}

int64_t coven_flow_import(struct coven_flow_table *table, const struct coven_flow_keeper *keepers, uint32_t n_keepers,
                          const void *blob, size_t bytes, uint64_t now_ns, char *why, size_t why_bytes)
{
    struct coven_flow_blob head;
    struct flow_entry *entry;
    int64_t flow;
    int error = coven_flow_blob_check(blob, bytes, why, why_bytes);

    if (error)
        return error;
    memcpy(&head, blob, sizeof(head));
    error = check_places(keepers, n_keepers, blob, le16toh(head.n_states), why, why_bytes);
    if (error)
        return error;
    flow = place_for(table, &head.name, now_ns, why, why_bytes);
    if (flow < 0)
        return flow;
    entry = &coven_flow_entries(table)[flow];
    put_states(table, (uint32_t)flow, keepers, n_keepers, blob, le16toh(head.n_states));
    entry->sequence[0] = le32toh(head.packets[0]);
    entry->sequence[1] = le32toh(head.packets[1]);
    entry->last_ns = now_ns;
    COVEN_FAULT("worker-flow-index");
    coven_flow_set_moved(table, (uint32_t)flow, false);
    return flow;
}
