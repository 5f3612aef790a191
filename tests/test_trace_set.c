/* A trace goes to a file and comes back the same; what is refused. */
#include "tests/trace_file.h"
#include "tests/trace_world.h"

/* ---- files ---------------------------------------------------------------------------------- */

static void assert_same_set(const struct trace_set *a, const struct trace_set *b)
{
    assert_int_equal(a->n_ranks, b->n_ranks);
    assert_int_equal(a->n_loops, b->n_loops);
    assert_int_equal(a->ring_size, b->ring_size);
    assert_int_equal(a->is_simulated, b->is_simulated);
    assert_string_equal(a->model, b->model);
    assert_string_equal(a->version, b->version);
    for (uint32_t rank = 0; rank < a->n_ranks; rank++) {
        const struct trace_rank *x = &a->ranks[rank], *y = &b->ranks[rank];
        assert_string_equal(x->host, y->host);
        assert_int_equal(x->n_lost, y->n_lost);
        assert_int_equal(x->is_missing, y->is_missing);
        assert_int_equal(x->clock_error_ns, y->clock_error_ns);
        assert_int_equal(x->clock_removed_ns, y->clock_removed_ns);
        assert_int_equal(x->is_clock_shared, y->is_clock_shared);
        assert_int_equal(x->n_records, y->n_records);
        for (size_t i = 0; i < x->n_records; i++)
            if (memcmp(&x->records[i], &y->records[i], sizeof x->records[i]) != 0)
                fail_msg("rank %u, record %zu of kind %d differs", rank, i, x->records[i].kind);
    }
}

static void assert_comes_back(const struct trace_set *set)
{
    size_t len;
    char *text = trace_file_text(set, &len);
    struct trace_set *back;
    struct err err = {0};
    if (trace_set_parse(text, len, "trace", &back, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_same_set(set, back);
    trace_set_destroy(back);
    free(text);
}

/* ---- there and back ------------------------------------------------------------------------- */

static void test_a_run_comes_back(void **state)
{
    (void)state;
    struct trace_set *set = trace_world_make(5, 9, 12, 3);
    assert_comes_back(set);
    trace_set_destroy(set);
}

static void test_an_empty_set_comes_back(void **state)
{
    (void)state;
    struct trace_set *set = trace_file_set(3);
    assert_comes_back(set);
    trace_set_destroy(set);
}

/* The ends of all ranges, of every kind. */
static void test_extremes_come_back(void **state)
{
    (void)state;
    struct trace_set *set = trace_file_set(3);
    set->n_loops = 8;
    set->ring_size = 65535;
    set->is_simulated = true;
    memset(set->model, 'm', sizeof set->model - 1);
    snprintf(set->model, 12, "\"\\\n\xC3\xA9"); /* what JSON escapes */
    memset(set->ranks[2].host, 'h', sizeof set->ranks[2].host - 1);
    set->ranks[1].n_lost = 1u << 30;
    set->ranks[1].clock_error_ns = 123456789;
    set->ranks[2].clock_removed_ns = INT64_MIN;
    set->ranks[1].is_clock_shared = true;
    set->ranks[2].is_missing = true;
    uint64_t t = UINT64_C(1) << 62; /* a clock of 146 years */
    struct trace_record batch = {
        .kind = TRACE_BATCH, .at_ns = t + 1, .lasted_ns = 999999999999, .n_rows = UINT32_MAX};
    batch.batch.head_ns = UINT32_MAX;
    batch.batch.n_heads = batch.batch.n_segments = 65535;
    for (int i = 0; i < 8; i++)
        batch.batch.rows_by_loop[i] = 65535;
    trace_file_add(set, 1, batch);
    trace_file_add(set, 1,
                   (struct trace_record){.kind = TRACE_BATCH, .at_ns = t + 1, .lasted_ns = 0});
    trace_file_add(set, 1,
                   (struct trace_record){.kind = TRACE_ROWS,
                                         .loop = 8,
                                         .flags = 3,
                                         .at_ns = t + 1,
                                         .lasted_ns = 999999999999,
                                         .sequence = UINT64_MAX,
                                         .position = UINT32_MAX,
                                         .n_rows = UINT32_MAX,
                                         .peer = 65535,
                                         .rows = {INT64_MAX, INT64_MAX, UINT32_MAX, UINT32_MAX}});
    trace_file_add(set, 1, (struct trace_record){.kind = TRACE_ROWS, .loop = 1, .at_ns = t + 2});
    trace_file_add(set, 1,
                   (struct trace_record){
                       .kind = TRACE_POOL,
                       .at_ns = t + 3,
                       .pool = {UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX}});
    for (uint16_t i = 0; i < TRACE_IDLE_REASONS; i++)
        trace_file_add(
            set, 2,
            (struct trace_record){.kind = TRACE_IDLE, .flags = i, .at_ns = t + i, .lasted_ns = 1});
    /* Up to 52 days after the first one times are exact to the nanosecond. */
    uint64_t late = t + (UINT64_C(1) << 52) - 1;
    trace_file_add(set, 2,
                   (struct trace_record){.kind = TRACE_RECEIVE,
                                         .at_ns = late,
                                         .lasted_ns = 1,
                                         .peer = 65535,
                                         .message = {INT64_MAX, UINT32_MAX}});
    trace_file_add(set, 2, (struct trace_record){.kind = TRACE_SEND, .at_ns = late + 1, .peer = 2});
    for (uint8_t kind = TRACE_QUEUE; kind <= TRACE_SEQUENCE; kind++) {
        struct trace_record r = {.kind = kind,
                                 .at_ns = t + kind,
                                 .lasted_ns = 5,
                                 .sequence = UINT64_MAX,
                                 .request.request = UINT64_MAX};
        r.n_rows = kind == TRACE_ADMISSION ? 0 : UINT32_MAX;
        r.peer = kind == TRACE_ADMISSION ? 65535 : 0;
        r.flags = kind == TRACE_SEQUENCE ? 4 : 0;
        trace_file_add(set, 0, r);
    }
    trace_file_add(set, 0,
                   (struct trace_record){.kind = TRACE_TOKEN,
                                         .at_ns = t + 50,
                                         .loop = 8,
                                         .sequence = UINT64_MAX,
                                         .position = UINT32_MAX,
                                         .peer = 65535,
                                         .token = {INT32_MIN, 0.333333343f}});
    trace_file_add(set, 0,
                   (struct trace_record){.kind = TRACE_LOAD,
                                         .at_ns = t + 51,
                                         .load = {UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX,
                                                  UINT32_MAX, UINT32_MAX}});
    trace_file_add(
        set, 0,
        (struct trace_record){.kind = TRACE_BLOCKED, .at_ns = t + 900, .lasted_ns = 1, .flags = 1});
    trace_file_add(set, 0,
                   (struct trace_record){.kind = TRACE_BLOCKED, .at_ns = t + 901, .lasted_ns = 1});
    trace_file_add(set, 0,
                   (struct trace_record){.kind = TRACE_DRAINING, .at_ns = t + 902, .lasted_ns = 1});
    assert_comes_back(set);
    trace_set_destroy(set);
}

/* ---- what is refused ------------------------------------------------------------------------ */

static void refused(const char *text, size_t len, const char *what)
{
    struct trace_set *set = NULL;
    struct err err = {0};
    enum status status = trace_set_parse(text, len, "run.json", &set, &err);
    if (status != STATUS_CORRUPT || strstr(err.message, what) == NULL ||
        strstr(err.message, "run.json") == NULL)
        fail_msg("wanted \"%s\", got %s: %s", what, status_name(status), err.message);
    assert_null(set);
}

#define BEGIN "{\"traceEvents\":[\n"
#define END                                                                                        \
    "],\"otherData\":{\"program\":\"carousel\",\"version\":\"1\",\"model\":\"m\",\"loops\":4,"     \
    "\"ring_size\":1,\"begin_ns\":5,\"ranks\":[{\"host\":\"h\",\"records\":0,\"lost\":0,"          \
    "\"clock_error_ns\":0}]}}\n"
#define IDLE "{\"ph\":\"X\",\"pid\":0,\"ts\":1,\"dur\":2,\"cat\":\"idle\",\"name\":"

static void test_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *text, *what;
    } cases[] = {
        {"", "is empty"},
        {"hello\n", "no trace that carousel has written"},
        {"{\"traceEvents\":[{\"ph\":\"X\"}]}", "no trace that carousel has written"},
        {"[\n", "no trace that carousel has written"},
        {BEGIN, "was cut"},
        {BEGIN "{\"ph\":\"X\",\"pi", "was cut"},
        {BEGIN IDLE "\"starved\"},\n{\"ph\":\"M\"}\n", "was cut"},
        {BEGIN "],\"otherData\":{\"program\":\"car", "line 2: the list of events ends here"},
        {BEGIN "nonsense\n" END, "line 2: an event that is no JSON"},
        {BEGIN "{\"ph\":\"X\"}\n" END, "line 2: \"cat\" must be a string; found nothing"},
        {BEGIN "{\"ph\":7}\n" END, "line 2: \"ph\" must be a string; found 7"},
        {BEGIN "17\n" END, "line 2: an event that is no JSON"},
        {BEGIN "[17]\n" END, "line 2: \"ph\""},
        {BEGIN "{\"ph\":\"X\",\"cat\":\"gpu\",\"name\":\"k\"}\n" END, "another program"},
        {BEGIN IDLE "\"bored\"}\n" END, "line 2: \"name\" must be a reason; found \"bored\""},
        {BEGIN IDLE "\"peer\"}\n" IDLE "\"peer\"}\n" END, "line 3: the line before has no comma"},
        {BEGIN IDLE "\"peer\"}\n" END, "tells of 0 records of rank 0; the file has 1"},
        {BEGIN
         "{\"ph\":\"X\",\"pid\":70000,\"ts\":1,\"dur\":2,\"cat\":\"idle\",\"name\":\"kv\"}\n" END,
         "\"pid\" must be a whole number from 0 to 65535; found 70000"},
        {BEGIN
         "{\"ph\":\"X\",\"pid\":0,\"ts\":-1,\"dur\":2,\"cat\":\"idle\",\"name\":\"kv\"}\n" END,
         "\"ts\" must be a time"},
        {BEGIN
         "{\"ph\":\"X\",\"pid\":0,\"ts\":1e300,\"dur\":2,\"cat\":\"idle\",\"name\":\"kv\"}\n" END,
         "\"ts\" must be a time"},
        {BEGIN
         "{\"ph\":\"X\",\"pid\":0,\"ts\":1,\"dur\":2,\"cat\":\"batch\",\"name\":\"batch\"}\n" END,
         "\"rows\" must be a whole number"},
        {BEGIN "{\"ph\":\"b\",\"pid\":0,\"ts\":1,\"cat\":\"frame\",\"args\":{\"seq\":1,\"loop\":0,"
               "\"pos\":1,\"rows\":1,\"at_ns\":1,\"ns\":1}}\n" END,
         "no loop"},
        {BEGIN "{\"ph\":\"b\",\"pid\":0,\"ts\":1,\"cat\":\"frame\",\"args\":{\"seq\":1,\"loop\":9}}"
               "\n" END,
         "from 0 to 8; found 9"},
        {BEGIN "],\"displayTimeUnit\":\"ms\"}\n", "another program: it has no otherData"},
        {BEGIN "],\"otherData\":{\"program\":\"chrome\"}}\n", "another program"},
        {BEGIN END "{}\n", "line 3: there is more after the end"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refused(cases[i].text, strlen(cases[i].text), cases[i].what);
}

static void test_a_cut_file_is_told_at_every_length(void **state)
{
    (void)state;
    struct trace_set *set = trace_world_make(1, 1, 1, 1);
    size_t len;
    char *text = trace_file_text(set, &len);
    /* All but the final newline is needed. */
    for (size_t n = 0; n + 1 < len; n += n < 300 || n + 900 > len ? 1 : 41) {
        struct trace_set *back;
        struct err err;
        assert_int_equal(trace_set_parse(text, n, "cut", &back, &err), STATUS_CORRUPT);
    }
    refused(text, len - 2, "line");
    free(text);
    trace_set_destroy(set);
}

static void test_files_that_are_not_there(void **state)
{
    (void)state;
    struct trace_set *set = trace_file_set(1), *back;
    struct err err;
    assert_int_equal(trace_set_read("/nowhere/trace.json", &back, &err), STATUS_NOT_FOUND);
    assert_non_null(strstr(err.message, "/nowhere/trace.json"));
    assert_int_equal(trace_set_read("/", &back, &err), STATUS_IO);
    assert_int_equal(trace_set_write(set, "/nowhere/trace.json", &err), STATUS_IO);
    assert_non_null(strstr(err.message, "/nowhere/trace.json"));
    trace_set_destroy(set);
}

/* Lines longer than what is read at once, and a file without end that is no trace. */
static void test_reads_in_pieces(void **state)
{
    (void)state;
    char path[] = "/tmp/carousel_trace_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct err err = {0};
    struct trace_set *set = trace_world_make(4, 20, 60, 2), *back;
    assert_int_equal(trace_set_write(set, path, &err), STATUS_OK);
    if (trace_set_read(path, &back, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_same_set(set, back);
    trace_set_destroy(back);
    trace_set_destroy(set);
    set = trace_file_set(30000); /* the last line lists them all */
    for (uint32_t i = 0; i < set->n_ranks; i++)
        memset(set->ranks[i].host, 'n', sizeof set->ranks[i].host - 1);
    assert_int_equal(trace_set_write(set, path, &err), STATUS_OK);
    if (trace_set_read(path, &back, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_same_set(set, back);
    trace_set_destroy(back);
    trace_set_destroy(set);
    unlink(path);
    assert_int_equal(trace_set_read("/dev/zero", &back, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.message, "longer than any"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_run_comes_back),
        cmocka_unit_test(test_an_empty_set_comes_back),
        cmocka_unit_test(test_extremes_come_back),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_a_cut_file_is_told_at_every_length),
        cmocka_unit_test(test_files_that_are_not_there),
        cmocka_unit_test(test_reads_in_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
