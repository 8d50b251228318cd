/* SPDX-License-Identifier: Apache-2.0 */
/* How long a written cache line takes to be seen by a spinning core: two threads, one on each core, hand a number
 * back and forth through two lines. Prints the median of one way in nanoseconds, and the least and the most.
 *
 *     hop CORE CORE BATCHES ROUNDS */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MOST_BATCHES 64u

static unsigned int rounds, batches;

static struct {
    _Alignas(128) uint64_t there;
    _Alignas(128) uint64_t back;
} lines;

static void bind_to(int core)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET((unsigned int)core, &set);
    sched_setaffinity(0, sizeof(set), &set);
}

static void *answer(void *core)
{
    bind_to((int)(intptr_t)core);
    for (uint64_t i = 1; i <= (uint64_t)rounds * batches; i++) {
        while (__atomic_load_n(&lines.there, __ATOMIC_ACQUIRE) != i)
            continue;
        __atomic_store_n(&lines.back, i, __ATOMIC_RELEASE);
    }
    return NULL;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    double ns[MOST_BATCHES];
    pthread_t thread;
    uint64_t i = 0;

    if (argc != 5)
        return 2;
    batches = (unsigned int)atoi(argv[3]);
    rounds = (unsigned int)atoi(argv[4]);
    if (batches == 0 || batches > MOST_BATCHES || rounds == 0)
        return 2;
    bind_to(atoi(argv[1]));
    if (pthread_create(&thread, NULL, answer, (void *)(intptr_t)atoi(argv[2])) != 0)
        return 1;
    for (unsigned int batch = 0; batch < batches; batch++) {
        struct timespec a, b;

        clock_gettime(CLOCK_MONOTONIC, &a);
        for (unsigned int round = 0; round < rounds; round++) {
            __atomic_store_n(&lines.there, ++i, __ATOMIC_RELEASE);
            while (__atomic_load_n(&lines.back, __ATOMIC_ACQUIRE) != i)
                continue;
        }
        clock_gettime(CLOCK_MONOTONIC, &b);
        ns[batch] = ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / (2.0 * rounds);
    }
    pthread_join(thread, NULL);
    qsort(ns, batches, sizeof(ns[0]), compare);
    printf("%.1f %.1f %.1f\n", ns[batches / 2], ns[0], ns[batches - 1]);
    return 0;
}
