/* The gate's labels, loss and gradients against plain formulas, and fits whose answer is known. */
#include "tests/unit.h"

#include "train/gate_fit.h"
#include "train/random.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

enum { T = 4, D = 13 };
#define SPILL "build/test_gate_fit.rows"

static double plain_sigmoid(double z)
{
    return 1 / (1 + exp(-z));
}

static void test_gate_labels_are_the_three_formulas(void **state)
{
    (void)state;
    const float ce[T] = {2.0f, 1.5f, 1.75f, 0.25f};
    const struct {
        enum gate_label label;
        int first;
        double improvement[T - 1];
    } cases[] = {
        {GATE_PAST, 1, {0.5, -0.25, 1.5}},
        {GATE_NEXT, 0, {0.5, -0.25, 1.5}},
        {GATE_FUTURE, 0, {1.75, 1.25, 1.5}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct gate_objective o = {cases[i].label, 0.1, 3};
        double labels[GATE_MAX_LOOPS];
        int first;
        assert_int_equal(gate_labels(&o, ce, T, labels, &first), T - 1);
        assert_int_equal(first, cases[i].first);
        for (int t = 0; t < T - 1; t++) {
            double expected = plain_sigmoid(3 * (cases[i].improvement[t] - 0.1));
            assert_true(fabs(labels[first + t] - expected) < 1e-12);
        }
        assert_int_equal(gate_labels(&o, ce, 1, labels, &first), 0);
    }
}

static void draw_row(struct random *r, struct gate_row *row, float *hidden)
{
    memset(row, 0, sizeof *row);
    for (int t = 0; t < T; t++)
        row->ce[t] = (float)(2 * random_uniform(r));
    for (int i = 0; i < T * D; i++)
        hidden[i] = (float)random_normal(r);
    row->hidden = hidden;
}

/* -sum_t [w log(1 - lambda) + (1 - w) log(lambda)] as it is written. */
static double plain_loss(const struct gate_objective *o, const struct gate_row *row,
                         const double *weight, double bias)
{
    double loss = 0, labels[GATE_MAX_LOOPS];
    int first, n = gate_labels(o, row->ce, T, labels, &first);
    for (int t = first; t < first + n; t++) {
        double z = bias;
        for (int i = 0; i < D; i++)
            z += weight[i] * (double)row->hidden[t * D + i];
        double lambda = plain_sigmoid(z);
        loss -= labels[t] * log(1 - lambda) + (1 - labels[t]) * log(lambda);
    }
    return loss;
}

static void test_gate_gradients_equal_central_differences(void **state)
{
    (void)state;
    struct random r = random_of(5, 0, 0);
    for (int label = GATE_PAST; label <= GATE_FUTURE; label++) {
        const struct gate_objective o = {(enum gate_label)label, 0.1, 2};
        float hidden[T * D], weight[D];
        double exact[D], d_weight[D] = {0}, bias = -0.3, loss = 0, d_bias = 0;
        struct gate_row row;
        uint64_t n = 0;
        draw_row(&r, &row, hidden);
        for (int i = 0; i < D; i++)
            exact[i] = (double)(weight[i] = (float)(0.3 * random_normal(&r)));
        gate_row_loss(&o, &row, T, weight, bias, D, &loss, d_weight, &d_bias, &n);
        assert_int_equal(n, T - 1);
        assert_true(fabs(loss - plain_loss(&o, &row, exact, bias)) < 1e-9);
        const double h = 1e-5;
        for (int i = 0; i < D; i++) {
            double kept = exact[i];
            exact[i] = kept + h;
            double up = plain_loss(&o, &row, exact, bias);
            exact[i] = kept - h;
            double down = plain_loss(&o, &row, exact, bias);
            exact[i] = kept;
            assert_true(fabs(d_weight[i] - (up - down) / (2 * h)) < 1e-7);
        }
        double slope =
            (plain_loss(&o, &row, exact, bias + h) - plain_loss(&o, &row, exact, bias - h)) /
            (2 * h);
        assert_true(fabs(d_bias - slope) < 1e-7);
    }
}

static void test_gate_loss_stays_finite_far_out(void **state)
{
    (void)state;
    float hidden[T * D], weight[D] = {0};
    struct gate_row row = {.ce = {900, 0, 0, 0}, .hidden = hidden};
    for (int i = 0; i < T * D; i++)
        hidden[i] = 1;
    weight[0] = 5000;
    for (int sign = -1; sign <= 1; sign += 2) {
        double loss = 0;
        uint64_t n = 0;
        weight[0] = (float)(sign * 5000);
        gate_row_loss(&(struct gate_objective){GATE_NEXT, 0.1, 50}, &row, T, weight, 0, D, &loss,
                      NULL, NULL, &n);
        assert_true(isfinite(loss) && loss > 1000);
    }
}

/* Rows that are solved at loop `level`, which one direction of the hidden state says. */
static void make_rows(struct gate_rows *rows, int n, bool backwards)
{
    static float hidden[T * D];
    struct err err = {0};
    if (gate_rows_create(SPILL, true, T, D, rows, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    for (int k = 0; k < n; k++) {
        int number = backwards ? n - 1 - k : k;
        struct random r = random_of(9, (uint64_t)number, 0);
        struct gate_row row;
        draw_row(&r, &row, hidden);
        int level = number % T;
        for (int t = 0; t < T; t++) {
            row.ce[t] = t >= level ? 0.01f : 3.0f;
            hidden[t * D + 3] = t >= level ? 1.0f : -1.0f;
            row.hits |= (uint32_t)(t >= level) << t;
        }
        row.index = (uint32_t)number % 2;
        assert_int_equal(gate_rows_put(rows, (uint64_t)number, &row, &err), STATUS_OK);
    }
}

static void fit_well(const struct gate_rows *rows, const struct gate_fit_options *o,
                     struct gate *gate, struct gate_fit_report *report)
{
    struct err err = {0};
    if (gate_fit(rows, o, gate, report, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static void test_gate_fit_finds_the_direction(void **state)
{
    (void)state;
    struct gate_rows rows;
    struct gate_fit_options o;
    struct gate_fit_report report;
    float weight[D] = {0};
    struct gate gate = {D, weight, 0};
    make_rows(&rows, 600, false);
    gate_fit_options_init(&o);
    o.lr = 0.1;
    fit_well(&rows, &o, &gate, &report);
    assert_int_equal(report.n_steps, 400);
    assert_true(fabs(report.first_loss - log(2)) < 1e-9); /* lambda is 1/2 everywhere */
    assert_true(report.last_loss < 0.1);
    assert_true(fabs(report.label_mean[0] - 0.75) < 0.01);
    for (int i = 0; i < D; i++)
        assert_true(i == 3 ? weight[i] > 2 : fabsf(weight[i]) < 0.3f);
    gate_rows_close(&rows);
}

/* The order of arrival does not reach the file; small windows shuffle in another way but learn the
 * same; the same options give the same bits. */
static void test_gate_fit_is_a_function_of_rows_and_options(void **state)
{
    (void)state;
    struct gate_fit_options o;
    gate_fit_options_init(&o);
    o.lr = 0.1;
    o.batch = 32;
    float weights[4][D] = {{0}};
    double losses[4];
    for (int i = 0; i < 4; i++) {
        struct gate_rows rows;
        struct gate_fit_report report;
        struct gate gate = {D, weights[i], 0};
        make_rows(&rows, 601, i == 1);
        o.window_bytes = i == 2 ? rows.row_bytes * 50 : 0;
        o.seed = i == 3;
        fit_well(&rows, &o, &gate, &report);
        losses[i] = report.last_loss;
        gate_rows_close(&rows);
    }
    assert_memory_equal(weights[0], weights[1], sizeof weights[0]);
    assert_memory_not_equal(weights[0], weights[2], sizeof weights[0]);
    assert_memory_not_equal(weights[0], weights[3], sizeof weights[0]);
    for (int i = 0; i < 4; i++)
        assert_true(losses[i] < 0.1);
}

static double seen_loss;
static int n_reports;
static void on_report(void *user, uint64_t step, uint64_t n_steps, double loss)
{
    assert_ptr_equal(user, &seen_loss);
    assert_true(step <= n_steps && n_steps == 14);
    seen_loss = loss;
    n_reports++;
}

static void test_gate_fit_counts_epochs_and_reports(void **state)
{
    (void)state;
    struct gate_rows rows;
    struct gate_fit_options o;
    struct gate_fit_report report;
    float weight[D] = {0};
    struct gate gate = {D, weight, 0};
    make_rows(&rows, 100, false);
    gate_fit_options_init(&o);
    o.steps = 0, o.epochs = 1.4, o.batch = 10;
    o.report_every = 4, o.on_report = on_report, o.user = &seen_loss;
    fit_well(&rows, &o, &gate, &report);
    assert_int_equal(report.n_steps, 14);
    assert_int_equal(n_reports, 4); /* 4, 8, 12, 14 */
    assert_true(seen_loss > 0 && seen_loss < 0.7);
    gate_rows_close(&rows);
}

static void test_gate_fit_refuses_what_cannot_be_fitted(void **state)
{
    (void)state;
    struct gate_rows rows;
    struct gate_fit_options o;
    struct gate_fit_report report;
    struct err err = {0};
    float weight[D] = {1, 2, 3};
    struct gate gate = {D, weight, 0.5f};
    gate_fit_options_init(&o);
    make_rows(&rows, 0, false);
    assert_int_equal(gate_fit(&rows, &o, &gate, &report, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "no rows"));
    gate_rows_close(&rows);
    make_rows(&rows, 10, false);
    o.lr = 0;
    assert_int_equal(gate_fit(&rows, &o, &gate, &report, &err), STATUS_INVALID);
    gate_fit_options_init(&o);
    rows.n_loops = 1;
    assert_int_equal(gate_fit(&rows, &o, &gate, &report, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "one loop"));
    rows.n_loops = T;
    o.lr = 1e300;
    assert_int_equal(gate_fit(&rows, &o, &gate, &report, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.message, "smaller --lr"));
    assert_true(weight[0] == 1 && weight[2] == 3 && gate.bias == 0.5f); /* untouched */
    gate_fit_options_init(&o);
    assert_int_equal(truncate(SPILL, 100), 0);
    assert_int_equal(gate_fit(&rows, &o, &gate, &report, &err), STATUS_IO);
    assert_non_null(strstr(err.message, "shorter"));
    gate_rows_close(&rows);
}

static void test_gate_rows_leave_no_file_behind_unless_kept(void **state)
{
    (void)state;
    struct gate_rows rows;
    float hidden[T * D] = {0};
    const struct gate_row row = {.hidden = hidden};
    assert_int_equal(gate_rows_create(SPILL, true, T, D, &rows, NULL), STATUS_OK);
    gate_rows_close(&rows);
    assert_int_equal(access(SPILL, F_OK), 0);
    assert_int_equal(gate_rows_create(SPILL, false, T, D, &rows, NULL), STATUS_OK);
    assert_int_equal(access(SPILL, F_OK), -1);
    assert_int_equal(gate_rows_put(&rows, 3, &row, NULL), STATUS_OK);
    assert_int_equal(rows.n_rows, 4);
    gate_rows_close(&rows);
}

static void test_gate_rows_name_a_full_disk(void **state)
{
    (void)state;
    struct gate_rows rows;
    struct err err = {0};
    float hidden[T * D] = {0};
    const struct gate_row row = {.hidden = hidden};
    assert_int_equal(gate_rows_create("/nowhere/at/all", true, T, D, &rows, &err), STATUS_IO);
    assert_non_null(strstr(err.message, "/nowhere/at/all"));
    if (access("/dev/full", W_OK) != 0)
        skip();
    assert_int_equal(gate_rows_create("/dev/full", true, T, D, &rows, &err), STATUS_OK);
    assert_int_equal(gate_rows_put(&rows, 0, &row, &err), STATUS_IO);
    assert_non_null(strstr(err.message, "/dev/full: No space left on device"));
    gate_rows_close(&rows);
}

int main(void)
{
    mkdir("build", 0777);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gate_labels_are_the_three_formulas),
        cmocka_unit_test(test_gate_gradients_equal_central_differences),
        cmocka_unit_test(test_gate_loss_stays_finite_far_out),
        cmocka_unit_test(test_gate_fit_finds_the_direction),
        cmocka_unit_test(test_gate_fit_is_a_function_of_rows_and_options),
        cmocka_unit_test(test_gate_fit_counts_epochs_and_reports),
        cmocka_unit_test(test_gate_fit_refuses_what_cannot_be_fitted),
        cmocka_unit_test(test_gate_rows_leave_no_file_behind_unless_kept),
        cmocka_unit_test(test_gate_rows_name_a_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
