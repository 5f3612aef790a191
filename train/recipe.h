/* A recipe: everything that decides what a training run computes, read from one JSON file.
 *
 * Model, initial values, optimiser, stages one after another, and a curriculum that opens harder
 * problems and more loops as the running accuracies allow. train/recipes/ has examples;
 * docs/training.md is the reference of the format. */
#ifndef TRAIN_RECIPE_H
#define TRAIN_RECIPE_H

#include "model/config.h"
#include "proto/status.h"
#include "train/params.h"
#include "train/task.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    RECIPE_MAX_STAGES = 16,
    RECIPE_MAX_DATA = 16,
    RECIPE_MAX_TRACKS = 4,
    RECIPE_MAX_STEPS = 32,
    RECIPE_NAME_BYTES = 48,
    RECIPE_PATH_BYTES = 1024
};

enum recipe_objective {
    RECIPE_UNIFORM, /* (1/T) sum_t CE_t: the beta -> infinity limit of Stage I */
    RECIPE_ENTROPY, /* Stage I of arXiv 2510.25741: sum_t p_t CE_t - beta H(p) */
    RECIPE_LAST     /* CE_T only: plain looped and ordinary models */
};
enum recipe_decay { RECIPE_CONSTANT, RECIPE_LINEAR, RECIPE_COSINE };

/* A source of sequences: a task by name, or a JSONL file of texts ("text" field) packed to
 * seq_length with the recipe's tokenizer. */
struct recipe_data {
    char name[RECIPE_NAME_BYTES];
    const struct task *task; /* NULL: text */
    int knobs[TASK_MAX_KNOBS];
    char text[RECIPE_PATH_BYTES]; /* as written; recipe_file says where it lies */
};

struct recipe_stage {
    char name[RECIPE_NAME_BYTES];
    uint64_t steps;
    /* Ends before `steps`, but not before min_steps, once the curriculum is through and holds
     * (ends_when_open) or a step of a track has passed (until_track not -1); else always `steps`.
     */
    bool ends_when_open;
    int until_track, until_step;
    uint64_t min_steps;
    int batch;      /* sequences a step, over all ranks; a multiple of the recipe's shards */
    int seq_length; /* rows of a text sequence, 0 where the mix has no text; tasks bring their own
                     */
    float lr_begin, lr_end;
    enum recipe_decay decay;
    uint64_t warmup; /* steps from 0 to lr_begin */
    enum recipe_objective objective;
    /* Objective uniform only: a target of a level that needs p loops (task.first_loop) is
     * supervised at loops p .. T alone, so that shallow loops do not learn to guess deep answers.
     */
    bool from_level;
    float beta_begin, beta_end; /* linear over the stage */
    int loops; /* most loops of this stage, also more than the model's T; the curriculum may hold it
                * lower */
    /* Base of the rotary angles. The trainer puts it into params->config when the stage begins (or
     * is resumed); the last stage's is the model's own, so the exported config.json is true. */
    double rope_theta;
    /* The trainer gives optimizer_step a recipe with this in place of its own weight_decay. */
    float weight_decay;
    float data_weights[RECIPE_MAX_DATA]; /* mix of the recipe's sources; sum 1 after parsing */
    /* Looping regulariser of arXiv 2502.17416: + weight * mean_G (1 - R_G(k)); 0: none */
    float looping_weight;
    int looping_block; /* k */
};

/* One step of a track: what it sets when it begins, and what must be so for that. */
struct recipe_step {
    bool sets[TASK_MAX_KNOBS]; /* knobs of the track's task ... */
    int values[TASK_MAX_KNOBS];
    int loops;       /* open loops from here on; 0: unchanged */
    int needs_loops; /* waits until so many loops are open */
    bool holds;      /* waits until the staircase holds */
    /* Waits until the other tracks have passed these steps: begun them and passed, or gone further.
     * -1: does not wait for that track. */
    int after[RECIPE_MAX_TRACKS];
    /* Passed when watch_level is right at the deepest open loop as often as threshold says (that
     * accuracy begins at 0 with the step, to be earned anew) or, with RECIPE_WATCH_ALL, when every
     * open level of the task is at the first loop that can know it; never before min_steps. */
    int watch_level;
    float threshold;
    uint64_t min_steps;
    /* Not begun after `by` steps of the attempt, or not passed `within` so many of its own: start
     * anew. 0: no limit. */
    uint64_t by, within;
};
enum { RECIPE_WATCH_ALL = -1 };

/* Steps of one task, taken in order. */
struct recipe_track {
    int data;
    int n_steps;
    struct recipe_step steps[RECIPE_MAX_STEPS];
};
struct recipe_curriculum {
    int n_tracks; /* 0: none, all knobs and loops as the stages say */
    struct recipe_track tracks[RECIPE_MAX_TRACKS];
    /* A ladder: a track for every task, equally long; they move together, when all have passed. */
    bool is_ladder;
    float rate; /* e += rate * (correct - e) */
    /* The staircase holds while every open level of data `staircase_data` is right more often than
     * `hold` at the first loop that can know it (recipe_first_loop; the deepest open loop where
     * there are fewer). */
    float hold;
    int staircase_data; /* -1: no such condition, it always holds */
    /* Start anew, from other random values, when a step's limit or open_by is missed, at most so
     * often; after that the run goes on as it is. */
    int max_restarts;
    /* Stages that end when the curriculum is open must have ended after so many steps of the
     * attempt; 0: no limit. */
    uint64_t open_by;
};

struct recipe {
    char name[RECIPE_NAME_BYTES];
    char directory[RECIPE_PATH_BYTES]; /* of the recipe's file; file names are relative to it */
    struct model_config config;
    char tokenizer[RECIPE_PATH_BYTES]; /* a tokenizer.json for text; "": the tasks' 49 symbols */
    struct params_init init;
    float beta1, beta2, eps, weight_decay, clip; /* weight_decay: see recipe_stage */
    int shards; /* pieces of a step's batch, a power of two: gradients are added over them in one
                 * fixed tree, so ranks and threads up to this number give the same bits */
    int n_data;
    struct recipe_data data[RECIPE_MAX_DATA];
    int n_stages;
    struct recipe_stage stages[RECIPE_MAX_STAGES];
    struct recipe_curriculum curriculum;
};

/* Parses a recipe. STATUS_INVALID names the file and the field (by JSON path), the value found and
 * what is accepted; unknown fields are errors that name the nearest known one. STATUS_UNSUPPORTED
 * (model), STATUS_NOT_FOUND, STATUS_CORRUPT (not JSON). The tokenizer and the texts are not opened:
 * a recipe can be checked where its data is not. */
enum status recipe_load(const char *path, struct recipe *out, struct err *err);
enum status recipe_parse(const char *json, size_t len_bytes, const char *origin, struct recipe *out,
                         struct err *err);
/* Where a file that the recipe names lies. STATUS_INVALID when the path is too long. */
enum status recipe_file(const struct recipe *r, const char *name, char *path, size_t cap_bytes,
                        struct err *err);
/* 64-bit hash over every value that decides the run (no names, not the directory): a resumed run
 * must have the same. */
uint64_t recipe_fingerprint(const struct recipe *r);
/* Levels of all sources, one after another: data i's begin at recipe_first_level(r, i). A source
 * has as many as its knobs, or those of any step of its tracks, give; a text has none. */
int recipe_first_level(const struct recipe *r, int data);
int recipe_n_levels(const struct recipe *r);
/* The loop at which a level's answers can be there at the earliest; first_loops [recipe_n_levels].
 */
int recipe_first_loop(const struct recipe *r, int data, int level); /* of the source's level */
void recipe_first_loops(const struct recipe *r, uint8_t *first_loops);
uint64_t recipe_total_steps(const struct recipe *r); /* at most, all restarts included */
/* Of step `step` (from 0) of a stage: learning rate and beta. */
float recipe_lr(const struct recipe_stage *stage, uint64_t step);
float recipe_beta(const struct recipe_stage *stage, uint64_t step);

#endif
