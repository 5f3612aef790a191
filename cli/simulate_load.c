/* Draws the requests of a simulated run and the times they arrive at. */
#include "cli/simulate_load.h"

#include "kernels/rng.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* Sets the draws of arrivals apart from those of tokens, which may have the same seed. */
#define ARRIVALS_KEY UINT64_C(0x5bd1e9955bd1e995)

enum status simulate_load_draw(const struct simulate_load *load, uint32_t i,
                               struct bench_request *out, int32_t **ids, const uint8_t **exits,
                               struct err *err)
{
    const struct bench_workload *w = load->workload;
    bool is_replay = load->arrivals == ARRIVALS_REPLAY;
    size_t n_ids = is_replay ? load->recorded[i].n_prompt : (size_t)w->prompt_max;
    int32_t *drawn = calloc(n_ids, sizeof *drawn);
    if (drawn == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a prompt of %zu tokens", n_ids);
    if (is_replay) {
        /* The ids are not in a trace, and nothing depends on them. */
        *out = (struct bench_request){.n_prompt = load->recorded[i].n_prompt,
                                      .n_output = load->recorded[i].n_tokens,
                                      .cancel_at = UINT32_MAX,
                                      .params = load->base};
        out->params.max_tokens = out->n_output;
        out->params.sampling.seed += i;
        *exits = load->exits + load->recorded[i].first_exit;
    } else {
        bench_workload_draw(w, i, load->model, &load->base, out, drawn);
        *exits = NULL;
    }
    *ids = drawn;
    return STATUS_OK;
}

uint64_t simulate_load_arrival_ns(const struct simulate_load *load, uint32_t i, uint32_t first,
                                  uint64_t previous_ns)
{
    if (load->arrivals == ARRIVALS_REPLAY)
        return load->recorded[i].arrived_ns - load->recorded[first].arrived_ns;
    if (load->arrivals == ARRIVALS_BURST)
        return (uint64_t)((i - first) / load->n_burst) * load->period_ns;
    if (i == first)
        return 0;
    double u = rng_uniform(load->workload->seed ^ ARRIVALS_KEY, i, RNG_SAMPLE);
    return previous_ns + (uint64_t)(-log1p(-u) / load->rate_per_s * 1e9);
}

void simulate_load_free(struct simulate_load *load)
{
    free(load->recorded);
    free(load->exits);
    load->recorded = NULL;
    load->exits = NULL;
}
