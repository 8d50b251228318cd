/* SPDX-License-Identifier: Apache-2.0 */
/* Reader of capture files: pcap (micro- and nanoseconds, both byte orders) and pcapng (section, interface, packet,
 * enhanced and simple packet blocks). Reads by offset from a descriptor, so that a reader can go on where
 * another one stopped. Whatever the file holds, nothing is read beyond it and memory is bounded. */
#ifndef COVEN_CAPTURE_H
#define COVEN_CAPTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COVEN_CAPTURE_HEADER_BYTES 24u /* of a pcap file */
#define COVEN_CAPTURE_RECORD_BYTES 16u
#define COVEN_CAPTURE_MAX_FRAME 262144u /* what tcpdump takes for possible as well */
#define COVEN_CAPTURE_INTERFACES 64u
#define COVEN_CAPTURE_WINDOW (COVEN_CAPTURE_MAX_FRAME + 4096u)
#define COVEN_LINKTYPE_ETHERNET 1u

struct coven_capture_interface {
    uint16_t linktype;
    uint8_t resolution; /* if_tsresol: bit 7 set: power of 2, else of 10 */
    uint32_t snaplen;   /* 0: none */
};

struct coven_capture {
    int fd;
    bool is_ng, swapped, nanosecond;
    uint32_t n_interfaces;
    struct coven_capture_interface interfaces[COVEN_CAPTURE_INTERFACES];
    uint64_t first;     /* offset of the first record or block */
    uint64_t scanned;   /* pcapng: offset of the last block that described section or interface */
    uint64_t window_at; /* offset of the window in the file */
    uint32_t window_bytes;
    char why[160]; /* what is wrong, after a result of -1 */
    uint8_t window[COVEN_CAPTURE_WINDOW];
};

struct coven_captured {
    const uint8_t *data;   /* in the window: valid until the next call */
    uint32_t captured;     /* bytes there are */
    uint32_t original;     /* bytes there were, at least `captured` */
    uint64_t timestamp_ns; /* since 1970; 0 where the file has none */
};

/* Begin to read. Returns 0, or -1 with the reason in capture->why. */
int coven_capture_open(struct coven_capture *capture, int fd);

/* Read the packet at *offset (begin with capture->first) and move *offset behind it. Returns 1 for a packet, 0 at the
 * end, -1 for a malformed file with the reason in capture->why. An offset may be read again; to go on somewhere else,
 * read from capture->first up to there (pcapng describes its interfaces on the way). */
int coven_capture_next(struct coven_capture *capture, uint64_t *offset, struct coven_captured *packet);

/* Read a file to its end. Returns the number of packets, or -1 with a sentence in `why`. */
int64_t coven_capture_check(int fd, char *why, size_t why_bytes);

#endif
