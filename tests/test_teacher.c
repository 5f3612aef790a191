/* Known texts through a session: every row once, the same bits for any number of workers, a bounded
 * number under way, and an end in order when something goes wrong. */
#include "tests/unit.h"

#include "cli/teacher.h"

enum { N_TEXTS = 9, MAX_IDS = 60, MAX_ROWS = N_TEXTS * MAX_IDS, T = 4 };

struct cell {
    int n_seen;
    int32_t target;
    float lambdas[T], logprobs[T];
    double hidden; /* a sum that notices order and loss */
    bool hits[T];
};

struct world {
    int32_t ids[MAX_IDS];
    uint32_t d;
    int n_given, n_ended, most_under_way;
    int bad_text, fail_at_row, n_rows;
    struct cell cells[N_TEXTS][MAX_IDS];
};

static uint32_t n_ids_of(int text)
{
    return text == 3 ? 2 : (uint32_t)(MAX_IDS - 5 * text);
}

static uint32_t first_target_of(int text)
{
    return text % 2 ? 1 : n_ids_of(text) - 2;
}

static enum status next(void *user, struct teacher_text *text, bool *has_text, struct err *err)
{
    struct world *w = user;
    (void)err;
    *has_text = w->n_given < N_TEXTS;
    if (!*has_text)
        return STATUS_OK;
    int i = w->n_given++;
    for (int k = 0; k < MAX_IDS; k++)
        w->ids[k] = k == 0 ? 0 : (i * 17 + k * k * 5) % 49;
    if (w->bad_text == i)
        w->ids[1] = 49;
    *text = (struct teacher_text){w->ids, n_ids_of(i), first_target_of(i), &w->cells[i]};
    if (w->n_given - w->n_ended > w->most_under_way)
        w->most_under_way = w->n_given - w->n_ended;
    return STATUS_OK;
}

static enum status on_row(void *user, const struct teacher_row *row, struct err *err)
{
    struct world *w = user;
    if (++w->n_rows == w->fail_at_row)
        return err_set(err, STATUS_IO, "no space left");
    assert_true(row->user == w->cells[row->text]);
    struct cell *cell = &w->cells[row->text][row->index];
    cell->n_seen++;
    cell->target = row->target;
    assert_int_equal(row->n_loops, T);
    memcpy(cell->lambdas, row->lambdas, sizeof cell->lambdas);
    memcpy(cell->logprobs, row->logprobs, sizeof cell->logprobs);
    memcpy(cell->hits, row->hits, sizeof cell->hits);
    for (uint32_t k = 0; row->hidden != NULL && k < T * w->d; k++)
        cell->hidden += (double)row->hidden[k] * (double)(k + 1);
    return STATUS_OK;
}

static enum status on_text(void *user, uint64_t text, void *text_user, struct err *err)
{
    struct world *w = user;
    (void)err;
    assert_true(text_user == w->cells[text]);
    uint32_t n_rows = n_ids_of((int)text) - first_target_of((int)text);
    for (uint32_t i = 0; i < MAX_IDS; i++)
        assert_int_equal(w->cells[text][i].n_seen, i < n_rows);
    w->n_ended++;
    return STATUS_OK;
}

static struct session *open_session(int n_workers)
{
    struct session_options o;
    session_options_init(&o);
    o.model = "model/demo";
    o.n_workers = n_workers;
    o.transport = 1;
    o.n_threads = 1;
    o.prefill_chunk = 7; /* texts come back in pieces */
    struct session *s = NULL;
    int exit_code;
    struct err err = {0};
    if (session_open(&o, NULL, &s, &exit_code, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return s;
}

static enum status run(struct session *s, struct world *w, const struct teacher_options *o,
                       struct err *err)
{
    w->d = (uint32_t)s->checkpoint->config.d_model;
    const struct teacher_listener listener = {next, on_row, on_text, w};
    return teacher_run(s, o, &listener, err);
}

static void run_well(int n_workers, struct world *w, const struct teacher_options *o)
{
    struct session *s = open_session(n_workers);
    struct err err = {0};
    memset(w, 0, sizeof *w);
    w->bad_text = -1;
    if (run(s, w, o, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    session_close(s);
    assert_int_equal(w->n_ended, N_TEXTS);
}

static void test_teacher_gives_the_same_bits_for_any_number_of_workers(void **state)
{
    (void)state;
    static struct world one, three;
    const struct teacher_options hidden = {.wants_hidden = true},
                                 tight = {.wants_hidden = true, .max_texts = 2, .max_rows = 30};
    run_well(1, &one, &hidden);
    run_well(3, &three, &tight);
    assert_memory_equal(one.cells, three.cells, sizeof one.cells);
    assert_int_equal(one.most_under_way, N_TEXTS);
    assert_in_range(three.most_under_way, 1, 3); /* one waits for its turn */
    int n_hits = 0;
    for (int i = 0; i < N_TEXTS; i++)
        for (uint32_t k = 0; k < n_ids_of(i) - first_target_of(i); k++) {
            const struct cell *c = &one.cells[i][k];
            uint32_t at = first_target_of(i) + k;
            assert_int_equal(c->target, (i * 17 + (int)(at * at) * 5) % 49);
            assert_true(c->hidden != 0);
            for (int t = 0; t < T; t++) {
                assert_true(c->logprobs[t] <= 0 && c->lambdas[t] >= 0 && c->lambdas[t] <= 1);
                assert_true(!c->hits[t] || c->logprobs[t] > -4); /* the best of 49 */
                n_hits += c->hits[t];
            }
        }
    assert_true(n_hits > 0);
}

static void test_teacher_hands_out_no_hidden_states_unasked(void **state)
{
    (void)state;
    static struct world w;
    run_well(2, &w, NULL);
    for (int i = 0; i < N_TEXTS; i++)
        assert_true(w.cells[i][0].hidden == 0);
}

static void test_teacher_ends_in_order_when_something_is_wrong(void **state)
{
    (void)state;
    static struct world w;
    struct session *s = open_session(2);
    struct err err = {0};
    w.bad_text = 4;
    assert_int_equal(run(s, &w, NULL, &err), STATUS_INVALID);
    assert_string_equal(err.message, "text 4: token 1 is 49; the vocabulary has ids 0..48");
    memset(&w, 0, sizeof w);
    w.bad_text = -1, w.fail_at_row = 20;
    assert_int_equal(run(s, &w, NULL, &err), STATUS_IO);
    assert_string_equal(err.message, "no space left");
    memset(&w, 0, sizeof w);
    w.bad_text = -1;
    assert_int_equal(run(s, &w, NULL, &err), STATUS_OK); /* the session is as good as new */
    assert_int_equal(w.n_ended, N_TEXTS);
    session_close(s);
}

static struct teacher_text the_text;
static enum status next_the_text(void *user, struct teacher_text *text, bool *has_text,
                                 struct err *err)
{
    (void)user;
    (void)err;
    *text = the_text;
    *has_text = true;
    return STATUS_OK;
}

static void test_teacher_refuses_texts_without_rows_or_too_long(void **state)
{
    (void)state;
    static int32_t ids[4096];
    struct session *s = open_session(1);
    struct err err = {0};
    const struct teacher_listener l = {.next = next_the_text, .on_row = on_row};
    the_text = (struct teacher_text){ids, 3, 3, NULL};
    assert_int_equal(teacher_run(s, NULL, &l, &err), STATUS_INVALID);
    assert_string_equal(err.message, "text 0: 3 tokens, 3 of them given: nothing is left to "
                                     "predict");
    the_text.first_target = 0;
    assert_int_equal(teacher_run(s, NULL, &l, &err), STATUS_INVALID);
    the_text = (struct teacher_text){ids, 4096, 1, NULL};
    assert_int_equal(teacher_run(s, NULL, &l, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "text 0: 4096 tokens; the model has"));
    session_close(s);
}

static void test_teacher_exits_where_the_engine_does(void **state)
{
    (void)state;
    const float lambdas[4] = {0.25f, 0.5f, 0.5f, 0.9f}; /* cdf 0.25, 0.625, 0.8125, 1 */
    assert_int_equal(teacher_exit_loop(lambdas, 4, 0.25f), 1);
    assert_int_equal(teacher_exit_loop(lambdas, 4, 0.26f), 2);
    assert_int_equal(teacher_exit_loop(lambdas, 4, 0.8f), 3);
    assert_int_equal(teacher_exit_loop(lambdas, 4, 0.9f), 4);
    assert_int_equal(teacher_exit_loop(lambdas, 4, 1.0f), 4);
    assert_int_equal(teacher_exit_loop(lambdas, 1, 0.1f), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_teacher_gives_the_same_bits_for_any_number_of_workers),
        cmocka_unit_test(test_teacher_hands_out_no_hidden_states_unasked),
        cmocka_unit_test(test_teacher_ends_in_order_when_something_is_wrong),
        cmocka_unit_test(test_teacher_refuses_texts_without_rows_or_too_long),
        cmocka_unit_test(test_teacher_exits_where_the_engine_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
