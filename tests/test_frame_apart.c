/* Frames whose rows travel apart: the codec counts them and touches none; parts that do not agree
 * are refused. */
#include "tests/unit.h"

#include "proto/frame.h"
#include "proto/wire_bytes.h"

enum { D = 5, ROW = D * 4, N_FRAMES = 3, CAP = 1024 };

static const struct frame_limits LIMITS = {
    .d_model = D, .n_loops = 4, .max_positions = 1000, .vocab_size = 300};

/* Nobody may read or write there, as on a device. */
static unsigned char *const NOWHERE = (unsigned char *)4096;

/* 2 rows of loop 3, a live one among them; 3 of loop 1, which have none; 4 of loop 2. */
static const struct frame FRAMES[N_FRAMES] = {
    {.sequence = 9, .loop = 3, .n_rows = 2, .flags = FRAME_LIVE, .survival = 0.5f, .cdf = 0.5f},
    {.sequence = 8, .loop = 1, .n_rows = 3, .survival = 1.0f},
    {.sequence = 7, .loop = 2, .n_rows = 4, .first_position = 90, .survival = 1.0f},
};
enum { ROWS_BYTES = (2 + 4) * ROW };

static size_t make_bundle(unsigned char *bytes, size_t cap_bytes)
{
    struct bundle_writer w;
    struct err err = {0};
    bundle_begin(&w, bytes, cap_bytes, D, BUNDLE_DONE, 0);
    bundle_set_apart(&w, NOWHERE, ROWS_BYTES);
    size_t at = 0;
    for (int i = 0; i < N_FRAMES; i++) {
        const struct frame *f = &FRAMES[i];
        void *ids, *rows;
        if (bundle_add(&w, f, &ids, &rows, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        memset(ids, 0, f->n_rows * 4);
        assert_ptr_equal(rows, f->loop == 1 ? NULL : NOWHERE + at);
        at += frame_rows_bytes(f->loop, f->n_rows, D);
    }
    assert_int_equal(w.apart_bytes, ROWS_BYTES);
    return bundle_end(&w);
}

static enum status read_all(const unsigned char *bytes, size_t len, size_t apart_bytes,
                            struct err *err)
{
    struct bundle_reader r;
    bool has_frame = true;
    enum status st = bundle_open(&r, bytes, len, &LIMITS, err);
    if (st == STATUS_OK)
        st = bundle_join_rows(&r, apart_bytes > 0 ? NOWHERE : NULL, apart_bytes, err);
    for (size_t at = 0; st == STATUS_OK && has_frame;) {
        struct frame f;
        st = bundle_next(&r, &f, &has_frame, err);
        if (st != STATUS_OK || !has_frame)
            break;
        size_t n = frame_rows_bytes(f.loop, f.n_rows, D);
        assert_ptr_equal(f.rows, n == 0 ? NULL : NOWHERE + at);
        at += n;
        assert_true(at <= apart_bytes);
    }
    return st;
}

static void refused(const unsigned char *bytes, size_t len, size_t apart_bytes, const char *what)
{
    struct err err = {0};
    assert_int_equal(read_all(bytes, len, apart_bytes, &err), STATUS_CORRUPT);
    if (strstr(err.message, what) == NULL)
        fail_msg("\"%s\" does not name \"%s\"", err.message, what);
}

static void test_frame_apart_comes_back(void **state)
{
    (void)state;
    unsigned char bytes[CAP];
    struct err err = {0};
    size_t len = make_bundle(bytes, CAP), expected = bundle_header_bytes();
    for (int i = 0; i < N_FRAMES; i++)
        expected += frame_bytes(FRAMES[i].loop, FRAMES[i].n_rows, FRAMES[i].flags, D);
    assert_int_equal(len, expected - ROWS_BYTES);
    assert_int_equal(wire_load_u32(bytes + 8), BUNDLE_DONE | BUNDLE_ROWS_APART);
    if (read_all(bytes, len, ROWS_BYTES, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static void test_frame_apart_both_parts_must_agree(void **state)
{
    (void)state;
    unsigned char bytes[CAP];
    size_t len = make_bundle(bytes, CAP);
    refused(bytes, len, 0, "say that rows come apart, and 0 bytes");
    for (size_t n = 1; n < 2 * ROW; n++)
        refused(bytes, len, n, "2 rows of 5 numbers do not fit");
    for (size_t n = 2 * ROW; n < ROWS_BYTES; n++)
        refused(bytes, len, n, "4 rows of 5 numbers do not fit");
    refused(bytes, len, ROWS_BYTES + 1, "has 121 bytes of rows, the bundle's frames take 120");
    refused(bytes, len, SIZE_MAX, "the bundle's frames take 120");
    for (size_t n = 0; n < len; n++)
        assert_int_equal(read_all(bytes, n, ROWS_BYTES, NULL), STATUS_CORRUPT);
}

static void test_frame_apart_is_refused_where_rows_are_in_the_frames(void **state)
{
    (void)state;
    unsigned char bytes[CAP];
    struct bundle_writer w;
    void *ids, *rows;
    bundle_begin(&w, bytes, CAP, D, 0, 0);
    assert_int_equal(bundle_add(&w, &FRAMES[2], &ids, &rows, NULL), STATUS_OK);
    memset(ids, 0, 4 * 4);
    size_t len = bundle_end(&w);
    refused(bytes, len, 4 * ROW, "say that rows come in the frames, and 80 bytes");
}

static void test_frame_apart_refuses_what_does_not_fit(void **state)
{
    (void)state;
    unsigned char bytes[CAP];
    struct bundle_writer w;
    struct err err = {0};
    void *ids = NULL, *rows = NULL;
    bundle_begin(&w, bytes, CAP, D, 0, 0);
    bundle_set_apart(&w, NOWHERE, 4 * ROW - 1);
    assert_int_equal(bundle_add(&w, &FRAMES[2], &ids, &rows, &err), STATUS_NO_MEMORY);
    assert_non_null(strstr(err.message, "the second part has 79 of 79 left"));
    assert_null(ids);
    assert_int_equal(w.n_frames, 0);
    assert_int_equal(w.apart_bytes, 0);
    assert_int_equal(frame_rows_bytes(1, 1000, D), 0);
    assert_int_equal(frame_rows_bytes(2, UINT32_MAX, UINT32_MAX), SIZE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frame_apart_comes_back),
        cmocka_unit_test(test_frame_apart_both_parts_must_agree),
        cmocka_unit_test(test_frame_apart_is_refused_where_rows_are_in_the_frames),
        cmocka_unit_test(test_frame_apart_refuses_what_does_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
