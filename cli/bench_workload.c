/* Draws the requests of `bench engine` from (seed, index). */
#include "cli/bench_workload.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

void bench_workload_init(struct bench_workload *w)
{
    *w = (struct bench_workload){
        .n_requests = 64, .concurrency = 16, .prompt_range = "32", .output_range = "32"};
}

struct option_group bench_workload_group(struct bench_workload *w, struct option_spec *specs)
{
    const struct option_spec table[] = {
        {.type = OPTION_HEADING, .help = "Workload:"},
        {"requests", 'r', OPTION_INT, &w->n_requests, "R", NULL, 1, 1e6,
         "requests that are measured (default 64)", NULL},
        {"warmup", 0, OPTION_INT, &w->n_warmup, "N", NULL, 0, 1e6,
         "requests run first and not counted", NULL},
        {"concurrency", 'c', OPTION_INT, &w->concurrency, "C", NULL, 1, 1e6,
         "requests in flight (default 16)", NULL},
        {"prompt-tokens", 'p', OPTION_STRING, &w->prompt_range, "N|A-B", NULL, 0, 0,
         "prompt length (default 32)", NULL},
        {"output-tokens", 'o', OPTION_STRING, &w->output_range, "N|A-B", NULL, 0, 0,
         "tokens to generate (default 32)", NULL},
        {"workload-seed", 0, OPTION_U64, &w->seed, "S", NULL, 0, 0, "of prompts and lengths", NULL},
        {"mixed", 0, OPTION_FLAG, &w->is_mixed, NULL, NULL, 0, 0,
         "vary threshold, temperature and seed by request", NULL},
        {"cancel-fraction", 0, OPTION_FLOAT, &w->cancel_fraction, "F", NULL, 0, 1,
         "share of requests cancelled at a random moment", NULL},
        {"force-exits", 0, OPTION_STRING, &w->force_exits_text, "P1,P2,..", NULL, 0, 0,
         "share of tokens that exits at each loop", NULL},
    };
    enum { N = sizeof table / sizeof table[0] };
    static_assert((int)N <= (int)BENCH_WORKLOAD_N_SPECS, "callers lend BENCH_WORKLOAD_N_SPECS");
    memcpy(specs, table, sizeof table);
    return (struct option_group){specs, N};
}

static enum status parse_range(const char *name, const char *text, int *min, int *max,
                               struct err *err)
{
    int end = 0;
    if (sscanf(text, "%d-%d%n", min, max, &end) == 2 && text[end] == '\0') {
        if (*min >= 1 && *min <= *max)
            return STATUS_OK;
    } else if (sscanf(text, "%d%n", min, &end) == 1 && text[end] == '\0' && *min >= 1) {
        *max = *min;
        return STATUS_OK;
    }
    return err_set(err, STATUS_INVALID, "--%s: '%s' is neither N nor A-B with 1 <= A <= B", name,
                   text);
}

enum status bench_workload_parse(struct bench_workload *w, struct err *err)
{
    enum status status =
        parse_range("prompt-tokens", w->prompt_range, &w->prompt_min, &w->prompt_max, err);
    if (status == STATUS_OK)
        status = parse_range("output-tokens", w->output_range, &w->output_min, &w->output_max, err);
    if (status == STATUS_OK && w->force_exits_text != NULL) {
        status = options_parse_floats(w->force_exits_text, w->force_exits, SEQUENCE_MAX_LOOPS,
                                      &w->n_force_exits, err);
        if (status != STATUS_OK)
            err_wrap(err, "--force-exits");
    }
    return status;
}

enum status bench_workload_check(const struct bench_workload *w, const struct model_config *config,
                                 struct err *err)
{
    if ((int64_t)w->prompt_max + w->output_max > config->max_positions)
        return err_set(err, STATUS_INVALID,
                       "prompt and output of %d + %d tokens exceed the context of %d positions",
                       w->prompt_max, w->output_max, config->max_positions);
    if (w->n_force_exits > 0 && (int)w->n_force_exits != config->n_loops)
        return err_set(err, STATUS_INVALID, "--force-exits has %zu numbers, the model has %d loops",
                       w->n_force_exits, config->n_loops);
    return STATUS_OK;
}

/* splitmix64: any 64-bit state gives well-mixed numbers, so (seed, i) needs no warm-up. */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint32_t draw_between(uint64_t *state, int min, int max)
{
    return (uint32_t)min + (uint32_t)(draw(state) % (uint64_t)(max - min + 1));
}

void bench_workload_draw(const struct bench_workload *w, uint32_t i,
                         const struct model_config *config, const struct sequence_params *base,
                         struct bench_request *out, int32_t *ids)
{
    uint64_t state = w->seed * 0xd1342543de82ef95u + i;
    draw(&state);
    out->n_prompt = draw_between(&state, w->prompt_min, w->prompt_max);
    out->n_output = draw_between(&state, w->output_min, w->output_max);
    for (uint32_t j = 0; j < out->n_prompt; j++)
        ids[j] = (int32_t)(draw(&state) % (uint64_t)config->vocab_size);
    out->params = *base;
    out->params.max_tokens = out->n_output;
    out->params.n_force_exits = (uint32_t)w->n_force_exits;
    memcpy(out->params.force_exits, w->force_exits, sizeof w->force_exits);
    out->params.sampling.seed = base->sampling.seed + i;
    if (w->is_mixed) {
        static const float thresholds[] = {0.2f, 0.35f, 0.5f, 0.65f, 0.8f, 0.95f, 1.0f};
        out->params.exit_mode = EXIT_MODE_EXACT;
        out->params.exit_threshold = thresholds[draw(&state) % 7];
        out->params.sampling.temperature = draw(&state) % 2 ? 0.8f : 0.0f;
        out->params.sampling.top_p = draw(&state) % 2 ? 0.9f : 1.0f;
        out->params.sampling.repetition_penalty = draw(&state) % 4 ? 1.0f : 1.2f;
    }
    out->cancel_at = UINT32_MAX;
    if ((double)(draw(&state) >> 11) * 0x1p-53 < w->cancel_fraction)
        out->cancel_at = draw_between(&state, 0, (int)out->n_output - 1);
}
