/* SPDX-License-Identifier: Apache-2.0 */
/* Two processes, one ring: every entry arrives once, in order and whole; both sleep and are woken. */
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ring.h"

#define SIZE 64u
#define ENTRIES 300000u

struct shared {
    struct coven_ring ring;
    struct coven_entry entry[SIZE];
    struct coven_meta meta[SIZE];
    struct coven_meta_ext ext[SIZE];
};

static void produce(struct shared *memory, int doorbell)
{
    struct coven_ring_side side;
    struct coven_meta meta[COVEN_BURST] = {0};
    uint32_t next = 0;

    coven_ring_side_init(&side, &memory->ring, memory->entry, memory->meta, memory->ext, SIZE, 0, doorbell);
    while (next < ENTRIES) {
        uint16_t n = (uint16_t)(1 + next % COVEN_BURST);

        for (uint16_t i = 0; i < n; i++) {
            meta[i].handle = next + i;
            meta[i].timestamp_ns = ~(uint64_t)(next + i);
            meta[i].user[3] = next + i;
        }
        if (n > ENTRIES - next)
            n = (uint16_t)(ENTRIES - next);
        n = coven_ring_enqueue_burst(&side, meta, NULL, n);
        next += n;
        if (n == 0)
            sched_yield();
        else if (next % 4099 < n)
            usleep(50); /* let the consumer fall asleep now and then */
    }
    _exit(side.broken == 0 ? 0 : 1);
}

static int consume(struct shared *memory, int doorbell, unsigned *sleeps)
{
    struct coven_ring_side side;
    struct coven_meta meta[COVEN_BURST];
    uint32_t next = 0;

    coven_ring_side_init(&side, &memory->ring, memory->entry, memory->meta, memory->ext, SIZE, 0, doorbell);
    while (next < ENTRIES) {
        uint16_t n = coven_ring_dequeue_burst(&side, meta, NULL, COVEN_BURST);

        for (uint16_t i = 0; i < n; i++, next++)
            if (meta[i].handle != next || meta[i].timestamp_ns != ~(uint64_t)next || meta[i].user[3] != next)
                return fprintf(stderr, "entry %u is %u\n", next, meta[i].handle), 1;
        if (n == 0 && coven_ring_sleep(&side)) {
            struct pollfd fd = {.fd = doorbell, .events = POLLIN};

            if (poll(&fd, 1, 10000) != 1)
                return fprintf(stderr, "not woken at entry %u\n", next), 1;
            coven_doorbell_clear(doorbell);
            coven_ring_awake(&side);
            ++*sleeps;
        }
    }
    return side.broken == 0 ? 0 : 1;
}

int main(void)
{
    struct shared *memory = mmap(NULL, sizeof(*memory), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int doorbell = eventfd(0, EFD_NONBLOCK);
    unsigned sleeps = 0;
    int status, result;
    pid_t producer;

    if (memory == MAP_FAILED || doorbell < 0)
        return 2;
    producer = fork();
    if (producer == 0)
        produce(memory, doorbell);
    result = consume(memory, doorbell, &sleeps);
    if (result != 0)
        kill(producer, 9);
    waitpid(producer, &status, 0);
    printf("sleeps %u\n", sleeps);
    return result != 0 ? result : status != 0;
}
