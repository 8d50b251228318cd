/* SPDX-License-Identifier: Apache-2.0 */
/* Sends UDP frames into one network namespace's interface and takes them back from another's, at a rate or as fast as
 * the kernel takes them, and tells how long each was under way.
 *
 *     traffic FROM_NETNS TO_NETNS INTERFACE BYTES RATE MILLISECONDS FLOWS
 *
 * BYTES 0: simple IMIX. RATE 0: as fast as can be, and nothing is taken back (the interface's counters tell). A packet
 * socket past the queueing discipline, up to 64 frames a system call, paced by a spinning clock; each frame carries its
 * number and CLOCK_REALTIME before the call. Taken back through a ring in which the kernel notes when each frame came, so
 * what this process does meanwhile is not in the latency. Ends early on SIGTERM. Prints one line:
 * sent wanted received lost_by_ring wall_ns longest_gap_ns p50 p99 p999 max (ns; 0 without frames). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BURST 64u
#define PACED_BURST 16u
#define MAX_BYTES 9000u
#define RING_FRAMES 65536u
#define RING_FRAME_BYTES 256u /* the headers and the mark: longer frames are cut */
#define RING_BLOCK_BYTES (1u << 16)
#define MARK_AT 42u
#define DRAIN_NS 50000000u /* waited for the last frames */
#define FINE 64u           /* parts of a power of two in the histogram: 1.6 % */
#define BINS (40u * FINE)

static const uint16_t imix[12] = {60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 60, 590};
static const char magic[8] = "COVENLAT";
static volatile sig_atomic_t ended;
static uint64_t bins[BINS], received, longest;
static uint8_t frames[BURST][MAX_BYTES];

static void on_term(int signal)
{
    (void)signal;
    ended = 1;
}

static uint64_t clock_of(clockid_t which)
{
    struct timespec now;

    clock_gettime(which, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int open_in(const char *netns, const char *interface, int protocol)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons((uint16_t)protocol)};
    int ns = open(netns, O_RDONLY | O_CLOEXEC), fd;

    if (ns < 0 || setns(ns, CLONE_NEWNET) != 0)
        return -1;
    close(ns);
    address.sll_ifindex = (int)if_nametoindex(interface);
    fd = socket(AF_PACKET, SOCK_RAW, 0);
    if (fd < 0 || address.sll_ifindex == 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
        return -1;
    return fd;
}

static uint8_t *map_ring(int fd)
{
    struct tpacket_req request = {
        .tp_block_size = RING_BLOCK_BYTES,
        .tp_block_nr = RING_FRAMES / (RING_BLOCK_BYTES / RING_FRAME_BYTES),
        .tp_frame_size = RING_FRAME_BYTES,
        .tp_frame_nr = RING_FRAMES,
    };
    int version = TPACKET_V2, on = 1;
    void *ring;

    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on));
    if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) != 0 ||
        setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof(request)) != 0)
        return NULL;
    ring = mmap(NULL, (size_t)RING_FRAMES * RING_FRAME_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return ring == MAP_FAILED ? NULL : ring;
}

/* ---- frames ------------------------------------------------------------------------------------ */
static void make_frame(uint8_t *frame, unsigned int bytes, uint32_t flow)
{
    static const uint8_t head[42] = {2, 0,  0,  0, 0, 2,   2,  0, 0, 0,   0,  1, 8, 0, 0x45, 0, 0, 0, 0, 0, 0x40,
                                     0, 64, 17, 0, 0, 198, 18, 0, 1, 198, 19, 0, 1, 4, 0,    0, 9, 0, 0, 0, 0};
    uint32_t sum = 0, port = 1024 + flow % 16384, source = 1 + flow / 16384;

    memcpy(frame, head, sizeof(head));
    frame[16] = (uint8_t)((bytes - 14) >> 8);
    frame[17] = (uint8_t)(bytes - 14);
    frame[28] = (uint8_t)(source >> 8);
    frame[29] = (uint8_t)source;
    frame[34] = (uint8_t)(port >> 8);
    frame[35] = (uint8_t)port;
    frame[38] = (uint8_t)((bytes - 34) >> 8);
    frame[39] = (uint8_t)(bytes - 34);
    for (int i = 14; i < 34; i += 2)
        sum += (uint32_t)(frame[i] << 8 | frame[i + 1]);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = ~(sum + (sum >> 16)) & 0xffff;
    frame[24] = (uint8_t)(sum >> 8);
    frame[25] = (uint8_t)sum;
}

/* ---- what came back ---------------------------------------------------------------------------- */
static unsigned int bin_of(uint64_t ns)
{
    unsigned int power;

    if (ns < FINE)
        return (unsigned int)ns;
    power = 63u - (unsigned int)__builtin_clzll(ns);
    power = power * FINE + (unsigned int)((ns >> (power - 6)) & (FINE - 1)) - 5 * FINE;
    return power < BINS ? power : BINS - 1;
}

static uint64_t value_of(unsigned int bin)
{
    unsigned int power = bin / FINE + 5;

    return bin < FINE ? bin : (1ull << power) + ((uint64_t)(bin % FINE) << (power - 6));
}

static uint64_t percentile(double share)
{
    uint64_t wanted = (uint64_t)((double)received * share), seen = 0;
    unsigned int bin = 0;

    for (; bin < BINS - 1; bin++)
        if ((seen += bins[bin]) > wanted)
            break;
    return received ? value_of(bin) : 0;
}

static uint32_t drain(uint8_t *ring, uint32_t at, unsigned int most)
{
    for (; most > 0; most--) {
        struct tpacket2_hdr *slot = (void *)(ring + (size_t)at * RING_FRAME_BYTES);
        const uint8_t *frame = (uint8_t *)slot + slot->tp_mac;
        uint64_t sent, came;

        if (!(__atomic_load_n(&slot->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
            break;
        came = (uint64_t)slot->tp_sec * 1000000000u + slot->tp_nsec;
        if (slot->tp_snaplen >= MARK_AT + 18 && memcmp(frame + MARK_AT, magic, sizeof(magic)) == 0) {
            memcpy(&sent, frame + MARK_AT + 8, sizeof(sent));
            came = came > sent ? came - sent : 0;
            longest = came > longest ? came : longest;
            bins[bin_of(came)]++;
            received++;
        }
        __atomic_store_n(&slot->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        at = (at + 1) % RING_FRAMES;
    }
    return at;
}

/* ---- what is sent ------------------------------------------------------------------------------ */
struct plan {
    unsigned int bytes, flows;
    uint64_t rate, ns;
};

static unsigned int send_burst(int fd, const struct plan *plan, uint64_t number, unsigned int n)
{
    struct mmsghdr messages[BURST] = {0};
    struct iovec parts[BURST];
    uint64_t now;
    int sent;

    for (unsigned int i = 0; i < n; i++) {
        unsigned int bytes = plan->bytes ? plan->bytes : imix[(number + i) % 12];

        if (plan->flows > 1 || plan->bytes == 0)
            make_frame(frames[i], bytes, (uint32_t)((number + i) % plan->flows));
        parts[i] = (struct iovec){frames[i], bytes};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    }
    now = clock_of(CLOCK_REALTIME);
    for (unsigned int i = 0; i < n; i++)
        memcpy(frames[i] + MARK_AT + 8, &now, sizeof(now));
    sent = sendmmsg(fd, messages, n, MSG_DONTWAIT);
    return sent > 0 ? (unsigned int)sent : 0;
}

int main(int argc, char **argv)
{
    uint64_t begin, now, last, gap = 0, sent = 0, wanted = 0;
    struct tpacket_stats lost = {0};
    socklen_t size = sizeof(lost);
    uint8_t *ring = NULL;
    struct plan plan;
    uint32_t at = 0;
    int in = -1, out;

    if (argc != 8)
        return 2;
    plan.bytes = (unsigned int)atoi(argv[4]);
    plan.rate = strtoull(argv[5], NULL, 10);
    plan.ns = strtoull(argv[6], NULL, 10) * 1000000u;
    plan.flows = (unsigned int)atoi(argv[7]);
    if ((plan.bytes != 0 && (plan.bytes < 60 || plan.bytes > MAX_BYTES)) || plan.flows < 1)
        return 2;
    if (plan.rate > 0) {
        in = open_in(argv[2], argv[3], ETH_P_IP);
        ring = in < 0 ? NULL : map_ring(in);
    }
    out = open_in(argv[1], argv[3], 0);
    if (out < 0 || (plan.rate > 0 && !ring)) {
        perror("traffic");
        return 1;
    }
    setsockopt(out, SOL_PACKET, PACKET_QDISC_BYPASS, &(int){1}, sizeof(int));
    for (unsigned int i = 0; i < BURST; i++) {
        make_frame(frames[i], plan.bytes ? plan.bytes : 60, 0);
        memcpy(frames[i] + MARK_AT, magic, sizeof(magic));
    }
    signal(SIGTERM, on_term);
    begin = last = clock_of(CLOCK_MONOTONIC);
    while (!ended && (now = clock_of(CLOCK_MONOTONIC)) - begin < plan.ns) {
        unsigned int n = BURST;

        gap = now - last > gap ? now - last : gap;
        last = now;
        if (plan.rate > 0) {
            wanted = (uint64_t)((double)(now - begin) * (double)plan.rate / 1e9);
            n = wanted - sent < PACED_BURST ? (unsigned int)(wanted - sent) : PACED_BURST;
        }
        if (n > 0)
            sent += send_burst(out, &plan, sent, n);
        if (ring)
            at = drain(ring, at, 16);
    }
    now = clock_of(CLOCK_MONOTONIC);
    begin = now - begin;
    /* who was not running at the end has not sent what was due then */
    wanted = (uint64_t)((double)(begin < plan.ns ? begin : plan.ns) * (double)plan.rate / 1e9);
    while (ring && clock_of(CLOCK_MONOTONIC) - now < DRAIN_NS)
        at = drain(ring, at, RING_FRAMES);
    if (in >= 0)
        getsockopt(in, SOL_PACKET, PACKET_STATISTICS, &lost, &size);
    printf("%llu %llu %llu %u %llu %llu %llu %llu %llu %llu\n", (unsigned long long)sent, (unsigned long long)wanted,
           (unsigned long long)received, lost.tp_drops, (unsigned long long)begin, (unsigned long long)gap,
           (unsigned long long)percentile(0.5), (unsigned long long)percentile(0.99),
           (unsigned long long)percentile(0.999), (unsigned long long)longest);
    return 0;
}
