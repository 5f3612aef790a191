/* The lens: exits by the engine's rule, a table that fits its screen, JSON that gives floats back.
 */
#include "tests/unit.h"

#include "cli/lens.h"

#include <jansson.h>
#include <utf8proc.h>

enum { MAX_LOOPS = 8, N_POSITIONS = 3 };

/* lambda of loop t at position p; the best token is 7 up to loop 2, then 9. */
struct world {
    struct lens lens;
    struct lens_cell cells[N_POSITIONS * MAX_LOOPS];
    int32_t ids[N_POSITIONS], early[2], late[2];
    float logits[2];
    uint32_t exit_loops[N_POSITIONS];
};

static void make_world(struct world *w, uint32_t n_loops, float q)
{
    static const float lambdas[N_POSITIONS] = {0.6f, 0.3f, 0.0f};
    *w = (struct world){
        .ids = {1, 2, 30000}, .early = {7, 9}, .late = {9, 7}, .logits = {1.0f / 3.0f, -2.5f}};
    w->lens = (struct lens){.model_name = "m",
                            .ids = w->ids,
                            .n_positions = N_POSITIONS,
                            .n_loops = n_loops,
                            .exit_threshold = q,
                            .cells = w->cells,
                            .exit_loops = w->exit_loops};
    for (uint32_t p = 0; p < N_POSITIONS; p++)
        for (uint32_t t = 0; t < n_loops; t++)
            w->cells[p * n_loops + t] = (struct lens_cell){.is_seen = true,
                                                           .lambda = lambdas[p],
                                                           .n_top = 2,
                                                           .top_ids = t < 2 ? w->early : w->late,
                                                           .top_logits = w->logits};
    lens_decide_exits(&w->lens);
}

static void test_lens_exits_where_the_cdf_reaches_the_threshold(void **state)
{
    (void)state;
    struct world w;
    make_world(&w, 4, 0.5f);
    assert_int_equal(w.exit_loops[0], 1); /* 0.6 */
    assert_int_equal(w.exit_loops[1], 2); /* 0.3, 0.51 */
    assert_int_equal(w.exit_loops[2], 4); /* never: the last loop takes what is left */
    assert_float_equal(lens_cell_at(&w.lens, 1, 1)->cdf, 0.3, 1e-7);
    assert_float_equal(lens_cell_at(&w.lens, 1, 2)->cdf, 0.51, 1e-7);
    /* The cdf goes on behind the exit. */
    assert_float_equal(lens_cell_at(&w.lens, 1, 3)->cdf, 0.657, 1e-6);
    assert_float_equal(lens_cell_at(&w.lens, 1, 4)->cdf, 1.0, 1e-6);
    assert_float_equal(lens_cell_at(&w.lens, 2, 3)->cdf, 0.0, 0);
    make_world(&w, 4, 1.0f);
    assert_int_equal(w.exit_loops[0], 4);
}

enum { TEXT_BYTES = 1 << 14 };

static void print_table(const struct world *w, uint32_t first, const struct terminal *t,
                        char text[TEXT_BYTES])
{
    FILE *out = fmemopen(text, TEXT_BYTES, "w");
    assert_non_null(out);
    lens_print_table(&w->lens, first, t, out);
    fclose(out);
}

static void test_lens_table_marks_exits_and_changes(void **state)
{
    (void)state;
    struct world w;
    make_world(&w, 4, 0.5f);
    struct terminal t = {.columns = 80};
    char text[TEXT_BYTES];
    print_table(&w, 1, &t, text);
    const char *row = strstr(text, "\n   1 ");
    assert_non_null(row);
    static const char expected[] = "   1 #2      "
                                   "  #7        30%   #7        51%*"
                                   " ~#9        66%   #9       100% \n";
    assert_memory_equal(row + 1, expected, strlen(expected));
    assert_null(strstr(text, "\n   0 "));
    assert_non_null(strstr(text, "the last 2 positions; --all shows all\n"));
    assert_null(strchr(text, '\033'));
    t.has_colour = true;
    print_table(&w, 0, &t, text);
    assert_non_null(strchr(text, '\033'));
    assert_null(strstr(text, "the last"));
}

/* The widest line; escape sequences take no columns. */
static int widest(const char *text)
{
    int columns = 0, most = 0;
    for (size_t i = 0; text[i] != '\0';) {
        if (text[i] == '\033') {
            i += strcspn(text + i, "m") + 1;
            continue;
        }
        if (text[i] == '\n') {
            columns = 0;
            i++;
            continue;
        }
        utf8proc_int32_t c;
        utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)text + i, -1, &c);
        assert_true(step > 0);
        columns += utf8proc_charwidth(c);
        most = columns > most ? columns : most;
        i += (size_t)step;
    }
    return most;
}

static void test_lens_table_fits_the_screen(void **state)
{
    (void)state;
    struct world w;
    for (uint32_t n_loops = 1; n_loops <= MAX_LOOPS; n_loops++)
        for (int columns = 80; columns <= 100; columns++)
            for (int style = 0; style < 4; style++) {
                struct terminal t = {
                    .has_colour = style & 1, .has_utf8 = style & 2, .columns = columns};
                make_world(&w, n_loops, 0.5f);
                w.lens.is_threshold_assumed = true;
                char text[TEXT_BYTES];
                print_table(&w, 0, &t, text);
                if (widest(text) > columns)
                    fail_msg("%u loops in %d columns, style %d:\n%s", n_loops, columns, style,
                             text);
            }
}

static void test_lens_json_gives_every_float_back(void **state)
{
    (void)state;
    struct world w;
    make_world(&w, 3, 0.3f);
    char text[TEXT_BYTES];
    FILE *out = fmemopen(text, sizeof text, "w");
    assert_non_null(out);
    lens_print_json(&w.lens, out);
    fclose(out);
    json_t *root = json_loads(text, 0, NULL);
    assert_non_null(root);
    assert_true((float)json_real_value(json_object_get(root, "exit_threshold")) == 0.3f);
    assert_int_equal(json_array_size(json_object_get(root, "prompt_ids")), N_POSITIONS);
    assert_true(json_is_null(json_array_get(json_object_get(root, "tokens"), 0)));
    for (uint32_t p = 0; p < N_POSITIONS; p++) {
        json_t *position = json_array_get(json_object_get(root, "positions"), p);
        assert_int_equal(json_integer_value(json_object_get(position, "id")), w.ids[p]);
        assert_int_equal(json_integer_value(json_object_get(position, "exit_loop")),
                         w.exit_loops[p]);
        for (uint32_t t = 1; t <= 3; t++) {
            json_t *loop = json_array_get(json_object_get(position, "loops"), t - 1);
            const struct lens_cell *cell = lens_cell_at(&w.lens, p, t);
            assert_int_equal(json_integer_value(json_object_get(loop, "loop")), t);
            assert_true((float)json_real_value(json_object_get(loop, "lambda")) == cell->lambda);
            assert_true((float)json_real_value(json_object_get(loop, "cdf")) == cell->cdf);
            json_t *best = json_array_get(json_object_get(loop, "top"), 0);
            assert_int_equal(json_integer_value(json_object_get(best, "id")), cell->top_ids[0]);
            assert_true((float)json_real_value(json_object_get(best, "logit")) == 1.0f / 3.0f);
        }
    }
    json_decref(root);
}

static void test_lens_shows_an_id_without_token_by_number(void **state)
{
    (void)state;
    char out[64];
    lens_show_token(NULL, 30000, 8, true, out, sizeof out);
    assert_string_equal(out, "#30000  ");
    lens_show_token(NULL, 30000, 4, true, out, sizeof out);
    assert_string_equal(out, "#300");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lens_exits_where_the_cdf_reaches_the_threshold),
        cmocka_unit_test(test_lens_table_marks_exits_and_changes),
        cmocka_unit_test(test_lens_table_fits_the_screen),
        cmocka_unit_test(test_lens_json_gives_every_float_back),
        cmocka_unit_test(test_lens_shows_an_id_without_token_by_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
