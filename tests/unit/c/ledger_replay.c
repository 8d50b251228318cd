/* SPDX-License-Identifier: Apache-2.0 */
/* The ledger alone: an intent that is interrupted after any of its stores is finished by the next one, and the
 * free list always is what the owners say. Stores are interrupted by leaving a child at a fault point. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ledger.h"

#define BUFFERS 64u

static struct coven_plan plan = {.n_buffers = BUFFERS, .buffer_bytes = 2048, .n_ports = 2};

/* One burst in the life of a worker: some come in, some are dropped, a position moves. */
static void live(struct coven_book *book, unsigned turns)
{
    for (unsigned t = 0; t < turns; t++) {
        uint32_t handles[COVEN_BURST];
        uint16_t n;

        coven_book_room(book, COVEN_BURST, 4, 1);
        n = coven_book_peek_free(book, handles, (uint16_t)(1 + t % COVEN_BURST));
        for (uint16_t i = 0; i < n; i++)
            coven_book_own(book, handles[i], coven_owner(COVEN_OWNER_WORKER, 0, 0, 0));
        coven_book_count(book, COVEN_CELL_PORT(0, COVEN_PORT_RX_PKTS), n);
        coven_book_word(book, &book->ledger->port[0].rx[0], book->ledger->port[0].rx[0] + n);
        coven_book_take_free(book, n, n);
        coven_book_commit(book);
        for (uint32_t h = 0; h < BUFFERS; h++)
            if (book->owner[h] != 0 && (h + t) % 3 == 0)
                coven_book_drop(book, h, COVEN_SCOPE_WORKER, h % 2 ? COVEN_DROP_STOPPED : COVEN_DROP_NO_PATH);
        coven_book_commit(book);
    }
}

static int check(struct coven_book *book)
{
    uint64_t rx = book->cell[COVEN_CELL_PORT(0, COVEN_PORT_RX_PKTS)];
    uint64_t drops = book->cell[COVEN_CELL_DROP(COVEN_SCOPE_WORKER, COVEN_DROP_STOPPED)] +
                     book->cell[COVEN_CELL_DROP(COVEN_SCOPE_WORKER, COVEN_DROP_NO_PATH)];
    uint64_t held = 0;
    uint8_t seen[BUFFERS] = {0};

    for (uint32_t h = 0; h < BUFFERS; h++)
        held += book->owner[h] != 0;
    for (uint32_t i = 0; i < book->ledger->n_free; i++) {
        if (book->owner[book->free[i]] != 0 || seen[book->free[i]]++)
            return fprintf(stderr, "free list: buffer %u\n", book->free[i]), 1;
    }
    if (held + book->ledger->n_free != BUFFERS)
        return fprintf(stderr, "%llu held, %u free\n", (unsigned long long)held, book->ledger->n_free), 1;
    if (rx != drops + held || rx != book->ledger->port[0].rx[0])
        return fprintf(stderr, "rx %llu drops %llu held %llu position %llu\n", (unsigned long long)rx,
                       (unsigned long long)drops, (unsigned long long)held,
                       (unsigned long long)book->ledger->port[0].rx[0]),
               1;
    return 0;
}

int main(int argc, char **argv)
{
    static const char *const points[] = {"worker-intent-valid", "worker-intent-half", "worker-intent-applied",
                                         "worker-free-list"};
    size_t bytes = coven_ledger_bytes(&plan);
    struct coven_ledger *ledger = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t *cells = mmap(NULL, 8 * COVEN_CELLS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    static struct coven_book book;

    (void)argc;
    (void)argv;
    ledger->header.bytes = bytes;
    coven_ledger_format(ledger, &plan);
    if (coven_ledger_check(ledger, &plan))
        return 2;
    coven_book_open(&book, ledger, cells);
    coven_book_rebuild_free(&book);
    for (unsigned round = 0; round < 400; round++) {
        pid_t child = fork();
        int status;

        if (child == 0) {
            char fault[64];

            snprintf(fault, sizeof(fault), "%s:%u", points[round % 4], 1 + round / 4 % 37);
            setenv("COVEN_FAULT", fault, 1);
            live(&book, 200);
            _exit(3);
        }
        waitpid(child, &status, 0);
        if (!WIFSIGNALED(status))
            return fprintf(stderr, "round %u: it did not die\n", round), 1;
        coven_book_open(&book, ledger, cells);
        coven_book_replay(&book);
        coven_book_rebuild_free(&book);
        if (check(&book))
            return fprintf(stderr, "round %u, %s\n", round, points[round % 4]), 1;
        live(&book, 3);
        if (check(&book))
            return fprintf(stderr, "round %u, %s, afterwards\n", round, points[round % 4]), 1;
    }
    return 0;
}
