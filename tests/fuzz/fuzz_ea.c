/* SPDX-License-Identifier: Apache-2.0 */
/* Extended Agent messages: whatever is accepted is written back to the same message. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "declaration.h"
#include "ea.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void round_trip(const char *message, size_t bytes)
{
    static char copy[COVEN_EA_MAX_BYTES], again[2 * COVEN_EA_MAX_BYTES];
    struct coven_ea_reader reader;
    struct coven_ea_writer writer;
    char *fields[COVEN_EA_MAX_FIELDS];
    int n;

    if (coven_ea_open(&reader, copy, sizeof(copy), message, bytes) != 0)
        return;
    coven_ea_writer_init(&writer, again, sizeof(again));
    while ((n = coven_ea_line(&reader, fields)) > 0)
        coven_ea_write(&writer, (const char *const *)fields, (size_t)n);
    if (n == 0 && (writer.is_overflow || writer.used != bytes || memcmp(again, message, bytes) != 0))
        abort();
}

static void plain(const char *text, size_t bytes)
{
    char *copy = malloc(bytes + 1);

    if (copy == NULL)
        return;
    memcpy(copy, text, bytes);
    copy[bytes] = '\0';
    if (coven_ea_plain(copy) && strlen(copy) > bytes)
        abort();
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct coven_declaration declaration;
    char why[256], error[300];
    struct coven_ea_writer writer;
    size_t room = size % sizeof(error);

    round_trip((const char *)data, size);
    plain((const char *)data, size);
    if (coven_declaration_read(&declaration, (const char *)data, size, why, sizeof(why)) == 0)
        coven_declaration_free(&declaration);
    if (size != 0 && data[size - 1] == '\0') {
        coven_ea_writer_init(&writer, error, room);
        if (coven_ea_write_error(&writer, size, "failed", (const char *)data) > room)
            abort();
    }
    return 0;
}
