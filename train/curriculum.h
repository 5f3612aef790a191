/* What is open now: stage, loops, knobs; a pure function of the counts of every step.
 *
 * Decides after each step whether a track moves on, a stage ends, or the run starts anew. */
#ifndef TRAIN_CURRICULUM_H
#define TRAIN_CURRICULUM_H

#include "train/metrics.h"
#include "train/recipe.h"

#include <stdbool.h>
#include <stdint.h>

/* Plain data: saved and restored as a whole. */
struct curriculum_state {
    uint64_t step;                            /* of the run so far, over all attempts */
    uint64_t attempt_step;                    /* since the last restart */
    uint64_t stage_step;                      /* within the stage */
    uint64_t track_begins[RECIPE_MAX_TRACKS]; /* attempt_step when the track's step began */
    int32_t stage;
    int32_t attempt; /* restarts so far */
    int32_t loops;   /* open */
    int32_t track_steps[RECIPE_MAX_TRACKS];
    int32_t knobs[RECIPE_MAX_DATA][TASK_MAX_KNOBS];
    int32_t is_finished; /* after the last step of the last stage */
    float accuracy[METRICS_MAX_LEVELS][METRICS_MAX_LOOPS]; /* running, per level and loop */
};

enum curriculum_event {
    CURRICULUM_NONE = 0,
    CURRICULUM_ADVANCED = 1, /* a track or the loops moved */
    CURRICULUM_STAGE = 2,    /* the next stage has begun */
    CURRICULUM_RESTART = 4,  /* draw new parameters, forget the moments */
    CURRICULUM_FINISHED = 8  /* after the last step of the last stage */
};

void curriculum_init(const struct recipe *r, struct curriculum_state *s);
/* Takes a step's counts; returns the events as a mask. A level with n targets, c of them right,
 * moves its accuracy e by (1 - (1 - rate)^n) (c / n - e): n single updates in one. After RESTART
 * stage and tracks are back at the beginning, `attempt` is one more. Once finished: FINISHED, no
 * change. */
unsigned curriculum_step(const struct recipe *r, struct curriculum_state *s,
                         const struct metrics *counts);
/* True when every track is at its last step and that one has passed, and the staircase holds. */
bool curriculum_is_open(const struct recipe *r, const struct curriculum_state *s);
bool curriculum_staircase_holds(const struct recipe *r, const struct curriculum_state *s);

#endif
