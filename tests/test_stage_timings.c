/* stage: where the time of a live row went, loop by loop, in virtual time: its hop, its wait, its
 * batch. */
#include "tests/stage_tape.h"

/* Virtual time goes in milliseconds. */
#define MS UINT64_C(1000000)

struct story {
    struct tape tape;
    const struct stage_output *out;
};

static void story_open(struct story *s, uint32_t ring_size, uint32_t ring_index, uint32_t n_prompt)
{
    struct stage_config config = tape_config();
    config.ring_size = ring_size;
    config.ring_index = ring_index;
    tape_create(&s->tape, &config);
    struct sequence_params p = tape_params(1, 0, n_prompt);
    tape_open(&s->tape, &p);
}

static void story_step(struct story *s, uint64_t at_ns, struct stage_event event)
{
    struct err err = {0};
    event.now_ns = at_ns;
    if (stage_step(s->tape.stage, &event, &s->out, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    if (s->out->start != NULL)
        s->tape.running[0] = s->out->start;
}

/* The live row [first, first + n) of a loop, with what its timings were so far. */
static void story_frame(struct story *s, uint64_t at_ns, uint64_t sent_ns, uint32_t loop,
                        uint32_t first, uint32_t n, const struct loop_timing *done)
{
    static const int32_t ids[64];
    struct frame f = {.sequence = 1,
                      .loop = loop,
                      .first_position = first,
                      .n_rows = n,
                      .flags = FRAME_LIVE,
                      .survival = 1.0f / (float)(1u << (loop - 1)),
                      .ids = ids,
                      .sent_ns = sent_ns};
    f.cdf = 1.0f - f.survival;
    for (uint32_t t = 1; t < loop; t++)
        f.timings[t - 1] = done[t - 1];
    story_step(s, at_ns, (struct stage_event){.kind = STAGE_FRAME, .frame = &f});
}

static void story_time(struct story *s, uint64_t at_ns)
{
    story_step(s, at_ns, (struct stage_event){.kind = STAGE_TIME});
    assert_non_null(s->out->start);
}

/* The batch of one segment ends: its live row exits with an id, or goes on. */
static void story_done(struct story *s, uint64_t at_ns, int id)
{
    struct batch_outcome outcome = {.lambda = 0.5f, .is_exit = id >= 0, .token.id = id};
    outcome.exit.survival = s->tape.running[0]->segments[0].exit.survival * 0.5f;
    outcome.exit.cdf = 1.0f - outcome.exit.survival;
    struct batch_result result = {.n_segments = s->tape.running[0]->n_segments,
                                  .outcomes = &outcome};
    assert_int_equal(result.n_segments, 1);
    story_step(s, at_ns, (struct stage_event){.kind = STAGE_BATCH_DONE, .result = &result});
}

static void story_close(struct story *s)
{
    stage_destroy(s->tape.stage);
}

/* In milliseconds. */
static void check_timing(const struct loop_timing *t, double hop, double wait, double compute)
{
    const double got[3] = {t->hop_s * 1e3, (double)t->wait_s * 1e3, (double)t->compute_s * 1e3};
    const double want[3] = {hop, wait, compute};
    for (int i = 0; i < 3; i++)
        if (got[i] < want[i] - 1e-4 || got[i] > want[i] + 1e-4)
            fail_msg("number %d is %.6f ms, expected was %.6f", i, got[i], want[i]);
}

static void test_stage_frame_to_the_next_loop_says_what_its_row_went_through(void **state)
{
    (void)state;
    struct story s;
    story_open(&s, 4, 0, 3);
    story_frame(&s, 1002 * MS, 1000 * MS, 1, 0, 3, NULL);
    story_time(&s, 1007 * MS);
    story_done(&s, 1020 * MS, -1);
    assert_int_equal(s.out->n_frames, 1);
    const struct frame *f = &s.out->frames[0].head;
    assert_int_equal(f->loop, 2);
    assert_int_equal(f->sent_ns, 1020 * MS); /* the batch's end: nothing lies between */
    check_timing(&f->timings[0], 2, 5, 13);
    story_close(&s);
}

static void test_stage_token_says_what_all_its_loops_took(void **state)
{
    (void)state;
    struct story s;
    story_open(&s, 4, 1, 3);
    const struct loop_timing first = {.hop_s = 0.002, .wait_s = 0.005f, .compute_s = 0.013f};
    /* The sender's clock is an hour ahead: that is for the coordinator to take out. */
    const uint64_t hour = 3600 * 1000 * MS;
    story_frame(&s, 1021 * MS, 1020 * MS + hour, 2, 0, 3, &first);
    story_time(&s, 1021 * MS);
    story_done(&s, 1030 * MS, 5);
    assert_int_equal(s.out->n_tokens, 1);
    assert_int_equal(s.out->tokens[0].exit_loop, 2);
    check_timing(&s.out->tokens[0].timings[0], 2, 5, 13);
    check_timing(&s.out->tokens[0].timings[1], 1 - 3600e3, 0, 9);
    /* The token sets out for its own loop 1 with a clean sheet. */
    assert_int_equal(s.out->n_frames, 1);
    assert_int_equal(s.out->frames[0].head.loop, 1);
    assert_int_equal(s.out->frames[0].head.sent_ns, 1030 * MS);
    story_close(&s);
}

static void test_stage_row_that_stays_has_no_hop(void **state)
{
    (void)state;
    struct story s;
    story_open(&s, 1, 0, 2);
    story_frame(&s, 10 * MS, 4 * MS, 1, 0, 2, NULL);
    story_time(&s, 11 * MS);
    story_done(&s, 15 * MS, -1); /* starts loop 2 in the same step */
    story_done(&s, 17 * MS, 7);
    assert_int_equal(s.out->n_tokens, 1);
    check_timing(&s.out->tokens[0].timings[0], 6, 1, 4);
    check_timing(&s.out->tokens[0].timings[1], 0, 0, 2);
    story_done(&s, 20 * MS, 8); /* the next token, exit at loop 1 */
    assert_int_equal(s.out->tokens[0].exit_loop, 1);
    check_timing(&s.out->tokens[0].timings[0], 0, 0, 3);
    story_close(&s);
}

static void test_stage_live_row_of_a_long_prompt_waits_for_the_chunks_before_it(void **state)
{
    (void)state;
    struct story s;
    story_open(&s, 4, 0, 10); /* chunks of 8 */
    story_frame(&s, 5 * MS, 5 * MS, 1, 0, 10, NULL);
    story_time(&s, 6 * MS);
    story_done(&s, 30 * MS, -1);
    assert_int_equal(s.out->n_frames, 1); /* rows without the live one tell no times */
    assert_int_equal(s.out->frames[0].head.flags, 0);
    assert_int_equal(s.out->frames[0].head.sent_ns, 30 * MS); /* but when they left */
    assert_non_null(s.out->start);
    story_done(&s, 40 * MS, -1);
    assert_int_equal(s.out->frames[0].head.flags, FRAME_LIVE);
    check_timing(&s.out->frames[0].head.timings[0], 0, 25, 10);
    story_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage_frame_to_the_next_loop_says_what_its_row_went_through),
        cmocka_unit_test(test_stage_token_says_what_all_its_loops_took),
        cmocka_unit_test(test_stage_row_that_stays_has_no_hop),
        cmocka_unit_test(test_stage_live_row_of_a_long_prompt_waits_for_the_chunks_before_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
