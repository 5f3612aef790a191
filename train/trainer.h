/* The training loop: generate, pass, reduce, update, decide, log, save; one object a rank.
 *
 * Rank 0 writes; every rank computes the same parameters. The values after a step depend on the
 * recipe, the seed and the instruction-set level only: not on ranks, threads, or where the run was
 * interrupted. */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H

#include "cluster/transport.h"
#include "train/curriculum.h"
#include "train/recipe.h"

#include <stdbool.h>
#include <stdint.h>

struct trainer_options {
    const struct recipe *recipe;
    const char *out_dir; /* made when missing; rank 0 alone reads and writes it */
    const char *resume;  /* NULL: start; a state file, or a directory: its newest */
    bool resume_if_any;  /* resume NULL: go on with out_dir's newest state where there is one */
    /* NULL, or a model directory or state file to start the weights from. Its content is part of
     * what the run is: a resume needs it again. Rank 0 reads it. */
    const char *init_from;
    uint64_t seed;
    int n_threads;
    const char *isa;
    uint64_t save_every; /* steps; 0: only at the end */
    int keep;            /* state files that stay */
    uint64_t stop_after; /* steps of this process, 0: all (a job with a time limit) */
    uint64_t report_every;
    int silence_limit_s;         /* how long a rank may be silent; 0: reduce's own */
    struct transport *transport; /* NULL: one rank */
};

/* How the run begins, once all ranks agree. */
struct trainer_start {
    uint64_t step;            /* 0, or that of the state */
    const char *resumed_from; /* the state file; NULL: from the beginning */
    size_t n_parameters;
    int n_ranks, n_threads; /* threads of this rank */
    const char *isa;
};

/* What on_report sees, every report_every steps and at events. */
struct trainer_report {
    const struct curriculum_state *state;
    unsigned events; /* enum curriculum_event */
    /* The last of a window: the next report's sum begins anew. False between, at events and in
     * on_step. */
    bool ends_window;
    const struct metrics *sum; /* of the window so far */
    uint64_t n_steps;          /* in it */
    float lr, beta, grad_norm; /* of the last step */
    const float *cosines;      /* of the looping regulariser, by group; NULL: there is none */
    double seconds;            /* wall time of this process so far */
    double cpu_seconds;        /* likewise, this rank's threads */
};
/* Called on rank 0 only, but for on_opened, which every rank calls when all is read and before it
 * makes threads, and should_stop, which every rank asks after every step: when any says yes, all
 * stop after the next one. Nothing is trained when on_start fails. Each may be NULL. */
struct trainer_listener {
    void (*on_opened)(void *user);
    enum status (*on_start)(void *user, const struct trainer_start *start, struct err *err);
    void (*on_step)(void *user, const struct trainer_report *report);
    void (*on_report)(void *user, const struct trainer_report *report);
    void (*on_saved)(void *user, const char *path);
    bool (*should_stop)(void *user);
    void *user;
};

/* Trains to the end, to stop_after or to should_stop; a stopped run has saved its state. *finished:
 * the recipe is through and the model exported to out_dir/model. On an error (NaN loss, full disk,
 * lost rank) the last good state is untouched and the message says how to go on from it. Rank 0
 * hears of an error of any rank that could still tell: a rank above 0 need not print its own unless
 * it is STATUS_TIMEOUT or STATUS_IO. */
enum status trainer_run(const struct trainer_options *options,
                        const struct trainer_listener *listener, bool *finished, struct err *err);

/* A rank that cannot even begin (its host lacks the recipe) tells the others why. */
void trainer_decline(struct transport *transport, const struct err *why);

#endif
