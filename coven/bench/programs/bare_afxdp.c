/* SPDX-License-Identifier: Apache-2.0 */
/* The least that forwards frames from one interface to another by AF_XDP in copy mode: the measure for COVEN's port
 * afxdp. Shares no code with it.
 *
 *     bare_afxdp FROM TO nap|block|spin
 *
 * One packet memory registered with a socket on queue 0 of each interface; what comes in at FROM goes out at TO from
 * where it lies. When nothing came: a nap before poll(), so that packets come in heaps; poll() at once; or neither.
 * No accounting, no checks, no offloads, one direction. Runs until it is killed. */
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define FRAMES 32768u
#define FRAME_BYTES 2048u
#define ENTRIES 16384u /* of each ring */
#define BURST 64u
#define NAP_NS 50000

struct ring {
    uint32_t *producer, *consumer;
    void *entries;
};

struct end {
    int fd;
    struct ring rx, tx, fill, completion;
};

static uint32_t load(uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void store(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static int bpf(int command, union bpf_attr *attributes)
{
    return (int)syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

/* r0 = bpf_redirect_map(map, ctx->rx_queue_index, XDP_PASS); return r0 */
static int redirect_to(int socket_fd, unsigned int interface)
{
    uint32_t queue = 0, value = (uint32_t)socket_fd;
    union bpf_attr map = {.map_type = BPF_MAP_TYPE_XSKMAP, .key_size = 4, .value_size = 4, .max_entries = 1};
    int map_fd = bpf(BPF_MAP_CREATE, &map);
    struct bpf_insn code[] = {
        {.code = BPF_LDX | BPF_MEM | BPF_W, .dst_reg = 2, .src_reg = 1, .off = 16},
        {.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = map_fd},
        {0},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3, .imm = XDP_PASS},
        {.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_redirect_map},
        {.code = BPF_JMP | BPF_EXIT},
    };
    union bpf_attr program = {
        .prog_type = BPF_PROG_TYPE_XDP,
        .insn_cnt = sizeof(code) / sizeof(code[0]),
        .insns = (uint64_t)(uintptr_t)code,
        .license = (uint64_t)(uintptr_t) "Apache-2.0",
    };
    union bpf_attr update = {
        .map_fd = (uint32_t)map_fd, .key = (uint64_t)(uintptr_t)&queue, .value = (uint64_t)(uintptr_t)&value};
    union bpf_attr link = {
        .link_create = {.target_ifindex = interface, .attach_type = BPF_XDP, .flags = XDP_FLAGS_DRV_MODE}};

    link.link_create.prog_fd = (uint32_t)bpf(BPF_PROG_LOAD, &program);
    if (map_fd < 0 || bpf(BPF_MAP_UPDATE_ELEM, &update) != 0)
        return -1;
    return bpf(BPF_LINK_CREATE, &link);
}

static void map_ring(struct ring *ring, int fd, const struct xdp_ring_offset *at, size_t entry, uint64_t page)
{
    uint8_t *base =
        mmap(NULL, at->desc + ENTRIES * entry, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)page);

    ring->producer = (uint32_t *)(void *)(base + at->producer);
    ring->consumer = (uint32_t *)(void *)(base + at->consumer);
    ring->entries = base + at->desc;
}

static int open_end(struct end *end, const char *name, uint8_t *memory)
{
    struct xdp_umem_reg region = {
        .addr = (uint64_t)(uintptr_t)memory, .len = (uint64_t)FRAMES * FRAME_BYTES, .chunk_size = FRAME_BYTES};
    struct sockaddr_xdp address = {
        .sxdp_family = AF_XDP, .sxdp_flags = XDP_COPY | XDP_USE_NEED_WAKEUP, .sxdp_ifindex = if_nametoindex(name)};
    struct xdp_mmap_offsets at;
    socklen_t bytes = sizeof(at);
    int size = ENTRIES, send_bytes = 16 << 20;

    end->fd = socket(AF_XDP, SOCK_RAW, 0);
    setsockopt(end->fd, SOL_SOCKET, SO_SNDBUFFORCE, &send_bytes, sizeof(send_bytes));
    if (end->fd < 0 || setsockopt(end->fd, SOL_XDP, XDP_UMEM_REG, &region, sizeof(region)) != 0)
        return -1;
    for (int ring = XDP_RX_RING; ring <= XDP_UMEM_COMPLETION_RING; ring++)
        if (ring != XDP_UMEM_REG && setsockopt(end->fd, SOL_XDP, ring, &size, sizeof(size)) != 0)
            return -1;
    if (getsockopt(end->fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &bytes) != 0)
        return -1;
    map_ring(&end->rx, end->fd, &at.rx, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING);
    map_ring(&end->tx, end->fd, &at.tx, sizeof(struct xdp_desc), XDP_PGOFF_TX_RING);
    map_ring(&end->fill, end->fd, &at.fr, sizeof(uint64_t), XDP_UMEM_PGOFF_FILL_RING);
    map_ring(&end->completion, end->fd, &at.cr, sizeof(uint64_t), XDP_UMEM_PGOFF_COMPLETION_RING);
    return bind(end->fd, (struct sockaddr *)&address, sizeof(address));
}

/* Frames that were sent go back to be received into. */
static void recycle(struct end *in, struct end *out)
{
    uint32_t head = *out->completion.consumer, n = load(out->completion.producer) - head, tail = *in->fill.producer;

    for (uint32_t i = 0; i < n; i++)
        ((uint64_t *)in->fill.entries)[(tail + i) % ENTRIES] =
            ((uint64_t *)out->completion.entries)[(head + i) % ENTRIES] / FRAME_BYTES * FRAME_BYTES;
    store(out->completion.consumer, head + n);
    store(in->fill.producer, tail + n);
}

static void forward(struct end *in, struct end *out, char mode)
{
    for (;;) {
        uint32_t head = *in->rx.consumer, n = load(in->rx.producer) - head, tail = *out->tx.producer;

        if (n == 0) {
            struct pollfd wait = {.fd = in->fd, .events = POLLIN};
            struct timespec nap = {.tv_nsec = NAP_NS};

            if (mode == 'n')
                nanosleep(&nap, NULL);
            if (mode != 's')
                poll(&wait, 1, -1);
            continue;
        }
        n = n < BURST ? n : BURST;
        for (uint32_t i = 0; i < n; i++)
            ((struct xdp_desc *)out->tx.entries)[(tail + i) % ENTRIES] =
                ((struct xdp_desc *)in->rx.entries)[(head + i) % ENTRIES];
        store(in->rx.consumer, head + n);
        store(out->tx.producer, tail + n);
        while (load(out->tx.consumer) != tail + n)
            if (sendto(out->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && load(out->tx.consumer) == tail)
                break; /* down: what is there goes later */
        recycle(in, out);
    }
}

int main(int argc, char **argv)
{
    uint8_t *memory = mmap(NULL, (size_t)FRAMES * FRAME_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    struct end in, out;

    if (argc != 4)
        return 2;
    if (open_end(&in, argv[1], memory) != 0 || open_end(&out, argv[2], memory) != 0 ||
        redirect_to(in.fd, if_nametoindex(argv[1])) < 0) {
        perror("bare_afxdp");
        return 1;
    }
    for (uint32_t i = 0; i < ENTRIES; i++)
        ((uint64_t *)in.fill.entries)[i] = (uint64_t)i * FRAME_BYTES;
    store(in.fill.producer, ENTRIES);
    socket(AF_PACKET, SOCK_RAW, 0); /* the kernel lists these: by it can be seen that all is ready */
    forward(&in, &out, argv[3][0]);
    return 0;
}
