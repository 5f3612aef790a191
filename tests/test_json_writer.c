/* The JSON writer against jansson: whatever is written reads back as what was meant. */
#include "tests/unit.h"

#include "coordinator/json_writer.h"

#include <jansson.h>
#include <math.h>

/* Text is compiled into this test, so that it can run out of memory at will. */
static size_t n_allocations_left = SIZE_MAX;

static void *limited_realloc(void *memory, size_t n)
{
    if (n_allocations_left == 0)
        return NULL;
    n_allocations_left--;
    return realloc(memory, n);
}

#define realloc limited_realloc
#include "coordinator/text.c"
#undef realloc

#include "train/random.h"

static void assert_text(const struct text *t, const char *expected)
{
    assert_false(t->is_broken);
    if (t->len_bytes != strlen(expected) || memcmp(t->bytes, expected, t->len_bytes) != 0)
        fail_msg("expected %s\nfound    %.*s", expected, (int)t->len_bytes, t->bytes);
}

/* ---- text ----------------------------------------------------------------------------------- */

static void test_members(void **state)
{
    (void)state;
    struct text t = {0};
    struct json_writer w;
    json_writer_init(&w, &t);
    json_write_begin_object(&w);
    json_write_integer_at(&w, "n", -3);
    json_write_number_at(&w, "s", 0.25);
    json_write_number_at(&w, "none", NAN);
    json_write_end_object(&w);
    assert_int_equal(t.len_bytes, strlen("{\"n\":-3,\"s\":0.25,\"none\":null}"));
    assert_memory_equal(t.bytes, "{\"n\":-3,\"s\":0.25,\"none\":null}", t.len_bytes);
    text_free(&t);
}

static void test_text_grows_and_keeps_its_memory(void **state)
{
    (void)state;
    struct text t = {0};
    text_add(&t, NULL, 0);
    assert_null(t.bytes);
    text_adds(&t, "ab");
    text_addf(&t, "%d-%s", 12, "x");
    text_addf(&t, "%s", "");
    text_add(&t, "c\0d", 3);
    assert_int_equal(t.len_bytes, 9);
    assert_memory_equal(t.bytes, "ab12-xc\0d", 9);
    size_t cap = t.cap_bytes;
    text_reset(&t);
    n_allocations_left = 0;
    for (size_t i = 0; i < cap; i++)
        text_add(&t, "x", 1);
    assert_false(t.is_broken);
    text_add(&t, "x", 1);
    assert_true(t.is_broken);
    n_allocations_left = SIZE_MAX;
    assert_int_equal(t.len_bytes, cap);
    text_adds(&t, "y"); /* broken: it stays as it is */
    assert_int_equal(t.len_bytes, cap);
    text_free(&t);
    assert_null(t.bytes);
}

static void test_text_prints_long_pieces(void **state)
{
    (void)state;
    struct text t = {0};
    text_addf(&t, "%1000d|", 7);
    text_addf(&t, "%100000d|", 8);
    assert_int_equal(t.len_bytes, 101002);
    assert_int_equal(t.bytes[999], '7');
    assert_int_equal(t.bytes[101001], '|');
    assert_int_equal(t.bytes[101000], '8');
    text_free(&t);
}

/* ---- the writer, case by case --------------------------------------------------------------- */

static void test_json_writer_puts_commas_and_colons(void **state)
{
    (void)state;
    struct text t = {0};
    struct json_writer w;
    json_writer_init(&w, &t);
    json_write_begin_object(&w);
    json_write_key(&w, "a");
    json_write_begin_array(&w);
    json_write_integer(&w, INT64_MIN);
    json_write_begin_object(&w);
    json_write_end_object(&w);
    json_write_begin_array(&w);
    json_write_end_array(&w);
    json_write_bool(&w, true);
    json_write_end_array(&w);
    json_write_key(&w, "b");
    json_write_string(&w, NULL);
    json_write_key(&w, "c");
    json_write_begin_object(&w);
    json_write_key(&w, "d");
    json_write_bool(&w, false);
    json_write_end_object(&w);
    json_write_key(&w, "e");
    json_write_integer(&w, 0);
    json_write_end_object(&w);
    assert_text(&t, "{\"a\":[-9223372036854775808,{},[],true],\"b\":null,\"c\":{\"d\":false},"
                    "\"e\":0}");
    text_free(&t);
}

static void test_json_writer_escapes(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        const char *expected;
    } cases[] = {
        {"", 0, "\"\""},
        {"a\"b\\c/", 6, "\"a\\\"b\\\\c/\""},
        {"\b\f\n\r\t\x01\x1f\x7f", 8, "\"\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\""},
        {"a\0b", 3, "\"a\\u0000b\""},
        {"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", 9, "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\""},
        {"\xF0\x9F\x98", 3, "\"\xEF\xBF\xBD\""}, /* cut short: one maximal subpart */
        {"\xED\xA0\x80", 3, "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""}, /* a surrogate */
        {"\xC0\x80", 2, "\"\xEF\xBF\xBD\xEF\xBF\xBD\""},                 /* overlong */
        {"\xF4\x90\x80\x80", 4, "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""},
        {"\xFFq\xE2\x82q", 5, "\"\xEF\xBF\xBDq\xEF\xBF\xBDq\""},
    };
    struct text t = {0};
    struct json_writer w;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        text_reset(&t);
        json_writer_init(&w, &t);
        json_write_bytes(&w, cases[i].bytes, cases[i].n);
        assert_text(&t, cases[i].expected);
    }
    text_free(&t);
}

static void test_json_writer_prints_numbers(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *number, *as_float;
    } cases[] = {
        {0, "0.0", "0.0"},           {-0.0, "-0.0", "-0.0"},
        {1, "1.0", "1.0"},           {-2.5, "-2.5", "-2.5"},
        {0.1, "0.1", "0.100000001"}, {1e300, "1e+300", "null"},
        {NAN, "null", "null"},       {-INFINITY, "null", "null"},
        {3.75, "3.75", "3.75"},      {5e-324, "4.94065645841247e-324", "0.0"},
    };
    struct text t = {0};
    struct json_writer w;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        text_reset(&t);
        json_writer_init(&w, &t);
        json_write_number(&w, cases[i].value);
        assert_text(&t, cases[i].number);
        text_reset(&t);
        json_writer_init(&w, &t);
        json_write_float(&w, (float)cases[i].value);
        assert_text(&t, cases[i].as_float);
    }
    text_free(&t);
}

/* ---- the writer against jansson ------------------------------------------------------------- */

static uint64_t draw(struct random *r, uint64_t n)
{
    return random_bits(r) % n;
}

/* Characters as table 3-7 of the Unicode standard lists them; for the rest U+FFFD, one for each
 * maximal subpart. Returns the length of the clean text. */
static size_t clean_reference(const unsigned char *s, size_t n, char *out)
{
    static const unsigned char rows[][8] = {
        {0x00, 0x7F},
        {0xC2, 0xDF, 0x80, 0xBF},
        {0xE0, 0xE0, 0xA0, 0xBF, 0x80, 0xBF},
        {0xE1, 0xEC, 0x80, 0xBF, 0x80, 0xBF},
        {0xED, 0xED, 0x80, 0x9F, 0x80, 0xBF},
        {0xEE, 0xEF, 0x80, 0xBF, 0x80, 0xBF},
        {0xF0, 0xF0, 0x90, 0xBF, 0x80, 0xBF, 0x80, 0xBF},
        {0xF1, 0xF3, 0x80, 0xBF, 0x80, 0xBF, 0x80, 0xBF},
        {0xF4, 0xF4, 0x80, 0x8F, 0x80, 0xBF, 0x80, 0xBF},
    };
    size_t at = 0, n_out = 0;
    while (at < n) {
        size_t longest = 1;
        bool is_whole = false;
        for (size_t k = 0; k < sizeof rows / sizeof rows[0] && !is_whole; k++) {
            size_t length = 1, i = 0;
            while (length < 4 && rows[k][2 * length] != 0)
                length++;
            while (i < length && at + i < n && s[at + i] >= rows[k][2 * i] &&
                   s[at + i] <= rows[k][2 * i + 1])
                i++;
            is_whole = i == length;
            longest = is_whole || i > longest ? i : longest;
        }
        memcpy(out + n_out, is_whole ? (const char *)s + at : "\xEF\xBF\xBD",
               is_whole ? longest : 3);
        n_out += is_whole ? longest : 3;
        at += longest;
    }
    return n_out;
}

/* Bytes that are likely to be nearly UTF-8. */
static size_t draw_bytes(struct random *r, unsigned char *out, size_t cap)
{
    static const unsigned char leads[] = {0x00, 0x1F, '"',  '\\', 'a',  0x7F, 0x80, 0x9F,
                                          0xA0, 0xBF, 0xC1, 0xC2, 0xE0, 0xE1, 0xED, 0xEF,
                                          0xF0, 0xF3, 0xF4, 0xF5, 0x8F, 0x90, 0xFF, '\n'};
    size_t n = draw(r, cap + 1);
    bool is_wild = draw(r, 2) == 0;
    for (size_t i = 0; i < n; i++)
        out[i] = is_wild           ? (unsigned char)draw(r, 256)
                 : draw(r, 2) == 0 ? leads[draw(r, sizeof leads)]
                                   : (unsigned char)(0x80 + draw(r, 0x40));
    return n;
}

static double draw_double(struct random *r)
{
    double value;
    uint64_t bits;
    do {
        bits = random_bits(r);
        if (bits % 3 == 0)
            return (double)(int64_t)draw(r, 2000001) / 1000 - 1000;
        memcpy(&value, &bits, sizeof value);
    } while (!isfinite(value));
    return value;
}

/* Writes a random value and returns what it must read back as. */
static json_t *write_random(struct random *r, int depth, struct json_writer *w)
{
    unsigned char bytes[40];
    char clean[3 * sizeof bytes];
    double number;
    switch (draw(r, depth < JSON_WRITER_MAX_DEPTH ? 9 : 6)) {
    case 0:
        json_write_null(w);
        return json_null();
    case 1: {
        bool value = draw(r, 2) == 0;
        json_write_bool(w, value);
        return json_boolean(value);
    }
    case 2: {
        int64_t value = (int64_t)(random_bits(r) >> draw(r, 64));
        value = draw(r, 2) == 0 ? value : -value;
        json_write_integer(w, value);
        return json_integer(value);
    }
    case 3:
        number = draw_double(r);
        json_write_number(w, number);
        return json_real(number);
    case 4:
    case 5: {
        size_t n = draw_bytes(r, bytes, sizeof bytes);
        json_write_bytes(w, (const char *)bytes, n);
        return json_stringn(clean, clean_reference(bytes, n, clean));
    }
    case 6:
    case 7: {
        json_t *object = json_object();
        json_write_begin_object(w);
        for (uint64_t i = 0, n = draw(r, 5); i < n; i++) {
            char key[16];
            snprintf(key, sizeof key, "k%u %u", (unsigned)i, (unsigned)draw(r, 1000));
            json_write_key(w, key);
            json_object_set_new(object, key, write_random(r, depth + 1, w));
        }
        json_write_end_object(w);
        return object;
    }
    default: {
        json_t *array = json_array();
        json_write_begin_array(w);
        for (uint64_t i = 0, n = draw(r, 5); i < n; i++)
            json_array_append_new(array, write_random(r, depth + 1, w));
        json_write_end_array(w);
        return array;
    }
    }
}

static void test_json_writer_is_read_back_by_jansson(void **state)
{
    (void)state;
    struct text t = {0};
    for (uint64_t first = 1; first <= 4000; first++) {
        struct random r = random_of(first, 0, 0);
        struct json_writer w;
        text_reset(&t);
        json_writer_init(&w, &t);
        json_write_begin_array(&w);
        json_t *meant = write_random(&r, 1, &w);
        json_write_end_array(&w);
        assert_int_equal(w.depth, 0);
        json_error_t error;
        json_t *read =
            json_loadb(t.bytes, t.len_bytes, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &error);
        if (read == NULL || !json_equal(json_array_get(read, 0), meant))
            fail_msg("seed %u: %s in %.*s", (unsigned)first,
                     read == NULL ? error.text : "another value", (int)t.len_bytes, t.bytes);
        assert_null(memchr(t.bytes, '\n', t.len_bytes));
        json_decref(read);
        json_decref(meant);
    }
    text_free(&t);
}

static void test_json_writer_doubles_and_floats_come_back_exactly(void **state)
{
    (void)state;
    struct text t = {0};
    for (uint64_t first = 1; first <= 20000; first++) {
        struct random r = random_of(first, 0, 0);
        struct json_writer w;
        double value = draw_double(&r);
        uint32_t bits = (uint32_t)random_bits(&r);
        float single;
        memcpy(&single, &bits, sizeof single);
        text_reset(&t);
        json_writer_init(&w, &t);
        json_write_number(&w, value);
        text_add(&t, "", 1);
        size_t at = t.len_bytes;
        json_writer_init(&w, &t);
        json_write_float(&w, single);
        text_add(&t, "", 1);
        double back = strtod(t.bytes, NULL);
        if (memcmp(&back, &value, sizeof value) != 0)
            fail_msg("seed %u: %a was written as %s", (unsigned)first, value, t.bytes);
        if (!isfinite(single))
            assert_string_equal(t.bytes + at, "null");
        else if (strtof(t.bytes + at, NULL) != single)
            fail_msg("seed %u: %a was written as %s", (unsigned)first, (double)single,
                     t.bytes + at);
    }
    text_free(&t);
}

static void test_json_writer_survives_any_failed_allocation(void **state)
{
    (void)state;
    size_t n_broken = 0;
    for (uint64_t first = 1; first <= 300; first++)
        for (size_t n = 0; n < 6; n++) {
            struct random r = random_of(first, 0, 0);
            struct text t = {0};
            struct json_writer w;
            n_allocations_left = n;
            json_writer_init(&w, &t);
            json_write_begin_array(&w);
            json_decref(write_random(&r, 1, &w));
            json_write_end_array(&w);
            text_addf(&t, "%u", 5u);
            bool has_failed = n_allocations_left == 0 && t.is_broken;
            n_allocations_left = SIZE_MAX;
            assert_int_equal(w.depth, 0);
            n_broken += has_failed;
            assert_true(t.len_bytes <= t.cap_bytes);
            assert_true(n > 0 || t.is_broken);
            text_free(&t);
        }
    assert_true(n_broken >= 300);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_members),
        cmocka_unit_test(test_text_grows_and_keeps_its_memory),
        cmocka_unit_test(test_text_prints_long_pieces),
        cmocka_unit_test(test_json_writer_puts_commas_and_colons),
        cmocka_unit_test(test_json_writer_escapes),
        cmocka_unit_test(test_json_writer_prints_numbers),
        cmocka_unit_test(test_json_writer_is_read_back_by_jansson),
        cmocka_unit_test(test_json_writer_doubles_and_floats_come_back_exactly),
        cmocka_unit_test(test_json_writer_survives_any_failed_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
