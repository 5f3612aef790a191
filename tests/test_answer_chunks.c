/* A stream says the same as the whole answer, wherever its chunks are cut. */
#include "tests/unit.h"

#include "tests/answer_feed.h"
#include "train/random.h"

#include <jansson.h>

enum { MAX_TOKENS = 40 };

/* What a stream has said of one choice. */
struct heard {
    char text[8192];
    size_t n_text, n_chunks;
    json_t *token_ids, *prompt_token_ids, *loop_stats, *finish_reason;
    json_t *content;                                 /* of a chat's log-probabilities */
    json_t *tokens, *token_logprobs, *tops, *offset; /* of the classic ones */
};

static json_t *parse(uint64_t seed, const struct text *text)
{
    json_error_t error;
    json_t *root = json_loadb(text->bytes, text->len_bytes, JSON_REJECT_DUPLICATES, &error);
    if (text->is_broken || root == NULL)
        fail_msg("seed %u: %s in %.*s", (unsigned)seed, error.text, (int)text->len_bytes,
                 text->bytes);
    return root;
}

static void extend(json_t **list, json_t *more)
{
    if (!json_is_array(more))
        return;
    if (*list == NULL)
        *list = json_array();
    json_array_extend(*list, more);
}

static void hear_text(struct heard *h, const json_t *string)
{
    size_t n = json_string_length(string);
    assert_true(json_is_string(string) && h->n_text + n <= sizeof h->text);
    memcpy(h->text + h->n_text, json_string_value(string), n);
    h->n_text += n;
}

/* A token is told when its text has been, at the latest with the end. */
static void check_told_tokens(uint64_t seed, const struct feed *f, const struct heard *h)
{
    char shown[DETOKENIZER_MAX_BYTES];
    size_t n_spelled = 0;
    struct detokenizer d;
    detokenizer_init(&d, f->tokenizer, f->body.fields.skip_special);
    for (size_t i = 0; i < json_array_size(h->token_ids); i++)
        n_spelled += detokenizer_push(
            &d, (int32_t)json_integer_value(json_array_get(h->token_ids, i)), shown, sizeof shown);
    if (h->finish_reason == NULL &&
        (n_spelled > h->n_text || (d.n_held > 0 && n_spelled == h->n_text)))
        fail_msg("seed %u: %zu bytes of tokens are told with %zu bytes of text", (unsigned)seed,
                 n_spelled, h->n_text);
}

static void hear_chunk(uint64_t seed, const struct feed *f, struct heard *h, const json_t *chunk)
{
    const json_t *choices = json_object_get(chunk, "choices"), *c = json_array_get(choices, 0);
    assert_int_equal(json_array_size(choices), 1);
    assert_null(h->finish_reason); /* nothing follows the end */
    if (f->body.is_chat) {
        const json_t *delta = json_object_get(c, "delta");
        assert_int_equal(json_object_get(delta, "role") != NULL, h->n_chunks == 0);
        if (h->n_chunks == 0)
            assert_int_equal(json_string_length(json_object_get(delta, "content")), 0);
        if (json_object_get(delta, "content") != NULL)
            hear_text(h, json_object_get(delta, "content"));
    } else {
        hear_text(h, json_object_get(c, "text"));
    }
    assert_int_equal(json_object_get(c, "prompt_token_ids") != NULL,
                     h->n_chunks == 0 && f->body.fields.return_token_ids);
    if (h->n_chunks == 0)
        h->prompt_token_ids = json_incref(json_object_get(c, "prompt_token_ids"));
    extend(&h->token_ids, json_object_get(c, "token_ids"));
    json_t *logprobs = json_object_get(c, "logprobs");
    extend(&h->content, json_object_get(logprobs, "content"));
    extend(&h->tokens, json_object_get(logprobs, "tokens"));
    extend(&h->token_logprobs, json_object_get(logprobs, "token_logprobs"));
    extend(&h->tops, json_object_get(logprobs, "top_logprobs"));
    extend(&h->offset, json_object_get(logprobs, "text_offset"));
    json_t *reason = json_object_get(c, "finish_reason");
    assert_int_equal(json_is_null(reason), json_object_get(chunk, "loop_stats") == NULL);
    if (!json_is_null(reason)) {
        h->finish_reason = json_incref(reason);
        h->loop_stats = json_incref(json_object_get(chunk, "loop_stats"));
    }
    h->n_chunks++;
    if (!f->body.fields.echo)
        check_told_tokens(seed, f, h);
}

static void assert_same(uint64_t seed, const char *what, const json_t *heard, const json_t *whole)
{
    if (whole == NULL || json_is_null(whole) ||
        (json_is_array(whole) && json_array_size(whole) == 0)) {
        if (heard == NULL || json_is_null(heard) || json_array_size(heard) == 0)
            return;
    } else if (heard != NULL && json_equal(heard, whole)) {
        return;
    }
    char *a = json_dumps(heard, JSON_ENCODE_ANY), *b = json_dumps(whole, JSON_ENCODE_ANY);
    fail_msg("seed %u: %s: the stream says %s, the whole %s", (unsigned)seed, what, a ? a : "none",
             b ? b : "none");
}

static void compare(uint64_t seed, const struct feed *f, const struct heard *h, const json_t *whole,
                    const json_t *choice)
{
    const json_t *text = f->body.is_chat
                             ? json_object_get(json_object_get(choice, "message"), "content")
                             : json_object_get(choice, "text");
    if (json_string_length(text) != h->n_text ||
        memcmp(json_string_value(text), h->text, h->n_text) != 0)
        fail_msg("seed %u: the stream says %.*s, the whole %s", (unsigned)seed, (int)h->n_text,
                 h->text, json_string_value(text));
    const json_t *logprobs = json_object_get(choice, "logprobs");
    assert_same(seed, "finish_reason", h->finish_reason, json_object_get(choice, "finish_reason"));
    assert_same(seed, "token_ids", h->token_ids, json_object_get(choice, "token_ids"));
    assert_same(seed, "prompt_token_ids", h->prompt_token_ids,
                json_object_get(choice, "prompt_token_ids"));
    assert_same(seed, "content", h->content, json_object_get(logprobs, "content"));
    assert_same(seed, "tokens", h->tokens, json_object_get(logprobs, "tokens"));
    assert_same(seed, "token_logprobs", h->token_logprobs,
                json_object_get(logprobs, "token_logprobs"));
    assert_same(seed, "top_logprobs", h->tops, json_object_get(logprobs, "top_logprobs"));
    assert_same(seed, "text_offset", h->offset, json_object_get(logprobs, "text_offset"));
    assert_same(seed, "loop_stats", h->loop_stats,
                json_object_get(f->answer.n_choices > 1 ? choice : whole, "loop_stats"));
}

static void forget(struct heard *h)
{
    json_t *all[] = {h->token_ids, h->prompt_token_ids, h->loop_stats, h->finish_reason, h->content,
                     h->tokens,    h->token_logprobs,   h->tops,       h->offset};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        json_decref(all[i]);
}

/* Tokens that are likely to hold something back: halves of characters, beginnings of a stop. */
static int32_t draw_token(struct random *r)
{
    static const char bytes[] = "abEN\xC3\xA9\xF0\x9F\x98\x80\xFF";
    return random_below(r, 12) == 0 ? random_below(r, 3)
                                    : feed_id(bytes[random_below(r, (int)sizeof bytes - 1)]);
}

struct script {
    int32_t prompt_ids[8];
    char prompt_text[64];
    struct body_prompt prompt;
    struct body body;
    uint32_t n_choices;
    size_t n_tokens[FEED_MAX_CHOICES];
    int32_t ids[FEED_MAX_CHOICES][MAX_TOKENS];
    enum finish_reason reasons[FEED_MAX_CHOICES];
};

static void draw_script(struct random *r, struct script *s)
{
    struct body_fields *f = &s->body.fields;
    *s = (struct script){0};
    s->prompt.ids = s->prompt_ids;
    s->prompt.n_ids = 1 + (size_t)random_below(r, 8);
    for (size_t i = 0; i < s->prompt.n_ids; i++)
        s->prompt_ids[i] = draw_token(r);
    s->body.is_chat = random_below(r, 3) == 0;
    if (!s->body.is_chat && random_below(r, 2) == 0) { /* text of letters is what its ids spell */
        for (size_t i = 0; i < s->prompt.n_ids; i++) {
            s->prompt_text[i] = (char)('a' + random_below(r, 26));
            s->prompt_ids[i] = feed_id(s->prompt_text[i]);
        }
        s->prompt.text = s->prompt_text;
        s->prompt.text_bytes = s->prompt.n_ids;
    }
    s->body.n_prompts = 1;
    s->body.prompts = &s->prompt;
    f->n = 1 + random_below(r, 2);
    f->echo = !s->body.is_chat && random_below(r, 3) == 0;
    f->has_logprobs = random_below(r, 2) == 0;
    f->top_logprobs = random_below(r, 3);
    f->return_token_ids = random_below(r, 2) == 0;
    f->return_exit_loops = random_below(r, 2) == 0;
    f->skip_special = random_below(r, 2) == 0;
    f->include_stop = random_below(r, 2) == 0;
    f->include_usage = random_below(r, 2) == 0;
    f->n_stops = (uint32_t)random_below(r, 3);
    f->stops[0] = "EN\xC3\xA9";
    f->stops[1] = "bbEE";
    s->n_choices = (uint32_t)f->n;
    for (uint32_t i = 0; i < s->n_choices; i++) {
        s->n_tokens[i] = (size_t)random_below(r, MAX_TOKENS);
        s->reasons[i] = random_below(r, 2) == 0 ? FINISH_STOP : FINISH_LENGTH;
        for (size_t k = 0; k < s->n_tokens[i]; k++)
            s->ids[i][k] = draw_token(r);
    }
}

/* Gives choice i its next token, or its end. False: it has ended before. */
static bool step(struct feed *f, const struct script *s, uint32_t i)
{
    struct answer_choice *c = &f->choices[i];
    if (c->has_ended)
        return false;
    size_t at = c->n_tokens;
    if (at < s->n_tokens[i] && !f->completions[i].is_stopped)
        assert_true(feed_token(f, i, s->ids[i][at], 1 + (uint32_t)(s->ids[i][at] % FEED_LOOPS)));
    else
        assert_true(feed_end(f, i, f->completions[i].is_stopped ? FINISH_STOP : s->reasons[i]));
    return true;
}

static json_t *play_whole(uint64_t seed, struct feed *f, const struct script *s, struct text *out)
{
    f->body = s->body;
    feed_begin(f);
    for (uint32_t i = 0; i < s->n_choices; i++)
        while (step(f, s, i))
            continue;
    text_reset(out);
    answer_write(&f->answer, out);
    feed_finish(f);
    return parse(seed, out);
}

static void drain(uint64_t seed, struct feed *f, uint32_t i, struct heard *h, struct text *out)
{
    text_reset(out);
    while (answer_write_chunk(&f->answer, i, out)) {
        json_t *chunk = parse(seed, out);
        assert_int_equal(json_object_get(chunk, "usage") != NULL, f->body.fields.include_usage);
        hear_chunk(seed, f, h, chunk);
        json_decref(chunk);
        text_reset(out);
    }
    assert_int_equal(out->len_bytes, 0);
}

static void play_stream(uint64_t seed, struct random *r, struct feed *f, const struct script *s,
                        struct heard heard[FEED_MAX_CHOICES], struct text *out)
{
    uint32_t n_open = s->n_choices;
    f->body = s->body;
    feed_begin(f);
    if (random_below(r, 2) == 0)
        f->rows.is_complete = false;
    while (n_open > 0) {
        uint32_t i = (uint32_t)random_below(r, (int)s->n_choices);
        n_open -= step(f, s, i) && f->choices[i].has_ended;
        if (random_below(r, 4) == 0 || f->choices[i].has_ended) /* rows come before the end */
            f->rows.is_complete = true;
        if (random_below(r, 3) > 0)
            drain(seed, f, i, &heard[i], out);
    }
    for (uint32_t i = 0; i < s->n_choices; i++)
        drain(seed, f, i, &heard[i], out);
}

static void test_answer_chunks_say_the_same_as_the_whole(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){0});
    struct text out = {0};
    static struct heard heard[FEED_MAX_CHOICES];
    for (uint64_t seed = 1; seed <= 1500; seed++) {
        struct random r = random_of(seed, 0, 0);
        struct feed f = {.tokenizer = tokenizer};
        struct script s;
        draw_script(&r, &s);
        json_t *whole = play_whole(seed, &f, &s, &out);
        memset(heard, 0, sizeof heard);
        play_stream(seed, &r, &f, &s, heard, &out);
        for (uint32_t i = 0; i < s.n_choices; i++) {
            const json_t *choice = json_array_get(json_object_get(whole, "choices"), i);
            compare(seed, &f, &heard[i], whole, choice);
            forget(&heard[i]);
        }
        text_reset(&out);
        answer_write_usage_chunk(&f.answer, &out);
        json_t *last = parse(seed, &out);
        assert_same(seed, "usage", json_object_get(last, "usage"), json_object_get(whole, "usage"));
        json_decref(last);
        json_decref(whole);
        feed_finish(&f);
    }
    text_free(&out);
    tokenizer_free(tokenizer);
}

/* What a stream has sent it keeps no memory of. */
static void test_answer_long_streams_hold_nothing(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){0});
    int32_t ids[] = {5};
    struct body_prompt prompt = {.ids = ids, .n_ids = 1};
    struct feed f = {.tokenizer = tokenizer};
    struct text out = {0};
    f.body = (struct body){.n_prompts = 1, .prompts = &prompt};
    f.body.fields = (struct body_fields){.n = 1, .has_logprobs = true, .return_token_ids = true};
    feed_begin(&f);
    struct answer_choice *c = &f.choices[0];
    size_t caps[4] = {0};
    for (int i = 0; i < 20000; i++) {
        assert_true(feed_token(&f, 0, feed_id((char)('a' + i % 26)), 1));
        text_reset(&out);
        assert_true(answer_write_chunk(&f.answer, 0, &out));
        if (i == 100) {
            caps[0] = c->cap_tokens, caps[1] = c->cap_exit_loops;
            caps[2] = c->text.cap_bytes, caps[3] = out.cap_bytes;
        }
    }
    assert_int_equal(c->n_tokens, 20000);
    assert_int_equal(c->loops.n_tokens[0], 20000);
    assert_int_equal(c->cap_tokens, caps[0]);
    assert_int_equal(c->cap_exit_loops, caps[1]);
    assert_int_equal(c->text.cap_bytes, caps[2]);
    assert_int_equal(out.cap_bytes, caps[3]);
    feed_finish(&f);
    text_free(&out);
    tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answer_chunks_say_the_same_as_the_whole),
        cmocka_unit_test(test_answer_long_streams_hold_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
