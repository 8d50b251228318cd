/* SPDX-License-Identifier: Apache-2.0 */
/* NIC tool gen: makes UDP packets by itself and swallows what is sent to it.
 *
 * Packet n of a port is always the same: Ethernet, IPv4 from 198.18.0.0/16 to 198.19.0.1 (RFC 2544, C.2.2), UDP
 * to port 9, "COVENGEN", n in 8 bytes, zeros. position.rx[0] is n, so a crash neither repeats nor skips one. */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "parse.h"
#include "port_rx.h"

#define HEADER_BYTES 42u /* Ethernet, IPv4, UDP */
#define MIN_BYTES 60u
#define TEMPLATE_BYTES 64u /* the beginning of every packet, written even if the packet is shorter */
#define SOURCE_PORT_AT (COVEN_ETH_BYTES + 20u)
#define CHECKSUM_AT (SOURCE_PORT_AT + 6u)
#define NUMBER_AT (HEADER_BYTES + 8u)
#define SOURCE 0xc6120001u /* 198.18.0.1 */
#define TARGET 0xc6130001u /* 198.19.0.1 */
#define FLOW_PORTS 16384u  /* flows that differ by port before they differ by address */
#define FIRST_PORT 1024u
#define TARGET_PORT 9u

/* Simple IMIX, 7 : 4 : 1, frame lengths without FCS, mixed so that any twelve in a row have it. */
static const uint16_t imix[12] = {60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 60, 590};

struct gen {
    uint64_t identity; /* of the opening, see port_pcap.c */
    uint64_t base_ns;  /* CLOCK_MONOTONIC at which packet number `base` was due */
    uint64_t base;
    uint32_t ip_sum, udp_sum;             /* of what is the same in every packet */
    uint32_t bytes, source, template_sum; /* what the template is filled in for, see fill_template() */
    uint8_t template[TEMPLATE_BYTES];
};

static uint64_t made(const struct coven_port *port)
{
    const struct gen *self = port->state;

    return port->position->rx[1] == self->identity ? port->position->rx[0] : 0;
}

/* Sum of 16-bit words in network order; n is even. */
static uint32_t sum_words(const uint8_t *bytes, uint32_t n)
{
    uint32_t sum = 0;

    for (uint32_t i = 0; i < n; i += 2)
        sum += (uint32_t)bytes[i] << 8 | bytes[i + 1];
    return sum;
}

static int attach(struct coven_port *port, char *why, size_t why_bytes)
{
    static const uint8_t head[] = {
        2,    0,   0,   0,           0,   2,   2,    0,   0,  0,  0, 1,
        8,    0,                                                        /* Ethernet: locally administered addresses */
        0x45, 0,   0,   0,           0,   0,   0x40, 0,   64, 17, 0, 0, /* IPv4: don't fragment, TTL 64, UDP */
        0,    0,   0,   0,           0,   0,   0,    0,                 /* addresses */
        0,    0,   0,   TARGET_PORT, 0,   0,   0,    0,                 /* UDP */
        'C',  'O', 'V', 'E',         'N', 'G', 'E',  'N',
    };
    struct gen *self;

    if (port->plan->gen_bytes != 0 && (port->plan->gen_bytes < MIN_BYTES || port->plan->gen_bytes > UINT16_MAX)) {
        snprintf(why, why_bytes, "packets of %u bytes cannot be made, %u to 65535 can", port->plan->gen_bytes,
                 MIN_BYTES);
        return -EINVAL;
    }
    self = calloc(1, sizeof(*self));
    if (!self)
        return -ENOMEM;
    _Static_assert(sizeof(head) == NUMBER_AT, "headers and the mark");
    memcpy(self->template, head, sizeof(head));
    coven_store_be32(self->template + 30, TARGET);
    /* what is filled in later is 0 here and adds nothing */
    self->ip_sum = sum_words(self->template + COVEN_ETH_BYTES, 20);
    self->udp_sum =
        sum_words(self->template + 30, 4) + COVEN_PROTO_UDP + sum_words(self->template + COVEN_ETH_BYTES + 20, 8 + 8);
    self->identity = (uint64_t)lseek(port->rx_fd, 0, SEEK_CUR);
    port->state = self;
    self->base = made(port);
    return 0;
}

static void detach(struct coven_port *port)
{
    free(port->state);
    port->state = NULL;
}

/* Packets that may be made by now at most, counted from the first. */
static uint64_t allowed(struct coven_port *port)
{
    struct gen *self = port->state;
    uint64_t rate = port->plan->gen_rate, elapsed;

    if (rate == 0)
        return port->plan->gen_packets;
    if (self->base_ns == 0)
        self->base_ns = coven_port_clock_ns();
    elapsed = coven_port_clock_ns() - self->base_ns;
    elapsed = self->base + 1 + (uint64_t)((unsigned __int128)elapsed * rate / 1000000000u);
    return elapsed < port->plan->gen_packets ? elapsed : port->plan->gen_packets;
}

static uint16_t checksum(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

/* Fill in what packets of one length and one source address share. */
static void fill_template(struct gen *self, uint32_t bytes, uint32_t source)
{
    uint32_t source_sum = (source >> 16) + (source & 0xffff), udp_bytes = bytes - COVEN_ETH_BYTES - 20;
    uint8_t *ip = self->template + COVEN_ETH_BYTES, *udp = ip + 20;

    self->bytes = bytes;
    self->source = source;
    coven_store_be16(ip + 2, bytes - COVEN_ETH_BYTES);
    coven_store_be32(ip + 12, source);
    coven_store_be16(ip + 10, checksum(self->ip_sum + bytes - COVEN_ETH_BYTES + source_sum));
    coven_store_be16(udp + 4, udp_bytes);
    /* the length counts twice: in the header and in the pseudo header (RFC 768) */
    self->template_sum = self->udp_sum + 2 * udp_bytes + source_sum;
}

/* The generator must not cost more than what is measured with it: little is written for each packet by itself. */
static inline void write_packet(const struct gen *self, uint32_t source_port, uint64_t number, uint8_t *out)
{
    uint32_t number_sum = (uint32_t)(number >> 48) + (uint32_t)(number >> 32 & 0xffff) +
                          (uint32_t)(number >> 16 & 0xffff) + (uint32_t)(number & 0xffff);
    uint16_t sum = checksum(self->template_sum + source_port + number_sum);
    uint16_t port_be = htobe16((uint16_t)source_port), sum_be = htobe16(sum ? sum : 0xffff);
    uint64_t number_be = htobe64(number);

    memcpy(out, self->template, TEMPLATE_BYTES);
    if (self->bytes > TEMPLATE_BYTES)
        memset(out + TEMPLATE_BYTES, 0, self->bytes - TEMPLATE_BYTES);
    memcpy(out + SOURCE_PORT_AT, &port_be, sizeof(port_be));
    memcpy(out + CHECKSUM_AT, &sum_be, sizeof(sum_be));
    memcpy(out + NUMBER_AT, &number_be, sizeof(number_be));
}

static void rx_burst(struct coven_port *port, struct coven_rx *rx)
{
    struct gen *self = port->state;
    const struct coven_plan_port *plan = port->plan;
    uint32_t flows = plan->gen_flows > 1 ? plan->gen_flows : 1, room = coven_rx_room(rx);
    uint64_t n = made(port), end, total = 0;
    uint32_t flow = flows > 1 ? (uint32_t)(n % flows) : 0, frames = 0;

    coven_rx_begin(rx, port->position);
    end = n < plan->gen_packets ? allowed(port) : n;
    for (; n < end && frames < rx->n_handles; n++, frames++) {
        uint32_t bytes = plan->gen_bytes ? plan->gen_bytes : imix[n % 12];
        uint32_t number = plan->gen_first_flow + flow, source = SOURCE + number / FLOW_PORTS;

        total += bytes;
        flow = flow + 1 < flows ? flow + 1 : 0;
        if (bytes > room || room < TEMPLATE_BYTES) {
            coven_rx_drop(rx, COVEN_DROP_OVERSIZE, 1);
            continue;
        }
        if (!coven_rx_admit(rx, NULL, 0)) /* what is made here has no priority */
            continue;
        if (bytes != self->bytes || source != self->source)
            fill_template(self, bytes, source);
        write_packet(self, FIRST_PORT + number % FLOW_PORTS, n + plan->gen_first_packet,
                     coven_rx_take(rx, bytes, rx->now_ns));
    }
    rx->frames = frames;
    rx->bytes = total;
    rx->position[0] = n;
    rx->position[1] = self->identity;
}

static bool rx_done(struct coven_port *port)
{
    return made(port) >= port->plan->gen_packets;
}

static int wait_fd(struct coven_port *port, uint64_t *due_ns)
{
    const struct gen *self = port->state;
    uint64_t n = made(port);

    if (n >= port->plan->gen_packets)
        *due_ns = UINT64_MAX;
    else if (port->plan->gen_rate == 0 || self->base_ns == 0)
        *due_ns = 0;
    else
        *due_ns = self->base_ns + (uint64_t)((unsigned __int128)(n - self->base) * 1000000000u / port->plan->gen_rate);
    return -1;
}

static void tx_burst(struct coven_port *port, const struct coven_tx_packet *pkts, uint16_t n, uint8_t *results,
                     uint64_t tx[2])
{
    (void)pkts;
    memset(results, COVEN_TX_SENT, n);
    coven_port_keep_tx(port, tx);
}

/* Nothing is outside: a swallowed packet is gone either way. */
static bool tx_undo(struct coven_port *port)
{
    (void)port;
    return true;
}

const struct coven_port_ops coven_port_gen = {
    .name = "gen",
    .attach = attach,
    .detach = detach,
    .rx_burst = rx_burst,
    .rx_release = coven_port_release_nothing,
    .tx_burst = tx_burst,
    .tx_undo = tx_undo,
    .wait = wait_fd,
    .rx_missed = coven_port_missed_nothing,
    .rx_done = rx_done,
};
