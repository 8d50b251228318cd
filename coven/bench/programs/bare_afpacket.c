/* SPDX-License-Identifier: Apache-2.0 */
/* The least that forwards frames from one interface to another over packet sockets: the measure for COVEN's port
 * afpacket. Shares no code with it.
 *
 *     bare_afpacket FROM TO v2|v3 block|spin
 *
 * A TPACKET_V2 or V3 ring on FROM, sendmmsg() straight out of the ring on TO, up to 64 frames a call; poll() when the
 * ring is empty, or looking again. V3 hands over blocks of frames, which is cheaper and later. No accounting, no checks,
 * no VLAN tags, no offloads, one direction. Runs until it is killed. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define FRAMES 16384u
#define FRAME_BYTES 2048u
#define BLOCK_BYTES (1u << 16)
#define BLOCKS (FRAMES * FRAME_BYTES / BLOCK_BYTES)
#define BURST 64u
#define RETIRE_MS 1

static struct mmsghdr messages[BURST];
static struct iovec parts[BURST];

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

static uint8_t *map_ring(int fd, int version)
{
    struct tpacket_req3 request = {
        .tp_block_size = BLOCK_BYTES,
        .tp_block_nr = BLOCKS,
        .tp_frame_size = FRAME_BYTES,
        .tp_frame_nr = FRAMES,
        .tp_retire_blk_tov = RETIRE_MS,
    };
    socklen_t size = version == TPACKET_V3 ? sizeof(struct tpacket_req3) : sizeof(struct tpacket_req);
    int on = 1;
    void *ring;

    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on));
    if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) != 0 ||
        setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, size) != 0)
        return NULL;
    ring = mmap(NULL, (size_t)FRAMES * FRAME_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return ring == MAP_FAILED ? NULL : ring;
}

static void wait_for(int fd, bool spin)
{
    struct pollfd look = {.fd = fd, .events = POLLIN};

    if (!spin)
        poll(&look, 1, -1);
}

static void forward_v2(int in, int out, uint8_t *ring, bool spin)
{
    for (uint32_t at = 0;;) {
        struct tpacket2_hdr *slots[BURST];
        unsigned int n = 0;

        for (; n < BURST; n++) {
            struct tpacket2_hdr *slot = (void *)(ring + (size_t)((at + n) % FRAMES) * FRAME_BYTES);

            if (!(__atomic_load_n(&slot->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
                break;
            parts[n] = (struct iovec){(uint8_t *)slot + slot->tp_mac, slot->tp_snaplen};
            slots[n] = slot;
        }
        if (n == 0) {
            wait_for(in, spin);
            continue;
        }
        sendmmsg(out, messages, n, MSG_DONTWAIT);
        for (unsigned int i = 0; i < n; i++)
            __atomic_store_n(&slots[i]->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        at = (at + n) % FRAMES;
    }
}

static void forward_v3(int in, int out, uint8_t *ring, bool spin)
{
    for (uint32_t at = 0;; at = (at + 1) % BLOCKS) {
        struct tpacket_block_desc *block = (void *)(ring + (size_t)at * BLOCK_BYTES);
        struct tpacket3_hdr *frame;
        unsigned int n = 0;

        while (!(__atomic_load_n(&block->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
            wait_for(in, spin);
        frame = (void *)((uint8_t *)block + block->hdr.bh1.offset_to_first_pkt);
        for (uint32_t left = block->hdr.bh1.num_pkts; left > 0; left--) {
            parts[n++] = (struct iovec){(uint8_t *)frame + frame->tp_mac, frame->tp_snaplen};
            if (n == BURST || left == 1) {
                sendmmsg(out, messages, n, MSG_DONTWAIT);
                n = 0;
            }
            frame = (void *)((uint8_t *)frame + frame->tp_next_offset);
        }
        __atomic_store_n(&block->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
    }
}

int main(int argc, char **argv)
{
    int in, out, on = 1, version;
    uint8_t *ring;
    bool spin;

    if (argc != 5)
        return 2;
    version = strcmp(argv[3], "v3") == 0 ? TPACKET_V3 : TPACKET_V2;
    spin = strcmp(argv[4], "spin") == 0;
    in = open_on(argv[1], ETH_P_ALL);
    out = open_on(argv[2], 0);
    ring = in < 0 ? NULL : map_ring(in, version);
    if (out < 0 || ring == NULL) {
        perror("bare_afpacket");
        return 1;
    }
    setsockopt(out, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on));
    for (unsigned int i = 0; i < BURST; i++)
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    if (version == TPACKET_V3)
        forward_v3(in, out, ring, spin);
    else
        forward_v2(in, out, ring, spin);
    return 0;
}
