/* Adds up what the simulated cluster has done: times of requests, of tokens, and where they went.
 */
#include "cli/simulate_parts.h"

#include "proto/fnv.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum status simulate_count_create(struct simulate_world *w, uint32_t n_requests, struct err *err)
{
    struct simulate_result *r = &w->result;
    r->ttft_ms = calloc(n_requests, sizeof *r->ttft_ms);
    r->tpot_ms = calloc(n_requests, sizeof *r->tpot_ms);
    if (r->ttft_ms == NULL || r->tpot_ms == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the times of %u requests", n_requests);
    return STATUS_OK;
}

void simulate_count_destroy(struct simulate_world *w)
{
    free(w->result.ttft_ms);
    free(w->result.tpot_ms);
    free(w->result.stats);
}

void simulate_count_token(struct simulate_world *w, struct simulate_request *r,
                          const struct control_token *token, uint64_t now_ns)
{
    if (r->n_tokens++ == 0)
        r->first_token_ns = now_ns;
    uint64_t word = (uint64_t)(uint32_t)token->id << 8 | token->exit_loop;
    r->hash = fnv_bytes(r->hash, &word, sizeof word);
    if (!w->is_measuring)
        return;
    struct simulate_result *out = &w->result;
    out->n_tokens++;
    out->exits[token->exit_loop]++;
    w->n_steady_tokens += w->steady_from_ns != 0 && w->steady_to_ns == 0;
    for (uint32_t t = 0; t < token->exit_loop; t++) {
        out->slots.hop_s += token->timings[t].hop_s;
        out->slots.wait_s += (double)token->timings[t].wait_s;
        out->slots.compute_s += (double)token->timings[t].compute_s;
    }
}

void simulate_count_submit(struct simulate_world *w, const struct simulate_request *r)
{
    bool is_last = r->index + 1 == w->rank0.n_limit;
    if (w->is_measuring && is_last && w->steady_from_ns != 0)
        w->steady_to_ns = r->submitted_ns;
}

static double seconds(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e9 : 0;
}

void simulate_count_end(struct simulate_world *w, const struct simulate_request *r,
                        enum finish_reason reason, uint64_t exited_ns, uint64_t now_ns)
{
    struct simulate_result *out = &w->result;
    if (!w->is_measuring)
        return;
    if (w->steady_from_ns == 0)
        w->steady_from_ns = now_ns;
    out->slots.rank0_s += seconds(r->arrived_ns, r->submitted_ns) + seconds(exited_ns, now_ns);
    if (r->opened_ns > 0)
        out->slots.blocked_s += seconds(r->submitted_ns, r->opened_ns);
    if (r->started_ns > 0)
        out->slots.opening_s += seconds(r->opened_ns, r->started_ns);
    out->in_flight += seconds(r->arrived_ns, now_ns); /* divided by the run's time at the end */
    if (reason == FINISH_CANCELLED) {
        out->n_cancelled++;
        return;
    }
    out->hash += r->hash;
    out->ttft_ms[out->n_timed] = 1e3 * seconds(r->arrived_ns, r->first_token_ns);
    out->tpot_ms[out->n_timed] =
        r->n_tokens > 1 ? 1e3 * seconds(r->first_token_ns, now_ns) / (r->n_tokens - 1) : NAN;
    out->n_timed++;
}

void simulate_count_finish(struct simulate_world *w, struct simulate_result *out)
{
    struct simulate_result *r = &w->result;
    double elapsed_s = seconds(r->began_ns, r->ended_ns);
    r->steady_s = w->steady_to_ns != 0 ? seconds(w->steady_from_ns, w->steady_to_ns) : 0;
    if (r->steady_s > 0)
        r->steady_tokens_per_s = (double)w->n_steady_tokens / r->steady_s;
    r->in_flight = elapsed_s > 0 ? r->in_flight / elapsed_s : 0;
    *out = *r;
}
