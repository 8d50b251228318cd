/* SPDX-License-Identifier: Apache-2.0 */
/* Flows as others see them: listed, and the state of one taken along as a blob and put into another table.
 *
 * A blob says by itself what it is: `struct coven_flow_blob`, then for each component its name, the version and the
 * bytes of its state. Integers are little-endian; ports and VLANs too. It may come from anywhere: nothing in it is believed
 * before it is checked, and the check sum finds damage, not intent. */
#ifndef COVEN_FLOW_EXPORT_H
#define COVEN_FLOW_EXPORT_H

#include <stddef.h>
#include <stdint.h>

#include <coven/abi.h>

#include "flow.h"
#include "state.h"

#define COVEN_FLOW_BLOB_MAGIC 0x574f4c4e45564f43 /* "COVENLOW", first byte first */
#define COVEN_FLOW_BLOB_FORMAT 1
#define COVEN_FLOW_LIST_MAX 512     /* records of one answer */
#define COVEN_FLOW_LIST_SCAN 16384  /* entries looked at for one answer */
#define COVEN_FLOW_BLOB_MAX 4456448 /* 64 components with 64 KiB each, and their names */

/* A flow by what its first packet said. */
struct coven_flow_name {
    uint8_t source[16], destination[16]; /* IPv4 in the first four bytes, the others 0 */
    uint16_t source_port, destination_port;
    uint16_t vlan[2]; /* outermost first */
    uint8_t n_vlans;
    uint8_t version; /* 4 or 6 */
    uint8_t protocol;
    uint8_t moved; /* in a list: its state was taken away */
};

struct coven_flow_record {
    struct coven_flow_name name;
    uint32_t flow;
    uint32_t packets[2]; /* by direction, modulo 2^32 */
    uint64_t idle_ns;
};

/* Which flows are wanted. What is 0 does not matter; address and port may be those of either end. */
struct coven_flow_filter {
    uint8_t address[16];
    uint16_t port;
    uint16_t vlan; /* outermost, + 1 */
    uint8_t version;
    uint8_t prefix_bits; /* of `address` that count, with `version` */
    uint8_t protocol;
    uint8_t reserved[9];
};

struct coven_flow_blob {
    uint64_t magic;
    uint16_t format;
    uint16_t n_states;
    uint32_t bytes; /* of all */
    struct coven_flow_name name;
    uint32_t packets[2];
    uint32_t reserved;
    uint64_t
        check; /* coven_flow_hash() of all bytes, first of the head with this word 0, then of what follows with that as the seed */
};

struct coven_flow_blob_state {
    char component[COVEN_NAME_BYTES];
    uint32_t version;
    uint32_t bytes; /* of the state, which follows, with zeros up to a multiple of 8 */
};

/* A component that keeps flow state here. */
struct coven_flow_keeper {
    const char *component;
    const struct coven_state_view *state;
    uint32_t bytes;
    uint32_t version;
};

/* Records of flows from number `*next` on; `*next` becomes where to go on, COVEN_NO_FLOW at the end. Bounded work. */
uint32_t coven_flow_list(const struct coven_flow_table *table, const struct coven_flow_filter *filter, uint64_t now_ns,
                         uint32_t *next, struct coven_flow_record *records, uint32_t max);
/* Number of the flow with this name in either direction, or COVEN_NO_FLOW. */
uint32_t coven_flow_by_name(const struct coven_flow_table *table, const struct coven_flow_name *name);
/* From now on packets of the flow are refused (moved), or are not. */
void coven_flow_set_moved(struct coven_flow_table *table, uint32_t flow, bool moved);
/* Write the blob of a flow, with the committed state of the components. Returns its bytes or a negative errno: -EAGAIN
 * (a component was quicker than we), -ENOSPC (more than `room`). Between two bursts only. */
int64_t coven_flow_export(const struct coven_flow_table *table, uint32_t flow, const struct coven_flow_keeper *keepers,
                          uint32_t n_keepers, void *blob, size_t room);
/* Look a blob through. Returns 0 or -EBADMSG with a sentence in `why`. */
int coven_flow_blob_check(const void *blob, size_t bytes, char *why, size_t why_bytes);
/* Put a checked blob into this table: all of it or nothing. Returns the flow's number, or a negative errno with a sentence:
 * -EEXIST (it is here and was not moved), -ENOSPC (full), -ENOENT (a component is not here, or keeps no state),
 * -EPROTO (another version or size of state), -EBADMSG. A worker killed on the way leaves a moved flow. */
int64_t coven_flow_import(struct coven_flow_table *table, const struct coven_flow_keeper *keepers, uint32_t n_keepers,
                          const void *blob, size_t bytes, uint64_t now_ns, char *why, size_t why_bytes);

#endif
