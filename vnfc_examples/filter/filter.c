/* SPDX-License-Identifier: Apache-2.0 */
/* Drops packets that an earlier component has marked. */
#include <coven/component.h>
#include <errno.h>
#include <string.h>

struct filter {
    uint64_t *seen, *marked, *dropped, *by_mark[3];
    bool is_dropping;
};

static int set_mode(struct filter *filter, const char *mode)
{
    if (mode == NULL || (strcmp(mode, "drop") != 0 && strcmp(mode, "count") != 0))
        return -EINVAL;
    filter->is_dropping = strcmp(mode, "drop") == 0;
    return 0;
}

static int init(struct coven_component *self)
{
    struct filter *filter = coven_private(self);

    filter->seen = coven_metric(self, "seen");
    filter->marked = coven_metric(self, "marked");
    filter->dropped = coven_metric(self, "dropped");
    filter->by_mark[0] = coven_metric(self, "dropped_mark_1");
    filter->by_mark[1] = coven_metric(self, "dropped_mark_2");
    filter->by_mark[2] = coven_metric(self, "dropped_mark_other");
    if (set_mode(filter, coven_option(self, "mode")) != 0) {
        coven_log(self, "the option mode is neither drop nor count");
        return -EINVAL;
    }
    return 0;
}

static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    struct filter *filter = coven_private(self);
    uint64_t marked = 0, by_mark[3] = {0};

    for (uint16_t i = 0; i < n; i++) {
        uint32_t mark = coven_meta(&pkts[i])->mark;

        if (mark == 0)
            continue;
        marked++;
        if (!filter->is_dropping)
            continue;
        coven_drop(&pkts[i]);
        by_mark[mark <= 2 ? mark - 1 : 2]++;
    }
    coven_count(filter->seen, n);
    if (marked == 0)
        return;
    coven_count(filter->marked, marked);
    coven_count(filter->dropped, by_mark[0] + by_mark[1] + by_mark[2]);
    for (int i = 0; i < 3; i++)
        coven_count(filter->by_mark[i], by_mark[i]);
}

static int call_set_mode(struct coven_component *self, struct coven_answer *answer)
{
    const char *mode = coven_argument(self, "mode");

    if (set_mode(coven_private(self), mode) != 0) {
        coven_answer(answer, self, "error", "the mode is drop or count");
        return -EINVAL;
    }
    coven_answer(answer, self, "mode", mode);
    return 0;
}

static const struct coven_operation operations[] = {{"set-mode", call_set_mode}, {NULL, NULL}};

COVEN_COMPONENT(.private_bytes = sizeof(struct filter), .init = init, .process_burst = process_burst,
                .operations = operations);
