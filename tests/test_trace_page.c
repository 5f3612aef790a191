/* The page of a trace: the numbers in it are the trace's, whatever its length and its names. */
#include "tests/trace_world.h"

#include "cli/trace_page.h"

#include <jansson.h>
#include <math.h>
#include <unistd.h>

#define PATH "build/test_trace_page.html"

static struct text make_page(struct trace_set *set)
{
    struct trace_report r;
    struct text page = {0};
    struct err err = {0};
    if (trace_report_make(set, &r, &err) != STATUS_OK ||
        trace_page_write(&r, set, PATH, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    trace_report_free(&r);
    FILE *f = fopen(PATH, "r");
    char piece[65536];
    size_t n;
    assert_non_null(f);
    while ((n = fread(piece, 1, sizeof piece, f)) > 0)
        text_add(&page, piece, n);
    fclose(f);
    unlink(PATH);
    text_add(&page, "", 1);
    assert_false(page.is_broken);
    return page;
}

/* What the page's script reads. */
static json_t *read_data(const struct text *page)
{
    static const char begin[] = "<script type=\"application/json\" id=\"data\">";
    const char *from = strstr(page->bytes, begin);
    assert_non_null(from);
    from += strlen(begin);
    const char *to = strstr(from, "</script>");
    assert_non_null(to);
    json_error_t error;
    json_t *data = json_loadb(from, (size_t)(to - from), 0, &error);
    if (data == NULL)
        fail_msg("%s at %d", error.text, error.position);
    return data;
}

static double at(json_t *array, size_t i)
{
    json_t *item = json_array_get(array, i);
    assert_true(json_is_number(item));
    return json_number_value(item);
}

static json_t *find(json_t *data, const char *first, const char *second)
{
    json_t *found = json_object_get(json_object_get(data, first), second);
    assert_non_null(found);
    return found;
}

/* In units of 100 ns, as the page has them; of all lanes. */
static double sum_lengths(json_t *lanes, size_t width)
{
    double total = 0;
    for (size_t lane = 0; lane < json_array_size(lanes); lane++) {
        json_t *flat = json_array_get(lanes, lane);
        assert_int_equal(json_array_size(flat) % width, 0);
        for (size_t i = 0; i < json_array_size(flat); i += width)
            total += at(flat, i + 1);
    }
    return total;
}

static double sum_records(const struct trace_set *set, enum trace_kind kind, uint64_t *n)
{
    double total = 0;
    *n = 0;
    for (uint32_t rank = 1; rank < set->n_ranks; rank++)
        for (size_t i = 0; i < set->ranks[rank].n_records; i++)
            if (set->ranks[rank].records[i].kind == kind) {
                total += (double)(set->ranks[rank].records[i].lasted_ns / 100);
                ++*n;
            }
    return total;
}

static void test_page_has_every_batch_of_a_short_trace(void **state)
{
    (void)state;
    struct trace_set *set = trace_world_make(3, 5, 20, 7);
    struct text page = make_page(set);
    json_t *data = read_data(&page);
    uint64_t n_batches, n_idle;
    double batches = sum_records(set, TRACE_BATCH, &n_batches),
           idle = sum_records(set, TRACE_IDLE, &n_idle);
    json_t *timeline = json_object_get(data, "timeline");
    assert_null(json_object_get(timeline, "bins"));
    assert_true(sum_lengths(find(data, "timeline", "batches"), 6) == batches);
    assert_true(sum_lengths(find(data, "timeline", "idle"), 3) == idle);
    assert_true(n_batches > 100 && n_idle > 10);
    assert_int_equal(json_array_size(json_object_get(data, "paths")), 5);
    assert_int_equal(json_integer_value(json_object_get(data, "n_tokens")), 100);
    json_decref(data);
    text_free(&page);
    trace_set_destroy(set);
}

/* Begins are written as differences; summed up they are the records'. */
static void test_page_has_the_batches_where_they_were(void **state)
{
    (void)state;
    struct trace_set *set = trace_world_make(2, 3, 10, 3);
    uint64_t begin_ns = UINT64_MAX;
    for (uint32_t rank = 0; rank < set->n_ranks; rank++)
        if (set->ranks[rank].records[0].at_ns < begin_ns)
            begin_ns = set->ranks[rank].records[0].at_ns;
    struct text page = make_page(set);
    json_t *data = read_data(&page), *lanes = find(data, "timeline", "batches");
    for (uint32_t lane = 0; lane < 2; lane++) {
        json_t *flat = json_array_get(lanes, lane);
        double now = 0;
        size_t k = 0;
        for (size_t i = 0; i < set->ranks[lane + 1].n_records; i++) {
            const struct trace_record *a = &set->ranks[lane + 1].records[i];
            if (a->kind != TRACE_BATCH)
                continue;
            now += at(flat, k);
            assert_true(now == (double)((a->at_ns - begin_ns) / 100));
            for (size_t t = 0; t < 4; t++)
                assert_int_equal((int)at(flat, k + 2 + t), a->batch.rows_by_loop[t]);
            k += 6;
        }
        assert_int_equal(json_array_size(flat), k);
    }
    json_decref(data);
    text_free(&page);
    trace_set_destroy(set);
}

static void test_page_tells_the_way_of_every_token(void **state)
{
    (void)state;
    struct trace_set *set = trace_world_make(3, 4, 6, 11);
    struct text page = make_page(set);
    json_t *data = read_data(&page), *paths = json_object_get(data, "paths");
    for (size_t i = 0; i < json_array_size(paths); i++) {
        json_t *path = json_array_get(paths, i), *steps = json_object_get(path, "steps");
        int n_tokens = 0, loop = 0;
        double end = 0;
        assert_int_equal(json_array_size(steps) % 8, 0);
        for (size_t k = 0; k < json_array_size(steps); k += 8) {
            bool is_token = at(steps, k) == 0;
            assert_true(at(steps, k + 1) >= end); /* one after the other */
            end = at(steps, k + 1) + at(steps, k + 2);
            if (is_token) {
                assert_int_equal((int)at(steps, k + 3), loop); /* arrives from where it got off */
                n_tokens++;
                loop = 0;
                end = 0; /* the next one sets out before this has arrived */
            } else {
                assert_int_equal((int)at(steps, k + 3), ++loop);
            }
        }
        assert_int_equal(n_tokens, 6);
    }
    json_decref(data);
    text_free(&page);
    trace_set_destroy(set);
}

static void test_page_distributions_count_every_live_row(void **state)
{
    (void)state;
    struct trace_set *set = trace_world_make(4, 6, 10, 5);
    struct text page = make_page(set);
    json_t *data = read_data(&page), *loops = json_object_get(data, "distributions");
    uint64_t n_wanted[4] = {0};
    for (uint32_t rank = 1; rank < set->n_ranks; rank++)
        for (size_t i = 0; i < set->ranks[rank].n_records; i++)
            if (set->ranks[rank].records[i].kind == TRACE_ROWS)
                n_wanted[set->ranks[rank].records[i].loop - 1]++;
    assert_int_equal(json_array_size(loops), 4);
    for (size_t t = 0; t < 4; t++)
        for (size_t part = 0; part < 3; part++) {
            json_t *d = json_array_get(json_array_get(loops, t), part);
            double n = json_number_value(json_object_get(d, "below"));
            json_t *counts = json_object_get(d, "counts");
            for (size_t i = 0; i < json_array_size(counts); i++)
                n += at(counts, i);
            assert_int_equal((uint64_t)n, n_wanted[t]);
        }
    /* Batches of the made-up run last 50 to 70 us: buckets 32 and 33 and nothing else. */
    json_t *compute = json_array_get(json_array_get(loops, 0), 2);
    assert_int_equal(json_integer_value(json_object_get(compute, "first")), 32);
    assert_true(json_array_size(json_object_get(compute, "counts")) <= 3);
    json_decref(data);
    text_free(&page);
    trace_set_destroy(set);
}

/* A million records make no larger page than some ten thousand do. */
static void test_page_of_a_long_trace_is_bounded(void **state)
{
    (void)state;
    struct trace_set *set = trace_world_make(4, 40, 700, 9);
    struct text page = make_page(set);
    json_t *data = read_data(&page), *bins = find(data, "timeline", "bins");
    uint64_t n;
    double busy = sum_records(set, TRACE_BATCH, &n), cells = 0;
    assert_true(n > 60000);
    assert_true(page.len_bytes < 4000000);
    double end = json_number_value(find(data, "timeline", "end"));
    double n_bins = json_number_value(find(data, "timeline", "n_bins"));
    assert_int_equal(json_array_size(bins), 4);
    for (size_t lane = 0; lane < 4; lane++) {
        json_t *flat = json_array_get(bins, lane);
        assert_int_equal(json_array_size(flat), (size_t)n_bins * 8);
        for (size_t i = 0; i < json_array_size(flat); i++)
            if (i % 8 < 4)
                cells += at(flat, i) / 1000 * end / n_bins;
    }
    assert_true(fabs(cells / busy - 1) < 0.01);
    json_t *window = find(data, "timeline", "window"), *batches = find(data, "timeline", "batches");
    double kept = sum_lengths(batches, 6) + sum_lengths(find(data, "timeline", "idle"), 3);
    double length = at(window, 1) - at(window, 0);
    assert_true(length > 0 && length < end);
    assert_true(kept > 0.9 * 4 * length && kept < 1.1 * 4 * length); /* all of the window's */
    json_decref(data);
    text_free(&page);
    trace_set_destroy(set);
}

static void test_page_keeps_names_out_of_its_markup(void **state)
{
    (void)state;
    struct trace_set *set = trace_world_make(2, 2, 3, 1);
    static const char evil[] = "</script><script>alert(\"1\")</script>&\xff";
    snprintf(set->model, sizeof set->model, "%s", evil);
    snprintf(set->version, sizeof set->version, "<i>\n");
    snprintf(set->ranks[1].host, sizeof set->ranks[1].host, "%s", evil);
    struct text page = make_page(set);
    json_t *data = read_data(&page);
    assert_null(strstr(page.bytes, "<script>alert"));
    assert_null(strstr(page.bytes, "<i>"));
    assert_non_null(strstr(page.bytes, "&lt;/script&gt;&lt;script&gt;alert(&quot;1&quot;)"));
    assert_memory_equal(json_string_value(json_object_get(data, "model")), evil, 30);
    json_decref(data);
    text_free(&page);
    trace_set_destroy(set);
}

static void test_page_of_nothing(void **state)
{
    (void)state;
    for (uint32_t n_ranks = 1; n_ranks <= 3; n_ranks++) {
        struct trace_set *set;
        struct err err = {0};
        assert_int_equal(trace_set_create(n_ranks, &set, &err), STATUS_OK);
        set->n_loops = 4;
        set->ring_size = n_ranks > 1 ? n_ranks - 1 : 1;
        struct text page = make_page(set);
        json_t *data = read_data(&page);
        assert_int_equal(json_array_size(json_object_get(data, "paths")), 0);
        assert_int_equal(json_array_size(find(data, "timeline", "batches")), n_ranks - 1);
        json_decref(data);
        text_free(&page);
        trace_set_destroy(set);
    }
}

static void test_page_that_cannot_be_written(void **state)
{
    (void)state;
    struct trace_set *set = trace_world_make(1, 1, 2, 1);
    struct trace_report r;
    struct err err = {0};
    assert_int_equal(trace_report_make(set, &r, &err), STATUS_OK);
    assert_int_equal(trace_page_write(&r, set, "/nowhere/at/all.html", &err), STATUS_IO);
    assert_non_null(strstr(err.message, "/nowhere/at/all.html"));
    trace_report_free(&r);
    trace_set_destroy(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_page_has_every_batch_of_a_short_trace),
        cmocka_unit_test(test_page_has_the_batches_where_they_were),
        cmocka_unit_test(test_page_tells_the_way_of_every_token),
        cmocka_unit_test(test_page_distributions_count_every_live_row),
        cmocka_unit_test(test_page_of_a_long_trace_is_bounded),
        cmocka_unit_test(test_page_keeps_names_out_of_its_markup),
        cmocka_unit_test(test_page_of_nothing),
        cmocka_unit_test(test_page_that_cannot_be_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
