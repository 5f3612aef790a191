/* reduce: the sum has the bits of the plain tree on any number of ranks; who fails or falls silent
 * ends the others with one message. */
#include "tests/unit.h"

#include "cluster/host.h"
#include "train/reduce.h"

#include <pthread.h>
#include <stdbool.h>

enum { MAX_RANKS = 8, N_SHARDS = 8, N_STEPS = 3 };
#define SECOND_NS UINT64_C(1000000000)

static void add(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}
static const struct grad_ops OPS = {.name = "test", .add = add};

/* Of very different sizes, so that another order of additions gives other bits. */
static float value_of(uint64_t step, int shard, size_t i)
{
    uint64_t x = (step * 1000003 + (uint64_t)shard) * UINT64_C(0x9e3779b97f4a7c15) + i;
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    x ^= x >> 31;
    float unit = (float)(x >> 40) / (float)(1 << 24) - 0.5f;
    return unit * (float)(1 << (x & 15));
}

static float tree_of(uint64_t step, size_t i, int n_shards)
{
    float node[64];
    for (int s = 0; s < n_shards; s++)
        node[s] = value_of(step, s, i);
    for (int width = n_shards; width > 1; width /= 2)
        for (int k = 0; k < width / 2; k++)
            node[k] = node[2 * k] + node[2 * k + 1];
    return node[0];
}

struct role {
    struct transport *transport;
    int n_shards;
    size_t n_floats;
    uint64_t first_step;
    uint64_t deadline_ns;
    int n_steps;  /* takes part in so many, */
    bool is_loud; /* and then says that it fails */
    enum status status;
    struct err err;
    int n_done;
    size_t n_wrong;
    uint64_t wall_ns;
};

static void *play(void *arg)
{
    struct role *role = arg;
    struct reduce *r = NULL;
    const int rank = role->transport->rank, n_ranks = role->transport->n_ranks;
    role->status =
        reduce_create(role->transport, &OPS, role->n_shards, role->n_floats, &r, &role->err);
    if (role->status != STATUS_OK)
        return NULL;
    if (role->deadline_ns > 0)
        reduce_set_deadline(r, role->deadline_ns);
    const uint64_t begin_ns = host_now_ns();
    for (int k = 0; k < role->n_steps && role->status == STATUS_OK; k++) {
        const uint64_t step = role->first_step + (uint64_t)k;
        const int first = reduce_first_shard(role->n_shards, n_ranks, rank);
        for (int s = first; s < reduce_first_shard(role->n_shards, n_ranks, rank + 1); s++)
            for (size_t i = 0; i < role->n_floats; i++)
                reduce_shard(r, s)[i] = value_of(step, s, i);
        const float *sum = NULL;
        role->status = reduce_sum(r, step, &sum, &role->err);
        for (size_t i = 0; role->status == STATUS_OK && i < role->n_floats; i++) {
            float expected = tree_of(step, i, role->n_shards);
            role->n_wrong += memcmp(&sum[i], &expected, sizeof expected) != 0;
        }
        role->n_done += role->status == STATUS_OK;
    }
    role->wall_ns = host_now_ns() - begin_ns;
    if (role->is_loud) {
        err_set(&role->err, STATUS_IO, "the disk of this rank is full");
        reduce_fail(r, &role->err);
    }
    reduce_destroy(r);
    return NULL;
}

static void play_all(int n_ranks, struct role *roles)
{
    struct transport *transports[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    assert_int_equal(transport_inproc_create(n_ranks, transports, NULL), STATUS_OK);
    for (int i = 0; i < n_ranks; i++) {
        roles[i].transport = transports[i];
        assert_int_equal(pthread_create(&threads[i], NULL, play, &roles[i]), 0);
    }
    for (int i = 0; i < n_ranks; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < n_ranks; i++)
        transport_destroy(transports[i]);
}

static void init(struct role *roles, int n_ranks, int n_shards, size_t n_floats)
{
    memset(roles, 0, sizeof *roles * MAX_RANKS);
    for (int i = 0; i < n_ranks; i++)
        roles[i] = (struct role){
            .n_shards = n_shards, .n_floats = n_floats, .first_step = 7, .n_steps = N_STEPS};
}

static void assert_all_right(int n_ranks, const struct role *roles)
{
    for (int i = 0; i < n_ranks; i++) {
        if (roles[i].status != STATUS_OK)
            fail_msg("rank %d of %d: %s", i, n_ranks, roles[i].err.message);
        assert_int_equal(roles[i].n_done, roles[i].n_steps);
        assert_int_equal(roles[i].n_wrong, 0);
    }
}

static void test_reduce_shards_are_cut_evenly(void **state)
{
    (void)state;
    for (int n_ranks = 1; n_ranks <= N_SHARDS; n_ranks++) {
        assert_int_equal(reduce_first_shard(N_SHARDS, n_ranks, 0), 0);
        assert_int_equal(reduce_first_shard(N_SHARDS, n_ranks, n_ranks), N_SHARDS);
        for (int rank = 0; rank < n_ranks; rank++) {
            int n = reduce_first_shard(N_SHARDS, n_ranks, rank + 1) -
                    reduce_first_shard(N_SHARDS, n_ranks, rank);
            assert_in_range(n, N_SHARDS / n_ranks, (N_SHARDS + n_ranks - 1) / n_ranks);
        }
    }
}

static void test_reduce_sum_has_the_bits_of_the_tree(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 15, 40, 8192 * 2 + 77};
    for (int n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks++)
        for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
            struct role roles[MAX_RANKS];
            init(roles, n_ranks, N_SHARDS, sizes[k]);
            play_all(n_ranks, roles);
            assert_all_right(n_ranks, roles);
        }
}

static void test_reduce_order_of_additions_would_show(void **state)
{
    (void)state;
    size_t n_different = 0;
    for (size_t i = 0; i < 1000; i++) {
        float plain = 0;
        for (int s = 0; s < N_SHARDS; s++)
            plain += value_of(7, s, i);
        n_different += plain != tree_of(7, i, N_SHARDS);
    }
    assert_true(n_different > 100);
}

static void test_reduce_long_arrays_go_in_rounds(void **state)
{
    (void)state;
    struct role roles[MAX_RANKS];
    init(roles, 3, 4, 3 * 2200000 + 5); /* three rounds a piece, shards 1 + 1 + 2 */
    for (int i = 0; i < 3; i++)
        roles[i].n_steps = 1;
    play_all(3, roles);
    assert_all_right(3, roles);
}

static void test_reduce_without_transport_is_one_rank(void **state)
{
    (void)state;
    struct reduce *r = NULL;
    const float *sum = NULL;
    assert_int_equal(reduce_create(NULL, &OPS, 4, 10, &r, NULL), STATUS_OK);
    for (int s = 0; s < 4; s++)
        for (size_t i = 0; i < 10; i++)
            reduce_shard(r, s)[i] = value_of(3, s, i);
    assert_int_equal(reduce_sum(r, 3, &sum, NULL), STATUS_OK);
    for (size_t i = 0; i < 10; i++)
        assert_true(sum[i] == tree_of(3, i, 4));
    uint32_t bytes = 5;
    assert_int_equal(reduce_broadcast(r, &bytes, sizeof bytes, NULL), STATUS_OK);
    assert_int_equal(bytes, 5);
    reduce_fail(r, NULL);
    reduce_destroy(r);
    reduce_destroy(NULL);
}

static void test_reduce_refuses_a_cut_that_does_not_work(void **state)
{
    (void)state;
    struct transport *t[3];
    struct reduce *r = NULL;
    struct err err = {0};
    assert_int_equal(transport_inproc_create(3, t, NULL), STATUS_OK);
    assert_int_equal(reduce_create(t[0], &OPS, 2, 10, &r, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "3 ranks for 2 shards"));
    assert_int_equal(reduce_create(NULL, &OPS, 6, 10, &r, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "6 shards"));
    assert_int_equal(reduce_create(NULL, &OPS, 0, 10, &r, &err), STATUS_INVALID);
    assert_null(r);
    for (int i = 0; i < 3; i++)
        transport_destroy(t[i]);
}

static void test_reduce_failed_rank_ends_the_others_with_its_words(void **state)
{
    (void)state;
    for (int failing = 0; failing < 4; failing++) {
        struct role roles[MAX_RANKS];
        init(roles, 4, N_SHARDS, 1000);
        roles[failing].n_steps = 1;
        roles[failing].is_loud = true;
        play_all(4, roles);
        char name[32];
        snprintf(name, sizeof name, "rank %d", failing);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(roles[i].n_wrong, 0);
            assert_true(roles[i].wall_ns < 5 * SECOND_NS); /* and not the deadline of 600 s */
            if (i == failing)
                continue;
            /* The words may overtake the last sums of a third rank. */
            assert_in_range(roles[i].n_done, 0, 1);
            assert_int_equal(roles[i].status, STATUS_MISMATCH);
            assert_non_null(strstr(roles[i].err.message, name));
            assert_non_null(strstr(roles[i].err.message, "the disk of this rank is full"));
        }
    }
}

static void test_reduce_silent_rank_is_named_at_the_deadline(void **state)
{
    (void)state;
    struct role roles[MAX_RANKS];
    init(roles, 4, N_SHARDS, 1000);
    for (int i = 0; i < 4; i++)
        roles[i].deadline_ns = SECOND_NS / 2; /* above any hiccup of a busy machine */
    roles[2].n_steps = 1;
    play_all(4, roles);
    for (int i = 0; i < 4; i++) {
        if (i == 2)
            continue;
        assert_int_equal(roles[i].n_done, 1);
        /* One rank meets its deadline first; it tells the others what it saw. */
        assert_true(roles[i].status == STATUS_TIMEOUT || roles[i].status == STATUS_MISMATCH);
        assert_non_null(
            strstr(roles[i].err.message, "rank 2 has sent nothing for 0.5 s at step 8"));
        assert_true(roles[i].wall_ns < 5 * SECOND_NS);
    }
}

static void test_reduce_ranks_at_other_steps_or_recipes_are_told(void **state)
{
    (void)state;
    for (int difference = 0; difference < 3; difference++) {
        struct role roles[MAX_RANKS];
        init(roles, 3, N_SHARDS, 1000);
        if (difference == 0)
            roles[1].first_step = 9;
        else if (difference == 1)
            roles[1].n_shards = 16;
        else
            roles[1].n_floats = 1001;
        play_all(3, roles);
        int n_told = 0;
        for (int i = 0; i < 3; i++) {
            assert_int_equal(roles[i].n_done, 0);
            assert_int_equal(roles[i].status, STATUS_MISMATCH);
            n_told += strstr(roles[i].err.message, "the same recipe and resume point") != NULL;
        }
        assert_int_equal(n_told, 3);
    }
}

struct listener {
    struct transport *transport;
    unsigned char *bytes;
    size_t n_bytes;
    enum status status;
    struct err err;
};

static void *broadcast(void *arg)
{
    struct listener *l = arg;
    struct reduce *r = NULL;
    l->status = reduce_create(l->transport, &OPS, N_SHARDS, 10, &r, &l->err);
    reduce_set_deadline(r, SECOND_NS);
    uint64_t small = l->transport->rank == 0 ? 42 : 0;
    if (l->status == STATUS_OK)
        l->status = reduce_broadcast(r, l->bytes, l->n_bytes, &l->err);
    if (l->status == STATUS_OK)
        l->status = reduce_broadcast(r, NULL, 0, &l->err);
    if (l->status == STATUS_OK)
        l->status = reduce_broadcast(r, &small, sizeof small, &l->err);
    if (l->status == STATUS_OK && small != 42)
        l->status = err_set(&l->err, STATUS_CORRUPT, "got %llu", (unsigned long long)small);
    const float *sum = NULL;
    for (int s = reduce_first_shard(N_SHARDS, l->transport->n_ranks, l->transport->rank);
         s < reduce_first_shard(N_SHARDS, l->transport->n_ranks, l->transport->rank + 1); s++)
        for (size_t i = 0; i < 10; i++)
            reduce_shard(r, s)[i] = 1;
    if (l->status == STATUS_OK)
        l->status = reduce_sum(r, 0, &sum, &l->err);
    if (l->status == STATUS_OK && sum[9] != N_SHARDS)
        l->status = err_set(&l->err, STATUS_CORRUPT, "sum %g", (double)sum[9]);
    reduce_destroy(r);
    return NULL;
}

/* A transport that brings nothing from rank 0 before something from rank 2 has come. */
struct late {
    struct transport base;
    struct transport *inner;
    struct transport_message *held[16];
    int n_held, n_given;
    bool has_heard;
};

static enum status late_acquire(struct transport *t, size_t cap_bytes,
                                struct transport_message **out, struct err *err)
{
    return transport_acquire(((struct late *)t)->inner, cap_bytes, out, err);
}
static enum status late_post(struct transport *t, int dest, struct transport_message *m,
                             struct err *err)
{
    return transport_post(((struct late *)t)->inner, dest, m, err);
}
static enum status late_poll(struct transport *t, struct transport_message **out, struct err *err)
{
    struct late *l = (struct late *)t;
    if (l->has_heard && l->n_given < l->n_held) {
        *out = l->held[l->n_given++];
        return STATUS_OK;
    }
    enum status status = transport_poll(l->inner, out, err);
    if (status != STATUS_OK || *out == NULL)
        return status;
    l->has_heard = l->has_heard || (*out)->source == 2;
    if (!l->has_heard && (*out)->source == 0 && l->n_held < 16) {
        l->held[l->n_held++] = *out;
        *out = NULL;
    }
    return STATUS_OK;
}
static enum status late_wait(struct transport *t, uint64_t timeout_ns, struct err *err)
{
    struct late *l = (struct late *)t;
    return l->has_heard && l->n_given < l->n_held ? STATUS_OK
                                                  : transport_wait(l->inner, timeout_ns, err);
}
static void late_release(struct transport *t, struct transport_message *m)
{
    transport_release(((struct late *)t)->inner, m);
}
static bool late_is_drained(struct transport *t)
{
    return transport_is_drained(((struct late *)t)->inner);
}
static const struct transport_ops LATE = {.name = "late",
                                          .acquire = late_acquire,
                                          .post = late_post,
                                          .poll = late_poll,
                                          .release = late_release,
                                          .wait = late_wait,
                                          .is_drained = late_is_drained};

static void broadcast_all(struct listener *listeners, const size_t *n_bytes, bool is_rank_1_late)
{
    struct late late = {0};
    struct transport *t[3];
    pthread_t threads[3];
    assert_int_equal(transport_inproc_create(3, t, NULL), STATUS_OK);
    late.base = *t[1];
    late.base.ops = &LATE;
    late.inner = t[1];
    late.base = *t[1];
    late.base.ops = &LATE;
    late.inner = t[1];
    for (int i = 0; i < 3; i++) {
        listeners[i] = (struct listener){.transport = i == 1 && is_rank_1_late ? &late.base : t[i],
                                         .bytes = calloc(1, n_bytes[i]),
                                         .n_bytes = n_bytes[i]};
        for (size_t k = 0; i == 0 && k < n_bytes[0]; k++)
            listeners[0].bytes[k] = (unsigned char)(k * 2654435761u >> 13);
        assert_int_equal(pthread_create(&threads[i], NULL, broadcast, &listeners[i]), 0);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 3; i++)
        transport_destroy(t[i]);
}

static void test_reduce_broadcast_brings_the_bytes_of_rank_0(void **state)
{
    (void)state;
    struct listener l[3];
    static const size_t n_bytes[] = {9000001, 9000001, 9000001}; /* three messages */
    broadcast_all(l, n_bytes, false);
    for (int i = 0; i < 3; i++) {
        if (l[i].status != STATUS_OK)
            fail_msg("rank %d: %s", i, l[i].err.message);
        assert_memory_equal(l[i].bytes, l[0].bytes, n_bytes[0]);
    }
    for (int i = 0; i < 3; i++)
        free(l[i].bytes);
}

/* Rank 2 is in the sum when rank 1 still waits for the broadcast before it. */
static void test_reduce_messages_of_a_later_call_wait_for_it(void **state)
{
    (void)state;
    static const size_t n_bytes[] = {100, 100, 100};
    struct listener l[3];
    broadcast_all(l, n_bytes, true);
    for (int i = 0; i < 3; i++) {
        if (l[i].status != STATUS_OK)
            fail_msg("rank %d: %s", i, l[i].err.message);
        assert_memory_equal(l[i].bytes, l[0].bytes, n_bytes[0]);
    }
    for (int i = 0; i < 3; i++)
        free(l[i].bytes);
}

static void test_reduce_broadcast_of_other_lengths_is_refused(void **state)
{
    (void)state;
    struct listener l[3];
    static const size_t n_bytes[] = {100, 100, 90};
    broadcast_all(l, n_bytes, false);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(l[i].status, STATUS_MISMATCH);
        assert_non_null(strstr(l[i].err.message, "of 100"));
        free(l[i].bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reduce_shards_are_cut_evenly),
        cmocka_unit_test(test_reduce_sum_has_the_bits_of_the_tree),
        cmocka_unit_test(test_reduce_order_of_additions_would_show),
        cmocka_unit_test(test_reduce_long_arrays_go_in_rounds),
        cmocka_unit_test(test_reduce_without_transport_is_one_rank),
        cmocka_unit_test(test_reduce_refuses_a_cut_that_does_not_work),
        cmocka_unit_test(test_reduce_failed_rank_ends_the_others_with_its_words),
        cmocka_unit_test(test_reduce_silent_rank_is_named_at_the_deadline),
        cmocka_unit_test(test_reduce_ranks_at_other_steps_or_recipes_are_told),
        cmocka_unit_test(test_reduce_broadcast_brings_the_bytes_of_rank_0),
        cmocka_unit_test(test_reduce_messages_of_a_later_call_wait_for_it),
        cmocka_unit_test(test_reduce_broadcast_of_other_lengths_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
