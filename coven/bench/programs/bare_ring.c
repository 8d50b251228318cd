/* SPDX-License-Identifier: Apache-2.0 */
/* The least that hands packets from one process through others and back, over rings in shared memory: the measure for
 * isolated components. Shares no code with COVEN.
 *
 *     bare_ring CORE OTHER_CORE PROCESSES COPY BYTES MILLISECONDS
 *
 * A worker on CORE writes a number into each packet and passes it to the first process, takes it back, passes it to the
 * next, and counts it after the last; all PROCESSES share OTHER_CORE. Rings of 1024 words in bursts of 32, one producer
 * and one consumer each. COPY 1: the packet's BYTES are copied into memory of the process and out of it again. Who finds
 * nothing yields. No accounting, no checks. Prints packets, wall nanoseconds, CPU nanoseconds of worker and of the rest. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BURST 32u
#define SIZE 1024u
#define BUFFER_BYTES 2048u /* of which 1500 and a few lines are used */
#define MOST 8u
#define LOOKS 64u

struct ring {
    _Alignas(128) uint32_t tail;
    _Alignas(128) uint32_t head;
    _Alignas(128) uint32_t entry[SIZE];
};

struct shared {
    struct ring there[MOST], back[MOST];
    _Alignas(128) uint32_t stop;
};

/* One side's own position and what it last saw of the other's. */
struct side {
    struct ring *ring;
    uint32_t own, seen;
};

static uint32_t room(struct side *side)
{
    if (SIZE - (side->own - side->seen) < BURST)
        side->seen = __atomic_load_n(&side->ring->head, __ATOMIC_ACQUIRE);
    return SIZE - (side->own - side->seen);
}

static uint32_t ready(struct side *side)
{
    uint32_t n;

    if (side->seen == side->own)
        side->seen = __atomic_load_n(&side->ring->tail, __ATOMIC_ACQUIRE);
    n = side->seen - side->own;
    return n < BURST ? n : BURST;
}

static void bind_to(const char *core)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET((unsigned int)atoi(core), &set);
    sched_setaffinity(0, sizeof(set), &set);
}

static void process(struct shared *shared, unsigned int number)
{
    struct side in = {&shared->there[number], 0, 0}, out = {&shared->back[number], 0, 0};
    unsigned int idle = 0;

    while (!__atomic_load_n(&shared->stop, __ATOMIC_RELAXED)) {
        uint32_t n = ready(&in);

        if (n == 0 || room(&out) < n) {
            if (++idle > LOOKS)
                sched_yield();
            continue;
        }
        idle = 0;
        for (uint32_t i = 0; i < n; i++)
            out.ring->entry[(out.own + i) % SIZE] = in.ring->entry[(in.own + i) % SIZE];
        out.own += n;
        in.own += n;
        __atomic_store_n(&out.ring->tail, out.own, __ATOMIC_RELEASE);
        __atomic_store_n(&in.ring->head, in.own, __ATOMIC_RELEASE);
    }
}

static uint64_t clock_of(clockid_t which)
{
    struct timespec now;

    clock_gettime(which, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* What the worker has: its sides of all rings, packet memory, and in `copy` each process's own. */
struct worker {
    struct side to[MOST], from[MOST];
    uint8_t *pool, *own;
    unsigned int n, copy, bytes;
    uint64_t made, done;
};

/* Buffers a power of two apart would meet in the same few sets of the cache, so each begins a few lines further. */
static size_t place(uint32_t handle)
{
    return (size_t)handle * BUFFER_BYTES + (handle & 7) * 64;
}

static uint8_t *own_of(struct worker *worker, unsigned int number, uint32_t handle)
{
    return worker->own + (size_t)number * SIZE * BUFFER_BYTES + place(handle);
}

/* Take a burst from where stage `s` gets its packets and give it to process s; stage n is the end. */
static uint32_t stage(struct worker *worker, unsigned int s)
{
    struct side *from = s > 0 ? &worker->from[s - 1] : NULL, *to = s < worker->n ? &worker->to[s] : NULL;
    uint32_t n = from ? ready(from) : BURST;

    if (n == 0 || (to && room(to) < n) || (!from && worker->made - worker->done + BURST > SIZE))
        return 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t handle = from ? from->ring->entry[(from->own + i) % SIZE] : (uint32_t)((worker->made + i) % SIZE);
        uint8_t *packet = worker->pool + place(handle);

        if (!from)
            memcpy(packet, &worker->made, sizeof(worker->made));
        if (from && worker->copy)
            memcpy(packet, own_of(worker, s - 1, handle), worker->bytes);
        if (to && worker->copy)
            memcpy(own_of(worker, s, handle), packet, worker->bytes);
        if (to)
            to->ring->entry[(to->own + i) % SIZE] = handle;
    }
    if (from)
        __atomic_store_n(&from->ring->head, from->own += n, __ATOMIC_RELEASE);
    else
        worker->made += n;
    if (to)
        __atomic_store_n(&to->ring->tail, to->own += n, __ATOMIC_RELEASE);
    else
        worker->done += n;
    return n;
}

static void run(struct worker *worker, uint64_t milliseconds)
{
    uint64_t end = clock_of(CLOCK_MONOTONIC) + milliseconds * 1000000u;
    unsigned int idle = 0;

    do
        for (unsigned int turn = 0; turn < 64; turn++) {
            uint32_t moved = 0;

            for (unsigned int s = 0; s <= worker->n; s++)
                moved += stage(worker, s);
            if (moved == 0 && ++idle > LOOKS)
                sched_yield();
            else if (moved)
                idle = 0;
        }
    while (clock_of(CLOCK_MONOTONIC) < end);
}

static void *memory(size_t bytes)
{
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    return base == MAP_FAILED ? NULL : base;
}

int main(int argc, char **argv)
{
    struct worker worker = {0};
    struct shared *shared = memory(sizeof(*shared));
    clockid_t clocks[MOST];
    uint64_t wall, cpu, warm, others = 0;
    pid_t pids[MOST];

    if (argc != 7 || !shared)
        return 2;
    worker.n = (unsigned int)atoi(argv[3]);
    worker.copy = (unsigned int)atoi(argv[4]);
    worker.bytes = (unsigned int)atoi(argv[5]);
    worker.pool = memory((size_t)SIZE * BUFFER_BYTES);
    worker.own = memory((size_t)MOST * SIZE * BUFFER_BYTES);
    if (worker.n < 1 || worker.n > MOST || worker.bytes > 1536 || !worker.pool || !worker.own)
        return 2;
    for (unsigned int i = 0; i < worker.n; i++) {
        worker.to[i].ring = &shared->there[i];
        worker.from[i].ring = &shared->back[i];
        pids[i] = fork();
        if (pids[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            bind_to(argv[2]);
            process(shared, i);
            _exit(0);
        }
        if (pids[i] < 0)
            return 1;
    }
    bind_to(argv[1]);
    run(&worker, 30);
    wall = clock_of(CLOCK_MONOTONIC);
    cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID);
    for (unsigned int i = 0; i < worker.n; i++)
        if (clock_getcpuclockid(pids[i], &clocks[i]) == 0)
            others -= clock_of(clocks[i]);
    warm = worker.done;
    run(&worker, (uint64_t)atoi(argv[6]));
    wall = clock_of(CLOCK_MONOTONIC) - wall;
    cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    for (unsigned int i = 0; i < worker.n; i++)
        others += clock_of(clocks[i]);
    __atomic_store_n(&shared->stop, 1, __ATOMIC_RELAXED);
    for (unsigned int i = 0; i < worker.n; i++)
        waitpid(pids[i], NULL, 0);
    printf("%llu %llu %llu %llu\n", (unsigned long long)(worker.done - warm), (unsigned long long)wall,
           (unsigned long long)cpu, (unsigned long long)others);
    return 0;
}
