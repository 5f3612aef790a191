/* Writes JSON into a text, one call a token of the grammar. */
#include "coordinator/json_writer.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

void json_writer_init(struct json_writer *w, struct text *out)
{
    *w = (struct json_writer){.out = out};
}

/* ---- structure ------------------------------------------------------------------------------ */

/* What separates a value, or a key, from what stands before it. */
static void separate(struct json_writer *w)
{
    if (w->is_value_due)
        w->is_value_due = false;
    else if (w->has_item[w->depth])
        text_add(w->out, ",", 1);
    w->has_item[w->depth] = true;
}

static void begin(struct json_writer *w, const char *bracket)
{
    assert(w->depth < JSON_WRITER_MAX_DEPTH);
    separate(w);
    text_add(w->out, bracket, 1);
    w->has_item[++w->depth] = false;
}

static void end(struct json_writer *w, const char *bracket)
{
    assert(w->depth > 0 && !w->is_value_due);
    w->depth--;
    text_add(w->out, bracket, 1);
}

void json_write_begin_object(struct json_writer *w)
{
    begin(w, "{");
}

void json_write_end_object(struct json_writer *w)
{
    end(w, "}");
}

void json_write_begin_array(struct json_writer *w)
{
    begin(w, "[");
}

void json_write_end_array(struct json_writer *w)
{
    end(w, "]");
}

void json_write_key(struct json_writer *w, const char *key)
{
    assert(w->depth > 0 && !w->is_value_due);
    separate(w);
    text_add(w->out, "\"", 1);
    text_adds(w->out, key);
    text_add(w->out, "\":", 2);
    w->is_value_due = true;
}

/* ---- strings -------------------------------------------------------------------------------- */

/* Length of the character at the front of s[0, n); 0 where its bytes are none, and *n_bad is then
 * the maximal subpart that one U+FFFD stands for (Unicode chapter 3.9). */
static size_t character_length(const unsigned char *s, size_t n, size_t *n_bad)
{
    size_t length = s[0] >= 0xC2 && s[0] <= 0xDF   ? 2
                    : s[0] >= 0xE0 && s[0] <= 0xEF ? 3
                    : s[0] >= 0xF0 && s[0] <= 0xF4 ? 4
                                                   : 0;
    /* The second byte's range leaves out overlong forms, surrogates and all above U+10FFFF. */
    unsigned char low = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
    unsigned char high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
    size_t at = 1;
    while (at < length && at < n && s[at] >= low && s[at] <= high) {
        low = 0x80;
        high = 0xBF;
        at++;
    }
    *n_bad = at;
    return at == length ? length : 0;
}

bool json_is_utf8(const char *bytes, size_t len_bytes)
{
    const unsigned char *s = (const unsigned char *)bytes;
    for (size_t at = 0; at < len_bytes;) {
        size_t n_bad;
        size_t length = s[at] < 0x80 ? 1 : character_length(s + at, len_bytes - at, &n_bad);
        if (length == 0)
            return false;
        at += length;
    }
    return true;
}

static void add_escape(struct text *out, unsigned char c)
{
    static const char short_forms[] = "\"\"\\\\\bb\ff\nn\rr\tt";
    for (const char *form = short_forms; *form != '\0'; form += 2)
        if ((unsigned char)form[0] == c) {
            const char escape[2] = {'\\', form[1]};
            text_add(out, escape, 2);
            return;
        }
    static const char digits[] = "0123456789abcdef";
    const char escape[6] = {'\\', 'u', '0', '0', digits[c >> 4], digits[c & 15]};
    text_add(out, escape, sizeof escape);
}

void json_write_bytes(struct json_writer *w, const char *bytes, size_t len_bytes)
{
    const unsigned char *s = (const unsigned char *)bytes;
    size_t from = 0, at = 0; /* [from, at) goes out as it is */
    separate(w);
    text_add(w->out, "\"", 1);
    while (at < len_bytes) {
        size_t n_bad = 1, length = 0;
        bool is_plain = s[at] >= 0x20 && s[at] < 0x80 && s[at] != '"' && s[at] != '\\';
        if (s[at] >= 0x80)
            length = character_length(s + at, len_bytes - at, &n_bad);
        if (is_plain || length > 0) {
            at += is_plain ? 1 : length;
            continue;
        }
        text_add(w->out, bytes + from, at - from);
        if (s[at] >= 0x80)
            text_add(w->out, REPLACEMENT, 3);
        else
            add_escape(w->out, s[at]);
        at += n_bad;
        from = at;
    }
    if (at > from)
        text_add(w->out, bytes + from, at - from);
    text_add(w->out, "\"", 1);
}

void json_write_key_bytes(struct json_writer *w, const char *key, size_t len_bytes)
{
    assert(w->depth > 0 && !w->is_value_due);
    json_write_bytes(w, key, len_bytes);
    text_add(w->out, ":", 1);
    w->is_value_due = true;
}

void json_write_string(struct json_writer *w, const char *string)
{
    if (string != NULL)
        json_write_bytes(w, string, strlen(string));
    else
        json_write_null(w);
}

/* ---- numbers and words ---------------------------------------------------------------------- */

/* Decimal digits of value, right before `end`; returns their start. */
static char *digits_before(char *end, uint64_t value)
{
    do {
        *--end = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    return end;
}

void json_write_integer(struct json_writer *w, int64_t value)
{
    char text[24],
        *at = digits_before(text + sizeof text, value < 0 ? -(uint64_t)value : (uint64_t)value);
    if (value < 0)
        *--at = '-';
    separate(w);
    text_add(w->out, at, (size_t)(text + sizeof text - at));
}

/* A number that was printed with %g: with a point, so that it is a real for every reader. */
static void add_real(struct json_writer *w, const char *text)
{
    separate(w);
    text_adds(w->out, text);
    if (strpbrk(text, ".e") == NULL)
        text_add(w->out, ".0", 2);
}

void json_write_number(struct json_writer *w, double value)
{
    char text[32];
    if (!isfinite(value)) {
        json_write_null(w);
        return;
    }
    /* 17 digits always suffice, and most numbers that people meet need 15 or fewer. */
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    add_real(w, text);
}

void json_write_integer_at(struct json_writer *w, const char *key, int64_t value)
{
    json_write_key(w, key);
    json_write_integer(w, value);
}

void json_write_number_at(struct json_writer *w, const char *key, double value)
{
    json_write_key(w, key);
    json_write_number(w, value);
}

void json_write_float(struct json_writer *w, float value)
{
    char text[32];
    if (!isfinite(value)) {
        json_write_null(w);
        return;
    }
    snprintf(text, sizeof text, "%.9g", (double)value);
    add_real(w, text);
}

void json_write_bool(struct json_writer *w, bool value)
{
    separate(w);
    text_adds(w->out, value ? "true" : "false");
}

void json_write_null(struct json_writer *w)
{
    separate(w);
    text_add(w->out, "null", 4);
}

void json_write_made(struct json_writer *w)
{
    separate(w);
}
