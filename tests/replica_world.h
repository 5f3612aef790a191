/* A replica over a tiny random model, and the bookkeeping a stage would do: for tests of
 * replica_run. */
#ifndef TESTS_REPLICA_WORLD_H
#define TESTS_REPLICA_WORLD_H

#include "tests/unit.h"

#include "tests/tiny_model.h"
#include "worker/replica.h"

enum { MAX_ROWS = 288, MAX_POSITIONS = 48, N_SEQUENCES = 80, BLOCK = 4, VOCAB = 37 };
enum { MAX_BLOCKS = MAX_POSITIONS / BLOCK };

static const struct tiny_spec OURO = {.n_layers = 2,
                                      .d = 24,
                                      .ffn = 40,
                                      .n_heads = 3,
                                      .n_kv_heads = 1,
                                      .head_dim = 10,
                                      .vocab = VOCAB,
                                      .n_loops = 4,
                                      .seed = 7};

struct sequence_state {
    struct sequence_params params;
    int32_t ids[MAX_POSITIONS], slots[MAX_POSITIONS];
    int32_t blocks[SEQUENCE_MAX_LOOPS][MAX_BLOCKS];
    struct exit_state exit;
    int32_t targets[MAX_POSITIONS]; /* the test's, where it observes some */
};

struct world {
    struct tiny_model *model;
    struct replica *replica;
    struct sequence_state sequences[N_SEQUENCES];
    int32_t next_block, next_slot;
    int32_t *pool_ids;
    struct batch_outcome outcomes[MAX_ROWS];
    struct batch_result result;
};

/* A range of positions of one sequence at one loop. */
struct piece {
    int sequence, loop, first, n;
    bool is_live;
};

/* A backend, and a model with shapes that it takes: a GPU wants rows of whole 16-byte units. */
struct kind {
    const char *backend;
    bool is_deterministic;
    enum dtype kv_dtype;
    struct tiny_spec spec;
};

static const struct kind ON_CPU = {.backend = "cpu",
                                   .spec = {.n_layers = 2,
                                            .d = 24,
                                            .ffn = 40,
                                            .n_heads = 3,
                                            .n_kv_heads = 1,
                                            .head_dim = 10,
                                            .vocab = VOCAB,
                                            .n_loops = 4,
                                            .seed = 7}};
/* The same with heads of 16; its weights are bf16, as a GPU keeps them. */
static const struct kind ON_GPU = {.backend = "cuda",
                                   .is_deterministic = true,
                                   .kv_dtype = DTYPE_BF16,
                                   .spec = {.n_layers = 2,
                                            .d = 24,
                                            .ffn = 40,
                                            .n_heads = 3,
                                            .n_kv_heads = 1,
                                            .head_dim = 16,
                                            .vocab = VOCAB,
                                            .n_loops = 4,
                                            .dtype = DTYPE_BF16,
                                            .seed = 7}};

/* False, and a line that says why, where there is no such backend; the model is the world's, and
 * may have been changed by `change` before it is loaded. */
static inline bool world_open_on(struct world *w, const struct kind *kind, int n_threads,
                                 void (*change)(struct tiny_model *m))
{
    memset(w, 0, sizeof *w);
    w->model = tiny_create(&kind->spec);
    if (change != NULL)
        change(w->model);
    struct replica_config config = {.backend = kind->backend,
                                    .is_deterministic = kind->is_deterministic,
                                    .n_threads = n_threads,
                                    .kv_dtype = kind->kv_dtype,
                                    .kv_bytes = 8 << 20,
                                    .block_size = BLOCK,
                                    .max_batch_rows = MAX_ROWS,
                                    .max_sequences = N_SEQUENCES};
    struct err err;
    enum status st = replica_create(&w->model->checkpoint, &config, &w->replica, &err);
    if (st == STATUS_UNSUPPORTED && strcmp(kind->backend, "cuda") == 0) {
        print_message("not on a GPU: %s\n", err.message);
        tiny_destroy(w->model);
        return false;
    }
    if (st != STATUS_OK)
        fail_msg("%s", err.message);
    w->pool_ids = calloc(replica_get_geometry(w->replica)->n_slots, sizeof *w->pool_ids);
    w->result.outcomes = w->outcomes;
    return true;
}

static inline void world_open(struct world *w, const struct tiny_spec *spec, enum dtype kv_dtype,
                              int n_threads)
{
    const struct kind kind = {.backend = "cpu", .kv_dtype = kv_dtype, .spec = *spec};
    assert_true(world_open_on(w, &kind, n_threads, NULL));
}

static inline void world_close(struct world *w)
{
    replica_destroy(w->replica);
    tiny_destroy(w->model);
    free(w->pool_ids);
}

/* A sequence of n tokens that takes blocks and slots from where the world is, backwards or
 * forwards. */
static inline struct sequence_state *add(struct world *w, int i, int n, uint64_t seed)
{
    const struct model_config *c = &w->model->checkpoint.config;
    struct sequence_state *s = &w->sequences[i];
    sequence_params_init(&s->params);
    s->params.sequence = (uint64_t)i + 1;
    s->params.prompt_tokens = (uint32_t)n;
    s->params.max_tokens = 1;
    s->params.max_loops = (uint32_t)c->n_loops;
    s->exit = (struct exit_state){.survival = 1};
    for (int p = 0; p < n; p++)
        s->ids[p] = (int32_t)((tiny_uniform(&seed) + 1) / 2 * (c->vocab_size - 1));
    for (int p = 0; p < n; p++)
        s->slots[i % 2 ? n - 1 - p : p] = w->next_slot++;
    for (int b = 0; b < (n + BLOCK - 1) / BLOCK; b++)
        for (int t = 0; t < c->n_loops; t++)
            s->blocks[t][b] = w->next_block++;
    assert_true((uint32_t)w->next_block <= replica_get_geometry(w->replica)->n_blocks);
    assert_true((uint32_t)w->next_slot <= replica_get_geometry(w->replica)->n_slots);
    return s;
}

/* A batch and its arrays. */
struct stored_batch {
    struct batch b;
    struct batch_segment segments[MAX_ROWS];
    struct kernels_segment geometry[MAX_ROWS];
    int32_t table[MAX_ROWS * MAX_BLOCKS], slots[MAX_ROWS], ids[MAX_ROWS];
};

static inline void fill(struct world *w, const struct piece *pieces, int n_pieces,
                        struct stored_batch *to)
{
    to->b = (struct batch){.n_segments = (uint32_t)n_pieces,
                           .segments = to->segments,
                           .geometry = to->geometry,
                           .block_table = to->table,
                           .slots = to->slots,
                           .ids = to->ids,
                           .pool_ids = w->pool_ids,
                           .block_size = BLOCK};
    struct batch *b = &to->b;
    int n_table = 0;
    for (int i = 0; i < n_pieces; i++) {
        const struct piece *p = &pieces[i];
        struct sequence_state *s = &w->sequences[p->sequence];
        int n_blocks = (p->first + p->n + BLOCK - 1) / BLOCK;
        to->segments[i] = (struct batch_segment){s->params.sequence, &s->params, (uint32_t)p->loop,
                                                 p->is_live,         s->exit,    s->targets};
        to->geometry[i] =
            (struct kernels_segment){(int32_t)b->n_rows, p->n, p->first, n_table, n_blocks};
        for (int j = 0; j < n_blocks; j++)
            to->table[n_table++] = s->blocks[p->loop - 1][j];
        for (int j = p->first; j < p->first + p->n; j++) {
            w->pool_ids[s->blocks[p->loop - 1][j / BLOCK] * BLOCK + j % BLOCK] = s->ids[j];
            to->slots[b->n_rows] = s->slots[j];
            to->ids[b->n_rows++] = p->loop == 1 ? s->ids[j] : -1;
        }
    }
}

static inline void submit(struct world *w, const struct stored_batch *batch)
{
    struct err err;
    if (replica_submit(w->replica, &batch->b, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

/* The oldest batch, which was of these pieces. */
static inline void collect(struct world *w, const struct piece *pieces, int n_pieces)
{
    struct err err;
    if (replica_collect(w->replica, &w->result, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(w->result.n_segments, n_pieces);
    for (int i = 0; i < n_pieces; i++)
        if (pieces[i].is_live)
            w->sequences[pieces[i].sequence].exit = w->outcomes[i].exit;
}

static inline void run(struct world *w, const struct piece *pieces, int n_pieces)
{
    struct stored_batch batch;
    struct err err;
    fill(w, pieces, n_pieces, &batch);
    if (replica_run(w->replica, &batch.b, &w->result, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(w->result.n_segments, n_pieces);
    for (int i = 0; i < n_pieces; i++)
        if (pieces[i].is_live)
            w->sequences[pieces[i].sequence].exit = w->outcomes[i].exit;
}

/* n rows that stand one behind the other: into the slots, or out of them. */
static inline enum status move_rows(struct world *w, bool is_out, const int32_t *slots, int n,
                                    void *rows, struct err *err)
{
    void *hosts[MAX_POSITIONS];
    assert_true(n <= MAX_POSITIONS);
    for (int i = 0; i < n; i++)
        hosts[i] =
            (char *)rows + (size_t)i * (size_t)w->model->checkpoint.config.d_model * sizeof(float);
    enum status status = is_out ? replica_read_rows(w->replica, slots, hosts, (uint32_t)n, err)
                                : replica_write_rows(w->replica, slots, (const void *const *)hosts,
                                                     (uint32_t)n, err);
    return status == STATUS_OK ? replica_sync_rows(w->replica, err) : status;
}

static inline void read_hidden(struct world *w, int sequence, int n, float *out)
{
    assert_int_equal(move_rows(w, true, w->sequences[sequence].slots, n, out, NULL), STATUS_OK);
}

/* All loops of sequence i, whole and alone; hidden [T, n, d] as stored. */
static inline void run_alone(struct world *w, int i, int n, float *hidden)
{
    int d = w->model->checkpoint.config.d_model;
    for (int t = 1; t <= w->model->checkpoint.config.n_loops; t++) {
        run(w, &(struct piece){i, t, 0, n, true}, 1);
        read_hidden(w, i, n, hidden + (t - 1) * n * d);
    }
}

#endif
