/* kv_sizing: KV memory from a GPU's total and free bytes, and who is refused with which numbers. */
#include "tests/unit.h"

#include "worker/kv_sizing.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

static uint64_t chosen(const struct kv_sizing *s)
{
    struct err err = {0};
    uint64_t bytes = 0;
    if (kv_sizing_choose(s, &bytes, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return bytes;
}

static void refused(const struct kv_sizing *s, const char *const *words, int n_words)
{
    struct err err = {0};
    uint64_t bytes = 77;
    assert_int_equal(kv_sizing_choose(s, &bytes, &err), STATUS_NO_MEMORY);
    assert_int_equal(bytes, 77);
    for (int i = 0; i < n_words; i++)
        if (strstr(err.message, words[i]) == NULL)
            fail_msg("no '%s' in: %s", words[i], err.message);
}

/* A GPU of 128 GiB: the reserve is 768 MiB, for the sums below 0.75. */
static struct kv_sizing large(void)
{
    return (struct kv_sizing){.total_bytes = 128 * GIB,
                              .free_bytes = 124 * GIB,
                              .weight_bytes = 3 * GIB,
                              .workspace_bytes = GIB,
                              .n_sharing = 1};
}

static void test_kv_sizing_takes_nine_tenths_by_default(void **state)
{
    (void)state;
    struct kv_sizing s = large();
    uint64_t used = 3 * GIB + GIB + 768 * MIB;
    assert_int_equal(chosen(&s), (uint64_t)(0.9 * (double)(128 * GIB)) - used);
    s.n_sharing = 4; /* each has a quarter of that, with its own weights in it */
    assert_int_equal(chosen(&s), (uint64_t)(0.225 * (double)(128 * GIB)) - used);
    s.n_sharing = 0;
    assert_int_equal(chosen(&s), (uint64_t)(0.9 * (double)(128 * GIB)) - used);
}

static void test_kv_sizing_takes_the_fraction_it_is_given(void **state)
{
    (void)state;
    struct kv_sizing s = large();
    s.fraction = 0.5;
    s.n_sharing = 4; /* the fraction is each worker's own */
    assert_int_equal(chosen(&s), 64 * GIB - 4 * GIB - 768 * MIB);
    s.fraction = 1.0; /* as far as it is free: the driver has taken some */
    assert_int_equal(chosen(&s), 124 * GIB - GIB - 768 * MIB);
}

static void test_kv_sizing_stays_within_what_is_free(void **state)
{
    (void)state;
    struct kv_sizing s = large();
    s.free_bytes = 10 * GIB; /* somebody else computes there */
    assert_int_equal(chosen(&s), 10 * GIB - GIB - 768 * MIB);
}

static void test_kv_sizing_reserves_less_on_a_small_device(void **state)
{
    (void)state;
    assert_int_equal(kv_sizing_reserve_bytes(128 * GIB), 768 * MIB);
    assert_int_equal(kv_sizing_reserve_bytes(48 * GIB), 768 * MIB);
    assert_int_equal(kv_sizing_reserve_bytes(GIB), 16 * MIB);
}

static void test_kv_sizing_takes_what_was_asked_for_or_says_why_not(void **state)
{
    (void)state;
    struct kv_sizing s = large();
    s.asked_bytes = 120 * GIB;
    s.fraction = 0.1; /* does not matter then */
    assert_int_equal(chosen(&s), 120 * GIB);
    s.asked_bytes = 124 * GIB;
    const char *const words[] = {"--kv-memory of 124.000 GiB", "1.750 GiB of workspace",
                                 "124.000 of its 128.000 GiB are free", "at most 122.250 GiB"};
    refused(&s, words, 4);
}

static void test_kv_sizing_says_what_leaves_no_room(void **state)
{
    (void)state;
    struct kv_sizing s = large();
    s.fraction = 0.02; /* 2.56 GiB, and the weights are 3 */
    const char *const small[] = {"0.02 of a GPU of 128.000 GiB (1 worker on it)",
                                 "3.000 GiB of weights", "--gpu-memory-fraction"};
    refused(&s, small, 3);
    s.n_sharing = 50;
    s.fraction = 0;
    const char *const many[] = {"0.018 of a GPU", "(50 workers on it)", "fewer workers"};
    refused(&s, many, 3);
    s = large();
    s.free_bytes = GIB;
    const char *const full[] = {"1.000 of its 128.000 GiB are free", "needs 1.750"};
    refused(&s, full, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kv_sizing_takes_nine_tenths_by_default),
        cmocka_unit_test(test_kv_sizing_takes_the_fraction_it_is_given),
        cmocka_unit_test(test_kv_sizing_stays_within_what_is_free),
        cmocka_unit_test(test_kv_sizing_reserves_less_on_a_small_device),
        cmocka_unit_test(test_kv_sizing_takes_what_was_asked_for_or_says_why_not),
        cmocka_unit_test(test_kv_sizing_says_what_leaves_no_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
