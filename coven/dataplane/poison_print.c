/* SPDX-License-Identifier: Apache-2.0 */
#include "parse.h"
#include "poison.h"
#include "siphash.h"

#define HEADER_BYTES 512u /* a multiple of 8; what varies lies within */
#define TCP_BYTES 20u
#define TCP_TIMESTAMPS 8u /* option kind, RFC 7323 section 3.2 */

static void wipe(uint8_t *header, uint32_t bytes, uint32_t at, uint32_t n)
{
    if (at + n <= bytes)
        memset(header + at, 0, n);
}

/* Timestamps differ in each retransmission; what else options say may be what kills. */
static void wipe_tcp_options(uint8_t *header, uint32_t bytes, uint32_t tcp)
{
    uint32_t at = tcp + TCP_BYTES, end;

    if (at > bytes)
        return;
    end = tcp + (header[tcp + 12] >> 4) * 4u;
    while (at + 1 < end && at + 1 < bytes) {
        uint8_t kind = header[at], length = header[at + 1];

        if (kind == 0)
            return;
        if (kind == 1) {
            at++;
            continue;
        }
        if (length < 2)
            return;
        if (kind == TCP_TIMESTAMPS && length == 10)
            wipe(header, bytes, at + 2, 8);
        at += length;
    }
}

static void wipe_varying(uint8_t *header, uint32_t bytes, const struct coven_parsed *parsed)
{
    if (parsed->ip_version == 4) {
        wipe(header, bytes, parsed->l3_offset + 4u, 2);  /* identification */
        wipe(header, bytes, parsed->l3_offset + 8u, 1);  /* time to live */
        wipe(header, bytes, parsed->l3_offset + 10u, 2); /* checksum */
    } else if (parsed->ip_version == 6) {
        wipe(header, bytes, parsed->l3_offset + 7u, 1); /* hop limit */
    }
    if ((parsed->flags & COVEN_PARSED_PORTS) == 0 || parsed->l4_offset == 0)
        return;
    if (parsed->protocol == COVEN_PROTO_TCP) {
        wipe(header, bytes, parsed->l4_offset + 8u, 4);  /* acknowledgement */
        wipe(header, bytes, parsed->l4_offset + 14u, 4); /* window, checksum */
        wipe_tcp_options(header, bytes, parsed->l4_offset);
    } else if (parsed->protocol == COVEN_PROTO_UDP) {
        wipe(header, bytes, parsed->l4_offset + 6u, 2); /* checksum */
    }
}

static uint64_t last_word(const uint8_t *data, uint32_t n, uint32_t length)
{
    uint8_t bytes[8] = {0};

    memcpy(bytes, data, n);
    return load_word(bytes) ^ (uint64_t)length << 56;
}

uint64_t coven_poison_fingerprint(const uint64_t seed[2], const uint8_t *data, uint32_t length)
{
    uint8_t header[HEADER_BYTES];
    uint32_t bytes = length < HEADER_BYTES ? length : HEADER_BYTES, at;
    struct coven_parsed parsed;
    uint64_t v[4], hash;

    coven_parse(data, length, &parsed);
    memcpy(header, data, bytes);
    wipe_varying(header, bytes, &parsed);
    sip_begin(seed, v);
    sip_word(v, length);
    for (at = 0; at + 8 <= bytes; at += 8)
        sip_word(v, load_word(header + at));
    for (; at + 8 <= length; at += 8)
        sip_word(v, load_word(data + at));
    hash = sip_end(v, last_word(at < bytes ? header + at : data + at, length - at, length));
    return hash != 0 ? hash : 1;
}
