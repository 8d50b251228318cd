/* SPDX-License-Identifier: Apache-2.0 */
/* Extended Agent messages (docs/internals.md section 5): lines of tab-separated fields, bounded, strict.
 * coven/agents/protocol.py is the same in Python. */
#ifndef COVEN_EA_H
#define COVEN_EA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COVEN_EA_MAX_BYTES 65536u /* of one message */
#define COVEN_EA_MAX_FIELDS 8u    /* of one line that this reader accepts */

/* ---- reading ---- */
struct coven_ea_reader {
    char *at;
    char *end;
};

/* Copy a message into `copy` (at least `bytes` long, and not less than 1) and check it as a whole: UTF-8, no NUL,
 * ends with a line end. Fields point into the copy. 0, -EMSGSIZE or -EBADMSG. */
int coven_ea_open(struct coven_ea_reader *reader, char *copy, size_t copy_bytes, const char *message, size_t bytes)
    __attribute__((warn_unused_result));
/* Fields of the next line, NUL terminated, sequences resolved. Returns how many (1 and more), 0 behind the last
 * line, -EBADMSG for a sequence that is none or too many fields. Fields that are not there point at "". */
int coven_ea_line(struct coven_ea_reader *reader, char *fields[COVEN_EA_MAX_FIELDS]);
/* A message's id: decimal, no sign, no leading zero, below 2^63. */
bool coven_ea_id(const char *field, uint64_t *id);
/* The value of a JSON string without its quotes, in place; any other text stays as it is. false when it begins
 * like a string and is none (or contains NUL). */
bool coven_ea_plain(char *json);

/* ---- writing ---- */
struct coven_ea_writer {
    char *begin;
    size_t size;
    size_t used;
    bool is_overflow; /* something did not fit: nothing of the line it belongs to was written */
};

void coven_ea_writer_init(struct coven_ea_writer *writer, char *buffer, size_t size);
/* One line of n fields. Bytes that are not UTF-8 become '?'. */
void coven_ea_write(struct coven_ea_writer *writer, const char *const *fields, size_t n);
/* First line `<id> ok`. */
void coven_ea_write_ok(struct coven_ea_writer *writer, uint64_t id);
/* The whole answer `<id> error <code> <message>`, in place of what was written so far. A message that does not fit
 * is cut. Returns the answer's length. */
size_t coven_ea_write_error(struct coven_ea_writer *writer, uint64_t id, const char *code, const char *message);

/* coven_ea_write(writer, fields...) for fields written one by one. */
#define COVEN_EA_WRITE(writer, ...)                                                                                    \
    do {                                                                                                               \
        const char *const coven_ea_fields[] = {__VA_ARGS__};                                                           \
        coven_ea_write(writer, coven_ea_fields, sizeof(coven_ea_fields) / sizeof(coven_ea_fields[0]));                 \
    } while (0)

#endif
