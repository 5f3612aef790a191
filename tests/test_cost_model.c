/* cost_model: a file is read and written without loss, bad ones are refused by field, and the
 * answers are those one gets by hand. */
#include "tests/model_files.h"
#include "tests/unit.h"

#include "cluster/cost_model.h"

#include <math.h>

static const char GOOD[] =
    "{\"name\":\"test\",\"source\":\"by hand\",\"notes\":{\"block_us\":\"free text\"},"
    "\"backend\":\"cpu\",\"block_us\":[[1,100],[33,420.5],[65,1060.5]],\"kv_position_us\":0.25,"
    "\"head_us\":[[1,10],[11,60]],\"batch_overhead_us\":20,\"worker_message_us\":3,"
    "\"worker_row_us\":0.5,\"coordinator_request_us\":40,\"coordinator_token_us\":2,"
    "\"links\":{\"local\":{\"latency_us\":1.5,\"gb_per_s\":10},"
    "\"remote\":{\"latency_us\":4,\"gb_per_s\":50}},\"ranks_per_host\":2,\"jitter\":0.05}";

static enum status parse(const char *text, struct cost_model *m, struct err *err)
{
    return cost_model_parse(text, strlen(text), "input", m, err);
}

static struct cost_model good(void)
{
    struct cost_model m;
    struct err err = {0};
    if (parse(GOOD, &m, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return m;
}

static void near(double found, double expected)
{
    if (fabs(found - expected) > 1e-6 * fabs(expected) + 1e-9)
        fail_msg("%.9g, expected %.9g", found, expected);
}

static void test_cost_model_curve_follows_its_points(void **state)
{
    (void)state;
    struct cost_model m = good();
    near(cost_curve_at(&m.block, 0.5), 100e3); /* before the first point */
    near(cost_curve_at(&m.block, 1), 100e3);
    near(cost_curve_at(&m.block, 17), 260.25e3);
    near(cost_curve_at(&m.block, 33), 420.5e3);
    near(cost_curve_at(&m.block, 49), 740.5e3);
    near(cost_curve_at(&m.block, 65), 1060.5e3);
    near(cost_curve_at(&m.block, 165), 3060.5e3); /* 20 us a row goes on */
    struct cost_curve flat = {1, {4}, {7}};
    near(cost_curve_at(&flat, 1), 7);
    near(cost_curve_at(&flat, 1000), 7);
}

static void test_cost_model_adds_up_a_batch(void **state)
{
    (void)state;
    struct cost_model m = good();
    double head = -1;
    near(cost_model_batch_ns(&m, 33, 1000, 6, &head), 420.5e3 + 250e3 + 35e3);
    near(head, 35e3);
    near(cost_model_batch_ns(&m, 1, 1, 0, &head), 100e3 + 250);
    assert_true(head == 0); /* nobody gets off */
    near(cost_model_batch_ns(&m, 1, 0, 1, NULL), 110e3);
}

static void test_cost_model_knee_is_the_line_through_1_and_32_rows(void **state)
{
    (void)state;
    struct cost_model m = good();
    uint64_t batch_ns, row_ns;
    cost_model_knee(&m, &batch_ns, &row_ns);
    assert_int_equal(row_ns, 10015); /* 320.5 / 32 us */
    assert_int_equal(batch_ns, 89984);
    m.block = (struct cost_curve){1, {1}, {5000}}; /* rows cost nothing: still a finite knee */
    cost_model_knee(&m, &batch_ns, &row_ns);
    assert_int_equal(row_ns, 1);
    assert_int_equal(batch_ns, 4999);
    m.block = (struct cost_curve){2, {1, 2}, {100, 1000}}; /* a line through less than nothing */
    cost_model_knee(&m, &batch_ns, &row_ns);
    assert_int_equal(row_ns, 900);
    assert_int_equal(batch_ns, 0);
}

static void test_cost_model_links_know_hosts(void **state)
{
    (void)state;
    struct cost_model m = good();
    near(cost_model_link_ns(&m, 2, 3, 0), 1500);
    near(cost_model_link_ns(&m, 2, 3, 10000), 2500);
    near(cost_model_link_ns(&m, 1, 2, 10000), 4200);
    m.ranks_per_host = 1;
    near(cost_model_link_ns(&m, 2, 3, 0), 4000);
}

static void test_cost_model_survives_a_round_trip(void **state)
{
    (void)state;
    struct cost_model m = good(), again;
    char *dir = model_files_dir(), path[512];
    struct err err = {0};
    snprintf(path, sizeof path, "%s/cost.json", dir);
    assert_int_equal(cost_model_save(&m, path, &err), STATUS_OK);
    if (cost_model_load(path, &again, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_string_equal(again.name, "test");
    assert_string_equal(again.source, "by hand");
    assert_string_equal(again.backend, "cpu");
    assert_int_equal(again.block.n_points, 3);
    near(cost_curve_at(&again.block, 49), 740.5e3);
    near(cost_model_batch_ns(&again, 33, 1000, 6, NULL), 705.5e3);
    near(again.batch_overhead_ns, 20e3);
    near(again.worker_message_ns, 3e3);
    near(again.worker_row_ns, 500);
    near(again.coordinator_request_ns, 40e3);
    near(again.coordinator_token_ns, 2e3);
    near(cost_model_link_ns(&again, 1, 2, 10000), 4200);
    near(cost_model_link_ns(&again, 2, 3, 10000), 2500);
    assert_int_equal(again.ranks_per_host, 2);
    near(again.jitter, 0.05);
    assert_int_equal(cost_model_save(&m, "/nowhere/cost.json", &err), STATUS_IO);
    model_files_remove(dir);
}

static void test_cost_model_refuses_bad_files_by_field(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *says;
    } table[] = {
        {"\"jitter\":0.05", "\"jitter\":0.3",
         "field jitter in input: expected a number from 0 to 0.25, "},
        {",\"jitter\":0.05", "", "field jitter is missing from input"},
        {"\"jitter\"", "\"jiter\"", "unknown field \"jiter\" in input"},
        {"[1,100]", "[0,100]", "field block_us in input: expected a pair"},
        {"[1,100]", "[1,-1]", "found [1,-1]"},
        {"[1,100]", "[1,0]", "a batch that takes more than 0 us"},
        {"[1,100]", "[1,100,2]", "found [1,100,2]"},
        {"[1,100]", "7", "field block_us in input: expected a pair"},
        {"[33,420.5]", "[65,420.5]", "more rows than in the pair before"},
        {"[65,1060.5]", "[65,420]", "no fewer us in the last pair"},
        {"[[1,10],[11,60]]", "[]", "field head_us in input: expected 1 to 32 pairs"},
        {"[[1,10],[11,60]]", "\"fast\"", "found \"fast\""},
        {"\"kv_position_us\":0.25", "\"kv_position_us\":\"0.25\"", "field kv_position_us in input"},
        {"\"kv_position_us\":0.25", "\"kv_position_us\":1001",
         "field kv_position_us in input: expected a number from 0 to 1000, "},
        {"[65,1060.5]", "[33.00001,1e9]", "a last slope that comes to at most 1e+12 us"},
        {"\"batch_overhead_us\":20", "\"batch_overhead_us\":-20", "field batch_overhead_us"},
        {"\"latency_us\":1.5", "\"latency_us\":null", "field links.local.latency_us in input"},
        {"\"gb_per_s\":50", "\"gb_per_s\":0", "field links.remote.gb_per_s in input"},
        {"\"gb_per_s\":50", "\"gbps\":400", "unknown field \"gbps\""},
        {"\"remote\"", "\"far\"", "unknown field \"far\" in links"},
        {"\"ranks_per_host\":2", "\"ranks_per_host\":0", "field ranks_per_host"},
        {"\"ranks_per_host\":2", "\"ranks_per_host\":1.5", "expected a whole number, found 1.5"},
        {"\"name\":\"test\"", "\"name\":7", "field name in input: expected one line"},
        {"\"by hand\"", "\"by\\nhand\"", "field source in input: expected one line"},
        {"\"cpu\"", "\"a backend of too long a name\"", "one line of at most 15 bytes"},
        {"{\"name\"", "[\"name\"", "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        char *text = model_files_replace(GOOD, table[i].from, table[i].to);
        struct cost_model m = {.jitter = -7};
        struct err err = {0};
        enum status status = parse(text, &m, &err);
        if (status != STATUS_CORRUPT || strstr(err.message, table[i].says) == NULL)
            fail_msg("row %zu: %s: '%s'", i, status_name(status), err.message);
        assert_true(m.jitter == -7); /* outputs on success only */
        free(text);
    }
    struct cost_model m;
    struct err err = {0};
    assert_int_equal(cost_model_load("/nowhere/cost.json", &m, &err), STATUS_NOT_FOUND);
    assert_non_null(strstr(err.message, "/nowhere/cost.json"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cost_model_curve_follows_its_points),
        cmocka_unit_test(test_cost_model_adds_up_a_batch),
        cmocka_unit_test(test_cost_model_knee_is_the_line_through_1_and_32_rows),
        cmocka_unit_test(test_cost_model_links_know_hosts),
        cmocka_unit_test(test_cost_model_survives_a_round_trip),
        cmocka_unit_test(test_cost_model_refuses_bad_files_by_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
