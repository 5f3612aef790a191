/* What the live page is told after small stories: seconds, windows, workers. */
#include "tests/unit.h"

#include "coordinator/live.h"

#include <jansson.h>
#include <math.h>

#define SECOND_NS UINT64_C(1000000000)

static const char *const hosts[] = {"node-a", "node-\"b\""};

static struct live *create(uint32_t n_workers, uint32_t n_loops)
{
    const struct live_cluster cluster = {
        .n_workers = n_workers, .n_loops = n_loops, .hosts = hosts};
    struct live *l = NULL;
    struct err err = {0};
    assert_int_equal(live_create(5 * SECOND_NS, &l, &err), STATUS_OK);
    if (n_workers > 0)
        assert_int_equal(live_set_cluster(l, &cluster, &err), STATUS_OK);
    return l;
}

/* Seconds since create; the caller frees. */
static json_t *look(struct live *l, double at_s)
{
    struct text text = {0};
    struct json_writer w;
    json_writer_init(&w, &text);
    json_write_begin_object(&w);
    live_write(l, 5 * SECOND_NS + (uint64_t)(at_s * 1e9), &w);
    json_write_end_object(&w);
    json_error_t error;
    json_t *found = json_loadb(text.bytes, text.len_bytes, 0, &error);
    if (found == NULL)
        fail_msg("%s in %.*s", error.text, (int)text.len_bytes, text.bytes);
    text_free(&text);
    return found;
}

static void expect(json_t *found, const char *key, const char *expected)
{
    char *text = json_dumps(json_object_get(found, key), JSON_COMPACT | JSON_ENCODE_ANY);
    assert_non_null(text);
    assert_string_equal(text, expected);
    free(text);
}

static double number(json_t *found, const char *object, const char *key)
{
    return json_number_value(json_object_get(json_object_get(found, object), key));
}

static void token(struct live *l, double at_s, uint32_t exit_loop, double gap_s)
{
    live_token(l, 5 * SECOND_NS + (uint64_t)(at_s * 1e9), exit_loop, false, gap_s);
}

static void test_live_has_an_answer_before_there_is_a_cluster(void **state)
{
    (void)state;
    struct live *l = create(0, 0);
    json_t *d = look(l, 3.5);
    expect(d, "workers", "[]");
    expect(d, "workers_age_s", "null");
    expect(d, "history", "[[],[],[]]");
    expect(d, "ttft", "{\"n\":0}");
    expect(d, "uptime_s", "3.5");
    json_decref(d);
    live_destroy(l);
}

static void test_live_shows_whole_seconds_of_tokens(void **state)
{
    (void)state;
    struct live *l = create(1, 3);
    token(l, 0.2, 1, 0.01);
    token(l, 0.9, 3, 0.01);
    token(l, 2.5, 2, 0.01);
    json_t *d = look(l, 2.9);
    expect(d, "history", "[[1,0,1],[0,0,0]]"); /* the third second is not over */
    expect(d, "exits_window", "[1,1,1]");
    json_decref(d);
    d = look(l, 3.1);
    expect(d, "history", "[[1,0,1],[0,0,0],[0,1,0]]");
    expect(d, "exits_total", "[1,1,1]");
    expect(d, "tokens_total", "3");
    json_decref(d);
    live_destroy(l);
}

static void test_live_forgets_what_is_out_of_its_windows(void **state)
{
    (void)state;
    struct live *l = create(1, 2);
    for (int i = 0; i < 200; i++)
        token(l, i + 0.5, 1 + (uint32_t)(i % 2), 0.5);
    json_t *d = look(l, 200.5);
    assert_int_equal(json_array_size(json_object_get(d, "history")), LIVE_HISTORY_S);
    expect(d, "exits_window", "[15,15]");
    expect(d, "exits_total", "[100,100]");
    json_decref(d);
    d = look(l, 10000); /* nothing for a long time: longer than all windows */
    expect(d, "exits_window", "[0,0]");
    expect(d, "tpot", "{\"n\":0}");
    expect(d, "tokens_total", "200");
    for (size_t i = 0; i < LIVE_HISTORY_S; i++)
        assert_int_equal(
            json_integer_value(json_array_get(json_array_get(json_object_get(d, "history"), i), 0)),
            0);
    json_decref(d);
    live_destroy(l);
}

/* A thread's token may carry a time before the second that has been looked at. */
static void test_live_counts_a_late_token_now(void **state)
{
    (void)state;
    struct live *l = create(1, 1);
    json_decref(look(l, 7.1));
    token(l, 6.9, 1, 0.01);
    json_t *d = look(l, 8.0);
    expect(d, "history", "[[0],[0],[0],[0],[0],[0],[0],[1]]");
    json_decref(d);
    live_destroy(l);
}

static void test_live_latencies_are_right_within_four_percent(void **state)
{
    (void)state;
    struct live *l = create(1, 1);
    for (double gap_s = 2e-5; gap_s < 500; gap_s *= 1.9) {
        live_token(l, 6 * SECOND_NS, 1, true, gap_s);
        json_t *d = look(l, 2);
        assert_true(number(d, "ttft", "p99_s") > gap_s * 0.96);
        assert_true(number(d, "ttft", "p99_s") < gap_s * 1.04);
        json_decref(d);
    }
    for (int i = 1; i <= 1000; i++)
        token(l, 2, 1, i * 1e-3);
    json_t *d = look(l, 2);
    assert_true(fabs(number(d, "tpot", "p50_s") - 0.5) < 0.02);
    assert_true(fabs(number(d, "tpot", "p99_s") - 0.99) < 0.04);
    json_decref(d);
    live_destroy(l);
}

static void test_live_latencies_may_be_anything(void **state)
{
    (void)state;
    struct live *l = create(1, 1);
    const double odd[] = {0, -1, 1e300, INFINITY, NAN};
    for (size_t i = 0; i < sizeof odd / sizeof odd[0]; i++)
        token(l, 1, 1 + (uint32_t)i * 3, odd[i]); /* loops that the model has not, too */
    json_t *d = look(l, 1);
    assert_int_equal((int)number(d, "tpot", "n"), 5);
    assert_true(number(d, "tpot", "p99_s") < 1100);
    json_decref(d);
    live_destroy(l);
}

static void test_live_workers_are_told_by_what_they_did_since_the_last_look(void **state)
{
    (void)state;
    struct live *l = create(2, 2);
    struct service_snapshot *s = calloc(1, sizeof *s + 2 * sizeof s->workers[0]);
    assert_non_null(s);
    s->n_workers = 2;
    s->at_ns = 6 * SECOND_NS;
    s->kv_usage = 0.25;
    s->load.n_queued = 3;
    s->workers[0] = (struct control_stats){.elapsed_ns = 4 * SECOND_NS,
                                           .busy_ns = SECOND_NS,
                                           .n_batches = 10,
                                           .n_rows = 50,
                                           .rows_by_loop = {20, 30},
                                           .kv_blocks_used = 7,
                                           .kv_blocks_total = 9};
    live_snapshot(l, s);
    s->at_ns += SECOND_NS;
    s->workers[0].elapsed_ns += SECOND_NS;
    s->workers[0].busy_ns += SECOND_NS / 4;
    s->workers[0].idle_starved_ns += SECOND_NS / 2;
    s->workers[0].idle_waiting_ns += SECOND_NS / 8;
    s->workers[0].n_batches += 2;
    s->workers[0].n_rows += 8;
    s->workers[0].rows_by_loop[1] += 8;
    live_snapshot(l, s);
    json_t *d = look(l, 2.5);
    expect(d, "workers_age_s", "0.5");
    expect(d, "kv_usage", "0.25");
    expect(d, "sequences", "{\"queued\":3,\"opening\":0,\"running\":0,\"closing\":0}");
    json_t *workers = json_object_get(d, "workers"), *w = json_array_get(workers, 0);
    assert_int_equal(json_array_size(workers), 2);
    expect(w, "rank", "1");
    expect(w, "elapsed_s", "1.0");
    expect(w, "busy_s", "0.25");
    expect(w, "starved_s", "0.5");
    expect(w, "waiting_s", "0.125");
    expect(w, "batches", "2");
    expect(w, "rows", "8");
    expect(w, "rows_by_loop", "[0,8]");
    expect(w, "kv_blocks_used", "7");
    expect(json_array_get(workers, 1), "host", "\"node-\\\"b\\\"\"");
    json_decref(d);
    s->workers[0].n_batches = 1; /* counters that somebody has restarted */
    live_snapshot(l, s);
    d = look(l, 3);
    expect(json_array_get(json_object_get(d, "workers"), 0), "batches", "1");
    json_decref(d);
    free(s);
    live_destroy(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_live_has_an_answer_before_there_is_a_cluster),
        cmocka_unit_test(test_live_shows_whole_seconds_of_tokens),
        cmocka_unit_test(test_live_forgets_what_is_out_of_its_windows),
        cmocka_unit_test(test_live_counts_a_late_token_now),
        cmocka_unit_test(test_live_latencies_are_right_within_four_percent),
        cmocka_unit_test(test_live_latencies_may_be_anything),
        cmocka_unit_test(test_live_workers_are_told_by_what_they_did_since_the_last_look),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
