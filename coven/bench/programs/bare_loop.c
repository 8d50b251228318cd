/* SPDX-License-Identifier: Apache-2.0 */
/* The least that makes packets in memory, shows them to functions in bursts, and counts them: the measure for fused
 * components. Shares no code with COVEN.
 *
 *     bare_loop CORE FUNCTIONS RULES BYTES MILLISECONDS
 *
 * FUNCTIONS calls of a function that does nothing for each burst of 32, through pointers; RULES 0, or a check of that
 * many rules over addresses, protocol and port of which the packets match the last. No accounting that outlives a
 * crash, no check of what came back, no metadata. Prints packets, wall nanoseconds, CPU nanoseconds. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BURST 32u
#define BUFFERS 4096u
#define BUFFER_BYTES 2048u
#define MOST 64u
#define MOST_RULES 65536u

struct view {
    uint8_t *data;
    uint32_t length;
    uint32_t drop;
};

struct rule {
    uint32_t source, source_mask, target, target_mask;
    uint16_t low, high;
    uint32_t protocol;
};

typedef void (*step)(struct view *, unsigned int);

static struct rule rules[MOST_RULES];
static unsigned int n_rules;

__attribute__((noinline)) static void nothing(struct view *pkts, unsigned int n)
{
    __asm__ volatile("" : : "r"(pkts), "r"(n) : "memory");
}

static uint32_t be32(const uint8_t *p)
{
    uint32_t value;

    memcpy(&value, p, sizeof(value));
    return __builtin_bswap32(value);
}

__attribute__((noinline)) static void check(struct view *pkts, unsigned int n)
{
    for (unsigned int i = 0; i < n; i++) {
        const uint8_t *p = pkts[i].data;
        uint32_t source = be32(p + 26), target = be32(p + 30), port = be32(p + 34) & 0xffff;
        unsigned int r = 0;

        if (p[12] == 8 && p[13] == 0 && p[14] == 0x45)
            while (r < n_rules && ((source & rules[r].source_mask) != rules[r].source ||
                                   (target & rules[r].target_mask) != rules[r].target ||
                                   (rules[r].protocol != 0 && rules[r].protocol != p[23]) || port < rules[r].low ||
                                   port > rules[r].high))
                r++;
        pkts[i].drop = r == n_rules;
    }
}

static uint64_t clock_of(clockid_t which)
{
    struct timespec now;

    clock_gettime(which, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void write_packet(uint8_t *p, uint64_t n, unsigned int bytes)
{
    static const uint8_t head[42] = {2, 0,  0,  0, 0, 2,   2,  0, 0, 0,   0,  1, 8, 0, 0x45, 0, 0, 50, 0,  0, 0x40,
                                     0, 64, 17, 0, 0, 198, 18, 0, 1, 198, 19, 0, 1, 4, 0,    0, 9, 0,  30, 0, 0};

    memcpy(p, head, sizeof(head));
    memcpy(p + sizeof(head), &n, sizeof(n));
    memset(p + sizeof(head) + sizeof(n), 0, bytes - sizeof(head) - sizeof(n));
}

int main(int argc, char **argv)
{
    uint8_t *pool = aligned_alloc(4096, (size_t)BUFFERS * BUFFER_BYTES);
    uint64_t sent = 0, dropped = 0, wall, cpu, end;
    unsigned int functions, bytes;
    struct view pkts[BURST];
    step steps[MOST + 1];
    cpu_set_t set;

    if (argc != 6 || !pool)
        return 2;
    functions = (unsigned int)atoi(argv[2]);
    n_rules = (unsigned int)atoi(argv[3]);
    bytes = (unsigned int)atoi(argv[4]);
    if (functions > MOST || n_rules > MOST_RULES || bytes < 60 || bytes > BUFFER_BYTES)
        return 2;
    CPU_ZERO(&set);
    CPU_SET((unsigned int)atoi(argv[1]), &set);
    sched_setaffinity(0, sizeof(set), &set);
    memset(pool, 0, (size_t)BUFFERS * BUFFER_BYTES);
    for (unsigned int i = 0; i < n_rules; i++)
        rules[i] = (struct rule){0x0a000000u + (i << 8), 0xffffff00u, 0, 0, 0, 65535, i % 2 ? 6 : 17};
    if (n_rules > 0)
        rules[n_rules - 1] = (struct rule){0xc6120000u, 0xffff0000u, 0xc6130000u, 0xffff0000u, 1, 1023, 17};
    for (unsigned int i = 0; i < functions; i++)
        steps[i] = nothing;
    if (n_rules > 0)
        steps[functions++] = check;
    wall = clock_of(CLOCK_MONOTONIC);
    cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID);
    end = wall + (uint64_t)atoi(argv[5]) * 1000000u;
    do {
        for (unsigned int turn = 0; turn < 64; turn++) {
            for (unsigned int i = 0; i < BURST; i++) {
                pkts[i] = (struct view){pool + (size_t)((sent + i) % BUFFERS) * BUFFER_BYTES + 256, bytes, 0};
                write_packet(pkts[i].data, sent + i, bytes);
            }
            for (unsigned int f = 0; f < functions; f++)
                steps[f](pkts, BURST);
            for (unsigned int i = 0; i < BURST; i++)
                dropped += pkts[i].drop;
            sent += BURST;
        }
    } while (clock_of(CLOCK_MONOTONIC) < end);
    wall = clock_of(CLOCK_MONOTONIC) - wall;
    cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    printf("%llu %llu %llu\n", (unsigned long long)(sent - dropped), (unsigned long long)wall, (unsigned long long)cpu);
    return 0;
}
