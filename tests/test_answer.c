/* Answers, shape by shape: tokens in, the exact JSON out. */
#include "tests/unit.h"

#include "tests/answer_feed.h"

#include <math.h>

static struct tokenizer *tokenizer;

/* Events: a letter is a token of that byte for the choice at hand, < and > change to choice 0 and
 * 1, ~ is the special token, $ and # end with stop and length, ! with an error, | writes the chunks
 * there are. Token i leaves at loop 1 + i % 2. */
static void play(struct feed *f, const char *events, bool is_stream, struct text *out)
{
    uint32_t choice = 0;
    for (const char *e = events; *e != '\0'; e++) {
        uint32_t exit_loop = 1 + (uint32_t)f->choices[choice].n_tokens % 2;
        if (*e == '<' || *e == '>')
            choice = *e == '>';
        else if (*e == '$' || *e == '#' || *e == '!')
            assert_true(feed_end(f, choice,
                                 *e == '$'   ? FINISH_STOP
                                 : *e == '#' ? FINISH_LENGTH
                                             : FINISH_ERROR));
        else if (*e == '|')
            for (uint32_t i = 0; is_stream && i < f->answer.n_choices; i++)
                while (answer_write_chunk(&f->answer, i, out))
                    text_adds(out, "\n");
        else
            assert_true(feed_token(f, choice, *e == '~' ? 0 : feed_id(*e), exit_loop));
    }
    if (!is_stream)
        answer_write(&f->answer, out);
    else if (f->body.fields.include_usage)
        answer_write_usage_chunk(&f->answer, out);
}

#define LOOP(n, wait, compute, hop)                                                                \
    "{\"tokens\":" #n ",\"wait_ms\":" wait ",\"compute_ms\":" compute ",\"hop_ms\":" hop "}"
#define NO_LOOP LOOP(0, "0.0", "0.0", "0.0")
#define STATS(mean, per_loop, more)                                                                \
    "\"loop_stats\":{\"mean_exit_loop\":" mean ",\"per_loop\":[" per_loop "]" more "}"
/* One token at loop 1; two, the second of them at loop 2. */
#define STATS_1 STATS("1.0", LOOP(1, "250.0", "2000.0", "500.0") "," NO_LOOP, "")
#define LOOPS_2 LOOP(2, "500.0", "4000.0", "1000.0") "," LOOP(1, "250.0", "2000.0", "500.0")
#define STATS_2 STATS("1.5", LOOPS_2, "")
#define LOOPS_3 LOOP(3, "750.0", "6000.0", "1500.0") "," LOOP(1, "250.0", "2000.0", "500.0")
#define STATS_3 STATS("1.3333333333333333", LOOPS_3, "")
#define HEAD(object)                                                                               \
    "{\"id\":\"x\",\"object\":\"" object "\",\"created\":7,\"model\":\"m\",\"choices\":["
#define WHOLE_TEXT HEAD("text_completion")
#define WHOLE_CHAT HEAD("chat.completion")
#define CHUNK_TEXT HEAD("text_completion")
#define CHUNK_CHAT HEAD("chat.completion.chunk")
#define USAGE(prompt, completion, total)                                                           \
    "\"usage\":{\"prompt_tokens\":" #prompt ",\"completion_tokens\":" #completion                  \
    ",\"total_tokens\":" #total "}"
#define NO_LOGPROBS ",\"logprobs\":null"
#define GOES_ON     ",\"finish_reason\":null"
#define STOPPED     ",\"finish_reason\":\"stop\""
#define AT_LENGTH   ",\"finish_reason\":\"length\""
#define ROLE        "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}" NO_LOGPROBS GOES_ON

static const struct {
    const char *name;
    struct body_fields fields;
    bool is_chat, is_prompt_ids, has_no_tokenizer;
    size_t n_prompts;
    const char *events, *whole, *stream;
} cases[] = {
    {
        .name = "text",
        .events = "h|i|$|",
        .whole = WHOLE_TEXT "{\"index\":0,\"text\":\"hi\"" NO_LOGPROBS STOPPED
                            "}]," USAGE(2, 2, 4) "," STATS_2 "}",
        .stream = CHUNK_TEXT "{\"index\":0,\"text\":\"h\"" NO_LOGPROBS GOES_ON "}]}\n" //
        CHUNK_TEXT "{\"index\":0,\"text\":\"i\"" NO_LOGPROBS GOES_ON "}]}\n"           //
        CHUNK_TEXT "{\"index\":0,\"text\":\"\"" NO_LOGPROBS STOPPED "}]," STATS_2 "}\n",
    },
    {
        .name = "chat, the end with the last text",
        .is_chat = true,
        .events = "|h|i#|",
        .whole =
            WHOLE_CHAT "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"hi\"}" //
        NO_LOGPROBS AT_LENGTH "}]," USAGE(2, 2, 4) "," STATS_2 "}",
        .stream = CHUNK_CHAT ROLE "}]}\n"                                                   //
        CHUNK_CHAT "{\"index\":0,\"delta\":{\"content\":\"h\"}" NO_LOGPROBS GOES_ON "}]}\n" //
        CHUNK_CHAT "{\"index\":0,\"delta\":{\"content\":\"i\"}" NO_LOGPROBS AT_LENGTH "}]," //
        STATS_2 "}\n",
    },
    {
        .name = "chat with usage and the loops of each token, the end alone",
        .is_chat = true,
        .fields = {.include_usage = true, .return_exit_loops = true},
        .events = "hi|$|",
        .whole =
            WHOLE_CHAT "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"hi\"}" //
        NO_LOGPROBS STOPPED
                       "}]," USAGE(2, 2, 4) "," STATS("1.5", LOOPS_2, ",\"exit_loops\":[1,2]") "}",
        .stream = CHUNK_CHAT ROLE "}],\"usage\":null}\n" //
        CHUNK_CHAT "{\"index\":0,\"delta\":{\"content\":\"hi\"}" NO_LOGPROBS GOES_ON
                                  "}],\"usage\":null}\n"                                //
        CHUNK_CHAT "{\"index\":0,\"delta\":{}" NO_LOGPROBS STOPPED "}],\"usage\":null," //
        STATS("1.5", LOOPS_2, ",\"exit_loops\":[1,2]") "}\n"                            //
        CHUNK_CHAT "]," USAGE(2, 2, 4) "}",
    },
    {
        .name = "half a character waits, and counts as one",
        .fields = {.has_logprobs = true},
        .events = "\xC3|\xA9|x$|",
        .whole = WHOLE_TEXT
        "{\"index\":0,\"text\":\"\xC3\xA9x\",\"logprobs\":{\"tokens\":[\"bytes:\\\\xc3\","
        "\"bytes:\\\\xa9\",\"x\"],\"token_logprobs\":[-0.25,-0.5,-0.75],\"top_logprobs\":null,"
        "\"text_offset\":[0,0,1]}" STOPPED "}]," USAGE(2, 3, 5) "," STATS_3 "}",
        .stream = CHUNK_TEXT
        "{\"index\":0,\"text\":\"\xC3\xA9\",\"logprobs\":{\"tokens\":[\"bytes:\\\\xc3\","
        "\"bytes:\\\\xa9\"],\"token_logprobs\":[-0.25,-0.5],\"top_logprobs\":null,"
        "\"text_offset\":[0,0]}" GOES_ON "}]}\n" //
        CHUNK_TEXT "{\"index\":0,\"text\":\"x\",\"logprobs\":{\"tokens\":[\"x\"],"
        "\"token_logprobs\":[-0.75],\"top_logprobs\":null,\"text_offset\":[1]}" STOPPED "}]," //
        STATS_3 "}\n",
    },
    {
        .name = "classic log-probabilities: the token taken is among the alternatives",
        .fields = {.has_logprobs = true, .top_logprobs = 2},
        .events = "ab$|",
        .whole = WHOLE_TEXT
        "{\"index\":0,\"text\":\"ab\",\"logprobs\":{\"tokens\":[\"a\",\"b\"],"
        "\"token_logprobs\":[-0.25,-0.5],\"top_logprobs\":[{\"a\":-0.25,\"c\":-1.25},"
        "{\"c\":-0.125,\"d\":-1.5,\"b\":-0.5}],\"text_offset\":[0,1]}" STOPPED "}]," //
        USAGE(2, 2, 4) "," STATS_2 "}",
        .stream = CHUNK_TEXT
        "{\"index\":0,\"text\":\"ab\",\"logprobs\":{\"tokens\":[\"a\",\"b\"],"
        "\"token_logprobs\":[-0.25,-0.5],\"top_logprobs\":[{\"a\":-0.25,\"c\":-1.25},"
        "{\"c\":-0.125,\"d\":-1.5,\"b\":-0.5}],\"text_offset\":[0,1]}" STOPPED "}]," STATS_2 "}\n",
    },
    {
        .name = "a chat's log-probabilities",
        .is_chat = true,
        .fields = {.has_logprobs = true, .top_logprobs = 1},
        .events = "a|\xFF$|",
        .whole = WHOLE_CHAT
        "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"a\xEF\xBF\xBD\"},"
        "\"logprobs\":{\"content\":["
        "{\"token\":\"a\",\"logprob\":-0.25,\"bytes\":[97],\"top_logprobs\":["
        "{\"token\":\"a\",\"logprob\":-0.25,\"bytes\":[97]}]},"
        "{\"token\":\"bytes:\\\\xff\",\"logprob\":-0.5,\"bytes\":[255],\"top_logprobs\":["
        "{\"token\":\"token_id:259\",\"logprob\":-0.125,\"bytes\":null}]}]}" STOPPED "}]," //
        USAGE(2, 2, 4) "," STATS_2 "}",
        .stream = CHUNK_CHAT ROLE
        "}]}\n" //
        CHUNK_CHAT "{\"index\":0,\"delta\":{\"content\":\"a\"},\"logprobs\":{\"content\":["
        "{\"token\":\"a\",\"logprob\":-0.25,\"bytes\":[97],\"top_logprobs\":["
        "{\"token\":\"a\",\"logprob\":-0.25,\"bytes\":[97]}]}]}" GOES_ON "}]}\n" //
        CHUNK_CHAT "{\"index\":0,\"delta\":{\"content\":\"\xEF\xBF\xBD\"},\"logprobs\":"
        "{\"content\":[{\"token\":\"bytes:\\\\xff\",\"logprob\":-0.5,\"bytes\":[255],"
        "\"top_logprobs\":[{\"token\":\"token_id:259\",\"logprob\":-0.125,\"bytes\":null}]}]}" //
        STOPPED "}]," STATS_2 "}\n",
    },
    {
        .name = "echo",
        .fields = {.echo = true},
        .events = "h|i$|",
        .whole = WHOLE_TEXT "{\"index\":0,\"text\":\"\xC3\xBC"
                            "hi\"" NO_LOGPROBS STOPPED "}]," USAGE(2, 2, 4) "," STATS_2 "}",
        .stream = CHUNK_TEXT "{\"index\":0,\"text\":\"\xC3\xBC"
                             "h\"" NO_LOGPROBS GOES_ON "}]}\n" //
        CHUNK_TEXT "{\"index\":0,\"text\":\"i\"" NO_LOGPROBS STOPPED "}]," STATS_2 "}\n",
    },
    {
        .name = "echo of ids with log-probabilities: the prompt's tokens come first",
        .fields = {.echo = true, .has_logprobs = true},
        .is_prompt_ids = true,
        .events = "|h|i$|",
        .whole = WHOLE_TEXT
        "{\"index\":0,\"text\":\"\xC3\xBC"
        "hi\",\"logprobs\":{\"tokens\":[\"bytes:\\\\xc3\",\"bytes:\\\\xbc\",\"h\",\"i\"],"
        "\"token_logprobs\":[null,-0.5,-0.25,-0.5],\"top_logprobs\":null,"
        "\"text_offset\":[0,0,1,2]}" STOPPED "}]," USAGE(2, 2, 4) "," STATS_2 "}",
        .stream = CHUNK_TEXT
        "{\"index\":0,\"text\":\"\xC3\xBC\",\"logprobs\":{\"tokens\":[\"bytes:\\\\xc3\","
        "\"bytes:\\\\xbc\"],\"token_logprobs\":[null,-0.5],\"top_logprobs\":null,"
        "\"text_offset\":[0,0]}" GOES_ON "}]}\n" //
        CHUNK_TEXT "{\"index\":0,\"text\":\"h\",\"logprobs\":{\"tokens\":[\"h\"],"
        "\"token_logprobs\":[-0.25],\"top_logprobs\":null,\"text_offset\":[1]}" GOES_ON "}]}\n" //
        CHUNK_TEXT "{\"index\":0,\"text\":\"i\",\"logprobs\":{\"tokens\":[\"i\"],"
        "\"token_logprobs\":[-0.5],\"top_logprobs\":null,\"text_offset\":[2]}" STOPPED "}]," //
        STATS_2 "}\n",
    },
    {
        .name = "the prompt alone",
        .fields = {.echo = true,
                   .given = BODY_MAX_TOKENS,
                   .return_token_ids = true,
                   .has_logprobs = true,
                   .top_logprobs = 2},
        .events = "h|$|",
        .whole = WHOLE_TEXT
        "{\"index\":0,\"text\":\"\xC3\xBC\",\"logprobs\":{\"tokens\":[\"bytes:\\\\xc3\","
        "\"bytes:\\\\xbc\"],\"token_logprobs\":[null,-0.5],\"top_logprobs\":[null,"
        "{\"bytes:\\\\xbd\":-0.125,\"bytes:\\\\xbe\":-1.5,\"bytes:\\\\xbc\":-0.5}],"
        "\"text_offset\":[0,0]}" AT_LENGTH ",\"token_ids\":[],\"prompt_token_ids\":[198,191]}]," //
        USAGE(2, 0, 2) "," STATS("0.0", NO_LOOP "," NO_LOOP, "") "}",
        .stream = CHUNK_TEXT
        "{\"index\":0,\"text\":\"\xC3\xBC\",\"logprobs\":{\"tokens\":[\"bytes:\\\\xc3\","
        "\"bytes:\\\\xbc\"],\"token_logprobs\":[null,-0.5],\"top_logprobs\":[null,"
        "{\"bytes:\\\\xbd\":-0.125,\"bytes:\\\\xbe\":-1.5,\"bytes:\\\\xbc\":-0.5}],"
        "\"text_offset\":[0,0]}" GOES_ON ",\"token_ids\":[],\"prompt_token_ids\":[198,191]}]}\n" //
        CHUNK_TEXT "{\"index\":0,\"text\":\"\"" NO_LOGPROBS AT_LENGTH ",\"token_ids\":[]}],"     //
        STATS("0.0", NO_LOOP "," NO_LOOP, "") "}\n",
    },
    {
        .name = "token ids come with the text that a stop string held back, or at the end",
        .fields = {.return_token_ids = true, .n_stops = 1, .stops = {"END"}},
        .events = "E|x|E|N|D$|",
        .whole = WHOLE_TEXT
        "{\"index\":0,\"text\":\"Ex\"" NO_LOGPROBS STOPPED                                      //
        ",\"token_ids\":[72,123,72,81,71],\"prompt_token_ids\":[198,191]}]," USAGE(2, 5, 7) "," //
        STATS("1.4",
              LOOP(5, "1250.0", "10000.0", "2500.0") "," LOOP(2, "500.0", "4000.0", "1000.0"),
              "") "}",
        .stream = CHUNK_TEXT "{\"index\":0,\"text\":\"Ex\"" NO_LOGPROBS GOES_ON            //
                             ",\"token_ids\":[72,123],\"prompt_token_ids\":[198,191]}]}\n" //
        CHUNK_TEXT "{\"index\":0,\"text\":\"\"" NO_LOGPROBS STOPPED
                             ",\"token_ids\":[72,81,71]}]," //
        STATS("1.4",
              LOOP(5, "1250.0", "10000.0", "2500.0") "," LOOP(2, "500.0", "4000.0", "1000.0"),
              "") "}\n",
    },
    {
        .name = "a token whose text is held back stays behind what goes out",
        .fields = {.return_token_ids = true, .n_stops = 1, .stops = {"END"}},
        .events = "xE|y#|",
        .whole = WHOLE_TEXT
        "{\"index\":0,\"text\":\"xEy\"" NO_LOGPROBS AT_LENGTH                              //
        ",\"token_ids\":[123,72,124],\"prompt_token_ids\":[198,191]}]," USAGE(2, 3, 5) "," //
        STATS_3 "}",
        .stream = CHUNK_TEXT "{\"index\":0,\"text\":\"x\"" NO_LOGPROBS GOES_ON          //
                             ",\"token_ids\":[123],\"prompt_token_ids\":[198,191]}]}\n" //
        CHUNK_TEXT "{\"index\":0,\"text\":\"Ey\"" NO_LOGPROBS AT_LENGTH
                             ",\"token_ids\":[72,124]}]," STATS_3 "}\n",
    },
    {
        .name = "special tokens have no text",
        .fields = {.return_token_ids = true, .has_logprobs = true},
        .events = "~|a|$|",
        .whole = WHOLE_TEXT
        "{\"index\":0,\"text\":\"a\",\"logprobs\":{\"tokens\":["
        "\"<|endoftext|>\",\"a\"],\"token_logprobs\":[-0.25,-0.5],\"top_logprobs\":null,"
        "\"text_offset\":[0,0]}" STOPPED
        ",\"token_ids\":[0,100],\"prompt_token_ids\":[198,191]}]," //
        USAGE(2, 2, 4) "," STATS_2 "}",
        .stream = CHUNK_TEXT
        "{\"index\":0,\"text\":\"a\",\"logprobs\":{\"tokens\":["
        "\"<|endoftext|>\",\"a\"],\"token_logprobs\":[-0.25,-0.5],\"top_logprobs\":null,"
        "\"text_offset\":[0,0]}" GOES_ON
        ",\"token_ids\":[0,100],\"prompt_token_ids\":[198,191]}]}\n" //
        CHUNK_TEXT "{\"index\":0,\"text\":\"\"" NO_LOGPROBS STOPPED ",\"token_ids\":[]}]," STATS_2
        "}\n",
    },
    {
        .name = "two choices",
        .fields = {.n = 2, .include_usage = true},
        .events = "<a>b|<$|>$|",
        .whole = WHOLE_TEXT "{\"index\":0,\"text\":\"a\"" NO_LOGPROBS STOPPED "," STATS_1 "}," //
                            "{\"index\":1,\"text\":\"b\"" NO_LOGPROBS STOPPED "," STATS_1
                            "}]," USAGE(2, 2, 4) "," //
        STATS("1.0", LOOP(2, "500.0", "4000.0", "1000.0") "," NO_LOOP, "") "}",
        .stream =
            CHUNK_TEXT "{\"index\":0,\"text\":\"a\"" NO_LOGPROBS GOES_ON "}],\"usage\":null}\n" //
        CHUNK_TEXT "{\"index\":1,\"text\":\"b\"" NO_LOGPROBS GOES_ON "}],\"usage\":null}\n"     //
        CHUNK_TEXT "{\"index\":0,\"text\":\"\"" NO_LOGPROBS STOPPED "}],\"usage\":null," STATS_1
                       "}\n" //
        CHUNK_TEXT "{\"index\":1,\"text\":\"\"" NO_LOGPROBS STOPPED "}],\"usage\":null," STATS_1
                       "}\n" //
        CHUNK_TEXT "]," USAGE(2, 2, 4) "}",
    },
    {
        .name = "two prompts with their echoes",
        .n_prompts = 2,
        .fields = {.echo = true},
        .events = "|<a$>b$|",
        .whole = WHOLE_TEXT "{\"index\":0,\"text\":\"\xC3\xBC"
                            "a\"" NO_LOGPROBS STOPPED "," STATS_1 "}," //
                            "{\"index\":1,\"text\":\"qb\"" NO_LOGPROBS STOPPED "," STATS_1
                            "}]," USAGE(3, 2, 5) "," //
        STATS("1.0", LOOP(2, "500.0", "4000.0", "1000.0") "," NO_LOOP, "") "}",
        .stream = CHUNK_TEXT "{\"index\":0,\"text\":\"\xC3\xBC\"" NO_LOGPROBS GOES_ON "}]}\n" //
        CHUNK_TEXT "{\"index\":1,\"text\":\"q\"" NO_LOGPROBS GOES_ON "}]}\n"                  //
        CHUNK_TEXT "{\"index\":0,\"text\":\"a\"" NO_LOGPROBS STOPPED "}]," STATS_1 "}\n"      //
        CHUNK_TEXT "{\"index\":1,\"text\":\"b\"" NO_LOGPROBS STOPPED "}]," STATS_1 "}\n",
    },
    {
        .name = "ids without a tokenizer",
        .has_no_tokenizer = true,
        .is_prompt_ids = true,
        .events = "a|b#|",
        .whole = WHOLE_TEXT
        "{\"index\":0,\"text\":\"\"" NO_LOGPROBS AT_LENGTH //
        ",\"token_ids\":[100,101],\"prompt_token_ids\":[198,191]}]," USAGE(2, 2, 4) "," STATS_2 "}",
        .stream = CHUNK_TEXT "{\"index\":0,\"text\":\"\"" NO_LOGPROBS GOES_ON                   //
                             ",\"token_ids\":[100],\"prompt_token_ids\":[198,191]}]}\n"         //
        CHUNK_TEXT "{\"index\":0,\"text\":\"\"" NO_LOGPROBS AT_LENGTH ",\"token_ids\":[101]}]," //
        STATS_2 "}\n",
    },
    {
        .name = "what was there before an error is not lost",
        .events = "ab!|",
        .whole = NULL,
        .stream = CHUNK_TEXT "{\"index\":0,\"text\":\"ab\"" NO_LOGPROBS GOES_ON "}]}\n",
    },
};

static int32_t prompt_ids[] = {3 + 0xC3, 3 + 0xBC}, other_ids[] = {3 + 'q'};

static void assert_text(const char *name, const struct text *t, const char *expected)
{
    assert_false(t->is_broken);
    if (t->len_bytes != strlen(expected) || memcmp(t->bytes, expected, t->len_bytes) != 0)
        fail_msg("%s:\nexpected %s\nfound    %.*s", name, expected, (int)t->len_bytes, t->bytes);
}

static void test_answer_shapes(void **state)
{
    (void)state;
    struct text out = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int is_stream = 0; is_stream < 2; is_stream++) {
            const char *expected = is_stream ? cases[i].stream : cases[i].whole;
            if (expected == NULL)
                continue;
            struct body_prompt prompts[] = {{"\xC3\xBC", 2, prompt_ids, 2}, {"q", 1, other_ids, 1}};
            struct feed f = {.tokenizer = cases[i].has_no_tokenizer ? NULL : tokenizer};
            f.body = (struct body){.is_chat = cases[i].is_chat,
                                   .n_prompts = cases[i].n_prompts > 0 ? cases[i].n_prompts : 1,
                                   .prompts = prompts,
                                   .fields = cases[i].fields};
            f.body.fields.n = f.body.fields.n > 0 ? f.body.fields.n : 1;
            f.body.fields.skip_special = true;
            if (cases[i].is_prompt_ids || cases[i].is_chat)
                prompts[0].text = NULL;
            feed_begin(&f);
            text_reset(&out);
            play(&f, cases[i].events, is_stream, &out);
            assert_text(cases[i].name, &out, expected);
            feed_finish(&f);
        }
    text_free(&out);
}

static void test_answer_echo_waits_for_the_prompts_log_probabilities(void **state)
{
    (void)state;
    struct body_prompt prompt = {"\xC3\xBC", 2, prompt_ids, 2};
    struct feed f = {.tokenizer = tokenizer};
    struct text out = {0};
    f.body = (struct body){.n_prompts = 1, .prompts = &prompt};
    f.body.fields = (struct body_fields){.n = 1, .echo = true, .has_logprobs = true};
    feed_begin(&f);
    f.choices[0].prompt_rows = NULL;
    assert_true(feed_token(&f, 0, feed_id('a'), 1));
    assert_false(answer_write_chunk(&f.answer, 0, &out));
    f.choices[0].prompt_rows = &f.rows;
    f.rows.is_complete = false;
    assert_false(answer_write_chunk(&f.answer, 0, &out));
    assert_int_equal(out.len_bytes, 0);
    f.rows.is_complete = true;
    assert_true(answer_write_chunk(&f.answer, 0, &out));
    text_add(&out, "", 1);
    assert_non_null(strstr(out.bytes, "\"text\":\"\xC3\xBC"
                                      "a\""));
    assert_non_null(strstr(out.bytes, "\"token_logprobs\":[null,-0.5,-0.25]"));
    feed_finish(&f);
    text_free(&out);
}

/* A special token that the tokenizer put in front is not in the text; one that was written is. */
static void test_answer_offsets_follow_the_prompts_text(void **state)
{
    (void)state;
    int32_t ids[] = {0, 3 + 'a', 1, 3 + 'b', 0};
    struct body_prompt prompt = {"a<|im_start|>b", 14, ids, 5};
    struct feed f = {.tokenizer = tokenizer};
    struct text out = {0};
    f.body = (struct body){.n_prompts = 1, .prompts = &prompt};
    f.body.fields =
        (struct body_fields){.n = 1, .echo = true, .has_logprobs = true, .skip_special = true};
    feed_begin(&f);
    play(&f, "~xy$", false, &out);
    text_add(&out, "", 1);
    assert_non_null(strstr(out.bytes, "\"text\":\"a<|im_start|>bxy\""));
    assert_non_null(strstr(out.bytes, "\"text_offset\":[0,0,1,13,14,14,14,15]"));
    feed_finish(&f);
    text_free(&out);
}

static void test_answer_impossible_tokens_have_a_finite_log_probability(void **state)
{
    (void)state;
    struct body_prompt prompt = {NULL, 0, prompt_ids, 2};
    struct feed f = {.tokenizer = tokenizer};
    struct text out = {0};
    f.body = (struct body){.n_prompts = 1, .prompts = &prompt};
    f.body.fields = (struct body_fields){.n = 1, .has_logprobs = true, .top_logprobs = 2};
    feed_begin(&f);
    struct control_token token = {.id = feed_id('a'),
                                  .exit_loop = 1,
                                  .logprob = 0,
                                  .n_top = 2,
                                  .top_ids = {feed_id('a'), feed_id('b')},
                                  .top_logprobs = {0, -(float)INFINITY}};
    struct completion_token t = {.token = &token, .text = "a", .text_bytes = 1};
    assert_true(answer_choice_take(&f.choices[0], &f.body.fields, &t));
    assert_true(feed_end(&f, 0, FINISH_STOP));
    answer_write(&f.answer, &out);
    text_add(&out, "", 1);
    assert_non_null(strstr(out.bytes, "\"top_logprobs\":[{\"a\":0.0,\"b\":-9999.0}]"));
    feed_finish(&f);
    text_free(&out);
}

static void test_answer_faults(void **state)
{
    (void)state;
    struct fault fault = {.type = "t", .err = {.message = "a \"b\""}};
    struct text out = {0};
    answer_write_fault(&fault, &out);
    assert_text("nothing given", &out,
                "{\"error\":{\"message\":\"a \\\"b\\\"\",\"type\":\"t\",\"param\":null,"
                "\"code\":null}}");
    text_reset(&out);
    fault.code = "c";
    strcpy(fault.param, "messages[0].role");
    answer_write_fault(&fault, &out);
    assert_text("all given", &out,
                "{\"error\":{\"message\":\"a \\\"b\\\"\",\"type\":\"t\","
                "\"param\":\"messages[0].role\",\"code\":\"c\"}}");
    text_free(&out);
}

static int setup(void **state)
{
    (void)state;
    tokenizer = fixture_make(&(struct fixture){0});
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_free(tokenizer);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answer_shapes),
        cmocka_unit_test(test_answer_echo_waits_for_the_prompts_log_probabilities),
        cmocka_unit_test(test_answer_offsets_follow_the_prompts_text),
        cmocka_unit_test(test_answer_impossible_tokens_have_a_finite_log_probability),
        cmocka_unit_test(test_answer_faults),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
