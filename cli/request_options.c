/* Turns the request options of the command line into a completion_request. */
#include "cli/request_options.h"

#include "model/chat.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void request_options_init(struct request_options *o)
{
    *o = (struct request_options){
        .exit_threshold = 1.0,
        .min_loops = 1,
        .top_p = 1.0,
        .repetition_penalty = 1.0,
    };
}

struct option_group request_options_group(struct request_options *o, struct option_spec *specs)
{
    const struct option_spec table[] = {
        {.type = OPTION_HEADING, .help = "Request:"},
        {"max-tokens", 'n', OPTION_INT, &o->max_tokens, "N", NULL, 1, INT32_MAX,
         "tokens to generate at most (default 128)", &o->has_max_tokens},
        {"exit", 0, OPTION_CHOICE, &o->exit_mode, NULL, "full|exact", 0, 0,
         "all loops, or leave when the gate fires", &o->has_exit_mode},
        {"exit-threshold", 'q', OPTION_FLOAT, &o->exit_threshold, "Q", NULL, 1e-9, 1,
         "exit when the cdf reaches Q (default: model's)", &o->has_exit_threshold},
        {"min-loops", 0, OPTION_INT, &o->min_loops, "M", NULL, 1, MODEL_MAX_LOOPS,
         "no exit before loop M", NULL},
        {"temperature", 0, OPTION_FLOAT, &o->temperature, "X", NULL, 0, 100,
         "0 (default) is greedy", NULL},
        {"top-p", 0, OPTION_FLOAT, &o->top_p, "P", NULL, 1e-9, 1, "1 is off", NULL},
        {"top-k", 0, OPTION_INT, &o->top_k, "K", NULL, 0, INT32_MAX, "0 is off", NULL},
        {"seed", 's', OPTION_U64, &o->seed, "S", NULL, 0, 0, "of the random draws (default 0)",
         &o->has_seed},
        {"stop", 0, OPTION_STRING, &o->stop, "TEXT", NULL, 0, 0, "stop before this text", NULL},
        {"ignore-eos", 0, OPTION_FLAG, &o->ignore_eos, NULL, NULL, 0, 0,
         "go on after an end-of-sequence token", NULL},
        {"logprobs", 0, OPTION_INT, &o->n_logprobs, "N", NULL, 0, SEQUENCE_MAX_LOGPROBS,
         "with --json: of the N likeliest tokens", NULL},
        {.type = OPTION_MORE},
        {"min-tokens", 0, OPTION_INT, &o->min_tokens, "N", NULL, 0, INT32_MAX,
         "no stop id before that many", NULL},
        {"min-p", 0, OPTION_FLOAT, &o->min_p, "P", NULL, 0, 1, "0 is off", NULL},
        {"repetition-penalty", 0, OPTION_FLOAT, &o->repetition_penalty, "X", NULL, 1e-3, 1e3,
         "1 is off", NULL},
        {"presence-penalty", 0, OPTION_FLOAT, &o->presence_penalty, "X", NULL, -2, 2, "0 is off",
         NULL},
        {"frequency-penalty", 0, OPTION_FLOAT, &o->frequency_penalty, "X", NULL, -2, 2, "0 is off",
         NULL},
        {"stop-ids", 0, OPTION_STRING, &o->stop_ids, "IDS", NULL, 0, 0,
         "stop at these ids instead of the model's own", NULL},
    };
    enum { N = sizeof table / sizeof table[0] };
    static_assert((int)N <= (int)REQUEST_N_SPECS, "callers lend REQUEST_N_SPECS");
    memcpy(specs, table, sizeof table);
    return (struct option_group){specs, N};
}

uint32_t request_default_max_tokens(const struct model_config *config, uint32_t n_prompt)
{
    uint32_t left =
        (uint32_t)config->max_positions > n_prompt ? (uint32_t)config->max_positions - n_prompt : 1;
    return left < REQUEST_DEFAULT_MAX_TOKENS ? left : REQUEST_DEFAULT_MAX_TOKENS;
}

static enum status apply_stop_ids(const struct request_options *o, const struct session *s,
                                  struct sequence_params *p, struct err *err)
{
    int32_t *ids = NULL;
    size_t n = 0;
    if (o->stop_ids != NULL) {
        enum status status = options_parse_ids(o->stop_ids, &ids, &n, err);
        if (status != STATUS_OK)
            return status;
        if (n > SEQUENCE_MAX_STOP_IDS) {
            free(ids);
            return err_set(err, STATUS_INVALID, "--stop-ids: %zu ids, at most %d are accepted", n,
                           SEQUENCE_MAX_STOP_IDS);
        }
        memcpy(p->stop_ids, ids, n * sizeof *ids);
        free(ids);
    } else if (!o->ignore_eos) {
        n = chat_default_stop_ids(s->tokenizer, &s->checkpoint->config, p->stop_ids,
                                  SEQUENCE_MAX_STOP_IDS);
    }
    p->n_stop_ids = (uint32_t)n;
    return STATUS_OK;
}

enum status request_options_apply(const struct request_options *o, const struct session *s,
                                  uint32_t n_prompt, struct completion_request *request,
                                  struct err *err)
{
    const struct model_config *config = &s->checkpoint->config;
    struct sequence_params *p = &request->params;
    sequence_params_init(p);
    p->prompt_tokens = n_prompt;
    p->max_tokens =
        o->has_max_tokens ? (uint32_t)o->max_tokens : request_default_max_tokens(config, n_prompt);
    p->min_tokens = (uint32_t)o->min_tokens;
    p->exit_threshold = o->has_exit_threshold ? (float)o->exit_threshold : config->exit_threshold;
    p->exit_mode = o->has_exit_mode ? (enum exit_mode)o->exit_mode : EXIT_MODE_EXACT;
    p->max_loops = (uint32_t)config->n_loops;
    p->min_loops = (uint32_t)o->min_loops;
    p->prefill = (enum prefill_policy)s->options.prefill;
    p->sampling.temperature = (float)o->temperature;
    p->sampling.top_k = o->top_k;
    p->sampling.top_p = (float)o->top_p;
    p->sampling.min_p = (float)o->min_p;
    p->sampling.repetition_penalty = (float)o->repetition_penalty;
    p->sampling.presence_penalty = (float)o->presence_penalty;
    p->sampling.frequency_penalty = (float)o->frequency_penalty;
    p->sampling.seed = o->seed;
    p->sampling.n_logprobs = o->n_logprobs;
    enum status status = apply_stop_ids(o, s, p, err);
    if (status != STATUS_OK)
        return status;
    request->n_stops = 0;
    if (o->stop != NULL && *o->stop != '\0') {
        if (s->tokenizer == NULL)
            return err_set(err, STATUS_INVALID, "--stop needs a tokenizer.json in %s",
                           s->model_dir);
        request->stops[request->n_stops++] = o->stop;
    }
    return STATUS_OK;
}
