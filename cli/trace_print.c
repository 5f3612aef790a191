/* Prints a trace's report as tables for people. */
#include "cli/trace_report.h"

#include <inttypes.h>
#include <math.h>

enum { MAX_WORKERS_SHOWN = 32, MAX_TOKENS_SHOWN = 5, BAR_COLUMNS = 40 };

/* Four digits, whatever the size; "-" for what was not measured. */
static const char *show_ms(double seconds, bool is_there, char out[16])
{
    double ms = seconds * 1e3;
    if (!is_there)
        snprintf(out, 16, "-");
    else
        snprintf(out, 16, "%.*f", ms < 9.9995 ? 3 : ms < 99.995 ? 2 : ms < 999.95 ? 1 : 0, ms);
    return out;
}

static double percent(double part, double whole)
{
    return whole > 0 ? 100 * part / whole : 0;
}

static void print_head(const struct trace_report *r, const struct trace_set *set)
{
    printf("%s%s: %" PRIu32 " workers, rings of %" PRIu32 ", %" PRIu32 " loops, carousel %s\n",
           set->is_simulated ? "simulated, " : "", set->model[0] != '\0' ? set->model : "a model",
           r->n_workers, set->ring_size, r->n_loops, set->version);
    printf("%.3f s, %" PRIu64 " requests, %" PRIu64 " tokens, %.1f tokens/s\n\n", r->elapsed_s,
           r->n_requests, r->n_tokens, r->tokens_per_s);
}

/* ---- requests and loops --------------------------------------------------------------------- */

static void print_row(const char *name, const struct trace_quantiles *q)
{
    char mean[16], p50[16], p90[16], p99[16], max[16];
    bool is_there = q->n > 0;
    printf("  %-14s %8" PRIu64 " %8s %8s %8s %8s %8s\n", name, q->n,
           show_ms(q->mean_s, is_there, mean), show_ms(q->p50_s, is_there, p50),
           show_ms(q->p90_s, is_there, p90), show_ms(q->p99_s, is_there, p99),
           show_ms(q->max_s, is_there, max));
}

static void print_requests(const struct trace_report *r)
{
    printf("milliseconds            n     mean      p50      p90      p99      max\n");
    print_row("queue", &r->queue);
    print_row("admission", &r->admission);
    print_row("first token", &r->ttft);
    print_row("between tokens", &r->tpot);
    printf("\n");
}

static void print_cell(const struct trace_quantiles *q)
{
    char p50[16], p90[16], p99[16];
    printf(" | %6s %6s %6s", show_ms(q->p50_s, q->n > 0, p50), show_ms(q->p90_s, q->n > 0, p90),
           show_ms(q->p99_s, q->n > 0, p99));
}

static void print_loops(const struct trace_report *r)
{
    static const char *const names[] = {"hop", "wait", "compute", "head"};
    printf("live rows  ms");
    for (int i = 0; i < 4; i++)
        printf(" | %-20s", names[i]);
    printf("\n            n");
    for (int i = 0; i < 4; i++)
        printf(" | %6s %6s %6s", "p50", "p90", "p99");
    printf("\n");
    for (uint32_t i = 0; i < r->n_loops; i++) {
        const struct trace_loop_report *l = &r->loops[i];
        printf("loop %" PRIu32 " %6" PRIu64, i + 1, l->compute.n);
        print_cell(&l->hop);
        print_cell(&l->wait);
        print_cell(&l->compute);
        print_cell(&l->head);
        printf("\n");
    }
    printf("\n");
}

static void print_exits(const struct trace_report *r)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < r->n_loops; i++)
        most = r->loops[i].n_exits > most ? r->loops[i].n_exits : most;
    if (most == 0)
        return;
    printf("exits\n");
    for (uint32_t i = 0; i < r->n_loops; i++) {
        uint64_t n = r->loops[i].n_exits;
        int columns = (int)lround((double)n * BAR_COLUMNS / (double)most);
        printf("loop %" PRIu32 " %8" PRIu64 " %5.1f %% ", i + 1, n,
               percent((double)n, (double)r->n_tokens));
        for (int c = 0; c < columns; c++)
            printf("#");
        printf("\n");
    }
    printf("\n");
}

/* ---- workers -------------------------------------------------------------------------------- */

static void print_worker(const char *name, const struct trace_worker_report *w, uint32_t n_loops)
{
    printf("%-22.22s %6.1f %7.1f %6.1f %6.1f %6.1f %6.1f %6.1f %8" PRIu64 " %6.1f ", name,
           percent(w->busy_s, w->elapsed_s), percent(w->idle_s[TRACE_IDLE_STARVED], w->elapsed_s),
           percent(w->idle_s[TRACE_IDLE_PEER], w->elapsed_s),
           percent(w->idle_s[TRACE_IDLE_KV], w->elapsed_s),
           percent(w->idle_s[TRACE_IDLE_DRAINING], w->elapsed_s),
           percent(w->driver_s, w->elapsed_s), percent(w->rest_s, w->elapsed_s), w->n_batches,
           w->n_batches > 0 ? (double)w->n_rows / (double)w->n_batches : 0);
    for (uint32_t i = 0; i < n_loops; i++)
        printf("%s%" PRIu64, i == 0 ? " " : "/", w->rows_by_loop[i]);
    printf("\n");
}

static void add_worker(struct trace_worker_report *sum, const struct trace_worker_report *w)
{
    sum->elapsed_s += w->elapsed_s;
    sum->busy_s += w->busy_s;
    for (int i = 0; i < TRACE_IDLE_REASONS; i++)
        sum->idle_s[i] += w->idle_s[i];
    sum->driver_s += w->driver_s;
    sum->rest_s += w->rest_s;
    sum->n_batches += w->n_batches;
    sum->n_rows += w->n_rows;
    sum->n_parked += w->n_parked;
    sum->n_revived += w->n_revived;
    for (int i = 0; i < SEQUENCE_MAX_LOOPS; i++)
        sum->rows_by_loop[i] += w->rows_by_loop[i];
}

static void print_workers(const struct trace_report *r, const struct trace_set *set)
{
    struct trace_worker_report all = {0};
    printf("percent of its time      busy starved   peer     kv  drain driver   rest  batches "
           "rows/b  rows by loop\n");
    for (uint32_t i = 0; i < r->n_workers; i++) {
        char name[96];
        snprintf(name, sizeof name, "worker %" PRIu32 " %s", i + 1, set->ranks[i + 1].host);
        add_worker(&all, &r->workers[i]);
        if (i < MAX_WORKERS_SHOWN)
            print_worker(name, &r->workers[i], r->n_loops);
    }
    if (r->n_workers > MAX_WORKERS_SHOWN)
        printf("(%" PRIu32 " more; --json has them)\n", r->n_workers - MAX_WORKERS_SHOWN);
    print_worker("all", &all, r->n_loops);
    printf("parked rows %" PRIu64 ", of these revived %" PRIu64 "\n\n", all.n_parked,
           all.n_revived);
}

/* ---- the slowest tokens --------------------------------------------------------------------- */

static void print_slow_token(const struct trace_slow_token *t)
{
    char total[16], hop[16], wait[16], compute[16];
    printf("  sequence %" PRIu64 " position %" PRIu32 ", at %.3f s: %s ms\n   ", t->sequence,
           t->position, t->at_s, show_ms(t->total_s, true, total));
    for (uint32_t i = 0; i < t->n_steps; i++) {
        const struct trace_step *s = &t->steps[i];
        if (s->loop > 0)
            printf(" loop %" PRIu32 " worker %" PRIu32 " %s+%s+%s,", s->loop, s->rank,
                   show_ms(s->hop_s, true, hop), show_ms(s->wait_s, true, wait),
                   show_ms(s->compute_s, true, compute));
        else
            printf(" delivery %s\n", show_ms(s->hop_s, true, hop));
    }
}

static void print_slow(const struct trace_report *r)
{
    char text[16];
    if (r->n_slow == 0)
        return;
    printf("the slowest 1 %% (%" PRIu64 " tokens), from the exit of the token before to arrival\n",
           r->n_slow);
    printf("  on average %s ms:", show_ms(r->slow_total_s, true, text));
    printf(" hop %s (%.0f %%),", show_ms(r->slow_hop_s, true, text),
           percent(r->slow_hop_s, r->slow_total_s));
    printf(" wait %s (%.0f %%),", show_ms(r->slow_wait_s, true, text),
           percent(r->slow_wait_s, r->slow_total_s));
    printf(" compute %s (%.0f %%),", show_ms(r->slow_compute_s, true, text),
           percent(r->slow_compute_s, r->slow_total_s));
    printf(" delivery %s (%.0f %%)\n  by loop:", show_ms(r->slow_deliver_s, true, text),
           percent(r->slow_deliver_s, r->slow_total_s));
    for (uint32_t i = 0; i < r->n_loops; i++)
        printf(" %s", show_ms(r->slow_by_loop_s[i], true, text));
    printf("\n");
    for (uint32_t i = 0; i < r->n_slow_listed && i < MAX_TOKENS_SHOWN; i++)
        print_slow_token(&r->slow[i]);
    printf("  (loop worker hop+wait+compute)\n\n");
}

/* ---- how far to trust it -------------------------------------------------------------------- */

/* A buffer that would have kept all, as --trace-buffer takes it. */
static uint64_t buffer_megabytes(const struct trace_set *set)
{
    uint64_t most = 0, megabytes = 1;
    for (uint32_t i = 0; i < set->n_ranks; i++) {
        uint64_t n = set->ranks[i].n_records + set->ranks[i].n_lost;
        most = n > most ? n : most;
    }
    while (megabytes < UINT64_C(1) << 40 && (megabytes << 20) / sizeof(struct trace_record) < most)
        megabytes *= 2;
    return megabytes;
}

static void print_trust(const struct trace_report *r, const struct trace_set *set)
{
    double shortest_hop_s = 0;
    for (uint32_t i = 1; i < r->n_loops; i++)
        if (r->loops[i].hop.p50_s > 0 &&
            (shortest_hop_s == 0 || r->loops[i].hop.p50_s < shortest_hop_s))
            shortest_hop_s = r->loops[i].hop.p50_s;
    if (r->clock_error_s > 0)
        printf("clocks: the ranks' clocks agree within %.1f us%s\n", r->clock_error_s * 1e6,
               shortest_hop_s > 0 && r->clock_error_s > shortest_hop_s / 2
                   ? "; hops are as short as that: trust their sum, not their parts"
                   : "");
    if (r->n_missing > 0)
        printf("missing: the records of %" PRIu32 " of %" PRIu32 " workers: the run failed before "
               "they were asked for them\n",
               r->n_missing, r->n_workers);
    if (r->n_incomplete > 0)
        printf("incomplete: the batches of %" PRIu64 " tokens are not in the trace; the slowest "
               "tokens are of the others\n",
               r->n_incomplete);
    if (r->n_lost > 0)
        printf("lost: %" PRIu64 " records were overwritten, the oldest ones: the trace begins in "
               "the middle; --trace-buffer %" PRIu64 "M would have kept all\n",
               r->n_lost, buffer_megabytes(set));
}

void trace_report_print(const struct trace_report *r, const struct trace_set *set)
{
    print_head(r, set);
    print_requests(r);
    print_loops(r);
    print_exits(r);
    print_workers(r, set);
    print_slow(r);
    print_trust(r, set);
}
