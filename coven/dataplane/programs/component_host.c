/* SPDX-License-Identifier: Apache-2.0 */
/* coven-component-host: the process of an isolated component in C. Launch contract: docs/internals.md section 4. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <coven/abi.h>

#include "client.h"
#include "declaration.h"
#include "ea.h"
#include "runtime.h"

#define AGENT_EVERY 64u            /* bursts between two looks at the agent socket under load */
#define TICK_EVERY 16u             /* bursts between two looks at the clock, unless packets are held */
#define TICK_HOLDING_NS 1000000ull /* while packets are held */
#define TICK_NS 1000000000ull

struct host {
    struct coven_client *client;
    struct coven_runtime *runtime;
    struct coven_client_geometry geometry;
    struct coven_runtime_release pending; /* released, but there was no room in the ring */
    bool is_pending;
    bool is_over;
    uint64_t ticked_ns;
    char request[COVEN_EA_MAX_BYTES];
    char answer[COVEN_EA_MAX_BYTES];
};

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- agent -------------------------------------------------------------------------------------- */
/* An asker that does not read its answers must not stop the packets: what does not fit the socket is lost. */
static void send_answer(const char *answer, size_t bytes)
{
    if (bytes != 0 && send(COVEN_FD_AGENT, answer, bytes, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        fprintf(stderr, "coven-component-host: an answer was lost: %s\n", strerror(errno));
}

/* `failed: sentence` becomes an error answer. */
static void send_failure(struct host *host, uint64_t id, char *why)
{
    struct coven_ea_writer writer;
    char *sentence = strstr(why, ": ");

    coven_ea_writer_init(&writer, host->answer, sizeof(host->answer));
    if (sentence != NULL)
        *sentence = '\0';
    send_answer(host->answer, coven_ea_write_error(&writer, id, sentence != NULL ? why : "failed",
                                                   sentence != NULL ? sentence + 2 : why));
}

/* Whether the request is `stop`; its id. */
static bool is_stop(const char *request, size_t bytes, uint64_t *id)
{
    char copy[64], *fields[COVEN_EA_MAX_FIELDS];
    struct coven_ea_reader reader;

    return bytes <= sizeof(copy) && coven_ea_open(&reader, copy, sizeof(copy), request, bytes) == 0 &&
           coven_ea_line(&reader, fields) == 3 && coven_ea_id(fields[0], id) && strcmp(fields[1], "stop") == 0;
}

static void serve_agent(struct host *host)
{
    struct coven_ea_writer writer;
    uint64_t id;
    ssize_t bytes = recv(COVEN_FD_AGENT, host->request, sizeof(host->request), MSG_DONTWAIT);

    if (bytes < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (bytes <= 0) {
        host->is_over = true; /* nobody is left who could ask or stop it */
        return;
    }
    if (is_stop(host->request, (size_t)bytes, &id)) {
        coven_ea_writer_init(&writer, host->answer, sizeof(host->answer));
        coven_ea_write_ok(&writer, id);
        send_answer(host->answer, writer.used);
        host->is_over = true;
        return;
    }
    send_answer(host->answer,
                coven_runtime_agent(host->runtime, host->request, (size_t)bytes, host->answer, sizeof(host->answer)));
}

/* ---- packets ------------------------------------------------------------------------------------ */
static void fill_packet(struct host *host, struct coven_packet *pkt, uint8_t *data, struct coven_meta *meta,
                        struct coven_meta_ext *ext)
{
    pkt->data = data;
    pkt->meta = (struct coven_meta_head *)meta;
    pkt->ext = ext;
    pkt->fetch = NULL;
    pkt->room_front = meta->offset;
    pkt->room_back = host->geometry.buffer_bytes - meta->offset - meta->length;
}

/* A component asks for a packet's metadata. There is one client in this process. */
static struct coven_client *the_client;

static void fetch(struct coven_packet *pkt)
{
    const struct coven_client_burst *burst = coven_client_burst(the_client);

    coven_client_meta(the_client, (uint32_t)((struct coven_meta *)pkt->meta - burst->meta));
    pkt->fetch = NULL;
}

/* Run the burst's packets in order, ending flows where their entries stand. */
static void run_burst(struct host *host, struct coven_client_burst *burst, uint32_t *words)
{
    struct coven_packet pkts[COVEN_BURST];
    uint8_t *memory = coven_client_memory(host->client);
    uint16_t n = 0;

    if (host->geometry.state_bytes != 0)
        coven_client_fetch(host->client); /* the flow of each is needed */
    for (uint32_t i = 0; i <= burst->n; i++) {
        if (i < burst->n && burst->buffer[i] != UINT64_MAX) {
            fill_packet(host, &pkts[n], memory + burst->buffer[i] + burst->meta[i].offset, &burst->meta[i],
                        &burst->ext[i]);
            pkts[n++].fetch = burst->fetched[i] ? NULL : fetch;
            continue;
        }
        if (n != 0)
            coven_runtime_run(host->runtime, pkts, n, words + i - n);
        n = 0;
        if (i < burst->n) {
            words[i] = 0;
            if (burst->meta[i].kind == COVEN_ENTRY_FLOW_REMOVED)
                coven_runtime_end_flow(host->runtime, &burst->meta[i]);
        }
    }
}

/* Tell the runtime of the packets it held; their metadata lives with the client until they are released. */
static void keep_held(struct host *host, const uint32_t *handles, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct coven_meta *meta = coven_client_held(host->client, handles[i]);
        struct coven_packet pkt;

        if (meta == NULL)
            continue;
        fill_packet(host, &pkt, coven_client_held_data(host->client, handles[i]), meta,
                    coven_client_held_ext(host->client, handles[i]));
        coven_runtime_hold(host->runtime, &pkt);
    }
}

static void give_back_released(struct host *host)
{
    for (;;) {
        if (!host->is_pending && coven_runtime_released(host->runtime, &host->pending, 1) == 0)
            break;
        host->is_pending = coven_client_release(host->client, host->pending.handle, host->pending.verdict,
                                                host->pending.output) == -EAGAIN;
        if (host->is_pending)
            break;
    }
    coven_client_flush(host->client);
}

static void process_burst(struct host *host)
{
    struct coven_client_burst *burst = coven_client_burst(host->client);
    uint32_t words[COVEN_BURST], held[COVEN_BURST], n_held = 0;

    run_burst(host, burst, words);
    coven_client_stage(host->client, words);
    coven_runtime_commit(host->runtime);
    for (uint32_t i = 0; i < burst->n; i++) {
        if (burst->meta[i].kind == COVEN_ENTRY_PACKET && burst->meta[i].verdict == COVEN_HOLD)
            held[n_held++] = burst->meta[i].handle;
    }
    coven_client_publish(host->client);
    keep_held(host, held, n_held);
}

static void tick(struct host *host)
{
    uint64_t now = now_ns();

    if (now - host->ticked_ns < (coven_runtime_is_holding(host->runtime) ? TICK_HOLDING_NS : TICK_NS))
        return;
    host->ticked_ns = now;
    coven_runtime_tick(host->runtime, now);
}

/* The loop: packets first, the agent between bursts. Returns the exit status. */
static int run(struct host *host)
{
    char words[64];
    uint32_t turns = 0;
    int n, woke;

    while (!host->is_over) {
        n = coven_client_receive(host->client, COVEN_BURST);
        woke = 0;
        if (n > 0)
            process_burst(host);
        give_back_released(host);
        if (n == 0)
            woke =
                coven_client_wait(host->client, coven_runtime_is_holding(host->runtime) || host->is_pending ? 1 : 1000);
        if (n < 0 || woke < 0) {
            snprintf(words, sizeof(words), "the rings cannot be used: %s", strerror(-(n < 0 ? n : woke)));
            coven_client_last_words(host->client, words);
            fprintf(stderr, "coven-component-host: %s\n", words);
            return 1;
        }
        if (woke & COVEN_WOKE_AGENT || ++turns % AGENT_EVERY == 0)
            serve_agent(host);
        if (n == 0 || turns % TICK_EVERY == 0 || coven_runtime_is_holding(host->runtime))
            tick(host);
    }
    return 0;
}

/* The id that a request claims, also one that is otherwise broken; 0 without. */
static uint64_t claimed_id(const char *request, size_t bytes)
{
    char field[24];
    const char *tab = memchr(request, '\t', bytes < sizeof(field) ? bytes : sizeof(field));
    uint64_t id = 0;

    if (tab == NULL)
        return 0;
    memcpy(field, request, (size_t)(tab - request));
    field[tab - request] = '\0';
    return coven_ea_id(field, &id) ? id : 0;
}

/* ---- start -------------------------------------------------------------------------------------- */
/* Load and initialise what the start request names. false with `code: sentence`. */
static bool start(struct host *host, const char *request, size_t bytes, char *why, size_t why_bytes)
{
    struct coven_declaration declaration;
    char fault[256];
    int code_fd;

    if (coven_declaration_read(&declaration, request, bytes, fault, sizeof(fault)) != 0) {
        snprintf(why, why_bytes, "malformed: %s", fault);
        return false;
    }
    host->client =
        coven_client_open(COVEN_FD_REPLICA, COVEN_FD_STATE, fcntl(COVEN_FD_POOL, F_GETFD) >= 0 ? COVEN_FD_POOL : -1,
                          COVEN_FD_DOORBELL, COVEN_FD_WORKER, COVEN_FD_AGENT, fault, sizeof(fault));
    if (host->client == NULL) {
        snprintf(why, why_bytes, "failed: %s", fault);
        coven_declaration_free(&declaration);
        return false;
    }
    the_client = host->client;
    coven_client_geometry(host->client, &host->geometry);
    code_fd = open(declaration.entry, O_RDONLY | O_CLOEXEC);
    if (code_fd < 0)
        snprintf(why, why_bytes, "bad-code: %.200s: %s", declaration.entry, strerror(errno));
    coven_declaration_free(&declaration);
    if (code_fd < 0)
        return false;
    host->runtime =
        coven_runtime_start(code_fd, request, bytes, (struct coven_state *)coven_client_state_segment(host->client),
                            host->geometry.replica, why, why_bytes);
    close(code_fd);
    return host->runtime != NULL;
}

int main(void)
{
    struct host *host = calloc(1, sizeof(*host));
    struct coven_ea_writer writer;
    char why[512] = "failed: ";
    uint64_t id;
    ssize_t bytes;
    int status;

    if (host == NULL)
        return 1;
    setvbuf(stderr, NULL, _IOLBF, 0);
    do
        bytes = recv(COVEN_FD_AGENT, host->request, sizeof(host->request), 0);
    while (bytes < 0 && errno == EINTR);
    if (bytes < 0)
        fprintf(stderr, "coven-component-host: descriptor %d: %s\n", COVEN_FD_AGENT, strerror(errno));
    if (bytes <= 0) {
        free(host);
        return bytes < 0;
    }
    id = claimed_id(host->request, (size_t)bytes);
    if (start(host, host->request, (size_t)bytes, why, sizeof(why))) {
        coven_ea_writer_init(&writer, host->answer, sizeof(host->answer));
        coven_ea_write_ok(&writer, id);
        send_answer(host->answer, writer.used);
        status = run(host);
    } else {
        fprintf(stderr, "coven-component-host: %s\n", why);
        if (host->client != NULL)
            coven_client_last_words(host->client, why);
        send_failure(host, id, why);
        status = 1;
    }
    coven_runtime_stop(host->runtime);
    coven_client_close(host->client);
    free(host);
    return status;
}
