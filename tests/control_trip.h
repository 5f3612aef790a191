/* Helpers of the control message tests: there and back, cut anywhere, refused by name. */
#ifndef TESTS_CONTROL_TRIP_H
#define TESTS_CONTROL_TRIP_H

#include "tests/unit.h"

#include "proto/control.h"
#include "proto/frame.h"

/* Encodes m into a malloc'd block of exactly its size, so that a sanitizer sees any byte too far.
 */
static inline unsigned char *encode(const struct control_message *m, size_t *len)
{
    *len = control_size(m);
    unsigned char *bytes = malloc(*len);
    assert_non_null(bytes);
    assert_int_equal(control_encode(m, bytes, *len), *len);
    return bytes;
}

static inline void round_trip(const struct control_message *m, struct control_message *out)
{
    size_t len;
    unsigned char *bytes = encode(m, &len);
    struct err err = {0};
    int kind = 0;
    assert_int_equal(message_kind(bytes, len, &kind, &err), STATUS_OK);
    assert_int_equal(kind, MESSAGE_CONTROL);
    enum status st = control_decode(bytes, len, out, &err);
    if (st != STATUS_OK)
        fail_msg("kind %d: %s", (int)m->kind, err.message);
    assert_int_equal(out->kind, m->kind);
    /* Cut anywhere, it must be refused: the outermost length is in front. */
    for (size_t cut = 0; cut < len; cut++) {
        unsigned char *part = malloc(cut ? cut : 1);
        assert_non_null(part);
        memcpy(part, bytes, cut);
        struct control_message none;
        assert_int_equal(control_decode(part, cut, &none, &err), STATUS_CORRUPT);
        free(part);
        if (cut == 200 && len > 600)
            cut = len - 200;
    }
    free(bytes);
}

/* Decoding must fail, and the message must name `what`. */
static inline void refused(const struct control_message *m, const char *what)
{
    size_t len;
    unsigned char *bytes = encode(m, &len);
    struct control_message out;
    struct err err = {0};
    assert_int_equal(control_decode(bytes, len, &out, &err), STATUS_CORRUPT);
    if (strstr(err.message, what) == NULL)
        fail_msg("\"%s\" does not name \"%s\"", err.message, what);
    assert_int_equal(control_decode(bytes, len, &out, NULL), STATUS_CORRUPT);
    free(bytes);
}

#endif
