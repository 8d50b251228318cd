/* SPDX-License-Identifier: Apache-2.0 */
/* Sends the same UDP frame over an interface as fast as the kernel takes it, for a number of seconds.
 *
 *     sender INTERFACE BYTES SECONDS
 *
 * A packet socket past the queueing discipline, 64 frames a system call. Over a veth pair the receiver's side of the
 * wire runs on the sender's CPU. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define BURST 64u
#define MAX_BYTES 9000u

static const uint8_t head[42] = {
    2,    0, 0, 0, 0, 2, 2,    0, 0,  0,  0, 1, 8,   0,                       /* Ethernet */
    0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 198, 18, 0, 1, 198, 19, 0, 1, /* IPv4 */
    4,    0, 0, 9, 0, 0, 0,    0,                                             /* UDP without checksum */
};

static void make_frame(uint8_t *frame, unsigned int bytes)
{
    uint32_t sum = 0;

    memset(frame, 0, bytes);
    memcpy(frame, head, sizeof(head));
    frame[16] = (uint8_t)((bytes - 14) >> 8);
    frame[17] = (uint8_t)(bytes - 14);
    frame[38] = (uint8_t)((bytes - 34) >> 8);
    frame[39] = (uint8_t)(bytes - 34);
    for (int i = 14; i < 34; i += 2)
        sum += (uint32_t)(frame[i] << 8 | frame[i + 1]);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = ~(sum + (sum >> 16)) & 0xffff;
    frame[24] = (uint8_t)(sum >> 8);
    frame[25] = (uint8_t)sum;
}

static int open_socket(const char *interface)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(interface)};
    int fd = socket(AF_PACKET, SOCK_RAW, 0), on = 1;

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
        return -1;
    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on));
    return fd;
}

int main(int argc, char **argv)
{
    static uint8_t frame[MAX_BYTES];
    struct iovec part = {.iov_base = frame};
    struct mmsghdr messages[BURST] = {0};
    struct timespec now, end;
    unsigned long long sent = 0;
    unsigned int bytes = argc == 4 ? (unsigned int)atoi(argv[2]) : 0;
    int fd;

    if (bytes < sizeof(head) || bytes > MAX_BYTES)
        return 2;
    fd = open_socket(argv[1]);
    if (fd < 0) {
        perror(argv[1]);
        return 1;
    }
    make_frame(frame, bytes);
    part.iov_len = bytes;
    for (unsigned int i = 0; i < BURST; i++) {
        messages[i].msg_hdr.msg_iov = &part;
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += atoi(argv[3]);
    do {
        int n = sendmmsg(fd, messages, BURST, 0);

        sent += n > 0 ? (unsigned int)n : 0;
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
    printf("%llu\n", sent);
    return 0;
}
