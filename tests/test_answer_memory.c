/* Answers without memory: every failed allocation is told, none is followed by a crash. */
#include "tests/unit.h"

#include <stdbool.h>

static size_t n_allocations_left = SIZE_MAX;
static bool has_failed;

static bool may_allocate(void)
{
    bool may = n_allocations_left > 0;
    n_allocations_left -= may;
    has_failed = has_failed || !may;
    return may;
}

static void *limited_realloc(void *memory, size_t n)
{
    return may_allocate() ? realloc(memory, n) : NULL;
}

static void *limited_reallocarray(void *memory, size_t n, size_t item_bytes)
{
    return may_allocate() ? reallocarray(memory, n, item_bytes) : NULL;
}

/* Both are compiled into this test, with allocations that fail when told to. */
#define realloc      limited_realloc
#define reallocarray limited_reallocarray
#include "coordinator/answer.c"
#include "coordinator/text.c"
#undef realloc
#undef reallocarray

#include "tests/answer_feed.h"

/* Forty tokens, chunks after each third. True: all was said. */
static bool play(struct feed *f, struct text *out, bool is_stream)
{
    bool is_good = true;
    for (int i = 0; i < 40 && is_good; i++) {
        is_good = feed_token(f, 0, feed_id((char)('a' + i % 26)), 1);
        while (is_stream && is_good && i % 3 == 0 && answer_write_chunk(&f->answer, 0, out))
            continue;
    }
    is_good = is_good && feed_end(f, 0, FINISH_LENGTH);
    while (is_stream && is_good && answer_write_chunk(&f->answer, 0, out))
        continue;
    if (is_good && !is_stream)
        answer_write(&f->answer, out);
    return is_good && !out->is_broken;
}

static void test_answer_survives_any_failed_allocation(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){0});
    int32_t ids[] = {feed_id('q'), feed_id('r')};
    struct body_prompt prompt = {.ids = ids, .n_ids = 2};
    for (int is_stream = 0; is_stream < 2; is_stream++) {
        struct text complete = {0};
        size_t n = 0;
        bool is_done = false;
        for (; !is_done; n++) {
            struct feed f = {.tokenizer = tokenizer};
            struct text out = {0};
            f.body = (struct body){.n_prompts = 1, .prompts = &prompt};
            f.body.fields = (struct body_fields){
                .n = 1, .echo = true, .has_logprobs = true, .return_token_ids = true};
            feed_begin(&f);
            if (n == 0) {
                assert_true(play(&f, &complete, is_stream));
            } else {
                n_allocations_left = n - 1;
                has_failed = false;
                bool is_good = play(&f, &out, is_stream);
                is_done = !has_failed;
                n_allocations_left = SIZE_MAX;
                assert_int_equal(is_good, is_done);
                assert_true(!is_good || (out.len_bytes == complete.len_bytes &&
                                         memcmp(out.bytes, complete.bytes, out.len_bytes) == 0));
            }
            feed_finish(&f);
            text_free(&out);
        }
        assert_true(n > 8);
        text_free(&complete);
    }
    tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answer_survives_any_failed_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
