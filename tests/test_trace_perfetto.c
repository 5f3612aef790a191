/* What Perfetto needs of a trace's file: slices nest, spans have lanes, arrows lead from slice to
 * slice. */
#include "tests/trace_file.h"
#include "tests/trace_world.h"

#include <jansson.h>

struct slice {
    int pid, tid;
    double from, to;
    size_t order;
};

static int compare_slices(const void *left, const void *right)
{
    const struct slice *a = left, *b = right;
    if (a->pid != b->pid)
        return a->pid - b->pid;
    if (a->tid != b->tid)
        return a->tid - b->tid;
    if (a->from != b->from)
        return a->from < b->from ? -1 : 1;
    return a->order < b->order ? -1 : a->order > b->order;
}

static const char *text_of(const json_t *event, const char *key)
{
    const char *text = json_string_value(json_object_get(event, key));
    return text != NULL ? text : "";
}

static double number_of(const json_t *event, const char *key)
{
    const json_t *value = json_object_get(event, key);
    assert_true(json_is_number(value));
    return json_number_value(value);
}

/* Slices of one thread lie inside each other or apart. *out is sorted. */
static size_t check_threads(const json_t *events, struct slice *out)
{
    size_t n = 0, depth = 0, i;
    const json_t *event;
    struct slice stack[8];
    json_array_foreach(events, i, event)
    {
        if (strcmp(text_of(event, "ph"), "X") != 0)
            continue;
        double from = number_of(event, "ts");
        out[n] = (struct slice){(int)number_of(event, "pid"), (int)number_of(event, "tid"), from,
                                from + number_of(event, "dur"), n};
        n++;
    }
    qsort(out, n, sizeof *out, compare_slices);
    for (i = 0; i < n; i++) {
        while (depth > 0 &&
               (stack[depth - 1].pid != out[i].pid || stack[depth - 1].tid != out[i].tid ||
                stack[depth - 1].to <= out[i].from + 1e-6))
            depth--;
        if (depth > 0 && out[i].to > stack[depth - 1].to + 1e-6)
            fail_msg("pid %d tid %d: a slice at %f crosses the end of another", out[i].pid,
                     out[i].tid, out[i].from);
        assert_true(depth < 8);
        stack[depth++] = out[i];
    }
    return n;
}

static bool is_inside_a_slice(const struct slice *slices, size_t n, int pid, int tid, double at)
{
    for (size_t i = 0; i < n; i++)
        if (slices[i].pid == pid && slices[i].tid == tid && slices[i].from <= at &&
            at < slices[i].to)
            return true;
    return false;
}

/* Spans that share an id nest: sorted by time (stable), every end finds its begin on top. */
struct async {
    char key[64];
    double at;
    bool is_end;
    char name[24];
    size_t order;
};

static int compare_async(const void *left, const void *right)
{
    const struct async *a = left, *b = right;
    int by_key = strcmp(a->key, b->key);
    if (by_key != 0)
        return by_key;
    if (a->at != b->at)
        return a->at < b->at ? -1 : 1;
    return a->order < b->order ? -1 : a->order > b->order;
}

static size_t check_async(const json_t *events)
{
    struct async *all = calloc(json_array_size(events), sizeof *all);
    size_t n = 0, i, depth = 0;
    const json_t *event;
    assert_non_null(all);
    json_array_foreach(events, i, event)
    {
        const char *phase = text_of(event, "ph");
        if (strcmp(phase, "b") != 0 && strcmp(phase, "e") != 0)
            continue;
        struct async *a = &all[n];
        snprintf(a->key, sizeof a->key, "%s %s", text_of(event, "cat"), text_of(event, "id"));
        snprintf(a->name, sizeof a->name, "%s", text_of(event, "name"));
        a->at = number_of(event, "ts");
        a->is_end = phase[0] == 'e';
        a->order = n++;
    }
    qsort(all, n, sizeof *all, compare_async);
    const struct async *stack[4];
    for (i = 0; i < n; i++) {
        if (i > 0 && strcmp(all[i].key, all[i - 1].key) != 0)
            assert_int_equal(depth, 0);
        if (all[i].is_end) {
            assert_true(depth > 0);
            assert_string_equal(stack[--depth]->name, all[i].name);
        } else {
            assert_true(depth < 2); /* a stay and one of its parts */
            stack[depth++] = &all[i];
        }
    }
    assert_int_equal(depth, 0);
    free(all);
    return n;
}

/* Every arrow starts with s, goes on with t, ends with f, in time, each inside of a slice. */
static size_t check_arrows(const json_t *events, const struct slice *slices, size_t n_slices)
{
    char open[32] = "";
    double last = 0;
    size_t i, n_arrows = 0;
    const json_t *event;
    json_array_foreach(events, i, event)
    {
        const char *phase = text_of(event, "ph");
        if (strlen(phase) != 1 || strchr("stf", phase[0]) == NULL)
            continue;
        double at = number_of(event, "ts");
        int pid = (int)number_of(event, "pid"), tid = (int)number_of(event, "tid");
        if (phase[0] == 's') {
            assert_string_equal(open, "");
            snprintf(open, sizeof open, "%s", text_of(event, "id"));
        } else {
            assert_string_equal(open, text_of(event, "id"));
            assert_true(at > last);
        }
        last = at;
        if (phase[0] == 'f') {
            /* Ends at the instant of its token. */
            assert_string_equal(text_of(event, "bp"), "e");
            assert_int_equal(pid, 0);
            open[0] = '\0';
            n_arrows++;
        } else {
            assert_true(is_inside_a_slice(slices, n_slices, pid, tid, at));
        }
    }
    assert_string_equal(open, "");
    return n_arrows;
}

static void test_perfetto_can_nest_it(void **state)
{
    (void)state;
    struct trace_set *set = trace_world_make(3, 6, 10, 11);
    size_t len, n_batches = 0;
    char *text = trace_file_text(set, &len);
    json_t *root = json_loads(text, 0, NULL);
    assert_non_null(root);
    const json_t *events = json_object_get(root, "traceEvents");
    struct slice *slices = calloc(json_array_size(events), sizeof *slices);
    size_t n_slices = check_threads(events, slices);
    for (uint32_t rank = 1; rank < set->n_ranks; rank++)
        for (size_t i = 0; i < set->ranks[rank].n_records; i++)
            n_batches += set->ranks[rank].records[i].kind == TRACE_BATCH;
    assert_true(n_slices > 2 * n_batches);
    /* Per batch one stay, with its compute part, begun and ended. */
    assert_true(check_async(events) >= 4 * n_batches);
    assert_int_equal(check_arrows(events, slices, n_slices), 6 * 10);
    free(slices);
    json_decref(root);
    free(text);
    trace_set_destroy(set);
}

/* Rows of one loop that overlap get lanes of their own, and lanes are used again. */
static void test_stays_that_overlap_have_lanes(void **state)
{
    (void)state;
    struct trace_set *set = trace_file_set(2);
    for (uint64_t i = 0; i < 6; i++)
        trace_file_add(set, 1,
                       (struct trace_record){.kind = TRACE_ROWS,
                                             .loop = 1,
                                             .at_ns = 1000 + 100 * (i / 2),
                                             .lasted_ns = 100,
                                             .sequence = i,
                                             .rows.wait_ns = i % 2 * 50});
    size_t len;
    char *text = trace_file_text(set, &len);
    json_t *root = json_loads(text, 0, NULL);
    assert_int_equal(check_async(json_object_get(root, "traceEvents")), 6 * 4 + 2 * 2);
    assert_non_null(strstr(text, "\"id\":\"1.1.1\""));
    assert_non_null(strstr(text, "\"id\":\"1.1.2\""));
    assert_null(strstr(text, "\"id\":\"1.1.3\""));
    json_decref(root);
    free(text);
    trace_set_destroy(set);
}

/* A buffer that overflowed kept the rows of a batch, and not the batch: no arrow points there. */
static void test_rows_without_their_batch_have_no_arrow(void **state)
{
    (void)state;
    struct trace_set *set = trace_world_make(3, 2, 6, 4);
    struct trace_rank *r = &set->ranks[1];
    size_t len, n = 0, i = 0;
    while (r->records[i].kind != TRACE_BATCH)
        i++;
    for (i++; i < r->n_records; i++)
        r->records[n++] = r->records[i];
    r->n_records = n;
    char *text = trace_file_text(set, &len);
    json_t *root = json_loads(text, 0, NULL);
    const json_t *events = json_object_get(root, "traceEvents");
    struct slice *slices = calloc(json_array_size(events), sizeof *slices);
    size_t n_slices = check_threads(events, slices);
    assert_in_range(check_arrows(events, slices, n_slices), 11, 12);
    free(slices);
    json_decref(root);
    free(text);
    trace_set_destroy(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_perfetto_can_nest_it),
        cmocka_unit_test(test_stays_that_overlap_have_lanes),
        cmocka_unit_test(test_rows_without_their_batch_have_no_arrow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
