/* SPDX-License-Identifier: Apache-2.0 */
#include "declaration.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ea.h"

static char empty_text[1];

/* A default is JSON, `""` an empty string, nothing at all no default. The row keeps the JSON for `list`. */
static bool read_default(struct coven_declared_argument *argument)
{
    char *copy;

    if (argument->default_json[0] == '\0')
        return true;
    copy = strdup(argument->default_json);
    if (copy == NULL || !coven_ea_plain(copy)) {
        free(copy);
        return false;
    }
    argument->default_value = copy;
    return true;
}

static bool is_operation(const struct coven_declaration *declaration, const char *name)
{
    for (size_t i = 0; i < declaration->n_operations; i++) {
        if (strcmp(declaration->operations[i].name, name) == 0)
            return true;
    }
    return false;
}

/* One line of the request. A sentence for what is wrong, NULL when all is right. */
static const char *read_line(struct coven_declaration *declaration, char **fields, int n)
{
    const char *kind = fields[0];

    if (strcmp(kind, "component") == 0 && n == 2) {
        declaration->component = fields[1];
    } else if (strcmp(kind, "entry") == 0 && n == 2) {
        declaration->entry = fields[1];
    } else if ((strcmp(kind, "instance") == 0 || strcmp(kind, "replica") == 0) && n == 2) {
        return NULL;
    } else if (strcmp(kind, "option") == 0 && n == 3) {
        if (!coven_ea_plain(fields[2]))
            return "an option is not a JSON value";
        declaration->options[declaration->n_options++] =
            (struct coven_declared_option){.name = fields[1], .value = fields[2]};
    } else if (strcmp(kind, "metric") == 0 && n == 5) {
        if (declaration->n_metrics == COVEN_MAX_METRICS)
            return "too many metrics";
        declaration->metrics[declaration->n_metrics++] =
            (struct coven_declared_metric){.name = fields[1], .type = fields[2], .unit = fields[3], .help = fields[4]};
    } else if (strcmp(kind, "operation") == 0 && n == 3) {
        declaration->operations[declaration->n_operations++] =
            (struct coven_declared_operation){.name = fields[1], .help = fields[2]};
    } else if (strcmp(kind, "argument") == 0 && n == 7) {
        struct coven_declared_argument *argument = &declaration->arguments[declaration->n_arguments];

        *argument = (struct coven_declared_argument){.operation = fields[1],
                                                     .name = fields[2],
                                                     .type = fields[3],
                                                     .required = fields[4],
                                                     .default_json = fields[5],
                                                     .help = fields[6]};
        if (!is_operation(declaration, argument->operation))
            return "an argument belongs to no operation";
        if (!read_default(argument))
            return "a default is not a JSON value";
        declaration->n_arguments++;
    } else {
        return "a line is none of those that `start` has";
    }
    return NULL;
}

static bool allocate(struct coven_declaration *declaration, const char *start, size_t start_bytes)
{
    size_t lines = 1;

    for (size_t i = 0; i < start_bytes; i++)
        lines += start[i] == '\n';
    declaration->text = malloc(start_bytes + 1);
    declaration->options = calloc(lines, sizeof(*declaration->options));
    declaration->metrics = calloc(lines, sizeof(*declaration->metrics));
    declaration->operations = calloc(lines, sizeof(*declaration->operations));
    declaration->arguments = calloc(lines, sizeof(*declaration->arguments));
    return declaration->text != NULL && declaration->options != NULL && declaration->metrics != NULL &&
           declaration->operations != NULL && declaration->arguments != NULL;
}

int coven_declaration_read(struct coven_declaration *declaration, const char *start, size_t start_bytes, char *why,
                           size_t why_bytes)
{
    struct coven_ea_reader reader;
    char *fields[COVEN_EA_MAX_FIELDS];
    const char *fault = NULL;
    int n;

    memset(declaration, 0, sizeof(*declaration));
    declaration->component = empty_text;
    declaration->entry = empty_text;
    if (!allocate(declaration, start, start_bytes)) {
        coven_declaration_free(declaration);
        snprintf(why, why_bytes, "no memory for the start request");
        return -ENOMEM;
    }
    if (coven_ea_open(&reader, declaration->text, start_bytes, start, start_bytes) != 0)
        fault = "it is no Extended Agent message";
    else if (coven_ea_line(&reader, fields) != 3 || !coven_ea_id(fields[0], &declaration->id) ||
             strcmp(fields[1], "start") != 0)
        fault = "its first line is not id, start and name";
    while (fault == NULL && (n = coven_ea_line(&reader, fields)) != 0)
        fault = n < 0 ? "a line has a bad sequence or too many fields" : read_line(declaration, fields, n);
    if (fault == NULL && declaration->component[0] == '\0')
        fault = "it names no component";
    if (fault == NULL)
        return 0;
    snprintf(why, why_bytes, "the start request cannot be read: %s", fault);
    coven_declaration_free(declaration);
    return -EBADMSG;
}

void coven_declaration_free(struct coven_declaration *declaration)
{
    for (size_t i = 0; i < declaration->n_arguments; i++)
        free((char *)(uintptr_t)declaration->arguments[i].default_value);
    free(declaration->text);
    free(declaration->options);
    free(declaration->metrics);
    free(declaration->operations);
    free(declaration->arguments);
    memset(declaration, 0, sizeof(*declaration));
}
