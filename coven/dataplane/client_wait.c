/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting for packets and for questions: look a while, then sleep on both (docs/internals.md section 4). */
#include "client_private.h"
#include "ring.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#define YIELDS 64                   /* before sleeping */
#define CROWDED_NS 1000000ull       /* a yield that took longer gave the core to somebody with work of his own */
#define CROWDED_FOR_NS 100000000ull /* then it sleeps at once: who is woken gets the core sooner than who yielded it */
#define FULL_WAIT_MS 1              /* nobody rings when the out-ring gets room again */
#define AGENT_EVERY 32u             /* waits that end at once, between two looks at the agent: each is a system call */

static bool has_entries(const struct coven_client *client)
{
    return __atomic_load_n(&client->replica->in.tail, __ATOMIC_ACQUIRE) != client->in_head;
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Let others of this core run. False: there is one who does not give it back soon. */
static bool yield_core(struct coven_client *client)
{
    uint64_t before = now_ns(), after;

    if (before < client->crowded_until_ns)
        return false;
    sched_yield();
    after = now_ns();
    if (after - before > CROWDED_NS)
        client->crowded_until_ns = after + CROWDED_FOR_NS;
    return true;
}

static int agent_ready(struct coven_client *client)
{
    struct pollfd fd = {.fd = client->agent_fd, .events = POLLIN};

    return client->agent_fd >= 0 && poll(&fd, 1, 0) > 0 ? COVEN_WOKE_AGENT : 0;
}

/* Sleep on doorbell and agent. The caller has set `sleeping` and looked at the ring since. */
static int sleep_until(struct coven_client *client, int timeout_ms)
{
    struct pollfd fds[2] = {{.fd = client->doorbell_fd, .events = POLLIN}, {.fd = client->agent_fd, .events = POLLIN}};
    int woke = 0;
    uint64_t rings[64];

    if (poll(fds, 2, timeout_ms) < 0)
        return errno == EINTR ? 0 : -errno;
    if (fds[0].revents & (POLLERR | POLLNVAL))
        return -EBADF;
    if (fds[0].revents && read(client->doorbell_fd, rings, sizeof(rings)) < 0 && errno != EAGAIN)
        return -errno;
    if (fds[1].revents)
        woke |= COVEN_WOKE_AGENT;
    return woke;
}

int coven_client_wait(struct coven_client *client, int timeout_ms)
{
    struct coven_ring *in = &client->replica->in;
    int woke;

    coven_client_progress(client);
    /* the fence that coven_client_publish() left out */
    coven_ring_fence();
    coven_ring_wake(&client->replica->out, client->worker_fd);
    for (int i = 0; i < YIELDS && timeout_ms != 0; i++) {
        if (has_entries(client) && coven_client_out_room(client, 1) != 0)
            return COVEN_WOKE_PACKETS | (++client->waits % AGENT_EVERY == 0 ? agent_ready(client) : 0);
        if (!yield_core(client))
            break;
    }
    if (has_entries(client)) {
        /* The worker has not taken what was published. It rings for new entries, not for room. */
        woke = sleep_until(client, coven_client_out_room(client, 1) != 0 ? 0 : FULL_WAIT_MS);
        return woke < 0 ? woke : woke | COVEN_WOKE_PACKETS;
    }
    __atomic_store_n(&in->sleeping, 1, __ATOMIC_SEQ_CST);
    /* Either this sees the worker's new tail, or the worker sees `sleeping`. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    woke = sleep_until(client, has_entries(client) ? 0 : timeout_ms);
    __atomic_store_n(&in->sleeping, 0, __ATOMIC_RELAXED);
    if (woke < 0)
        return woke;
    return woke | (has_entries(client) ? COVEN_WOKE_PACKETS : 0);
}
