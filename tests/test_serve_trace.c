/* serve_trace: a running server's traces go to files of their own, one at a time, each told in the
 * log; what cannot be written stops nothing. */
#include "tests/fake_worker.h"

#include "cli/serve_trace.h"
#include "coordinator/coordinator_state.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

struct world {
    struct cluster *c;
    struct serve_trace *t;
    struct server_log log;
    char dir[64], path[96], log_path[96], said[4096];
};

static void open_world(struct world *w)
{
    struct err err = {0};
    *w = (struct world){.c = cluster_open(2)};
    w->c->fakes[0].n_chunks = w->c->fakes[1].n_chunks = 1;
    assert_int_equal(trace_create(1 << 12, &w->c->config.trace, NULL), STATUS_OK);
    if (cluster_start(w->c, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    strcpy(w->dir, "/tmp/carousel-serve-trace-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    snprintf(w->path, sizeof w->path, "%s/run.json", w->dir);
    snprintf(w->log_path, sizeof w->log_path, "%s/log", w->dir);
    w->log.fd = open(w->log_path, O_RDWR | O_CREAT, 0600);
    assert_true(w->log.fd >= 0);
    assert_int_equal(serve_trace_create(&w->log, w->path, &w->t, NULL), STATUS_OK);
}

static void remove_file(const struct world *w, const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", w->dir, name);
    unlink(path);
}

static void close_world(struct world *w)
{
    struct trace *trace = w->c->config.trace;
    serve_trace_destroy(w->t);
    cluster_close(w->c);
    trace_destroy(trace);
    close(w->log.fd);
    for (const char *const *name = (const char *const[]){"run.json", "run.1.json", "run.2.json",
                                                         "run.3.json", "log", NULL};
         *name != NULL; name++)
        remove_file(w, *name);
    assert_int_equal(rmdir(w->dir), 0); /* nothing else was left there */
}

static bool has_file(const struct world *w, const char *name)
{
    char path[128];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", w->dir, name);
    return stat(path, &st) == 0 && st.st_size > 0;
}

static const char *said(struct world *w)
{
    ssize_t n = pread(w->log.fd, w->said, sizeof w->said - 1, 0);
    w->said[n > 0 ? n : 0] = '\0';
    return w->said;
}

static uint32_t count(struct world *w, const char *word)
{
    uint32_t n = 0;
    for (const char *at = said(w); (at = strstr(at, word)) != NULL; at += strlen(word))
        n++;
    return n;
}

/* As the engine does it, until the log has n lines with the word. */
static void turn_until(struct world *w, const char *word, uint32_t n)
{
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    struct err err = {0};
    while (count(w, word) < n) {
        if (host_now_ns() > deadline_ns)
            fail_msg("no %u lines with '%s' in: %s", n, word, said(w));
        if (coordinator_step(w->c->coordinator, 1000000, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        serve_trace_step(w->t, w->c->coordinator);
    }
}

static void test_serve_trace_numbers_its_files(void **state)
{
    (void)state;
    static const struct {
        const char *path, *expected;
    } cases[] = {
        {"run.json", "run.7.json"},   {"a/b.c/run.json", "a/b.c/run.7.json"},
        {"a/b.c/run", "a/b.c/run.7"}, {"a/run.tar.gz", "a/run.tar.7.gz"},
        {"a/.hidden", "a/.hidden.7"}, {NULL, "carousel-trace-42-7.json"},
    };
    char out[64];
    struct err err = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(serve_trace_path(cases[i].path, 42, 7, out, sizeof out, NULL), STATUS_OK);
        assert_string_equal(out, cases[i].expected);
    }
    assert_int_equal(serve_trace_path("run.json", 42, 7, out, 10, &err), STATUS_INVALID);
    assert_contains(err.message, "trace 7");
}

static void test_serve_trace_writes_while_the_engine_turns(void **state)
{
    (void)state;
    struct world w;
    open_world(&w);
    close(open(w.path, O_WRONLY | O_CREAT, 0600)); /* an earlier run's; only the end replaces it */
    serve_trace_step(w.t, w.c->coordinator);       /* nobody has asked */
    serve_trace_want(w.t);
    turn_until(&w, "trace path=", 1);
    serve_trace_want(w.t);
    turn_until(&w, "trace path=", 2);
    assert_true(has_file(&w, "run.1.json"));
    assert_true(has_file(&w, "run.2.json"));
    assert_false(has_file(&w, "run.json"));
    assert_contains(said(&w), "ranks=3 records=6 overwritten=300");
    assert_int_equal(count(&w, "trace_left_out"), 0);
    assert_int_equal(serve_trace_finish(w.t, w.c->coordinator, NULL), STATUS_OK);
    assert_true(has_file(&w, "run.json"));
    cluster_stop(w.c);
    assert_int_equal(w.c->fakes[1].n_traces, 3);
    close_world(&w);
}

static void test_serve_trace_makes_one_at_a_time(void **state)
{
    (void)state;
    struct world w;
    open_world(&w);
    serve_trace_want(w.t);
    serve_trace_want(w.t);
    assert_int_equal(count(&w, "trace_left_out"), 1);
    serve_trace_step(w.t, w.c->coordinator); /* asked */
    serve_trace_want(w.t);
    assert_int_equal(count(&w, "trace_left_out"), 2);
    turn_until(&w, "trace path=", 1);
    serve_trace_step(w.t, w.c->coordinator);
    assert_false(has_file(&w, "run.2.json"));
    /* The end's own question waits for one that is under way. */
    serve_trace_want(w.t);
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    while (!w.c->coordinator->trace_question.n_missing && host_now_ns() < deadline_ns)
        serve_trace_step(w.t, w.c->coordinator);
    assert_int_equal(serve_trace_finish(w.t, w.c->coordinator, NULL), STATUS_OK);
    serve_trace_destroy(w.t);
    w.t = NULL;
    assert_int_equal(count(&w, "trace path="), 3);
    assert_true(has_file(&w, "run.2.json"));
    close_world(&w);
}

static void test_serve_trace_goes_on_after_a_failure(void **state)
{
    (void)state;
    struct world w;
    open_world(&w);
    char moved[96];
    snprintf(moved, sizeof moved, "%s.away", w.dir);
    assert_int_equal(rename(w.dir, moved), 0); /* the directory is gone */
    serve_trace_want(w.t);
    turn_until(&w, "trace_failed", 1);
    assert_contains(said(&w), "run.1.json");
    struct err err = {0};
    assert_int_equal(serve_trace_finish(w.t, w.c->coordinator, &err), STATUS_IO);
    assert_int_equal(count(&w, "trace_failed"), 2);
    assert_int_equal(rename(moved, w.dir), 0);
    serve_trace_want(w.t);
    turn_until(&w, "trace path=", 1);
    close_world(&w);
}

static void test_serve_trace_keeps_what_is_left_of_a_lost_cluster(void **state)
{
    (void)state;
    struct world w;
    open_world(&w);
    w.c->fakes[1].n_chunks = 0;              /* it leaves when it is asked */
    w.c->coordinator->draining_since_ns = 1; /* something to tell */
    struct err err = {0};
    assert_int_equal(serve_trace_finish(w.t, w.c->coordinator, &err), STATUS_NO_MEMORY);
    assert_contains(err.message, "rank 2 on nodea has left the cluster");
    assert_contains(said(&w), "trace_failed");
    assert_contains(said(&w), "ranks=3 records=1 overwritten=0 missing=2");
    struct trace_set *set;
    assert_int_equal(trace_set_read(w.path, &set, &err), STATUS_OK);
    assert_int_equal(set->ranks[0].n_records, 1);
    assert_false(set->ranks[0].is_missing);
    assert_true(set->ranks[1].is_missing && set->ranks[2].is_missing);
    trace_set_destroy(set);
    close_world(&w);
}

static void test_serve_trace_says_that_nothing_is_recorded(void **state)
{
    (void)state;
    struct world w;
    open_world(&w);
    struct trace *trace = w.c->coordinator->config.trace;
    w.c->coordinator->config.trace = NULL;
    serve_trace_want(w.t);
    serve_trace_step(w.t, w.c->coordinator);
    assert_contains(said(&w), "trace_failed");
    assert_contains(said(&w), "--trace-buffer");
    w.c->coordinator->config.trace = trace;
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_serve_trace_numbers_its_files),
        cmocka_unit_test(test_serve_trace_writes_while_the_engine_turns),
        cmocka_unit_test(test_serve_trace_makes_one_at_a_time),
        cmocka_unit_test(test_serve_trace_goes_on_after_a_failure),
        cmocka_unit_test(test_serve_trace_keeps_what_is_left_of_a_lost_cluster),
        cmocka_unit_test(test_serve_trace_says_that_nothing_is_recorded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
