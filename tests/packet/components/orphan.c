/* SPDX-License-Identifier: Apache-2.0 */
/* Leaves children that keep its out-ring full of nothing, whatever becomes of the component: several, so that one of them
 * runs while the worker does. Their pids are on standard output. */
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include <coven/component.h>

#define CHILDREN 4

static void flood(struct coven_replica *replica)
{
    for (;;)
        __atomic_store_n(&replica->out.tail, __atomic_load_n(&replica->out.head, __ATOMIC_RELAXED) + replica->ring_size,
                         __ATOMIC_RELAXED);
}

static int init(struct coven_component *self)
{
    void *segment = mmap(NULL, sizeof(struct coven_replica), PROT_READ | PROT_WRITE, MAP_SHARED, COVEN_FD_REPLICA, 0);

    (void)self;
    if (segment == MAP_FAILED)
        return -1;
    dprintf(1, "children");
    for (int i = 0; i < CHILDREN; i++) {
        pid_t child = fork();

        if (child == 0) {
            alarm(60); /* not for ever, even if the test dies */
            flood(segment);
        }
        dprintf(1, " %d", (int)child);
    }
    dprintf(1, "\n");
    return 0;
}

static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    (void)self;
    (void)pkts;
    (void)n;
}

COVEN_COMPONENT(.process_burst = process_burst, .init = init);
