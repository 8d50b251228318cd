/* SPDX-License-Identifier: Apache-2.0 */
/* See port_driver.c. Read by cffi from the line below on: plain declarations only. */
#ifndef COVEN_PORT_DRIVER_H
#define COVEN_PORT_DRIVER_H

#include <stddef.h>
#include <stdint.h>

/* cffi */
struct driver;

struct driver_plan {
    uint32_t tool;
    uint32_t ring_frames;
    uint32_t ring_frame_bytes;
    uint32_t flags;
    uint64_t gen_packets;
    uint64_t gen_rate;
    uint32_t gen_bytes;
    uint32_t gen_flows;
    uint32_t buffer_bytes;
    int rx_fd;
    int tx_fd;
};

struct driver_shared {
    uint64_t position[4];
    uint64_t frames;
    uint64_t bytes;
    uint64_t created;
    uint64_t received;
    uint64_t sent;
    uint64_t sleeps;
    uint64_t rx_drops[64];
    uint64_t tx_drops[64];
};

struct driver *driver_open(const struct driver_plan *plan, struct driver_shared *shared, char *why);
void driver_close(struct driver *self);
uint16_t driver_rx(struct driver *self, uint16_t max, int book);
const uint8_t *driver_data(const struct driver *self, uint16_t i);
uint32_t driver_length(const struct driver *self, uint16_t i);
uint32_t driver_cut(const struct driver *self, uint16_t i);
uint64_t driver_timestamp(const struct driver *self, uint16_t i);
uint8_t driver_tx(struct driver *self, const uint8_t *data, uint32_t length, uint32_t cut, uint64_t timestamp_ns,
                  int book);
uint16_t driver_pump(struct driver *from, struct driver *to, uint16_t max);
int driver_wait(struct driver *self, uint64_t *due_ns);
int driver_undo(struct driver *self);
uint64_t driver_missed(struct driver *self);
int driver_done(struct driver *self);
void driver_forward(struct driver *a, struct driver *b, const int *stop);
/* end of cffi */

#endif
