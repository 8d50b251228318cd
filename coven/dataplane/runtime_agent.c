/* SPDX-License-Identifier: Apache-2.0 */
/* The Extended Agent of a C component: list, get, call, check. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ea.h"
#include "runtime.h"
#include "runtime_private.h"

#define MAX_ARGUMENTS 32u

struct coven_answer {
    struct coven_ea_writer *writer;
    char error[256]; /* what the component said went wrong */
};

/* An operation while it runs. */
struct coven_call {
    const char *names[MAX_ARGUMENTS];
    const char *values[MAX_ARGUMENTS];
    size_t n;
};

/* What one request needs; too large for a stack that a component shares. */
struct exchange {
    struct coven_ea_reader reader;
    struct coven_ea_writer writer;
    struct coven_call call;
    struct coven_answer answer;
    uint64_t id;
    char text[COVEN_EA_MAX_BYTES];
    char why[256];
};

const char *coven_runtime_argument(struct coven_component *self, const char *name)
{
    const struct coven_call *call = ((struct coven_runtime *)self)->call;

    for (size_t i = 0; call != NULL && i < call->n; i++) {
        if (strcmp(call->names[i], name) == 0)
            return call->values[i];
    }
    return NULL;
}

void coven_runtime_answer(struct coven_answer *answer, const char *name, const char *value)
{
    if (strcmp(name, "error") == 0)
        snprintf(answer->error, sizeof(answer->error), "%s", value);
    else
        COVEN_EA_WRITE(answer->writer, "result", name, value);
}

static const struct coven_operation *find_handler(const struct coven_runtime *runtime, const char *name)
{
    const struct coven_operation *row = runtime->ops->operations;

    for (; row != NULL && row->name != NULL; row++) {
        if (strcmp(row->name, name) == 0)
            return row;
    }
    return NULL;
}

const char *coven_runtime_check_operations(struct coven_runtime *runtime, char *why, size_t why_bytes)
{
    const struct coven_declaration *declaration = &runtime->declaration;
    const struct coven_operation *row = runtime->ops->operations;

    for (size_t i = 0; i < declaration->n_operations; i++) {
        const struct coven_operation *handler = find_handler(runtime, declaration->operations[i].name);

        if (handler == NULL || handler->call == NULL) {
            snprintf(why, why_bytes,
                     "bad-code: component.yaml declares the operation %s, but the code has no handler for it",
                     declaration->operations[i].name);
            return why;
        }
    }
    for (; row != NULL && row->name != NULL; row++) {
        size_t i = 0;

        while (i < declaration->n_operations && strcmp(declaration->operations[i].name, row->name) != 0)
            i++;
        if (i == declaration->n_operations) {
            snprintf(why, why_bytes,
                     "bad-code: the code handles the operation %s, but component.yaml does not declare it", row->name);
            return why;
        }
    }
    return NULL;
}

/* ---- verbs: each writes its lines, or returns an error code with a sentence in exchange->why ------ */
static const char *list(struct coven_runtime *runtime, struct exchange *exchange)
{
    const struct coven_declaration *declaration = &runtime->declaration;

    for (size_t i = 0; i < declaration->n_metrics; i++) {
        const struct coven_declared_metric *metric = &declaration->metrics[i];

        COVEN_EA_WRITE(&exchange->writer, "metric", metric->name, metric->type, metric->unit, metric->help);
    }
    for (size_t i = 0; i < declaration->n_operations; i++)
        COVEN_EA_WRITE(&exchange->writer, "operation", declaration->operations[i].name,
                       declaration->operations[i].help);
    for (size_t i = 0; i < declaration->n_arguments; i++) {
        const struct coven_declared_argument *argument = &declaration->arguments[i];

        COVEN_EA_WRITE(&exchange->writer, "argument", argument->operation, argument->name, argument->type,
                       argument->required, argument->default_json, argument->help);
    }
    return NULL;
}

static const char *get(struct coven_runtime *runtime, struct exchange *exchange, const char *name)
{
    const struct coven_declaration *declaration = &runtime->declaration;
    bool is_found = name[0] == '\0';

    for (size_t i = 0; i < declaration->n_metrics; i++) {
        uint64_t bits = __atomic_load_n(&runtime->cells[i], __ATOMIC_RELAXED);
        char text[40];

        if (name[0] != '\0' && strcmp(declaration->metrics[i].name, name) != 0)
            continue;
        is_found = true;
        if (strcmp(declaration->metrics[i].type, "gauge") == 0) {
            double value;

            memcpy(&value, &bits, sizeof(value));
            snprintf(text, sizeof(text), "%.17g", value);
        } else {
            snprintf(text, sizeof(text), "%" PRIu64, bits);
        }
        COVEN_EA_WRITE(&exchange->writer, "value", declaration->metrics[i].name, text);
    }
    if (is_found)
        return NULL;
    snprintf(exchange->why, sizeof(exchange->why), "there is no metric %.64s", name);
    return "unknown-name";
}

static const char *check(struct coven_runtime *runtime, struct exchange *exchange)
{
    char uptime[24], bursts[24];

    snprintf(uptime, sizeof(uptime), "%" PRIu64, coven_runtime_now_ns() - runtime->started_ns);
    snprintf(bursts, sizeof(bursts), "%" PRIu64, runtime->bursts);
    COVEN_EA_WRITE(&exchange->writer, "value", "uptime_ns", uptime);
    COVEN_EA_WRITE(&exchange->writer, "value", "bursts", bursts);
    return NULL;
}

static const struct coven_declared_argument *find_argument(const struct coven_runtime *runtime, const char *operation,
                                                           const char *name)
{
    for (size_t i = 0; i < runtime->declaration.n_arguments; i++) {
        const struct coven_declared_argument *argument = &runtime->declaration.arguments[i];

        if (strcmp(argument->operation, operation) == 0 && strcmp(argument->name, name) == 0)
            return argument;
    }
    return NULL;
}

static bool is_of_type(const char *type, const char *value)
{
    char *end;

    if (strcmp(type, "boolean") == 0)
        return strcmp(value, "true") == 0 || strcmp(value, "false") == 0;
    if (strcmp(type, "integer") != 0 && strcmp(type, "number") != 0)
        return true;
    errno = 0;
    if (strcmp(type, "integer") == 0)
        (void)strtoll(value, &end, 10);
    else
        (void)strtod(value, &end);
    return value[0] != '\0' && value[0] != ' ' && *end == '\0' && errno == 0;
}

/* Read the argument lines of a call and add defaults. */
static const char *read_arguments(struct coven_runtime *runtime, struct exchange *exchange, const char *operation)
{
    struct coven_call *call = &exchange->call;
    char *fields[COVEN_EA_MAX_FIELDS];
    int n;

    while ((n = coven_ea_line(&exchange->reader, fields)) != 0) {
        const struct coven_declared_argument *argument;

        if (n != 3 || strcmp(fields[0], "argument") != 0 || call->n == MAX_ARGUMENTS) {
            snprintf(exchange->why, sizeof(exchange->why), "a call has lines `argument`, name and value");
            return "malformed";
        }
        argument = find_argument(runtime, operation, fields[1]);
        if (argument == NULL || !is_of_type(argument->type, fields[2])) {
            snprintf(exchange->why, sizeof(exchange->why),
                     argument == NULL ? "%.64s has no argument %.64s" : "%.64s: the argument %.64s is no %.16s",
                     operation, fields[1], argument == NULL ? "" : argument->type);
            return "bad-argument";
        }
        call->names[call->n] = argument->name;
        call->values[call->n++] = fields[2];
    }
    for (size_t i = 0; i < runtime->declaration.n_arguments; i++) {
        const struct coven_declared_argument *argument = &runtime->declaration.arguments[i];

        if (strcmp(argument->operation, operation) != 0 ||
            coven_runtime_argument(&runtime->self, argument->name) != NULL)
            continue;
        if (argument->default_value == NULL && strcmp(argument->required, "1") == 0) {
            snprintf(exchange->why, sizeof(exchange->why), "%.64s needs the argument %.64s", operation, argument->name);
            return "bad-argument";
        }
        if (argument->default_value != NULL && call->n < MAX_ARGUMENTS) {
            call->names[call->n] = argument->name;
            call->values[call->n++] = argument->default_value;
        }
    }
    return NULL;
}

static const char *call_operation(struct coven_runtime *runtime, struct exchange *exchange, const char *name)
{
    const struct coven_operation *handler = find_handler(runtime, name);
    const char *code;
    int status;

    if (handler == NULL) {
        snprintf(exchange->why, sizeof(exchange->why), "there is no operation %.64s", name);
        return "unknown-name";
    }
    runtime->call = &exchange->call;
    code = read_arguments(runtime, exchange, name);
    if (code != NULL)
        goto out;
    exchange->answer.writer = &exchange->writer;
    status = handler->call(&runtime->self, &exchange->answer);
    if (status < 0) {
        if (exchange->answer.error[0] != '\0')
            snprintf(exchange->why, sizeof(exchange->why), "%s", exchange->answer.error);
        else
            snprintf(exchange->why, sizeof(exchange->why), "%.64s returned %d", name, status);
        code = "failed";
    }
out:
    runtime->call = NULL;
    return code;
}

/* Read the first line and carry the verb out. NULL when the answer is written. */
static const char *answer(struct coven_runtime *runtime, struct exchange *exchange, const char *request,
                          size_t request_bytes)
{
    char *fields[COVEN_EA_MAX_FIELDS];
    const char *verb;

    snprintf(exchange->why, sizeof(exchange->why), "the request cannot be read");
    if (coven_ea_open(&exchange->reader, exchange->text, sizeof(exchange->text), request, request_bytes) != 0 ||
        coven_ea_line(&exchange->reader, fields) != 3 || !coven_ea_id(fields[0], &exchange->id))
        return "malformed";
    verb = fields[1];
    coven_ea_write_ok(&exchange->writer, exchange->id);
    if (strcmp(verb, "list") == 0)
        return list(runtime, exchange);
    if (strcmp(verb, "get") == 0)
        return get(runtime, exchange, fields[2]);
    if (strcmp(verb, "call") == 0)
        return call_operation(runtime, exchange, fields[2]);
    if (strcmp(verb, "check") == 0)
        return check(runtime, exchange);
    snprintf(exchange->why, sizeof(exchange->why), "there is no verb %.64s", verb);
    return "unknown-verb";
}

size_t coven_runtime_agent(struct coven_runtime *runtime, const char *request, size_t request_bytes, char *answer_text,
                           size_t answer_bytes)
{
    struct exchange *exchange = calloc(1, sizeof(*exchange));
    const char *code;
    size_t bytes;

    if (exchange == NULL)
        return 0;
    coven_ea_writer_init(&exchange->writer, answer_text, answer_bytes);
    code = answer(runtime, exchange, request, request_bytes);
    if (code == NULL && exchange->writer.is_overflow) {
        code = "failed";
        snprintf(exchange->why, sizeof(exchange->why), "the answer does not fit a message");
    }
    if (code != NULL)
        bytes = coven_ea_write_error(&exchange->writer, exchange->id, code, exchange->why);
    else
        bytes = exchange->writer.used;
    free(exchange);
    return bytes;
}
