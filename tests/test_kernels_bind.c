/* Batches told to a stream: what does not fit is found once, before any operation reads it. */
#include "tests/kernels_reference.h"

enum { ROWS = 4, SLOTS = 6, VOCAB = 9, BLOCKS = 4, BLOCK = 16, HEADS = 2, DIM = 16 };

static const struct kernels_limits limits = {.n_rows = ROWS,
                                             .n_segments = 3,
                                             .n_table = 5,
                                             .block_size = BLOCK,
                                             .n_slots = SLOTS,
                                             .vocab_size = VOCAB,
                                             .n_heads = HEADS,
                                             .n_kv_heads = HEADS,
                                             .head_dim = DIM,
                                             .n_wanted_logits = 1};

/* A backend, a reserved stream on it, a pool, and a batch that fits: tests break it in one place.
 */
struct world {
    struct backend b;
    struct kernels_stream *s;
    struct kernels_kv kv;
    struct kernels_segment segments[2];
    int32_t table[4], slots[ROWS], ids[ROWS];
    struct sequence_params params;
    struct kernels_live live[2];
    struct kernels_batch batch;
};

static bool world_open(struct world *w, const char *name)
{
    struct err err = {0};
    memset(w, 0, sizeof *w);
    if (!backend_open(name, 1, &w->b))
        return false;
    w->s = stream_open(&w->b, &limits);
    must(kernels_kv_create(w->b.k, DTYPE_BF16, BLOCKS, BLOCK, 1, HEADS, DIM, &w->kv, &err), &err);
    sequence_params_init(&w->params);
    w->segments[0] = (struct kernels_segment){.n_rows = 2, .first_position = 15, .n_blocks = 2};
    w->segments[1] = (struct kernels_segment){
        .first_row = 2, .n_rows = 1, .first_position = 3, .first_block = 2, .n_blocks = 1};
    const int32_t table[] = {3, 0, 1}, slots[] = {0, 5, 2}, ids[] = {-1, 8, 0};
    memcpy(w->table, table, sizeof table);
    memcpy(w->slots, slots, sizeof slots);
    memcpy(w->ids, ids, sizeof ids);
    w->live[0] = (struct kernels_live){
        .row = 1, .segment = 0, .position = 16, .loop = 1, .params = &w->params};
    w->live[1] = (struct kernels_live){
        .row = 2, .segment = 1, .position = 3, .loop = 2, .params = &w->params};
    w->batch = (struct kernels_batch){.n_rows = 3,
                                      .n_segments = 2,
                                      .segments = w->segments,
                                      .block_table = w->table,
                                      .slots = w->slots,
                                      .ids = w->ids,
                                      .n_live = 2,
                                      .live = w->live};
    return true;
}

static void world_close(struct world *w)
{
    kernels_kv_destroy(w->b.k, &w->kv);
    kernels_stream_destroy(w->s);
    backend_close(&w->b);
}

static void refused(struct world *w, const char *why)
{
    struct err err = {0};
    assert_int_equal(kernels_bind(w->s, &w->batch, &w->kv, 0, &err), STATUS_INVALID);
    if (strstr(err.message, why) == NULL)
        fail_msg("'%s' does not say '%s'", err.message, why);
}

static void accepted(struct world *w)
{
    struct err err = {0};
    must(kernels_bind(w->s, &w->batch, &w->kv, 1, &err), &err);
    must(kernels_mark(w->s, 1, &err), &err);
    must(kernels_wait(w->s, 1, &err), &err);
}

/* Sets a field to a wrong value, wants the message, and puts the right one back. */
#define REFUSED(field, value, why)                                                                 \
    do {                                                                                           \
        const __typeof__(field) right = (field);                                                   \
        (field) = (value);                                                                         \
        refused(&w, why);                                                                          \
        (field) = right;                                                                           \
    } while (0)

static void check_refusals(const char *name)
{
    struct world w;
    struct err err = {0};
    if (!world_open(&w, name))
        return;
    accepted(&w);
    REFUSED(w.segments[0].n_blocks, 1, "17 positions");
    REFUSED(w.segments[0].first_block, -1, "from entry -1");
    REFUSED(w.segments[1].n_blocks, 4, "tables of 5");
    REFUSED(w.table[1], 4, "KV block 4 of 4");
    REFUSED(w.table[1], -1, "KV block -1 of 4");
    REFUSED(w.segments[1].first_row, 1, "row 2 of 3 comes next");
    REFUSED(w.segments[1].n_rows, 0, "rows [2, +0)");
    REFUSED(w.segments[0].first_position, -1, "first position -1");
    REFUSED(w.segments[0].first_position, INT32_MAX, "first position 2147483647");
    REFUSED(w.batch.n_rows, 4, "segments cover 3 of 4 rows");
    REFUSED(w.batch.n_rows, 5, "5 rows in 2 segments, but 4 in 3 are reserved");
    REFUSED(w.batch.n_segments, 4, "4 segments");
    REFUSED(w.slots[1], SLOTS, "slot 6 of row 1");
    REFUSED(w.slots[1], -1, "slot -1 of row 1");
    REFUSED(w.ids[2], VOCAB, "id 9 of row 2");
    REFUSED(w.ids[2], -2, "id -2 of row 2");
    REFUSED(w.batch.slots, NULL, "row 0 has neither an id nor a slot");
    REFUSED(w.batch.n_live, 3, "3 live rows of 2 segments");
    REFUSED(w.live[1].segment, 0, "segment 0 of 2, after segment 0");
    REFUSED(w.live[1].segment, 2, "segment 2 of 2");
    REFUSED(w.live[0].row, 0, "live row 0 is row 0");
    REFUSED(w.live[0].position, 15, "position 15");
    REFUSED(w.live[0].loop, 0, "loop 0");
    REFUSED(w.live[0].params, NULL, "without parameters");
    w.live[0].wants_logits = w.live[1].wants_logits = true;
    refused(&w, "logits of 2 rows are wanted, 1 are reserved");
    w.live[1].wants_logits = false;
    REFUSED(w.kv.block_size, 8, "8 positions a block");
    assert_int_equal(kernels_bind(w.s, &w.batch, &w.kv, 2, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "flight 2 of 2"));
    assert_int_equal(kernels_bind(w.b.s, &w.batch, &w.kv, 0, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "'test' is not reserved"));
    accepted(&w);
    world_close(&w);
}

static void test_kernels_bind_refuses_batches_that_do_not_fit(void **state)
{
    (void)state;
    for (int i = 0; i < N_BACKENDS; i++)
        check_refusals(all_backends[i]);
}

/* Operations look at nothing but what was bound. */
static void test_kernels_operations_keep_to_the_bound_batch(void **state)
{
    (void)state;
    struct world w;
    struct err err = {0};
    assert_true(world_open(&w, "portable"));
    float x[ROWS * 3 * HEADS * DIM] = {0}, out[ROWS * HEADS * DIM];
    assert_int_equal(kernels_attention(w.s, out, x, HEADS, &w.kv, 0, 3, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "no batch is bound"));
    accepted(&w);
    assert_int_equal(kernels_attention(w.s, out, x, HEADS, &w.kv, 0, 2, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "2 rows for a batch of 3"));
    assert_int_equal(kernels_attention(w.s, out, x, HEADS, &w.kv, 0, 5, &err), STATUS_INVALID);
    assert_int_equal(kernels_attention(w.s, out, x, 3, &w.kv, 0, 3, &err), STATUS_INVALID);
    assert_int_equal(kernels_attention(w.s, out, x, HEADS, &w.kv, 1, 3, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "layer 1 of 1"));
    const struct kernels_kv other = w.kv;
    assert_int_equal(kernels_attention(w.s, out, x, HEADS, &other, 0, 3, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "another KV pool"));
    const struct kernels_weight table = {
        .data = x, .dtype = DTYPE_F32, .rows = VOCAB - 1, .cols = DIM};
    assert_int_equal(kernels_load_rows(w.s, out, x, &table, 3, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "there are 9 ids"));
    w.batch.slots = NULL;
    w.ids[0] = 1;
    accepted(&w);
    assert_int_equal(kernels_store_rows(w.s, x, out, 3, DIM, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "without slots"));
    world_close(&w);
}

static void test_kernels_stream_reserve_refuses_what_cannot_be(void **state)
{
    (void)state;
    struct backend b;
    struct err err = {0};
    assert_true(backend_open("portable", 1, &b));
    struct kernels_limits l = limits;
    l.n_segments = ROWS + 1;
    assert_int_equal(kernels_stream_reserve(b.s, &l, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "4 rows in 5 segments"));
    l = limits;
    l.n_kv_heads = 3;
    assert_int_equal(kernels_stream_reserve(b.s, &l, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "2 query heads over 3 kv heads"));
    must(kernels_stream_reserve(b.s, &limits, &err), &err);
    assert_int_equal(kernels_stream_reserve(b.s, &limits, &err), STATUS_INVALID);
    struct kernels_kv kv;
    assert_int_equal(kernels_kv_create(b.k, DTYPE_F16, 4, 16, 1, 2, 8, &kv, &err), STATUS_INVALID);
    assert_int_equal(kernels_kv_create(b.k, DTYPE_F32, 4, 16, 1, 2, 7, &kv, &err), STATUS_INVALID);
    backend_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_bind_refuses_batches_that_do_not_fit),
        cmocka_unit_test(test_kernels_operations_keep_to_the_bound_batch),
        cmocka_unit_test(test_kernels_stream_reserve_refuses_what_cannot_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
