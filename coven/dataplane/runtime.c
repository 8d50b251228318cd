/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime_private.h"

#define MAX_PRIVATE_BYTES (1u << 30)

static struct coven_runtime *runtime_of(struct coven_component *self)
{
    return (struct coven_runtime *)self;
}

uint64_t coven_runtime_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- services ----------------------------------------------------------------------------------- */
static void *private_data(struct coven_component *self)
{
    return runtime_of(self)->private_data;
}

static const char *option(struct coven_component *self, const char *name)
{
    const struct coven_declaration *declaration = &runtime_of(self)->declaration;

    for (size_t i = 0; i < declaration->n_options; i++) {
        if (strcmp(declaration->options[i].name, name) == 0)
            return declaration->options[i].value;
    }
    return NULL;
}

static uint64_t *metric(struct coven_component *self, const char *name)
{
    struct coven_runtime *runtime = runtime_of(self);

    for (size_t i = 0; i < runtime->declaration.n_metrics; i++) {
        if (strcmp(runtime->declaration.metrics[i].name, name) == 0)
            return &runtime->cells[i];
    }
    return NULL;
}

static void log_text(struct coven_component *self, const char *text)
{
    struct coven_runtime *runtime = runtime_of(self);

    snprintf(runtime->last_log, sizeof(runtime->last_log), "%s", text);
    fprintf(stderr, "%s: %s\n", runtime->declaration.component, text);
}

/* The place that points at a held packet's node, or NULL. */
static struct coven_held_node **find_held(struct coven_runtime *runtime, uint32_t handle)
{
    struct coven_held_node **link = &runtime->held[handle % COVEN_HELD_BUCKETS];

    while (*link != NULL && (*link)->handle != handle)
        link = &(*link)->next;
    return *link != NULL ? link : NULL;
}

static int release(struct coven_component *self, uint32_t handle, uint8_t verdict, uint8_t output)
{
    struct coven_runtime *runtime = runtime_of(self);
    struct coven_held_node **link = find_held(runtime, handle), *node;

    if (link == NULL)
        return -ENOENT;
    if (verdict != COVEN_FORWARD && verdict != COVEN_DROP && verdict != COVEN_CONSUME)
        return -EINVAL;
    node = *link;
    *link = node->next;
    node->next = NULL;
    node->verdict = verdict;
    node->output = output;
    *runtime->released_end = node;
    runtime->released_end = &node->next;
    runtime->n_held--;
    return 0;
}

static int held(struct coven_component *self, uint32_t handle, struct coven_packet *pkt)
{
    struct coven_held_node **link = find_held(runtime_of(self), handle);

    if (link == NULL)
        return -ENOENT;
    *pkt = (*link)->pkt;
    return 0;
}

const struct coven_services coven_runtime_services = {
    .private_data = private_data,
    .option = option,
    .metric = metric,
    .argument = coven_runtime_argument,
    .answer = coven_runtime_answer,
    .log = log_text,
    .release = release,
    .held = held,
};

/* ---- lifecycle ---------------------------------------------------------------------------------- */
/* dlopen() finds an object it has by the name it was opened with, and descriptor numbers come back: each name is used
 * once in the life of a process. */
static void *load(int code_fd)
{
    static unsigned int loads;
    char path[128];
    int at = snprintf(path, sizeof(path), "/proc/self/fd/");

    for (unsigned int bits = ++loads; bits != 0; bits >>= 1)
        at += snprintf(path + at, sizeof(path) - (size_t)at, bits & 1 ? "./" : "/");
    snprintf(path + at, sizeof(path) - (size_t)at, "%d", code_fd);
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static bool load_ops(struct coven_runtime *runtime, int code_fd, char *why, size_t why_bytes)
{
    const struct coven_component_ops *ops;
    const char *said;

    runtime->code = load(code_fd);
    if (runtime->code == NULL) {
        said = dlerror();
        snprintf(why, why_bytes, "bad-code: the object cannot be loaded: %s", said != NULL ? said : "");
        return false;
    }
    ops = dlsym(runtime->code, "coven_component_entry");
    if (ops == NULL) {
        snprintf(why, why_bytes,
                 "bad-code: the object has no symbol coven_component_entry; end the source with "
                 "COVEN_COMPONENT(...)");
        return false;
    }
    if (ops->abi_version != COVEN_ABI_VERSION) {
        snprintf(why, why_bytes, "bad-code: the object was built for ABI version %u, this COVEN has %u; build it again",
                 ops->abi_version, COVEN_ABI_VERSION);
        return false;
    }
    if (ops->process_burst == NULL && ops->process_pkt == NULL) {
        snprintf(why, why_bytes, "bad-code: the component has neither process_burst nor process_pkt");
        return false;
    }
    if (runtime->view.n_slots != 0 && ops->process_pkt == NULL) {
        snprintf(why, why_bytes, "bad-code: component.yaml declares flow state, but the code has no process_pkt");
        return false;
    }
    if (ops->private_bytes > MAX_PRIVATE_BYTES) {
        snprintf(why, why_bytes, "bad-code: private_bytes is more than 1 GiB");
        return false;
    }
    runtime->ops = ops;
    runtime->is_stateless = ops->process_pkt == NULL || (runtime->view.n_slots == 0 && ops->process_burst != NULL);
    return true;
}

static bool initialise(struct coven_runtime *runtime, char *why, size_t why_bytes)
{
    int status;

    /* aligned as calloc aligns: enough for any C type */
    runtime->private_data = calloc(1, runtime->ops->private_bytes + 1u);
    if (runtime->private_data == NULL) {
        snprintf(why, why_bytes, "failed: no memory for %u private bytes", runtime->ops->private_bytes);
        return false;
    }
    runtime->started_ns = coven_runtime_now_ns();
    status = runtime->ops->init != NULL ? runtime->ops->init(&runtime->self) : 0;
    if (status == 0)
        return true;
    snprintf(why, why_bytes, "failed: init returned %d%s%s", status, runtime->last_log[0] ? ": " : "",
             runtime->last_log);
    return false;
}

struct coven_runtime *coven_runtime_start(int code_fd, const char *start, size_t start_bytes, struct coven_state *state,
                                          uint32_t replica, char *why, size_t why_bytes)
{
    struct coven_runtime *runtime = calloc(1, sizeof(*runtime));
    char fault[256];
    bool is_ready = false;

    if (runtime == NULL) {
        snprintf(why, why_bytes, "failed: no memory");
        return NULL;
    }
    runtime->self.services = &coven_runtime_services;
    runtime->released_end = &runtime->released;
    if (coven_declaration_read(&runtime->declaration, start, start_bytes, fault, sizeof(fault)) != 0)
        snprintf(why, why_bytes, "malformed: %s", fault);
    else if (state == NULL || coven_state_view_open(&runtime->view, state, state->header.bytes) != 0 ||
             (runtime->cells = coven_state_metrics(&runtime->view, replica)) == NULL)
        snprintf(why, why_bytes, "failed: the state segment does not fit the component");
    else if (load_ops(runtime, code_fd, why, why_bytes) &&
             coven_runtime_check_operations(runtime, why, why_bytes) == NULL)
        is_ready = initialise(runtime, why, why_bytes);
    if (is_ready)
        return runtime;
    runtime->ops = NULL; /* what did not start is not told to end */
    coven_runtime_stop(runtime);
    return NULL;
}

void coven_runtime_stop(struct coven_runtime *runtime)
{
    struct coven_runtime_release ignored;

    if (runtime == NULL)
        return;
    if (runtime->ops != NULL && runtime->ops->fini != NULL)
        runtime->ops->fini(&runtime->self);
    while (coven_runtime_released(runtime, &ignored, 1) != 0)
        continue;
    for (uint32_t i = 0; i < COVEN_HELD_BUCKETS; i++) {
        while (runtime->held[i] != NULL)
            coven_runtime_forget(runtime, runtime->held[i]->handle);
    }
    if (runtime->code != NULL)
        dlclose(runtime->code);
    coven_declaration_free(&runtime->declaration);
    free(runtime->private_data);
    free(runtime);
}

/* ---- data path ---------------------------------------------------------------------------------- */
/* One packet with its flow's state. Returns the commit word to stage. */
static uint32_t run_packet(struct coven_runtime *runtime, struct coven_packet *pkt)
{
    const struct coven_component_ops *ops = runtime->ops;
    uint16_t n_before = runtime->burst.n, index = 0;
    void *fs = NULL;

    if (runtime->view.n_slots != 0 && coven_meta(pkt)->flow != COVEN_NO_FLOW)
        fs = coven_state_begin(&runtime->view, &runtime->burst, coven_meta(pkt)->flow, coven_meta(pkt)->flow_epoch,
                               &index);
    if (fs != NULL && runtime->burst.n != n_before && runtime->burst.open[index].fresh &&
        ops->allocate_new_fs != NULL && ops->allocate_new_fs(&runtime->self, pkt, fs) < 0) {
        coven_state_abandon(&runtime->burst, index);
        pkt->meta->verdict = COVEN_DROP;
        return 0;
    }
    ops->process_pkt(&runtime->self, pkt, fs);
    return fs != NULL ? runtime->burst.open[index].word : 0;
}

static void run_stateless(struct coven_runtime *runtime, struct coven_packet *pkts, uint16_t n)
{
    runtime->bursts++;
    runtime->ops->process_burst(&runtime->self, pkts, n);
}

void coven_runtime_run(struct coven_runtime *runtime, struct coven_packet *pkts, uint16_t n, uint32_t *words)
{
    if (runtime->is_stateless) {
        memset(words, 0, sizeof(words[0]) * n);
        run_stateless(runtime, pkts, n);
        return;
    }
    runtime->bursts++;
    for (uint16_t i = 0; i < n; i++)
        words[i] = run_packet(runtime, &pkts[i]);
}

void coven_runtime_end_flow(struct coven_runtime *runtime, const struct coven_meta *meta)
{
    void *fs = coven_state_end(&runtime->view, &runtime->burst, meta->flow, meta->flow_epoch);

    if (fs != NULL && runtime->ops->deallocate_fs != NULL)
        runtime->ops->deallocate_fs(&runtime->self, fs);
}

void coven_runtime_commit(struct coven_runtime *runtime)
{
    coven_state_commit(&runtime->view, &runtime->burst);
}

void coven_runtime_process(struct coven_runtime *runtime, struct coven_packet *pkts, uint16_t n)
{
    uint32_t words[COVEN_BURST];

    if (runtime->is_stateless) {
        run_stateless(runtime, pkts, n);
        return;
    }
    coven_runtime_run(runtime, pkts, n, words);
    coven_runtime_commit(runtime);
}

void coven_runtime_flow_removed(struct coven_runtime *runtime, const struct coven_meta *meta)
{
    coven_runtime_end_flow(runtime, meta);
    coven_runtime_commit(runtime);
}

void coven_runtime_tick(struct coven_runtime *runtime, uint64_t now_ns)
{
    if (runtime->ops->tick != NULL && (runtime->n_held != 0 || runtime->ops->wants_tick))
        runtime->ops->tick(&runtime->self, now_ns);
}

/* ---- held packets ------------------------------------------------------------------------------- */
void coven_runtime_hold(struct coven_runtime *runtime, const struct coven_packet *pkt)
{
    struct coven_held_node *node;
    uint32_t handle = pkt->meta->handle;

    if (find_held(runtime, handle) != NULL)
        return;
    node = calloc(1, sizeof(*node));
    if (node == NULL)
        return; /* the owner takes the packet back after hold.ms */
    node->pkt = *pkt;
    node->handle = handle;
    node->next = runtime->held[handle % COVEN_HELD_BUCKETS];
    runtime->held[handle % COVEN_HELD_BUCKETS] = node;
    runtime->n_held++;
}

uint16_t coven_runtime_released(struct coven_runtime *runtime, struct coven_runtime_release *out, uint16_t max)
{
    uint16_t n = 0;

    while (n < max && runtime->released != NULL) {
        struct coven_held_node *node = runtime->released;

        out[n].handle = node->handle;
        out[n].verdict = node->verdict;
        out[n++].output = node->output;
        runtime->released = node->next;
        if (runtime->released == NULL)
            runtime->released_end = &runtime->released;
        free(node);
    }
    return n;
}

void coven_runtime_forget(struct coven_runtime *runtime, uint32_t handle)
{
    struct coven_held_node **link = find_held(runtime, handle), *node;

    if (link == NULL)
        return;
    node = *link;
    *link = node->next;
    free(node);
    runtime->n_held--;
}

bool coven_runtime_is_holding(const struct coven_runtime *runtime)
{
    return runtime->n_held != 0 && runtime->ops->tick != NULL;
}
