/* coordinator: the handshake shares out each host, and names who does not fit and why. */
#include "tests/fake_worker.h"

/* The start fails with this code, all these words are in the message, and every worker has been
 * told. */
static void check_fails(struct cluster *c, enum status code, const char *const *words, int n_words)
{
    struct err err = {0};
    struct completion_request request = {0};
    assert_int_equal(cluster_start(c, &err), code);
    assert_int_equal(err.code, code);
    for (int i = 0; i < n_words; i++)
        assert_contains(err.message, words[i]);
    assert_int_equal(coordinator_submit(c->coordinator, &request, NULL, NULL), code);
    cluster_stop(c);
    for (uint32_t w = 0; w < c->n_workers; w++) {
        assert_true(c->fakes[w].has_shutdown);
        assert_int_equal(c->fakes[w].shutdown.failure, code);
        assert_string_equal(c->fakes[w].shutdown.message, err.message);
    }
    cluster_close(c);
}

static void test_coordinator_start_shares_out_each_host(void **state)
{
    (void)state;
    struct err err = {0};
    struct cluster *c = cluster_open(4);
    strcpy(c->fakes[3].hello.host, "nodeb");
    strcpy(c->fakes[3].hello.isa, "avx2");
    c->fakes[3].hello.n_cores = 1;
    c->config.kv_bytes = 1 << 20;
    c->config.verify_weights = true;
    if (cluster_start(c, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(coordinator_n_workers(c->coordinator), 4);
    assert_int_equal(coordinator_ring_size(c->coordinator), 4);
    assert_int_equal(coordinator_worker_ready(c->coordinator, 2)->n_kv_blocks, 12);
    assert_string_equal(coordinator_worker_hello(c->coordinator, 3)->host, "nodeb");
    assert_true(coordinator_is_idle(c->coordinator));
    cluster_stop(c);
    for (int w = 0; w < 4; w++) {
        assert_true(c->fakes[w].has_shutdown);
        assert_int_equal(c->fakes[w].shutdown.failure, STATUS_OK);
        assert_int_equal(c->fakes[w].welcome.kv_bytes, 1 << 20);
        assert_string_equal(c->fakes[w].welcome.isa, "avx2"); /* the least of all */
    }
    assert_int_equal(c->fakes[0].welcome.n_threads, 2); /* 8 cores, 3 workers */
    assert_true(c->fakes[0].welcome.may_spin);          /* 3 x 2 <= 8 */
    assert_int_equal(c->fakes[3].welcome.n_threads, 1);
    assert_true(c->fakes[3].welcome.may_spin);
    cluster_close(c);
}

static void test_coordinator_start_lets_nobody_spin_on_crowded_cores(void **state)
{
    (void)state;
    struct err err = {0};
    struct cluster *c = cluster_open(3);
    for (int w = 0; w < 3; w++)
        c->fakes[w].hello.n_cores = 2;
    c->config.kv_bytes = 1 << 20;
    if (cluster_start(c, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    cluster_stop(c);
    for (int w = 0; w < 3; w++) {
        assert_int_equal(c->fakes[w].welcome.n_threads, 1);
        assert_false(c->fakes[w].welcome.may_spin);
    }
    cluster_close(c);
}

static void test_coordinator_start_names_the_rank_with_another_model(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(3);
    char mine[32], theirs[32];
    strcpy(c->fakes[1].hello.host, "nodeb");
    c->fakes[1].hello.fingerprint = 0x1234;
    snprintf(theirs, sizeof theirs, "%016x", 0x1234);
    snprintf(mine, sizeof mine, "%016llx", (unsigned long long)c->checkpoint->fingerprint);
    const char *const words[] = {"rank 2 on nodeb", mine, theirs};
    check_fails(c, STATUS_MISMATCH, words, 3);
}

static void test_coordinator_start_names_another_version(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(1);
    strcpy(c->fakes[0].hello.version, "9.9");
    const char *const words[] = {"rank 1 on nodea", "9.9", CAROUSEL_VERSION};
    check_fails(c, STATUS_MISMATCH, words, 3);
}

static void test_coordinator_start_passes_on_a_failed_hello(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    c->fakes[1].hello.failure = STATUS_NOT_FOUND;
    strcpy(c->fakes[1].hello.message, "/models/x has no config.json");
    const char *const words[] = {"rank 2 on nodea", "/models/x has no config.json"};
    check_fails(c, STATUS_NOT_FOUND, words, 2);
}

static void test_coordinator_start_names_who_is_missing(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(3);
    c->fakes[0].is_silent = c->fakes[2].is_silent = true;
    c->config.start_timeout_ns = 100 * 1000 * 1000;
    const char *const words[] = {"rank 1, 3 did not say hello within 0.1 s"};
    check_fails(c, STATUS_TIMEOUT, words, 1);
}

static void test_coordinator_start_refuses_more_memory_than_there_is(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(3);
    strcpy(c->fakes[0].hello.host, "nodeb");
    c->fakes[2].hello.memory_available_bytes = 900 << 20;
    c->config.kv_bytes = 512 << 20;
    const char *const words[] = {"host nodea (ranks 2, 3)", "--kv-memory of 0.500 GiB",
                                 "need 1.000 GiB", "0.879 GiB are available", "at most 0.439 GiB"};
    check_fails(c, STATUS_NO_MEMORY, words, 5);
}

/* Nothing is taken: 512 GiB in a host of 1000 bytes are fine, and so is automatic KV beyond them.
 */
static void test_coordinator_start_gives_a_timed_worker_what_it_asks_for(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct cluster *c = cluster_open(2);
        struct err err = {0};
        for (int w = 0; w < 2; w++) {
            strcpy(c->fakes[w].hello.backend, "timed");
            c->fakes[w].hello.memory_available_bytes = 1000;
        }
        c->config.kv_bytes = i == 0 ? UINT64_C(512) << 30 : 0;
        if (cluster_start(c, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        uint64_t got = c->fakes[1].welcome.kv_bytes;
        assert_true(i == 0 ? got == c->config.kv_bytes : got > 1000);
        cluster_stop(c);
        cluster_close(c);
    }
}

static void fake_gpu(struct fake *f, const char *name, const char *isa, const char *id)
{
    strcpy(f->hello.backend, "cuda");
    strcpy(f->hello.isa, isa);
    strcpy(f->hello.device_name, name);
    strcpy(f->hello.device_id, id);
    f->hello.memory_available_bytes = 1000; /* of the host, where nothing is taken */
}

/* Two of three share a GPU; another host's with the same identity would be another. Each looks for
 * itself how much KV memory it has, unless it is told. */
static void test_coordinator_start_shares_out_gpus(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct cluster *c = cluster_open(4);
        struct err err = {0};
        for (int w = 0; w < 4; w++)
            fake_gpu(&c->fakes[w], "X1", "sm_90", w == 1 ? "GPU-b" : "GPU-a");
        strcpy(c->fakes[3].hello.host, "nodeb");
        c->config.kv_bytes = i == 0 ? 0 : 1 << 20;
        c->config.is_deterministic = i == 1;
        for (int w = 0; w < 4; w++) /* one without is enough */
            c->fakes[w].hello.is_direct = i == 1 || w != 2;
        if (cluster_start(c, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        cluster_stop(c);
        static const uint32_t n_sharing[] = {2, 1, 2, 1};
        for (int w = 0; w < 4; w++) {
            const struct control_welcome *welcome = &c->fakes[w].welcome;
            assert_int_equal(welcome->n_sharing, n_sharing[w]);
            assert_int_equal(welcome->kv_bytes, c->config.kv_bytes);
            assert_int_equal(welcome->is_deterministic, i == 1);
            assert_int_equal(welcome->is_direct, i == 1);
            assert_string_equal(welcome->isa, "sm_90");
        }
        cluster_close(c);
    }
}

/* A GPU takes two threads of a worker, one that waits for it and one that feeds it: with a core for
 * each the first may spin, whatever --threads says. */
static void test_coordinator_start_spins_for_a_gpu_with_two_cores_each(void **state)
{
    (void)state;
    for (uint32_t n_cores = 3; n_cores <= 4; n_cores++) {
        struct cluster *c = cluster_open(2);
        struct err err = {0};
        for (int w = 0; w < 2; w++) {
            fake_gpu(&c->fakes[w], "X1", "sm_90", "GPU-a");
            c->fakes[w].hello.n_cores = n_cores;
        }
        c->config.n_threads = n_cores == 3 ? 1 : 9;
        if (cluster_start(c, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        cluster_stop(c);
        for (int w = 0; w < 2; w++)
            assert_int_equal(c->fakes[w].welcome.may_spin, n_cores == 4);
        cluster_close(c);
    }
}

static void test_coordinator_start_refuses_two_kinds_of_gpu(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct cluster *c = cluster_open(2);
        strcpy(c->fakes[1].hello.host, "nodeb");
        fake_gpu(&c->fakes[0], "X1", "sm_90", "GPU-a");
        fake_gpu(&c->fakes[1], i == 0 ? "X1" : "X2", i == 0 ? "sm_80" : "sm_90", "GPU-b");
        const char *const words[] = {"rank 2 on nodeb", "rank 1 on nodea",
                                     i == 0 ? "(sm_80)" : "X2", "--device"};
        check_fails(c, STATUS_MISMATCH, words, 4);
    }
}

static void test_coordinator_start_refuses_a_gpu_beside_a_cpu(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    fake_gpu(&c->fakes[1], "X1", "sm_90", "GPU-a");
    const char *const words[] = {"rank 2 on nodea computes with backend cuda", "with cpu",
                                 "--backend"};
    check_fails(c, STATUS_MISMATCH, words, 3);
}

static void test_coordinator_start_passes_on_a_failed_ready(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    c->fakes[0].ready.failure = STATUS_NO_MEMORY;
    strcpy(c->fakes[0].ready.message, "not even one KV block fits");
    const char *const words[] = {"rank 1 on nodea: not even one KV block fits"};
    check_fails(c, STATUS_NO_MEMORY, words, 1);
}

static void test_coordinator_start_does_not_wait_for_those_who_left(void **state)
{
    (void)state;
    struct err err = {0};
    struct cluster *c = cluster_open(2);
    for (int w = 0; w < 2; w++) {
        c->fakes[w].quits = true;
        c->fakes[w].ready.failure = STATUS_NO_MEMORY;
        strcpy(c->fakes[w].ready.message, "not even one KV block fits");
    }
    const uint64_t begin_ns = host_now_ns();
    assert_int_equal(cluster_start(c, &err), STATUS_NO_MEMORY);
    /* Far below the 5 s that goodbyes may take. */
    assert_true(host_now_ns() - begin_ns < UINT64_C(3000000000));
    assert_contains(err.message, "on nodea: not even one KV block fits"); /* not "leaving" */
    cluster_close(c);
}

static void test_coordinator_start_compares_block_sizes(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    c->fakes[1].ready.block_size = 16;
    const char *const words[] = {"rank 2 on nodea", "blocks of 16", "plans with 4"};
    check_fails(c, STATUS_MISMATCH, words, 3);
}

static void test_coordinator_start_refuses_unknown_instruction_sets(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    strcpy(c->fakes[1].hello.isa, "neon9");
    const char *const words[] = {"rank 2 on nodea", "neon9"};
    check_fails(c, STATUS_MISMATCH, words, 2);
}

static void test_coordinator_start_finds_bad_weights(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    struct tiny_checkpoint tiny;
    tiny_init(&tiny, 1);
    tiny_find(&tiny, "model.norm.weight")->bad_element = 3;
    tiny_find(&tiny, "model.norm.weight")->bad_bits = 0x7fc00000; /* NaN */
    tiny_write(&tiny, TINY_OURO_CONFIG, c->dir);
    checkpoint_close(c->checkpoint);
    assert_int_equal(checkpoint_open(c->dir, 0, &c->checkpoint, NULL), STATUS_OK);
    for (int w = 0; w < 2; w++) {
        c->fakes[w].model = &c->checkpoint->config;
        c->fakes[w].hello.fingerprint = c->checkpoint->fingerprint;
    }
    c->config.verify_weights = true;
    const char *const words[] = {"model.norm.weight"};
    check_fails(c, STATUS_CORRUPT, words, 1);
}

static void test_coordinator_create_refuses_rings_that_do_not_divide(void **state)
{
    (void)state;
    struct err err = {0};
    struct cluster *c = cluster_open(4);
    c->config.ring_size = 3;
    assert_int_equal(coordinator_create(c->transports[0], c->checkpoint, NULL, &c->config,
                                        &c->coordinator, &err),
                     STATUS_INVALID);
    assert_contains(err.message, "a ring of 3 workers");
    assert_int_equal(coordinator_create(c->transports[1], c->checkpoint, NULL, &c->config,
                                        &c->coordinator, &err),
                     STATUS_INVALID);
    cluster_close(c);
}

static void test_coordinator_auto_kv_is_useful_and_modest(void **state)
{
    (void)state;
    /* 2 layers x (K and V) x 2 heads x 4 numbers in bf16 = 64 bytes, and a row of 8 floats = 32. */
    struct model_config m = {.n_layers = 2,
                             .d_model = 8,
                             .n_heads = 2,
                             .n_kv_heads = 2,
                             .head_dim = 4,
                             .n_loops = 4,
                             .max_positions = 1000};
    const uint64_t position = 4 * (64 + 32), gib = UINT64_C(1) << 30;
    assert_int_equal(coordinator_auto_kv_bytes(&m, DTYPE_BF16, 64 * gib, 2, 10),
                     10 * 1000 * position);
    /* Long contexts: 2048 positions each, but one sequence can always reach the end. */
    m.max_positions = 30000;
    assert_int_equal(coordinator_auto_kv_bytes(&m, DTYPE_BF16, 64 * gib, 2, 100),
                     100 * 2048 * position);
    assert_int_equal(coordinator_auto_kv_bytes(&m, DTYPE_BF16, 64 * gib, 2, 10), 30000 * position);
    /* Within 3/4 of what is free, for all workers of the host together. */
    assert_int_equal(coordinator_auto_kv_bytes(&m, DTYPE_BF16, 1000000, 3, 100), 250000);
    assert_true(coordinator_auto_kv_bytes(&m, DTYPE_BF16, 0, 1, UINT32_MAX) <= gib);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coordinator_start_shares_out_each_host),
        cmocka_unit_test(test_coordinator_start_lets_nobody_spin_on_crowded_cores),
        cmocka_unit_test(test_coordinator_start_names_the_rank_with_another_model),
        cmocka_unit_test(test_coordinator_start_names_another_version),
        cmocka_unit_test(test_coordinator_start_passes_on_a_failed_hello),
        cmocka_unit_test(test_coordinator_start_names_who_is_missing),
        cmocka_unit_test(test_coordinator_start_refuses_more_memory_than_there_is),
        cmocka_unit_test(test_coordinator_start_gives_a_timed_worker_what_it_asks_for),
        cmocka_unit_test(test_coordinator_start_shares_out_gpus),
        cmocka_unit_test(test_coordinator_start_spins_for_a_gpu_with_two_cores_each),
        cmocka_unit_test(test_coordinator_start_refuses_two_kinds_of_gpu),
        cmocka_unit_test(test_coordinator_start_refuses_a_gpu_beside_a_cpu),
        cmocka_unit_test(test_coordinator_start_passes_on_a_failed_ready),
        cmocka_unit_test(test_coordinator_start_does_not_wait_for_those_who_left),
        cmocka_unit_test(test_coordinator_start_compares_block_sizes),
        cmocka_unit_test(test_coordinator_start_refuses_unknown_instruction_sets),
        cmocka_unit_test(test_coordinator_start_finds_bad_weights),
        cmocka_unit_test(test_coordinator_create_refuses_rings_that_do_not_divide),
        cmocka_unit_test(test_coordinator_auto_kv_is_useful_and_modest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
