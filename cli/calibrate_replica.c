/* Measures what batches cost on a replica: the block by rows, KV by positions, the head by exits.
 */
#include "cli/calibrate.h"
#include "cli/sorted.h"
#include "cluster/host.h"
#include "proto/frame.h"
#include "worker/worker_rows.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BLOCK_SIZE = 16,
    KV_ROWS = 4,         /* rows that read long contexts at the same time */
    KV_POSITIONS = 4096, /* the longest such context */
    HEAD_ROWS = 64,      /* the most exits of a batch */
    FRAME_ROWS = 64,     /* one-row frames of a bundle */
    MIN_ROUNDS = 5,
    MAX_ROUNDS = 101
};
/* KV for the long contexts at most; half of what is free bounds it, too. */
#define KV_BYTES (UINT64_C(1) << 30)
static const double LONG_BATCH_NS = 500e6;

/* One kind of batch: n_rows sequences of one row each at first_position. */
struct point {
    uint32_t n_rows, first_position;
    bool is_exit;
    uint32_t n_samples;
    double ns[MAX_ROUNDS], head_ns[MAX_ROUNDS];
};

struct bench {
    const struct calibrate *c;
    struct replica *replica;
    struct worker_rows rows;
    struct sequence_params params;
    struct batch batch;
    struct batch_result result;
    struct point *points;
    uint32_t n_points, n_block, n_head; /* block, then head, then the two of KV */
};

static double median(const double *values, uint32_t n)
{
    double sorted[MAX_ROUNDS];
    memcpy(sorted, values, n * sizeof *sorted);
    sorted_doubles(sorted, n);
    return sorted[n / 2];
}

/* Relative standard deviation as the middle half shows it: a machine that stood still for a moment
 * is not jitter. */
static double spread(const double *values, uint32_t n)
{
    double sorted[MAX_ROUNDS];
    memcpy(sorted, values, n * sizeof *sorted);
    sorted_doubles(sorted, n);
    return (sorted[(3 * n) / 4] - sorted[n / 4]) / 1.349 / sorted[n / 2];
}

/* ---- batches -------------------------------------------------------------------------------- */

static void fill_batch(struct bench *b, const struct point *p)
{
    uint32_t n_blocks = p->first_position / BLOCK_SIZE + 1;
    b->batch.n_rows = b->batch.n_segments = p->n_rows;
    for (uint32_t i = 0; i < p->n_rows; i++) {
        b->batch.segments[i] = (struct batch_segment){.sequence = 1,
                                                      .params = &b->params,
                                                      .loop = 1,
                                                      .has_live = p->is_exit,
                                                      .exit = {.survival = 1}};
        b->batch.geometry[i] =
            (struct kernels_segment){.first_row = (int32_t)i,
                                     .n_rows = 1,
                                     .first_position = (int32_t)p->first_position,
                                     .first_block = (int32_t)(i * n_blocks),
                                     .n_blocks = (int32_t)n_blocks};
        b->batch.slots[i] = (int32_t)i;
        b->batch.ids[i] = (int32_t)i % b->c->checkpoint->config.vocab_size;
    }
}

static enum status time_once(struct bench *b, double *ns, struct err *err)
{
    uint64_t start_ns = host_now_ns();
    enum status status = replica_run(b->replica, &b->batch, &b->result, err);
    *ns = (double)(host_now_ns() - start_ns);
    return status;
}

/* The second of two: caches hold what a batch of this kind leaves in them, as in a run that does
 * such batches one after the other. A long batch reads more than caches hold: once is enough. */
static enum status run_point(struct bench *b, struct point *p, bool is_warmup, struct err *err)
{
    double ns;
    fill_batch(b, p);
    enum status status = time_once(b, &ns, err);
    if (status == STATUS_OK && !is_warmup && ns < LONG_BATCH_NS)
        status = time_once(b, &ns, err);
    if (status != STATUS_OK || is_warmup)
        return status;
    p->ns[p->n_samples] = ns;
    p->head_ns[p->n_samples++] = (double)b->result.head_ns;
    return STATUS_OK;
}

/* All points in turn, again and again: what slows the machine down for a while slows all of them.
 */
static enum status run_rounds(struct bench *b, struct err *err)
{
    enum status status = STATUS_OK;
    for (uint32_t i = 0; i < b->n_points && status == STATUS_OK; i++)
        status = run_point(b, &b->points[i], true, err);
    uint64_t start_ns = host_now_ns();
    for (uint32_t round = 0; round < MAX_ROUNDS && status == STATUS_OK; round++) {
        if (round >= MIN_ROUNDS && (double)(host_now_ns() - start_ns) > b->c->seconds * 1e9)
            break;
        for (uint32_t i = 0; i < b->n_points && status == STATUS_OK; i++)
            status = run_point(b, &b->points[i], false, err);
    }
    return status;
}

/* ---- a row's way ---------------------------------------------------------------------------- */

/* One-row frames into a bundle with their rows from the replica's store, and back: what the driver
 * does for every row of a decode step. */
static enum status one_trip(struct bench *b, unsigned char *bytes, size_t cap, struct err *err)
{
    const struct model_config *m = &b->c->checkpoint->config;
    uint32_t d = (uint32_t)m->d_model;
    struct bundle_writer writer;
    struct bundle_reader reader;
    struct frame_limits limits = {.d_model = d,
                                  .n_loops = 2,
                                  .max_positions = (uint32_t)m->max_positions,
                                  .vocab_size = (uint32_t)m->vocab_size};
    enum status status = STATUS_OK;
    bundle_begin(&writer, bytes, cap, d, 0, 0);
    for (int32_t i = 0; i < FRAME_ROWS && status == STATUS_OK; i++) {
        struct frame frame = {
            .sequence = 1, .loop = 2, .n_rows = 1, .flags = FRAME_LIVE, .survival = 1};
        int32_t id = 0;
        void *ids, *rows;
        status = bundle_add(&writer, &frame, &ids, &rows, err);
        if (status != STATUS_OK)
            break;
        memcpy(ids, &id, sizeof id);
        status = worker_rows_leave(&b->rows, &i, 1, rows, err);
    }
    size_t len = bundle_end(&writer);
    if (status == STATUS_OK)
        status = worker_rows_finish(&b->rows, err);
    if (status == STATUS_OK)
        status = bundle_open(&reader, bytes, len, &limits, err);
    for (int32_t i = 0; i < FRAME_ROWS && status == STATUS_OK; i++) {
        struct frame frame;
        bool has_frame;
        status = bundle_next(&reader, &frame, &has_frame, err);
        if (status == STATUS_OK)
            status = worker_rows_arrive(&b->rows, &i, 1, frame.rows, err);
    }
    return status == STATUS_OK ? worker_rows_finish(&b->rows, err) : status;
}

static enum status time_rows(struct bench *b, struct err *err)
{
    size_t cap =
        bundle_header_bytes() +
        FRAME_ROWS * frame_bytes(2, 1, FRAME_LIVE, (uint32_t)b->c->checkpoint->config.d_model);
    unsigned char *bytes = malloc(cap);
    if (bytes == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu bytes", cap);
    double ns[MAX_ROUNDS];
    enum status status = worker_rows_create(
        &b->rows, b->replica, (uint32_t)b->c->checkpoint->config.d_model, FRAME_ROWS, err);
    if (status == STATUS_OK)
        status = one_trip(b, bytes, cap, err);
    for (int i = 0; i < MAX_ROUNDS && status == STATUS_OK; i++) {
        uint64_t start_ns = host_now_ns();
        status = one_trip(b, bytes, cap, err);
        ns[i] = (double)(host_now_ns() - start_ns);
    }
    free(bytes);
    if (status == STATUS_OK) /* out and in cost about the same */
        b->c->cost->worker_row_ns = median(ns, MAX_ROUNDS) / FRAME_ROWS / 2;
    return status;
}

/* ---- from samples to costs ------------------------------------------------------------------ */

/* What the exits of a batch cost. A device does not say: then it is what such a batch takes longer
 * than one of as many rows without exits. */
static double head_cost(const struct bench *b, const struct point *exits)
{
    double ns = median(exits->head_ns, exits->n_samples);
    for (uint32_t i = 0; i < b->n_block && ns <= 0; i++) {
        const struct point *p = &b->points[i];
        if (p->n_rows == exits->n_rows)
            ns = median(exits->ns, exits->n_samples) - median(p->ns, p->n_samples);
    }
    return ns > 0 ? ns : 0;
}

static void set_costs(struct bench *b)
{
    struct cost_model *m = b->c->cost;
    double jitters[COST_MODEL_MAX_POINTS];
    for (uint32_t i = 0; i < b->n_block; i++) {
        const struct point *p = &b->points[i];
        m->block.x[i] = p->n_rows;
        m->block.y[i] = median(p->ns, p->n_samples);
        jitters[i] = spread(p->ns, p->n_samples);
    }
    m->block.n_points = b->n_block;
    for (uint32_t i = 0; i < b->n_head; i++) {
        const struct point *p = &b->points[b->n_block + i];
        m->head.x[i] = p->n_rows;
        m->head.y[i] = head_cost(b, p);
    }
    m->head.n_points = b->n_head;
    struct cost_curve *curves[] = {&m->block, &m->head};
    for (int k = 0; k < 2; k++) { /* the slope beyond the last point is not negative */
        uint32_t n = curves[k]->n_points;
        if (n > 1 && curves[k]->y[n - 1] < curves[k]->y[n - 2])
            curves[k]->y[n - 1] = curves[k]->y[n - 2];
    }
    m->jitter = median(jitters, b->n_block);
    if (m->jitter > COST_MODEL_MAX_JITTER) {
        fprintf(stderr,
                "carousel bench calibrate: batches of one kind differ by %.0f %%; is the machine "
                "busy with something else? %.0f %% is written\n",
                100 * m->jitter, 100 * COST_MODEL_MAX_JITTER);
        m->jitter = COST_MODEL_MAX_JITTER;
    }
    const struct point *near = &b->points[b->n_points - 2], *far = near + 1;
    double n = (double)near->n_rows * (far->first_position - near->first_position);
    double more = median(far->ns, far->n_samples) - median(near->ns, near->n_samples);
    m->kv_position_ns = n > 0 && more > 0 ? more / n : 0;
}

/* ---- a replica to measure on ---------------------------------------------------------------- */

static enum status plan_points(struct bench *b, uint32_t context, struct err *err)
{
    uint32_t max_rows = (uint32_t)b->c->max_rows;
    b->points = calloc(2 * COST_MODEL_MAX_POINTS + 2, sizeof *b->points);
    if (b->points == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the samples");
    struct point *p = b->points;
    for (uint32_t n = 1; n <= max_rows; n *= 2, p++)
        *p = (struct point){.n_rows = n};
    if ((max_rows & (max_rows - 1)) != 0)
        *p++ = (struct point){.n_rows = max_rows};
    b->n_block = (uint32_t)(p - b->points);
    for (uint32_t n = 1; n <= HEAD_ROWS && n <= max_rows; n *= 4, p++)
        *p = (struct point){.n_rows = n, .is_exit = true};
    b->n_head = (uint32_t)(p - b->points) - b->n_block;
    uint32_t n_kv = max_rows < KV_ROWS ? max_rows : KV_ROWS;
    *p++ = (struct point){.n_rows = n_kv, .first_position = context / 4};
    *p++ = (struct point){.n_rows = n_kv, .first_position = context - 1};
    b->n_points = (uint32_t)(p - b->points);
    return STATUS_OK;
}

/* The longest context whose KV for KV_ROWS sequences fits the limit, and the bytes for it. */
static uint32_t plan_context(const struct calibrate *c, uint64_t *kv_bytes)
{
    const struct model_config *m = &c->checkpoint->config;
    uint64_t position =
        config_kv_bytes_per_position(m, c->kv_dtype) + (uint64_t)m->d_model * sizeof(float);
    uint64_t limit = KV_BYTES, free_bytes = host_memory_available_bytes();
    if (free_bytes != 0 && free_bytes / 2 < limit)
        limit = free_bytes / 2;
    uint64_t context = limit / position / KV_ROWS;
    if (context > KV_POSITIONS)
        context = KV_POSITIONS;
    if (context > (uint64_t)m->max_positions)
        context = (uint64_t)m->max_positions;
    if (context < 1)
        context = 1;
    /* A block for each row of the largest batch, or the long contexts. */
    uint64_t positions = (context + BLOCK_SIZE) * KV_ROWS;
    uint64_t rows = (uint64_t)c->max_rows * BLOCK_SIZE;
    *kv_bytes = (positions > rows ? positions : rows) * position;
    return (uint32_t)context;
}

static enum status open_bench(struct bench *b, struct err *err)
{
    const struct calibrate *c = b->c;
    uint64_t kv_bytes;
    uint32_t context = plan_context(c, &kv_bytes);
    struct replica_config config = {.backend = c->blocks != NULL ? "timed" : c->backend,
                                    .cost_file = c->blocks,
                                    .isa = c->isa,
                                    .n_threads = c->n_threads,
                                    .may_spin = c->n_threads <= host_n_cores(),
                                    .kv_dtype = c->kv_dtype,
                                    .kv_bytes = kv_bytes,
                                    .block_size = BLOCK_SIZE,
                                    .max_batch_rows = (uint32_t)c->max_rows,
                                    .max_sequences = (uint32_t)c->max_rows};
    enum status status = replica_create(c->checkpoint, &config, &b->replica, err);
    if (status == STATUS_OK)
        status = replica_fill_kv(b->replica, err);
    if (status == STATUS_OK)
        status = plan_points(b, context, err);
    if (status != STATUS_OK)
        return status;
    size_t n = (size_t)c->max_rows, n_slots = replica_get_geometry(b->replica)->n_slots;
    size_t n_table = replica_get_geometry(b->replica)->n_blocks;
    b->batch.segments = calloc(n, sizeof *b->batch.segments);
    b->batch.geometry = calloc(n, sizeof *b->batch.geometry);
    b->batch.slots = calloc(n, sizeof *b->batch.slots);
    b->batch.ids = calloc(n, sizeof *b->batch.ids);
    b->batch.block_table = calloc(n_table, sizeof *b->batch.block_table);
    b->batch.pool_ids = calloc(n_slots, sizeof *b->batch.pool_ids);
    b->batch.block_size = BLOCK_SIZE;
    b->result.outcomes = calloc(n, sizeof *b->result.outcomes);
    if (b->batch.segments == NULL || b->batch.geometry == NULL || b->batch.slots == NULL ||
        b->batch.ids == NULL || b->batch.block_table == NULL || b->batch.pool_ids == NULL ||
        b->result.outcomes == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for batches of %zu rows", n);
    for (size_t i = 0; i < n_table; i++)
        b->batch.block_table[i] = (int32_t)i;
    sequence_params_init(&b->params);
    b->params.sequence = b->params.prompt_tokens = b->params.max_tokens = b->params.max_loops = 1;
    return STATUS_OK;
}

static void close_bench(struct bench *b)
{
    worker_rows_destroy(&b->rows);
    replica_destroy(b->replica);
    free(b->batch.segments);
    free(b->batch.geometry);
    free(b->batch.slots);
    free(b->batch.ids);
    free(b->batch.block_table);
    free((int32_t *)(uintptr_t)b->batch.pool_ids);
    free(b->result.outcomes);
    free(b->points);
}

enum status calibrate_replica(const struct calibrate *c, struct err *err)
{
    struct bench b = {.c = c};
    enum status status = open_bench(&b, err);
    if (status == STATUS_OK && c->blocks == NULL)
        status = run_rounds(&b, err);
    if (status == STATUS_OK && c->blocks == NULL)
        set_costs(&b);
    if (status == STATUS_OK)
        status = time_rows(&b, err);
    close_bench(&b);
    return status;
}
