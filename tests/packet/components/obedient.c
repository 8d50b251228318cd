/* SPDX-License-Identifier: Apache-2.0 */
/* Does with packets what its option `do` says; for tests of the worker. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <coven/component.h>

struct obedient {
    const char *what;
    uint64_t n;
    uint64_t die_at; /* option `die_at`: at the n-th packet */
    uint32_t held[4096];
    uint32_t n_held;
};

static int init(struct coven_component *self)
{
    struct obedient *me = coven_private(self);
    const char *die_at = coven_option(self, "die_at");

    me->what = coven_option(self, "do");
    if (!me->what)
        me->what = "forward";
    if (die_at)
        me->die_at = strtoull(die_at, NULL, 10);
    return 0;
}

static void one(struct obedient *me, struct coven_packet *pkt)
{
    if (++me->n == me->die_at)
        kill(getpid(), SIGKILL);
    if (strcmp(me->what, "branch") == 0) {
        coven_forward(pkt, (uint8_t)(me->n % 3));
    } else if (strcmp(me->what, "drop") == 0) {
        coven_drop(pkt);
    } else if (strcmp(me->what, "consume") == 0) {
        coven_consume(pkt);
    } else if (strcmp(me->what, "wrong-output") == 0) {
        coven_forward(pkt, 7);
    } else if (strcmp(me->what, "grow") == 0) {
        memset(pkt->data, 0xee, pkt->meta->length);
        if (coven_packet_resize(pkt, -4, 8) != 0)
            coven_drop(pkt);
    } else if (strcmp(me->what, "shift") == 0) {
        pkt->meta->offset = (uint16_t)(pkt->meta->offset + 2);
        pkt->meta->length = (uint16_t)(pkt->meta->length - 2);
    } else if (strcmp(me->what, "scribble") == 0) {
        pkt->data += 60;
        pkt->room_front = pkt->room_back = 0;
        pkt->meta = NULL;
    } else if ((strcmp(me->what, "hold") == 0 || strcmp(me->what, "keep") == 0) && me->n_held < 4096) {
        me->held[me->n_held++] = pkt->meta->handle;
        coven_hold(pkt);
    }
}

static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    struct obedient *me = coven_private(self);

    for (uint16_t i = 0; i < n; i++)
        one(me, &pkts[i]);
}

static void tick(struct coven_component *self, uint64_t now_ns)
{
    struct obedient *me = coven_private(self);

    (void)now_ns;
    if (strcmp(me->what, "hold") != 0)
        return;
    for (uint32_t i = 0; i < me->n_held; i++)
        coven_release(self, me->held[i], COVEN_FORWARD, 0);
    me->n_held = 0;
}

COVEN_COMPONENT(.private_bytes = sizeof(struct obedient), .init = init, .process_burst = process_burst, .tick = tick,
                .wants_tick = true);
