/* Computes one step's gradient: shards over threads, summed in one tree whoever holds them. */
#include "train/trainer_private.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Keys of the streams that a run draws from; the third key of random_of is a sequence's index. */
enum { STREAM_MIX = -1 };

/* Which source the sequence takes. One random number a step and then even spacing: two sources of
 * equal weight get half of the batch each, at any batch, and which half moves. The golden ratio
 * spreads each source over all shards. */
static int choose_source(const struct trainer *t, const struct recipe_stage *stage, int index)
{
    struct random r = random_of(t->seed, t->state.step, (uint64_t)STREAM_MIX);
    double u = random_uniform(&r) + 0.6180339887498949 * index;
    u -= floor(u);
    int last = 0;
    for (int i = 0; i < t->recipe->n_data; i++) {
        if (stage->data_weights[i] <= 0)
            continue;
        last = i;
        if (u < (double)stage->data_weights[i])
            return i;
        u -= (double)stage->data_weights[i];
    }
    return last;
}

static enum status make_sequence(const struct trainer *t, const struct recipe_stage *stage,
                                 int index, struct sequence_rows *out, struct err *err)
{
    int i = choose_source(t, stage, index);
    sequence_rows_clear(out);
    /* A text has no levels. Sequences are counted as if every step had had this stage's batch. */
    if (t->texts[i] != NULL)
        return text_source_take(t->texts[i], stage->seq_length, t->seed,
                                t->state.step * (uint64_t)stage->batch + (uint64_t)index, -1, out,
                                err);
    struct random r = random_of(t->seed, t->state.step, (uint64_t)index);
    return t->recipe->data[i].task->train(t->state.knobs[i], &r, recipe_first_level(t->recipe, i),
                                          out, err);
}

static int first_sequence(const struct trainer *t, const struct recipe_stage *stage, int shard)
{
    return (int)((int64_t)stage->batch * shard / t->recipe->shards);
}

static enum status run_shard(struct trainer *t, struct trainer_thread *thread, int shard,
                             struct err *err)
{
    const struct recipe_stage *stage = &t->recipe->stages[t->state.stage];
    float *sum = reduce_shard(t->reduce, shard);
    memset(sum, 0, t->n_floats * sizeof *sum);
    int first = first_sequence(t, stage, shard), n = first_sequence(t, stage, shard + 1) - first;
    for (int i = 0; i < n; i++) {
        enum status status = make_sequence(t, stage, first + i, &thread->sequences[i], err);
        if (status != STATUS_OK)
            return status;
    }
    struct pass_options how = {.objective = stage->objective,
                               .n_loops = t->state.loops,
                               .beta = recipe_beta(stage, t->state.stage_step),
                               .scale = 1.0f / (float)stage->batch,
                               .first_loops = stage->from_level ? t->first_loops : NULL};
    struct metrics counts = {0};
    enum status status = STATUS_OK;
    if (n > 0)
        status = pass_run(thread->pass, thread->lent, n, &how, sum, &counts, err);
    memcpy(sum + t->params->n_values, &counts, sizeof counts);
    if (shard == t->first_shard)
        sum[t->n_floats - 1] = t->wants_stop ? 1.0f : 0.0f;
    return status;
}

static void step_work(void *context, int index)
{
    struct trainer *t = context;
    struct trainer_thread *thread = &t->threads[index];
    for (;;) {
        int shard = atomic_fetch_add_explicit(&t->next_shard, 1, memory_order_relaxed);
        if (shard >= t->end_shard)
            return;
        if (run_shard(t, thread, shard, &thread->err) != STATUS_OK) {
            thread->failed_shard = shard;
            return;
        }
    }
}

/* The failure of the lowest shard, so that the message is the same for any number of threads. */
static enum status collect_failure(const struct trainer *t, struct err *err)
{
    const struct trainer_thread *first = NULL;
    for (int i = 0; i < t->n_threads; i++) {
        const struct trainer_thread *thread = &t->threads[i];
        if (thread->failed_shard >= 0 &&
            (first == NULL || thread->failed_shard < first->failed_shard))
            first = thread;
    }
    return first == NULL ? STATUS_OK : err_set(err, first->err.code, "%s", first->err.message);
}

enum status trainer_gradients(struct trainer *t, const float **sum, struct metrics *counts,
                              bool *stop, struct err *err)
{
    atomic_store_explicit(&t->next_shard, t->first_shard, memory_order_relaxed);
    for (int i = 0; i < t->n_threads; i++)
        t->threads[i].failed_shard = -1;
    cpu_pool_run(t->pool, step_work, t);
    enum status status = collect_failure(t, err);
    if (status == STATUS_OK)
        status = reduce_sum(t->reduce, t->state.step, sum, err);
    if (status != STATUS_OK)
        return status;
    memcpy(counts, *sum + t->params->n_values, sizeof *counts);
    *stop = (*sum)[t->n_floats - 1] > 0;
    return STATUS_OK;
}

/* ---- places -----------------------------------------------------------------------------------
 */

static int most_rows(const struct trainer *t, const struct recipe_stage *stage)
{
    int most = 1;
    for (int i = 0; i < t->recipe->n_data; i++) {
        const struct task *task = t->recipe->data[i].task;
        int n = task != NULL ? task->max_rows(t->state.knobs[i]) : stage->seq_length;
        if (stage->data_weights[i] > 0 && n > most)
            most = n;
    }
    return most;
}

static enum status grow_thread(struct trainer_thread *thread, int n, int cap, struct err *err)
{
    if (n > thread->n_sequences) {
        struct sequence_rows *sequences =
            realloc(thread->sequences, (size_t)n * sizeof *thread->sequences);
        if (sequences != NULL)
            thread->sequences = sequences;
        const struct sequence_rows **lent = realloc(thread->lent, (size_t)n * sizeof *thread->lent);
        if (lent != NULL)
            thread->lent = lent;
        if (sequences == NULL || lent == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %d sequences a thread", n);
        memset(sequences + thread->n_sequences, 0,
               (size_t)(n - thread->n_sequences) * sizeof *sequences);
        thread->n_sequences = n;
    }
    for (int i = 0; i < thread->n_sequences; i++) {
        struct sequence_rows *s = &thread->sequences[i];
        thread->lent[i] = s;
        if (s->cap >= cap)
            continue;
        struct sequence_rows larger = {0};
        enum status status = sequence_rows_create(cap, &larger, err);
        if (status != STATUS_OK)
            return status;
        sequence_rows_free(s);
        *s = larger;
    }
    return STATUS_OK;
}

enum status trainer_enter_stage(struct trainer *t, struct err *err)
{
    const struct recipe_stage *stage = &t->recipe->stages[t->state.stage];
    t->params->config.rope_theta = stage->rope_theta;
    t->of_stage->weight_decay = stage->weight_decay;
    int cap = most_rows(t, stage);
    int n = (stage->batch + t->recipe->shards - 1) / t->recipe->shards;
    for (int i = 0; i < t->n_threads; i++) {
        enum status status = grow_thread(&t->threads[i], n, cap, err);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

void trainer_free_threads(struct trainer *t)
{
    for (int i = 0; t->threads != NULL && i < t->n_threads; i++) {
        struct trainer_thread *thread = &t->threads[i];
        for (int k = 0; k < thread->n_sequences; k++)
            sequence_rows_free(&thread->sequences[k]);
        free(thread->sequences);
        free(thread->lent);
        pass_destroy(thread->pass);
    }
    free(t->threads);
    t->threads = NULL;
}
