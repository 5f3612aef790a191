/* The training loop: generate, pass, reduce, update, decide, log, save; one object a rank.
 *
 * Rank 0 writes; every rank computes the same parameters. */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H

#include "cluster/transport.h"
#include "train/curriculum.h"
#include "train/recipe.h"

#include <stdbool.h>
#include <stdint.h>

struct trainer_options {
    const struct recipe *recipe;
    const char *out_dir;   /* made when missing */
    const char *resume;    /* NULL: start; a state file, or a directory: its newest */
    const char *init_from; /* NULL, or a model directory to start the weights from */
    uint64_t seed;
    int n_threads;
    const char *isa;
    uint64_t save_every; /* steps; 0: only at the end */
    int keep;            /* state files that stay */
    uint64_t stop_after; /* steps of this process, 0: all (a job with a time limit) */
    uint64_t report_every;
    struct transport *transport; /* NULL: one rank */
};

/* What on_report sees, every report_every steps and at events. */
struct trainer_report {
    const struct curriculum_state *state;
    unsigned events;           /* enum curriculum_event */
    const struct metrics *sum; /* since the last report */
    uint64_t n_steps;          /* in it */
    float lr, beta, grad_norm;
    double seconds;     /* wall time of this process so far */
    double cpu_seconds; /* likewise, this rank's threads */
};
struct trainer_listener {
    void (*on_report)(void *user, const struct trainer_report *report);
    void (*on_saved)(void *user, const char *path);
    bool (*should_stop)(void *user); /* asked after every step on rank 0: a signal came */
    void *user;
};

/* Trains to the end, to stop_after or to should_stop; a stopped run has saved its state. *finished:
 * the recipe is through and the model exported. On an error (NaN loss, full disk, lost rank) the
 * last good state is untouched and the message says how to go on from it. */
enum status trainer_run(const struct trainer_options *options,
                        const struct trainer_listener *listener, bool *finished, struct err *err);

#endif
