/* Exits and tokens on the device, host side: scratch, the packed live rows, the order of the
 * launches. */
#include "kernels/cuda_finish.h"

#include "kernels/cuda_backend.h"
#include "kernels/rng.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

enum {
    /* Head rows the sampler takes at a time: bounds its scratch, 24 KB of bins a row. */
    MAX_WAVE = 256,
    /* Blocks of the gate: a row each up to here, two on every processor of a large device. */
    MAX_GATE_BLOCKS = 264
};

struct cuda_finish_scratch {
    struct cuda_finish_device device;
    void *memory;
    int32_t n_live_max, vocab_size;
};

/* Where the arrays lie in one block of memory: 16-byte aligned, widest first. */
static size_t carve(struct cuda_finish_scratch *f, unsigned char *memory)
{
    struct cuda_finish_device *d = &f->device;
    size_t n_wave = (size_t)d->n_wave, n_live = (size_t)f->n_live_max, at = 0;
    size_t len_bytes[] = {n_wave * (size_t)d->n_chunks * sizeof *d->chunks,
                          n_wave * CUDA_SAMPLE_BINS * sizeof *d->masses,
                          n_wave * CUDA_SAMPLE_BINS * sizeof *d->counts,
                          n_live * sizeof *d->is_exit,
                          n_live * sizeof *d->heads,
                          sizeof *d->n_heads};
    unsigned char *places[6];
    for (size_t i = 0; i < 6; i++) {
        places[i] = memory != NULL ? memory + at : NULL;
        at += (len_bytes[i] + 15) / 16 * 16;
    }
    d->chunks = (struct cuda_sample_chunk *)(void *)places[0];
    d->masses = (uint64_t *)(void *)places[1];
    d->counts = (uint32_t *)(void *)places[2];
    d->is_exit = (int32_t *)(void *)places[3];
    d->heads = (int32_t *)(void *)places[4];
    d->n_heads = (int32_t *)(void *)places[5];
    return at;
}

enum status cuda_finish_reserve(struct cuda_stream *s, struct err *err)
{
    const struct kernels_limits *l = &s->base.limits;
    assert(s->finish == NULL && l->n_segments > 0);
    if (l->vocab_size <= 0)
        return STATUS_OK; /* a stream without a head */
    struct cuda_finish_scratch *f = calloc(1, sizeof *f);
    if (f == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the exits of a stream");
    f->n_live_max = l->n_segments;
    f->vocab_size = l->vocab_size;
    f->device.n_wave = l->n_segments < MAX_WAVE ? l->n_segments : MAX_WAVE;
    f->device.n_chunks = (l->vocab_size + CUDA_SAMPLE_CHUNK - 1) / CUDA_SAMPLE_CHUNK;
    enum status st = cuda_check(cudaMalloc(&f->memory, carve(f, NULL)),
                                "cudaMalloc of the sampler's scratch", err);
    if (st != STATUS_OK) {
        free(f);
        return st;
    }
    carve(f, f->memory);
    s->finish = f;
    return STATUS_OK;
}

void cuda_finish_release(struct cuda_stream *s)
{
    if (s->finish == NULL)
        return;
    (void)cudaFree(s->finish->memory); /* nothing left to do about a failure */
    free(s->finish);
    s->finish = NULL;
}

size_t cuda_finish_pack_bytes(const struct kernels_limits *limits)
{
    return (size_t)limits->n_segments * sizeof(struct cuda_live);
}

struct cuda_live cuda_finish_live(const struct kernels_live *live, int32_t wanted_place)
{
    const struct sequence_params *params = live->params;
    const struct sampling_params *p = &params->sampling;
    int32_t n_logprobs =
        p->n_logprobs < SEQUENCE_MAX_LOGPROBS ? p->n_logprobs : SEQUENCE_MAX_LOGPROBS;
    return (struct cuda_live){
        .row = live->row,
        .exit = live->exit,
        .threshold = params->exit_threshold,
        .is_last = live->loop == params->max_loops,
        .may_exit = exit_rule_may_exit(params, live->loop, live->position),
        .is_forced = params->n_force_exits > 0,
        .wanted_place = wanted_place,
        .temperature = p->temperature,
        .top_p = p->top_p,
        .top_k = p->top_k,
        .n_logprobs = n_logprobs > 0 ? n_logprobs : 0,
        .least_exponent = p->min_p > 0 ? log((double)p->min_p) : -INFINITY,
        .uniform = (uint64_t)(rng_uniform(p->seed, live->position + 1, RNG_SAMPLE) * 0x1p53),
    };
}

void cuda_finish_pack(const struct cuda_stream *s, const struct kernels_batch *batch,
                      struct cuda_pack *pack, struct cuda_batch *out)
{
    out->n_live = batch->n_live;
    out->live = NULL;
    if (batch->n_live == 0)
        return;
    assert(batch->n_live <= s->base.limits.n_segments);
    struct cuda_live *live =
        cuda_pack_take(pack, (size_t)batch->n_live * sizeof *live, (void *)&out->live);
    int32_t n_wanted = 0;
    for (int32_t i = 0; i < batch->n_live; i++)
        live[i] = cuda_finish_live(&batch->live[i], batch->live[i].wants_logits ? n_wanted++ : -1);
    assert(n_wanted <= s->base.limits.n_wanted_logits);
}

enum status cuda_finish_exits(struct cuda_stream *s, const float *y, int d, const float *gate,
                              const float *bias, int max_heads, struct err *err)
{
    const struct cuda_finish_scratch *f = s->finish;
    int n_blocks = f->n_live_max < MAX_GATE_BLOCKS ? f->n_live_max : MAX_GATE_BLOCKS;
    enum status st = cuda_check(
        cuda_finish_launch_gate(s->device_batch, &f->device, y, d, gate, bias, n_blocks, s->stream),
        "gate and exit rule", err);
    if (st == STATUS_OK)
        st = cuda_check(cuda_finish_launch_list(s->device_batch, &f->device, max_heads, s->stream),
                        "list of exits", err);
    return st;
}

enum status cuda_finish_draw(struct cuda_stream *s, const float *logits, int max_heads,
                             struct err *err)
{
    const struct cuda_finish_scratch *f = s->finish;
    return cuda_check(cuda_sample_launch(s->device_batch, &f->device, logits, f->vocab_size,
                                         max_heads, s->stream),
                      "sampler", err);
}

enum status cuda_finish(struct kernels_stream *base, const struct kernels_finish *f,
                        struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    if (s->finish == NULL || f->head->rows != s->finish->vocab_size)
        return err_set(err, STATUS_INVALID,
                       "finish: a head of %d rows, stream '%s' was reserved for %d", f->head->rows,
                       base->name, s->finish != NULL ? s->finish->vocab_size : 0);
    int d = f->head->cols, n = f->max_heads;
    bool has_gate = f->gate != NULL;
    enum status st = cuda_finish_exits(s, f->y, d, has_gate ? f->gate->data : NULL,
                                       has_gate ? f->bias->data : NULL, n, err);
    if (st != STATUS_OK || n == 0)
        return st;
    st = cuda_check(cuda_finish_launch_gather(s->device_batch, &s->finish->device, f->head_rows,
                                              f->y, d, n, s->stream),
                    "rows of the head", err);
    if (st == STATUS_OK)
        st = cuda_linear(base, f->logits, DTYPE_F32, f->head_rows, &f->head, 1, n, err);
    if (st == STATUS_OK)
        st = cuda_finish_draw(s, f->logits, n, err);
    return st;
}

enum status cuda_gate(struct kernels_stream *s, float *lambda, const float *x, const int32_t *rows,
                      int n_selected, const struct kernels_weight *w,
                      const struct kernels_weight *bias, struct err *err)
{
    enum status st = STATUS_OK;
    for (int first = 0; first < n_selected && st == STATUS_OK; first += CUDA_GATE_ROWS) {
        struct cuda_gate_rows some = {{0}};
        int n = n_selected - first < CUDA_GATE_ROWS ? n_selected - first : CUDA_GATE_ROWS;
        for (int i = 0; i < n; i++)
            some.rows[i] = rows[first + i];
        st = cuda_check(cuda_gate_launch(lambda + first, x, &some, n, w->cols, w->data, bias->data,
                                         cuda_stream_of(s)->stream),
                        "gate", err);
    }
    return st;
}

enum status cuda_top_k(struct kernels_stream *s, int32_t *ids, float *values, const float *logits,
                       int n, int vocab_size, int top, struct err *err)
{
    return cuda_check(
        cuda_top_k_launch(ids, values, logits, n, vocab_size, top, cuda_stream_of(s)->stream),
        "top-k", err);
}
