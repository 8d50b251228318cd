/* SPDX-License-Identifier: Apache-2.0 */
/* The least that forwards frames from one interface to another over packet sockets: the measure for COVEN's port
 * afpacket. Shares no code with it.
 *
 *     bare_forwarder FROM TO
 *
 * A TPACKET_V2 ring on FROM, sendmmsg() straight out of the ring on TO, up to 32 frames a call, poll() when the ring
 * is empty. No accounting, no checks, no VLAN tags, no offloads, one direction. Runs until it is killed. */
#define _GNU_SOURCE
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define FRAMES 4096u
#define FRAME_BYTES 2048u
#define BLOCK_BYTES (1u << 16)
#define BURST 32u

static int open_on(const char *interface, int protocol)
{
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET,
        .sll_ifindex = (int)if_nametoindex(interface),
        .sll_protocol = htons((uint16_t)protocol),
    };
    int fd = socket(AF_PACKET, SOCK_RAW, 0);

    if (fd < 0 || address.sll_ifindex == 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
        return -1;
    return fd;
}

static uint8_t *map_ring(int fd)
{
    struct tpacket_req request = {
        .tp_block_size = BLOCK_BYTES,
        .tp_block_nr = FRAMES * FRAME_BYTES / BLOCK_BYTES,
        .tp_frame_size = FRAME_BYTES,
        .tp_frame_nr = FRAMES,
    };
    int version = TPACKET_V2, on = 1;
    void *ring;

    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on));
    if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) != 0 ||
        setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof(request)) != 0)
        return NULL;
    ring = mmap(NULL, (size_t)FRAMES * FRAME_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return ring == MAP_FAILED ? NULL : ring;
}

static void forward(int in, int out, uint8_t *ring)
{
    struct mmsghdr messages[BURST] = {0};
    struct iovec parts[BURST];
    uint32_t at = 0;

    for (unsigned int i = 0; i < BURST; i++) {
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    for (;;) {
        struct tpacket2_hdr *slots[BURST];
        unsigned int n = 0;

        for (; n < BURST; n++) {
            struct tpacket2_hdr *slot = (void *)(ring + (size_t)((at + n) % FRAMES) * FRAME_BYTES);

            if (!(__atomic_load_n(&slot->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
                break;
            parts[n].iov_base = (uint8_t *)slot + slot->tp_mac;
            parts[n].iov_len = slot->tp_snaplen;
            slots[n] = slot;
        }
        if (n == 0) {
            struct pollfd fd = {.fd = in, .events = POLLIN};

            poll(&fd, 1, -1);
            continue;
        }
        sendmmsg(out, messages, n, MSG_DONTWAIT);
        for (unsigned int i = 0; i < n; i++)
            __atomic_store_n(&slots[i]->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        at = (at + n) % FRAMES;
    }
}

int main(int argc, char **argv)
{
    int in, out, on = 1;
    uint8_t *ring;

    if (argc != 3)
        return 2;
    in = open_on(argv[1], ETH_P_ALL);
    out = open_on(argv[2], 0);
    ring = in < 0 ? NULL : map_ring(in);
    if (out < 0 || ring == NULL) {
        perror("bare_forwarder");
        return 1;
    }
    setsockopt(out, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on));
    forward(in, out, ring);
    return 0;
}
