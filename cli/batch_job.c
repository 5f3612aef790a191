/* One input line on its way: its prompts as ids, its choices as sequences, what they produced. */
#include "cli/batch_run.h"

#include "cli/batch_resume.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CODE_INVALID "invalid_request"
#define CODE_CONTEXT "context_length_exceeded"

const char *batch_error_code(enum status status)
{
    switch (status) {
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
    uint32_t n = batch_line_n_choices(line);
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
    for (uint32_t i = 0; i < n; i++)
        job->choices[i].job = job;
    job->ids = calloc(line->n_prompts, sizeof *job->ids);
    job->n_ids = calloc(line->n_prompts, sizeof *job->n_ids);
    *line = (struct batch_line){0};
    if (job->ids == NULL || job->n_ids == NULL) {
        batch_job_destroy(job);
        return err_set(err, STATUS_NO_MEMORY, "no memory for line %llu",
                       (unsigned long long)number);
    }
    *out = job;
    return STATUS_OK;
}

void batch_job_destroy(struct batch_job *job)
{
    if (job == NULL)
        return;
    for (uint32_t i = 0; i < job->n_choices; i++) {
        free(job->choices[i].ids);
        free(job->choices[i].exit_loops);
        free(job->choices[i].details);
        free(job->choices[i].text);
    }
    for (size_t i = 0; job->ids != NULL && i < job->line.n_prompts; i++)
        free(job->ids[i]);
    free(job->ids);
    free(job->n_ids);
    batch_line_clear(&job->line);
    free(job);
}

enum status batch_job_encode(struct batch_job *job, struct err *err)
{
    const struct session *s = job->batch->session;
    struct batch_line *line = &job->line;
    bool needs_text = line->is_chat || line->fields.n_stops > 0;
    for (size_t i = 0; i < line->n_prompts; i++)
        needs_text = needs_text || line->prompts[i].text != NULL;
    if (needs_text && s->tokenizer == NULL)
        return err_set(err, STATUS_INVALID,
                       "%s has no tokenizer.json: give the prompt as token ids, without stop "
                       "strings",
                       s->model_dir);
    enum status status = STATUS_OK;
    if (line->is_chat)
        return chat_encode(s->tokenizer, line->messages, line->n_messages,
                           line->fields.enable_thinking, &job->ids[0], &job->n_ids[0], err);
    for (size_t i = 0; i < line->n_prompts && status == STATUS_OK; i++) {
        struct batch_prompt *prompt = &line->prompts[i];
        if (prompt->text != NULL) {
            status = tokenizer_encode(s->tokenizer, prompt->text, prompt->text_bytes,
                                      TOKENIZER_PARSE_SPECIAL | TOKENIZER_ADD_BOS, &job->ids[i],
                                      &job->n_ids[i], NULL, err);
            if (status == STATUS_OK && job->n_ids[i] == 0)
                status = err_set(err, STATUS_INVALID, "prompt: no token stands for this text");
        } else {
            job->ids[i] = prompt->ids;
            job->n_ids[i] = prompt->n_ids;
            prompt->ids = NULL;
        }
    }
    return status;
}

/* ---- callbacks ------------------------------------------------------------------------------ */

static void fail_no_memory(struct batch_choice *choice)
{
    struct err err;
    err_set(&err, STATUS_NO_MEMORY, "no memory for the answer");
    batch_job_fail(choice->job, BATCH_CODE_SERVER, &err);
}

static void *grow(void *array, size_t cap, size_t item_bytes, bool *ok)
{
    void *grown = reallocarray(array, cap, item_bytes);
    *ok = *ok && grown != NULL;
    return grown != NULL ? grown : array;
}

static bool reserve_token(struct batch_choice *c)
{
    if (c->n_tokens < c->cap_tokens)
        return true;
    size_t cap = c->cap_tokens > 0 ? 2 * c->cap_tokens : 32;
    bool ok = true;
    c->ids = grow(c->ids, cap, sizeof *c->ids, &ok);
    c->exit_loops = grow(c->exit_loops, cap, sizeof *c->exit_loops, &ok);
    if (c->job->line.fields.has_logprobs)
        c->details = grow(c->details, cap, sizeof *c->details, &ok);
    if (ok)
        c->cap_tokens = cap;
    return ok;
}

static bool append_text(struct batch_choice *c, const char *text, size_t n)
{
    if (c->text_bytes + n > c->cap_text) {
        bool ok = true;
        size_t cap = 2 * (c->text_bytes + n) + 64;
        c->text = grow(c->text, cap, 1, &ok);
        if (!ok)
            return false;
        c->cap_text = cap;
    }
    if (n > 0)
        memcpy(c->text + c->text_bytes, text, n);
    c->text_bytes += n;
    return true;
}

static void on_token(void *user, const struct completion_token *t)
{
    struct batch_choice *c = user;
    if (!reserve_token(c) || !append_text(c, t->text, t->text_bytes)) {
        fail_no_memory(c);
        return;
    }
    c->ids[c->n_tokens] = t->token->id;
    c->exit_loops[c->n_tokens] = t->token->exit_loop;
    if (c->details != NULL)
        c->details[c->n_tokens] = *t->token;
    c->n_tokens++;
    c->job->batch->n_tokens++;
    c->job->batch->sum_exit_loops += t->token->exit_loop;
}

static void on_end(void *user, const struct completion_end *end)
{
    struct batch_choice *c = user;
    if (!append_text(c, end->text, end->text_bytes))
        fail_no_memory(c);
    c->reason = end->reason;
    c->has_ended = true;
    if (end->reason == FINISH_ERROR) {
        struct err err;
        err_set(&err, end->failure, "%s", end->message);
        /* A failure of a sequence while it runs is ours, unless the request asked for nonsense. */
        batch_job_fail(c->job, end->failure == STATUS_INVALID ? CODE_INVALID : BATCH_CODE_SERVER,
                       &err);
    }
    batch_choice_ended(c);
}

/* ---- submission ----------------------------------------------------------------------------- */

/* The request's parameters: the command line's, then the line's. */
static enum status make_request(const struct batch_job *job, uint32_t index,
                                struct completion_request *request, struct err *err)
{
    const struct batch *b = job->batch;
    const struct batch_fields *f = &job->line.fields;
    struct request_options defaults = *b->defaults;
    /* The default stop ids depend on it. */
    if (f->given & BATCH_IGNORE_EOS)
        defaults.ignore_eos = f->ignore_eos;
    uint32_t prompt = index / (uint32_t)f->n;
    enum status status =
        request_options_apply(&defaults, b->session, (uint32_t)job->n_ids[prompt], request, err);
    if (status == STATUS_OK)
        status = batch_line_apply(&job->line, index % (uint32_t)f->n, &request->params, err);
    if (f->given & BATCH_STOP) {
        request->n_stops = f->n_stops;
        memcpy(request->stops, f->stops, f->n_stops * sizeof f->stops[0]);
    }
    request->include_stop = f->include_stop;
    request->keep_special = !f->skip_special;
    return status;
}

enum status batch_job_submit(struct batch_job *job, struct err *err)
{
    struct batch *b = job->batch;
    uint32_t index = job->n_submitted, prompt = index / (uint32_t)job->line.fields.n;
    struct batch_choice *choice = &job->choices[index];
    struct completion_request request = {
        .prompt_ids = job->ids[prompt],
        .n_prompt = (uint32_t)job->n_ids[prompt],
        .user = choice,
        .on_token = on_token,
        .on_end = on_end,
    };
    enum status status = make_request(job, index, &request, err);
    uint64_t length = (uint64_t)request.n_prompt + request.params.max_tokens;
    uint64_t context = (uint64_t)b->session->checkpoint->config.max_positions;
    if (status == STATUS_OK && length > context) {
        status = err_set(err, STATUS_INVALID,
                         "the prompt has %u tokens and max_tokens is %u, together %llu; the "
                         "model's context is %llu",
                         request.n_prompt, request.params.max_tokens, (unsigned long long)length,
                         (unsigned long long)context);
        batch_job_fail(job, CODE_CONTEXT, err);
        return status;
    }
    if (status == STATUS_OK)
        status = coordinator_submit(b->session->coordinator, &request, &choice->request, err);
    if (status == STATUS_OK)
        job->n_submitted++;
    else if (status != STATUS_FULL)
        batch_job_fail(job, batch_error_code(status), err);
    return status;
}

void batch_job_cancel(struct batch_job *job)
{
    for (uint32_t i = 0; i < job->n_submitted; i++)
        if (!job->choices[i].has_ended)
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
