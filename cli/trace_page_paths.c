/* Writes the ways of some sequences through the ring, and how times are distributed. */
#include "cli/trace_page.h"
#include "coordinator/json_writer.h"
#include "coordinator/trace_chain.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PATHS = 64, MAX_STEPS = 16000, UNIT_NS = 100 };
/* Histograms of times: from 100 ns to 1000 s. */
enum { BUCKETS_PER_DECADE = 12, N_BUCKETS = 10 * BUCKETS_PER_DECADE };
#define LEAST_S 1e-7

/* ---- distributions -------------------------------------------------------------------------- */

enum { PART_HOP = 0, PART_WAIT, PART_COMPUTE, N_PARTS };

struct distribution {
    uint64_t n_below; /* LEAST_S: not shown on a logarithmic axis */
    uint64_t counts[N_BUCKETS];
};

static void count(struct distribution *d, double seconds)
{
    if (!(seconds >= LEAST_S)) {
        d->n_below++;
        return;
    }
    double at = log10(seconds / LEAST_S) * BUCKETS_PER_DECADE;
    d->counts[at < N_BUCKETS - 1 ? (size_t)at : N_BUCKETS - 1]++;
}

static void write_distribution(struct json_writer *w, const struct distribution *d)
{
    size_t first = 0, end = N_BUCKETS;
    while (first < N_BUCKETS && d->counts[first] == 0)
        first++;
    while (end > first && d->counts[end - 1] == 0)
        end--;
    json_write_begin_object(w);
    json_write_key(w, "below");
    json_write_integer(w, (int64_t)d->n_below);
    json_write_key(w, "first"); /* bucket b begins at 1e-7 * 10^(b / 12) seconds */
    json_write_integer(w, (int64_t)first);
    json_write_key(w, "counts");
    json_write_begin_array(w);
    for (size_t i = first; i < end; i++)
        json_write_integer(w, (int64_t)d->counts[i]);
    json_write_end_array(w);
    json_write_end_object(w);
}

static enum status write_distributions(const struct trace_step_record *steps, size_t n,
                                       uint32_t n_loops, struct json_writer *w, struct err *err)
{
    struct distribution(*all)[N_PARTS] = calloc(n_loops > 0 ? n_loops : 1, sizeof *all);
    if (all == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the distribution of %zu times", n);
    for (size_t i = 0; i < n; i++) {
        const struct trace_record *a = steps[i].record;
        if (a->kind != TRACE_ROWS || a->loop < 1 || a->loop > n_loops)
            continue;
        count(&all[a->loop - 1][PART_HOP], (double)a->rows.hop_ns / 1e9);
        count(&all[a->loop - 1][PART_WAIT], (double)a->rows.wait_ns / 1e9);
        count(&all[a->loop - 1][PART_COMPUTE], (double)a->lasted_ns / 1e9);
    }
    json_write_key(w, "distributions"); /* [loop][hop, wait, compute] */
    json_write_begin_array(w);
    for (uint32_t t = 0; t < n_loops; t++) {
        json_write_begin_array(w);
        for (int k = 0; k < N_PARTS; k++)
            write_distribution(w, &all[t][k]);
        json_write_end_array(w);
    }
    json_write_end_array(w);
    free(all);
    return STATUS_OK;
}

/* ---- paths ---------------------------------------------------------------------------------- */

struct path {
    size_t first, n;        /* of the chain's steps */
    uint32_t slow_position; /* of its slow token; 0: none */
};

/* The sequence's steps; they are sorted by sequence. */
static bool find_sequence(const struct trace_step_record *steps, size_t n, uint64_t sequence,
                          struct path *out)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (steps[middle].sequence < sequence)
            low = middle + 1;
        else
            high = middle;
    }
    out->first = low;
    out->n = 0;
    while (low + out->n < n && steps[low + out->n].sequence == sequence)
        out->n++;
    return out->n > 0;
}

static bool has_path(const struct path *paths, size_t n, size_t first)
{
    for (size_t i = 0; i < n; i++)
        if (paths[i].first == first)
            return true;
    return false;
}

/* Those of the slowest tokens, and others evenly over the rest. */
static size_t choose_paths(const struct trace_report *r, const struct trace_step_record *steps,
                           size_t n, struct path paths[MAX_PATHS])
{
    size_t n_paths = 0, n_sequences = 0, seen = 0;
    for (uint32_t i = 0; i < r->n_slow_listed && n_paths < MAX_PATHS; i++) {
        struct path p = {.slow_position = r->slow[i].position};
        if (find_sequence(steps, n, r->slow[i].sequence, &p) && !has_path(paths, n_paths, p.first))
            paths[n_paths++] = p;
    }
    for (size_t i = 0; i < n; i++)
        n_sequences += i == 0 || steps[i].sequence != steps[i - 1].sequence;
    size_t n_more = MAX_PATHS - n_paths, stride = n_sequences / n_more + (n_sequences % n_more > 0);
    for (size_t i = 0; i < n && n_paths < MAX_PATHS; i++) {
        struct path p = {0};
        if (i > 0 && steps[i].sequence == steps[i - 1].sequence)
            continue;
        if (seen++ % stride == 0 && !has_path(paths, n_paths, i) &&
            find_sequence(steps, n, steps[i].sequence, &p))
            paths[n_paths++] = p;
    }
    return n_paths;
}

/* Where a long path is cut: its slow token lies in the middle of what is shown. */
static void cut_path(const struct trace_step_record *steps, struct path *p, size_t most)
{
    size_t at = 0;
    if (p->n <= most)
        return;
    while (at < p->n && steps[p->first + at].position < p->slow_position)
        at++;
    at = at > most / 2 ? at - most / 2 : 0;
    if (at > p->n - most)
        at = p->n - most;
    p->first += at;
    p->n = most;
}

static void write_step(const struct trace_step_record *s, uint64_t begin_ns, struct json_writer *w)
{
    const struct trace_record *a = s->record;
    bool is_token = a->kind == TRACE_TOKEN;
    json_write_integer(w, is_token ? 0 : s->rank);
    json_write_integer(w, (int64_t)((a->at_ns - begin_ns) / UNIT_NS));
    json_write_integer(w, (int64_t)(a->lasted_ns / UNIT_NS));
    json_write_integer(w, a->loop);
    json_write_integer(w, s->position);
    json_write_integer(w, is_token ? 0 : a->n_rows);
    json_write_integer(w, is_token ? 0 : a->rows.hop_ns / UNIT_NS);
    json_write_integer(w, is_token ? 0 : (int64_t)(a->rows.wait_ns / UNIT_NS));
}

enum status trace_page_write_paths(const struct trace_report *r, const struct trace_set *set,
                                   uint64_t begin_ns, struct json_writer *w, struct err *err)
{
    struct trace_step_record *steps = NULL;
    struct path paths[MAX_PATHS];
    size_t n = 0;
    enum status status = trace_chain_collect(set, &steps, &n, err);
    if (status != STATUS_OK)
        return status;
    status = write_distributions(steps, n, set->n_loops, w, err);
    size_t n_paths = choose_paths(r, steps, n, paths);
    json_write_key(w, "paths");
    json_write_begin_array(w);
    for (size_t i = 0; i < n_paths; i++) {
        struct path *p = &paths[i];
        size_t n_all = p->n;
        cut_path(steps, p, MAX_STEPS / n_paths);
        json_write_begin_object(w);
        json_write_key(w, "sequence");
        json_write_integer(w, (int64_t)steps[p->first].sequence);
        json_write_key(w, "is_slow");
        json_write_bool(w, p->slow_position > 0);
        json_write_key(w, "is_cut");
        json_write_bool(w, p->n < n_all);
        /* Flat: rank (0: the token's arrival), begin, length, loop, position, rows, hop, wait. */
        json_write_key(w, "steps");
        json_write_begin_array(w);
        for (size_t k = 0; k < p->n; k++)
            write_step(&steps[p->first + k], begin_ns, w);
        json_write_end_array(w);
        json_write_end_object(w);
    }
    json_write_end_array(w);
    free(steps);
    return status;
}
