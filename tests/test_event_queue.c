/* event_queue: what is due first comes first, and equal times keep the order they came in. */
#include "tests/unit.h"

#include "cluster/event_queue.h"

static void push(struct event_queue *q, uint64_t at_ns, uint32_t target)
{
    assert_int_equal(event_queue_push(q, at_ns, 1, target, NULL, NULL), STATUS_OK);
}

static void test_event_queue_is_empty_at_first(void **state)
{
    (void)state;
    struct event_queue q = {0};
    struct event e;
    assert_false(event_queue_pop(&q, &e));
    assert_true(event_queue_next_ns(&q) == UINT64_MAX);
    event_queue_free(&q);
}

static void test_event_queue_gives_the_earliest(void **state)
{
    (void)state;
    struct event_queue q = {0};
    const uint64_t times[] = {50, 10, 40, 20, 30};
    int attachment;
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(event_queue_push(&q, times[i], 7, i, &attachment, NULL), STATUS_OK);
    for (uint64_t at_ns = 10; at_ns <= 50; at_ns += 10) {
        struct event e;
        assert_int_equal(event_queue_next_ns(&q), at_ns);
        assert_true(event_queue_pop(&q, &e));
        assert_int_equal(e.at_ns, at_ns);
        assert_int_equal(times[e.target], at_ns);
        assert_int_equal(e.kind, 7);
        assert_ptr_equal(e.attachment, &attachment);
    }
    assert_true(event_queue_next_ns(&q) == UINT64_MAX);
    event_queue_free(&q);
}

static void test_event_queue_keeps_the_order_of_equal_times(void **state)
{
    (void)state;
    struct event_queue q = {0};
    struct event e;
    for (uint32_t i = 0; i < 100; i++)
        push(&q, i % 3, i);
    /* An event that is put in later waits for its equals, also between two pops. */
    assert_true(event_queue_pop(&q, &e));
    assert_int_equal(e.target, 0);
    push(&q, 0, 1000);
    uint32_t last[3] = {0, 0, 0};
    uint64_t time = 0;
    while (event_queue_pop(&q, &e)) {
        assert_true(e.at_ns >= time);
        time = e.at_ns;
        assert_true(e.target > last[e.at_ns]);
        last[e.at_ns] = e.target;
    }
    assert_int_equal(last[0], 1000);
    event_queue_free(&q);
}

/* Against a plain search, with pushes and pops mixed and few different times. */
static void test_event_queue_agrees_with_a_search(void **state)
{
    (void)state;
    enum { N = 4000 };
    struct event_queue q = {0};
    static uint64_t times[N];
    static bool is_inside[N];
    uint32_t n = 0, n_popped = 0;
    uint64_t random = 1;
    while (n_popped < N) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        bool must_push = n == n_popped, may_push = n < N;
        if (may_push && (must_push || random >> 62 != 0)) {
            times[n] = (random >> 33) % 97;
            is_inside[n] = true;
            push(&q, times[n], n);
            n++;
            continue;
        }
        uint32_t best = N;
        for (uint32_t i = 0; i < n; i++)
            if (is_inside[i] && (best == N || times[i] < times[best]))
                best = i;
        struct event e;
        assert_int_equal(event_queue_next_ns(&q), times[best]);
        assert_true(event_queue_pop(&q, &e));
        assert_int_equal(e.target, best);
        is_inside[best] = false;
        n_popped++;
    }
    event_queue_free(&q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_event_queue_is_empty_at_first),
        cmocka_unit_test(test_event_queue_gives_the_earliest),
        cmocka_unit_test(test_event_queue_keeps_the_order_of_equal_times),
        cmocka_unit_test(test_event_queue_agrees_with_a_search),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
