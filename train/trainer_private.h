/* Shared by the trainer's files: its object.
 *
 * trainer.c is the loop, trainer_step.c one step's gradients over threads, trainer_ranks.c what the
 * ranks agree on at the start, trainer_state.c what lies on disk. */
#ifndef TRAIN_TRAINER_PRIVATE_H
#define TRAIN_TRAINER_PRIVATE_H

#include "kernels/cpu_pool.h"
#include "kernels/grad.h"
#include "train/optimizer.h"
#include "train/params.h"
#include "train/pass.h"
#include "train/reduce.h"
#include "train/text_source.h"
#include "train/train_state.h"
#include "train/trainer.h"

#include <limits.h>
#include <stdatomic.h>

/* One thread's own: it takes whole shards, one after another. */
struct trainer_thread {
    struct pass *pass;
    struct sequence_rows *sequences;
    const struct sequence_rows **lent; /* [n_sequences] pointers to them, for pass_run */
    int n_sequences;                   /* of the largest shard so far */
    int failed_shard;                  /* -1: none */
    struct err err;
};

struct trainer {
    const struct trainer_options *options;
    const struct trainer_listener *listener;
    const struct recipe *recipe;
    struct recipe *of_stage; /* a copy with the present stage's weight decay, for the optimiser */
    /* What rank 0 has said, for all. */
    uint64_t seed, stop_after;
    uint64_t fingerprint;  /* of the recipe and of the texts it names; rank 0: and of init_from */
    uint64_t init_content; /* rank 0: of init_from when it was first read; 0: not yet */
    int lock;              /* rank 0: out_dir/lock; -1: none */
    const struct grad_ops *ops;

    uint8_t first_loops[METRICS_MAX_LEVELS]; /* where a level's targets begin to count */

    struct params *params;
    struct optimizer optimizer;
    struct curriculum_state state;
    struct text_source *texts[RECIPE_MAX_DATA]; /* NULL: a task */

    struct reduce *reduce;
    int rank, n_ranks;
    int first_shard, end_shard; /* this rank's */
    size_t n_floats;            /* gradient, metrics, and the wish to stop */

    struct cpu_pool *pool;
    struct trainer_thread *threads;
    int n_threads;
    atomic_int next_shard; /* within a step */
    bool wants_stop;

    float *looped; /* gradient with the regulariser's; NULL: no stage has it */
    float cosines[OPTIMIZER_LOOPING_GROUPS];
    bool has_cosines;

    struct metrics window;
    uint64_t n_window_steps;
    uint64_t begin_ns;
    double begin_cpu_s;
    char last_state[PATH_MAX]; /* the newest good one this process knows of; "": none */
};

/* ---- trainer_step.c ---------------------------------------------------------------------------
 */

/* Makes this rank's sequences of the step, runs them, and sums over all ranks: *sum is [n_floats],
 * *counts the whole step's. *stop: a rank wants to stop. */
enum status trainer_gradients(struct trainer *t, const float **sum, struct metrics *counts,
                              bool *stop, struct err *err);
/* Puts what the present stage and knobs decide in place: rotary base, weight decay, room for the
 * sequences. STATUS_NO_MEMORY. */
enum status trainer_enter_stage(struct trainer *t, struct err *err);
void trainer_free_threads(struct trainer *t);

/* ---- trainer_ranks.c --------------------------------------------------------------------------
 */

/* Opens the reduction, through which ranks tell each other of failures from then on. */
enum status trainer_connect(struct trainer *t, struct err *err);
/* Takes seed, stop_after and instruction set from rank 0, and compares the fingerprints.
 * STATUS_MISMATCH, STATUS_UNSUPPORTED. */
enum status trainer_agree(struct trainer *t, struct err *err);
/* Rank 0's values and curriculum on every rank; with the moments when it has resumed. */
enum status trainer_share(struct trainer *t, struct err *err);

/* ---- trainer_state.c --------------------------------------------------------------------------
 */

/* out_dir, with the directories above it. */
enum status trainer_make_directory(const char *path, struct err *err);
/* Rank 0: keeps out_dir for this process until trainer_close. STATUS_INVALID names the other. */
enum status trainer_lock(struct trainer *t, struct err *err);
/* Rank 0: reads init_from's weights, and adds its content to the fingerprint. */
enum status trainer_open_init(struct trainer *t, struct err *err);
/* Rank 0: fills values, moments and curriculum from a state, a model or the seed. */
enum status trainer_restore(struct trainer *t, struct err *err);
/* Fresh values for this attempt (all ranks draw alike), or those of init_from (rank 0 reads). */
enum status trainer_fresh_values(struct trainer *t, struct err *err);
/* Rank 0: writes the state; once a step only. */
enum status trainer_save(struct trainer *t, struct err *err);
/* Rank 0: out_dir/model. */
enum status trainer_export(struct trainer *t, struct err *err);

#endif
