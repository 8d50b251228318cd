/* SPDX-License-Identifier: Apache-2.0 */
#include "capture.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAGIC_MICRO 0xa1b2c3d4u
#define MAGIC_NANO 0xa1b23c4du
#define MAGIC_NG 0x0a0d0d0au /* also the type of a section header block */
#define MAGIC_NG_ORDER 0x1a2b3c4du
#define BLOCK_INTERFACE 1u
#define BLOCK_PACKET 2u /* obsolete, still written by some */
#define BLOCK_SIMPLE 3u
#define BLOCK_ENHANCED 6u
#define BLOCK_MIN_BYTES 12u
#define OPTION_TSRESOL 9u
#define SECOND_NS 1000000000ull

#define FAIL(capture, ...) (snprintf((capture)->why, sizeof((capture)->why), __VA_ARGS__), -1)

/* Bytes [at, at + bytes) of the file, or NULL if it ends before. */
static const uint8_t *load(struct coven_capture *capture, uint64_t at, uint32_t bytes)
{
    if (bytes > COVEN_CAPTURE_WINDOW || at > (uint64_t)INT64_MAX - COVEN_CAPTURE_WINDOW)
        return NULL;
    if (at < capture->window_at || at + bytes > capture->window_at + capture->window_bytes) {
        ssize_t n = 0;

        capture->window_at = at;
        capture->window_bytes = 0;
        while (capture->window_bytes < COVEN_CAPTURE_WINDOW) {
            n = pread(capture->fd, capture->window + capture->window_bytes,
                      COVEN_CAPTURE_WINDOW - capture->window_bytes, (off_t)(at + capture->window_bytes));
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                break;
            capture->window_bytes += (uint32_t)n;
        }
        if (bytes > capture->window_bytes)
            return NULL;
    }
    return capture->window + (at - capture->window_at);
}

static bool at_end(struct coven_capture *capture, uint64_t at)
{
    return load(capture, at, 1) == NULL;
}

static uint32_t get32(const struct coven_capture *capture, const uint8_t *p)
{
    uint32_t value;

    memcpy(&value, p, 4);
    return capture->swapped ? __builtin_bswap32(value) : value;
}

static uint16_t get16(const struct coven_capture *capture, const uint8_t *p)
{
    uint16_t value;

    memcpy(&value, p, 2);
    return capture->swapped ? __builtin_bswap16(value) : value;
}

int coven_capture_open(struct coven_capture *capture, int fd)
{
    const uint8_t *head;
    uint32_t magic, linktype;

    memset(capture, 0, offsetof(struct coven_capture, window));
    capture->fd = fd;
    head = load(capture, 0, 4);
    if (!head)
        return FAIL(capture, "the file is empty or too short for a capture");
    memcpy(&magic, head, 4);
    if (magic == MAGIC_NG) {
        capture->is_ng = true;
        return 0;
    }
    if (magic == __builtin_bswap32(MAGIC_MICRO) || magic == __builtin_bswap32(MAGIC_NANO)) {
        capture->swapped = true;
        magic = __builtin_bswap32(magic);
    }
    if (magic != MAGIC_MICRO && magic != MAGIC_NANO)
        return FAIL(capture, "the file is no pcap or pcapng capture");
    capture->nanosecond = magic == MAGIC_NANO;
    head = load(capture, 0, COVEN_CAPTURE_HEADER_BYTES);
    if (!head)
        return FAIL(capture, "the file ends within its header");
    if (get16(capture, head + 4) != 2)
        return FAIL(capture, "pcap version %u is not supported", get16(capture, head + 4));
    linktype = get32(capture, head + 20) & 0xffffu; /* the upper bits tell of an FCS */
    if (linktype != COVEN_LINKTYPE_ETHERNET)
        return FAIL(capture, "the link type is %u, not Ethernet (1)", linktype);
    capture->first = COVEN_CAPTURE_HEADER_BYTES;
    return 0;
}

/* ---- pcap ---- */

static int next_classic(struct coven_capture *capture, uint64_t *offset, struct coven_captured *packet)
{
    const uint8_t *record;
    uint64_t fraction;

    if (at_end(capture, *offset))
        return 0;
    record = load(capture, *offset, COVEN_CAPTURE_RECORD_BYTES);
    if (!record)
        return FAIL(capture, "the file ends within the record at byte %llu", (unsigned long long)*offset);
    packet->captured = get32(capture, record + 8);
    packet->original = get32(capture, record + 12);
    fraction = get32(capture, record + 4);
    packet->timestamp_ns = get32(capture, record) * SECOND_NS + (capture->nanosecond ? fraction : fraction * 1000);
    if (packet->captured > COVEN_CAPTURE_MAX_FRAME)
        return FAIL(capture, "the record at byte %llu claims a frame of %u bytes", (unsigned long long)*offset,
                    packet->captured);
    record = load(capture, *offset, COVEN_CAPTURE_RECORD_BYTES + packet->captured);
    if (!record)
        return FAIL(capture, "the file ends within the record at byte %llu", (unsigned long long)*offset);
    packet->data = record + COVEN_CAPTURE_RECORD_BYTES;
    *offset += COVEN_CAPTURE_RECORD_BYTES + packet->captured;
    return 1;
}

/* ---- pcapng ---- */

static uint64_t ng_time(uint8_t resolution, uint64_t units)
{
    unsigned int power = resolution & 0x7fu;
    uint64_t per_second = 1;

    if (resolution & 0x80u) {
        if (power > 63)
            return 0;
        return (uint64_t)(((unsigned __int128)units * SECOND_NS) >> power);
    }
    if (power > 19)
        return 0;
    while (power--)
        per_second *= 10;
    return (uint64_t)((unsigned __int128)units * SECOND_NS / per_second);
}

/* Section header: decides the byte order of what follows and forgets the interfaces. */
static int ng_section(struct coven_capture *capture, uint64_t offset)
{
    const uint8_t *block = load(capture, offset, 28);
    uint32_t order;

    if (!block)
        return FAIL(capture, "the file ends within the section header at byte %llu", (unsigned long long)offset);
    memcpy(&order, block + 8, 4);
    if (order != MAGIC_NG_ORDER && order != __builtin_bswap32(MAGIC_NG_ORDER))
        return FAIL(capture, "the section header at byte %llu has no byte order", (unsigned long long)offset);
    capture->swapped = order != MAGIC_NG_ORDER;
    if (get16(capture, block + 12) != 1)
        return FAIL(capture, "pcapng version %u is not supported", get16(capture, block + 12));
    capture->n_interfaces = 0;
    capture->scanned = offset;
    return 0;
}

static int ng_interface(struct coven_capture *capture, uint64_t offset, uint32_t total)
{
    struct coven_capture_interface *interface = &capture->interfaces[capture->n_interfaces];
    const uint8_t *block = total < 20 ? NULL : load(capture, offset, total);
    uint32_t at = 16;

    if (offset <= capture->scanned)
        return 0; /* read again */
    if (!block)
        return FAIL(capture, "the interface block at byte %llu has a wrong length", (unsigned long long)offset);
    if (capture->n_interfaces == COVEN_CAPTURE_INTERFACES)
        return FAIL(capture, "there are more than %u interfaces in a section", COVEN_CAPTURE_INTERFACES);
    interface->linktype = get16(capture, block + 8);
    interface->snaplen = get32(capture, block + 12);
    interface->resolution = 6;
    while (at + 4 <= total - 4) {
        uint32_t code = get16(capture, block + at), bytes = get16(capture, block + at + 2);

        if (code == 0 || bytes > total - 4 - (at + 4))
            break;
        if (code == OPTION_TSRESOL && bytes >= 1)
            interface->resolution = block[at + 4];
        at += 4 + ((bytes + 3u) & ~3u);
    }
    capture->n_interfaces++;
    capture->scanned = offset;
    return 0;
}

/* The three kinds of block that hold a packet. */
static int ng_packet(struct coven_capture *capture, uint64_t offset, uint32_t type, uint32_t total,
                     struct coven_captured *packet)
{
    uint32_t head = type == BLOCK_SIMPLE ? 12u : 28u, number = 0;
    const struct coven_capture_interface *interface;
    const uint8_t *block;

    if (total < head + 4)
        return FAIL(capture, "the packet block at byte %llu is too short", (unsigned long long)offset);
    block = total > COVEN_CAPTURE_WINDOW ? NULL : load(capture, offset, total);
    if (!block)
        return FAIL(capture, "the packet block at byte %llu has a wrong length", (unsigned long long)offset);
    if (type != BLOCK_SIMPLE)
        number = type == BLOCK_PACKET ? get16(capture, block + 8) : get32(capture, block + 8);
    if (number >= capture->n_interfaces)
        return FAIL(capture, "the packet at byte %llu is of an interface that was not described",
                    (unsigned long long)offset);
    interface = &capture->interfaces[number];
    if (interface->linktype != COVEN_LINKTYPE_ETHERNET)
        return FAIL(capture, "the packet at byte %llu has link type %u, not Ethernet (1)", (unsigned long long)offset,
                    interface->linktype);
    packet->data = block + head;
    if (type == BLOCK_SIMPLE) {
        packet->original = get32(capture, block + 8);
        packet->captured = packet->original;
        if (interface->snaplen && packet->captured > interface->snaplen)
            packet->captured = interface->snaplen;
        if (packet->captured > total - head - 4)
            packet->captured = total - head - 4;
        packet->timestamp_ns = 0;
    } else {
        packet->captured = get32(capture, block + 20);
        packet->original = get32(capture, block + 24);
        packet->timestamp_ns =
            ng_time(interface->resolution, (uint64_t)get32(capture, block + 12) << 32 | get32(capture, block + 16));
    }
    if (packet->captured > total - head - 4 || packet->captured > COVEN_CAPTURE_MAX_FRAME)
        return FAIL(capture, "the packet at byte %llu claims %u bytes, its block has fewer", (unsigned long long)offset,
                    packet->captured);
    return 1;
}

static int next_ng(struct coven_capture *capture, uint64_t *offset, struct coven_captured *packet)
{
    while (!at_end(capture, *offset)) {
        const uint8_t *head = load(capture, *offset, BLOCK_MIN_BYTES);
        uint32_t type, total;
        int result = 0;

        if (!head)
            return FAIL(capture, "the file ends within the block at byte %llu", (unsigned long long)*offset);
        memcpy(&type, head, 4); /* the same in both byte orders for a section header */
        if (type == MAGIC_NG && ng_section(capture, *offset) != 0)
            return -1;
        head = load(capture, *offset, BLOCK_MIN_BYTES);
        if (!head)
            return FAIL(capture, "the file cannot be read at byte %llu", (unsigned long long)*offset);
        type = get32(capture, head);
        total = get32(capture, head + 4);
        if (total < BLOCK_MIN_BYTES || total % 4)
            return FAIL(capture, "the block at byte %llu has the length %u", (unsigned long long)*offset, total);
        if (!load(capture, *offset + total - 4, 4))
            return FAIL(capture, "the file ends within the block at byte %llu", (unsigned long long)*offset);
        if (type == BLOCK_INTERFACE)
            result = ng_interface(capture, *offset, total);
        else if (type == BLOCK_PACKET || type == BLOCK_SIMPLE || type == BLOCK_ENHANCED)
            result = ng_packet(capture, *offset, type, total, packet);
        if (result < 0)
            return -1;
        *offset += total;
        if (result > 0)
            return 1;
    }
    return 0;
}

int coven_capture_next(struct coven_capture *capture, uint64_t *offset, struct coven_captured *packet)
{
    int result = capture->is_ng ? next_ng(capture, offset, packet) : next_classic(capture, offset, packet);

    if (result == 1 && packet->original < packet->captured)
        packet->original = packet->captured; /* some writers leave it 0 */
    return result;
}

int64_t coven_capture_check(int fd, char *why, size_t why_bytes)
{
    struct coven_capture *capture = malloc(sizeof(*capture));
    struct coven_captured packet;
    uint64_t offset;
    int64_t packets = 0;
    int result;

    if (!capture) {
        snprintf(why, why_bytes, "there is no memory to read it");
        return -1;
    }
    result = coven_capture_open(capture, fd);
    offset = capture->first;
    if (result == 0)
        while ((result = coven_capture_next(capture, &offset, &packet)) == 1)
            packets++;
    if (result < 0) {
        snprintf(why, why_bytes, "%s", capture->why);
        packets = -1;
    }
    free(capture);
    return packets;
}
