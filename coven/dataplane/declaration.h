/* SPDX-License-Identifier: Apache-2.0 */
/* What a `start` request says of a component: its name, options, metrics, operations and their arguments. */
#ifndef COVEN_DECLARATION_H
#define COVEN_DECLARATION_H

#include <stddef.h>
#include <stdint.h>

#include <coven/abi.h>

struct coven_declared_option {
    const char *name;
    const char *value; /* text: a JSON string without its quotes */
};

struct coven_declared_metric {
    const char *name, *type, *unit, *help;
};

struct coven_declared_argument {
    const char *operation, *name, *type, *required, *default_json, *help;
    const char *default_value; /* as text, NULL for none */
};

struct coven_declared_operation {
    const char *name, *help;
};

struct coven_declaration {
    uint64_t id; /* of the request */
    const char *component, *entry;
    struct coven_declared_option *options;
    struct coven_declared_metric *metrics; /* a metric's cell is its place */
    struct coven_declared_operation *operations;
    struct coven_declared_argument *arguments;
    size_t n_options, n_metrics, n_operations, n_arguments;
    char *text; /* what all of the above points into */
};

/* Read a `start` request. 0, or a negative errno with a sentence in `why`; the declaration is then empty. */
int coven_declaration_read(struct coven_declaration *declaration, const char *start, size_t start_bytes, char *why,
                           size_t why_bytes) __attribute__((warn_unused_result));
void coven_declaration_free(struct coven_declaration *declaration);

#endif
