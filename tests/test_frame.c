/* Frames: bundles come back as they were written; altered or cut ones are refused. */
#include "tests/unit.h"

#include "proto/frame.h"
#include "proto/wire_bytes.h"

#include <math.h>

static const struct frame_limits LIMITS = {
    .d_model = 5, .n_loops = 4, .max_positions = 1000, .vocab_size = 300};

/* The check of docs/wire.md, written again: FNV-1a over the header up to its last four bytes. */
static void repair_check(unsigned char *header, size_t size)
{
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < size - 4; i++)
        h = (h ^ header[i]) * 16777619u;
    wire_store_u32(header + size - 4, h);
}

/* ids[i] = 7 i mod 300, row values count up. */
static void add(struct bundle_writer *w, const struct frame *f)
{
    void *ids, *rows;
    struct err err = {0};
    if (bundle_add(w, f, &ids, &rows, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    for (uint32_t i = 0; i < f->n_rows; i++) {
        int32_t id = (int32_t)(7 * i % 300);
        memcpy((char *)ids + 4 * i, &id, 4);
    }
    assert_true((f->loop == 1) == (rows == NULL));
    for (uint32_t i = 0; rows && i < f->n_rows * w->d_model; i++) {
        float value = (float)i + 0.25f;
        memcpy((char *)rows + 4 * i, &value, 4);
    }
}

/* Two frames, of loop 1 and 3: bundle header at 0, frames at 32 and 32 + 64 + 12 = 108. */
enum {
    FIRST = 32,
    SECOND = FIRST + 64 + 12,
    ROWS = 2 * 4 + 2 * 5 * 4,
    TIMINGS = SECOND + 64 + ROWS,
    TOTAL = TIMINGS + 2 * 16
};

static void make_bundle(unsigned char *bytes)
{
    struct bundle_writer w;
    bundle_begin(&w, bytes, TOTAL, LIMITS.d_model, BUNDLE_BUSY | BUNDLE_DONE, 77);
    add(&w, &(struct frame){.sequence = 9,
                            .loop = 1,
                            .n_rows = 3,
                            .flags = FRAME_LIVE,
                            .survival = 1.0f,
                            .sent_ns = 77});
    add(&w, &(struct frame){.sequence = UINT64_MAX,
                            .loop = 3,
                            .first_position = 998,
                            .n_rows = 2,
                            .flags = FRAME_LIVE,
                            .survival = 0.25f,
                            .cdf = 0.75f,
                            .sent_ns = UINT64_MAX,
                            .timings = {{-5e8, 0.25f, 0.5f}, {1e-9, 0.0f, 3.0f}}});
    assert_int_equal(bundle_end(&w), TOTAL);
}

/* Reads all; touches every id and row byte. */
static enum status read_all(const void *bytes, size_t len, uint32_t *n, struct err *err)
{
    struct bundle_reader r;
    enum status st = bundle_open(&r, bytes, len, &LIMITS, err);
    bool has_frame = st == STATUS_OK;
    *n = 0;
    while (has_frame) {
        struct frame f;
        if ((st = bundle_next(&r, &f, &has_frame, err)) != STATUS_OK)
            break;
        if (!has_frame)
            break;
        ++*n;
        int64_t sum = 0;
        for (uint32_t i = 0; i < f.n_rows; i++)
            sum += frame_id(&f, i);
        for (size_t i = 0; f.rows && i < (size_t)f.n_rows * LIMITS.d_model * 4; i++)
            sum += ((const unsigned char *)f.rows)[i];
        assert_true(sum >= 0);
    }
    return st;
}

static void refused(const unsigned char *bytes, size_t len, const char *what)
{
    struct err err = {0};
    uint32_t n;
    assert_int_equal(read_all(bytes, len, &n, &err), STATUS_CORRUPT);
    if (strstr(err.message, what) == NULL)
        fail_msg("\"%s\" does not name \"%s\"", err.message, what);
    assert_int_equal(read_all(bytes, len, &n, NULL), STATUS_CORRUPT);
}

static void test_frame_layout(void **state)
{
    (void)state;
    unsigned char b[TOTAL];
    make_bundle(b);
    assert_memory_equal(b, "CRSL\x06\x00\x01\x00\x03\x00\x00\x00\x02\x00\x00\x00", 16);
    assert_int_equal(wire_load_u64(b + 16), TOTAL);
    assert_int_equal(wire_load_u32(b + 24), 77);
    assert_memory_equal(b + FIRST, "FRAM\x01\x00\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00", 16);
    assert_int_equal(wire_load_u32(b + SECOND + 16), 998);
    assert_int_equal(wire_load_u32(b + SECOND + 20), 2);
    assert_int_equal(wire_load_u32(b + SECOND + 36), LIMITS.d_model);
    assert_int_equal(wire_load_u64(b + SECOND + 40), ROWS + 2 * 16);
    assert_int_equal(wire_load_u64(b + FIRST + 48), 77);
    assert_true(wire_load_f64(b + TIMINGS) == -5e8);
    assert_true(wire_load_f32(b + TIMINGS + 8) == 0.25f);
    assert_true(wire_load_f32(b + TIMINGS + 16 + 12) == 3.0f);
    unsigned char copy[TOTAL];
    memcpy(copy, b, TOTAL);
    repair_check(copy, 32);
    repair_check(copy + FIRST, 64);
    repair_check(copy + SECOND, 64);
    assert_memory_equal(copy, b, TOTAL);
}

static void test_frame_round_trip(void **state)
{
    (void)state;
    unsigned char b[TOTAL];
    make_bundle(b);
    struct bundle_reader r;
    struct frame f;
    struct err err = {0};
    bool has_frame;
    assert_int_equal(bundle_open(&r, b, TOTAL, &LIMITS, &err), STATUS_OK);
    assert_int_equal(r.flags, BUNDLE_BUSY | BUNDLE_DONE);
    assert_int_equal(r.round, 77);
    assert_int_equal(r.n_frames, 2);
    assert_int_equal(bundle_next(&r, &f, &has_frame, &err), STATUS_OK);
    assert_true(has_frame);
    assert_int_equal(f.sequence, 9);
    assert_int_equal(f.loop, 1);
    assert_int_equal(f.n_rows, 3);
    assert_null(f.rows);
    assert_int_equal(f.sent_ns, 77);
    assert_int_equal(frame_id(&f, 2), 14);
    assert_int_equal(bundle_next(&r, &f, &has_frame, &err), STATUS_OK);
    assert_true(has_frame);
    assert_int_equal(f.sequence, UINT64_MAX);
    assert_int_equal(f.loop, 3);
    assert_int_equal(f.first_position, 998);
    assert_int_equal(f.flags, FRAME_LIVE);
    assert_true(f.survival == 0.25f && f.cdf == 0.75f);
    assert_ptr_equal(f.ids, b + SECOND + 64);
    assert_ptr_equal(f.rows, b + SECOND + 64 + 8);
    float last;
    memcpy(&last, (const char *)f.rows + 9 * 4, 4);
    assert_true(last == 9.25f);
    assert_int_equal(f.sent_ns, UINT64_MAX);
    assert_true(f.timings[0].hop_s == -5e8 && f.timings[0].wait_s == 0.25f);
    assert_true(f.timings[0].compute_s == 0.5f && f.timings[1].hop_s == 1e-9);
    assert_true(f.timings[1].wait_s == 0.0f && f.timings[1].compute_s == 3.0f);
    for (int again = 0; again < 2; again++) {
        assert_int_equal(bundle_next(&r, &f, &has_frame, &err), STATUS_OK);
        assert_false(has_frame);
    }
}

static void test_frame_note_has_no_frames(void **state)
{
    (void)state;
    unsigned char b[33] = {0};
    struct bundle_writer w;
    bundle_begin(&w, b, bundle_header_bytes(), LIMITS.d_model, BUNDLE_BUSY, 1);
    assert_int_equal(bundle_end(&w), 32);
    uint32_t n;
    struct err err = {0};
    assert_int_equal(read_all(b, 32, &n, &err), STATUS_OK);
    assert_int_equal(n, 0);
    refused(b, 33, "bundle says 32 bytes, 33 arrived");
    wire_store_u64(b + 16, 33);
    repair_check(b, 32);
    refused(b, 33, "without frames has 1 bytes");
}

static void test_frame_writer_refuses_when_full(void **state)
{
    (void)state;
    unsigned char b[TOTAL];
    struct bundle_writer w;
    void *ids = b, *rows = b;
    struct err err = {0};
    struct frame f = {.sequence = 1, .loop = 2, .n_rows = 3, .survival = 1.0f};
    size_t need = frame_bytes(2, 3, 0, 5);
    assert_int_equal(need, 64 + 12 + 60);
    assert_int_equal(frame_bytes(1, 3, 0, 5), 64 + 12);
    assert_int_equal(frame_bytes(1, 3, FRAME_LIVE, 5), 64 + 12);
    assert_int_equal(frame_bytes(2, 3, FRAME_LIVE, 5), need + 16);
    bundle_begin(&w, b, 32 + need - 1, 5, 0, 0);
    assert_int_equal(bundle_add(&w, &f, &ids, &rows, &err), STATUS_NO_MEMORY);
    assert_non_null(strstr(err.message, "3 rows needs 136 bytes"));
    assert_ptr_equal(ids, b);
    assert_int_equal(w.n_frames, 0);
    assert_int_equal(w.len_bytes, 32);
    bundle_begin(&w, b, 32 + need, 5, 0, 0);
    assert_int_equal(bundle_add(&w, &f, &ids, &rows, &err), STATUS_OK);
    assert_int_equal(w.len_bytes, 32 + need);
    /* A product that does not fit in 64 bits is not a small one. */
    assert_int_equal(frame_bytes(2, UINT32_MAX, FRAME_LIVE, UINT32_MAX), SIZE_MAX);
    bundle_begin(&w, b, sizeof b, UINT32_MAX, 0, 0);
    f.n_rows = UINT32_MAX;
    assert_int_equal(bundle_add(&w, &f, &ids, &rows, &err), STATUS_NO_MEMORY);
}

static void test_frame_cut_anywhere_is_refused(void **state)
{
    (void)state;
    unsigned char b[TOTAL];
    make_bundle(b);
    for (size_t len = 0; len < TOTAL; len++) {
        /* An exact block, so that a sanitizer sees a byte read behind the end. */
        unsigned char *part = malloc(len ? len : 1);
        assert_non_null(part);
        memcpy(part, b, len);
        refused(part, len, "");
        /* Also when the header agrees with the cut. */
        if (len >= 32) {
            wire_store_u64(part + 16, len);
            repair_check(part, 32);
            refused(part, len, "");
        }
        free(part);
    }
}

static void test_frame_any_header_bit_is_refused(void **state)
{
    (void)state;
    unsigned char b[TOTAL];
    static const size_t headers[3][2] = {{0, 32}, {FIRST, 64}, {SECOND, 64}};
    for (int h = 0; h < 3; h++) {
        for (size_t bit = 0; bit < headers[h][1] * 8; bit++) {
            make_bundle(b);
            b[headers[h][0] + bit / 8] ^= (unsigned char)(1u << bit % 8);
            refused(b, TOTAL, "");
        }
    }
}

/* With the check repaired, each field must be refused for its own reason. */
static void test_frame_each_field_is_checked(void **state)
{
    (void)state;
    uint32_t nan_bits = 0x7fc00000u, inf_bits = 0x7f800000u, two_bits = 0x40000000u,
             minus_bits = 0xbf800000u;
    const struct {
        size_t header, offset;
        uint32_t value;
        const char *what;
    } cases[] = {
        {0, 0, 0x4c535244u, "not a carousel rank"},
        {0, 4, 0x00010002u, "protocol version 2, this build speaks 6"},
        {0, 4, 0x00030006u, "message kind 3"},
        {0, 4, 0x00020006u, "where a bundle (1) was expected"},
        {0, 8, 8, "bundle flags 0x8"},
        {0, 12, 4, "bundle says 4 frames in 252 bytes"},
        {0, 12, 1, "144 bytes follow the bundle's last frame"},
        {0, 12, 0, "without frames has 220 bytes"},
        {0, 12, UINT32_MAX, "4294967295 frames in 252 bytes"},
        {0, 16, TOTAL + 1, "says 253 bytes, 252 arrived"},
        {0, 20, 1, "bytes, 252 arrived"},
        {0, 8, BUNDLE_DONE, "names round 77 and announces no batch"},
        {SECOND, 0, 0, "frame 2 of 2 at byte 108: starts with 0x00000000"},
        {SECOND, 4, 0, "loop 0 is outside 1..4"},
        {SECOND, 4, 5, "loop 5 is outside 1..4"},
        {SECOND, 4, 1, "a live row enters loop 1 with survival 0.25"},
        {SECOND, 16, 999, "2 rows from position 999 pass the limit of 1000"},
        {SECOND, 16, UINT32_MAX, "2 rows from position 4294967295 pass"},
        {SECOND, 20, 0, "no rows"},
        {SECOND, 20, 1, "payload is 80 bytes, its rows and timings take 56"},
        {SECOND, 20, 1000, "pass the limit"},
        {SECOND, 24, 0, "payload is 80 bytes, its rows and timings take 48"},
        {SECOND, 24, 2, "flags 0x2"},
        {SECOND, 28, nan_bits, "survival nan"},
        {SECOND, 28, two_bits, "survival 2 is outside"},
        {SECOND, 28, minus_bits, "survival -1 is outside"},
        {SECOND, 32, inf_bits, "cdf inf"},
        {SECOND, 32, nan_bits, "cdf nan"},
        {SECOND, 32, minus_bits, "cdf -1"},
        {SECOND, 36, 6, "rows of 6 numbers, this model has 5"},
        {SECOND, 40, 47, "payload is 47 bytes, its rows and timings take 80"},
        {SECOND, 44, 1, "its rows and timings take 80"},
        {SECOND, 56, 1, "header byte 56"},
        {SECOND, 56, 1u << 31, "header byte 59"},
        {FIRST, 20, 500, "500 rows of 4 bytes and 0 of timings do not fit in the 156 that remain"},
    };
    unsigned char b[TOTAL];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        make_bundle(b);
        wire_store_u32(b + cases[i].header + cases[i].offset, cases[i].value);
        repair_check(b + cases[i].header, cases[i].header ? 64 : 32);
        refused(b, TOTAL, cases[i].what);
    }
    make_bundle(b);
    wire_store_u64(b + FIRST + 8, 0);
    repair_check(b + FIRST, 64);
    refused(b, TOTAL, "sequence is 0");
    static const int32_t bad_ids[] = {-1, 300, INT32_MIN, INT32_MAX};
    for (int i = 0; i < 4; i++) {
        make_bundle(b);
        wire_store_u32(b + SECOND + 64 + 4, (uint32_t)bad_ids[i]);
        refused(b, TOTAL, "at position 999 is outside the vocabulary of 300");
    }
}

static void test_frame_timings_are_times(void **state)
{
    (void)state;
    unsigned char b[TOTAL];
    static const double bad_hops[] = {NAN, INFINITY, -INFINITY};
    static const float bad[] = {NAN, INFINITY, -INFINITY, -1e-9f};
    for (size_t i = 0; i < 3; i++) {
        make_bundle(b);
        wire_store_f64(b + TIMINGS + 16, bad_hops[i]);
        refused(b, TOTAL, "timing of loop 2 is hop");
    }
    for (size_t i = 0; i < 4; i++) {
        make_bundle(b);
        wire_store_f32(b + TIMINGS + 8, bad[i]);
        refused(b, TOTAL, "timing of loop 1 is hop");
        make_bundle(b);
        wire_store_f32(b + TIMINGS + 12, bad[i]);
        refused(b, TOTAL, "timing of loop 1 is hop");
    }
}

static void test_frame_rows_are_limited_even_where_products_wrap(void **state)
{
    (void)state;
    unsigned char b[32 + 64 + 4];
    struct bundle_writer w;
    bundle_begin(&w, b, sizeof b, 0x7fffffffu, 0, 0); /* a row takes 2^33 bytes */
    void *ids, *rows;
    struct frame f = {.sequence = 1, .loop = 1, .n_rows = 1, .survival = 1.0f};
    assert_int_equal(bundle_add(&w, &f, &ids, &rows, NULL), STATUS_OK);
    memset(ids, 0, 4);
    bundle_end(&w);
    wire_store_u32(b + 32 + 4, 2);
    wire_store_u32(b + 32 + 20, 0x80000000u);
    wire_store_u64(b + 32 + 40, 0); /* 2^31 rows of them: 2^64 */
    repair_check(b + 32, 64);
    const struct frame_limits wide = {0x7fffffffu, 4, UINT32_MAX, 10};
    struct bundle_reader r;
    bool has_frame;
    struct err err = {0};
    assert_int_equal(bundle_open(&r, b, sizeof b, &wide, &err), STATUS_OK);
    assert_int_equal(bundle_next(&r, &f, &has_frame, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.message, "do not fit"));
}

static uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

/* One random bundle: written, read back, compared; then one byte of it flipped and read again. */
static void random_bundle(uint64_t seed)
{
    enum { CAP = 1 << 16, MAX_FRAMES = 12 };
    static unsigned char block[CAP + 8], wanted[CAP];
    uint64_t s = seed * 0x9e3779b97f4a7c15ull + 1;
    const struct frame_limits limits = {1 + (uint32_t)(next_random(&s) % 64), 8, 500, 1000};
    unsigned char *bytes = block + next_random(&s) % 8; /* any alignment */
    struct frame frames[MAX_FRAMES];
    size_t at[MAX_FRAMES + 1] = {32};
    uint32_t n = (uint32_t)(next_random(&s) % (MAX_FRAMES + 1));
    struct bundle_writer w;
    bundle_begin(&w, bytes, CAP, limits.d_model, (uint32_t)(next_random(&s) % 4), 0);
    for (uint32_t k = 0; k < n; k++) {
        uint32_t n_rows = 1 + (uint32_t)(next_random(&s) % 16);
        frames[k] = (struct frame){.sequence = next_random(&s) | 1,
                                   .loop = 2 + (uint32_t)(next_random(&s) % 7),
                                   .first_position = (uint32_t)(next_random(&s) % (501 - n_rows)),
                                   .n_rows = n_rows,
                                   .flags = (uint32_t)(next_random(&s) % 2),
                                   .survival = (float)(next_random(&s) % 1001) / 1000.0f,
                                   .cdf = (float)(next_random(&s) % 1001) / 1000.0f};
        if (next_random(&s) % 3 == 0)
            frames[k].loop = 1, frames[k].survival = 1.0f, frames[k].cdf = 0.0f;
        frames[k].sent_ns = next_random(&s);
        for (uint32_t t = 0; (frames[k].flags & FRAME_LIVE) && t + 1 < frames[k].loop; t++)
            frames[k].timings[t] = (struct loop_timing){(double)(int64_t)next_random(&s),
                                                        (float)(next_random(&s) % 1000), (float)t};
        void *ids, *rows;
        assert_int_equal(bundle_add(&w, &frames[k], &ids, &rows, NULL), STATUS_OK);
        for (uint32_t i = 0; i < n_rows; i++) {
            int32_t id = (int32_t)(next_random(&s) % 1000);
            memcpy((char *)ids + 4 * i, &id, 4);
        }
        for (size_t i = 0; rows && i < (size_t)n_rows * limits.d_model * 4; i++)
            ((unsigned char *)rows)[i] = (unsigned char)next_random(&s);
        at[k + 1] = w.len_bytes;
    }
    size_t len = bundle_end(&w);
    memcpy(wanted, bytes, len);
    struct bundle_reader r;
    bool has_frame;
    struct frame f;
    struct err err = {0};
    assert_int_equal(bundle_open(&r, bytes, len, &limits, &err), STATUS_OK);
    for (uint32_t k = 0; k < n; k++) {
        assert_int_equal(bundle_next(&r, &f, &has_frame, &err), STATUS_OK);
        assert_true(has_frame);
        assert_true(f.sequence == frames[k].sequence && f.loop == frames[k].loop &&
                    f.first_position == frames[k].first_position && f.n_rows == frames[k].n_rows &&
                    f.flags == frames[k].flags && f.survival == frames[k].survival &&
                    f.cdf == frames[k].cdf && f.sent_ns == frames[k].sent_ns);
        assert_memory_equal(f.timings, frames[k].timings, sizeof f.timings);
        assert_memory_equal(f.ids, wanted + at[k] + 64, f.n_rows * 4);
        if (f.loop > 1)
            assert_memory_equal(f.rows, wanted + at[k] + 64 + f.n_rows * 4,
                                (size_t)f.n_rows * limits.d_model * 4);
    }
    assert_int_equal(bundle_next(&r, &f, &has_frame, &err), STATUS_OK);
    assert_false(has_frame);
    assert_memory_equal(bytes, wanted, len);

    /* Damage in a header is an error; in the payload at most other numbers. */
    size_t hit = next_random(&s) % len;
    bool is_header = hit < 32;
    for (uint32_t k = 0; k < n; k++)
        is_header |= hit >= at[k] && hit < at[k] + 64;
    bytes[hit] ^= (unsigned char)(1 + next_random(&s) % 255);
    enum status st = bundle_open(&r, bytes, len, &limits, &err);
    for (has_frame = true; st == STATUS_OK && has_frame;)
        st = bundle_next(&r, &f, &has_frame, &err);
    assert_true(st == STATUS_CORRUPT || (st == STATUS_OK && !is_header));
}

static void test_frame_random_bundles(void **state)
{
    (void)state;
    const char *given = getenv("TEST_SEED");
    uint64_t base = given ? strtoull(given, NULL, 10) : 20240611;
    enum { ROUNDS = 2000 };
    print_message("seeds %llu..%llu (TEST_SEED= sets the first)\n", (unsigned long long)base,
                  (unsigned long long)base + ROUNDS - 1);
    for (uint64_t i = 0; i < ROUNDS; i++)
        random_bundle(base + i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frame_layout),
        cmocka_unit_test(test_frame_round_trip),
        cmocka_unit_test(test_frame_note_has_no_frames),
        cmocka_unit_test(test_frame_writer_refuses_when_full),
        cmocka_unit_test(test_frame_cut_anywhere_is_refused),
        cmocka_unit_test(test_frame_any_header_bit_is_refused),
        cmocka_unit_test(test_frame_each_field_is_checked),
        cmocka_unit_test(test_frame_timings_are_times),
        cmocka_unit_test(test_frame_rows_are_limited_even_where_products_wrap),
        cmocka_unit_test(test_frame_random_bundles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
