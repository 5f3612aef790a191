/* One input line on its way: its prompts as ids, its choices as sequences, what they produced. */
#include "cli/batch_run.h"

#include "cli/batch_resume.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CODE_INVALID "invalid_request"
#define CODE_CONTEXT "context_length_exceeded"

const char *batch_error_code(const struct fault *fault)
{
    if (fault->code != NULL && strcmp(fault->code, CODE_CONTEXT) == 0)
        return CODE_CONTEXT;
    switch (fault->err.code) {
    case STATUS_CORRUPT:
        return "invalid_json";
    case STATUS_INVALID:
    case STATUS_UNSUPPORTED:
    case STATUS_NOT_FOUND:
        return CODE_INVALID;
    default:
        return BATCH_CODE_SERVER;
    }
}

enum status batch_job_create(struct batch *b, struct batch_line *line, uint64_t number,
                             struct batch_job **out, struct err *err)
{
    uint32_t n = body_n_choices(&line->body);
    struct batch_job *job = calloc(1, sizeof *job + n * sizeof job->choices[0]);
    if (job == NULL) {
        batch_line_clear(line);
        return err_set(err, STATUS_NO_MEMORY, "no memory for line %llu",
                       (unsigned long long)number);
    }
    job->batch = b;
    job->line = *line;
    job->number = number;
    job->created = (int64_t)time(NULL);
    job->n_choices = n;
    *line = (struct batch_line){0};
    bool wants_rows = body_wants_prompt_logprobs(&job->line.body);
    job->answers = calloc(n, sizeof *job->answers);
    if (wants_rows)
        job->prompt_rows = calloc(job->line.body.n_prompts, sizeof *job->prompt_rows);
    if (job->answers == NULL || (wants_rows && job->prompt_rows == NULL)) {
        batch_job_destroy(job);
        return err_set(err, STATUS_NO_MEMORY, "no memory for line %llu",
                       (unsigned long long)number);
    }
    for (uint32_t i = 0; i < n; i++) {
        job->choices[i].job = job;
        job->answers[i].index = i;
        job->answers[i].prompt = i / (uint32_t)job->line.body.fields.n;
    }
    *out = job;
    return STATUS_OK;
}

void batch_job_destroy(struct batch_job *job)
{
    if (job == NULL)
        return;
    for (uint32_t i = 0; job->answers != NULL && i < job->n_choices; i++)
        answer_choice_free(&job->answers[i]);
    free(job->answers);
    for (size_t i = 0; job->prompt_rows != NULL && i < job->line.body.n_prompts; i++)
        prompt_rows_free(job->prompt_rows[i]);
    free(job->prompt_rows);
    batch_line_clear(&job->line);
    free(job);
}

void batch_job_encode(struct batch_job *job)
{
    const struct session *s = job->batch->session;
    struct fault fault = {0};
    enum status status = body_encode(&job->line.body, s->tokenizer,
                                     s->checkpoint->config.vocab_size, s->model_dir, &fault);
    job->is_encoded = status == STATUS_OK;
    if (status != STATUS_OK)
        batch_job_fail(job, batch_error_code(&fault), &fault.err);
}

/* ---- callbacks ------------------------------------------------------------------------------ */

static void fail_no_memory(struct batch_choice *choice)
{
    struct err err;
    err_set(&err, STATUS_NO_MEMORY, "no memory for the answer");
    batch_job_fail(choice->job, BATCH_CODE_SERVER, &err);
}

/* Of several answers to one prompt the first one's sequence tells of the prompt. */
static bool observes(const struct batch_job *job, uint32_t index)
{
    return job->prompt_rows != NULL && index % (uint32_t)job->line.body.fields.n == 0;
}

static struct answer_choice *answer_of(const struct batch_choice *choice)
{
    return &choice->job->answers[choice - choice->job->choices];
}

static void on_token(void *user, const struct completion_token *t)
{
    struct batch_choice *c = user;
    if (!answer_choice_take(answer_of(c), &c->job->line.body.fields, t)) {
        fail_no_memory(c);
        return;
    }
    c->job->batch->n_tokens++;
    c->job->batch->sum_exit_loops += t->token->exit_loop;
}

/* The answer says how likely the prompt was, and cannot. */
static bool lacks_rows(const struct answer_choice *answer)
{
    return (answer->reason == FINISH_STOP || answer->reason == FINISH_LENGTH) &&
           answer->prompt_rows != NULL && !prompt_rows_are_complete(answer->prompt_rows);
}

static void on_end(void *user, const struct completion_end *end)
{
    struct batch_choice *c = user;
    struct answer_choice *answer = answer_of(c);
    struct err err;
    if (!answer_choice_end(answer, end->reason, end->text, end->text_bytes))
        fail_no_memory(c);
    if (end->reason == FINISH_ERROR) {
        err_set(&err, end->failure, "%s", end->message);
        /* A failure of a sequence while it runs is ours, unless the request asked for nonsense. */
        batch_job_fail(c->job, end->failure == STATUS_INVALID ? CODE_INVALID : BATCH_CODE_SERVER,
                       &err);
    } else if (observes(c->job, answer->index) && lacks_rows(answer)) {
        err_set(&err, STATUS_INTERNAL, "the log-probabilities of the prompt did not all arrive");
        batch_job_fail(c->job, BATCH_CODE_SERVER, &err);
    }
    batch_choice_ended(c);
}

/* ---- submission ----------------------------------------------------------------------------- */

static void on_observation(void *user, const struct control_observation *row)
{
    const struct batch_choice *c = user;
    prompt_rows_take(c->job->prompt_rows[answer_of(c)->prompt], row);
}

/* The targets of one prompt are its own ids; prompts of one line differ in length. */
static enum status make_rows(struct batch_job *job, uint32_t index, uint32_t i_prompt,
                             struct completion_request *request, struct fault *fault)
{
    struct sequence_params *p = &request->params;
    if (!observes(job, index)) {
        p->observe_top = p->n_observe_targets = 0;
        if (job->prompt_rows != NULL)
            job->answers[index].prompt_rows = job->prompt_rows[i_prompt];
        return STATUS_OK;
    }
    p->n_observe_targets = request->n_prompt - 1;
    request->observe_targets = request->prompt_ids + 1;
    request->on_observation = on_observation;
    if (job->prompt_rows[i_prompt] == NULL)
        job->prompt_rows[i_prompt] =
            prompt_rows_create(request->prompt_ids, request->n_prompt, p,
                               (uint32_t)job->batch->session->checkpoint->config.n_loops);
    job->answers[index].prompt_rows = job->prompt_rows[i_prompt];
    if (job->prompt_rows[i_prompt] != NULL)
        return STATUS_OK;
    struct err err;
    err_set(&err, STATUS_NO_MEMORY, "no memory for the rows of %u prompt tokens",
            request->n_prompt);
    fault_from_err(fault, &err);
    return err.code;
}

/* The request's parameters: the command line's, then the line's. */
static enum status make_request(struct batch_job *job, uint32_t index,
                                struct completion_request *request, struct fault *fault)
{
    const struct batch *b = job->batch;
    const struct body_fields *f = &job->line.body.fields;
    struct request_options defaults = *b->defaults;
    struct err err;
    /* The default stop ids depend on it. */
    if (f->given & BODY_IGNORE_EOS)
        defaults.ignore_eos = f->ignore_eos;
    uint32_t prompt = index / (uint32_t)f->n;
    request->prompt_ids = job->line.body.prompts[prompt].ids;
    request->n_prompt = (uint32_t)job->line.body.prompts[prompt].n_ids;
    enum status status =
        request_options_apply(&defaults, b->session, request->n_prompt, request, &err);
    if (status != STATUS_OK) {
        fault_from_err(fault, &err);
        return status;
    }
    status = body_apply(&job->line.body, &b->session->checkpoint->config, &request->params, fault);
    request->params.sampling.seed += index % (uint32_t)f->n;
    if (f->given & BODY_STOP) {
        request->n_stops = f->n_stops;
        memcpy(request->stops, f->stops, f->n_stops * sizeof f->stops[0]);
    }
    request->include_stop = f->include_stop;
    request->keep_special = !f->skip_special;
    return status == STATUS_OK ? make_rows(job, index, prompt, request, fault) : status;
}

enum status batch_job_submit(struct batch_job *job, struct err *err)
{
    struct batch *b = job->batch;
    uint32_t index = job->n_submitted;
    struct batch_choice *choice = &job->choices[index];
    struct completion_request request = {
        .user = choice,
        .on_token = on_token,
        .on_end = on_end,
    };
    struct fault fault = {0};
    enum status status = make_request(job, index, &request, &fault);
    if (status == STATUS_OK) {
        status = coordinator_submit(b->session->coordinator, &request, &choice->request, err);
        if (status != STATUS_OK && status != STATUS_FULL)
            fault_from_err(&fault, err);
    }
    if (status == STATUS_OK)
        job->n_submitted++;
    else if (status != STATUS_FULL)
        batch_job_fail(job, batch_error_code(&fault), &fault.err);
    return status;
}

void batch_job_cancel(struct batch_job *job)
{
    for (uint32_t i = 0; i < job->n_submitted; i++)
        if (!job->answers[i].has_ended)
            coordinator_cancel(job->batch->session->coordinator, job->choices[i].request);
}

void batch_job_fail(struct batch_job *job, const char *code, const struct err *err)
{
    if (job->code != NULL)
        return;
    job->code = code;
    job->err = *err;
    batch_job_cancel(job);
}
