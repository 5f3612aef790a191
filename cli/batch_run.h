/* The run of a batch: a window of requests under way, their answers as they end.
 *
 * A job is one input line, a choice one sequence of it. The window bounds memory: the next line is
 * read when choices end, never earlier. */
#ifndef CLI_BATCH_RUN_H
#define CLI_BATCH_RUN_H

#include "cli/batch_ids.h"
#include "cli/batch_input.h"
#include "cli/batch_line.h"
#include "cli/progress.h"
#include "cli/request_options.h"
#include "cli/session.h"
#include "coordinator/answer.h"
#include "coordinator/coordinator.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct batch_job;

struct batch_choice {
    struct batch_job *job;
    uint64_t request; /* the coordinator's id; 0 before it is submitted */
};

struct batch_job {
    struct batch *batch;
    struct batch_line line;
    uint64_t number; /* of the line */
    uint64_t input_hash;
    int64_t created;                  /* unix seconds */
    bool is_encoded;                  /* its prompts are ids */
    struct prompt_rows **prompt_rows; /* [line.body.n_prompts] where the prompts' own
                                         log-probabilities are asked for; else NULL */
    struct answer_choice *answers;    /* [n_choices]: what they produced */
    uint32_t n_choices, n_submitted, n_ended;
    const char *code; /* of the failure; NULL: none */
    struct err err;
    struct batch_job *previous, *next; /* in batch.running or batch.finished */
    struct batch_choice choices[];
};

struct batch_totals {
    uint64_t n_total; /* lines of the input; 0 unknown */
    uint64_t n_done, n_skipped, n_errors;
    uint64_t n_choices, prompt_tokens, tokens, sum_exit_loops;
    uint64_t exits[SEQUENCE_MAX_LOOPS];
    double wall_s;
};

struct batch {
    struct session *session;
    const struct request_options *defaults;
    struct batch_input input;
    struct batch_ids ids;
    int output_fd;
    const char *output_name;
    bool is_output_broken; /* a write failed: nothing more is appended */
    bool is_reader_gone;   /* ... because whoever read it has left */
    uint64_t run_hash;     /* of batch_hash_run */
    char run_id[32];       /* makes response ids unique over runs */
    char model_name[128];
    char fingerprint[24];                             /* system_fingerprint of the answers */
    struct text line;                                 /* of the output: its memory is used again */
    uint32_t window;                                  /* choices under way at most */
    uint32_t n_flying;                                /* choices submitted and not ended */
    struct batch_job *pending;                        /* read, not completely submitted */
    struct batch_job *running;                        /* completely submitted */
    struct batch_job *finished_first, *finished_last; /* answers to be written */
    bool is_input_ended;
    struct progress progress;
    uint64_t n_tokens, sum_exit_loops; /* as they come, for the progress; totals count answers */
    struct batch_totals totals;
    uint64_t started_ns;
};

/* Runs until the input is answered. STATUS_CANCELLED after a signal (blocked by the caller, seen as
 * pending): SIGINT and SIGTERM drop what is under way, SIGUSR1 finishes it but takes no further
 * line; what ended is written. After SIGUSR1 with no line left: STATUS_OK. STATUS_INVALID:
 * a line's answer in the output is that of another line or of other options; the same run would
 * fail again. Any other failure likewise leaves the output in order, and a later run does the
 * rest. */
enum status batch_run(struct batch *b, struct err *err);

/* ---- batch_job.c ---------------------------------------------------------------------------- */

/* Takes the line over (clears it on failure). STATUS_NO_MEMORY. */
enum status batch_job_create(struct batch *b, struct batch_line *line, uint64_t number,
                             struct batch_job **out, struct err *err);
void batch_job_destroy(struct batch_job *job); /* NULL is fine */
/* Makes the token ids of all prompts; when it cannot, the line has failed. */
void batch_job_encode(struct batch_job *job);
/* Submits the next choice. STATUS_FULL: later; others are the line's own failure. */
enum status batch_job_submit(struct batch_job *job, struct err *err);
/* The line has failed: the first reason stays, and what is under way is cancelled. */
void batch_job_fail(struct batch_job *job, const char *code, const struct err *err);
/* Cancels its choices that are under way. */
void batch_job_cancel(struct batch_job *job);
/* The error code in the output for a failure of that kind. */
const char *batch_error_code(const struct fault *fault);

/* A choice has ended (from the callback). In batch_run.c. */
void batch_choice_ended(struct batch_choice *choice);

#endif
