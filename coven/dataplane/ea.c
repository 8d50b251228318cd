/* SPDX-License-Identifier: Apache-2.0 */
#include "ea.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Bytes of the UTF-8 sequence at `p` (RFC 3629 section 4), 0 when it is none. */
static size_t utf8_bytes(const unsigned char *p, size_t left)
{
    static const struct {
        unsigned char first_low, first_high, second_low, second_high, bytes;
    } forms[] = {
        {0x00, 0x7f, 0, 0, 1},       {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
        {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
        {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
    };

    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        if (p[0] < forms[i].first_low || p[0] > forms[i].first_high)
            continue;
        if (forms[i].bytes > left)
            return 0;
        if (forms[i].bytes > 1 && (p[1] < forms[i].second_low || p[1] > forms[i].second_high))
            return 0;
        for (size_t k = 2; k < forms[i].bytes; k++) {
            if ((p[k] & 0xc0) != 0x80)
                return 0;
        }
        return forms[i].bytes;
    }
    return 0;
}

/* ---- reading ------------------------------------------------------------------------------------ */
int coven_ea_open(struct coven_ea_reader *reader, char *copy, size_t copy_bytes, const char *message, size_t bytes)
{
    size_t at = 0;

    if (bytes > COVEN_EA_MAX_BYTES || bytes > copy_bytes)
        return -EMSGSIZE;
    if (bytes == 0 || message[bytes - 1] != '\n' || memchr(message, '\0', bytes) != NULL)
        return -EBADMSG;
    memcpy(copy, message, bytes);
    while (at < bytes) {
        size_t step = utf8_bytes((const unsigned char *)copy + at, bytes - at);

        if (step == 0)
            return -EBADMSG;
        at += step;
    }
    reader->at = copy;
    reader->end = copy + bytes;
    return 0;
}

/* Resolve the sequences of one field in place. */
static bool unescape(char *field)
{
    char *to = field;

    for (const char *from = field; *from != '\0'; from++) {
        if (*from != '\\') {
            *to++ = *from;
            continue;
        }
        from++;
        if (*from == '\\')
            *to++ = '\\';
        else if (*from == 't')
            *to++ = '\t';
        else if (*from == 'n')
            *to++ = '\n';
        else
            return false;
    }
    *to = '\0';
    return true;
}

int coven_ea_line(struct coven_ea_reader *reader, char *fields[COVEN_EA_MAX_FIELDS])
{
    static char nothing[1];
    char *line = reader->at;
    char *line_end;
    int n = 0;

    for (size_t i = 0; i < COVEN_EA_MAX_FIELDS; i++)
        fields[i] = nothing;
    if (line >= reader->end)
        return 0;
    line_end = memchr(line, '\n', (size_t)(reader->end - line));
    if (line_end == NULL)
        return -EBADMSG;
    *line_end = '\0';
    reader->at = line_end + 1;
    while (line != NULL) {
        char *tab = strchr(line, '\t');

        if (n == (int)COVEN_EA_MAX_FIELDS)
            return -EBADMSG;
        if (tab != NULL)
            *tab++ = '\0';
        if (!unescape(line))
            return -EBADMSG;
        fields[n++] = line;
        line = tab;
    }
    return n;
}

bool coven_ea_id(const char *field, uint64_t *id)
{
    uint64_t value = 0;

    if (field[0] == '\0' || (field[0] == '0' && field[1] != '\0'))
        return false;
    for (; *field != '\0'; field++) {
        if (*field < '0' || *field > '9' || value > (INT64_MAX - (uint64_t)(*field - '0')) / 10)
            return false;
        value = value * 10 + (uint64_t)(*field - '0');
    }
    *id = value;
    return true;
}

static int hex4(const char *p)
{
    int value = 0;

    for (int i = 0; i < 4; i++) {
        char c = p[i];

        value <<= 4;
        if (c >= '0' && c <= '9')
            value |= c - '0';
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            value |= (c | 32) - 'a' + 10;
        else
            return -1; /* the end of the text as well */
    }
    return value;
}

static char *put_utf8(char *to, uint32_t code)
{
    if (code < 0x80) {
        *to++ = (char)code;
        return to;
    }
    if (code < 0x800) {
        *to++ = (char)(0xc0 | code >> 6);
    } else {
        if (code < 0x10000) {
            *to++ = (char)(0xe0 | code >> 12);
        } else {
            *to++ = (char)(0xf0 | code >> 18);
            *to++ = (char)(0x80 | (code >> 12 & 0x3f));
        }
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
    }
    *to++ = (char)(0x80 | (code & 0x3f));
    return to;
}

/* The character behind "\u" at *from, which is moved to its last digit; 0 when it is none. */
static uint32_t json_unicode(const char **from)
{
    int high = hex4(*from + 1), low;

    if (high <= 0)
        return 0;
    *from += 4;
    if (high < 0xd800 || high > 0xdfff)
        return (uint32_t)high;
    if (high > 0xdbff || (*from)[1] != '\\' || (*from)[2] != 'u')
        return 0;
    low = hex4(*from + 3);
    if (low < 0xdc00 || low > 0xdfff)
        return 0;
    *from += 6;
    return 0x10000u + ((uint32_t)(high - 0xd800) << 10) + (uint32_t)(low - 0xdc00);
}

bool coven_ea_plain(char *json)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    char *to = json;
    const char *from = json;

    if (*from++ != '"')
        return true;
    for (; *from != '"'; from++) {
        const char *name;
        uint32_t code;

        if (*from == '\0')
            return false;
        if (*from != '\\') {
            *to++ = *from;
            continue;
        }
        from++;
        if (*from == 'u') {
            code = json_unicode(&from);
            if (code == 0)
                return false;
            to = put_utf8(to, code);
            continue;
        }
        name = *from == '\0' ? NULL : strchr(names, *from);
        if (name == NULL)
            return false;
        *to++ = values[name - names];
    }
    if (from[1] != '\0')
        return false;
    *to = '\0';
    return true;
}

/* ---- writing ------------------------------------------------------------------------------------ */
void coven_ea_writer_init(struct coven_ea_writer *writer, char *buffer, size_t size)
{
    writer->begin = buffer;
    writer->size = size < COVEN_EA_MAX_BYTES ? size : COVEN_EA_MAX_BYTES;
    writer->used = 0;
    writer->is_overflow = false;
}

/* Bytes that a character becomes: `out` gets up to 4 of them. */
static size_t escape(const unsigned char *p, size_t left, char out[4], size_t *taken)
{
    size_t bytes = utf8_bytes(p, left);

    *taken = bytes != 0 ? bytes : 1;
    if (bytes == 0) {
        out[0] = '?';
        return 1;
    }
    if (*p == '\\' || *p == '\t' || *p == '\n') {
        out[0] = '\\';
        out[1] = *p == '\\' ? '\\' : *p == '\t' ? 't' : 'n';
        return 2;
    }
    memcpy(out, p, bytes);
    return bytes;
}

/* Returns where the text ends, `limit` + 1 when it does not fit. */
static size_t put_text(struct coven_ea_writer *writer, size_t at, const char *text)
{
    size_t left = strlen(text), taken, n;
    char bytes[4];

    for (; left != 0; text += taken, left -= taken) {
        n = escape((const unsigned char *)text, left, bytes, &taken);
        if (n > writer->size - at)
            return writer->size + 1;
        memcpy(writer->begin + at, bytes, n);
        at += n;
    }
    return at;
}

void coven_ea_write(struct coven_ea_writer *writer, const char *const *fields, size_t n)
{
    size_t at = writer->used;

    for (size_t i = 0; i < n; i++) {
        at = put_text(writer, at, fields[i] != NULL ? fields[i] : "");
        if (at >= writer->size) { /* no room for the tab or line end either */
            writer->is_overflow = true;
            return;
        }
        writer->begin[at++] = i + 1 < n ? '\t' : '\n';
    }
    writer->used = at;
}

void coven_ea_write_ok(struct coven_ea_writer *writer, uint64_t id)
{
    char number[24];

    snprintf(number, sizeof(number), "%llu", (unsigned long long)id);
    COVEN_EA_WRITE(writer, number, "ok");
}

size_t coven_ea_write_error(struct coven_ea_writer *writer, uint64_t id, const char *code, const char *message)
{
    char number[24], cut[512];
    size_t length = strnlen(message, sizeof(cut) - 1);

    memcpy(cut, message, length);
    cut[length] = '\0';
    snprintf(number, sizeof(number), "%llu", (unsigned long long)id);
    writer->used = 0;
    writer->is_overflow = false;
    COVEN_EA_WRITE(writer, number, "error", code, cut);
    while (writer->is_overflow && length != 0) {
        length /= 2;
        cut[length] = '\0';
        writer->is_overflow = false;
        COVEN_EA_WRITE(writer, number, "error", code, cut);
    }
    return writer->used;
}
