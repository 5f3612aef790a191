/* curriculum: from the counts of every step to what is open next, told as stories in virtual steps.
 *
 * A learner says how often it is right at a level and loop; the trace has a line for every event:
 * run step, events, then loops, steps of the tracks, stage and attempt as they are from then on. */
#include "tests/model_files.h"

#include "train/curriculum.h"

#include <math.h>

enum { N = 100 }; /* targets of every level in a step */

struct story {
    struct recipe recipe;
    struct curriculum_state state;
    char trace[4096];
};

/* Share of right answers; level and loop from 0. Levels of the recipe: hop 1..3, then dep 0..3. */
typedef float learner(const struct curriculum_state *s, int level, int loop);

static float able(const struct curriculum_state *s, int level, int loop)
{
    (void)s;
    int needs = level < 3 ? level : level - 3 < 2 ? level - 3 : 2; /* loop p solves hop p + 1 */
    return loop >= needs ? 1 : 0.25f;
}

/* Forgets hop 1 at loop 1 for a while after two loops are open. */
static float forgetful(const struct curriculum_state *s, int level, int loop)
{
    bool is_away = s->step >= 4 && s->step < 17;
    return is_away && level == 0 && loop == 0 ? 0.3f : able(s, level, loop);
}

/* Learns sums in its second life only. */
static float reborn(const struct curriculum_state *s, int level, int loop)
{
    return s->attempt == 0 && level >= 3 ? 0.5f : able(s, level, loop);
}

static float hopeless(const struct curriculum_state *s, int level, int loop)
{
    return level >= 3 ? 0.5f : able(s, level, loop);
}

static void count(const struct story *s, learner *learns, struct metrics *m)
{
    memset(m, 0, sizeof *m);
    for (int level = 0; level < recipe_n_levels(&s->recipe); level++) {
        m->n[level] = N;
        for (int t = 0; t < s->state.loops; t++)
            m->correct[level][t] = floorf(N * learns(&s->state, level, t));
    }
}

static void tell(struct story *s, unsigned events)
{
    static const char *const words[] = {"advanced", "stage", "restart", "finished"};
    const struct curriculum_state *c = &s->state;
    size_t used = strlen(s->trace), room = sizeof s->trace - used;
    used += (size_t)snprintf(s->trace + used, room, "%llu", (unsigned long long)c->step);
    for (int i = 0; i < 4; i++)
        if (events & (1u << i))
            used += (size_t)snprintf(s->trace + used, sizeof s->trace - used, " %s", words[i]);
    snprintf(s->trace + used, sizeof s->trace - used, ": loops %d, tracks %d %d, stage %d%s\n",
             c->loops, c->track_steps[0], c->track_steps[1], c->stage,
             c->attempt > 0 ? " again" : "");
}

/* Steps until `until` of the run or the end. */
static void run(struct story *s, learner *learns, uint64_t until)
{
    while (s->state.step < until && !s->state.is_finished) {
        struct metrics m;
        count(s, learns, &m);
        unsigned events = curriculum_step(&s->recipe, &s->state, &m);
        if (events != CURRICULUM_NONE)
            tell(s, events);
    }
}

static struct story *begin(const char *path, const char *from, const char *to)
{
    struct story *s = calloc(1, sizeof *s);
    struct err err = {0};
    char json[8192] = "";
    assert_non_null(s);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_true(fread(json, 1, sizeof json - 1, f) > 0);
    fclose(f);
    char *text = model_files_replace(json, from, to);
    if (recipe_parse(text, strlen(text), path, &s->recipe, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    free(text);
    curriculum_init(&s->recipe, &s->state);
    return s;
}

static const char SMALL[] = "tests/data/recipe_small.json";
static const char LADDER[] = "tests/data/recipe_ladder.json";
static const char TEXT[] = "tests/data/recipe_text.json";

static int knob(const struct story *s, int data, const char *name)
{
    return s->state.knobs[data][task_knob_find(s->recipe.data[data].task, name)];
}

static void test_curriculum_opens_loops_and_knobs_as_levels_pass(void **state)
{
    (void)state;
    struct story *s = begin(SMALL, "\"small\"", "\"small\"");
    assert_int_equal(s->state.loops, 1);
    assert_int_equal(knob(s, 0, "max_hops"), 1);
    assert_int_equal(knob(s, 0, "letters"), 6);
    assert_int_equal(knob(s, 1, "max_depth"), 0);
    assert_int_equal(knob(s, 1, "max_definitions"), 4); /* the source's own */
    /* At rate 0.01 a hundred right answers lift 0 to 0.63, two hundred to 0.87: two steps a level.
     * A loop that opens begins at 0, so chain waits two steps more. */
    run(s, able, 6);
    assert_string_equal(s->trace, "2 advanced: loops 1, tracks 1 0, stage 0\n"
                                  "4 advanced: loops 2, tracks 2 0, stage 0\n"
                                  "6 advanced: loops 3, tracks 3 1, stage 0\n");
    assert_int_equal(knob(s, 0, "max_hops"), 3);
    assert_int_equal(knob(s, 0, "letters"), 8);
    assert_int_equal(knob(s, 1, "operators"), 1);
    assert_int_equal(knob(s, 1, "max_depth"), 1);
    assert_false(curriculum_is_open(&s->recipe, &s->state));
    s->trace[0] = '\0';
    run(s, able, 1000);
    /* Open at 8, but the stage has 10 steps at least; the second takes its 20. */
    assert_string_equal(s->trace, "10 stage: loops 3, tracks 3 1, stage 1\n"
                                  "30 finished: loops 3, tracks 3 1, stage 1\n");
    struct metrics m = {0};
    const struct curriculum_state before = s->state;
    assert_int_equal(curriculum_step(&s->recipe, &s->state, &m), CURRICULUM_FINISHED);
    assert_memory_equal(&s->state, &before, sizeof before);
    free(s);
}

static void test_curriculum_waits_until_the_staircase_holds(void **state)
{
    (void)state;
    struct story *s = begin(SMALL, "\"small\"", "\"small\"");
    run(s, forgetful, 17);
    /* hop 2 passed at step 6, but hop 1 at loop 1 has sunk below hold by then. */
    assert_string_equal(s->trace, "2 advanced: loops 1, tracks 1 0, stage 0\n"
                                  "4 advanced: loops 2, tracks 2 0, stage 0\n"
                                  "6 advanced: loops 2, tracks 2 1, stage 0\n");
    assert_true(s->state.accuracy[1][1] > 0.99f && s->state.accuracy[0][0] < 0.31f);
    assert_false(curriculum_staircase_holds(&s->recipe, &s->state));
    s->trace[0] = '\0';
    run(s, forgetful, 19);
    assert_string_equal(s->trace, "18 advanced: loops 3, tracks 3 1, stage 0\n");
    free(s);
}

static void test_curriculum_starts_anew_when_a_step_is_late(void **state)
{
    (void)state;
    struct story *s = begin(SMALL, "\"small\"", "\"small\"");
    run(s, reborn, 30);
    assert_string_equal(s->trace, "2 advanced: loops 1, tracks 1 0, stage 0\n"
                                  "30 restart: loops 1, tracks 0 0, stage 0 again\n");
    assert_int_equal(s->state.attempt_step, 0);
    assert_int_equal(s->state.stage_step, 0);
    assert_int_equal(knob(s, 0, "letters"), 6);
    assert_true(s->state.accuracy[0][0] == 0);
    s->trace[0] = '\0';
    run(s, reborn, 1000);
    assert_string_equal(s->trace, "32 advanced: loops 1, tracks 1 0, stage 0 again\n"
                                  "34 advanced: loops 2, tracks 2 0, stage 0 again\n"
                                  "36 advanced: loops 3, tracks 3 1, stage 0 again\n"
                                  "40 stage: loops 3, tracks 3 1, stage 1 again\n"
                                  "60 finished: loops 3, tracks 3 1, stage 1 again\n");
    free(s);

    /* One restart only: the second time it goes on as it is, and the stage ends by its steps. */
    s = begin(SMALL, "\"small\"", "\"small\"");
    run(s, hopeless, 1000);
    assert_string_equal(s->trace, "2 advanced: loops 1, tracks 1 0, stage 0\n"
                                  "30 restart: loops 1, tracks 0 0, stage 0 again\n"
                                  "32 advanced: loops 1, tracks 1 0, stage 0 again\n"
                                  "70 stage: loops 1, tracks 1 0, stage 1 again\n"
                                  "90 finished: loops 1, tracks 1 0, stage 1 again\n");
    assert_int_equal(recipe_total_steps(&s->recipe), 90);
    free(s);
}

static void test_curriculum_starts_anew_when_it_is_not_open_in_time(void **state)
{
    (void)state;
    struct story *s = begin(SMALL, "\"restarts\": 1", "\"restarts\": 1, \"open_by\": 7");
    run(s, able, 8); /* open at step 8 */
    assert_non_null(strstr(s->trace, "\n7 restart: loops 1, tracks 0 0, stage 0 again\n"));
    assert_int_equal(s->state.attempt_step, 1);
    free(s);
    /* In time; what slips after the stage that waited has ended starts nothing anew. */
    s = begin(SMALL, "\"restarts\": 1", "\"restarts\": 1, \"open_by\": 12");
    run(s, able, 10);
    assert_int_equal(s->state.stage, 1);
    run(s, hopeless, 1000);
    assert_int_equal(s->state.attempt, 0);
    assert_int_equal(s->state.step, 30);
    free(s);
}

/* Levels of the ladder: hop 1, hop 2, dep 0, dep 1; loop p solves the p-th of each. */
static float climber(const struct curriculum_state *s, int level, int loop)
{
    (void)s;
    return loop >= level % 2 ? 1 : 0.25f;
}

/* Sums of two steps never work. */
static float stuck(const struct curriculum_state *s, int level, int loop)
{
    return level == 3 ? 0.5f : climber(s, level, loop);
}

static float late(const struct curriculum_state *s, int level, int loop)
{
    return level == 2 ? 0.5f : climber(s, level, loop);
}

static void test_curriculum_climbs_a_ladder_with_all_tasks(void **state)
{
    (void)state;
    struct story *s = begin(LADDER, "\"ladder\"", "\"ladder\"");
    assert_int_equal(s->state.loops, 1);
    assert_int_equal(knob(s, 0, "letters"), 10);
    assert_int_equal(knob(s, 1, "operators"), 1);
    run(s, climber, 6);
    /* The second rung is passed as it begins, but has 4 steps at least. */
    assert_string_equal(s->trace, "2 advanced: loops 1, tracks 1 1, stage 0\n"
                                  "6 advanced: loops 2, tracks 2 2, stage 0\n");
    assert_int_equal(knob(s, 0, "letters"), 26);
    assert_int_equal(knob(s, 0, "max_hops"), 2);
    assert_int_equal(knob(s, 1, "max_depth"), 1);
    assert_int_equal(knob(s, 1, "operators"), 1);
    s->trace[0] = '\0';
    run(s, climber, 1000);
    assert_string_equal(s->trace, "8 advanced: loops 2, tracks 3 3, stage 0\n"
                                  "12 stage: loops 2, tracks 3 3, stage 1\n"
                                  "22 finished: loops 2, tracks 3 3, stage 1\n");
    assert_int_equal(knob(s, 1, "operators"), 3);
    free(s);
}

static void test_curriculum_leaves_a_rung_together_or_not_at_all(void **state)
{
    (void)state;
    struct story *s = begin(LADDER, "\"ladder\"", "\"ladder\"");
    run(s, stuck, 40);
    /* hop alone does not climb on; 30 steps within the third rung are its limit. */
    assert_string_equal(s->trace, "2 advanced: loops 1, tracks 1 1, stage 0\n"
                                  "6 advanced: loops 2, tracks 2 2, stage 0\n"
                                  "36 restart: loops 1, tracks 0 0, stage 0 again\n"
                                  "38 advanced: loops 1, tracks 1 1, stage 0 again\n");
    free(s);
    s = begin(LADDER, "\"ladder\"", "\"ladder\"");
    run(s, late, 20);
    assert_string_equal(s->trace, "20 restart: loops 1, tracks 0 0, stage 0 again\n");
    free(s);
    s = begin(LADDER, "\"until\": \"open\"", "\"until\": \"one loop\"");
    run(s, climber, 8);
    assert_non_null(strstr(s->trace, "6 advanced stage: loops 2, tracks 2 2, stage 1\n"));
    free(s);
}

static void test_curriculum_ends_a_stage_with_a_step_of_a_track(void **state)
{
    (void)state;
    struct story *s =
        begin(SMALL, "\"until\": \"open\", \"min_steps\": 10", "\"until\": \"second sums\"");
    run(s, able, 30);
    assert_string_equal(s->trace, "2 advanced: loops 1, tracks 1 0, stage 0\n"
                                  "4 advanced: loops 2, tracks 2 0, stage 0\n"
                                  "6 advanced: loops 3, tracks 3 1, stage 0\n"
                                  "8 stage: loops 3, tracks 3 1, stage 1\n"
                                  "28 finished: loops 3, tracks 3 1, stage 1\n");
    free(s);
}

/* What a saved run depends on: the state is all there is. */
static void test_curriculum_goes_on_from_a_copy(void **state)
{
    (void)state;
    struct story *whole = begin(SMALL, "\"small\"", "\"small\"");
    run(whole, reborn, 1000);
    for (uint64_t cut = 1; cut < 60; cut += 7) {
        struct story *first = begin(SMALL, "\"small\"", "\"small\"");
        struct story *second = begin(SMALL, "\"small\"", "\"small\"");
        run(first, reborn, cut);
        second->state = first->state;
        strcpy(second->trace, first->trace);
        run(second, reborn, 1000);
        assert_string_equal(second->trace, whole->trace);
        assert_memory_equal(&second->state, &whole->state, sizeof whole->state);
        free(first);
        free(second);
    }
    free(whole);
}

static void test_curriculum_counts_a_step_as_so_many_single_answers(void **state)
{
    (void)state;
    struct story *s = begin(SMALL, "\"loops\": 1}", "\"loops\": 2}");
    struct metrics m = {0};
    double e = 0;
    m.n[0] = 37;
    m.correct[0][0] = 37;
    m.correct[0][2] = 5; /* of a loop that is not open */
    for (int i = 0; i < 37; i++)
        e += 0.01 * (1 - e);
    curriculum_step(&s->recipe, &s->state, &m);
    assert_float_equal(s->state.accuracy[0][0], e, 1e-6);
    assert_true(s->state.accuracy[0][1] == 0 && s->state.accuracy[0][2] == 0);
    m.n[0] = 0; /* nothing asked: nothing learnt about it */
    curriculum_step(&s->recipe, &s->state, &m);
    assert_float_equal(s->state.accuracy[0][0], e, 1e-6);
    free(s);
}

static void test_curriculum_without_tracks_follows_the_stages(void **state)
{
    (void)state;
    struct story *s = begin(TEXT, "\"text\"", "\"text\"");
    assert_int_equal(s->state.loops, 4);
    run(s, able, 1000);
    assert_string_equal(s->trace, "8 advanced stage: loops 2, tracks 0 0, stage 1\n"
                                  "13 finished: loops 2, tracks 0 0, stage 1\n");
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_curriculum_opens_loops_and_knobs_as_levels_pass),
        cmocka_unit_test(test_curriculum_waits_until_the_staircase_holds),
        cmocka_unit_test(test_curriculum_starts_anew_when_a_step_is_late),
        cmocka_unit_test(test_curriculum_starts_anew_when_it_is_not_open_in_time),
        cmocka_unit_test(test_curriculum_climbs_a_ladder_with_all_tasks),
        cmocka_unit_test(test_curriculum_leaves_a_rung_together_or_not_at_all),
        cmocka_unit_test(test_curriculum_ends_a_stage_with_a_step_of_a_track),
        cmocka_unit_test(test_curriculum_goes_on_from_a_copy),
        cmocka_unit_test(test_curriculum_counts_a_step_as_so_many_single_answers),
        cmocka_unit_test(test_curriculum_without_tracks_follows_the_stages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
