/* Puts what a body asks for over the defaults of a sequence, checked against the model. */
#include "coordinator/body_parts.h"
#include "model/config.h"

#include <stdio.h>
#include <string.h>

bool body_wants_prompt_logprobs(const struct body *body)
{
    return body->fields.echo && body->fields.has_logprobs;
}

static size_t find_longest(const struct body *body)
{
    size_t longest = 0;
    for (size_t i = 1; i < body->n_prompts; i++)
        if (body->prompts[i].n_ids > body->prompts[longest].n_ids)
            longest = i;
    return longest;
}

static enum status apply_lengths(const struct body *body, const struct model_config *model,
                                 struct sequence_params *p, struct fault *fault)
{
    const struct body_fields *f = &body->fields;
    size_t longest = find_longest(body), n_prompt = body->prompts[longest].n_ids;
    size_t context = (size_t)model->max_positions;
    const char *param = body->is_chat ? "messages" : "prompt";
    char who[48] = "the prompt";
    if (body->n_prompts > 1)
        snprintf(who, sizeof who, "prompt[%zu]", longest);
    if (n_prompt >= context)
        return fault_request(fault, STATUS_INVALID, param, BODY_CODE_CONTEXT,
                             "this model's context is %zu tokens; %s has %zu, which leaves no room "
                             "for an answer",
                             context, who, n_prompt);
    size_t left = context - n_prompt;
    if (!(f->given & BODY_MAX_TOKENS))
        p->max_tokens = p->max_tokens > 0 && p->max_tokens < left ? p->max_tokens : (uint32_t)left;
    else if (f->max_tokens > (int64_t)left)
        return fault_request(fault, STATUS_INVALID, param, BODY_CODE_CONTEXT,
                             "this model's context is %zu tokens; %s has %zu and max_tokens asks "
                             "for %lld",
                             context, who, n_prompt, (long long)f->max_tokens);
    else
        p->max_tokens = f->max_tokens > 0 ? (uint32_t)f->max_tokens : 1;
    p->prompt_tokens = (uint32_t)n_prompt;
    if (!(f->given & BODY_MIN_TOKENS)) {
        p->min_tokens = p->min_tokens < p->max_tokens ? p->min_tokens : p->max_tokens;
        return STATUS_OK;
    }
    if (f->min_tokens > (int64_t)p->max_tokens)
        return fault_request(fault, STATUS_INVALID, "min_tokens", BODY_CODE_VALUE,
                             "min_tokens: expected at most max_tokens, which is %u, found %lld",
                             p->max_tokens, (long long)f->min_tokens);
    p->min_tokens = (uint32_t)f->min_tokens;
    return STATUS_OK;
}

static enum status apply_loops(const struct body_fields *f, const struct model_config *model,
                               struct sequence_params *p, struct fault *fault)
{
    if (f->given & BODY_LOOPS_MODE)
        p->exit_mode = f->exit_mode;
    if (f->given & BODY_EXIT_THRESHOLD)
        p->exit_threshold = (float)f->exit_threshold;
    if ((f->given & BODY_LOOPS_MAX) && f->max_loops > model->n_loops)
        return fault_request(fault, STATUS_INVALID, "loops.max", BODY_CODE_VALUE,
                             "loops.max: expected at most %d, which is what this model has, found "
                             "%d",
                             model->n_loops, (int)f->max_loops);
    if (f->given & BODY_LOOPS_MAX)
        p->max_loops = (uint32_t)f->max_loops;
    /* A default must not refuse what the request asks for. */
    if (!(f->given & BODY_LOOPS_MIN)) {
        p->min_loops = p->min_loops < p->max_loops ? p->min_loops : p->max_loops;
        return STATUS_OK;
    }
    if (f->min_loops > (int64_t)p->max_loops)
        return fault_request(fault, STATUS_INVALID, "loops.min", BODY_CODE_VALUE,
                             "loops.min: expected at most loops.max, which is %u, found %d",
                             p->max_loops, (int)f->min_loops);
    p->min_loops = (uint32_t)f->min_loops;
    return STATUS_OK;
}

static enum status check_id(const char *param, int32_t id, const struct model_config *model,
                            struct fault *fault)
{
    if (id < model->vocab_size)
        return STATUS_OK;
    return fault_request(fault, STATUS_INVALID, param, BODY_CODE_VALUE,
                         "%s: expected token ids from 0 to %d, found %d", param,
                         model->vocab_size - 1, (int)id);
}

static enum status apply_sampling(const struct body_fields *f, const struct model_config *model,
                                  struct sampling_params *s, struct fault *fault)
{
    if (f->given & BODY_TEMPERATURE)
        s->temperature = (float)f->temperature;
    if (f->given & BODY_TOP_K)
        s->top_k = f->top_k < 0 ? 0 : (int32_t)f->top_k;
    if (f->given & BODY_TOP_P)
        s->top_p = (float)f->top_p;
    if (f->given & BODY_MIN_P)
        s->min_p = (float)f->min_p;
    if (f->given & BODY_REPETITION_PENALTY)
        s->repetition_penalty = (float)f->repetition_penalty;
    if (f->given & BODY_PRESENCE_PENALTY)
        s->presence_penalty = (float)f->presence_penalty;
    if (f->given & BODY_FREQUENCY_PENALTY)
        s->frequency_penalty = (float)f->frequency_penalty;
    if (f->given & BODY_SEED)
        s->seed = (uint64_t)f->seed;
    /* The chosen token's own log-probability comes only with at least one alternative. */
    if (f->given & BODY_LOGPROBS)
        s->n_logprobs = !f->has_logprobs ? 0 : f->top_logprobs > 0 ? (int32_t)f->top_logprobs : 1;
    enum status status = STATUS_OK;
    for (uint32_t i = 0; i < f->n_biases && status == STATUS_OK; i++)
        status = check_id("logit_bias", f->bias_ids[i], model, fault);
    s->n_logit_bias = (int32_t)f->n_biases;
    memcpy(s->bias_ids, f->bias_ids, f->n_biases * sizeof f->bias_ids[0]);
    memcpy(s->biases, f->biases, f->n_biases * sizeof f->biases[0]);
    return status;
}

static enum status apply_stop_ids(const struct body_fields *f, const struct model_config *model,
                                  struct sequence_params *p, struct fault *fault)
{
    if ((f->given & BODY_IGNORE_EOS) && f->ignore_eos)
        p->n_stop_ids = 0;
    for (uint32_t i = 0; i < f->n_stop_ids; i++) {
        if (sequence_is_stop_id(p->stop_ids, p->n_stop_ids, f->stop_ids[i]))
            continue;
        enum status status = check_id("stop_token_ids", f->stop_ids[i], model, fault);
        if (status != STATUS_OK)
            return status;
        if (p->n_stop_ids == SEQUENCE_MAX_STOP_IDS)
            return fault_request(fault, STATUS_INVALID, "stop_token_ids", BODY_CODE_VALUE,
                                 "stop_token_ids: with the model's own there are more than %d",
                                 SEQUENCE_MAX_STOP_IDS);
        p->stop_ids[p->n_stop_ids++] = f->stop_ids[i];
    }
    return STATUS_OK;
}

/* All rows of the prompt but the last say what follows them, and run at once: nobody would wake
 * the parked ones. */
static void apply_observation(const struct body *body, const struct model_config *model,
                              struct sequence_params *p)
{
    if (!body_wants_prompt_logprobs(body) || p->prompt_tokens < 2)
        return;
    p->observe_first = 0;
    p->n_observe_targets = p->prompt_tokens - 1;
    p->observe_top = (uint32_t)body->fields.top_logprobs;
    if (p->observe_top > (uint32_t)model->vocab_size)
        p->observe_top = (uint32_t)model->vocab_size;
    p->prefill = PREFILL_EAGER;
}

enum status body_apply(const struct body *body, const struct model_config *model,
                       struct sequence_params *params, struct fault *fault)
{
    struct sequence_params p = *params;
    enum status status = apply_lengths(body, model, &p, fault);
    if (status == STATUS_OK)
        status = apply_loops(&body->fields, model, &p, fault);
    if (status == STATUS_OK)
        status = apply_sampling(&body->fields, model, &p.sampling, fault);
    if (status == STATUS_OK)
        status = apply_stop_ids(&body->fields, model, &p, fault);
    if (status != STATUS_OK)
        return status;
    apply_observation(body, model, &p);
    /* What is left are mistakes in the defaults, and whatever the above forgot. The id is given
     * later. */
    struct sequence_params checked = p;
    struct err err;
    checked.sequence = 1;
    status = sequence_params_check(&checked, (uint32_t)model->n_loops, (uint32_t)model->vocab_size,
                                   (uint32_t)model->max_positions, &err);
    if (status != STATUS_OK) {
        if (fault != NULL)
            fault_from_err(fault, &err);
        return status;
    }
    *params = p;
    return STATUS_OK;
}
