/* Tokens and observations: many items arrive as they were sent; one bad item refuses the message.
 */
#include "tests/unit.h"

#include "proto/control.h"
#include "tests/control_trip.h"

#include <math.h>

static void test_control_tokens(void **state)
{
    (void)state;
    enum { N = 300 };
    static struct control_token items[N];
    for (int i = 0; i < N; i++) {
        items[i] = (struct control_token){.sequence = UINT64_MAX - (uint64_t)i,
                                          .position = UINT32_MAX - (uint32_t)i,
                                          .id = i ? INT32_MAX - i : 0,
                                          .exit_loop = 1 + (uint32_t)i % SEQUENCE_MAX_LOOPS,
                                          .cdf = i % 2 ? 1.0f : 0.0f,
                                          .logprob = i % 3 ? -0.5f * (float)i : -INFINITY,
                                          .is_last = i % 5 == 0,
                                          .n_top = (uint32_t)i % (SEQUENCE_MAX_LOGPROBS + 1)};
        for (uint32_t k = 0; k < items[i].exit_loop; k++)
            items[i].timings[k] =
                (struct loop_timing){i % 2 ? -1e9 * i : 1e-9 * k, (float)i, 0.5f * (float)k};
        for (uint32_t k = 0; k < items[i].n_top; k++) {
            items[i].top_ids[k] = INT32_MAX - (int32_t)k;
            items[i].top_logprobs[k] = k == 3 ? -INFINITY : -(float)k;
        }
    }
    struct control_message m = {.kind = CONTROL_TOKENS}, out;
    round_trip(&m, &out);
    assert_int_equal(out.tokens.n, 0);
    control_clear(&out);
    m.tokens.n = N;
    m.tokens.items = items;
    round_trip(&m, &out);
    assert_int_equal(out.tokens.n, N);
    assert_memory_equal(out.tokens.items, items, sizeof items);
    control_clear(&out);
    assert_null(out.tokens.items);
}

static void test_control_tokens_refuse(void **state)
{
    (void)state;
    const struct control_token good = {
        .sequence = 1, .id = 1, .exit_loop = 1, .n_top = 2, .top_ids = {1, 2}};
    struct control_token items[2] = {good, good};
    struct control_message m = {.kind = CONTROL_TOKENS}, out;
    m.tokens.n = 2;
    m.tokens.items = items;
    round_trip(&m, &out);
    control_clear(&out);
    items[1].sequence = 0;
    refused(&m, "tokens[1] of 2: sequence is 0");
    items[1] = good, items[1].exit_loop = 0;
    refused(&m, "exit_loop is 0");
    items[1] = good, items[1].exit_loop = 9;
    refused(&m, "exit_loop is 9");
    items[1] = good, items[1].cdf = NAN;
    refused(&m, "cdf is nan");
    items[1] = good, items[1].cdf = 1.5f;
    refused(&m, "cdf is 1.5");
    items[1] = good, items[1].logprob = NAN;
    refused(&m, "logprob is nan");
    items[1] = good, items[1].logprob = 1.0f;
    refused(&m, "logprob is 1");
    items[1] = good, items[1].id = -1;
    refused(&m, "id is -1");
    items[1] = good, items[1].top_ids[1] = -7;
    refused(&m, "top_ids is -7");
    items[1] = good, items[1].top_logprobs[0] = NAN;
    refused(&m, "top_logprobs is nan");
    items[1] = good, items[1].timings[0].hop_s = NAN;
    refused(&m, "tokens[1] of 2: hops[0] is nan");
    items[1] = good, items[1].timings[0].hop_s = -INFINITY;
    refused(&m, "hops[0] is -inf");
    items[1] = good, items[1].timings[0].wait_s = -1.0f;
    refused(&m, "waits is -1");
    items[1] = good, items[1].timings[0].compute_s = INFINITY;
    refused(&m, "computes is inf");
}

static void test_control_token_has_a_timing_for_each_of_its_loops(void **state)
{
    (void)state;
    struct control_token item = {.sequence = 1, .id = 1, .exit_loop = 2};
    struct control_message m = {.kind = CONTROL_TOKENS, .tokens = {1, &item}}, out;
    size_t len;
    struct err err = {0};
    unsigned char *bytes = encode(&m, &len);
    /* exit_loop is field 4: tag 0x20, then its value. */
    unsigned char *at = memchr(bytes + 10, 0x20, len - 10);
    assert_non_null(at);
    assert_int_equal(at[1], 2);
    at[1] = 3;
    assert_int_equal(control_decode(bytes, len, &out, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.message, "2 hops, 2 waits and 2 computes, but it ran 3 loops"));
    free(bytes);
}

static void test_control_observations(void **state)
{
    (void)state;
    enum { N = 40, TOP = 500, D = 70 };
    static float hidden[N][D];
    static int32_t ids[N][TOP];
    static float logits[N][TOP];
    static struct control_observation rows[N];
    for (int i = 0; i < N; i++) {
        for (int k = 0; k < TOP; k++) {
            ids[i][k] = k * 100 + i;
            logits[i][k] = k == 0 ? -0.0f : (float)(i - k) * 1e-3f;
        }
        rows[i] =
            (struct control_observation){.sequence = UINT64_MAX,
                                         .position = UINT32_MAX - (uint32_t)i,
                                         .loop = 1 + (uint32_t)i % SEQUENCE_MAX_LOOPS,
                                         .lambda = (float)i / N,
                                         .n_top = i ? (uint32_t)(TOP * i / N) : 0,
                                         .top_ids = ids[i],
                                         .top_logits = logits[i],
                                         .has_target = i % 3 > 0,
                                         .is_hit = i % 3 == 2,
                                         .logprob = i == 4 ? -INFINITY : -0.5f * (float)(1 + i % 3),
                                         .log_norm = 3.25f * (float)(i - 7),
                                         .n_hidden = i % 4 ? D - (uint32_t)i : 0,
                                         .hidden = hidden[i]};
        for (int k = 0; k < D; k++)
            hidden[i][k] = k == 1 ? -0.0f : (float)(k - i) * 0.3f;
    }
    struct control_message m = {.kind = CONTROL_OBSERVATIONS}, out;
    round_trip(&m, &out);
    assert_int_equal(out.observations.n, 0);
    control_clear(&out);
    m.observations.n = N;
    m.observations.items = rows;
    round_trip(&m, &out);
    assert_int_equal(out.observations.n, N);
    for (int i = 0; i < N; i++) {
        const struct control_observation *o = &out.observations.items[i];
        assert_int_equal(o->sequence, rows[i].sequence);
        assert_int_equal(o->position, rows[i].position);
        assert_int_equal(o->loop, rows[i].loop);
        assert_memory_equal(&o->lambda, &rows[i].lambda, 4);
        assert_int_equal(o->has_target, rows[i].has_target);
        assert_int_equal(o->is_hit, rows[i].is_hit);
        assert_memory_equal(&o->logprob, &rows[i].logprob, 4);
        assert_memory_equal(&o->log_norm, &rows[i].log_norm, 4);
        assert_int_equal(o->n_hidden, rows[i].n_hidden);
        assert_memory_equal(o->hidden, hidden[i], o->n_hidden * 4);
        assert_int_equal(o->n_top, rows[i].n_top);
        if (o->n_top > 0) {
            assert_memory_equal(o->top_ids, ids[i], o->n_top * 4);
            assert_memory_equal(o->top_logits, logits[i], o->n_top * 4);
        }
    }
    control_clear(&out);
    rows[7].lambda = NAN;
    refused(&m, "observations[7] of 40: lambda is nan");
    rows[7].lambda = 0.5f, rows[7].loop = 0;
    refused(&m, "loop is 0");
    rows[7].loop = 1, logits[7][1] = NAN;
    refused(&m, "top_logits is nan");
    logits[7][1] = 0, hidden[7][3] = NAN;
    refused(&m, "observations[7] of 40: hidden is nan");
    hidden[7][3] = INFINITY;
    refused(&m, "hidden is inf");
    hidden[7][3] = 0, rows[7].log_norm = INFINITY;
    refused(&m, "log_norm is inf");
    rows[7].log_norm = 0, rows[7].logprob = 0.5f;
    refused(&m, "logprob is 0.5");
}

/* Two bytes on the wire make a struct of a hundred: millions of empty items must not be unpacked.
 */
static void test_control_refuses_a_flood_of_empty_items(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    size_t body = 2 * (size_t)N;
    unsigned char *bytes = malloc(8 + 1 + 4 + body);
    assert_non_null(bytes);
    struct control_message m = {.kind = CONTROL_TOKENS}, out;
    control_encode(&m, bytes, 10);
    unsigned char *at = bytes + 9;
    size_t v = body;
    for (; v >= 0x80; v >>= 7)
        *at++ = (unsigned char)(v | 0x80);
    *at++ = (unsigned char)v;
    for (int i = 0; i < N; i++) {
        *at++ = 0x0a;
        *at++ = 0;
    }
    struct err err = {0};
    assert_int_equal(control_decode(bytes, (size_t)(at - bytes), &out, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.message, "does not parse"));
    size_t too_long = ((size_t)64 << 20) + 1;
    assert_int_equal(control_decode(bytes, too_long, &out, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.message, "67108865 bytes"));
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_control_tokens),
        cmocka_unit_test(test_control_tokens_refuse),
        cmocka_unit_test(test_control_token_has_a_timing_for_each_of_its_loops),
        cmocka_unit_test(test_control_observations),
        cmocka_unit_test(test_control_refuses_a_flood_of_empty_items),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
