/* The metrics page after small stories, family by family, to the byte. */
#include "tests/unit.h"

#include "coordinator/metrics.h"
#include "coordinator/metrics_state.h"

#include <math.h>
#include <time.h>

static const char *const hosts[] = {"node-a", "node-b"};

static struct metrics *create(const char *model, uint32_t n_workers, uint32_t n_loops)
{
    const struct metrics_config config = {.n_workers = n_workers,
                                          .n_loops = n_loops,
                                          .hosts = hosts,
                                          .model = model,
                                          .version = "1.2.3"};
    struct metrics *m = NULL;
    struct err err = {0};
    if (metrics_create(&config, &m, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return m;
}

/* The samples of one family, without HELP and TYPE, which must be there; the caller frees. */
static char *samples(const struct metrics *m, const char *name)
{
    struct text page = {0};
    char help[128], type[128];
    metrics_write(m, &page);
    text_add(&page, "", 1);
    assert_false(page.is_broken);
    snprintf(help, sizeof help, "# HELP %s ", name);
    snprintf(type, sizeof type, "# TYPE %s ", name);
    const char *at = strstr(page.bytes, help);
    if (at == NULL)
        fail_msg("no %s", help);
    at = strchr(at, '\n') + 1;
    assert_memory_equal(at, type, strlen(type));
    at = strchr(at, '\n') + 1;
    const char *end = strstr(at, "# HELP ");
    char *found = strndup(at, end != NULL ? (size_t)(end - at) : strlen(at));
    text_free(&page);
    assert_non_null(found);
    return found;
}

static void expect(const struct metrics *m, const char *name, const char *expected)
{
    char *found = samples(m, name);
    assert_string_equal(found, expected);
    free(found);
}

static void expect_line(const struct metrics *m, const char *name, const char *line)
{
    char *found = samples(m, name);
    if (strstr(found, line) == NULL)
        fail_msg("no line %s in\n%s", line, found);
    free(found);
}

static struct delivery token(uint32_t index, uint32_t exit_loop)
{
    struct delivery d = {.kind = DELIVERY_TOKEN,
                         .index = index,
                         .token = {.position = 7 + index, .exit_loop = exit_loop}};
    for (uint32_t t = 0; t < exit_loop; t++) {
        d.workers[t] = t % 2;
        d.token.timings[t] = (struct loop_timing){
            .hop_s = 0.25f, .wait_s = 0.125f, .compute_s = t == 0 ? 0.5f : 0.75f};
    }
    return d;
}

static void test_metrics_of_a_request(void **state)
{
    (void)state;
    struct metrics *m = create("demo", 2, 2);
    metrics_choice_queued(m, 7);
    metrics_choice_queued(m, 9);
    assert_int_equal(metrics_n_waiting(m), 2);
    expect(m, "carousel_num_requests_waiting", "carousel_num_requests_waiting 2\n");
    expect(m, "carousel_prompt_tokens_held", "carousel_prompt_tokens_held 16\n");
    metrics_choice_started(m, 0.5);
    expect(m, "carousel_num_requests_waiting", "carousel_num_requests_waiting 1\n");
    expect(m, "carousel_num_requests_running", "carousel_num_requests_running 1\n");

    struct delivery d = token(0, 2);
    metrics_token(m, &d, 1.5);
    d = token(1, 1);
    metrics_token(m, &d, 0.25);
    d = token(2, 2);
    metrics_token(m, &d, 0.75);
    expect(m, "carousel_prompt_tokens_total", "carousel_prompt_tokens_total 7\n");
    expect(m, "carousel_generation_tokens_total", "carousel_generation_tokens_total 3\n");
    expect(m, "carousel_exit_total",
           "carousel_exit_total{loop=\"1\"} 1\ncarousel_exit_total{loop=\"2\"} 2\n");
    expect_line(m, "carousel_time_to_first_token_seconds",
                "carousel_time_to_first_token_seconds_sum 1.5\n"
                "carousel_time_to_first_token_seconds_count 1\n");
    expect_line(m, "carousel_inter_token_latency_seconds",
                "carousel_inter_token_latency_seconds_sum 1\n"
                "carousel_inter_token_latency_seconds_count 2\n");
    expect_line(m, "carousel_loop_compute_seconds",
                "carousel_loop_compute_seconds_sum{loop=\"1\",worker=\"1\"} 1.5\n"
                "carousel_loop_compute_seconds_count{loop=\"1\",worker=\"1\"} 3\n");
    expect_line(m, "carousel_loop_compute_seconds",
                "carousel_loop_compute_seconds_sum{loop=\"2\",worker=\"2\"} 1.5\n"
                "carousel_loop_compute_seconds_count{loop=\"2\",worker=\"2\"} 2\n");
    expect_line(m, "carousel_loop_wait_seconds",
                "carousel_loop_wait_seconds_sum{loop=\"2\",worker=\"2\"} 0.25\n");
    expect_line(m, "carousel_hop_seconds", "carousel_hop_seconds_count{worker=\"1\"} 3\n");
    expect_line(m, "carousel_hop_seconds", "carousel_hop_seconds_sum{worker=\"2\"} 0.5\n");

    metrics_choice_ended(m, FINISH_LENGTH, true, 7, 3, 2.5);
    metrics_choice_ended(m, FINISH_CANCELLED, false, 9, 0, 4);
    expect(m, "carousel_request_success_total",
           "carousel_request_success_total{finished_reason=\"stop\"} 0\n"
           "carousel_request_success_total{finished_reason=\"length\"} 1\n");
    expect(m, "carousel_request_failed_total",
           "carousel_request_failed_total{finished_reason=\"cancelled\"} 1\n"
           "carousel_request_failed_total{finished_reason=\"error\"} 0\n");
    expect_line(m, "carousel_e2e_request_latency_seconds",
                "carousel_e2e_request_latency_seconds_sum 2.5\n"
                "carousel_e2e_request_latency_seconds_count 1\n");
    expect_line(m, "carousel_request_prompt_tokens", "_sum 7\n");
    expect_line(m, "carousel_request_generation_tokens", "_sum 3\n");
    expect(m, "carousel_prompt_tokens_held", "carousel_prompt_tokens_held 0\n");
    assert_int_equal(metrics_n_waiting(m), 0);
    assert_int_equal(metrics_n_running(m), 0);
    metrics_destroy(m);
}

static void test_metrics_of_http(void **state)
{
    (void)state;
    struct metrics *m = create("demo", 2, 2);
    metrics_http_answer(m, "/v1/completions", 200, 0.0004);
    metrics_http_answer(m, "/v1/completions", 429, 0.0001);
    metrics_http_answer(m, "/v1/completions", 200, 0.3);
    metrics_http_answer(m, "other", 404, 0.3);
    metrics_set_connections(m, 3, 4096, 77);
    metrics_refused(m, "queue_full");
    metrics_refused(m, "queue_full");
    metrics_cancelled(m, "disconnect");
    metrics_token_sent(m, 0.001);
    expect(m, "carousel_http_requests_total",
           "carousel_http_requests_total{endpoint=\"/v1/completions\",code=\"200\"} 2\n"
           "carousel_http_requests_total{endpoint=\"/v1/completions\",code=\"429\"} 1\n"
           "carousel_http_requests_total{endpoint=\"other\",code=\"404\"} 1\n");
    expect_line(m, "carousel_http_request_seconds",
                "carousel_http_request_seconds_count{endpoint=\"/v1/completions\"} 3\n");
    expect(m, "carousel_http_connections", "carousel_http_connections 3\n");
    expect(m, "carousel_http_unsent_bytes", "carousel_http_unsent_bytes 4096\n");
    expect(m, "carousel_http_receiving_bytes", "carousel_http_receiving_bytes 77\n");
    expect(m, "carousel_refused_total", "carousel_refused_total{reason=\"queue_full\"} 2\n");
    expect(m, "carousel_cancelled_total", "carousel_cancelled_total{reason=\"disconnect\"} 1\n");
    /* An upper bound belongs to its bucket. */
    expect_line(m, "carousel_token_to_socket_seconds", "{le=\"0.0005\"} 0\n");
    expect_line(m, "carousel_token_to_socket_seconds", "{le=\"0.001\"} 1\n");
    metrics_destroy(m);
}

/* A histogram without labels, every line. */
static void test_metrics_histogram_text(void **state)
{
    (void)state;
    struct metrics *m = create("demo", 1, 1);
    metrics_choice_queued(m, 1);
    metrics_choice_started(m, 0.00005);
    metrics_choice_queued(m, 1);
    metrics_choice_started(m, 0.75);
    metrics_choice_queued(m, 1);
    metrics_choice_started(m, 601);
    static const char *const bounds[] = {"5e-05", "0.0001", "0.00025", "0.0005", "0.001", "0.0025",
                                         "0.005", "0.01",   "0.025",   "0.05",   "0.1",   "0.25",
                                         "0.5",   "1",      "2.5",     "5",      "10",    "30",
                                         "60",    "120",    "300",     "600",    "+Inf"};
    struct text expected = {0};
    for (size_t i = 0; i < sizeof bounds / sizeof bounds[0]; i++)
        text_addf(&expected, "carousel_request_queue_time_seconds_bucket{le=\"%s\"} %d\n",
                  bounds[i],
                  i < 13   ? 1
                  : i < 22 ? 2
                           : 3);
    text_adds(&expected, "carousel_request_queue_time_seconds_sum 601.75005\n"
                         "carousel_request_queue_time_seconds_count 3\n");
    text_add(&expected, "", 1);
    expect(m, "carousel_request_queue_time_seconds", expected.bytes);
    text_free(&expected);
    metrics_destroy(m);
}

/* The search finds the bucket that a plain scan finds, for every set of buckets and at each edge.
 */
static void test_metrics_observe_finds_the_bucket(void **state)
{
    (void)state;
    for (int id = 0; id < METRIC_COUNT; id++) {
        const struct metric_buckets *b = metrics_table[id].buckets;
        if (b == NULL)
            continue;
        for (size_t i = 0; i < b->n; i++) {
            const double values[] = {b->bounds[i], nextafter(b->bounds[i], 0),
                                     nextafter(b->bounds[i], INFINITY), b->bounds[i] * 1.01};
            for (size_t k = 0; k < 4; k++) {
                uint64_t counts[METRIC_MAX_BOUNDS + 1] = {0};
                struct series s = {.counts = counts};
                size_t bucket = 0;
                while (bucket < b->n && values[k] > b->bounds[bucket])
                    bucket++;
                series_observe(&s, b, values[k]);
                assert_int_equal(counts[bucket], 1);
                assert_int_equal(s.n, 1);
                assert_true(s.value == values[k]);
            }
        }
    }
}

/* Clocks of two hosts differ, so that a hop may seem to take less than nothing. */
static void test_metrics_observe_takes_any_number(void **state)
{
    (void)state;
    const struct metric_buckets *b = metrics_table[METRIC_HOP].buckets;
    const double values[] = {-1, NAN, -INFINITY, INFINITY, 1e300};
    uint64_t counts[METRIC_MAX_BOUNDS + 1] = {0};
    struct series s = {.counts = counts};
    for (size_t i = 0; i < 5; i++)
        series_observe(&s, b, values[i]);
    assert_int_equal(counts[0], 3);
    assert_int_equal(counts[b->n], 2);
    assert_true(s.value == 2e9);
}

static void test_metrics_of_workers(void **state)
{
    (void)state;
    struct metrics *m = create("demo", 2, 2);
    struct service_snapshot *s = calloc(1, sizeof *s + 2 * sizeof s->workers[0]);
    assert_non_null(s);
    s->n_workers = 2;
    s->kv_usage = 0.375;
    s->load =
        (struct scheduler_load){.n_queued = 4, .n_opening = 3, .n_running = 2, .n_closing = 1};
    s->workers[0] = (struct control_stats){.n_batches = 10,
                                           .n_rows = 45,
                                           .parked_rows = 6,
                                           .kv_blocks_used = 5,
                                           .kv_blocks_total = 64,
                                           .busy_ns = 1500000000,
                                           .idle_starved_ns = 250000000,
                                           .idle_waiting_ns = 125000000,
                                           .rows_by_loop = {30, 15}};
    metrics_snapshot(m, s);
    expect(m, "carousel_kv_cache_usage_ratio", "carousel_kv_cache_usage_ratio 0.375\n");
    expect(m, "carousel_scheduler_sequences",
           "carousel_scheduler_sequences{state=\"queued\"} 4\n"
           "carousel_scheduler_sequences{state=\"opening\"} 3\n"
           "carousel_scheduler_sequences{state=\"running\"} 2\n"
           "carousel_scheduler_sequences{state=\"closing\"} 1\n");
    expect(m, "carousel_batch_rows",
           "carousel_batch_rows{worker=\"1\"} 4.5\ncarousel_batch_rows{worker=\"2\"} 0\n");
    expect(m, "carousel_parked_rows",
           "carousel_parked_rows{worker=\"1\"} 6\ncarousel_parked_rows{worker=\"2\"} 0\n");
    expect(m, "carousel_worker_busy_seconds_total",
           "carousel_worker_busy_seconds_total{worker=\"1\"} 1.5\n"
           "carousel_worker_busy_seconds_total{worker=\"2\"} 0\n");
    expect(m, "carousel_worker_idle_seconds_total",
           "carousel_worker_idle_seconds_total{worker=\"1\",reason=\"starved\"} 0.25\n"
           "carousel_worker_idle_seconds_total{worker=\"1\",reason=\"waiting\"} 0.125\n"
           "carousel_worker_idle_seconds_total{worker=\"2\",reason=\"starved\"} 0\n"
           "carousel_worker_idle_seconds_total{worker=\"2\",reason=\"waiting\"} 0\n");
    expect(m, "carousel_loop_rows_total",
           "carousel_loop_rows_total{loop=\"1\",worker=\"1\"} 30\n"
           "carousel_loop_rows_total{loop=\"2\",worker=\"1\"} 15\n"
           "carousel_loop_rows_total{loop=\"1\",worker=\"2\"} 0\n"
           "carousel_loop_rows_total{loop=\"2\",worker=\"2\"} 0\n");
    /* Rows per batch are those since the last snapshot. */
    s->workers[0].n_batches = 12;
    s->workers[0].n_rows = 47;
    metrics_snapshot(m, s);
    expect(m, "carousel_batch_rows",
           "carousel_batch_rows{worker=\"1\"} 1\ncarousel_batch_rows{worker=\"2\"} 0\n");
    metrics_set_state(m, METRICS_LOST);
    expect(m, "carousel_worker_up",
           "carousel_worker_up{worker=\"1\",host=\"node-a\"} 0\n"
           "carousel_worker_up{worker=\"2\",host=\"node-b\"} 0\n");
    free(s);
    metrics_destroy(m);
}

static void test_metrics_states(void **state)
{
    (void)state;
    struct metrics *m = create(NULL, 0, 0);
    expect(m, "carousel_build_info", "carousel_build_info{version=\"1.2.3\"} 1\n");
    expect(m, "carousel_model_info", "");
    expect(m, "carousel_worker_up", "");
    metrics_http_answer(m, "/v1/models", 503, 0.001);
    expect(
        m, "carousel_server_state",
        "carousel_server_state{state=\"loading\"} 1\ncarousel_server_state{state=\"ready\"} 0\n"
        "carousel_server_state{state=\"draining\"} 0\ncarousel_server_state{state=\"lost\"} 0\n");
    /* The cluster comes later; what was counted stays. */
    const struct metrics_config config = {
        .n_workers = 2, .n_loops = 4, .hosts = hosts, .model = "demo", .version = "1.2.3"};
    assert_int_equal(metrics_set_cluster(m, &config, NULL), STATUS_OK);
    metrics_set_state(m, METRICS_READY);
    expect(m, "carousel_model_info", "carousel_model_info{model_name=\"demo\",loops=\"4\"} 1\n");
    expect_line(m, "carousel_server_state", "{state=\"ready\"} 1\n");
    expect_line(m, "carousel_http_requests_total", "{endpoint=\"/v1/models\",code=\"503\"} 1\n");
    expect(m, "carousel_worker_up",
           "carousel_worker_up{worker=\"1\",host=\"node-a\"} 1\n"
           "carousel_worker_up{worker=\"2\",host=\"node-b\"} 1\n");
    metrics_destroy(m);
}

static void test_metrics_labels_are_escaped(void **state)
{
    (void)state;
    static const struct {
        const char *model, *shown;
    } cases[] = {
        {"a \"quoted\" one", "a \\\"quoted\\\" one"},
        {"two\nlines", "two\\nlines"},
        {"back\\slash", "back\\\\slash"},
        {"caf\xc3\xa9", "caf\xc3\xa9"},
        {"\xff", "\xef\xbf\xbd"},
        {"\xe2\x82", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char expected[256];
        struct metrics *m = create(cases[i].model, 1, 1);
        snprintf(expected, sizeof expected,
                 "carousel_model_info{model_name=\"%s\",loops=\"1\"} 1\n", cases[i].shown);
        expect(m, "carousel_model_info", expected);
        metrics_destroy(m);
    }
}

/* Label values that come without end end in one series, and nothing is lost from the sum. */
static void test_metrics_growing_labels_are_bounded(void **state)
{
    (void)state;
    struct metrics *m = create("demo", 1, 1);
    for (int i = 0; i < 3 * METRICS_MAX_GROWING; i++) {
        char reason[32];
        snprintf(reason, sizeof reason, "r%d", i);
        metrics_refused(m, reason);
    }
    char *found = samples(m, "carousel_refused_total");
    int n_lines = 0, sum = 0;
    for (char *at = found; *at != '\0'; at = strchr(at, '\n') + 1) {
        n_lines++;
        sum += atoi(strchr(at, ' '));
    }
    assert_int_equal(n_lines, METRICS_MAX_GROWING + 1);
    assert_int_equal(sum, 3 * METRICS_MAX_GROWING);
    assert_non_null(strstr(found, "carousel_refused_total{reason=\"other\"} 128\n"));
    free(found);
    metrics_destroy(m);
}

static void test_metrics_numbers(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text;
    } cases[] = {{0, "0"},
                 {-3, "-3"},
                 {0.1, "0.1"},
                 {1.0 / 3, "0.3333333333333333"},
                 {5e-5, "5e-05"},
                 {123456789012.0, "123456789012"},
                 {9007199254740991.0, "9007199254740991"},
                 {1e300, "1e+300"},
                 {INFINITY, "+Inf"},
                 {-INFINITY, "-Inf"},
                 {NAN, "NaN"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct text t = {0};
        metrics_add_number(&t, cases[i].value);
        text_add(&t, "", 1);
        assert_string_equal(t.bytes, cases[i].text);
        text_free(&t);
    }
}

static void test_metrics_of_this_process(void **state)
{
    (void)state;
    double values[METRICS_N_PROCESS];
    metrics_read_process(values);
    for (int i = 0; i < METRICS_N_PROCESS; i++)
        assert_true(values[i] >= 0);
    struct metrics *m = create("demo", 1, 1);
    char *found = samples(m, "process_resident_memory_bytes");
    assert_true(strtod(strchr(found, ' '), NULL) > 100000);
    free(found);
    found = samples(m, "process_start_time_seconds");
    double started_s = strtod(strchr(found, ' '), NULL);
    assert_true(fabs(started_s - (double)time(NULL)) < 3600);
    free(found);
    metrics_destroy(m);
}

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), k = strlen(end);
    return n >= k && strcmp(name + n - k, end) == 0;
}

static void test_metrics_table_is_sound(void **state)
{
    (void)state;
    for (int i = 0; i < METRIC_COUNT; i++) {
        const struct metric *a = &metrics_table[i];
        assert_non_null(a->name);
        assert_true(ends_with(a->help, "."));
        assert_null(strpbrk(a->help, "\\\n|"));
        assert_int_equal(a->type == METRIC_COUNTER, ends_with(a->name, "_total"));
        assert_int_equal(a->type == METRIC_HISTOGRAM, a->buckets != NULL);
        for (int k = 0; k < i; k++)
            assert_string_not_equal(a->name, metrics_table[k].name);
        for (size_t k = 1; a->buckets != NULL && k < a->buckets->n; k++)
            assert_true(a->buckets->bounds[k - 1] < a->buckets->bounds[k]);
    }
}

/* docs/metrics.md has the table's rows, in its order; a failure shows the row that is missing. */
static void test_metrics_docs_show_the_table(void **state)
{
    (void)state;
    FILE *file = fopen("docs/metrics.md", "r");
    if (file == NULL)
        fail_msg("no docs/metrics.md: run the test from the root of the tree");
    char *text = calloc(1, 1 << 16);
    assert_non_null(text);
    assert_true(fread(text, 1, (1 << 16) - 1, file) > 0);
    fclose(file);
    const char *at = text;
    for (int i = 0; i < METRIC_COUNT; i++) {
        const struct metric *a = &metrics_table[i];
        char row[512];
        snprintf(row, sizeof row, "| `%s%s` | %s | %s%s%s | %s |\n",
                 strncmp(a->name, "process_", 8) == 0 ? "" : METRIC_PREFIX, a->name,
                 metric_type_name(a->type), a->labels[0] != NULL ? a->labels[0] : "",
                 a->labels[1] != NULL ? ", " : "", a->labels[1] != NULL ? a->labels[1] : "",
                 a->help);
        const char *found = strstr(at, row);
        if (found == NULL)
            fail_msg("docs/metrics.md lacks, or has at another place, the row\n%s", row);
        at = found + 1;
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_metrics_of_a_request),
        cmocka_unit_test(test_metrics_of_http),
        cmocka_unit_test(test_metrics_histogram_text),
        cmocka_unit_test(test_metrics_observe_finds_the_bucket),
        cmocka_unit_test(test_metrics_observe_takes_any_number),
        cmocka_unit_test(test_metrics_of_workers),
        cmocka_unit_test(test_metrics_states),
        cmocka_unit_test(test_metrics_labels_are_escaped),
        cmocka_unit_test(test_metrics_growing_labels_are_bounded),
        cmocka_unit_test(test_metrics_numbers),
        cmocka_unit_test(test_metrics_of_this_process),
        cmocka_unit_test(test_metrics_table_is_sound),
        cmocka_unit_test(test_metrics_docs_show_the_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
