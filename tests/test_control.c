/* Control messages: every kind comes back as it was sent; what is out of range is refused by name.
 */
#include "tests/unit.h"

#include "proto/control.h"
#include "proto/frame.h"
#include "tests/control_trip.h"

#include <math.h>

static void fill_text(char *to, size_t room, char c)
{
    memset(to, c, room - 1);
    to[room - 1] = '\0';
}

static void test_control_hello(void **state)
{
    (void)state;
    struct control_message m = {.kind = CONTROL_HELLO}, out;
    m.hello = (struct control_hello){.protocol = UINT32_MAX,
                                     .rank = UINT32_MAX,
                                     .backend = "cpu",
                                     .isa = "avx512",
                                     .fingerprint = UINT64_MAX,
                                     .memory_available_bytes = UINT64_MAX,
                                     .n_cores = UINT32_MAX,
                                     .device = 3,
                                     .device_name = "some GPU",
                                     .device_memory_bytes = UINT64_MAX - 1,
                                     .failure = STATUS_INTERNAL};
    fill_text(m.hello.host, sizeof m.hello.host, 'h');
    fill_text(m.hello.version, sizeof m.hello.version, 'v');
    fill_text(m.hello.boot_id, sizeof m.hello.boot_id, 'b');
    fill_text(m.hello.device_id, sizeof m.hello.device_id, 'd');
    fill_text(m.hello.message, sizeof m.hello.message, 'm');
    round_trip(&m, &out);
    assert_memory_equal(&m.hello.host, &out.hello.host, sizeof m.hello.host);
    assert_string_equal(m.hello.version, out.hello.version);
    assert_string_equal(m.hello.backend, out.hello.backend);
    assert_string_equal(m.hello.isa, out.hello.isa);
    assert_string_equal(m.hello.boot_id, out.hello.boot_id);
    assert_string_equal(m.hello.device_name, out.hello.device_name);
    assert_string_equal(m.hello.device_id, out.hello.device_id);
    assert_int_equal(out.hello.device, 3);
    assert_int_equal(out.hello.device_memory_bytes, UINT64_MAX - 1);
    assert_string_equal(m.hello.message, out.hello.message);
    assert_int_equal(out.hello.protocol, UINT32_MAX);
    assert_int_equal(out.hello.rank, UINT32_MAX);
    assert_int_equal(out.hello.fingerprint, UINT64_MAX);
    assert_int_equal(out.hello.memory_available_bytes, UINT64_MAX);
    assert_int_equal(out.hello.n_cores, UINT32_MAX);
    assert_int_equal(out.hello.failure, STATUS_INTERNAL);

    struct control_message zero = {.kind = CONTROL_HELLO};
    round_trip(&zero, &out);
    assert_memory_equal(&zero.hello, &out.hello, sizeof zero.hello);

    m.hello.failure = STATUS_COUNT;
    refused(&m, "hello.failure is 12; allowed is 0..11");
}

static void test_control_names_are_clean(void **state)
{
    (void)state;
    static const char *const bad[] = {"a\xff", "\xc0\x80",         "\xed\xa0\x80",
                                      "a\nb",  "\xf4\x90\x80\x80", "\xe2\x82",
                                      "\x7f",  "\xe0\x80\x80"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct control_message m = {.kind = CONTROL_HELLO};
        strcpy(m.hello.host, bad[i]);
        refused(&m, "hello.host");
    }
    struct control_message m = {.kind = CONTROL_HELLO}, out;
    strcpy(m.hello.host, "k\xc3\xb6ln-\xe2\x82\xac-\xf0\x9f\x8e\xa0");
    round_trip(&m, &out);
    assert_string_equal(out.hello.host, m.hello.host);
}

static void test_control_texts_are_cleaned(void **state)
{
    (void)state;
    struct control_message m = {.kind = CONTROL_FAILED}, out;
    m.sequence.sequence = 9;
    m.sequence.failure = STATUS_IO;
    strcpy(m.sequence.message, "a\x1b[31m\n\xff\xe2\x82 \xe2\x82\xac");
    round_trip(&m, &out);
    assert_string_equal(out.sequence.message, "a?[31m???? \xe2\x82\xac");
}

/* A peer may send more text than fits; it is cut between two characters. Built by hand: Failed (8)
 * with sequence 1, failure 1 and 600 bytes of two-byte characters behind one of one byte. */
static void test_control_long_text_is_cut(void **state)
{
    (void)state;
    unsigned char bytes[8 + 3 + 9 + 2 + 3 + 601];
    struct control_message m = {.kind = CONTROL_CLOSE}, out;
    m.sequence.sequence = 1;
    control_encode(&m, bytes, sizeof bytes);
    unsigned char *at = bytes + 8;
    size_t body = 9 + 2 + 3 + 601;
    *at++ = 8 << 3 | 2;
    *at++ = (unsigned char)(body | 0x80);
    *at++ = (unsigned char)(body >> 7);
    *at++ = 1 << 3 | 1;
    memcpy(at, &(uint64_t){1}, 8);
    at += 8;
    *at++ = 2 << 3;
    *at++ = 1;
    *at++ = 3 << 3 | 2;
    *at++ = (unsigned char)(601 & 0x7f) | 0x80;
    *at++ = 601 >> 7;
    *at++ = 'x';
    for (int i = 0; i < 300; i++) {
        *at++ = 0xc3;
        *at++ = 0xb6;
    }
    assert_int_equal(at - bytes, sizeof bytes);
    struct err err = {0};
    enum status st = control_decode(bytes, sizeof bytes, &out, &err);
    if (st != STATUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(strlen(out.sequence.message), 511);
    bytes[8 + 3 + 9 + 2 + 3] = 0xc3; /* now cut one byte earlier, with the lone byte replaced */
    assert_int_equal(control_decode(bytes, sizeof bytes, &out, &err), STATUS_OK);
    assert_int_equal(out.sequence.message[0], '?');
}

static void test_control_welcome_and_ready(void **state)
{
    (void)state;
    struct control_message m = {.kind = CONTROL_WELCOME}, out;
    m.welcome = (struct control_welcome){.isa = "scalar",
                                         .kv_bytes = UINT64_MAX,
                                         .n_threads = UINT32_MAX,
                                         .may_spin = true,
                                         .is_deterministic = true,
                                         .is_direct = true,
                                         .n_sharing = 4,
                                         .failure = STATUS_MISMATCH,
                                         .message = "rank 3 on b holds another model"};
    round_trip(&m, &out);
    assert_memory_equal(&m.welcome, &out.welcome, sizeof m.welcome);
    m.welcome.failure = (enum status)99;
    refused(&m, "welcome.failure is 99");

    m = (struct control_message){.kind = CONTROL_READY};
    m.ready = (struct control_ready){.n_kv_blocks = UINT32_MAX,
                                     .block_size = 16,
                                     .n_row_slots = UINT32_MAX - 1,
                                     .batch_ns = UINT64_MAX,
                                     .row_ns = UINT64_MAX - 1,
                                     .failure = STATUS_NO_MEMORY,
                                     .message = "x"};
    round_trip(&m, &out);
    assert_memory_equal(&m.ready, &out.ready, sizeof m.ready);
    m.ready.failure = (enum status) - 1;
    refused(&m, "ready.failure is 4294967295");
}

static struct control_message make_open(void)
{
    struct control_message m = {.kind = CONTROL_OPEN};
    sequence_params_init(&m.open);
    m.open.sequence = 1;
    m.open.prompt_tokens = 3;
    m.open.max_tokens = 5;
    m.open.max_loops = 4;
    return m;
}

static void test_control_open_extremes(void **state)
{
    (void)state;
    struct control_message m = make_open(), out;
    round_trip(&m, &out);
    assert_memory_equal(&m.open, &out.open, sizeof m.open);

    struct sequence_params *o = &m.open;
    o->sequence = UINT64_MAX;
    o->ring_offset = UINT32_MAX;
    o->prompt_tokens = UINT32_MAX - 7;
    o->max_tokens = o->min_tokens = 7;
    o->exit_mode = EXIT_MODE_EXACT;
    o->exit_threshold = 1e-30f;
    o->max_loops = o->min_loops = SEQUENCE_MAX_LOOPS;
    o->prefill = PREFILL_LAZY;
    o->n_stop_ids = SEQUENCE_MAX_STOP_IDS;
    for (int i = 0; i < SEQUENCE_MAX_STOP_IDS; i++)
        o->stop_ids[i] = INT32_MAX - 1 - i;
    o->observe_top = INT32_MAX;
    o->n_force_exits = SEQUENCE_MAX_LOOPS;
    for (int i = 0; i < SEQUENCE_MAX_LOOPS; i++)
        o->force_exits[i] = 0.125f;
    o->sampling = (struct sampling_params){.temperature = 100.0f,
                                           .top_k = INT32_MAX,
                                           .top_p = 1e-30f,
                                           .min_p = 1.0f,
                                           .repetition_penalty = 1e-30f,
                                           .presence_penalty = -2.0f,
                                           .frequency_penalty = 2.0f,
                                           .seed = UINT64_MAX,
                                           .n_logprobs = SEQUENCE_MAX_LOGPROBS,
                                           .n_logit_bias = SEQUENCE_MAX_LOGIT_BIAS};
    for (int i = 0; i < SEQUENCE_MAX_LOGIT_BIAS; i++) {
        o->sampling.bias_ids[i] = i;
        o->sampling.biases[i] = i % 2 ? -100.0f : 100.0f;
    }
    o->observe_first = UINT32_MAX - 9;
    o->n_observe_targets = 2;
    o->observe_hidden = true;
    int32_t targets[2] = {0, INT32_MAX};
    m.open_targets = targets;
    round_trip(&m, &out);
    assert_memory_equal(&m.open, &out.open, sizeof m.open);
    assert_memory_equal(out.open_targets, targets, sizeof targets);
    control_clear(&out);
}

static void test_control_open_refuses(void **state)
{
    (void)state;
    struct control_message m;
    m = make_open(), m.open.exit_mode = (enum exit_mode)2;
    refused(&m, "open.exit_mode is 2; allowed is 0..1");
    m = make_open(), m.open.prefill = (enum prefill_policy)77;
    refused(&m, "open.prefill is 77");
    m = make_open(), m.open.sequence = 0;
    refused(&m, "sequence is 0");
    m = make_open(), m.open.exit_threshold = NAN;
    refused(&m, "exit_threshold is nan");
    m = make_open(), m.open.sampling.temperature = NAN;
    refused(&m, "temperature is nan");
    m = make_open(), m.open.sampling.top_p = 0.0f;
    refused(&m, "top_p is 0");
    m = make_open(), m.open.sampling.top_k = -1;
    refused(&m, "top_k is -1");
    m = make_open(), m.open.sampling.n_logprobs = -1;
    refused(&m, "n_logprobs is 4294967295");
    m = make_open(), m.open.max_loops = 9;
    refused(&m, "max_loops is 9");
    int32_t targets[4] = {1, 2, -3, 4};
    m = make_open(), m.open.n_observe_targets = 3, m.open_targets = targets;
    refused(&m, "open.observe_targets is -3");
    m = make_open(), m.open.n_observe_targets = 4, m.open_targets = targets;
    refused(&m, "n_observe_targets is 4; allowed is 0..3");
    m = make_open(), m.open.n_stop_ids = 1, m.open.stop_ids[0] = -5;
    refused(&m, "stop_ids[0] is -5");
    m = make_open(), m.open.n_force_exits = 1, m.open.force_exits[0] = INFINITY;
    refused(&m, "force_exits is inf");
    m = make_open(), m.open.sampling.n_logit_bias = 1, m.open.sampling.biases[0] = NAN;
    refused(&m, "logit_bias is nan");
}

/* Appends raw fields to the body of an encoded open: protobuf concatenates repeated fields. The
 * body's two-byte length is rewritten. */
static void open_with(const unsigned char *extra, size_t n, const char *what)
{
    struct control_message m = make_open(), out;
    m.open.sampling.n_logit_bias = SEQUENCE_MAX_LOGIT_BIAS; /* makes the length two bytes */
    size_t len;
    unsigned char *bytes = encode(&m, &len);
    unsigned char *longer = malloc(len + n);
    assert_non_null(longer);
    memcpy(longer, bytes, len);
    memcpy(longer + len, extra, n);
    size_t body = len - 8 - 3 + n;
    longer[9] = (unsigned char)(body & 0x7f) | 0x80;
    longer[10] = (unsigned char)(body >> 7);
    struct err err = {0};
    assert_int_equal(control_decode(longer, len + n, &out, &err), STATUS_CORRUPT);
    if (strstr(err.message, what) == NULL)
        fail_msg("\"%s\" does not name \"%s\"", err.message, what);
    free(bytes);
    free(longer);
}

static void test_control_open_refuses_too_many(void **state)
{
    (void)state;
    unsigned char stop[2 + 33] = {11 << 3 | 2, 33};
    open_with(stop, sizeof stop, "open.stop_ids has 33 entries; at most 32 fit");
    unsigned char exits[3 + 36] = {((23 << 3 | 2) & 0x7f) | 0x80, 23 << 3 >> 7, 36};
    open_with(exits, sizeof exits, "open.force_exits has 9 entries; at most 8 fit");
    /* one more bias: field 21 again merges into the message there is */
    unsigned char bias[3 + 3 + 6] = {
        ((21 << 3 | 2) & 0x7f) | 0x80, 21 << 3 >> 7, 9, 1 << 3 | 2, 1, 0, 2 << 3 | 2, 4};
    open_with(bias, sizeof bias, "open.logit_bias has 301 entries; at most 300 fit");
    unsigned char uneven[3 + 3] = {
        ((21 << 3 | 2) & 0x7f) | 0x80, 21 << 3 >> 7, 3, 1 << 3 | 2, 1, 0};
    open_with(uneven, sizeof uneven, "open.logit_bias has 301 ids and 300 values");
}

static void test_control_sequence_kinds(void **state)
{
    (void)state;
    struct control_message m = {.kind = CONTROL_OPENED}, out;
    m.sequence = (struct control_sequence){UINT64_MAX, STATUS_NO_MEMORY, "no blocks"};
    round_trip(&m, &out);
    assert_memory_equal(&m.sequence, &out.sequence, sizeof m.sequence);
    m.sequence.failure = (enum status)STATUS_COUNT;
    refused(&m, "opened.failure");
    m.sequence.sequence = 0;
    refused(&m, "opened.sequence");

    m.kind = CONTROL_FAILED;
    m.sequence = (struct control_sequence){1, STATUS_INTERNAL, "logits are NaN"};
    round_trip(&m, &out);
    assert_memory_equal(&m.sequence, &out.sequence, sizeof m.sequence);
    m.sequence.failure = STATUS_OK;
    refused(&m, "failed.failure is 0");

    m.sequence = (struct control_sequence){.sequence = UINT64_MAX};
    m.kind = CONTROL_CLOSE;
    round_trip(&m, &out);
    assert_memory_equal(&m.sequence, &out.sequence, sizeof m.sequence);
    m.kind = CONTROL_CLOSED;
    round_trip(&m, &out);
    assert_memory_equal(&m.sequence, &out.sequence, sizeof m.sequence);
    m.sequence.sequence = 0;
    refused(&m, "closed.sequence");
    m.kind = CONTROL_CLOSE;
    refused(&m, "close.sequence");
}

static void test_control_shutdown_and_goodbye(void **state)
{
    (void)state;
    struct control_message m = {.kind = CONTROL_SHUTDOWN}, out;
    m.shutdown.failure = STATUS_CANCELLED;
    strcpy(m.shutdown.message, "SIGINT");
    round_trip(&m, &out);
    assert_memory_equal(&m.shutdown, &out.shutdown, sizeof m.shutdown);
    m.shutdown.failure = (enum status)1000;
    refused(&m, "shutdown.failure is 1000");
    m = (struct control_message){.kind = CONTROL_GOODBYE};
    round_trip(&m, &out);
    assert_int_equal(out.goodbye_rank, 0);
    m.goodbye_rank = UINT32_MAX;
    round_trip(&m, &out);
    assert_int_equal(out.goodbye_rank, UINT32_MAX);
}

static void test_control_stats(void **state)
{
    (void)state;
    struct control_message m = {.kind = CONTROL_STATS_REQUEST}, out;
    m.stats.tag = UINT64_MAX;
    m.stats.reset = true;
    round_trip(&m, &out);
    assert_memory_equal(&m.stats, &out.stats, sizeof m.stats);

    m = (struct control_message){.kind = CONTROL_STATS};
    /* Every field a value of its own, so that a swap is seen. */
    m.stats = (struct control_stats){.tag = UINT64_MAX,
                                     .kv_blocks_used = 1,
                                     .kv_blocks_total = UINT32_MAX,
                                     .parked_rows = 2,
                                     .row_slots_used = 3,
                                     .row_slots_total = 4,
                                     .n_sequences = 5,
                                     .n_batches = UINT64_MAX - 1,
                                     .n_rows = 6,
                                     .n_heads = 7,
                                     .n_messages_sent = 8,
                                     .n_bytes_sent = 9,
                                     .busy_ns = 10,
                                     .idle_starved_ns = 11,
                                     .idle_waiting_ns = 12,
                                     .n_stale_frames = 13,
                                     .batch_ns = 14,
                                     .row_ns = 15,
                                     .n_parked_total = 16,
                                     .n_revived_total = 17,
                                     .elapsed_ns = 18,
                                     .clock_ns = 19,
                                     .n_trace_records = 20,
                                     .rows_by_loop = {1, 0, 3, 0, 5, 0, 0, UINT64_MAX}};
    round_trip(&m, &out);
    assert_memory_equal(&m.stats, &out.stats, sizeof m.stats);
}

static enum status decode_raw(const char *body, size_t n, struct err *err)
{
    unsigned char bytes[256];
    struct control_message m = {.kind = CONTROL_GOODBYE}, out;
    control_encode(&m, bytes, sizeof bytes);
    memcpy(bytes + 8, body, n);
    return control_decode(bytes, 8 + n, &out, err);
}

static void test_control_refuses_unknown(void **state)
{
    (void)state;
    struct err err = {0};
    assert_int_equal(decode_raw("", 0, &err), STATUS_CORRUPT); /* no kind at all */
    assert_non_null(strstr(err.message, "no known kind"));
    assert_int_equal(decode_raw("\x9a\x01\x00", 3, &err),
                     STATUS_CORRUPT); /* field 19: no such kind */
    assert_non_null(strstr(err.message, "unknown fields (first: 19)"));
    assert_int_equal(decode_raw("\x72\x00\x9a\x01\x00", 5, &err), STATUS_CORRUPT);
    assert_int_equal(decode_raw("\x72\x00", 2, &err), STATUS_OK);          /* goodbye */
    assert_int_equal(decode_raw("\x72\x05\x08", 3, &err), STATUS_CORRUPT); /* length too long */
    assert_non_null(strstr(err.message, "does not parse"));
}

static void test_control_refuses_other_heads(void **state)
{
    (void)state;
    struct control_message m = {.kind = CONTROL_GOODBYE}, out;
    size_t len;
    unsigned char *bytes = encode(&m, &len);
    struct err err = {0};
    for (size_t i = 0; i < 8; i++) {
        bytes[i] ^= 0x40;
        assert_int_equal(control_decode(bytes, len, &out, &err), STATUS_CORRUPT);
        bytes[i] ^= 0x40;
    }
    bytes[6] = MESSAGE_BUNDLE;
    assert_int_equal(control_decode(bytes, len, &out, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.message, "where control (2) was expected"));
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_control_hello),
        cmocka_unit_test(test_control_names_are_clean),
        cmocka_unit_test(test_control_texts_are_cleaned),
        cmocka_unit_test(test_control_long_text_is_cut),
        cmocka_unit_test(test_control_welcome_and_ready),
        cmocka_unit_test(test_control_open_extremes),
        cmocka_unit_test(test_control_open_refuses),
        cmocka_unit_test(test_control_open_refuses_too_many),
        cmocka_unit_test(test_control_sequence_kinds),
        cmocka_unit_test(test_control_shutdown_and_goodbye),
        cmocka_unit_test(test_control_stats),
        cmocka_unit_test(test_control_refuses_unknown),
        cmocka_unit_test(test_control_refuses_other_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
