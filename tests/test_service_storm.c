/* service: whatever two threads submit and cancel when, every choice ends exactly once. */
#include "tests/service_client.h"

static uint32_t next_random(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*seed >> 33);
}

static void storm(uint64_t seed, uint32_t n_at_once)
{
    enum { N_JOBS = 100, WINDOW = 12 };
    const uint64_t first_seed = seed;
    struct order *orders = calloc(N_JOBS + WINDOW, sizeof *orders);
    struct client c;
    struct cluster *cluster = cluster_open(2);
    for (int w = 0; w < 2; w++)
        cluster->fakes[w].n_at_once = n_at_once;
    client_init(&c, cluster, true);
    uint32_t n_submitted = 0, n_open = 0, first_open = 0;
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    do {
        if (host_now_ns() > deadline_ns)
            fail_msg("seed %llu hangs", (unsigned long long)first_seed);
        while (n_submitted < N_JOBS && n_open < WINDOW && next_random(&seed) % 4 != 0) {
            struct order *o = &orders[n_submitted++];
            struct service_job *job =
                make_job(o, 1 + next_random(&seed) % 3, 1 + next_random(&seed) % 3,
                         1 + next_random(&seed) % 12);
            o->cancel_after_ends = next_random(&seed) % 6; /* the last end, too */
            service_submit(c.service, job);
            if (next_random(&seed) % 8 == 0)
                service_cancel(c.service, job);
            n_open++;
        }
        struct order *o = &orders[first_open + next_random(&seed) % WINDOW];
        if (o->job != NULL && next_random(&seed) % 3 == 0)
            service_cancel(c.service, o->job);
        if (!take_all(&c) && next_random(&seed) % 2 == 0)
            sched_yield();
        while (first_open < n_submitted && orders[first_open].job == NULL)
            first_open++;
        n_open = 0;
        for (uint32_t i = first_open; i < n_submitted; i++)
            n_open += orders[i].job != NULL;
    } while (n_open > 0 || n_submitted < N_JOBS);
    client_stop(&c);
    take_all(&c);
    for (uint32_t i = 0; i < N_JOBS; i++)
        for (uint32_t k = 0; k < orders[i].n_choices; k++) {
            assert_true(orders[i].has_ended[k]);
            if (orders[i].reasons[k] != FINISH_CANCELLED)
                assert_int_equal(orders[i].reasons[k], FINISH_LENGTH);
        }
    assert_int_equal(c.n_lost, 0);
    client_close(&c);
    free(orders);
}

static void test_service_survives_storms_of_cancels(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++)
        storm(seed, 0);
}

static void test_service_survives_storms_where_only_cancels_end(void **state)
{
    (void)state;
    for (uint64_t seed = 11; seed <= 13; seed++)
        storm(seed, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_service_survives_storms_of_cancels),
        cmocka_unit_test(test_service_survives_storms_where_only_cancels_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
