/* Splits what an added worker does not bring into reasons that add up. */
#include "cli/simulate_why.h"

#include <stdbool.h>

/* Above this share of its time rank 0, and not the links, is what an opening waits for. */
static const double RANK0_IS_BUSY = 0.5;
/* Below this share of the run a steady time is too short to be compared. */
static const double STEADY_SHARE = 0.25;

/* Seconds for each token: of workers, and of sequences. */
struct per_token {
    double worker_s, busy_s, peers_s, starved_s;
    double rank0_s, blocked_s, opening_s, links_s, wait_s, compute_s, empty_s;
    double rows_per_batch;
};

static double rate(const struct simulate_result *r)
{
    double elapsed_s = (double)(r->ended_ns - r->began_ns) / 1e9;
    return elapsed_s > 0 ? (double)r->n_tokens / elapsed_s : 0;
}

static struct per_token split(const struct simulate_result *r, uint32_t n_workers,
                              uint32_t concurrency)
{
    double elapsed_s = (double)(r->ended_ns - r->began_ns) / 1e9, n = (double)r->n_tokens;
    struct per_token p = {.worker_s = n_workers * elapsed_s / n,
                          .rank0_s = r->slots.rank0_s / n,
                          .blocked_s = r->slots.blocked_s / n,
                          .opening_s = r->slots.opening_s / n,
                          .links_s = r->slots.hop_s / n,
                          .wait_s = r->slots.wait_s / n,
                          .compute_s = r->slots.compute_s / n};
    double n_rows = 0, n_batches = 0;
    if (concurrency > r->in_flight)
        p.empty_s = (concurrency - r->in_flight) * elapsed_s / n;
    for (uint32_t i = 0; i < n_workers; i++) {
        p.busy_s += (double)r->stats[i].busy_ns / 1e9 / n;
        p.peers_s += (double)r->stats[i].idle_waiting_ns / 1e9 / n;
        n_rows += (double)r->stats[i].n_rows;
        n_batches += (double)r->stats[i].n_batches;
    }
    p.rows_per_batch = n_batches > 0 ? n_rows / n_batches : 0;
    p.starved_s = p.worker_s - p.busy_s - p.peers_s;
    return p;
}

/* Where requests of one length end in waves, the time between ends and starts says nothing. */
static bool has_steady_time(const struct simulate_result *r)
{
    return r->steady_s >= STEADY_SHARE * (double)(r->ended_ns - r->began_ns) / 1e9;
}

static double above(double here, double base)
{
    return here > base ? here - base : 0;
}

/* The share of a sequence's time that it is at the workers and between them. */
static double presence(const struct per_token *p)
{
    double there_s = p->links_s + p->wait_s + p->compute_s;
    double away_s = p->rank0_s + p->blocked_s + p->opening_s + p->empty_s;
    return there_s > 0 ? there_s / (there_s + away_s) : 1;
}

/* How much of the batches' lost size is explained by sequences that are not at the workers. */
static double absent_share(const struct per_token *here, const struct per_token *alone)
{
    double lost_rows = alone->rows_per_batch - here->rows_per_batch;
    double absent_rows = alone->rows_per_batch * (1 - presence(here) / presence(alone));
    if (lost_rows <= 0 || absent_rows <= 0)
        return 0;
    return absent_rows < lost_rows ? absent_rows / lost_rows : 1;
}

/* Gives each reason its share of a loss; false when there is none to give it to. */
static bool divide(double loss, const double *weights, double *losses)
{
    double sum = 0;
    for (int i = 0; i < SIMULATE_LOSSES; i++)
        sum += weights[i];
    for (int i = 0; sum > 0 && i < SIMULATE_LOSSES; i++)
        losses[i] += loss * weights[i] / sum;
    return sum > 0;
}

static void find_losses(const struct per_token *here, const struct per_token *alone,
                        bool is_rank0_busy, double *losses)
{
    double opening = above(here->opening_s, alone->opening_s);
    double weights[SIMULATE_LOSSES] = {
        [LOSS_RANK0] = above(here->rank0_s, alone->rank0_s) + (is_rank0_busy ? opening : 0),
        [LOSS_LINKS] = is_rank0_busy ? 0 : opening,
        [LOSS_BLOCKED] = above(here->blocked_s, alone->blocked_s),
        [LOSS_RAMP] = above(here->empty_s, alone->empty_s),
    };
    /* Smaller batches, as far as the sequences are where they are in no batch. */
    double smaller = above(here->busy_s, alone->busy_s) / here->worker_s;
    double absent = smaller * absent_share(here, alone);
    losses[LOSS_BATCHES] = divide(absent, weights, losses) ? smaller - absent : smaller;
    losses[LOSS_PEERS] = above(here->peers_s, alone->peers_s) / here->worker_s;
    /* A worker is starved because its sequences are elsewhere: where they are longer than when it
     * is alone, and by how much, divides the time. */
    weights[LOSS_LINKS] += above(here->links_s, alone->links_s);
    weights[LOSS_IMBALANCE] = above(here->wait_s, alone->wait_s);
    double starved = above(here->starved_s, alone->starved_s) / here->worker_s;
    if (!divide(starved, weights, losses))
        losses[LOSS_IMBALANCE] += starved;
}

void simulate_why_make(const struct simulate_result *result, uint32_t n_workers,
                       uint32_t concurrency, const struct simulate_result *base,
                       uint32_t base_concurrency, struct simulate_why *out)
{
    *out = (struct simulate_why){.base_tokens_per_s = rate(base)};
    if (result->n_tokens == 0 || base->n_tokens == 0)
        return;
    struct per_token here = split(result, n_workers, concurrency);
    struct per_token alone = split(base, 1, base_concurrency);
    out->base_rows_per_batch = alone.rows_per_batch;
    out->efficiency = rate(result) / (n_workers * rate(base));
    if (has_steady_time(result) && has_steady_time(base))
        out->steady = result->steady_tokens_per_s / (n_workers * base->steady_tokens_per_s);
    double elapsed_ns = (double)(result->ended_ns - result->began_ns);
    find_losses(&here, &alone, (double)result->rank0_busy_ns > RANK0_IS_BUSY * elapsed_ns,
                out->losses);
    for (int i = 1; i < SIMULATE_LOSSES; i++)
        if (out->losses[i] > out->losses[out->largest])
            out->largest = (enum simulate_loss)i;
}

const char *simulate_why_name(enum simulate_loss loss)
{
    static const char *const names[SIMULATE_LOSSES] = {
        [LOSS_RANK0] = "coordinator",
        [LOSS_LINKS] = "links",
        [LOSS_PEERS] = "peers",
        [LOSS_IMBALANCE] = "imbalance",
        [LOSS_BATCHES] = "small_batches",
        [LOSS_BLOCKED] = "blocked",
        [LOSS_RAMP] = "ramp",
    };
    return names[loss];
}

const char *simulate_why_text(enum simulate_loss loss)
{
    static const char *const texts[SIMULATE_LOSSES] = {
        [LOSS_RANK0] = "requests and tokens wait for the coordinator, and workers for them",
        [LOSS_LINKS] = "workers starve while rows are on the links",
        [LOSS_PEERS] = "workers with rows wait for their ring mates' batches",
        [LOSS_IMBALANCE] = "some workers starve while rows wait at others",
        [LOSS_BATCHES] = "batches are smaller than one worker's, so each row costs more",
        [LOSS_BLOCKED] = "requests wait for KV blocks or for a place for a sequence",
        [LOSS_RAMP] = "the start and the end of the run, with fewer requests in flight",
    };
    return texts[loss];
}
